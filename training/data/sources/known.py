"""
Adapters of known face data sets: label tables (CelebA in its forms, CelebA-Dialog, FairFace), captions (FaceCaption,
MM-CelebA-HQ, FFHQ-Text), frames of clips (CelebV-HQ, CelebV-Text), and records that this package wrote.

A converter is a function of a row and the folder of the pictures; an opener takes the folder as its authors publish
it, and that of the pictures if it is elsewhere, and gives rows, converter and notes of what is not read.

CelebA's 40 names and CelebV-HQ's 83 overlap; both are one table here. Names are compared in lower case, and CelebA's
`blond_hair` is CelebV-HQ's `blonde_hair`. A "no" is a fact where the vocabulary has a value for it ("no bangs"), and
elsewhere rules a value out ("not black hair"), which the questions use. Without a counterpart, and without text, are
CelebA's `attractive` (a judgement, not a description) and actions that no still picture shows or that the vocabulary
lacks: they stay in `FaceRecord.labels`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ....modeling_unif2ace.pictures_unif2ace import SUFFIXES
from ....pipelines.files import read_json
from ..language.attributes import CELEBV_HQ_NAMES
from ..language.questions import OPEN_QUESTION, Question
from ..records import FaceRecord
from .columns import texts, value_of
from .folders import FaceFolder, scan
from .readers import decode, ending, listed, rows_of, text_lines
from .stream import BROKEN, BrokenSampleError, Convert, open_picture


Opened = tuple[Any, Convert, list[str]]  # rows, converter, notes

# Where these data sets have their pictures
_IMAGE_FOLDERS = ("CelebA-HQ-img", "img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba",
                  "image", "images", "frames", ".")  # fmt: skip


def _image_folder(folder: Path, images: Path | None) -> Path:
    """The folder of the pictures: the given one, or the usual one of these data sets below `folder`."""
    return images or next(folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir())


def _text_folder(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _words_of(path: Path) -> list[str]:
    """The lines of a text file."""
    return text_lines(decode(path.read_bytes(), str(path)))


# Records as the synthetic worlds and the commands of this package write them

RECORD_COLUMNS = frozenset(("image", "captions", "attributes", "questions"))


def stored_record(row: Mapping[str, Any], images=None) -> FaceRecord:
    """Converts rows with the fields of [`~unif2ace.training.data.records.FaceRecord`]."""

    def entries(name: str) -> dict[str, Any]:  # a struct column has all keys in every row
        return {key: value for key, value in (row.get(name) or {}).items() if value is not None}

    attributes = entries("attributes")
    return FaceRecord(
        image=open_picture(row["image"], images) if row.get("image") is not None else None,
        captions=texts(row.get("captions"), "captions"),
        questions=[
            Question(item.get("kind") or OPEN_QUESTION, item.get("attribute") or "", item["question"], item["answer"])
            for item in row.get("questions") or ()
        ],
        attributes=attributes,
        visible={name: value for name, value in entries("visible").items() if name in attributes},
        identity=row.get("identity"),
        source=row.get("source") or "",
        id=row.get("id") or "",
        excluded={name: tuple(values) for name, values in entries("excluded").items()},
        labels=entries("labels"),
    )


# Labels

CELEBA_NAMES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
"""The 40 attributes of CelebA (Liu et al., ICCV 2015), in the order of its table."""

_HATS = ("hat", "beanie", "cap", "fedora")

# label -> (attribute, value when true, value when false, values ruled out when false)
_FACTS: dict[str, tuple[str, str, str | None, tuple[str, ...]]] = {
    "blurry": ("blurry", "yes", "no", ()),
    "male": ("gender", "man", "woman", ()),
    "young": ("age", "young", None, ("young",)),
    "chubby": ("chubby", "yes", "no", ()),
    "pale_skin": ("skin", "pale", None, ("pale",)),
    "rosy_cheeks": ("rosy_cheeks", "yes", "no", ()),
    "oval_face": ("face_shape", "oval", None, ("oval",)),
    "receding_hairline": ("hairline", "receding", "normal", ()),
    "bald": ("hair_length", "bald", None, ("bald",)),
    "bangs": ("bangs", "yes", "no", ()),
    "black_hair": ("hair_color", "black", None, ("black",)),
    "blond_hair": ("hair_color", "blond", None, ("blond",)),
    "gray_hair": ("hair_color", "gray", None, ("gray",)),
    "brown_hair": ("hair_color", "brown", None, ("brown",)),
    "straight_hair": ("hair_texture", "straight", None, ("straight",)),
    "wavy_hair": ("hair_texture", "wavy", None, ("wavy",)),
    "long_hair": ("hair_length", "long", None, ("long",)),
    "arched_eyebrows": ("brow_shape", "arched", None, ("arched",)),
    "bushy_eyebrows": ("brow_thickness", "bushy", None, ("bushy",)),
    "bags_under_eyes": ("eye_bags", "yes", "no", ()),
    "eyeglasses": ("eyewear", "glasses", "none", ()),
    "sunglasses": ("eyewear", "sunglasses", None, ("sunglasses",)),
    "narrow_eyes": ("eye_size", "narrow", None, ("narrow",)),
    "big_nose": ("nose", "big", None, ("big",)),
    "pointy_nose": ("nose", "pointy", None, ("pointy",)),
    "high_cheekbones": ("cheekbones", "high", "normal", ()),
    "big_lips": ("lips", "full", None, ("full",)),
    "double_chin": ("double_chin", "yes", "no", ()),
    "no_beard": ("beard", "none", "beard", ()),
    "5_o_clock_shadow": ("beard", "stubble", None, ("stubble",)),
    "goatee": ("beard", "goatee", None, ("goatee",)),
    "mustache": ("mustache", "yes", "no", ()),
    "sideburns": ("sideburns", "yes", "no", ()),
    "heavy_makeup": ("makeup", "heavy", None, ("heavy",)),
    "wearing_earrings": ("earrings", "earrings", "none", ()),
    "wearing_hat": ("headwear", "hat", None, _HATS),
    "wearing_lipstick": ("lipstick", "lipstick", "none", ()),
    "wearing_necklace": ("necklace", "necklace", "none", ()),
    "wearing_necktie": ("neckwear", "necktie", None, ("necktie",)),
    "wearing_mask": ("mask", "yes", "no", ()),
    "smiling": ("mouth", "smiling", None, ("smiling", "laughing")),
    "mouth_slightly_open": ("mouth", "slightly open", None, ("slightly open", "wide open", "laughing")),
    # CelebV-HQ's actions that one picture can show; of a whole clip a "no" holds for every frame
    "smile": ("mouth", "smiling", None, ("smiling", "laughing")),
    "laugh": ("mouth", "laughing", None, ("laughing",)),
    "kiss": ("mouth", "kissing", None, ("kissing",)),
    "shout": ("mouth", "wide open", None, ()),
    "yawn": ("mouth", "wide open", None, ()),
    "make_a_face": ("mouth", "tongue out", None, ()),
    "close_eyes": ("eyes", "closed", None, ("closed",)),
    "sleep": ("eyes", "closed", None, ()),
    "wink": ("eyes", "winking", None, ("winking",)),
    "cry": ("tears", "yes", None, ("yes",)),
    "weep": ("tears", "yes", None, ()),
    "listen_to_music": ("headphones", "yes", None, ()),
    # its emotions
    "neutral": ("emotion", "neutral", None, ()),
    "anger": ("emotion", "angry", None, ("angry",)),
    "contempt": ("emotion", "contemptuous", None, ("contemptuous",)),
    "disgust": ("emotion", "disgusted", None, ("disgusted",)),
    "fear": ("emotion", "afraid", None, ("afraid",)),
    "happy": ("emotion", "happy", None, ("happy",)),
    "sadness": ("emotion", "sad", None, ("sad",)),
    "surprise": ("emotion", "surprised", None, ("surprised",)),
}

# Of two values that are both said the one that stands first here counts; other pairs contradict, and neither counts.
_STRONGER: dict[str, tuple[str, ...]] = {
    "eyewear": ("sunglasses", "glasses", "none"),
    "beard": ("goatee", "stubble", "beard"),
    "mouth": ("tongue out", "kissing", "laughing", "smiling", "wide open", "slightly open"),
    "eyes": ("closed", "winking"),
}
_SPELLINGS = {"blonde_hair": "blond_hair", "bags_under_eye": "bags_under_eyes", "grey_hair": "gray_hair"}


def label_name(name: str) -> str:
    """A label's name as this table spells it."""
    name = name.strip().lower().replace(" ", "_").replace("-", "_")
    return _SPELLINGS.get(name, name)


