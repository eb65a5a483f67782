"""
Pictures from pictures: inpainting, outpainting, variation, and edits that a sentence asks for.

All of them encode the picture, mask some of its codes and let the pipeline fill them in again; they differ in which
codes they mask.
"""

from numbers import Real
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from ..modeling_unif2ace.pictures_unif2ace import as_images, load_image
from ..modeling_unif2ace.provenance_unif2ace import recorded_seeds
from ..modeling_unif2ace.sampling_unif2ace import MASKED_CODE, check_count, mask_codes, row_generators
from .regions_unif2ace import mask_picture, outpaint_canvas
from .understanding_unif2ace import as_list, check_texts


class UniF2aceEditingMixin:
    """
    Editing methods of [`UniF2acePipeline`].

    Example:

    ```python
    >>> pipe.inpaint("a smiling woman", face, mask="mouth").images[0]
    >>> pipe.outpaint("a man with a hat", face, margins=(0.25, 0.5, 0.25, 0)).images[0]
    >>> pipe.vary("a man with a beard", face, strength=0.5, num_images_per_prompt=4).images
    >>> pipe.edit("a woman with round glasses", face, source_prompt="a woman").images[0]
    ```
    """

    def encode_images(self, images: Any) -> torch.LongTensor:
        """
        Image codes `(batch_size, num_image_tokens)` of pictures (paths, PIL pictures, ...), which are resized and
        cropped as for describing them; `decode_latents` gives the pictures back.
        """
        if self._are_codes(images):
            return torch.atleast_2d(images).to(self._execution_device)
        self._onload()
        pictures = self._fetch_images(images)
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        model = self.transformer
        return model.encode_images(pixels.to(self._execution_device, model.dtype))

    @torch.no_grad()
    def inpaint(
        self,
        prompt: str | list[str],
        image: Any,
        mask: Any,
        keep_pixels: bool = False,
        num_images_per_prompt: int = 1,
        **kwargs,
    ):
        r"""
        Repaint a part of a picture.

        Args:
            prompt (`str` or `list[str]`): What the whole face looks like afterwards.
            image (path, `PIL.Image.Image`, or a list of them): One for each prompt, or one for all.
            mask (mask picture, array, part's name or box, or a list of them):
                Where to repaint: white in a picture of the same size as `image`; or a facial part, as `"mouth"`, one
                of `FACE_PARTS`; or a box (left, top, right, bottom) in shares of the picture. All codes that it
                touches are drawn anew.
            keep_pixels (`bool`, *optional*, defaults to `False`):
                Put the original's pixels back outside of the mask. Otherwise the whole picture goes through the image
                tokenizer, which costs detail but leaves no seam. PIL output only.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Pictures of each prompt.
            kwargs: As for generating: `generator`, `guidance_scale`, `num_inference_steps`, `output_type`, ...

        Returns:
            [`UniF2acePipelineOutput`] or `tuple`, as generating does.

        Raises:
            ValueError: if numbers or sizes of pictures, masks and prompts do not fit together.
        """
        if not keep_pixels:
            return self(**self.prepare_inpaint(prompt, image, mask, num_images_per_prompt), **kwargs)
        if kwargs.get("output_type", "pil") != "pil":
            raise ValueError(f"keep_pixels=True with output_type={kwargs['output_type']!r}, expected 'pil'")
        return_dict, watermark = kwargs.pop("return_dict", True), kwargs.pop("watermark", True)
        pictures, chosen = self._pictures_and_masks(image, mask)
        call = self.prepare_inpaint(prompt, pictures, chosen, num_images_per_prompt)
        seeds = recorded_seeds(kwargs.get("generator"), len(call["latents"]))
        output = self(**call, watermark=False, **kwargs)
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        originals = self.image_processor.postprocess(pixels, output_type="pil")
        shown = [Image.fromarray((item.numpy() * 255).round().astype("uint8")) for item in self._mask_pixels(chosen)]
        for row, picture in enumerate(output.images):
            source = 0 if len(originals) == 1 else row // num_images_per_prompt
            output.images[row] = Image.composite(picture, originals[source], shown[source])
        if watermark:
            output.images = self.mark_as_generated(output.images, seeds)
        return output if return_dict else (output.images, output.codes)

    def prepare_inpaint(
        self, prompt: str | list[str], image: Any, mask: Any, num_images_per_prompt: int = 1
    ) -> dict[str, Any]:
        """
        What `inpaint` asks of `__call__`: its arguments `prompt`, `latents` and `num_images_per_prompt`.

        Args:
            prompt, image, mask, num_images_per_prompt: As in `inpaint`.

        Raises:
            ValueError: as `inpaint`.
        """
        pictures, masks = self._pictures_and_masks(image, mask)
        grid_size = self.transformer.config.vq_config.grid_size
        places = codes_under_mask(self._mask_pixels(masks), grid_size).to(self._execution_device)
        prompts, codes = self._pair(prompt, pictures, num_images_per_prompt)
        return self._fill(
            prompts, codes, _rows_for(places, len(prompts), num_images_per_prompt), num_images_per_prompt
        )

    def _pictures_and_masks(self, image: Any, mask: Any) -> tuple[list[Image.Image], list[Image.Image]]:
        pictures = [load_image(item) for item in self._fetch_images(image)]
        masks = [mask] if isinstance(mask, tuple) else as_list(mask)
        if len(masks) not in (1, len(pictures)):
            raise ValueError(f"{len(masks)} masks for {len(pictures)} images; give one for all, or one for each")
        masks = masks * len(pictures) if len(masks) == 1 else masks
        return pictures, [mask_picture(item, picture.size) for item, picture in zip(masks, pictures, strict=True)]

    @torch.no_grad()
    def outpaint(self, prompt: str | list[str], image: Any, margins: tuple[float, float, float, float], **kwargs):
        r"""
        Continue pictures beyond their edges. The model draws squares of one size, so the picture becomes smaller.

        Args:
            prompt (`str` or `list[str]`): What the whole picture shows afterwards.
            image (path, `PIL.Image.Image`, or a list of them): One for each prompt, or one for all.
            margins (`tuple[float, float, float, float]`):
                Left, top, right, bottom: what to add, as shares of the picture's width and height.
            kwargs: As in `inpaint`.

        Raises:
            ValueError: if the margins are no margins, or the result is not square.
        """
        pictures = self._fetch_images(image)
        pictures = [load_image(item) for item in pictures]
        canvases, masks = zip(*(outpaint_canvas(picture, margins) for picture in pictures), strict=True)
        return self.inpaint(prompt, list(canvases), list(masks), **kwargs)

    @torch.no_grad()
    def vary(
        self,
        prompt: str | list[str],
        image: Any,
        strength: float = 0.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **kwargs,
    ):
        r"""
        Variations of a picture: a share of its codes, chosen at random, is drawn anew.

        Args:
            prompt (`str` or `list[str]`): What the face looks like.
            image (path, `PIL.Image.Image`, or a list of them): One for each prompt, or one for all.
            strength (`float`, *optional*, defaults to 0.5): Share of the codes: 0 changes nothing, 1 everything.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Variations of each prompt.
            generator (`torch.Generator` or list of them, *optional*): As for generating.
            kwargs: As in `inpaint`.

        Raises:
            ValueError: if `strength` is not a number from 0 to 1, or numbers do not fit together.
        """
        _check_strength(strength)
        prompts, codes = self._pair(prompt, image, num_images_per_prompt)
        seeds, rows = recorded_seeds(generator, len(codes)), row_generators(generator, len(codes))
        count = torch.full((len(codes),), round(strength * codes.shape[1]))
        places = mask_codes(codes, count, rows) == MASKED_CODE
        call = self._fill(prompts, codes, places, num_images_per_prompt)
        return self(**call, generator=generator, seeds=seeds, **kwargs)

    @torch.no_grad()
    def edit(
        self,
        prompt: str | list[str],
        image: Any,
        source_prompt: str | list[str] | None = None,
        strength: float = 0.3,
        region: Any = None,
        num_draws: int = 2,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **kwargs,
    ):
        r"""
        Change what the difference of two sentences says, and keep the rest.

        Where: the codes that fit the new sentence least compared with the old one, found by masking halves of the
        picture and comparing the probabilities of its own codes (the idea of DiffEdit,
        [arXiv:2210.11427](https://arxiv.org/abs/2210.11427)). How: these codes are drawn anew, with guidance from the
        old sentence to the new one.

        Args:
            prompt (`str` or `list[str]`): What the face looks like afterwards: `"a woman with round glasses"`.
            image (path, `PIL.Image.Image`, or a list of them): One for each prompt, or one for all.
            source_prompt (`str` or `list[str]`, *optional*):
                What it looks like now, in the same words except for the change: `"a woman"`. Without it the change is
                everything that `prompt` says.
            strength (`float`, *optional*, defaults to 0.3): Share of the codes, or of those in `region`, that change.
            region (mask, part's name or box, *optional*): Only codes in it can change, as in `inpaint`.
            num_draws (`int`, *optional*, defaults to 2):
                How often every code is compared; each takes the time of four denoising steps.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Pictures of each prompt.
            generator (`torch.Generator` or list of them, *optional*): As for generating.
            kwargs: As in `inpaint`.

        Raises:
            ValueError: if numbers of texts and pictures do not fit together, or `strength` is not from 0 to 1.
        """
        call = self.prepare_edit(
            prompt, image, source_prompt, strength, region, num_draws, num_images_per_prompt, generator
        )
        return self(**(call | kwargs), generator=generator)

    @torch.no_grad()
    def prepare_edit(
        self,
        prompt: str | list[str],
        image: Any,
        source_prompt: str | list[str] | None = None,
        strength: float = 0.3,
        region: Any = None,
        num_draws: int = 2,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> dict[str, Any]:
        """
        What `edit` asks of `__call__`: its arguments `prompt`, `latents`, `num_images_per_prompt`, `negative_prompt`
        and `seeds`. The same `generator` has to go on with them.

        Args:
            prompt, image, source_prompt, strength, region, num_draws, num_images_per_prompt, generator: As in `edit`.

        Raises:
            ValueError: as `edit`.
        """
        _check_strength(strength)
        check_count("num_draws", num_draws)
        prompts, codes = self._pair(prompt, image, num_images_per_prompt)
        if source_prompt is not None:
            check_texts("source_prompt", source_prompt)
            sources = as_list(source_prompt)
            if len(sources) not in (1, len(prompts)):
                raise ValueError(f"{len(sources)} source prompts for {len(prompts)} prompts; give as many, or one")
            source_prompt = sources * len(prompts) if len(sources) == 1 else sources
        seeds, rows = recorded_seeds(generator, len(codes)), row_generators(generator, len(codes))
        scores = self.text_difference(prompts, source_prompt, codes, rows, num_draws, num_images_per_prompt)
        allowed = torch.ones_like(codes, dtype=torch.bool)
        if region is not None:
            size = self.transformer.config.vq_config.resolution
            mask = self._mask_pixels([mask_picture(region, (size, size))])
            allowed = codes_under_mask(mask, self.transformer.config.vq_config.grid_size).to(codes.device)
            allowed = allowed.expand_as(codes)
        order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        count = (allowed.sum(-1, keepdim=True) * strength).round()
        places = order.argsort(dim=-1) < count
        call = self._fill(prompts, codes, places, num_images_per_prompt)
        return call | {"negative_prompt": source_prompt, "seeds": seeds}

    @torch.no_grad()
    def text_difference(
        self,
        prompt: list[str],
        source_prompt: list[str] | None,
        codes: torch.LongTensor,
        generators: list[torch.Generator],
        num_draws: int = 2,
        num_images_per_prompt: int = 1,
    ) -> torch.FloatTensor:
        """
        How much better each code of a picture fits the old sentence than the new one: `log p(code | source_prompt) -
        log p(code | prompt)`, each code predicted from a random half of the others, averaged over its neighbours.

        Args:
            prompt (`list[str]`): The new sentences.
            source_prompt (`list[str]`, *optional*): The old ones; the empty prompt when not given.
            codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): The pictures' codes.
            generators (`list[torch.Generator]`): One for each row.
            num_draws (`int`, *optional*, defaults to 2): Pairs of complementary halves.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Rows of each prompt.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_image_tokens)`.
        """
        self._onload()
        device, grid_size = codes.device, self.transformer.config.vq_config.grid_size
        state = self.encode_prompt(prompt, source_prompt, True, num_images_per_prompt, device)
        scores = torch.zeros_like(codes, dtype=torch.float32)
        half = torch.full((len(codes),), codes.shape[1] // 2)
        for _ in range(num_draws):
            first = mask_codes(codes, half, generators) == MASKED_CODE
            for masked in (first, ~first):
                seen = codes.masked_fill(masked, MASKED_CODE)
                # guidance 1 is the new sentence, guidance 0 the old one
                new, old = (
                    self.transformer.predict_codes(seen, state, scale)
                    .log_softmax(-1)
                    .gather(-1, codes[..., None])
                    .squeeze(-1)
                    for scale in (1.0, 0.0)
                )
                scores += torch.where(masked, old - new, 0.0) / num_draws
        grid = scores.unflatten(1, (grid_size, grid_size))[:, None]
        return F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False).flatten(1)

    def _pair(self, prompt, image, num_images_per_prompt: int) -> tuple[list[str], torch.LongTensor]:
        """Prompts, and the codes of their pictures, a row for each picture to make."""
        check_texts("prompt", prompt)
        check_count("num_images_per_prompt", num_images_per_prompt)
        prompts = as_list(prompt)
        images = list(torch.atleast_2d(image)) if self._are_codes(image) else as_images(image)
        count = max(len(prompts), len(images))
        if {len(prompts), len(images)} - {1, count}:
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; give as many, or one of either")
        codes = self.encode_images(image)
        prompts = prompts * count if len(prompts) == 1 else prompts
        return prompts, _rows_for(codes, count, num_images_per_prompt)

    def _fill(self, prompts, codes, places, num_images_per_prompt: int) -> dict[str, Any]:
        """The arguments of `__call__` with which it draws the codes at `places` anew."""
        latents = codes.masked_fill(places, MASKED_CODE)
        return {"prompt": prompts, "latents": latents, "num_images_per_prompt": num_images_per_prompt}

    def _mask_pixels(self, masks: list[Image.Image]) -> torch.FloatTensor:
        """Masks resized and cropped as their pictures are, (masks, resolution, resolution) from 0 to 1."""
        pictures = [mask.convert("RGB") for mask in masks]
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return ((pixels.mean(1) + 1) / 2).clamp(0, 1)


def _check_strength(strength: float):
    if not isinstance(strength, Real) or not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength!r}, expected a number from 0 to 1")


def codes_under_mask(pixels: torch.Tensor, grid_size: int) -> torch.BoolTensor:
    """
    Which codes a mask touches.

    Args:
        pixels (`torch.FloatTensor` of shape `(batch_size, resolution, resolution)`): The mask, from 0 to 1.
        grid_size (`int`): Codes along one side of a picture.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, grid_size²)`, in raster order: a code is set if any pixel of its
        square is more than half.
    """
    squares = F.adaptive_max_pool2d(pixels[:, None].float(), grid_size)
    return squares.flatten(1) > 0.5


def _rows_for(rows: torch.Tensor, count: int, num_images_per_prompt: int) -> torch.Tensor:
    """One row or `count` rows as a row for each picture to make."""
    return rows.expand(count, -1).repeat_interleave(num_images_per_prompt, dim=0)


__all__ = ["UniF2aceEditingMixin", "codes_under_mask"]
