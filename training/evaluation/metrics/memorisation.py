"""Memorisation: whether generated faces are copies of training pictures."""

import datasets
import numpy as np
import torch

from ..extractors import Extractor
from ..statistics import mean
from .base import FaceMetric


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


__all__ = ["CLOSE_SHARE", "Memorisation", "nearest"]
