"""
Files that are complete or absent: written under another name first, then put in place in one step. And JSON and
names of files that may come from strangers, read so that nothing of theirs ends a program or leaves its folder.
"""

import json
import os
import re
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
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, name):
            error.filename = str(path)  # a full disk names no file, others the hidden one
        raise


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error that a library written in Rust tells as text only; `None` if it is none."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


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


@contextmanager
def only_run(lock: str | Path) -> Iterator[None]:
    """
    While the block runs, another run with the same lock is refused: two would write the same files. The lock ends with
    its process, however that ends. On Windows nothing is locked.

    Args:
        lock (`str` or `Path`): The file that is locked, in the folder that is written to; it is made and left there.

    Raises:
        ValueError: if another run holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            folder = Path(lock).parent
            raise ValueError(f"another run writes to {folder}: wait for it, or choose another folder") from error
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file, indented, in one step."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes, name: str = "the text") -> Any:
    """
    The content of a JSON text from anywhere.

    Raises:
        ValueError: if it is none, or so deep that Python cannot read it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is not JSON that can be read (too deep): look at it in an editor") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}): mend it, or take the file anew from where it came") from error


def read_json(path: str | Path) -> Any:
    """
    The content of a JSON file (UTF-8, with or without a mark of byte order).

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    r"""
    The entries of a file of JSON lines, with the numbers of their lines from 1 on; empty lines are passed over.

    Lines end at `\n` alone: JSON texts may hold U+2028, U+0085 and others at which Python's `splitlines` splits too.

    Raises:
        ValueError: if a line is no JSON.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, parse_json(line, f"{path}, line {number}")


def plain_name(name: Any, source: str | Path) -> str:
    """
    A file's name out of a manifest or an index, if it is the plain name of a file in the same folder.

    Args:
        name: What the manifest says.
        source (`str` or `Path`): The manifest, for the message.

    Raises:
        ValueError: if it is something else: `../x`, a path, an address, a drive, a name that no file can have.
    """
    bad = not isinstance(name, str) or not name or len(name.encode(errors="replace")) > 255
    if bad or name in (".", "..") or any(sign in name for sign in '/\\:*?"<>|\0'):
        raise ValueError(f"{source} names the file {str(name)[:100]!r}, expected a plain file name: do not trust it")
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
