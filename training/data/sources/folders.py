"""A plain folder of pictures with captions beside them."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import FaceRecord
from .columns import ColumnMap, MappedRows, guess_columns
from .readers import BROKEN, _json_lines, from_generator, ranges, read_rows
from .samples import IMAGE_SUFFIXES, BrokenSampleError, open_picture


METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "captions.jsonl")


def list_pictures(folder: Path) -> list[str]:
    """The pictures in a folder and below it, by name; hidden files and folders are left out."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in name.parts):
            found.append(name.as_posix())
    return sorted(found)


def open_folder(folder: Path, columns: ColumnMap | None = None, texts: Path | None = None, need_text: bool = True):
    """
    Rows and converter of a folder: pictures with `metadata.jsonl` (`metadata.csv`, `captions.jsonl`) as for
    `datasets`' image folders, or with a `.txt` of the same name for each picture, one caption a line.

    Args:
        folder (`Path`): The folder.
        columns ([`ColumnMap`], *optional*): Columns of the metadata; guessed when not given.
        texts (`Path`, *optional*): Where the `.txt` files are; beside the pictures when not given.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without caption is broken.

    Returns:
        (`datasets.IterableDataset`, converter).

    Raises:
        FileNotFoundError: if there is no picture.
        ValueError: if the metadata name no pictures or no captions.
    """
    metadata = next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    if metadata is not None and texts is None:
        rows = read_rows([metadata])
        first = _first_row(metadata)
        guess = columns or guess_columns(first)
        if not guess.image:
            raise ValueError(f"{metadata} has no column file_name, expected one that names the pictures")
        return rows, MappedRows(guess, folder, need_text)
    names = list_pictures(folder)
    if not names:
        raise FileNotFoundError(f"{folder} holds no picture, expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return from_generator(_named_rows, ranges(len(names)), names=names), CaptionFiles(
        folder, texts or folder, need_text
    )


def _first_row(metadata: Path) -> dict[str, Any]:
    """The first readable row of the metadata."""
    if metadata.suffix == ".csv":
        with open(metadata, encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file), None)
    else:
        lines = _json_lines([(str(metadata), 0, metadata.stat().st_size)])
        row = next((line for line in lines if BROKEN not in line), None)
    if row is None:
        raise ValueError(f"{metadata} has no row that can be read")
    return row


def _named_rows(parts: list[tuple[int, int]], names: tuple[str, ...]) -> Iterator[dict]:
    for start, stop in parts:
        for name in names[start:stop]:
            yield {"__key__": name, "file_name": name}


class CaptionFiles:
    """
    Converts the name of a picture, with the `.txt` file of the same name.

    Args:
        images (`Path`): The folder of the pictures.
        texts (`Path`): The folder of the texts.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without caption is broken.
    """

    def __init__(self, images: Path, texts: Path, need_text: bool = True):
        self.images, self.texts, self.need_text = images, texts, need_text

    def __call__(self, row: dict[str, Any]) -> FaceRecord:
        name = row["file_name"]
        picture = open_picture(name, self.images)
        path = self.texts / Path(name).with_suffix(".txt")
        captions = read_captions(path, name) if self.need_text or path.is_file() else []
        return FaceRecord(image=picture, captions=captions, id=name)


def read_captions(path: Path, name: str) -> list[str]:
    """
    The captions of a text file, one a line.

    Raises:
        BrokenSampleError: if the file is missing, empty or not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BrokenSampleError(f"{name} has no caption: the file {path} is missing") from None
    except UnicodeDecodeError as error:
        raise BrokenSampleError(f"{path} is not UTF-8 ({error})") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise BrokenSampleError(f"the caption of {name} is empty ({path})")
    return captions
