"""One sample of a data set: its picture and its file names, checked; broken ones are named, counted, passed over."""

import os
import re
import stat
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from ....modeling_unif2ace.pictures_unif2ace import MAX_BYTES, MAX_PIXELS, SUFFIXES, open_image, shorten


DEFAULT_MAX_BROKEN = 100
IMAGE_SUFFIXES = SUFFIXES
_NAMED = 20  # broken samples that are kept by name; all are counted


class BrokenSampleError(ValueError):
    """One sample cannot be used: what is wrong with it. The stream counts it and goes on."""


class TooManyBrokenSamplesError(ValueError):
    """More samples of a data set are broken than its reader accepts."""


# What converting and checking raise for data of strangers: every kind of it makes one broken sample.
SAMPLE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


class BrokenSamples:
    """
    The broken samples of one data set.

    Args:
        source (`str`): What to call the data set in messages.
        limit (`int`, *optional*, defaults to 100): Most broken samples that are accepted; -1 for any number.

    A sample that is met again, in another pass, counts once.

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
        return {
            "count": self.count,
            "seen": sorted(self.seen),
            "named": [list(item) for item in self.named],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from `state`."""
        self.seen = set(state["seen"])
        self.named = [tuple(item) for item in state["named"]]


# Files that a data set names


def check_name(name: str) -> str:
    r"""
    A file's name out of a data set, with `/` between its parts, if it is a relative path that goes down only.

    Data sets come from strangers: what has a scheme (`zip://`, `http://`), a chain of them (`::`), a drive, a root or
    `..` is refused, whoever would open it.

    Raises:
        BrokenSampleError: if it is something else.
    """
    shown = repr(shorten(name))
    if "\0" in name:
        raise BrokenSampleError(f"the name {shown} has a zero byte")
    if "://" in name or "::" in name:
        raise BrokenSampleError(f"the name {shown} is an address, expected a path below the folder of the pictures")
    windows = PureWindowsPath(name)
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


# Pictures


def open_picture(value: Any, place: str | os.PathLike | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Open a picture without decoding it: only its header is read.

    Args:
        value: Bytes, the name of a file at `place`, a PIL picture, or what `datasets.Image(decode=False)` gives,
            `{"bytes": ..., "path": ...}`.
        place (`str` or `os.PathLike`, *optional*):
            Where named files are: a folder, or `hf://datasets/OWNER/NAME` for a repository that is being streamed.
        max_pixels (`int`, *optional*, defaults to 64,000,000): Most pixels that a picture may have.

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
        return open_image(value, max_pixels)
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
    inside = location.startswith((f"{repository}@", f"{repository}/")) and ".." not in location.split("/")
    if not inside or "::" in location:
        raise BrokenSampleError(f"the picture's place {shorten(name)!r} is not in {repository}")
    import fsspec

    with fsspec.open(name, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BrokenSampleError(f"the picture {shorten(name)} has more than {MAX_BYTES:,} bytes")
    return content
