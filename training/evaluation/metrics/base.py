"""What the metrics have in common: `evaluate`'s interface around a statistic of pictures."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import evaluate

from ..statistics import Statistic, with_interval


class FaceMetric(evaluate.Metric):
    """
    A metric of `evaluate` that also says how sure it is.

    `compute` (and `add`, `add_batch`) take the columns named by `columns`, and give each number with the bounds of its
    95 % bootstrap interval as `<name>_low` and `<name>_high`. Nothing is downloaded.

    Args:
        options: Those of `evaluate.Metric`.

    Class attributes:
        columns (`dict`): Name of an input -> its `datasets` feature; others are given to `compute` by name.
        better (`dict[str, str | None]`): Name of a number -> "higher" or "lower".
        urls (`tuple[str, ...]`): Where it is defined.
    """

    columns: ClassVar[dict[str, Any]]
    better: ClassVar[dict[str, str | None]]
    urls: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options):
        # `evaluate` keeps inputs on disk unless told; several processes need that
        alone = options.get("num_process", 1) == 1
        super().__init__(**{"seed": 0, **options, "keep_in_memory": alone})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)) or "",
            citation="\n".join(self.urls),
            inputs_description=f"Inputs: {', '.join(self.columns)}.",
            features=datasets.Features(self.columns),
            reference_urls=list(self.urls),
        )

    @abstractmethod
    def statistics(self, **inputs) -> dict[str, Statistic]:
        """The numbers as functions of how often each item counts, see [`~unif2ace.training.evaluation.statistics`]."""

    def extras(self) -> dict:
        """What else the last call of `statistics` found out."""
        return {}

    def _compute(self, **inputs) -> dict:
        statistics: Mapping[str, Statistic] = self.statistics(**inputs)
        count = len(next(iter(inputs.values())))
        found: dict[str, Any] = {"count": count}
        for name, statistic in statistics.items():
            measured = with_interval(statistic, count)
            found[name] = measured["value"]
            found |= {f"{name}_low": measured["low"], f"{name}_high": measured["high"]}
        return found | self.extras()


def check_same_length(**inputs) -> int:
    """The number of items; `ValueError` if the inputs have different ones or none."""
    lengths = {name: len(values) for name, values in inputs.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        counted = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"{counted}; expected equally many and at least one")
    return next(iter(lengths.values()))


__all__ = ["FaceMetric", "check_same_length"]
