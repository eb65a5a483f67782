"""
Dense weights to experts: how the MLP of a pretrained layer fills the grouped experts (`moe_unif2ace.py`).

`"full-shared"` keeps the function: each group's shared expert is the whole pretrained MLP, and the routed experts
start with an output projection of zero, so they add exactly nothing until they have learnt something. Their input
projections are slices of the pretrained one, so that they look at useful features from the first step on.

`"split"` cuts the MLP as the paper words it: the first neurons become the shared expert, the following ones the
routed experts. A token uses only K of the E routed slices, so the function changes; the slices' outputs are multiplied
by K, which undoes the mean of the K gates (they add to one): with K = E and even gates, and no neuron left out, the
split MLP is the dense one again.
"""

from collections.abc import Callable

import torch

from ...modeling_unif2ace.configuration_unif2ace import UniF2aceTextConfig
from ...modeling_unif2ace.layout_unif2ace import TASKS


Make = Callable[[torch.Tensor], torch.Tensor]


def expert_widths(
    method: str, intermediate_size: int, num_routed_experts: int, shared: int | None, routed: int | None
) -> tuple[int, int]:
    """
    Widths of the shared and the routed experts.

    Args:
        method (`str`): `"full-shared"` or `"split"`.
        intermediate_size (`int`): Width of the dense MLP.
        num_routed_experts (`int`): Routed experts of a group.
        shared (`int`, *optional*): Wanted width of the shared expert; with `"split"` what the others leave.
        routed (`int`, *optional*): Wanted width of the routed experts; a sixteenth of the MLP.

    Raises:
        ValueError: if the MLP is too narrow for these slices, or a width is not a multiple of 8.
    """
    routed = routed or max(8, intermediate_size // 16 // 8 * 8)
    if routed % 8:
        raise ValueError(f"the routed experts' width {routed} is not a multiple of 8")
    if method == "full-shared":
        if shared not in (None, intermediate_size):
            raise ValueError(
                f"full-shared upcycling makes the shared expert as wide as the MLP ({intermediate_size}), but "
                f"{shared} was asked for: leave it out, or take split"
            )
        return intermediate_size, routed
    rest = intermediate_size - num_routed_experts * routed
    shared = rest if shared is None else shared
    if not 0 < shared <= rest:
        raise ValueError(
            f"the MLP of width {intermediate_size} cannot be split into a shared expert of {shared} and "
            f"{num_routed_experts} routed experts of {routed}: make them narrower"
        )
    return shared, routed


def upcycle_targets(part: str, config: UniF2aceTextConfig, method: str) -> dict[str, Make]:
    """
    What one tensor of a dense MLP becomes.

    Args:
        part (`str`): `"fc1.weight"` (I, H), `"fc1.bias"` (I,), `"fc2.weight"` (H, I) or `"fc2.bias"` (H,).
        config (`UniF2aceTextConfig`): The configuration with experts.
        method (`str`): `"full-shared"` or `"split"`.

    Returns:
        `dict`: name within the layer's `mlp` to the function that makes that tensor.
    """
    shared_width, routed_width = config.shared_expert_intermediate_size, config.routed_expert_intermediate_size
    num_experts, split = config.num_routed_experts, method == "split"

    def neurons(total: int) -> torch.Tensor:
        """Which neurons each routed expert gets, (E, W): one slice after the other, and round again at the end."""
        first = shared_width if split else 0
        return (first + torch.arange(num_experts * routed_width).reshape(num_experts, routed_width)) % total

    def both_groups(slices: torch.Tensor) -> torch.Tensor:
        return torch.cat([slices] * len(TASKS))

    def up(tensor: torch.Tensor) -> torch.Tensor:
        return both_groups(tensor[neurons(len(tensor))])

    def down(weight: torch.Tensor) -> torch.Tensor:
        if not split:
            return weight.new_zeros(len(TASKS) * num_experts, len(weight), routed_width)
        slices = weight[:, neurons(weight.shape[1])].transpose(0, 1)  # (E, H, W)
        return both_groups(slices * config.num_experts_per_tok)

    def no_bias(bias: torch.Tensor) -> torch.Tensor:
        return bias.new_zeros(len(TASKS) * num_experts, len(bias))

    def shared(tensor: torch.Tensor) -> torch.Tensor:
        if part == "fc2.bias":
            return tensor.clone()
        return (tensor[:, :shared_width] if part == "fc2.weight" else tensor[:shared_width]).clone()

    routed_name, make = {
        "fc1.weight": ("experts.up_proj", up),
        "fc1.bias": ("experts.up_proj_bias", up),
        "fc2.weight": ("experts.down_proj", down),
        "fc2.bias": ("experts.down_proj_bias", no_bias),
    }[part]
    return {f"shared_experts.{task}.{part}": shared for task in TASKS} | {routed_name: make}
