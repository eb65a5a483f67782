"""The vocabulary of painted faces: 48 attributes with 159 values, 12 identity parameters, and how they are sampled."""

import random
from collections.abc import Mapping


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("man", "woman"),
    "age": ("young", "middle-aged", "elderly"),
    "skin": ("pale", "fair", "tan", "brown", "dark"),
    "face_shape": ("oval", "round", "square", "heart-shaped", "long"),
    "chubby": ("no", "yes"),
    "double_chin": ("no", "yes"),
    "cheekbones": ("normal", "high"),
    "hair_color": ("black", "brown", "blond", "red", "gray"),
    "hair_length": ("bald", "buzz", "short", "medium", "long"),
    "hair_texture": ("straight", "wavy", "curly"),
    "bangs": ("no", "yes"),
    "hairline": ("normal", "receding"),
    "updo": ("none", "bun", "ponytail"),
    "brow_shape": ("straight", "arched"),
    "brow_thickness": ("thin", "bushy"),
    "eye_color": ("brown", "blue", "green", "gray"),
    "eye_size": ("narrow", "normal", "big"),
    "eye_bags": ("no", "yes"),
    "wrinkles": ("no", "yes"),
    "nose": ("small", "big", "pointy"),
    "lips": ("thin", "full"),
    "lipstick": ("none", "red", "pink", "purple"),
    "makeup": ("none", "heavy"),
    "rosy_cheeks": ("no", "yes"),
    "freckles": ("no", "yes"),
    "mole": ("no", "yes"),
    "beard": ("none", "stubble", "goatee", "full"),
    "mustache": ("no", "yes"),
    "sideburns": ("no", "yes"),
    "eyewear": ("none", "round glasses", "square glasses", "sunglasses"),
    "earrings": ("none", "stud", "hoop", "drop"),
    "headwear": ("none", "beanie", "cap", "fedora", "headband"),
    "headphones": ("no", "yes"),
    "mask": ("no", "yes"),
    "necklace": ("none", "pearl", "gold"),
    "neckwear": ("none", "necktie", "bow tie"),
    "clothes": ("t-shirt", "collared shirt", "suit", "turtleneck"),
    "clothes_color": ("white", "black", "red", "blue", "green", "yellow", "purple"),
    "background": ("white", "gray", "blue", "green", "pink", "beige"),
    "emotion": ("neutral", "happy", "sad", "angry", "afraid", "surprised", "contemptuous", "disgusted"),
    "mouth": ("closed", "smiling", "laughing", "slightly open", "wide open", "kissing", "tongue out"),
    "eyes": ("open", "closed", "winking", "squinting"),
    "gaze": ("ahead", "left", "right", "up", "down"),
    "pose": ("frontal", "turned left", "turned right"),
    "tilt": ("upright", "tilted left", "tilted right"),
    "tears": ("no", "yes"),
    "lighting": ("even", "left", "right", "dim"),
    "blurry": ("no", "yes"),
}
"""Attribute name -> allowed values; `left` and `right` are those of the picture, not of the person."""

VAGUE_VALUES: dict[str, tuple[str, ...]] = {
    "eyewear": ("glasses",),
    "headwear": ("hat",),
    "earrings": ("earrings",),
    "necklace": ("necklace",),
    "lipstick": ("lipstick",),
    "beard": ("beard",),
}
"""What label tables of photographs say where `ATTRIBUTES` is more precise: that there are glasses, but not which."""

WORLD_VALUES: dict[str, tuple[str, ...]] = {
    "age": ("child",),
    "headwear": ("headscarf",),
}
"""Values beyond those of `ATTRIBUTES`, of worlds that show more than the painter: written and read like the others."""

COARSE_ATTRIBUTES: tuple[str, ...] = (
    "gender",
    "skin",
    "hair_color",
    "headwear",
    "eyewear",
    "clothes_color",
    "background",
    "mask",
    "lighting",
    "pose",
)
"""Attributes that cover many pixels, hence survive strong compression."""

HATS = ("beanie", "cap", "fedora")
"""Headwear that covers the hair on top."""

IDENTITY_PARAMETERS: tuple[str, ...] = (
    "face_width",
    "jaw_width",
    "chin_length",
    "eye_spacing",
    "eye_height",
    "eye_width",
    "brow_height",
    "nose_length",
    "nose_width",
    "mouth_width",
    "mouth_height",
    "skin_tone",
)
"""Continuous geometry parameters in units of one standard deviation, clipped to [-2, 2]."""

