"""Image codes, CLIP features and face embeddings: what the frozen parts of a model make of pictures."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch


if TYPE_CHECKING:
    from ...modeling_unif2ace import UniF2aceModel

PARTS = {"codes": "vq_model", "clip_features": "vision_tower", "face_features": "face_encoder"}
"""Column -> the part of a model that makes it."""


@torch.no_grad()
def encode_pictures(
    model: "UniF2aceModel", pixels: Mapping[str, torch.Tensor], dtype: str = "float16", features: bool = True
) -> dict[str, np.ndarray]:
    """
    What the frozen parts of a model make of pictures.

    Args:
        model ([`UniF2aceModel`]): The model.
        pixels (`Mapping[str, torch.Tensor]`): What the image processor returned for them, in [-1, 1].
        dtype (`str`, *optional*, defaults to `"float16"`): Of the features.
        features (`bool`, *optional*, defaults to `True`): Whether the encoders are asked too, as far as there are any.

    Returns:
        `dict[str, np.ndarray]`: `codes` (pictures, N) int32, and `clip_features` (pictures, patches, width) and
        `face_features` (pictures, length).
    """
    for part in PARTS.values():
        if getattr(model, part) is not None:
            getattr(model, part).eval()  # batch norm would learn from the pictures
    device = next(model.parameters()).device
    pixels = {name: values.to(device) for name, values in pixels.items()}
    found = {}
    if model.vq_model is not None:
        found["codes"] = model.encode_images(pixels["pixel_values"]).cpu().to(torch.int32).numpy()
    if features and model.vision_tower is not None:
        found["clip_features"] = model.encode_clip(pixels["pixel_values"]).cpu().float().numpy().astype(dtype)
    if features and model.face_encoder is not None:
        faces = model.encode_face(pixels["pixel_values"], pixels.get("face_pixel_values"))
        found["face_features"] = faces.cpu().float().numpy().astype(dtype)
    return found


def fingerprints(model: "UniF2aceModel") -> dict[str, str]:
    """Column -> [`fingerprint`] of what makes it, of the parts that a model has."""
    return {name: fingerprint(part) for name in PARTS if (part := getattr(model, PARTS[name])) is not None}


def fingerprint(part: torch.nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return digest.hexdigest()
