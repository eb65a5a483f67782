"""`UniF2acePipeline` with a real model of tiny size: pictures, texts, layouts on disk, bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace import (
    UniF2aceForConditionalGeneration,
    UniF2acePipeline,
    UniF2acePipelineOutput,
    UniF2aceProcessor,
    UniF2aceScheduler,
)
from unif2ace.modeling_unif2ace import UniF2aceImageError, get_preset
from unif2ace.training.train_text_tokenizer import build_tokenizer


TEXTS = [
    "a man with a hat and a beard",
    "a young woman with round glasses",
    "Describe this face. What is on his head?",
]
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    config = get_preset("tiny")
    model = UniF2aceForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a new model is indifferent; this one has opinions that depend on the prompt
    tokenizer = build_tokenizer(TEXTS * 3, config.text_vocab_size, config.vq_config.num_bits)
    pipe = UniF2acePipeline(model, UniF2aceScheduler(), UniF2aceProcessor.from_config(config, tokenizer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def face(pipe):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(*seeds):
    rows = [torch.Generator().manual_seed(seed) for seed in seeds]
    return rows if len(rows) > 1 else rows[0]


def codes_of(pipe, prompt, generator, **kwargs):
    return pipe(prompt, num_inference_steps=STEPS, generator=generator, output_type="latent", **kwargs).codes


def test_output_types(pipe):
    make = {
        output_type: pipe(
            "a man", num_inference_steps=STEPS, generator=seeded(1), output_type=output_type, watermark=False
        )
        for output_type in ("pil", "np", "pt", "latent")
    }
    assert all(isinstance(output, UniF2acePipelineOutput) for output in make.values())
    assert make["pil"].images[0].size == (16, 16) and make["pil"].images[0].mode == "RGB"
    assert make["np"].images.shape == (1, 16, 16, 3) and make["np"].images.dtype == np.float32
    assert make["pt"].images.shape == (1, 3, 16, 16)
    assert 0 <= make["pt"].images.min() and make["pt"].images.max() <= 1
    np.testing.assert_array_equal(np.asarray(make["pil"].images[0]), (make["np"].images[0] * 255).round())
    assert torch.equal(make["latent"].images, make["latent"].codes) and make["latent"].codes.shape == (1, 16)
    codes = make["pil"].codes
    assert ((codes >= 0) & (codes < pipe.transformer.config.vq_config.codebook_size)).all()
    images, same = pipe("a man", num_inference_steps=STEPS, generator=seeded(1), return_dict=False, watermark=False)
    assert torch.equal(same, codes) and images[0].tobytes() == make["pil"].images[0].tobytes()


def test_one_seed_one_picture(pipe):
    codes = codes_of(pipe, "a man with a hat", seeded(1))
    assert torch.equal(codes, codes_of(pipe, "a man with a hat", seeded(1)))
    assert not torch.equal(codes, codes_of(pipe, "a man with a hat", seeded(2)))


def test_pictures_do_not_depend_on_their_batch(pipe):
    prompts = ["a man with a hat and a beard", "a woman", "a young woman with round glasses"]
    batch = codes_of(pipe, prompts, seeded(1, 2, 3))
    for row, prompt in enumerate(prompts):
        assert torch.equal(batch[row : row + 1], codes_of(pipe, prompt, seeded(row + 1)))
    many = codes_of(pipe, "a woman", seeded(1, 2, 3), num_images_per_prompt=3)
    assert torch.equal(many[1], batch[1])


def test_number_of_pictures(pipe):
    codes = codes_of(pipe, ["a man", "a woman"], seeded(1, 2, 3, 4), num_images_per_prompt=2)
    assert torch.equal(codes[2:3], codes_of(pipe, "a woman", seeded(3)))
    assert len(codes_of(pipe, ["a man", "a woman"], None, num_images_per_prompt=2)) == 4


def test_guidance_and_negative_prompts(pipe):
    plain = codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=1)
    guided = codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=6)
    away = codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=6, negative_prompt="a young woman")
    assert not torch.equal(plain, guided) and not torch.equal(guided, away)
    assert torch.equal(guided, codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=6, negative_prompt=""))
    # leading away from the prompt itself is leading nowhere
    same = codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=6, negative_prompt="a man with a hat")
    assert torch.equal(same, plain)
    pair = codes_of(
        pipe, ["a man with a hat", "a man"], seeded(1, 2), guidance_scale=6, negative_prompt=["a young woman", "a hat"]
    )
    assert torch.equal(pair[:1], away)


def test_callback(pipe):
    calls = []

    def callback(pipeline, step, timestep, tensors):
        calls.append((step, int(timestep), sorted(tensors), int((tensors["latents"] == -1).sum())))
        if step == STEPS - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    codes = codes_of(
        pipe,
        "a man",
        seeded(1),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "logits"],
    )
    assert [call[:3] for call in calls] == [(i, STEPS - 1 - i, ["latents", "logits"]) for i in range(STEPS)]
    assert [call[3] for call in calls] == [14, 11, 6, 0]
    assert (codes == 0).all() and pipe.num_timesteps == STEPS


def test_ancestral_scheduler(pipe):
    other = UniF2acePipeline(pipe.transformer, UniF2aceScheduler(-7, sampling="ancestral"), pipe.processor)
    other.set_progress_bar_config(disable=True)
    assert (codes_of(other, "a man", seeded(1)) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": " "}, ValueError, "prompt is empty"),
        ({"prompt": []}, ValueError, "empty list"),
        ({"prompt": ["a man", 3]}, TypeError, "holds a int"),
        ({"prompt": None}, TypeError, "NoneType"),
        ({"prompt": "very " * 200 + "old"}, ValueError, "tokens, the limit is 22"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0, expected at least 1"),
        ({"num_inference_steps": 2.5}, TypeError, "expected a whole number"),
        ({"num_images_per_prompt": -1}, ValueError, "num_images_per_prompt is -1"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale is nan"),
        ({"guidance_scale": -1}, ValueError, "guidance_scale is -1"),
        ({"generator": [torch.Generator()] * 2}, ValueError, "2 generators for 1 images"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1 prompts"),
        ({"output_type": "jpg"}, ValueError, "output_type is 'jpg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "'noise'"),
    ],
)
def test_wrong_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(**{"prompt": "a man", "num_inference_steps": 2, **arguments})


def test_describe_and_answer(pipe, face, tmp_path):
    text = pipe.describe(face, max_new_tokens=8)
    assert isinstance(text, str) and text == pipe.describe(face, max_new_tokens=8)
    assert text == pipe.answer(face, "Describe this face.", max_new_tokens=8)
    face.save(tmp_path / "face.png")
    assert pipe.describe(str(tmp_path / "face.png"), max_new_tokens=8) == text
    assert pipe.describe([face, face], max_new_tokens=8) == [text, text]
    questions = ["What is on his head?", "Has he a beard or a hat?"]
    one_by_one = [pipe.answer(face, question, max_new_tokens=8) for question in questions]
    assert pipe.answer(face, questions, max_new_tokens=8) == one_by_one
    assert pipe.answer([face, face], questions, max_new_tokens=8) == one_by_one
    sampled = pipe.answer(face, questions[0], max_new_tokens=8, do_sample=True, temperature=5.0)
    assert isinstance(sampled, str)


def test_control_tokens_in_a_question_are_text(pipe, face):
    assert isinstance(pipe.answer(face, "Is this <|mask|> or <|eoi|>?", max_new_tokens=4), str)


def test_wrong_understanding_input(pipe, face, tmp_path):
    with pytest.raises(ValueError, match="question is empty"):
        pipe.answer(face, "  ")
    with pytest.raises(ValueError, match="2 images and 3 questions"):
        pipe.answer([face, face], ["a", "b", "c"])
    with pytest.raises(ValueError, match="list of images is empty"):
        pipe.describe([])
    with pytest.raises(ValueError, match="but the model reads 256"):
        pipe.answer(face, "why " * 300)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        pipe.describe(face, max_new_tokens=0)
    with pytest.raises(UniF2aceImageError, match="does not exist"):
        pipe.describe(str(tmp_path / "no.png"))


def test_diffusers_layout(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_unif2ace", "UniF2acePipeline"]
    assert index["transformer"] == ["modeling_unif2ace", "UniF2aceForConditionalGeneration"]
    assert index["scheduler"] == ["scheduling_unif2ace", "UniF2aceScheduler"]
    assert index["processor"] == ["processing_unif2ace", "UniF2aceProcessor"]
    assert "_name_or_path" not in index and not list(tmp_path.rglob("*.py"))
    loaded = UniF2acePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.transformer.dtype == torch.float32 and not loaded.transformer.training
    assert torch.equal(codes_of(loaded, "a man", seeded(1)), codes_of(pipe, "a man", seeded(1)))
    with pytest.raises(TypeError, match="'repo'"):
        pipe.save_pretrained(tmp_path, repo="x/y")


def test_transformers_layout(pipe, tmp_path):
    pipe.transformer.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    UniF2aceScheduler(masking_schedule="linear").save_pretrained(tmp_path / "scheduler")
    loaded = UniF2acePipeline.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert loaded.scheduler.config.masking_schedule == "linear" and loaded.transformer.dtype == torch.bfloat16
    replaced = UniF2acePipeline.from_pretrained(tmp_path, transformer=pipe.transformer, scheduler=pipe.scheduler)
    replaced.set_progress_bar_config(disable=True)
    assert replaced.transformer is pipe.transformer
    assert torch.equal(codes_of(replaced, "a man", seeded(1)), codes_of(pipe, "a man", seeded(1)))


def test_wrong_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "file").touch()
    for name, message in (
        ("empty", "neither model_index.json nor config.json"),
        ("other", "model of type 'bert', expected 'unif2ace'"),
        ("broken", "missing or broken"),
        ("file", "is a file"),
        ("absent/deep/path", "cannot have that name"),
    ):
        with pytest.raises(OSError, match=message):
            UniF2acePipeline.from_pretrained(tmp_path / name)
    with pytest.raises(OSError, match="no repository of that name could be fetched"):
        UniF2acePipeline.from_pretrained("nobody/nothing-of-that-name", local_files_only=True)
