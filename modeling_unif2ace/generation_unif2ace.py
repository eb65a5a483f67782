"""
Generation for both modes: text by transformers' `generate` with its caches, images by masked decoding over a cached
prompt.

Text never sees the image, so a prompt's keys and values are the same at every denoising step: they are computed once
(`encode_prompt`) and only read afterwards (`predict_codes`). At each step only the image span runs, with guidance in
one batch, and the head only at masked places. Nothing in a step waits for the device.
"""

import torch
from torch.nn import functional as F
from transformers.generation import GenerationMixin

from .compat_unif2ace import CACHE, DynamicCache, rename_cache
from .configuration_unif2ace import T2I
from .image_decoding_unif2ace import PromptCache, PromptState, SettledCodes, SettledSpan
from .moe_unif2ace import ImageSpan, TaskRows, noise_feature
from .sampling_unif2ace import (
    confidence_temperatures,
    masked_positions,
    maskgit_step,
    num_masked_codes,
    row_generators,
)


class UniF2aceGenerationMixin(GenerationMixin):
    """Text and image generation of [`UniF2aceForConditionalGeneration`]."""

    static_image_shapes = False
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
        text = self.config.text_config
        eos = text.eos_token_id if isinstance(text.eos_token_id, int) else text.eos_token_id[0]
        return torch.tensor([[self.config.special_token_id("<|t2i|>"), text.bos_token_id, eos]], device=device)

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

    def settled_codes(self, refresh_every: int) -> SettledCodes:
        """What `predict_codes` needs to reuse known codes in one loop; every `refresh_every` steps computes all."""
        return SettledCodes(refresh_every)

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
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        caches, masks = [self._encode_text(input_ids, attention_mask)], [attention_mask]
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
            caches.append(cache)
            masks.append(negative_attention_mask)
        length = max(mask.shape[1] for mask in masks)
        if self.static_image_shapes:
            length = max(length, self.config.max_text_length + 1)

        def merge(parts: list[torch.Tensor]) -> torch.Tensor:  # left pad along the tokens, repeat images, stack
            padded = [F.pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts]
            return torch.cat([part.repeat_interleave(num_images_per_prompt, dim=0) for part in padded])

        layers = [
            (merge([cache.layers[index][0] for cache in caches]), merge([cache.layers[index][1] for cache in caches]))
            for index in range(len(caches[0].layers))
        ]
        mask = merge([mask[..., None] for mask in masks])[..., 0]
        return PromptState(
            cache=PromptCache(layers),
            attention_mask=None if not self.static_image_shapes and bool(mask.all()) else mask,
            batch_size=len(input_ids) * num_images_per_prompt,
            guided=guidance,
        )

    def predict_codes(
        self,
        codes: torch.LongTensor,
        prompt: PromptState,
        guidance_scale: float = 1.0,
        positions: torch.LongTensor | None = None,
        settled: SettledCodes | None = None,
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
            settled (`SettledCodes`, *optional*):
                Reuses keys and values of known codes from earlier steps; needs `positions`. Not exact.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, N or K, codebook_size)`, float32.

        Raises:
            ValueError: if guidance is asked for without negative prompts, or `settled` without `positions`.
        """
        guided = guidance_scale != 1.0
        if guided and not prompt.guided:
            raise ValueError(f"guidance_scale={guidance_scale} needs a prompt encoded with guidance=True")
        if settled is not None and positions is None:
            raise ValueError("settled codes need `positions`, the places of the masked ones")
        if not guided:
            prompt = prompt.prompts_only()
        copies = 2 if guided else 1
        hidden_states = self._run_image_span(codes.repeat(copies, 1), prompt, positions, settled)
        if positions is not None:
            index = positions.repeat(copies, 1)[..., None].expand(-1, -1, hidden_states.shape[-1])
            hidden_states = hidden_states.gather(1, index)
        logits = self.code_logits(hidden_states).float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        return logits

    def _run_image_span(
        self,
        codes: torch.LongTensor,
        prompt: PromptState,
        positions: torch.LongTensor | None,
        settled: SettledCodes | None,
    ) -> torch.FloatTensor:
        """The last hidden state at every code, (rows, N, H); with `settled` zeros where nothing was computed."""
        config, (num_rows, num_tokens) = self.config, codes.shape
        device = codes.device
        computed = None if settled is None else settled.begin(num_rows, positions)
        ids = torch.where(codes < 0, config.mask_token_id, codes + config.image_code_offset)
        start = config.max_text_length + 1  # the place of start-of-image
        if computed is None:
            ids = F.pad(ids, (1, 0), value=config.special_token_id("<|soi|>"))
            ids = F.pad(ids, (0, 1), value=config.special_token_id("<|eoi|>"))
            place_in_span = torch.arange(1, num_tokens + 1, device=device).expand(num_rows, -1)
            position_ids = torch.arange(start, start + ids.shape[1], device=device)[None]
        else:
            ids = ids.gather(1, computed)
            place_in_span = torch.arange(ids.shape[1], device=device).expand(num_rows, -1)
            position_ids = start + 1 + computed
        rows = torch.arange(num_rows, device=device)
        task_ids = torch.full_like(rows, T2I)
        fields = {"rows": rows, "positions": place_in_span, "task_ids": task_ids, "only": T2I, "places": computed}
        span = ImageSpan(**fields) if settled is None else SettledSpan(**fields, settled=settled)
        noise_features = noise_feature(codes < 0, config.noise_feature, config.noise_feature_size)
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
            position_ids=position_ids,
            cache=prompt.cache if settled is None else settled.behind(prompt.cache),
            use_cache=False,
            is_causal=False,
            task_rows=TaskRows(task_ids, only=T2I),
            image_span=span,
            span_features=self.model.span_features(ids, span, noise_features=noise_features),
        )
        if computed is None:
            return outputs.last_hidden_state[:, 1:-1]
        hidden_states = outputs.last_hidden_state.new_zeros(num_rows, num_tokens, outputs.last_hidden_state.shape[-1])
        index = computed[..., None].expand(-1, -1, hidden_states.shape[-1])
        return hidden_states.scatter(1, index, outputs.last_hidden_state)

    @torch.no_grad()
    def generate_image_codes(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        negative_input_ids: torch.LongTensor | None = None,
        negative_attention_mask: torch.LongTensor | None = None,
        guidance_scale: float = 4.0,
        num_inference_steps: int = 16,
        num_images_per_prompt: int = 1,
        temperature: float | None = None,
        confidence_temperature: float | None = None,
        masking_schedule: str = "cosine",
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.LongTensor:
        """
        Image codes (batch_size, N) of text-to-image prompts by MaskGIT decoding: draw all masked codes, keep the most
        confident, mask the others again, fewer at each step.

        The arguments are those of `encode_prompt`, `predict_codes` and `maskgit_step`; the two temperatures are those
        of the checkpoint's `generation_config` (`image_temperature`, `image_confidence_temperature`) when it has them,
        else 1. `UniF2acePipeline` offers more: schedulers, callbacks, pictures as output.
        """
        if temperature is None:
            temperature = getattr(self.generation_config, "image_temperature", 1.0)
        if confidence_temperature is None:
            confidence_temperature = getattr(self.generation_config, "image_confidence_temperature", 1.0)
        prompt = self.encode_prompt(
            input_ids,
            attention_mask,
            negative_input_ids,
            negative_attention_mask,
            guidance=guidance_scale != 1.0,
            num_images_per_prompt=num_images_per_prompt,
        )
        num_tokens = self.config.num_image_tokens
        codes = input_ids.new_full((prompt.batch_size, num_tokens), -1)
        generators = row_generators(generator, prompt.batch_size)
        noise_levels = confidence_temperatures("linear", confidence_temperature, num_inference_steps)
        masked, positions = num_tokens, None
        for step, noise_level in enumerate(noise_levels, start=1):
            if not self.static_image_shapes:
                positions = masked_positions(codes, masked)
            logits = self.predict_codes(codes, prompt, guidance_scale, positions)
            # a step reveals at least one code, also where the schedule would keep as many
            masked = min(
                num_masked_codes(masking_schedule, step / num_inference_steps, num_tokens), max(masked - 1, 1)
            )
            codes, _ = maskgit_step(logits, codes, masked, noise_level, generators, temperature, positions)
        return codes

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, generation_mode: str = "text", **kwargs):
        """
        Text (`generation_mode="text"`, everything as in `GenerationMixin.generate`) or image codes (`"image"`, the
        arguments of `generate_image_codes`; `decode_image_tokens` turns codes into pixels).

        Raises:
            ValueError: for another mode.
        """
        if generation_mode == "text":
            self._suppress_image_codes(kwargs)
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

    def _suppress_image_codes(self, kwargs: dict):
        """Text has no image codes: forbid them unless the caller chose `suppress_tokens`."""
        config = kwargs.get("generation_config") or self.generation_config
        if "suppress_tokens" not in kwargs and config.suppress_tokens is None:
            kwargs["suppress_tokens"] = list(range(self.config.image_code_offset, self.config.mask_token_id + 1))

    @torch.no_grad()  # transformers' pipelines call it outside of one
    def decode_image_tokens(self, image_tokens: torch.LongTensor) -> torch.FloatTensor:
        """Pixels (batch_size, R, R, 3) in [-1, 1] of image codes (batch_size, N)."""
        return self.model.vq_model.decode(image_tokens).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Image codes (batch_size, N) of `pixel_values` (batch_size, 3, R, R) in [-1, 1]."""
        return self.model.encode_images(pixel_values)


__all__ = ["PromptCache", "PromptState", "SettledCodes", "UniF2aceGenerationMixin"]
