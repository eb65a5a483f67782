"""The `data` section of a training configuration: which faces, and how they become rows."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..synthetic.painted.rows import PaintedRows
from .features import FeatureCache
from .language.questions import Question
from .records import FaceRecord
from .rows import FaceRows


PAINTED = "painted"
ROW_OPTIONS = ("caption_share", "max_questions")
NAMED = {"faces": f"{__package__}.stream_rows:faces", "prepared": f"{__package__}.prepare:prepared_rows"}


class Records(Sequence):
    """
    The face records of a `datasets.Dataset` that has their fields as columns.

    Args:
        dataset (`datasets.Dataset`): Columns named as the fields of [`FaceRecord`]; others are not read.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.columns = [field.name for field in fields(FaceRecord) if field.name in dataset.column_names]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> FaceRecord:
        row = self.dataset[number]
        values = {name: row[name] for name in self.columns if row[name] is not None}
        values["questions"] = [q if isinstance(q, Question) else Question(**q) for q in values.get("questions", ())]
        for name, value in values.items():  # a struct column has all keys in every row
            if isinstance(value, dict):
                values[name] = {key: entry for key, entry in value.items() if entry is not None}
        return FaceRecord(**values)


def call(place: str, **arguments: Any) -> Any:
    """
    Call the function that `place`, `"package.module:function"`, names.

    Raises:
        ValueError: if there is no such function, or it does not take the arguments.
    """
    module, colon, name = NAMED.get(place, place).partition(":")
    if not colon:
        names = ", ".join((PAINTED, *NAMED))
        raise ValueError(f"data.source={place!r}, expected one of {names}, or package.module:function")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"data.source={place!r} cannot be found: {error}") from error
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"data.source={place!r} does not take {arguments}: {error}") from error
    return function(**arguments)


def as_records(found: Any) -> Sequence[FaceRecord] | None:
    """`found` as face records, or `None` if it holds rows already, or is a stream of rows."""
    if not hasattr(found, "__len__"):
        return None
    if len(found) == 0:
        raise ValueError("the data set is empty")
    columns = getattr(found, "column_names", None)
    if columns is not None:
        return None if "task" in columns else Records(found)
    return found if isinstance(found[0], FaceRecord) else None


def make_rows(
    data: dict[str, Any], seed: int, model=None, image_processor=None, progress: bool = True
) -> tuple[Dataset, Dataset | None]:
    """
    The training and the held-out rows of a `data` section.

    Args:
        data (`dict`):
            Either `source: painted` (the default) with `folder`, `passes`, `validation_count` and other arguments of
            [`PaintedRows`]; or `source: faces`, any face data set, with arguments of
            [`~unif2ace.training.data.stream_rows.faces`] under `train` and `validation`; or `source: prepared`, with
            those of [`~unif2ace.training.data.prepare.prepared_rows`]; or `source: package.module:function`, which is
            called likewise and returns face records, a `datasets.Dataset` with their fields, or finished rows. With
            records, `passes`, `caption_share` and `max_questions` are those of [`FaceRows`], and `features` is the
            folder of a [`FeatureCache`], which is made if it does not exist.
        seed (`int`): Seed of the words.
        model (`UniF2aceModel`, *optional*): Makes the features.
        image_processor (*optional*): Prepares pictures for it.
        progress (`bool`, *optional*, defaults to `True`): Show a bar while features are made.

    Returns:
        Training rows, and held-out rows or `None`.

    Raises:
        ValueError: if a key is unknown or missing.
    """
    data = dict(data)
    source = data.pop("source", PAINTED)
    if source == PAINTED:
        validation, folder, passes = (_take(data, name) for name in ("validation_count", "folder", "passes"))
        train_rows = PaintedRows(folder, "train", passes=passes, seed=seed, **data)
        return train_rows, PaintedRows(folder, "validation", count=validation)

    train, validation = _take(data, "train"), data.pop("validation", None)
    passes, features = data.pop("passes", 1), data.pop("features", None)
    options = {name: data.pop(name) for name in ROW_OPTIONS if name in data}
    if data:
        known = ("source", "train", "validation", "passes", "features", *ROW_OPTIONS)
        raise ValueError(f"data.{min(data)} is unknown, expected one of {', '.join(known)}")

    def rows(name: str, arguments: dict[str, Any], passes: int) -> Dataset:
        found = call(source, **arguments)
        records = as_records(found)
        if records is None:
            return found
        columns = None
        if features is not None:
            cache = _features(Path(features) / name, records, model, image_processor, progress)
            columns = cache.columns
        return FaceRows(records, passes=passes, seed=seed, features=columns, **options)

    return rows("train", train, passes), None if validation is None else rows("validation", validation, 1)


def _take(data: dict[str, Any], name: str) -> Any:
    if name not in data:
        raise ValueError(f"data.{name} is missing")
    return data.pop(name)


def _features(folder: Path, records: Sequence[FaceRecord], model, image_processor, progress: bool) -> FeatureCache:
    def pixel_values(number: int) -> torch.Tensor:
        image = records[number].image
        if image is None:
            raise ValueError(f"record {number} has no picture to compute features from")
        return image_processor(image, return_tensors="pt")["pixel_values"][0]

    return FeatureCache.build(folder, model, pixel_values, len(records), progress=progress)
