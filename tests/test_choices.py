"""Multiple-choice benchmarks: their files as their authors write them, letters out of answers, both ways to choose."""

import json

import numpy as np
import pytest
from PIL import Image

from unif2ace.cli import main
from unif2ace.training.evaluation.benchmarks import load_facebench, load_facexbench
from unif2ace.training.evaluation.choices import ChoiceQuestion, ChoiceSuite, parse_choice, side_by_side
from unif2ace.training.evaluation.results import load_results
from unif2ace.training.evaluation.subject import Subject


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def facexbench(tmp_path):
    """FaceXBench's layout, with one question about one picture and one about two."""
    for number in range(3):
        picture(tmp_path / "datasets" / "fairface" / f"{number}.png", number)

    def write(name, kind, images, right):
        question = {
            "image_paths": images,
            "question_text": "What is the age group?",
            "options": ["0-2", "3-9", "10-19", "20-29"],
            "correct_answer_option": right,
            "answer": "3-9",
        }
        content = {"category": "Bias and Fairness", "sub-category": "Age Estimation", "dataset": "FairFace"}
        content |= {"question_type": "MCQ", "num_images": kind, "prepend_text": "Look.", "postpend_text": ""}
        path = tmp_path / "benchmark" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content | {"questions": {"1": question}}))

    write("age_single", "single", ["datasets/fairface/0.png"], "B")
    write("age_multiple", "multiple", ["datasets/fairface/1.png", "datasets/fairface/2.png"], "d")
    return tmp_path


FACEBENCH_ROWS = [
    {"question_type": "TFQ", "text": "Is the hair black?", "options": ["True", "False"], "gt_answer": "False"},
    {"question_type": "SCQ", "text": "Which hair?", "options": ["A. black", "B. blond"], "gt_answer": "B"},
    {"question_type": "MCQ", "text": "What is on?", "options": ["hat", "veil", "mask"], "gt_answer": ["hat", "mask"]},
    {"question_type": "MCQ", "text": "What else?", "options": ["hat", "glasses", "mask"], "gt_answer": "A, C"},
    {"question_type": "OEQ", "text": "Describe it.", "options": [], "gt_answer": "A face."},
]  # fmt: skip


@pytest.fixture
def facebench(tmp_path):
    picture(tmp_path / "images" / "test-CelebA-HQ-1279.jpg")
    metadata = {"image_source": "CelebA-HQ", "view": "appearance", "attribute_level": "level 1"}
    lines = [
        json.dumps({"question_id": str(number), "image_id": "test-CelebA-HQ-1279.jpg", "instruction": "", **row}
                   | {"conditions": {}, "metadata": metadata})
        for number, row in enumerate(FACEBENCH_ROWS)
    ]  # fmt: skip
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_facexbench_is_read(facexbench):
    several, single = load_facexbench(facexbench)
    assert single.id == "age_single-1" and single.right == "B" and len(single.images) == 1
    assert single.question == "Look. What is the age group?" and single.options[1] == "3-9"
    assert several.right == "D" and len(several.images) == 2
    expected = {"category": "Bias and Fairness", "task": "Age Estimation", "dataset": "FairFace", "images": "multiple"}
    assert several.groups == expected
    assert single.prompt.splitlines()[2] == "B. 3-9" and single.prompt.endswith("the right option.")


def test_facebench_is_read(facebench):
    questions = load_facebench(facebench)
    assert [question.right for question in questions] == ["B", "B", "AC", "AC"]  # the open question is left out
    assert questions[1].options == ("black", "blond") and not questions[1].several and questions[2].several
    assert questions[0].groups == {"type": "TFQ", "view": "appearance", "level": "level 1"}


def test_bad_benchmarks_are_refused(facexbench, facebench, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="the folder of FaceXBench"):
        load_facexbench(empty)
    with pytest.raises(FileNotFoundError, match="the folder of FaceBench"):
        load_facebench(empty)
    file = facexbench / "benchmark" / "age_single.json"
    for text, message in (("{", "JSONDecodeError"), ("[]", "TypeError"), ('{"category": 1}', "KeyError")):
        good = file.read_text()
        file.write_text(text)
        with pytest.raises(ValueError, match=f"age_single.json is no file.*{message}"):
            load_facexbench(facexbench)
        file.write_text(good)
    for name, message in (
        ("../outside.png", "leaves the folder"),
        ("gone.png", "missing"),
        ("http://x/0.png", "address"),
    ):
        file.write_text(good.replace("datasets/fairface/0.png", name))
        with pytest.raises(ValueError, match=message):
            load_facexbench(facexbench)
    lines = (facebench / "test.jsonl").read_text()
    (facebench / "test.jsonl").write_text(lines.replace('"gt_answer": "B"', '"gt_answer": "red"'))
    with pytest.raises(ValueError, match="test.jsonl, line 2: .*'red' is none of the options"):
        load_facebench(facebench)
    with pytest.raises(ValueError, match="expected letters of 'AB'"):
        ChoiceQuestion("1", (), "?", ("yes", "no"), "C")


