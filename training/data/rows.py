"""Training rows of both tasks from face records: by number, from a stream, of a configuration, for fine-tuning."""

import inspect
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Dataset, IterableDataset

from ...modeling_unif2ace.layout_unif2ace import TASKS
from ...modeling_unif2ace.pictures_unif2ace import load_image
from .features import fingerprints
from .language.captions import DESCRIBE_PROMPTS, write_caption
from .language.questions import write_questions
from .language.visibility import assumed_visible
from .records import FaceRecord
from .sources import FaceStream, TooManyBrokenSamplesError, open_faces
from .sources.known import stored_record
from .sources.readers import undecoded


PICTURES = ("image", "pixel_values", "codes")


class FaceRows(Dataset):
    """
    Rows for [`~unif2ace.training.data.collator.UniF2aceCollator`]: in every pass each record once as a text-to-image
    row, if it can be captioned, and once as an understanding row, if there is anything to say about it.

    Words come from the record's captions and questions; a record that has only attributes gets new ones in every pass.
    They depend on `(seed, pass, row)` alone, so that any worker and any resumed run writes the same.

    Args:
        records (`Sequence[FaceRecord]`):
            The faces, by number. Anything with `len()` and `[number]` will do; it is read through once to see which
            rows there are, so pictures should open lazily, as `PIL.Image.open` does.
        passes (`int`, *optional*, defaults to 1): How often each record comes, with other words each time.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        caption_share (`float`, *optional*, defaults to 0.4):
            Share of understanding rows that ask for a caption, where a record has captions and questions.
        max_questions (`int`, *optional*, defaults to 7): Most questions in one row.
        features (`Mapping[str, Sequence]`, *optional*):
            Precomputed columns, one entry a record: `codes`, `clip_features`, `face_features`; those of
            [`~unif2ace.training.data.prepare.PreparedFaces`].

    Raises:
        ValueError: if no record gives a row, or a column of `features` has another length.
    """

    def __init__(
        self,
        records: Sequence[FaceRecord],
        passes: int = 1,
        seed: int = 0,
        caption_share: float = 0.4,
        max_questions: int = 7,
        features: Mapping[str, Sequence] | None = None,
    ):
        self.records, self.passes, self.seed = records, passes, seed
        self.caption_share, self.max_questions = caption_share, max_questions
        self.features = dict(features or {})
        for name, column in self.features.items():
            if len(column) != len(records):
                raise ValueError(f"column {name!r} has {len(column)} entries for {len(records)} records")
        rows: dict[str, list[int]] = {task: [] for task in TASKS}
        for number in range(len(records)):
            record = records[number]
            captioned = bool(record.captions or record.attributes)
            if captioned:
                rows["t2i"].append(number)
            if captioned or record.questions:
                rows["mmu"].append(number)
        self.rows = [(task, number) for task in TASKS for number in rows[task]]
        if not self.rows:
            raise ValueError(f"none of {len(records)} records has a caption, a question or attributes to train with")

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        return [task for task, _ in self.rows] * self.passes

    def __len__(self) -> int:
        return len(self.rows) * self.passes

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number_of_pass, place = divmod(index, len(self.rows))
        task, number = self.rows[place]
        record = self.records[number]
        rng = random.Random(f"{self.seed}-{number_of_pass}-{place}")
        row: dict[str, Any] = {"task": task}
        for name, column in self.features.items():
            row[name] = torch.tensor(np.asarray(column[number]))  # a copy: what lies on disk is read-only
        if record.image is not None:
            row["image"] = record.image
        if task == "t2i":
            row["text"] = _caption(record, rng)
        else:
            row["turns"] = self._turns(record, rng)
        return row

    def _turns(self, record: FaceRecord, rng: random.Random) -> list[tuple[str, str]]:
        """A request for a caption, or some questions in random order."""
        has_caption = bool(record.captions or record.attributes)
        has_questions = bool(record.questions or record.attributes)
        questions = list(record.questions)
        if has_caption and (not has_questions or rng.random() < self.caption_share):
            questions = []
        elif questions:
            rng.shuffle(questions)
        else:  # there may be attributes about which nothing is asked
            questions = write_questions(record.attributes, visible_of(record), rng, self.max_questions)
        if not questions:
            return [(rng.choice(DESCRIBE_PROMPTS), _caption(record, rng))]
        return [(question.question, question.answer) for question in questions[: self.max_questions]]


