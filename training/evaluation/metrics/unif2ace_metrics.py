"""
The door through which `evaluate.load` reaches the metrics of the package unif2ace: `evaluate.load(<this file>, NAME)`.

`evaluate` copies a script to a folder of its own, away from its siblings, so this one imports the installed package.
Arguments of the metric's class are given by name: `evaluate.load(<this file>, "clip_score", model="org/clip")`.
"""

import evaluate

from unif2ace.training.evaluation import metrics


class UniF2aceMetrics(evaluate.Metric):
    """Not a metric itself: makes the one that is named."""

    def __new__(cls, config_name: str | None = None, **options):
        if config_name not in metrics.METRICS:
            raise ValueError(
                f"there is no metric {config_name!r}: name one as the second argument, {', '.join(metrics.METRICS)}"
            )
        return metrics.METRICS[config_name](config_name=config_name, **options)
