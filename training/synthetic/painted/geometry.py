"""Geometry, colours and the pen of painted faces."""

import math
from collections.abc import Mapping, Sequence


Point = tuple[float, ...]

CENTER_X, CENTER_Y = 128.0, 118.0
"""Where the origin of face coordinates lies on the canvas of 256 x 256 units (4 units are one pixel at 64 pixels)."""

SKIN_COLORS = {"pale": "#fce4d8", "fair": "#efba94", "tan": "#d0935c", "brown": "#98592e", "dark": "#603623"}
HAIR_COLORS = {"black": "#17141c", "brown": "#7a4319", "blond": "#ecc650", "red": "#cc4a16", "gray": "#b9bdc6"}
EYE_COLORS = {"brown": "#6a360e", "blue": "#2a7de6", "green": "#2aa148", "gray": "#8c99a6"}
CLOTHES_COLORS = {
    "white": "#f2f4f6",
    "black": "#24262c",
    "red": "#cc262c",
    "blue": "#2456c8",
    "green": "#258a42",
    "yellow": "#f4c61f",
    "purple": "#8638b4",
}
BACKGROUND_COLORS = {
    "white": "#f6f6f2",
    "gray": "#7d8288",
    "blue": "#7ab4ea",
    "green": "#8acb8c",
    "pink": "#f3a6c0",
    "beige": "#dcc69a",
}

_YAW = {"frontal": 0.0, "turned left": -0.45, "turned right": 0.45}
_ROLL = {"upright": 0.0, "tilted left": -14.0, "tilted right": 14.0}
# Half width at the temples, half width of the jaw, how low the jaw corner lies, half width of the chin, chin length.
_FACE_SHAPES = {
    "oval": (0.0, 0.0, 46.0, 0.52, 0.0),
    "round": (6.0, 9.0, 40.0, 0.66, -8.0),
    "square": (1.0, 13.0, 54.0, 0.72, -3.0),
    "heart-shaped": (6.0, -6.0, 36.0, 0.42, 1.0),
    "long": (-8.0, -2.0, 58.0, 0.60, 13.0),
}
_SKULL_DEPTH = 50.0


def mix(color: str, other: str, amount: float) -> str:
    """Blend `amount` (0 to 1) of the hexadecimal colour `other` into `color`."""
    channels = zip(_channels(color), _channels(other), strict=True)
    return "#" + "".join(f"{round(mine + (theirs - mine) * amount):02x}" for mine, theirs in channels)


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))


def _contrast(color: str, other: str) -> int:
    return max(abs(mine - theirs) for mine, theirs in zip(_channels(color), _channels(other), strict=True))


class FaceGeometry:
    """
    Measures of one face, in canvas units from the middle of the face, and its 2.5-D projection.

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes.
        identity (`Mapping[str, float]`):
            The 12 identity parameters.
    """

    def __init__(self, attributes: Mapping[str, str], identity: Mapping[str, float]):
        width, jaw, jaw_height, chin_ratio, chin = _FACE_SHAPES[attributes["face_shape"]]
        man = attributes["gender"] == "man"
        chubby = attributes["chubby"] == "yes"
        self.yaw = _YAW[attributes["pose"]]
        self.roll = _ROLL[attributes["tilt"]]
        self.top = -84.0
        self.width = 60.0 + width + 3.5 * identity["face_width"] + (4.0 if chubby else 0.0)
        self.jaw = 44.0 + jaw + 3.2 * identity["jaw_width"] + (11.0 if chubby else 0.0) + (4.0 if man else -4.0)
        self.jaw = min(self.jaw, self.width + 4.0)
        self.jaw_height = jaw_height
        self.chin_ratio = chin_ratio + (0.06 if man else -0.04)
        self.chin = 80.0 + chin + 3.2 * identity["chin_length"]
        self.eye_width = 16.5 + 1.4 * identity["eye_width"]
        eye_x = 29.0 + 0.25 * (self.width - 60.0) + 2.6 * identity["eye_spacing"]
        # Eyes neither touch one another nor leave a narrow head.
        self.eye_x = max(self.eye_width + 4.0, min(eye_x, self.width - self.eye_width - 1.0))
        self.eye_y = -8.0 + 3.0 * identity["eye_height"]
        self.brow_y = self.eye_y - 24.0 + 2.0 * identity["brow_height"]
        # Nose and mouth move with the chin, so that a wide open mouth stays inside a short face.
        self.nose_y = 20.0 + 0.25 * (self.chin - 80.0) + 3.2 * identity["nose_length"]
        self.nose_scale = 1.0 + 0.12 * identity["nose_width"]
        self.mouth_y = 49.0 + 0.5 * (self.chin - 80.0) + 2.4 * identity["mouth_height"]
        self.mouth_width = 24.0 + 2.8 * identity["mouth_width"]

    def project(self, x: float, y: float, depth: float | None = None) -> tuple[float, float]:
        """Face coordinates -> canvas; without a `depth` the point lies on the ellipsoid of the face."""
        if depth is None:
            inside = 1.0 - (x / (self.width * 1.05)) ** 2 - (y / 108.0) ** 2
            depth = _SKULL_DEPTH * math.sqrt(max(0.0, inside))
        return CENTER_X + x * math.cos(self.yaw) + depth * math.sin(self.yaw), CENTER_Y + y

    def outline(self, grow: float = 0.0) -> list[Point]:
        """Contour of the head, clockwise from the crown."""
        width, jaw, chin, top = self.width + grow, self.jaw + grow, self.chin + grow, self.top - grow
        right = [
            (width * 0.56, top + 8),
            (width * 0.91, top + 34),
            (width, -12),
            (width * 0.97, 16),
            (jaw, self.jaw_height),
            (jaw * self.chin_ratio, chin - 7),
        ]
        return [(0.0, top), *right, (0.0, chin), *[(-x, y) for x, y in reversed(right)]]

    def hides(self, side: int) -> bool:
        """Whether the ear on `side` (-1 left, 1 right in the picture) is turned away."""
        return side * self.yaw > 0.1


