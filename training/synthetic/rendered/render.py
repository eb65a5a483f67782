"""Pictures: camera, light, path tracing by Mitsuba, denoising by Open Image Denoise, and the background."""

import os
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from .people import Face
from .scene import Person, Surface, build_person, person_key, surfaces


VARIANT = "scalar_rgb"
SUPERSAMPLING, SAMPLES, DEPTH = 1.5, 4, 3
"""Pixels rendered a pixel kept (along a side), paths a rendered pixel, longest path."""

BACKGROUNDS = {
    "white": (0.86, 0.86, 0.86),
    "gray": (0.21, 0.21, 0.22),
    "blue": (0.10, 0.24, 0.55),
    "green": (0.10, 0.30, 0.12),
    "pink": (0.80, 0.36, 0.46),
    "beige": (0.66, 0.52, 0.36),
}
"""Linear RGB."""


THINGS = (
    *("skin", "eyes", "mouth", "teeth", "tongue", "hair", "face hair", "clothes"),
    *("neckwear", "headwear", "eyewear", "earrings", "headphones", "mask", "necklace"),
)
"""What pixels are counted of."""


class RendererMissingError(ImportError):
    """Mitsuba or the denoiser is not installed."""


def _mitsuba():
    os.environ.setdefault("OIDN_NUM_THREADS", "1")
    try:
        import drjit
        import mitsuba
        import pyoidn  # noqa: F401  (said here, before minutes of rendering)
    except ImportError as error:
        raise RendererMissingError(
            f"Rendering needs {error.name}: install the extra with `pip install unif2ace[synthetic]`."
        ) from None
    if mitsuba.variant() != VARIANT:
        mitsuba.set_variant(VARIANT)
        drjit.set_thread_count(1)
    return mitsuba


@dataclass
class Renderer:
    """
    Renders faces; what pictures of one person share is kept between calls.

    Args:
        size (`int`, *optional*, defaults to 128): Side of the pictures, in pixels.
        samples (`int`, *optional*): Paths a rendered pixel.
        keep (`int`, *optional*, defaults to 2): How many people are kept.
    """

    size: int = 128
    samples: int = SAMPLES
    supersampling: float = SUPERSAMPLING
    depth: int = DEPTH
    keep: int = 2
    _people: dict[tuple, Person] = field(default_factory=dict)

    def person(self, face: Face) -> Person:
        """The kept or newly built person of a face."""
        key = person_key(face)
        if key not in self._people:
            while len(self._people) >= self.keep:
                self._people.pop(next(iter(self._people)))
            self._people[key] = build_person(face)
        return self._people[key]

    def render(self, face: Face) -> Image.Image:
        """
        Render one face.

        Args:
            face ([`Face`]): What to render.

        Returns:
            `PIL.Image.Image`: RGB, `size` by `size`; the same pixels for the same face on the same kind of machine.

        Raises:
            RendererMissingError: if Mitsuba or the denoiser is not installed.
            DataMissingError: if the head data is not installed.
        """
        return finish(self._trace(face, False)[0], self.size, face)

    def render_seen(self, face: Face) -> tuple[Image.Image, dict[str, int]]:
        """
        Render one face, and count the pixels of what it shows.

        Returns:
            The picture as of [`render`], and pixels by thing, one of `THINGS` (both eyes together).
        """
        linear, pixels = self._trace(face, True)
        return finish(linear, self.size, face), pixels

    def _trace(self, face: Face, count: bool) -> tuple[np.ndarray, dict[str, int]]:
        """The denoised picture before it is shrunk, (side, side, 3) of linear RGB, and pixels by thing."""
        mi = _mitsuba()
        import pyoidn

        person = self.person(face)
        camera = Camera.of(face, person.neutral)
        side = round(self.size * self.supersampling)
        meshes = surfaces(face, person, camera.direction)
        parts = {f"part{k:03d}": _shape(mi, surface) for k, surface in enumerate(meshes)}
        # no albedo and normals for the denoiser: they cost three times as much as the picture itself
        path = {"type": "path", "max_depth": self.depth, "rr_depth": 8, "hide_emitters": True}
        scene = mi.load_dict(
            {
                "type": "scene",
                "light": _light(mi, face, camera),
                "sensor": camera.sensor(mi, side, self.samples),
                "integrator": path,
                **parts,
            }
        )
        # one seed, hence the same noise for a counterfactual
        pixels = np.array(mi.render(scene, spp=self.samples, seed=face.picture_seed % 2**31))
        alpha = np.clip(pixels[..., 3:4], 0, 1)
        colour = np.clip(np.nan_to_num(pixels[..., :3]), 0, 8) + (1 - alpha) * background(face, side)
        linear = np.asarray(pyoidn.denoise(np.ascontiguousarray(colour, np.float32), hdr=True))
        return linear, self._count(mi, scene, camera, meshes) if count else {}

    def _count(self, mi, scene, camera: "Camera", meshes: list[Surface]) -> dict[str, int]:
        sensor = mi.load_dict(camera.sensor(mi, self.size, 1))
        integrator = mi.load_dict({"type": "aov", "aovs": "thing:shape_index"})
        found = np.array(mi.render(scene, sensor=sensor, integrator=integrator, spp=1, seed=0))[..., -1]
        names = [surface.name for surface in meshes]
        counts: dict[str, int] = {}
        for number, pixels in zip(*np.unique(np.round(found).astype(int), return_counts=True), strict=True):
            if 0 < number <= len(names):
                counts[names[number - 1]] = counts.get(names[number - 1], 0) + int(pixels)
        return counts


