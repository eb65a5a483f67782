"""
A plain folder of pictures, with their words as people's tools write them.

- a text file of the same name beside each picture (`.txt`, `.caption`, ...: kohya's scripts, taggers), one caption a
  line;
- a table: `metadata.jsonl` and the like as for `datasets`' image folders, also in subfolders and in any form that
  [`rows_of`] reads; kohya's `meta_cap.json`; `captions.jsonl` of `unif2ace data caption`, whose captions replace those
  of another table of the same folder.

Where a table says nothing of a picture, the text file beside it does. What is not read is named: nobody should train
without words and not know it.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..records import FaceRecord
from .columns import ColumnMap, MappedRows, guess_from, sample_columns, unread_columns, value_of
from .readers import BROKEN, TABLE_SUFFIXES, decode, from_generator, ranges, row_parts, rows_of, text_lines
from .samples import IMAGE_SUFFIXES, SAMPLE_ERRORS, BrokenSampleError, check_name, file_below, open_picture


TEXT_SUFFIXES = (".caption", ".txt", ".cap", ".text", ".tags")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
_SAME_SPLIT = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation",
               "testing": "test", "eval": "validation"}  # fmt: skip
# Kohya's scripts write one after the other; the later ones have what the earlier ones have.
_KOHYA = ("meta_lat", "meta_clean", "meta_cap_dd", "meta_cap", "meta_tag", "meta")
_NOT_DATA = (".ds_store", "thumbs.db", "desktop.ini")
_MAX_TEXT_BYTES = 1_000_000  # of a caption's file
_TABLES = 50  # in one folder; more .json files are something else


@dataclass
class FolderContents:
    """
    What lies in a folder and below it.

    Args:
        folder (`Path`): The folder.
        pictures (`list[str]`): Names of pictures below it, sorted.
        texts (`dict[str, list[str]]`): Name of a text file without its ending -> such files, in the order of reading.
        tables (`list[str]`): Files that may be tables.
        strangers (`dict[str, list[str]]`): Ending -> names of other files.
        notes (`list[str]`): What was passed over, in sentences.
    """

    folder: Path
    pictures: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    strangers: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def texts_of(self, picture: str) -> list[str]:
        """The text files of a picture: `0.txt` or `0.png.txt` for `0.png`."""
        return [*self.texts.get(str(PurePosixPath(picture).with_suffix("")), ()), *self.texts.get(picture, ())]


def scan(folder: Path) -> FolderContents:
    """Everything in a folder and below it; hidden files and folders are left out."""
    found = FolderContents(folder)
    unreadable: list[str] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(str(error.filename))):
        below = Path(place).relative_to(folder)
        linked = [name for name in folders if (Path(place) / name).is_symlink() and not name.startswith(".")]
        if linked:
            found.notes.append(f"the linked folder {(below / linked[0]).as_posix()} is not followed")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        tables = [name for name in files if Path(name).suffix.lower() in TABLE_SUFFIXES and not name.startswith(".")]
        for name in sorted(files):
            if name.startswith(".") or name.lower() in _NOT_DATA:
                continue
            path = (below / name).as_posix()
            stem, suffix = os.path.splitext(path)
            suffix = suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                found.pictures.append(path)
            elif suffix in TEXT_SUFFIXES:
                found.texts.setdefault(stem, []).append(path)
            elif suffix in TABLE_SUFFIXES and len(tables) <= _TABLES:
                found.tables.append(path)
            else:
                found.strangers.setdefault(suffix or "(no ending)", []).append(path)
    if unreadable:
        found.notes.append(f"{len(unreadable)} folders cannot be read, first {unreadable[0]}")
    found.pictures.sort()
    for paths in found.texts.values():
        paths.sort(key=lambda path: TEXT_SUFFIXES.index(os.path.splitext(path)[1].lower()))
    return found


def list_pictures(folder: Path) -> list[str]:
    """The pictures in a folder and below it, by name; hidden files and folders are left out."""
    return scan(folder).pictures


def has_pictures(folder: Path) -> bool:
    """Whether there is any picture in a folder or below it."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".") for name in files):
            return True
    return False


def split_folder(folder: Path, split: str) -> tuple[Path, list[str]]:
    """
    The part of a folder that belongs to a split, if it is divided into `train`, `validation`, `test` (as image folders
    of `datasets` are), else the whole folder; and notes about the parts that are left out.

    Raises:
        ValueError: if it is divided and has no such split.
    """
    parts = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in SPLITS]
    others = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not parts or others:
        return folder, []
    wanted = [path for path in parts if same_split(path.name) == same_split(split)]
    if not wanted:
        if len(parts) == 1:
            return folder, []
        names = ", ".join(path.name for path in parts)
        raise ValueError(f"{folder} has the splits {names}, but split={split!r} is asked for: name one (--split)")
    left = [path for path in parts if path not in wanted]
    notes = [f"the folder {path.name} is another split (--split {path.name})" for path in left]
    return (wanted[0], notes) if left or len(wanted) == 1 else (folder, [])


