"""Degraded pictures: worse with severity, of the same size, repeatable."""

import numpy as np
import pytest
from PIL import Image

from unif2ace.training.evaluation.degradations import DEGRADATIONS, degrade
from unif2ace.training.evaluation.measures import psnr
from unif2ace.training.synthetic.painted.dataset import painted_face


@pytest.fixture(scope="module")
def face():
    return painted_face(0, "test", size=64).image


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_pictures_get_worse_with_severity(face, kind):
    original = np.asarray(face)[None]
    decibels = []
    for severity in (1, 2, 3):
        worse = degrade(face, kind, severity, seed=3)
        assert worse.size == face.size and worse.mode == "RGB"
        decibels.append(psnr(original, np.asarray(worse)[None])[0])
    assert 35 > decibels[0] > decibels[1] > decibels[2] > 5
    assert degrade(face, kind, 2, seed=3).tobytes() == degrade(face, kind, 2, seed=3).tobytes()


def test_each_does_what_it_says(face):
    assert np.asarray(degrade(face, "low_light", 2)).mean() == pytest.approx(0.3 * np.asarray(face).mean(), rel=0.03)
    gray = Image.new("RGB", (100, 100), (200, 200, 200))
    assert np.asarray(degrade(gray, "noise", 1)).std() == pytest.approx(0.05 * 255, rel=0.05)
    for seed in range(10):
        covered = (np.asarray(degrade(gray, "occlusion", 2, seed)) == 127).all(-1)
        assert covered.mean() == pytest.approx(0.2, rel=0.1)
    assert len({degrade(face, "occlusion", 2, seed).tobytes() for seed in range(5)}) == 5
    assert degrade(face.convert("L"), "blur").mode == "RGB"


@pytest.mark.parametrize(("kind", "severity"), [("rain", 1), ("blur", 0), ("blur", 4)])
def test_unknown_ones_are_refused(face, kind, severity):
    with pytest.raises(ValueError, match="expected one of blur"):
        degrade(face, kind, severity)