KNOWN_LABELS = frozenset(_FACTS) | {label_name(name) for names in CELEBV_HQ_NAMES.values() for name in names}
KNOWN_LABELS |= {label_name(name) for name in CELEBA_NAMES}
"""All labels of CelebA and CelebV-HQ, with or without a counterpart in the vocabulary."""


def is_label_table(names: Iterable[str]) -> bool:
    """Whether most of some column names are labels of CelebA or CelebV-HQ (20 or more)."""
    return sum(label_name(name) in KNOWN_LABELS for name in names) >= 20


def attributes_of_labels(labels: Mapping[str, bool]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """
    Translate yes/no labels.

    Args:
        labels (`Mapping[str, bool]`): Label to whether it holds, in the names of CelebA or CelebV-HQ; others are
            passed over.

    Returns:
        (`dict[str, str]`, `dict[str, tuple[str, ...]]`): attributes of `ATTRIBUTES` and `VAGUE_VALUES`, and, for
        attributes whose value is unknown, the values that they do not have.
    """
    said: dict[str, list[str]] = {}
    ruled_out: dict[str, list[str]] = {}
    for name, holds in labels.items():
        if (fact := _FACTS.get(label_name(name))) is None:
            continue
        attribute, when_true, when_false, excluded = fact
        value = when_true if holds else when_false
        if value is not None and value not in said.setdefault(attribute, []):
            said[attribute].append(value)
        if not holds:
            ruled_out.setdefault(attribute, []).extend(excluded)
    attributes: dict[str, str] = {}
    for attribute, values in said.items():
        value = _settle(attribute, values)
        if value is not None and value not in ruled_out.get(attribute, ()):
            attributes[attribute] = value
    excluded = {
        attribute: tuple(dict.fromkeys(values))
        for attribute, values in ruled_out.items()
        if attribute not in attributes and attribute not in said and values
    }
    return attributes, excluded


def _settle(attribute: str, values: list[str]) -> str | None:
    """The one value that several labels mean, `None` if they contradict one another."""
    if len(values) < 2:
        return values[0] if values else None
    order = _STRONGER.get(attribute, ())
    if not all(value in order for value in values):
        return None
    return min(values, key=order.index)


# Tables of labels

_TRUTH = {"1": True, "true": True, "yes": True, "-1": False, "0": False, "false": False, "no": False}


def truth(value: Any, name: str) -> bool | None:
    """
    A label's value (bool, 1/0, 1/-1) as a bool; `None` where there is none.

    Raises:
        BrokenSampleError: if it is something else.
    """
    if value is None or value != value or value == "":
        return None
    known = _TRUTH.get(str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower())
    if known is None:
        raise BrokenSampleError(f"label {name} is {value!r}, expected true/false, 1/0 or 1/-1")
    return known


def label_record(row: Mapping[str, Any], images=None) -> FaceRecord:
    """Converts rows with one column a label: CelebA's parquet files on the Hub."""
    found = {name: truth(value, name) for name, value in row.items() if label_name(name) in KNOWN_LABELS}
    labels = {name: value for name, value in found.items() if value is not None}
    if not labels:
        raise BrokenSampleError("the row has no label")
    attributes, excluded = attributes_of_labels(labels)
    picture = next((row[name] for name in ("image", "img", "jpg", "image_id", "file_name") if row.get(name)), None)
    identity = next((row[name] for name in ("celeb_id", "identity") if row.get(name) is not None), None)
    return FaceRecord(
        image=open_picture(picture, images),
        attributes=attributes,
        excluded=excluded,
        labels={label_name(name): "yes" if value else "no" for name, value in labels.items()},
        identity=None if identity is None else str(identity),
    )


def read_label_table(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """
    Read `list_attr_celeba.txt`, `CelebAMask-HQ-attribute-anno.txt` or CelebA-Dialog's label files: a count, a line of
    names, then lines `picture value value ...`; the count may be missing, and values may be parted by commas.

    Returns:
        (`list[str]`, `list[tuple[str, str]]`): the names, and of each line the picture and the values, as one text.

    Raises:
        ValueError: if there is no line of names.
    """
    lines = text_lines(decode(path.read_bytes(), str(path)).replace(",", " ").replace("\t", " "))
    if lines and lines[0].isdigit():
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{path} has no line of label names, expected a table as CelebA's list_attr_celeba.txt")
    names = lines[0].split()
    if names[0].lower() in ("image_id", "image_name", "img", "filename", "file"):
        names = names[1:]
    return names, [(picture, values) for picture, _, values in (line.partition(" ") for line in lines[1:])]


LABEL_FILES = (
    "list_attr_celeba.txt",
    "list_attr_celeba.csv",
    "CelebAMask-HQ-attribute-anno.txt",
    "Anno/list_attr_celeba.txt",
)


def open_celeba_files(folder: Path, images: Path | None = None) -> Opened:
    """
    CelebA or CelebA-HQ as their authors publish them: a label file, optionally `identity_CelebA.txt`, and a folder of
    pictures.

    Raises:
        FileNotFoundError: if there is no label file.
        ValueError: if its labels are others.
    """
    table = next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{folder} has no label file, expected one of {', '.join(LABEL_FILES)}")
    names, lines = read_label_table(table)
    if not is_label_table(names):
        raise ValueError(f"{table} has the labels {', '.join(names[:5])}, ..., expected those of CelebA")
    identities: dict[str, str] = {}
    for path in (folder / "identity_CelebA.txt", folder / "Anno" / "identity_CelebA.txt"):
        if path.is_file():
            identities = dict(line.split()[:2] for line in _words_of(path) if len(line.split()) >= 2)
    entries = [{"__key__": name, "values": values, "identity": identities.get(name)} for name, values in lines]
    return listed(entries), partial(_celeba_record, names=names, images=_image_folder(folder, images)), []


def _celeba_record(row: Mapping[str, Any], names: list[str], images: Path) -> FaceRecord:
    values = row["values"].split()
    if len(values) != len(names):
        raise BrokenSampleError(f"the line has {len(values)} values, expected {len(names)}")
    named = {"image": row["__key__"], "identity": row["identity"]}
    return label_record(named | dict(zip(names, values, strict=True)), images)


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
_DIALOG_EXCLUDED = {"smiling": {0: {"mouth": ("smiling", "laughing")}}}


def open_celeba_dialog(folder: Path, images: Path | None = None) -> Opened:
    """
    CelebA-Dialog: a folder of pictures, text files of labels (five levels 0..5 or CelebA's 40, also both) and JSON or
    text files of captions, in `folder` or one level below.

    Raises:
        FileNotFoundError: if there is neither a label nor a caption file.
    """
    entries: dict[str, dict[str, Any]] = {}

    def entry(picture: str) -> dict[str, Any]:
        return entries.setdefault(picture, {"__key__": picture, "levels": {}, "captions": []})

    for path in sorted((*folder.glob("*.txt"), *folder.glob("*/*.txt"))):
        names, lines = read_label_table(path)
        known = [label_name(name) in KNOWN_LABELS or name.lower() in _DIALOG_LEVELS for name in names]
        if sum(known) >= min(5, len(names)) and known and known[0]:
            for picture, values in lines:
                entry(picture)["levels"].update(zip(names, values.split(), strict=False))
        elif "caption" in path.name:  # others are requests for editing, or splits
            for line in _words_of(path):
                picture, _, text = line.partition(" ")
                if ending(picture) in SUFFIXES and len(text.split()) > 2:
                    entry(picture)["captions"].append(text.strip())
    for path in sorted((*folder.glob("*caption*.json"), *folder.glob("*/*caption*.json"))):
        for picture, said in read_json(path).items():
            entry(picture)["captions"].extend(_all_texts(said))
    if not entries:
        raise FileNotFoundError(
            f"{folder} has no label table (.txt) and no captions (*caption*.json) of CelebA-Dialog"
        )
    rows = [entries[picture] for picture in sorted(entries)]
    return listed(rows), partial(_dialog_record, images=_image_folder(folder, images)), []


def _all_texts(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, Mapping) else entry if isinstance(entry, list) else ()
    return [text for item in inner for text in _all_texts(item)]


def _dialog_record(row: Mapping[str, Any], images: Path) -> FaceRecord:
    """Levels become attributes, the captions stay as they are."""
    graded: dict[str, str] = {}
    ruled_out: dict[str, tuple[str, ...]] = {}
    yes_no: dict[str, bool] = {}
    for name, value in row["levels"].items():
        levels = _DIALOG_LEVELS.get(name.lower())
        if levels is None:
            if (holds := truth(value, name)) is not None:
                yes_no[name] = holds
            continue
        if not value.lstrip("-").isdigit() or not -1 <= int(value) <= 5:
            raise BrokenSampleError(f"level {name} is {value!r}, expected 0 to 5")
        graded.update([levels[int(value)]] if int(value) in levels else ())
        ruled_out.update(_DIALOG_EXCLUDED.get(name.lower(), {}).get(int(value), {}))
    attributes, excluded = attributes_of_labels(yes_no)
    attributes |= graded
    return FaceRecord(
        image=open_picture(row["__key__"], images),
        captions=texts(row["captions"], "caption"),
        attributes=attributes,
        excluded={name: values for name, values in (excluded | ruled_out).items() if name not in attributes},
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


def fairface_record(row: Mapping[str, Any], images=None) -> FaceRecord:
    """
    Converts FairFace: age and apparent gender become attributes; race stays a label, for results by group.

    Ages 30-39 lie between "young" and "middle-aged" and give neither. Of children the gender is left out: the
    vocabulary has only "man" and "woman".
    """
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
        image=open_picture(row.get("image"), images),
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


# FaceCaption-15M and -1M


def facecaption_record(row: Mapping[str, Any], images=None, margin: float = 0.25) -> FaceRecord:
    """
    Converts FaceCaption-15M and -1M: `url`, `face_box`, `face_caption`; `laion_caption`, the text of the web page,
    seldom describes the face and is not taken.

    FaceCaption-15M has no pictures. They are found in the row (`image`, `jpg`, as img2dataset writes them with the
    columns in `json`), else below `images` by the name of the row's key or of the address. The picture is cut out at
    the face box, with a margin (as a share of its longer side), unless it is the cut-out already.
    """

    def of(*names: str) -> Any:
        values = (value_of(row, place) for name in names for place in (name, f"json.{name}"))
        return next((value for value in values if value is not None), None)

    captions = texts(of("face_caption", "caption", "txt"), "face_caption")
    if not captions:
        raise BrokenSampleError("face_caption is empty")
    url = of("url") or ""
    picture = next((row[name] for name in ("image", "jpg", "png", "webp", "jpeg") if row.get(name)), None)
    if picture is None:
        if images is None:
            raise BrokenSampleError("the row has no picture: download the pictures first, then give images=FOLDER")
        key = str(row.get("__key__") or of("key", "id") or "")
        names = [url.split("?")[0].rstrip("/").rpartition("/")[2], *(key + end for end in (".jpg", ".png", ".webp"))]
        names = [name for name in names if name and "/" not in name and (Path(images) / name).is_file()]
        if not names:
            raise BrokenSampleError(f"{images} has no picture of {url or key}")
        picture = names[0]
    picture = open_picture(picture, images)
    box = of("face_box", "face box", "box", "bbox")
    if box is not None:
        picture = cut_out(picture, box, margin)
    return FaceRecord(image=picture, captions=captions, labels={"url": url} if url else {})


def cut_out(picture, box: Any, margin: float):
    """
    The part of a picture around a face box (left, top, right, bottom), in pixels or as shares of the sides.

    Raises:
        BrokenSampleError: if the box is none, or lies outside.
    """
    if isinstance(box, str):
        box = box.strip("[]() ").replace(",", " ").split()
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise BrokenSampleError(f"the face box is {box!r}, expected left, top, right, bottom") from error
    width, height = picture.size
    if max(left, top, right, bottom) <= 1:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
    extra = margin * max(right - left, bottom - top)
    cut = max(0, left - extra), max(0, top - extra), min(width, right + extra), min(height, bottom + extra)
    if not (left < right and top < bottom and cut[2] - cut[0] >= 2 and cut[3] - cut[1] >= 2):
        raise BrokenSampleError(f"the face box {box!r} lies outside of the picture of {width}x{height} pixels")
    try:
        return picture.crop(tuple(round(value) for value in cut))
    except OSError as error:
        raise BrokenSampleError(f"the picture is truncated or damaged ({error})") from error


# MM-CelebA-HQ and FFHQ-Text


def open_mm_celeba_hq(folder: Path, images: Path | None = None) -> Opened:
    """
    MM-CelebA-HQ: pictures in a folder, ten captions each in `text/celeba-caption/<number>.txt`.

    Raises:
        FileNotFoundError: if there are no texts.
    """
    place = _text_folder(folder, "text/celeba-caption", "celeba-caption", "text")
    if place is None:
        raise FileNotFoundError(f"{folder} has no captions, expected {folder}/text/celeba-caption/<number>.txt")
    return open_folder(_image_folder(folder, images), texts=place)


def open_folder(folder: Path, **options: Any) -> Opened:
    """A plain folder of pictures, see [`~unif2ace.training.data.sources.folders.FaceFolder`]."""
    opened = FaceFolder(folder, **options)
    return opened.rows(), opened, opened.notes


def open_ffhq_text(folder: Path, images: Path | None = None) -> Opened:
    """
    FFHQ-Text: nine captions for each picture, as one `.txt` a picture, or in JSON or CSV files that name the picture
    in one field and have captions in the others.

    Raises:
        FileNotFoundError: if there is neither.
    """
    pictures = _image_folder(folder, images)
    captions: dict[str, list[str]] = {}
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.csv"))):
        for name, lines in _named_captions(path):
            captions.setdefault(name, []).extend(lines)
    if not captions:
        return open_folder(pictures, texts=_text_folder(folder, "text", "texts", "captions"))
    entries = [{"__key__": name, "captions": list(dict.fromkeys(lines))} for name, lines in sorted(captions.items())]
    return listed(entries), partial(_named_record, images=pictures), []


def _named_captions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The pictures that the rows of a table name, in whatever field, with the texts in the others."""
    for row in rows_of(path):
        if BROKEN in row:
            continue
        name, lines = str(row.pop("__key__")), []
        for value in row.values():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and ending(text) in SUFFIXES:
                    name = text
                elif isinstance(text, str) and len(text.split()) > 2:
                    lines.append(text.strip())
        yield Path(name).name, lines


def _named_record(row: Mapping[str, Any], images: Path) -> FaceRecord:
    """The name of a picture and its captions; numbers find `<number>.png`, zeros before or not."""
    captions, name = texts(row["captions"], "caption"), row["__key__"]
    if not captions:
        raise BrokenSampleError("the caption is empty")
    if ending(name) not in SUFFIXES:
        names = [f"{number}{suffix}" for number in (name, name.zfill(5)) for suffix in (".png", ".jpg")]
        name = next((name for name in names if (images / name).is_file()), names[0])
    return FaceRecord(image=open_picture(name, images), captions=captions)


# Video data sets whose frames have been extracted

_FRAME_TIME = re.compile(r"(?:^|[_-])(\d+(?:\.\d+)?)s$")  # clip_3.5s.jpg: the second of the video


def _clip_rows(pictures: Path, clips: Mapping[str, Any], path: Path):
    """
    The frames of clips: `<clip>.jpg`, `<clip>_<anything>.jpg`, `<clip>-<anything>.jpg` or `<clip>/<anything>.jpg`,
    sorted by clip; at last the pictures that belong to none.
    """
    found = [(next((clip for clip in _clip_names(Path(name)) if clip in clips), None), name)
             for name in scan(pictures).pictures]  # fmt: skip
    if not any(clip is not None for clip, _ in found):
        raise FileNotFoundError(f"{pictures} has no frame of a clip of {path}: extract frames as <clip>.jpg")
    found.sort(key=lambda item: (item[0] is None, item[0] or ""))
    return listed([{"__key__": name, "clip": clip, "info": clips.get(clip)} for clip, name in found])


def _clip_names(path: Path) -> Iterator[str]:
    """What the clip of a frame may be called, the most precise first. Names of clips have underscores themselves."""
    yield path.stem
    yield from reversed(path.parts[:-1])
    name = path.stem
    while match := re.match(r"(.+)[_-][^_-]*$", name):
        name = match.group(1)
        yield name


def _clip_info(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if row["clip"] is None:
        raise BrokenSampleError("the picture belongs to no clip of the list")
    return row["info"]


def open_celebv_hq(folder: Path, images: Path | None = None) -> Opened:
    """
    CelebV-HQ: `celebvhq_info.json` (or its folder) and a folder of frames.

    The order of labels is read from the file's `meta_info`. Labels speak of a whole clip: a frame need not show every
    action. Emotions with times are taken from the segment of the frame where its name ends in seconds (`_3.5s`), else
    only if the clip has one emotion.

    Raises:
        FileNotFoundError: if there is no `celebvhq_info.json`, or no frame of any clip.
        ValueError: if the file is not what its name says.
    """
    path = folder / "celebvhq_info.json" if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected CelebV-HQ's list of clips")
    content = read_json(path)
    try:
        meta, clips = content["meta_info"], content["clips"]
        names = {"appearance": tuple(meta["appearance_mapping"]), "action": tuple(meta["action_mapping"])}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks {error}, expected CelebV-HQ's celebvhq_info.json") from error
    pictures = _image_folder(path.parent, images)
    return _clip_rows(pictures, clips, path), partial(_celebv_record, names=names, images=pictures), []


def _celebv_record(row: Mapping[str, Any], names: dict[str, tuple[str, ...]], images: Path) -> FaceRecord:
    """A frame of CelebV-HQ; `names` are those of the appearance and action labels, in the order of the file."""
    info = _clip_info(row)
    labels = info.get("attributes") or {}
    known: dict[str, bool] = {}
    for kind, of_kind in names.items():
        values = labels.get(kind)
        if not isinstance(values, list) or len(values) != len(of_kind):
            size = len(values) if isinstance(values, list) else "no"
            raise BrokenSampleError(f"the clip has {size} {kind} labels, expected {len(of_kind)}")
        known |= {name: bool(value) for name, value in zip(of_kind, values, strict=True)}
    if emotion := _emotion(labels.get("emotion"), row["__key__"]):
        known[emotion] = True
    attributes, excluded = attributes_of_labels(known)
    youtube = info.get("ytb_id")
    return FaceRecord(
        image=open_picture(row["__key__"], images),
        attributes=attributes,
        excluded=excluded,
        labels={name: "yes" if value else "no" for name, value in known.items()},
        # not the person but the video: pictures of one video show the same people
        identity=None if youtube is None else str(youtube),
    )


def _emotion(entry: Any, name: str) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    value = entry.get("labels")
    if isinstance(value, str):
        return value
    segments = [segment for segment in value or () if isinstance(segment, Mapping)]
    if match := _FRAME_TIME.search(Path(name).stem):
        second = float(match.group(1))
        for segment in segments:
            if segment.get("start_sec", 0) <= second <= segment.get("end_sec", -1):
                return segment.get("emotion")
        return None
    emotions = {segment.get("emotion") for segment in segments}
    return emotions.pop() if len(emotions) == 1 else None


def open_celebv_text(folder: Path, images: Path | None = None) -> Opened:
    """
    CelebV-Text: a folder of frames, and the descriptions as `text/<kind>/<clip>.txt` (`face40_details`, `action`,
    `emotion`, `light_color_temp`, `light_dir`, `light_intensity`, ...), one a line.

    Appearance comes first in the joined caption; each single description of the appearance is a caption as well.

    Raises:
        FileNotFoundError: if there are no texts, or no frame of a clip that has one.
    """
    place = _text_folder(folder, "text", "texts", "descriptions")
    if place is None:
        raise FileNotFoundError(f"{folder} has no folder of texts, expected {folder}/text/<kind>/<clip>.txt")
    clips: dict[str, dict[str, list[str]]] = {}
    for path in sorted(place.glob("*/*.txt")):
        if lines := _words_of(path):
            clips.setdefault(path.stem, {})[path.parent.name] = lines
    if not clips:
        raise FileNotFoundError(f"{place} has no text, expected {place}/<kind>/<clip>.txt")
    pictures = _image_folder(folder, images)
    return _clip_rows(pictures, clips, place), partial(_clip_text_record, images=pictures), []


_KIND_ORDER = ("appearance", "face", "emotion", "action", "light")


def _clip_text_record(row: Mapping[str, Any], images: Path) -> FaceRecord:
    """Sentences of every kind, joined to captions."""

    def place(kind: str) -> tuple[int, str]:
        return next((i for i, name in enumerate(_KIND_ORDER) if name in kind.lower()), len(_KIND_ORDER)), kind

    info = _clip_info(row)
    said = {kind: [text if text.endswith((".", "!", "?")) else f"{text}." for text in info[kind]]
            for kind in sorted(info, key=place)}  # fmt: skip
    # caption i takes sentence i of every kind; kinds with fewer sentences begin again
    longest = max(map(len, said.values()))
    joined = [" ".join(sentences[i % len(sentences)] for sentences in said.values()) for i in range(longest)]
    single = [text for kind in said if place(kind)[0] < 2 for text in info[kind]]
    return FaceRecord(
        image=open_picture(row["__key__"], images),
        captions=list(dict.fromkeys([*joined, *single])),
        labels={"clip": str(row["clip"])},
    )