def same_split(name: str) -> str:
    """A split's name as most spell it: `train`, `validation`, `test`."""
    return _SAME_SPLIT.get(name.lower(), name.lower())


@dataclass
class Table:
    """
    A table of a folder.

    Args:
        file (`str`): Its name below the folder.
        columns ([`ColumnMap`]): What its columns hold.
        names (`Counter`): Names of the pictures, as they lie below the folder -> rows about each.
        rows (`int`): Rows that name a picture.
        without_words (`int`): Of these, rows without caption and question.
    """

    file: str
    columns: ColumnMap
    names: Counter
    rows: int = 0
    without_words: int = 0


def open_folder(
    folder: Path,
    columns: ColumnMap | None = None,
    texts: Path | None = None,
    need_text: bool = True,
    split: str = "train",
):
    """
    Rows and converter of a folder of pictures; the forms of their words are those that this file's head lists.

    Args:
        folder (`Path`): The folder.
        columns ([`ColumnMap`], *optional*): Columns of its tables; guessed from their rows when not given.
        texts (`Path`, *optional*): Where the text files are, with no tables; beside the pictures when not given.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without words is broken.
        split (`str`, *optional*, defaults to `"train"`): Which of the folders `train`, `validation`, ... to read.

    Returns:
        (`datasets.IterableDataset`, converter, notes): the notes say, in sentences, what is not read.

    Raises:
        FileNotFoundError: if there is no picture.
        ValueError: if `columns` names what no table has.
    """
    notes: list[str] = []
    if texts is None:
        folder, notes = split_folder(folder, split)
    found = scan(folder)
    notes += found.notes
    if not found.pictures:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise FileNotFoundError(
            f"{folder} holds no picture, expected files that end in {kinds}{_others(found.strangers)}"
        )
    if texts is not None:
        found.texts = scan(texts).texts
        parts = [("", start, stop) for start, stop in ranges(len(found.pictures))]
        rows = from_generator(_folder_rows, parts, folder=str(folder), pictures=found.pictures)
        return rows, FolderRows(folder, {}, found, need_text, texts), notes
    tables, overlay = _tables(found, columns, notes)
    named = {name for table in tables for name in table.names}
    pictures = [name for name in found.pictures if name not in named]
    # a table that has words chooses among the pictures of its folder
    places = {PurePosixPath(table.file).parent for table in tables if table.rows > table.without_words}
    passed = {name for name in pictures if places & set(PurePosixPath(name).parents)}
    if passed:
        notes.append(f"{len(passed)} pictures are named by no table of their folder, first {min(passed)}")
        pictures = [name for name in pictures if name not in passed]
    _note_strangers(found, notes)
    parts: list = [(table.file, part) for table in tables for part in row_parts_of(folder / table.file)]
    parts += [("", start, stop) for start, stop in ranges(len(pictures))] if pictures else []
    rows = from_generator(_folder_rows, parts, folder=str(folder), pictures=pictures)
    converter = FolderRows(folder, {table.file: table.columns for table in tables}, found, need_text, overlay=overlay)
    return rows, converter, notes


def row_parts_of(file: Path) -> list:
    """The parts of a table, for workers; parquet and Arrow files are one part."""
    return [None] if file.suffix.lower() in (".parquet", ".arrow") else row_parts([file])[1]


def _folder_rows(parts: list, folder: str, pictures: tuple[str, ...]) -> Iterator[dict]:
    for table, *part in parts:
        if not table:
            for name in pictures[part[0] : part[1]]:
                yield {"__key__": name, "__table__": "", "file_name": name}
            continue
        file = Path(folder) / table
        rows = rows_of(file) if part[0] is None else row_parts([file])[0]([part[0]])
        for row in rows:
            # as JSON, because a stream wants the same columns with the same types in all rows
            yield {"__key__": str(row.get("__key__", "")), "__table__": table, "__row__": row}


