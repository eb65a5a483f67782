"""Pictures on disk and side by side."""

import math
import textwrap
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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


def labelled_sheet(rows: dict[str, list[Image.Image]], captions: list[str], side: int = 192) -> Image.Image:
    """
    Pictures in rows that have a name, above columns that have a caption.

    Args:
        rows (`dict[str, list[PIL.Image.Image]]`): Name of a row and its pictures; places that stay empty are white.
        captions (`list[str]`): Of the columns.
        side (`int`, *optional*, defaults to 192): Side of a picture on the sheet, in pixels.
    """
    font = ImageFont.load_default(14)
    letters = max(1, int(side / font.getlength("n")))
    texts = ["\n".join(textwrap.wrap(caption, letters)) for caption in captions]
    margin = 8 + max(int(font.getlength(name)) for name in rows)
    foot = 8 + 18 * max(text.count("\n") + 1 for text in texts)
    sheet = Image.new("RGB", (margin + side * len(captions), side * len(rows) + foot), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, pictures) in enumerate(rows.items()):
        draw.text((4, side * y + side // 2), name, "black", font)
        for x, picture in enumerate(pictures):
            way = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS
            sheet.paste(picture.convert("RGB").resize((side, side), way), (margin + side * x, side * y))
            sheet.info.update(picture.info)  # the provenance of the last generated one
    for x, text in enumerate(texts):
        draw.multiline_text((margin + side * x + 4, side * len(rows) + 4), text, "black", font)
    return sheet
