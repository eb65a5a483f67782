"""
The painted faces as a data set: any number of labelled faces from a seed, streamed without being stored.

The picture and labels of face number `index` depend on `(seed, split, index)` alone, so every machine, worker and run
paints the same faces. Training reads thousands of them many times over, from files:

    python -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 --out runs/painted --workers 2

writes `runs/painted/train-00000.parquet`, `train-00001.parquet`, ... (2,000 pictures each, complete as soon as they
have that name). Run again after an interruption, it goes on with the first missing file.
"""

import argparse
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ...data.language.attributes import ATTRIBUTES, sample_attributes, sample_identity
from ...data.language.captions import write_caption
from ...data.language.questions import write_questions
from ...data.language.visibility import assumed_visible
from ...data.records import FaceRecord
from ..faces import SPLITS, write_shards
from .painter import paint


SHARD_PICTURES = 2_000
_CAPTION_COVERAGES = (1.0, 0.7, 0.4)
_NUM_QUESTIONS = 8


def _face_rng(index: int, split: str, seed: int, purpose: str = "") -> random.Random:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}, expected one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index={index}, expected 0 or more")
    # a string, because random.Random hashes strings with SHA-512: the same on every machine, unlike `hash()`
    return random.Random(f"{seed}-{split}-{index}{purpose}")


def attributes_of(index: int, split: str = "train", seed: int = 0) -> dict[str, str]:
    """
    Attributes of painted face number `index`, without painting it.

    Args:
        index (`int`): Number of the face in its split, 0 or more; there is no last one.
        split (`str`, *optional*, defaults to `"train"`): One of `SPLITS`.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.

    Returns:
        `dict[str, str]`: The 48 attributes.

    Raises:
        ValueError: if the split is unknown or the index negative.
    """
    return sample_attributes(_face_rng(index, split, seed))


def identity_of(index: int, split: str = "train", seed: int = 0) -> dict[str, float]:
    """Identity parameters of painted face number `index`; arguments and errors as for [`attributes_of`]."""
    rng = _face_rng(index, split, seed)
    sample_attributes(rng)
    return sample_identity(rng)


def painted_face(index: int, split: str = "train", seed: int = 0, size: int = 64) -> FaceRecord:
    """
    Paint face number `index` and write its captions and questions.

    Args:
        index (`int`): Number of the face in its split, 0 or more; there is no last one.
        split (`str`, *optional*, defaults to `"train"`): One of `SPLITS`.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.
        size (`int`, *optional*, defaults to 64): Side of the picture, in pixels.

    Returns:
        `FaceRecord`: the picture; three captions, of which the first states every visible attribute that is not a
        default and the others fewer; eight questions; all attributes and which of them can be seen.

    Raises:
        ValueError: if the split is unknown or the index negative.
    """
    attributes, identity = attributes_of(index, split, seed), identity_of(index, split, seed)
    # text has a generator of its own: the faces stay the same when the wording of captions changes
    rng = _face_rng(index, split, seed, "-text")
    name = f"painted-{seed}-{split}-{index}"
    return _record(name, name, attributes, identity, size, rng)


def _record(
    name: str, person: str, attributes: dict[str, str], identity: dict[str, float], size: int, rng: random.Random
) -> FaceRecord:
    visible = assumed_visible(attributes)
    return FaceRecord(
        image=paint(attributes, identity, size),
        captions=[write_caption(attributes, visible, rng, coverage=share).text for share in _CAPTION_COVERAGES],
        questions=write_questions(attributes, visible, rng, _NUM_QUESTIONS),
        attributes=attributes,
        visible=visible,
        identity=person,
        source="painted",
        id=name,
    )


def _as_row(record: FaceRecord) -> dict:
    row = {name: getattr(record, name) for name in ("image", "captions", "attributes", "visible", "identity")}
    row["questions"] = [
        {"kind": item.kind, "attribute": item.attribute, "question": item.question, "answer": item.answer}
        for item in record.questions
    ]
    return row | {"source": record.source, "id": record.id}


def _rows(ranges: list[tuple[int, int]], split: str, seed: int, size: int) -> Iterator[dict]:
    for start, stop in ranges:
        for index in range(start, stop):
            yield _as_row(painted_face(index, split, seed, size))


def _people_rows(
    ranges: list[tuple[int, int]], split: str, seed: int, size: int, pictures_per_person: int
) -> Iterator[dict]:
    for start, stop in ranges:
        for index in range(start, stop):
            person, picture = divmod(index, pictures_per_person)
            name = f"painted-{seed}-{split}-person-{person}"
            attributes, identity = person_picture(person, picture, split, seed)
            rng = random.Random(f"{name}-{picture}-text")
            yield _as_row(_record(f"{name}-{picture}", name, attributes, identity, size, rng))


