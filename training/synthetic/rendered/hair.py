"""Hair, brows, lashes and beards as ribbons, combed by a few hundred guides that cannot enter the head."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from .data import EYE_HELPERS, base_mesh, head_triangles, normals
from .regions import SCALP_CENTRE, beard_region, brow_region, scalp_region


HAIR_COLORS = {
    "black": (0.012, 0.010, 0.009),
    "brown": (0.085, 0.042, 0.021),
    "blond": (0.52, 0.34, 0.14),
    "red": (0.30, 0.075, 0.018),
    "gray": (0.42, 0.42, 0.43),
}
"""Linear RGB."""


class Ribbons(NamedTuple):
    """Strands as strips of triangles: positions and normals (n, 3), triangles (m, 3), colours (n, 3)."""

    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colours: np.ndarray


def ribbons(curves: np.ndarray, outward: np.ndarray, widths: np.ndarray, colours: np.ndarray) -> Ribbons:
    """
    Turn curves into strips that face outward.

    Args:
        curves (`np.ndarray` (n, k, 3)): Points of n strands.
        outward (`np.ndarray` (n, k, 3) or (n, 1, 3)): Where a strip looks.
        widths (`np.ndarray` (n, k) or (k,)): Half widths.
        colours (`np.ndarray` (n, k, 3) or (n, 1, 3)): Linear RGB.
    """
    n, k, _ = curves.shape
    along = np.gradient(curves, axis=1)
    along /= np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9
    across = np.cross(along, np.broadcast_to(outward, curves.shape))
    across /= np.linalg.norm(across, axis=-1, keepdims=True) + 1e-9
    facing = np.cross(across, along)
    half = np.broadcast_to(widths, (n, k))[..., None]
    points = np.stack([curves - across * half, curves + across * half], 2)
    # shaded as a round lock: each side leans outwards
    shaded = np.stack([facing - 0.6 * across, facing + 0.6 * across], 2)
    shaded /= np.linalg.norm(shaded, axis=-1, keepdims=True)
    first = (np.arange(n)[:, None] * k + np.arange(k - 1)) * 2
    faces = np.stack([first, first + 1, first + 2, first + 1, first + 3, first + 2], -1).reshape(-1, 3)
    paint = np.broadcast_to(np.broadcast_to(colours, curves.shape)[:, :, None], points.shape)
    return Ribbons(points.reshape(-1, 3), shaded.reshape(-1, 3), faces, np.clip(paint, 0, 1).reshape(-1, 3))


def join(parts: list[Ribbons]) -> Ribbons:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(part.points) for part in parts])
    faces = [part.faces + start for part, start in zip(parts, starts, strict=False)]
    joined = [np.concatenate([part[k] for part in parts]) for k in (0, 1, 3)]
    return Ribbons(joined[0], joined[1], np.concatenate(faces), joined[2])


# ---------------------------------------------------------------------------------------------------------------------
# Roots: places on the base mesh, so that they follow every shape and expression
# ---------------------------------------------------------------------------------------------------------------------


class Roots(NamedTuple):
    """Places on triangles, by barycentric coordinates."""

    triangles: np.ndarray
    weights: np.ndarray

    def on(self, values: np.ndarray) -> np.ndarray:
        """Interpolate a value (n vertices, 3) at the roots."""
        return (values[self.triangles] * self.weights[..., None]).sum(1)


@lru_cache(None)
def _head_samples() -> tuple[Roots, np.ndarray, np.ndarray]:
    """120,000 even places on the head above the neck, with their positions and normals on the base mesh."""
    mesh = base_mesh()
    faces, uvs = head_triangles()
    corner = mesh.texture[uvs].mean(1)
    middle = mesh.vertices[faces].mean(1)
    faces = faces[
        (middle[:, 1] > -2.1) & (np.abs(middle[:, 0]) < 1.5) & ~((corner[:, 0] > 0.75) & (corner[:, 1] < 0.145))
    ]
    corners = mesh.vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(faces), 120_000, p=area / area.sum())
    u, v = rng.random((2, len(chosen)))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    roots = Roots(faces[chosen], np.stack([1 - u - v, u, v], -1))
    outward = normals(mesh.vertices, head_triangles()[0])
    return roots, roots.on(mesh.vertices), roots.on(outward)


def _choose(cover: np.ndarray, count: int, rng: np.random.Generator) -> Roots:
    """`count` places of the head, where `cover` (0 to 1 for each of the samples) is high."""
    roots, _, _ = _head_samples()
    places = np.flatnonzero(cover > rng.random(len(cover)))
    places = rng.choice(places, min(count, len(places)), replace=False)
    return Roots(roots.triangles[places], roots.weights[places])


# ---------------------------------------------------------------------------------------------------------------------
# Scalp hair
# ---------------------------------------------------------------------------------------------------------------------


class Comb(NamedTuple):
    """
    How a hair style falls.

    Args:
        flow (`str`): `"part"`, `"back"`, `"forward"`, `"up"` or `"out"`.
        length (`float`): Of the strands, in eye distances.
        lift (`float`): Distance from the head that strands are laid at.
        strands (`int`), width (`float`): Their number and half width.
        sides (`float`): Share of the length at the sides and the back.
        parting (`float`): x of the parting.
        wave (`float`), curl (`float`): Size of waves and of curls.
        fringe (`bool`): Whether the front falls over the forehead.
        tuck (`float`): 1 behind the ears, 0 before them.
        knot (`str`): `""`, `"bun"` or `"ponytail"`.
        rough (`float`): Disorder of strands.
    """

    flow: str
    length: float
    lift: float
    strands: int = 5000
    width: float = 0.02
    sides: float = 1.0
    parting: float = 0.0
    wave: float = 0.0
    curl: float = 0.0
    fringe: bool = False
    tuck: float = 0.6
    knot: str = ""
    rough: float = 0.05


def comb_for(attributes: Mapping[str, str], rng: np.random.Generator) -> Comb | None:
    """A style for the hair attributes of a person, or `None` for no strands."""
    length, texture = attributes["hair_length"], attributes["hair_texture"]
    man = attributes["gender"] == "man"
    fringe = attributes["bangs"] == "yes"
    parting = float(rng.choice((-0.45, -0.3, 0.3, 0.45) if man else (-0.4, -0.15, 0.0, 0.0, 0.15, 0.4)))
    waves = {"straight": 0.0, "wavy": 0.085, "curly": 0.05}[texture] * rng.uniform(0.8, 1.2)
    curls = rng.uniform(0.09, 0.13) if texture == "curly" else 0.0
    if length == "bald":
        return None
    if length == "buzz":
        return Comb("out", 0.07, 0.02, 3600, 0.015, rough=0.25)
    if attributes["updo"] != "none":
        return Comb(
            "back", 1.9, 0.10, 2800, 0.026, fringe=fringe, wave=waves * 0.4, knot=attributes["updo"], parting=parting
        )
    if length == "short":
        if texture == "curly":
            if man or rng.random() < 0.6:
                size = rng.uniform(0.22, 0.4) if man else rng.uniform(0.4, 0.65)
                return Comb(
                    "out",
                    size,
                    size * 0.8,
                    3000,
                    0.032,
                    sides=0.6 if man else 1.0,
                    curl=0.09,
                    rough=0.5,
                    fringe=fringe,
                )
            return Comb(
                "part", 1.2, 0.22, 3000, 0.028, curl=curls, wave=waves, fringe=fringe, parting=parting, rough=0.15
            )
        if not man:
            return Comb(
                "part", 1.45, 0.17, 3200, 0.027, sides=0.9, wave=waves, fringe=fringe, parting=parting, tuck=0.2
            )
        kind = "forward" if fringe else str(rng.choice(("part", "back", "up")))
        size = rng.uniform(0.55, 0.8)
        lift = {"up": 0.26, "back": 0.17, "part": 0.17, "forward": 0.12}[kind]
        return Comb(kind, size, lift, 3600, 0.022, 0.36, parting, wave=waves * 0.8, fringe=fringe, rough=0.10)
    drop = {"medium": rng.uniform(2.3, 2.9), "long": rng.uniform(4.2, 4.8)}[length]
    lift = {"straight": 0.15, "wavy": 0.20, "curly": 0.30}[texture] * rng.uniform(0.9, 1.25)
    if man and rng.random() < 0.4 and not fringe:
        return Comb("back", drop, lift, 3000, 0.028, wave=waves, curl=curls, tuck=1.0)
    tuck = float(rng.choice((0.0, 0.35, 0.8)))
    return Comb("part", drop, lift, 3400, 0.028, 1.0, parting, waves, curls, fringe, tuck, rough=0.06)


def _directions(
    comb: Comb, p: np.ndarray, root: np.ndarray, outward: np.ndarray, t: float, front: np.ndarray
) -> np.ndarray:
    """Where strands at `p` want to go, after the share `t` of their length."""
    n = len(p)
    f = np.zeros((n, 3))
    high = np.clip((root[:, 1] - 0.4) / 1.2, 0, 1)
    side = np.sign(root[:, 0] - comb.parting + 1e-9)
    if comb.flow == "part":
        f[:, 0] = side * (1.0 - 0.9 * t) * high
        f[:, 1] = -(0.25 + 1.6 * t) - (1 - high)
        f[:, 2] = -0.45 * high * (1 - t) - 0.12
        if comb.length < 1:
            f[:, 1] += 0.35
            f[:, 2] += 0.25 * (1 - t)
    elif comb.flow == "back":
        f[:, 0] = -0.15 * root[:, 0]
        f[:, 1] = 0.25 - 1.5 * t - 0.6 * (1 - high)
        f[:, 2] = -1.0 + 0.6 * t
    elif comb.flow == "forward":
        f[:, 0] = 0.15 * side
        f[:, 1] = -0.15 - 0.9 * t - (1 - high)
        f[:, 2] = (0.9 - 0.6 * t) * high
    elif comb.flow == "up":
        f[:] = outward * (1.0 - 0.5 * t)
        f[:, 1] += 0.55 * high - 0.8 * (1 - high)
        f[:, 2] += -0.5 * t
    else:
        f[:] = outward
    if comb.knot:
        knot = np.array([0.0, 1.95, -1.5] if comb.knot == "bun" else [0.0, 1.35, -2.45])
        pull = knot - p
        f = pull / (np.linalg.norm(pull, axis=1, keepdims=True) + 1e-6)
    if comb.fringe and comb.flow != "out":
        f[front] = np.stack(
            [0.10 * side[front], np.full(front.sum(), -0.3 - 1.0 * t), np.full(front.sum(), 0.95 - 0.9 * t)], -1
        )
    # the face stays free: what would fall before it goes to the sides
    across = (
        (p[:, 2] > -0.75)
        & (p[:, 1] < 1.15)
        & (np.abs(p[:, 0]) < 1.18 + 0.1 * comb.tuck)
        & ~front
        & (comb.flow not in ("out", "up", "forward"))
    )
    f[across, 0] += 1.6 * np.where(p[across, 0] > 0, 1, -1)
    f[across, 2] -= 0.5 + 0.8 * comb.tuck
    at_ear = (p[:, 1] < 0.6) & (p[:, 1] > -1.6) & (p[:, 2] > -1.1) & ~front
    f[at_ear, 2] -= 0.9 * comb.tuck
    return f


def scalp_hair(head: np.ndarray, attributes: Mapping[str, str], colour: np.ndarray, seed: int) -> Ribbons | None:
    """
    The hair of a head.

    Args:
        head (`np.ndarray` (19158, 3)): The neutral head in its face space.
        attributes (`Mapping[str, str]`): The hair attributes and the gender.
        colour (`np.ndarray` (3,)): Linear RGB.
        seed (`int`): Chooses among the styles of these attributes, and the strands.

    Returns:
        [`Ribbons`], or `None` for a bald head.
    """
    rng = np.random.default_rng(seed)
    comb = comb_for(attributes, rng)
    if comb is None:
        return None
    _, base_points, _ = _head_samples()
    receding = attributes["hairline"] == "receding"
    cover = scalp_region(base_points, receding, soft=5.0)
    # more strands where a hairline shows
    roots = _choose(
        cover * (1.0 if comb.flow == "out" else 0.55 + 0.45 * (base_points[:, 2] > -1.6)), comb.strands, rng
    )
    outward = normals(head, head_triangles()[0])
    start, up = roots.on(head), roots.on(outward)
    base = roots.on(base_mesh().vertices)
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    if comb.flow == "out":
        curves = _grow_out(start, up, comb, rng)
    else:
        curves = _comb_down(head, outward, start, up, base, comb, rng)
    steps = curves.shape[1]
    t = np.linspace(0, 1, steps)
    outwards = curves - np.array([0, 0.1, -1.2])
    outwards[..., 1] *= 0.5
    outwards /= np.linalg.norm(outwards, axis=-1, keepdims=True) + 1e-9
    outwards = outwards + rng.normal(0, 0.25, (len(curves), 1, 3))
    locks = np.clip(rng.normal(1, 0.16, (len(curves), 1, 1)), 0.5, 1.6)
    shade = locks * (0.72 + 0.38 * t)[None, :, None]
    tint = colour * shade
    if attributes["hair_color"] == "gray":
        tint = tint * np.where(rng.random((len(curves), 1, 1)) < 0.3, 0.6, 1.1)
    widths = comb.width * np.interp(t, (0, 0.2, 0.75, 1), (0.8, 1, 0.9, 0.25))
    parts = [ribbons(curves, outwards, widths[None] * rng.uniform(0.7, 1.3, (len(curves), 1)), tint)]
    if comb.knot:
        parts.append(_knot(comb, colour, rng))
    return join(parts)


def _grow_out(start: np.ndarray, up: np.ndarray, comb: Comb, rng: np.random.Generator) -> np.ndarray:
    """Hair that stands off the head: a buzz cut, or curls."""
    steps = 3 if comb.length < 0.12 else 8
    n = len(start)
    low = np.clip((start[:, 1] + 0.2) / 1.0, 0, 1)
    front = np.clip((start[:, 2] + 0.6) / 0.8, 0, 1)
    length = comb.length * (comb.sides + (1 - comb.sides) * low) * rng.uniform(0.75, 1.1, n) * (1 - 0.35 * front)
    d = up * 0.9 + rng.normal(0, comb.rough * 0.4, (n, 3)) + np.array([0, 0.1, -0.15])
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    t = np.linspace(0, 1, steps)[None, :, None]
    curves = start[:, None] + d[:, None] * t * length[:, None, None]
    if comb.curl:
        side = np.cross(d, rng.normal(size=(n, 3)))
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        other = np.cross(d, side)
        turns = rng.uniform(1.2, 2.2, (n, 1, 1)) * 2 * np.pi * t + rng.uniform(0, 6.28, (n, 1, 1))
        size = comb.curl * np.minimum(1, 3 * t) * rng.uniform(0.6, 1.2, (n, 1, 1))
        curves = curves + size * (np.cos(turns) * side[:, None] + np.sin(turns) * other[:, None])
    return curves


def _comb_down(head, outward, start, up, base, comb: Comb, rng) -> np.ndarray:
    """Comb guides over the head, then lay every strand along the guides beside it."""
    skin = np.unique(head_triangles()[0])
    tree = cKDTree(head[skin])
    count = 420
    chosen = rng.choice(len(start), min(count, len(start)), replace=False)
    p, root = start[chosen].copy(), start[chosen]
    nearby = up[chosen]
    layer = rng.uniform(0.25, 1.0, len(chosen))
    high = np.clip((root[:, 1] - 0.55) / 0.9, 0, 1)
    azimuth = np.degrees(np.arctan2(np.abs(root[:, 0]), root[:, 2] - SCALP_CENTRE[2]))
    front = (azimuth < 48) & (root[:, 1] > 1.0) & (root[:, 2] > -1.15) if comb.fringe else np.zeros(len(root), bool)
    length = comb.length * (comb.sides + (1 - comb.sides) * high) * rng.uniform(0.9, 1.08, len(chosen))
    if comb.fringe:
        length[front] = np.linalg.norm(root[front] - np.array([0, 0.42, 0.35]), axis=1) * rng.uniform(
            0.92, 1.08, front.sum()
        )
        length[front] = np.clip(length[front], 0.3, 1.7)
    steps = 7 if comb.length < 1 else 13 if comb.curl or comb.wave else 10
    step = (length / (steps - 1))[:, None]
    d = nearby.copy()
    path = [p]
    wander = rng.normal(0, comb.rough, (len(p), 3))
    for k in range(1, steps):
        t = k / (steps - 1)
        wish = _directions(comb, p, root, nearby, t, front) + wander
        wish /= np.linalg.norm(wish, axis=1, keepdims=True) + 1e-9
        d = 0.5 * d + 0.6 * wish
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        new = p + d * step
        _, i = tree.query(new)
        i = skin[i]
        height = ((new - head[i]) * outward[i]).sum(1)
        inside = np.abs(height) < 1.2
        need = comb.lift * layer * min(1.0, 2.5 * t + 0.12)
        need = np.where(front, 0.05 + 0.06 * layer, need)
        need = np.where(new[:, 1] < -1.6, np.minimum(need, 0.12), need)
        push = np.where(inside & (height < need), need - height, 0.0)
        # short and combed hair lies on the head
        hug = np.where(inside & (height > need) & (new[:, 1] > -0.2), 0.45 * (need - height), 0.0)
        if comb.flow == "up":
            hug *= 0.25
        new = new + outward[i] * np.clip(push + hug, -0.2, 0.35)[:, None]
        d = new - p
        d /= np.linalg.norm(d, axis=1, keepdims=True) + 1e-9
        p = new
        path.append(p)
    guides = np.stack(path, 1)
    distance, nearest = cKDTree(
        root + np.where(comb.flow == "part", np.sign(root[:, :1] - comb.parting) * 0.5, 0)
    ).query(start + np.where(comb.flow == "part", np.sign(start[:, :1] - comb.parting) * 0.5, 0), k=2)
    share = 1 / (distance + 0.02)
    share *= rng.uniform(0.3, 1.0, share.shape)
    share /= share.sum(1, keepdims=True)
    shape = ((guides - root[:, None])[nearest] * share[..., None, None]).sum(1)
    n = len(start)
    t = np.linspace(0, 1, steps)[None, :, None]
    spread = rng.normal(0, 1, (n, 1, 3)) * (0.02 + comb.rough * 0.5 * t)
    curves = start[:, None] + shape * rng.uniform(0.88, 1.04, (n, 1, 1)) + spread * np.minimum(1, 4 * t)
    return curves + _waves(n, t, start, comb, rng)


def _waves(n: int, t: np.ndarray, start: np.ndarray, comb: Comb, rng: np.random.Generator) -> np.ndarray:
    out = np.zeros((n, t.shape[1], 3))
    if comb.wave:
        # neighbours wave together
        phase = 3.0 * start[:, :1] + 2.0 * start[:, 2:] + rng.normal(0, 0.35, (n, 1))
        turn = comb.length * 3.4 * t[..., 0] + phase
        size = comb.wave * np.minimum(1, 2.5 * t[..., 0])
        out[..., 0] += size * np.sin(turn)
        out[..., 2] += 0.8 * size * np.cos(turn)
    if comb.curl:
        phase = rng.uniform(0, 6.28, (n, 1))
        turn = comb.length * 5.0 * t[..., 0] + phase
        size = comb.curl * np.minimum(1, 3 * t[..., 0])
        out[..., 0] += size * np.sin(turn)
        out[..., 2] += size * np.cos(turn)
        out[..., 1] += 0.5 * size * np.sin(turn + 1)
    return out


def _knot(comb: Comb, colour: np.ndarray, rng: np.random.Generator) -> Ribbons:
    """The bun on the crown, or the tail that falls over a shoulder."""
    if comb.knot == "bun":
        n, k = 300, 9
        centre, size = np.array([0.0, 2.2, -1.45]), 0.5
        axis = rng.normal(size=(n, 3)) * [0.5, 0.35, 1.0]
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        side = np.cross(axis, rng.normal(size=(n, 3)))
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        other = np.cross(axis, side)
        turn = np.linspace(0, 2.6, k)[None, :, None] + rng.uniform(0, 6.28, (n, 1, 1))
        radius = size * rng.uniform(0.88, 1.04, (n, 1, 1))
        tilt = axis[:, None] * rng.uniform(-0.75, 0.75, (n, 1, 1)) * size
        ring = np.sqrt(np.maximum(radius**2 - (np.linalg.norm(tilt, axis=-1, keepdims=True)) ** 2, 0.02))
        curves = centre + tilt + ring * (np.cos(turn) * side[:, None] + np.sin(turn) * other[:, None])
        outwards = curves - centre
        width = np.full(k, 0.028)
    else:
        n, k = 420, 11
        side = rng.choice((-1, 1))
        line = np.array(
            [
                [0, 1.35, -2.4],
                [0.35 * side, 1.55, -2.85],
                [1.0 * side, 0.9, -2.8],
                [1.45 * side, -0.3, -2.2],
                [1.5 * side, -1.6, -1.3],
                [1.35 * side, -3.0, -0.8],
                [1.25 * side, -4.0, -0.6],
            ]
        )
        t = np.linspace(0, 1, k)
        spine = np.stack([np.interp(t, np.linspace(0, 1, len(line)), line[:, axis]) for axis in range(3)], 1)
        kernel = np.array([0.25, 0.5, 0.25])
        for _ in range(2):
            spine[1:-1] = sum(kernel[j] * spine[j : k - 2 + j] for j in range(3))
        offset = rng.normal(0, 1, (n, 1, 3)) * [0.14, 0.05, 0.14]
        fat = np.interp(t, (0, 0.15, 0.5, 1), (0.5, 1.0, 1.15, 0.6))[None, :, None]
        turn = 9 * t[None, :, None] + rng.uniform(0, 6.28, (n, 1, 1))
        curl = comb.wave * np.concatenate([np.sin(turn), np.zeros_like(turn), np.cos(turn)], -1)
        curves = spine[None] + offset * fat + curl
        outwards = offset * fat + [0, 0, 0.12] + 0 * curves
        width = np.interp(t, (0, 0.8, 1), (0.028, 0.028, 0.008))
    outwards = outwards / (np.linalg.norm(outwards, axis=-1, keepdims=True) + 1e-9)
    tint = colour * np.clip(rng.normal(0.95, 0.16, (n, 1, 1)), 0.5, 1.5)
    return ribbons(curves, outwards, width, tint)


# ---------------------------------------------------------------------------------------------------------------------
# Hair of the face
# ---------------------------------------------------------------------------------------------------------------------


def face_hair(
    head: np.ndarray,
    attributes: Mapping[str, str],
    colour: np.ndarray,
    brow: Mapping[str, float],
    seed: int,
    lashes: bool = True,
) -> Ribbons:
    """
    Brows, lashes and beard, in the pose of the face.

    Args:
        head (`np.ndarray` (19158, 3)): The head with its expression.
        attributes (`Mapping[str, str]`): The beard attributes, gender, make-up.
        colour (`np.ndarray` (3,)): Linear RGB of the hair.
        brow (`Mapping[str, float]`): `thickness` and `arch`.
        seed (`int`): Chooses the strands.
    """
    rng = np.random.default_rng(seed)
    outward = normals(head, head_triangles()[0])
    _, base_points, _ = _head_samples()
    parts = [_brows(head, outward, base_points, colour, brow, rng)]
    if lashes:
        parts.append(_lashes(head, attributes, rng))
    if attributes["gender"] == "man":
        for kind in _beard_kinds(attributes):
            parts.append(_beard(head, outward, base_points, kind, colour, rng))
    return join(parts)


def _beard_kinds(attributes: Mapping[str, str]) -> list[str]:
    kinds = [kind for kind in ("goatee", "full") if attributes["beard"] == kind]
    if attributes["mustache"] == "yes":
        kinds.append("mustache")
    if attributes["sideburns"] == "yes":
        kinds.append("sideburns")
    return kinds


def brow_colour(hair: np.ndarray) -> np.ndarray:
    """Brows are a little darker and browner than the hair."""
    return np.minimum(hair * np.array([0.62, 0.54, 0.50]), 0.33)


def _brows(head, outward, base_points, colour, brow, rng) -> Ribbons:
    cover = brow_region(base_points, brow["thickness"], brow["arch"])
    roots = _choose(cover, int(420 * brow["thickness"]), rng)
    start, up, base = roots.on(head), roots.on(outward), roots.on(base_mesh().vertices)
    side = np.sign(base[:, :1])
    rise = 0.55 - 0.75 * np.abs(base[:, :1])
    d = np.concatenate([side, rise, np.zeros_like(side)], 1) + 0.3 * up + rng.normal(0, 0.15, start.shape)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    t = np.linspace(-0.4, 1, 4)[None, :, None]
    curves = start[:, None] + 0.018 * up[:, None] + d[:, None] * t * 0.12
    shade = brow_colour(colour) * np.clip(rng.normal(1, 0.15, (len(start), 1, 1)), 0.6, 1.4)
    return ribbons(curves, up[:, None], np.array([0.011, 0.013, 0.011, 0.004]), shade)


def _lashes(head, attributes, rng) -> Ribbons:
    mesh = base_mesh()
    curves, outwards = [], []
    strong = 1.5 if attributes["makeup"] == "heavy" else 1.0 if attributes["gender"] == "woman" else 0.35
    for side, letter in (("left", "l"), ("right", "r")):
        eye = head[EYE_HELPERS[side]]
        centre = (eye.min(0) + eye.max(0)) / 2
        for row in (1, 2):
            # groups come in several runs of lines; -2 is the upper row
            faces = mesh.parts[f"helper-{letter}-eyelashes-{row}"][0]
            count = int((70 if row == 2 else 25) * strong)
            chosen = faces[rng.integers(0, len(faces), count)]
            root = (head[chosen] * rng.dirichlet([1, 1, 1], count)[..., None]).sum(1)
            d = root - centre
            d /= np.linalg.norm(d, axis=1, keepdims=True)
            d = d * [0.6, 1.0, 1.0] + [0, 0.4 if row == 2 else -0.3, 0.35]
            t = np.linspace(-0.5, 0.5, 3)[None, :, None]
            curves.append(root[:, None] + d[:, None] * t * 0.09 * strong**0.5)
            outwards.append(np.broadcast_to([0, 0.2, 1.0], curves[-1].shape))
    curves = np.concatenate(curves)
    return ribbons(
        curves, np.concatenate(outwards), np.array([0.010, 0.008, 0.003]) * strong, np.full((1, 1, 3), 0.008)
    )


def _beard(head, outward, base_points, kind, colour, rng) -> Ribbons:
    count, length = {"mustache": (500, 0.2), "goatee": (700, 0.26), "full": (1700, 0.28), "sideburns": (400, 0.14)}[
        kind
    ]
    cover = beard_region(base_points + rng.normal(0, 0.02, base_points.shape), kind).astype(float)
    roots = _choose(cover, count, rng)
    start, up, base = roots.on(head), roots.on(outward), roots.on(base_mesh().vertices)
    n = len(start)
    side = np.sign(base[:, :1])
    spread = 0.9 if kind == "mustache" else 0.25
    d = 0.5 * up + np.concatenate([side * spread, np.full((n, 1), -0.75), np.full((n, 1), 0.1)], 1)
    d += rng.normal(0, 0.22, (n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    t = np.linspace(-0.15, 1, 4)[None, :, None]
    size = length * rng.uniform(0.6, 1.1, (n, 1, 1))
    curves = start[:, None] + d[:, None] * t * size - 0.22 * up[:, None] * t**2 * size
    shade = colour * 0.9 * np.clip(rng.normal(1, 0.18, (n, 1, 1)), 0.5, 1.5)
    return ribbons(curves, up[:, None], np.array([0.020, 0.022, 0.018, 0.006]), shade)
