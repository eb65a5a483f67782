"""`UniF2acePipeline` with a real model of tiny size: pictures, texts, layouts on disk, bad input."""

import copy
import json
import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from PIL import Image
from transformers import GenerationConfig

from unif2ace import UniF2acePipeline, UniF2acePipelineOutput, UniF2aceScheduler
from unif2ace.modeling_unif2ace import UniF2aceImageError
from unif2ace.modeling_unif2ace.sampling_unif2ace import SAMPLERS
from unif2ace.pipelines.serving.image_engine import ImageEngine, ImageRequest


STEPS = 4


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
        calls.append((step, timestep.item(), sorted(tensors), int((tensors["latents"] == -1).sum())))
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
    assert [call[:3] for call in calls] == [(i, 1 - i / STEPS, ["latents", "logits"]) for i in range(STEPS)]
    assert [call[3] for call in calls] == [14, 11, 6, 0]
    assert (codes == 0).all() and pipe.num_timesteps == STEPS


def test_a_callback_can_stop(pipe):
    """What is not known when it stops is taken as the last step drew it."""
    kept = {}

    def stop_after_two(pipeline, step, timestep, tensors):
        kept.update(tensors)
        pipeline._interrupt = step == 1
        return tensors

    codes = codes_of(
        pipe,
        "a man",
        seeded(1),
        callback_on_step_end=stop_after_two,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample", "logits", "positions"],
    )
    assert pipe.interrupt and torch.equal(codes, kept["pred_original_sample"])
    assert (kept["latents"] == -1).any() and kept["logits"].shape[:2] == kept["positions"].shape == (1, 14)
    preview = pipe.decode_latents(kept["pred_original_sample"], "pil", watermark=False)
    assert preview[0].size == (16, 16)
    codes_of(pipe, "a man", seeded(1))
    assert not pipe.interrupt


def test_a_callback_may_mask_codes_again(pipe):
    def forget(pipeline, step, timestep, tensors):
        if step == 2:
            tensors["latents"] = torch.full_like(tensors["latents"], -1)
        return tensors

    codes = codes_of(pipe, "a man", seeded(1), callback_on_step_end=forget)
    assert (codes >= 0).all()


def test_guidance_on_an_interval(pipe, monkeypatch):
    scales, predict = [], pipe.transformer.predict_codes
    record = lambda codes, state, scale, *rest: scales.append(scale) or predict(codes, state, scale, *rest)  # noqa: E731
    monkeypatch.setattr(pipe.transformer, "predict_codes", record)
    for interval, expected in (((0.0, 1.0), [6] * 4), ((0.5, 1.0), [1, 1, 6, 6]), ((0.2, 0.6), [1, 6, 6, 1])):
        scales.clear()
        codes_of(pipe, "a man with a hat", seeded(1), guidance_scale=6, guidance_interval=interval)
        assert scales == expected
    for wrong in ((0.5, 0.5), (-1, 1), (0, 2), 0.5):
        with pytest.raises(ValueError, match="guidance_interval is"):
            codes_of(pipe, "a man with a hat", seeded(1), guidance_interval=wrong)


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_every_door_draws_the_same_codes(pipe, sampling, guidance_scale):
    """Pipeline, `generate`, server and a loop of one's own, for one seed."""
    confidence = "showo" if sampling == "showo" else "linear"
    scheduler = UniF2aceScheduler(
        sampling=sampling, temperature=0.7, confidence_temperature=3.0, confidence_schedule=confidence
    )
    numbers = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    other = UniF2acePipeline(pipe.transformer, scheduler, pipe.processor)
    other.set_progress_bar_config(disable=True)
    prompts = ["a man with a hat", "a woman"]
    seeded_one = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    wanted = [
        other(prompt, generator=seeded_one(seed), output_type="latent", **numbers).codes
        for seed, prompt in enumerate(prompts)
    ]
    model, config = pipe.transformer, GenerationConfig()
    scheduler.sampling_numbers(**numbers).write_to(config)
    again = UniF2aceScheduler.from_generation_config(config)
    assert again.sampling_numbers(**numbers) == scheduler.sampling_numbers(**numbers)
    states = []
    for seed, prompt in enumerate(prompts):
        inputs = pipe.processor(text=prompt, generation_mode="image", return_tensors="pt")
        drawn = model.generate(**inputs, generation_mode="image", generation_config=config, generator=seeded_one(seed))
        assert torch.equal(drawn, wanted[seed])
        state = model.encode_prompt(**inputs, guidance=guidance_scale != 1)
        states.append(model.start_decoding(state, scheduler.sampling_numbers(**numbers), seeded_one(seed)))
    while any(not state.is_done for state in states):  # as the server does: all that are under way in one pass
        model.decode_step([state for state in states if not state.is_done])
    assert all(torch.equal(state.codes, codes) for state, codes in zip(states, wanted, strict=True))
    engine = ImageEngine(other)
    try:
        requests = [ImageRequest(prompt, seed, 4, guidance_scale) for seed, prompt in enumerate(prompts)]
        pictures = [future.result(60) for future in engine.submit(requests)]
    finally:
        engine.close()
    for picture, codes in zip(pictures, wanted, strict=True):
        assert picture.tobytes() == other.decode_latents(codes, "pil")[0].tobytes()


