"""
What diffusers' own tests check of a pipeline (`PipelineTesterMixin` of its repository, restated), and that
`DiffusionPipeline` loads what ours saves, in processes with and without the package.
"""

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForMultimodalLM

import unif2ace
from unif2ace import UniF2acePipeline


PROMPT = "a man with a hat and a beard"
PACKAGE = Path(unif2ace.__file__).resolve().parent
BUNDLED = PACKAGE / "hub_card" / "unif2ace-faces"

LOAD = r"""
import json, sys
from importlib.abc import MetaPathFinder

mode, folder, again, prompt = sys.argv[1:]
if mode == "without":
    class NoPackage(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] == "unif2ace":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, NoPackage())
else:
    import unif2ace  # noqa: F401

import torch
from diffusers import DiffusionPipeline

def codes(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe, pipe(prompt, num_inference_steps=3, generator=generator, output_type="latent").codes.tolist()

pipe, first = codes(folder)
pipe.save_pretrained(again)
_, second = codes(again)
names = [name for name in sys.modules if name.partition(".")[0] == "unif2ace"]
print("FOUND" + json.dumps({"first": first, "second": second, "package": bool(names)}))
"""


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


def inputs(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {"prompt": PROMPT, "num_inference_steps": 2, "generator": generator, "output_type": "np", **more}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def codes_of(pipe, seed=3):
    return pipe(**inputs(seed, output_type="latent", num_inference_steps=3)).codes


# Loading by diffusers


@pytest.mark.parametrize("mode", ["with", "without"])
def test_diffusers_loads_what_was_saved(pipe, saved, tmp_path, mode):
    environment = {
        **{name: value for name, value in os.environ.items() if mode == "with" or name != "PYTHONPATH"},
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", LOAD, mode, str(saved), str(tmp_path / "again"), PROMPT]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.split("FOUND")[1])
    expected = codes_of(pipe).tolist()
    assert found == {"first": expected, "second": expected, "package": mode == "with"}


@pytest.mark.parametrize("folder", ["saved", "bundled"])
def test_without_remote_code_the_refusal_names_the_class_to_use(saved, folder):
    place = saved if folder == "saved" else BUNDLED
    with pytest.raises(ValueError, match=r"(?s)UniF2acePipeline\.py.*trust_remote_code=True") as caught:
        DiffusionPipeline.from_pretrained(place)
    assert "UniF2acePipeline" in str(caught.value)
    assert not hasattr(sys.modules["diffusers"], "UniF2acePipeline")  # their namespace is theirs


def test_the_bundled_folder_serves_both_libraries(monkeypatch, tmp_path):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    pipe = quiet(DiffusionPipeline.from_pretrained(BUNDLED, trust_remote_code=True))
    assert isinstance(pipe, UniF2acePipeline)
    model = AutoModelForMultimodalLM.from_pretrained(BUNDLED)
    for one, other in zip(model.parameters(), pipe.transformer.parameters(), strict=True):
        assert torch.equal(one, other)
    ours = quiet(UniF2acePipeline.from_pretrained())
    assert ours.scheduler.sampling_numbers() == pipe.scheduler.sampling_numbers()
    assert torch.equal(codes_of(pipe), codes_of(ours))


# What the mixin checks


def test_save_load_local(pipe, saved, tmp_path):
    loaded = quiet(UniF2acePipeline.from_pretrained(saved))
    assert np.array_equal(pipe(**inputs()).images, loaded(**inputs()).images)
    loaded.save_pretrained(tmp_path)
    again = quiet(UniF2acePipeline.from_pretrained(tmp_path))
    assert np.array_equal(pipe(**inputs()).images, again(**inputs()).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_save_load_half_precision(saved, tmp_path, dtype):
    half = quiet(UniF2acePipeline.from_pretrained(saved, dtype=dtype))
    half.save_pretrained(tmp_path)
    again = quiet(UniF2acePipeline.from_pretrained(tmp_path, dtype=dtype))
    assert again.dtype == dtype and {part.dtype for part in again.transformer.parameters()} == {dtype}
    assert np.array_equal(half(**inputs()).images, again(**inputs()).images)


def test_loading_with_variants(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "transformer" / "model.fp16.safetensors").is_file()
    loaded = quiet(UniF2acePipeline.from_pretrained(tmp_path, variant="fp16"))
    assert torch.equal(codes_of(loaded), codes_of(pipe))


def test_components_make_another_pipeline(pipe):
    other = quiet(UniF2acePipeline(**pipe.components))
    assert torch.equal(codes_of(other), codes_of(pipe))
    assert torch.equal(codes_of(quiet(UniF2acePipeline.from_pipe(pipe))), codes_of(pipe))


def test_call_signature(pipe):
    parameters = inspect.signature(pipe.__call__).parameters
    required = {"prompt", "guidance_scale", "negative_prompt", "height", "width"}
    optional = {"num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"}
    assert required | optional <= set(parameters)
    assert all(parameters[name].default is not inspect.Parameter.empty for name in optional)


def test_dict_and_tuple_outputs_are_equivalent(pipe):
    as_dict = pipe(**inputs())
    as_tuple = pipe(**inputs(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert np.array_equal(as_dict[0], as_tuple[0]) and torch.equal(as_dict[1], as_tuple[1])


def test_a_batch_is_what_its_items_are_alone(pipe):
    prompts, seeds = [PROMPT, "a young woman with round glasses", "a man"], [0, 1, 2]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    together = pipe(**inputs(prompt=prompts, generator=generators, output_type="latent")).codes
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert torch.equal(pipe(**inputs(seed, prompt=prompt, output_type="latent")).codes[0], together[row])


@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize("num_images", [1, 2])
def test_num_images_per_prompt(pipe, num_prompts, num_images):
    made = pipe(**inputs(prompt=[PROMPT] * num_prompts, num_images_per_prompt=num_images)).images
    assert made.shape[0] == num_prompts * num_images


def test_components_function(pipe):
    assert set(pipe.components) == {"transformer", "scheduler", "processor"}
    assert all(part is not None for part in pipe.components.values())


def test_cfg(pipe):
    assert not np.array_equal(pipe(**inputs(), guidance_scale=1.0).images, pipe(**inputs(), guidance_scale=7.5).images)


def test_callback_inputs(pipe):
    seen = []

    def every_tensor(pipeline, step, timestep, tensors):
        assert set(tensors) == set(pipeline._callback_tensor_inputs)
        seen.append(step)
        return tensors

    pipe(
        **inputs(),
        callback_on_step_end=every_tensor,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
    )
    assert seen == [0, 1]

    def no_latents(pipeline, step, timestep, tensors):
        if step == pipeline.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    changed = pipe(**inputs(output_type="latent"), callback_on_step_end=no_latents)
    assert not changed.codes.any()


def test_properties_during_a_call(pipe):
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append((pipeline.guidance_scale, pipeline.do_classifier_free_guidance, pipeline.num_timesteps))
        assert not pipeline.interrupt

    pipe(**inputs(), guidance_scale=3.0, callback_on_step_end=look)
    assert seen == [(3.0, True, 2)] * 2
    seen.clear()
    pipe(**inputs(), guidance_scale=1.0, callback_on_step_end=look)
    assert seen == [(1.0, False, 2)] * 2


def test_a_callback_changes_guidance(pipe, monkeypatch):
    """As diffusers' guide on callbacks does it."""

    def no_more_guidance(pipeline, step, timestep, tensors):
        if step == 1:
            pipeline._guidance_scale = 1.0
        return tensors

    scales, predict = [], pipe.transformer.predict_codes
    record = lambda codes, state, scale, *rest: scales.append(scale) or predict(codes, state, scale, *rest)  # noqa: E731
    monkeypatch.setattr(pipe.transformer, "predict_codes", record)
    common = inputs(output_type="latent", num_inference_steps=6, guidance_scale=7.0)
    changed = pipe(**common, callback_on_step_end=no_more_guidance).codes
    assert scales == [7.0, 7.0, 1.0, 1.0, 1.0, 1.0]
    common["generator"].manual_seed(0)
    assert torch.equal(changed, pipe(**common, guidance_interval=(0.0, 1 / 3)).codes)


def test_prompts_can_be_encoded_alone(pipe):
    one, many = pipe.encode_prompt(PROMPT), pipe.encode_prompt([PROMPT, "a man"], "a hat", num_images_per_prompt=2)
    assert one.batch_size == 1 and one.guided and many.batch_size == 4


# What callers pass that is not quite what the signature says


def test_empty_negative_prompts_in_a_list(pipe):
    prompts, seeds = [PROMPT, "a man", "a woman"], [0, 1, 2]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    negative = ["", "a hat", "  "]
    common = {"output_type": "latent", "num_inference_steps": 4}
    together = pipe(**inputs(prompt=prompts, generator=generators, **common), negative_prompt=negative).codes
    for row, seed in enumerate(seeds):
        alone = pipe(**inputs(seed, prompt=prompts[row], **common), negative_prompt=negative[row]).codes
        assert torch.equal(alone[0], together[row])
    with pytest.raises(ValueError, match="1 negative prompts for 3 prompts"):
        pipe(**inputs(prompt=prompts), negative_prompt=["a hat"])


def test_numbers_of_numpy(pipe):
    plain = pipe(**inputs(output_type="latent"), num_images_per_prompt=2, guidance_scale=3.0).codes
    numbers = {"num_images_per_prompt": np.int32(2), "guidance_scale": np.float64(3.0)}
    assert torch.equal(pipe(**inputs(output_type="latent", num_inference_steps=np.int64(2)), **numbers).codes, plain)
    for wrong in (2.0, True, "2"):
        with pytest.raises(TypeError, match="num_inference_steps is .*, expected a whole number"):
            pipe(**inputs(num_inference_steps=wrong))


@pytest.mark.parametrize("generator", [1, np.int64(1), [1], np.random.default_rng(0), "1"])
def test_a_seed_is_no_generator(pipe, generator):
    for call in (pipe, lambda **given: pipe.vary(image=np.zeros((16, 16, 3), np.uint8), **given)):
        with pytest.raises(TypeError, match=r"generator is .*, expected a torch\.Generator"):
            call(**inputs(generator=generator))


def test_a_callback_that_returns_nothing(pipe):
    plain = pipe(**inputs(output_type="latent")).codes
    for nothing in (None, {}):
        answer = pipe(**inputs(output_type="latent"), callback_on_step_end=lambda *given, nothing=nothing: nothing)
        assert torch.equal(answer.codes, plain)


def test_columns_of_datasets(pipe):
    datasets = pytest.importorskip("datasets", reason="columns are those of datasets")
    faces = pipe(**inputs(prompt=[PROMPT, "a man"], output_type="pil"), watermark=False).images
    rows = datasets.Dataset.from_dict({"image": faces, "text": [PROMPT, "a man"]}).cast_column(
        "image", datasets.Image()
    )
    assert pipe.describe(rows["image"], max_new_tokens=4) == pipe.describe(faces, max_new_tokens=4)
    stored = rows.cast_column("image", datasets.Image(decode=False))["image"]  # {"bytes": ..., "path": ...}
    assert pipe.describe(stored[0], max_new_tokens=4) == pipe.describe(faces[0], max_new_tokens=4)
    assert pipe.describe(stored, max_new_tokens=4) == pipe.describe(faces, max_new_tokens=4)
    from_column, from_list = (
        pipe(**inputs(prompt=texts, output_type="latent")).codes for texts in (rows["text"], [PROMPT, "a man"])
    )
    assert torch.equal(from_column, from_list)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_is_an_input(pipe, output_type):
    def made(output_type):
        given = inputs(prompt=[PROMPT, "a man"], output_type=output_type)
        return pipe(**given, watermark=False, guidance_scale=3.0).images

    faces, given = made("pil"), made(output_type)
    assert pipe.describe(given, max_new_tokens=5) == pipe.describe(faces, max_new_tokens=5)
    assert pipe.describe(given[0], max_new_tokens=5) == pipe.describe(faces[0], max_new_tokens=5)
    chat = [{"role": "user", "content": "What is it?"}]
    assert pipe.chat(chat, image=given[1], max_new_tokens=5) == pipe.chat(chat, image=faces[1], max_new_tokens=5)
    expected = made("latent") if output_type == "latent" else pipe.encode_images(faces)
    assert torch.equal(pipe.encode_images(given), expected)
    assert pipe.inpaint(PROMPT, given[0], mask="mouth", num_inference_steps=1).images[0].size == (16, 16)
    varied = [pipe.vary("a man", item, 0.0, output_type="latent").codes for item in (given, given[0])]
    assert torch.equal(varied[0], expected) and torch.equal(varied[1], expected[:1])
    assert len(pipe.edit(["a man", "a woman"], given, num_draws=1, num_inference_steps=1).images) == 2


def test_a_model_can_be_pickled_after_a_call(pipe):
    before = codes_of(pipe)
    copied = quiet(UniF2acePipeline(pickle.loads(pickle.dumps(pipe.transformer)), pipe.scheduler, pipe.processor))
    assert torch.equal(codes_of(copied), before) and torch.equal(codes_of(pipe), before)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        states = [one.transformer(ids, output_hidden_states=True).hidden_states for one in (pipe, copied)]
    assert len(states[0]) == len(states[1]) > 1 and torch.equal(states[0][-1], states[1][-1])


def test_numbers_come_from_the_checkpoint(pipe):
    own = copy.deepcopy(pipe.transformer)
    own.generation_config.image_num_inference_steps, own.generation_config.image_guidance_scale = 3, 2.5
    other = quiet(UniF2acePipeline(own, pipe.scheduler, pipe.processor))
    generator = torch.Generator().manual_seed(0)
    made = other(PROMPT, generator=generator, output_type="latent").codes
    assert other.num_timesteps == 3
    said = pipe(**inputs(output_type="latent", num_inference_steps=3), guidance_scale=2.5).codes
    assert torch.equal(made, said)
