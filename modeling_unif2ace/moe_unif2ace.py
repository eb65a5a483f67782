"""
The two levels of grouped experts (paper section 3.3).

Shape letters: B rows of the batch, S tokens, R rows that hold an image, N image codes, H width, E experts of one
group, K experts in use.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .compat_unif2ace import loaded_parameter, use_experts_implementation
from .configuration_unif2ace import UniF2aceConfig, UniF2aceTextConfig
from .layout_unif2ace import MMU, T2I, TASKS, ImageSpan, TaskRows


HASH_STEPS = 1024  # few enough bits for any accelerator's float32
SEQUENCE_ROUTINGS = ("straight_through", "top_k")


class UniF2aceTopKRouter(nn.Module):
    """
    Chooses `num_experts_per_tok` routed experts for each token by softmax, in float32.

    Returns the logits (B, S, E), the chosen experts' weights (B, S, K) and their indices (B, S, K).
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_routed_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(hidden_states.device.type, enabled=False):  # which would make it bfloat16 again
            router_logits = F.linear(hidden_states.float(), self.weight.float())  # (B, S, E)
        top_k_weights, top_k_index = router_logits.softmax(-1).topk(self.top_k, dim=-1)  # (B, S, K)
        if self.norm_topk_prob:
            top_k_weights = top_k_weights / top_k_weights.sum(-1, keepdim=True)
        return router_logits, top_k_weights.to(hidden_states.dtype), top_k_index


