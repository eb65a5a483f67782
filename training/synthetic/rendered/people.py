"""Who is rendered: people, their looks and their pictures, drawn from a seed alone."""

import random
from dataclasses import dataclass, replace

from .vocabulary import HATS, RENDERED_ATTRIBUTES, validate_rendered


PICTURES_PER_PERSON = 8
PICTURES_PER_LOOK = 4
SPLITS = ("train", "validation", "test")

_YEARS = {"child": (5, 11), "young": (19, 31), "middle-aged": (42, 56), "elderly": (66, 86)}

# Apparent ancestry by skin tone, so that both are balanced over the whole: each tone has a fifth of the people, each
# of the three shares about a third. Ancestry is never spoken of.
_ANCESTRY = {
    "pale": (("caucasian", 0.60), ("asian", 0.40)),
    "fair": (("caucasian", 0.50), ("asian", 0.50)),
    "tan": (("caucasian", 0.33), ("asian", 0.47), ("african", 0.20)),
    "brown": (("caucasian", 0.10), ("asian", 0.30), ("african", 0.60)),
    "dark": (("asian", 0.05), ("african", 0.95)),
}
_MOUTHS = {
    "neutral": ("closed", "closed", "slightly open", "kissing", "tongue out"),
    "happy": ("smiling", "smiling", "laughing"),
    "sad": ("closed", "closed", "slightly open"),
    "angry": ("closed", "wide open"),
    "afraid": ("slightly open", "wide open"),
    "surprised": ("wide open", "wide open", "slightly open"),
    "contemptuous": ("closed",),
    "disgusted": ("closed", "closed", "slightly open", "tongue out"),
}


@dataclass(frozen=True)
class Face:
    """
    Everything that decides one picture.

    Args:
        attributes (`dict[str, str]`): One value for each of `RENDERED_ATTRIBUTES`.
        years (`float`): Age of the person.
        ancestry (`dict[str, float]`): Shares of the three apparent ancestries of MakeHuman.
        weight (`float`): From -1 (lean) to 1 (heavy).
        person_seed (`int`), look_seed (`int`), picture_seed (`int`):
            Choose what no attribute speaks of: features; strands of hair; camera, light and colours.
        identity (`str`): The person's name, equal in all pictures.
    """

    attributes: dict[str, str]
    years: float
    ancestry: dict[str, float]
    weight: float
    person_seed: int
    look_seed: int
    picture_seed: int
    identity: str = ""

    def with_attribute(self, name: str, value: str) -> "Face":
        """The same face with one attribute changed: what a counterfactual picture shows."""
        attributes = {**self.attributes, name: value}
        validate_rendered(attributes)
        years = self.years
        if name == "age" and value != self.attributes[name]:
            low, high = _YEARS[value]
            years = (low + high) / 2
        return replace(self, attributes=attributes, years=years)


def _yes(rng: random.Random, probability: float) -> str:
    return "yes" if rng.random() < probability else "no"


def _weighted(rng: random.Random, choices: dict[str, float]) -> str:
    return rng.choices(list(choices), list(choices.values()))[0]


