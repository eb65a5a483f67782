"""
What diffusers' own tests check of a pipeline (`PipelineTesterMixin` of its repository, restated), and that
`DiffusionPipeline` loads what ours saves, in processes with and without the package.
"""

import inspect
import json
import os
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
    assert dict(ours.scheduler.config) == dict(pipe.scheduler.config)
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
