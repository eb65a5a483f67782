"""A head as a list of meshes: the parts of a person that are kept, and those that change with each picture."""

from dataclasses import dataclass

import numpy as np

from .accessories import (
    CLOTHES_COLORS,
    SHIRT,
    Part,
    bare_faces,
    clothes,
    collar_cover,
    earrings,
    face_mask,
    glasses,
    grid_faces,
    hat,
    headphones,
    necklace,
    press_under,
    tie,
)
from .data import EYE_HELPERS, base_mesh, normals, skin_mesh
from .expression import expressive_head, facial_actions, gaze_actions
from .hair import HAIR_COLORS, Ribbons, face_hair, scalp_hair
from .people import Face
from .shape import neutral_head
from .skin import SKIN_TONES, skin_texture
from .vocabulary import HATS, LOOK_ATTRIBUTES, PERSON_ATTRIBUTES


EYE_COLORS = {
    "brown": (0.095, 0.042, 0.018),
    "blue": (0.08, 0.22, 0.48),
    "green": (0.09, 0.22, 0.06),
    "gray": (0.19, 0.22, 0.24),
}


@dataclass(frozen=True)
class Surface:
    """
    A mesh with its look.

    Args:
        points (`np.ndarray` (n, 3)), normals (`np.ndarray` (n, 3)), faces (`np.ndarray` (m, 3)): The mesh.
        colours (`np.ndarray` (n, 3), *optional*): Linear RGB of its points; otherwise it has a texture.
        name (`str`): What it shows, such as `"skin"`, `"eyes"`, `"hair"` or an attribute.
        coordinates (`np.ndarray` (n, 2), *optional*), texture (`np.ndarray` (h, w, 3), *optional*): The texture.
        material (`str`): `"skin"`, `"hair"`, `"eye"`, `"cloth"`, `"shiny"`, `"metal"` or `"wet"`.
    """

    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    material: str
    name: str = ""
    colours: np.ndarray | None = None
    coordinates: np.ndarray | None = None
    texture: np.ndarray | None = None


@dataclass(frozen=True)
class Person:
    """What all pictures of a person in one look share: the costly part."""

    neutral: np.ndarray
    texture: np.ndarray
    hair: Ribbons | None
    hair_colour: np.ndarray
    brow: dict[str, float]
    key: tuple


def person_key(face: Face) -> tuple:
    """Equal for faces that can share a [`Person`]."""
    lasting = tuple(face.attributes[name] for name in PERSON_ATTRIBUTES + LOOK_ATTRIBUTES)
    return (face.person_seed, face.look_seed, face.years, lasting)


def build_person(face: Face) -> Person:
    """Shape, skin and hair of a face's person."""
    a = face.attributes
    rng = np.random.default_rng(face.person_seed)
    tone = np.array(SKIN_TONES[a["skin"]]) * np.clip(1 + 0.07 * rng.normal(), 0.85, 1.15)
    tone = tone * (1 + 0.03 * rng.normal(size=3))
    brow = {
        "thickness": {"thin": 0.62, "bushy": 1.15}[a["brow_thickness"]] * (1.1 if a["gender"] == "man" else 0.85),
        "arch": {"straight": 0.0, "arched": 1.0}[a["brow_shape"]],
    }
    hair_rng = np.random.default_rng(face.look_seed)
    colour = np.array(HAIR_COLORS[a["hair_color"]])
    if a["hair_color"] == "gray":
        colour = colour * hair_rng.uniform(0.7, 1.75)
    else:
        colour = colour * np.clip(1 + 0.2 * hair_rng.normal(), 0.65, 1.4) * (1 + 0.05 * hair_rng.normal(size=3))
    neutral = neutral_head(a, face.years, face.ancestry, face.weight, face.person_seed)
    texture = skin_texture(a, face.years, tone, colour, brow, face.person_seed)
    hair = scalp_hair(neutral, a, colour, face.look_seed)
    return Person(neutral, texture, hair, colour, brow, person_key(face))


