import json

import numpy as np
import pytest
from outsiders import Sight, agreement, correlation

from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.data.language.questions import Question
from unif2ace.training.evaluation.measures import (
    code_use,
    psnr,
    score_answers,
    score_captions,
    score_generation,
    score_reconstructions,
)
from unif2ace.training.evaluation.report import quality_markdown
from unif2ace.training.evaluation.statistics import (
    bootstrap_weights,
    lift,
    ratio_with_interval,
    with_interval,
)
from unif2ace.training.synthetic.painted.exact_visibility import exact_visibility


def readings(attributes: list[dict[str, str]], **wrong: dict[int, str]) -> dict[str, list[str]]:
    """What a judge would read: the truth, but for the pictures and values given in `wrong`."""
    read = {name: [face.get(name, values[0]) for face in attributes] for name, values in ATTRIBUTES.items()}
    for name, changes in wrong.items():
        for row, value in changes.items():
            read[name][row] = value
    return read


def test_lift():
    assert lift(0.6, 0.2, 0.8) == pytest.approx(2 / 3)
    assert lift(0.5, 0.5) == 0 and lift(1.0, 0.5) == 1
    with pytest.raises(ValueError, match="nothing to measure"):
        lift(0.5, 0.8, 0.8)


def test_psnr():
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    other = black.copy()
    other[1] = 255
    assert psnr(black, other).tolist() == [float("inf"), 0.0]
    other[0] = 51  # a fifth of the range: 20 log10(5)
    assert psnr(black, other)[0] == pytest.approx(13.9794, abs=1e-4)
    with pytest.raises(ValueError, match="expected uint8"):
        psnr(black, other.astype(np.float32))


def test_code_use():
    assert code_use(np.array([[0, 1], [2, 3]]), 8) == {"used": 4, "size": 8, "perplexity": pytest.approx(4.0)}
    assert code_use(np.array([5, 5, 5]), 8)["perplexity"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="a code 9"):
        code_use(np.array([9]), 8)


