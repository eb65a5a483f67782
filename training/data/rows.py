"""Training rows of both tasks from face records, whatever data set these come from."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...modeling_unif2ace.configuration_unif2ace import TASKS
from .language.captions import DESCRIBE_PROMPTS, write_caption
from .language.questions import write_questions
from .language.visibility import assumed_visible
from .records import FaceRecord


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
            Precomputed columns, one entry a record: `codes`, `clip_features`, `face_features`; see
            [`~unif2ace.training.data.features.FeatureCache`].

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
        if has_caption and (not has_questions or rng.random() < self.caption_share):
            return [(rng.choice(DESCRIBE_PROMPTS), _caption(record, rng))]
        questions = list(record.questions)
        if questions:
            rng.shuffle(questions)
        else:
            questions = write_questions(record.attributes, _visible(record), rng, self.max_questions)
        if not questions:  # attributes about which nothing is asked
            return [(rng.choice(DESCRIBE_PROMPTS), _caption(record, rng))]
        return [(question.question, question.answer) for question in questions[: self.max_questions]]


def _visible(record: FaceRecord) -> dict[str, bool]:
    return record.visible or assumed_visible(record.attributes)


def _caption(record: FaceRecord, rng: random.Random) -> str:
    if record.captions:
        return rng.choice(record.captions)
    return write_caption(record.attributes, _visible(record), rng).text


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
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        if "task" not in columns:
            raise ValueError(f"{name} lacks the column 'task'; it has {', '.join(columns)}")
        tasks = dataset["task"]
    else:
        tasks = getattr(dataset, "tasks", None)
    first = [0] if tasks is None else sorted({list(tasks).index(task) for task in set(tasks)})
    for number in first:
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
        problem = "lacks the column 'task'" if task is None else f"has task {task!r}"
        raise ValueError(f"{name} {problem}, expected one of {', '.join(map(repr, TASKS))}")
    words = "text" if task == "t2i" else "turns"
    if words not in has:
        what = "the prompt" if task == "t2i" else "a list of (question, answer) pairs"
        raise ValueError(f"{name} is a {task} row and lacks the column {words!r}, {what}; it has {', '.join(has)}")
    if not any(picture in has for picture in PICTURES):
        wanted = ", ".join(map(repr, PICTURES))
        raise ValueError(f"{name} lacks a picture, a column {wanted}; it has {', '.join(has)}")