def visible_of(record: FaceRecord) -> dict[str, bool]:
    """Which attributes of a record can be seen; where it does not say, what is usual."""
    return record.visible or assumed_visible(record.attributes)


def _caption(record: FaceRecord, rng: random.Random) -> str:
    if record.captions:
        return rng.choice(record.captions)
    return write_caption(record.attributes, visible_of(record), rng).text


def check_rows(dataset: Any, name: str = "train_dataset") -> None:
    """
    Look at the first row of each task, before a long training starts, and say which column it lacks.

    Args:
        dataset:
            A data set with `len()` and `[number]`, and a column `task` or an attribute `tasks`, or a dictionary of
            such; others are passed over.
        name (`str`, *optional*, defaults to `"train_dataset"`): What to call it in messages.

    Raises:
        ValueError: if a column is missing: `task`; `text` (t2i) or `turns` (mmu); a picture in any form.
    """
    if isinstance(dataset, dict):
        for key, one in dataset.items():
            check_rows(one, f"{name}[{key!r}]")
        return
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows")
    has_column = "task" in getattr(dataset, "column_names", ())
    tasks = list(dataset["task"] if has_column else getattr(dataset, "tasks", (None,)))
    for task in set(tasks):
        number = tasks.index(task)
        check_row(dataset[number], f"row {number} of {name}")


def check_row(row: Mapping[str, Any], name: str = "a row") -> None:
    """
    Say what a row lacks.

    Raises:
        ValueError: if a column is missing or empty, or the task is unknown.
    """
    has = [key for key, value in row.items() if value is not None]
    task = row.get("task")
    if task not in TASKS:
        problem = f"lacks the column 'task'; it has {', '.join(has)}" if task is None else f"has task {task!r}"
        raise ValueError(f"{name} {problem}, expected one of {', '.join(map(repr, TASKS))}")
    words, what = {"t2i": ("text", "the prompt"), "mmu": ("turns", "a list of (question, answer) pairs")}[task]
    if words not in has:
        raise ValueError(f"{name} is a {task} row and lacks the column {words!r}, {what}; it has {', '.join(has)}")
    if row.get("pictured", True) and not set(PICTURES) & set(has):
        raise ValueError(f"{name} lacks a picture, a column {', '.join(PICTURES)}; it has {', '.join(has)}")


# From a stream that is too large to be read through beforehand


class StreamedRows(IterableDataset):
    """
    What [`FaceRows`] makes of each record, as the records come: a text-to-image row, then an understanding row, so
    that batches hold both tasks. It has no length: give `max_steps`.

    One process reads the stream and hands the others their part, unless `stream` is a part of its own
    ([`FaceStream.split_by_node`]). With workers, each reads shards of its own.

    Args:
        stream ([`FaceStream`]): The faces.
        passes (`int`, *optional*, defaults to 1): How often the stream is read; each time in another order and with
            other words, if these are made of labels.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        caption_share (`float`, *optional*), max_questions (`int`, *optional*): As for [`FaceRows`].
    """

    def __init__(self, stream: FaceStream, passes: int = 1, seed: int = 0, **options: Any):
        super().__init__()
        self.stream, self.passes, self.seed, self.options = stream, passes, seed, options
        self._state: dict[str, Any] | None = None
        self._pass = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, self._pass = self._pass, 0
        for number in range(first, self.passes):
            self._pass = number
            self.stream.set_epoch(number)
            if self._state is not None:
                self.stream.load_state_dict(self._state)
                self._state = None
            for record in self.stream:
                rows = FaceRows([record], seed=f"{self.seed}-{number}-{record.id}", **self.options)
                yield from (rows[place] for place in range(len(rows)))
        self._pass = 0

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream: after the last record of which all rows were taken, or at it."""
        return {"pass": self._pass, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place that `state_dict` gave."""
        self._pass, self._state = state["pass"], state["stream"]