CELEBV_HQ_NAMES: dict[str, tuple[str, ...]] = {
    "appearance": (
        "blurry",
        "male",
        "young",
        "chubby",
        "pale_skin",
        "rosy_cheeks",
        "oval_face",
        "receding_hairline",
        "bald",
        "bangs",
        "black_hair",
        "blonde_hair",
        "gray_hair",
        "brown_hair",
        "straight_hair",
        "wavy_hair",
        "long_hair",
        "arched_eyebrows",
        "bushy_eyebrows",
        "bags_under_eyes",
        "eyeglasses",
        "sunglasses",
        "narrow_eyes",
        "big_nose",
        "pointy_nose",
        "high_cheekbones",
        "big_lips",
        "double_chin",
        "no_beard",
        "5_o_clock_shadow",
        "goatee",
        "mustache",
        "sideburns",
        "heavy_makeup",
        "wearing_earrings",
        "wearing_hat",
        "wearing_lipstick",
        "wearing_necklace",
        "wearing_necktie",
        "wearing_mask",
    ),
    "action": (
        "blow",
        "chew",
        "close_eyes",
        "cough",
        "cry",
        "drink",
        "eat",
        "frown",
        "gaze",
        "glare",
        "head_wagging",
        "kiss",
        "laugh",
        "listen_to_music",
        "look_around",
        "make_a_face",
        "nod",
        "play_instrument",
        "read",
        "shake_head",
        "shout",
        "sigh",
        "sing",
        "sleep",
        "smile",
        "smoke",
        "sneer",
        "sneeze",
        "sniff",
        "talk",
        "turn",
        "weep",
        "whisper",
        "wink",
        "yawn",
    ),
    "emotion": ("neutral", "anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"),
}
"""The 83 attribute names of CelebV-HQ (Zhu et al., ECCV 2022): 40 of appearance, 35 of action, 8 of emotion."""

_MOUTHS_OF_EMOTION = {
    "neutral": ("closed", "slightly open", "kissing", "tongue out"),
    "happy": ("smiling", "laughing"),
    "sad": ("closed", "slightly open"),
    "angry": ("closed", "wide open"),
    "afraid": ("slightly open", "wide open"),
    "surprised": ("wide open", "slightly open"),
    "contemptuous": ("closed",),
    "disgusted": ("closed", "slightly open", "tongue out"),
}


def validate_attributes(attributes: Mapping[str, str]) -> None:
    """
    Check that every one of the 48 attributes is given, with an allowed value.

    Args:
        attributes (`Mapping[str, str]`):
            Attribute name -> value.

    Raises:
        `ValueError`: If an attribute is missing, unknown, or has a value outside [`ATTRIBUTES`].
    """
    for name, values in ATTRIBUTES.items():
        if name not in attributes:
            raise ValueError(f"Attribute '{name}' is missing; give one of {', '.join(values)}.")
        if attributes[name] not in values:
            raise ValueError(f"Attribute '{name}' is {attributes[name]!r}; give one of {', '.join(values)}.")
    for name in attributes:
        if name not in ATTRIBUTES:
            raise ValueError(f"Attribute {name!r} is unknown; the known ones are {', '.join(ATTRIBUTES)}.")


def sample_identity(rng: random.Random) -> dict[str, float]:
    """
    Draw the geometry of one person.

    Args:
        rng (`random.Random`):
            Source of randomness.

    Returns:
        `dict[str, float]`: One standard normal number, clipped to [-2, 2], for each of [`IDENTITY_PARAMETERS`].
    """
    return {name: max(-2.0, min(2.0, rng.gauss(0.0, 1.0))) for name in IDENTITY_PARAMETERS}


def sample_attributes(rng: random.Random) -> dict[str, str]:
    """
    Draw a plausible set of attributes; what contradicts or hides one another by nature is not drawn together.

    Args:
        rng (`random.Random`):
            Source of randomness.

    Returns:
        `dict[str, str]`: All 48 attributes in the order of [`ATTRIBUTES`].
    """
    drawn: dict[str, str] = {}
    _sample_person(drawn, rng)
    _sample_hair(drawn, rng)
    _sample_details(drawn, rng)
    _sample_accessories(drawn, rng)
    _sample_expression(drawn, rng)
    _sample_picture(drawn, rng)
    return {name: drawn[name] for name in ATTRIBUTES}


def _yes(rng: random.Random, probability: float) -> str:
    return "yes" if rng.random() < probability else "no"


def _weighted(rng: random.Random, name: str, weights: tuple[float, ...]) -> str:
    return rng.choices(ATTRIBUTES[name], weights)[0]


def _sample_person(drawn: dict[str, str], rng: random.Random) -> None:
    drawn["gender"] = rng.choice(ATTRIBUTES["gender"])
    drawn["age"] = _weighted(rng, "age", (5, 3, 2))
    for name in ("skin", "face_shape", "brow_shape", "brow_thickness", "eye_color", "eye_size", "nose", "lips"):
        drawn[name] = rng.choice(ATTRIBUTES[name])
    drawn["chubby"] = _yes(rng, 0.25)
    drawn["double_chin"] = _yes(rng, 0.6 if drawn["chubby"] == "yes" else 0.04)
    drawn["cheekbones"] = _weighted(rng, "cheekbones", (3, 1))


