"""
The one form of every synthetic world: a folder with `train-00000.parquet`, `train-00001.parquet`, ... of each split,
with the fields of [`~unif2ace.training.data.records.FaceRecord`] as columns. [`write_shards`] makes it, [`Faces`]
reads it, also while it is still being made.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...modeling_unif2ace.pictures_unif2ace import load_image
from ...pipelines.files import replacing, write_text
from ..data.features import fingerprint
from ..data.language.attributes import ATTRIBUTES, WORLD_VALUES


SPLITS = ("train", "validation", "test")
_COLUMNS = ("image", "attributes", "visible", "identity", "codes")


class Faces:
    """
    The faces of one split. Pictures are kept as they are stored and decoded when they are asked for.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        split (`str`, *optional*, defaults to `"train"`): The split.
        at_least (`int`, *optional*, defaults to 1): Faces that are needed.
        half (`int`, *optional*):
            0 or 1 takes every second person only, so that two networks can learn from different people.

    Attributes:
        attributes (`list[dict[str, str]]`): Of each face.
        visible (`list[dict[str, bool]]`): For each face and attribute, whether the picture shows it.
        identities (`list[str]`): Who it is.
        codes (`list[np.ndarray]`): Image codes (N,) uint16 of an encoded folder, see [`encode_faces`]; else empty.

    Raises:
        FileNotFoundError: if there are fewer faces.
    """

    def __init__(self, folder: str | os.PathLike, split: str = "train", at_least: int = 1, half: int | None = None):
        self.folder, self.split, self.half = Path(folder), split, half
        self.attributes, self.visible, self.identities, self.codes = [], [], [], []
        self._stored: list[bytes] = []
        self._read: set[Path] = set()
        self._people: dict[str, int] = {}
        self.reload()
        if len(self) < at_least:
            raise FileNotFoundError(
                f"{folder} holds {len(self)} {split} faces, expected at least {at_least}; make them with `unif2ace "
                f"data render --split {split} --count {at_least} --out {folder}`, or paint them with `python -m "
                f"unif2ace.training.synthetic.painted.dataset --split {split} --count {at_least} --out {folder}`"
            )

    def reload(self) -> None:
        """Take in the files that have appeared since."""
        import pyarrow.parquet

        for path in _shards(self.folder, self.split):
            if path in self._read:
                continue
            self._read.add(path)
            file = pyarrow.parquet.ParquetFile(path)
            table = file.read(columns=[name for name in _COLUMNS if name in file.schema_arrow.names])
            for row in table.to_pylist():
                person = self._people.setdefault(row["identity"], len(self._people))
                if self.half is not None and person % 2 != self.half:
                    continue
                self._stored.append(row["image"]["bytes"])
                self.attributes.append(row["attributes"])
                self.visible.append(row["visible"])
                self.identities.append(row["identity"])
                if "codes" in row:
                    self.codes.append(np.asarray(row["codes"], np.uint16))

    def __len__(self) -> int:
        return len(self._stored)

    def pictures(self, numbers: Sequence[int] | None = None) -> np.ndarray:
        """Pictures (faces, side, side, 3) uint8, of all faces or of some."""
        numbers = range(len(self)) if numbers is None else numbers
        return np.stack([np.asarray(load_image(self._stored[n])) for n in numbers])

    def pixels(self, numbers: Sequence[int] | None = None) -> torch.Tensor:
        """The same as float (faces, 3, side, side) in [-1, 1]."""
        return to_pixel_values(self.pictures(numbers))

    @property
    def side(self) -> int:
        """Pixels along one side of a picture."""
        return self.pictures([0]).shape[1]

    @property
    def labels(self) -> dict[str, list[str]]:
        """The attributes of this world with their values: the common ones, and those that only some worlds have."""
        here = {name: {face[name] for face in self.attributes} for name in ATTRIBUTES if name in self.attributes[0]}
        more = {name: [value for value in WORLD_VALUES.get(name, ()) if value in here[name]] for name in here}
        return {name: [*ATTRIBUTES[name], *more[name]] for name in here}

    def targets(self, numbers: Sequence[int], labels: dict[str, list[str]]) -> torch.LongTensor:
        """Class numbers (faces, attributes); -100, which cross-entropy ignores, where a picture does not show it."""
        rows = [
            [
                values.index(self.attributes[n][name]) if self.visible[n][name] else -100
                for name, values in labels.items()
            ]
            for n in numbers
        ]
        return torch.tensor(rows)

    def people(self) -> dict[str, list[int]]:
        """Person -> the numbers of his pictures, of those who have at least two."""
        found: dict[str, list[int]] = {}
        for number, name in enumerate(self.identities):
            found.setdefault(name, []).append(number)
        return {name: numbers for name, numbers in found.items() if len(numbers) > 1}

    def lasting(self) -> list[str]:
        """The attributes that are equal in all pictures of every person."""
        groups = self.people().values()
        return [
            name
            for name in self.labels
            if all(len({self.attributes[n][name] for n in group}) == 1 for group in groups)
        ]


def to_pixel_values(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (batch_size, side, side, 3) -> float (batch_size, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _shards(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].parquet"))


def settings_of(folder: str | os.PathLike, split: str) -> dict | None:
    """What the split's faces were made with, as [`write_shards`] noted it; `None` if it noted nothing."""
    path = Path(folder) / f"{split}.manifest"
    return json.loads(path.read_text()) if path.exists() else None


