"""The routing report: use, counterfactual worth and gradients of every expert, on a small model."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import tiny_pipeline

from unif2ace.cli import main
from unif2ace.modeling_unif2ace.moe_unif2ace import UniF2aceSequenceMoE
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.sources import open_faces
from unif2ace.training.evaluation.experts import (
    ExpertProbe,
    as_copy,
    face_rows,
    idle_experts,
    measure_experts,
    other_feature,
    use_tables,
    without_routed,
    without_shared,
)
from unif2ace.training.evaluation.results import card_section, load_results


COUNT = 4


@pytest.fixture(scope="module")
def rows():
    records = open_faces(f"painted:{COUNT}", split="test").table()
    turns = [[(question.question, question.answer) for question in record.questions] for record in records]
    return face_rows([record.image for record in records], ["a man with a hat"] * COUNT, turns)


@pytest.fixture
def pipe():
    """Routers and mixing weights that are not a fresh model's, so that every kind of expert is used somewhere."""
    pipe = tiny_pipeline()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if "sequence_moe" in name or "router" in name:
                parameter.normal_(0, 0.5)
            elif "experts" in name or "resamplers" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for moe in (module for module in pipe.transformer.modules() if isinstance(module, UniF2aceSequenceMoE)):
            for group, names in enumerate(moe.expert_names):  # features are used, beside one of copy and zero
                moe.router.bias[group] += torch.tensor([0.0 if name in ("copy", "zero") else 3.0 for name in names])
    return pipe


@pytest.fixture
def probe(pipe, rows):
    processor, model = pipe.processor, pipe.transformer
    collator = UniF2aceCollator(processor.tokenizer, model.config, processor.image_processor)
    return ExpertProbe(model, collator, rows)


def test_losses_are_the_models_own(probe, pipe):
    for task in ("t2i", "mmu"):
        sums, counts = probe.losses(task)
        assert sums.shape == counts.shape == (COUNT,) and (counts > 0).all()
        batch = dict(probe.batches[task][0])
        batch.setdefault("image_labels", torch.full_like(batch["input_ids"], -100))
        with torch.no_grad():
            terms = pipe.transformer(**batch, use_cache=False).loss_terms
        if task == "mmu":
            (answers,) = [value for name, value in terms.items() if name in ("mmu", "mmu_loss", "answers")]
            assert sums.sum() / counts.sum() == pytest.approx(answers.item(), rel=1e-4)


def test_use_counts_choices(probe, pipe):
    text = pipe.transformer.config.text_config
    for task in ("t2i", "mmu"):
        use = probe.use(task)
        for layer in text.moe_layers:  # every token chooses so many
            assert use[layer, "token"].sum() == pytest.approx(text.num_experts_per_tok, abs=1e-5)
        for layer in text.sequence_moe_layers:
            assert use[layer, "sequence"].sum() == pytest.approx(text.num_experts_per_sequence, abs=1e-5)


