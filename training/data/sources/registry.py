"""The data sets that this package knows, and the one function that opens any of them."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from . import known
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
from .folders import scan, split_name
from .readers import ending, files_of, is_table, read_rows, undecoded
from .stream import BROKEN, DEFAULT_MAX_BROKEN, FaceStream, file_below


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
        rows (`Callable`, *optional*): Converter of table rows: (row, images) -> record.
        folder (`Callable`, *optional*):
            Opens a folder as its authors publish it: (folder, images) -> (rows, converter, notes).
        made (`str`, *optional*):
            For faces that are made while one reads: `"package.module:function"`, called with (place, split, seed),
            where the place is what stands after the colon, and giving rows. It is imported when it is asked for.
    """

    name: str
    summary: str
    licence: str
    hub: tuple[str, ...] = ()
    config: str | None = None
    rows: Callable[..., Any] | None = None
    folder: Callable[..., known.Opened] | None = None
    made: str | None = None


_RESEARCH = "non-commercial research"

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
            rows=known.facecaption_record,
        ),
        Source("mm-celeba-hq", "MM-CelebA-HQ: ten captions a picture", _RESEARCH, folder=known.open_mm_celeba_hq),
        Source(
            "celeba",
            "CelebA and CelebA-HQ: 40 labels; three forms on the Hub, and the authors' files",
            _RESEARCH,
            hub=("flwrlabs/celeba", "tpremoli/CelebA-attrs", "huggan/CelebA-faces-with-attributes"),
            rows=known.label_record,
            folder=known.open_celeba_files,
        ),
        Source(
            "celeba-dialog",
            "CelebA-Dialog: five graded labels and captions",
            _RESEARCH,
            folder=known.open_celeba_dialog,
        ),
        Source("celebv-hq", "CelebV-HQ: frames of clips with 83 labels", _RESEARCH, folder=known.open_celebv_hq),
        Source("celebv-text", "CelebV-Text: frames of clips with texts", _RESEARCH, folder=known.open_celebv_text),
        Source("ffhq-text", "FFHQ-Text: nine captions a picture", "CC BY-NC-SA 4.0", folder=known.open_ffhq_text),
        Source(
            "fairface",
            "FairFace: age, apparent gender and race",
            "CC BY 4.0",
            hub=("HuggingFaceM4/FairFace",),
            config="1.25",
            rows=known.fairface_record,
        ),
        Source(
            "records", "parquet files that this package wrote", "that of what is in them", rows=known.stored_record
        ),
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
    if name and (made := SOURCES[name].made):
        module, _, function = made.partition(":")
        rows = undecoded(getattr(import_module(module), function)(place, split, seed))
        convert, notes = known.stored_record, []
    else:
        local = Path(place).exists() or any(sign in place for sign in "*?[")
        reader = _Reader(name, place, split, columns, Path(images) if images else None, need_text)
        rows, convert, notes = reader.open_local(Path(place)) if local else reader.open_hub(config)
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
    if Path(text).exists() or (not colon and text not in SOURCES):
        return None, text
    if name not in SOURCES:
        raise ValueError(f"{text!r} names the unknown data set {name!r}, expected one of {', '.join(SOURCES)}")
    if place or SOURCES[name].made is not None:
        return name, place
    if colon:
        raise ValueError(f"{text!r} says no place: give {name}:FOLDER, {name}:FILE or {name}:REPOSITORY")
    if not SOURCES[name].hub:
        raise ValueError(f"data set {name!r} is not on the Hub: give its place, {name}:FOLDER")
    return name, SOURCES[name].hub[0]


def recognise_folder(folder: Path) -> str:
    """The name of the known data set whose files are in a folder; `"table"` or `"folder"` for others."""
    if (folder / "celebvhq_info.json").is_file():
        return "celebv-hq"
    if any((folder / name).is_file() for name in known.LABEL_FILES):
        return "celeba"
    if (folder / "text" / "celeba-caption").is_dir():
        return "mm-celeba-hq"
    if any(folder.glob("text/*/*.txt")):
        return "celebv-text"
    tables, pictured = _tables_of(folder), bool(scan(folder).pictures)
    own = [path for path in tables if path.parent == folder]  # else they are those of folders below
    if pictured and any(path.stem.startswith(("metadata", "captions", "meta_")) for path in own):
        return "folder"
    return "table" if _has_packed(folder) or (tables and not pictured) else "folder"


_PACKED = (".parquet", ".tar", ".arrow")


def _has_packed(folder: Path) -> bool:
    return any(ending(path) in _PACKED for path in folder.iterdir())


