"""The ablations: every arm is a model that can be built, a run measures what it says, the table counts right."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unif2ace.modeling_unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration


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
    default = ablations.model_config(config, base, ablations.DEFAULT)
    assert default.num_image_tokens == 36
    for arm, (_, shape, arguments) in ablations.ARMS.items():
        changed = ablations.model_config(config, base, arm)
        with torch.device("meta"):
            UniF2aceForConditionalGeneration(changed)
        differing = {
            name
            for name, value in changed.text_config.to_dict().items()
            if value != default.text_config.to_dict()[name]
        }
        assert differing == set(shape), arm
        assert arm == ablations.DEFAULT or bool(shape) != bool(arguments), arm
    scaled = ablations.ARMS["mask_scaled"][2]["mask_weight"]
    assert scaled == pytest.approx(1 + config["training"]["alpha"] * default.num_image_tokens)
    for _, better, worse, metrics in ablations.ORDERINGS:
        assert {better, worse} <= set(ablations.ARMS) and set(metrics) <= set(ablations.METRICS)


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
    results = [ablations.run_arm(short, arm, 0, rows) for arm in ("d3diff", "no_face")]
    for result in results:
        assert 4 < result["mask_loss"] < 12 and 4 < result["bound"] < 12 and 2 < result["mmu_loss"] < 12
        assert result["blind_mask_loss"] != result["mask_loss"] and result["blind_mmu_loss"] != result["mmu_loss"]
    assert results[0]["trained_parameters"] > results[1]["trained_parameters"]


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


def test_table_counts_seeds_and_orderings(ablations, config):
    results = [
        {"arm": arm, "seed": seed, "mask_loss": 2.0 + loss, "bound": 2.0, "mmu_loss": 1.0}
        for arm, losses in (("d3diff", (0.0, 0.1)), ("mask_only", (0.2, 0.0)))
        for seed, loss in enumerate(losses)
    ]
    lines = ablations.table(results, config).splitlines()
    (ordering,) = [line for line in lines if line.startswith("| D3Diff beats mask only | masked")]
    assert ordering.endswith("| 1 of 2 | no difference |") and "+0.050 ± 0.212" in ordering
    (row,) = [line for line in lines if line.startswith("| mask term only |")]
    assert "| 2 | 2.100 ± 0.141 (+0.050 ± 0.212)" in row
    assert not any("top-2" in line and "beats" in line for line in lines)  # nothing ran for it
    assert "**No difference**: D3Diff beats mask only (masked cross-entropy)" in "\n".join(lines)
    assert not any("With one seed" in line for line in lines)
    one_seed = ablations.table([result for result in results if result["seed"] == 0], config)
    assert "| 1 of 1 | one seed |" in one_seed and "**Holds**" not in one_seed and "With one seed" in one_seed


@pytest.mark.parametrize(
    ("gains", "found"),
    [
        ([0.2, 0.3, 0.25], "holds"),
        ([-0.2, -0.3, -0.25], "reversed"),
        ([0.2, 0.3, -0.01], "no difference"),  # the signs differ
        ([0.01, 0.01, 0.5], "no difference"),  # the spread is larger than the mean
        ([0.0, 0.0], "no difference"),
        ([5.0], "one seed"),
    ],
)
def test_differences_within_the_spread_are_none(ablations, gains, found):
    assert ablations.verdict(gains) == found


def test_runs_that_are_there_are_not_repeated(ablations, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # the configuration's paths are relative to it
    settings = yaml.safe_load(ablations.CONFIG.read_text())
    key = ablations.settings_key(settings)
    line = {"settings": key, "arm": "d3diff", "seed": 0, "mask_loss": 2.0, "bound": 2.0, "mmu_loss": 1.0}
    ablations.append_line(tmp_path / "results.jsonl", line)
    ablations.append_line(tmp_path / "results.jsonl", {**line, "settings": "other", "seed": 1})
    assert ablations.main(["--arms", "d3diff", "--seeds", "0", "--output", str(tmp_path)]) == 0
    assert f"1 runs of {settings['training']['max_steps']} steps" in capsys.readouterr().out
