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

from ....modeling_unif2ace.pictures_unif2ace import SUFFIXES
from ..records import FaceRecord
from .columns import ColumnMap, MappedRows, guess_from, sample_columns, unread_columns, value_of
from .readers import decode, from_generator, is_table, part_rows, parts_of, ranges, rows_of, text_lines
from .stream import BROKEN, SAMPLE_ERRORS, BrokenSampleError, check_name, file_below, open_picture


TEXT_SUFFIXES = (".caption", ".txt", ".cap", ".text", ".tags")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "validation",
           **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}  # fmt: skip
# Kohya's scripts write one after the other; the later ones have what the earlier ones have.
_KOHYA = ("meta_lat", "meta_clean", "meta_cap_dd", "meta_cap", "meta_tag", "meta")
_NOT_DATA = (".ds_store", "thumbs.db", "desktop.ini")
_MAX_TEXT_BYTES = 1_000_000  # of a caption's file
_TABLES = 50  # in one folder; more .json files are something else


def split_name(name: str) -> str | None:
    """The split that a word names, as most spell it: `train`, `validation`, `test`; `None` for another word."""
    return _SPLITS.get(name.lower())


@dataclass
class FolderContents:
    """
    What lies in a folder and below it, by names below it; hidden files and folders are left out.

    Args:
        pictures (`list[str]`): Pictures, sorted.
        texts (`dict[str, list[str]]`): Name of a text file without its ending -> such files, in the order of reading.
        tables (`list[str]`): Files that may be tables.
        strangers (`dict[str, list[str]]`): Ending -> other files.
        notes (`list[str]`): What was passed over, in sentences.
    """

    pictures: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    strangers: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def scan(folder: Path) -> FolderContents:
    """Everything in a folder and below it."""
    found = FolderContents()
    unreadable: list[str] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(str(error.filename))):
        below = Path(place).relative_to(folder)
        linked = [name for name in folders if (Path(place) / name).is_symlink() and not name.startswith(".")]
        if linked:
            found.notes.append(f"the linked folder {(below / linked[0]).as_posix()} is not followed")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        tables = sum(map(is_table, files))
        for name in sorted(files):
            if name.startswith(".") or name.lower() in _NOT_DATA:
                continue
            path = (below / name).as_posix()
            stem, suffix = os.path.splitext(path)
            suffix = suffix.lower()
            if suffix in SUFFIXES:
                found.pictures.append(path)
            elif suffix in TEXT_SUFFIXES:
                found.texts.setdefault(stem, []).append(path)
            elif is_table(name) and tables <= _TABLES:
                found.tables.append(path)
            else:
                found.strangers.setdefault(suffix or "(no ending)", []).append(path)
    if unreadable:
        found.notes.append(f"{len(unreadable)} folders cannot be read, first {unreadable[0]}")
    found.pictures.sort()
    for paths in found.texts.values():
        paths.sort(key=lambda path: TEXT_SUFFIXES.index(os.path.splitext(path)[1].lower()))
    return found


def split_folder(folder: Path, split: str) -> tuple[Path, list[str]]:
    """
    The part of a folder that belongs to a split, if it is divided into `train`, `validation`, `test` (as image folders
    of `datasets` are), else the whole folder; and notes about the parts that are left out.

    Raises:
        ValueError: if it is divided and has no such split.
    """
    parts = [path for path in sorted(folder.iterdir()) if path.is_dir() and split_name(path.name)]
    others = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    wanted = [path for path in parts if split_name(path.name) == split_name(split)]
    if others or (len(parts) < 2 and not wanted):
        return folder, []
    if not wanted:
        names = ", ".join(path.name for path in parts)
        raise ValueError(f"{folder} has the splits {names}, but split={split!r} is asked for: name one (--split)")
    left = [path.name for path in parts if path not in wanted]
    tables = [path.name for path in sorted(folder.iterdir()) if is_table(path)]
    if not left and (tables or len(wanted) > 1):
        return folder, []
    notes = [f"the folder {name} is another split (--split {name})" for name in left]
    return wanted[0], notes + [f"{name} lies beside the splits and is not read: put it into one" for name in tables]


@dataclass
class Table:
    """
    A table of a folder.

    Args:
        file (`str`): Its name below the folder.
        rows ([`MappedRows`]): Reads its rows.
        names (`Counter`): The pictures that it names -> rows about each.
        without_words (`int`): Rows without caption and question.
    """

    file: str
    rows: MappedRows
    names: Counter
    without_words: int = 0

    @property
    def folder(self) -> PurePosixPath:
        """Where it lies."""
        return PurePosixPath(self.file).parent


