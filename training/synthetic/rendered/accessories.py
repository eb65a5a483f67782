"""What people wear: clothes, ties, glasses, hats, scarves, headphones, earrings, necklaces and masks, as meshes."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from .data import BODY_VERTICES, base_mesh, head_triangles, normals, skin_mesh, texel_map
from .regions import SCALP_CENTRE


CLOTHES_COLORS = {
    "white": (0.78, 0.78, 0.76),
    "black": (0.014, 0.014, 0.016),
    "red": (0.42, 0.02, 0.025),
    "blue": (0.035, 0.10, 0.36),
    "green": (0.03, 0.20, 0.065),
    "yellow": (0.70, 0.46, 0.03),
    "purple": (0.17, 0.04, 0.28),
}
"""Linear RGB."""

SHIRT = np.array((0.75, 0.76, 0.78))
"""The shirt below a suit."""

GOLD, SILVER, PEARL = (0.78, 0.50, 0.14), (0.75, 0.75, 0.77), (0.82, 0.77, 0.70)


class Part(NamedTuple):
    """
    A mesh to render: points (n, 3), triangles (m, 3), one colour or one a point, and how it shines.

    `roughness` from 0 (mirror) to 1 (chalk); `metal` 0 or 1.
    """

    points: np.ndarray
    faces: np.ndarray
    colour: np.ndarray
    roughness: float = 0.8
    metal: float = 0.0


def grid_faces(rows: int, columns: int, closed: bool = False) -> np.ndarray:
    """Triangles of a grid of points in row-major order; `closed` joins the last column to the first."""
    across = columns if closed else columns - 1
    r, c = np.mgrid[0 : rows - 1, 0:across]
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, e], -1).reshape(-1, 3)])


def tube(
    path: np.ndarray, radius: float | np.ndarray, closed: bool = False, sides: int = 7
) -> tuple[np.ndarray, np.ndarray]:
    """A tube along a path (n, 3): points and triangles."""
    along = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    helper = np.where(np.abs(along[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(along, first)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    r = np.broadcast_to(np.asarray(radius, float), (len(path),))[:, None, None]
    ring = np.cos(turn)[None, :, None] * first[:, None] + np.sin(turn)[None, :, None] * second[:, None]
    points = (path[:, None] + r * ring).reshape(-1, 3)
    if closed:
        points = np.concatenate([points, points[:sides]])
    return points, grid_faces(len(points) // sides, sides, closed=True)


def ball(centre: np.ndarray, size, sides: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid: points and triangles."""
    down, around = np.meshgrid(
        np.linspace(0, np.pi, sides), np.linspace(0, 2 * np.pi, sides, endpoint=False), indexing="ij"
    )
    unit = np.stack([np.sin(down) * np.cos(around), np.cos(down), np.sin(down) * np.sin(around)], -1)
    return np.asarray(centre) + (unit * size).reshape(-1, 3), grid_faces(sides, sides, closed=True)[:, ::-1]


def _merge(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0] + [len(points) for points, _ in pieces])
    faces = [faces + start for (_, faces), start in zip(pieces, starts, strict=False)]
    return np.concatenate([points for points, _ in pieces]), np.concatenate(faces)


class HeadRadius:
    """How far the head reaches from the middle of the skull, in any direction."""

    def __init__(self, head: np.ndarray):
        points = head[np.unique(skin_mesh().index)]
        points = points[(points[:, 1] > -1.2) & (np.abs(points[:, 0]) < 1.22)]
        r = points - SCALP_CENTRE
        self.distance = np.linalg.norm(r, axis=1)
        self.tree = cKDTree(r / self.distance[:, None])

    def __call__(self, directions: np.ndarray) -> np.ndarray:
        distance, nearest = self.tree.query(directions, k=6)
        weights = 1 / (distance + 0.02)
        return (self.distance[nearest] * weights).sum(-1) / weights.sum(-1)


def _direction(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], -1)


