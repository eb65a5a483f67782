"""Kernel distance of two sets of pictures (KID)."""

import datasets
import numpy as np
import torch

from ..extractors import Extractor
from ..statistics import Statistic
from .base import FaceMetric


def kernel_distance(features: torch.Tensor, real: torch.Tensor) -> Statistic:
    """
    The squared maximum mean discrepancy under k(x, y) = (x·y / size + 1)³, without bias.

    It is the mean over pairs i ≠ j of k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i) (Gretton et al., JMLR
    2012, eq. 4), so it has no bias either where picture i was made from what real picture i shows. Libraries average
    over random subsets and count k(x_i, y_i) too; with sets that do not depend on each other the expectation is the
    same. A resampled set leaves out the pairs of a picture with its own copies.

    Args:
        features (`torch.Tensor` of shape `(count, size)`): Features of generated pictures.
        real (`torch.Tensor` of shape `(count, size)`): Features of the real picture that belongs to each.

    Returns:
        `Callable`: the statistic of weights `(samples, count)`; NaN for a set of one picture.

    Raises:
        ValueError: if the shapes differ.
    """
    if features.shape != real.shape or features.ndim != 2:
        raise ValueError(f"features have shapes {tuple(features.shape)} and {tuple(real.shape)}, expected one shape")
    x, y = features.double(), real.double()
    within, across = [((a @ b.T / x.shape[1] + 1) ** 3) for a, b in ((x, x), (x, y))]
    within += (y @ y.T / x.shape[1] + 1) ** 3
    terms = (within - across - across.T).numpy()

    def statistic(weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights, dtype=float)
        pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        total = np.einsum("si,si->s", weights @ terms, weights) - weights**2 @ np.diag(terms)
        return np.divide(total, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)

    return statistic


class KernelDistance(FaceMetric):
    """
    Kernel distance between generated and real pictures; lower is better, and 0 is expected for equal distributions.

    The squared maximum mean discrepancy of features under a cubic kernel: the KID of Bińkowski et al. (ICLR 2018,
    arXiv 1801.01401) with Inception features. Unlike the Fréchet distance it has no bias, so values of different
    numbers of pictures can be compared, it may be slightly negative, and it has an interval.

    `compute(predictions=generated, references=real)`: as many real pictures as generated ones; where picture i was
    generated from a description of real picture i, the bootstrap resamples the two together.

    Args:
        extractor ([`~unif2ace.training.evaluation.extractors.Extractor`]): Makes features of pictures.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Image()}
    better = {"kernel_distance": "lower"}
    urls = ("https://arxiv.org/abs/1801.01401", "https://jmlr.org/papers/v13/gretton12a.html")

    def __init__(self, extractor: Extractor, **options):
        self.extractor = extractor
        super().__init__(**options)

    def statistics(self, predictions, references):
        return {"kernel_distance": kernel_distance(self.extractor(predictions), self.extractor(references))}

    def extras(self):
        return {"features": self.extractor.name}


__all__ = ["KernelDistance", "kernel_distance"]
