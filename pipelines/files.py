"""Files that are complete or absent: written under another name first, then put in place in one step."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    A name to write a file under, which takes the place of `path` when the block ends, and is removed when it fails.

    Args:
        path (`str` or `Path`): The file to write. What is there stays until the new one is whole.

    Yields:
        `Path`: The name to write to: hidden, in the same folder, with the same ending.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".part{path.suffix}", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())  # mkstemp makes files that nobody else can read
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_new(path: str | Path, overwrite: bool = False) -> None:
    """`FileExistsError` if `path` exists and may not be replaced: worth asking before long work, not only after it."""
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another place, or replace it with overwrite=True (--overwrite)")


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A folder to fill, which becomes `path` when the block ends, and is removed with all that is in it when it fails.

    Args:
        path (`str` or `Path`): The folder to make. Its parents are made too.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a folder that exists may be replaced.

    Yields:
        `Path`: The folder to fill: hidden, beside `path`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is not given.
    """
    path = Path(path)
    check_new(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside its place, because a folder can only be renamed within one file system
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", suffix=".part", dir=path.parent) as temporary:
        part = Path(temporary) / path.name
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # safetensors writes files that nobody else can read
        if path.exists():
            path.rename(Path(temporary) / "replaced")
        part.rename(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file, indented, in one step."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
