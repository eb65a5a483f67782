"""The data sets that this package knows, and the one function that opens any of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .captioned import RECORD_COLUMNS, FaceCaptionRows, StoredRecords, open_ffhq_text, open_mm_celeba_hq
from .clips import open_celebv_hq, open_celebv_text
from .columns import ColumnMap, MappedRows, announce_guess, check_map, guess_columns
from .folders import METADATA_NAMES, open_folder
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
            "pictures with a .txt each, or with metadata.jsonl / metadata.csv",
            "yours",
            folder=lambda folder, images: open_folder(folder),
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
    if made is not None:
        module, _, function = made.partition(":")
        rows, convert = undecoded(getattr(import_module(module), function)(place, split, seed)), StoredRecords()
    elif Path(place).exists() or _is_pattern(place):
        rows, convert, name = _open_local(name, Path(place), columns, images, need_text)
    else:
        rows, convert, name = _open_hub(name, place, split, config, columns, images, need_text)
    return FaceStream(rows, convert, str(source), max_broken, seed, need_text)


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
    if any((folder / name).is_file() for name in METADATA_NAMES):
        return "folder"
    if any(path.suffix in TABLE_SUFFIXES for path in folder.iterdir()):
        return "table"
    return "folder"


def _open_local(name: str | None, place: Path, columns: ColumnMap | None, images, need_text: bool):
    if place.is_dir():
        if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
            from datasets import load_from_disk  # a folder of Dataset.save_to_disk

            stored = load_from_disk(str(place))
            rows = stored.to_iterable_dataset(num_shards=max(1, min(16, len(stored))))
            return _table(name, undecoded(rows), place, columns, images, need_text)
        name = name or recognise_folder(place)
        known = SOURCES[name]
        if name == "folder":
            rows, convert = open_folder(place, columns, need_text=need_text)
            return rows, convert, name
        if known.folder is not None and (known.rows is None or not _has_tables(place)):
            rows, convert = known.folder(place, Path(images) if images is not None else None)
            return rows, convert, name
    elif name == "celebv-hq":
        return *open_celebv_hq(place, Path(images) if images is not None else None), name
    files = files_of(place)
    return _table(name, read_rows(files), place, columns, images or files[0].parent, need_text)


def _has_tables(folder: Path) -> bool:
    return any(path.suffix in (".parquet", ".tar", ".arrow") for path in folder.iterdir())


def _open_hub(name: str | None, place: str, split: str, config: str | None, columns, images, need_text: bool):
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
    return _table(name, undecoded(rows), place, columns, images, need_text)


def _table(name: str | None, rows, place, columns: ColumnMap | None, images, need_text: bool):
    """The converter of a table: that of a known data set, or a column map, given or guessed."""
    first = _first_readable(rows, str(place))
    if columns is None:
        known = SOURCES.get(name or "")
        if known is not None and known.rows is not None:
            return rows, known.rows(images), name
        if RECORD_COLUMNS <= set(first):
            return rows, StoredRecords(images), "records"
        if is_label_table(first):
            return rows, LabelRows(images), "celeba"
        columns = guess_columns(first)
        announce_guess(str(place), first, columns)
    check_map(columns, first, str(place), need_text)
    return rows, MappedRows(columns, images, need_text), name or "table"


def _first_readable(rows, place: str) -> dict[str, Any]:
    for row in rows.take(100):
        if not row.get(BROKEN):
            return row
    raise ValueError(f"{place} has no row that can be read")


__all__ = ["SOURCES", "Source", "open_faces", "recognise_folder", "split_source"]
