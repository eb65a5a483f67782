"""
Uncertainty of measured numbers: every measure is a function of how often each picture counts.

A *statistic* takes weights `(samples, count)`, one row for each resampled set of pictures and one column for each
picture, and gives a value for each row. So one definition serves for the value itself (all weights 1), its bootstrap
interval (Efron and Tibshirani, 1993), the paired comparison of two runs (row k draws the same pictures in both) and a
slice (weights 0 outside of it): the same measure by group of people, so that an average cannot hide whom a model
serves worse.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


BOOTSTRAP_SAMPLES = 1_000
_KEPT_DIGITS = 6  # significant digits of the values of resampled sets, which go into files

Statistic = Callable[[np.ndarray], np.ndarray]


def lift(accuracy: float, majority: float, ceiling: float = 1.0) -> float:
    """
    How much of the way from the commonest answer to the best possible one was made.

    Args:
        accuracy (`float`): The accuracy to judge.
        majority (`float`): Accuracy of always giving the commonest answer.
        ceiling (`float`, *optional*, defaults to 1.0): The best accuracy that can be measured (the judge's own).

    Returns:
        `float`: (accuracy - majority) / (ceiling - majority): 0 for the commonest answer, 1 at the ceiling.

    Raises:
        ValueError: if `ceiling` is not above `majority`.
    """
    if ceiling <= majority:
        raise ValueError(f"ceiling={ceiling} is not above majority={majority}, so there is nothing to measure between")
    return (accuracy - majority) / (ceiling - majority)


def bootstrap_weights(count: int, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of `count` pictures is drawn in each sample, `(samples, count)` int64; a row sums to `count`."""
    if count < 1:
        raise ValueError(f"count={count}, expected at least one picture")
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)


def with_interval(statistic: Statistic, count: int, seed: int = 0) -> dict:
    """
    A statistic of pictures with its 95 % bootstrap interval.

    Args:
        statistic (`Callable`): From weights `(samples, count)` to values `(samples,)`; NaN where undefined.
        count (`int`): Number of pictures.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Returns:
        `dict`: `value` (all pictures once), `low`, `high`, and `replicates`, the values of the resampled sets, by
        which [`paired_difference`] compares two runs.
    """
    value = float(statistic(np.ones((1, count)))[0])
    replicates = np.asarray(statistic(bootstrap_weights(count, seed=seed)), dtype=float)
    low, high = np.nanpercentile(replicates, (2.5, 97.5))
    return {"value": value, "low": float(low), "high": float(high), "replicates": replicates.tolist()}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Statistic:
    """The statistic "sum of one number of each picture over the sum of another"."""
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ below
        return np.divide(weights @ above, total, out=np.full(len(weights), np.nan), where=total > 0)

    return statistic


def mean(values: Sequence[float]) -> Statistic:
    """The statistic "mean of one number of each picture"; NaN where a picture has none."""
    numbers = np.asarray(values, dtype=float)
    known = np.isfinite(numbers)
    return ratio(np.where(known, numbers, 0.0), known)


def ratio_with_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> dict:
    """The sum of one number of each picture over the sum of another, as [`with_interval`] gives it."""
    if not np.sum(denominators) > 0:
        raise ValueError("the denominators sum to zero, expected something to count")
    return with_interval(ratio(numerators, denominators), len(numerators), seed)


# The groups are those of what a picture *shows*, as labelled; they say nothing about who a person is.
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


def in_slices(statistic: Statistic, slices: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, dict]:
    """
    A statistic on parts of the pictures.

    Args:
        statistic (`Callable`): As for [`with_interval`].
        slices (`dict[str, np.ndarray]`): Name of a slice -> `(count,)`, true for the pictures that belong to it.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Returns:
        `dict[str, dict]`: for each slice in which the statistic is defined `value`, `low`, `high` and `count`.
    """
    found = {}
    for name, members in slices.items():
        chosen = np.flatnonzero(members)
        if not len(chosen):
            continue
        everywhere = np.zeros((1, len(members)))

        def of_slice(weights, chosen=chosen, everywhere=everywhere):
            spread = np.repeat(everywhere, len(weights), axis=0)
            spread[:, chosen] = weights
            return statistic(spread)

        if np.isfinite(of_slice(np.ones((1, len(chosen))))[0]):
            measured = with_interval(of_slice, len(chosen), seed)
            found[name] = without_replicates(measured) | {"count": len(chosen)}
    return found


def paired_difference(before: Sequence[float], after: Sequence[float], paired: bool = True, seed: int = 0) -> dict:
    """
    Whether one run differs from another, from the values of their resampled sets.

    Args:
        before, after (`list[float]`): `replicates` of the same measure in both runs.
        paired (`bool`, *optional*, defaults to `True`):
            Whether row k of both drew the same pictures. If not, the rows are shuffled, which makes them independent.
        seed (`int`, *optional*, defaults to 0): Seed of that shuffling.

    Returns:
        `dict`: `low` and `high` of the 95 % interval of after minus before, and `p_value`, two-sided: twice the
        smaller share of resampled sets on one side of zero, with one added to both counts so that it is never 0.

    Raises:
        ValueError: if there are not equally many.
    """
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if first.shape != second.shape or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} resampled values, expected equally many and at least one")
    if not paired:
        second = np.random.default_rng(seed).permutation(second)
    differences = second - first
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        raise ValueError("no resampled value is a number in both runs")
    low, high = np.percentile(differences, (2.5, 97.5))
    smaller_side = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (smaller_side + 1) / (len(differences) + 1))
    return {"low": float(low), "high": float(high), "p_value": float(p_value)}


def without_replicates(results):
    """A copy of nested results without the values of resampled sets, which no reader wants to see."""
    if isinstance(results, Mapping):
        return {name: without_replicates(value) for name, value in results.items() if name != "replicates"}
    if isinstance(results, (list, tuple)):
        return [without_replicates(value) for value in results]
    return results


def rounded(replicates: Sequence[float | None]) -> list[float | None]:
    """Values of resampled sets as files keep them: a few digits, `None` for what is not a number."""
    known = np.array(replicates, dtype=float)  # a file's `None` is NaN again
    return [float(f"{value:.{_KEPT_DIGITS}g}") if np.isfinite(value) else None for value in known]


__all__ = [
    "BOOTSTRAP_SAMPLES",
    "SLICED_BY",
    "Statistic",
    "bootstrap_weights",
    "in_slices",
    "lift",
    "mean",
    "paired_difference",
    "ratio",
    "ratio_with_interval",
    "rounded",
    "slices_by",
    "with_interval",
    "without_replicates",
]