@use_experts_implementation(has_gate=False, has_bias=True)
class UniF2aceExperts(nn.Module):
    """
    The routed experts of both groups, fused: expert `task * num_routed_experts + i` is expert i of the task's group.

    One parameter for both groups keeps every weight in the graph of every step (DDP, FSDP) and lets rows of both
    tasks share one dispatch. `forward` is the "eager" implementation; `config._experts_implementation` picks others.
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        self.num_experts = len(TASKS) * config.num_routed_experts
        hidden_size, width = config.hidden_size, config.routed_expert_intermediate_size
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, width, hidden_size))
        self.up_proj_bias = nn.Parameter(torch.empty(self.num_experts, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden_size, width))
        self.down_proj_bias = nn.Parameter(torch.empty(self.num_experts, hidden_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden_states)  # (B * S, H)
        for expert in range(self.num_experts):
            tokens, slots = (top_k_index == expert).nonzero(as_tuple=True)
            if tokens.numel() == 0:
                continue
            inner = self.act_fn(F.linear(hidden_states[tokens], self.up_proj[expert], self.up_proj_bias[expert]))
            outer = F.linear(inner, self.down_proj[expert], self.down_proj_bias[expert])
            # in place: a copy of all tokens for each expert would cost as much as the experts
            output.index_add_(0, tokens, (outer * top_k_weights[tokens, slots, None]).to(output.dtype))
        return output


class UniF2aceMLP(nn.Module):
    """The shared experts, and the dense MLP of layers without experts."""

    def __init__(self, config: UniF2aceTextConfig, intermediate_size: int):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class UniF2aceGroupedMoE(nn.Module):
    """
    Grouped token-level mixture of experts: the shared expert of the row's group plus `num_experts_per_tok` of its
    routed experts, weighted (paper section 3.3; 1 shared and 8 routed experts a group as its figure draws).

    Returns the states (B, S, H), and the logits (rows of the task, S, E) of the routers that ran by their names
    `t2i_router_logits` and `mmu_router_logits`.
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        self.num_routed_experts = config.num_routed_experts
        self.shared_experts = nn.ModuleDict(
            {task: UniF2aceMLP(config, config.shared_expert_intermediate_size) for task in TASKS}
        )
        self.t2i_router = UniF2aceTopKRouter(config)
        self.mmu_router = UniF2aceTopKRouter(config)
        self.experts = UniF2aceExperts(config)

    def forward(
        self, hidden_states: torch.Tensor, task_rows: TaskRows
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        shared, weights, index, logits = {}, {}, {}, {}
        for task, (name, router) in enumerate((("t2i", self.t2i_router), ("mmu", self.mmu_router))):
            if not task_rows.runs(task):
                continue
            rows = task_rows.select(hidden_states, task)
            shared[task] = self.shared_experts[name](rows)
            logits[f"{name}_router_logits"], weights[task], group_index = router(rows)
            index[task] = group_index + task * self.num_routed_experts
        routed = self.experts(
            hidden_states.flatten(0, 1),
            task_rows.merge(index).flatten(0, 1),
            task_rows.merge(weights).flatten(0, 1),
        )
        output = task_rows.merge(shared) + routed.view_as(hidden_states)
        if task_rows.only is not None and len(shared) == len(TASKS):
            # the other task's modules saw no rows; keep them in the graph with zero gradients
            absent = 1 - task_rows.only
            output = output + shared[absent].sum() + weights[absent].sum()
        return output, logits


@dataclass
class SpanFeature:
    """
    A feature sequence for some of the rows that hold an image.

    Args:
        states (`torch.FloatTensor` of shape `(rows with this feature, N, H)`): The resampled feature.
        index (`torch.LongTensor`): Their places among the R rows of the `ImageSpan`.
    """

    states: torch.FloatTensor
    index: torch.LongTensor


@dataclass
class FeatureInputs:
    """
    What a feature may be computed from.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, S)`): The sequences, codes and mask tokens in place.
        span ([`ImageSpan`]): Where the images are.
        rows (`torch.LongTensor`): Which of the R rows of the span get the feature.
        pixel_values (`torch.FloatTensor` of shape `(images, 3, resolution, resolution)`, *optional*): The pictures.
        face_pixel_values (`torch.FloatTensor` of shape `(images, 3, size, size)`, *optional*): Their aligned faces.
    """

    input_ids: torch.LongTensor
    span: ImageSpan
    rows: torch.LongTensor
    pixel_values: torch.FloatTensor | None = None
    face_pixel_values: torch.FloatTensor | None = None


@dataclass(frozen=True)
class Feature:
    """
    What a kind of sequence-level expert mixes in.

    Args:
        task (`int`): Whose rows get it; `SEQUENCE_EXPERTS` of the configuration names it for the same task.
        size (`Callable[[UniF2aceConfig], int]`): Length of a feature vector.
        encode (`Callable[[UniF2aceModel, FeatureInputs], torch.Tensor | None]`):
            The feature, (rows, size) or (rows, L, size); `None` where there is nothing to compute it from, as without
            an encoder: the experts are then left out of the routing. `forward` also takes it ready-made, as
            `<kind>_features`.
    """

    task: int
    size: Callable[[UniF2aceConfig], int]
    encode: Callable[[nn.Module, FeatureInputs], torch.Tensor | None]


def _noise(model: nn.Module, inputs: FeatureInputs) -> torch.Tensor:
    config, rows, span = model.config, inputs.rows, inputs.span
    ids = inputs.input_ids[span.rows[rows][:, None], span.positions[rows, : config.num_image_tokens]]
    return noise_feature(ids == config.mask_token_id, config.noise_feature, config.noise_feature_size)


def _clip(model: nn.Module, inputs: FeatureInputs) -> torch.Tensor | None:
    return None if inputs.pixel_values is None else model.encode_clip(inputs.pixel_values)


def _face(model: nn.Module, inputs: FeatureInputs) -> torch.Tensor | None:
    return None if inputs.pixel_values is None else model.encode_face(inputs.pixel_values, inputs.face_pixel_values)


FEATURES = {
    "noise": Feature(T2I, lambda config: config.noise_feature_size, _noise),
    "clip": Feature(MMU, lambda config: config.clip_feature_size, _clip),
    "face": Feature(MMU, lambda config: config.face_feature_size, _face),
}
"""The features by the kind of expert that mixes them in. A new one is one entry, and its name in the configuration."""


class UniF2aceSequenceRouter(nn.Module):
    """
    One decision per image span and layer: logits (R, E) of the span's group, from the span's mean, in float32.
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        num_experts = len(config.t2i_sequence_experts)
        self.weight = nn.Parameter(torch.empty(len(TASKS), num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(len(TASKS), num_experts))

    def forward(self, pooled: torch.Tensor, task_ids: torch.LongTensor) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):  # which would make it bfloat16 again
            logits = torch.einsum("rh,teh->rte", pooled, self.weight.float()) + self.bias.float()  # (R, tasks, E)
        return logits[torch.arange(len(task_ids), device=logits.device), task_ids]


class UniF2aceSequenceMoE(nn.Module):
    """
    Grouped sequence-level mixture of experts on the image span (paper section 3.3): the weighted sum of the
    `num_experts_per_sequence` best of the group's experts, weights renormalised, no outer residual.

    `copy` is x, `zero` is 0, `noise`, `clip` and `face` are `w·x + (1 − w)·S(feature)` with `w` from a softmax of two
    learnt logits of the span's mean. Copy + copy is therefore exactly the identity. The paper does not say where the
    residual is nor what pooling the router uses; `docs/paper-to-code.md` lists these choices.

    Top-k with renormalised gates gives no gradient to an expert that is not chosen and none at all to copy + copy: a
    dead expert would stay dead. So in training the gradient sees what the whole softmax would have mixed, while the
    forward pass stays sparse. Two attributes, which the trainer sets, say how:

    - `routing`: `"straight_through"` (the default) as said, or `"top_k"`, the plain gradient;
    - `density`: in training the forward pass itself mixes `density` of the whole softmax in, 0 to 1; 0 by default.
    """

    def __init__(self, config: UniF2aceTextConfig):
        super().__init__()
        self.top_k = config.num_experts_per_sequence
        self.copy_bias = config.sequence_router_copy_bias
        self.routing, self.density = "straight_through", 0.0
        self.kinds = ["copy", "zero", *FEATURES]
        self.expert_names = [config.sequence_experts(task) for task in TASKS]
        self.feature_kinds = [kind for kind in FEATURES if any(kind in names for names in self.expert_names)]
        self.router = UniF2aceSequenceRouter(config)
        self.mixing = nn.ParameterDict(
            {kind: nn.Parameter(torch.empty(2, config.hidden_size)) for kind in self.feature_kinds}
        )
        # (tasks, E, kinds): 1 where expert e of the task's group is of that kind
        self.kind_of_expert = nn.Buffer(self.kind_table(), persistent=False)

    def kind_table(self) -> torch.Tensor:
        """One-hot kind of each expert of each group, (tasks, E, kinds)."""
        table = torch.zeros(len(TASKS), len(self.expert_names[0]), len(self.kinds))
        for task, names in enumerate(self.expert_names):
            for expert, name in enumerate(names):
                table[task, expert, self.kinds.index(name)] = 1.0
        return table

    def forward(
        self,
        hidden_states: torch.Tensor,
        span: ImageSpan,
        features: dict[str, SpanFeature],
        router_noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, S, H) with the spans' replaced, and the router's logits (R, E) without `router_noise`."""
        states = span.gather(hidden_states)  # (R, N, H)
        pooled = span.mean(states)  # (R, H)
        logits = router_logits = self.router(pooled, span.task_ids)  # (R, E)
        if router_noise is not None:
            logits = logits + router_noise[span.rows]
        kind_of_expert = self.kind_of_expert.to(logits.dtype)[span.task_ids]  # (R, E, kinds)
        absent = [self.kinds.index(kind) for kind in self.feature_kinds if kind not in features]
        if absent:
            logits = logits.masked_fill(kind_of_expert[:, :, absent].any(-1), -torch.inf)
        probabilities = logits.softmax(-1)  # (R, E)
        gates, chosen = probabilities.topk(self.top_k, dim=-1)  # (R, K)
        gates = gates / gates.sum(-1, keepdim=True)
        gates = torch.zeros_like(logits).scatter(-1, chosen, gates)  # (R, E)
        learning = self.training and torch.is_grad_enabled()
        if learning and self.density > 0:
            gates = gates.lerp(probabilities, self.density)
        keep, amounts = self.amounts(gates, pooled, kind_of_expert, features)
        dense_amounts = {}
        if learning and self.routing == "straight_through":
            dense_keep, dense_amounts = self.amounts(probabilities, pooled, kind_of_expert, features)
            keep = _straight_through(keep, dense_keep)

        output = states * keep[:, None, None].to(states.dtype)
        for kind, amount in amounts.items():
            index, feature = features[kind].index, features[kind].states.to(states.dtype)
            amount = amount[index][:, None, None]
            if kind in dense_amounts:
                dense = dense_amounts[kind][index][:, None, None]
                reach = torch.maximum(amount, dense).detach()  # a feature that is not used learns as well
                fixed = feature.detach()
                added = _straight_through(amount, dense).to(states.dtype) * fixed
                added = added + reach.to(states.dtype) * (feature - fixed)
            else:
                added = amount.to(states.dtype) * feature
            output = output.index_add(0, index, added)
        return span.scatter(hidden_states, output), router_logits

    def amounts(
        self,
        gates: torch.Tensor,
        pooled: torch.Tensor,
        kind_of_expert: torch.Tensor,
        features: dict[str, SpanFeature],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """How much of x (R,) and of each feature (R,) is in the sum that experts weighted by `gates` (R, E) make."""
        kind_gates = torch.einsum("re,rek->rk", gates, kind_of_expert)  # (R, kinds)
        keep, amounts = kind_gates[:, self.kinds.index("copy")], {}
        for kind in self.feature_kinds:
            if kind in features:
                gate = kind_gates[:, self.kinds.index(kind)]
                share = F.linear(pooled, loaded_parameter(self.mixing, kind).float()).softmax(
                    -1
                )  # (R, 2): of x, of the feature
                keep = keep + gate * share[:, 0]
                amounts[kind] = gate * share[:, 1]
        return keep, amounts


def _straight_through(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, exactly, with the gradient of `like`."""
    return value.detach() + (like - like.detach())


class UniF2aceResamplerBlock(nn.Module):
    """
    Queries read the features by cross-attention, then pass an MLP; both with a residual. `positions`, one for each
    feature, are added to the keys.
    """

    def __init__(self, config: UniF2aceConfig):
        super().__init__()
        width = config.resampler_hidden_size
        self.query_layernorm = nn.LayerNorm(width)
        self.feature_layernorm = nn.LayerNorm(width)
        self.num_heads = config.resampler_num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.mlp_layernorm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.resampler_intermediate_size)
        self.fc2 = nn.Linear(config.resampler_intermediate_size, width)

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, positions: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        features = self.feature_layernorm(features)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (
                self.q_proj(self.query_layernorm(queries)),
                self.k_proj(features + positions),
                self.v_proj(features),
            )
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        queries = queries + self.out_proj(attended)
        return queries + self.fc2(F.gelu(self.fc1(self.mlp_layernorm(queries))))


class UniF2aceResampler(nn.Module):
    """
    Perceiver resampler S: turns a feature sequence (B, L, feature_size) into one state per place of the image span
    (B, num_tokens, H).

    One per modality, shared by all layers: one in every layer would outweigh the model. The paper only says that S
    maps external features into the sequence's space; the Perceiver is the form used with AntelopeV2 elsewhere
    (InstantID). Queries do not attend to each other here: the backbone's attention does that.

    Features that form a square grid (CLIP's patches) get 2-D sinusoidal positions on their keys, and the queries start
    as the positions of the image codes, with equal query and key projections: each code begins by reading the patches
    at its own place (positions in cross-attention as in Qwen-VL). Queries that begin alike all read the mean of the
    patches, and have been seen to stay there: a constant, whatever the picture.
    """

    def __init__(self, config: UniF2aceConfig, feature_size: int, num_tokens: int | None = None):
        super().__init__()
        width = config.resampler_hidden_size
        self.queries = nn.Parameter(torch.empty(num_tokens or config.num_image_tokens, width))
        self.in_proj = nn.Linear(feature_size, width)
        self.blocks = nn.ModuleList([UniF2aceResamplerBlock(config) for _ in range(config.resampler_depth)])
        self.out_layernorm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.in_proj(features.to(self.in_proj.weight.dtype))
        side = math.isqrt(features.shape[1])
        positions = 0.0
        if side > 1 and side * side == features.shape[1]:
            positions = grid_positions(side, features.shape[2], features.device).to(features.dtype)
        states = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            states = block(states, features, positions)
        return self.out_proj(self.out_layernorm(states))


def sinusoidal_embedding(
    values: torch.Tensor, size: int, scale: float = 1000.0, longest: float = 10_000.0
) -> torch.Tensor:
    """
    Sinusoidal embedding (B, size) of `values` (B,) in [0, 1], as diffusion models embed the time step.

    The values are spread to 0 … `scale` first; the defaults are the range of time steps and its usual frequencies,
    from 1 down to 1/`longest`.
    """
    half = size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = scale * values.float()[:, None] * longest**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def noise_feature(masked: torch.BoolTensor, kind: str, size: int) -> torch.FloatTensor:
    """
    What the noise expert is told (R, size) of pictures whose codes `masked` (R, N) are not known yet.

    Args:
        masked (`torch.BoolTensor` of shape `(R, N)`): True where a code is masked.
        kind (`str`):
            `"mask_ratio"`, the sinusoidal embedding of their share; `"gaussian"`, a standard normal vector, as in
            MoE++; `"mask_ratio_gaussian"`, half of the entries each. The normal vector is hashed from the mask:
            another one for another mask, and exactly the same for the same mask in any batch: seeds are enough.
        size (`int`): Length of the feature.
    """
    ratio_size = {"mask_ratio": size, "gaussian": 0, "mask_ratio_gaussian": size // 4 * 2}[kind]
    parts = []
    if ratio_size:
        parts.append(sinusoidal_embedding(masked.float().mean(-1), ratio_size))
    if ratio_size < size:
        table = _hash_table(masked.shape[1] + 1, 2 * (size - ratio_size)).to(masked.device)
        with torch.autocast(masked.device.type, enabled=False):  # sums of small whole numbers, exact in any order
            uniform = (masked.float() @ table[1:] + table[0]) % HASH_STEPS / HASH_STEPS
        first, second = uniform.chunk(2, dim=-1)  # in [0, 1)
        parts.append((-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos())  # Box and Muller
    return torch.cat(parts, dim=-1)


@lru_cache(maxsize=8)
def _hash_table(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(HASH_STEPS, (rows, columns), generator=torch.Generator().manual_seed(0)).float()


def grid_positions(side: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Sinusoidal embedding (side², size) of the places of a square grid in raster order, with unit variance.

    Places are measured in sides of the picture, so those of grids of different sizes fit each other. Half of the
    entries tell the row, half the column.
    """
    centres = (torch.arange(side, device=device) + 0.5) / side
    along = sinusoidal_embedding(centres, size // 2, scale=16.0, longest=16.0)  # waves of 0.4 to 6 picture sides
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return 2**0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)


__all__ = [
    "FEATURES",
    "Feature",
    "FeatureInputs",
    "SpanFeature",
    "UniF2aceExperts",
    "UniF2aceGroupedMoE",
    "UniF2aceMLP",
    "UniF2aceResampler",
    "UniF2aceSequenceMoE",
    "UniF2aceSequenceRouter",
    "UniF2aceTopKRouter",
    "grid_positions",
    "noise_feature",
    "sinusoidal_embedding",
]
