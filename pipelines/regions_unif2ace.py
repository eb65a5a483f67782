"""Regions of a picture, named, boxed or painted, as masks over the grid of image codes."""

from typing import Any

import numpy as np
from PIL import Image


# (left, top, right, bottom) as shares of the picture. Made for faces framed as the painted ones are: the head in the
# middle, the chin at five sixths of the height. Faces of other crops need boxes or masks of their own.
FACE_PARTS = {
    "face": (0.20, 0.12, 0.80, 0.86),
    "hair": (0.10, 0.00, 0.90, 0.40),
    "forehead": (0.26, 0.16, 0.74, 0.34),
    "eyebrows": (0.26, 0.27, 0.74, 0.41),
    "eyes": (0.24, 0.36, 0.76, 0.52),
    "ears": (0.12, 0.36, 0.88, 0.60),
    "nose": (0.40, 0.40, 0.60, 0.60),
    "cheeks": (0.24, 0.46, 0.76, 0.68),
    "mouth": (0.34, 0.58, 0.66, 0.74),
    "chin": (0.28, 0.60, 0.72, 0.88),
    "neck": (0.28, 0.76, 0.72, 1.00),
}


def region_box(region: str | tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """
    The box of a named facial part, or a box itself, checked.

    Args:
        region (`str` or four numbers): One of `FACE_PARTS`, or (left, top, right, bottom) as shares of the picture.

    Raises:
        ValueError: if there is no such part, or the numbers are no box inside of the picture.
    """
    if isinstance(region, str):
        if region not in FACE_PARTS:
            raise ValueError(f"there is no facial part {region!r}, expected one of {', '.join(FACE_PARTS)}, or a box")
        return FACE_PARTS[region]
    try:
        left, top, right, bottom = (float(side) for side in region)
        fits = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"the region is {region!r}, expected the name of a facial part, a mask picture, or a box (left, top, "
            "right, bottom) in shares of the picture from 0 to 1"
        )
    return left, top, right, bottom


def paint_region(region: str | tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """A mask picture of `size` (width, height): white inside of the region, black elsewhere."""
    left, top, right, bottom = region_box(region)
    width, height = size
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 255
    return Image.fromarray(mask)


def mask_picture(mask: Any, size: tuple[int, int]) -> Image.Image:
    """
    A mask of any kind as a grey picture, white where it is set.

    Args:
        mask (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, part's name or box):
            A picture; or (height, width) of `bool`, of whole numbers from 0 to 255, or of floats from 0 to 1; or a
            region as in [`region_box`].
        size (`tuple[int, int]`): Width and height of the picture that it belongs to.

    Raises:
        ValueError: if it has another size, or values that are neither.
    """
    if hasattr(mask, "detach"):  # a tensor
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray):
        levels = np.squeeze(mask)
        if levels.ndim != 2:
            raise ValueError(f"the mask has shape {mask.shape}, expected (height, width)")
        if levels.dtype == bool or levels.dtype.kind == "f":
            levels = levels.astype(np.float64)
            if not (np.isfinite(levels).all() and 0 <= levels.min() and levels.max() <= 1):
                raise ValueError("the mask has floats outside of 0 to 1, expected 1 where to repaint and 0 elsewhere")
            levels = levels * 255
        elif levels.min() < 0 or levels.max() > 255:
            raise ValueError(f"the mask has values up to {levels.max()}, expected 0 to 255")
        elif 0 < levels.max() <= 1:  # zeros and ones of an integer type
            levels = levels * 255
        mask = Image.fromarray(np.rint(levels).astype(np.uint8))
    if not isinstance(mask, Image.Image):
        return paint_region(mask, size)
    if mask.size != size:
        raise ValueError(
            f"the mask has {mask.width} × {mask.height} pixels, the picture {size[0]} × {size[1]}: make them equal"
        )
    return mask.convert("L")


def outpaint_canvas(image: Image.Image, margins: tuple[float, ...]) -> tuple[Image.Image, Image.Image]:
    """
    A picture with margins around it, and the mask of the margins.

    Args:
        image (`PIL.Image.Image`): The picture.
        margins (four numbers): Left, top, right and bottom margin, as shares of the picture's width and height.

    Returns:
        `tuple` of two `PIL.Image.Image`: the canvas, whose margins continue the picture's edges (the codes at the
        border see something plausible), and the mask, white in the margins.

    Raises:
        ValueError: if the margins are not four finite numbers of at least 0, or all 0, or the canvas is not square
            although the picture is.
    """
    try:
        left, top, right, bottom = (float(margin) for margin in margins)
        fits = all(np.isfinite(side) and side >= 0 for side in (left, top, right, bottom))
    except (TypeError, ValueError):
        fits = False
    if not fits or not any((left, top, right, bottom)):
        raise ValueError(
            f"margins is {margins!r}, expected four numbers (left, top, right, bottom) of at least 0, not all 0: "
            "shares of the picture's width and height to add"
        )
    width, height = image.size
    sides = round(left * width), round(right * width), round(top * height), round(bottom * height)
    canvas_size = width + sides[0] + sides[1], height + sides[2] + sides[3]
    if canvas_size[0] != canvas_size[1]:
        raise ValueError(
            f"with its margins the picture has {canvas_size[0]} × {canvas_size[1]} pixels, but the model draws "
            "squares: choose margins that make it square, as (0.25, 0.5, 0.25, 0) for a square picture"
        )
    pixels = np.asarray(image.convert("RGB"))
    pixels = np.pad(pixels, (sides[2:], sides[:2], (0, 0)), mode="edge")
    mask = np.full(canvas_size[::-1], 255, dtype=np.uint8)
    mask[sides[2] : sides[2] + height, sides[0] : sides[0] + width] = 0
    return Image.fromarray(pixels), Image.fromarray(mask)


__all__ = ["FACE_PARTS", "mask_picture", "outpaint_canvas", "paint_region", "region_box"]
