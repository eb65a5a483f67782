"""A face data set as a stream of records, or as a table of them."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.utils.data

from ....modeling_unif2ace.pictures_unif2ace import load_image
from ..language.captions import write_caption
from ..language.questions import TABLE_QUESTION_KINDS, write_questions
from ..records import FaceRecord
from .readers import BROKEN
from .samples import DEFAULT_MAX_BROKEN, SAMPLE_ERRORS, BrokenSampleError, BrokenSamples


COVERAGES = (1.0, 0.7, 0.4)  # of the captions, as for painted faces
NUM_QUESTIONS = 8
Convert = Callable[[dict[str, Any]], FaceRecord]


def write_words(record: FaceRecord, rng: random.Random) -> None:
    """
    Write captions and questions into a record that has attributes but none of its own.

    What a label table says is taken to be visible: people or a classifier saw it. A caption that could state nothing
    ("a person") is left out.

    Args:
        record ([`FaceRecord`]): The record, changed in place.
        rng (`random.Random`): The source of all choices.
    """
    if not record.attributes and not record.excluded:
        return
    for name in record.attributes:
        record.visible.setdefault(name, True)
    if not record.captions:
        captions = [write_caption(record.attributes, record.visible, rng, coverage=share) for share in COVERAGES]
        record.captions = [caption.text for caption in captions if caption.attributes]
    if not record.questions:
        record.questions = write_questions(
            record.attributes, record.visible, rng, NUM_QUESTIONS, TABLE_QUESTION_KINDS, record.excluded
        )


class FaceStream(torch.utils.data.IterableDataset):
    """
    Face records, one after the other, out of a `datasets.IterableDataset`.

    A record that has attributes but no captions or questions gets some from the template engine; its words depend on
    `(seed, epoch, record)` alone. Broken samples are counted and passed over, see [`BrokenSamples`].

    A stream may be divided among machines with [`split_by_node`], is divided among the workers of a data loader by
    itself, and goes on where another stopped with `state_dict` and `load_state_dict`.

    Args:
        rows (`datasets.IterableDataset`): The rows as they are stored, pictures not decoded.
        convert (`Callable[[dict], FaceRecord]`):
            Makes a record of a row; its picture may be open but not yet decoded. Raises
            [`~unif2ace.training.data.sources.BrokenSampleError`] for a row that cannot be used.
        name (`str`): What to call the data set in messages and records.
        max_broken (`int`, *optional*, defaults to 100): Most broken samples that are accepted; -1 for any number.
        seed (`int`, *optional*, defaults to 0): Seed of the words and of [`shuffle`].
        need_text (`bool`, *optional*, defaults to `True`): Whether a record that says nothing is broken.
        notes (`Sequence[str]`, *optional*): What of the data set is not read, in sentences.

    Attributes:
        broken (`BrokenSamples`): The broken samples so far (of this process).
    """

    def __init__(
        self,
        rows,
        convert: Convert,
        name: str,
        max_broken: int = DEFAULT_MAX_BROKEN,
        seed: int = 0,
        need_text: bool = True,
        notes: Sequence[str] = (),
    ):
        super().__init__()
        self.rows, self.convert, self.name, self.seed, self.notes = rows, convert, name, seed, list(notes)
        self.max_broken, self.need_text, self.epoch = max_broken, need_text, 0
        self.broken = BrokenSamples(name, max_broken)

    @property
    def num_shards(self) -> int:
        """Parts that the stream can be divided into without reading anything twice."""
        return self.rows.num_shards

    def __iter__(self) -> Iterator[FaceRecord]:
        for number, row in enumerate(self.rows):
            record = self.record(row, number)
            if record is not None:
                yield record

    def record(self, row: dict[str, Any], number: int, decode: bool = True) -> FaceRecord | None:
        """
        The record of a row, or `None` for a broken one, which is counted.

        Args:
            row (`dict`): The row.
            number (`int`): Its number, for messages about rows without a name.
            decode (`bool`, *optional*, defaults to `True`): Whether the picture is decoded; else it is only opened.

        Raises:
            TooManyBrokenSamplesError: if one more than `max_broken` are broken.
        """
        try:
            return self._make(row, decode)
        except SAMPLE_ERRORS as error:
            self.broken.add(str(row.get("__key__") or f"row {number}"), error)
            return None

    def _make(self, row: dict[str, Any], decode: bool) -> FaceRecord:
        """The whole record of a row: converted, decoded, given words, checked."""
        if row.get(BROKEN):
            raise BrokenSampleError(row[BROKEN])
        record = self.convert(row)
        record.source = record.source or self.name
        if not record.id:
            record.id = str(row.get("__key__", ""))
        if decode and record.image is not None:
            record.image = load_image(record.image)
        write_words(record, random.Random(f"{self.seed}-{self.epoch}-{record.id}"))
        if self.need_text and not (record.captions or record.questions):
            raise BrokenSampleError("there is no caption, question or label to make words of")
        return record.validate()

    def _with(self, rows) -> "FaceStream":
        other = FaceStream(rows, self.convert, self.name, self.max_broken, self.seed, self.need_text, self.notes)
        other.epoch = self.epoch
        return other

    def split_by_node(self, rank: int, world_size: int) -> "FaceStream":
        """The part of the stream that machine (or process) number `rank` of `world_size` reads."""
        from datasets.distributed import split_dataset_by_node

        return self._with(split_dataset_by_node(self.rows, rank=rank, world_size=world_size))

    def shuffle(self, buffer_size: int = 1000, seed: int | None = None) -> "FaceStream":
        """The stream in another order: shuffled shards, and rows drawn from a buffer of `buffer_size`."""
        return self._with(self.rows.shuffle(seed=self.seed if seed is None else seed, buffer_size=buffer_size))

    def take(self, count: int) -> "FaceStream":
        """The first `count` rows."""
        return self._with(self.rows.take(count))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of a shuffled stream and the words of this pass."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream; what lies in a shuffle buffer is read anew, as in `datasets`."""
        return {"rows": self.rows.state_dict(), "epoch": self.epoch, "broken": self.broken.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place that `state_dict` gave."""
        self.set_epoch(state["epoch"])
        self.rows.load_state_dict(state["rows"])
        self.broken.load_state_dict(state["broken"])

    def table(self, limit: int | None = None) -> "FaceTable":
        """All records (or the first `limit`) by number; rows are kept as they are stored, pictures undecoded."""
        return FaceTable(self, limit)


class FaceTable(Sequence):
    """
    Face records by number, for [`~unif2ace.training.data.rows.FaceRows`]: a stream that has been read once.

    Every sample is checked while it is read, so that no broken one turns up in training. Pictures are kept as they are
    stored (or as file names) and opened anew each time.

    Args:
        stream ([`FaceStream`]): The data set.
        limit (`int`, *optional*): Most records to take.

    Raises:
        ValueError: if there is no record.
        TooManyBrokenSamplesError: if too many samples are broken.
    """

    def __init__(self, stream: FaceStream, limit: int | None = None):
        self.stream = stream
        self.rows: list[dict[str, Any]] = []
        for number, row in enumerate(stream.rows):
            if limit is not None and len(self.rows) >= limit:
                break
            if stream.record(row, number) is not None:
                self.rows.append(row)
        self.broken = stream.broken
        if not self.rows:
            raise ValueError(f"{stream.name} has no usable sample ({stream.broken.count} broken ones)")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> FaceRecord:
        return self.stream._make(self.rows[number], decode=False)
