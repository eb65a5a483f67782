"""Painted faces: attributes and identity parameters -> SVG -> picture, the same on every machine."""

from collections.abc import Mapping

from PIL import Image, ImageFilter

from ...._versions import need
from ....modeling_unif2ace.pictures_unif2ace import load_image
from ...data.language.attributes import IDENTITY_PARAMETERS, validate_attributes
from .features import FeaturePainter
from .geometry import BACKGROUND_COLORS, CENTER_X, FaceColors, FaceGeometry, Pen, mix
from .hair import HairPainter


CANVAS_SIZE = 256
_SHADOW_STOPS = (
    '<stop offset=".3" stop-color="#04041c" stop-opacity="0"/>'
    '<stop offset="1" stop-color="#04041c" stop-opacity=".72"/>'
)
_LIGHTING = {
    "even": "",
    "left": f'<linearGradient id="shadow" x1="0" y1="0" x2="1" y2="0">{_SHADOW_STOPS}</linearGradient>'
    '<rect width="256" height="256" fill="url(#shadow)"/>',
    "right": f'<linearGradient id="shadow" x1="1" y1="0" x2="0" y2="0">{_SHADOW_STOPS}</linearGradient>'
    '<rect width="256" height="256" fill="url(#shadow)"/>',
    "dim": '<rect width="256" height="256" fill="#0c1038" opacity=".38"/>',
}


def face_svg(attributes: Mapping[str, str], identity: Mapping[str, float]) -> str:
    """
    Draw a face as SVG text on a canvas of 256 x 256 units. `blurry` is left to [`paint`].

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes, see [`ATTRIBUTES`].
        identity (`Mapping[str, float]`):
            The 12 geometry parameters in [-2, 2], see [`IDENTITY_PARAMETERS`].

    Returns:
        `str`: An SVG document.

    Raises:
        `ValueError`: If an attribute or an identity parameter is missing or out of range.
    """
    validate_attributes(attributes)
    _validate_identity(identity)
    chosen = dict(attributes)
    geometry = FaceGeometry(chosen, identity)
    colors = FaceColors(chosen, identity)
    pen = Pen(geometry)
    features = FeaturePainter(chosen, geometry, colors, pen)
    hair = HairPainter(chosen, geometry, colors, pen)

    rotation = f'<g transform="rotate({geometry.roll:.0f} 128 196)">'
    pen.raw(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS_SIZE} {CANVAS_SIZE}">')
    pen.raw(f'<rect width="{CANVAS_SIZE}" height="{CANVAS_SIZE}" fill="{BACKGROUND_COLORS[chosen["background"]]}"/>')
    pen.raw(rotation)
    hair.back()
    pen.raw("</g>")
    _paint_body(chosen, colors, pen)
    pen.raw(rotation)
    features.double_chin()
    features.ears()
    outline = pen.path(geometry.outline(), True)
    pen.raw(f'<path d="{outline}" fill="{colors.skin}"/><clipPath id="head"><path d="{outline}"/></clipPath>')
    pen.raw(f'<path d="{outline}" fill="none" stroke="{colors.skin_shade}" stroke-width="3"/>')
    pen.raw('<g clip-path="url(#head)">')
    features.skin_shapes()
    features.beard()
    features.skin_marks()
    pen.raw("</g>")
    features.nose()
    features.mustache()
    features.mouth()
    features.mask()
    features.eyes()
    hair.front()
    features.brows()
    features.glasses()
    hair.earrings()
    hair.headgear()
    pen.raw("</g>")
    pen.raw(_LIGHTING[chosen["lighting"]])
    pen.raw("</svg>")
    return "".join(pen.elements)


def paint(attributes: Mapping[str, str], identity: Mapping[str, float], size: int = 64) -> Image.Image:
    """
    Paint a face.

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes, see [`ATTRIBUTES`].
        identity (`Mapping[str, float]`):
            The 12 geometry parameters in [-2, 2], see [`IDENTITY_PARAMETERS`].
        size (`int`, *optional*, defaults to 64):
            Width and height in pixels.

    Returns:
        `PIL.Image.Image`: An RGB picture of `size` x `size` pixels.

    Raises:
        `ValueError`: If an attribute or an identity parameter is missing or out of range.
    """
    return rasterize(face_svg(attributes, identity), size, blurry=attributes["blurry"] == "yes")


def rasterize(svg: str, size: int, blurry: bool = False) -> Image.Image:
    """Turn an SVG document into an RGB picture of `size` x `size` pixels, softened if `blurry`."""
    resvg_py = need("resvg_py", "train")
    # Without skip_system_fonts resvg scans all fonts of the machine for every picture.
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    image = load_image(bytes(data))
    return image.filter(ImageFilter.GaussianBlur(size * 0.025)) if blurry else image


