"""Which attributes a rendered picture shows: by counting its pixels, or exactly, by rendering counterfactuals."""

from collections.abc import Mapping

import numpy as np

from .people import Face, covers_hair
from .render import Renderer
from .vocabulary import RENDERED_ATTRIBUTES


_MOUTH = ("mouth", "lips", "lipstick", "beard", "mustache", "nose", "cheekbones", "freckles", "mole", "rosy_cheeks")
_EYES = ("eye_color", "eye_size", "eye_bags", "eyes", "gaze", "makeup")
_FINE = (
    "brow_shape",
    "brow_thickness",
    "cheekbones",
    "eye_bags",
    "eye_color",
    "eye_size",
    "freckles",
    "gaze",
    "lips",
    "mole",
    "nose",
    "rosy_cheeks",
    "sideburns",
    "wrinkles",
)
# thing -> the attribute that it shows; it must have so many pixels of a picture of 128 by 128
_THINGS = {"earrings": 6, "necklace": 14, "neckwear": 12, "eyewear": 60, "headwear": 120, "headphones": 60, "mask": 60}


def seen_in(face: Face, pixels: Mapping[str, int], size: int) -> dict[str, bool]:
    """
    Say which attributes a picture shows, from what hides what by nature and from the pixels that each thing has.

    Args:
        face ([`Face`]): The face.
        pixels (`Mapping[str, int]`): Pixels by thing, see [`Renderer.render_seen`].
        size (`int`): Side of the picture.

    Returns:
        `dict[str, bool]`: For every attribute of this world.
    """
    a = face.attributes
    share = (128 / size) ** 2
    hidden: set[str] = set()
    for name, least in _THINGS.items():
        if a[name] not in ("none", "no") and pixels.get(name, 0) * share < least:
            hidden.add(name)
    if a["mask"] == "yes":
        hidden.update(_MOUTH)
    if a["eyewear"] == "sunglasses":
        hidden.update(_EYES)
    if a["eyewear"] != "none":
        hidden.update(("eye_bags",))
    iris = pixels.get("eyes", 0) * share
    if a["eyes"] in ("closed", "winking"):
        hidden.update(("eye_size", "gaze") if a["eyes"] == "closed" else ("eye_size",))
    if iris < 24:
        hidden.add("eye_color")
    if iris < 12:
        hidden.add("gaze")
    hidden |= _hidden_hair(a, pixels.get("hair", 0) * share)
    if a["lighting"] == "dim" or a["blurry"] == "yes":
        hidden.update(_FINE)
    if a["skin"] == "dark":
        hidden.update(("freckles", "rosy_cheeks", "mole"))
    if a["skin"] == "brown":
        hidden.add("freckles")
    if a["beard"] == "full":
        hidden.update(("double_chin", "sideburns", "mole"))
    if a["clothes"] == "turtleneck" or a["headwear"] == "headscarf":
        hidden.add("double_chin")
    return {name: name not in hidden for name in RENDERED_ATTRIBUTES}


def _hidden_hair(a: Mapping[str, str], pixels: float) -> set[str]:
    hidden: set[str] = set()
    if a["headwear"] == "headscarf":
        hidden.update(("hair_color", "hair_length", "hair_texture", "bangs", "hairline", "updo", "face_shape"))
    elif covers_hair(dict(a)):
        hidden.update(("hairline", "bangs"))
        if a["hair_length"] in ("bald", "buzz", "short"):
            hidden.update(("hair_length", "hair_texture"))
        if a["hair_length"] == "bald" or pixels < 150:
            hidden.update(("hair_color", "hair_length", "hair_texture"))
    if a["hair_length"] == "bald":
        hidden.update(("hair_color", "hairline", "hair_texture", "bangs", "updo"))
    if a["hair_length"] == "buzz":
        hidden.update(("hair_texture", "bangs"))
    if a["bangs"] == "yes":
        hidden.add("hairline")
    if a["hair_length"] in ("bald", "buzz", "short"):
        hidden.add("updo")
    if a["updo"] != "none":
        hidden.update(("hair_length", "hair_texture"))
    if a["hair_length"] in ("medium", "long") and a["updo"] == "none":
        hidden.add("sideburns")
    return hidden


def visible_attributes(
    face: Face, renderer: Renderer, threshold: int = 14, min_pixels: int = 6, names: tuple[str, ...] | None = None
) -> dict[str, bool]:
    """
    Find out exactly which attributes can be seen, by rendering the face again with every other value.

    An attribute is visible if EVERY other value of it, all else unchanged, would change at least `min_pixels` pixels
    by more than `threshold` in some colour channel: then nothing but its own value explains the picture.

    Args:
        face ([`Face`]): The face.
        renderer ([`Renderer`]): Gives the size at which the comparison is made.
        threshold (`int`, *optional*, defaults to 14): Of 255; above what the denoiser leaves.
        min_pixels (`int`, *optional*, defaults to 6): Pixels that have to change.
        names (`tuple[str, ...]`, *optional*): Attributes to look at; all of this world when not given.

    Returns:
        `dict[str, bool]`: Attribute -> whether it is visible. Costs about a hundred pictures for all attributes.
    """
    picture = np.asarray(renderer.render(face), np.int16)

    def differs(name: str, value: str) -> bool:
        other = np.asarray(renderer.render(face.with_attribute(name, value)), np.int16)
        return int((np.abs(picture - other).max(-1) > threshold).sum()) >= min_pixels

    return {
        name: all(differs(name, value) for value in RENDERED_ATTRIBUTES[name] if value != face.attributes[name])
        for name in names or RENDERED_ATTRIBUTES
    }