def painted_features():
    """The `datasets.Features` of a painted face: the fields of `FaceRecord`."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "image": Image(),
            "captions": List(text),
            "attributes": dict.fromkeys(ATTRIBUTES, text),
            "visible": dict.fromkeys(ATTRIBUTES, Value("bool")),
            "identity": text,
            "questions": List(dict.fromkeys(("kind", "attribute", "question", "answer"), text)),
            "source": text,
            "id": text,
        }
    )


def _split_range(count: int, parts: int) -> list[tuple[int, int]]:
    if count < 1:
        raise ValueError(f"count={count}, expected at least 1 face")
    if parts < 1:
        raise ValueError(f"num_shards={parts}, expected at least 1")
    parts = min(parts, count)
    bounds = [count * part // parts for part in range(parts + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def painted_faces(split: str, count: int, seed: int = 0, size: int = 64, streaming: bool = True, num_shards: int = 16):
    """
    The first `count` painted faces of a split as a Hugging Face data set.

    Args:
        split (`str`): One of `SPLITS`.
        count (`int`): Number of faces.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.
        size (`int`, *optional*, defaults to 64): Side of the pictures, in pixels.
        streaming (`bool`, *optional*, defaults to `True`):
            Whether faces are painted while one iterates and nothing is stored. Otherwise they are painted now and kept
            in the cache of `datasets`.
        num_shards (`int`, *optional*, defaults to 16):
            Parts that a streaming data set can be divided into, among the workers of a data loader or among nodes.

    Returns:
        `datasets.IterableDataset`, or `datasets.Dataset` when not streaming; columns as in [`painted_features`].

    Raises:
        ValueError: if the split is unknown, or count or num_shards is not positive.
    """
    from datasets import Dataset, IterableDataset

    _face_rng(0, split, seed)
    ranges = _split_range(count, num_shards)
    # `datasets` divides the one list among the gen_kwargs: hence a list of ranges instead of two numbers
    arguments = {"ranges": ranges, "split": split, "seed": seed, "size": size}
    if streaming:
        return IterableDataset.from_generator(_rows, features=painted_features(), gen_kwargs=arguments)
    return Dataset.from_generator(_rows, features=painted_features(), gen_kwargs=arguments)


def open_painted(place: str, split: str, seed: int):
    """
    The rows of the source `painted:COUNT`, of 64 faces when no number is given.

    Raises:
        ValueError: if `place` is not a number of faces.
    """
    if place and (not place.isdigit() or int(place) < 1):
        raise ValueError(f"painted:{place} is not a number of faces, expected for example painted:1000")
    return painted_faces(split, int(place or 64), seed=seed)


def render(
    folder: str | os.PathLike,
    split: str,
    count: int,
    seed: int = 0,
    size: int = 64,
    workers: int = 1,
    overwrite: bool = False,
    pictures_per_person: int = 1,
) -> list[Path]:
    """
    Paint the first `count` faces of a split into parquet files, going on where an earlier run stopped.

    Args:
        folder (`str` or `os.PathLike`): Where `<split>-00000.parquet`, ... will be; made when it does not exist.
        split (`str`), count (`int`), seed (`int`), size (`int`): As for [`painted_faces`].
        workers (`int`, *optional*, defaults to 1): Processes that paint.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to paint everything again.
        pictures_per_person (`int`, *optional*, defaults to 1):
            With more, so many pictures in a row show one person, see [`person_picture`].

    Returns:
        `list[Path]`: The files, in order; [`~unif2ace.training.synthetic.faces.Faces`] reads them.

    Raises:
        ValueError: if the split is unknown or count not positive, or the folder holds faces of another seed, size or
            kind, or those of an older painter.
    """
    # the sum of the first pictures tells one version of the painter from another
    first = [paint(attributes_of(i, split, seed), identity_of(i, split, seed), size) for i in range(4)]
    settings = {"seed": seed, "size": size, "checksum": int(sum(np.asarray(picture).sum() for picture in first))}
    rows = partial(_rows, split=split, seed=seed, size=size)
    if pictures_per_person > 1:
        settings["pictures_per_person"] = pictures_per_person
        rows = partial(_people_rows, split=split, seed=seed, size=size, pictures_per_person=pictures_per_person)
    return write_shards(folder, split, count, rows, painted_features(), settings, SHARD_PICTURES, workers, overwrite)


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


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the text at the top of this file."""
    parser = argparse.ArgumentParser(
        description="Paint labelled faces, with captions and questions, into parquet files.",
        epilog="example: python -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 "
        "--out runs/painted",
    )
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--count", type=int, required=True, help="number of faces")
    parser.add_argument("--out", default="runs/painted", help="folder of the files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that paint (default: 1)")
    parser.add_argument("--pictures-per-person", type=int, default=1, help="pictures of one person (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    options = vars(parser.parse_args(arguments))
    try:
        paths = render(options.pop("out"), **options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(paths[0].parent)


if __name__ == "__main__":
    main()
