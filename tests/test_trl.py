"""The TRL examples for a few steps on a tiny checkpoint, and that TRL's forward pass really sees the picture."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unif2ace import UniF2acePipeline, UniF2aceProcessor
from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset
from unif2ace.training.data.conversations import (
    WRONG_FACTS,
    conversation_rows,
    folder_preferences,
    load_faces,
    preference_rows,
    question_rows,
)
from unif2ace.training.data.language.captions import parse_caption
from unif2ace.training.train_text_tokenizer import build_tokenizer


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faces():
    return load_faces("painted", 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory, faces):
    """A tiny checkpoint with room for a caption."""
    folder = tmp_path_factory.mktemp("base")
    fields = get_preset("tiny").to_dict()
    fields["text_config"]["max_position_embeddings"] = 512
    config = type(get_preset("tiny"))(**fields)
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    texts = [caption for face in faces for caption in face.captions] + ["USER: \nDescribe this face. ASSISTANT:"]
    UniF2aceProcessor.from_config(config, build_tokenizer(texts * 3, config.text_vocab_size, 5)).save_pretrained(
        folder
    )
    return str(folder)


def options(base, output, **changes):
    given = {
        "base": base,
        "output": output,
        "data": "painted",
        "count": 4,
        "steps": 3,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "rank": 2,
        "seed": 0,
        "beta": 0.1,
        "group_size": 2,
        "max_new_tokens": 6,
    }
    return argparse.Namespace(**(given | changes))


def losses_of_two_pictures(trainer):
    """TRL's loss of one conversation about two different pictures."""
    row = dict(trainer.train_dataset[0])
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    trainer.model.eval()
    found = []
    for image in (Image.new("RGB", (16, 16), "white"), Image.fromarray(noise)):
        batch = trainer._prepare_inputs(trainer.data_collator([{**row, "images": [image]}]))
        with torch.no_grad():
            found.append(trainer.compute_loss(trainer.model, batch).item())
    trainer.model.train()
    return found


def log_probs_of_two_pictures(trainer):
    """The sums of GRPO's log-probabilities of one answer about two different pictures."""
    rows = [dict(trainer.train_dataset[0]) for _ in range(2)]
    trainer.model.eval()
    made = trainer._generate_and_score_completions(rows)
    ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)[:1]
    mask = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)[:1]
    pixels, found = made["pixel_values"][:1], []
    for seen in (pixels, -pixels):
        more = {"pixel_values": seen, "num_images": [1]}
        with torch.no_grad():
            log_probs = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, made["completion_ids"].shape[1], **more
            )[0]
        found.append(log_probs.sum().item())
    trainer.model.train()
    return found


@pytest.mark.parametrize("name", ["trl_sft", "trl_dpo", "trl_grpo"])
def test_example_trains_the_understanding_group_alone(name, base, tmp_path, monkeypatch):
    example = load_example(name)
    if name == "trl_grpo":  # what a model that knows nothing can earn as well

        def letters(completions, **kwargs):
            return [float(len(set(said[0]["content"]))) for said in completions]

        monkeypatch.setattr(example, "shared_words", letters)
    trainer = example.make_trainer(options(base, tmp_path / "run"))
    if name == "trl_dpo":  # an adapter that is still nothing has no preference
        with torch.no_grad():
            for parameter_name, parameter in trainer.model.named_parameters():
                if "lora_B.default" in parameter_name:
                    parameter.normal_(std=0.2)
    look = log_probs_of_two_pictures if name == "trl_grpo" else losses_of_two_pictures
    first, second = look(trainer)
    assert abs(first - second) > 1e-4, "TRL's forward does not see the picture"
    trainer = example.make_trainer(options(base, tmp_path / "run"))
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    trainer.model.save_pretrained(tmp_path / "adapter")

    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    moved = {key for key, tensor in tensors.items() if "lora_B" in key and tensor.abs().max() > 0}
    assert any("shared_experts.mmu" in key for key in moved) and any("mlp.experts" in key for key in moved)
    assert not [key for key in tensors if "shared_experts.t2i" in key or "self_attn" in key]

    tuned, plain = UniF2acePipeline.from_pretrained(tmp_path / "adapter"), UniF2acePipeline.from_pretrained(base)
    draw = {"generator": torch.Generator(), "num_inference_steps": 3, "output_type": "latent"}
    codes = []
    for pipe in (tuned, plain):
        draw["generator"].manual_seed(0)
        codes.append(pipe("a man", **draw).codes)
    assert torch.equal(*codes)


def test_shared_words_reward_what_is_right_and_nothing_else():
    reward = load_example("trl_grpo").shared_words
    said = ["A man with a hat.", "a hat", "a a a a", ""]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    assert reward(completions, answer=["a man with a hat"] * 4) == pytest.approx([1, 4 / 7, 4 / 9, 0])


def test_only_the_assistants_words_are_learnt(base, tmp_path):
    trainer = load_example("trl_sft").make_trainer(options(base, tmp_path / "run"))
    row = trainer.train_dataset[0]
    batch = trainer.data_collator([row])
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    text = trainer.processing_class.tokenizer.decode(learnt, skip_special_tokens=True).strip()
    assert text == row["messages"][-1]["content"][0]["text"].strip()


def test_command_on_a_folder(base, tmp_path, faces, capsys):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number, face in enumerate(faces[:2]):
        face.image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a face {number}")
    arguments = ["--data", str(folder), "--base", base, "--steps", "2", "--batch-size", "2", "--rank", "2"]
    load_example("trl_sft").main([*arguments, "--output", str(tmp_path / "sft")])
    assert (tmp_path / "sft" / "adapter_model.safetensors").is_file()
    lines = [
        {"file_name": f"{i}.png", "prompt": "Who?", "chosen": f"face {i}", "rejected": "a tree"} for i in range(2)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert folder_preferences(folder)[1]["chosen"][0]["content"][0]["text"] == "face 1"
    load_example("trl_dpo").main([*arguments, "--output", str(tmp_path / "dpo")])
    assert "preferred in" in capsys.readouterr().out
    more = ["--group-size", "2", "--max-new-tokens", "4"]
    load_example("trl_grpo").main([*arguments, *more, "--output", str(tmp_path / "grpo")])
    assert "mean reward" in capsys.readouterr().out and (tmp_path / "grpo" / "adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit):
        load_example("trl_dpo").main([*arguments, "--output", str(tmp_path / "dpo")])


def test_rows(faces):
    rows = conversation_rows(faces)
    assert len(rows) == sum(len(face.captions) + len(face.questions) for face in faces)
    for row, asked in zip(rows, question_rows(faces), strict=True):
        assert row["messages"][:1] == asked["prompt"] and row["messages"][1]["content"][0]["text"] == asked["answer"]
    pairs = preference_rows(faces)
    assert pairs == preference_rows(faces)
    for face, pair in zip(faces, pairs, strict=True):
        said = {name: parse_caption(pair[name][0]["content"][0]["text"]) for name in ("chosen", "rejected")}
        assert said["chosen"].items() <= face.attributes.items()
        wrong = [name for name, value in said["rejected"].items() if face.attributes[name] != value]
        assert 1 <= len(wrong) <= WRONG_FACTS
    bare = [type(face)(image=face.image, captions=face.captions[:1]) for face in faces]
    for face, pair in zip(bare, preference_rows(bare), strict=True):
        assert pair["chosen"][0]["content"][0]["text"] == face.captions[0]
        assert pair["rejected"][0]["content"][0]["text"] != face.captions[0]
    with pytest.raises(ValueError, match="different one"):
        preference_rows(bare[:1])
