"""How the experts are used: what the balance loss needs to know of a step, and what is logged."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ..modeling_unif2ace.configuration_unif2ace import TASKS, UniF2aceTextConfig


class StepLoad:
    """
    The share of its group's choices that each expert got in an optimizer step, over all micro-batches and processes.

    The balance loss `E·Σ f·P` is not additive over parts of a step: `f` has to be that of the whole step, which is
    known only when the step is over. So it is taken from the step before (even at the first), which makes the loss of
    a step the same however the step is split into micro-batches and processes.

    Args:
        config (`UniF2aceTextConfig`): Says how many layers and experts there are.
        device (`torch.device`): Where the counts are kept.
    """

    def __init__(self, config: UniF2aceTextConfig, device: torch.device):
        shape = (len(TASKS), len(config.moe_layers), config.num_routed_experts)
        self.load = torch.full(shape, 1 / config.num_routed_experts, device=device)
        self.counts = torch.zeros(shape, device=device)

    def add(self, task: int, counts: torch.Tensor) -> None:
        """Note how many tokens of a micro-batch chose each expert of a group, (layers, E)."""
        self.counts[task] += counts.detach()

    def end_step(self, accelerator: Accelerator) -> None:
        """Make what was noted in this step the `load` (tasks, layers, E); a group without tokens keeps its own."""
        counts = accelerator.reduce(self.counts, "sum") if accelerator.num_processes > 1 else self.counts
        total = counts.sum(-1, keepdim=True)
        self.load = torch.where(total > 0, counts / total.clamp(min=1), self.load)
        self.counts = torch.zeros_like(self.load)

    def save(self, path: str | Path) -> None:
        """Write the load to a safetensors file."""
        save_file({task: self.load[i].contiguous().cpu() for i, task in enumerate(TASKS)}, path)

    def restore(self, path: str | Path) -> None:
        """
        Read the load from a file that [`save`] wrote.

        Raises:
            ValueError: if it is for other layers or experts.
        """
        stored = torch.stack([load_file(path)[task] for task in TASKS])
        if stored.shape != self.load.shape:
            raise ValueError(f"{path} holds loads of shape {tuple(stored.shape)}, expected {tuple(self.load.shape)}")
        self.load = stored.to(self.load.device)


def summarize_load(load: torch.Tensor) -> dict[str, float]:
    """
    How evenly a group's experts are used.

    Args:
        load (`torch.Tensor` of shape `(layers, E)`): Shares of the choices, each row adding up to 1.

    Returns:
        `max_load`, the busiest expert's share in units of the even share, mean over layers (1 is even); `entropy`, in
        units of the even load's (1 is even); `dead_experts`, how many, over all layers, nobody chose.
    """
    num_experts = load.shape[-1]
    return {
        "router_max_load": load.amax(-1).mean().item() * num_experts,
        "router_entropy": torch.special.entr(load).sum(-1).mean().item() / math.log(max(num_experts, 2)),
        "dead_experts": float((load == 0).sum().item()),
    }
