"""VQA accuracy: exact match of short answers."""

import datasets

from ...data.language.questions import normalize_answer
from ..statistics import mean
from .base import FaceMetric, check_same_length


class AnswerAccuracy(FaceMetric):
    """
    Share of answers that equal the right one; higher is better.

    Both are brought to one form first, in the spirit of VQA's own evaluation (Antol et al., ICCV 2015, arXiv
    1505.00468): lower case, one spelling, no punctuation, articles or pronouns, numbers as words
    ([`~unif2ace.training.data.language.questions.normalize_answer`]). `starts_right` also accepts answers that begin
    with the right words ("yes, he does").

    `compute(predictions=answers, references=right_answers)`.
    """

    columns = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
    better = {"accuracy": "higher", "starts_right": "higher"}
    urls = ("https://arxiv.org/abs/1505.00468",)

    def statistics(self, predictions, references):
        check_same_length(predictions=predictions, references=references)
        pairs = [(normalize_answer(p), normalize_answer(r)) for p, r in zip(predictions, references, strict=True)]
        return {
            "accuracy": mean([given == right for given, right in pairs]),
            "starts_right": mean([f"{given} ".startswith(f"{right} ") for given, right in pairs]),
        }


__all__ = ["AnswerAccuracy"]
