"""
Rows out of files, as `datasets.IterableDataset`: sharded, and resumable by `state_dict`.

Parquet, CSV and Arrow files are read by the builders of `datasets`. JSON lines, tar archives (WebDataset) and folders
are read here, because one bad line, member or file of theirs is a broken sample and not the end of the data set.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .samples import IMAGE_SUFFIXES


BROKEN = "__broken__"
"""The column of a row that could not be read; it says why."""

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
TABLE_SUFFIXES = (*BUILDERS, ".jsonl", ".ndjson", ".json", ".tar")
_SHARDS = 16  # parts of what has no parts of its own: enough for the workers of one machine
_MAX_MEMBER_BYTES = 2**28  # a picture's file; a compressed archive can declare anything
_MAX_TEXT_BYTES = 1_000_000  # a caption or a sample's JSON in an archive


def files_of(location: str | os.PathLike, suffixes: Iterable[str] = TABLE_SUFFIXES) -> list[Path]:
    """
    The table files at a place: the file itself, the files that a pattern names, or those directly in a folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    suffixes = tuple(suffixes)
    path = Path(location)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and not file.name.startswith("."))
    else:
        found = sorted(file for file in path.parent.glob(path.name) if file.is_file())
    if not found:
        raise FileNotFoundError(f"{location} holds no data file, expected one that ends in {', '.join(suffixes)}")
    return found


def read_rows(files: list[Path]):
    """
    The rows of data files that all have one ending.

    Args:
        files (`list[Path]`): Files that end in one of `TABLE_SUFFIXES`.

    Returns:
        `datasets.IterableDataset`; pictures are not decoded.

    Raises:
        ValueError: if the files end differently, or a file is not what its ending says.
    """
    endings = {file.suffix for file in files}
    if len(endings) != 1:
        raise ValueError(
            f"data files end in {', '.join(sorted(endings))}, expected one ending: name one kind, *.ending"
        )
    ending = endings.pop()
    if ending == ".tar":
        return from_generator(_tar_rows, [str(file) for file in files])
    if ending in (".jsonl", ".ndjson"):
        return from_generator(_json_lines, [part for file in files for part in _line_ranges(file)])
    if ending == ".json":
        return from_generator(_json_rows, [str(file) for file in files])
    return _built_rows(BUILDERS[ending], files, {"sep": "\t"} if ending == ".tsv" else {})


def _built_rows(builder: str, files: list[Path], options: dict[str, Any]):
    from datasets import load_dataset

    try:
        names = [str(file) for file in files]
        rows = load_dataset(builder, data_files=names, split="train", streaming=True, **options)
        return undecoded(rows)
    except Exception as error:  # each builder has its own errors for a file that is cut off or of another kind
        raise ValueError(
            f"{files[0]} is not a {builder} file that can be read ({error}): download it again"
        ) from error


def undecoded(rows):
    """`rows` with pictures as they are stored: a broken one must not end the whole stream."""
    from datasets import Image

    features = rows.features or rows._resolve_features().features
    for name, feature in features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def from_generator(generate: Callable[..., Iterator[dict]], parts: list, **options):
    """
    A stream of what `generate(parts, **options)` yields.

    Args:
        generate: A function of the module's top level.
        parts (`list`): The units that workers and machines share among themselves.
        options: Passed on; lists become tuples, since `datasets` divides every list.
    """
    from datasets import IterableDataset

    fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return IterableDataset.from_generator(generate, gen_kwargs={"parts": parts, **fixed})


def ranges(count: int) -> list[tuple[int, int]]:
    """0..count in as many parts as a stream should have."""
    parts = max(1, min(_SHARDS, count))
    bounds = [count * part // parts for part in range(parts + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def _line_ranges(file: Path) -> list[tuple[str, int, int]]:
    return [(str(file), start, stop) for start, stop in ranges(file.stat().st_size)]


def _json_lines(parts: list[tuple[str, int, int]]) -> Iterator[dict]:
    """The lines that begin within each range of bytes."""
    for name, start, stop in parts:
        with open(name, "rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the rest of a line that belongs to the part before
            while (place := file.tell()) < stop:
                line = file.readline()
                if line.strip():
                    yield _json_row(line, f"{Path(name).name} at byte {place}")


def _json_row(text: bytes, name: str) -> dict:
    try:
        row = json.loads(text)
    except ValueError as error:
        return {"__key__": name, BROKEN: f"the line is not JSON ({error})"}
    if not isinstance(row, dict):
        return {"__key__": name, BROKEN: f"the line is a JSON {type(row).__name__}, expected an object"}
    return {"__key__": name} | row


def _json_rows(parts: list[str]) -> Iterator[dict]:
    """The entries of JSON files: a list of objects, or an object of objects, whose names become `__key__`."""
    for name in parts:
        content = read_json(name)
        if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), list):
            content = next(iter(content.values()))  # {"data": [...]}
        if isinstance(content, dict):
            entries = content.items()
        else:
            entries = ((f"{Path(name).name} entry {number}", entry) for number, entry in enumerate(content))
        for key, entry in entries:
            if isinstance(entry, dict):
                yield {"__key__": key} | entry
            else:
                yield {"__key__": key, BROKEN: f"the entry is a {type(entry).__name__}, expected an object"}


def read_json(path: str | os.PathLike) -> Any:
    """A JSON file's content; `ValueError` names a file that is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}): download it again") from error


def _tar_rows(parts: list[str]) -> Iterator[dict]:
    """The samples of WebDataset archives: members with the same name up to the first dot."""
    for name in parts:
        sample: dict[str, Any] = {}
        try:
            with tarfile.open(name, "r|*") as archive:
                for member in archive:
                    if member.size > _MAX_MEMBER_BYTES:  # to skip it would take as long as to read it: end here
                        problem = f"the member has {member.size:,} bytes, the limit is {_MAX_MEMBER_BYTES:,}"
                        yield {"__key__": f"{Path(name).name}: {member.name}", BROKEN: problem}
                        break
                    if member.isdir():
                        continue
                    problem = _problem_of(member)
                    path = PurePosixPath(member.name)
                    stem, _, field = path.name.partition(".")
                    key = str(path.with_name(stem)) if stem else member.name
                    if problem:
                        yield {"__key__": f"{Path(name).name}: {member.name}", BROKEN: problem}
                        continue
                    if sample and sample["__key__"] != key:
                        yield sample
                        sample = {}
                    sample["__key__"] = key
                    sample[field.lower()] = _member_value(archive, member, field.lower())
        except (tarfile.TarError, EOFError, OSError) as error:
            yield {"__key__": Path(name).name, BROKEN: f"the archive is cut off or damaged ({error})"}
            continue
        if sample:
            yield sample


def _problem_of(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "the member's name leaves the archive"
    if not member.isfile():
        return "the member is not a plain file"
    return None


def _member_value(archive: tarfile.TarFile, member: tarfile.TarInfo, field: str) -> Any:
    content = archive.extractfile(member).read()
    ending = "." + field.rpartition(".")[2]
    if ending in IMAGE_SUFFIXES:
        return {"bytes": content, "path": member.name}
    if len(content) > _MAX_TEXT_BYTES:
        return content
    try:
        if ending == ".json":
            return json.loads(content)
        if ending in (".txt", ".text", ".caption", ".cls"):
            return content.decode("utf-8")
    except ValueError:  # a text that is none: whoever asks for it reports the wrong type
        return content
    return content
