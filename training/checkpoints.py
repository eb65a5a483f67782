"""Checkpoints that are whole, or known not to be."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open


# The name that transformers' own just-in-time checkpoints use.
INCOMPLETE_FILE = "checkpoint-is-incomplete.txt"
STATE_FILE = "trainer_state.json"
WEIGHT_FILES = ("model.safetensors", "adapter_model.safetensors")
TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "iostream", "unexpected pos")


@contextmanager
def marked_incomplete(folder: str | Path) -> Iterator[None]:
    """
    Inside this context `folder` carries a mark that says it is not whole. When the block ends, its files are flushed
    to the disk and the mark is taken away; when it fails, the mark stays.

    What is in the folder from an earlier attempt is removed first.
    """
    folder = Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark = folder / INCOMPLETE_FILE
    mark.write_text("This checkpoint is being written, or was when the run ended. Do not load it.\n", encoding="utf-8")
    yield
    for path in folder.rglob("*"):
        _flush(path)
    mark.unlink()
    _flush(folder)


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
    return isinstance(error, (OSError, SafetensorError))


def why_incomplete(folder: str | Path) -> str | None:
    """
    What a checkpoint folder lacks to go on from, in a few words; `None` if it is whole.

    Looks at the mark, the trainer's state, and whether the files of weights and optimizer are cut off.
    """
    folder = Path(folder)
    if (folder / INCOMPLETE_FILE).exists():
        return "it was being written when the run ended"
    try:
        json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{STATE_FILE} is missing"
    except (OSError, ValueError):
        return f"{STATE_FILE} cannot be read"
    weights = list(folder.glob("*.safetensors"))
    indices = list(folder.glob("*.safetensors.index.json"))
    shards = [path for path in folder.iterdir() if path.is_dir()]  # of distributed checkpoints, and adapters
    if not (shards or indices or any((folder / name).exists() for name in WEIGHT_FILES)):
        return f"{WEIGHT_FILES[0]} is missing"
    for index in indices:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(names - {path.name for path in weights})
        if missing:
            return f"{missing[0]} is missing"
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return f"{path.name} is cut off"
    for path in folder.glob("*.pt*"):  # optimizer.pt, scheduler.pt, rng_state.pth: zip archives, whose end is an index
        if not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    return None


def step_of(folder: Path) -> int:
    """The step in the name `checkpoint-STEP`, -1 if it is another name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def last_checkpoint(folder: str | Path, say=None) -> Path:
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
