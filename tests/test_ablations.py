"""The ablations: every arm is a model that can be built, a run measures what it says, the table counts right."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unif2ace.modeling_unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration
from unif2ace.modeling_unif2ace.objective_unif2ace import MaskSchedule, score_weight
from unif2ace.training.arguments import UniF2aceTrainingArguments


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ablations():
    spec = importlib.util.spec_from_file_location("ablations", ROOT / "benchmarks" / "ablations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(ablations):
    config = yaml.safe_load(ablations.CONFIG.read_text())
    config["base"] = str(ROOT / config["base"])
    return config


def test_arms_differ_from_the_default_in_one_thing(ablations, config):
    base = UniF2aceConfig.from_pretrained(config["base"])
    default = ablations.model_config(config, base, ablations.default_arm(config)).to_dict()
    arguments = {field.name for field in dataclasses.fields(UniF2aceTrainingArguments)}
    for arm, changes in config["arms"].items():
        changed = ablations.model_config(config, base, arm)
        with torch.device("meta"):
            model = UniF2aceForConditionalGeneration(changed)
        assert model.config.num_image_tokens == 36
        shape = changes.get("model", {})
        differing = {name for name, value in changed.to_dict().items() if value != default[name]}
        assert differing == set(shape), arm
        text, default_text = changed.to_dict()["text_config"], default["text_config"]
        differing = {name for name, value in text.items() if value != default_text[name]}
        assert differing == set(shape.get("text_config", {})), arm
        assert set(changes) <= {"title", "model", "training"} and set(changes.get("training", {})) <= arguments
        assert arm == ablations.default_arm(config) or ("model" in changes) != ("training" in changes), arm
    for wanted in config["tables"].values():
        assert wanted["arms"][0] == ablations.default_arm(config) and set(wanted["arms"]) <= set(config["arms"])
        for _, better, worse, metrics in wanted["orderings"]:
            assert {better, worse} <= set(wanted["arms"]) and set(metrics) <= set(ablations.METRICS)


def test_arms_of_one_weight_have_it(config):
    """The scaled mask term weighs as much as D3Diff, each power of 1/lambda as much as the mask term."""
    arms, alpha, count = config["arms"], config["training"]["alpha"], 36
    assert arms["mask_scaled"]["training"]["mask_weight"] == pytest.approx(1 + alpha * count)
    ratio = MaskSchedule().ratio((torch.arange(100_000) + 0.5) / 100_000).double()
    for power in (0, 0.5, 1, 1.5):
        of_arm = arms[f"power_{power}"]["training"]
        weight = score_weight(ratio, "inverse_ratio", MaskSchedule(), power=of_arm.get("weighting_power", 1.0))
        assert of_arm["alpha"] * count * (weight * ratio).mean() == pytest.approx(1, abs=5e-3)
    assert arms["d3pm"]["training"]["alpha"] == pytest.approx(1 / count, abs=1e-5)


@pytest.mark.parametrize("arm", ["moe_none", "moe_sequence", "no_face", "top_4"])
def test_runs_of_a_seed_start_alike(ablations, config, arm):
    base = UniF2aceConfig.from_pretrained(config["base"])
    default, changed = (ablations.initial_model(config, base, name, 3).state_dict() for name in ("d3diff", arm))
    other = ablations.initial_model(config, base, arm, 4).state_dict()
    shared = [name for name in changed if name in default and changed[name].shape == default[name].shape]
    assert len(shared) > 30
    assert all(torch.equal(changed[name], default[name]) for name in shared)
    assert not torch.equal(changed["lm_head.weight"], other["lm_head.weight"])


@pytest.fixture(scope="module")
def rows(ablations, config):
    random = np.random.default_rng(0)
    columns = {
        "codes": random.integers(0, 1024, (6, 36)),
        "clip_features": random.normal(size=(6, 64, 192)).astype(np.float16),
        "face_features": random.normal(size=(6, 128)).astype(np.float32),
    }
    seen, blind = (ablations.Rows(columns, "validation", config["words"], blind=blind) for blind in (False, True))
    return {"train": seen, "validation": seen, "blind": blind}


def test_blind_rows_lack_what_they_are_conditioned_on(rows):
    seen, blind = rows["validation"], rows["blind"]
    assert seen[2]["text"] and blind[2]["text"] == "" and torch.equal(seen[2]["codes"], blind[2]["codes"])
    assert seen[6 + 5]["turns"] == blind[6 + 5]["turns"] and torch.equal(blind[6 + 5]["codes"], seen[0]["codes"])


def test_a_run_measures_its_arm(ablations, config, rows):
    short = {**config, "training": {**config["training"], "max_steps": 2, "per_device_train_batch_size": 4}}
    results = [ablations.run_arm(short, arm, 0, rows) for arm in ("d3diff", "no_face", "moe_none", "elbo")]
    for result in results:
        assert 4 < result["mask_loss"] < 12 and 4 < result["bound"] < 12 and 2 < result["mmu_loss"] < 12
        assert result["blind_mask_loss"] != result["mask_loss"] and result["blind_mmu_loss"] != result["mmu_loss"]
        # whatever an arm was trained by, its bound is the elbo's, which weighs a code with 1 in the mean
        assert result["bound"] == pytest.approx(result["mask_loss"], rel=0.2)
    with_face, without = results[0], results[1]
    assert with_face["trained_parameters"] > without["trained_parameters"]
    assert set(with_face["experts"]["kinds"]) == {"t2i zero", "t2i noise", "mmu clip", "mmu face"}
    assert set(without["experts"]["kinds"]) == {"t2i zero", "t2i noise", "mmu clip"}
    assert results[2]["experts"] == {"kinds": {}, "unused": {}, "no_gradient": [], "trained": 0}
    # two layers, of both groups 8 + 4 experts; of the last layer's pictures that are looked at nobody learns
    assert with_face["experts"]["trained"] == 2 * 2 * (8 + 4) - 4
    for kind in with_face["experts"]["kinds"].values():
        assert 0 <= kind["use"] <= 1 and (kind["use"] > 0 or kind["cost"] == 0)


def test_spread_of_the_noise_feature(ablations, config):
    """The share of masked codes moves `mask_ratio` alone, the mask itself `gaussian` as well."""
    base = UniF2aceConfig.from_pretrained(config["base"])
    ratio, gaussian = (
        ablations.noise_spread(ablations.initial_model(config, base, arm, 0)) for arm in ("d3diff", "gaussian")
    )
    assert ratio["ratios"] > 0.01 and ratio["masks"] < 1e-5 * ratio["size"]
    assert gaussian["masks"] > 0.01


def test_all_seeds_are_measured_under_the_same_masks(ablations, config, rows, monkeypatch):
    masks = []
    draw = ablations.UniF2aceTrainer._draw

    def noted(self, batch, step, *args, **kwargs):
        drawn = draw(self, batch, step, *args, **kwargs)
        if step == -1:
            masks.append(drawn["masked"])
        return drawn

    monkeypatch.setattr(ablations.UniF2aceTrainer, "_draw", noted)
    short = {**config, "training": {**config["training"], "max_steps": 1, "per_device_train_batch_size": 4}}
    for seed in (0, 1):
        ablations.run_arm(short, "moe_none", seed, rows)
    first, second = masks[: len(masks) // 2], masks[len(masks) // 2 :]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True)) and torch.cat(first).any()


def a_run(loss=0.0, use=0.5):
    """What a run measures, as `run_arm` gives it."""
    kinds = {"t2i zero": {"use": 0.0, "cost": 0.0}, "t2i noise": {"use": use, "cost": 0.25}}
    return {
        "mask_loss": 2.0 + loss,
        "bound": 2.0,
        "mmu_loss": 1.0,
        "blind_mask_loss": 3.0,
        "blind_mmu_loss": 2.0,
        "experts": {"kinds": kinds, "unused": {"t2i_sequence": 1, "t2i_load": 2}, "no_gradient": ["a"]},
        "noise": {"size": 1.0, "ratios": 0.5, "masks": 0.0},
    }


def test_table_counts_seeds_and_orderings(ablations, config):
    runs = {
        "d3diff": {0: a_run(0.0), 1: a_run(0.1)},
        "mask_only": {0: a_run(0.2), 1: a_run(0.0)},
        "score_only": {0: a_run(0.5), 1: a_run(0.6), 2: a_run(0.7)},
    }
    text = ablations.table(runs, config, "paper")
    lines = text.splitlines()
    (ordering,) = [line for line in lines if line.startswith("| D3Diff beats mask only | masked")]
    assert "| +0.050, -1.856 to +1.956 | 1 of 2 | no difference |" in ordering  # t of one degree of freedom: 12.706
    (row,) = [line for line in lines if line.startswith("| mask term only |")]
    assert "| 2 | 2.100 ± 0.141 (+0.050, -1.856 to +1.956)" in row
    assert "7 runs of" in lines[0] and "2 layers, 64 wide" in lines[0]
    assert not any("top-2" in line and "beats" in line for line in lines)  # nothing ran for it
    assert "**Holds**: D3Diff beats score only (masked cross-entropy)" in text and "With one seed" not in text
    one_seed = ablations.table({arm: {0: found[0]} for arm, found in runs.items()}, config, "paper")
    assert "| 1 of 1 | one seed |" in one_seed and "**Holds**" not in one_seed and "With one seed" in one_seed


def test_tables_name_what_became_of_the_experts(ablations, config):
    runs = {arm: {0: a_run(use=0.5), 1: a_run(use=1.0)} for arm in ("d3diff", "top_k", "gaussian")}
    routing, noise = (ablations.table(runs, config, name) for name in ("routing", "noise"))
    assert "| plain top-k | 0/0 %, +0.000 ± 0.000 | 50/100 %, +0.250 ± 0.000 | 3/3 | 1/1 |" in routing
    assert "| `gaussian` | 1.000 ± 0.000 | 0.500 ± 0.000 | 0.000 ± 0.000 | 50/100 % | +0.250" in noise


@pytest.mark.parametrize(
    ("gains", "found"),
    [
        ([0.2, 0.3, 0.25], "holds"),
        ([-0.2, -0.3, -0.25], "reversed"),
        ([0.2, 0.3, -0.01], "no difference"),  # the signs differ
        ([0.1, 0.2, 0.3], "no difference"),  # the interval of three seeds is 2.48 standard deviations to each side
        ([0.1, 0.2, 0.3, 0.2, 0.2], "holds"),
        ([0.0, 0.0], "no difference"),
        ([5.0], "one seed"),
    ],
)
def test_differences_within_the_spread_are_none(ablations, gains, found):
    assert ablations.verdict(gains) == found


def test_runs_that_are_there_are_not_repeated(ablations, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # the configuration's paths are relative to it
    settings = yaml.safe_load(ablations.CONFIG.read_text())
    line = {"settings": ablations.run_key(settings, "d3diff"), "arm": "d3diff", "seed": 0, **a_run()}
    ablations.append_line(tmp_path / "results.jsonl", line)
    ablations.append_line(tmp_path / "results.jsonl", {**line, "settings": "other", "seed": 1})
    arguments = ["--tables", "paper", "--arms", "d3diff", "--seeds", "0", "--output", str(tmp_path)]
    assert ablations.main(arguments) == 0
    assert f"1 runs of {settings['training']['max_steps']} steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ablations.main(["--arms", "d3dif", "--output", str(tmp_path)])


def test_a_runs_name_is_what_decides_it(ablations, config):
    key = ablations.run_key(config, "d3diff")
    other = {**config, "arms": {**config["arms"], "new": {"title": "new"}}, "tables": {}}
    assert ablations.run_key(other, "d3diff") == key
    retitled = {**config, "arms": {"d3diff": {"title": "another title"}}}
    assert ablations.run_key(retitled, "d3diff") == key
    assert len({ablations.run_key(config, arm) for arm in config["arms"]}) == len(config["arms"])
    longer = {**config, "training": {**config["training"], "max_steps": 7}}
    assert ablations.run_key(longer, "d3diff") != key
