"""
What transformers calls differently in the versions that we run on.

5.24 renamed `past_key_values` to `cache`: in its models, masks and outputs, and in what `generate` hands to `forward`.
Our code says `cache`; what goes to transformers goes by the name that it has there.
"""

import functools
import inspect

from transformers.masking_utils import create_causal_mask


CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""The name of the cache among the arguments and outputs of transformers."""

_NAMES = ("cache", "past_key_values")


def rename_cache(kwargs: dict, name: str = CACHE) -> dict:
    """`kwargs` with the cache, whichever name it has there, under `name`."""
    given = [kwargs.pop(known) for known in _NAMES if known in kwargs]
    if given:
        kwargs[name] = next((cache for cache in given if cache is not None), None)
    return kwargs


def takes_cache(forward):
    """Let `forward(cache=...)` be called by either name, and show the name that `generate` looks for."""

    @functools.wraps(forward)
    def either_name(*args, **kwargs):
        return forward(*args, **rename_cache(kwargs, "cache"))

    signature = inspect.signature(forward)
    parameters = [part.replace(name=CACHE) if part.name == "cache" else part for part in signature.parameters.values()]
    either_name.__signature__ = signature.replace(parameters=parameters)
    return either_name


__all__ = ["CACHE", "rename_cache", "takes_cache"]
