"""Adapters of label tables: CelebA in its forms, CelebA-Dialog, FairFace, and tables of the same labels elsewhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..records import FaceRecord
from .broken import BrokenSampleError
from .columns import texts
from .labels import KNOWN_LABELS, attributes_of_labels, is_label_table, label_name
from .pictures import open_picture
from .readers import BROKEN, from_generator, ranges, read_json


_TRUE, _FALSE = (1, True, "1", "true", "True", "yes"), (-1, 0, False, "-1", "0", "false", "False", "no")


def truth(value: Any, name: str) -> bool | None:
    """
    A label's value (bool, 1/0, 1/-1) as a bool; `None` where there is none.

    Raises:
        BrokenSampleError: if it is something else.
    """
    if value is None:
        return None
    if isinstance(value, (str, int, bool)):
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
    raise BrokenSampleError(f"label {name} is {value!r}, expected true/false, 1/0 or 1/-1")


class LabelRows:
    """
    Converts rows with one column a label: CelebA's parquet files on the Hub.

    Args:
        images (`str` or `os.PathLike`, *optional*): The folder of pictures that are given by name.
        captions (`bool`, *optional*, defaults to `False`):
            Whether a column `prompt`, `caption` or `text` is taken as a caption beside the written ones.
    """

    def __init__(self, images=None, captions: bool = False):
        self.images, self.captions = images, captions

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        found = {name: truth(value, name) for name, value in row.items() if is_label(name)}
        labels = {name: value for name, value in found.items() if value is not None}
        if not labels:
            raise BrokenSampleError("the row has no label")
        attributes, excluded = attributes_of_labels(labels)
        picture = next((row[name] for name in ("image", "img", "jpg", "image_id", "file_name") if row.get(name)), None)
        identity = next((row[name] for name in ("celeb_id", "identity") if row.get(name) is not None), None)
        own = next((row[name] for name in ("prompt", "caption", "text") if row.get(name)), None)
        return FaceRecord(
            image=open_picture(picture, self.images),
            captions=texts(own, "caption") if self.captions else [],
            attributes=attributes,
            excluded=excluded,
            labels={label_name(name): "yes" if value else "no" for name, value in labels.items()},
            identity=None if identity is None else str(identity),
        )


def is_label(name: str) -> bool:
    """Whether a column is a label of CelebA or CelebV-HQ."""
    return label_name(name) in KNOWN_LABELS


# CelebA as its authors publish it: a text file of labels beside a folder of pictures


def read_label_table(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """
    Read `list_attr_celeba.txt`, `CelebAMask-HQ-attribute-anno.txt` or CelebA-Dialog's label files: a count, a line of
    names, then lines `picture value value ...`; the count may be missing, and values may be parted by commas.

    Returns:
        (`list[str]`, iterator of (picture, values)).

    Raises:
        ValueError: if there is no line of names.
    """
    lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    if lines and lines[0].strip().isdigit():
        lines = lines[1:]
    if not lines or not lines[0].split():
        raise ValueError(f"{path} has no line of label names, expected a table as CelebA's list_attr_celeba.txt")
    names = lines[0].split()
    if names[0].lower() in ("image_id", "image_name", "img", "filename", "file"):
        names = names[1:]
    pieces = (line.split() for line in lines[1:])
    return names, ((piece[0], piece[1:]) for piece in pieces if piece)


LABEL_FILES = (
    "list_attr_celeba.txt",
    "list_attr_celeba.csv",
    "CelebAMask-HQ-attribute-anno.txt",
    "Anno/list_attr_celeba.txt",
)
_IMAGE_FOLDERS = ("CelebA-HQ-img", "img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba",
                  "image", "images", "frames", ".")  # fmt: skip


def image_folder(folder: Path, images: Path | None) -> Path:
    """The folder of the pictures: the given one, or the usual one of these data sets below `folder`."""
    if images is not None:
        return Path(images)
    return next(folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir())


def open_celeba_files(folder: Path, images: Path | None = None):
    """
    Rows and converter of CelebA or CelebA-HQ as their authors publish them: a label file, optionally
    `identity_CelebA.txt`, and a folder of pictures.

    Raises:
        FileNotFoundError: if there is no label file.
    """
    table = next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{folder} has no label file, expected one of {', '.join(LABEL_FILES)}")
    names, lines = read_label_table(table)
    if not is_label_table(names):
        raise ValueError(f"{table} has the labels {', '.join(names[:5])}, ..., expected those of CelebA")
    identities = _read_identities(folder)
    entries = list(lines)
    rows = from_generator(
        _table_rows, ranges(len(entries)), entries=tuple(entries), names=tuple(names), identities=identities
    )
    return rows, LabelRows(image_folder(folder, images))


def _read_identities(folder: Path) -> dict[str, str]:
    for path in (folder / "identity_CelebA.txt", folder / "Anno" / "identity_CelebA.txt"):
        if path.is_file():
            return dict(line.split()[:2] for line in path.read_text().splitlines() if len(line.split()) >= 2)
    return {}


def _table_rows(parts, entries, names, identities) -> Iterator[dict]:
    for start, stop in parts:
        for name, values in entries[start:stop]:
            if len(values) != len(names):
                yield {"__key__": name, BROKEN: f"the line has {len(values)} values, expected {len(names)}"}
                continue
            row = {"__key__": name, "image": name} | dict(zip(names, values, strict=True))
            yield row | ({"identity": identities[name]} if name in identities else {})


# CelebA-Dialog: levels 0 to 5 of five attributes, and captions

# (Jiang et al., ICCV 2021, supplementary) -> attribute value, or what is ruled out
_DIALOG_LEVELS: dict[str, dict[int, tuple[str, str]]] = {
    "bangs": {0: ("bangs", "no"), **{level: ("bangs", "yes") for level in range(1, 6)}},
    "eyeglasses": {
        0: ("eyewear", "none"),
        **{level: ("eyewear", "glasses") for level in range(1, 5)},
        5: ("eyewear", "sunglasses"),
    },
    "beard": {0: ("beard", "none"), **{level: ("beard", "beard") for level in range(1, 6)}},
    "smiling": {
        **{level: ("mouth", "smiling") for level in range(1, 4)},
        **{level: ("mouth", "laughing") for level in range(4, 6)},
    },
    "age": {
        **{level: ("age", "young") for level in range(0, 2)},
        **{level: ("age", "middle-aged") for level in range(3, 5)},
        5: ("age", "elderly"),
    },
}
_DIALOG_EXCLUDED = {"smiling": {0: ("mouth", ("smiling", "laughing"))}}


def open_celeba_dialog(folder: Path, images: Path | None = None):
    """
    Rows and converter of CelebA-Dialog: a folder of pictures, text files of labels (five levels 0..5 or CelebA's 40,
    also both) and JSON or text files of captions, in `folder` or one level below.

    Raises:
        FileNotFoundError: if there is neither a label nor a caption file.
    """
    labels: dict[str, dict[str, str]] = {}
    captions: dict[str, list[str]] = {}
    for path in sorted((*folder.glob("*.txt"), *folder.glob("*/*.txt"))):
        names, lines = _try_table(path)
        if names is None:
            captions_of_file = _caption_lines(path)
            for picture, text in captions_of_file:
                captions.setdefault(picture, []).append(text)
            continue
        for picture, values in lines:
            labels.setdefault(picture, {}).update(zip(names, values, strict=False))
    for path in sorted((*folder.glob("*caption*.json"), *folder.glob("*/*caption*.json"))):
        for picture, entry in read_json(path).items():
            captions.setdefault(picture, []).extend(_all_texts(entry))
    pictures = sorted(set(labels) | set(captions))
    if not pictures:
        raise FileNotFoundError(
            f"{folder} has no label table (.txt) and no captions (*caption*.json) of CelebA-Dialog"
        )
    entries = tuple((name, labels.get(name, {}), tuple(captions.get(name, ()))) for name in pictures)
    rows = from_generator(_dialog_rows, ranges(len(entries)), entries=entries)
    return rows, DialogRows(image_folder(folder, images))


def _try_table(path: Path):
    """A label table, or (None, None) for another text file."""
    names, lines = read_label_table(path)
    known = [is_label(name) or name.lower() in _DIALOG_LEVELS for name in names]
    return (names, lines) if sum(known) >= min(5, len(names)) and known and all(known[:1]) else (None, None)


def _caption_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines `picture caption`; others are passed over: requests for editing, splits."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.strip().partition(" ")
        if name.lower().endswith((".jpg", ".png")) and len(text.split()) > 2 and "caption" in path.name:
            yield name, text.strip()


def _all_texts(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, Mapping) else entry if isinstance(entry, list) else ()
    return [text for item in inner for text in _all_texts(item)]


def _dialog_rows(parts, entries) -> Iterator[dict]:
    for start, stop in parts:
        for name, labels, captions in entries[start:stop]:
            yield {"__key__": name, "levels": labels, "captions": list(captions)}


class DialogRows:
    """Converts CelebA-Dialog: levels become attributes, the captions stay as they are."""

    def __init__(self, images: Path):
        self.images = images

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        attributes: dict[str, str] = {}
        excluded: dict[str, tuple[str, ...]] = {}
        yes_no: dict[str, bool] = {}
        for name, value in row["levels"].items():
            levels = _DIALOG_LEVELS.get(name.lower())
            if levels is None:
                if (holds := truth(value, name)) is not None:
                    yes_no[name] = holds
                continue
            if not value.lstrip("-").isdigit() or not -1 <= int(value) <= 5:
                raise BrokenSampleError(f"level {name} is {value!r}, expected 0 to 5")
            if fact := levels.get(int(value)):
                attributes[fact[0]] = fact[1]
            if ruled_out := _DIALOG_EXCLUDED.get(name.lower(), {}).get(int(value)):
                excluded[ruled_out[0]] = ruled_out[1]
        more_attributes, more_excluded = attributes_of_labels(yes_no)
        attributes = more_attributes | attributes
        return FaceRecord(
            image=open_picture(row["__key__"], self.images),
            captions=texts(row["captions"], "caption"),
            attributes=attributes,
            excluded={name: values for name, values in (more_excluded | excluded).items() if name not in attributes},
            labels={name.lower(): str(value) for name, value in row["levels"].items()},
        )


# FairFace

FAIRFACE_AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
FAIRFACE_GENDERS = ("Male", "Female")
FAIRFACE_RACES = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian")
_FAIRFACE_AGES = {
    **dict.fromkeys(("10-19", "20-29"), "young"),
    **dict.fromkeys(("40-49", "50-59"), "middle-aged"),
    **dict.fromkeys(("60-69", "more than 70"), "elderly"),
}


class FairFaceRows:
    """
    Converts FairFace: age and apparent gender become attributes; race stays a label, for results by group.

    Ages 30-39 lie between "young" and "middle-aged" and give neither. Of children the gender is left out: the
    vocabulary has only "man" and "woman".
    """

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        age = _class_name(row.get("age"), FAIRFACE_AGES, "age")
        gender = _class_name(row.get("gender"), FAIRFACE_GENDERS, "gender")
        race = _class_name(row.get("race"), FAIRFACE_RACES, "race")
        attributes = {}
        if age not in ("0-2", "3-9", "10-19", None) and gender is not None:
            attributes["gender"] = "man" if gender == "Male" else "woman"
        if age in _FAIRFACE_AGES:
            attributes["age"] = _FAIRFACE_AGES[age]
        labels = {"age": age, "gender": gender, "race": race}
        return FaceRecord(
            image=open_picture(row.get("image")),
            attributes=attributes,
            labels={name: value for name, value in labels.items() if value is not None},
        )


def _class_name(value: Any, names: tuple[str, ...], kind: str) -> str | None:
    """The name of a `ClassLabel`, given as its number or as its name."""
    if value is None or value in names:
        return value
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise BrokenSampleError(f"{kind} is {value!r}, expected 0 to {len(names) - 1} or one of {', '.join(names)}")
