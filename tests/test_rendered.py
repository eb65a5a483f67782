"""The rendered world: what is drawn, from the seed alone; and small renders where the renderer is installed."""

import importlib.util
import random
from collections import Counter

import numpy as np
import pytest

from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.data.language.captions import parse_caption, write_caption
from unif2ace.training.data.language.questions import write_questions
from unif2ace.training.synthetic.rendered.people import PICTURES_PER_PERSON, SPLITS, face_of
from unif2ace.training.synthetic.rendered.vocabulary import (
    ADDED_VALUES,
    LEFT_OUT,
    LOOK_ATTRIBUTES,
    PERSON_ATTRIBUTES,
    PICTURE_ATTRIBUTES,
    RENDERED_ATTRIBUTES,
    validate_rendered,
)


MISSING = [name for name in ("anny", "mitsuba", "pyoidn", "scipy") if importlib.util.find_spec(name) is None]
needs_renderer = pytest.mark.skipif(bool(MISSING), reason=f"the extra `synthetic` is not installed: {MISSING}")


# ---------------------------------------------------------------------------------------------------------------------
# Who is drawn
# ---------------------------------------------------------------------------------------------------------------------


def test_vocabulary_is_the_common_one_but_for_what_is_declared():
    assert set(RENDERED_ATTRIBUTES) == set(ATTRIBUTES) - set(LEFT_OUT)
    for name, values in RENDERED_ATTRIBUTES.items():
        assert set(values) - set(ATTRIBUTES[name]) == set(ADDED_VALUES.get(name, ())) - set(ATTRIBUTES[name])
        assert values[: len(ATTRIBUTES[name])] == ATTRIBUTES[name]
    assert sorted(PERSON_ATTRIBUTES + LOOK_ATTRIBUTES + PICTURE_ATTRIBUTES) == sorted(RENDERED_ATTRIBUTES)


def test_a_face_depends_on_seed_split_and_index_alone():
    assert face_of(11, "train", 3) == face_of(11, "train", 3)
    others = [face_of(11, "train", 4), face_of(11, "test", 3), face_of(10, "train", 3)]
    assert all(face_of(11, "train", 3) != other for other in others)


def test_eight_pictures_are_one_person_in_two_looks():
    faces = [face_of(index) for index in range(PICTURES_PER_PERSON + 1)]
    same, stranger = faces[:-1], faces[-1]
    assert {face.identity for face in same} == {faces[0].identity} != {stranger.identity}
    for name in PERSON_ATTRIBUTES:
        assert len({face.attributes[name] for face in same}) == 1
    assert len({face.person_seed for face in same}) == 1
    assert len({face.look_seed for face in same}) == 2
    assert len({face.picture_seed for face in same}) == PICTURES_PER_PERSON


def test_every_value_is_drawn_and_nothing_contradicts():
    seen = {name: Counter() for name in RENDERED_ATTRIBUTES}
    for index in range(4000):
        a = face_of(index).attributes
        validate_rendered(a)
        for name, value in a.items():
            seen[name][value] += 1
        assert not (a["gender"] == "woman" and a["beard"] != "none")
        assert not (a["age"] == "child" and "yes" in (a["mustache"], a["wrinkles"]))
        assert not (a["updo"] != "none" and a["headwear"] != "none")
        assert not (a["hair_length"] == "bald" and a["bangs"] == "yes")
        assert not (a["neckwear"] != "none" and a["clothes"] not in ("collared shirt", "suit"))
    for name, values in RENDERED_ATTRIBUTES.items():
        assert set(seen[name]) == set(values), name


