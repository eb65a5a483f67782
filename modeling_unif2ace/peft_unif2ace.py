"""
What PEFT has to know about UniF²ace: which modules LoRA adapts when nobody names them.

PEFT finds defaults by `config.model_type`. A plain list of names such as `q_proj` would also reach into the CLIP tower
and the resamplers, whose layers have the same names; these patterns reach into the decoder alone.
"""

import re


_PROJECTIONS = r"self_attn\.(q_proj|k_proj|v_proj|dense)"

ATTENTION_MODULES = rf"(.*\.)?language_model\.layers\.\d+\.{_PROJECTIONS}"
"""Attention of every decoder layer: a regular expression for the whole name of a module, as PEFT reads a string."""

# model type -> default `target_modules`; the text model alone has no `language_model` in its names
DEFAULT_MODULES = {"unif2ace": ATTENTION_MODULES, "unif2ace_text": rf"(.*\.)?layers\.\d+\.{_PROJECTIONS}"}


def shared_expert_modules(tasks: list[str] | tuple[str, ...]) -> str:
    """A pattern, as `ATTENTION_MODULES`, for the shared experts of the groups `tasks` (`"t2i"`, `"mmu"`)."""
    groups = "|".join(map(re.escape, tasks))
    return rf"(.*\.)?language_model\.layers\.\d+\.mlp\.shared_experts\.({groups})\.(fc1|fc2)"


def register_peft_defaults():
    """
    Let `get_peft_model(model, LoraConfig())` find the decoder's attention. Without PEFT, or with one that keeps its
    table elsewhere, nothing happens: then `target_modules=ATTENTION_MODULES` must be given.
    """
    from transformers.utils import is_peft_available  # here, so that `--help` can name the patterns at once

    if not is_peft_available():
        return
    try:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    except ImportError:
        return
    for model_type, modules in DEFAULT_MODULES.items():
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(model_type, modules)


__all__ = ["ATTENTION_MODULES", "DEFAULT_MODULES", "register_peft_defaults", "shared_expert_modules"]
