"""Fréchet distance of two sets of pictures (FID)."""

import datasets
import torch
from torch import nn

from ..extractors import Extractor
from .base import FaceMetric


class _Features(nn.Module):
    """Lets torchmetrics take features as they are."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(features: torch.Tensor, real: torch.Tensor) -> float:
    """
    ‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of two sets of features, by torchmetrics.

    Args:
        features (`torch.Tensor` of shape `(count, size)`), real (`torch.Tensor` of shape `(other, size)`): The sets.

    Returns:
        `float`: 0 for equal means and covariances.

    Raises:
        ValueError: if a set has fewer than two rows, or the sizes differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(features), len(real)) < 2 or features.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"features have shapes {tuple(features.shape)} and {tuple(real.shape)}, expected two rows or more and one "
            "size"
        )
    distance = FrechetInceptionDistance(feature=_Features(features.shape[1])).set_dtype(torch.float64)
    distance.update(features.double(), real=False)
    distance.update(real.double(), real=True)
    return max(0.0, float(distance.compute()))


class FrechetDistance(FaceMetric):
    """
    Fréchet distance between generated and real pictures; lower is better.

    Both sets of features are taken for normal distributions, and the distance is that of these. With Inception
    features it is the FID of Heusel et al. (NeurIPS 2017, arXiv 1706.08500); with others it must be named after them
    ("FD, DINOv2"). It has no interval: it falls with the number of pictures and rises when they are drawn with
    replacement, so a bootstrap would not contain it. Never compare values of different numbers of pictures or of
    different features; [`~unif2ace.training.evaluation.metrics.KernelDistance`] does not have this flaw.

    `compute(predictions=generated, real=real)`; the two need not be equally many.

    Args:
        extractor ([`~unif2ace.training.evaluation.extractors.Extractor`]): Makes features of pictures.
    """

    columns = {"predictions": datasets.Image()}
    better = {"frechet_distance": "lower"}
    urls = ("https://arxiv.org/abs/1706.08500",)

    def __init__(self, extractor: Extractor, **options):
        self.extractor = extractor
        super().__init__(**options)

    def statistics(self, **inputs):
        return {}

    def _compute(self, predictions, real) -> dict:
        value = frechet_distance(self.extractor(predictions), self.extractor(real))
        return {"count": len(predictions), "frechet_distance": value, "features": self.extractor.name}


__all__ = ["FrechetDistance", "frechet_distance"]