def _sample_hair(drawn: dict[str, str], rng: random.Random) -> None:
    man = drawn["gender"] == "man"
    drawn["hair_color"] = _weighted(rng, "hair_color", (3, 3, 3, 2.5, 8 if drawn["age"] == "elderly" else 1))
    drawn["hair_length"] = _weighted(rng, "hair_length", (2, 2, 5, 1.2, 1.2) if man else (0.4, 0.7, 2, 4, 5))
    has_locks = drawn["hair_length"] in ("short", "medium", "long")
    drawn["hair_texture"] = rng.choice(ATTRIBUTES["hair_texture"]) if has_locks else "straight"
    drawn["bangs"] = _yes(rng, 0.35) if has_locks else "no"
    can_recede = man and drawn["hair_length"] in ("buzz", "short") and drawn["bangs"] == "no"
    drawn["hairline"] = "receding" if can_recede and rng.random() < 0.35 else "normal"
    can_tie = not man and drawn["hair_length"] in ("medium", "long")
    drawn["updo"] = _weighted(rng, "updo", (4, 2, 2)) if can_tie else "none"


def _sample_details(drawn: dict[str, str], rng: random.Random) -> None:
    man = drawn["gender"] == "man"
    drawn["wrinkles"] = _yes(rng, {"young": 0.0, "middle-aged": 0.3, "elderly": 0.9}[drawn["age"]])
    drawn["eye_bags"] = _yes(rng, {"young": 0.12, "middle-aged": 0.3, "elderly": 0.5}[drawn["age"]])
    drawn["lipstick"] = "none" if man else _weighted(rng, "lipstick", (4, 2, 2, 1.5))
    drawn["makeup"] = "none" if man else _weighted(rng, "makeup", (2, 1))
    drawn["rosy_cheeks"] = _yes(rng, 0.2)
    drawn["freckles"] = _yes(rng, 0.15)
    drawn["mole"] = _yes(rng, 0.12)
    drawn["beard"] = _weighted(rng, "beard", (4, 2, 2, 2)) if man else "none"
    drawn["mustache"] = _yes(rng, 0.8 if drawn["beard"] == "full" else 0.25) if man else "no"
    can_show_sideburns = man and drawn["hair_length"] in ("buzz", "short")
    drawn["sideburns"] = _yes(rng, 0.6 if drawn["beard"] == "full" else 0.25) if can_show_sideburns else "no"


def _sample_accessories(drawn: dict[str, str], rng: random.Random) -> None:
    man = drawn["gender"] == "man"
    drawn["eyewear"] = _weighted(rng, "eyewear", (6, 1.2, 1.2, 0.9))
    bare_headed = drawn["updo"] != "none"
    drawn["headwear"] = "none" if bare_headed else _weighted(rng, "headwear", (6.5, 1, 1, 1, 1))
    can_wear_headphones = drawn["updo"] == "none" and drawn["headwear"] == "none"
    # Half of the faces can wear them, so 16 % of these give the 8 % of all that a model needs to learn them.
    drawn["headphones"] = _yes(rng, 0.16) if can_wear_headphones else "no"
    ears_free = drawn["headphones"] == "no"
    drawn["earrings"] = _weighted(rng, "earrings", (12, 1, 1, 0.5) if man else (3, 1, 1, 1)) if ears_free else "none"
    drawn["mask"] = _yes(rng, 0.08)
    drawn["clothes"] = _weighted(rng, "clothes", (3, 2, 2, 1.2))
    drawn["clothes_color"] = rng.choice(ATTRIBUTES["clothes_color"])
    has_collar = drawn["clothes"] in ("collared shirt", "suit")
    drawn["neckwear"] = _weighted(rng, "neckwear", (2, 2, 1.3)) if has_collar else "none"
    can_wear_necklace = not man and drawn["clothes"] == "t-shirt"
    drawn["necklace"] = _weighted(rng, "necklace", (2, 1.3, 1.3)) if can_wear_necklace else "none"


def _sample_expression(drawn: dict[str, str], rng: random.Random) -> None:
    sunglasses = drawn["eyewear"] == "sunglasses"
    drawn["emotion"] = rng.choice(ATTRIBUTES["emotion"])
    drawn["mouth"] = rng.choice(_MOUTHS_OF_EMOTION[drawn["emotion"]])
    wide_eyed = drawn["emotion"] in ("afraid", "surprised")
    drawn["eyes"] = "open" if wide_eyed or sunglasses else _weighted(rng, "eyes", (12, 2, 1.5, 1.5))
    can_look_away = drawn["eyes"] == "open" and not sunglasses
    drawn["gaze"] = _weighted(rng, "gaze", (7, 1, 1, 1, 1)) if can_look_away else "ahead"
    drawn["tears"] = _yes(rng, 0.5) if drawn["emotion"] == "sad" and not sunglasses else "no"


def _sample_picture(drawn: dict[str, str], rng: random.Random) -> None:
    drawn["background"] = rng.choice(ATTRIBUTES["background"])
    drawn["pose"] = _weighted(rng, "pose", (4, 1, 1))
    drawn["tilt"] = _weighted(rng, "tilt", (6, 1, 1))
    drawn["lighting"] = _weighted(rng, "lighting", (5, 1, 1, 1))
    drawn["blurry"] = _yes(rng, 0.03)
