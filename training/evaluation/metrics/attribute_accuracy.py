"""Attribute accuracy: whether generated faces show the attributes that were asked for."""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from ..judge import UniF2aceJudge
from ..statistics import ratio
from .base import FaceMetric, check_same_length


class AttributeAccuracy(FaceMetric):
    """
    Share of asked-for attributes that a classifier reads in the generated faces; higher is better.

    Attributes of all pictures are pooled, so those that are asked for more often count more. The classifier's own
    accuracy on real pictures with these attributes is the ceiling: give `originals` to get it as `ceiling`.

    `compute(predictions=images, references=attributes)`, attributes as `{name: value}` of those that count.

    Args:
        judge ([`UniF2aceJudge`]): The classifier, or any object whose `predict(images)` gives attribute name -> one
            value for each picture.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Json()}
    better = {"attribute_accuracy": "higher", "ceiling": None}

    def __init__(self, judge: UniF2aceJudge, **options):
        self.judge = judge
        super().__init__(**options)

    def statistics(self, predictions, references, originals=None):
        check_same_length(predictions=predictions, references=references)
        found = {"attribute_accuracy": self._share(predictions, references)}
        if originals is not None:
            check_same_length(originals=originals, references=references)
            found["ceiling"] = self._share(originals, references)
        return found

    def _share(self, images: Sequence, asked: Sequence[Mapping[str, str]]):
        read = self.judge.predict(images)
        unknown = sorted({name for face in asked for name in face} - read.keys())
        if unknown:
            raise ValueError(f"the classifier does not know the attribute {unknown[0]!r}, expected {', '.join(read)}")
        right = [sum(read[name][row] == value for name, value in face.items()) for row, face in enumerate(asked)]
        return ratio(right, np.array([len(face) for face in asked]))


__all__ = ["AttributeAccuracy"]
