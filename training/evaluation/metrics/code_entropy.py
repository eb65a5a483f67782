"""Code entropy: how different the pictures of one prompt are, in the image tokenizer's own codes."""

from collections.abc import Sequence

import datasets
import numpy as np

from ..statistics import mean
from .base import FaceMetric, check_same_length


class CodeEntropy(FaceMetric):
    """
    Entropy of the image codes at one place over the pictures of one prompt, in bits; the mean over places and prompts.

    0 if all pictures of a prompt have the same code everywhere, log2(n) if n pictures never share one. It needs no
    other network, but takes two codes that look alike for different; compare with
    [`~unif2ace.training.evaluation.metrics.Diversity`].

    `compute(predictions=codes, references=prompts)`, codes as lists of integers, all of one length.
    """

    columns = {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("string")}
    better = {"code_entropy": None}

    def statistics(self, predictions, references):
        check_same_length(predictions=predictions, references=references)
        codes = np.asarray(predictions)
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(references):
            groups.setdefault(prompt, []).append(place)
        values = np.full(len(references), np.nan)
        for places in groups.values():
            if len(places) > 1:
                values[places[0]] = np.mean([_entropy(column) for column in codes[places].T])
        if np.isnan(values).all():
            raise ValueError("every prompt has one picture, expected two or more of some prompt")
        return {"code_entropy": mean(values)}


def _entropy(codes: Sequence[int]) -> float:
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


__all__ = ["CodeEntropy"]
