"""
Find the face in each picture, turn it upright and cut it out.

The landmarks come from a detector (`uniface` or `insightface`; neither brings weights in its package, both download
them at the first use, those of insightface for non-commercial research only) or from a file. A picture with several
faces gives its largest one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..._versions import need
from ...modeling_unif2ace.face_alignment_unif2ace import ARCFACE_TEMPLATE, ARCFACE_TEMPLATE_SIZE, similarity_transform
from ...pipelines.files import read_json
from .records import FolderWriter
from .sources import BrokenSampleError, BrokenSamples, FaceStream


# How much smaller than in the ArcFace template a face is: then its head fills the picture as in FFHQ and CelebA-HQ.
FACE_SCALE = 0.78


@dataclass(frozen=True)
class FoundFace:
    """
    A face in a picture.

    Args:
        landmarks (`np.ndarray` of shape `(5, 2)`):
            (x, y) in pixels of the left eye, right eye (as seen in the picture), nose tip, left and right mouth
            corner; the centre of the first pixel is (0, 0).
        score (`float`, *optional*, defaults to 1.0): How sure the detector is.
    """

    landmarks: np.ndarray
    score: float = 1.0

    @property
    def size(self) -> float:
        """Pixels from the middle of the eyes to the middle of the mouth, which hardly shrink in profile."""
        eyes, mouth = self.landmarks[:2].mean(0), self.landmarks[3:].mean(0)
        return float(np.linalg.norm(eyes - mouth))


# An RGB picture and its name to the faces in it, in any order; none if there is none
FaceFinder = Callable[[Image.Image, str], list[FoundFace]]


def uniface_finder(threshold: float = 0.5, detector=None) -> FaceFinder:
    """SCRFD of the package `uniface` (MIT); its weights are downloaded at the first use."""
    if detector is None:
        uniface = need("uniface.detection", "align")
        try:
            detector = uniface.SCRFD(confidence_threshold=threshold)
        except Exception as error:  # the download fails in as many ways as networks do
            raise ValueError(
                f"uniface has no weights of its detector ({error}): run it once where there is a network, or give "
                "--detector landmarks:FILE"
            ) from error

    def find(image: Image.Image, name: str) -> list[FoundFace]:
        return [_found(face.landmarks, face.confidence) for face in detector.detect(_bgr(image))]

    return find


def insightface_finder(pack: str = "buffalo_l", threshold: float = 0.5, app=None) -> FaceFinder:
    """The detector of an `insightface` model pack (weights for non-commercial research only)."""
    if app is None:
        try:
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise ValueError("the detector needs insightface: pip install insightface") from error
        try:
            app = FaceAnalysis(name=pack, allowed_modules=["detection"])
            app.prepare(ctx_id=0, det_thresh=threshold)
        except Exception as error:  # a download, or the bare assertion of a pack in a folder too deep
            raise ValueError(
                f"insightface's {pack} cannot be loaded ({type(error).__name__}: {error}): see that its .onnx "
                f"files lie in ~/.insightface/models/{pack}, not in a folder below"
            ) from error

    def find(image: Image.Image, name: str) -> list[FoundFace]:
        return [_found(face.kps, face.det_score) for face in app.get(_bgr(image))]

    return find


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def _found(landmarks, score) -> FoundFace:
    return FoundFace(np.asarray(landmarks, dtype=np.float64), float(score))


def landmark_finder(path: Path) -> FaceFinder:
    """
    Landmarks that are known.

    Args:
        path (`Path`): JSON, name to five points, or a table of ten numbers a picture with names of columns (CelebA).

    Raises:
        ValueError: if an entry is not five points.
    """
    if path.suffix == ".json":
        entries: Mapping[str, Sequence] = read_json(path)
    else:
        from .sources.known import read_label_table

        entries = {name: values.split() for name, values in read_label_table(path)[1]}
    known = {}
    for name, values in entries.items():
        try:
            known[name] = [FoundFace(np.asarray(values, dtype=np.float64).reshape(5, 2))]
        except ValueError as error:
            raise ValueError(f"{path} has {values!r} for {name}, expected five points (x, y)") from error
    return lambda image, name: known.get(name, known.get(Path(name).name, []))


def make_finder(text: str, threshold: float = 0.5) -> FaceFinder:
    """
    The finder that a command line names.

    Raises:
        ValueError: if it is unknown or cannot be loaded.
    """
    kind, _, rest = text.partition(":")
    if kind == "uniface":
        return uniface_finder(threshold)
    if kind == "insightface":
        return insightface_finder(rest or "buffalo_l", threshold)
    if kind == "landmarks" and rest:
        return landmark_finder(Path(rest))
    raise ValueError(f"detector {text!r} is unknown, expected uniface, insightface[:PACK] or landmarks:FILE")


def crop_face(
    image: Image.Image, landmarks, size: int = 256, face_scale: float = FACE_SCALE
) -> tuple[Image.Image, float]:
    """
    Turn a face upright and cut it out, with room around it.

    Args:
        image (`PIL.Image.Image`): The whole picture.
        landmarks (array-like of shape `(5, 2)`): See [`FoundFace`].
        size (`int`, *optional*, defaults to 256): Side of the result, in pixels.
        face_scale (`float`, *optional*, defaults to 0.78):
            Size of the face, as a share of what ArcFace encoders want to see: 1.0 is their template.

    Returns:
        The RGB picture, black where it reaches beyond `image`, and the share of it that does.

    Raises:
        ValueError: if there are not five landmarks, or all lie in one place.
    """
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks have shape {landmarks.shape}, expected (5, 2): two eyes, nose, two mouth corners")
    middle = ARCFACE_TEMPLATE_SIZE / 2
    template = middle + (np.asarray(ARCFACE_TEMPLATE) + 0.5 - middle) * face_scale
    template *= size / ARCFACE_TEMPLATE_SIZE
    # from here on the corner of the first pixel is (0, 0), as Pillow counts
    source = landmarks + 0.5
    image = image.convert("RGB")
    scale = float(np.sqrt(abs(np.linalg.det(similarity_transform(source, template)[:, :2]))))
    if scale < 0.5:  # bilinear interpolation reads four pixels: more of them are averaged first
        factor = int(1 / scale)
        image, source = image.reduce(factor), source / factor
    matrix = similarity_transform(source, template)
    back = np.linalg.inv(np.vstack([matrix, (0.0, 0.0, 1.0)]))[:2]
    coefficients = back.round(9).flatten().tolist()
    crop = image.transform((size, size), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)
    grid = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), -1).reshape(-1, 2)
    places = grid @ back[:, :2].T + back[:, 2]
    inside = ((places >= 0) & (places <= np.asarray(image.size))).all(-1)
    return crop, 1.0 - float(inside.mean())


def choose_face(faces: Sequence[FoundFace], min_score: float = 0.5, min_size: float = 12.0) -> FoundFace:
    """
    The largest face that is sure enough.

    Raises:
        BrokenSampleError: if there is none, or it has fewer than `min_size` pixels from eyes to mouth.
    """
    sure = [face for face in faces if face.score >= min_score]
    if not sure:
        raise BrokenSampleError("there is no face" if not faces else "no face is sure enough")
    largest = max(sure, key=lambda face: face.size)
    if largest.size < min_size:
        raise BrokenSampleError(f"the face has {largest.size:.0f} pixels from eyes to mouth, expected {min_size:g}")
    return largest


def crop_faces(
    stream: FaceStream,
    output: str | Path,
    finder: FaceFinder,
    *,
    size: int = 256,
    face_scale: float = FACE_SCALE,
    min_score: float = 0.5,
    min_size: float = 12.0,
    max_outside: float = 0.3,
    max_faceless: int = -1,
    overwrite: bool = False,
) -> tuple[int, BrokenSamples]:
    """
    Write the largest face of each picture of a data set, upright and cut out, into a new folder.

    Args:
        stream ([`FaceStream`]): The data set.
        output (`str` or `Path`): The folder.
        finder ([`FaceFinder`]): Finds the faces.
        size (`int`, *optional*, defaults to 256), face_scale (`float`, *optional*): See [`crop_face`].
        min_score (`float`, *optional*), min_size (`float`, *optional*): See [`choose_face`].
        max_outside (`float`, *optional*, defaults to 0.3): Greatest share of a crop that lies beyond its picture.
        max_faceless (`int`, *optional*, defaults to -1): Pictures without a usable face before it stops; -1 for never.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a folder that exists may be replaced.

    Returns:
        How many faces were written, and the pictures without a usable one.
    """
    faceless = BrokenSamples(f"faces of {stream.name}", max_faceless)
    with FolderWriter(output, overwrite) as writer:
        for record in tqdm(stream, desc="cropping", unit="face", disable=None):
            try:
                face = choose_face(finder(record.image, record.id), min_score, min_size)
                record.image, outside = crop_face(record.image, face.landmarks, size, face_scale)
                if outside > max_outside:
                    raise BrokenSampleError(f"{outside:.0%} of the crop lie beyond the picture")
            except BrokenSampleError as error:
                faceless.add(record.id, error)
                continue
            writer.add(record)
    return writer.count, faceless
