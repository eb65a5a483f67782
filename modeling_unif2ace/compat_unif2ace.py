"""
Every name of a library that is private, or that has changed between the versions we run on. The siblings import them
from here; `tests/test_compat.py` has a test for each, which the canary runs on whatever comes next.

The cache
    transformers 5.24 renamed `past_key_values` to `cache`: in models, masks and outputs, and in what `generate` hands
    to `forward`. Our code says `cache`; what goes to transformers goes by the name that it has there (`CACHE`), and
    callers may use either (`takes_cache`, `rename_cache`). Ends when 5.24 is the lowest version.
`create_causal_mask`
    The one mask builder for all attention implementations, with blocks of tokens that see each other. Three
    signatures in the twelve minors up to 5.24. Ends with a mask builder of our own for four implementations.
`ALL_ATTENTION_FUNCTIONS`
    What `AttentionInterface` registers in; the documentation of attention backends names it, but no import from the
    top. Ends when it is exported.
`GradientCheckpointingLayer`
    Activation checkpointing which drops the cache under the name that it has in that version. Ends with our own
    call of `torch.utils.checkpoint`.
`init` (`transformers.initialization`)
    Fills weights unless a checkpoint did: what the library's own models use in `_init_weights`. Nothing ends it.
`use_experts_implementation`
    Grouped matrix products for fused experts. Ends with our own call of torch's.
`PilBackend`
    An image processor without torchvision. Ends when the library's default needs none.
`SubConfigSpec`
    Parts of a configuration that may be absent. New in 5.20. Ends when an annotation can say it.
`cached_file`
    A repository's shard index, to be looked at before the library follows it; its options begin with underscores.
    Ends when the library refuses an index that reaches out of its folder.
The hooks of `capture_outputs` (`_output_capturing_hooks_installed`)
    Local functions that the first call leaves on the modules, so that no model can be pickled afterwards
    (`drop_capturing_hooks`). Ends when they can be pickled.
`AnyToAnyPipeline`, `Chat`
    One transformers pipeline for texts, pictures and conversations. They stand in `any_to_any_unif2ace.py`, because
    their import is slow. End when the library's own asks for no torchvision.
accelerate's hook on a module (`_hf_hook`) and torch's tables of hooks (`_forward_hooks`, ...)
    Adapters, offloading and hooks act when a module is called. `is_plain` says whether reading its weights is the
    same, `loaded_parameter` reads one that may be offloaded. End when accelerate has a context for it.
PEFT's table of default modules, and its state on a model (`peft_config`, `_hf_peft_config_loaded`)
    In `peft_unif2ace.py`, which lives without the table, and in `adapters_unif2ace.py`. End when PEFT asks a model for
    its defaults, and when transformers' adapter methods can be used on every version.
"""

import functools
import inspect

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import SubConfigSpec
from transformers.image_processing_backends import PilBackend
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import cached_file


CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""The name of the cache among the arguments and outputs of transformers."""

_CACHE_NAMES = ("cache", "past_key_values")


def drop_capturing_hooks(model):
    """Take off the hooks that transformers puts onto a model at its first call, and again at the next one."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", None) == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
        module.__dict__.pop("_output_capturing_hooks_installed", None)


def rename_cache(kwargs: dict, name: str = CACHE) -> dict:
    """`kwargs` with the cache, whichever name it has there, under `name`."""
    given = [kwargs.pop(known) for known in _CACHE_NAMES if known in kwargs]
    if given:
        kwargs[name] = next((cache for cache in given if cache is not None), None)
    return kwargs


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is a `kind` that nobody wrapped, hooked or replaced: its weights are then what it computes."""
    hooked = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and not hooked and not any(weight.is_meta for weight in module.parameters())


def loaded_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of `module`, which is read and not called: offloading would only bring it for a call."""
    parameter, hook = getattr(module, name), getattr(module, "_hf_hook", None)
    if not parameter.is_meta or hook is None:
        return parameter
    hook.pre_forward(module)
    parameter = getattr(module, name).detach().clone()
    hook.post_forward(module, None)
    return parameter


def takes_cache(forward):
    """Let `forward(cache=...)` be called by either name, and show the name that `generate` looks for."""

    @functools.wraps(forward)
    def either_name(*args, **kwargs):
        return forward(*args, **rename_cache(kwargs, "cache"))

    signature = inspect.signature(forward)
    parameters = [part.replace(name=CACHE) if part.name == "cache" else part for part in signature.parameters.values()]
    either_name.__signature__ = signature.replace(parameters=parameters)
    return either_name


__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "CACHE",
    "Cache",
    "DynamicCache",
    "GradientCheckpointingLayer",
    "PilBackend",
    "SubConfigSpec",
    "cached_file",
    "create_causal_mask",
    "drop_capturing_hooks",
    "init",
    "is_plain",
    "loaded_parameter",
    "rename_cache",
    "takes_cache",
    "use_experts_implementation",
]
