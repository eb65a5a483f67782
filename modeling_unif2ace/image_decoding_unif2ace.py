"""
What masked image decoding keeps between its steps: the prompt's keys and values, which never change, and, when asked
to, those of image codes that are already settled, which hardly do.
"""

from dataclasses import dataclass

import torch

from .compat_unif2ace import Cache
from .moe_unif2ace import ImageSpan


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


class SettledCodes:
    """
    Keys and values of image codes that are known already, reused instead of computed again: at most steps only the
    codes that were masked at the step before run through the model (ReCAP,
    [arXiv:2505.19089](https://arxiv.org/abs/2505.19089)). Not exact, since what a settled code sees still changes.

    One object serves one decoding loop. It stands in for the prompt's cache in `attention` and for the image's mean
    in the sequence-level experts.

    Args:
        refresh_every (`int`): Every so many steps, and whenever guidance starts or ends, all codes are computed.

    Raises:
        ValueError: if `refresh_every` is less than 1.
    """

    def __init__(self, refresh_every: int):
        if refresh_every < 1:
            raise ValueError(f"refresh_every is {refresh_every}, expected at least 1 (1: nothing is reused)")
        self.refresh_every = refresh_every
        self.age = 0
        self.rows = 0
        self.computed: torch.LongTensor | None = None
        self._masked: torch.LongTensor | None = None
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._states: list[torch.Tensor] = []
        self._next_state = 0

    def begin(self, rows: int, positions: torch.LongTensor) -> torch.LongTensor | None:
        """
        Start a step.

        Args:
            rows (`int`): Rows of this step, with guidance twice the images.
            positions (`torch.LongTensor` of shape `(images, K)`): The codes that are masked now.

        Returns:
            `torch.LongTensor` of shape `(rows, K')`: places in the grid to compute, or `None` for all of them.
        """
        reuse = self.age % self.refresh_every != 0 and rows == self.rows
        # codes revealed by the last step were computed while they were masked: they belong to the work of this one
        self.computed = self._masked.repeat(rows // len(self._masked), 1) if reuse else None
        self.age = self.age + 1 if reuse else 1
        self.rows, self._masked, self._next_state = rows, positions, 0
        if not reuse:
            self._layers, self._states = {}, []
        return self.computed

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int):
        """Keys and values of the whole image span (rows, heads, N + 2, head_dim), after the fresh ones were put in."""
        if self.computed is None:
            self._layers[layer_idx] = (key_states, value_states)
        else:  # start-of-image is the span's place 0
            for stored, fresh in zip(self._layers[layer_idx], (key_states, value_states), strict=True):
                index = (self.computed + 1)[:, None, :, None].expand(-1, fresh.shape[1], -1, fresh.shape[3])
                stored.scatter_(2, index, fresh)
        return self._layers[layer_idx]

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """The image's mean (rows, H) at the next sequence-level layer, from the states (rows, K', H) made there."""
        if self.computed is None:
            self._states.append(states)
        else:
            index = self.computed[..., None].expand(-1, -1, states.shape[-1])
            self._states[self._next_state] = self._states[self._next_state].scatter(1, index, states)
        self._next_state += 1
        return self._states[self._next_state - 1].float().mean(1)

    def behind(self, prompt: PromptCache) -> "SettledPromptCache":
        """A cache for attention: the prompt's keys and values, then those of the whole image span."""
        return SettledPromptCache(prompt.layers, self)


class SettledPromptCache(PromptCache):
    """A prompt's cache that `settled` completes with the codes that are not computed at this step."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], settled: SettledCodes):
        super().__init__(layers)
        self.settled = settled

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        """Keys and values of the prompt and of the whole image span."""
        return super().update(*self.settled.update(key_states, value_states, layer_idx), layer_idx)


@dataclass
class SettledSpan(ImageSpan):
    """An image span of which `settled` remembers the codes that are not in the sequence."""

    settled: SettledCodes | None = None

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """The whole image's mean (R, H), float32."""
        return self.settled.mean(states)


__all__ = ["PromptCache", "PromptState", "SettledCodes"]
