"""Image codes, CLIP features and face embeddings, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
            raise FileNotFoundError(
                f"{folder} holds the features of {description['done']} of {description['count']} pictures; build it "
                "again to go on"
            )
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
        parts = {name: getattr(model, part) for name, part in PARTS.items() if getattr(model, part) is not None}
        for part in parts.values():
            part.eval()  # batch norm would learn from the pictures
        wanted = {
            "count": count,
            "dtype": dtype,
            "weights": {name: fingerprint(part) for name, part in parts.items()},
            "columns": list(parts),
        }
        found = _description(folder)
        if found is not None and {**found, "done": None} != {**wanted, "done": None}:
            differing = min(name for name in wanted if found.get(name) != wanted[name])
            raise ValueError(
                f"{folder} holds features with other {differing} than these: choose another folder, or delete it"
            )
        done = 0 if found is None else found["done"]
        arrays: dict[str, np.ndarray] = {}
        if done:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in parts}
        with tqdm(total=count, initial=done, desc="features", unit="picture", disable=not progress) as bar:
            while done < count:
                stop = min(done + batch_size, count)
                found = [pixels(number) for number in range(done, stop)]
                stacked = {name: torch.stack([one[name] for one in found]) for name in found[0]}
                faces = stacked.get("face_pixel_values")
                features = encode_pictures(model, parts, stacked["pixel_values"], dtype, faces)
                for name, values in features.items():
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

    def check_count(self, records: Sequence) -> None:
        """
        Raises:
            ValueError: if the cache is not for as many pictures.
        """
        if len(self) != len(records):
            raise ValueError(f"{self.folder} holds the features of {len(self)} pictures, expected {len(records)}")


@torch.no_grad()
def encode_pictures(
    model, parts: dict, pixels: torch.Tensor, dtype: str, faces: torch.Tensor | None = None
) -> dict[str, np.ndarray]:
    """
    What `parts` of a model (names of `PARTS`) make of pictures (B, 3, R, R) in [-1, 1]; features as `dtype`. `faces`
    are the image processor's `face_pixel_values`, where it returns them.
    """
    device = next(model.parameters()).device
    faces = None if faces is None else faces.to(device)
    encoders = {
        "codes": model.encode_images,
        "clip_features": model.encode_clip,
        "face_features": lambda pixels: model.encode_face(pixels, faces),
    }
    pixels = pixels.to(device)
    features = {name: encoders[name](pixels).cpu() for name in parts}
    return {
        name: values.to(torch.int32).numpy() if name == "codes" else values.float().numpy().astype(dtype)
        for name, values in features.items()
    }


def _description(folder: Path) -> dict | None:
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    description = read_json(path)
    known = isinstance(description, dict) and set(description.get("columns", [None])) <= set(PARTS)
    if not known or not isinstance(description.get("done"), int) or not isinstance(description.get("count"), int):
        raise ValueError(f"{path} is no description of features that this package wrote: delete the folder {folder}")
    return description


def fingerprint(part: torch.nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return digest.hexdigest()
