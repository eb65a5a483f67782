"""
Attention in Phi's arithmetic, which is Show-o's: biases everywhere, LayerNorm on queries and keys, rotary positions on
the first part of each head. Bit for bit what transformers' Phi computes (`tests/test_attention.py`).

Shape letters: B rows, S tokens, N heads, D width of a head.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ROPE_INIT_FUNCTIONS

from .compat_unif2ace import ALL_ATTENTION_FUNCTIONS, Cache
from .configuration_unif2ace import UniF2aceTextConfig


class UniF2aceRotaryEmbedding(nn.Module):
    """
    Cosines and sines (B, S, rotated width) of rotary positions (B, S).

    `rope_parameters["rope_type"]` may be any that transformers knows. Those that depend on the length of the sequence
    are computed for each call, so that a call leaves nothing behind.
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        self.config = config
        frequencies, self.attention_scaling = self.frequencies()
        self.inv_freq = nn.Buffer(frequencies, persistent=False)

    def frequencies(self, device: torch.device | None = None, length: int | None = None) -> tuple[torch.Tensor, float]:
        """What positions are multiplied with, and the factor of cosines and sines, for a sequence of `length`."""
        parameters = self.config.rope_parameters
        if parameters["rope_type"] != "default":
            return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](self.config, device, seq_len=length)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        width = int(head_dim * parameters["partial_rotary_factor"])
        exponent = torch.arange(0, width, 2, dtype=torch.float) / width
        return (1.0 / parameters["rope_theta"] ** exponent).to(device), 1.0

    def forward(self, states: torch.Tensor, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies, scaling = self.inv_freq, self.attention_scaling
        if self.config.rope_parameters["rope_type"] in ("dynamic", "longrope"):
            frequencies, scaling = self.frequencies(states.device, int(position_ids.max()) + 1)
        angles = position_ids[..., None].float() * frequencies.to(states.device, torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(states.dtype), (angles.sin() * scaling).to(states.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`states` (B, N, S, D) with their first entries turned, as many as `cos` and `sin` (B, 1, S, ...) have."""
    turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cos + torch.cat((-second, first), dim=-1) * sin, rest), dim=-1)


def eager_attention(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Attention written out, the only implementation that returns its weights: (B, S, N, D) and (B, N, S, S')."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(weights.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class UniF2aceAttention(nn.Module):
    """
    Attention of one block; how it is computed (`"sdpa"`, `"eager"`, flash or flex attention, or one that the user
    registered with [`~transformers.AttentionInterface`]) is `config._attn_implementation`.
    """

    is_causal = True  # of a call that says nothing else; attention implementations read it

    def __init__(self, config: UniF2aceTextConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.dense = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size)
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
            self.k_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_layernorm:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        cos, sin = (part[:, None] for part in position_embeddings)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.dense(attended.flatten(2).contiguous()), weights


__all__ = ["UniF2aceAttention", "UniF2aceRotaryEmbedding", "eager_attention", "rotate"]