@dataclass(frozen=True)
class Camera:
    """Where the camera stands: `direction` from the head, `right`, `up` of the picture, its target and width there."""

    direction: np.ndarray
    right: np.ndarray
    up: np.ndarray
    target: np.ndarray
    width: float

    @classmethod
    def of(cls, face: Face, neutral: np.ndarray) -> "Camera":
        """The camera of a face: it turns around the head, which stays where it is."""
        rng = np.random.default_rng(face.picture_seed)
        yaw = float(np.clip(rng.normal(0, 5), -11, 11))
        turned = float(rng.uniform(17, 29))
        pitch = float(np.clip(rng.normal(1, 4.5), -9, 11))
        roll, leaning = float(rng.normal(0, 1.5)), float(rng.uniform(8, 13))
        zoom, shift = float(np.clip(rng.normal(1, 0.035), 0.93, 1.09)), rng.normal(0, 0.06, 2)
        yaw = {"turned left": turned, "turned right": -turned}.get(face.attributes["pose"], yaw)
        roll += {"tilted left": leaning, "tilted right": -leaning}.get(face.attributes["tilt"], 0)
        a, b, c = np.radians([yaw, pitch, roll])
        direction = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
        right = np.cross([0, 1, 0], direction)
        right /= np.linalg.norm(right)
        up = np.cross(direction, right)
        # the head leans to the left of the picture when the camera turns clockwise
        right, up = np.cos(c) * right + np.sin(c) * up, np.cos(c) * up - np.sin(c) * right
        top = neutral[:13380, 1].max()
        width = 4.95 * zoom * float(np.clip(top / 1.96, 0.95, 1.12))
        # what stands above the head comes into the frame
        tall = face.attributes["updo"] == "bun" or face.attributes["headwear"] in ("beanie", "fedora")
        width *= 1.06 if tall else 1.0
        target = np.array([0.0, -0.22 if tall else -0.36, -0.55]) + right * shift[0] + up * shift[1]
        return cls(direction, right, up, target, width)

    def sensor(self, mi, side: int, samples: int) -> dict:
        """Mitsuba's description of the camera."""
        distance = 13.0
        transform = mi.ScalarTransform4f().look_at(
            origin=(self.target + self.direction * distance).tolist(), target=self.target.tolist(), up=self.up.tolist()
        )
        return {
            "type": "perspective",
            "fov": float(np.degrees(2 * np.arctan(self.width / 2 / distance))),
            "to_world": transform,
            "film": {
                "type": "hdrfilm",
                "width": side,
                "height": side,
                "rfilter": {"type": "box"},  # the denoiser works behind no other
                "pixel_format": "rgba",
                "component_format": "float32",
            },
            "sampler": {"type": "multijitter", "sample_count": samples},
        }


_MATERIALS = {
    "skin": {"roughness": 0.5, "specular": 0.42, "flatness": 0.5, "sheen": 0.2},
    "hair": {"roughness": 0.42, "specular": 0.5},
    "eye": {"roughness": 0.12, "specular": 0.5},
    "shiny": {"roughness": 0.2, "specular": 0.6},
    "metal": {"roughness": 0.28, "metallic": 1.0},
    "wet": {"roughness": 0.3, "specular": 0.5},
}


def _shape(mi, surface: Surface):
    textured = surface.coordinates is not None
    if textured:
        colour = {"type": "bitmap", "bitmap": mi.Bitmap(surface.texture), "raw": True}
    else:
        colour = {"type": "mesh_attribute", "name": "vertex_color"}
    if surface.material == "cloth":
        bsdf = {"type": "diffuse", "reflectance": colour}
    else:
        bsdf = {"type": "principled", "base_color": colour, **_MATERIALS[surface.material]}
    if surface.material != "eye":
        bsdf = {"type": "twosided", "bsdf": bsdf}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(bsdf)
    mesh = mi.Mesh(
        "part",
        len(surface.points),
        len(surface.faces),
        props=properties,
        has_vertex_normals=True,
        has_vertex_texcoords=textured,
    )
    if not textured:
        mesh.add_attribute("vertex_color", 3, np.ascontiguousarray(surface.colours, np.float32).ravel())
    values = mi.traverse(mesh)
    values["vertex_positions"] = np.ascontiguousarray(surface.points, np.float32).ravel()
    values["vertex_normals"] = np.ascontiguousarray(surface.normals, np.float32).ravel()
    values["faces"] = np.ascontiguousarray(surface.faces, np.uint32).ravel()
    if textured:
        # Mitsuba's bitmaps begin at the top
        flipped = surface.coordinates * [1, -1] + [0, 1]
        values["vertex_texcoords"] = np.ascontiguousarray(flipped, np.float32).ravel()
    values.update()
    return mesh