def faces(
    path: str, limit: int | None = None, streaming: bool = False, shuffle_buffer: int = 1000, **options: Any
) -> Any:
    """
    The faces of a training configuration, `data.source: faces`.

    Args:
        path (`str`): The data set, the `source` of [`open_faces`].
        limit (`int`, *optional*): Most samples to read.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether samples are read while training goes on, shuffled within a buffer. Otherwise all are read and
            checked first, kept as they are stored, and shuffled as a whole.
        shuffle_buffer (`int`, *optional*, defaults to 1000): Rows in that buffer.
        options: `split`, `config`, `columns`, `images`, `max_broken`, `seed` of [`open_faces`]; when streaming also
            `passes`, `caption_share`, `max_questions`.

    Returns:
        [`FaceTable`] or [`StreamedRows`].
    """
    row_options = {name: options.pop(name) for name in ("passes", "caption_share", "max_questions") if name in options}
    try:
        inspect.signature(open_faces).bind(path, **options)
    except TypeError as error:
        raise ValueError(f"data.source='faces' does not take {options}: {error}") from error
    stream = open_faces(path, **options)
    if not streaming:
        if row_options:
            raise ValueError(f"{min(row_options)} belongs beside `train`, not into it, where faces are not streamed")
        return stream.table(limit)
    if limit is not None:
        stream = stream.take(limit)
    return StreamedRows(stream.shuffle(shuffle_buffer), **{"passes": 1_000_000} | row_options)


# Of a configuration

ROW_OPTIONS = ("caption_share", "max_questions")
NAMED = {"faces": f"{__name__}:faces", "prepared": f"{__name__}:prepared_rows"}
# Sources that read the whole section themselves: called with it and the seed, they give the rows of both splits.
# Worlds that are not part of the core stand here by name: nothing of them is imported before it is asked for.
SECTIONS = {"synthetic": f"{__package__.rpartition('.')[0]}.synthetic.rows:section_rows"}
DEFAULT_SOURCE = "synthetic"


