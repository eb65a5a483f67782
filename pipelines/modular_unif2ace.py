"""
The pipeline in pieces, as diffusers' modular pipelines put it: edit, encode, denoise, decode.

Every block asks a [`UniF2acePipeline`] around the components, so that nothing is said twice and a picture is the one
that the pipeline makes.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers.modular_pipelines import (
    AutoPipelineBlocks,
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)

from ..modeling_unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration
from ..modeling_unif2ace.processing_unif2ace import UniF2aceProcessor
from ..modeling_unif2ace.provenance_unif2ace import recorded_seeds
from .files import write_text
from .pipeline_unif2ace import UniF2acePipeline
from .scheduling_unif2ace import UniF2aceScheduler


COMPONENTS = {
    "transformer": UniF2aceForConditionalGeneration,
    "scheduler": UniF2aceScheduler,
    "processor": UniF2aceProcessor,
}
PROMPT = InputParam("prompt", str | list[str], required=True, description="What the faces look like.")
COUNT = InputParam("num_images_per_prompt", int, 1, description="Pictures of each prompt.")
GENERATOR = InputParam("generator", description="Makes pictures repeatable: one for all, or one per picture.")
IMAGE = InputParam("image", required=True, description="Pictures to change, one for each prompt or one for all.")
LATENTS = OutputParam("latents", torch.LongTensor, "Image codes; some are to be drawn anew.")
SEEDS = OutputParam("seeds", description="What makes each picture again; recorded in its metadata.")
STEPS = InputParam("num_inference_steps", int, description="Steps; the checkpoint's own when not given.")
SCALE = InputParam("guidance_scale", float, description="1 is no guidance; the checkpoint's own when not given.")


class _Block(ModularPipelineBlocks):
    """A block: `inputs`, `intermediate_outputs`, and `work`, which makes the outputs of the inputs."""

    model_name = "unif2ace"
    about, takes, makes = "", (), ()

    @property
    def description(self) -> str:
        return self.about

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, kind) for name, kind in COMPONENTS.items()]

    @property
    def inputs(self) -> list[InputParam]:
        return list(self.takes)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return list(self.makes)

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        pipe = UniF2acePipeline(**{name: getattr(components, name) for name in COMPONENTS})
        for name, value in self.work(pipe, **block_state.as_dict()).items():
            setattr(block_state, name, value)
        self.set_block_state(state, block_state)
        return components, state

    def work(self, pipe: UniF2acePipeline, **inputs: Any) -> dict[str, Any]:
        """The outputs by name."""
        raise NotImplementedError


class UniF2aceInpaintBlock(_Block):
    """Mask a region of a picture, as `pipe.inpaint`."""

    about = "Encodes a picture and masks the codes under a mask."
    takes = (PROMPT, IMAGE, InputParam("mask", required=True, description="As in `inpaint`."), COUNT)
    makes = (LATENTS,)

    def work(self, pipe, prompt, image, mask, num_images_per_prompt):
        return pipe.prepare_inpaint(prompt, image, mask, num_images_per_prompt)


class UniF2aceEditBlock(_Block):
    """Mask what two sentences differ in, as `pipe.edit`."""

    about = "Encodes a picture and masks the codes that fit the new sentence least."
    takes = (
        PROMPT,
        IMAGE,
        InputParam("source_prompt", str | list[str], description="What the picture shows now."),
        InputParam("strength", float, 0.3, description="Share of the codes that change."),
        COUNT,
        GENERATOR,
    )
    makes = (LATENTS, OutputParam("negative_prompt", description="What guidance leads away from."), SEEDS)

    def work(self, pipe, prompt, image, source_prompt, strength, num_images_per_prompt, generator):
        counts = {"num_images_per_prompt": num_images_per_prompt, "generator": generator}
        return pipe.prepare_edit(prompt, image, source_prompt, strength, **counts)


class UniF2acePictureBlocks(AutoPipelineBlocks):
    """Inpaints with `mask`, edits with `image` alone, and is passed over without either."""

    block_classes = [UniF2aceInpaintBlock, UniF2aceEditBlock]
    block_names = ["inpaint", "edit"]
    block_trigger_inputs = ["mask", "image"]

    @property
    def description(self) -> str:
        return "Starts from a picture, if one is given."


class UniF2aceEncodeBlock(_Block):
    """Read the prompts once."""

    about = "Encodes the prompts, and what guidance leads away from."
    takes = (PROMPT, InputParam("negative_prompt", str | list[str]), COUNT, SCALE)
    makes = (OutputParam("prompt_state", description="Keys and values of the prompts."),)

    def work(self, pipe, prompt, negative_prompt, num_images_per_prompt, guidance_scale):
        guided = pipe.sampling_numbers(guidance_scale=guidance_scale).guidance_scale != 1
        return {"prompt_state": pipe.encode_prompt(prompt, negative_prompt, guided, num_images_per_prompt)}


class UniF2aceDenoiseBlock(_Block):
    """Draw the codes, step by step."""

    about = "Draws the image codes that are not known."
    takes = (
        InputParam("prompt_state", required=True),
        InputParam("latents", torch.LongTensor, description="Codes to start from; none are known when not given."),
        STEPS,
        SCALE,
        InputParam("guidance_interval", tuple[float, float], description="Share of the steps with guidance."),
        GENERATOR,
        InputParam("seeds", description="Of pictures that are edited."),
    )
    makes = (OutputParam("latents", torch.LongTensor, "Image codes, all of them known."), SEEDS)

    def work(
        self, pipe, prompt_state, latents, num_inference_steps, guidance_scale, guidance_interval, generator, seeds
    ):
        numbers = pipe.sampling_numbers(num_inference_steps, guidance_scale, guidance_interval)
        if seeds is None:
            seeds = recorded_seeds(generator, prompt_state.batch_size)
        decoding = pipe.start_decoding(prompt_state, numbers, generator, latents)
        for _ in pipe.transformer.decode(decoding):
            pass
        return {"latents": decoding.codes, "seeds": seeds}


class UniF2aceDecodeBlock(_Block):
    """Make pictures of codes."""

    about = "Decodes image codes into pictures, which are marked as generated."
    takes = (
        InputParam("latents", torch.LongTensor, required=True),
        InputParam("output_type", str, "pil", description="`pil`, `np`, `pt` or `latent`."),
        InputParam("watermark", bool, True, description="Mark PIL pictures as generated."),
        InputParam("seeds", description="As the denoise block made them."),
    )
    makes = (OutputParam("images", description="The pictures."),)

    def work(self, pipe, latents, output_type, watermark, seeds):
        return {"images": pipe.decode_latents(latents, output_type, watermark, seeds)}


class UniF2aceBlocks(SequentialPipelineBlocks):
    """
    All of it: edit, encode, denoise, decode.

    Example:

    ```python
    >>> pipe = UniF2aceBlocks().init_pipeline("folder")  # or ModularPipeline.from_pretrained, with trust_remote_code
    >>> pipe.load_components()
    >>> image = pipe(prompt="a man with a hat", output="images")[0]
    >>> image = pipe(prompt="a man with glasses", image=image, source_prompt="a man", output="images")[0]
    ```
    """

    model_name = "unif2ace"
    block_classes = [UniF2acePictureBlocks, UniF2aceEncodeBlock, UniF2aceDenoiseBlock, UniF2aceDecodeBlock]
    block_names = ["edit", "encode", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Draws faces from sentences, and edits pictures of faces."


def save_modular_pipeline(pipe: UniF2acePipeline, folder: str | os.PathLike) -> None:
    """
    Save a pipeline so that `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` finds it: its components,
    `modular_model_index.json`, the name of the blocks, and a line of code that imports them from the package.

    Args:
        pipe ([`UniF2acePipeline`]): The pipeline.
        folder (`str` or `os.PathLike`): Where to, made if needed.
    """
    modular = UniF2aceBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    modular.save_pretrained(os.fspath(folder), overwrite_modular_index=True)
    UniF2aceBlocks().save_pretrained(folder)
    line = f"from {__name__} import UniF2aceBlocks  # noqa: F401\n"
    write_text(Path(folder) / f"{__name__.rpartition('.')[2]}.py", line)


__all__ = [
    "UniF2aceBlocks",
    "UniF2aceDecodeBlock",
    "UniF2aceDenoiseBlock",
    "UniF2aceEditBlock",
    "UniF2aceEncodeBlock",
    "UniF2aceInpaintBlock",
    "UniF2acePictureBlocks",
    "save_modular_pipeline",
]