def _light(mi, face: Face, camera: Camera) -> dict:
    """A sky of soft lamps that moves with the camera, so that left is the picture's left."""
    rng = np.random.default_rng(face.picture_seed + 5)
    rows, columns = 32, 64
    down = (np.arange(rows) + 0.5) / rows * np.pi
    turn = (np.arange(columns) + 0.5) / columns * 2 * np.pi
    down, turn = np.meshgrid(down, turn, indexing="ij")
    # x right, y up, z to the camera, in the frame of `to_world` below
    sky = np.stack([np.sin(turn) * np.sin(down), np.cos(down), -np.cos(turn) * np.sin(down)], -1)
    warm = float(rng.normal(0, 0.06))
    tint = np.array([1 + warm, 1.0, 1 - warm])
    even_side, height = float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.35, 0.75))

    def lamp(x: float, y: float, z: float, strength: float, sharp: float) -> np.ndarray:
        place = np.array([x, y, z]) / np.linalg.norm([x, y, z])
        return strength * np.exp(sharp * (sky @ place - 1))[..., None]

    kind = face.attributes["lighting"]
    if kind in ("left", "right"):
        side = -1 if kind == "left" else 1
        light = lamp(side, 0.35, 0.35, 6.5, 7) * tint + 0.11 * (1 + 0.4 * sky[..., 1:2])
    else:
        light = lamp(even_side, height, 0.9, 3.6, 6) * tint + lamp(-even_side, 0.1, 0.8, 0.35, 3)
        light = light + lamp(-np.sign(even_side), 0.7, -0.8, 1.6, 6) + 0.22 * (1 + 0.45 * sky[..., 1:2])
        if kind == "dim":
            light = light * np.array([0.33, 0.29, 0.25])
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = camera.right, camera.up, camera.direction
    return {
        "type": "envmap",
        "bitmap": mi.Bitmap(np.ascontiguousarray(light, np.float32)),
        "to_world": mi.ScalarTransform4f(matrix.tolist()),
    }


def background(face: Face, side: int) -> np.ndarray:
    """What lies behind the head: (side, side, 3) of float32, linear RGB, plain or of blurred shapes of one colour."""
    rng = np.random.default_rng(face.picture_seed + 6)
    base = np.array(BACKGROUNDS[face.attributes["background"]]) * (1 + 0.04 * rng.normal(size=3))
    rows, columns = np.mgrid[0:side, 0:side] / side - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    shade = (
        1
        + rng.uniform(0, 0.3) * (np.cos(angle) * columns + np.sin(angle) * rows)
        - rng.uniform(0, 0.5) * (rows**2 + columns**2)
    )
    if rng.random() < 0.45:
        shapes = np.zeros((48, 48))
        for _ in range(rng.integers(6, 16)):
            y, x = rng.integers(0, 44, 2)
            shapes[y : y + rng.integers(3, 22), x : x + rng.integers(2, 14)] += rng.normal(0, 0.45)
        shapes = gaussian_filter(shapes, rng.uniform(1.6, 3.4))
        big = np.asarray(Image.fromarray(shapes.astype(np.float32)).resize((side, side), Image.BICUBIC))
        shade = shade * np.exp(np.clip(big, -0.7, 0.5))
    colour = base * np.clip(shade, 0.25, 1.5)[..., None]
    if face.attributes["lighting"] == "dim":
        colour = colour * 0.3
    return np.clip(colour, 0.002, 1.0).astype(np.float32)


def finish(linear: np.ndarray, size: int, face: Face) -> Image.Image:
    """Shrink a linear picture and bring it to sRGB as a camera does."""
    side = linear.shape[0]
    bands = [Image.fromarray(np.ascontiguousarray(linear[..., k])) for k in range(3)]
    small = np.stack(
        [np.asarray(band.resize((size, size), Image.BOX if side % size == 0 else Image.BICUBIC)) for band in bands], -1
    )
    if face.attributes["blurry"] == "yes":
        small = gaussian_filter(small, (size / 75, size / 75, 0))
    small = np.maximum(small, 0)
    shown = 1 - np.exp(-1.3 * small**1.13)  # a soft shoulder instead of burnt highlights, and some contrast
    shown = np.where(shown < 0.0031308, 12.92 * shown, 1.055 * np.maximum(shown, 1e-6) ** (1 / 2.4) - 0.055)
    return Image.fromarray((np.clip(shown, 0, 1) * 255 + 0.5).astype(np.uint8))
