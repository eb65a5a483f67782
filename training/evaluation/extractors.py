"""
Features of pictures, by which metrics compare them: from the painted judge, a face encoder, any vision tower of
transformers (CLIP, SigLIP, DINOv2, ...) or Inception.

An extractor has a `name` and is called with pictures; it gives one vector for each.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from ...modeling_unif2ace import UniF2aceFaceEncoder
from .judge import UniF2aceJudge


Pictures = Sequence[Image.Image] | np.ndarray
BATCH_SIZE = 64
KINDS = ("judge", "face", "vision", "inception")


class Extractor(Protocol):
    """What turns pictures into features."""

    name: str

    def __call__(self, images: Pictures) -> torch.Tensor:
        """`(count, size)` float32 features of pictures: PIL, or uint8 of shape `(count, height, width, 3)`."""


def open_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """
    Open an extractor by name.

    Args:
        spec (`str`):
            `"judge:FOLDER"` (the classifier of painted faces), `"face:FOLDER"` (a face encoder, for aligned faces),
            `"vision:FOLDER_OR_REPO"` (any vision model of transformers), or `"inception"` (FID's own network).
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        ValueError: if the name is of another form.
        OSError: if there is no such model.
    """
    kind, _, place = spec.partition(":")
    if kind == "inception" and not place:
        return InceptionFeatures(device)
    if kind not in KINDS or kind == "inception" or not place:
        raise ValueError(
            f"{spec!r} names no features, expected judge:FOLDER, face:FOLDER, vision:FOLDER_OR_REPO or inception"
        )
    if kind == "judge":
        return JudgeFeatures(UniF2aceJudge.from_pretrained(place).to(device))
    if kind == "face":
        return FaceFeatures(UniF2aceFaceEncoder.from_pretrained(place).to(device), name=spec)
    return VisionFeatures(place, device)


def _batches(images: Pictures):
    for start in range(0, len(images), BATCH_SIZE):
        yield images[start : start + BATCH_SIZE]


def _as_pictures(images: Pictures) -> list[Image.Image]:
    return [Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB") for image in images]


class JudgeFeatures:
    """
    The layer from which the painted judge reads the attributes: distances in it are about what it knows of faces.

    Args:
        judge ([`UniF2aceJudge`]): The judge.
    """

    def __init__(self, judge: UniF2aceJudge):
        self.judge, self.name = judge.eval(), "judge"

    def __call__(self, images: Pictures) -> torch.Tensor:
        return self.judge.features(_as_pictures(images)).float().cpu()


class FaceFeatures:
    """
    Identity embeddings of length 1 (ArcFace: Deng et al., CVPR 2019); their scalar product is the similarity of two
    faces. Pictures are taken for aligned faces: align photographs first
    ([`~unif2ace.modeling_unif2ace.face_alignment_unif2ace.align_face`]).

    Args:
        encoder ([`UniF2aceFaceEncoder`]): The face encoder.
        name (`str`, *optional*, defaults to `"face"`): What results call it.
    """

    def __init__(self, encoder: UniF2aceFaceEncoder, name: str = "face"):
        self.encoder, self.name = encoder.eval(), name

    @torch.no_grad()
    def __call__(self, images: Pictures) -> torch.Tensor:
        size, found = self.encoder.config.image_size, []
        for batch in _batches(images):
            resized = [image.resize((size, size), Image.Resampling.BICUBIC) for image in _as_pictures(batch)]
            pixels = np.stack([np.asarray(image) for image in resized])
            pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.encoder.device)
            embeddings = self.encoder(pixels / 127.5 - 1).embeddings.float()
            found.append(nn.functional.normalize(embeddings, dim=-1).cpu())
        return torch.cat(found)


class VisionFeatures:
    """
    The pooled output of a vision model: `get_image_features` where there are texts too (CLIP, SigLIP), else
    `pooler_output`, else the first token (DINOv2's class token). Fréchet distances on DINOv2 or CLIP features follow
    people's judgement better than Inception's (Stein et al., 2023, arXiv 2306.04675).

    Args:
        model (`str` or `PreTrainedModel`): A folder or repository on the Hub, or the model itself.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
        image_processor (*optional*): Its image processor, when the model itself is given.
    """

    def __init__(self, model: str | PreTrainedModel, device: str | torch.device = "cpu", image_processor=None):
        if isinstance(model, PreTrainedModel):
            self.name, self.model, self.processor = f"vision:{model.name_or_path}", model, image_processor
        else:
            self.name = f"vision:{model}"
            self.model = AutoModel.from_pretrained(model, use_safetensors=True)
            self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = self.model.eval().to(device)

    @torch.no_grad()
    def __call__(self, images: Pictures) -> torch.Tensor:
        found = []
        for batch in _batches(images):
            inputs = self.processor(images=_as_pictures(batch), return_tensors="pt").to(self.model.device)
            if hasattr(self.model, "get_image_features"):
                output = self.model.get_image_features(**inputs)
            else:
                output = self.model(**inputs)
            found.append(pooled(output).float().cpu())
        return torch.cat(found)


def pooled(output) -> torch.Tensor:
    """One vector for each row, out of whatever a model of transformers returns."""
    if isinstance(output, torch.Tensor):
        return output
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output
    return output.last_hidden_state[:, 0]


class InceptionFeatures:
    """
    The 2048 features of FID's original InceptionV3 (Heusel et al., NeurIPS 2017), by `torch-fidelity`, which has to be
    installed by hand: it asks for torchvision, and a torchvision that does not match torch breaks transformers.

    Args:
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        ImportError: if torch-fidelity is not installed.
    """

    name = "inception"

    def __init__(self, device: str | torch.device = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                "Inception features need torch-fidelity and the torchvision that fits your torch; install both, or "
                "choose other features, for example vision:facebook/dinov2-base"
            ) from error
        self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Pictures) -> torch.Tensor:
        found = []
        for batch in _batches(images):
            pixels = np.stack([np.asarray(image) for image in _as_pictures(batch)])
            found.append(self.model(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))[0].float().cpu())
        return torch.cat(found)


__all__ = [
    "Extractor",
    "FaceFeatures",
    "InceptionFeatures",
    "JudgeFeatures",
    "VisionFeatures",
    "open_extractor",
    "pooled",
]
