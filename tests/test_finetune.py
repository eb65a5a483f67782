"""`unif2ace finetune` on a tiny checkpoint: every preset, resumption, what it writes, and bad input."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unif2ace import UniF2acePipeline, UniF2aceProcessor
from unif2ace.cli import main
from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset
from unif2ace.training import finetune as module
from unif2ace.training import run_trainer
from unif2ace.training.data.rows import FaceRows, TuningRows, read_faces
from unif2ace.training.finetune import finetune
from unif2ace.training.finetune_settings import FinetuneSettings
from unif2ace.training.train_text_tokenizer import build_tokenizer


CAPTIONS = ["A man with a hat", "a man who smiles", "zora, a man with glasses", "a man"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    config = get_preset("tiny")
    torch.manual_seed(0)
    UniF2aceForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = build_tokenizer([*CAPTIONS, "USER: \nDescribe this face. ASSISTANT:"] * 5, config.text_vocab_size, 5)
    UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    generator = np.random.default_rng(0)
    for number, caption in enumerate(CAPTIONS):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n")
    return str(folder)


@pytest.fixture
def settings(base, faces, tmp_path):
    def make(output="out", **options):
        given = {"steps": 4, "batch_size": 4, "rank": 2, "prior": 2, "trigger": "zora", "base": base, "data": faces}
        return FinetuneSettings(output=str(tmp_path / output), **(given | options))

    return make


def tensors(folder, name="adapter_model.safetensors"):
    return load_file(f"{folder}/{name}")


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("preset", ["attention", "attention+experts", "experts"])
def test_adapter_is_written_and_loads(settings, preset, tmp_path):
    made = settings(preset=preset, tasks=["t2i"], bf16=preset == "experts")
    summary = finetune(made)
    output = tmp_path / "out"
    assert summary["steps"] == 4 and summary["pictures"] == 4 and summary["prior"] == 2
    assert summary["parameters"][0] < summary["parameters"][1]
    assert (output / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044
    assert summary["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors", "samples.png"]
    assert not list((output / "run").glob("checkpoint-*"))
    assert all(set(values) == {"before", "after"} for values in summary["measured"].values())
    assert {"loss of other pictures", "attributes of the captions that the model sees"} <= set(summary["measured"])
    card = (output / "README.md").read_text()
    assert "| loss of other pictures | " in card and "widget" in card
    with Image.open(output / "run" / "sheet.png") as sheet:  # three rows, a column for each caption
        assert sheet.width > 4 * 192 and sheet.height > 3 * 192
    assert json.loads((output / "run" / "summary.json").read_text())["changed"] == summary["changed"]
    assert (summary["changed"].get("mmu routed experts", 0.0), "mmu shared experts" in summary["changed"]) == (
        0,
        False,
    )
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == made.base

    card = (output / "README.md").read_text()
    assert "`zora`" in card and "load_lora_weights" in card and preset in card and "consent" in card
    pipe = UniF2acePipeline.from_pretrained(output)
    assert pipe.get_active_adapters() == ["default_0"]
    assert pipe("zora with a hat", num_inference_steps=2).images[0].size == (16, 16)


def test_full_writes_a_checkpoint(settings, tmp_path, base):
    finetune(settings(preset="full", steps=2, prior=0, save_steps=10))
    pipe = UniF2acePipeline.from_pretrained(tmp_path / "out")
    assert pipe.get_list_adapters() == []
    before = dict(UniF2aceForConditionalGeneration.from_pretrained(base).named_parameters())
    changed = {name for name, p in pipe.transformer.named_parameters() if not torch.equal(p, before[name])}
    assert len(changed) > 50
    assert not [name for name in changed if name.startswith(("model.vq_model", "model.vision", "model.face"))]


def test_a_stopped_run_goes_on_and_ends_the_same(settings, monkeypatch, tmp_path):
    options = {"preset": "attention+experts", "tasks": ["t2i"], "steps": 6, "save_steps": 3}
    finetune(settings("whole", **options))

    class Stop(run_trainer.JsonLog):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:  # noticed after the next one
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_trainer, "JsonLog", Stop)
        summary = finetune(settings("stopped", **options))
    assert (summary["steps"], summary["stopped_by"]) == (2, "SIGTERM")
    assert not (tmp_path / "stopped" / "adapter_config.json").exists()
    with pytest.raises(FileExistsError, match="--resume"):
        finetune(settings("stopped", **options))
    with pytest.raises(ValueError, match="rank=2"):
        finetune(settings("stopped", **(options | {"rank": 3})), resume=True)
    summary = finetune(settings("stopped", **options), resume=True)
    assert summary["steps"] == 6
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "stopped"))
    assert summary["changed"]["mmu routed experts"] == 0.0
    with pytest.raises(FileExistsError, match="finished"):
        finetune(settings("stopped", **options), resume=True)


def test_stopped_before_the_first_checkpoint(settings, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_trainer", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune(settings())
    assert finetune(settings(), resume=True)["steps"] == 4
    with pytest.raises(FileNotFoundError, match="no fine-tuning to resume"):
        finetune(settings("other"), resume=True)


def test_nothing_is_written_over(settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="not empty"):
        finetune(settings())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_several_processes_are_refused(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        finetune(settings())


def test_adapter_as_base_is_refused(settings, tmp_path):
    finetune(settings(steps=1, prior=0))
    with pytest.raises(ValueError, match="adapter already"):
        finetune(settings("again", base=str(tmp_path / "out")))


def test_wrong_settings_are_refused():
    for wrong in (
        {"preset": "x"},
        {"tasks": ["x"]},
        {"tasks": []},
        {"preset": "full", "tasks": ["t2i"]},
        {"steps": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"prior": -1},
        {"trigger": " "},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FinetuneSettings("data", "output", **wrong)


# The folder


def test_faces_with_a_name(faces, tmp_path):
    assert [record.captions for record in read_faces(faces, "zora")] == [
        ["zora, a man with a hat"],
        ["zora, a man who smiles"],
        ["zora, a man with glasses"],
        ["zora, a man"],
    ]
    assert read_faces(faces)[0].captions == ["A man with a hat"]
    folder = tmp_path / "bare"
    shutil.copytree(faces, folder)
    (folder / "1.txt").unlink()
    assert read_faces(str(folder), "zora")[1].captions == ["zora"]
    with pytest.raises(ValueError, match="1 of 4 pictures .* 1.png: .*--trigger"):
        read_faces(str(folder))
    lines = [{"file_name": "0.png", "text": "one"}, {"file_name": "1.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record.captions for record in read_faces(str(folder))] == [["one"], ["two"]]


def test_faces_that_cannot_be_used(faces, tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture"):
        read_faces(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_faces(str(tmp_path / "nowhere"))
    shutil.copytree(faces, tmp_path / "broken")
    (tmp_path / "broken" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be used: 2.png: the picture .*take it out") as caught:
        read_faces(str(tmp_path / "broken"))
    assert "max_broken" not in str(caught.value)


def test_rows_of_the_tasks(faces):
    rows = FaceRows(read_faces(faces, "zora"), passes=2)
    prior = [("a man", torch.arange(16))]
    both = TuningRows(rows, ["t2i", "mmu"], prior)
    assert sorted(both.tasks) == ["mmu"] * 8 + ["t2i"] * 9
    assert [both[i]["task"] for i in range(len(both))] == both.tasks
    assert both[len(both) - 1]["text"] == "a man"
    assert set(TuningRows(rows, ["mmu"], prior).tasks) == {"mmu"}
    with pytest.raises(IndexError):
        both[len(both)]


# The command


def test_command(base, faces, tmp_path, capfd):
    output = tmp_path / "lora"
    arguments = ["finetune", "--data", faces, "--output", str(output), "--base", base, "--trigger", "zora"]
    arguments += ["--steps", "2", "--batch-size", "4", "--rank", "2", "--prior", "0", "--device", "cpu"]
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    assert "4 faces" in printed and "attention: changed by" in printed and f"wrote {output}" in printed
    picture = tmp_path / "face.png"
    assert main(["generate", "zora with a hat", "--model", str(output), "-o", str(picture), "--steps", "2"]) == 0
    assert Image.open(picture).size == (16, 16)
    capfd.readouterr()
    assert main(arguments) == 2
    reading, error = capfd.readouterr().err.splitlines()
    assert reading.startswith("reading ") and "exists and is not empty" in error
    assert main([*arguments[:2], str(tmp_path / "none"), *arguments[3:4], str(tmp_path / "x")]) == 2
    assert "does not exist" in capfd.readouterr().err
