"""
Faces cut out of pictures by their landmarks, as ArcFace encoders expect them.

Landmarks come from a detector that the user installs, `uniface` or `insightface`; both fetch weights of their own when
they are first used, with licences of their own. Without one the whole picture is taken for the face, and the log says
so once.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Left eye, right eye (as seen in the picture), nose tip, left and right mouth corner of an aligned face of 112 x 112
# pixels; (x, y), the centre of the first pixel is (0, 0). The template of ArcFace (Deng et al., CVPR 2019).
ARCFACE_TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
ARCFACE_TEMPLATE_SIZE = 112

# RGB picture as an array (H, W, 3) to the landmarks (5, 2) of its largest face, or None
Detector = Callable[[np.ndarray], np.ndarray | None]


def similarity_transform(source, target) -> np.ndarray:
    """
    Least-squares rotation, uniform scale and shift that map one set of points to another (Umeyama, PAMI 1991).

    Args:
        source (array-like of shape `(points, 2)`): Points to be mapped.
        target (array-like of shape `(points, 2)`): Where they should land.

    Returns:
        `np.ndarray` of shape `(2, 3)` and float64: the matrix `M` with `target ≈ M @ [x, y, 1]`; never a reflection.

    Raises:
        ValueError: if the shapes differ or the source points coincide.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(
            f"points have shapes {source.shape} and {target.shape}, expected (points, 2) twice with 2 or more points"
        )
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred_source, centred_target = source - source_mean, target - target_mean
    variance = (centred_source**2).sum()
    if variance < 1e-12:
        raise ValueError("all source points coincide, expected landmarks at different places")
    left, singular_values, right = np.linalg.svd(centred_target.T @ centred_source)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    linear = (singular_values * signs).sum() / variance * (left * signs) @ right
    return np.column_stack([linear, target_mean - linear @ source_mean])


def align_face(image: Image.Image, landmarks, size: int = ARCFACE_TEMPLATE_SIZE) -> Image.Image:
    """
    Cut out a face so that its five landmarks lie where ArcFace encoders expect them.

    Args:
        image (`PIL.Image.Image`): The whole picture.
        landmarks (array-like of shape `(5, 2)`):
            (x, y) in pixels of the left eye, right eye (as seen in the picture), nose tip, left and right mouth
            corner; the centre of the first pixel is (0, 0), as face detectors count.
        size (`int`, *optional*, defaults to 112): Side of the result, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, `size` x `size`; black where it reaches beyond the picture.

    Raises:
        ValueError: if there are not five landmarks, or all lie in one place.
    """
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.shape != (len(ARCFACE_TEMPLATE), 2):
        raise ValueError(f"landmarks have shape {landmarks.shape}, expected (5, 2): two eyes, nose, two mouth corners")
    template = np.asarray(ARCFACE_TEMPLATE) * size / ARCFACE_TEMPLATE_SIZE
    # Pillow counts from the corner of the first pixel and asks for the map from the result back to the picture
    matrix = similarity_transform(landmarks + 0.5, template + 0.5)
    back = np.linalg.inv(np.vstack([matrix, (0.0, 0.0, 1.0)]))[:2]
    # rounded, lest a coordinate of -1e-14 counts as outside the picture
    coefficients = back.round(9).flatten().tolist()
    return image.convert("RGB").transform(
        (size, size), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
    )


def _largest(faces, box_of, landmarks_of) -> np.ndarray | None:
    """The landmarks of the face with the largest box."""
    faces = [face for face in faces if landmarks_of(face) is not None]
    if not faces:
        return None
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in map(box_of, faces)]
    return np.asarray(landmarks_of(faces[int(np.argmax(areas))]), dtype=np.float64)[:5]


def _uniface() -> Detector | None:
    try:
        from uniface.detection import RetinaFace
    except ImportError:
        return None
    detector = RetinaFace()

    def detect(picture: np.ndarray) -> np.ndarray | None:
        faces = detector.detect(np.ascontiguousarray(picture[..., ::-1]))  # BGR
        return _largest(faces, lambda face: face.bbox, lambda face: face.landmarks)

    return detect


def _insightface() -> Detector | None:
    try:
        from insightface.app import FaceAnalysis
    except ImportError:
        return None
    analysis = FaceAnalysis(allowed_modules=["detection"])
    analysis.prepare(ctx_id=-1, det_size=(640, 640))

    def detect(picture: np.ndarray) -> np.ndarray | None:
        faces = analysis.get(np.ascontiguousarray(picture[..., ::-1]))  # BGR
        return _largest(faces, lambda face: face.bbox, lambda face: face.kps)

    return detect


@cache
def find_detector() -> Detector | None:
    """
    The installed landmark detector, `uniface` before `insightface`; `None`, with a warning, if there is none, or it
    cannot fetch its weights.
    """
    for name, load in (("uniface", _uniface), ("insightface", _insightface)):
        try:
            detector = load()
        except Exception as error:  # no connection, a broken download, a missing runtime: the detector's affair
            logger.warning(f"The face detector {name} cannot be used ({type(error).__name__}: {error}).")
            continue
        if detector is not None:
            return detector
    logger.warning(
        "No face detector is installed, so the face encoder gets whole pictures instead of aligned faces, which it "
        "was not trained on: pip install uniface onnxruntime, or crop pictures to the face."
    )
    return None


def align_largest_face(image: Image.Image, size: int = 112, detector: Detector | None = None) -> Image.Image:
    """
    The largest face of a picture, turned and scaled to ArcFace's five-point template.

    Args:
        image (`PIL.Image.Image`): The picture.
        size (`int`, *optional*, defaults to 112): Side of the result, in pixels.
        detector (`Callable`, *optional*): From an RGB array (H, W, 3) to landmarks (5, 2) in pixels: eyes, nose, mouth
            corners; or `None`. The installed one (`find_detector`) when not given.

    Returns:
        `PIL.Image.Image`: RGB, `size` x `size`; the whole picture, resized, where no face was found, which is logged.
    """
    image = image.convert("RGB")
    detector = detector or find_detector()
    if detector is not None:
        landmarks = detector(np.asarray(image))
        if landmarks is not None:
            return align_face(image, landmarks, size)
        logger.warning("No face was found in a picture: the face encoder gets the whole picture.")
    return image.resize((size, size), Image.Resampling.BICUBIC)


__all__ = ["ARCFACE_TEMPLATE", "align_face", "align_largest_face", "find_detector", "similarity_transform"]
