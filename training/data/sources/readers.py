"""
Rows out of files, as `datasets.IterableDataset`: sharded, and resumable by `state_dict`.

Parquet and Arrow files, saved data sets and the Hub are read by `datasets`. CSV, JSON (lines), tar archives
(WebDataset) and folders are read here: its builders end the data set with one bad line, member or file, which here is
a broken row; and they make a number of `0012` and nothing of "None".
"""

import csv
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ....modeling_unif2ace.pictures_unif2ace import SUFFIXES
from ....pipelines.files import parse_json, read_json
from .stream import BROKEN, BrokenSampleError


BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
TABLE_SUFFIXES = (*BUILDERS, ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".tar")
_SHARDS = 16  # parts of what has no parts of its own: enough for the workers of one machine
_MAX_LINE = 64 * 2**20  # bytes of a row of JSON lines, characters of a line of CSV
_MAX_JSON_BYTES = 2**31  # a JSON file, which is read as a whole
_MAX_MEMBER_BYTES = 2**28  # a picture's file; a compressed archive can declare anything
_MAX_TEXT_BYTES = 1_000_000  # a caption or a sample's JSON in an archive
_MAX_SAMPLE_BYTES, _MAX_SAMPLE_FIELDS = 64 * 2**20, 100  # all members of one sample of an archive
_MAX_UNPACKED, _MAX_RATIO = 2**30, 100  # bytes of a compressed archive: at least so many, or so many times its size


def ending(name: str | os.PathLike) -> str:
    """A file's ending in lower case; compressed archives, which are read as they are, end in `.tar` too."""
    name = os.fspath(name).lower()
    return ".tar" if name.endswith((".tar.gz", ".tgz")) else os.path.splitext(name)[1]


def is_table(path: str | os.PathLike) -> bool:
    """Whether a file may be a table, by its name."""
    return ending(path) in TABLE_SUFFIXES and not os.path.basename(path).startswith(".")


def files_of(location: Path) -> list[Path]:
    """
    The table files at a place: the file itself, the files that a pattern names, or those directly in a folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    if location.is_file():
        return [location]
    if location.is_dir():
        found = sorted(filter(is_table, location.iterdir()))
    else:
        found = sorted(file for file in location.parent.glob(location.name) if file.is_file())
    if not found:
        raise FileNotFoundError(f"{location} holds no data file, expected one ending in {', '.join(TABLE_SUFFIXES)}")
    return found


def read_rows(files: list[Path]):
    """
    The rows of data files that all have one ending of `TABLE_SUFFIXES`, as `datasets.IterableDataset`; pictures are
    not decoded.

    Raises:
        ValueError: if the files end differently, or a file is not what its ending says.
    """
    endings = {ending(file) for file in files}
    if len(endings) != 1:
        raise ValueError(
            f"data files end in {', '.join(sorted(endings))}, expected one ending: name one kind, *.ending"
        )
    if endings <= set(BUILDERS):
        return _built_rows(*files)
    return from_generator(part_rows, [part for file in files for part in parts_of(file)])


def parts_of(file: Path) -> list[tuple]:
    """The parts of a table that workers share among themselves, each a tuple for [`part_rows`]."""
    kind = ending(file)
    if kind not in _READERS:
        advice = ": unpack it first" if kind in (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar") else ""
        raise ValueError(
            f"{file} is no data file, expected one that ends in {', '.join((*TABLE_SUFFIXES, '.tar.gz'))}{advice}"
        )
    if kind in (".csv", ".tsv"):
        return _csv_parts(file)
    if _encoding(file) == "utf-16":  # of PowerShell: its lines do not end with a byte
        return [(str(file), None)]
    if kind in (".jsonl", ".ndjson") or (kind == ".json" and _is_lines(file)):
        return [(str(file), part) for part in ranges(file.stat().st_size)]
    return [(str(file), None)]


def part_rows(parts: Iterable[tuple]) -> Iterator[dict]:
    """The rows of parts of files, as [`parts_of`] gives them."""
    for name, part in parts:
        yield from _READERS[ending(name)](Path(name), part)


def rows_of(file: Path) -> Iterator[dict]:
    """The rows of one file, in its order."""
    return part_rows(parts_of(file))


def _built_rows(*files: Path):
    from datasets import load_dataset

    builder = BUILDERS[ending(files[0])]
    try:
        rows = load_dataset(builder, data_files=[str(file) for file in files], split="train", streaming=True)
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


def from_generator(generate, parts: list, **options):
    """
    A stream of what `generate(parts, **options)` yields, a function of a module's top level. Workers and machines
    share the parts among themselves; lists among the options become tuples, since `datasets` divides every list.
    """
    from datasets import IterableDataset

    fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return IterableDataset.from_generator(generate, gen_kwargs={"parts": parts, **fixed})


def listed(entries: Sequence[dict]):
    """A stream of rows that are known already."""
    return from_generator(_entries, ranges(len(entries)), entries=list(entries))


def _entries(parts, entries) -> Iterator[dict]:
    for start, stop in parts:
        yield from entries[start:stop]


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
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenSampleError(f"{name} is not UTF-8 ({error}): save it as UTF-8") from error


def text_lines(text: str) -> list[str]:
    """The lines of a text, at the ends of lines that editors write, without the empty ones."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def _encoding(file: Path) -> str:
    """How a text file is written: UTF-8, UTF-16 with a mark of byte order, or as Windows did (cp1252)."""
    with open(file, "rb") as opened:
        if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
    if ending(file) not in (".csv", ".tsv"):
        return "utf-8-sig"
    try:
        with open(file, encoding="utf-8-sig") as opened:
            while opened.read(2**20):
                pass
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _lines(file: Path, encoding: str, newline: str = "") -> Iterator[tuple[int, str]]:
    """The lines of a text file, with the number of characters before each."""
    place = 0
    with open(file, encoding=encoding, errors="replace", newline=newline) as opened:
        while line := opened.readline(_MAX_LINE):
            yield place, line
            place += len(line)