class FaceColors:
    """Colours of one face, derived from its attributes and its identity's skin tone."""

    def __init__(self, attributes: Mapping[str, str], identity: Mapping[str, float]):
        tone = identity["skin_tone"]
        self.skin = mix(SKIN_COLORS[attributes["skin"]], "#b06a48" if tone > 0 else "#ffe6c8", 0.05 * abs(tone))
        self.skin_shade = mix(self.skin, "#541408", 0.24)
        # Dark skin needs a nearly black line, or folds and marks vanish at 64 pixels.
        self.line = mix(self.skin, "#0c0202", 0.85) if attributes["skin"] == "dark" else mix(self.skin, "#200804", 0.6)
        self.hair = HAIR_COLORS[attributes["hair_color"]]
        self.hair_shade = mix(self.hair, "#000000", 0.32)
        if attributes["hair_color"] == "black":
            self.hair_light = mix(self.hair, "#8088b0", 0.35)
        else:
            self.hair_light = mix(self.hair, "#ffffff", 0.3)
        dark = mix(self.hair, "#000000", 0.3)
        # Brown brows would vanish on dark skin, so facial hair takes the lighter shade there.
        self.facial_hair = dark if _contrast(dark, self.skin) >= 40 else mix(self.hair, "#ffffff", 0.25)
        self.clothes = CLOTHES_COLORS[attributes["clothes_color"]]
        self.clothes_shade = mix(self.clothes, "#000000", 0.28)
        if attributes["clothes_color"] == "black":
            self.clothes_shade = mix(self.clothes, "#ffffff", 0.28)


class Pen:
    """
    Collects SVG elements; points are face coordinates `(x, y)` or `(x, y, depth)`.

    `flat=True` leaves out the projection: for what does not turn with the head (clothes, silhouette of the hair).
    """

    def __init__(self, geometry: FaceGeometry):
        self.geometry = geometry
        self.elements: list[str] = []

    def raw(self, element: str) -> None:
        """Append SVG text as it is."""
        self.elements.append(element)

    def place(self, point: Point, flat: bool = False) -> tuple[float, float]:
        """Face coordinates -> canvas coordinates."""
        if flat:
            return CENTER_X + point[0], CENTER_Y + point[1]
        return self.geometry.project(*point)

    def path(
        self,
        points: Sequence[Point],
        closed: bool = False,
        flat: bool = False,
        straight: bool = False,
        bend: float = 0.5,
    ) -> str:
        """SVG path data of a Catmull-Rom spline (or polygon if `straight`) through `points`."""
        placed = [self.place(point, flat) for point in points]
        count = len(placed)
        data = [f"M{placed[0][0]:.1f} {placed[0][1]:.1f}"]
        for index in range(count if closed else count - 1):
            end = placed[(index + 1) % count]
            if straight:
                data.append(f"L{end[0]:.1f} {end[1]:.1f}")
                continue
            start = placed[index]
            before = placed[(index - 1) % count] if closed or index else start
            after = placed[(index + 2) % count] if closed or index + 2 < count else end
            scale = bend / 3
            data.append(
                f"C{start[0] + (end[0] - before[0]) * scale:.1f} {start[1] + (end[1] - before[1]) * scale:.1f} "
                f"{end[0] - (after[0] - start[0]) * scale:.1f} {end[1] - (after[1] - start[1]) * scale:.1f} "
                f"{end[0]:.1f} {end[1]:.1f}"
            )
        return "".join(data) + ("Z" if closed else "")

    def fill(self, points: Sequence[Point], color: str, opacity: float = 1.0, extra: str = "", **shape) -> None:
        """Filled area; `extra` are more SVG attributes, `shape` goes to [`Pen.path`]."""
        self.raw(f'<path d="{self.path(points, True, **shape)}" fill="{color}"{_opacity(opacity)}{extra}/>')

    def line(self, points: Sequence[Point], color: str, width: float, opacity: float = 1.0, **shape) -> None:
        """Open line with round ends; `shape` goes to [`Pen.path`]."""
        self.raw(
            f'<path d="{self.path(points, **shape)}" fill="none" stroke="{color}" stroke-width="{width:.1f}"'
            f'{_opacity(opacity)} stroke-linecap="round" stroke-linejoin="round"/>'
        )

    def ellipse(
        self,
        center: Point,
        radii: tuple[float, float],
        color: str,
        opacity: float = 1.0,
        flat: bool = False,
        extra: str = "",
    ) -> None:
        """Filled ellipse that faces the viewer."""
        x, y = self.place(center, flat)
        self.raw(
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{radii[0]:.1f}" ry="{radii[1]:.1f}" fill="{color}"'
            f"{_opacity(opacity)}{extra}/>"
        )


def _opacity(value: float) -> str:
    return "" if value >= 1.0 else f' opacity="{value:.2f}"'
