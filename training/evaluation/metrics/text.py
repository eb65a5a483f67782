"""Metrics of what a model writes: answers, choices, captions."""

import datasets

from ...data.language.captions import parse_caption
from ...data.language.questions import normalize_answer
from ..statistics import mean, ratio
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


class CaptionAttributes(FaceMetric):
    """
    Whether captions state what is true (`precision`), and how much of it (`recall`); higher is better.

    A caption is read by the grammar that writes captions of attributed faces
    ([`~unif2ace.training.data.language.captions.parse_caption`]); words that it does not know are passed over.
    Precision is the share of the stated attributes with a known truth that have the true value, recall the share of
    the wanted attributes that are stated rightly, both over all captions together. `attributes_stated` is the mean
    number of attributes in a caption.

    `compute(predictions=captions, references=attributes)`: the truth, as `{name: value}`. Optionally `wanted`: for
    each picture the names of attributes that a full caption states; all known ones when not given.
    """

    columns = {"predictions": datasets.Value("string"), "references": datasets.Json()}
    better = {"precision": "higher", "recall": "higher", "attributes_stated": None}

    def statistics(self, predictions, references, wanted=None):
        check_same_length(predictions=predictions, references=references)
        stated = [parse_caption(text) for text in predictions]
        wanted = references if wanted is None else wanted
        judged = [sum(name in truth for name in said) for said, truth in zip(stated, references, strict=True)]
        right = [
            sum(name in truth and truth[name] == value for name, value in said.items())
            for said, truth in zip(stated, references, strict=True)
        ]
        found = [
            sum(name in said and said[name] == truth[name] for name in names)
            for said, truth, names in zip(stated, references, wanted, strict=True)
        ]
        return {
            "precision": ratio(right, judged),
            "recall": ratio(found, [len(names) for names in wanted]),
            "attributes_stated": mean([len(said) for said in stated]),
        }


__all__ = ["AnswerAccuracy", "CaptionAttributes", "ChoiceAccuracy"]
