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
    assert default.num_image_tokens == 64
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
    for _, better, worse, metrics in ablations.ORDERINGS:
        assert {better, worse} <= set(ablations.ARMS) and set(metrics) <= set(ablations.METRICS)


def test_a_run_measures_its_arm(ablations, config):
    random = np.random.default_rng(0)
    columns = {
        "codes": random.integers(0, 1024, (6, 64)),
        "clip_features": random.normal(size=(6, 64, 192)).astype(np.float16),
        "face_features": random.normal(size=(6, 128)).astype(np.float32),
    }
    rows = ablations.Rows(columns, "validation", config["prompt_coverage"], config["questions"])
    short = {**config, "training": {**config["training"], "max_steps": 2, "per_device_train_batch_size": 4}}
    results = [ablations.run_arm(short, arm, 0, {"train": rows, "validation": rows}) for arm in ("d3diff", "no_face")]
    for result in results:
        assert 4 < result["mask_loss"] < 12 and 4 < result["bound"] < 12 and 2 < result["mmu_loss"] < 12
    assert results[0]["trained_parameters"] > results[1]["trained_parameters"]


def test_table_counts_seeds_and_orderings(ablations, config):
    results = [
        {"arm": arm, "seed": seed, "mask_loss": 2.0 + loss, "bound": 2.0, "mmu_loss": 1.0}
        for arm, losses in (("d3diff", (0.0, 0.1)), ("mask_only", (0.2, 0.0)))
        for seed, loss in enumerate(losses)
    ]
    lines = ablations.table(results, config).splitlines()
    (ordering,) = [line for line in lines if line.startswith("| D3Diff beats mask only | masked")]
    assert ordering.endswith("| 1 of 2 |") and "+0.050 ± 0.212" in ordering
    (row,) = [line for line in lines if line.startswith("| mask term only |")]
    assert "| 2 | 2.100 ± 0.141 (+0.050 ± 0.212)" in row
    assert not any("top-2" in line and "beats" in line for line in lines)  # nothing ran for it


def test_runs_that_are_there_are_not_repeated(ablations, config, tmp_path, capsys):
    key = ablations.settings_key(yaml.safe_load(ablations.CONFIG.read_text()))
    line = {"settings": key, "arm": "d3diff", "seed": 0, "mask_loss": 2.0, "bound": 2.0, "mmu_loss": 1.0}
    ablations.append_line(tmp_path / "results.jsonl", line)
    ablations.append_line(tmp_path / "results.jsonl", {**line, "settings": "other", "seed": 1})
    assert ablations.main(["--arms", "d3diff", "--seeds", "0", "--output", str(tmp_path)]) == 0
    assert "1 runs of 300 steps" in capsys.readouterr().out