def test_what_is_replaced_counts_and_comes_back(probe, pipe):
    model, before = pipe.transformer, {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    layers = list(probe.layers.values())
    with_moe = next(layer for layer in layers if layer.has_experts)
    moe = next(layer.sequence_moe for layer in layers if layer.sequence_moe is not None)
    for task in ("t2i", "mmu"):
        base, _ = probe.losses(task)
        changes = [without_shared(with_moe, task), without_routed(with_moe, task)]
        changes += [
            other_feature(model, kind) for kind in model.model.resamplers if (kind == "noise") == (task == "t2i")
        ]
        for change in changes:
            assert not np.allclose(probe.losses(task, change)[0], base)
            assert np.array_equal(probe.losses(task)[0], base)
        # the other task's experts are none of this task's business
        other = "mmu" if task == "t2i" else "t2i"
        assert np.array_equal(probe.losses(task, without_routed(with_moe, other))[0], base)
    # each alone adds up to all of a group
    parts = [without_routed(with_moe, "mmu", expert) for expert in range(with_moe.mlp.num_routed_experts)]
    both = [probe.losses("mmu", *changes)[0] for changes in (parts, [without_routed(with_moe, "mmu")])]
    assert np.allclose(*both)
    used = {name for names in moe.expert_names for name in names}
    assert {"copy", "noise"} <= used
    assert "amounts" not in vars(moe)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_as_copy_is_copy(pipe, probe):
    """With every kind replaced by copy the sequence level is the same as with a router that only knows copy."""
    moes = [layer.sequence_moe for layer in probe.layers.values() if layer.sequence_moe is not None]
    for task in ("t2i", "mmu"):
        kinds = {name for moe in moes for name in moe.expert_names[task == "mmu"]} - {"copy"}
        replaced = probe.losses(task, *(as_copy(moe, kind) for moe in moes for kind in kinds))[0]
        with torch.no_grad():
            saved = [moe.router.bias.clone() for moe in moes]
            for moe in moes:
                for group, names in enumerate(moe.expert_names):
                    for expert, name in enumerate(names):
                        moe.router.bias[group, expert] = 1e4 if name == "copy" else -1e4
        only_copy = probe.losses(task)[0]
        with torch.no_grad():
            for moe, bias in zip(moes, saved, strict=True):
                moe.router.bias.copy_(bias)
        assert np.allclose(replaced, only_copy, rtol=1e-4) and not np.allclose(replaced, probe.losses(task)[0])


def test_the_report(pipe, rows):
    part = measure_experts(pipe.transformer, pipe.processor, rows)
    entries = part.details["experts"]
    text = pipe.transformer.config.text_config
    expected = 2 * len(text.moe_layers) * (text.num_routed_experts + 1)
    expected += 2 * len(text.sequence_moe_layers) * len(text.t2i_sequence_experts)
    assert len(entries) == expected
    assert all(entry["low"] <= entry["cost"] <= entry["high"] for entry in entries)
    assert all(entry["cost"] == 0 for entry in entries if not entry["use"])
    routed = [entry for entry in entries if entry["level"] == "token" and entry["expert"] != "shared"]
    assert all(entry["gradient"] is not None for entry in routed)
    assert any(entry["gradient"] > 0 for entry in routed) and any(entry["cost"] != 0 for entry in routed)
    assert {"loss, text to image", "loss, understanding"} <= set(part.measures)
    assert part.measures["loss, understanding"]["value"] > 0
    assert any(name.startswith("cost of another row's clip") for name in part.measures)
    assert "**text to image, token level**" in part.details["markdown"]
    tables, names = use_tables(entries)
    assert set(tables) == {"t2i_load", "mmu_load", "t2i_sequence", "mmu_sequence"}
    assert names["t2i_sequence"] == list(text.t2i_sequence_experts)
    assert all(torch.allclose(shares.sum(-1), torch.ones(len(shares))) for shares in tables.values())
    assert part.pictures["experts"].size[0] > 100
    assert not pipe.transformer.training and all(p.grad is None for p in pipe.transformer.parameters())


def test_idle_experts_are_named():
    kinds = [("1", 0.5, 0.1, 0.2), ("2", 0.5, -0.1, 0.1), ("3", 0.01, 0.1, 0.2)]
    entries = [
        {"layer": 0, "task": "t2i", "level": "token", "expert": expert, "use": use, "low": low, "high": high}
        | {"cost": 0.0, "gradient": gradient}
        for (expert, use, low, high), gradient in zip(kinds, (1e-3, 1e-5, 0.0), strict=True)
    ]
    text = idle_experts(entries)
    assert "2 of text to image, token level, costs nothing when it is replaced (gradient 1e-05 to 1e-05)" in text
    assert "3 of text to image, token level, is not used (no gradient)" in text and "1 of text" not in text
    assert idle_experts(entries[:1]).startswith("Every expert is used")


def test_the_command_writes_table_and_figure(talking_checkpoint, tmp_path, capsys):
    command = ["evaluate", str(talking_checkpoint), "--suite", "custom", "--data", "painted:3", "--parts", "experts"]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "experts: loss, text to image" in capsys.readouterr().out
    (path,) = tmp_path.glob("custom-*.json")
    results = load_results(path)
    assert "## Part experts" in path.with_suffix(".md").read_text()
    assert Image.open(path.with_name(f"{path.stem}-experts.png")).format == "PNG"
    assert "#### Part experts" in card_section(results) and "| layer | 1 |" in card_section(results)
