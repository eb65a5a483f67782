"""
Slices: the same measure for different groups of people, so that an average cannot hide whom a model serves worse.

The groups are those of what a picture *shows* (apparent skin tone, apparent age, gender presentation), as labelled;
they say nothing about who a person is.
"""

from collections.abc import Mapping, Sequence

import numpy as np


SLICED_BY = ("skin", "age", "gender")


def slices_by(attributes: Sequence[Mapping[str, str]], names: Sequence[str] = SLICED_BY) -> dict[str, np.ndarray]:
    """
    Groups of pictures by the values of attributes.

    Args:
        attributes (`list[dict[str, str]]`): Attributes of each picture; unknown ones are missing.
        names (`list[str]`, *optional*, defaults to skin tone, age and gender): By which to group.

    Returns:
        `dict[str, np.ndarray]`: `"skin=tan"` and so on -> `(count,)` bool, in the order of names and values; values
        that no picture has are left out.
    """
    groups = {}
    for name in names:
        values = [of_picture.get(name) for of_picture in attributes]
        for value in sorted({value for value in values if value is not None}):
            groups[f"{name}={value}"] = np.array([found == value for found in values])
    return groups


__all__ = ["SLICED_BY", "slices_by"]
