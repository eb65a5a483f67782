"""The data sets that this package knows, and the one function that opens any of them."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from .captioned import RECORD_COLUMNS, FaceCaptionRows, StoredRecords, open_ffhq_text, open_mm_celeba_hq
from .clips import open_celebv_hq, open_celebv_text
from .columns import (
    SAMPLE,
    ColumnMap,
    MappedRows,
    announce_guess,
    check_map,
    guess_from,
    sample_columns,
    unread_columns,
)
from .folders import SPLITS, has_pictures, open_folder, same_split
from .labelled import LABEL_FILES, FairFaceRows, LabelRows, is_label_table, open_celeba_dialog, open_celeba_files
from .readers import BROKEN, TABLE_SUFFIXES, files_of, read_rows, undecoded
from .samples import DEFAULT_MAX_BROKEN
from .stream import Convert, FaceStream


@dataclass(frozen=True)
class Source:
    """
    A data set that this package knows.

    Args:
        name (`str`): Its name on the command line.
        summary (`str`): What it is, in one line.
        licence (`str`): Its terms, in a few words; its owner's own words decide.
        hub (`tuple[str, ...]`, *optional*): Repositories on the Hub that are recognised.
        config (`str`, *optional*): The configuration to load from the Hub.
        rows (`Callable`, *optional*): Converter of table rows, made with (images).
        folder (`Callable`, *optional*):
            Opens a folder as its authors publish it: (folder, images) -> (rows, converter).
        made (`str`, *optional*):
            For faces that are made while one reads: `"package.module:function"`, called with (place, split, seed),
            where the place is what stands after the colon, and giving rows. It is imported when it is asked for.
    """

    name: str
    summary: str
    licence: str
    hub: tuple[str, ...] = ()
    config: str | None = None
    rows: Callable[[Any], Convert] | None = None
    folder: Callable[..., tuple[Any, Convert]] | None = None
    made: str | None = None


_NON_COMMERCIAL = "non-commercial research"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "folder",
            "pictures with a text file each (.txt, .caption), or with metadata.jsonl / .csv / ...; kohya's forms",
            "yours",
        ),
        Source("table", "any parquet, CSV, JSON (lines), WebDataset or Hub data set, by a column map", "its own"),
        Source(
            "unif2aced-1m",
            "UniF2aceD-1M: captions and questions of 130K faces (its columns are not documented: they are guessed)",
            "tagged apache-2.0; its pictures come from sets for non-commercial research",
            hub=("tulvgengenr/UniF2aceD-1M", "tulvgengenr/UniF2ace-130K"),
        ),
        Source(
            "facecaption",
            "FaceCaption-15M (addresses and captions) and -1M (with pictures)",
            "tagged cc-by-4.0; scientific research only",
            hub=("OpenFace-CQUPT/FaceCaption-15M", "OpenFace-CQUPT/FaceCaption-1M-image-text-pairs"),
            rows=FaceCaptionRows,
        ),
        Source("mm-celeba-hq", "MM-CelebA-HQ: ten captions a picture", _NON_COMMERCIAL, folder=open_mm_celeba_hq),
        Source(
            "celeba",
            "CelebA and CelebA-HQ: 40 labels; three forms on the Hub, and the authors' files",
            _NON_COMMERCIAL,
            hub=("flwrlabs/celeba", "tpremoli/CelebA-attrs", "huggan/CelebA-faces-with-attributes"),
            rows=LabelRows,
            folder=open_celeba_files,
        ),
        Source(
            "celeba-dialog",
            "CelebA-Dialog: five graded labels and captions",
            _NON_COMMERCIAL,
            folder=open_celeba_dialog,
        ),
        Source("celebv-hq", "CelebV-HQ: frames of clips with 83 labels", _NON_COMMERCIAL, folder=open_celebv_hq),
        Source("celebv-text", "CelebV-Text: frames of clips with texts", _NON_COMMERCIAL, folder=open_celebv_text),
        Source("ffhq-text", "FFHQ-Text: nine captions a picture", "CC BY-NC-SA 4.0", folder=open_ffhq_text),
        Source(
            "fairface",
            "FairFace: age, apparent gender and race",
            "CC BY 4.0",
            hub=("HuggingFaceM4/FairFace",),
            config="1.25",
            rows=lambda images: FairFaceRows(),
        ),
        Source("records", "parquet files that this package wrote", "that of what is in them", rows=StoredRecords),
        Source(
            "painted",
            "painted faces, made while one reads: painted:COUNT",
            "Apache-2.0",
            made="unif2ace.training.synthetic.painted.dataset:open_painted",
        ),
    )
}
"""Name -> data set. To add one, give a converter of its rows, or a function that opens its folder."""


def open_faces(
    source: str | os.PathLike,
    *,
    split: str = "train",
    config: str | None = None,
    columns: ColumnMap | str | None = None,
    images: str | os.PathLike | None = None,
    max_broken: int = DEFAULT_MAX_BROKEN,
    seed: int = 0,
    need_text: bool = True,
) -> FaceStream:
    """
    Open any face data set as a stream of records.

    ```python
    faces = open_faces("photos/")  # a folder; what it holds is recognised
    faces = open_faces("celeba:/data/celeba-hq")
    faces = open_faces("flwrlabs/celeba", config="img_align+identity+attr")
    faces = open_faces("someone/faces", columns="image=jpg,question=q,answer=a")
    for record in faces.split_by_node(rank, world_size).shuffle():
        ...
    ```

    Args:
        source (`str` or `os.PathLike`):
            `NAME:PLACE` with a name of [`SOURCES`], or a place alone, whose kind is then recognised. A place is a
            folder, a data file or a pattern of files, or a repository on the Hub; for `painted` a number of faces.
        split (`str`, *optional*, defaults to `"train"`): The split, of data sets on the Hub and of painted faces.
        config (`str`, *optional*): The configuration, of data sets on the Hub.
        columns ([`ColumnMap`] or `str`, *optional*):
            Which columns hold what, `"image=jpg,caption=txt"`. When it is needed and not given, the columns found and
            a guess are printed.
        images (`str` or `os.PathLike`, *optional*): The folder of pictures that the data give by name.
        max_broken (`int`, *optional*, defaults to 100):
            Most broken samples that are passed over before reading stops; -1 for any number.
        seed (`int`, *optional*, defaults to 0): Seed of the words written about labels, and of shuffling.
        need_text (`bool`, *optional*, defaults to `True`): Whether a picture without any words is broken.

    Returns:
        [`FaceStream`]

    Raises:
        ValueError: if the source is unknown, or its columns are not.
        FileNotFoundError: if there is nothing at the place.
    """
    if isinstance(columns, str):
        columns = ColumnMap.parse(columns)
    name, place = split_source(source)
    made = SOURCES[name].made if name else None
    notes: list[str] = []
    if made is not None:
        module, _, function = made.partition(":")
        rows, convert = undecoded(getattr(import_module(module), function)(place, split, seed)), StoredRecords()
    elif Path(place).exists() or _is_pattern(place):
        rows, convert = _open_local(name, Path(place), split, columns, images, need_text, notes)
    else:
        rows, convert = _open_hub(name, place, split, config, columns, images, need_text, notes)
    for note in notes:
        print(f"{source}: {note}", file=sys.stderr)
    return FaceStream(rows, convert, str(source), max_broken, seed, need_text, notes)


def split_source(source: str | os.PathLike) -> tuple[str | None, str]:
    """
    `NAME:PLACE` as its two parts; the name is `None` for a place alone.

    Raises:
        ValueError: if the name is unknown or the place empty.
    """
    text = os.fspath(source)
    name, colon, place = text.partition(":")
    if colon and not Path(text).exists():
        if name not in SOURCES:
            raise ValueError(f"{text!r} names the unknown data set {name!r}, expected one of {', '.join(SOURCES)}")
        if not place and SOURCES[name].made is None:
            raise ValueError(f"{text!r} says no place: give {name}:FOLDER, {name}:FILE or {name}:REPOSITORY")
        return name, place
    if text in SOURCES and not Path(text).exists():
        if SOURCES[text].made is not None:
            return text, ""
        if not SOURCES[text].hub:
            raise ValueError(f"data set {text!r} is not on the Hub: give its place, {text}:FOLDER")
        return text, SOURCES[text].hub[0]
    return None, text


def _is_pattern(place: str) -> bool:
    return any(sign in place for sign in "*?[")


def recognise_folder(folder: Path) -> str:
    """The name of the known data set whose files are in a folder; `"table"` or `"folder"` for others."""
    if (folder / "celebvhq_info.json").is_file():
        return "celebv-hq"
    if any((folder / name).is_file() for name in LABEL_FILES):
        return "celeba"
    if (folder / "text" / "celeba-caption").is_dir():
        return "mm-celeba-hq"
    if any(folder.glob("text/*/*.txt")):
        return "celebv-text"
    if any(path.stem.startswith(("metadata", "captions", "meta_")) for path in _tables_in(folder)):
        return "folder"
    if _has_tables(folder) or (_table_files(folder) and not has_pictures(folder)):
        return "table"
    return "folder"


def _tables_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES]


def _table_files(folder: Path) -> list[Path]:
    """The tables of a folder, or else of the folders below it: `data/train-00000-of-00001.parquet`."""
    hidden = [path for path in folder.rglob("*") if path.suffix.lower() in TABLE_SUFFIXES]
    below = [path for path in sorted(hidden) if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    return _tables_in(folder) or below


def _files_of_split(files: list[Path], folder: Path, split: str, notes: list[str]) -> list[Path]:
    """The files of a split, where names of files or folders say `train`, `validation`, `test`; else all."""

    def split_name(path: Path) -> str | None:
        words = re.split(r"[^a-z]+", path.relative_to(folder).with_suffix("").as_posix().lower())
        return next((same_split(word) for word in words if word in SPLITS), None)

    said = {path: split_name(path) for path in files}
    if len(set(said.values())) < 2:  # none, or all of one split
        return files
    wanted = [path for path in files if said[path] == same_split(split)]
    left = [path for path in files if said[path] != same_split(split)]
    if not wanted:
        names = ", ".join(sorted({name for name in said.values() if name}))
        raise ValueError(f"{folder} has the splits {names}, but split={split!r} is asked for: name one (--split)")
    if left:
        notes.append(f"{len(left)} files are not of the split {split}, first {left[0].relative_to(folder)} (--split)")
    return wanted


def _open_local(name: str | None, place: Path, split: str, columns, images, need_text: bool, notes: list[str]):
    if place.is_dir():
        if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
            from datasets import load_from_disk  # a folder of Dataset.save_to_disk

            stored = load_from_disk(str(place))
            rows = stored.to_iterable_dataset(num_shards=max(1, min(16, len(stored))))
            return _table(name, undecoded(rows), place, columns, images, need_text, notes)
        name = name or recognise_folder(place)
        known = SOURCES[name]
        if name == "folder":
            rows, convert, found = open_folder(place, columns, need_text=need_text, split=split)
            notes += found
            return rows, convert
        if known.folder is not None and (known.rows is None or not _has_tables(place)):
            return known.folder(place, Path(images) if images is not None else None)
        files = _files_of_split(_table_files(place), place, split, notes)
        if not files:
            files = files_of(place)  # says what is missing
        endings = Counter(file.suffix.lower() for file in files)
        ending = max(endings, key=lambda kind: (kind in _PACKED, endings[kind]))
        others = [file for file in files if file.suffix.lower() != ending]
        if others:
            notes.append(f"{len(others)} files are not read beside the {ending} files, first {others[0].name}")
        files = [file for file in files if file.suffix.lower() == ending]
    elif name == "celebv-hq":
        return open_celebv_hq(place, Path(images) if images is not None else None)
    else:
        files = files_of(place)
    return _table(name, read_rows(files), place, columns, images or files[0].parent, need_text, notes)


_PACKED = (".parquet", ".tar", ".arrow")


def _has_tables(folder: Path) -> bool:
    return any(path.suffix.lower() in _PACKED for path in folder.iterdir())


def _open_hub(name, place: str, split: str, config: str | None, columns, images, need_text: bool, notes: list[str]):
    from datasets import load_dataset

    if name is None:
        name = next((source.name for source in SOURCES.values() if place in source.hub), None)
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{place} does not exist, expected a folder, a data file or a repository on the Hub")
    config = config or (SOURCES[name].config if name else None)
    try:
        rows = load_dataset(place, config, split=split, streaming=True)
    except Exception as error:  # of many kinds: no such repository, no network, no right to read it, no such split
        raise ValueError(
            f"the data set {place} cannot be read from the Hub ({type(error).__name__}: {error}): check its name, its "
            "terms of access, the split and the network, or download it and give its folder"
        ) from error
    return _table(name, undecoded(rows), place, columns, images or f"hf://datasets/{place}", need_text, notes)


def _table(name: str | None, rows, place, columns: ColumnMap | None, images, need_text: bool, notes: list[str]):
    """Rows and converter of a table: the converter of a known data set, or a column map, given or guessed."""
    readable = (row for row in rows.take(SAMPLE) if not row.get(BROKEN))
    first = next(readable, None)
    if first is None:
        raise ValueError(f"{place} has no row that can be read")
    if columns is None:
        known = SOURCES.get(name or "")
        if known is not None and known.rows is not None:
            return rows, known.rows(images)
        if RECORD_COLUMNS <= set(first):
            return rows, StoredRecords(images)
        if is_label_table(first):
            return rows, LabelRows(images)
    found = sample_columns(chain([first], readable))
    for column in rows.features or ():  # a column may be empty in all of these rows
        if not any(seen.partition(".")[0] == column for seen in found):
            found[column] = []
    if columns is None:
        columns = guess_from(found)
        announce_guess(str(place), found, columns)
    check_map(columns, found, str(place), need_text)
    if unread := unread_columns(found, columns):
        notes.append(f"columns that are not read: {', '.join(unread[:12])} (name them with --columns)")
    return rows, MappedRows(columns, images, need_text)


__all__ = ["SOURCES", "Source", "open_faces", "recognise_folder", "split_source"]