def test_ancestry_and_skin_are_balanced_and_only_skin_is_an_attribute():
    people = [face_of(index * PICTURES_PER_PERSON) for index in range(3000)]
    shares = np.mean([[face.ancestry[name] for name in ("african", "asian", "caucasian")] for face in people], axis=0)
    assert np.all(np.abs(shares - 1 / 3) < 0.05)
    tones = Counter(face.attributes["skin"] for face in people)
    assert all(abs(count / 3000 - 0.2) < 0.03 for count in tones.values())
    assert all(abs(sum(face.ancestry.values()) - 1) < 1e-9 for face in people)
    assert not {"ancestry", "race"} & set(RENDERED_ATTRIBUTES)


@pytest.mark.parametrize(("index", "split"), [(-1, "train"), (0, "everything")])
def test_faces_that_are_none_are_refused(index, split):
    with pytest.raises(ValueError, match=str(index) if index < 0 else ", ".join(SPLITS)):
        face_of(index, split)


def test_changing_one_attribute_leaves_the_others_and_refuses_unknown_values():
    face = face_of(5)
    changed = face.with_attribute("headwear", "headscarf")
    assert {n for n in RENDERED_ATTRIBUTES if face.attributes[n] != changed.attributes[n]} <= {"headwear"}
    assert (changed.person_seed, changed.look_seed, changed.picture_seed) == (
        face.person_seed,
        face.look_seed,
        face.picture_seed,
    )
    with pytest.raises(ValueError, match="headscarf"):
        face.with_attribute("headwear", "crown")
    assert face.with_attribute("age", "child").years < 15
    assert face.with_attribute("age", face.attributes["age"]) == face


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer():
    from unif2ace.training.synthetic.rendered.render import Renderer

    return Renderer(64, samples=2)


def plain_face():
    """Somebody who looks ahead and wears nothing but a shirt."""
    face = face_of(0, "test")
    plain = {"headwear": "none", "eyewear": "none", "mask": "no", "headphones": "no", "earrings": "none"}
    plain |= {"necklace": "none", "neckwear": "none", "pose": "frontal", "tilt": "upright", "lighting": "even"}
    plain |= {"emotion": "neutral", "mouth": "closed", "eyes": "open", "gaze": "ahead", "blurry": "no"}
    plain |= {"clothes": "t-shirt", "clothes_color": "red", "background": "white", "hair_length": "short"}
    plain |= {"hair_color": "black", "hair_texture": "straight", "bangs": "no", "updo": "none", "age": "young"}
    plain |= {"skin": "fair", "hairline": "normal"}
    for name, value in plain.items():
        face = face.with_attribute(name, value)
    return face


def pixels(picture) -> np.ndarray:
    return np.asarray(picture, float)


@needs_renderer
def test_the_same_face_has_the_same_pixels(renderer):
    from unif2ace.training.synthetic.rendered.render import Renderer

    first, counts = renderer.render_seen(plain_face())
    again = Renderer(64, samples=2).render(plain_face())
    assert first.size == (64, 64) and first.mode == "RGB"
    assert np.array_equal(pixels(first), pixels(again))
    # the head fills the frame, and its parts are there
    assert counts["skin"] > 0.2 * 64 * 64
    assert counts["eyes"] > 4 and counts["hair"] > 50 and counts["clothes"] > 100


@needs_renderer
def test_left_is_the_left_of_the_picture(renderer):
    plain = plain_face()
    left = pixels(renderer.render(plain.with_attribute("lighting", "left")))[20:44]
    right = pixels(renderer.render(plain.with_attribute("lighting", "right")))[20:44]
    assert (left - right)[:, 16:30].mean() > 8 > -8 > (left - right)[:, 34:48].mean()


@needs_renderer
@pytest.mark.parametrize(
    ("name", "value", "rows", "least"),
    [
        ("headwear", "fedora", slice(0, 24), 100),
        ("headwear", "headscarf", slice(0, 64), 150),
        ("eyewear", "sunglasses", slice(16, 40), 60),
        ("mask", "yes", slice(30, 56), 120),
        ("background", "green", slice(0, 30), 200),
        ("clothes_color", "blue", slice(50, 64), 150),
        ("mouth", "wide open", slice(34, 56), 20),
        ("hair_color", "blond", slice(0, 30), 80),
    ],
)
def test_an_attribute_changes_the_picture_where_it_should(renderer, name, value, rows, least):
    plain = plain_face()
    before, after = (pixels(renderer.render(face)) for face in (plain, plain.with_attribute(name, value)))
    changed = np.abs(before - after).max(-1) > 25
    assert changed[rows].sum() >= least


