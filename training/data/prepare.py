"""
`unif2ace data prepare`: a face data set whose pictures are encoded once, and read back for training.

The folder holds parquet files, one row a picture: the words of its record, `codes` of the image tokenizer and, if the
checkpoint has the encoders, `clip_features` and `face_features`. Training then needs neither pictures nor encoders.
Each file appears when it is complete. `prepared.json` says what the files were made with, and where the data set stood
after the last of them, so that a run that was cut off goes on there.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from ...pipelines.files import only_run, plain_name, read_json, replacing, write_json
from .features import encode_pictures
from .records import FaceRecord
from .sources import BrokenSamples, FaceStream
from .sources.known import stored_record


if TYPE_CHECKING:
    from ...modeling_unif2ace import UniF2aceModel

_TEXT, _PAIRS = pa.string(), pa.list_(pa.list_(pa.string()))
_WORDS = pa.schema(
    {
        **dict.fromkeys(("id", "source", "identity"), _TEXT),
        "captions": pa.list_(_TEXT),
        "questions": pa.list_(pa.struct(dict.fromkeys(("kind", "attribute", "question", "answer"), _TEXT))),
        # pairs, not a struct: records of different data sets have different names
        **dict.fromkeys(("attributes", "visible", "labels"), _PAIRS),
    }
)


class RecordStream:
    """Records by number as a stream that [`prepare`] can go on with."""

    def __init__(self, records: Sequence[FaceRecord]):
        self.records, self.done, self.broken = records, 0, BrokenSamples("the records")

    def __iter__(self) -> Iterator[FaceRecord]:
        while self.done < len(self.records):
            self.done += 1
            yield self.records[self.done - 1]

    def state_dict(self) -> dict[str, int]:
        """The number of records that were taken."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` gave."""
        self.done = state["done"]


def prepare(
    stream: FaceStream | RecordStream,
    folder: str | Path,
    model: "UniF2aceModel",
    image_processor: Any,
    made_with: Mapping[str, Any],
    *,
    part: tuple[int, int] = (0, 1),
    shard_size: int = 1000,
    batch_size: int = 16,
    features: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """
    Encode a data set into parquet files, going on where an earlier run stopped.

    Args:
        stream ([`FaceStream`] or [`RecordStream`]): The data set; the latter is not divided into parts.
        folder (`str` or `Path`): Where the files go; made when it does not exist.
        model ([`UniF2aceModel`]): Its image tokenizer and encoders.
        image_processor: Prepares pictures for it.
        made_with (`Mapping`): What has to be equal for files to belong together: source, columns, checkpoint.
        part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            This machine's number and how many share the work; each has files of its own.
        shard_size (`int`, *optional*, defaults to 1000): Pictures in a file.
        batch_size (`int`, *optional*, defaults to 16): Pictures that are encoded at a time.
        features (`bool`, *optional*, defaults to `True`): Whether CLIP and face features are kept beside the codes.
        overwrite (`bool`, *optional*, defaults to `False`): Whether files that were made otherwise are replaced.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        `Path`: The manifest of this part.

    Raises:
        ValueError: if the folder holds files that were made otherwise and `overwrite` is not given, or another run
            writes the same part.
        TooManyBrokenSamplesError: if too many samples are broken; what was encoded stays.
    """
    rank, world_size = part
    if not 0 <= rank < world_size:
        raise ValueError(f"part={rank}/{world_size}, expected a number from 0 and how many there are, 0/4 to 3/4")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"prepared-{rank}.json" if world_size > 1 else "prepared.json")
    settings = json.loads(json.dumps({**made_with, "parts": world_size, "features": features}))

    def encoded(records: list[FaceRecord]) -> dict[str, np.ndarray]:
        pixels = image_processor([record.image for record in records], return_tensors="pt")
        return encode_pictures(model, pixels, features=features)

    with only_run(folder / f".{path.stem}.lock"):
        for left in folder.glob(f".part-{rank:03}-*.part.parquet"):  # of a run that was killed
            left.unlink()
        manifest = _manifest(folder, path, settings, overwrite)
        if manifest["complete"]:
            return path
        if world_size > 1:
            stream = stream.split_by_node(rank, world_size)
        if manifest["state"] is not None:
            stream.load_state_dict(manifest["state"])
        done = sum(shard["rows"] for shard in manifest["shards"])
        with tqdm(initial=done, desc="preparing", unit="face", disable=None if progress else True) as bar:
            records = iter(stream)
            while shard := list(islice(records, shard_size)):
                file = f"part-{rank:03}-{len(manifest['shards']):05}.parquet"
                with replacing(folder / file) as part_file:
                    pyarrow.parquet.write_table(_table(shard, encoded, batch_size, bar), part_file)
                manifest["shards"].append({"file": file, "rows": len(shard)})
                manifest["state"] = stream.state_dict()  # where the next run goes on
                write_json(path, manifest)
        manifest |= {"complete": True, "state": None, "broken": stream.broken.state_dict()}
        write_json(path, manifest)
    return path