@pytest.mark.parametrize("settings", [{"sampling": "entropy_bounded"}, {"early_exit_entropy": 1e6}])
def test_loops_end_when_all_codes_are_known(pipe, settings):
    """With no bound on the entropy one step is enough."""
    settings = {"entropy_bound": 1e6, **settings}
    other = UniF2acePipeline(pipe.transformer, UniF2aceScheduler(**settings), pipe.processor)
    other.set_progress_bar_config(disable=True)
    steps = []
    codes = codes_of(
        other, "a man", seeded(1), callback_on_step_end=lambda pipe, step, t, tensors: steps.append(step) or tensors
    )
    assert steps == [0] and (codes >= 0).all()


def test_only_the_size_that_was_trained(pipe):
    assert torch.equal(codes_of(pipe, "a man", seeded(1), height=16), codes_of(pipe, "a man", seeded(1), width=16))
    with pytest.raises(ValueError, match="512 × 16 was asked for, but this model was trained for 16 × 16 only"):
        codes_of(pipe, "a man", seeded(1), height=512)


def test_an_offloaded_model_is_brought_back_before_each_use(pipe, face):
    """`enable_model_cpu_offload` hooks `forward` only, and pictures are not made by `forward`."""
    hooked = UniF2acePipeline(pipe.transformer, pipe.scheduler, pipe.processor)
    hooked.set_progress_bar_config(disable=True)
    expected = codes_of(pipe, "a man", seeded(1)), pipe.describe(face, max_new_tokens=4)
    _, hook = cpu_offload_with_hook(pipe.transformer, execution_device="cpu")
    calls = []
    try:
        before = pipe.transformer._hf_hook.pre_forward
        pipe.transformer._hf_hook.pre_forward = lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs)
        codes = codes_of(hooked, "a man", seeded(1))
        assert torch.equal(codes, expected[0]) and calls
        calls.clear()
        assert hooked.describe(face, max_new_tokens=4) == expected[1] and calls
        calls.clear()
        assert hooked.encode_images(face).shape == (1, 16) and calls
    finally:
        hook.remove()
    with pytest.raises(ValueError, match="use enable_model_cpu_offload"):
        hooked.enable_sequential_cpu_offload()


