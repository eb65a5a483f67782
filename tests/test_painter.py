"""Painted faces: the vocabulary, what is painted, and what can be seen."""

import hashlib
import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from unif2ace.training.data.language.attributes import (
    ATTRIBUTES,
    COARSE_ATTRIBUTES,
    IDENTITY_PARAMETERS,
    sample_attributes,
    sample_identity,
    validate_attributes,
)
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.synthetic.painted.exact_visibility import visible_attributes
from unif2ace.training.synthetic.painted.painter import face_svg, paint


MEAN_IDENTITY = dict.fromkeys(IDENTITY_PARAMETERS, 0.0)
NEUTRAL_FACE = {name: values[0] for name, values in ATTRIBUTES.items()} | {
    "gender": "woman",
    "skin": "fair",
    "hair_color": "brown",
    "hair_length": "medium",
    "eye_size": "normal",
    "clothes_color": "blue",
    "background": "gray",
}


def sample_face(seed):
    rng = random.Random(seed)
    return sample_attributes(rng), sample_identity(rng)


def changed_pixels(picture, other, threshold=12):
    difference = np.abs(np.asarray(picture, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return int((difference.max(axis=-1) > threshold).sum())


def picture_hash(seeds):
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(paint(*sample_face(seed)).tobytes())
    return digest.hexdigest()


def test_vocabulary_has_48_attributes_with_159_values():
    assert len(ATTRIBUTES) == 48
    assert sum(len(values) for values in ATTRIBUTES.values()) == 159
    assert all(len(set(values)) == len(values) for values in ATTRIBUTES.values())
    assert set(COARSE_ATTRIBUTES) <= set(ATTRIBUTES)
    assert len(set(IDENTITY_PARAMETERS)) == 12


def test_samples_are_valid_and_reach_every_value():
    samples = [sample_attributes(random.Random(seed)) for seed in range(2000)]
    for sample in samples:
        validate_attributes(sample)
    for name, values in ATTRIBUTES.items():
        assert {sample[name] for sample in samples} == set(values), name
    masks = sum(sample["mask"] == "yes" for sample in samples) / len(samples)
    assert masks == pytest.approx(0.08, abs=0.02)


def test_identity_samples_are_clipped():
    values = [value for seed in range(200) for value in sample_identity(random.Random(seed)).values()]
    assert max(values) == 2.0 and min(values) == -2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hair_color": "green"}, "'hair_color' is 'green'; give one of black, brown, blond, red, gray"),
        ({"tail": "yes"}, "'tail' is unknown"),
    ],
)
def test_wrong_attributes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        validate_attributes({**NEUTRAL_FACE, **change})


def test_missing_attribute_and_identity_are_named():
    without_mask = {name: value for name, value in NEUTRAL_FACE.items() if name != "mask"}
    with pytest.raises(ValueError, match="'mask' is missing"):
        paint(without_mask, MEAN_IDENTITY)
    with pytest.raises(ValueError, match="'jaw_width' is 3.0"):
        paint(NEUTRAL_FACE, {**MEAN_IDENTITY, "jaw_width": 3.0})
    with pytest.raises(ValueError, match="'face_width' is missing"):
        paint(NEUTRAL_FACE, {})


def test_picture_is_rgb_of_the_wanted_size():
    for size in (32, 64, 128):
        picture = paint(NEUTRAL_FACE, MEAN_IDENTITY, size=size)
        assert picture.mode == "RGB" and picture.size == (size, size)


def test_pictures_are_the_same_in_another_process():
    here = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_painter; print(test_painter.picture_hash(range(4)))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == picture_hash(range(4))


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_two_values_of_an_attribute_look_different(name):
    pictures = {value: paint({**NEUTRAL_FACE, name: value}, MEAN_IDENTITY) for value in ATTRIBUTES[name]}
    for value, other in combinations(ATTRIBUTES[name], 2):
        assert changed_pixels(pictures[value], pictures[other]) >= 6, (value, other)


@pytest.mark.parametrize("name", IDENTITY_PARAMETERS)
def test_every_identity_parameter_is_seen(name):
    low = paint(NEUTRAL_FACE, {**MEAN_IDENTITY, name: -2.0})
    high = paint(NEUTRAL_FACE, {**MEAN_IDENTITY, name: 2.0})
    assert changed_pixels(low, high) >= 12


def test_identity_leaves_colors_alone():
    # Geometry may move, yet the clothes and the background have no identity.
    pictures = [np.asarray(paint(NEUTRAL_FACE, sample_face(seed)[1])) for seed in range(4)]
    for picture in pictures[1:]:
        assert (picture[60:, :4] == pictures[0][60:, :4]).all()
        assert (picture[:8, :8] == pictures[0][:8, :8]).all()


def test_same_identity_with_another_expression_keeps_the_head():
    attributes, identity = {**NEUTRAL_FACE, "hair_length": "bald"}, sample_face(5)[1]
    happy = {**attributes, "emotion": "happy", "mouth": "smiling"}
    changed = changed_pixels(paint(attributes, identity), paint(happy, identity))
    assert 0 < changed < 0.15 * 64 * 64


def test_hidden_attributes_are_found_exactly():
    attributes = {**NEUTRAL_FACE, "mask": "yes", "eyewear": "sunglasses"}
    visible = visible_attributes(attributes, MEAN_IDENTITY)
    for name in ("mouth", "lips", "lipstick", "eye_color", "gaze", "eyes"):
        assert not visible[name], name
    for name in ("gender", "skin", "hair_color", "hair_length", "mask", "eyewear", "clothes_color", "background"):
        assert visible[name], name
    assert not visible_attributes({**NEUTRAL_FACE, "hair_length": "bald"}, MEAN_IDENTITY)["hair_texture"]


def test_rules_agree_with_counterfactuals():
    wrong, total, seen = [], 0, set()
    for seed in range(1000, 1015):
        attributes, identity = sample_face(seed)
        exact, assumed = visible_attributes(attributes, identity), assumed_visible(attributes)
        assert list(assumed) == list(exact) == list(ATTRIBUTES)
        total += sum(assumed.values())
        wrong += [(seed, name) for name in ATTRIBUTES if assumed[name] and not exact[name]]
        seen |= {name for name in ATTRIBUTES if exact[name]}
    assert len(wrong) <= 0.01 * total, wrong
    assert seen == set(ATTRIBUTES)


def test_svg_has_no_values_that_are_not_numbers():
    for seed in range(50):
        svg = face_svg(*sample_face(seed))
        assert "nan" not in svg and "inf" not in svg
