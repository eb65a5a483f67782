"""Image codes, CLIP features and face embeddings, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ...pipelines.files import read_json, write_json


if TYPE_CHECKING:
    from ...modeling_unif2ace import UniF2aceModel

DESCRIPTION = "features.json"
PARTS = {"codes": "vq_model", "clip_features": "vision_tower", "face_features": "face_encoder"}


class FeatureCache:
    """
    What the frozen parts of a model say about pictures, so that training need not ask them again: as much as half of a
    step's time. `codes` (N,) int, `clip_features` (patches, width) and `face_features` (length,), one array each.

    A cache remembers which weights made it and how far it got: building it again goes on where it stopped, and does
    nothing if it is whole.

    Args:
        folder (`str` or `Path`): Where the arrays are.

    Raises:
        FileNotFoundError: if there is no cache, or it is not whole.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        description = _description(self.folder)
        if description is None:
            raise FileNotFoundError(f"{folder} holds no features; make them with FeatureCache.build")
        if description["done"] < description["count"]:
            done = f"{description['done']} of {description['count']} pictures"
            raise FileNotFoundError(f"{folder} holds the features of {done}; build it again to go on")
        self.columns = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in description["columns"]}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model: "UniF2aceModel",
        pixels: Callable[[int], Mapping[str, torch.Tensor]],
        count: int,
        batch_size: int = 32,
        dtype: str = "float16",
        progress: bool = True,
    ) -> "FeatureCache":
        """
        Compute the features of `count` pictures, or what is missing of them.

        Args:
            folder (`str` or `Path`): Where the arrays go.
            model ([`UniF2aceModel`]): Its image tokenizer and encoders; those that it lacks give no column.
            pixels (callable):
                The picture of a number from 0 on, as the image processor returns it: `pixel_values` (3, R, R) and,
                where it aligns faces, `face_pixel_values`, in [-1, 1].
            count (`int`): Pictures.
            batch_size (`int`, *optional*, defaults to 32): Pictures at a time.
            dtype (`str`, *optional*, defaults to `"float16"`):
                Of the features on disk. CLIP ViT-L/14-336 gives 1.2 MB a picture in float16; `"float32"` gives
                training exactly the numbers that it would compute itself.
            progress (`bool`, *optional*, defaults to `True`): Show a bar.

        Raises:
            ValueError: if the folder's features were made with other weights, for another count, or of another dtype.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = fingerprints(model)
        wanted = {"count": count, "dtype": dtype, "weights": weights, "columns": list(weights)}
        found = _description(folder) or {**wanted, "done": 0}
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise ValueError(
                f"{folder} holds features with other {min(differing)} than these: choose another folder, or delete it"
            )
        for name in weights:
            getattr(model, PARTS[name]).eval()  # batch norm would learn from the pictures
        done = found["done"]
        arrays: dict[str, np.ndarray] = {}
        if done:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in weights}
        with tqdm(total=count, initial=done, desc="features", unit="picture", disable=not progress) as bar:
            while done < count:
                stop = min(done + batch_size, count)
                batch = [pixels(number) for number in range(done, stop)]
                stacked = {name: torch.stack([one[name] for one in batch]) for name in batch[0]}
                for name, values in encode_pictures(model, stacked, dtype).items():
                    if name not in arrays:
                        arrays[name] = np.lib.format.open_memmap(
                            folder / f"{name}.npy", mode="w+", dtype=values.dtype, shape=(count, *values.shape[1:])
                        )
                    arrays[name][done:stop] = values
                    arrays[name].flush()
                bar.update(stop - done)
                done = stop
                write_json(folder / DESCRIPTION, {**wanted, "done": done})
        return cls(folder)


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


def _description(folder: Path) -> dict | None:
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    description = read_json(path)
    known = isinstance(description, dict) and set(description.get("columns", [None])) <= set(PARTS)
    if not known or not isinstance(description.get("done"), int) or not isinstance(description.get("count"), int):
        raise ValueError(f"{path} is no description of features that this package wrote: delete the folder {folder}")
    return description


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
