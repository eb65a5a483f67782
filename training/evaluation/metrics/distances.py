"""Metrics of sets of pictures by their features: distributions, identity, memorisation."""

import datasets
import numpy as np
import torch
from torch import nn

from ..extractors import Extractor
from ..statistics import Statistic, mean
from .base import FaceMetric, check_same_length


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


class IdentitySimilarity(FaceMetric):
    """
    Cosine of the identity embeddings of two faces, the mean over pairs; higher is better.

    The usual measure of identity preservation, with an encoder trained by ArcFace (Deng et al., CVPR 2019, arXiv
    1801.07698). `other_person` is the same for wrongly paired faces (each with the next one's partner), which is what
    a model without any idea of identity gets: only the difference of the two says something.

    `compute(predictions=images, references=images)`, both aligned for the encoder.

    Args:
        extractor ([`~unif2ace.training.evaluation.extractors.Extractor`]): A face encoder, as a rule
            [`~unif2ace.training.evaluation.extractors.FaceFeatures`].
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Image()}
    better = {"identity_similarity": "higher", "other_person": None}
    urls = ("https://arxiv.org/abs/1801.07698",)

    def __init__(self, extractor: Extractor, **options):
        self.extractor = extractor
        super().__init__(**options)

    def statistics(self, predictions, references):
        check_same_length(predictions=predictions, references=references)
        made, real = (
            torch.nn.functional.normalize(self.extractor(images), dim=-1) for images in (predictions, references)
        )
        found = {"identity_similarity": mean((made * real).sum(-1).numpy())}
        if len(made) > 1:
            found["other_person"] = mean((made * real.roll(1, 0)).sum(-1).numpy())
        return found

    def extras(self):
        return {"features": self.extractor.name}


CLOSE_SHARE = 0.01  # the share of new faces that counts as close by definition


def nearest(features: torch.Tensor, training: torch.Tensor, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """
    The most similar training picture of each picture.

    Args:
        features (`torch.Tensor` of shape `(count, size)`), training (`torch.Tensor` of shape `(others, size)`):
            Features; they are normalised here.
        chunk (`int`, *optional*, defaults to 256): Rows at once.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: cosines with, and numbers of, the nearest training pictures.
    """
    features, training = (torch.nn.functional.normalize(part.float(), dim=-1) for part in (features, training))
    found = [(part @ training.T).max(dim=-1) for part in features.split(chunk)]
    return torch.cat([part.values for part in found]).numpy(), torch.cat([part.indices for part in found]).numpy()


class Memorisation(FaceMetric):
    """
    How near generated faces are to training faces, in the space of a face encoder (or of other features).

    `nearest` is the mean cosine with the nearest training face, `nearest_new` the same for new real faces, which no
    model has seen; `close` is the share of generated faces that are nearer to a training face than all but 1 % of the
    new ones. Without memorisation `close` is about 0.01, or less; a model that copies comes near 1. `closest` names
    the worst pairs, to be looked at. In the manner of the data-copying test of Meehan et al. (AISTATS 2020, arXiv
    2004.05675).

    `compute(predictions=generated, training=training_images, new=new_images)`.

    Args:
        extractor ([`~unif2ace.training.evaluation.extractors.Extractor`]): Makes features of pictures.
    """

    columns = {"predictions": datasets.Image()}
    better = {"close": "lower", "nearest": None, "nearest_new": None}
    urls = ("https://arxiv.org/abs/2004.05675",)

    def __init__(self, extractor: Extractor, **options):
        self.extractor = extractor
        self._extras: dict = {}
        super().__init__(**options)

    def statistics(self, predictions, training, new):
        if not len(training) or not len(new):
            raise ValueError(f"{len(training)} training pictures and {len(new)} new ones, expected some of each")
        known = self.extractor(training)
        cosines, places = nearest(self.extractor(predictions), known)
        of_new, _ = nearest(self.extractor(new), known)
        threshold = float(np.quantile(of_new, 1 - CLOSE_SHARE))
        worst = np.argsort(-cosines)[:10]
        self._extras = {
            "nearest_new": float(of_new.mean()),
            "threshold": threshold,
            "training_pictures": len(known),
            "features": self.extractor.name,
            "closest": [
                {"generated": int(i), "training": int(places[i]), "cosine": round(float(cosines[i]), 4)} for i in worst
            ],
        }
        return {"close": mean(cosines > threshold), "nearest": mean(cosines)}

    def extras(self):
        return self._extras


__all__ = [
    "CLOSE_SHARE",
    "FrechetDistance",
    "IdentitySimilarity",
    "KernelDistance",
    "Memorisation",
    "frechet_distance",
    "kernel_distance",
    "nearest",
]
