"""Adapters of video data sets whose frames have been extracted: CelebV-HQ and CelebV-Text."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..records import FaceRecord
from .folders import list_pictures
from .labelled import attributes_of_labels, image_folder
from .readers import BROKEN, decode, from_generator, ranges, read_json, text_lines
from .samples import BrokenSampleError, open_picture


_FRAME_TIME = re.compile(r"(?:^|[_-])(\d+(?:\.\d+)?)s$")  # clip_3.5s.jpg: the second of the video


def frames_by_clip(folder: Path, clips) -> tuple[dict[str, list[str]], list[str]]:
    """
    Which frames belong to which clip: `<clip>.jpg`, `<clip>_<anything>.jpg`, `<clip>-<anything>.jpg` or
    `<clip>/<anything>.jpg`.

    Returns:
        The frames of each clip, and the pictures that belong to none.
    """
    known = set(clips)
    found: dict[str, list[str]] = {}
    strangers = []
    for name in list_pictures(folder):
        path = Path(name)
        clip = next((clip for clip in _clip_names(path) if clip in known), None)
        if clip is None:
            strangers.append(name)
        else:
            found.setdefault(clip, []).append(name)
    return found, strangers


def _clip_names(path: Path) -> Iterator[str]:
    """What the clip of a frame may be called, the most precise first. Names of clips have underscores themselves."""
    yield path.stem
    yield from (part for part in reversed(path.parts[:-1]))
    name = path.stem
    while match := re.match(r"(.+)[_-][^_-]*$", name):
        name = match.group(1)
        yield name


def open_celebv_hq(folder: Path, images: Path | None = None):
    """
    Rows and converter of CelebV-HQ: `celebvhq_info.json` and a folder of frames.

    The order of labels is read from the file's `meta_info`. Labels speak of a whole clip: a frame need not show every
    action. Emotions with times are taken from the segment of the frame where its name ends in seconds (`_3.5s`), else
    only if the clip has one emotion.

    Raises:
        FileNotFoundError: if there is no `celebvhq_info.json`, or no frame of any clip.
        ValueError: if the file is not what its name says.
    """
    path = folder / "celebvhq_info.json" if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected CelebV-HQ's list of clips")
    content = read_json(path)
    try:
        meta, clips = content["meta_info"], content["clips"]
        names = {"appearance": tuple(meta["appearance_mapping"]), "action": tuple(meta["action_mapping"])}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks {error}, expected CelebV-HQ's celebvhq_info.json") from error
    pictures = image_folder(path.parent, images)
    rows = _clip_rows(pictures, clips, path)
    return rows, ClipLabels(pictures, names)


def _clip_rows(pictures: Path, clips: Mapping[str, Any], path: Path):
    frames, strangers = frames_by_clip(pictures, clips)
    if not frames:
        raise FileNotFoundError(f"{pictures} has no frame of a clip of {path}: extract frames as <clip>.jpg")
    entries = [(name, clip, clips[clip]) for clip, of_clip in sorted(frames.items()) for name in of_clip]
    entries += [(name, None, {}) for name in strangers]
    return from_generator(_frame_rows, ranges(len(entries)), entries=tuple(entries))


def _frame_rows(parts, entries) -> Iterator[dict]:
    for start, stop in parts:
        for name, clip, info in entries[start:stop]:
            row = {"__key__": name, "clip": clip, "info": info}
            yield row if clip is not None else row | {BROKEN: "the picture belongs to no clip of the list"}


class ClipLabels:
    """
    Converts a frame of CelebV-HQ.

    Args:
        images (`Path`): The folder of the frames.
        names (`dict[str, tuple[str, ...]]`): Names of the appearance and action labels, in the order of the file.
    """

    def __init__(self, images: Path, names: dict[str, tuple[str, ...]]):
        self.images, self.names = images, names

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        labels = row["info"].get("attributes") or {}
        known: dict[str, bool] = {}
        for kind, names in self.names.items():
            values = labels.get(kind)
            if not isinstance(values, list) or len(values) != len(names):
                size = len(values) if isinstance(values, list) else "no"
                raise BrokenSampleError(f"the clip has {size} {kind} labels, expected {len(names)}")
            known |= {name: bool(value) for name, value in zip(names, values, strict=True)}
        emotion = _emotion(labels.get("emotion"), row["__key__"])
        if emotion:
            known[emotion] = True
        attributes, excluded = attributes_of_labels(known)
        youtube = row["info"].get("ytb_id")
        return FaceRecord(
            image=open_picture(row["__key__"], self.images),
            attributes=attributes,
            excluded=excluded,
            labels={name: "yes" if value else "no" for name, value in known.items()},
            # not the person but the video: pictures of one video show the same people
            identity=None if youtube is None else str(youtube),
        )


def _emotion(entry: Any, name: str) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    value = entry.get("labels")
    if isinstance(value, str):
        return value
    segments = [segment for segment in value or () if isinstance(segment, Mapping)]
    if match := _FRAME_TIME.search(Path(name).stem):
        second = float(match.group(1))
        for segment in segments:
            if segment.get("start_sec", 0) <= second <= segment.get("end_sec", -1):
                return segment.get("emotion")
        return None
    emotions = {segment.get("emotion") for segment in segments}
    return emotions.pop() if len(emotions) == 1 else None


def open_celebv_text(folder: Path, images: Path | None = None, texts: Path | None = None):
    """
    Rows and converter of CelebV-Text: a folder of frames, and the descriptions as `text/<kind>/<clip>.txt`
    (`face40_details`, `action`, `emotion`, `light_color_temp`, `light_dir`, `light_intensity`, ...), one a line.

    Appearance comes first in the joined caption; each single description of the appearance is a caption as well.

    Raises:
        FileNotFoundError: if there are no texts, or no frame of a clip that has one.
    """
    place = texts or next(
        (folder / name for name in ("text", "texts", "descriptions") if (folder / name).is_dir()), None
    )
    if place is None:
        raise FileNotFoundError(f"{folder} has no folder of texts, expected {folder}/text/<kind>/<clip>.txt")
    clips: dict[str, dict[str, list[str]]] = {}
    for path in sorted(Path(place).glob("*/*.txt")):
        lines = text_lines(decode(path.read_bytes(), str(path)))
        if lines:
            clips.setdefault(path.stem, {})[path.parent.name] = lines
    if not clips:
        raise FileNotFoundError(f"{place} has no text, expected {place}/<kind>/<clip>.txt")
    pictures = image_folder(folder, images)
    return _clip_rows(pictures, clips, Path(place)), ClipTexts(pictures)


_KIND_ORDER = ("appearance", "face", "emotion", "action", "light")


class ClipTexts:
    """Converts a frame of CelebV-Text: sentences of every kind joined to captions."""

    def __init__(self, images: Path):
        self.images = images

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        kinds = sorted(row["info"], key=_place)
        longest = max(len(row["info"][kind]) for kind in kinds)
        # caption i takes sentence i of every kind; kinds with fewer sentences begin again
        joined = [" ".join(_sentence(row["info"][k][i % len(row["info"][k])]) for k in kinds) for i in range(longest)]
        single = [text for kind in kinds if _place(kind)[0] < 2 for text in row["info"][kind]]
        return FaceRecord(
            image=open_picture(row["__key__"], self.images),
            captions=list(dict.fromkeys([*joined, *single])),
            labels={"clip": str(row["clip"])},
        )


def _place(kind: str) -> tuple[int, str]:
    return next((i for i, name in enumerate(_KIND_ORDER) if name in kind.lower()), len(_KIND_ORDER)), kind


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
