"""Metrics of how different the pictures of one prompt are."""

from collections.abc import Sequence
from itertools import combinations

import datasets
import numpy as np
import torch

from ..judge import UniF2aceJudge
from ..statistics import mean
from .base import FaceMetric, check_same_length


@torch.no_grad()
def perceptual_distances(judge: UniF2aceJudge, images, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """
    Perceptual distances of pairs of pictures: at each stage of a network the squared distance of feature maps whose
    vectors are of length 1, averaged over places, summed over stages. That is LPIPS (Zhang et al., CVPR 2018, arXiv
    1801.03924) with equal weights, on a network that was trained on faces of this kind.

    Args:
        judge ([`UniF2aceJudge`]): The network; any model with `preprocess` and `feature_maps` will do.
        images: Pictures, as its `preprocess` takes them.
        pairs (`list[tuple[int, int]]`): Numbers of pictures.

    Returns:
        `np.ndarray` of shape `(pairs,)`.
    """
    judge.eval()
    distances = torch.zeros(len(pairs), dtype=torch.float64)
    first, second = (list(side) for side in zip(*pairs, strict=True))
    pixels = judge.preprocess(images)
    stages = [judge.feature_maps(part) for part in pixels.split(64)]
    for of_stage in zip(*stages, strict=True):
        maps = torch.nn.functional.normalize(torch.cat(of_stage), dim=1, eps=1e-10)
        for start in range(0, len(pairs), 256):
            part = slice(start, start + 256)
            difference = (maps[first[part]] - maps[second[part]]) ** 2
            distances[part] += difference.sum(1).mean((1, 2)).double().cpu()
    return distances.numpy()


class Diversity(FaceMetric):
    """
    Mean distance of the pictures of one prompt from each other (`diversity`, over prompts); higher is more diverse.

    The distance is perceptual, see [`perceptual_distances`]; 0 if all pictures of each prompt are equal. Diversity is
    not quality: noise is diverse. `between_prompts`, the distance of pictures of neighbouring prompts, is the scale.

    `compute(predictions=images, references=prompts)`: pictures with the same prompt belong together; each prompt needs
    two or more.

    Args:
        judge ([`UniF2aceJudge`]): The network.
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Value("string")}
    better = {"diversity": None, "between_prompts": None}
    urls = ("https://arxiv.org/abs/1801.03924",)

    def __init__(self, judge: UniF2aceJudge, **options):
        self.judge = judge
        super().__init__(**options)

    def statistics(self, predictions, references):
        check_same_length(predictions=predictions, references=references)
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(references):
            groups.setdefault(prompt, []).append(place)
        pairs = [pair for places in groups.values() for pair in combinations(places, 2)]
        if not pairs:
            raise ValueError("every prompt has one picture, expected two or more of some prompt")
        firsts = [places[0] for places in groups.values()]
        others = list(zip(firsts, firsts[1:], strict=False))
        distances = perceptual_distances(self.judge, predictions, [*pairs, *others])
        # a prompt's number is kept at its first picture; the other pictures have none
        within, between = np.full(len(references), np.nan), np.full(len(references), np.nan)
        place = 0
        for places in groups.values():
            count = len(places) * (len(places) - 1) // 2
            if count:
                within[places[0]] = distances[place : place + count].mean()
            place += count
        for (first, _), distance in zip(others, distances[len(pairs) :], strict=True):
            between[first] = distance
        found = {"diversity": mean(within)}
        return found | ({"between_prompts": mean(between)} if others else {})


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


__all__ = ["CodeEntropy", "Diversity", "perceptual_distances"]