@needs_renderer
def test_seen_says_what_hides_what(renderer):
    from unif2ace.training.synthetic.rendered.visibility import seen_in, visible_attributes

    def seen(**changes):
        face = plain_face()
        for name, value in changes.items():
            face = face.with_attribute(name, value)
        return seen_in(face, renderer.render_seen(face)[1], 64)

    plain = seen()
    assert plain["mouth"] and plain["hair_color"] and plain["headwear"] and set(plain) == set(RENDERED_ATTRIBUTES)
    assert not seen(mask="yes")["mouth"]
    assert not seen(eyewear="sunglasses")["gaze"]
    assert not seen(headwear="headscarf")["hair_color"]
    exact = visible_attributes(plain_face(), renderer, names=("clothes_color", "mask", "updo"))
    assert exact["clothes_color"] and exact["mask"]


@needs_renderer
def test_shards_are_whole_resumed_and_read_back(tmp_path, monkeypatch):
    import datasets

    from unif2ace.training.data.sources import open_faces
    from unif2ace.training.synthetic.rendered import dataset

    monkeypatch.setattr(dataset, "SHARD_PICTURES", 2)
    paths = dataset.render_faces(tmp_path, "test", 2, size=32)
    stamp = paths[0].stat().st_mtime_ns
    paths = dataset.render_faces(tmp_path, "test", 4, size=32, workers=2)
    assert [path.name for path in paths] == ["test-00000.parquet", "test-00001.parquet"]
    assert paths[0].stat().st_mtime_ns == stamp  # what is there is not made again
    table = datasets.load_dataset(str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 4 and table[3]["image"].size == (32, 32)
    assert table[3]["attributes"] == face_of(3, "test").attributes
    records = list(open_faces(f"records:{tmp_path}", split="test"))
    assert [record.attributes for record in records] == [face_of(index, "test").attributes for index in range(4)]
    assert all(record.captions and record.questions for record in records)
    with pytest.raises(ValueError, match="--overwrite"):
        dataset.render_faces(tmp_path, "test", 4, seed=1, size=32)


@needs_renderer
def test_words_call_children_boys_and_girls_and_say_nothing_of_ancestry():
    seen = dict.fromkeys(RENDERED_ATTRIBUTES, True)
    for index in range(0, 400, 8):
        face = face_of(index)
        rng = random.Random(index)
        captions = [write_caption(face.attributes, seen, rng).text for _ in range(3)]
        questions = write_questions(face.attributes, seen, rng, 8)
        text = " ".join([*captions, *(f"{item.question} {item.answer}" for item in questions)]).lower()
        words = set(text.replace(",", " ").replace(".", " ").split())
        assert not words & {"african", "asian", "caucasian"}
        if face.attributes["age"] == "child":
            assert not words & {"man", "woman"}
            assert words & {"boy", "girl"}
            assert parse_caption(captions[0])["age"] == "child"
        if face.attributes["headwear"] == "headscarf":
            assert parse_caption(captions[0])["headwear"] == "headscarf"


def test_missing_data_is_said_in_one_sentence(monkeypatch):
    pytest.importorskip("scipy", reason="the rendered world needs scipy")
    from unif2ace.training.synthetic.rendered import data

    def nothing(name):
        raise data.PackageNotFoundError(name)

    monkeypatch.setattr(data, "distribution", nothing)
    data.data_folder.cache_clear()
    try:
        with pytest.raises(data.DataMissingError, match="pip install"):
            data.data_folder()
    finally:
        data.data_folder.cache_clear()
