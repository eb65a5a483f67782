"""
Exact visibility of the attributes of painted faces, remembered on disk: it takes about a second of work for a face.

A file `<split>_visible.jsonl` has a first line that names the faces, and then one line for each face with the
attributes that cannot be seen. It is replaced as a whole every few faces, so that it is never half written, and a run
that stopped goes on where it was.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ....pipelines.files import json_lines, write_text
from ...data.language.attributes import ATTRIBUTES
from .dataset import attributes_of, identity_of
from .painter import face_svg, rasterize


_SAVE_EVERY = 20
_SIZE = 64  # pixels: visibility is defined at this size, whatever the size of the pictures


def visible_attributes(
    attributes: Mapping[str, str],
    identity: Mapping[str, float],
    size: int = 64,
    threshold: int = 12,
    min_pixels: int = 3,
) -> dict[str, bool]:
    """
    Find the attributes that can be seen in a painted face.

    An attribute is visible if EVERY other value of it, all else unchanged, would change at least `min_pixels` pixels
    by more than `threshold` in some colour channel: then nothing but its own value explains the picture.

    Args:
        attributes (`Mapping[str, str]`):
            All 48 attributes, see [`ATTRIBUTES`].
        identity (`Mapping[str, float]`):
            The 12 geometry parameters.
        size (`int`, *optional*, defaults to 64):
            Width and height in pixels at which the comparison is made.
        threshold (`int`, *optional*, defaults to 12):
            A pixel counts as changed if a channel (0 to 255) differs by more than this.
        min_pixels (`int`, *optional*, defaults to 3):
            Number of pixels that have to change.

    Returns:
        `dict[str, bool]`: Attribute name -> whether it is visible, for all 48 attributes.

    Raises:
        `ValueError`: If an attribute or an identity parameter is missing or out of range.
    """
    svg = face_svg(attributes, identity)
    blurry = attributes["blurry"] == "yes"
    picture = _pixels(svg, size, blurry)

    def differs(name: str, value: str) -> bool:
        changed = {**attributes, name: value}
        other_svg = face_svg(changed, identity)
        if other_svg == svg and name != "blurry":
            return False
        other = _pixels(other_svg, size, changed["blurry"] == "yes")
        return int((np.abs(picture - other).max(axis=-1) > threshold).sum()) >= min_pixels

    return {
        name: all(differs(name, value) for value in values if value != attributes[name])
        for name, values in ATTRIBUTES.items()
    }


def _pixels(svg: str, size: int, blurry: bool) -> np.ndarray:
    return np.asarray(rasterize(svg, size, blurry), dtype=np.int16)


def exact_visibility(
    folder: str | os.PathLike, split: str, count: int, workers: int = 1, seed: int = 0
) -> list[dict[str, bool]]:
    """
    Which attributes can be seen in the first `count` faces of a split, by counterfactual rendering.

    Args:
        folder (`str` or `os.PathLike`): Where the result is remembered; made when it does not exist.
        split (`str`): One of `SPLITS`.
        count (`int`): Number of faces.
        workers (`int`, *optional*, defaults to 1): Processes that render.
        seed (`int`, *optional*, defaults to 0): Seed of the data set.

    Returns:
        `list[dict[str, bool]]`: For each face, attribute name -> whether it can be seen.

    Raises:
        ValueError: if what is remembered belongs to other faces.
    """
    path = Path(folder) / f"{split}_visible.jsonl"
    # the sum of the first pictures tells one version of the painter from another
    checksum = sum(int(_pixels(face_svg(*_face(index, split, seed)), _SIZE, False).sum()) for index in range(4))
    faces = {"seed": seed, "checksum": checksum}
    hidden = [line for _, line in json_lines(path)] if path.exists() else [faces]
    if hidden.pop(0) != faces:
        raise ValueError(f"{path} belongs to faces of another seed or painter: delete that file")
    missing = range(len(hidden), count)
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        find = partial(_hidden, split=split, seed=seed)
        with (
            ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool,
            tqdm(total=count, initial=len(hidden), desc="exact visibility", unit="face") as progress,
        ):
            for found in map(find, missing) if pool is None else pool.map(find, missing, chunksize=4):
                hidden.append(found)
                progress.update()
                if len(hidden) % _SAVE_EVERY == 0 or len(hidden) == count:
                    write_text(path, "".join(json.dumps(line) + "\n" for line in [faces, *hidden]))
    return [{name: name not in of_face for name in ATTRIBUTES} for of_face in hidden[:count]]


def _face(index: int, split: str, seed: int) -> tuple[dict[str, str], dict[str, float]]:
    return attributes_of(index, split, seed), identity_of(index, split, seed)


def _hidden(index: int, split: str, seed: int) -> list[str]:
    visible = visible_attributes(*_face(index, split, seed), size=_SIZE)
    return [name for name, seen in visible.items() if not seen]


__all__ = ["exact_visibility", "visible_attributes"]
