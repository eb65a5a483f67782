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

from .face_encoder_unif2ace import align_face


logger = logging.get_logger(__name__)

# RGB picture as an array (H, W, 3) to the landmarks (5, 2) of its largest face, or None
Detector = Callable[[np.ndarray], np.ndarray | None]


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


__all__ = ["align_largest_face", "find_detector"]
