"""Many pictures of the same painted person: what a face encoder learns identity from."""

import os
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ....pipelines.files import replacing
from ...data.language.attributes import sample_attributes, sample_identity
from .painter import paint


LASTING_ATTRIBUTES = ("gender", "skin", "face_shape", "nose", "lips", "eye_color", "brow_shape")
"""Attributes that stay with a person; hair style, expression, pose, accessories and light change between pictures."""


def person_picture(
    person: int, picture: int, split: str = "train", seed: int = 0
) -> tuple[dict[str, str], dict[str, float]]:
    """
    What to paint for one picture of a person.

    Args:
        person (`int`): Number of the person in the split.
        picture (`int`): Number of the picture of this person.
        split (`str`, *optional*, defaults to `"train"`): People of different splits are different.
        seed (`int`, *optional*, defaults to 0): Seed of the data set.

    Returns:
        `tuple[dict[str, str], dict[str, float]]`: attributes and identity parameters, as `paint` takes them.
    """
    rng = random.Random(f"{seed}-{split}-person-{person}")
    lasting = sample_attributes(rng)
    identity = sample_identity(rng)
    rng = random.Random(f"{seed}-{split}-person-{person}-{picture}")
    attributes = sample_attributes(rng)
    # gender decides what else is plausible (beard, lipstick), so it must be drawn right rather than overwritten
    while attributes["gender"] != lasting["gender"]:
        attributes = sample_attributes(rng)
    return attributes | {name: lasting[name] for name in LASTING_ATTRIBUTES}, identity


def _paint_person(person: int, pictures: int, split: str, seed: int, size: int) -> np.ndarray:
    return np.stack([np.asarray(paint(*person_picture(person, k, split, seed), size)) for k in range(pictures)])


def paint_people(
    folder: str | os.PathLike,
    split: str,
    people: int,
    pictures: int,
    seed: int = 0,
    size: int = 64,
    workers: int = 1,
) -> np.ndarray:
    """
    Paint people, or read them if they are there already.

    Args:
        folder (`str` or `os.PathLike`): The file `people-<split>-<people>x<pictures>-<size>-<seed>.npy` is kept there.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        people (`int`), pictures (`int`): How many, and pictures of each.
        seed (`int`, *optional*, defaults to 0): Seed of the data set.
        size (`int`, *optional*, defaults to 64): Side of the pictures, in pixels.
        workers (`int`, *optional*, defaults to 1): Processes that paint.

    Returns:
        `np.ndarray` of uint8 and shape (people, pictures, size, size, 3).
    """
    path = Path(folder) / f"people-{split}-{people}x{pictures}-{size}-{seed}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        paint_one = partial(_paint_person, pictures=pictures, split=split, seed=seed, size=size)
        with ProcessPoolExecutor(workers) as pool:
            painted = pool.map(paint_one, range(people), chunksize=4)
            everyone = np.stack(list(tqdm(painted, total=people, desc=f"painting {split} people", unit="person")))
        with replacing(path) as part:
            np.save(part, everyone)
    return np.load(path, mmap_mode="r")
