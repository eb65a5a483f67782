"""
Rows out of files, as `datasets.IterableDataset`: sharded, and resumable by `state_dict`.

Parquet and Arrow files are read by the builders of `datasets`. CSV, JSON (lines), tar archives (WebDataset) and
folders are read here, because one bad line, member or file of theirs is a broken sample and not the end of the data
set, and because their texts stay texts: `0012` is no number and "None" is not nothing.
"""

import csv
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ....pipelines.files import parse_json, read_json
from .samples import IMAGE_SUFFIXES, BrokenSampleError


BROKEN = "__broken__"
"""The column of a row that could not be read; it says why."""

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
TABLE_SUFFIXES = (*BUILDERS, ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".tar")
_SHARDS = 16  # parts of what has no parts of its own: enough for the workers of one machine
_MAX_LINE_BYTES = 64 * 2**20  # a row of JSON lines or CSV
_MAX_JSON_BYTES = 2**31  # a JSON file, which is read as a whole
_MAX_MEMBER_BYTES = 2**28  # a picture's file; a compressed archive can declare anything
_MAX_TEXT_BYTES = 1_000_000  # a caption or a sample's JSON in an archive
_MAX_SAMPLE_BYTES, _MAX_SAMPLE_FIELDS = 64 * 2**20, 100  # all members of one sample of an archive
_MAX_UNPACKED, _MAX_RATIO = 2**30, 100  # bytes of a compressed archive: at least so many, or so many times its size


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
        found = sorted(
            file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")
        )
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
    endings = {file.suffix.lower() for file in files}
    if len(endings) != 1:
        raise ValueError(
            f"data files end in {', '.join(sorted(endings))}, expected one ending: name one kind, *.ending"
        )
    ending = endings.pop()
    if ending in BUILDERS:
        return _built_rows(BUILDERS[ending], files)
    generate, parts = row_parts(files)
    return from_generator(generate, parts)


def row_parts(files: list[Path]) -> tuple[Callable[[list], Iterator[dict]], list]:
    """What reads files of one ending here, and the parts that workers share."""
    ending = files[0].suffix.lower()
    if ending == ".tar":
        return _tar_rows, [str(file) for file in files]
    if ending in (".jsonl", ".ndjson"):
        return _json_lines, [part for file in files for part in _line_ranges(file)]
    if ending == ".json":
        return _json_rows, [str(file) for file in files]
    if ending in (".csv", ".tsv"):
        return _csv_rows, [part for file in files for part in csv_parts(file)]
    raise ValueError(f"{files[0]} is no data file, expected one that ends in {', '.join(TABLE_SUFFIXES)}")


def rows_of(file: Path) -> Iterator[dict]:
    """The rows of one file, in its order."""
    if file.suffix.lower() in BUILDERS:
        return iter(read_rows([file]))
    generate, parts = row_parts([file])
    return generate(parts)


def _built_rows(builder: str, files: list[Path]):
    from datasets import load_dataset

    try:
        names = [str(file) for file in files]
        rows = load_dataset(builder, data_files=names, split="train", streaming=True)
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


# Texts


def decode(content: bytes, name: str) -> str:
    """
    A text file's content: UTF-8, or UTF-16 if it begins with a mark of byte order (Notepad, Excel).

    Raises:
        BrokenSampleError: if it is neither.
    """
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenSampleError(f"{name} is not UTF-8 ({error}): save it as UTF-8") from error


