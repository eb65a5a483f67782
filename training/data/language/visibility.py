"""Which attributes can be seen in a painted face: exactly by rendering counterfactuals, or fast by rules."""

from collections.abc import Mapping

import numpy as np

from ...synthetic.painted.hair import HATS
from ...synthetic.painted.painter import face_svg, rasterize
from .attributes import ATTRIBUTES, validate_attributes


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


def visible_attributes(
    attributes: Mapping[str, str],
    identity: Mapping[str, float],
    size: int = 64,
    threshold: int = 12,
    min_pixels: int = 3,
) -> dict[str, bool]:
    """
    Find the attributes that can be seen in a painted face.

    An attribute is visible if EVERY other value of it, all else unchanged, would change at least `min_pixels` pixels
    by more than `threshold` in some colour channel: then nothing but its own value explains the picture.

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes, see [`ATTRIBUTES`].
        identity (`Mapping[str, float]`):
            The 12 geometry parameters.
        size (`int`, *optional*, defaults to 64):
            Width and height in pixels at which the comparison is made.
        threshold (`int`, *optional*, defaults to 12):
            A pixel counts as changed if a channel (0 to 255) differs by more than this.
        min_pixels (`int`, *optional*, defaults to 3):
            Number of pixels that have to change.

    Returns:
        `dict[str, bool]`: Attribute name -> whether it is visible, for all 48 attributes.

    Raises:
        `ValueError`: If an attribute or an identity parameter is missing or out of range.
    """
    svg = face_svg(attributes, identity)
    blurry = attributes["blurry"] == "yes"
    picture = _pixels(svg, size, blurry)

    def differs(name: str, value: str) -> bool:
        changed = {**attributes, name: value}
        other_svg = face_svg(changed, identity)
        if other_svg == svg and name != "blurry":
            return False
        other = _pixels(other_svg, size, changed["blurry"] == "yes")
        return int((np.abs(picture - other).max(axis=-1) > threshold).sum()) >= min_pixels

    return {
        name: all(differs(name, value) for value in values if value != attributes[name])
        for name, values in ATTRIBUTES.items()
    }


def assumed_visible(attributes: Mapping[str, str]) -> dict[str, bool]:
    """
    Say by rules, without rendering, which attributes can be seen in a painted face.

    The rules are cautious: what they call visible is visible by [`visible_attributes`] at 64 pixels in at least 99 of
    100 cases, but some attributes that they call hidden can be seen.

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


def _pixels(svg: str, size: int, blurry: bool) -> np.ndarray:
    return np.asarray(rasterize(svg, size, blurry), dtype=np.int16)
