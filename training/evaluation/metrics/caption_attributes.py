"""Attribute precision and recall of captions."""

import datasets

from ...data.language.captions import parse_caption
from ..statistics import mean, ratio
from .base import FaceMetric, check_same_length


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


__all__ = ["CaptionAttributes"]
