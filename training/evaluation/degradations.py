"""
Degraded pictures, to see how fast understanding fails when a picture is bad: blur, low light, occlusion, noise and
compression, each in three severities. In the manner of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, arXiv
1903.12261); sizes are shares of the picture's side, so that they mean the same at every resolution.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from ...modeling_unif2ace.pictures_unif2ace import load_image


SEVERITIES = (1, 2, 3)

_BLUR_RADIUS = (0.01, 0.02, 0.04)  # of the Gaussian, in sides
_LIGHT = (0.5, 0.3, 0.15)  # share of the light that is left
_COVERED = (0.1, 0.2, 0.35)  # share of the area
_NOISE = (0.05, 0.1, 0.2)  # standard deviation, of the range
_QUALITY = (30, 15, 7)  # of JPEG


def blur(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(_BLUR_RADIUS[severity - 1] * max(image.size)))


def low_light(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Too dark: less light, and as many counts of it as there are left, so that dark places are noisy (Poisson)."""
    full_well = 255.0  # counts of the brightest pixel in good light
    light = np.asarray(image, dtype=float) / 255 * _LIGHT[severity - 1]
    return Image.fromarray((rng.poisson(light * full_well) / full_well * 255).clip(0, 255).astype(np.uint8))


def occlusion(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Something grey in front: a rectangle somewhere, not wider than twice its height nor the reverse."""
    width, height = image.size
    aspect = float(np.exp(rng.uniform(-np.log(2), np.log(2)) / 2))
    share = _COVERED[severity - 1] ** 0.5
    size = min(width, round(width * share * aspect)), min(height, round(height * share / aspect))
    corner = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))
    covered = image.copy()
    covered.paste((127, 127, 127), (*corner, corner[0] + size[0], corner[1] + size[1]))
    return covered


def noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Sensor noise: Gaussian, for each channel of each pixel."""
    pixels = np.asarray(image, dtype=float)
    pixels = pixels + rng.normal(0, 255 * _NOISE[severity - 1], pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def compression(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Saved too small: JPEG of low quality."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY[severity - 1])
    return load_image(buffer.getvalue())


DEGRADATIONS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": blur,
    "low_light": low_light,
    "occlusion": occlusion,
    "noise": noise,
    "compression": compression,
}
"""Name -> what does it to a picture."""


def degrade(image: Image.Image, kind: str, severity: int = 2, seed: int = 0) -> Image.Image:
    """
    A worse copy of a picture.

    Args:
        image (`PIL.Image.Image`): The picture.
        kind (`str`): One of [`DEGRADATIONS`].
        severity (`int`, *optional*, defaults to 2): 1 (slight), 2 (clear) or 3 (strong).
        seed (`int`, *optional*, defaults to 0): Of noise and of where the occlusion is.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.

    Raises:
        ValueError: if there is no such kind or severity.
    """
    if kind not in DEGRADATIONS or severity not in SEVERITIES:
        raise ValueError(
            f"kind={kind!r} and severity={severity!r}, expected one of {', '.join(DEGRADATIONS)} and a severity from "
            f"{SEVERITIES[0]} to {SEVERITIES[-1]}"
        )
    return DEGRADATIONS[kind](image.convert("RGB"), severity, np.random.default_rng(seed))


__all__ = ["DEGRADATIONS", "SEVERITIES", "degrade"]
