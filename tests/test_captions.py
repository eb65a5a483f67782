"""The captions: exact inverse, coverage, visibility, variety and text as people write it."""

import os
import random
import subprocess
import sys

import pytest

from unif2ace.training.data.language.attributes import ATTRIBUTES, WORLD_VALUES, sample_attributes
from unif2ace.training.data.language.captions import (
    DESCRIBE_PROMPTS,
    parse_caption,
    respell,
    salient_attributes,
    write_caption,
)
from unif2ace.training.data.language.phrases import FACTS, NOUNS, SILENT_VALUES, WRITTEN


EVERYTHING = dict.fromkeys(ATTRIBUTES, True)

PRINT_CAPTIONS = """
import random
from unif2ace.training.data.language.attributes import ATTRIBUTES, sample_attributes
from unif2ace.training.data.language.captions import write_caption
rng = random.Random(3)
for coverage in (1.0, 0.5, 0.3):
    for _ in range(4):
        print(write_caption(sample_attributes(rng), dict.fromkeys(ATTRIBUTES, True), rng, coverage=coverage))
"""


def sample_face(rng: random.Random) -> tuple[dict[str, str], dict[str, bool]]:
    return sample_attributes(rng), {name: rng.random() < 0.9 for name in ATTRIBUTES}


@pytest.mark.parametrize("coverage", [1.0, 0.6, 0.3])
def test_parser_is_the_exact_inverse_of_the_writer(coverage):
    rng = random.Random(int(coverage * 10))
    for _ in range(400):
        attributes, visible = sample_face(rng)
        caption = write_caption(attributes, visible, rng, coverage=coverage)
        assert parse_caption(caption.text) == caption.attributes, caption.text
        assert parse_caption(caption.text.upper()) == caption.attributes, caption.text


def test_other_spellings_keep_the_meaning():
    rng = random.Random(1)
    changed = 0
    for _ in range(300):
        caption = write_caption(*sample_face(rng), rng, coverage=0.6)
        text = respell(caption.text, rng)
        changed += text != caption.text
        assert parse_caption(text) == caption.attributes, text
    assert changed > 30


@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_only_visible_true_attributes_are_stated(coverage):
    rng = random.Random(1)
    for _ in range(200):
        attributes, visible = sample_face(rng)
        stated = write_caption(attributes, visible, rng, coverage=coverage).attributes
        assert all(visible[name] and attributes[name] == value for name, value in stated.items())
        assert "gender" in stated or not visible["gender"]


def test_full_captions_state_every_salient_attribute_and_stay_compact():
    rng = random.Random(2)
    counts, words = [], []
    for _ in range(300):
        attributes = sample_attributes(rng)
        caption = write_caption(attributes, EVERYTHING, rng)
        assert caption.attributes == salient_attributes(attributes, EVERYTHING)
        counts.append(len(caption.attributes))
        words.append(len(caption.text.split()))
    assert sum(counts) / len(counts) >= 15
    assert sum(words) / len(words) <= 80
    assert max(words) <= 100


def test_one_face_has_many_captions():
    rng = random.Random(4)
    attributes = sample_attributes(rng)
    assert len({write_caption(attributes, EVERYTHING, rng).text for _ in range(100)}) >= 99


def test_nothing_visible_gives_a_caption_that_states_nothing():
    caption = write_caption(sample_attributes(random.Random(0)), {}, random.Random(0))
    assert caption.attributes == {}
    assert parse_caption(caption.text) == {}


def test_every_value_is_written_or_silent():
    for name, values in ATTRIBUTES.items():
        for value in values:
            assert ((name, value) in WRITTEN) != (SILENT_VALUES.get(name) == value), (name, value)


def test_every_value_alone_is_written_and_read():
    rng = random.Random(5)
    for name, value in WRITTEN:
        for _ in range(10):
            caption = write_caption({name: value}, {name: True}, rng)
            assert parse_caption(caption.text) == {name: value}, caption.text


def test_every_wording_of_the_table_is_read():
    nouns = {role: words[0] for words, _, roles in NOUNS.values() for role in roles}
    for fact in FACTS:
        for words in (*fact.written, *fact.heard):
            text = f"{words} {nouns[fact.role]}" if fact.role in nouns else words
            assert parse_caption(f"Here: {text}.").get(fact.attribute) == fact.value, text


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        (
            "a smiling old man with round glasses and a grey beard",
            "gender=man age=elderly hair_color=gray beard=full eyewear=round_glasses mouth=smiling",
        ),
        ("An elderly lady, grey hair, SPECTACLES", "gender=woman age=elderly hair_color=gray eyewear=round_glasses"),
        (
            "bald guy with a moustache and a tie, green background",
            "gender=man hair_length=bald mustache=yes neckwear=necktie background=green",
        ),
        (
            "Her hair is long, straight and black. Her eyes are brown and narrow",
            "gender=woman hair_color=black hair_length=long hair_texture=straight eye_color=brown eye_size=narrow",
        ),
        (
            "he is not wearing a hat and has no beard; he looks ANGRY",
            "gender=man beard=none headwear=none emotion=angry",
        ),
        (
            "A middle aged man with a heart shaped face in a blue suit",
            "gender=man age=middle-aged face_shape=heart-shaped clothes=suit clothes_color=blue",
        ),
        (
            "an astronaut with tan skin on Mars sticking out his tongue, looking to the left",
            "gender=man skin=tan mouth=tongue_out gaze=left",
        ),
        ("young man, young woman, old man", "gender=man age=young"),
        (
            "a laughing blonde-haired, blue-eyed girl with her eyes closed and her head tilted to the right",
            "gender=woman hair_color=blond eye_color=blue eyes=closed mouth=laughing tilt=tilted_right",
        ),
        (
            "a man with brown skin and black curly hair wearing sunglasses and a red baseball cap",
            "gender=man skin=brown hair_color=black hair_texture=curly eyewear=sunglasses headwear=cap",
        ),
        ("a round face, round glasses, long hair, full lips, a full beard", None),
        ("", ""),
    ],
)
def test_text_as_people_write_it(text, attributes):
    if attributes is None:
        attributes = "face_shape=round hair_length=long lips=full beard=full eyewear=round_glasses"
    expected = dict(pair.replace("_glasses", " glasses").split("=") for pair in attributes.split())
    expected = {name: value.replace("_", " ") for name, value in expected.items()}
    assert parse_caption(text) == expected


def test_the_parser_survives_any_text():
    rng = random.Random(6)
    vocabulary = [word for fact in FACTS for words in (*fact.written, *fact.heard) for word in words.split()]
    vocabulary += ["hair", "eyes", "is", "no", "and", ",", ".", "the", "her", "\u00e9", "42", "\u2019"]
    for _ in range(300):
        parsed = parse_caption(" ".join(rng.choices(vocabulary, k=40)))
        assert all(value in ATTRIBUTES[name] + WORLD_VALUES.get(name, ()) for name, value in parsed.items())


@pytest.mark.parametrize("coverage", [-0.1, 1.5])
def test_impossible_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="from 0 to 1"):
        write_caption({}, {}, random.Random(0), coverage=coverage)


def test_captions_are_the_same_in_every_process():
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PRINT_CAPTIONS]
        outputs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].count("Caption(") == 12


def test_describe_prompts_differ_and_state_nothing():
    assert len(set(DESCRIBE_PROMPTS)) == len(DESCRIBE_PROMPTS) >= 5
    assert all(parse_caption(prompt) == {} for prompt in DESCRIBE_PROMPTS)
