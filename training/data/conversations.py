"""Face records as the conversations that TRL trains on: for supervised tuning and for preferences."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...modeling_unif2ace.pictures_unif2ace import load_image
from ...pipelines.files import json_lines
from .language.attributes import ATTRIBUTES
from .language.captions import DESCRIBE_PROMPTS, salient_attributes, write_caption
from .records import FaceRecord
from .rows import read_faces, visible_of
from .sources import SOURCES, open_faces
from .sources.stream import file_below


METADATA = "metadata.jsonl"
WRONG_FACTS = 4  # in a rejected caption of a face whose attributes are known


def load_faces(data: str, count: int | None = None, split: str = "train") -> list[FaceRecord]:
    """
    Faces to talk about.

    Args:
        data (`str`): A folder, see [`~unif2ace.training.data.rows.read_faces`], or `"painted"`.
        count (`int`, *optional*): How many, from the first on; 64 painted ones or the whole folder when not given.
        split (`str`, *optional*, defaults to `"train"`): Split of the painted faces.
    """
    if data in SOURCES and SOURCES[data].made is not None:
        return list(open_faces(f"{data}:{count or ''}", split=split))
    return read_faces(data)[:count]


def _user(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def _assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def conversation_rows(records: Sequence[FaceRecord], seed: int = 0) -> list[dict]:
    """
    One conversation for each caption and each question: rows for [`trl.SFTTrainer`].

    Args:
        records (`Sequence[FaceRecord]`): Faces with pictures.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of requests.

    Returns:
        `list[dict]` with `images` (one picture) and `messages` (a user's turn with the picture, an assistant's turn).
    """
    return [
        {"images": [record.image], "messages": _user(ask) + _assistant(answer)}
        for record, ask, answer in _asked(records, seed)
    ]


def question_rows(records: Sequence[FaceRecord], seed: int = 0) -> list[dict]:
    """
    A request for each caption and each question: rows for [`trl.GRPOTrainer`], arguments as for [`conversation_rows`].

    Returns:
        `list[dict]` with `images` (one picture), `prompt` (a user's turn with the picture) and `answer`, the caption
        or answer that is known, for a reward.
    """
    return [
        {"images": [record.image], "prompt": _user(ask), "answer": answer}
        for record, ask, answer in _asked(records, seed)
    ]


def _asked(records: Sequence[FaceRecord], seed: int) -> list[tuple[FaceRecord, str, str]]:
    rng = random.Random(f"{seed}-conversations")
    found = []
    for record in records:
        found += [(record, rng.choice(DESCRIBE_PROMPTS), caption) for caption in record.captions]
        found += [(record, question.question, question.answer) for question in record.questions]
    if not found:
        raise ValueError(f"none of {len(records)} faces has a caption or a question to talk about")
    return found


def preference_rows(records: Sequence[FaceRecord], seed: int = 0) -> list[dict]:
    """
    A right and a wrong description of each face: rows for [`trl.DPOTrainer`].

    What is rejected differs little from what is chosen where the attributes are known: the same sentence plan with
    `WRONG_FACTS` facts changed. Otherwise it is the caption of another face.

    Args:
        records (`Sequence[FaceRecord]`): Faces with pictures and attributes, or captions.
        seed (`int`, *optional*, defaults to 0): Seed of words and mistakes.

    Returns:
        `list[dict]` with `images`, `prompt`, `chosen` and `rejected`.
    """
    rng = random.Random(f"{seed}-preferences")
    rows = []
    for place, record in enumerate(records):
        if record.attributes:
            chosen, rejected = _described(record, rng)
        else:
            others = [text for other in records for text in other.captions if text not in record.captions]
            if not record.captions or not others:
                raise ValueError(f"face {record.id or place} has no caption, or no other face has a different one")
            chosen, rejected = rng.choice(record.captions), rng.choice(others)
        rows.append(_preference(record.image, rng.choice(DESCRIBE_PROMPTS), chosen, rejected))
    return rows


def _preference(image: Image.Image, ask: str, chosen: str, rejected: str) -> dict:
    return {
        "images": [image],
        "prompt": _user(ask),
        "chosen": _assistant(chosen),
        "rejected": _assistant(rejected),
    }


def _described(record: FaceRecord, rng: random.Random) -> tuple[str, str]:
    """A true caption and, with the same choices of words, one with mistakes."""
    visible = visible_of(record)
    wrong = dict(record.attributes)
    stated = list(salient_attributes(record.attributes, visible))
    for name in rng.sample(stated, min(WRONG_FACTS, len(stated))):
        wrong[name] = rng.choice([value for value in ATTRIBUTES[name] if value != record.attributes[name]])
    state = rng.random()
    return tuple(
        write_caption(attributes, visible, random.Random(state)).text for attributes in (record.attributes, wrong)
    )


def folder_preferences(folder: str | Path) -> list[dict] | None:
    """
    The preference rows of a folder whose `metadata.jsonl` says `chosen` and `rejected` (and `prompt`) itself; `None`
    if it does not.

    Raises:
        ValueError: if some lines have them and others not.
    """
    file = Path(folder) / METADATA
    if not file.is_file():
        return None
    lines = [line for _, line in json_lines(file)]
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{file} has lines that are no JSON objects, expected file_name, chosen and rejected in each")
    with_both = [all(isinstance(line.get(name), str) for name in ("chosen", "rejected")) for line in lines]
    if not any(with_both):
        return None
    if not all(with_both):
        raise ValueError(
            f"{file}, line {with_both.index(False) + 1} lacks a text chosen or rejected, others have both"
        )
    pictures = [load_image(file_below(folder, str(line.get("file_name", "")))) for line in lines]
    return [
        _preference(picture, line.get("prompt") or DESCRIBE_PROMPTS[0], line["chosen"], line["rejected"])
        for picture, line in zip(pictures, lines, strict=True)
    ]