def gaze_of(face: Face, camera: np.ndarray) -> tuple[float, float]:
    """Where the eyes look, in degrees to the person's left and up from ahead, for a camera direction."""
    rng = np.random.default_rng(face.picture_seed + 1)
    yaw = np.degrees(np.arctan2(camera[0], camera[2]))
    pitch = np.degrees(np.arcsin(np.clip(camera[1], -1, 1)))
    share = rng.uniform(0.45, 1.0) if face.attributes["pose"] != "frontal" else 1.0
    across, up = yaw * share + rng.normal(0, 1.5), pitch * share + rng.normal(0, 1.0)
    across += {"left": -27, "right": 27}.get(face.attributes["gaze"], 0)
    up += {"up": 20, "down": -22}.get(face.attributes["gaze"], 0)
    return float(np.clip(across, -36, 36)), float(np.clip(up, -26, 26))


def surfaces(face: Face, person: Person, camera: np.ndarray) -> list[Surface]:
    """
    Everything in front of the camera but the background.

    Args:
        face ([`Face`]): The picture.
        person ([`Person`]): Of [`build_person`] for this face.
        camera (`np.ndarray` (3,)): Direction from the head to the camera, of length 1.
    """
    a = face.attributes
    rng = np.random.default_rng(face.picture_seed + 2)
    across, up = gaze_of(face, camera)
    actions = facial_actions(a, float(rng.uniform(0.9, 1.12)))
    for name, weight in gaze_actions(across, up).items():
        if a["eyes"] == "open":
            actions[name] = actions.get(name, 0.0) + 0.6 * weight
    head = expressive_head(person.neutral, actions)
    below = collar_cover(a["clothes"])[..., None]
    cloth = SHIRT if a["clothes"] == "suit" else np.array(CLOTHES_COLORS[a["clothes_color"]])
    dressed = (person.texture * (1 - below) + cloth * below).astype(np.float32)
    out = [_skin(head, dressed, bare_faces(a["clothes"])), *_eyes(head, a, across, up), *_mouth(head)]
    # a mask presses the beard flat
    shaved = {**a, "beard": "none", "mustache": "no"} if a["mask"] == "yes" else a
    out.append(_ribbons(face_hair(head, shaved, person.hair_colour, person.brow, face.look_seed + 1), "face hair"))
    headwear = a["headwear"]
    if person.hair is not None and headwear != "headscarf":
        points = press_under(person.hair.points, person.neutral, headwear) if headwear in HATS else person.hair.points
        out.append(_ribbons(person.hair._replace(points=points), "hair"))
    return out + [_part(part, name) for name, parts in _worn(head, person, face, rng).items() for part in parts]


def _worn(head: np.ndarray, person: Person, face: Face, rng: np.random.Generator) -> dict[str, list[Part]]:
    a, neutral = face.attributes, person.neutral
    colour = np.array(CLOTHES_COLORS[a["clothes_color"]]) * rng.uniform(0.85, 1.15)
    # all is drawn in any case, so that changing one thing leaves the others
    any_colour = list(CLOTHES_COLORS.values())
    hat_colour = np.array(any_colour[rng.integers(len(any_colour))]) * rng.uniform(0.7, 1.1)
    phones = np.array(((0.02, 0.02, 0.022), (0.6, 0.6, 0.6), (0.4, 0.03, 0.03), (0.05, 0.1, 0.35))[rng.integers(4)])
    gold = rng.random() < 0.6
    masks = ((0.34, 0.55, 0.68), (0.72, 0.73, 0.74), (0.04, 0.04, 0.045), (0.55, 0.68, 0.6))
    mask_colour = np.array(masks[rng.integers(4)])
    worn = {
        "clothes": clothes(neutral, a["clothes"], colour, a["neckwear"], np.random.default_rng(face.picture_seed + 3))
    }
    if a["neckwear"] != "none":
        worn["neckwear"] = tie(neutral, a["neckwear"], colour, np.random.default_rng(face.picture_seed + 7))
    if a["headwear"] != "none":
        worn["headwear"] = hat(neutral, a["headwear"], hat_colour)
    if a["eyewear"] != "none":
        worn["eyewear"] = glasses(neutral, a["eyewear"], np.random.default_rng(face.picture_seed + 4))
    if a["earrings"] != "none":
        worn["earrings"] = earrings(neutral, a["earrings"], gold)
    if a["headphones"] == "yes":
        worn["headphones"] = headphones(neutral, phones)
    if a["mask"] == "yes":
        worn["mask"] = face_mask(head, mask_colour)
    if a["necklace"] != "none":
        worn["necklace"] = necklace(neutral, a["necklace"])
    return worn


