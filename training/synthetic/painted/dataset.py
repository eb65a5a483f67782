"""
The painted faces as a data set: any number of labelled faces from a seed, streamed without being stored.

The picture and labels of face number `index` depend on `(seed, split, index)` alone, so every machine, worker and run
paints the same faces. Training reads thousands of them many times over, hence a render cache:

    python -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 --out runs/painted --workers 2

writes `runs/painted/train-00000.npy`, `train-00001.npy`, ... (2,000 pictures each, complete as soon as they have that
name; [`load_rendered`] reads them while the rest is being painted) and joins them to `train.npy` in the end, an array
(count, size, size, 3) of uint8. Run again after an interruption, it goes on with the first missing chunk.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ....pipelines.files import replacing, write_text
from ...data.language.attributes import ATTRIBUTES, sample_attributes, sample_identity
from ...data.language.captions import write_caption
from ...data.language.questions import write_questions
from ...data.language.visibility import assumed_visible
from ...data.records import FaceRecord
from .painter import paint


SPLITS = ("train", "validation", "test")
CHUNK_PICTURES = 2_000
_BLOCK_PICTURES = 50  # pictures a worker paints before it reports: small enough for a live progress bar
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
    attributes = attributes_of(index, split, seed)
    visible = assumed_visible(attributes)
    # text has a generator of its own: the faces stay the same when the wording of captions changes
    rng = _face_rng(index, split, seed, "-text")
    name = f"painted-{seed}-{split}-{index}"
    return FaceRecord(
        image=paint(attributes, identity_of(index, split, seed), size),
        captions=[write_caption(attributes, visible, rng, coverage=share).text for share in _CAPTION_COVERAGES],
        questions=write_questions(attributes, visible, rng, _NUM_QUESTIONS),
        attributes=attributes,
        visible=visible,
        identity=name,
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


def write_parquet(
    path: str | os.PathLike, split: str, count: int, seed: int = 0, size: int = 64, overwrite: bool = False
) -> Path:
    """
    Write the first `count` painted faces of a split to one Parquet file that `datasets` and the Hub's viewer read.

    Args:
        path (`str` or `os.PathLike`): The file to write. It appears only when it is complete.
        split (`str`), count (`int`), seed (`int`), size (`int`): As for [`painted_faces`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing file may be replaced.

    Returns:
        `pathlib.Path`: The file.

    Raises:
        FileExistsError: if the file exists and `overwrite` is not given.
        ValueError: if the split is unknown or count is not positive.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another path, or replace it with overwrite=True (--overwrite)")
    _face_rng(0, split, seed)
    features = painted_features()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, pyarrow.parquet.ParquetWriter(part, features.arrow_schema) as writer:
        for start in tqdm(range(0, count, 100), desc=path.name, unit="00 faces"):
            rows = _rows([(start, min(start + 100, count))], split, seed, size)
            encoded = [features.encode_example(row) for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(encoded, schema=features.arrow_schema))
    return path


def _paint_block(block: tuple[int, int], split: str, seed: int, size: int) -> np.ndarray:
    pictures = np.empty((block[1] - block[0], size, size, 3), dtype=np.uint8)
    for place, index in enumerate(range(*block)):
        pictures[place] = np.asarray(paint(attributes_of(index, split, seed), identity_of(index, split, seed), size))
    return pictures


def _save_atomically(path: Path, pictures: np.ndarray) -> None:
    with replacing(path) as part:
        np.save(part, pictures)


def _chunk_path(folder: Path, split: str, chunk: int) -> Path:
    return folder / f"{split}-{chunk:05d}.npy"


def _check_settings(folder: Path, split: str, settings: dict) -> None:
    """Refuse to mix faces of different seeds, sizes or painters in one cache."""
    path = folder / f"{split}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != settings:
            raise ValueError(
                f"{path} says that the cache holds {found}, but {settings} is asked for; choose another folder, or "
                f"replace the cache with --overwrite"
            )
    write_text(path, json.dumps(settings))


def render(
    folder: str | os.PathLike,
    split: str,
    count: int,
    seed: int = 0,
    size: int = 64,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """
    Paint the first `count` faces of a split into the render cache, going on where an earlier run stopped.

    Args:
        folder (`str` or `os.PathLike`): Where `<split>.npy` will be; made when it does not exist.
        split (`str`), count (`int`), seed (`int`), size (`int`): As for [`painted_faces`].
        workers (`int`, *optional*, defaults to 1): Processes that paint.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to paint everything again.

    Returns:
        `pathlib.Path`: `<folder>/<split>.npy`, an array (count or more, size, size, 3) of uint8.

    Raises:
        ValueError: if the folder holds faces of another seed or size, or those of an older painter.
    """
    _face_rng(0, split, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / f"{split}.npy"
    if overwrite:
        for path in [joined, folder / f"{split}.json", *_chunk_files(folder, split)]:
            path.unlink(missing_ok=True)
    # the sum of the first pictures tells one version of the painter from another
    checksum = int(_paint_block((0, 4), split, seed, size).sum())
    _check_settings(folder, split, {"seed": seed, "size": size, "checksum": checksum})

    done = len(np.load(joined, mmap_mode="r")) if joined.exists() else 0
    if done >= count:
        return joined
    chunks = [(start, min(start + CHUNK_PICTURES, count)) for start in range(0, count, CHUNK_PICTURES)]
    with (
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=count, desc=f"painting {split}", unit="face", smoothing=0.1) as progress,
    ):
        for number, (start, stop) in enumerate(chunks):
            path = _chunk_path(folder, split, number)
            finished = stop <= done or (path.exists() and len(np.load(path, mmap_mode="r")) >= stop - start)
            if not finished:
                blocks = [(at, min(at + _BLOCK_PICTURES, stop)) for at in range(start, stop, _BLOCK_PICTURES)]
                pictures = []
                for block in pool.map(partial(_paint_block, split=split, seed=seed, size=size), blocks):
                    pictures.append(block)
                    progress.update(len(block))
                _save_atomically(path, np.concatenate(pictures))
            else:
                progress.update(stop - start)
    _join_chunks(folder, split, joined, done, chunks, size)
    return joined


def _chunk_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].npy"))


def _join_chunks(folder: Path, split: str, joined: Path, done: int, chunks: list[tuple[int, int]], size: int) -> None:
    shape = (chunks[-1][1], size, size, 3)
    with replacing(joined) as part:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        if done:
            array[:done] = np.load(joined, mmap_mode="r")
        for number, (start, stop) in enumerate(chunks):
            if stop > done:
                array[start:stop] = np.load(_chunk_path(folder, split, number), mmap_mode="r")[: stop - start]
        array.flush()
        del array
    for path in _chunk_files(folder, split):
        path.unlink()


def load_rendered(folder: str | os.PathLike, split: str, at_least: int = 1) -> np.ndarray:
    """
    Read the render cache; while it is still being painted, the chunks from the first on that are complete.

    Args:
        folder (`str` or `os.PathLike`): The folder given to [`render`].
        split (`str`): One of `SPLITS`.
        at_least (`int`, *optional*, defaults to 1): Pictures that are needed.

    Returns:
        `np.ndarray` of uint8 and shape (pictures, size, size, 3), read-only; picture i is face number i.

    Raises:
        FileNotFoundError: if there are fewer than `at_least` pictures.
    """
    folder = Path(folder)
    joined = folder / f"{split}.npy"
    pictures = np.load(joined, mmap_mode="r") if joined.exists() else np.empty((0, 0, 0, 3), dtype=np.uint8)
    if not len(pictures):
        parts = []
        for number, path in enumerate(_chunk_files(folder, split)):
            if path != _chunk_path(folder, split, number):
                break
            parts.append(np.load(path))
        if parts:
            pictures = np.concatenate(parts)
    if len(pictures) < at_least:
        raise FileNotFoundError(
            f"{folder} holds {len(pictures)} painted {split} faces, expected at least {at_least}; paint them with "
            f"`python -m unif2ace.training.synthetic.painted.dataset --split {split} --count {at_least} "
            f"--out {folder}`"
        )
    return pictures


def rendered_seed(folder: str | os.PathLike, split: str) -> int:
    """The seed that the render cache of `split` was painted with, which its attributes need; 0 when it says none."""
    path = Path(folder) / f"{split}.json"
    return json.loads(path.read_text())["seed"] if path.exists() else 0


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


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the text at the top of this file."""
    parser = argparse.ArgumentParser(
        description="Paint labelled faces into a render cache (.npy) for training, or into a Parquet file.",
        epilog="example: python -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 "
        "--out runs/painted",
    )
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--count", type=int, required=True, help="number of faces")
    parser.add_argument("--out", default="runs/painted", help="folder of the render cache (default: %(default)s)")
    parser.add_argument("--parquet", help="write this Parquet file, with captions and questions, instead of the cache")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that paint the cache (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    options = parser.parse_args(arguments)
    try:
        common = (options.split, options.count, options.seed, options.size)
        if options.parquet:
            path = write_parquet(options.parquet, *common, overwrite=options.overwrite)
        else:
            path = render(options.out, *common, workers=options.workers, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(path)


if __name__ == "__main__":
    main()