def _manifest(folder: Path, path: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The manifest to go on with; those of files that were made otherwise are refused, or removed with their files."""
    manifest: dict[str, Any] = {"settings": settings, "shards": [], "state": None, "complete": False}
    for other, found in _manifests(folder):
        if found["settings"] == settings:
            manifest = found if other == path else manifest
            continue
        if not overwrite:
            name = min(name for name in settings if settings[name] != found["settings"].get(name))
            raise ValueError(
                f"{other} says {name}={found['settings'].get(name)!r}, but {settings[name]!r} is asked for: choose "
                "another folder, delete it, or replace its files with --overwrite"
            )
        for shard in found["shards"]:
            (folder / shard["file"]).unlink(missing_ok=True)
            (folder / shard["file"]).with_suffix(".arrow").unlink(missing_ok=True)
        other.unlink()
    return manifest


_SHARD = re.compile(r"part-\d{3,}-\d{5,}\.parquet")


def _manifests(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """
    The manifests of a folder. What they say may come from strangers: it decides which files are read and deleted.

    Raises:
        ValueError: if one is none that [`prepare`] wrote, or names a file that [`prepare`] would not write.
    """
    found = []
    for path in sorted(folder.glob("prepared*.json")):
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("shards"), list):
            raise ValueError(f"{path} is no manifest of `unif2ace data prepare`: delete it, or choose another folder")
        for shard in content["shards"]:
            name = plain_name(shard.get("file") if isinstance(shard, dict) else shard, path)
            if not _SHARD.fullmatch(name) or (folder / name).is_symlink():
                raise ValueError(
                    f"{path} names the file {name!r}, expected part-NUMBER-NUMBER.parquet: do not trust it"
                )
        if not isinstance(content.get("settings"), dict):
            raise ValueError(f"{path} lacks its settings: delete it, or choose another folder")
        found.append((path, {"state": None, "complete": False} | content))
    return found


def _table(records: list[FaceRecord], encoded: Callable, batch_size: int, bar) -> pa.Table:
    """The Arrow table of records. Features are flat lists; their shape is in the metadata of the column."""
    if without := sum(record.image is None for record in records):
        raise ValueError(f"{without} records have no picture to encode: give a data set with pictures")
    columns: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        for name, values in encoded(batch).items():
            columns.setdefault(name, []).append(values)
        bar.update(len(batch))
    rows = []
    for record in records:
        row = vars(record) | {"questions": list(map(vars, record.questions))}
        row |= {name: list(row[name].items()) for name in ("attributes", "labels")}
        rows.append(row | {"visible": [(name, "yes" if seen else "no") for name, seen in record.visible.items()]})
    table = pa.Table.from_pylist([{name: row[name] for name in _WORDS.names} for row in rows], schema=_WORDS)
    for name, parts in columns.items():
        values = np.concatenate(parts)
        array = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        shape = {"shape": json.dumps(values.shape[1:])}
        table = table.append_column(pa.field(name, array.type, metadata=shape), array)
    return table


class _Column(Sequence):
    """One column of features, one array a picture."""

    def __init__(self, table, name: str):
        self.column = table.column(name)
        self.shape = json.loads(table.schema.field(name).metadata[b"shape"])

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, number: int) -> np.ndarray:
        flat = self.column[number].values.to_numpy(zero_copy_only=False)
        return (flat.astype(np.int64) if flat.dtype == np.int32 else flat.astype(np.float32)).reshape(self.shape)


class PreparedFaces(Sequence):
    """
    What [`prepare`] wrote: face records without pictures, and the columns that stand for these.

    Files are turned into uncompressed Arrow files once, beside them, and mapped into memory: any row is read without
    reading the others.

    Args:
        folder (`str` or `Path`): The folder.

    Attributes:
        columns (`dict[str, Sequence]`): `codes`, `clip_features`, `face_features`, as far as there are any.

    Raises:
        FileNotFoundError: if there is no complete data set.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        files = [self.folder / shard["file"] for shard in _shards(self.folder)]
        table = pa.concat_tables([_mapped(path) for path in files], promote_options="permissive")
        self.columns = {name: _Column(table, name) for name in table.column_names if name not in _WORDS.names}
        self.words = table.drop_columns(list(self.columns))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, number: int) -> FaceRecord:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        row = self.words.slice(number, 1).to_pylist()[0]
        row |= {name: dict(row[name]) for name in ("attributes", "visible", "labels")}
        return stored_record(row | {"visible": {name: seen == "yes" for name, seen in row["visible"].items()}})


def _shards(folder: Path) -> Iterator[dict[str, Any]]:
    manifests = [content for _, content in _manifests(folder)]
    if not manifests:
        raise FileNotFoundError(f"{folder} holds no prepared data: make them with `unif2ace data prepare`")
    wanted = manifests[0]["settings"].get("parts", 1)
    complete = sum(manifest["complete"] for manifest in manifests)
    if complete < wanted:
        raise FileNotFoundError(
            f"{folder} holds {complete} of {wanted} complete parts: run `unif2ace data prepare` again to go on"
        )
    shards = [shard for manifest in manifests for shard in manifest["shards"]]
    if not shards:
        raise FileNotFoundError(f"{folder} holds no sample")
    if missing := [shard["file"] for shard in shards if not (folder / shard["file"]).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {missing[0]}: make it anew with `unif2ace data prepare --overwrite`")
    return iter(shards)


def _mapped(path: Path):
    """A parquet file as a memory-mapped Arrow table."""
    arrow = path.with_suffix(".arrow")
    if not arrow.exists() or arrow.stat().st_mtime < path.stat().st_mtime:
        table = pyarrow.parquet.read_table(path)
        try:
            with (
                replacing(arrow) as part,
                pa.OSFile(str(part), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)
        except OSError:  # a folder that cannot be written to, or a full disk: the table stays in memory
            return table
    return pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