class Records(Sequence):
    """The records of a `datasets.Dataset` that has the fields of [`FaceRecord`] as columns; others are not read."""

    def __init__(self, dataset: Any):
        self.dataset = undecoded(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> FaceRecord:
        row = self.dataset[number]
        record = stored_record(row | {"image": None})
        if row.get("image") is not None:
            record.image = load_image(row["image"])
        return record


def call(place: str, **arguments: Any) -> Any:
    """
    Call the function that `place`, `"package.module:function"`, names.

    Raises:
        ValueError: if there is no such function, or it does not take the arguments.
    """
    module, colon, name = (NAMED | SECTIONS).get(place, place).partition(":")
    if not colon:
        names = ", ".join((*SECTIONS, *NAMED))
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
            Either `source: synthetic` (the default) with the arguments of
            [`~unif2ace.training.synthetic.rows.section_rows`]; or `source: faces`, any face data set, with
            arguments of [`faces`] under `train` and `validation`; or `source: prepared`, with
            those of [`prepared_rows`]; or `source: package.module:function`, which is
            called likewise and returns face records, a `datasets.Dataset` with their fields, or finished rows. With
            records, `passes`, `caption_share` and `max_questions` are those of [`FaceRows`], and `features` is a
            folder where codes and features are prepared once, or found, if data and weights are the same.
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
    source = data.pop("source", DEFAULT_SOURCE)
    if source in SECTIONS:
        return call(source, seed=seed, **data)
    if "train" not in data:
        raise ValueError("data.train is missing")
    train, validation = data.pop("train"), data.pop("validation", None)
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
            from .prepare import PreparedFaces, RecordStream, prepare  # needs pyarrow, which the trainer does not

            made_with = {"source": source, "data": arguments, "count": len(records), "weights": fingerprints(model)}
            place = Path(features) / name
            with PartialState().main_process_first():  # the others find it
                prepare(RecordStream(records), place, model, image_processor, made_with, progress=progress)
            columns = PreparedFaces(place).columns
        return FaceRows(records, passes=passes, seed=seed, features=columns, **options)

    return rows("train", train, passes), None if validation is None else rows("validation", validation, 1)


def prepared_rows(folder: str | Path, **options: Any) -> FaceRows:
    """
    Training rows of a folder that `unif2ace data prepare` made, `data.source: prepared` in a configuration.

    Args:
        folder (`str` or `Path`): The folder.
        options: Those of [`FaceRows`]: `passes`, `seed`, `caption_share`, `max_questions`.
    """
    from .prepare import PreparedFaces

    faces = PreparedFaces(folder)
    return FaceRows(faces, features=faces.columns, **options)


# For fine-tuning


def read_faces(source: str, trigger: str | None = None, trigger_only: bool = False) -> list[FaceRecord]:
    """
    Read all faces of a data set; of those that people fine-tune on, none may be broken.

    Pictures that will be trained with the trigger alone are counted on stderr, as is everything that was not read.

    Args:
        source (`str`):
            A folder of pictures, each with a text file of the same name (one caption a line), or named in
            `metadata.jsonl`; or any other data set that [`~unif2ace.training.data.sources.open_faces`] knows.
        trigger (`str`, *optional*):
            A name for who is to be seen. Captions without it get it in front, and a picture without caption has it for
            a caption.
        trigger_only (`bool`, *optional*, defaults to `False`):
            Whether it is meant that most or all pictures have no caption of their own. Otherwise that is refused.

    Returns:
        `list[FaceRecord]` with pictures in RGB.

    Raises:
        FileNotFoundError: if there is no such data set or no picture in it.
        ValueError: if a face cannot be used: the picture or its caption cannot be read, or it has no caption and there
            is no trigger; or if most have none.
    """
    try:
        stream = open_faces(source, max_broken=0, need_text=False)
        records = list(stream)
    except TooManyBrokenSamplesError as error:
        found = re.search(r"\((.*)\): mend them", str(error), re.S)  # its advice is for data sets that may have holes
        what = found.group(1) if found else str(error)
        raise ValueError(f"a face of {source} cannot be used: {what}; mend it or take it out") from error
    if not records:
        raise FileNotFoundError(f"{source} holds no picture")
    # questions do not say what to paint: with a trigger, a picture that has only these is painted by the trigger alone
    bare = [record.id for record in records if not record.captions and (trigger or not record.questions)]
    count = f"{len(bare)} of {len(records)} pictures"
    if bare and not trigger:
        raise ValueError(
            f"{count} of {source} have no caption, first {bare[0]}: write one into a .txt file of the same name or "
            "into metadata.jsonl, or name the person with --trigger"
        )
    if 2 * len(bare) > len(records) and not trigger_only:
        unread = f" Not read: {'; '.join(stream.notes)}." if stream.notes else ""
        raise ValueError(
            f"{count} of {source} have no caption that was understood, first {bare[0]}: they would be trained with "
            f"{trigger!r} alone.{unread} Write captions as .txt files or metadata.jsonl, or say that it is meant with "
            "--trigger-only"
        )
    if bare:
        print(f"{source}: {count} are trained with {trigger!r} alone", file=sys.stderr)
    for record in records:
        record.captions = [_with_trigger(caption, trigger) for caption in record.captions or ([""] if trigger else [])]
    return records


def _with_trigger(caption: str, trigger: str | None) -> str:
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    if not caption:
        return trigger
    first = caption[0].lower() if caption.startswith(("A ", "An ", "The ")) else caption[0]
    return f"{trigger}, {first}{caption[1:]}"


class TuningRows(Dataset):
    """
    What a fine-tuning sees: rows of the faces for the tasks that are tuned, and rows that keep what the model knows.

    Args:
        faces ([`FaceRows`]): The rows of the faces.
        tasks (`Sequence[str]`): Tasks to tune, `"t2i"`, `"mmu"` or both.
        prior (`Sequence[tuple[str, torch.LongTensor]]`, *optional*):
            Prompts and the image codes (N,) that the model makes of them before it is tuned, learnt again beside the
            new faces (prior preservation, as in DreamBooth, arXiv:2208.12242).
    """

    def __init__(self, faces: FaceRows, tasks: Sequence[str], prior: Sequence[tuple[str, torch.Tensor]] = ()):
        self.faces = faces
        self.places = [place for place, task in enumerate(faces.tasks) if task in tasks]
        self.prior = list(prior) if "t2i" in tasks else []
        found = {faces.tasks[place] for place in self.places}
        missing = [task for task in tasks if task not in found]
        if missing:
            raise ValueError(f"no face can be used for the task {missing[0]!r}")

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        of_faces = self.faces.tasks
        return [of_faces[place] for place in self.places] + ["t2i"] * len(self.prior)

    def __len__(self) -> int:
        return len(self.places) + len(self.prior)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        if index < len(self.places):
            return self.faces[self.places[index]]
        text, codes = self.prior[index - len(self.places)]
        return {"task": "t2i", "text": text, "codes": codes}