def test_a_benchmark_downloaded_from_the_hub_is_links_into_the_cache(facexbench, tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub") / "datasets--someone--facexbench"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in facexbench.rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(facexbench)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(cache / "blobs" / str(number))
        link.symlink_to(cache / "blobs" / str(number))
    assert len(load_facexbench(snapshot)) == 2
    outside = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    picture(outside, 0)
    (snapshot / "datasets" / "fairface" / "0.png").unlink()
    (snapshot / "datasets" / "fairface" / "0.png").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link out of"):
        load_facexbench(snapshot)


COLORS = ["red", "dark red", "a man with a hat", "blue"]


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("B", "B"),
        ("(b)", ""),
        ("(B)", "B"),
        ("B. dark red", "B"),
        ("The answer is D.", "D"),
        ("dark red", "B"),
        ("Blue.", "D"),
        ("It is blue, I think", "D"),
        ("A man with a hat", "C"),
        ("A man in blue", "D"),
        ("A", "A"),
        ("A or B", "A"),
        ("", ""),
        ("I cannot say", ""),
        ("E", ""),
        ("dark red or blue", ""),
    ],
)
def test_letters_are_read(answer, letters):
    assert parse_choice(answer, COLORS) == letters


@pytest.mark.parametrize(
    ("answer", "letters"), [("A, C", "AC"), ("ACD", "ACD"), ("C and A", "AC"), ("blue and dark red", "ABD"), ("", "")]
)
def test_several_letters_are_read(answer, letters):
    assert parse_choice(answer, COLORS, several=True) == letters


def test_several_pictures_become_one():
    images = [Image.new("RGB", (10, 20), "red"), Image.new("RGB", (10, 10), "blue")]
    assert side_by_side(images).size == (40, 20) and side_by_side(images[:1]) is images[0]


def test_both_ways_of_choosing(talking_checkpoint, facexbench, tmp_path, capsys):
    command = ["evaluate", str(talking_checkpoint), "--suite", "facexbench", "--data", str(facexbench)]
    command += ["--device", "cpu", "--out", str(tmp_path / "results"), "--hub-folder", str(tmp_path / "hub")]
    assert main(command) == 0
    out = capsys.readouterr().out
    (path,) = (tmp_path / "results").glob("facexbench-*.json")
    results = load_results(path)
    for part in ("likelihood", "generation"):
        measures = results["parts"][part]["measures"]
        assert measures["chance"]["value"] == 0.25 and set(measures["accuracy"]["slices"]) >= {"images=single"}
        assert f"{part}: accuracy" in out
    assert results["parts"]["likelihood"]["measures"]["unanswered"]["value"] == 0
    assert "Kartik-3004/facexbench" in (tmp_path / "hub" / ".eval_results" / "facexbench.yaml").read_text()
    assert main([*command[:4], "--device", "cpu"]) == 2 and "give --data" in capsys.readouterr().err


def test_likelihoods_are_those_of_the_model(talking_checkpoint, facebench):
    subject = Subject(talking_checkpoint, progress=False)
    questions = load_facebench(facebench)
    suite = ChoiceSuite(subject, questions, "facebench")
    assert suite.measure_likelihood().items == ["0", "1"]  # those with one right option
    assert suite.measure_generation().measures["f1"]["count"] == 4
    assert len(ChoiceSuite(subject, questions, "facebench", limit=2).questions) == 2
    assert "only generation" in ChoiceSuite(subject, questions[2:], "facebench").missing("likelihood")
    # over all one-token answers the probabilities add up to at most one, and shifting the options changes nothing
    image, prompt = suite._images(questions[:1])[0], questions[0].prompt
    forwards, backwards = subject.log_probabilities([image] * 2, [prompt] * 2, [["A", "B"], ["B", "A"]])
    assert forwards == pytest.approx(backwards[::-1]) and np.exp(forwards).sum() <= 1