# JSON


def _json_rows(file: Path, part: tuple[int, int] | None) -> Iterator[dict]:
    """JSON lines that begin within a range of bytes, or a whole file of them in UTF-16; without either, entries."""
    if part is None and ending(file) == ".json":
        yield from _json_entries(file)
    elif part is None:
        for place, line in _lines(file, "utf-16", newline="\n"):
            if line.strip():
                yield _json_row(line, f"{file.name} at character {place}")
    else:
        with open(file, "rb") as opened:
            if part[0]:
                opened.seek(part[0] - 1)
                _read_line(opened)  # the rest of a line that belongs to the part before
            while (place := opened.tell()) < part[1]:
                line, name = _read_line(opened), f"{file.name} at byte {place}"
                if line is None:
                    yield {"__key__": name, BROKEN: f"the line has more than {_MAX_LINE:,} bytes"}
                elif line.strip():
                    yield _json_row(line, name)


def _read_line(file) -> bytes | None:
    """A line; `None` for one that is too long, which is passed over."""
    line = file.readline(_MAX_LINE)
    if len(line) < _MAX_LINE or line.endswith(b"\n"):
        return line
    while line and not line.endswith(b"\n"):
        line = file.readline(_MAX_LINE)
    return None


def _json_row(text: str | bytes, name: str) -> dict:
    try:
        row = parse_json(text, "the line")
    except ValueError as error:
        return {"__key__": name, BROKEN: str(error)}
    if not isinstance(row, dict):
        return {"__key__": name, BROKEN: f"the line is a JSON {type(row).__name__}, expected an object"}
    return {"__key__": name} | row


def _is_lines(file: Path) -> bool:
    """Whether a `.json` file holds JSON lines: its first line is an object, and not the only one."""
    with open(file, "rb") as opened:
        first = _read_line(opened)
        return bool(first and BROKEN not in _json_row(first, "") and opened.read(1))


def _json_entries(file: Path) -> Iterator[dict]:
    """A JSON file's list of objects, or its object whose names become `__key__`, of objects or captions."""
    if (size := file.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, the limit is {_MAX_JSON_BYTES:,}: write it as JSON lines")
    content = read_json(file)
    if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), list):
        content = next(iter(content.values()))  # {"data": [...]}
    if isinstance(content, dict):
        entries: Iterable = content.items()
    elif isinstance(content, list):
        entries = ((f"{file.name} entry {number}", entry) for number, entry in enumerate(content))
    else:
        raise ValueError(f"{file} is a JSON {type(content).__name__}, expected a list or an object of entries")
    for key, entry in entries:
        if isinstance(content, dict) and _is_caption(entry):
            entry = {"caption": entry}
        if isinstance(entry, dict):
            yield {"__key__": key} | entry
        else:
            yield {"__key__": key, BROKEN: f"the entry is a {type(entry).__name__}, expected an object"}


def _is_caption(entry: Any) -> bool:
    return isinstance(entry, str) or (isinstance(entry, list) and all(isinstance(text, str) for text in entry))


# CSV