def _tables(found: FolderContents, columns: ColumnMap | None, notes: list[str]):
    """The tables that are read, and captions that replace those of a table: picture or id -> row."""
    used: list[Table] = []
    overlay: dict[str, list[str]] = {}
    by_stem: dict[str, str | None] = {}
    for name in found.pictures:  # kohya's tables name pictures without their ending
        stem = str(PurePosixPath(name).with_suffix(""))
        by_stem[stem] = None if stem in by_stem else name
    known = set(found.pictures)
    for file in sorted(found.tables, key=_rank):
        if PurePosixPath(file).suffix.lower() == ".json" and os.path.splitext(file)[0] in by_stem:
            found.strangers.setdefault(".json", []).append(file)  # of one picture
            continue
        try:
            table = _look(found.folder, file, columns, known, by_stem, notes)
        except SAMPLE_ERRORS as error:
            if columns is not None and isinstance(error, ValueError) and "has no column" in str(error):
                raise
            notes.append(f"{file} is not read: {error}")
            continue
        if table is None:
            continue
        same_folder = [other for other in used if PurePosixPath(other.file).parent == PurePosixPath(file).parent]
        earlier = next((other for other in same_folder if set(table.names) <= set(other.names)), None)
        if PurePosixPath(file).name.lower().startswith("captions.") and same_folder:
            count = _overlay(found.folder, table, overlay, known, by_stem)
            notes.append(f"the captions of {file} ({count}) replace those of {same_folder[0].file}")
        elif earlier is not None:
            notes.append(f"{file} is not read: {earlier.file} names the same pictures")
        else:
            used.append(table)
            if table.without_words:
                notes.append(f"{table.without_words} of {table.rows} rows of {file} have no caption or question")
            again = [name for name, count in table.names.items() if count > 1]
            if again:
                notes.append(f"{file} names {len(again)} pictures more than once, first {again[0]}")
    return used, overlay


def _rank(file: str) -> tuple:
    """Tables in the order of reading: outer folders first; metadata, kohya's last step first, others, captions."""
    path = PurePosixPath(file)
    stem = path.stem.lower()
    kohya = next((place for place, name in enumerate(_KOHYA) if stem == name), len(_KOHYA))
    kind = 0 if stem == "metadata" else 1 if stem.startswith("meta") else 3 if stem == "captions" else 2
    return len(path.parts), str(path.parent), kind, kohya, file


def _look(folder: Path, file: str, columns: ColumnMap | None, known, by_stem, notes: list[str]) -> Table | None:
    """Read a table through once: which pictures it names, and whether it has words for them."""
    file_below(folder, file)  # a link may lead to a name without an ending, or out of the folder
    path = folder / file
    if path.suffix.lower() == ".tar":
        notes.append(f"the archive {file} is not read beside pictures: give it as the source itself")
        return None
    sample = sample_columns(rows_of(path))
    guess = columns or guess_from(sample)
    if columns is not None:
        missing = [name for kind in ("image", "caption", "question", "answer") for name in columns.columns(kind)
                   if name not in sample and name.partition(".")[0] not in sample]  # fmt: skip
        if missing:
            raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(sample)}")
    if not guess.image:
        # our own captions name records by their id, where there is one
        guess = replace(guess, image="file_name" if path.stem == "captions" and "file_name" in sample else "__key__")
    if columns is None and guess.caption == "caption" and "tags" in sample and path.stem.startswith("meta"):
        guess = replace(guess, caption="caption+tags")  # kohya's scripts: both are for training
    mapped = MappedRows(guess, folder, need_text=False)
    table = Table(file, guess, Counter())
    for row in rows_of(path):
        if row.get(BROKEN):
            continue
        name = resolve(value_of(row, guess.image), file, known, by_stem)
        if name is None:
            continue
        table.rows += 1
        table.names[name] += 1
        try:
            table.without_words += not any(mapped.words(row))
        except SAMPLE_ERRORS:
            pass  # the row is named as broken when it is read
    shown = ", ".join(list(sample)[:12]) or "none"
    meant = PurePosixPath(file).stem.lower().startswith(("meta", "captions"))
    if not table.rows and (guess.image == "__key__" or not meant):
        notes.append(f"{file} is not read: none of its columns names pictures of this folder (it has {shown})")
        return None
    unread = unread_columns(sample, guess)
    if unread and not {"__key__"} & set(unread):
        notes.append(f"columns of {file} that are not read: {', '.join(unread[:12])} (name them with --columns)")
    if not (guess.caption or guess.question or guess.conversations):
        notes.append(f"{file} has no column of captions or questions that could be recognised (it has {shown})")
    return table


