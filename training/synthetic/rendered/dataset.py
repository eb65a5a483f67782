"""
The rendered faces as a data set: any number of labelled people from a seed, as parquet files or as a stream.

Face number `index` depends on `(seed, split, index)` alone. [`render_faces`] writes `train-00000.parquet`,
`train-00001.parquet`, ... of 256 pictures (32 people) each, with the fields of
[`~unif2ace.training.data.records.FaceRecord`]; a file has its name only when it is whole, and run again after an
interruption, the missing ones are made. `datasets.load_dataset` reads the folder, stored or streamed.
"""

import hashlib
import io
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...data.language.captions import write_caption
from ...data.language.questions import write_questions
from ...data.records import FaceRecord
from ..faces import write_shards
from .people import face_of
from .render import THINGS, Renderer
from .visibility import seen_in
from .vocabulary import RENDERED_ATTRIBUTES


SHARD_PICTURES = 256
JPEG_QUALITY = 90
_CAPTION_COVERAGES = (1.0, 0.7, 0.4)
_NUM_QUESTIONS = 8


def rendered_face(index: int, split: str = "train", seed: int = 0, renderer: Renderer | None = None) -> FaceRecord:
    """
    Render face number `index` and write its captions and questions.

    Args:
        index (`int`): Number of the face in its split, 0 or more; there is no last one.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.
        renderer ([`Renderer`], *optional*): Keeps people between calls; a new one of 128 pixels when not given.

    Returns:
        `FaceRecord`: The picture, captions, questions, attributes and which of them can be seen; `labels` has the
        age in years. Apparent ancestry is balanced and told nowhere.

    Raises:
        ValueError: if the split is unknown or the index negative.
        RendererMissingError, DataMissingError: if the extra `synthetic` is not installed.
    """
    return _record(index, split, seed, renderer or Renderer())[0]


def _record(index: int, split: str, seed: int, renderer: Renderer) -> tuple[FaceRecord, dict[str, int]]:
    face = face_of(index, split, seed)
    picture, pixels = renderer.render_seen(face)
    visible = seen_in(face, pixels, picture.width)
    name = f"rendered-{seed}-{split}-{index}"
    # text has a generator of its own: the faces stay the same when the wording of captions changes
    rng = random.Random(f"{name}-text")
    captions = [write_caption(face.attributes, visible, rng, coverage=share).text for share in _CAPTION_COVERAGES]
    record = FaceRecord(
        image=picture,
        captions=captions,
        questions=write_questions(face.attributes, visible, rng, _NUM_QUESTIONS),
        attributes=face.attributes,
        visible=visible,
        identity=face.identity,
        source="rendered",
        id=name,
        labels={"years": str(round(face.years))},
    )
    return record, pixels


def rendered_features():
    """The `datasets.Features` of a rendered face: the fields of `FaceRecord`, and pixels by thing."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "image": Image(),
            "captions": List(text),
            "attributes": dict.fromkeys(RENDERED_ATTRIBUTES, text),
            "visible": dict.fromkeys(RENDERED_ATTRIBUTES, Value("bool")),
            "identity": text,
            "questions": List(dict.fromkeys(("kind", "attribute", "question", "answer"), text)),
            "labels": {"years": text},
            "pixels": dict.fromkeys(THINGS, Value("int32")),
            "source": text,
            "id": text,
        }
    )


def _row(record: FaceRecord, pixels: dict[str, int]) -> dict:
    file = io.BytesIO()
    record.image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    row = {name: getattr(record, name) for name in ("captions", "attributes", "visible", "identity", "labels")}
    row["questions"] = [
        {"kind": item.kind, "attribute": item.attribute, "question": item.question, "answer": item.answer}
        for item in record.questions
    ]
    image = {"bytes": file.getvalue(), "path": f"{record.id}.jpg"}
    row["pixels"] = {name: pixels.get(name, 0) for name in THINGS}
    return row | {"image": image, "source": record.source, "id": record.id}


def _rows(ranges: list[tuple[int, int]], split: str, seed: int, size: int) -> Iterator[dict]:
    renderer = Renderer(size)
    for start, stop in ranges:
        for index in range(start, stop):
            yield _row(*_record(index, split, seed, renderer))


def _ranges(count: int) -> list[tuple[int, int]]:
    if count < 1:
        raise ValueError(f"count={count}, expected at least 1 face")
    return [(start, min(start + SHARD_PICTURES, count)) for start in range(0, count, SHARD_PICTURES)]


def rendered_faces(split: str, count: int, seed: int = 0, size: int = 128):
    """
    The first `count` rendered faces of a split as a `datasets.IterableDataset`, rendered while one iterates.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        count (`int`): Number of faces.
        seed (`int`, *optional*, defaults to 0): Seed of the whole data set.
        size (`int`, *optional*, defaults to 128): Side of the pictures, in pixels.

    Raises:
        ValueError: if the split is unknown or count is not positive.
    """
    from datasets import IterableDataset

    face_of(0, split, seed)
    arguments = {"ranges": _ranges(count), "split": split, "seed": seed, "size": size}
    return IterableDataset.from_generator(_rows, features=rendered_features(), gen_kwargs=arguments)


def renderer_version() -> str:
    """A name for the look of the pictures: changes with every change of this package's code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("dataset", "visibility", "__init__"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def render_faces(
    folder: str | os.PathLike,
    split: str,
    count: int,
    seed: int = 0,
    size: int = 128,
    workers: int = 1,
    overwrite: bool = False,
) -> list[Path]:
    """
    Render the first `count` faces of a split into parquet files, going on where an earlier run stopped.

    Args:
        folder (`str` or `os.PathLike`): Where `<split>-00000.parquet`, ... will be; made when it does not exist.
        split (`str`), count (`int`), seed (`int`), size (`int`): As for [`rendered_faces`].
        workers (`int`, *optional*, defaults to 1): Processes that render.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to render everything again.

    Returns:
        `list[Path]`: The files, in order.

    Raises:
        ValueError: if the folder holds faces of another seed, size or version of the renderer.
    """
    face_of(0, split, seed)
    settings = {"seed": seed, "size": size, "renderer": renderer_version()}
    rows = partial(_rows, split=split, seed=seed, size=size)
    return write_shards(folder, split, count, rows, rendered_features(), settings, SHARD_PICTURES, workers, overwrite)
