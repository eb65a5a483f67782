"""Faces from sentences and sentences from faces, as one diffusers pipeline."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import GenerationConfig

from ..modeling_unif2ace.provenance_unif2ace import mark_as_generated, recorded_seeds
from ..modeling_unif2ace.sampling_unif2ace import (
    MASKED_CODE,
    ImageSampling,
    check_count,
    check_generator,
    row_generators,
)
from .editing_unif2ace import UniF2aceEditingMixin
from .hooks import pipeline_code, publisher
from .loading_unif2ace import (
    COMPONENTS,
    DOWNLOAD_ARGUMENTS,
    CheckpointFolders,
    adapter_base,
    bundled_checkpoint,
    fetch_checkpoint,
    is_bundled,
    load_components,
)
from .lora_unif2ace import UniF2aceLoraMixin
from .understanding_unif2ace import UniF2aceUnderstandingMixin, as_list, check_texts


# Module and class in `model_index.json`. Named alike because diffusers names the file when it refuses to run code.
PIPELINE_CLASS = ["UniF2acePipeline", "UniF2acePipeline"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
COMPLETE_BELOW = 48  # tokens; a prompt that has more is full already
_WORDS = 7_046_029_254_386_353_087  # parts the seed of the words from that of the codes


@dataclass
class UniF2acePipelineOutput(BaseOutput):
    """
    Output of [`UniF2acePipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            `batch_size` pictures: PIL, or `(batch_size, resolution, resolution, 3)` float32 in [0, 1] (`"np"`), or
            `(batch_size, 3, resolution, resolution)` in [0, 1] (`"pt"`), or the codes (`"latent"`).
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): The image codes, in raster order.
        completed_prompts (`list[str]`, *optional*): What each picture was drawn from, where prompts were completed.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    codes: torch.LongTensor | None = None
    completed_prompts: list[str] | None = None


class UniF2acePipeline(UniF2aceEditingMixin, UniF2aceUnderstandingMixin, UniF2aceLoraMixin, DiffusionPipeline):
    r"""
    Generates faces from text (`pipe(prompt)`), edits them (`inpaint`, `outpaint`, `vary`, `edit`), describes faces
    (`describe`), answers questions about them (`answer`) and talks about them (`chat`), all with one model.

    Args:
        transformer ([`UniF2aceForConditionalGeneration`]): The model, with its image tokenizer and encoders.
        scheduler ([`UniF2aceScheduler`]): Decides which image codes each step reveals.
        processor ([`UniF2aceProcessor`]): Turns text and pictures into the model's inputs.

    Example:

    ```python
    >>> from unif2ace import UniF2acePipeline

    >>> pipe = UniF2acePipeline.from_pretrained()
    >>> image = pipe("a smiling old man with round glasses and a grey beard").images[0]
    >>> text = pipe.describe(image)
    >>> answer = pipe.answer(image, "What is on his head?")
    ```
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ["latents", "logits", "positions", "pred_original_sample"]

    def __init__(self, transformer, scheduler, processor):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, processor=processor)
        self.image_processor = VaeImageProcessor(do_normalize=True)
        encoder = transformer.model.face_encoder
        if encoder is not None and encoder.config.alignment == "five_points":
            processor.image_processor.face_size = encoder.config.image_size

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
        **kwargs,
    ) -> "UniF2acePipeline":
        r"""
        Load the pipeline.

        Both layouts are understood: transformers' (`config.json` at the root) and diffusers' (`model_index.json`, one
        folder per component). The scheduler is made from the numbers in the model's `generation_config.json`; from
        `scheduler/`, if there is one, where that has none.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`, *optional*):
                A folder or a repository on the Hub; the checkpoint inside the package when not given, or by its name,
                `"unif2ace-faces"`. The folder of a LoRA adapter loads its base model with the adapter.
            dtype (`torch.dtype` or `str`, *optional*, defaults to `torch.float32`):
                Type of the weights; `"auto"` is the checkpoint's own. `torch_dtype` is the older name.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                `False` runs this package's classes and no code of the repository. `True` hands over to
                [`~diffusers.DiffusionPipeline.from_pretrained`], which runs the repository's code.
            kwargs: `transformer`, `scheduler` or `processor` replace that component; `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download` concern the download; the rest goes to the model's
                `from_pretrained` (`device_map`, `attn_implementation`, ...).

        Raises:
            OSError: if there is no such checkpoint, or it is not a UniF²ace one.
        """
        path = pretrained_model_name_or_path
        dtype = dtype or torch_dtype or torch.float32
        if is_bundled(path):
            path = bundled_checkpoint()
        if trust_remote_code or cls.__module__.startswith("diffusers_modules"):
            return super().from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs)
        given = {name: kwargs.pop(name) for name in COMPONENTS if kwargs.get(name) is not None}
        download = {name: kwargs.pop(name) for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        folders = CheckpointFolders.read(fetch_checkpoint(path, **download))
        if folders.is_adapter:
            base = adapter_base(folders.root)
            pipeline = cls.from_pretrained(base, dtype=dtype, **given, **download, **kwargs)
            pipeline.load_lora_weights(folders.root)
            return pipeline
        pipeline = cls(**load_components(folders, given, dtype=dtype, **kwargs))
        pipeline.register_to_config(_name_or_path=str(path))
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        r"""
        Save in diffusers' layout: `model_index.json`, one folder per component, and the code with which
        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads the pipeline, with or without the
        package. [`UniF2acePipeline.from_pretrained`] does not run that code. The scheduler's numbers are saved in the
        model's `generation_config.json` too, so that `generate` draws the same pictures.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, made if needed.
            safe_serialization (`bool`, *optional*, defaults to `True`): Weights as safetensors.
            variant (`str`, *optional*): Put into the names of the weight files, as `model.fp16.safetensors`.
            max_shard_size (`int` or `str`, *optional*): Largest weight file, as `"10GB"`.
            push_to_hub (`bool`, *optional*, defaults to `False`): Publish the folder once it is complete.
            kwargs: Options of [`~unif2ace.hub_card.publish.publish`], as for `push_to_hub`, with `repo_id` among them;
                the folder's name when not given.

        Raises:
            TypeError: if `kwargs` are given that `publish` does not take, or without `push_to_hub`.
            ValueError: if the model holds LoRA adapters: see `fuse_lora` and `unload_lora_weights`.
            OSError: if it shall be published by code that came from the Hub: that needs the package.
        """
        self._refuse_adapters()
        publish = _publisher(kwargs) if push_to_hub else None
        if kwargs and not push_to_hub:
            raise TypeError(f"save_pretrained got {min(kwargs)!r}, which concerns publishing: add push_to_hub=True")
        if push_to_hub and not (safe_serialization and variant is None):
            raise ValueError("only safetensors weights without a variant can be published: leave these arguments out")
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size)
        folder = Path(save_directory)
        # `scheduler` may be another one than the model came with: what is saved has its numbers in their one home
        numbers = GenerationConfig.from_pretrained(folder / "transformer")
        self.sampling_numbers().write_to(numbers)
        numbers.save_pretrained(folder / "transformer")
        index_file = folder / "model_index.json"
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index.pop("_name_or_path", None)  # a place on the machine that saved
        for name, part in self.components.items():
            index[name] = [type(part).__module__.rpartition(".")[2], type(part).__name__]
        index["_class_name"] = PIPELINE_CLASS
        for name, content in self._code().items():
            (folder / name).write_bytes(content)
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if publish is not None:
            return publish(folder, kwargs.pop("repo_id", folder.resolve().name), **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> list:
        r"""
        Publish the pipeline as `unif2ace publish` does: `repo_id` for transformers and `repo_id` + `"-diffusers"` for
        diffusers, both with the code that they need and a card.

        Args:
            repo_id (`str`): `"ORG/NAME"`, or `"NAME"` under the own account.
            kwargs: Options of [`~unif2ace.hub_card.publish.publish`]: `license` (needed), `private`, `token`,
                `layouts`, `base_model`, `overwrite`, `samples`, ...

        Returns:
            `list[PublishedRepository]`: one for each repository.

        Raises:
            What `save_pretrained` and `publish` raise.
        """
        with TemporaryDirectory() as folder:
            return self.save_pretrained(Path(folder) / "model", push_to_hub=True, repo_id=repo_id, **kwargs)

    def _code(self) -> dict[str, bytes]:
        """The files of code beside the components, by their paths in the pipeline's folder."""
        files = pipeline_code()
        if files is None:  # this is such a copy itself, and so are the components
            parts = {"": self, **{f"{name}/": part for name, part in self.components.items()}}
            sources = {folder: Path(inspect.getfile(type(part))) for folder, part in parts.items()}
            files = {f"{folder}{source.name}": source.read_bytes() for folder, source in sources.items()}
        return files

    # Text to image

    def check_inputs(
        self,
        prompt: str | list[str],
        generator: torch.Generator | list[torch.Generator] | None,
        num_images_per_prompt: int,
        negative_prompt: str | list[str] | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...],
    ):
        """
        Raise a `ValueError` or `TypeError` that says how to mend the first argument of `__call__` that is wrong; the
        numbers are [`ImageSampling`]'s to check.
        """
        check_texts("prompt", prompt)
        check_generator(generator, len(as_list(prompt)) * check_count("num_images_per_prompt", num_images_per_prompt))
        if negative_prompt is not None:
            check_texts("negative_prompt", negative_prompt, may_be_empty=True)
            num_negative, num_prompts = len(as_list(negative_prompt)), len(as_list(prompt))
            if not isinstance(negative_prompt, str) and num_negative != num_prompts:
                raise ValueError(f"{num_negative} negative prompts for {num_prompts} prompts; give as many, or one")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
        for name in callback_on_step_end_tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise ValueError(
                    f"callback_on_step_end_tensor_inputs has {name!r}, "
                    f"expected names from {', '.join(self._callback_tensor_inputs)}"
                )

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
    ) -> Any:
        """
        The model's `PromptState`: keys and values of the prompts, and of what guidance leads away from.

        Args:
            prompt (`str` or `list[str]`): The prompts.
            negative_prompt (`str` or `list[str]`, *optional*):
                What guidance leads away from, one for all or one per prompt; the empty prompt when not given.
            guidance (`bool`, *optional*, defaults to `True`): Whether negative prompts are needed at all.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Pictures of each prompt.
            device (`torch.device`, *optional*): Where to; the pipeline's own when not given.
        """
        self._onload()
        device = device or self._execution_device
        inputs = self.processor(text=as_list(prompt), generation_mode="image", return_tensors="pt").to(device)
        negative, texts = {}, [] if negative_prompt is None else as_list(negative_prompt)
        if guidance and any(text.strip() for text in texts):
            encoded = self.processor(text=texts, generation_mode="image", allow_empty=True, return_tensors="pt")
            negative = {f"negative_{name}": tensor for name, tensor in encoded.to(device).items()}
        return self.transformer.encode_prompt(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            guidance=guidance,
            num_images_per_prompt=num_images_per_prompt,
            **negative,
        )

    def sampling_numbers(
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> ImageSampling:
        """How pictures are drawn: the scheduler's numbers, and the given ones, else the `generation_config`'s own."""
        own = ImageSampling.from_generation_config(
            self.transformer.generation_config,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
        )
        return self.scheduler.sampling_numbers(
            num_inference_steps=own.num_inference_steps,
            guidance_scale=own.guidance_scale,
            guidance_interval=own.guidance_interval,
        )

    def complete_prompts(
        self,
        prompts: list[str],
        generator: torch.Generator | list[torch.Generator] | None = None,
        complete_prompt: bool | None = None,
        num_images_per_prompt: int = 1,
    ) -> list[str] | None:
        """
        What each picture is drawn from where prompts are to be completed, else `None`; arguments as for `__call__`.
        The words have a generator of their own, made from the picture's seed, so that what draws the codes stays.
        """
        config = self.transformer.generation_config
        if not (getattr(config, "complete_prompt", False) if complete_prompt is None else complete_prompt):
            return None
        texts = [text for text in prompts for _ in range(num_images_per_prompt)]
        seeds = recorded_seeds(generator, len(texts))
        if None in seeds:
            seeds = [row.initial_seed() for row in row_generators(generator, len(texts))]
        below = getattr(config, "complete_prompt_below", COMPLETE_BELOW)
        short = [len(self.processor(text=text, generation_mode="image")["input_ids"][0]) < below for text in texts]
        if not any(short):
            return None
        return [
            self.complete(text, torch.Generator().manual_seed((seed + _WORDS) % 2**63)) if is_short else text
            for text, seed, is_short in zip(texts, seeds, short, strict=True)
        ]

    def prepare_latents(
        self, batch_size: int, device: torch.device, latents: torch.LongTensor | None = None
    ) -> torch.LongTensor:
        """Codes of which none is known, or the given ones, checked, `(batch_size, num_image_tokens)` int64."""
        config = self.transformer.config
        shape = (batch_size, config.num_image_tokens)
        if latents is None:
            return torch.full(shape, MASKED_CODE, dtype=torch.long, device=device)
        if latents.shape != shape or latents.is_floating_point():
            raise ValueError(
                f"latents are {latents.dtype} of shape {tuple(latents.shape)}, expected whole numbers of shape {shape}"
            )
        known = latents[latents != MASKED_CODE]
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) < config.vq_config.codebook_size:
            raise ValueError(
                f"latents hold codes from {int(known.min())} to {int(known.max())}, expected codes from 0 to "
                f"{config.vq_config.codebook_size - 1}, and {MASKED_CODE} where one is to be drawn"
            )
        return latents.to(device, torch.long)

    def start_decoding(
        self,
        state: Any,
        numbers: ImageSampling,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.LongTensor | None = None,
    ) -> Any:
        """
        Pictures of which no step is made yet, the model's `ImageDecoding`; `transformer.decode_step` moves them on.

        Args:
            state (`PromptState`): From `encode_prompt`.
            numbers ([`ImageSampling`]): From `sampling_numbers`.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): One for all, or one per picture.
            latents (`torch.LongTensor`, *optional*): Codes to start from, as for `__call__`.
        """
        if latents is not None:
            latents = self.prepare_latents(state.batch_size, self._execution_device, latents)
        return self.transformer.start_decoding(state, numbers, generator, latents)

    def decode_latents(
        self,
        latents: torch.LongTensor,
        output_type: str,
        watermark: bool = True,
        seeds: list[int | None] | None = None,
        completed_prompts: list[str] | None = None,
    ) -> Any:
        """Codes to pictures of `output_type`; PIL pictures are marked as generated, as by `mark_as_generated`."""
        if output_type == "latent":
            return latents
        self._onload()
        # one by one: in a batch sums round differently, and a picture would depend on its neighbours by a grey level
        pixels = torch.cat([self.transformer.decode_image_tokens(codes) for codes in latents.split(1)])
        pixels = pixels.permute(0, 3, 1, 2)
        images = self.image_processor.postprocess(pixels.float(), output_type=output_type)
        if watermark and output_type == "pil":
            return self.mark_as_generated(images, seeds, completed_prompts)
        return images

    def mark_as_generated(
        self,
        images: list[Image.Image],
        seeds: list[int | None] | None = None,
        completed_prompts: list[str] | None = None,
    ) -> list[Image.Image]:
        """
        Copies with the invisible watermark and, in `info`, the [`Provenance`] that `save_image` writes into files.

        Args:
            images (`list[PIL.Image.Image]`): Pictures that this pipeline made.
            seeds (`list[int | None]`, *optional*): The seed that makes each of them again, where there is one.
            completed_prompts (`list[str]`, *optional*): What each was drawn from, where prompts were completed.
        """
        return mark_as_generated(images, self.transformer, seeds, completed_prompts)

    @property
    def num_timesteps(self) -> int:
        """Steps planned by the last call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Of the call under way; a callback may set `pipe._guidance_scale` for the steps that follow."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call under way is guided."""
        return self._guidance_scale != 1

    @property
    def interrupt(self) -> bool:
        """Whether the call under way shall end; a callback sets `pipe._interrupt = True`."""
        return self._interrupt

    def enable_sequential_cpu_offload(self, *args, **kwargs):
        """Not offered: `enable_model_cpu_offload` moves the one model, as a whole."""
        raise ValueError(
            "the transformer is used as a whole, so it cannot be offloaded module by module: use "
            "enable_model_cpu_offload, or a smaller dtype"
        )

    def _onload(self):
        """Bring an offloaded model to its device: hooks of `enable_model_cpu_offload` only see calls of `forward`."""
        hook = getattr(self.transformer, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.transformer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        watermark: bool = True,
        latents: torch.LongTensor | None = None,
        guidance_interval: tuple[float, float] | None = None,
        height: int | None = None,
        width: int | None = None,
        complete_prompt: bool | None = None,
        seeds: list[int | None] | None = None,
    ) -> UniF2acePipelineOutput | tuple:
        r"""
        Generate faces.

        Args:
            prompt (`str` or `list[str]`): What the faces look like. Longer texts than the model reads are an error.
            guidance_scale (`float`, *optional*, defaults to the checkpoint's `generation_config`, else 4.0):
                How strongly a picture follows its prompt: `uncond + guidance_scale · (cond - uncond)`. 1 is none, and
                costs half. Show-o's scale is one less.
            num_inference_steps (`int`, *optional*, defaults to the checkpoint's `generation_config`, else 16):
                Steps in which the codes are revealed.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes pictures repeatable: one for all, or one per picture. Picture i depends on its own generator
                only, so it is the same alone and in a batch.
            num_images_per_prompt (`int`, *optional*, defaults to 1):
                Pictures of each prompt; those of the first prompt come first.
            negative_prompt (`str` or `list[str]`, *optional*):
                What guidance leads away from, one for all or one per prompt; the empty prompt when not given.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"` (codes).
            return_dict (`bool`, *optional*, defaults to `True`): `False` returns `(images, codes)`.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipeline, step, timestep, tensors)` after each step; `latents` in the dictionary
                that it returns replace the codes. With `pipeline._interrupt = True` it ends the loop; codes that are
                not known then are taken as this step drew them.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `("latents",)`):
                What the callback gets: `"latents"`; `"pred_original_sample"`, the codes with all masked ones drawn,
                of which `pipeline.decode_latents(codes, "pil", watermark=False)` makes a preview; `"logits"` and
                `"positions"`, the scores `(batch_size, K, codebook_size)` at the K places that may be masked.
            watermark (`bool`, *optional*, defaults to `True`):
                Mark PIL pictures as generated: an invisible watermark in the pixels, found by `unif2ace verify`, and
                metadata in `info`, written by `save_image`. See `docs/provenance.md`.
            latents (`torch.LongTensor` of shape `(num_images, num_image_tokens)`, *optional*):
                Codes to start from: those that are not -1 stay. `inpaint` and its relatives make them.
            guidance_interval (`tuple[float, float]`, *optional*, defaults to the checkpoint's, else `(0.0, 1.0)`):
                Share of the steps at which guidance starts and stops; the others cost half. Trades quality for time.
            height, width (`int`, *optional*): The model's resolution, which is the only size there is.
            complete_prompt (`bool`, *optional*, defaults to the checkpoint's `generation_config`, else `False`):
                Let the model complete each prompt in words before it draws, by the picture's seed, see `complete`.
                Prompts of `generation_config.complete_prompt_below` tokens or more are full already and stay. The
                texts are in the output and in the pictures' metadata; drawn from with the same seed, such a text
                gives the same picture. Not for pictures of which codes are given (`latents`).
            seeds (`list[int | None]`, *optional*):
                What the pictures' metadata record; the generators' seeds when not given, where nothing was drawn from
                them before.

        Returns:
            [`UniF2acePipelineOutput`] or `tuple`.

        Raises:
            ValueError: if an argument is out of its range, or a text is empty or too long.
            TypeError: if a text or a number is of another type.
        """
        numbers = self.sampling_numbers(num_inference_steps, guidance_scale, guidance_interval)
        self.check_inputs(
            prompt,
            generator,
            num_images_per_prompt,
            negative_prompt,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        resolution = self.transformer.config.vq_config.resolution
        if {height, width} - {None, resolution}:
            raise ValueError(
                f"a picture of {height or resolution} × {width or resolution} was asked for, but this model was "
                f"trained for {resolution} × {resolution} only: leave height and width out, and resize the picture "
                "afterwards"
            )
        guided, num_images_per_prompt = numbers.guidance_scale != 1, int(num_images_per_prompt)
        if seeds is None:
            seeds = recorded_seeds(generator, len(as_list(prompt)) * num_images_per_prompt)
        completed = None
        if latents is None:
            completed = self.complete_prompts(as_list(prompt), generator, complete_prompt, num_images_per_prompt)
        if completed is not None:
            prompt = completed
            if isinstance(negative_prompt, (list, tuple)):
                negative_prompt = [text for text in negative_prompt for _ in range(num_images_per_prompt)]
            num_images_per_prompt = 1
        state = self.encode_prompt(prompt, negative_prompt, guided, num_images_per_prompt)
        decoding = self.start_decoding(state, numbers, generator, latents)
        self.scheduler.set_timesteps(numbers.num_inference_steps, device=self._execution_device)
        self._num_timesteps = len(self.scheduler.timesteps)
        self._interrupt, self._guidance_scale = decoding.is_done, numbers.guidance_scale
        with self.progress_bar(total=numbers.num_inference_steps) as progress_bar:
            for i, _ in enumerate(self.transformer.decode(decoding)):
                if callback_on_step_end is not None:
                    latents = decoding.codes.clone()
                    available = {
                        "latents": latents,
                        "logits": decoding.logits,
                        "positions": decoding.positions,
                        "pred_original_sample": decoding.drawn,
                    }
                    tensors = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    timestep = self.scheduler.timesteps[i]
                    changed = (callback_on_step_end(self, i, timestep, tensors) or {}).get("latents", latents)
                    if self._guidance_scale != numbers.guidance_scale and state.guided:
                        numbers = replace(numbers, guidance_scale=self._guidance_scale)
                        decoding.plan.numbers = numbers
                    if changed is not latents:
                        decoding.codes, decoding.everywhere = changed, True  # may mask more than the plan knows of
                    if self.interrupt:
                        unknown = decoding.codes == MASKED_CODE
                        decoding.codes = torch.where(unknown, decoding.drawn, decoding.codes)
                progress_bar.update()
                self._interrupt = self.interrupt or decoding.finished_early
                if self.interrupt:
                    break
        latents = decoding.codes
        images = self.decode_latents(latents, output_type, watermark, seeds, completed)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, latents
        return UniF2acePipelineOutput(images=images, codes=latents, completed_prompts=completed)


def _publisher(options: dict[str, Any]) -> Callable:
    """The package's one way to the Hub, if it takes these options."""
    publish = publisher()
    unknown = sorted(options.keys() - publish.__kwdefaults__.keys() - {"repo_id"})
    if unknown:
        raise TypeError(f"publish takes no {unknown[0]!r}, expected repo_id, {', '.join(publish.__kwdefaults__)}")
    return publish


__all__ = ["UniF2acePipeline", "UniF2acePipelineOutput"]