class Dome(NamedTuple):
    """The shell of a hat: a rim by azimuth, in degrees, and an offset from the head by height (0 rim, 1 top)."""

    rim: Callable[[np.ndarray], np.ndarray]
    offset: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _rim(front: float, side: float, back: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda azimuth: np.interp(np.abs(azimuth), (0, 50, 90, 140, 180), (front, front - 3, side, back, back))


DOMES: dict[str, Dome] = {
    "beanie": Dome(_rim(31, 8, -22), lambda s, a: 0.14 + 0.10 * np.sin(np.pi * s * 0.6) + 0.16 * s**3),
    "cap": Dome(_rim(33, 14, -4), lambda s, a: 0.13 + 0.10 * np.sin(np.pi * np.minimum(1, 1.2 * s) * 0.9) - 0.02 * s),
    "fedora": Dome(
        _rim(31, 16, 2), lambda s, a: 0.15 + 0.32 * np.minimum(1, 2.2 * s) - 0.22 * np.clip(s - 0.55, 0, 1) * 2
    ),
    "headband": Dome(_rim(34, 22, -12), lambda s, a: 0.10 + 0 * s),
}


def _shell(
    radius: HeadRadius,
    dome: Dome,
    low: float = 0.0,
    high: float = 1.0,
    rows: int = 22,
    columns: int = 64,
    extra: float = 0.0,
):
    turn = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    share = np.linspace(low, high, rows)[:, None]
    rim = np.radians(dome.rim(np.degrees(turn)))[None]
    elevation = rim + (np.pi / 2 - rim) * share
    azimuth = np.broadcast_to(turn[None], elevation.shape)
    directions = _direction(azimuth, elevation)
    reach = gaussian_filter(radius(directions), (1.5, 2.5), mode=("nearest", "wrap"))
    reach = reach + dome.offset(share, azimuth) + extra
    return SCALP_CENTRE + directions * reach[..., None], reach, azimuth, elevation


def press_under(points: np.ndarray, head: np.ndarray, headwear: str) -> np.ndarray:
    """Hair (n, 3) as it lies under a hat."""
    if headwear not in DOMES or headwear == "headband":
        return points
    dome, radius = DOMES[headwear], HeadRadius(head)
    r = points - SCALP_CENTRE
    distance = np.linalg.norm(r, axis=1) + 1e-9
    azimuth = np.degrees(np.arctan2(r[:, 0], r[:, 2]))
    elevation = np.degrees(np.arcsin(np.clip(r[:, 1] / distance, -1, 1)))
    rim = dome.rim(azimuth)
    reach = radius(r / distance[:, None])
    # within 12 degrees below the rim the hair comes out again
    covered = np.clip((elevation - rim + 14) / 12, 0, 1)
    limit = reach + 0.06
    pressed = np.where(distance > limit, covered * limit + (1 - covered) * distance, distance)
    return SCALP_CENTRE + r / distance[:, None] * pressed[:, None]


def hat(head: np.ndarray, kind: str, colour: np.ndarray) -> list[Part]:
    """`"beanie"`, `"cap"`, `"fedora"`, `"headband"` or `"headscarf"` on a head."""
    if kind == "headscarf":
        return _scarf(head, colour)
    radius, dome = HeadRadius(head), DOMES[kind]
    if kind == "headband":
        return _headband(radius, dome, colour)
    points, reach, azimuth, elevation = _shell(radius, dome)
    if kind == "fedora":
        # the pinch along the top
        top = points[..., 1] > SCALP_CENTRE[1] + 1.5
        points[..., 1] -= np.where(top, 0.22 * np.exp(-((points[..., 0] / 0.35) ** 2)), 0)
    rows, columns = azimuth.shape
    shade = np.ones((rows, columns, 1))
    if kind == "beanie":
        shade = 0.8 + 0.2 * np.cos(azimuth * 26)[..., None]
    if kind == "cap":
        shade = 1 - 0.25 * (np.abs(np.cos(azimuth * 3)) > 0.985)[..., None]
    parts = [Part(points.reshape(-1, 3), grid_faces(rows, columns, True), (colour * shade).reshape(-1, 3), 0.9)]
    if kind == "beanie":
        fold = _shell(radius, dome, 0.0, 0.24, 8, extra=0.0)
        bulge = 0.09 * np.sin(np.linspace(0, np.pi, 8))[:, None, None] ** 0.5
        cuff = fold[0] + (fold[0] - SCALP_CENTRE) / fold[1][..., None] * bulge
        stripes = 0.72 + 0.25 * np.cos(fold[2] * 30)[..., None]
        parts.append(Part(cuff.reshape(-1, 3), grid_faces(8, columns, True), (colour * stripes).reshape(-1, 3), 0.9))
    if kind == "cap":
        parts.append(_visor(points[0], azimuth[0], colour))
    if kind == "fedora":
        rim = points[0]
        out = rim - rim.mean(0)
        out[:, 1] = 0
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        share = np.linspace(-0.05, 1, 7)[:, None, None]
        curve = -0.10 * share + 0.16 * share**2 + 0.10 * np.abs(out[None, :, :1]) * share**2
        brim = rim[None] + out[None] * 0.72 * share + np.concatenate([0 * curve, curve, 0 * curve], -1)
        parts.append(Part(brim.reshape(-1, 3), grid_faces(7, columns, True), colour * 0.95, 0.9))
        band = _shell(radius, dome, 0.02, 0.16, 4, extra=0.015)[0]
        parts.append(Part(band.reshape(-1, 3), grid_faces(4, columns, True), colour * 0.25, 0.6))
    return parts


def _visor(rim: np.ndarray, azimuth: np.ndarray, colour: np.ndarray) -> Part:
    turn = np.radians(np.linspace(-58, 58, 25))
    edge = np.stack([np.interp(turn, azimuth, rim[:, axis]) for axis in range(3)], -1)
    share = np.linspace(-0.03, 1, 8)[:, None, None]
    reach = 1.02 * np.cos(turn * 0.95)[None, :, None] ** 0.6
    forward = np.stack([0.25 * np.sin(turn), np.full_like(turn, -0.16), np.cos(turn * 0.3)], -1)[None]
    points = edge[None] + forward * reach * share
    points[..., 1] -= 0.16 * share[..., 0] ** 2 * np.abs(np.sin(turn))[None]
    return Part(points.reshape(-1, 3), grid_faces(8, 25), colour * 0.85, 0.8)


def _headband(radius: HeadRadius, dome: Dome, colour: np.ndarray) -> list[Part]:
    points, reach, _, _ = _shell(radius, dome, 0.0, 0.26, 8)
    bulge = 0.05 * np.sin(np.linspace(0, np.pi, 8))[:, None, None]
    points = points + (points - SCALP_CENTRE) / reach[..., None] * bulge
    return [Part(points.reshape(-1, 3), grid_faces(8, points.shape[1], True), colour, 0.75)]


def _scarf(head: np.ndarray, colour: np.ndarray) -> list[Part]:
    """A scarf around face and hair, and its fall on the shoulders."""
    skull = head[:BODY_VERTICES]
    skull = skull[(skull[:, 1] > -0.3) & (np.abs(skull[:, 0]) < 1.9)]
    top, half = float(skull[:, 1].max()), float(np.quantile(np.abs(skull[skull[:, 1] > 0.5][:, 0]), 0.995))
    rear = float(skull[:, 2].min())
    columns, rows = 72, 16
    around = np.linspace(-np.pi, np.pi, columns, endpoint=False)  # 0 is up, seen from the front
    centre = np.array([0.0, -0.1, -1.0])
    wide, high_up, low_down = half * 0.97, top * 0.67, 1.95
    tall = np.where(np.abs(around) < np.pi / 2, high_up, low_down)
    edge = np.stack([wide * np.sin(around), tall * np.cos(around) - 0.1, 0 * around], -1)
    edge[:, 2] = np.interp(edge[:, 1], (-2.05, -1.6, -0.8, 0.4, 1.1, 1.25), (-0.55, -0.45, -0.62, -0.42, -0.05, 0.02))
    share = np.linspace(0, 1, rows)[:, None]
    bulk = np.stack(
        [
            (half + 0.24) * np.sin(around),
            np.where(np.cos(around) > 0, top + 0.28, 1.9) * np.cos(around) - 0.1,
            0 * around - 1.3,
        ],
        -1,
    )
    back = np.array([0.0, -0.2, rear - 0.3])
    first = np.clip(share * 2, 0, 1) * np.pi / 2
    second = np.clip(share * 2 - 1, 0, 1)[..., None]
    # a quarter of an ellipse from the edge to the widest ring, so that the skull stays below
    wide_part, deep_part = np.sin(first)[..., None], 1 - np.cos(first)[..., None]
    mid = np.concatenate(
        [(edge * (1 - wide_part) + bulk * wide_part)[..., :2], (edge * (1 - deep_part) + bulk * deep_part)[..., 2:]],
        -1,
    )
    points = mid * (1 - second**2) + back * second**2
    rounding = 0.10 * np.sin(np.pi * np.clip(share * 4, 0, 1))[..., None]
    out = points - centre
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    folds = 1 + 0.10 * np.sin(around * 9 + 2 * np.sin(around * 2))[None, :, None] * (0.3 + share[..., None])
    points = points + out * rounding
    # nowhere inside of the skull
    r = points - SCALP_CENTRE
    distance = np.linalg.norm(r, axis=-1, keepdims=True)
    least = HeadRadius(head)(r / distance)[..., None] + 0.09
    points = np.where(points[..., 1:2] > -0.4, SCALP_CENTRE + r / distance * np.maximum(distance, least), points)
    hood = Part(
        points.reshape(-1, 3),
        grid_faces(rows, columns, True),
        (colour * folds * np.ones((rows, 1, 1))).reshape(-1, 3),
        0.85,
    )
    turn = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    levels = np.linspace(0, 1, 12)[:, None]
    y = -1.55 - 1.9 * levels + 0 * turn
    ripple = 1 + (0.04 + 0.05 * levels) * np.sin(turn * 7 + 3 * np.sin(turn) + 4 * levels)
    radius = (1.12 + 0.25 * levels + 1.3 * levels**2.2) * ripple
    z = -1.25 + 0.95 * radius * np.cos(turn)
    fall = np.stack([radius * np.sin(turn), y - 0.25 * np.cos(turn) * (1 - levels), z], -1)
    shade = 0.95 + 0.12 * np.sin(turn * 7 + 3 * np.sin(turn) + 4 * levels)
    return [
        hood,
        Part(fall.reshape(-1, 3), grid_faces(12, columns, True), (colour * shade[..., None]).reshape(-1, 3), 0.85),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# On the face and the ears
# ---------------------------------------------------------------------------------------------------------------------


def glasses(head: np.ndarray, kind: str, rng: np.random.Generator) -> list[Part]:
    """`"round glasses"`, `"square glasses"` or `"sunglasses"`."""
    dark = rng.random() < 0.75
    colour = np.array((0.012, 0.011, 0.012) if dark else ((0.16, 0.07, 0.03), (0.30, 0.22, 0.10))[rng.integers(2)])
    width, high, corner, thick = {
        "round glasses": (0.40, 0.38, 2.0, 0.032),
        "square glasses": (0.44, 0.30, 5.0, 0.040),
        "sunglasses": (0.47, 0.36, 3.0, 0.038),
    }[kind]
    near = (np.abs(head[:BODY_VERTICES, 1]) < 0.3) & (np.abs(head[:BODY_VERTICES, 0]) < 0.75)
    front = float(np.quantile(head[:BODY_VERTICES][near & (head[:BODY_VERTICES, 2] > 0)][:, 2], 0.985)) + 0.08
    turn = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    pieces, lenses = [], []

    def depth(x: np.ndarray) -> np.ndarray:
        return front - 0.13 * x**2

    for side in (-1, 1):
        power = 2 / corner
        x = side * 0.53 + width * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
        y = -0.06 + high * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
        loop = np.stack([x, y, depth(x)], -1)
        pieces.append(tube(loop, thick, closed=True))
        middle = loop.mean(0, keepdims=True)
        rings = np.concatenate([loop, middle + (loop - middle) * 0.5, middle + 0 * loop])
        rings[len(loop) :, 2] += 0.02
        lenses.append((rings, grid_faces(3, len(loop), closed=True)))
        start = np.array([side * (0.53 + width), 0.05, depth(np.array(0.53 + width))])
        temple = np.array([side * 1.30, 0.10, -0.95])
        arm = np.stack([start + (temple - start) * s for s in np.linspace(0, 1, 8)])
        arm[:, 0] = start[0] + (temple[0] - start[0]) * np.linspace(0, 1, 8) ** 0.35
        pieces.append(tube(arm, thick * 0.8))
    x = np.linspace(-0.15, 0.15, 9)
    pieces.append(tube(np.stack([x, 0.02 + 0.05 * np.cos(x * 10), depth(x) + 0.02], -1), thick))
    frame = Part(*_merge(pieces), colour, 0.25)
    if kind == "sunglasses":
        return [frame, Part(*_merge(lenses), np.array((0.010, 0.010, 0.012)), 0.12)]
    return [frame]


def _lobes(head: np.ndarray) -> list[np.ndarray]:
    base = base_mesh().vertices[:BODY_VERTICES]
    lobes = []
    for side in (1, -1):
        ear = np.flatnonzero(
            (base[:, 0] * side > 1.17) & (base[:, 1] < 0.4) & (base[:, 1] > -1.0) & (base[:, 2] < -0.6)
        )
        lowest = ear[np.argsort(base[ear, 1])[:6]]
        lobes.append(head[lowest].mean(0))
    return lobes


def earrings(head: np.ndarray, kind: str, gold: bool) -> list[Part]:
    """`"stud"`, `"hoop"` or `"drop"` earrings."""
    pieces = []
    for side, lobe in zip((1, -1), _lobes(head), strict=True):
        place = lobe + np.array([side * 0.07, 0.02, 0.06])
        if kind == "stud":
            pieces.append(ball(place, 0.085))
        elif kind == "hoop":
            turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
            ring = np.stack([0.10 * np.sin(turn) * side, 0.30 * np.cos(turn) - 0.28, 0.26 * np.sin(turn)], -1)
            pieces.append(tube(place + ring, 0.032, closed=True))
        else:
            pieces.append(ball(place, 0.055))
            pieces.append(tube(place + np.array([[0, 0, 0], [0, -0.16, 0], [0, -0.3, 0]]), 0.016))
            pieces.append(ball(place + [0, -0.42, 0], (0.085, 0.16, 0.085)))
    return [Part(*_merge(pieces), np.array(GOLD if gold else SILVER), 0.25, 1.0)]


def headphones(head: np.ndarray, colour: np.ndarray) -> list[Part]:
    """Headphones over the ears."""
    turn = np.linspace(-np.pi / 2, np.pi / 2, 30)
    reach = 1.5
    band = np.stack([reach * np.sin(turn), -0.15 + 2.42 * np.cos(turn) ** 0.8, np.full_like(turn, -1.1)], -1)
    rows = np.stack([band + np.array([0, 0, z]) for z in (-0.16, -0.05, 0.05, 0.16)])
    thick = [tube(row, 0.075) for row in rows]
    cups = [ball((side * 1.48, -0.2, -1.05), (0.24, 0.55, 0.48), 18) for side in (-1, 1)]
    pads = [ball((side * 1.36, -0.2, -1.05), (0.2, 0.6, 0.53), 18) for side in (-1, 1)]
    return [Part(*_merge([*thick, *cups]), colour, 0.35), Part(*_merge(pads), np.array((0.02, 0.02, 0.02)), 0.9)]


def face_mask(head: np.ndarray, colour: np.ndarray) -> list[Part]:
    """A medical mask over nose and mouth."""
    points = head[np.unique(skin_mesh().index)]
    points = points[(points[:, 1] < 0.05) & (points[:, 1] > -2.2) & (points[:, 2] > -1.2)]
    axis = -0.8
    angle = np.arctan2(points[:, 0], points[:, 2] - axis)
    reach = np.hypot(points[:, 0], points[:, 2] - axis)
    tree = cKDTree(np.stack([angle, points[:, 1] * 0.8], -1))
    rows, columns = 26, 41
    turn = np.radians(np.linspace(-66, 66, columns))[None]
    share = np.linspace(0, 1, rows)[:, None]
    top = -0.30 - 0.22 * (np.abs(turn) / 1.1) ** 1.2
    bottom = -1.98 + 0.62 * (np.abs(turn) / 1.15) ** 2.0
    y = top + (bottom - top) * share
    a = np.broadcast_to(turn, y.shape)
    _, near = tree.query(np.stack([a, y * 0.8], -1), k=14)
    r = gaussian_filter(reach[near].max(-1), (1.6, 1.6), mode="nearest") + 0.05
    # the nose does not come through
    r += 0.09 * np.exp(-((a / 0.35) ** 2) - ((y + 0.66) / 0.3) ** 2)
    r += 0.05 * np.sin(np.pi * share) * np.cos(turn)
    grid = np.stack([r * np.sin(a), y, axis + r * np.cos(a)], -1)
    pleats = 1 - 0.22 * np.exp(-(((share * 4) % 1 - 0.5) ** 2) / 0.006) * (np.abs(share - 0.5) < 0.38)
    mask = Part(
        grid.reshape(-1, 3), grid_faces(rows, columns), (colour * (pleats + 0 * turn)[..., None]).reshape(-1, 3), 0.9
    )
    straps = []
    for column, side in ((0, -1), (-1, 1)):
        for row, ear in ((1, (1.38, 0.0, -1.15)), (-4, (1.34, -0.5, -1.1))):
            end = np.array([ear[0] * side, ear[1], ear[2]])
            straps.append(tube(np.linspace(grid[row, column], end, 6), 0.016))
    return [mask, Part(*_merge(straps), np.array((0.8, 0.8, 0.8)), 0.8)]


# ---------------------------------------------------------------------------------------------------------------------
# Below the chin
# ---------------------------------------------------------------------------------------------------------------------


class Neck:
    """The neck as rings: how far it reaches from its axis at a height, in a direction."""

    def __init__(self, head: np.ndarray):
        points = head[np.unique(skin_mesh().index)]
        self.points = points[(points[:, 1] < -1.4) & (points[:, 1] > -4.4)]
        self.axis = -1.5
        self.angle = np.arctan2(self.points[:, 0], self.points[:, 2] - self.axis)
        self.reach = np.hypot(self.points[:, 0], self.points[:, 2] - self.axis)

    def ring(self, turn: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Reach for angles `turn` at heights `y`, smoothed around."""
        wrapped = np.concatenate([self.angle - 2 * np.pi, self.angle, self.angle + 2 * np.pi])
        tree = cKDTree(np.stack([wrapped, np.tile(self.points[:, 1], 3) * 1.5], -1))
        _, near = tree.query(np.stack([turn, y * 1.5], -1), k=4)
        reach = np.tile(self.reach, 3)[near]
        return gaussian_filter1d(0.5 * (reach.mean(-1) + reach.max(-1)), 2.0, mode="wrap")

    def place(self, turn: np.ndarray, reach: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([reach * np.sin(turn), y + 0 * turn, self.axis + reach * np.cos(turn)], -1)


def necklace(head: np.ndarray, kind: str) -> list[Part]:
    """A `"pearl"` or `"gold"` necklace around the neck."""
    neck = Neck(head)
    turn = np.linspace(-np.pi, np.pi, 60, endpoint=False)
    y = -2.12 - 0.36 * np.cos(turn) - 0.06 * np.cos(2 * turn)
    reach = neck.ring(turn, y)
    if kind == "pearl":
        path = neck.place(turn, reach + 0.06, y)
        length = np.linalg.norm(np.roll(path, -1, 0) - path, axis=1).cumsum()
        beads = [int(np.searchsorted(length, at)) for at in np.arange(0, length[-1], 0.165)]
        return [Part(*_merge([ball(path[min(b, 59)], 0.085, 9) for b in beads]), np.array(PEARL), 0.25)]
    path = neck.place(turn, reach + 0.04, y)
    front = int(np.argmin(np.abs(turn)))
    pieces = [tube(path, 0.042, closed=True), ball(path[front] + [0, -0.12, 0.05], (0.11, 0.14, 0.05))]
    return [Part(*_merge(pieces), np.array(GOLD), 0.25, 1.0)]


def _garment(
    head: np.ndarray, line: Callable[[np.ndarray], np.ndarray], thick: float
) -> tuple[np.ndarray, np.ndarray]:
    """The body below a line (a height by x and z on the base mesh), a little thicker."""
    faces, _ = head_triangles()
    base = base_mesh().vertices
    below = base[:, 1] < line(base)
    chosen = faces[below[faces].any(1) & (base[faces][..., 1] < -1.7).all(1)]
    outward = normals(head, faces)
    points = head.copy()
    points[: len(outward)] += outward * thick
    edge = np.zeros(len(base), bool)
    edge[chosen.ravel()] = True
    edge &= ~below
    points[edge, 1] -= (base[:, 1] - line(base))[edge]
    used, inverse = np.unique(chosen.ravel(), return_inverse=True)
    return points[used], inverse.reshape(chosen.shape)


def _neckline(base: np.ndarray, front: float, back: float) -> np.ndarray:
    # on the shoulders it lies where the neck meets them
    share = np.clip((base[..., 2] + 2.4) / 2.0, 0, 1)
    return back + (front - back) * share + 0.05 * np.abs(base[..., 0]) ** 2


_NECKLINES = {
    "t-shirt": (-2.62, -2.12),
    "turtleneck": (-2.3, -2.0),
    "collared shirt": (-2.5, -2.1),
    "suit": (-2.5, -2.1),
}


@lru_cache(None)
def collar_cover(kind: str) -> np.ndarray:
    """The share (size, size) of each texel of the skin that lies below the neckline of a garment."""
    points = texel_map().points
    return np.clip((_neckline(points, *_NECKLINES[kind]) - points[..., 1]) / 0.06 + 0.5, 0, 1)


@lru_cache(None)
def bare_faces(kind: str) -> np.ndarray:
    """Which triangles of the skin a garment leaves bare; the others would only shine through it."""
    mesh = skin_mesh()
    base = base_mesh().vertices[mesh.index]
    covered = base[:, 1] < _neckline(base, *_NECKLINES[kind]) - 0.3
    return ~covered[mesh.faces].all(1)


def clothes(head: np.ndarray, kind: str, colour: np.ndarray, neckwear: str, rng: np.random.Generator) -> list[Part]:
    """
    A garment with its collar.

    Args:
        head (`np.ndarray`): The neutral head.
        kind (`str`): `"t-shirt"`, `"collared shirt"`, `"suit"` or `"turtleneck"`.
        colour (`np.ndarray` (3,)): Linear RGB of the garment; that of the jacket of a suit.
        neckwear (`str`): What goes around the collar, or `"none"` for a buttoned shirt.
        rng (`np.random.Generator`): Chooses the colour of the shirt below a suit.
    """
    neck = Neck(head)
    turn = np.linspace(-np.pi, np.pi, 64, endpoint=False)
    if kind == "t-shirt":
        points, faces = _garment(head, lambda b: _neckline(b, *_NECKLINES[kind]), 0.05)
        y = -2.36 - 0.24 * np.cos(turn)
        rim = tube(neck.place(turn, neck.ring(turn, y) + 0.05, y), 0.06, closed=True)
        parts = [Part(points, faces, colour, 0.9), Part(*rim, colour * 0.85, 0.9)]
    elif kind == "turtleneck":
        points, faces = _garment(head, lambda b: _neckline(b, *_NECKLINES[kind]), 0.07)
        rows = np.linspace(0, 1, 9)[:, None]
        y = -2.62 + 0.62 * rows - 0.10 * np.cos(turn)[None]
        reach = np.stack([neck.ring(turn, row) for row in y]) + 0.14 + 0.06 * np.sin(np.pi * rows)
        collar = neck.place(np.broadcast_to(turn, y.shape), reach, y)
        stripes = 0.88 + 0.12 * np.cos(turn * 40)[None, :, None] + 0 * rows[..., None]
        roll = tube(collar[-1], 0.09, closed=True)
        parts = [
            Part(points, faces, colour, 0.95),
            Part(collar.reshape(-1, 3), grid_faces(9, 64, True), (colour * stripes).reshape(-1, 3), 0.95),
            Part(*roll, colour * 0.95, 0.95),
        ]
    else:
        suit = kind == "suit"
        shirt = SHIRT * (1.0 if rng.random() < 0.7 else np.array((0.6, 0.75, 1.0))) if suit else colour
        points, faces = _garment(head, lambda b: _neckline(b, *_NECKLINES[kind]), 0.05)
        parts = [Part(points, faces, shirt, 0.85), _collar(neck, shirt)]
        if suit:
            parts += _jacket(head, colour)
        elif neckwear == "none":
            front = _front(head)
            parts.append(
                Part(*_merge([ball((0, y, front(y) + 0.07), 0.04, 8) for y in (-2.72, -3.1)]), colour * 0.4 + 0.2, 0.4)
            )
    return parts


def _collar(neck: Neck, colour: np.ndarray) -> Part:
    turn = np.linspace(np.radians(-172), np.radians(172), 60) + np.pi
    rows = np.linspace(0, 1, 6)[:, None]
    from_front = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    point = np.exp(-((from_front / 0.55) ** 2))
    top = -2.02 - 0.26 * np.cos(turn)
    y = top[None] - rows * (0.34 + 0.26 * point)[None] + 0.06 * np.sin(np.pi * rows)
    reach = neck.ring(turn, top)[None] + 0.07 + rows * (0.20 + 0.12 * point)[None] + 0.05 * np.sin(np.pi * rows)
    # the points part from each other
    angle = turn[None] + rows * 0.28 * np.sign(np.sin(turn))[None] * point[None]
    points = neck.place(angle, reach, y)
    shade = 1.0 - 0.12 * (rows < 0.1)
    return Part(
        points.reshape(-1, 3), grid_faces(6, 60), (colour * (shade + 0 * turn)[..., None]).reshape(-1, 3), 0.85
    )


def _front(head: np.ndarray) -> Callable[[float], float]:
    points = head[np.unique(skin_mesh().index)]
    points = points[(np.abs(points[:, 0]) < 0.25) & (points[:, 1] < -1.9) & (points[:, 2] > -1.6)]
    order = np.argsort(points[:, 1])
    y, z = points[order, 1], gaussian_filter1d(points[order, 2], 3)
    return lambda at: float(np.interp(at, y, z))


def _jacket(head: np.ndarray, colour: np.ndarray) -> list[Part]:
    """A jacket open in a V, with lapels along it."""
    points, faces = _garment(head, lambda b: _neckline(b, -2.5, -2.3), 0.13)
    middle = points[faces].mean(1)
    open_front = (np.abs(middle[:, 0]) < 0.42 * (middle[:, 1] + 4.6)) & (middle[:, 2] > -1.5) & (middle[:, 1] > -4.4)
    outer = np.hypot(middle[:, 0], (middle[:, 2] + 1.5)) > 1.02
    faces = faces[~open_front & (outer | (middle[:, 1] < -2.6))]
    lapels = []
    for side in (-1, 1):
        along = np.linspace(0, 1, 14)
        inner = np.stack([side * (0.98 - 0.80 * along), -2.2 - 2.0 * along, 0 * along], -1)
        wide = 0.16 + 0.5 * np.exp(-(((along - 0.35) / 0.25) ** 2))
        strip = np.stack([inner + np.array([side, 0.12, 0.0]) * (wide * s)[:, None] for s in (0.0, 0.5, 1.0)])
        flat = strip.reshape(-1, 3)
        body = points[(points[:, 2] > -2.2)]
        near = cKDTree(body[:, :2]).query(flat[:, :2], k=4)[1]
        flat[:, 2] = body[near][..., 2].max(1) + 0.06
        lapels.append((flat, grid_faces(3, 14)))
    return [Part(points, faces, colour, 0.85), Part(*_merge(lapels), colour * 0.7 + 0.004, 0.75)]


def tie(head: np.ndarray, kind: str, clothes_colour: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """A `"necktie"` or a `"bow tie"` of another colour than the clothes."""
    others = [np.array(c) for c in CLOTHES_COLORS.values() if np.abs(np.array(c) - clothes_colour).max() > 0.12]
    colour = others[rng.integers(len(others))] * 0.9
    front = _front(head)
    knot = np.array([0.0, -2.42, front(-2.42) + 0.22])
    if kind == "bow tie":
        pieces = [ball(knot, (0.10, 0.11, 0.08))]
        for side in (-1, 1):
            share = np.linspace(0, 1, 8)
            high = 0.07 + 0.20 * share**0.7
            turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            loop = np.stack(
                [
                    side * 0.5 * share[:, None] + 0 * turn,
                    high[:, None] * np.sin(turn),
                    0.08 * np.cos(turn) * (1.2 - share[:, None]),
                ],
                -1,
            )
            pieces.append(((knot + loop).reshape(-1, 3), grid_faces(8, 12, True)))
        return [Part(*_merge(pieces), colour, 0.5)]
    share = np.linspace(0, 1, 12)
    y = knot[1] - 1.9 * share
    wide = 0.13 + 0.2 * share
    z = np.array([front(at) for at in y]) + 0.18
    z[0] += 0.05
    rows = np.stack([np.stack([s * wide, y, z - 0.05 * abs(s)], -1) for s in (-1, -0.5, 0, 0.5, 1)])
    stripes = 0.75 + 0.35 * (np.sin(share * 40) > 0) * (rng.random() < 0.5)
    paint = np.broadcast_to((colour * stripes[:, None])[None], rows.shape)
    return [
        Part(rows.reshape(-1, 3), grid_faces(5, 12), paint.reshape(-1, 3), 0.5),
        Part(*ball(knot, (0.16, 0.16, 0.11)), colour * 0.9, 0.5),
    ]