def test_dtype_and_device_of_the_whole_pipeline(pipe):
    half = copy.deepcopy(pipe).to("cpu", torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16 and half.device.type == "cpu"
    picture = half("a man", num_inference_steps=2, generator=seeded(1), output_type="pt").images
    assert picture.dtype == torch.float32 and picture.isfinite().all()


def test_ancestral_scheduler(pipe):
    other = UniF2acePipeline(pipe.transformer, UniF2aceScheduler(sampling="ancestral"), pipe.processor)
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


def test_a_picture_is_read_once_for_all_questions(pipe, face, monkeypatch):
    other = Image.fromarray(np.asarray(face)[::-1].copy())
    questions = ["What is on his head?", "Has he a beard or a hat?", "Is she young?"]
    length = {"max_new_tokens": 6, "min_new_tokens": 6}
    alone, alone_other = ([pipe.answer(item, text, **length) for text in questions] for item in (face, other))
    read, encode = [], pipe.transformer.model.vq_model.encode
    monkeypatch.setattr(pipe.transformer.model.vq_model, "encode", lambda x: read.append(len(x)) or encode(x))
    mixed = [alone[0], alone_other[1], alone[2]]
    assert pipe.answer(face, questions, **length) == alone and read == [1]
    assert pipe.answer([face, other, face], questions, **length) == mixed and read == [1, 2]

    first, second = pipe.prefill([face, other])
    read.clear()
    assert pipe.answer([first, second, first], questions, **length) == mixed
    assert pipe.answer(first, questions[1], **length) == alone[1]
    assert "".join(pipe.answer(first, questions[0], stream=True, **length)).strip() == alone[0]
    turns = [{"role": "user", "content": questions[2]}]
    assert pipe.chat(turns, image=first, **length) == alone[2] and read == []
    assert pipe.answer([first, other], questions[:2], **length) == mixed[:2] and read == [1]
    read.clear()
    # what has no place for a past reads the picture again
    for arguments in ({"cache_implementation": "static"}, {"use_cache": False}):
        assert pipe.answer([first] * 3, questions, **arguments, **length) == alone
    assert read[:2] == [3, 3]  # without a cache at every token
    first.made_for = (first.made_for[0], torch.bfloat16)
    assert pipe.answer(first, questions[0], **length) == alone[0]


def test_streamed_pieces_are_the_answer(pipe, face):
    question = "What is on his head?"
    whole = pipe.answer(face, question, max_new_tokens=10)
    pieces = list(pipe.answer(face, question, max_new_tokens=10, stream=True))
    assert pieces and "".join(pieces).strip() == whole
    assert "".join(pipe.describe(face, max_new_tokens=6, stream=True)).strip() == pipe.describe(face, max_new_tokens=6)
    threads = threading.active_count()
    for _ in pipe.answer(face, question, max_new_tokens=100, stream=True):
        break  # nobody reads on: the thread ends
    assert threading.active_count() == threads
    with pytest.raises(ValueError, match="stream=True with 2 texts at once"):
        pipe.describe([face, face], stream=True)
    with pytest.raises(ValueError, match="no_such_argument"):
        list(pipe.answer(face, question, stream=True, no_such_argument=1))


def test_chat(pipe, face):
    first = [{"role": "user", "content": "What is on his head?"}]
    answer = pipe.chat(first, image=face, max_new_tokens=6)
    assert answer == pipe.answer(face, "What is on his head?", max_new_tokens=6)
    parts = [{"type": "image", "image": face}, {"type": "text", "text": "What is on his head?"}]
    assert pipe.chat([{"role": "user", "content": parts}], max_new_tokens=6) == answer
    turns = [*first, {"role": "assistant", "content": "a hat"}, {"role": "user", "content": "Has he a beard?"}]
    further = pipe.chat(turns, image=face, max_new_tokens=6)
    assert isinstance(further, str)
    assert pipe.chat([first, turns], image=[face, face], max_new_tokens=6) == [answer, further]
    assert "".join(pipe.chat(turns, image=face, max_new_tokens=6, stream=True)).strip() == further
    assert isinstance(pipe.chat(first, max_new_tokens=4), str)  # without a picture
    for wrong, message in (
        ([], "conversation is empty"),
        (["hello"], "a message is 'hello'"),
        ([{"role": "user"}], "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.chat(wrong)
    with pytest.raises(ValueError, match="1 images for 2 conversations"):
        pipe.chat([first, turns], image=face)
    with pytest.raises(ValueError, match="no message of the user"):
        pipe.chat([{"role": "system", "content": "Be short."}], image=face)


def test_stop_strings_and_beams_of_an_answer(pipe, face):
    whole = pipe.answer(face, "What is on his head?", max_new_tokens=10)
    letter = whole[len(whole) // 2]
    stopped = pipe.answer(face, "What is on his head?", max_new_tokens=10, stop_strings=[letter])
    assert whole.startswith(stopped.rstrip()) and letter in stopped
    beams = pipe.answer(face, "What is on his head?", max_new_tokens=4, num_beams=2)
    assert pipe.answer([face] * 2, "What is on his head?", max_new_tokens=4, num_beams=2) == [beams] * 2


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
    assert index["_class_name"] == ["UniF2acePipeline", "UniF2acePipeline"]
    assert index["transformer"] == ["modeling_unif2ace", "UniF2aceForConditionalGeneration"]
    assert index["scheduler"] == ["scheduling_unif2ace", "UniF2aceScheduler"]
    assert index["processor"] == ["processing_unif2ace", "UniF2aceProcessor"]
    assert "_name_or_path" not in index
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
    mapped = UniF2acePipeline.from_pretrained(tmp_path, device_map="cpu")
    mapped.set_progress_bar_config(disable=True)
    assert (codes_of(mapped, "a man", seeded(1)) >= 0).all()
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
        ("empty", "neither model_index.json, config.json nor"),
        ("other", "model of type 'bert', expected 'unif2ace'"),
        ("broken", "config.json is broken, expected a JSON object"),
        ("file", "is a file"),
        ("absent/deep/path", "cannot have that name"),
    ):
        with pytest.raises(OSError, match=message):
            UniF2acePipeline.from_pretrained(tmp_path / name)
    with pytest.raises(OSError, match="no repository of that name could be fetched"):
        UniF2acePipeline.from_pretrained("nobody/nothing-of-that-name", local_files_only=True)
