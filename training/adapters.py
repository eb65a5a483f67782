"""
Which weights a fine-tuning changes: LoRA on attention, on the experts of one or both task groups, or everything.

The routed experts of both groups are one fused parameter (see `moe_unif2ace.py`), which PEFT adapts as a whole
(`target_parameters`): expert e has its own factors, rows `e·r .. e·r + r - 1` of A and columns `e, e + E, ...` of B
(E experts, rank r). B starts at zero, so a group whose columns of B get no gradient keeps its weights exactly; that is
how [`restrict_to_tasks`] tunes one group alone. A format of our own that stored only one group would not load in PEFT.
"""

from collections.abc import Sequence

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from ..modeling_unif2ace.configuration_unif2ace import UniF2aceConfig
from ..modeling_unif2ace.layout_unif2ace import TASKS
from ..modeling_unif2ace.peft_unif2ace import shared_expert_modules
from .finetune_settings import PRESETS, LoraPreset


def lora_config(
    config: UniF2aceConfig,
    preset: str | LoraPreset = "attention",
    tasks: Sequence[str] = TASKS,
    rank: int = 16,
    alpha: float | None = None,
) -> LoraConfig:
    """
    PEFT's configuration of a preset.

    Args:
        config (`UniF2aceConfig`): The model's configuration.
        preset (`str` or `LoraPreset`, *optional*, defaults to `"attention"`): One of `PRESETS`, or one of your own.
        tasks (`Sequence[str]`, *optional*): Groups whose experts are adapted, `"t2i"`, `"mmu"` or both.
        rank (`int`, *optional*, defaults to 16): Rank r of each adapted matrix, for experts of each expert.
        alpha (`float`, *optional*): LoRA's alpha; the update is scaled by alpha / r. Twice the rank when not given.

    Returns:
        `peft.LoraConfig`

    Raises:
        ValueError: if the preset or a task is unknown, or experts are asked of a model without.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}, expected one of {', '.join(PRESETS)}, or a LoraPreset")
        preset = PRESETS[preset]
    wrong = [task for task in tasks if task not in TASKS]
    if wrong or not tasks:
        raise ValueError(f"tasks are {list(tasks)}, expected some of {', '.join(TASKS)}")
    if rank < 1:
        raise ValueError(f"rank={rank}, expected at least 1")
    patterns = list(preset.modules)
    if preset.shared_experts or preset.parameters:
        if not config.text_config.moe_layers:
            raise ValueError(f"the preset adapts experts ({preset.about}), but the model has none; use 'attention'")
    if preset.shared_experts:
        patterns.append(shared_expert_modules(list(tasks)))
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,  # PEFT has none for parameters
        target_modules="|".join(f"({pattern})" for pattern in patterns),
        target_parameters=list(preset.parameters) or None,
    )


def restrict_to_tasks(model: nn.Module, tasks: Sequence[str]) -> int:
    """
    Let the routed experts of the groups `tasks` learn and those of the other group stay as they are, by taking the
    latter's gradients away.

    Needed because rows of both tasks may be in the batches; call it on the model with its adapters, before training.

    Args:
        model (`nn.Module`): A model with LoRA on its fused experts (or without: nothing happens).
        tasks (`Sequence[str]`): Groups that learn.

    Returns:
        `int`: Adapted parameters that are restricted.
    """
    if set(tasks) == set(TASKS):
        return 0
    count = 0
    for module in model.modules():
        if not isinstance(module, ParamWrapper):
            continue
        learns = torch.zeros(module.num_experts)
        for task in tasks:
            group = module.num_experts // len(TASKS)
            learns[TASKS.index(task) * group : (TASKS.index(task) + 1) * group] = 1
        for factors, of_expert in ((module.lora_A, _rows_of_experts), (module.lora_B, _columns_of_experts)):
            for factor in factors.values():
                mask = of_expert(factor.weight, learns)
                factor.weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient))
                count += 1
    return count


def _rows_of_experts(weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.repeat_interleave(weight.shape[0] // len(values))[:, None]  # (E·r, 1)


def _columns_of_experts(weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.repeat(weight.shape[1] // len(values))[None]  # (1, r·E)


def changed_weights(model: nn.Module) -> dict[str, float]:
    """
    How much the adapters change each kind of weight: the root mean square of all `B A · alpha / r` of that kind.

    Tells what an adapter really touches: a kind that is absent is not adapted, and 0.0 has learnt nothing.

    Args:
        model (`nn.Module`): A model with LoRA adapters.

    Returns:
        `dict[str, float]`: `"attention"`, `"t2i shared experts"`, `"mmu routed experts"`, ... -> root mean square.
    """
    squares: dict[str, list[float]] = {}

    def note(kind: str, delta: torch.Tensor):
        total = squares.setdefault(kind, [0.0, 0])
        total[0] += delta.detach().float().square().sum().item()
        total[1] += delta.numel()

    for name, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        for adapter in module.lora_A:
            delta = module.get_delta_weight(adapter)
            if isinstance(module, ParamWrapper):
                for task, part in zip(TASKS, delta.chunk(len(TASKS)), strict=True):
                    note(f"{task} routed experts", part)
            elif ".shared_experts." in name:
                note(f"{name.partition('.shared_experts.')[2].partition('.')[0]} shared experts", delta)
            elif ".self_attn." in name:
                note("attention", delta)
            else:
                note("other", delta)
    return {kind: (total / count) ** 0.5 for kind, (total, count) in squares.items()}
