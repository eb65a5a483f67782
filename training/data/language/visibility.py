"""Which attributes of a face can be seen, by rules: a mask hides the mouth, a hat the hairline."""

from collections.abc import Mapping

from .attributes import ATTRIBUTES, HATS, validate_attributes


_FINE_DETAILS = (
    "age",
    "brow_shape",
    "brow_thickness",
    "cheekbones",
    "emotion",
    "eye_bags",
    "eye_color",
    "eye_size",
    "freckles",
    "gaze",
    "lips",
    "mole",
    "mouth",
    "sideburns",
    "wrinkles",
)


def assumed_visible(attributes: Mapping[str, str]) -> dict[str, bool]:
    """
    Say by rules, without rendering, which attributes of a face can be seen.

    The rules are cautious: what they call visible can be seen at 64 pixels in at least 99 of 100 painted faces (which
    are drawn again with another value to find out), but some attributes that they call hidden can be seen too.

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes, see [`ATTRIBUTES`].

    Returns:
        `dict[str, bool]`: Attribute name -> whether it is visible, for all 48 attributes.

    Raises:
        `ValueError`: If an attribute is missing or has a value that is not allowed.
    """
    validate_attributes(attributes)
    hidden = {*_hidden_by_wear(attributes), *_hidden_by_hair(attributes), *_hidden_in_face(attributes)}
    if attributes["blurry"] == "yes":
        hidden.update(_FINE_DETAILS)
    return {name: name not in hidden for name in ATTRIBUTES}


def _hidden_by_wear(attributes: Mapping[str, str]) -> set[str]:
    hidden: set[str] = set()
    if attributes["mask"] == "yes":
        hidden.update(("mouth", "lips", "lipstick", "nose", "beard", "mustache", "age", "cheekbones"))
        hidden.update(("freckles", "mole", "rosy_cheeks"))
    if attributes["eyewear"] == "sunglasses":
        hidden.update(("eye_color", "eye_size", "eye_bags", "makeup", "eyes", "gaze"))
    if attributes["headwear"] in HATS:
        hidden.update(("hairline", "bangs"))
        if attributes["hair_length"] == "short":
            hidden.add("hair_texture")
        if attributes["updo"] == "bun":
            hidden.add("updo")
    return hidden


def _hidden_by_hair(attributes: Mapping[str, str]) -> set[str]:
    hidden: set[str] = set()
    length = attributes["hair_length"]
    if length == "bald":
        hidden.add("hairline")
    if length in ("bald", "buzz"):
        hidden.update(("hair_texture", "bangs"))
    if length not in ("medium", "long"):
        hidden.add("updo")
    elif attributes["updo"] == "none":
        hidden.add("sideburns")
    else:
        hidden.add("hair_length")
    if attributes["bangs"] == "yes":
        hidden.add("hairline")
    return hidden


def _hidden_in_face(attributes: Mapping[str, str]) -> set[str]:
    hidden: set[str] = set()
    forehead_covered = attributes["bangs"] == "yes" or attributes["headwear"] in HATS
    if forehead_covered and attributes["emotion"] == "surprised":
        # Highly raised brows reach the fringe or the rim.
        hidden.update(("brow_shape", "brow_thickness"))
    if forehead_covered and (attributes["eyewear"] != "none" or attributes["lighting"] != "even"):
        hidden.add("wrinkles")
    if attributes["lighting"] == "dim":
        hidden.add("lips")
        if attributes["eyewear"] != "none":
            hidden.add("eye_bags")
    if (
        attributes["skin"] == "dark"
        and attributes["hair_color"] == "red"
        and attributes["beard"] in ("none", "stubble")
    ):
        hidden.add("beard")
    if attributes["eyes"] == "closed":
        hidden.update(("eye_color", "eye_size", "gaze"))
    if attributes["eyes"] == "squinting" and attributes["eye_size"] == "narrow":
        hidden.update(("eye_color", "gaze"))
    if attributes["beard"] == "full":
        hidden.update(("age", "freckles", "sideburns"))
    return hidden
