"""
Generation for both modes: text by transformers' `generate` with its caches, images by masked decoding over a cached
prompt.

Text never sees the image, so a prompt's keys and values are the same at every denoising step: they are computed once
(`encode_prompt`) and only read afterwards (`predict_codes`). At each step only the image span runs, with guidance in
one batch, and the head only at masked places. Nothing in a step waits for the device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.generation import GenerationConfig, GenerationMixin

from .compat_unif2ace import CACHE, Cache, DynamicCache, rename_cache
from .layout_unif2ace import T2I, ImageSpan, TaskRows
from .sampling_unif2ace import MASKED_CODE, DecodingPlan, ImageSampling, check_count, masked_positions


class PromptCache:
    """
    Keys and values of a prompt that attention layers read and never write.

    Looks like a cache to attention: `update` returns the prompt's keys and values followed by the given ones.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]]):
        self.layers = layers

    @classmethod
    def from_cache(cls, cache: Cache) -> "PromptCache":
        """What a finished forward pass left in `cache`."""
        return cls([(layer.keys, layer.values) for layer in cache.layers])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        """The prompt's keys and values with the given ones behind them; nothing is stored."""
        keys, values = self.layers[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the prompt, padding included."""
        return self.layers[layer_idx][0].shape[-2]

    def map(self, function) -> "PromptCache":
        """A cache with `function` applied to every tensor (rows, heads, length, head_dim)."""
        return PromptCache([(function(keys), function(values)) for keys, values in self.layers])


@dataclass
class PromptState:
    """
    Encoded text-to-image prompts.

    Args:
        cache (`PromptCache`): The rows' keys and values; with guidance first all prompts, then all negative prompts.
        attention_mask (`torch.LongTensor` of shape `(rows, length)`, *optional*): 0 at padding; `None` without any.
        batch_size (`int`): Images: prompts times images per prompt.
        guided (`bool`): Whether the second half holds the negative prompts.
    """

    cache: PromptCache
    attention_mask: torch.LongTensor | None
    batch_size: int
    guided: bool

    def prompts_only(self) -> "PromptState":
        """The same without the negative prompts."""
        if not self.guided:
            return self
        mask = None if self.attention_mask is None else self.attention_mask[: self.batch_size]
        return PromptState(self.cache.map(lambda states: states[: self.batch_size]), mask, self.batch_size, False)


def merge_prompts(states: list[PromptState], static_length: int | None = None) -> PromptState:
    """
    Prompts of several requests as one state, padded on the left; the rows of each request stay together.

    Guidance is not the state's matter any more: prompts and negative prompts are rows like others. With
    `static_length` they are padded to that length, if they are shorter, and always have a mask.
    """
    length = max(static_length or 0, *(state.cache.get_seq_length() for state in states))

    def merge(parts: list[torch.Tensor]) -> torch.Tensor:  # (rows, heads, length, size)
        return torch.cat([F.pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts])

    layers = [
        (merge([keys for keys, _ in layer]), merge([values for _, values in layer]))
        for layer in zip(*(state.cache.layers for state in states), strict=True)
    ]
    masks = []
    for state in states:
        keys, mask = state.cache.layers[0][0], state.attention_mask
        if mask is None:
            mask = torch.ones(keys.shape[0], keys.shape[-2], dtype=torch.long, device=keys.device)
        masks.append(F.pad(mask, (length - mask.shape[-1], 0)))
    mask = torch.cat(masks)
    unpadded = static_length is None and bool(mask.all())
    return PromptState(PromptCache(layers), None if unpadded else mask, len(mask), guided=False)


@dataclass(eq=False)
class ImageDecoding:
    """
    Pictures of one request under way. [`UniF2aceGenerationMixin.start_decoding`] makes it, `decode_step` moves it on.

    Args:
        prompt (`PromptState`): The encoded prompts.
        plan ([`DecodingPlan`]): What each step reveals.
        codes (`torch.LongTensor` of shape `(batch_size, N)`): Codes so far, -1 where not known. May be set between
            steps; with `everywhere`, where it then has more masked codes than the plan knows of.
        generators: What the steps draw from.
        everywhere (`bool`, *optional*, defaults to `False`): Whether `logits` are made at known codes too.
        step (`int`, *optional*, defaults to 0): Steps made.
        drawn (`torch.LongTensor` of shape `(batch_size, N)`, *optional*): All codes, as the last step drew them.
        logits (`torch.FloatTensor` of shape `(batch_size, K or N, codebook_size)`, *optional*): Of the last step.
        positions (`torch.LongTensor` of shape `(batch_size, K)`, *optional*): The places of `logits`; `None`: all.
    """

    prompt: PromptState
    plan: DecodingPlan
    codes: torch.LongTensor
    generators: torch.Generator | list[torch.Generator] | None
    everywhere: bool = False
    step: int = 0
    drawn: torch.LongTensor | None = None
    logits: torch.FloatTensor | None = None
    positions: torch.LongTensor | None = None
    finished_early: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all codes are known."""
        return self.finished_early or self.step == self.plan.num_steps

    @property
    def guidance_scale(self) -> float:
        """That of the next step; 1 outside of the guidance interval."""
        start, stop = (math.ceil(share * self.plan.num_steps) for share in self.plan.numbers.guidance_interval)
        return self.plan.numbers.guidance_scale if start <= self.step < stop else 1.0

    @property
    def max_masked(self) -> int:
        """The most codes of a row that can be masked now."""
        num_tokens = self.codes.shape[1]
        return num_tokens if self.everywhere else self.plan.max_masked(self.step, num_tokens)

    def advance(self, logits: torch.FloatTensor, positions: torch.LongTensor | None):
        """Take the step whose `logits` (batch_size, K or N, codebook_size), guided, were made at `positions`."""
        plan, self.logits, self.positions = self.plan, logits, positions
        self.codes, self.drawn = plan.step(logits, self.codes, self.step, self.generators, positions)
        self.step += 1
        if plan.may_finish_early:
            self.finished_early = not bool((self.codes == MASKED_CODE).any())


class UniF2aceGenerationMixin(GenerationMixin):
    """Text and image generation of [`UniF2aceForConditionalGeneration`]."""

    static_image_shapes = False  # set by `compile_image_decoding`
    _empty_prompt: tuple[tuple, PromptCache] | None = None

    def prepare_inputs_for_generation(
        self,
        input_ids,
        pixel_values=None,
        face_pixel_values=None,
        clip_features=None,
        face_features=None,
        is_first_iteration=False,
        **kwargs,
    ):
        """The picture enters once: afterwards it is in the cache."""
        kwargs.pop("mm_token_type_ids", None)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(
                pixel_values=pixel_values,
                face_pixel_values=face_pixel_values,
                clip_features=clip_features,
                face_features=face_features,
            )
            # a static cache's ready-made causal mask knows nothing of the image span; forward makes the right one
            inputs["attention_mask"] = kwargs.get("attention_mask")
        return inputs

    def _encode_text(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> PromptCache:
        cache = DynamicCache(config=self.config.text_config)
        self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=True,
            task_ids=input_ids.new_full((len(input_ids),), T2I),
        )
        return PromptCache.from_cache(cache)

    def unconditional_prompt(self, device: torch.device | None = None) -> torch.LongTensor:
        """The empty prompt `<|t2i|> bos eos`, (1, 3): what guidance moves away from."""
        return torch.tensor([self.config.layout.prompt([])], device=device)

    def remember_unconditional_prompt(self, remember: bool = True):
        """
        Compute the empty prompt's keys and values now and keep them: they are the same for every prompt. Off by
        default, because a model cannot tell every change of its weights. An optimizer's steps, or a move to another
        device or dtype, are noticed, and what was kept is then left aside; merged adapters leave no trace. Who
        switches it on, a server say, calls this again after a change.

        Args:
            remember (`bool`, *optional*, defaults to `True`): Whether to keep them.
        """
        self._empty_prompt = None
        if remember:
            with torch.no_grad():
                self._empty_prompt = self._empty_prompt_key(self.device), self._encode_empty_prompt(self.device)

    def _empty_prompt_key(self, device: torch.device) -> tuple:
        weights = self.model.language_model.parameters()
        return device, self.dtype, sum(weight._version for weight in weights if not weight.is_inference())

    def _encode_empty_prompt(self, device: torch.device) -> PromptCache:
        if self._empty_prompt is not None and self._empty_prompt[0] == self._empty_prompt_key(device):
            return self._empty_prompt[1]
        input_ids = self.unconditional_prompt(device)
        return self._encode_text(input_ids, torch.ones_like(input_ids))

    def compile_image_decoding(self, **options):
        """
        Compile the denoising step with `torch.compile`. From then on all steps have the same shapes: prompts are
        padded to `config.max_text_length + 1` and all codes get logits, so that nothing is compiled twice for one
        batch size, and CUDA graphs (`mode="reduce-overhead"`) can be used. The codes stay the same.

        Args:
            options: Of `torch.compile`; `fullgraph=True` and `dynamic=False` unless given.
        """
        self.static_image_shapes = True
        self.predict_codes = torch.compile(self.predict_codes, **{"fullgraph": True, "dynamic": False, **options})

    def encode_prompt(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        negative_input_ids: torch.LongTensor | None = None,
        negative_attention_mask: torch.LongTensor | None = None,
        guidance: bool = True,
        num_images_per_prompt: int = 1,
    ) -> PromptState:
        """
        Keys and values of text-to-image prompts, computed once.

        Args:
            input_ids (`torch.LongTensor` of shape `(prompts, length)`):
                `[PAD …] <|t2i|> bos text eos`, left padded, as the processor makes with `generation_mode="image"`.
            attention_mask (`torch.LongTensor` of shape `(prompts, length)`, *optional*): 0 at padding.
            negative_input_ids (`torch.LongTensor` of shape `(1 or prompts, length)`, *optional*):
                What guidance moves away from; the empty prompt by default.
            negative_attention_mask (`torch.LongTensor`, *optional*): Its padding.
            guidance (`bool`, *optional*, defaults to `True`): Whether to encode negative prompts at all.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Images of one prompt follow each other.

        Raises:
            ValueError: if there are neither one negative prompt nor as many as prompts.
        """
        check_count("num_images_per_prompt", num_images_per_prompt)
        if guidance and negative_input_ids is not None and len(negative_input_ids) not in (1, len(input_ids)):
            raise ValueError(
                f"{len(negative_input_ids)} negative prompts for {len(input_ids)} prompts; give as many, or one"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = [PromptState(self._encode_text(input_ids, attention_mask), attention_mask, len(input_ids), False)]
        if guidance:
            if negative_input_ids is None:
                cache = self._encode_empty_prompt(input_ids.device)
                negative_attention_mask = input_ids.new_ones(1, cache.get_seq_length())
            else:
                if negative_attention_mask is None:
                    negative_attention_mask = torch.ones_like(negative_input_ids)
                cache = self._encode_text(negative_input_ids, negative_attention_mask)
            if len(negative_attention_mask) == 1:
                copies = len(input_ids)
                cache = cache.map(lambda states: states.expand(copies, -1, -1, -1))
                negative_attention_mask = negative_attention_mask.expand(copies, -1)
            states.append(PromptState(cache, negative_attention_mask, len(input_ids), False))
        merged = merge_prompts(states, self.config.layout.image_start if self.static_image_shapes else None)

        def repeat(rows: torch.Tensor) -> torch.Tensor:
            return rows.repeat_interleave(num_images_per_prompt, dim=0)

        return PromptState(
            cache=merged.cache.map(repeat),
            attention_mask=None if merged.attention_mask is None else repeat(merged.attention_mask),
            batch_size=len(input_ids) * num_images_per_prompt,
            guided=guidance,
        )

    def predict_codes(
        self,
        codes: torch.LongTensor,
        prompt: PromptState,
        guidance_scale: float = 1.0,
        positions: torch.LongTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Logits of image codes: one denoising step's forward pass over the image span.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, N)`): Codes in [0, codebook_size), -1 where masked.
            prompt (`PromptState`): From `encode_prompt`.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                `uncond + guidance_scale · (cond − uncond)`; 1 is no guidance. Show-o's scale is this minus one.
            positions (`torch.LongTensor` of shape `(batch_size, K)`, *optional*):
                Places whose logits are wanted ([`masked_positions`]); all N when not given. The head's columns are
                the most expensive thing in a small model.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, N or K, codebook_size)`, float32.

        Raises:
            ValueError: if guidance is asked for without negative prompts.
        """
        guided = guidance_scale != 1.0
        if guided and not prompt.guided:
            raise ValueError(f"guidance_scale={guidance_scale} needs a prompt encoded with guidance=True")
        if not guided:
            prompt = prompt.prompts_only()
        copies = 2 if guided else 1
        hidden_states = self._run_image_span(codes.repeat(copies, 1), prompt)
        if positions is not None:
            index = positions.repeat(copies, 1)[..., None].expand(-1, -1, hidden_states.shape[-1])
            hidden_states = hidden_states.gather(1, index)
        logits = self.code_logits(hidden_states).float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        return logits

    def _run_image_span(self, codes: torch.LongTensor, prompt: PromptState) -> torch.FloatTensor:
        """The last hidden state at every code, (rows, N, H)."""
        config, (num_rows, num_tokens), device = self.config, codes.shape, codes.device
        ids = torch.where(codes < 0, config.mask_token_id, codes + config.image_code_offset)
        ids, start = config.layout.enclose(ids), config.layout.image_start
        rows = torch.arange(num_rows, device=device)
        task_ids = torch.full_like(rows, T2I)
        places = torch.arange(1, num_tokens + 1, device=device).expand(num_rows, -1)
        span = ImageSpan(rows=rows, positions=places, task_ids=task_ids, only=T2I)
        mask = None
        if prompt.attention_mask is not None:  # all see the prompt's real tokens and the whole span
            seen = F.pad(prompt.attention_mask, (0, num_tokens + 2), value=1)[:, None, None]
            dtype = self.model.language_model.dtype
            mask = torch.zeros(seen.shape, dtype=dtype, device=device)
            mask = mask.masked_fill(seen == 0, torch.finfo(dtype).min).expand(-1, -1, ids.shape[1], -1)
        outputs = self.model.language_model(
            inputs_embeds=self.model.embed(ids, span),
            attention_mask=mask,
            prepared_mask=True,
            position_ids=torch.arange(start, start + ids.shape[1], device=device)[None],
            cache=prompt.cache,
            use_cache=False,
            is_causal=False,
            task_rows=TaskRows(task_ids, only=T2I),
            image_span=span,
            span_features=self.model.span_features(ids, span),
        )
        return outputs.last_hidden_state[:, 1:-1]

    def start_decoding(
        self,
        prompt: PromptState,
        numbers: ImageSampling,
        generator: torch.Generator | list[torch.Generator] | None = None,
        codes: torch.LongTensor | None = None,
        everywhere: bool = False,
    ) -> ImageDecoding:
        """
        Begin to draw pictures.

        Args:
            prompt (`PromptState`): From `encode_prompt`, with `guidance=True` if `numbers` ask for guidance.
            numbers ([`ImageSampling`]): How to draw.
            generator (`torch.Generator` or list of them, *optional*): One for all, or one per picture.
            codes (`torch.LongTensor` of shape `(batch_size, N)`, *optional*):
                What is known already, -1 elsewhere (inpainting); nothing by default.
            everywhere (`bool`, *optional*, defaults to `False`): Whether to make logits at known codes too.
        """
        batch_size, initially_masked = prompt.batch_size, None
        device = prompt.cache.layers[0][0].device
        if codes is None:
            codes = torch.full((batch_size, self.config.num_image_tokens), MASKED_CODE, device=device)
        else:
            initially_masked = (codes == MASKED_CODE).sum(-1).tolist()
        plan = DecodingPlan(numbers, initially_masked, device)
        decoding = ImageDecoding(prompt, plan, codes, plan.generators(generator, batch_size))
        decoding.everywhere = everywhere or self.static_image_shapes
        decoding.finished_early = initially_masked is not None and not any(initially_masked)
        return decoding

    @torch.no_grad()
    def decode_step(self, decodings: list[ImageDecoding], merged: PromptState | None = None):
        """
        One step of every request in `decodings`, in one forward pass, wherever each stands. A request alone is
        computed with guidance in one batch; several are rows of one batch, and each is as alone up to the rounding of
        sums.

        Args:
            decodings (`list[ImageDecoding]`): Requests that are not done.
            merged (`PromptState`, *optional*):
                `merge_prompts` of their prompts, where the caller keeps it from step to step.
        """
        if len(decodings) == 1 and merged is None:
            (one,) = decodings
            positions = None if one.everywhere else one.plan.positions(one.codes, one.step)
            one.advance(self.predict_codes(one.codes, one.prompt, one.guidance_scale, positions), positions)
            return
        if merged is None:
            merged = merge_prompts([one.prompt for one in decodings])
        codes = torch.cat([one.codes.repeat(2 if one.prompt.guided else 1, 1) for one in decodings])
        positions = None
        if not self.static_image_shapes:
            positions = masked_positions(codes, max(one.max_masked for one in decodings))
        logits, first = self.predict_codes(codes, merged, positions=positions), 0
        for one in decodings:
            size = one.prompt.batch_size
            own, places = logits[first : first + size], None if positions is None else positions[first : first + size]
            if one.prompt.guided:
                unconditional = logits[first + size : first + 2 * size]
                own = unconditional + one.guidance_scale * (own - unconditional)
            one.advance(own, places)
            first += 2 * size if one.prompt.guided else size

    def decode(self, decoding: ImageDecoding) -> Iterator[int]:
        """
        The decoding loop: moves `decoding` on until all its codes are known, and yields after each step how many were
        made. `generate`, the pipeline, the server and reward training all run this one, or its `decode_step`.
        """
        while not decoding.is_done:
            self.decode_step([decoding])
            yield decoding.step

    @torch.no_grad()
    def generate_image_codes(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        negative_input_ids: torch.LongTensor | None = None,
        negative_attention_mask: torch.LongTensor | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        generation_config: GenerationConfig | None = None,
        **numbers,
    ) -> torch.LongTensor:
        """
        Image codes (batch_size, N) of text-to-image prompts.

        Args:
            input_ids, attention_mask, negative_input_ids, negative_attention_mask, num_images_per_prompt:
                As in `encode_prompt`.
            generator (`torch.Generator` or list of them, *optional*): One for all, or one per picture.
            generation_config (`GenerationConfig`, *optional*): Where the numbers stand; the model's by default.
            numbers: Fields of [`ImageSampling`], such as `num_inference_steps` and `guidance_scale`, to use instead.

        `UniF2acePipeline` offers more: callbacks, pictures as output.
        """
        numbers = ImageSampling.from_generation_config(generation_config or self.generation_config, **numbers)
        prompt = self.encode_prompt(
            input_ids,
            attention_mask,
            negative_input_ids,
            negative_attention_mask,
            guidance=numbers.guidance_scale != 1.0,
            num_images_per_prompt=num_images_per_prompt,
        )
        decoding = self.start_decoding(prompt, numbers, generator)
        for _ in self.decode(decoding):
            pass
        return decoding.codes

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, generation_mode: str = "text", **kwargs):
        """
        Text (`generation_mode="text"`, everything as in `GenerationMixin.generate`) or image codes (`"image"`, the
        arguments of `generate_image_codes`; `decode_image_tokens` turns codes into pixels).

        Raises:
            ValueError: for another mode.
        """
        if generation_mode == "text":
            self._suppress_all_but_text(kwargs)
            self._fix_tasks(inputs, kwargs)
            return super().generate(inputs=inputs, **rename_cache(kwargs))
        if generation_mode != "image":
            raise ValueError(f"generation_mode={generation_mode!r}, expected 'text' or 'image'")
        input_ids = kwargs.pop("input_ids", None)
        kwargs.pop("mm_token_type_ids", None)
        return self.generate_image_codes(inputs if input_ids is None else input_ids, **kwargs)

    @torch.no_grad()
    def prefill_images(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        face_pixel_values: torch.FloatTensor | None = None,
        clip_features: torch.FloatTensor | None = None,
        face_features: torch.FloatTensor | None = None,
    ) -> DynamicCache:
        """
        Keys and values of the part of understanding prompts that ends with the picture. It never sees what follows, so
        one such cache serves all questions about its pictures: `generate(..., cache=cache)`, with the
        padding, if any, between picture and question. `generate` writes into it: give a copy to keep the original.

        Args:
            input_ids (`torch.LongTensor` of shape `(images, length)`): The tokens up to end-of-image, without padding.
            pixel_values, face_pixel_values, clip_features, face_features:
                The pictures, as `UniF2aceModel.forward` takes them.

        Returns:
            `DynamicCache` with one row for each picture.
        """
        cache = DynamicCache(config=self.config.text_config)
        self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            face_pixel_values=face_pixel_values,
            clip_features=clip_features,
            face_features=face_features,
            cache=cache,
            use_cache=True,
        )
        return cache

    def _expand_inputs_for_generation(self, expand_size: int = 1, is_encoder_decoder: bool = False, **model_kwargs):
        """transformers repeats the rows of tensors for beams and several answers, but not those of a given cache."""
        cache = model_kwargs.get(CACHE)
        if expand_size > 1 and cache is not None:
            cache.batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, **model_kwargs)

    def _suppress_all_but_text(self, kwargs: dict):
        """
        Text has neither image codes nor the special tokens, one of which would even change the row's task: forbid them
        beside what the generation config forbids (TRL's forbids the mask token alone), unless the caller chose
        `suppress_tokens`.
        """
        config = kwargs.get("generation_config") or self.generation_config
        if "suppress_tokens" not in kwargs:
            others = range(self.config.text_vocab_size, self.config.mask_token_id + 1)
            kwargs["suppress_tokens"] = sorted({*others, *(config.suppress_tokens or ())})

    def _fix_tasks(self, inputs: torch.Tensor | None, kwargs: dict):
        """What is written does not change a row's task: it is that of the prompt."""
        input_ids = inputs if kwargs.get("input_ids") is None else kwargs["input_ids"]
        if kwargs.get("task_ids") is None and input_ids is not None and input_ids.ndim == 2:
            kwargs["task_ids"] = self.config.layout.task_ids(input_ids)

    @torch.no_grad()  # transformers' pipelines call it outside of one
    def decode_image_tokens(self, image_tokens: torch.LongTensor) -> torch.FloatTensor:
        """Pixels (batch_size, R, R, 3) in [-1, 1] of image codes (batch_size, N)."""
        return self.model.vq_model.decode(image_tokens).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Image codes (batch_size, N) of `pixel_values` (batch_size, 3, R, R) in [-1, 1]."""
        return self.model.encode_images(pixel_values)


__all__ = ["ImageDecoding", "PromptCache", "PromptState", "UniF2aceGenerationMixin", "merge_prompts"]
