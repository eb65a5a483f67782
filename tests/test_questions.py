"""The questions: kinds, balance, visibility, right answers and their scoring; and the record that carries them."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from unif2ace.training.data.language.attributes import ATTRIBUTES, sample_attributes
from unif2ace.training.data.language.captions import parse_caption
from unif2ace.training.data.language.questions import (
    ACCESSORIES,
    QUESTION_KINDS,
    Question,
    is_correct,
    normalize_answer,
    write_questions,
)
from unif2ace.training.data.records import FaceRecord


EVERYTHING = dict.fromkeys(ATTRIBUTES, True)

PRINT_QUESTIONS = """
import random
from unif2ace.training.data.language.attributes import ATTRIBUTES, sample_attributes
from unif2ace.training.data.language.questions import write_questions
rng = random.Random(3)
for _ in range(5):
    print(write_questions(sample_attributes(rng), dict.fromkeys(ATTRIBUTES, True), rng, 8))
"""


@pytest.fixture(scope="module")
def asked() -> list[tuple[dict[str, str], dict[str, bool], Question]]:
    rng = random.Random(0)
    rows = []
    for _ in range(400):
        attributes = sample_attributes(rng)
        visible = {name: rng.random() < 0.9 for name in ATTRIBUTES}
        rows += [(attributes, visible, question) for question in write_questions(attributes, visible, rng, 8)]
    return rows


def test_all_kinds_occur_often(asked):
    counts = Counter(question.kind for _, _, question in asked)
    assert set(counts) == set(QUESTION_KINDS)
    assert len(asked) == 3200
    assert all(count > 0.02 * len(asked) for count in counts.values()), counts


def test_yes_and_no_are_balanced(asked):
    answers = Counter(question.answer for _, _, question in asked if question.kind == "yes_no")
    assert set(answers) == {"yes", "no"}
    assert 0.4 <= answers["yes"] / answers.total() <= 0.6
    compared = Counter(question.answer for _, _, question in asked if question.kind == "comparison")
    assert 0.4 <= compared["yes"] / (compared["yes"] + compared["no"]) <= 0.6


def test_questions_are_about_visible_attributes(asked):
    for _, visible, question in asked:
        if question.kind == "action":
            assert any(visible[name] for name in ("mouth", "eyes", "tears"))
        elif question.kind != "count":
            assert visible[question.attribute], question


def test_answers_are_short_except_reasons(asked):
    for _, _, question in asked:
        assert question.answer
        if question.kind != "reasoning":
            assert 1 <= len(question.answer.split()) <= 6, question


def test_pronouns_follow_the_visible_gender(asked):
    words = {"man": ("he", "his", "him"), "woman": ("she", "her")}
    for attributes, visible, question in asked:
        spoken = set(question.question.lower().replace("?", "").split())
        allowed = words[attributes["gender"]] if visible["gender"] else ()
        assert not spoken & (set(words["man"] + words["woman"]) - set(allowed)), question


def test_yes_no_answers_agree_with_the_parser(asked):
    """The statement inside a question, read by the caption parser, is true exactly when the answer is yes."""
    checked = 0
    for attributes, _, question in asked:
        if question.kind != "yes_no":
            continue
        name = question.attribute
        statement = question.question.rstrip("?").split(" ", 1)[1]
        value = parse_caption(statement).get(name)
        if value is None:  # "Are her eyes blue?" parts the noun from its adjective
            first, _, last = statement.rpartition(" ")
            value = parse_caption(f"{first} is {last}").get(name)
        assert value is not None, question
        assert (attributes[name] == value) == (question.answer == "yes"), question
        checked += 1
    assert checked > 300


def test_counts_are_right(asked):
    numbers = ("zero", "one", "two", "three", "four", "five", "six", "seven")
    for attributes, visible, question in asked:
        if question.kind == "count":
            worn = [name for name in ACCESSORIES if attributes[name] not in ("none", "no")]
            assert question.answer == numbers[len(worn)]
            assert all(visible[name] for name in worn)


def test_wordings_of_one_list_differ_and_few_facts_give_few_questions():
    attributes = sample_attributes(random.Random(1))
    questions = write_questions(attributes, EVERYTHING, random.Random(1), 30)
    assert len({question.question for question in questions}) == len(questions) == 30
    assert len(write_questions({"gender": "man"}, {"gender": True}, random.Random(1), 30)) < 10
    assert write_questions(attributes, {}, random.Random(1), 0) == []


def test_hidden_faces_are_not_asked_about():
    attributes = {**sample_attributes(random.Random(1)), **dict.fromkeys(ACCESSORIES, "none")}
    attributes.update(mask="no", headphones="no")
    questions = write_questions(attributes, {}, random.Random(1), 5)
    assert {question.kind for question in questions} <= {"count"}


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="cannot be negative"):
        write_questions({}, {}, random.Random(0), -1)


def test_right_answers_are_correct_and_others_are_not(asked):
    for _, _, question in asked:
        assert is_correct(question, question.answer)
        assert is_correct(question, f" {question.answer.upper()}. ")
        assert not is_correct(question, "a purple elephant")
        assert not is_correct(question, "")


def test_scoring_tolerates_form_not_meaning():
    color = Question("attribute", "hair_color", "What colour is his hair?", "gray")
    assert is_correct(color, "It is grey.")
    assert not is_correct(color, "black")
    number = Question("count", "accessories", "How many accessories can be seen?", "two")
    assert is_correct(number, "2")
    reason = Question("reasoning", "emotion", "Why is he sad?", "the mouth corners point down, and there are tears")
    assert is_correct(reason, "There are tears and his mouth corners point down")
    assert not is_correct(reason, "there are tears")
    assert not is_correct(reason, "there are tears, the mouth corners point down and the eyes are wide")
    assert normalize_answer("  A Bow-Tie! ") == "bow-tie"


def test_questions_are_the_same_in_every_process():
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PRINT_QUESTIONS]
        outputs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].count("Question(") == 40


def test_a_full_record_is_valid():
    attributes = sample_attributes(random.Random(0))
    questions = write_questions(attributes, EVERYTHING, random.Random(0), 4)
    record = FaceRecord(Image.new("RGB", (8, 8)), ["A man."], questions, attributes, EVERYTHING, "p1", "painted", "7")
    assert record.validate() is record
    assert FaceRecord().validate() == FaceRecord()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"image": "face.png"}, TypeError, "give a PIL image"),
        ({"captions": [3]}, TypeError, "must be texts"),
        ({"captions": [" "]}, ValueError, "empty caption"),
        ({"questions": [Question("riddle", "age", "How old?", "young")]}, ValueError, "'riddle'"),
        ({"questions": [Question("attribute", "age", "How old?", "")]}, ValueError, "without text or answer"),
        ({"attributes": {"aura": "blue"}}, ValueError, "'aura'"),
        ({"attributes": {"age": "ancient"}}, ValueError, "'ancient'.*'elderly'"),
        ({"visible": {"age": True}}, ValueError, "gives no value"),
    ],
)
def test_a_wrong_record_says_what_is_wrong(fields, error, message):
    with pytest.raises(error, match=message):
        FaceRecord(**fields, id="9").validate()