def test_bootstrap_is_seeded_and_contains_the_value():
    weights = bootstrap_weights(50, samples=20, seed=3)
    assert weights.shape == (20, 50) and (weights.sum(axis=1) == 50).all()
    assert (weights == bootstrap_weights(50, samples=20, seed=3)).all()
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    measured = with_interval(lambda weights: weights @ values / 400, 400)
    assert measured["low"] < measured["value"] < measured["high"]
    # the interval of a mean is about 2 · 1.96 standard errors wide
    assert measured["high"] - measured["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert ratio_with_interval([1, 2], [4, 2])["value"] == 0.5
    with pytest.raises(ValueError, match="sum to zero"):
        ratio_with_interval([0.0], [0.0])


def test_generation_lift_by_hand():
    # gender: 3 of 5 are women; the judge reads 5 of 5 originals; 4 and 3 of 5 generated faces are right: 0.7
    genders = ["woman", "woman", "woman", "man", "man"]
    attributes = [{"gender": gender, "mask": "yes", "pose": "frontal"} for gender in genders]
    attributes[0]["pose"], attributes[1]["pose"] = "turned left", "turned right"
    first = readings(attributes, gender={0: "man"}, pose={1: "turned left"})
    second = readings(attributes, gender={0: "man", 4: "woman"}, pose={1: "turned left", 2: "turned left"})
    originals = readings(attributes)
    for row in (2, 3):
        del attributes[row]["pose"]  # leaves turned left, turned right, frontal: majority 1/3
    score = score_generation([first, second], originals, attributes)
    gender, mask, pose = (score["attributes"][name] for name in ("gender", "mask", "pose"))
    assert gender == {
        "cases": 5,
        "accuracy": pytest.approx(0.7),
        "majority": 0.6,
        "judge": 1.0,
        "lift": pytest.approx(0.25),
    }
    assert pose["cases"] == 3 and pose["lift"] == pytest.approx((2 / 3 - 1 / 3) / (2 / 3))
    assert mask["majority"] == 1.0 and mask["lift"] is None and score["left_out"] == ["mask"]
    assert score["in_lift"] == score["in_coarse_lift"] == 2
    assert score["lift"]["value"] == pytest.approx((0.25 + 0.5) / 2) == pytest.approx(np.mean(score["seed_lifts"]))
    pooled = ((0.7 + 2 / 3) / 2 - (0.6 + 1 / 3) / 2) / (1 - (0.6 + 1 / 3) / 2)
    assert score["pooled_lift"]["value"] == pytest.approx(pooled)
    assert score["accuracy"]["value"] == pytest.approx((0.7 + 1.0 + 2 / 3) / 3)


def test_generation_without_headroom():
    attributes = [{"mask": "yes"}] * 3
    score = score_generation([readings(attributes)], readings(attributes), attributes)
    assert score["lift"] is None and score["coarse_lift"] is None and score["seed_lifts"] == []


def test_reconstructions_by_hand():
    attributes = [{"gender": "man", "lips": "full"}, {"gender": "woman", "lips": "full"}]
    originals = readings(attributes)
    worse = readings(attributes, gender={0: "woman"}, lips={1: "thin"})
    del attributes[1]["lips"]  # hidden
    score = score_reconstructions(worse, originals, attributes)
    assert score["attributes"]["gender"] == {"cases": 2, "originals": 1.0, "reconstructions": 0.5}
    assert score["attributes"]["lips"] == {"cases": 1, "originals": 1.0, "reconstructions": 1.0}
    assert score["judge_loss"]["value"] == pytest.approx(0.25) and score["reconstructions"] == 0.75


def test_answers_by_hand():
    def ask(answer):
        return Question("yes_no", "beard", "Does he have a beard?", answer)

    reasons = Question("reasoning", "emotion", "Why does he look sad?", "The inner brows are raised.")
    questions = [[ask("yes")], [ask("yes")], [ask("no")], [ask("no"), reasons], [ask("yes")]]
    answers = [["Yes."], ["no"], ["no"], ["no", "inner brows raised"], ["yes"]]
    score = score_answers(questions, answers)
    kind = score["kinds"]["yes_no"]
    assert kind["questions"] == 5 and kind["accuracy"]["value"] == pytest.approx(0.8)
    assert kind["majority"] == pytest.approx(0.6) and kind["lift"]["value"] == pytest.approx(0.5)
    # one question alone is its own commonest answer: nothing to measure
    assert score["kinds"]["reasoning"]["majority"] == 1.0 and score["kinds"]["reasoning"]["lift"] is None
    overall = score["overall"]
    assert overall["questions"] == 6 and overall["majority"] == pytest.approx(4 / 6)


def test_captions_by_hand():
    attributes = [
        {"gender": "man", "beard": "full", "skin": "pale"},
        {"gender": "woman", "beard": "none", "skin": "tan"},
    ]
    references = [{"gender": "man", "beard": "full"}, {"gender": "woman", "skin": "tan"}]
    stated = [{"gender": "man", "beard": "goatee", "skin": "pale"}, {"gender": "woman"}]
    rows = score_captions(stated, attributes, references)
    assert rows["beard"] == {"stated": 1, "precision": 0.0, "wanted": 1, "recall": 0.0}
    # the skin is right though no reference names it
    assert rows["skin"] == {"stated": 1, "precision": 1.0, "wanted": 1, "recall": 0.0}
    assert rows["gender"] == {"stated": 2, "precision": 1.0, "wanted": 2, "recall": 1.0}
    del attributes[0]["skin"]  # nobody knows
    assert score_captions(stated, attributes, references)["skin"]["precision"] is None


def test_report_shows_each_part():
    attributes = [{"gender": gender} for gender in ("man", "woman", "man")]
    generation = score_generation([readings(attributes)], readings(attributes), attributes)
    question = Question("yes_no", "beard", "Does he have a beard?", "yes")
    answers = score_answers([[question]] * 3, [["yes"]] * 3)
    answers.pop("per_picture")
    reconstructions = score_reconstructions(readings(attributes), readings(attributes), attributes)
    measured = {"value": 27.123, "low": 26.0, "high": 28.0}
    parts = {
        "tokenizer": ({"psnr": measured}, {"code_use": code_use(np.arange(4), 8), **reconstructions}),
        "generation": ({"lift": generation["lift"]}, {"stated": generation, "visible": generation}),
        "vqa": ({"accuracy": answers["overall"]["accuracy"]}, answers),
        "captions": ({"recall": measured}, {"attributes": score_captions(*[attributes] * 3), "reference_facts": 1.0}),
    }
    results = {
        "suite": "painted",
        "settings": {"source": "painted (test)", "count": 3, "seeds": [0], "steps": 4, "guidance": 3.0}
        | {"model": "model", "model_sha256": "0" * 64},
        "versions": {"torch": "2"},
        "parts": {name: {"measures": measures, "details": details} for name, (measures, details) in parts.items()},
    }
    text = quality_markdown(json.loads(json.dumps(results)))
    for expected in ("27.12 [26.00, 28.00]", "| **gender** | 3 | 1.000", "4 of 8 (perplexity 4)", "| yes/no | 3 |"):
        assert expected in text
    assert "mean lift, 1 attributes" in text and "model_sha256" in text
    assert "| image tokenizer" not in quality_markdown(results | {"parts": {}})


def test_exact_visibility_is_remembered(tmp_path):
    first = exact_visibility(tmp_path, "test", 1)
    assert list(first[0]) == list(ATTRIBUTES)
    path = tmp_path / "test_visible.jsonl"
    lines = path.read_text().splitlines()
    # what is remembered is used: here, that nothing is hidden
    path.write_text(lines[0] + "\n[]\n")
    again = exact_visibility(tmp_path, "test", 2)
    assert all(again[0].values()) and len(again) == 2 and len(path.read_text().splitlines()) == 3
    path.write_text(json.dumps({"seed": 5}) + "\n")
    with pytest.raises(ValueError, match="belongs to faces of"):
        exact_visibility(tmp_path, "test", 1)


def test_what_outsiders_agree_with():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    y += x
    assert correlation(x, y)(np.ones((1, 50)))[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    weights = bootstrap_weights(50, samples=1)
    drawn = np.repeat(np.arange(50), weights[0])
    assert correlation(x, y)(weights)[0] == pytest.approx(np.corrcoef(x[drawn], y[drawn])[0, 1])
    y[:10] = np.nan  # unknown
    assert correlation(x, y)(np.ones((1, 50)))[0] == pytest.approx(np.corrcoef(x[10:], y[10:])[0, 1])
    assert np.isnan(correlation(x, np.ones(50))(np.ones((1, 50)))[0])
    sights = [Sight(0.9, (0, 0, 9, 9), True, 30.0), Sight(0.6, None, True, 60.0), Sight(0.8, None, False, 10.0)]
    found = agreement(sights, ["man", "woman", None], [1.0, 2.0, 0.0])  # nobody knows whether the third is one
    values = {name: statistic(np.ones((1, 3)))[0] for name, statistic in found.items()}
    assert values["BlazeFace over 0.75"] == pytest.approx(2 / 3)
    assert values["dlib HOG finds a face"] == pytest.approx(1 / 3) and values["gender agrees"] == 0.5
    assert values["age correlation"] > 0.95
