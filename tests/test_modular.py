"""The pipeline in pieces: diffusers' modular pipelines load it and make the same pictures."""

import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import ModularPipeline
from tiny_checkpoint import tiny_pipeline

from unif2ace import read_provenance
from unif2ace.pipelines.modular_unif2ace import UniF2aceBlocks, UniF2aceDecodeBlock, save_modular_pipeline


PROMPT = "a man with a hat and a beard"


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline, in another place than the one that it was saved to."""
    saved, moved = tmp_path_factory.mktemp("modular") / "saved", tmp_path_factory.mktemp("modular") / "moved"
    save_modular_pipeline(tiny_pipeline(), saved)
    shutil.move(saved, moved)
    return str(moved)


@pytest.fixture(scope="module")
def modular(folder):
    pipe = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.load_components()
    return pipe


def test_the_picture_is_the_pipeline_s(pipe, modular):
    options = {"num_inference_steps": 4, "guidance_scale": 3.0}
    expected = pipe(PROMPT, generator=seeded(), **options)
    state = modular(prompt=PROMPT, generator=seeded(), **options)
    assert torch.equal(state.get("latents"), expected.codes)
    (image,) = state.get("images")
    assert image.tobytes() == expected.images[0].tobytes() and read_provenance(image).seed == 7
    # the checkpoint's own numbers, several pictures, a negative prompt, pixels
    options = {"negative_prompt": "a woman", "num_images_per_prompt": 2, "output_type": "pt"}
    several = modular(prompt=[PROMPT, "a man"], generator=seeded(), output="images", **options)
    assert torch.equal(several, pipe([PROMPT, "a man"], generator=seeded(), **options).images)


def test_edits_are_the_pipeline_s(pipe, modular):
    face = pipe(PROMPT, generator=seeded(1)).images[0]
    given = {"prompt": "a young woman", "image": face, "num_inference_steps": 3}
    inpainted = modular(**given, mask="hair", generator=seeded(), output="images")[0]
    assert inpainted.tobytes() == pipe.inpaint(**given, mask="hair", generator=seeded()).images[0].tobytes()
    options = {"source_prompt": "a man", "strength": 0.6}
    edited = modular(**given, **options, generator=seeded(), output="images")[0]
    assert edited.tobytes() == pipe.edit(**given, **options, generator=seeded()).images[0].tobytes()
    assert edited.tobytes() != inpainted.tobytes() != face.tobytes()


def test_blocks_can_be_taken_apart(pipe, modular, folder):
    codes = modular(prompt=PROMPT, generator=seeded(), num_inference_steps=2, output="latents")
    decoder = UniF2aceDecodeBlock().init_pipeline(folder)
    decoder.load_components()
    images = decoder(latents=codes, watermark=False, output="images")
    assert images[0].tobytes() == pipe.decode_latents(codes, "pil", watermark=False)[0].tobytes()
    blocks = UniF2aceBlocks()
    assert list(blocks.sub_blocks) == ["edit", "encode", "denoise", "decode"]
    assert {spec.name for spec in blocks.expected_components} == {"transformer", "scheduler", "processor"}
    assert "prompt" in blocks.doc


def test_errors_are_the_pipeline_s(modular):
    for options, message in (
        ({"prompt": "old " * 100}, "the limit is 22"),
        ({"strength": 3, "image": "x"}, "strength"),
    ):
        with pytest.raises(ValueError, match=message):
            modular(**{"prompt": PROMPT} | options)


def test_no_code_runs_unasked(folder):
    """Loaded in a fresh process, where nothing of the package is imported yet."""
    code = f"""
from diffusers import ModularPipeline
try:
    ModularPipeline.from_pretrained({folder!r})
except ValueError as error:
    assert "trust_remote_code" in str(error)
pipe = ModularPipeline.from_pretrained({folder!r}, trust_remote_code=True)
pipe.load_components()
print(type(pipe.transformer).__module__, pipe(prompt="a man", num_inference_steps=1, output="images")[0].size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "unif2ace.modeling_unif2ace.modeling_unif2ace (16, 16)", done.stderr
