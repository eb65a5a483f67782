"""
Generation for both modes: text by transformers' `generate` with its caches, images by masked decoding over a cached
prompt.

Text never sees the image, so a prompt's keys and values are the same at every denoising step: they are computed once
(`encode_prompt`) and only read afterwards (`predict_codes`), and only the image span runs at each step.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin

from .configuration_unif2ace import T2I
from .moe_unif2ace import ImageSpan, TaskRows
from .sampling_unif2ace import confidence_temperatures, maskgit_step, num_masked_codes, row_generators


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


class UniF2aceGenerationMixin(GenerationMixin):
    """Text and image generation of [`UniF2aceForConditionalGeneration`]."""

    def prepare_inputs_for_generation(
        self,
        input_ids,
        pixel_values=None,
        clip_features=None,
        face_features=None,
        is_first_iteration=False,
        **kwargs,
    ):
        """The picture enters once: afterwards it is in the cache."""
        kwargs.pop("mm_token_type_ids", None)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(pixel_values=pixel_values, clip_features=clip_features, face_features=face_features)
            # a static cache's ready-made causal mask knows nothing of the image span; forward makes the right one
            inputs["attention_mask"] = kwargs.get("attention_mask")
        return inputs

    def _encode_text(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> PromptCache:
        cache = DynamicCache(config=self.config.text_config)
        self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            task_ids=input_ids.new_full((len(input_ids),), T2I),
        )
        return PromptCache.from_cache(cache)

    def unconditional_prompt(self, device: torch.device | None = None) -> torch.LongTensor:
        """The empty prompt `<|t2i|> bos eos`, (1, 3): what guidance moves away from."""
        text = self.config.text_config
        eos = text.eos_token_id if isinstance(text.eos_token_id, int) else text.eos_token_id[0]
        return torch.tensor([[self.config.special_token_id("<|t2i|>"), text.bos_token_id, eos]], device=device)

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
                negative_input_ids = self.unconditional_prompt(input_ids.device)
            if negative_attention_mask is None:
                negative_attention_mask = torch.ones_like(negative_input_ids)
            cache, copies = self._encode_text(negative_input_ids, negative_attention_mask), len(input_ids)
            if len(negative_input_ids) == 1:
                cache = cache.map(lambda states: states.expand(copies, -1, -1, -1))
                negative_attention_mask = negative_attention_mask.expand(copies, -1)
            caches.append(cache)
            masks.append(negative_attention_mask)
        length = max(mask.shape[1] for mask in masks)

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
            attention_mask=None if bool(mask.all()) else mask,
            batch_size=len(input_ids) * num_images_per_prompt,
            guided=guidance,
        )

    def predict_codes(
        self, codes: torch.LongTensor, prompt: PromptState, guidance_scale: float = 1.0
    ) -> torch.FloatTensor:
        """
        Logits of every image code: one denoising step's forward pass over the image span.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, N)`): Codes in [0, codebook_size), -1 where masked.
            prompt (`PromptState`): From `encode_prompt`.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                `uncond + guidance_scale · (cond − uncond)`; 1 is no guidance. Show-o's scale is this minus one.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, N, codebook_size)`, float32.
        """
        guided = guidance_scale != 1.0
        if guided and not prompt.guided:
            raise ValueError(f"guidance_scale={guidance_scale} needs a prompt encoded with guidance=True")
        if not guided:
            prompt = prompt.prompts_only()
        config, num_tokens = self.config, codes.shape[1]
        ids = torch.where(codes < 0, config.mask_token_id, codes + config.image_code_offset)
        ids = F.pad(ids, (1, 0), value=config.special_token_id("<|soi|>"))
        ids = F.pad(ids, (0, 1), value=config.special_token_id("<|eoi|>"))
        if guided:
            ids = torch.cat([ids, ids])
        rows = torch.arange(len(ids), device=ids.device)
        task_ids = torch.full_like(rows, T2I)
        positions = torch.arange(1, num_tokens + 1, device=ids.device).expand(len(ids), -1)
        span = ImageSpan(rows=rows, positions=positions, task_ids=task_ids)
        mask = None
        if prompt.attention_mask is not None:  # all see the prompt's real tokens and the whole span
            seen = F.pad(prompt.attention_mask, (0, ids.shape[1]), value=1)[:, None, None]
            dtype = self.model.language_model.dtype
            mask = torch.zeros(seen.shape, dtype=dtype, device=ids.device)
            mask = mask.masked_fill(seen == 0, torch.finfo(dtype).min).expand(-1, -1, ids.shape[1], -1)
        start = config.max_text_length + 1
        outputs = self.model.language_model(
            inputs_embeds=self.model.embed(ids, span),
            attention_mask=mask,
            prepared_mask=True,
            position_ids=torch.arange(start, start + ids.shape[1], device=ids.device)[None],
            past_key_values=prompt.cache,
            use_cache=False,
            is_causal=False,
            task_rows=TaskRows(task_ids, only=T2I),
            image_span=span,
            span_features=self.model.span_features(ids, span),
        )
        logits = self.code_logits(outputs.last_hidden_state[:, 1:-1]).float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        return logits

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
        temperature: float = 1.0,
        confidence_temperature: float = 1.0,
        masking_schedule: str = "cosine",
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.LongTensor:
        """
        Image codes (batch_size, N) of text-to-image prompts by MaskGIT decoding: draw all masked codes, keep the most
        confident, mask the others again, fewer at each step.

        The arguments are those of `encode_prompt`, `predict_codes` and `maskgit_step`. `UniF2acePipeline` offers
        more: schedulers, callbacks, pictures as output.
        """
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
        for step, noise_level in enumerate(noise_levels, start=1):
            codes, _ = maskgit_step(
                self.predict_codes(codes, prompt, guidance_scale),
                codes,
                num_masked_codes(masking_schedule, step / num_inference_steps, num_tokens),
                noise_level,
                generators,
                temperature,
            )
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
            return super().generate(inputs=inputs, **kwargs)
        if generation_mode != "image":
            raise ValueError(f"generation_mode={generation_mode!r}, expected 'text' or 'image'")
        input_ids = kwargs.pop("input_ids", None)
        kwargs.pop("mm_token_type_ids", None)
        return self.generate_image_codes(inputs if input_ids is None else input_ids, **kwargs)

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


__all__ = ["PromptCache", "PromptState", "UniF2aceGenerationMixin"]
