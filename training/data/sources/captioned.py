"""Adapters of caption data sets: FaceCaption, MM-CelebA-HQ, FFHQ-Text, and records written by this package."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..language.questions import OPEN_QUESTION, Question
from ..records import FaceRecord
from .columns import texts, value_of
from .folders import open_folder
from .labelled import image_folder
from .readers import BROKEN, from_generator, ranges, read_json, rows_of
from .samples import IMAGE_SUFFIXES, BrokenSampleError, open_picture


# FaceCaption-15M and -1M


class FaceCaptionRows:
    """
    Converts FaceCaption-15M and -1M: `url`, `face_box`, `laion_caption`, `face_caption`.

    FaceCaption-15M has no pictures. They are found in the row (`image`, `jpg`, as img2dataset writes them with the
    columns in `json`), else below `images` by the name of the row's key or of the address. The picture is cut out at
    the face box, with a margin, unless it is the cut-out already.

    Args:
        images (`str` or `os.PathLike`, *optional*): The folder of downloaded pictures.
        margin (`float`, *optional*, defaults to 0.25): Margin around the face box, as a share of its longer side.
        web_captions (`bool`, *optional*, defaults to `False`):
            Whether the text of the web page (`laion_caption`) is taken too: it seldom describes the face.
    """

    def __init__(self, images=None, margin: float = 0.25, web_captions: bool = False):
        self.images, self.margin, self.web_captions = images, margin, web_captions

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        captions = texts(_of(row, "face_caption", "caption", "txt"), "face_caption")
        if self.web_captions:
            captions += texts(_of(row, "laion_caption"), "laion_caption")
        if not captions:
            raise BrokenSampleError("face_caption is empty")
        url = _of(row, "url") or ""
        picture = next((row[name] for name in ("image", "jpg", "png", "webp", "jpeg") if row.get(name)), None)
        if picture is None:
            picture = self._downloaded(str(row.get("__key__") or _of(row, "key", "id") or ""), url)
        picture = open_picture(picture, self.images)
        box = _of(row, "face_box", "face box", "box", "bbox")
        if box is not None:
            picture = cut_out(picture, box, self.margin)
        return FaceRecord(image=picture, captions=captions, labels={"url": url} if url else {})

    def _downloaded(self, key: str, url: str) -> str:
        if self.images is None:
            raise BrokenSampleError("the row has no picture: download the pictures first, then give images=FOLDER")
        name = url.split("?")[0].rstrip("/").rpartition("/")[2]
        candidates = [name] + [f"{key}{suffix}" for suffix in (".jpg", ".png", ".webp")]
        for candidate in candidates:
            if candidate and "/" not in candidate and (Path(self.images) / candidate).is_file():
                return candidate
        raise BrokenSampleError(f"{self.images} has no picture of {url or key}")


def _of(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        for place in (name, f"json.{name}"):
            if (value := value_of(row, place)) is not None:
                return value
    return None


def cut_out(picture, box: Any, margin: float):
    """
    The part of a picture around a face box (left, top, right, bottom), in pixels or as shares of the sides.

    Raises:
        BrokenSampleError: if the box is none, or lies outside.
    """
    if isinstance(box, str):
        box = box.strip("[]() ").replace(",", " ").split()
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise BrokenSampleError(f"the face box is {box!r}, expected left, top, right, bottom") from error
    width, height = picture.size
    if max(left, top, right, bottom) <= 1:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
    extra = margin * max(right - left, bottom - top)
    cut = max(0, left - extra), max(0, top - extra), min(width, right + extra), min(height, bottom + extra)
    if not (left < right and top < bottom and cut[2] - cut[0] >= 2 and cut[3] - cut[1] >= 2):
        raise BrokenSampleError(f"the face box {box!r} lies outside of the picture of {width}x{height} pixels")
    try:
        return picture.crop(tuple(round(value) for value in cut))
    except OSError as error:
        raise BrokenSampleError(f"the picture is truncated or damaged ({error})") from error


# MM-CelebA-HQ


def open_mm_celeba_hq(folder: Path, images: Path | None = None, texts: Path | None = None):
    """
    Rows and converter of MM-CelebA-HQ: pictures in a folder, ten captions each in `text/celeba-caption/<number>.txt`.

    Raises:
        FileNotFoundError: if there are no texts.
    """
    places = (texts, folder / "text" / "celeba-caption", folder / "celeba-caption", folder / "text")
    place = next((Path(path) for path in places if path is not None and Path(path).is_dir()), None)
    if place is None:
        raise FileNotFoundError(f"{folder} has no captions, expected {folder}/text/celeba-caption/<number>.txt")
    return open_folder(image_folder(folder, images), texts=place)[:2]


# FFHQ-Text


def open_ffhq_text(folder: Path, images: Path | None = None, texts: Path | None = None):
    """
    Rows and converter of FFHQ-Text: nine captions for each picture, as one `.txt` a picture, or in JSON or CSV files
    that name the picture in one field and have captions in the others.

    Raises:
        FileNotFoundError: if there is neither.
    """
    pictures = image_folder(folder, images)
    captions: dict[str, list[str]] = {}
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.csv"))):
        for name, lines in _named_captions(path):
            captions.setdefault(name, []).extend(lines)
    if not captions:
        place = texts or next(
            (folder / name for name in ("text", "texts", "captions") if (folder / name).is_dir()), None
        )
        return open_folder(pictures, texts=place)[:2]
    entries = tuple((name, tuple(dict.fromkeys(lines))) for name, lines in sorted(captions.items()))
    return from_generator(_caption_rows, ranges(len(entries)), entries=entries), NamedCaptions(pictures)


def _named_captions(path: Path) -> Iterator[tuple[str, list[str]]]:
    if path.suffix == ".csv":
        rows = (row for row in rows_of(path) if BROKEN not in row)
        entries: Any = [{name: value for name, value in row.items() if name != "__key__"} for row in rows]
    else:
        entries = read_json(path)
    if isinstance(entries, dict) and all(isinstance(value, (str, list)) for value in entries.values()):
        if not (len(entries) == 1 and isinstance(next(iter(entries.values())), list)):
            yield from ((name, texts(value, name)) for name, value in entries.items())
            return
        entries = next(iter(entries.values()))
    items = entries.items() if isinstance(entries, dict) else ((None, entry) for entry in entries)
    for key, entry in items:
        fields = entry if isinstance(entry, dict) else {"caption": entry}
        name, lines = key, []
        for value in fields.values():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text.lower().endswith(tuple(IMAGE_SUFFIXES)):
                    name = text
                elif isinstance(text, str) and len(text.split()) > 2:
                    lines.append(text.strip())
        if name is not None:
            yield Path(name).name, lines


def _caption_rows(parts, entries) -> Iterator[dict]:
    for start, stop in parts:
        for name, lines in entries[start:stop]:
            yield {"__key__": name, "captions": list(lines)}


class NamedCaptions:
    """Converts the name of a picture and its captions; numbers find `<number>.png`, zeros before or not."""

    def __init__(self, images: Path):
        self.images = images

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        captions = texts(row["captions"], "caption")
        if not captions:
            raise BrokenSampleError("the caption is empty")
        return FaceRecord(image=open_picture(self._file(row["__key__"]), self.images), captions=captions)

    def _file(self, name: str) -> str:
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return name
        candidates = [f"{number}{suffix}" for number in (name, name.zfill(5)) for suffix in (".png", ".jpg")]
        return next((candidate for candidate in candidates if (self.images / candidate).is_file()), f"{name}.png")


# Records as the synthetic worlds and the commands of this package write them

RECORD_COLUMNS = frozenset(("image", "captions", "attributes", "questions"))


class StoredRecords:
    """Converts rows with the fields of [`~unif2ace.training.data.records.FaceRecord`]."""

    def __init__(self, images=None):
        self.images = images

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        questions = [
            Question(item.get("kind") or OPEN_QUESTION, item.get("attribute") or "", item["question"], item["answer"])
            for item in row.get("questions") or ()
        ]
        attributes = {name: value for name, value in (row.get("attributes") or {}).items() if value is not None}
        visible = row.get("visible") or {}
        return FaceRecord(
            image=open_picture(row["image"], self.images) if row.get("image") is not None else None,
            captions=texts(row.get("captions"), "captions"),
            questions=questions,
            attributes=attributes,
            visible={name: value for name, value in visible.items() if value is not None and name in attributes},
            identity=row.get("identity"),
            source=row.get("source") or "",
            id=row.get("id") or "",
            labels={name: value for name, value in (row.get("labels") or {}).items() if value is not None},
        )