def text_lines(text: str) -> list[str]:
    """The lines of a text, at the ends of lines that editors write, without the empty ones."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


# JSON


def _line_ranges(file: Path) -> list[tuple[str, int, int]]:
    return [(str(file), start, stop) for start, stop in ranges(file.stat().st_size)]


def _json_lines(parts: list[tuple[str, int, int]]) -> Iterator[dict]:
    """The lines that begin within each range of bytes."""
    for name, start, stop in parts:
        with open(name, "rb") as file:
            if start:
                file.seek(start - 1)
                _read_line(file)  # the rest of a line that belongs to the part before
            while (place := file.tell()) < stop:
                line = _read_line(file)
                if line is None:
                    problem = f"the line has more than {_MAX_LINE_BYTES:,} bytes"
                    yield {"__key__": f"{Path(name).name} at byte {place}", BROKEN: problem}
                elif line.strip():
                    yield _json_row(line, f"{Path(name).name} at byte {place}")


def _read_line(file) -> bytes | None:
    """A line; `None` for one that is too long, which is passed over."""
    line = file.readline(_MAX_LINE_BYTES)
    if len(line) < _MAX_LINE_BYTES or line.endswith(b"\n"):
        return line
    while line and not line.endswith(b"\n"):
        line = file.readline(_MAX_LINE_BYTES)
    return None


def _json_row(text: bytes, name: str) -> dict:
    try:
        row = parse_json(text, "the line")
    except ValueError as error:
        return {"__key__": name, BROKEN: str(error)}
    if not isinstance(row, dict):
        return {"__key__": name, BROKEN: f"the line is a JSON {type(row).__name__}, expected an object"}
    return {"__key__": name} | row


def _json_rows(parts: list[str]) -> Iterator[dict]:
    """
    The entries of JSON files: a list of objects, or an object whose names become `__key__`, of objects or captions.
    """
    for name in parts:
        if (size := Path(name).stat().st_size) > _MAX_JSON_BYTES:
            raise ValueError(f"{name} has {size:,} bytes, the limit is {_MAX_JSON_BYTES:,}: write it as JSON lines")
        content = read_json(name)
        if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), list):
            content = next(iter(content.values()))  # {"data": [...]}
        if isinstance(content, dict):
            entries: Iterable = content.items()
        elif isinstance(content, list):
            entries = ((f"{Path(name).name} entry {number}", entry) for number, entry in enumerate(content))
        else:
            raise ValueError(f"{name} is a JSON {type(content).__name__}, expected a list or an object of entries")
        for key, entry in entries:
            if isinstance(entry, str) and isinstance(content, dict):
                entry = {"caption": entry}
            if isinstance(entry, dict):
                yield {"__key__": key} | entry
            else:
                yield {"__key__": key, BROKEN: f"the entry is a {type(entry).__name__}, expected an object"}


# CSV


@dataclass(frozen=True)
class CsvForm:
    """
    How a CSV file is written.

    Args:
        encoding (`str`): `"utf-8"`, `"utf-16"` (with a mark of byte order) or `"cp1252"` (Windows).
        delimiter (`str`): `,`, `;`, tab or `|`.
        columns (`tuple[str, ...]`): Names of the columns.
        skipped (`int`): Lines before the first row: that of the names, `sep=;`.
    """

    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    skipped: int


_DELIMITERS = (",", ";", "\t", "|")
_MAX_RECORD_LINES = 200  # of a row with line breaks in quotes; more of them are a quote that is not closed


def csv_form(file: Path) -> CsvForm:
    """
    Find out how a CSV file is written: as RFC 4180 says, as Excel saves it in any country, or as tab-separated text.

    Raises:
        ValueError: if it is empty.
    """
    with open(file, "rb") as opened:
        start = opened.read(2**18)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    if encoding == "utf-8" and not _is_utf8(file):
        encoding = "cp1252"
    lines = list(islice((line for _, line in _lines(file, encoding) if line.strip()), 50))
    if not lines:
        raise ValueError(f"{file} is empty, expected a line with the names of its columns")
    skipped = 0
    if match := re.fullmatch(r'"?sep=(.)"?\s*', lines[0]):
        delimiter, lines, skipped = match[1], lines[1:], 1
    elif file.suffix.lower() == ".tsv":
        delimiter = "\t"
    else:
        delimiter = max(_DELIMITERS, key=lambda sign: _fit(lines, sign))
    names = next((fields for _, fields in _records(iter(enumerate(lines)), delimiter) if fields), None)
    if not names:
        raise ValueError(f"{file} has no line with the names of its columns")
    if any(name.strip().lower().endswith(tuple(IMAGE_SUFFIXES)) for name in names):  # a row: there are no names
        usual = ("file_name", "caption")
        return CsvForm(
            encoding,
            delimiter,
            usual if len(names) == 2 else tuple(f"column {n + 1}" for n in range(len(names))),
            skipped,
        )
    seen: Counter[str] = Counter()
    columns = []
    for name in (name.strip() or f"column {number + 1}" for number, name in enumerate(names)):
        seen[name] += 1
        columns.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return CsvForm(encoding, delimiter, tuple(columns), skipped + 1)


def _fit(lines: list[str], delimiter: str) -> tuple[int, int, int]:
    """How well a delimiter explains some lines: the more rows have as many fields as the first, the better."""
    counts = [len(fields) for _, fields in _records(iter(enumerate(lines)), delimiter) if fields]
    if not counts or counts[0] < 2:
        return (0, 0, 0)
    return (1, sum(count == counts[0] for count in counts), -_DELIMITERS.index(delimiter))


def _is_utf8(file: Path) -> bool:
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(file, "rb") as opened:
            while part := opened.read(2**20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _lines(file: Path, encoding: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """The lines of a text file with the byte at which each begins (of UTF-16 the character); a mark is left out."""
    if encoding == "utf-16":
        place = 0
        for line in io.StringIO(file.read_bytes().decode("utf-16", errors="replace"), newline=""):
            yield place, line
            place += len(line)
        return
    with open(file, "rb") as opened:
        opened.seek(start)
        place = start
        while line := opened.readline(_MAX_LINE_BYTES):
            text = line.decode(encoding, errors="replace")
            # old Macs end lines with \r alone
            pieces = re.split(r"(?<=\r)(?!\n)", text) if "\r" in text[:-2] and not text.endswith("\r\n") else [text]
            for piece in filter(None, pieces):
                yield place, piece.removeprefix("\ufeff") if place == 0 else piece
                place += len(piece.encode(encoding, errors="replace"))
            place = opened.tell()


def _records(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """The fields of each record with the place where it begins; `None` for one that is not CSV."""
    waiting: list[tuple[int, str]] = []
    while True:
        taken: list[tuple[int, str]] = []

        def take(taken=taken) -> Iterator[str]:
            while len(taken) < _MAX_RECORD_LINES:
                line = waiting.pop(0) if waiting else next(lines, None)
                if line is None:
                    return
                taken.append(line)
                yield line[1]

        try:
            fields = next(csv.reader(take(), delimiter=delimiter, strict=True), None)
        except csv.Error:
            fields = None
            waiting[:0] = taken[1:]  # a quote that is not closed costs its own line only
        if not taken:
            return
        if fields is None or any(field.strip() for field in fields):
            yield taken[0][0], fields


def csv_parts(file: Path) -> list[tuple[str, CsvForm, int, float, int]]:
    """The file in parts that begin at a record: (name, form, first byte, byte after the last, records before it)."""
    form = csv_form(file)
    wanted = file.stat().st_size / _SHARDS
    places: list[tuple[int, int]] = []
    for number, (place, _) in enumerate(_records(_lines(file, form.encoding), form.delimiter)):
        if number >= form.skipped and (not places or place >= len(places) * wanted):
            places.append((place, number - form.skipped))
    if form.encoding == "utf-16":
        places = places[:1]
    bounds = [*(place for place, _ in places[1:]), float("inf")]
    return [(str(file), form, place, stop, number) for (place, number), stop in zip(places, bounds, strict=True)]


def _csv_rows(parts: list) -> Iterator[dict]:
    for name, form, start, stop, number in parts:
        lines = _lines(Path(name), form.encoding, 0 if form.encoding == "utf-16" else start)
        for place, fields in _records(lines, form.delimiter):
            if place < start:
                continue
            if place >= stop:
                break
            number += 1
            key = f"{Path(name).name} row {number}"
            if fields is None:
                yield {"__key__": key, BROKEN: "the row is not CSV: put a text with quotes or line breaks into quotes"}
            elif len(fields) != len(form.columns):
                problem = f"the row has {len(fields)} fields, expected {len(form.columns)}"
                yield {"__key__": key, BROKEN: f"{problem}: put texts with {form.delimiter!r} into quotes"}
            else:
                yield {"__key__": key} | dict(zip(form.columns, fields, strict=True))


# Archives


def _tar_rows(parts: list[str]) -> Iterator[dict]:
    """The samples of WebDataset archives: members with the same name up to the first dot."""
    for name in parts:
        try:
            with tarfile.open(name, "r|*") as archive:
                yield from _samples(archive, Path(name))
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            yield {"__key__": Path(name).name, BROKEN: f"the archive is cut off or damaged ({error})"}


def _samples(archive: tarfile.TarFile, file: Path) -> Iterator[dict]:
    sample: dict[str, Any] = {}
    unpacked = held = 0
    limit = max(_MAX_UNPACKED, _MAX_RATIO * file.stat().st_size)
    try:
        for member in archive:
            unpacked += max(0, member.size)
            too_much = unpacked > limit and f"the archive unpacks to more than {limit:,} bytes"
            if member.size > _MAX_MEMBER_BYTES:  # to skip it would take as long as to read it: end here
                too_much = f"the member has {member.size:,} bytes, the limit is {_MAX_MEMBER_BYTES:,}"
            if too_much:
                yield {"__key__": f"{file.name}: {member.name}", BROKEN: too_much}
                break
            if member.isdir():
                continue
            problem = _problem_of(member)
            path = PurePosixPath(member.name)
            stem, _, field = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else member.name
            if problem:
                yield {"__key__": f"{file.name}: {member.name}", BROKEN: problem}
                continue
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            held = held + member.size if sample else member.size
            sample["__key__"] = key
            if BROKEN in sample:
                continue
            if held > _MAX_SAMPLE_BYTES or len(sample) > _MAX_SAMPLE_FIELDS:
                problem = (
                    f"its members have more than {_MAX_SAMPLE_BYTES:,} bytes, or are more than {_MAX_SAMPLE_FIELDS}"
                )
                sample = {"__key__": key, BROKEN: problem}
                continue
            sample[field.lower()] = _member_value(archive, member, field.lower())
    except (tarfile.TarError, EOFError, OSError) as error:
        # the sample that was being read may lack members
        yield {"__key__": file.name, BROKEN: f"the archive is cut off or damaged ({error})"}
        return
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
    ending = "." + field.rpartition(".")[2]
    is_picture = ending in IMAGE_SUFFIXES
    if not is_picture and (
        member.size > _MAX_TEXT_BYTES or ending not in (".json", ".txt", ".text", ".caption", ".cls")
    ):
        return f"({member.size} bytes)"  # nobody asks for it: it is not read
    content = archive.extractfile(member).read()
    if is_picture:
        return {"bytes": content, "path": member.name}
    try:
        return parse_json(content, member.name) if ending == ".json" else decode(content, member.name)
    except ValueError:  # a text that is none: whoever asks for it reports the wrong type
        return content


__all__ = [
    "BROKEN", "TABLE_SUFFIXES", "csv_form", "decode", "files_of", "from_generator", "ranges", "read_json", "read_rows",
    "rows_of", "text_lines", "undecoded",
]  # fmt: skip