def write_shards(
    folder: str | os.PathLike,
    split: str,
    count: int,
    rows: Callable[[list[tuple[int, int]]], Iterator[dict]],
    features,
    settings: dict,
    per_file: int,
    workers: int = 1,
    overwrite: bool = False,
    row_group_size: int = 64,
) -> list[Path]:
    """
    Write the first `count` faces of a split, going on where an earlier run stopped: a file has its name only when it
    is whole.

    Args:
        folder (`str` or `os.PathLike`): Where `<split>-00000.parquet`, ... will be; made when it does not exist.
        split (`str`), count (`int`): Which faces.
        rows (`Callable`): Makes the rows of ranges of face numbers; it is sent to other processes.
        features (`datasets.Features`): Their columns.
        settings (`dict`): What the faces are made with; a folder holds faces of one kind only.
        per_file (`int`): Faces in a file.
        workers (`int`, *optional*, defaults to 1): Processes.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to make everything again.
        row_group_size (`int`, *optional*, defaults to 64): Faces that are read at once; many take less room.

    Returns:
        `list[Path]`: The files, in order.

    Raises:
        ValueError: if `count` is not positive, or the folder holds faces of other settings.
    """
    if count < 1:
        raise ValueError(f"count={count}, expected at least 1 face")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # JSON, under a name that no reader of tables takes for data
    manifest = folder / f"{split}.manifest"
    if overwrite:
        for path in (manifest, *_shards(folder, split)):
            path.unlink(missing_ok=True)
    if (found := settings_of(folder, split)) not in (None, settings):
        raise ValueError(
            f"{manifest} says that the folder holds {found}, but {settings} is asked for; choose another folder, or "
            "replace the faces with --overwrite"
        )
    write_text(manifest, json.dumps(settings))
    ranges = [(start, min(start + per_file, count)) for start in range(0, count, per_file)]
    paths = [folder / f"{split}-{number:05d}.parquet" for number in range(len(ranges))]
    jobs = [(path, *bounds) for path, bounds in zip(paths, ranges, strict=True)]
    jobs = [(path, start, stop) for path, start, stop in jobs if _shard_size(path) < stop - start]
    write = partial(_write_shard, rows=rows, features=features, row_group_size=row_group_size)
    left = sum(stop - start for _, start, stop in jobs)
    with tqdm(total=count, initial=count - left, desc=f"making {split}", unit="face", smoothing=0.1) as progress:
        if workers == 1:
            for job in jobs:
                progress.update(write(*job))
        else:
            # not forked: a fork of a process that has rendered waits for ever for threads that it does not have
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for job in as_completed([pool.submit(write, *job) for job in jobs]):
                    progress.update(job.result())
    return paths


def _write_shard(path: Path, start: int, stop: int, rows: Callable, features, row_group_size: int) -> int:
    import pyarrow
    import pyarrow.parquet

    encoded = [features.encode_example(row) for row in rows([(start, stop)])]
    with replacing(path) as part, pyarrow.parquet.ParquetWriter(part, features.arrow_schema) as writer:
        writer.write_table(pyarrow.Table.from_pylist(encoded, schema=features.arrow_schema), row_group_size)
    return stop - start


def _shard_size(path: Path) -> int:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).metadata.num_rows if path.exists() else 0


@torch.no_grad()
def encode_faces(
    tokenizer,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    split: str,
    webp_quality: int | None = None,
    per_file: int = 2_000,
) -> list[Path]:
    """
    Write what a model learns from: the faces of a split with their image codes, and pictures small enough to carry.
    The encoders' features are made of these pictures where the model is trained: those of CLIP alone would be 24 kB a
    face, a picture at quality 50 is 1 kB. Captions and questions are not stored: each pass writes them anew from the
    attributes.

    Args:
        tokenizer ([`UniF2aceVQModel`]): Makes the codes, of the pictures as they are in `folder`.
        folder (`str` or `os.PathLike`): The faces.
        out (`str` or `os.PathLike`): Folder of the encoded faces; files of other codes in it are replaced.
        split (`str`): The split.
        webp_quality (`int`, *optional*): 0 to 100 of the pictures in `out`; they stay as they are when not given.
        per_file (`int`, *optional*, defaults to 2000): Faces in a file.

    Returns:
        `list[Path]`: The files.
    """
    from datasets import Features, List, Value
    from datasets import Image as Picture

    faces = Faces(folder, split)
    text, names = Value("string"), list(faces.attributes[0])
    features = Features(
        {
            "image": Picture(),
            "attributes": dict.fromkeys(names, text),
            "visible": dict.fromkeys(names, Value("bool")),
            "identity": text,
            "codes": List(Value("uint16")),
        }
    )

    def rows(ranges: list[tuple[int, int]]) -> Iterator[dict]:
        for number in (number for bounds in ranges for number in range(*bounds)):
            stored = faces._stored[number]
            if webp_quality is not None:
                stored = _as_webp(stored, webp_quality)
            codes = tokenizer.encode(faces.pixels([number]).to(tokenizer.device))[0]
            known = {"attributes": faces.attributes[number], "visible": faces.visible[number]}
            image = {"bytes": stored, "path": None}
            yield {"image": image, **known, "identity": faces.identities[number], "codes": codes.tolist()}

    settings = {"tokenizer": fingerprint(tokenizer), "webp_quality": webp_quality}
    stale = settings_of(out, split) not in (None, settings)
    return write_shards(
        out, split, len(faces), rows, features, settings, per_file, overwrite=stale, row_group_size=per_file
    )


def _as_webp(stored: bytes, quality: int) -> bytes:
    file = io.BytesIO()
    load_image(stored).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()
