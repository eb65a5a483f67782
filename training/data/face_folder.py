"""A folder with pictures of faces and their captions, as people collect them to fine-tune on."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ...modeling_unif2ace.image_processing_unif2ace import load_image
from .records import FaceRecord
from .rows import FaceRows


METADATA = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_COLUMNS = ("text", "caption", "prompt")


def read_face_folder(folder: str | Path, trigger: str | None = None) -> list[FaceRecord]:
    """
    Read pictures with captions: `metadata.jsonl` with `file_name` and `text` (or `caption`, `captions`), as Hugging
    Face's image folders have it, or else a `.txt` file beside each picture, one caption a line.

    Args:
        folder (`str` or `Path`): The folder; pictures may lie in folders below it.
        trigger (`str`, *optional*):
            A name for who is to be seen. Captions without it get it in front, and a picture without caption has it for
            a caption.

    Returns:
        `list[FaceRecord]`, sorted by file name, with pictures in RGB.

    Raises:
        FileNotFoundError: if there is no such folder or no picture in it.
        ValueError: if a picture has no caption and there is no trigger, or the metadata are malformed.
        UniF2aceImageError: if a picture cannot be read (a `ValueError`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, expected one with pictures of faces")
    captions = _from_metadata(folder) if (folder / METADATA).is_file() else _from_texts(folder)
    if not captions:
        raise FileNotFoundError(f"{folder} holds no picture, expected files ending in {', '.join(SUFFIXES)}")
    bare = [name for name, found in captions.items() if not found]
    if bare and not trigger:
        raise ValueError(
            f"{len(bare)} of {len(captions)} pictures in {folder} have no caption, first {bare[0]}: write one into "
            f"{Path(bare[0]).with_suffix('.txt')} or {METADATA}, or give the person a name with --trigger"
        )
    return [
        FaceRecord(
            image=load_image(folder / name),
            captions=[_with_trigger(caption, trigger) for caption in found or [""]],
            source=folder.name,
            id=name,
        ).validate()
        for name, found in sorted(captions.items())
    ]


def _with_trigger(caption: str, trigger: str | None) -> str:
    if not trigger or trigger.lower() in caption.lower():
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _from_texts(folder: Path) -> dict[str, list[str]]:
    captions = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts):
            text = path.with_suffix(".txt")
            lines = text.read_text(encoding="utf-8-sig").splitlines() if text.is_file() else []
            captions[name.as_posix()] = [line.strip() for line in lines if line.strip()]
    return captions


def _from_metadata(folder: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate((folder / METADATA).read_text(encoding="utf-8-sig").splitlines(), start=1):
        place = f"{folder / METADATA}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{place} is not a JSON object with file_name: {line[:80]!r}") from error
        if not (folder / name).is_file() or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{place} names {name!r}, which is not in the folder")
        found = row.get("captions", [row[key] for key in CAPTION_COLUMNS if row.get(key)])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{place} has captions {found!r}, expected texts")
        captions.setdefault(name, []).extend(text.strip() for text in found if text.strip())
    return captions


class TuningRows(Dataset):
    """
    What a fine-tuning sees: rows of the faces for the tasks that are tuned, and rows that keep what the model knows.

    Args:
        faces ([`FaceRows`]): The rows of the faces.
        tasks (`Sequence[str]`): Tasks to tune, `"t2i"`, `"mmu"` or both.
        prior (`Sequence[tuple[str, torch.LongTensor]]`, *optional*):
            Prompts and the image codes (N,) that the model makes of them before it is tuned, learnt again beside the
            new faces (prior preservation, as in DreamBooth, arXiv:2208.12242).
    """

    def __init__(self, faces: FaceRows, tasks: Sequence[str], prior: Sequence[tuple[str, torch.Tensor]] = ()):
        self.faces = faces
        self.places = [place for place, task in enumerate(faces.tasks) if task in tasks]
        self.prior = list(prior) if "t2i" in tasks else []
        found = {faces.tasks[place] for place in self.places}
        missing = [task for task in tasks if task not in found]
        if missing:
            raise ValueError(f"no face can be used for the task {missing[0]!r}")

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        of_faces = self.faces.tasks
        return [of_faces[place] for place in self.places] + ["t2i"] * len(self.prior)

    def __len__(self) -> int:
        return len(self.places) + len(self.prior)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        if index < len(self.places):
            return self.faces[self.places[index]]
        text, codes = self.prior[index - len(self.places)]
        return {"task": "t2i", "text": text, "codes": codes}