def _tables_of(folder: Path) -> list[Path]:
    """The tables of a folder, or else of the folders below it: `data/train-00000-of-00001.parquet`."""
    below = [path for path in sorted(folder.rglob("*")) if is_table(path)]
    visible = [path for path in below if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    return [path for path in visible if path.parent == folder] or visible


@dataclass
class _Reader:
    """What [`open_faces`] was asked for; its methods give rows, converter and notes."""

    name: str | None
    place: str
    split: str
    columns: ColumnMap | None
    images: Path | None
    need_text: bool

    def open_local(self, place: Path) -> known.Opened:
        notes: list[str] = []
        if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
            from datasets import load_from_disk  # a folder of Dataset.save_to_disk

            stored = load_from_disk(str(place))
            rows = stored.to_iterable_dataset(num_shards=max(1, min(16, len(stored))))
            return self.table(undecoded(rows), None, notes)
        if place.is_dir():
            self.name = self.name or recognise_folder(place)
            if self.name == "folder" and self.images is None:  # else its tables name pictures elsewhere
                return known.open_folder(place, columns=self.columns, need_text=self.need_text, split=self.split)
        source = SOURCES.get(self.name or "")
        if source and source.folder and (self.name == "celebv-hq" or place.is_dir()):
            if source.rows is None or not _has_packed(place):
                return source.folder(place, self.images)
        files = self._of_one_kind(place, notes) if place.is_dir() else files_of(place)
        return self.table(read_rows(files), files[0].parent, notes)

    def _of_one_kind(self, folder: Path, notes: list[str]) -> list[Path]:
        """The files of the split, of the kind that most are."""
        found = self._of_split(_tables_of(folder) or files_of(folder), folder, notes)
        for file in found:
            file_below(folder, file.relative_to(folder).as_posix())  # a link may lead out of the folder
        endings = Counter(map(ending, found))
        wanted = max(endings, key=lambda kind: (kind in _PACKED, endings[kind]))
        if others := [file for file in found if ending(file) != wanted]:
            notes.append(f"{len(others)} files are not read beside the {wanted} files, first {others[0].name}")
        return [file for file in found if ending(file) == wanted]

    def _of_split(self, files: list[Path], folder: Path, notes: list[str]) -> list[Path]:
        """The files of the split, where names of files or folders say `train`, `validation`, `test`; else all."""
        words = {path: re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower()) for path in files}
        said = {path: next(filter(None, map(split_name, of_path)), None) for path, of_path in words.items()}
        if len(set(said.values())) < 2:  # none, or all of one split
            return files
        wanted = [path for path in files if said[path] == split_name(self.split)]
        if not wanted:
            names = ", ".join(sorted({name for name in said.values() if name}))
            raise ValueError(
                f"{folder} has the splits {names}, but split={self.split!r} is asked for: name one (--split)"
            )
        left = [path for path in files if path not in wanted]
        notes.append(
            f"{len(left)} files are not of the split {self.split}, first {left[0].relative_to(folder)} (--split)"
        )
        return wanted

    def open_hub(self, config: str | None) -> known.Opened:
        from datasets import load_dataset

        place = self.place
        self.name = self.name or next((source.name for source in SOURCES.values() if place in source.hub), None)
        if place.count("/") != 1 or place.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"{place} does not exist, expected a folder, a data file or a repository on the Hub"
            )
        config = config or (SOURCES[self.name].config if self.name else None)
        try:
            rows = load_dataset(place, config, split=self.split, streaming=True)
        except Exception as error:  # of many kinds: no such repository, no network, no right to read it, no such split
            raise ValueError(
                f"the data set {place} cannot be read from the Hub ({type(error).__name__}: {error}): check its name, "
                "its terms of access, the split and the network, or download it and give its folder"
            ) from error
        return self.table(undecoded(rows), f"hf://datasets/{place}", [])

    def table(self, rows, images: str | Path | None, notes: list[str]) -> known.Opened:
        """Rows and converter of a table: the converter of a known data set, or a column map, given or guessed."""
        images, columns = self.images or images, self.columns
        readable = (row for row in rows.take(SAMPLE) if not row.get(BROKEN))
        first = next(readable, None)
        if first is None:
            raise ValueError(f"{self.place} has no row that can be read")
        if columns is None:
            source = SOURCES.get(self.name or "")
            convert = source.rows if source else None
            if convert is None and known.RECORD_COLUMNS <= set(first):
                convert = known.stored_record
            if convert is None and known.is_label_table(first):
                convert = known.label_record
            if convert is not None:
                return rows, partial(convert, images=images), notes
        found = sample_columns(chain([first], readable))
        for column in rows.features or ():  # a column may be empty in all of these rows
            if not any(seen.partition(".")[0] == column for seen in found):
                found[column] = []
        if columns is None:
            columns = guess_from(found)
            announce_guess(self.place, found, columns)
        check_map(columns, found, self.place, self.need_text)
        if unread := unread_columns(found, columns):
            notes.append(f"columns that are not read: {', '.join(unread[:12])} (name them with --columns)")
        return rows, MappedRows(columns, images, self.need_text), notes
