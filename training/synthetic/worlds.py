"""The worlds whose faces are made, so that their truth is known: what each can answer, and its faces to measure by."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.records import FaceRecord
from ..data.sources import open_faces
from .painted.rows import held_out_faces


@dataclass(frozen=True)
class World:
    """
    A world of faces.

    Args:
        folder (`str`): Where its files are unless another place is named.
        held_out (`Callable`):
            `(folder, count, split, size, workers)` -> that many records of `"test"` or `"validation"`, with a caption,
            questions, all attributes, and which of them the picture shows.
        training (`Callable`): The folder -> faces that a model may have been trained on, as a source.
    """

    folder: str
    held_out: Callable[[Path, int, str, int, int], list[FaceRecord]]
    training: Callable[[Path], str]


def _rendered(folder: Path, count: int, split: str, size: int, workers: int) -> list[FaceRecord]:
    if not sorted(Path(folder).glob(f"{split}-*.parquet")):
        raise FileNotFoundError(
            f"{folder} has no {split}-*.parquet; render the faces with `unif2ace data render --out {folder} "
            f"--split {split} --count {count}`"
        )
    return list(open_faces(folder, split=split).table(count))


WORLDS = {
    "painted": World("runs/painted", held_out_faces, lambda folder: "painted:10000"),
    "rendered": World("runs/rendered", _rendered, str),
}
"""Name -> world."""

__all__ = ["WORLDS", "World"]