def _validate_identity(identity: Mapping[str, float]) -> None:
    for name in IDENTITY_PARAMETERS:
        if name not in identity:
            raise ValueError(f"Identity parameter '{name}' is missing; give a number from -2 to 2.")
        if not -2.0 <= identity[name] <= 2.0:
            raise ValueError(f"Identity parameter '{name}' is {identity[name]!r}; give a number from -2 to 2.")


def _paint_body(attributes: dict[str, str], colors: FaceColors, pen: Pen) -> None:
    """Neck, clothes and what is worn around the neck; the body does not tilt with the head."""
    man = attributes["gender"] == "man"
    neck, shoulder = (32.0, 122.0) if man else (26.0, 106.0)
    pen.fill(
        [(-neck, 44), (neck, 44), (neck + 2, 92), (neck + 12, 112), (-neck - 12, 112), (-neck - 2, 92)],
        colors.skin_shade,
        flat=True,
    )
    outline = [(-neck - 4, 92), (-shoulder * 0.62, 102), (-shoulder, 122), (-shoulder - 6, 146)]
    outline += [(-x, y) for x, y in reversed(outline)]
    clothes = attributes["clothes"]
    if clothes == "t-shirt":
        neckline = [(neck + 2, 96), (neck - 5, 109), (0, 117), (-neck + 5, 109), (-neck - 2, 96)]
        pen.fill([*outline, *neckline], colors.clothes, flat=True, bend=0.4)
        pen.line(neckline, colors.clothes_shade, 5, flat=True)
    if clothes == "turtleneck":
        pen.fill(outline, colors.clothes, flat=True)
        collar = [(-neck - 7, 80), (0, 90), (neck + 7, 80), (neck + 8, 106), (0, 113), (-neck - 8, 106)]
        pen.fill(collar, colors.clothes_shade, flat=True)
    if clothes == "collared shirt":
        pen.fill(outline, colors.clothes, flat=True)
        pen.line([(0, 112), (0, 140)], colors.clothes_shade, 4, flat=True)
        _paint_collar(neck, mix(colors.clothes, "#ffffff", 0.35), colors, pen)
    if clothes == "suit":
        shirt = "#f4f6f8" if attributes["clothes_color"] != "white" else "#9cb8d8"
        pen.fill(outline, colors.clothes, flat=True)
        pen.fill([(-neck - 4, 92), (neck + 4, 92), (8, 144), (-8, 144)], shirt, flat=True, straight=True)
        for side in (-1, 1):
            lapel = [(side * (neck + 7), 91), (side * (neck + 20), 114), (side * 8, 144), (side * 28, 116)]
            pen.fill(lapel, colors.clothes_shade, flat=True, straight=True)
        _paint_collar(neck, shirt, colors, pen)
    _paint_neckwear(attributes, pen)


def _paint_collar(neck: float, color: str, colors: FaceColors, pen: Pen) -> None:
    pen.fill([(-12, 98), (12, 98), (0, 114)], colors.skin_shade, flat=True, straight=True)
    for side in (-1, 1):
        flap = [(side * (neck + 3), 86), (0, 108), (side * 19, 124), (side * (neck + 10), 102)]
        pen.fill(flap, color, flat=True, straight=True, extra=' stroke="#3c4048" stroke-width="2"')


def _paint_neckwear(attributes: dict[str, str], pen: Pen) -> None:
    tie = "#1c2c7c" if attributes["clothes_color"] in ("red", "purple") else "#a0102c"
    edge = ' stroke="#ffffff" stroke-width="1.5"'
    if attributes["neckwear"] == "necktie":
        knot = [(-9, 104), (9, 104), (7, 116), (15, 146), (-15, 146), (-7, 116)]
        pen.fill(knot, tie, flat=True, straight=True, extra=edge)
        pen.line([(-8, 116), (8, 116)], mix(tie, "#000000", 0.5), 3, flat=True)
    if attributes["neckwear"] == "bow tie":
        bow = [(0, 109), (-25, 98), (-25, 124), (0, 113), (25, 124), (25, 98)]
        pen.fill(bow, tie, flat=True, straight=True, extra=edge)
        pen.ellipse((0, 111), (5.5, 5.5), mix(tie, "#000000", 0.5), flat=True)
    if attributes["necklace"] == "pearl":
        for step in range(-4, 5):
            pen.ellipse(
                (step * 8.5, 112 - step * step * 1.1),
                (4.8, 4.8),
                "#fffaf0",
                flat=True,
                extra=' stroke="#80705c" stroke-width="1.5"',
            )
    if attributes["necklace"] == "gold":
        chain = [(-33, 96), (-18, 109), (0, 116), (18, 109), (33, 96)]
        pen.line(chain, "#6c4400", 6.5, flat=True)
        pen.line(chain, "#ffcf24", 4, flat=True)
        x = CENTER_X
        pen.raw(f'<path d="M{x:.0f} 229l9 11l-9 11l-9-11z" fill="#ffcf24" stroke="#6c4400" stroke-width="2"/>')