def face_of(index: int, split: str = "train", seed: int = 0) -> Face:
    """
    Face number `index` of a split; eight faces in a row are one person, in two looks.

    Args:
        index (`int`): Number of the picture, 0 or more; there is no last one.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`; people differ.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.

    Raises:
        ValueError: if the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}, expected one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index={index}, expected 0 or more")
    person, picture = divmod(index, PICTURES_PER_PERSON)
    name = f"rendered-{seed}-{split}-{person}"
    # strings, because random.Random hashes them the same on every machine
    rng = random.Random(name)
    drawn: dict[str, str] = {}
    years, ancestry, weight = _sample_person(drawn, rng)
    person_seed = rng.getrandbits(32)
    rng = random.Random(f"{name}-look-{picture // PICTURES_PER_LOOK}")
    _sample_look(drawn, ancestry, years, rng)
    look_seed = rng.getrandbits(32)
    rng = random.Random(f"{name}-picture-{picture}")
    _sample_wear(drawn, rng)
    _sample_expression(drawn, rng)
    _sample_picture(drawn, rng)
    attributes = {key: drawn[key] for key in RENDERED_ATTRIBUTES}
    return Face(attributes, years, ancestry, weight, person_seed, look_seed, rng.getrandbits(32), name)


def _sample_person(drawn: dict[str, str], rng: random.Random) -> tuple[float, dict[str, float], float]:
    drawn["gender"] = rng.choice(("man", "woman"))
    drawn["age"] = _weighted(rng, {"child": 0.13, "young": 0.36, "middle-aged": 0.27, "elderly": 0.24})
    child = drawn["age"] == "child"
    low, high = _YEARS[drawn["age"]]
    years = rng.uniform(low, high)
    drawn["skin"] = rng.choice(RENDERED_ATTRIBUTES["skin"])
    main = _weighted(rng, dict(_ANCESTRY[drawn["skin"]]))
    share = rng.uniform(0.65, 1.0)
    others = [name for name in ("african", "asian", "caucasian") if name != main]
    second = rng.random() * (1 - share)
    ancestry = {main: share, others[0]: second, others[1]: 1 - share - second}
    for name in ("face_shape", "brow_shape", "eye_size", "nose", "lips"):
        drawn[name] = rng.choice(RENDERED_ATTRIBUTES[name])
    drawn["brow_thickness"] = "thin" if child and rng.random() < 0.8 else rng.choice(("thin", "bushy"))
    if drawn["gender"] == "man" and not child:
        drawn["brow_thickness"] = _weighted(rng, {"thin": 1, "bushy": 2})
        drawn["brow_shape"] = _weighted(rng, {"straight": 3, "arched": 1})
    elif not child:
        drawn["brow_thickness"] = _weighted(rng, {"thin": 2, "bushy": 1})
        drawn["brow_shape"] = _weighted(rng, {"straight": 1, "arched": 2})
    light = main == "caucasian" and drawn["skin"] in ("pale", "fair", "tan")
    if light or rng.random() < 0.1:
        drawn["eye_color"] = rng.choice(RENDERED_ATTRIBUTES["eye_color"])
    else:
        drawn["eye_color"] = _weighted(rng, {"brown": 8, "green": 1, "gray": 1})
    drawn["chubby"] = _yes(rng, 0.22)
    weight = rng.uniform(0.4, 0.95) if drawn["chubby"] == "yes" else rng.uniform(-0.8, 0.25)
    drawn["double_chin"] = _yes(rng, 0.55 if drawn["chubby"] == "yes" else 0.03)
    drawn["cheekbones"] = "high" if rng.random() < (0.0 if drawn["chubby"] == "yes" else 0.3) else "normal"
    older = {"child": 0.0, "young": 0.0, "middle-aged": 0.35, "elderly": 0.92}[drawn["age"]]
    drawn["wrinkles"] = _yes(rng, older)
    drawn["eye_bags"] = _yes(rng, {"child": 0.0, "young": 0.1, "middle-aged": 0.3, "elderly": 0.5}[drawn["age"]])
    drawn["freckles"] = _yes(rng, 0.2 if drawn["skin"] in ("pale", "fair", "tan") else 0.03)
    drawn["mole"] = _yes(rng, 0.1)
    return years, ancestry, weight


def _sample_look(drawn: dict[str, str], ancestry: dict[str, float], years: float, rng: random.Random) -> None:
    man, age = drawn["gender"] == "man", drawn["age"]
    child = age == "child"
    main = max(ancestry, key=ancestry.get)
    gray = {"child": 0.0, "young": 0.01, "middle-aged": 0.3, "elderly": 0.92}[age]
    if rng.random() < gray:
        drawn["hair_color"] = "gray"
    elif main == "caucasian" or rng.random() < 0.15:
        drawn["hair_color"] = _weighted(rng, {"black": 1, "brown": 1.6, "blond": 2, "red": 1.4})
    else:
        drawn["hair_color"] = _weighted(rng, {"black": 4, "brown": 3, "blond": 0.4, "red": 0.5})
    lengths = (
        {"bald": 1.6, "buzz": 1.8, "short": 6, "medium": 0.6, "long": 0.5}
        if man
        else {"bald": 0.15, "buzz": 0.3, "short": 2, "medium": 4, "long": 5}
    )
    if child:
        lengths = {"buzz": 1, "short": 7, "medium": 1} if man else {"short": 1, "medium": 4, "long": 5}
    elif age == "young" and man:
        lengths["bald"] = 0.7
    elif age == "elderly" and not man:
        lengths = {"short": 4, "medium": 4, "long": 2}
    drawn["hair_length"] = _weighted(rng, lengths)
    locks = drawn["hair_length"] in ("short", "medium", "long")
    textures = (
        {"straight": 1, "wavy": 1, "curly": 3} if main == "african" else {"straight": 3, "wavy": 2.5, "curly": 1.5}
    )
    drawn["hair_texture"] = _weighted(rng, textures) if locks else "straight"
    drawn["bangs"] = _yes(rng, 0.45 if child else 0.3) if locks else "no"
    recede = man and not child and drawn["hair_length"] in ("buzz", "short") and drawn["bangs"] == "no"
    odds = {"young": 0.12, "middle-aged": 0.4, "elderly": 0.6}.get(age, 0)
    drawn["hairline"] = "receding" if recede and rng.random() < odds else "normal"
    tie = not man and drawn["hair_length"] in ("medium", "long")
    drawn["updo"] = _weighted(rng, {"none": 4, "bun": 1.4, "ponytail": 1.4}) if tie else "none"
    woman = not man and not child
    drawn["lipstick"] = (
        _weighted(rng, {"none": 12 if age == "elderly" else 3, "red": 2, "pink": 2, "purple": 1.2})
        if woman
        else "none"
    )
    drawn["makeup"] = "heavy" if woman and rng.random() < (0.1 if age == "elderly" else 0.33) else "none"
    drawn["rosy_cheeks"] = _yes(rng, 0.07 if man and not child else 0.2)
    grown = man and not child
    drawn["beard"] = _weighted(rng, {"none": 3.4, "stubble": 2.2, "goatee": 2, "full": 2.2}) if grown else "none"
    drawn["mustache"] = _yes(rng, 0.85 if drawn["beard"] == "full" else 0.28) if grown else "no"
    short = drawn["hair_length"] in ("buzz", "short")
    drawn["sideburns"] = _yes(rng, 0.6 if drawn["beard"] == "full" else 0.15) if grown and short else "no"


def _sample_wear(drawn: dict[str, str], rng: random.Random) -> None:
    man, child = drawn["gender"] == "man", drawn["age"] == "child"
    drawn["eyewear"] = _weighted(rng, {"none": 6, "round glasses": 1.2, "square glasses": 1.2, "sunglasses": 0.5})
    bare = drawn["updo"] != "none"
    hats = {"none": 7.5, "beanie": 1, "cap": 1, "fedora": 0 if child else 0.9, "headband": 0.8}
    hats["headscarf"] = 0 if man else 0.9
    drawn["headwear"] = "none" if bare else _weighted(rng, hats)
    free = drawn["updo"] == "none" and drawn["headwear"] == "none"
    drawn["headphones"] = _yes(rng, 0.12) if free else "no"
    ears = drawn["headphones"] == "no" and drawn["headwear"] != "headscarf" and not (child and man)
    drawn["earrings"] = (
        _weighted(
            rng, dict(zip(("none", "stud", "hoop", "drop"), (14, 1, 1, 0.3) if man else (3, 1, 1, 1), strict=True))
        )
        if ears
        else "none"
    )
    drawn["mask"] = _yes(rng, 0.045)
    drawn["clothes"] = _weighted(
        rng,
        {"t-shirt": 5, "turtleneck": 1.5}
        if child
        else {"t-shirt": 3, "collared shirt": 2.2, "suit": 1.8, "turtleneck": 1.4},
    )
    drawn["clothes_color"] = rng.choice(RENDERED_ATTRIBUTES["clothes_color"])
    covered = drawn["headwear"] == "headscarf"
    collar = drawn["clothes"] in ("collared shirt", "suit") and not covered
    ties = {"none": 2, "necktie": 2, "bow tie": 1.3} if man else {"none": 8, "necktie": 1, "bow tie": 1}
    drawn["neckwear"] = _weighted(rng, ties) if collar else "none"
    bare_neck = drawn["clothes"] == "t-shirt" and not covered
    odds = {"none": 9, "pearl": 0, "gold": 1} if man else {"none": 2, "pearl": 1.3, "gold": 1.3}
    drawn["necklace"] = _weighted(rng, odds) if bare_neck else "none"


def _sample_expression(drawn: dict[str, str], rng: random.Random) -> None:
    dark = drawn["eyewear"] == "sunglasses"
    emotions = {name: 1.0 for name in RENDERED_ATTRIBUTES["emotion"]} | {"neutral": 2.2, "happy": 2.2}
    drawn["emotion"] = _weighted(rng, emotions)
    drawn["mouth"] = rng.choice(_MOUTHS[drawn["emotion"]])
    wide = drawn["emotion"] in ("afraid", "surprised")
    drawn["eyes"] = (
        "open" if wide or dark else _weighted(rng, {"open": 14, "closed": 1.2, "winking": 1, "squinting": 1})
    )
    away = drawn["eyes"] == "open" and not dark
    drawn["gaze"] = _weighted(rng, {"ahead": 8, "left": 1, "right": 1, "up": 0.8, "down": 0.8}) if away else "ahead"


def _sample_picture(drawn: dict[str, str], rng: random.Random) -> None:
    drawn["background"] = rng.choice(RENDERED_ATTRIBUTES["background"])
    drawn["pose"] = _weighted(rng, {"frontal": 5, "turned left": 1, "turned right": 1})
    drawn["tilt"] = _weighted(rng, {"upright": 8, "tilted left": 1, "tilted right": 1})
    drawn["lighting"] = _weighted(rng, {"even": 5, "left": 1, "right": 1, "dim": 0.9})
    drawn["blurry"] = _yes(rng, 0.02)


def covers_hair(attributes: dict[str, str]) -> bool:
    """Whether a hat lies on the hair."""
    return attributes["headwear"] in HATS
