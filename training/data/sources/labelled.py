"""
Adapters of label tables: CelebA in its forms, CelebA-Dialog, FairFace, and tables of the same labels elsewhere.

CelebA's 40 names and CelebV-HQ's 83 overlap; both are one table here. Names are compared in lower case, and CelebA's
`blond_hair` is CelebV-HQ's `blonde_hair`. A "no" is a fact where the vocabulary has a value for it ("no bangs"), and
elsewhere rules a value out ("not black hair"), which the questions use. Without a counterpart, and without text, are
CelebA's `attractive` (a judgement, not a description) and actions that no still picture shows or that the vocabulary
lacks: they stay in `FaceRecord.labels`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..language.attributes import CELEBV_HQ_NAMES
from ..records import FaceRecord
from .columns import texts
from .readers import BROKEN, decode, from_generator, ranges, read_json, text_lines
from .samples import BrokenSampleError, open_picture


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
_UNNAMED = ("attractive",)


def label_name(name: str) -> str:
    """A label's name as this table spells it."""
    name = name.strip().lower().replace(" ", "_").replace("-", "_")
    return _SPELLINGS.get(name, name)


KNOWN_LABELS = frozenset(_FACTS) | {label_name(name) for names in CELEBV_HQ_NAMES.values() for name in names}
KNOWN_LABELS |= {label_name(name) for name in CELEBA_NAMES}
"""All labels of CelebA and CelebV-HQ, with or without a counterpart in the vocabulary."""


def is_label_table(names) -> bool:
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
    lines = text_lines(decode(path.read_bytes(), str(path)).replace(",", " "))
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
            return dict(line.split()[:2] for line in text_lines(path.read_text()) if len(line.split()) >= 2)
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
    for line in text_lines(decode(path.read_bytes(), str(path))):
        name, _, text = line.partition(" ")
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
