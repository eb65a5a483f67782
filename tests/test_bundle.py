"""The folder that ships: made from a real model of tiny size, loaded the ways a user loads it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForMultimodalLM

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceProcessor
from unif2ace.hub_card.bundle import bundle, bundled_card, folder_megabytes, main
from unif2ace.hub_card.facts import loss_table, training_minutes
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.pipelines.files import write_text
from unif2ace.training.train_text_tokenizer import build_tokenizer


LOG = [
    {"step": 10, "seconds": 60.0, "loss": 5.0, "mask_loss": 4.5, "learning_rate": 1e-3},
    {"step": 20, "seconds": 120.0, "loss": 4.0, "mask_loss": 3.5},
    {"step": 20, "seconds": 120.5, "eval_loss": 4.2},
    {"step": 30, "seconds": 30.0, "loss": 3.0, "mask_loss": 2.5},  # resumed
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    config = get_preset("tiny")
    texts = ["a man with a hat and a beard", "Describe this face. What is on his head?"]
    tokenizer = build_tokenizer(texts * 3, config.text_vocab_size, config.vq_config.num_bits)
    UniF2aceForConditionalGeneration(config).save_pretrained(folder / "final")
    UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(folder / "final")
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    return folder


@pytest.fixture(scope="module")
def bundled(run, tmp_path_factory):
    return bundle(run / "final", tmp_path_factory.mktemp("hub") / "faces")


def test_folder_is_complete_and_nothing_is_left_beside_it(bundled):
    names = {path.relative_to(bundled).as_posix() for path in bundled.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "scheduler/scheduler_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert list(bundled.parent.iterdir()) == [bundled]
    assert 0.2 < folder_megabytes(bundled) < 2
    assert all(path.stat().st_mode & 0o044 for path in bundled.rglob("*") if path.is_file())
    generation = json.loads((bundled / "generation_config.json").read_text())
    assert (generation["max_new_tokens"], generation["eos_token_id"], generation["pad_token_id"]) == (160, 1, 302)


def test_weights_are_halves_and_computed_as_floats(bundled, run):
    with safe_open(bundled / "model.safetensors", "pt") as weights:
        dtypes = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118 (not a dictionary)
    assert torch.float16 in dtypes and not dtypes & {torch.float32, torch.bfloat16}
    original = UniF2aceForConditionalGeneration.from_pretrained(run / "final").state_dict()
    for arguments in ({}, {"dtype": "auto"}):
        model = AutoModelForMultimodalLM.from_pretrained(bundled, **arguments)
        assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {
            torch.float32
        }
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, original[name].half().float() if tensor.is_floating_point() else tensor)


def test_a_decoder_that_was_trained_on_is_taken_over_if_the_codes_are_the_same(run, tmp_path):
    model = UniF2aceForConditionalGeneration.from_pretrained(run / "final").model
    with torch.no_grad():
        model.vq_model.decoder.conv_out.bias += 0.25
    model.vq_model.save_pretrained(tmp_path / "decoder")
    out = bundle(run / "final", tmp_path / "faces", image_tokenizer=tmp_path / "decoder")
    shipped = UniF2aceForConditionalGeneration.from_pretrained(out).model.vq_model
    torch.testing.assert_close(shipped.decoder.conv_out.bias, model.vq_model.decoder.conv_out.bias.half().float())
    with torch.no_grad():
        model.vq_model.encoder.conv_in.bias += 0.25
    model.vq_model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another encoder"):
        bundle(run / "final", tmp_path / "second", image_tokenizer=tmp_path / "other")
    assert not (tmp_path / "second").exists()


def test_pipeline_runs(bundled):
    pipe = UniF2acePipeline.from_pretrained(bundled)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a man with a hat", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (16, 16)
    assert isinstance(pipe.describe(image, max_new_tokens=4), str)


def test_an_existing_folder_is_replaced_only_when_told(run, tmp_path, capsys):
    out = tmp_path / "faces"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        bundle(run / "final", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert main(["--model", str(run / "final"), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["--model", str(run / "final"), "--out", str(out), "--overwrite"]) == 0
    assert (out / "config.json").is_file() and not (out / "mine.txt").exists()
    assert "MB" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no config.json"):
        bundle(tmp_path / "nothing", tmp_path / "new")
    assert list(tmp_path.iterdir()) == [out]


def test_card_of_an_unmeasured_checkpoint(bundled):
    card = ModelCard.load(bundled / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "transformers")
    assert "model-index" not in data and {"unif2ace", "text-to-image"} <= set(data["tags"])
    text = card.text
    assert "Not measured yet" in text and "painted faces only" in text and "2 CPU cores" in text
    assert "not the paper's total" in text and "answers count\n4.0 times, and codes under facial parts" in text
    assert "30 steps in 2 minutes" in text or "30 steps in 3 minutes" in text
    assert "| 10 | 5.000 | 4.500 | – |" in text and "| 30 | 3.000 | 2.500 | 4.200 |" in text
    for unfinished in ("More information needed", "More Information Needed", "None", "Undefined", "{{", "}}:"):
        assert unfinished not in text.replace("{{UniF$^2$ace}:", "")
    assert "Li, Junzhe" in text and "| gender | man " in text


def test_card_shows_only_numbers_of_the_same_weights(bundled, run, tmp_path):
    measured = {"value": 0.9, "low": 0.88, "high": 0.92}
    captions = {"precision": measured, "recall": measured, "stated": measured, "reference_facts": 17.0}
    quality = {
        "suite": "painted",
        "settings": {"model_sha256": checkpoint_sha256(bundled), "split": "test", "count": 500}
        | {"seeds": [0], "steps": 16, "guidance": 3.0},
        "versions": {},
    }
    precision = measured | {"better": "higher", "count": 500}
    part = {"date": "2026-01-01", "measures": {"precision": precision}, "details": captions | {"attributes": {}}}
    quality["parts"] = {"captions": part}
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(quality))
    write_text(tmp_path / "README.md", str(bundled_card(bundled, run, path)))
    card = ModelCard.load(tmp_path / "README.md")
    assert "| captions: precision | 0.900 [0.880, 0.920] |" in card.text and "Not measured" not in card.text
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"captions: precision": 0.9}
    # another suite of the same weights, as the experts' report, stands beside it
    part = {"date": "2026-01-01", "measures": {}, "details": {"markdown": "| layer | copy |"}}
    more = {"suite": "custom", "settings": quality["settings"], "versions": {}, "parts": {"experts": part}}
    (tmp_path / "custom.json").write_text(json.dumps(more))
    card = bundled_card(bundled, run, path, results=[tmp_path / "custom.json"])
    assert "| layer | copy |" in card.text and "| captions: precision | 0.900 [0.880, 0.920] |" in card.text
    quality["settings"]["model_sha256"] = "another"
    path.write_text(json.dumps(quality))
    assert "Not measured yet" in bundled_card(bundled, run, path).text


def test_log_summaries():
    assert training_minutes(LOG) == pytest.approx((120.5 + 30) / 60)
    assert loss_table([]) == "" and loss_table(LOG[:1]).splitlines()[-1] == "| 10 | 5.000 | 4.500 |"
