"""Pictures on disk and side by side."""

import math
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..modeling_unif2ace.provenance_unif2ace import INFO_KEY, save_image
from .files import replacing


def save_picture(picture: Image.Image, file: Path):
    """Write a picture, with its provenance, completely or not at all."""
    with replacing(file) as part:
        save_image(picture, part)


def enlarge(picture: Image.Image, times: int) -> Image.Image:
    """A picture several times as large, resampled for viewing; its provenance says so."""
    if times == 1:
        return picture
    large = picture.resize([side * times for side in picture.size], Image.Resampling.LANCZOS)
    large.info = dict(picture.info)
    known = picture.info.get(INFO_KEY)
    if known is not None:
        large.info[INFO_KEY] = replace(known, generator=f"{known.generator}, enlarged {times} times for viewing")
    return large


def picture_grid(pictures: list[Image.Image]) -> Image.Image:
    """All pictures in one, row by row, as square as it can be; places that stay empty are white."""
    columns = math.isqrt(len(pictures) - 1) + 1
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * width, i // columns * height))
    grid.info = dict(pictures[0].info)  # the provenance of the first: the others' seeds follow its own
    return grid
