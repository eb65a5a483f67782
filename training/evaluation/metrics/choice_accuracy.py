"""Accuracy and F1 of multiple-choice answers."""

import datasets

from ..statistics import mean
from .base import FaceMetric, check_same_length


class ChoiceAccuracy(FaceMetric):
    """
    Share of questions whose chosen letters are exactly the right ones (`accuracy`), and the mean F1 of chosen against
    right letters (`f1`, for questions with several right options); higher is better. No letter counts as wrong.

    FaceXBench (arXiv 2501.10360) scores single choices by accuracy; FaceBench (arXiv 2503.21457) scores true/false and
    single choices by accuracy and multiple choices by F1.

    `compute(predictions=letters, references=letters)`, as strings: `"B"`, `"ACD"`, `""` for no answer.
    """

    columns = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
    better = {"accuracy": "higher", "f1": "higher", "unanswered": "lower"}
    urls = ("https://arxiv.org/abs/2501.10360", "https://arxiv.org/abs/2503.21457")

    def statistics(self, predictions, references):
        check_same_length(predictions=predictions, references=references)
        pairs = [(set(p.upper()), set(r.upper())) for p, r in zip(predictions, references, strict=True)]
        if any(not right for _, right in pairs):
            raise ValueError("a question has no right letter")
        return {
            "accuracy": mean([given == right for given, right in pairs]),
            "f1": mean([2 * len(given & right) / (len(given) + len(right)) for given, right in pairs]),
            "unanswered": mean([not given for given, _ in pairs]),
        }


__all__ = ["ChoiceAccuracy"]
