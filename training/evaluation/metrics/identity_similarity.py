"""Identity similarity: whether two pictures show the same person, by a face encoder."""

import datasets
import torch

from ..extractors import Extractor
from ..statistics import mean
from .base import FaceMetric, check_same_length


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


__all__ = ["IdentitySimilarity"]
