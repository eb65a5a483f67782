"""Where painted faces have their eyes, nose and mouth: landmarks that are known, to test alignment with."""

import math
from collections.abc import Mapping

import numpy as np

from unif2ace.training.synthetic.painted.geometry import FaceGeometry
from unif2ace.training.synthetic.painted.painter import CANVAS_SIZE


# As the painter draws: heads tilt around this point of the canvas, and mouths lie at this depth of the head.
_TILT_CENTER = (128.0, 196.0)
_MOUTH_DEPTH = 46.0


def painted_landmarks(attributes: Mapping[str, str], identity: Mapping[str, float], size: int = 64) -> np.ndarray:
    """
    The five landmarks of a painted face.

    Args:
        attributes (`Mapping[str, str]`): All 48 attributes.
        identity (`Mapping[str, float]`): The 12 identity parameters.
        size (`int`, *optional*, defaults to 64): Side of the picture, in pixels.

    Returns:
        `np.ndarray` of shape `(5, 2)`: (x, y) in pixels of the left eye, right eye (as seen in the picture), nose tip,
        left and right mouth corner; the centre of the first pixel is (0, 0).
    """
    face = FaceGeometry(attributes, identity)
    points = [face.project(side * face.eye_x, face.eye_y) for side in (-1, 1)]
    points.append(face.project(0.0, face.nose_y))
    points += [face.project(side * face.mouth_width, face.mouth_y, _MOUTH_DEPTH) for side in (-1, 1)]
    angle, center = math.radians(face.roll), np.asarray(_TILT_CENTER)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return ((np.asarray(points) - center) @ rotation.T + center) * size / CANVAS_SIZE - 0.5
