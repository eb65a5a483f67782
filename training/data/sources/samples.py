"""One sample of a data set: its picture and its file names, checked; broken ones are named, counted, passed over."""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ....modeling_unif2ace.pictures_unif2ace import MAX_PIXELS


DEFAULT_MAX_BROKEN = 100
_NAMED = 20  # broken samples that are kept by name; all are counted


class BrokenSampleError(ValueError):
    """One sample cannot be used: what is wrong with it. The stream counts it and goes on."""


class TooManyBrokenSamplesError(ValueError):
    """More samples of a data set are broken than its reader accepts."""


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
        if name in self.seen:
            return
        self.seen.add(name)
        if len(self.named) < _NAMED:
            self.named.append((name, str(error)))
            print(f"{self.source}: left out {name}: {error}", file=sys.stderr)
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


# Pictures

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def file_below(folder: str | os.PathLike, name: str) -> Path:
    """
    The file `name` below `folder`.

    Args:
        folder (`str` or `os.PathLike`): The folder that the data set's pictures are in.
        name (`str`): What the data set says. Data sets come from strangers, so it must stay inside the folder.

    Raises:
        BrokenSampleError: if there is no such file, or it lies elsewhere.
    """
    if "\0" in name:
        raise BrokenSampleError(f"the name {name!r} has a zero byte")
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise BrokenSampleError(
            f"the name {name!r} leaves the folder {root}: give the folder that holds the pictures as images=FOLDER"
        )
    if not path.is_file():
        raise BrokenSampleError(f"the file {path} is missing")
    return path


def open_picture(value: Any, folder: str | os.PathLike | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Open a picture without decoding it: only its header is read.

    Args:
        value: Bytes, the name of a file below `folder`, a PIL picture, or what `datasets.Image(decode=False)` gives,
            `{"bytes": ..., "path": ...}`.
        folder (`str` or `os.PathLike`, *optional*): Where named files are.
        max_pixels (`int`, *optional*, defaults to 64,000,000): Most pixels that a picture may have.

    Raises:
        BrokenSampleError: if the picture is missing, empty, of an unknown kind or too large.
    """
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        return _checked(value, max_pixels)
    if value is None or value in ("", b""):
        raise BrokenSampleError("the picture is missing")
    if isinstance(value, str) and value.startswith(("hf://", "zip://")):
        from datasets.utils.file_utils import xopen  # a picture in a repository that is being streamed

        with xopen(value, "rb") as file:
            value = file.read()
    if isinstance(value, (bytes, bytearray, memoryview)):
        source: Any = io.BytesIO(value)
    elif isinstance(value, (str, os.PathLike)):
        if folder is None:
            raise BrokenSampleError(f"the picture is a file name, {str(value)!r}: say where it is with images=FOLDER")
        source = file_below(folder, os.fspath(value))
    else:
        raise BrokenSampleError(f"the picture has type {type(value).__name__}, expected bytes or a file's name")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures; here the limit is an error of its own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _checked(Image.open(source), max_pixels)
    except UnidentifiedImageError as error:
        raise BrokenSampleError("the picture is not one that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise BrokenSampleError(f"the picture is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BrokenSampleError):
            raise
        raise BrokenSampleError(f"the picture is broken or truncated ({error})") from error


def _checked(picture: Image.Image, max_pixels: int) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise BrokenSampleError(f"the picture has {width}x{height} = {width * height:,} pixels, limit {max_pixels:,}")
    return picture
