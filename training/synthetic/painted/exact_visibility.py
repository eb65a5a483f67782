"""
Exact visibility of the attributes of painted faces, remembered on disk: it takes about a second of work for a face.

A file `<split>_visible.jsonl` in the render cache has a first line that names the faces, and then one line for each
face with the attributes that cannot be seen. It is replaced as a whole every few faces, so that it is never half
written, and a run that stopped goes on where it was.
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
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


def exact_visibility(folder: str | os.PathLike, split: str, count: int, workers: int = 1) -> list[dict[str, bool]]:
    """
    Which attributes can be seen in the first `count` faces of a split, by counterfactual rendering.

    Args:
        folder (`str` or `os.PathLike`): The render cache, with `<split>.json` in it; the result is remembered there.
        split (`str`): One of `SPLITS`.
        count (`int`): Number of faces.
        workers (`int`, *optional*, defaults to 1): Processes that render.

    Returns:
        `list[dict[str, bool]]`: For each face, attribute name -> whether it can be seen.

    Raises:
        FileNotFoundError: if the folder is no render cache of the split.
        ValueError: if what is remembered belongs to other faces.
    """
    folder = Path(folder)
    settings_path = folder / f"{split}.json"
    if not settings_path.exists():
        raise FileNotFoundError(
            f"{settings_path} does not exist; paint the faces with `python -m "
            f"unif2ace.training.synthetic.painted.dataset --split {split} --count {count} --out {folder}`"
        )
    settings = json.loads(settings_path.read_text())
    path = folder / f"{split}_visible.jsonl"
    hidden = _read(path, settings)
    missing = range(len(hidden), count)
    if missing:
        with tqdm(total=count, initial=len(hidden), desc="exact visibility", unit="face") as progress:
            for found in _compute(missing, split, settings["seed"], workers):
                hidden.append(found)
                progress.update()
                if len(hidden) % _SAVE_EVERY == 0 or len(hidden) == count:
                    _write(path, settings, hidden)
    return [{name: name not in of_face for name in ATTRIBUTES} for of_face in hidden[:count]]


def _hidden(index: int, split: str, seed: int) -> list[str]:
    visible = visible_attributes(attributes_of(index, split, seed), identity_of(index, split, seed), size=_SIZE)
    return [name for name, seen in visible.items() if not seen]


def _compute(indices: range, split: str, seed: int, workers: int) -> Iterator[list[str]]:
    hidden = partial(_hidden, split=split, seed=seed)
    if workers == 1:
        yield from map(hidden, indices)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(hidden, indices, chunksize=4)


def _read(path: Path, settings: dict) -> list[list[str]]:
    if not path.exists():
        return []
    lines = [line for _, line in json_lines(path)]
    if lines[0] != settings:
        raise ValueError(f"{path} belongs to faces of {lines[0]}, but the cache holds {settings}: delete that file")
    return lines[1:]


def _write(path: Path, settings: dict, hidden: list[list[str]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in [settings, *hidden]))


__all__ = ["exact_visibility", "visible_attributes"]