@dataclass(frozen=True)
class CsvForm:
    """
    How a CSV file is written.

    Args:
        encoding (`str`): `"utf-8-sig"`, `"utf-16"` (with a mark of byte order) or `"cp1252"` (Windows).
        delimiter (`str`): `,`, `;`, tab or `|`.
        columns (`tuple[str, ...]`): Names of the columns.
        skipped (`int`): Records before the first row: that of the names, `sep=;`.
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
    encoding = _encoding(file)
    lines = list(islice((line for _, line in _lines(file, encoding) if line.strip()), 50))
    skipped = 0
    if lines and (match := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):
        delimiter, lines, skipped = match[1], lines[1:], 1
    elif ending(file) == ".tsv":
        delimiter = "\t"
    else:
        delimiter = max(_DELIMITERS, key=lambda sign: _fit(lines, sign))
    names = next((fields for _, fields in _records(enumerate(lines), delimiter) if fields), None)
    if not names:
        raise ValueError(f"{file} is empty, expected a line with the names of its columns")
    names = [name.strip() or f"column {number}" for number, name in enumerate(names, start=1)]
    if any(ending(name) in SUFFIXES for name in names):  # a row: there are no names
        usual = ["file_name", "caption"]
        names = usual if len(names) == 2 else [f"column {number + 1}" for number in range(len(names))]
    else:
        skipped += 1
    seen: Counter[str] = Counter()
    columns = []
    for name in names:
        seen[name] += 1
        columns.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return CsvForm(encoding, delimiter, tuple(columns), skipped)


def _fit(lines: list[str], delimiter: str) -> tuple[int, int, int]:
    """How well a delimiter explains some lines: the more rows have as many fields as the first, the better."""
    counts = [len(fields) for _, fields in _records(enumerate(lines), delimiter) if fields]
    if not counts or counts[0] < 2:
        return (0, 0, 0)
    return (1, sum(count == counts[0] for count in counts), -_DELIMITERS.index(delimiter))


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


def _csv_parts(file: Path) -> list[tuple]:
    """Parts that begin at a record: (form, place of the first, place after the last, records before it)."""
    form = csv_form(file)
    wanted, starts = file.stat().st_size / _SHARDS, []
    for number, (place, _) in enumerate(_records(_lines(file, form.encoding), form.delimiter), start=-form.skipped):
        if number >= 0 and place >= len(starts) * wanted:
            starts.append((place, number))
    stops = [*(place for place, _ in starts[1:]), float("inf")]
    return [(str(file), (form, place, stop, n)) for (place, n), stop in zip(starts, stops, strict=False)]


def _csv_rows(file: Path, part: tuple) -> Iterator[dict]:
    form, start, stop, number = part
    lines = (line for line in _lines(file, form.encoding) if line[0] >= start)
    for place, fields in _records(lines, form.delimiter):
        if place >= stop:
            return
        number += 1
        key = f"{file.name} row {number}"
        if fields is None:
            yield {"__key__": key, BROKEN: "the row is not CSV: put a text with quotes or line breaks into quotes"}
        elif len(fields) != len(form.columns):
            problem = f"the row has {len(fields)} fields, expected {len(form.columns)}"
            yield {"__key__": key, BROKEN: f"{problem}: put texts with {form.delimiter!r} into quotes"}
        else:
            yield {"__key__": key} | dict(zip(form.columns, fields, strict=True))


# Archives


def _tar_rows(file: Path, part: None) -> Iterator[dict]:
    """The samples of a WebDataset archive: members with the same name up to the first dot."""
    sample: dict[str, Any] = {}
    unpacked = held = 0
    limit = max(_MAX_UNPACKED, _MAX_RATIO * file.stat().st_size)
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                unpacked += max(0, member.size)
                too_much = unpacked > limit and f"the archive unpacks to more than {limit:,} bytes"
                if member.size > _MAX_MEMBER_BYTES:  # to skip it would take as long as to read it: end here
                    too_much = f"the member has {member.size:,} bytes, the limit is {_MAX_MEMBER_BYTES:,}"
                if too_much:
                    yield {"__key__": f"{file.name}: {member.name}", BROKEN: too_much}
                    break
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if path.is_absolute() or ".." in path.parts or not member.isfile():
                    problem = "is not a plain file" if not member.isfile() else "has a name that leaves the archive"
                    yield {"__key__": f"{file.name}: {member.name}", BROKEN: f"the member {problem}"}
                    continue
                stem, _, field = path.name.partition(".")
                key = str(path.with_name(stem)) if stem else member.name
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                held = held + member.size if sample else member.size
                sample["__key__"] = key
                if held > _MAX_SAMPLE_BYTES or len(sample) > _MAX_SAMPLE_FIELDS:
                    limits = f"{_MAX_SAMPLE_BYTES:,} bytes, or are more than {_MAX_SAMPLE_FIELDS}"
                    sample = {"__key__": key, BROKEN: f"its members have more than {limits}"}
                if BROKEN not in sample:
                    sample[field.lower()] = _member_value(archive, member, field.lower())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        # the sample that was being read may lack members
        yield {"__key__": file.name, BROKEN: f"the archive is cut off or damaged ({error})"}
        return
    if sample:
        yield sample


def _member_value(archive: tarfile.TarFile, member: tarfile.TarInfo, field: str) -> Any:
    kind = "." + field.rpartition(".")[2]
    is_picture = kind in SUFFIXES
    is_text = member.size <= _MAX_TEXT_BYTES and kind in (".json", ".txt", ".text", ".caption", ".cls")
    if not is_picture and not is_text:
        return f"({member.size} bytes)"  # nobody asks for it: it is not read
    content = archive.extractfile(member).read()
    if is_picture:
        return {"bytes": content, "path": member.name}
    try:
        return parse_json(content, member.name) if kind == ".json" else decode(content, member.name)
    except ValueError:  # a text that is none: whoever asks for it reports the wrong type
        return content


_READERS = {
    ".tar": _tar_rows,
    **dict.fromkeys((".csv", ".tsv"), _csv_rows),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), _json_rows),
    **dict.fromkeys(BUILDERS, lambda file, part: iter(_built_rows(file))),
}
