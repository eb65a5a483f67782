"""Checks of arguments that several parts of the pipeline share: each raises one sentence that says how to mend it."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch


def check_texts(name: str, texts: str | Sequence[str], may_be_empty: bool = False):
    """
    `TypeError` or `ValueError` unless `texts` is a text or a list of texts (also a column of `datasets`), none of them
    empty unless that is allowed.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise TypeError(f"{name} is of type {type(texts).__name__}, expected a text or a list of texts")
    items = as_list(texts)
    if not items:
        raise ValueError(f"{name} is an empty list, expected at least one text")
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name} holds a {type(item).__name__}, expected texts only")
        if not item.strip() and not may_be_empty:
            raise ValueError(f"{name} is empty, expected a text with at least one word")


def check_count(name: str, value: int):
    """`TypeError` or `ValueError` unless `value` is a whole number of at least 1, of whatever integer type."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")


def check_generator(generator: Any):
    """`TypeError` unless `generator` is `None`, a `torch.Generator` or a list of them."""
    for item in as_list(generator):
        if item is not None and not isinstance(item, torch.Generator):
            seeded = f", as torch.Generator().manual_seed({item})" if isinstance(item, Integral) else ""
            raise TypeError(f"generator is {item!r}, expected a torch.Generator or a list of them{seeded}")


def check_share(name: str, value: float):
    """`ValueError` unless `value` is a number from 0 to 1."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, expected a number from 0 to 1")


def check_interval(name: str, value: tuple[float, float]):
    """`ValueError` unless `value` is two numbers from 0 to 1, the second the larger one."""
    try:
        start, stop = value
        fits = 0 <= start < stop <= 1
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name} is {value!r}, expected two numbers (start, stop) with 0 <= start < stop <= 1")


def check_size(height: int | None, width: int | None, resolution: int):
    """`ValueError` unless a size that was asked for is the one that the model was trained for."""
    if {height, width} - {None, resolution}:
        raise ValueError(
            f"a picture of {height or resolution} × {width or resolution} was asked for, but this model was trained "
            f"for {resolution} × {resolution} only: leave height and width out, and resize the picture afterwards"
        )


def check_guidance(value: float):
    """`TypeError` or `ValueError` unless `value` is a finite number of at least 0."""
    if not isinstance(value, Real):
        raise TypeError(f"guidance_scale is {value!r}, expected a number")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"guidance_scale is {value}, expected a finite number of at least 0 (1: none)")


def as_list(value: Any) -> list:
    """A list, a tuple or a column of `datasets` as a list, anything else as a list of one."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)) else [value]


__all__ = [
    "as_list",
    "check_count",
    "check_generator",
    "check_guidance",
    "check_interval",
    "check_share",
    "check_size",
    "check_texts",
]
