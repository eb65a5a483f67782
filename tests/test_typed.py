"""Words as people type them: what they state is true, what they deny is absent, and rows are made of them."""

import random
import re

import numpy as np
import pytest

from unif2ace.modeling_unif2ace import UniF2aceVQModel, get_preset
from unif2ace.training.data.language.attributes import VAGUE_VALUES
from unif2ace.training.data.language.captions import parse_caption
from unif2ace.training.data.language.phrases import SILENT_VALUES
from unif2ace.training.data.language.typed import (
    DECLINED,
    NO_PICTURE,
    NOT_SHOWN,
    Mixture,
    ask,
    talk_without_picture,
    write_prompt,
    write_short,
)
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.synthetic.faces import encode_faces
from unif2ace.training.synthetic.painted.dataset import attributes_of, render
from unif2ace.training.synthetic.rendered.people import face_of
from unif2ace.training.synthetic.rendered.vocabulary import RENDERED_ATTRIBUTES
from unif2ace.training.synthetic.rows import WorldRows, section_rows


def people(count):
    for index in range(count):
        attributes = attributes_of(index)
        yield attributes, assumed_visible(attributes)
        yield face_of(8 * index).attributes, dict.fromkeys(RENDERED_ATTRIBUTES, True)


def test_short_sentences_say_what_they_report_and_nothing_else():
    rng, denied, lengths = random.Random(0), 0, set()
    for attributes, visible in people(150):
        caption = write_short(attributes, visible, rng, most=5)
        read = parse_caption(caption.text)
        assert read.keys() == caption.attributes.keys(), caption
        for name, value in caption.attributes.items():
            assert visible[name]
            if value in VAGUE_VALUES.get(name, ()):
                assert attributes[name] not in ("none", "sunglasses")
            else:
                assert read[name] == value == attributes[name], caption
            denied += SILENT_VALUES.get(name) == value
        lengths.add(len(caption.attributes))
    assert lengths == {1, 2, 3, 4, 5} and denied > 50
    assert write_short(attributes, visible, random.Random(1)) == write_short(attributes, visible, random.Random(1))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            "black man, specs, no hat",
            {"gender": "man", "skin": "dark", "eyewear": "round glasses", "headwear": "none"},
        ),
        ("a little girl without glasses", {"gender": "woman", "age": "child", "eyewear": "none"}),
        ("kid, blonde, smiling", {"age": "child", "hair_color": "blond", "mouth": "smiling"}),
        ("clean-shaven guy, grey hair", {"gender": "man", "beard": "none", "hair_color": "gray"}),
        (
            "redhead with long hair and a black shirt",
            {"hair_color": "red", "hair_length": "long", "clothes": "collared shirt", "clothes_color": "black"},
        ),
    ],
)
def test_typed_words_are_read(text, meaning):
    assert parse_caption(text) == meaning


def test_shares_are_configuration():
    attributes, visible = next(people(1))

    def drawn(**shares):
        return [write_prompt(attributes, visible, random.Random(i), Mixture(**shares)) for i in range(60)]

    full, short = drawn(short=0, part=0), drawn(short=1, part=0)
    assert np.mean([len(text) for text in full]) > 3 * np.mean([len(text) for text in short])
    denial = re.compile(r"\b(no|without|clean-shaven)\b")
    assert not any(denial.search(text) for text in drawn(short=1, part=0, negation=0))
    assert all(denial.search(text) for text in drawn(short=1, part=0, negation=1))
    with pytest.raises(ValueError, match="above 1"):
        Mixture(short=0.7, part=0.7)


def test_answers_decline_what_the_picture_cannot_tell():
    rng, answers = random.Random(0), set()
    for attributes, visible in people(60):
        declined = ask(attributes, visible, rng, 4, Mixture(declined=1))
        assert declined and all(question.kind == "declined" for question in declined)
        answers |= {question.answer for question in declined}
        for question in declined:
            if question.answer == NOT_SHOWN:
                assert not visible[question.attribute]
        asked = ask(attributes, visible, rng, 4, Mixture(declined=0, typed=1))
        assert all(question.question == question.question.lower() for question in asked)
    assert answers == {*DECLINED, NOT_SHOWN}


def test_completions_contradict_neither_what_was_said_nor_what_was_denied():
    rng = random.Random(0)
    for attributes, visible in people(60):
        ((asked, answer),) = talk_without_picture(attributes, visible, rng, Mixture(unseen=0, negation=1))
        said, completed = parse_caption(asked), parse_caption(answer)
        assert completed.items() <= {name: attributes[name] for name in completed}.items()
        for name, value in said.items():
            if name in completed and value not in ("round glasses", "fedora", "hoop"):  # what vague words are read as
                assert completed[name] == value
            if SILENT_VALUES.get(name) == value:
                assert name not in completed
        ((_, answer),) = talk_without_picture(attributes, visible, rng, Mixture(unseen=1))
        assert answer == NO_PICTURE


def test_rows_of_a_world(tmp_path):
    size = get_preset("tiny").vq_config.resolution
    for split, count in (("train", 6), ("validation", 2)):
        render(tmp_path / "faces", split, count, size=size)
        with pytest.raises(FileNotFoundError, match="encode"):
            WorldRows(tmp_path / "faces", split)
    tokenizer = UniF2aceVQModel(get_preset("tiny").vq_config).eval()
    for split in ("train", "validation"):
        encode_faces(tokenizer, tmp_path / "faces", tmp_path / "encoded", split)
    train, held_out = section_rows(tmp_path / "encoded", 2, 2, words={"short": 0.5, "declined": 0}, complete=0.5)
    assert len(train) == 2 * (6 + 6 + 3) and train.tasks == (["t2i"] * 6 + ["mmu"] * 9) * 2 and len(held_out) == 5
    assert train[0]["text"] != train[15]["text"]  # other words in the other pass
    assert train[3]["codes"].tolist() == tokenizer.encode(train.faces.pixels([3]))[0].tolist()
    picture, talk = train[7], train[13]
    assert picture["pixel_values"].shape == (3, size, size) and picture["turns"] == train[7]["turns"]
    assert talk["pictured"] is False and "codes" not in talk and len(talk["turns"]) == 1
    with pytest.raises(IndexError):
        train[30]