def resolve(value: Any, table: str, known, by_stem: Mapping[str, str | None]) -> str | None:
    """The picture below the folder that a row of a table means; `None` if there is none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        return None
    try:
        name = check_name(value).replace("\\", "/")
    except BrokenSampleError:
        return None
    for place in dict.fromkeys((PurePosixPath(table).parent, PurePosixPath("."))):
        path = str(place / name)
        if path in known:
            return path
        if by_stem.get(path):
            return by_stem[path]
    return None


def _overlay(folder: Path, table: Table, overlay: dict, known, by_stem) -> int:
    """Keep the words of a table by the picture that it names, or by the name as it stands: the id of a record."""
    mapped, count = MappedRows(table.columns, folder, need_text=False), 0
    for row in rows_of(folder / table.file):
        if row.get(BROKEN):
            continue
        value = value_of(row, table.columns.image)
        words = mapped.words(row)
        if any(words) and isinstance(value, str):
            overlay[resolve(value, table.file, known, by_stem) or value] = words
            count += 1
    return count


def _note_strangers(found: FolderContents, notes: list[str]) -> None:
    stems = {str(PurePosixPath(name).with_suffix("")) for name in found.pictures} | set(found.pictures)
    lonely = [path for stem, paths in found.texts.items() if stem not in stems for path in paths]
    if lonely:
        notes.append(f"{len(lonely)} text files have no picture of the same name, first {lonely[0]}")
    for suffix, names in sorted(found.strangers.items()):
        notes.append(f"{len(names)} {suffix} files are not read, first {names[0]}")


def _others(strangers: Mapping[str, list[str]]) -> str:
    if not strangers:
        return ""
    return "; it has " + ", ".join(f"{len(names)} {suffix}" for suffix, names in sorted(strangers.items())[:6])


class FolderRows:
    """
    Converts the rows of a folder: those of its tables, and the names of pictures that have text files.

    Args:
        folder (`Path`): The folder.
        tables (`dict[str, ColumnMap]`): Table -> what its columns hold.
        found ([`FolderContents`]): What lies in the folder.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without words is broken.
        texts (`Path`, *optional*): Where the text files are, if not beside the pictures.
        overlay (`dict`, *optional*): Picture or id -> (captions, questions) that replace those of the tables.
    """

    def __init__(self, folder: Path, tables, found: FolderContents, need_text=True, texts=None, overlay=None):
        self.folder, self.need_text, self.texts = folder, need_text, texts or folder
        self.mapped = {file: MappedRows(columns, folder, need_text=False) for file, columns in tables.items()}
        self.found, self.overlay = found, overlay or {}
        self.known = set(found.pictures) if tables else set()
        self.by_stem: dict[str, str | None] = {}
        for name in found.pictures if tables else ():
            stem = str(PurePosixPath(name).with_suffix(""))
            self.by_stem[stem] = None if stem in self.by_stem else name

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        if row["__table__"]:
            record, name = self._of_table(row["__row__"], row["__table__"])
        else:
            name = row["file_name"]
            record = FaceRecord(image=open_picture(name, self.folder), id=name)
        for key in (name, record.id):
            if key in self.overlay:
                record.captions, record.questions = (list(words) for words in self.overlay[key])
                return record
        if not record.captions:
            record.captions = self._beside(name)
        if self.need_text and not record.captions and not record.questions:
            where = f"neither {row['__table__']} nor a text file has one"
            if not row["__table__"]:
                where = f"the file {self.texts / Path(name).with_suffix('.txt')} is missing"
            raise BrokenSampleError(f"{name} has no caption: {where}")
        return record

    def _of_table(self, row: Mapping[str, Any], table: str) -> tuple[FaceRecord, str]:
        if row.get(BROKEN):
            raise BrokenSampleError(row[BROKEN])
        mapped = self.mapped[table]
        value = value_of(row, mapped.columns.image)
        name = resolve(value, table, self.known, self.by_stem)
        if name is None:  # opening it says what is wrong with it
            open_picture(value, (self.folder / table).parent)
            name = str(value) if isinstance(value, str) else str(row.get("__key__", ""))
            record = mapped(row)
        else:
            record = mapped({**row, mapped.columns.image: name})
        if not mapped.columns.id:
            record.id = name
        return record, name

    def _beside(self, picture: str) -> list[str]:
        """The captions in the text files of a picture."""
        captions: list[str] = []
        files = self.found.texts_of(picture)
        for file in files:
            path = file_below(self.texts, file)
            if path.stat().st_size > _MAX_TEXT_BYTES:
                raise BrokenSampleError(f"{file} has {path.stat().st_size:,} bytes, expected a caption")
            captions += [line for line in text_lines(decode(path.read_bytes(), file)) if line not in captions]
        if files and not captions:
            raise BrokenSampleError(f"the caption of {picture} is empty ({files[0]})")
        return captions


__all__ = ["has_pictures", "list_pictures", "open_folder", "scan", "split_folder"]