def _skin(head: np.ndarray, texture: np.ndarray, shown: np.ndarray) -> Surface:
    mesh = skin_mesh()
    points = head[mesh.index]
    # normals are those of the closed mesh: none at the cut
    smooth = normals(head, mesh.index[mesh.faces])
    return Surface(points, smooth[mesh.index], mesh.faces[shown], "skin", "skin", None, mesh.texture, texture)


def _mesh(points: np.ndarray, faces: np.ndarray, colour, material: str, name: str) -> Surface:
    used, inverse = np.unique(faces.ravel(), return_inverse=True)
    faces = inverse.reshape(faces.shape)
    colour = np.asarray(colour, float)
    colours = colour[used] if colour.ndim == 2 else np.broadcast_to(colour, (len(used), 3))
    return Surface(points[used], normals(points[used], faces), faces, material, name, colours)


def _part(part: Part, name: str) -> Surface:
    material = "metal" if part.metal else "cloth" if part.roughness > 0.45 else "shiny"
    return _mesh(part.points, part.faces, np.clip(part.colour, 0, 0.95), material, name)


def _ribbons(strands: Ribbons, name: str) -> Surface:
    return Surface(strands.points, strands.normals, strands.faces, "hair", name, strands.colours)


def _mouth(head: np.ndarray) -> list[Surface]:
    parts = base_mesh().parts
    teeth = np.concatenate([parts["helper-upper-teeth"][0], parts["helper-lower-teeth"][0]])
    return [
        _mesh(head, skin_mesh().mouth_faces, (0.11, 0.022, 0.022), "cloth", "mouth"),
        _mesh(head, teeth, (0.78, 0.74, 0.66), "wet", "teeth"),
        _mesh(head, parts["helper-tongue"][0], (0.42, 0.10, 0.10), "wet", "tongue"),
    ]


def _eyes(head: np.ndarray, attributes: dict[str, str], across: float, up: float) -> list[Surface]:
    direction = np.array([np.tan(np.radians(across)), np.tan(np.radians(up)), 1.0])
    out = []
    for side in ("left", "right"):
        eye = head[EYE_HELPERS[side]]
        centre, radius = (eye.min(0) + eye.max(0)) / 2, float(np.ptp(eye, axis=0)[:2].mean()) / 2
        out.append(_eyeball(centre, radius * 0.985, direction, np.array(EYE_COLORS[attributes["eye_color"]])))
    return out


def _eyeball(centre: np.ndarray, radius: float, direction: np.ndarray, colour: np.ndarray) -> Surface:
    rows, columns = 32, 28
    polar, around = np.meshgrid(
        np.concatenate([np.linspace(0, 40, 25), np.linspace(50, 120, 7)]),
        np.linspace(0, 2 * np.pi, columns, endpoint=False),
        indexing="ij",
    )
    theta = np.radians(polar)
    unit = np.stack([np.sin(theta) * np.cos(around), np.sin(theta) * np.sin(around), np.cos(theta)], -1)
    iris, pupil = 30.0, 11.5
    fibres = 1.0 + 0.25 * np.sin(around * 20 + 3 * np.sin(around * 7))
    paint = np.where((polar < iris)[..., None], colour * fibres[..., None], np.array([0.60, 0.55, 0.52]))
    ring = np.exp(-(((polar - iris + 1) / 3.5) ** 2))[..., None]
    paint = paint * (1 - 0.75 * ring)
    paint = np.where((polar < pupil)[..., None], 0.004, paint)
    forward = direction / np.linalg.norm(direction)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(forward, right), forward])
    bulge = 1 + 0.05 * np.clip(1 - (polar / 36) ** 2, 0, 1)
    outward = unit.reshape(-1, 3) @ frame
    points = centre + radius * bulge.reshape(-1, 1) * outward
    return Surface(points, outward, grid_faces(rows, columns, True), "eye", "eyes", paint.reshape(-1, 3))
