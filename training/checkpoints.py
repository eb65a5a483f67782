"""Checkpoints that are whole, or known not to be."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..pipelines.files import system_error, write_json


# The name that transformers' own just-in-time checkpoints use.
INCOMPLETE_FILE = "checkpoint-is-incomplete.txt"
MANIFEST_FILE = "manifest.json"
TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "iostream", "unexpected pos")


@contextmanager
def being_written(folder: str | Path) -> Iterator[None]:
    """
    Inside this context `folder` carries a mark that says it is not whole. When the block ends, its files are flushed
    to the disk, a manifest of their sizes and hashes is written and the mark is taken away; when it fails, the mark
    stays.

    What is in the folder from an earlier attempt is removed first.
    """
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark = folder / INCOMPLETE_FILE
    mark.write_text("This checkpoint is being written, or was when the run ended. Do not load it.\n", encoding="utf-8")
    yield
    manifest = {}
    for path in sorted(folder.rglob("*")):
        _flush(path)
        if path.is_file() and path != mark:
            name = path.relative_to(folder).as_posix()
            manifest[name] = {"size": path.stat().st_size, "sha256": _hash(path)}
    write_json(folder / MANIFEST_FILE, manifest)
    _flush(folder / MANIFEST_FILE)
    mark.unlink()
    _flush(folder)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the file or folder on the disk, not only in the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_write_error(error: BaseException) -> bool:
    """Whether an exception of saving says that the disk did not take the data (full, quota, file size limit)."""
    if isinstance(error, RuntimeError):  # torch.save
        return any(words in str(error) for words in TORCH_WRITE_ERRORS)
    return isinstance(error, (OSError, SafetensorError)) or system_error(error) is not None


def why_incomplete(folder: str | Path) -> str | None:
    """
    Why a checkpoint folder cannot be gone on from, in a few words; `None` if it is whole: not marked as being written,
    and every file as its manifest says, to the last bit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / INCOMPLETE_FILE).exists():
        return "it was being written when the run ended"
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST_FILE} cannot be read"
    for name, (size, _) in entries.items():  # quick things first
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} is cut off or was changed"
    for name, (_, sha256) in entries.items():
        if _hash(folder / name) != sha256:
            return f"{name} is not what was written"
    return None


def step_of(folder: Path) -> int:
    """The step in the name `checkpoint-STEP`, -1 if it is another name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def last_checkpoint(folder: str | Path, say: Callable[[str], object] | None = None) -> Path:
    """
    The newest whole checkpoint of a run. Others that are newer are passed over.

    Args:
        folder (`str` or `Path`): The run's output folder.
        say (callable, *optional*): Told, in one sentence each, which checkpoints are passed over and why.

    Raises:
        FileNotFoundError: if there is none.
    """
    candidates = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and step_of(path) >= 0]
    for path in sorted(candidates, key=step_of, reverse=True):
        problem = why_incomplete(path)
        if problem is None:
            return path
        if say is not None:
            say(f"{path} is skipped: {problem}")
    raise FileNotFoundError(f"{folder} holds no complete checkpoint to resume from; run without --resume")
