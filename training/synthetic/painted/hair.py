"""Hair, headwear and jewellery of painted faces."""

import math

from ...data.language.attributes import HATS
from .geometry import CENTER_X, CENTER_Y, FaceColors, FaceGeometry, Pen, Point, mix


_HAIR_THICKNESS = {"bald": 0.0, "buzz": 2.0, "short": 10.0, "medium": 12.0, "long": 12.0}
_SIDE_LENGTH = {"bald": 0.0, "buzz": -26.0, "short": -12.0, "medium": 54.0, "long": 118.0}


class HairPainter:
    """
    Paints hair, headwear, headphones and earrings.

    Args:
        attributes (`dict[str, str]`):
            All 48 attributes.
        geometry ([`FaceGeometry`]):
            Measures and projection.
        colors ([`FaceColors`]):
            Colours of the person.
        pen ([`Pen`]):
            Receives the elements.
    """

    def __init__(self, attributes: dict[str, str], geometry: FaceGeometry, colors: FaceColors, pen: Pen):
        self.attributes = attributes
        self.geometry = geometry
        self.colors = colors
        self.pen = pen
        self.length = attributes["hair_length"]
        self.texture = attributes["hair_texture"] if self.length in ("short", "medium", "long") else "straight"
        self.tied = attributes["updo"] != "none" and self.length in ("medium", "long")
        self.width = geometry.width + _HAIR_THICKNESS[self.length]
        self.top = geometry.top - _HAIR_THICKNESS[self.length]
        self.side = -6.0 if self.tied else _SIDE_LENGTH[self.length]

    def back(self) -> None:
        """Hair behind the neck, bun and ponytail; the caller paints it before the body."""
        if self.length not in ("medium", "long"):
            return
        pen, colors = self.pen, self.colors
        if self.attributes["updo"] == "bun":
            pen.ellipse((0, self.top - 3), (25, 17), colors.hair, flat=True, extra=self._edge())
            pen.line([(-14, self.top - 6), (0, self.top - 12), (14, self.top - 6)], colors.hair_shade, 4, flat=True)
            return
        if self.attributes["updo"] == "ponytail":
            side = 1 if self.geometry.yaw <= 0 else -1
            tail = [
                (side * 40, -76),
                (side * 84, -72),
                (side * 102, -24),
                (side * 96, 46),
                (side * 78, 66),
                (side * 78, 8),
                (side * 60, -36),
            ]
            pen.fill(tail, colors.hair, flat=True, extra=self._edge())
            pen.line([(side * 62, -66), (side * 70, -50)], "#e0306c", 8, flat=True)
            return
        low = self.side + 6
        right = [(self.width * 0.7, self.top + 16), (self.width, -40), *self._strand(1, self.width - 2, -14, low, 5)]
        outline = [(0, self.top + 8), *right, (0, low - 4), *[(-x, y) for x, y in reversed(right)]]
        pen.fill(outline, colors.hair_shade, flat=True)

    def _strand(self, side: int, x: float, start: float, end: float, count: int) -> list[Point]:
        """Points down one side of the hair, waving outwards if the hair does."""
        swing = {"straight": 0.0, "wavy": 7.0, "curly": 2.0}[self.texture]
        points = []
        for index in range(count):
            part = index / (count - 1)
            points.append((side * (x + swing * (1 if index % 2 else -0.6)), start + (end - start) * part))
        return points

    def front(self) -> None:
        """Hair over the head: cap, sides, texture, bangs."""
        if self.length == "bald":
            self.pen.ellipse((-16, self.geometry.top + 18), (17, 8), mix(self.colors.skin, "#ffffff", 0.5))
            return
        if self.attributes["headwear"] in HATS:
            # Under a hat only the hair below its rim is painted, or curls would stick out of the crown.
            top = CENTER_Y - 54
            self.pen.raw(
                f'<clipPath id="rim"><rect x="-40" y="{top:.0f}" width="336" height="300"/></clipPath>'
                '<g clip-path="url(#rim)">'
            )
        else:
            self.pen.raw("<g>")
        if self.texture == "curly":
            self._curls()
        self._cap()
        if self.attributes["bangs"] == "yes" and self.length != "buzz":
            self._bangs()
        self.pen.raw("</g>")

    def _cap(self) -> None:
        width, top, side = self.width, self.top, self.side
        count = 5 if side > 0 else 2
        right = self._strand(1, width, -18 if side > 0 else -20, side, count) if side > -18 else [(width, side)]
        crown = [
            (width * 0.93, top + 36),
            (width * 0.62, top + 7),
            (0, top),
            (-width * 0.62, top + 7),
            (-width * 0.93, top + 36),
        ]
        if self.texture == "wavy":
            crown = self._wavy_crown()
        # The silhouette of the hair stays, while the hairline turns with the face.
        outline = [(x, y, 6.0) for x, y in [*reversed(right), *crown, *[(-x, y) for x, y in right]]]
        self.pen.fill([*outline, *self._hairline()], self.colors.hair, extra=self._edge())
        if self.length != "buzz":
            part = [(-20, top + 12), (-6, top + 5), (10, top + 6), (24, top + 14)]
            self.pen.line(part, self.colors.hair_light, 5, flat=True)

    def _wavy_crown(self) -> list[Point]:
        points = []
        for index in range(11):
            angle = math.pi * (0.06 + 0.88 * index / 10)
            reach = 7.0 if index % 2 else -2.0
            x = math.cos(angle) * (self.width + reach)
            points.append((x, -22 - math.sin(angle) * (-self.top - 22 + reach)))
        return points

    def _hairline(self) -> list[Point]:
        face, side = self.geometry.width, self.side
        if side > 20:
            inner = face * 0.87
            lock = [(inner + 4, side), (inner, side * 0.4)]
        else:
            inner = face * 0.9
            lock = [(inner, min(side - 2, -22))]
        if self.attributes["hairline"] == "receding":
            temple = [(face * 0.84, -46), (face * 0.6, -78), (face * 0.26, -74), (0, -56)]
        else:
            temple = [(face * 0.82, -38), (face * 0.62, -54), (face * 0.25, -61), (0, -58)]
        right = [*lock, *temple]
        # Reading goes on from the left end of the silhouette, so the left half comes first.
        return [(-x, y) for x, y in right] + list(reversed(right[:-1]))

    def _curls(self) -> None:
        width = self.width - 3
        places = []
        for index in range(13):
            angle = math.pi * index / 12
            places.append((-math.cos(angle) * width, -18 - math.sin(angle) * (-self.top - 22)))
        if self.side > 20:
            steps = int((self.side + 10) / 17)
            places += [(side * width, -2 + 17 * step) for side in (-1, 1) for step in range(steps)]
        circles = []
        for spot in places:
            x, y = self.pen.place((*spot, 6.0))
            circles.append(f"M{x - 14:.1f} {y:.1f}a14 14 0 1 1 28 0a14 14 0 1 1 -28 0")
        # First all rims, then all curls, so that only the outer rim stays visible.
        data = "".join(circles)
        self.pen.raw(f'<path d="{data}" fill="none"{self._edge(5.0)}/><path d="{data}" fill="{self.colors.hair}"/>')

    def _bangs(self) -> None:
        face = self.geometry.width
        fringe: list[Point] = []
        for index in range(7):
            x = -0.9 + 1.8 * index / 6
            fringe.append((x * face, (-37 if index % 2 else -43) + 4 * x * x))
        roof = [(face * 0.9, -60), (face * 0.5, -74), (0, -80), (-face * 0.5, -74), (-face * 0.9, -60)]
        bend = {"straight": 0.1, "wavy": 0.7, "curly": 0.9}[self.texture]
        self.pen.fill([*fringe, *roof], self.colors.hair, bend=bend)
        self.pen.line(fringe, self.colors.hair_shade, 3.5, bend=bend)

    def _edge(self, width: float = 2.5) -> str:
        # A darker rim keeps hair apart from a skin or a background of nearly the same colour.
        return f' stroke="{self.colors.hair_shade}" stroke-width="{width}"'

    def earrings(self) -> None:
        kind = self.attributes["earrings"]
        for side in (-1, 1):
            if kind == "none" or self.geometry.hides(side):
                continue
            x, y = self.pen.place((side * (self.geometry.width + 4), 21, 10))
            if kind == "stud":
                self.pen.raw(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5" fill="#ffffff" stroke="#3c78b4" stroke-width="3"/>'
                )
            if kind == "hoop":
                self.pen.raw(
                    f'<circle cx="{x:.1f}" cy="{y + 12:.1f}" r="12" fill="none" stroke="#7a4c00" stroke-width="7"/>'
                )
                self.pen.raw(
                    f'<circle cx="{x:.1f}" cy="{y + 12:.1f}" r="12" fill="none" stroke="#ffd02e" stroke-width="4.5"/>'
                )
            if kind == "drop":
                self.pen.raw(
                    f'<path d="M{x:.1f} {y:.1f}l9 24a9.5 9.5 0 1 1-18 0z" '
                    'fill="#00a884" stroke="#00493c" stroke-width="2"/>'
                )

    def headgear(self) -> None:
        if self.attributes["headphones"] == "yes":
            self._headphones()
        paint = {"beanie": self._beanie, "cap": self._baseball_cap, "fedora": self._fedora, "headband": self._headband}
        if self.attributes["headwear"] != "none":
            paint[self.attributes["headwear"]]()

    def _headphones(self) -> None:
        width, top = self.width + 4, self.top - 5
        band = [(-width, 0), (-width * 0.95, -44), (-width * 0.6, top + 8), (0, top - 4)]
        self.pen.line([*band, *[(-x, y) for x, y in reversed(band[:-1])]], "#2c2e36", 9, flat=True)
        for side in (-1, 1):
            x = CENTER_X + side * (width - 2) - 12
            self.pen.raw(
                f'<rect x="{x:.1f}" y="{CENTER_Y - 24:.1f}" width="24" height="48" rx="11" '
                'fill="#ff5a1f" stroke="#2c2e36" stroke-width="3"/>'
            )

    def _beanie(self) -> None:
        width, color = max(self.geometry.width, self.width - 4) + 4, "#1f9e9a"
        dome = [(-width + 3, -48), (-width * 0.92, -76), (-width * 0.66, -102), (-width * 0.3, -111), (0, -112)]
        self.pen.fill([*dome, *[(-x, y) for x, y in reversed(dome[:-1])]], color, flat=True)
        fold = [(-width, -42), (-width - 1, -60), (0, -68), (width + 1, -60), (width, -42), (0, -48)]
        self.pen.fill(fold, mix(color, "#002028", 0.45), flat=True, bend=0.3)
        self.pen.ellipse((0, -108), (13, 10), "#f2f6f6", flat=True)

    def _baseball_cap(self) -> None:
        width, color = max(self.geometry.width, self.width - 4) + 4, "#2a3f9c"
        crown = [(-width, -46), (-width * 0.97, -72), (-width * 0.7, -98), (-width * 0.3, -107), (0, -108)]
        self.pen.fill([*crown, *[(-x, y) for x, y in reversed(crown[:-1])], (0, -52)], color, flat=True)
        self.pen.ellipse((0, -82, 52), (13, 11), "#ffffff")
        visor = [
            (-width * 0.86, -56, 34),
            (0, -66, 60),
            (width * 0.86, -56, 34),
            (width * 0.92, -45, 78),
            (0, -40, 98),
            (-width * 0.92, -45, 78),
        ]
        self.pen.fill(visor, mix(color, "#000010", 0.5), bend=0.7)

    def _fedora(self) -> None:
        width, color = self.geometry.width + 6, "#8a5a30"
        crown = [(-width * 0.96, -56), (-width * 0.86, -96), (-width * 0.4, -112), (0, -103)]
        self.pen.fill([*crown, *[(-x, y) for x, y in reversed(crown[:-1])]], color, flat=True)
        band = [(-width * 0.98, -56), (-width * 0.93, -74), (0, -79), (width * 0.93, -74), (width * 0.98, -56)]
        self.pen.fill(band, "#1c1614", flat=True, bend=0.3)
        brim = [
            (-width - 40, -52),
            (-width * 0.8, -62),
            (0, -65),
            (width * 0.8, -62),
            (width + 40, -52),
            (width * 0.7, -44),
            (0, -45),
            (-width * 0.7, -44),
        ]
        self.pen.fill(brim, mix(color, "#1c0c00", 0.4), flat=True)

    def _headband(self) -> None:
        width = self.width
        upper = [(-width * 0.98, -52, 6), (-width * 0.55, -74), (0, -80), (width * 0.55, -74), (width * 0.98, -52, 6)]
        lower = [(width, -36, 6), (width * 0.5, -59), (0, -65), (-width * 0.5, -59), (-width, -36, 6)]
        self.pen.fill([*upper, *lower], "#f0287c", extra=' stroke="#8c0c44" stroke-width="2"')