class FaceFolder:
    """
    A folder of pictures; the forms of their words are those that this file's head lists. It converts the rows that
    [`rows`] gives: those of its tables, and the names of pictures that no table names.

    Args:
        folder (`Path`): The folder.
        columns ([`ColumnMap`], *optional*): Columns of its tables; guessed from their rows when not given.
        texts (`Path`, *optional*): Where the text files are, with no tables; beside the pictures when not given.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without words is broken.
        split (`str`, *optional*, defaults to `"train"`): Which of the folders `train`, `validation`, ... to read.

    Attributes:
        notes (`list[str]`): What is not read, in sentences.

    Raises:
        FileNotFoundError: if there is no picture.
        ValueError: if `columns` names what no table has.
    """

    def __init__(
        self,
        folder: Path,
        columns: ColumnMap | None = None,
        texts: Path | None = None,
        need_text: bool = True,
        split: str = "train",
    ):
        notes: list[str] = []
        if texts is None:
            folder, notes = split_folder(folder, split)
        found = scan(folder)
        self.folder, self.texts_folder, self.need_text = folder, texts or folder, need_text
        self.notes, self.texts = notes + found.notes, found.texts if texts is None else scan(texts).texts
        self.tables: dict[str, Table] = {}
        self.overlay: dict[str, tuple[list, list]] = {}  # picture or id of a record -> words that replace a table's
        if not found.pictures:
            others = ", ".join(f"{len(names)} {suffix}" for suffix, names in sorted(found.strangers.items())[:6])
            raise FileNotFoundError(
                f"{folder} holds no picture, expected files that end in {', '.join(sorted(SUFFIXES))}"
                + (f"; it has {others}" if others else "")
            )
        self.known = dict.fromkeys(found.pictures)
        self.by_stem: dict[str, str | None] = {}
        for name in found.pictures:  # kohya's tables name pictures without their ending
            stem = _stem(name)
            self.by_stem[stem] = None if stem in self.by_stem else name
        self.alone = list(found.pictures)  # pictures of which no table says anything
        if texts is None:
            self._read_tables(found, columns)
            self._note_strangers(found)

    def rows(self):
        """The rows, as `datasets.IterableDataset`."""
        parts: list = [(file, part) for file in self.tables for part in parts_of(self.folder / file)]
        parts += [("", part) for part in ranges(len(self.alone)) if self.alone]
        return from_generator(_folder_rows, parts, pictures=self.alone)

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        if row["__table__"]:
            record, name = self._of_table(row["__row__"], self.tables[row["__table__"]])
        else:
            name = row["__key__"]
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
                where = f"the file {self.texts_folder / Path(name).with_suffix('.txt')} is missing"
            raise BrokenSampleError(f"{name} has no caption: {where}")
        return record

    def _of_table(self, row: Mapping[str, Any], table: Table) -> tuple[FaceRecord, str]:
        if row.get(BROKEN):
            raise BrokenSampleError(row[BROKEN])
        column = table.rows.columns.image
        value = value_of(row, column)
        name = self._resolve(value, table)
        if name is None:  # opening it says what is wrong with it
            open_picture(value, self.folder / table.folder)
            name = str(value) if isinstance(value, str) else str(row.get("__key__", ""))
            record = table.rows(row)
        else:
            record = table.rows({**row, column: name})
        if not table.rows.columns.id:
            record.id = name
        return record, name

    def _beside(self, picture: str) -> list[str]:
        """The captions in the text files of a picture: `0.txt` or `0.png.txt` for `0.png`."""
        captions: list[str] = []
        files = [*self.texts.get(_stem(picture), ()), *self.texts.get(picture, ())]
        for file in files:
            path = file_below(self.texts_folder, file)
            if path.stat().st_size > _MAX_TEXT_BYTES:
                raise BrokenSampleError(f"{file} has {path.stat().st_size:,} bytes, expected a caption")
            captions += [line for line in text_lines(decode(path.read_bytes(), file)) if line not in captions]
        if files and not captions:
            raise BrokenSampleError(f"the caption of {picture} is empty ({files[0]})")
        return captions

    def _resolve(self, value: Any, table: Table) -> str | None:
        """The picture below the folder that a row of a table means; `None` if there is none."""
        if isinstance(value, Mapping):
            value = value.get("path")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        try:
            name = check_name(value).replace("\\", "/") if isinstance(value, str) else ""
        except BrokenSampleError:
            return None
        for path in (str(table.folder / name), str(PurePosixPath(name))) if name else ():
            if path in self.known or self.by_stem.get(path):
                return path if path in self.known else self.by_stem[path]
        return None

    def _read_tables(self, found: FolderContents, columns: ColumnMap | None) -> None:
        """Choose the tables that are read, and the pictures that they leave."""
        for file in sorted(found.tables, key=_rank):
            if PurePosixPath(file).suffix.lower() == ".json" and _stem(file) in self.by_stem:
                found.strangers.setdefault(".json", []).append(file)  # of one picture
                continue
            try:
                table = self._look(file, columns)
            except SAMPLE_ERRORS as error:
                if columns is not None and "has no column" in str(error):
                    raise
                self.notes.append(f"{file} is not read: {error}")
                continue
            if table is not None:
                self._take(table)
        # a table that has words chooses among the pictures of its folder
        named = {name for table in self.tables.values() for name in table.names}
        places = {table.folder for table in self.tables.values() if table.names.total() > table.without_words}
        alone = [name for name in self.alone if name not in named]
        self.alone = [name for name in alone if not places & set(PurePosixPath(name).parents)]
        if passed := sorted(set(alone) - set(self.alone)):
            self.notes.append(f"{len(passed)} pictures are named by no table of their folder, first {passed[0]}")

    def _look(self, file: str, columns: ColumnMap | None) -> Table | None:
        """Read a table through once: which pictures it names, and whether it has words for them."""
        file_below(self.folder, file)  # a link may lead to a name without an ending, or out of the folder
        path = self.folder / file
        if path.suffix.lower() in (".tar", ".tgz", ".gz"):
            self.notes.append(f"the archive {file} is not read beside pictures: give it as the source itself")
            return None
        sample = sample_columns(rows_of(path))
        guess = columns or guess_from(sample)
        for name in (name for kind in ("image", "caption", "question", "answer") for name in guess.columns(kind)):
            if not any(name in (column, column.partition(".")[0]) for column in sample):
                raise ValueError(f"{file} has no column {name!r}; it has {', '.join(sample)}")
        if not guess.image:
            # our own captions name records by their id, where there is one
            own = path.stem == "captions" and "file_name" in sample
            guess = replace(guess, image="file_name" if own else "__key__")
        if columns is None and guess.caption == "caption" and "tags" in sample and path.stem.startswith("meta"):
            guess = replace(guess, caption="caption+tags")  # kohya's scripts: both are for training
        table = Table(file, MappedRows(guess, self.folder, need_text=False), Counter())
        for row in rows_of(path):
            name = None if row.get(BROKEN) else self._resolve(value_of(row, guess.image), table)
            if name is not None:
                table.names[name] += 1
                try:
                    table.without_words += not any(table.rows.words(row))
                except SAMPLE_ERRORS:
                    pass  # the row is named as broken when it is read
        shown = f"(it has {', '.join(list(sample)[:12]) or 'none'})"
        meant = path.stem.lower().startswith(("meta", "captions"))
        if not table.names and (guess.image == "__key__" or not meant):
            self.notes.append(f"{file} is not read: none of its columns names pictures of this folder {shown}")
            return None
        if unread := ", ".join(unread_columns(sample, guess)[:12]):
            self.notes.append(f"columns of {file} that are not read: {unread} (name them with --columns)")
        if not (guess.caption or guess.question or guess.conversations):
            self.notes.append(f"{file} has no column of captions or questions that could be recognised {shown}")
        return table

    def _take(self, table: Table) -> None:
        """Read a table, unless an earlier one says the same; or lay its captions over those of an earlier one."""
        same_folder = [other for other in self.tables.values() if other.folder == table.folder]
        earlier = next((other for other in same_folder if set(table.names) <= set(other.names)), None)
        if PurePosixPath(table.file).name.lower().startswith("captions.") and same_folder:
            before = len(self.overlay)
            for row in rows_of(self.folder / table.file):
                value = value_of(row, table.rows.columns.image)
                if not row.get(BROKEN) and isinstance(value, str) and any(words := table.rows.words(row)):
                    self.overlay[self._resolve(value, table) or value] = words
            count = len(self.overlay) - before
            self.notes.append(f"the captions of {table.file} ({count}) replace those of {same_folder[0].file}")
        elif earlier is not None:
            self.notes.append(f"{table.file} is not read: {earlier.file} names the same pictures")
        else:
            self.tables[table.file] = table
            if table.without_words:
                count = f"{table.without_words} of {table.names.total()} rows"
                self.notes.append(f"{count} of {table.file} have no caption or question")
            if again := [name for name, count in table.names.items() if count > 1]:
                self.notes.append(f"{table.file} names {len(again)} pictures more than once, first {again[0]}")

    def _note_strangers(self, found: FolderContents) -> None:
        lonely = [path for stem, paths in found.texts.items() for path in paths
                  if stem not in self.by_stem and stem not in self.known]  # fmt: skip
        if lonely:
            self.notes.append(f"{len(lonely)} text files have no picture of the same name, first {lonely[0]}")
        for suffix, names in sorted(found.strangers.items()):
            self.notes.append(f"{len(names)} {suffix} files are not read, first {names[0]}")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _folder_rows(parts: list, pictures: tuple[str, ...]) -> Iterator[dict]:
    for table, part in parts:
        if table:
            for row in part_rows([part]):
                # within a column, because a stream wants the same columns with the same types in all rows
                yield {"__key__": str(row.get("__key__", "")), "__table__": table, "__row__": row}
        else:
            yield from ({"__key__": name, "__table__": ""} for name in pictures[part[0] : part[1]])


def _rank(file: str) -> tuple:
    """Tables in the order of reading: outer folders first; metadata, kohya's last step first, others, captions."""
    path = PurePosixPath(file)
    stem = path.stem.lower()
    kohya = _KOHYA.index(stem) if stem in _KOHYA else len(_KOHYA)
    kind = 0 if stem == "metadata" else 1 if stem.startswith("meta") else 3 if stem == "captions" else 2
    return len(path.parts), str(path.parent), kind, kohya, file
