"""Skin as one small picture: tone, lips, cheeks, age, make-up, stubble, and the shadow of hair on the scalp."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from .data import TEXTURE_SIZE, texel_map
from .hair import brow_colour
from .regions import beard_region, brow_region, scalp_region


SKIN_TONES = {
    "pale": (0.72, 0.51, 0.43),
    "fair": (0.66, 0.42, 0.315),
    "tan": (0.50, 0.295, 0.19),
    "brown": (0.265, 0.14, 0.08),
    "dark": (0.105, 0.052, 0.032),
}
"""Linear RGB."""

LIPSTICKS = {"red": (0.50, 0.015, 0.03), "pink": (0.72, 0.16, 0.26), "purple": (0.24, 0.03, 0.22)}


@lru_cache(None)
def noise_bank(sigma: float, size: int = TEXTURE_SIZE) -> np.ndarray:
    """Smooth periodic noise of mean 0 and deviation 1, the same in every process."""
    rng = np.random.default_rng(int(sigma * 100))
    noise = gaussian_filter(rng.normal(size=(size, size)).astype(np.float32), sigma, mode="wrap")
    return noise / noise.std()


def noise(sigma: float, rng: np.random.Generator) -> np.ndarray:
    """The noise of the bank at a random place."""
    return np.roll(noise_bank(sigma), tuple(rng.integers(0, TEXTURE_SIZE, 2)), (0, 1))


def _line(points: tuple[tuple[float, float], ...], width: float) -> np.ndarray:
    """How near texels are to a broken line in (|x|, y) of the face."""
    place = texel_map().points
    x, y = np.abs(place[..., 0]), place[..., 1]
    nearest = np.full(x.shape, np.inf, np.float32)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)
    return np.exp(-nearest / width**2) * (place[..., 2] > -1.1)


def _spot(x: float, y: float, wide: float, high: float) -> np.ndarray:
    place = texel_map().points
    distance = ((np.abs(place[..., 0]) - x) / wide) ** 2 + ((place[..., 1] - y) / high) ** 2
    return np.exp(-distance) * (place[..., 2] > -1.1)


@lru_cache(None)
def _masks() -> dict[str, np.ndarray]:
    lips = gaussian_filter(texel_map().lips, 1.0)
    folds = {
        "forehead": sum(_line(((0, y), (0.5, y + 0.06), (0.9, y - 0.04)), 0.042) for y in (0.64, 0.84, 1.04)),
        "glabella": _line(((0.09, 0.14), (0.12, 0.5)), 0.045),
        "crow": sum(_line(((0.92, y), (1.2, y * 2.4)), 0.034) for y in (0.09, 0.0, -0.09)),
        "nasolabial": _line(((0.27, -0.52), (0.42, -0.76), (0.57, -1.03), (0.6, -1.28)), 0.078),
        "marionette": _line(((0.47, -1.2), (0.51, -1.42), (0.48, -1.65)), 0.065),
        "bag": _line(((0.22, -0.14), (0.42, -0.30), (0.68, -0.28), (0.84, -0.14)), 0.06),
        "bag edge": _line(((0.24, -0.32), (0.45, -0.47), (0.72, -0.43), (0.88, -0.3)), 0.045),
        "cheek lines": sum(_line(((x, -0.5), (x - 0.02, -0.95), (x - 0.1, -1.25)), 0.04) for x in (0.78, 0.95)),
        "lip lines": sum(_line(((x, -0.90), (x * 1.02, -1.04)), 0.02) for x in (0.06, 0.18, 0.3)),
        "chin": _line(((0.0, -1.42), (0.25, -1.45)), 0.05),
        "neck": _line(((0, -2.2), (0.8, -2.05)), 0.045) + _line(((0, -2.45), (0.8, -2.3)), 0.045),
    }
    return folds | {
        "lips": lips,
        "lip gap": _line(((0, -1.12), (0.2, -1.13), (0.40, -1.12)), 0.02),
        "cheeks": _spot(0.66, -0.55, 0.3, 0.26),
        "nose tip": _spot(0, -0.6, 0.24, 0.18),
        "under eyes": _spot(0.5, -0.2, 0.3, 0.11),
        "hollow": _spot(0.82, -0.95, 0.2, 0.35),
        "jowl": _spot(0.62, -1.5, 0.22, 0.2),
        "jaw": _spot(0.0, -1.75, 1.2, 0.35),
        "temple": _spot(1.1, 0.5, 0.2, 0.3),
        "lids": _spot(0.52, 0.12, 0.30, 0.10),
        "lid crease": _line(((0.28, 0.12), (0.48, 0.20), (0.70, 0.16), (0.82, 0.04)), 0.03),
        "upper lash": _line(((0.27, 0.01), (0.36, 0.09), (0.50, 0.125), (0.65, 0.10), (0.79, 0.02)), 0.028),
        "lower lash": _line(((0.3, -0.05), (0.5, -0.12), (0.75, -0.04)), 0.018),
        "wing": _line(((0.78, 0.03), (0.92, 0.1)), 0.024),
        "freckles": _spot(0.45, -0.38, 0.6, 0.3),
        "beard": gaussian_filter(beard_region(texel_map().points, "full").astype(np.float32), 5) * (1 - lips),
    }


def skin_texture(
    attributes: Mapping[str, str],
    years: float,
    tone: np.ndarray,
    hair: np.ndarray,
    brow: Mapping[str, float],
    seed: int,
) -> np.ndarray:
    """
    The colour of the skin.

    Args:
        attributes (`Mapping[str, str]`): The person and the make-up.
        years (`float`): Age.
        tone (`np.ndarray` (3,)): Linear RGB of the skin.
        hair (`np.ndarray` (3,)): Linear RGB of hair, brows and beard.
        brow (`Mapping[str, float]`): `thickness` and `arch` of the brows.
        seed (`int`): Chooses spots and freckles.

    Returns:
        `np.ndarray` (size, size, 3) of float32, linear RGB, for the coordinates of `skin_mesh`.
    """
    rng = np.random.default_rng(seed)
    mask, points = _masks(), texel_map().points
    man, child = attributes["gender"] == "man", years < 15
    aged = float(np.clip((years - 27) / 36, 0, 1.25)) ** 0.6
    if attributes["wrinkles"] == "yes":
        aged = max(aged, 0.55) * 1.15
    colour = np.broadcast_to(tone.astype(np.float32), (TEXTURE_SIZE, TEXTURE_SIZE, 3)).copy()
    rough = 0.02 if child else 0.035 + 0.06 * aged + (0.02 if man else 0.0)
    colour *= (1 + rough * noise(26, rng) + 0.7 * rough * noise(7, rng) + 0.6 * rough * noise(1.6, rng))[..., None]

    def blend(weight: np.ndarray, other, amount: float) -> None:
        share = np.clip(weight * amount, 0, 1)[..., None]
        colour[:] = colour * (1 - share) + np.asarray(other, np.float32) * share

    red = tone * np.array([1.0, 0.66, 0.63])
    dark = tone * np.array([0.62, 0.50, 0.50])
    deep = float(np.clip(1 - tone[0] / 0.45, 0, 1))  # folds of dark skin need more contrast to be seen
    blend(mask["cheeks"], red, 0.7 if child else 0.45)
    blend(mask["nose tip"], red, 0.45)
    blend(texel_map().ears, red, 0.4)
    blend(mask["under eyes"], dark, 0.12 + 0.6 * aged + (0.4 if attributes["eye_bags"] == "yes" else 0))
    # old skin is sallow and loses its red
    blend(
        np.clip(0.6 + 0.4 * noise(40, rng), 0, 1) * (points[..., 1] > -3),
        tone * np.array([0.86, 0.86, 0.84]),
        0.5 * aged,
    )
    blend(mask["temple"] + mask["hollow"] + mask["jowl"], tone * 0.68, 0.6 * aged)
    if man and not child:
        blend(mask["hollow"], tone * 0.75, 0.3)
    if aged > 0:
        blotch = np.clip(noise(9, rng) - 1.1, 0, 1) + np.clip(noise(4, rng) - 1.6, 0, 1)
        blend(blotch * (points[..., 1] > -2.2), tone * np.array([0.62, 0.52, 0.45]), 0.85 * aged)
    if attributes["rosy_cheeks"] == "yes":
        blend(mask["cheeks"], tone * np.array([1.05, 0.46, 0.46]) + [0.02, 0, 0.005], 0.75)
    for name, amount in (
        ("forehead", 0.85),
        ("glabella", 0.8),
        ("crow", 0.9),
        ("nasolabial", 1.0),
        ("marionette", 0.95),
        ("bag", 0.9),
        ("bag edge", 0.8),
        ("cheek lines", 0.8),
        ("lip lines", 0.75),
        ("chin", 0.6),
        ("neck", 0.8),
    ):
        fold = mask[name] * (0.75 + 0.25 * np.clip(noise(14, rng), -1, 1))
        strength = aged + (0.8 if name == "bag" and attributes["eye_bags"] == "yes" else 0)
        strength += 0.12 if name == "nasolabial" and not child else 0.0
        # a fold is dark, and light above it
        blend(fold, dark * (0.75 - 0.3 * deep), amount * strength)
        blend(np.roll(fold, -7, 0), np.minimum(tone * (1.28 + 0.5 * deep) + 0.035, 0.95), 0.55 * amount * aged)
    if attributes["freckles"] == "yes":
        dots = np.clip(noise(1.6, rng) - 0.75, 0, 1) * 1.4 * mask["freckles"]
        blend(dots, tone * np.array([0.5, 0.34, 0.26]), 0.95)
    if attributes["mole"] == "yes":
        x, y = ((0.5, -0.8), (-0.62, -0.6), (0.3, -1.45), (-0.75, -0.9))[rng.integers(4)]
        spot = np.exp(-(((points[..., 0] - x) ** 2 + (points[..., 1] - y) ** 2) / 0.05**2)) * (points[..., 2] > -1)
        blend(spot, (0.035, 0.018, 0.012), 0.95)
    _paint_lips(attributes, man, aged, tone, mask, blend)
    lash = 0.85 if not man else 0.3
    blend(mask["upper lash"], (0.012, 0.009, 0.008), lash)
    blend(mask["lid crease"], dark, 0.35)
    if attributes["makeup"] == "heavy":
        shadow = ((0.10, 0.05, 0.12), (0.16, 0.07, 0.04), (0.05, 0.07, 0.16))[rng.integers(3)]
        blend(mask["lids"], shadow, 0.85)
        blend(mask["wing"] + mask["lower lash"], (0.01, 0.008, 0.008), 0.85)
        blend(mask["upper lash"], (0.008, 0.006, 0.006), 1.0)
        blend(mask["cheeks"], tone * np.array([1.05, 0.5, 0.5]), 0.4)
    _paint_hair(attributes, man, child, tone, hair, brow, mask, blend, rng)
    return np.clip(colour, 0.004, 0.92)


def _paint_lips(attributes, man, aged, tone, mask, blend) -> None:
    lips = tone * (np.array([0.80, 0.55, 0.52]) if man else np.array([0.95, 0.45, 0.47]))
    blend(mask["lips"], lips, 0.75 - 0.25 * aged)
    if attributes["lipstick"] != "none":
        blend(mask["lips"], LIPSTICKS[attributes["lipstick"]], 0.95)
    blend(mask["lip gap"] * mask["lips"], tone * np.array([0.22, 0.10, 0.10]), 0.9)


def _paint_hair(attributes, man, child, tone, hair, brow, mask, blend, rng) -> None:
    points = texel_map().points
    grain = 0.85 + 0.15 * np.clip(noise(1.6, rng), -2, 2)
    if attributes["hair_length"] != "bald":
        cover = scalp_region(points, attributes["hairline"] == "receding")
        blend(cover * grain, hair * 0.55, 0.93 if attributes["hair_length"] != "buzz" else 0.8)
    elif man:
        blend(scalp_region(points, True), tone * 0.86, 0.5)
    blend(brow_region(points, brow["thickness"], brow["arch"]) * grain, brow_colour(hair), 0.75)
    if man and not child:
        shade = {"none": 0.36, "stubble": 0.66, "goatee": 0.2, "full": 0.8}[attributes["beard"]]
        shadow = hair * 0.45 + tone * 0.25
        blend(mask["beard"] * grain, shadow, shade)
        if attributes["beard"] == "goatee":
            blend(
                gaussian_filter(beard_region(points, "goatee").astype(np.float32), 3) * (1 - mask["lips"]), shadow, 0.7
            )
        if attributes["mustache"] == "yes":
            cover = gaussian_filter(beard_region(points, "mustache").astype(np.float32), 2) * (1 - mask["lips"])
            blend(cover, shadow, 0.8)
        if attributes["sideburns"] == "yes":
            blend(gaussian_filter(beard_region(points, "sideburns").astype(np.float32), 3), shadow, 0.8)
