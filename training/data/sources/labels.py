"""
Yes/no label tables in the vocabulary of the template engine.

CelebA's 40 names and CelebV-HQ's 83 overlap; both are one table here. Names are compared in lower case, and CelebA's
`blond_hair` is CelebV-HQ's `blonde_hair`. A "no" is a fact where the vocabulary has a value for it ("no bangs"), and
elsewhere rules a value out ("not black hair"), which the questions use. Without a counterpart, and without text, are
CelebA's `attractive` (a judgement, not a description) and actions that no still picture shows or that the vocabulary
lacks: they stay in `FaceRecord.labels`.
"""

from collections.abc import Mapping

from ..language.attributes import CELEBV_HQ_NAMES


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
