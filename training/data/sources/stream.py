"""A face data set as a stream of records: each sample is checked; broken ones are named, counted and passed over."""

import copy
import os
import random
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

import torch.utils.data
from PIL import Image

from ....modeling_unif2ace.pictures_unif2ace import MAX_BYTES, load_image, open_image, shorten
from ..language.captions import write_caption
from ..language.questions import TABLE_QUESTION_KINDS, write_questions
from ..records import FaceRecord


BROKEN = "__broken__"
"""The column of a row that could not be read; it says why."""

DEFAULT_MAX_BROKEN = 100
COVERAGES = (1.0, 0.7, 0.4)  # of the captions, as for painted faces
NUM_QUESTIONS = 8
_NAMED = 20  # broken samples that are kept by name; all are counted
Convert = Callable[[dict[str, Any]], FaceRecord]


class BrokenSampleError(ValueError):
    """One sample cannot be used: what is wrong with it. The stream counts it and goes on."""


class TooManyBrokenSamplesError(ValueError):
    """More samples of a data set are broken than its reader accepts."""


# What converting and checking raise for data of strangers: every kind of it makes one broken sample.
SAMPLE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


class BrokenSamples:
    """
    The broken samples of one data set. A sample that is met again, in another pass, counts once.

    Args:
        source (`str`): What to call the data set in messages.
        limit (`int`, *optional*, defaults to 100): Most broken samples that are accepted; -1 for any number.

    Attributes:
        named (`list[tuple[str, str]]`): The first of them, as (name, what is wrong).
    """

    def __init__(self, source: str, limit: int = DEFAULT_MAX_BROKEN):
        if limit < -1:
            raise ValueError(f"max_broken={limit}, expected 0 or more, or -1 for any number")
        self.source, self.limit = source, limit
        self.seen: set[str] = set()
        self.named: list[tuple[str, str]] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.seen)

    def add(self, name: str, error: Exception) -> None:
        """
        Count a broken sample.

        Raises:
            TooManyBrokenSamplesError: if it is one more than the limit.
        """
        name = shorten(name)
        if name in self.seen:
            return
        self.seen.add(name)
        if len(self.named) < _NAMED:
            self.named.append((name, shorten(str(error) or type(error).__name__, 600)))
            print(f"{self.source}: left out {name}: {self.named[-1][1]}", file=sys.stderr)
        if 0 <= self.limit < self.count:
            first = "; ".join(f"{name}: {problem}" for name, problem in self.named[:3])
            raise TooManyBrokenSamplesError(
                f"{self.source} has more than {self.limit} broken samples ({first}): mend them, or accept more with "
                f"max_broken (--max-broken)"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"count": self.count, "seen": sorted(self.seen), "named": [list(item) for item in self.named]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from `state`."""
        self.seen, self.named = set(state["seen"]), [tuple(item) for item in state["named"]]


# Files that a data set names


def check_name(name: str) -> str:
    r"""
    A file's name out of a data set, with `/` between its parts, if it is a relative path that goes down only.

    Data sets come from strangers: what has a scheme (`zip://`, `http://`), a chain of them (`::`), a drive, a root or
    `..` (also as `%2e%2e`) is refused, whoever would open it.

    Raises:
        BrokenSampleError: if it is something else.
    """
    shown = repr(shorten(name))
    if "\0" in name:
        raise BrokenSampleError(f"the name {shown} has a zero byte")
    if "://" in name or "::" in name:
        raise BrokenSampleError(f"the name {shown} is an address, expected a path below the folder of the pictures")
    windows = PureWindowsPath(unquote(name))
    parts = {*windows.parts, *PurePosixPath(name).parts}
    if not name.strip() or windows.drive or windows.root or name.startswith("~") or ".." in parts:
        raise BrokenSampleError(
            f"the name {shown} leaves the folder of the pictures, expected a relative path below it: give the folder "
            "that holds them as images=FOLDER"
        )
    return name


def file_below(folder: str | os.PathLike, name: str) -> Path:
    """
    The file `name` below `folder`.

    Links are followed inside of the folder, and from a snapshot of the Hub's cache to the files of that repository in
    the cache; others, and what is no plain file, are refused.

    Args:
        folder (`str` or `os.PathLike`): The folder that the data set's pictures are in.
        name (`str`): What the data set says.

    Raises:
        BrokenSampleError: if there is no such file, or it lies elsewhere.
    """
    check_name(name)
    try:
        root = Path(folder).resolve()
        given = root / name
        if "\\" in name and not given.exists():  # written on Windows
            given = root / name.replace("\\", "/")
        path = given.resolve()
        if not any(path.is_relative_to(place) for place in (root, *_blobs(root))):
            raise BrokenSampleError(
                f"the file {shorten(str(given))} is a link out of {root}: put the file itself there, or give the "
                "folder that holds it as images=FOLDER"
            )
        if not path.exists():
            raise BrokenSampleError(f"the file {shorten(str(given))} is missing")
        if not stat.S_ISREG(path.stat().st_mode):
            raise BrokenSampleError(f"{shorten(str(given))} is no plain file")
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links, no right to look
        raise BrokenSampleError(f"the file {shorten(name)!r} cannot be read ({error.__class__.__name__})") from error
    return path


def _blobs(root: Path) -> list[Path]:
    """Where the files of a snapshot in the cache of the Hub lie: `<repository>/snapshots/<revision>` links to them."""
    for parent in root.parents:
        if parent.name == "snapshots" and re.match(r"(datasets|models|spaces)--", parent.parent.name):
            return [parent.parent / "blobs"]
    return []


def open_picture(value: Any, place: str | os.PathLike | None = None) -> Image.Image:
    """
    Open a picture without decoding it: only its header is read.

    Args:
        value: Bytes, the name of a file at `place`, a PIL picture, or what `datasets.Image(decode=False)` gives,
            `{"bytes": ..., "path": ...}`.
        place (`str` or `os.PathLike`, *optional*):
            Where named files are: a folder, or `hf://datasets/OWNER/NAME` for a repository that is being streamed.

    Raises:
        BrokenSampleError: if the picture is missing, empty, of an unknown kind or too large.
    """
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, (str, bytes)) and not value):
        raise BrokenSampleError("the picture is missing")
    if isinstance(value, (str, os.PathLike)):
        name = os.fspath(value)
        if place is None:
            shown = shorten(name)
            raise BrokenSampleError(f"the picture is a file name, {shown!r}: say where it is with images=FOLDER")
        value = _remote_file(name, place) if str(place).startswith("hf://") else file_below(place, name)
    elif not isinstance(value, (bytes, bytearray, memoryview, Image.Image)):
        raise BrokenSampleError(f"the picture has type {type(value).__name__}, expected bytes or a file's name")
    try:
        return open_image(value)
    except ValueError as error:
        told = str(error).replace(str(value), "the picture", 1) if isinstance(value, Path) else str(error)
        raise BrokenSampleError(told) from error  # the sample is named already, its path would say nothing more


def _remote_file(name: str, repository: str | os.PathLike) -> bytes:
    """A file of the repository that is being streamed, or a member of a zip archive of it; no other place is asked."""
    repository = str(repository)
    member, chain, outer = name.partition("::")
    location = outer if chain and member.startswith("zip://") else name
    if "://" not in name:
        location = name = f"{repository}/{check_name(name)}"
    inside = location.startswith((f"{repository}@", f"{repository}/")) and ".." not in unquote(location).split("/")
    if not inside or "::" in location:
        raise BrokenSampleError(f"the picture's place {shorten(name)!r} is not in {repository}")
    import fsspec

    with fsspec.open(name, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BrokenSampleError(f"the picture {shorten(name)} has more than {MAX_BYTES:,} bytes")
    return content


# Records


def write_words(record: FaceRecord, rng: random.Random) -> None:
    """
    Write captions and questions into a record that has attributes but none of its own; it is changed in place.

    What a label table says is taken to be visible: people or a classifier saw it. A caption that could state nothing
    ("a person") is left out.
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
        self.need_text, self.epoch = need_text, 0
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

    def record(self, row: dict[str, Any], number: int) -> FaceRecord | None:
        """
        The record of a row, or `None` for a broken one, which is counted.

        Args:
            row (`dict`): The row.
            number (`int`): Its number, for messages about rows without a name.

        Raises:
            TooManyBrokenSamplesError: if one more than `max_broken` are broken.
        """
        try:
            return self.make(row)
        except SAMPLE_ERRORS as error:
            self.broken.add(str(row.get("__key__") or f"row {number}"), error)
            return None

    def make(self, row: dict[str, Any], decode: bool = True) -> FaceRecord:
        """The whole record of a row: converted, decoded unless it is enough to open it, given words, checked."""
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
        other = copy.copy(self)
        other.rows, other.broken = rows, BrokenSamples(self.name, self.broken.limit)
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
        return self.stream.make(self.rows[number], decode=False)
