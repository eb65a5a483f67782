"""The suites' machinery and the suite `painted`, with a real checkpoint of tiny size on disk."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from unif2ace.cli import main
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.training.evaluation.compare import compare, comparison
from unif2ace.training.evaluation.faces import SUITES, FaceSuite, Resources
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from unif2ace.training.evaluation.results import (
    card_results,
    card_section,
    load_results,
    update_card,
    write_hub_entries,
)
from unif2ace.training.evaluation.statistics import (
    in_slices,
    mean,
    paired_difference,
    ratio,
    slices_by,
    with_interval,
    without_replicates,
)
from unif2ace.training.evaluation.subject import Subject
from unif2ace.training.evaluation.suite import Part, Suite, run_suite
from unif2ace.training.synthetic.painted.dataset import render
from unif2ace.training.synthetic.painted.exact_visibility import exact_visibility
from unif2ace.training.synthetic.painted.rows import held_out_faces


COUNT = 4


SIZE = get_preset("tiny").vq_config.resolution


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """What painted faces show, and an untrained judge."""
    folder = tmp_path_factory.mktemp("painted")
    torch.manual_seed(1)
    config = UniF2aceJudgeConfig(image_size=SIZE, stage_channels=[8, 8, 8], head_channels=4, feature_size=8)
    UniF2aceJudge(config).save_pretrained(folder / "judge")
    # every attribute can be seen: the exact way takes a second for each face
    exact_visibility(folder, "test", 1)
    path = folder / "test_visible.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + "[]\n" * COUNT)
    return folder


@pytest.fixture(scope="module")
def suite(talking_checkpoint, painted, tmp_path_factory):
    store = tmp_path_factory.mktemp("pictures")
    subject = Subject(talking_checkpoint, batch_size=3, store=store, progress=False)
    faces = held_out_faces(painted, COUNT, size=SIZE)
    resources = Resources(classifier=str(painted / "judge"))
    return FaceSuite(subject, faces, "painted (test)", resources, "painted", seeds=[0, 1], steps=2)


class Coin(Suite):
    """A suite without a model: `measure_good` succeeds, `measure_later` fails once."""

    name = "coin"
    parts = ("good", "later", "lacking")
    dataset_id = "somebody/coins"

    def __init__(self, shift: float = 0.0, count: int = 40):
        self.calls: list[str] = []
        self.values = np.random.default_rng(0).normal(size=count)
        self.shift, self.fails = shift, False

    @property
    def settings(self):
        return {"model": "coin", "model_sha256": "0" * 64, "count": len(self.values), "shift": self.shift}

    def missing(self, part):
        return "buy one" if part == "lacking" else None

    def measure_good(self):
        self.calls.append("good")
        part = Part([f"toss-{index}" for index in range(len(self.values))])
        slices = {"side=heads": self.values > 0, "side=edge": np.zeros(len(self.values), dtype=bool)}
        part.add("mean", mean(self.values + self.shift), slices=slices)
        # defined in some of the resampled sets only
        part.add("first", lambda weights: np.where(weights[:, 0] > 0, 1.0, np.nan))
        part.add("lowest", lambda weights: np.full(len(weights), np.nan))
        part.add_measured("plain", {"value": 3.0}, better="lower")
        return part

    def measure_later(self):
        self.calls.append("later")
        if self.fails:
            raise KeyboardInterrupt
        return self.measure_good()


def test_statistics_of_slices():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    assert with_interval(mean(values), 4)["value"] == 2.0
    slices = slices_by([{"skin": "tan"}, {"skin": "pale"}, {"skin": "tan"}, {}], ["skin"])
    assert list(slices) == ["skin=pale", "skin=tan"]
    found = in_slices(mean(values), slices | {"unknown": np.isnan(values)})
    assert found["skin=tan"]["value"] == 2.0 and found["skin=tan"]["count"] == 2 and "unknown" not in found
    assert found["skin=pale"] == {"value": 2.0, "low": 2.0, "high": 2.0, "count": 1}
    shares = in_slices(ratio([1, 0, 2, 5], [2, 1, 2, 5]), slices)
    assert shares["skin=tan"]["value"] == pytest.approx(3 / 4)
    assert without_replicates({"a": [{"replicates": [1], "b": 2}]}) == {"a": [{"b": 2}]}


def test_paired_comparison_is_sharper_and_calibrated():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    better = values + 0.1 + rng.normal(scale=0.05, size=200)
    before, after = (with_interval(mean(numbers), 200)["replicates"] for numbers in (values, better))
    paired, unpaired = paired_difference(before, after), paired_difference(before, after, paired=False)
    # the difference of means has a standard error of 0.05 / sqrt(200) when paired, and of sqrt(2 / 200) when not
    assert paired["high"] - paired["low"] == pytest.approx(2 * 1.96 * 0.05 / 200**0.5, rel=0.2)
    assert unpaired["high"] - unpaired["low"] == pytest.approx(2 * 1.96 * (2 / 200) ** 0.5, rel=0.2)
    assert paired["p_value"] < 0.01 < 0.2 < unpaired["p_value"]
    assert paired_difference(before, before)["p_value"] == 1.0
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([1.0], [1.0, 2.0])


def test_a_suite_goes_on_where_it_stopped(tmp_path):
    suite = Coin()
    suite.fails = True
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path)
    suite.fails = False
    results, path = run_suite(suite, tmp_path)
    assert suite.calls == ["good", "later", "later", "good"]  # the last one is called by `later`
    assert load_results(path) == json.loads(path.read_text()) and results["skipped"] == {"lacking": "buy one"}
    measure = load_results(path)["parts"]["good"]["measures"]["mean"]
    assert measure["low"] < measure["value"] < measure["high"] and list(measure["slices"]) == ["side=heads"]
    assert "lowest" not in load_results(path)["parts"]["good"]["measures"]
    text = path.with_suffix(".md").read_text()
    assert "| good: plain ↓ | 3.000 | 40 |" in text and "- lacking: buy one" in text
    run_suite(suite, tmp_path, ["good"], overwrite=True)
    assert suite.calls.count("good") == 3
    _, other = run_suite(Coin(shift=1.0), tmp_path, ["good"])
    assert other != path
    with pytest.raises(ValueError, match="has no part 'toss'"):
        run_suite(suite, tmp_path, ["toss"])
    with pytest.raises(ValueError, match="nothing can be measured: lacking: buy one"):
        run_suite(Coin(shift=2.0), tmp_path, ["lacking"])


def test_compare(tmp_path, capsys):
    paths = [run_suite(suite, tmp_path, ["good"])[1] for suite in (Coin(), Coin(0.5), Coin(0.5, count=30))]
    first, second, shorter = (load_results(path) for path in paths)
    moved, _, plain = compare(first, second)
    assert moved["paired"] and moved["significant"] and moved["improved"]
    assert moved["difference"] == pytest.approx(0.5) and moved["low"] == pytest.approx(0.5, abs=1e-4)
    assert plain["p_value"] is None and not plain["significant"]
    assert not compare(first, shorter)[0]["paired"]
    text = comparison(second, first)
    assert "| worse |" in text and "- shift: `0.5` → `0.0`" in text
    assert "Not paired" in comparison(first, shorter)
    assert main(["compare", str(paths[0]), str(paths[1])]) == 0 and "+0.500 [" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    for bad in ("other.json", "broken.json", "absent.json"):
        assert main(["compare", str(paths[0]), str(tmp_path / bad)]) == 2 and bad in capsys.readouterr().err
    with pytest.raises(ValueError, match="runs of one suite"):
        comparison(first, first | {"suite": "other"})


def test_results_reach_the_hub_and_the_card(tmp_path):
    results, _ = run_suite(Coin(), tmp_path, ["good"])
    entries = yaml.safe_load(write_hub_entries(results, tmp_path).read_text())
    assert entries[0]["dataset"] == {"id": "somebody/coins", "task_id": "good/mean"}
    assert entries[0]["value"] == round(results["parts"]["good"]["measures"]["mean"]["value"], 4)
    assert "95 %" in entries[0]["notes"] and "95 %" not in entries[2]["notes"]
    names = ["good: mean", "good: first", "good: plain"]
    assert [result.metric_name for result in card_results(results)] == names
    assert "| by side | heads (" in card_section(results)
    with pytest.raises(ValueError, match="--dataset-id"):
        write_hub_entries(results | {"dataset_id": None}, tmp_path)


def test_results_are_put_into_the_card_of_their_weights_only(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    suite = Coin()
    results, _ = run_suite(suite, tmp_path / "results", ["good"])
    with pytest.raises(FileNotFoundError, match="model card"):
        update_card(results, tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n\nSome words.\n")
    with pytest.raises(ValueError, match="other weights"):
        update_card(results, tmp_path)
    results["settings"]["model_sha256"] = checkpoint_sha256(tmp_path)
    update_card(results | {"suite": "earlier", "dataset_id": None}, tmp_path)
    first = update_card(results, tmp_path).read_text()
    results["parts"]["good"]["measures"]["plain"]["value"] = 4.0
    text = update_card(results, tmp_path).read_text()
    assert text.count("| good: plain ↓ | 4.000 |") == 1 and first.count("| good: plain ↓ | 3.000 |") == 2
    assert "Some words." in text and text.count("## Evaluation") == 1 and text.count("<!-- evaluation: coin -->") == 1
    card = ModelCard.load(tmp_path / "README.md")
    values = {(result.dataset_name, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert values["coin", "good: plain"] == 4.0 and values["earlier", "good: plain"] == 3.0
    assert card.data.license == "apache-2.0"


def test_painted_suite_from_the_command_line(talking_checkpoint, painted, tmp_path, capsys):
    command = ["evaluate", str(talking_checkpoint), "--suite", "painted", "--painted", str(painted), "--device", "cpu"]
    command += ["--judge", str(painted / "judge"), "--limit", str(COUNT), "--steps", "2", "--out", str(tmp_path)]
    command += ["--training", "painted:6", "--parts", ",".join(SUITES["painted"])]
    assert main(command) == 0
    out = capsys.readouterr().out
    for part in SUITES["painted"]:
        assert f"| {part}: " in out
    (path,) = tmp_path.glob("painted-checkpoint-*.json")
    before = load_results(path)
    assert before["settings"]["count"] == COUNT and len(before["settings"]["model_sha256"]) == 64
    assert before["settings"]["source"] == "painted (test)" and len(before["settings"]["judge_sha256"]) == 64
    assert "attribute_accuracy_with_unsaid" in before["parts"]["generation"]["measures"]
    assert main(command) == 0 and load_results(path) == before  # nothing is measured twice
    assert main([*command[:-1], "nonsense"]) == 2 and "nonsense" in capsys.readouterr().err
    # without a judge the rest is measured, and the report says what is missing
    assert main([*command[:-1], "vqa,generation", "--judge", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| vqa: accuracy" in out and "not measured: generation: there is no classifier in" in out


def test_pictures_reach_the_tokenizer_as_they_are(suite):
    originals, reconstructed, codes = suite.reconstructed(suite.originals)
    assert (originals == np.stack([np.asarray(image) for image in suite.originals])).all()
    assert reconstructed.shape == originals.shape and len(codes) == COUNT


def test_rendered_faces_are_a_world_too(talking_checkpoint, painted, tmp_path, capsys):
    # a folder as `unif2ace data render` writes it, with painted pictures in it
    render(tmp_path, "test", 3, size=16)
    command = ["evaluate", str(talking_checkpoint), "--suite", "rendered", "--judge", str(painted / "judge")]
    command += ["--rendered", str(tmp_path), "--limit", "3", "--steps", "1", "--device", "cpu"]
    command += ["--out", str(tmp_path / "out"), "--parts", "tokenizer,generation,vqa"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for part in ("tokenizer: psnr", "generation: attribute_accuracy_with_unsaid", "vqa: accuracy"):
        assert part in out
    assert main([*command, "--split", "validation"]) == 2
    assert "unif2ace data render" in capsys.readouterr().err


def test_pictures_depend_on_their_own_seed_only_and_are_kept(suite, talking_checkpoint):
    first, _ = suite.generated(0)
    alone = Subject(talking_checkpoint, batch_size=1, progress=False)
    text = suite.texts[2]
    again, codes = alone.generate([text], [2], steps=2, guidance=4.0)
    assert (again[0] == first[2]).all() and again.dtype == np.uint8 and codes.shape[0] == 1
    kept = list(suite.subject.store.glob("*.npz"))
    assert len(kept) == 2  # two batches of 3 and 1
    with np.load(kept[0]) as arrays:
        arrays = dict(arrays)
    np.savez(kept[0], pictures=np.zeros_like(arrays["pictures"]), codes=arrays["codes"])
    suite._generated.clear()
    assert (suite.generated(0)[0] == 0).all(axis=(1, 2, 3)).any()  # what is kept is used
    np.savez(kept[0], **arrays)
    suite._generated.clear()


def test_answers_keep_their_order_whatever_is_asked_together(suite):
    images, questions = suite.originals, [f"Is it {number}?" for number in range(COUNT)]
    usual = suite.subject.answer(images, questions, max_new_tokens=3)
    assert usual == suite.subject.answer(images, questions, max_new_tokens=3, order=range(COUNT, 0, -1))
    assert len(suite.subject.describe(images[:2])) == 2
    several = suite.subject.answer(images * 2, questions + questions[::-1], max_new_tokens=3)  # each picture twice
    assert several[:COUNT] == usual
    assert several[COUNT:] == suite.subject.answer(images, questions[::-1], max_new_tokens=3)


@pytest.mark.slow
def test_several_processes_give_the_same(suite, talking_checkpoint):
    with Subject(talking_checkpoint, batch_size=1, workers=2, progress=False) as subject:
        texts = suite.texts
        pictures, _ = subject.generate(texts, range(COUNT), steps=2, guidance=4.0)
        assert (pictures == suite.generated(0)[0]).all()


def test_bad_subjects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0"):
        Subject(batch_size=0)
    with pytest.raises(OSError, match="no folder"):
        Subject(tmp_path / "absent")
