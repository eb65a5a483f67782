"""Any table of faces: which column is the picture, which the caption, which the question and the answer."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..language.questions import OPEN_QUESTION, Question
from ..records import FaceRecord
from .samples import IMAGE_SUFFIXES, BrokenSampleError, open_picture


# Usual names, the likeliest first; compared in lower case without separators.
_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "picture", "photo", "face", "jpg", "jpeg", "png", "webp", "imagebytes", "imagepath",
              "imgpath", "filename", "imagefile", "imagename", "file", "path"),
    "caption": ("caption", "captions", "facecaption", "refinedcaption", "longcaption", "description", "descriptions",
                "text", "texts", "txt", "prompt", "jsoncaption", "laioncaption", "recaption"),
    "question": ("question", "questions", "query", "instruction"),
    "answer": ("answer", "answers", "response", "label"),
    "conversations": ("conversations", "conversation", "messages", "vqa", "qa", "qapairs", "dialog", "dialogue"),
    "identity": ("identity", "celebid", "personid", "identityid", "subject", "subjectid"),
    "id": ("id", "imageid", "key", "uid", "sampleid", "questionid"),
}  # fmt: skip
_ASKING = ("human", "user", "question")
_ANSWERING = ("gpt", "assistant", "model", "answer")
_PLACEHOLDER = re.compile(r"\s*<(image|img|ImageHere)>\s*")


@dataclass(frozen=True)
class ColumnMap:
    """
    Which columns of a table hold what. Several columns of one kind are joined by `+`, and a dot reaches into a column
    that holds objects: `caption=short+json.long_caption`.

    Args:
        image (`str`, *optional*): Pictures, or names of files.
        caption (`str`, *optional*): Texts, or lists of them.
        question (`str`, *optional*), answer (`str`, *optional*): Texts, or lists of equal length.
        conversations (`str`, *optional*):
            Lists of turns, `{"from": "human" | "gpt", "value": ...}` (LLaVA) or `{"role": "user" | "assistant",
            "content": ...}`, or of `{"question": ..., "answer": ...}`.
        identity (`str`, *optional*): The person.
        id (`str`, *optional*): The name of the row.
    """

    image: str | None = None
    caption: str | None = None
    question: str | None = None
    answer: str | None = None
    conversations: str | None = None
    identity: str | None = None
    id: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ColumnMap":
        """
        The map that a command line gives: `"image=jpg,caption=txt"`.

        Raises:
            ValueError: if a part is not `kind=column`, or the kind is unknown.
        """
        kinds = [item.name for item in fields(cls)]
        found: dict[str, str] = {}
        for part in text.split(","):
            kind, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals or not column or kind not in kinds:
                raise ValueError(f"columns has {part!r}, expected KIND=COLUMN with a kind of {', '.join(kinds)}")
            found[kind] = column
        return cls(**found)

    def __str__(self) -> str:
        return ",".join(f"{item.name}={value}" for item in fields(self) if (value := getattr(self, item.name)))

    def columns(self, kind: str) -> list[str]:
        """The columns of one kind."""
        value = getattr(self, kind)
        return [name.strip() for name in value.split("+")] if value else []


def column_names(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row, those inside of objects as `column.name`."""
    names = []
    for name, value in row.items():
        if isinstance(value, Mapping) and not {"bytes", "path"} & set(value):
            names += [f"{name}.{inner}" for inner in value]
        elif not name.startswith("__"):
            names.append(name)
    return names


def guess_columns(row: Mapping[str, Any]) -> ColumnMap:
    """
    Guess the map from the names and the content of a first row.

    Args:
        row (`Mapping`): A row; pictures are not decoded.

    Returns:
        [`ColumnMap`]: What was found; kinds that were not found are `None`.
    """
    names = column_names(row)
    found: dict[str, str] = {}
    for kind, usual in _NAMES.items():
        by_name = {_plain(name.rpartition(".")[2]): name for name in reversed(names)}
        by_name |= {_plain(name): name for name in reversed(names)}
        for name in usual:
            column = by_name.get(name)
            if column and column not in found.values() and _fits(kind, value_of(row, column)):
                found[kind] = column
                break
    if "image" not in found:  # no usual name: take what looks like a picture
        pictures = [name for name in names if _fits("image", value_of(row, name)) and name not in found.values()]
        if pictures:
            found["image"] = pictures[0]
    if "answer" in found and "question" not in found:
        del found["answer"]
    return ColumnMap(**found)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _fits(kind: str, value: Any) -> bool:
    if kind == "image":
        if isinstance(value, Mapping):
            return "bytes" in value or "path" in value
        if isinstance(value, str):
            return any(value.lower().endswith(suffix) for suffix in IMAGE_SUFFIXES)
        return isinstance(value, (bytes, bytearray)) or hasattr(value, "getexif")
    if kind == "conversations":
        return _is_list(value) and (not value or isinstance(value[0], Mapping))
    if kind in ("identity", "id"):
        return isinstance(value, (str, int))
    return isinstance(value, str) or (_is_list(value) and all(isinstance(item, str) for item in value))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def describe_row(row: Mapping[str, Any]) -> str:
    """The columns of a row with their types and beginnings, one a line: what a person needs to write the map."""
    lines = []
    for name in column_names(row):
        value = value_of(row, name)
        shown = repr(value)
        if isinstance(value, Mapping) and "bytes" in value:
            shown = "a picture" if value["bytes"] else f"a picture's file, {value.get('path')!r}"
        elif isinstance(value, (bytes, bytearray)):
            shown = f"{len(value)} bytes"
        lines.append(f"  {name} ({type(value).__name__}): {shown if len(shown) <= 60 else shown[:57] + '...'}")
    return "\n".join(lines)


def announce_guess(source: str, row: Mapping[str, Any], guess: ColumnMap) -> None:
    """Print, to stderr, which columns there are and what was made of them."""
    print(
        f"{source} has the columns\n{describe_row(row)}\nread as --columns {guess or '(none)'}; name others if wrong",
        file=sys.stderr,
    )


def check_map(columns: ColumnMap, row: Mapping[str, Any], source: str, need_text: bool = True) -> None:
    """
    See that a map names columns that exist and is enough to train with.

    Raises:
        ValueError: if not; the message lists the columns.
    """
    names = column_names(row)
    for item in fields(columns):
        for name in columns.columns(item.name):
            if name not in names and name not in row:
                raise ValueError(f"{source} has no column {name!r} ({item.name}); it has {', '.join(names)}")
    if not columns.image:
        raise ValueError(
            f"{source} has no picture column that could be recognised; it has {', '.join(names)}: name it with "
            "columns image=... (--columns image=...)"
        )
    if columns.question and not columns.answer:
        raise ValueError(f"{source}: columns names a question but no answer; it has {', '.join(names)}")
    if need_text and not (columns.caption or columns.question or columns.conversations):
        raise ValueError(
            f"{source} has no caption and no question that could be recognised; it has {', '.join(names)}: name them "
            "with columns caption=... or question=...,answer=..."
        )


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, `None` if there is none; a dot reaches into an object."""
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    value = row.get(outer)
    return value_of(value, inner) if dot and isinstance(value, Mapping) else None


class MappedRows:
    """
    Converts rows by a [`ColumnMap`].

    Args:
        columns ([`ColumnMap`]): The map.
        images (`str` or `os.PathLike`, *optional*): The folder of pictures that are given by name.
        need_text (`bool`, *optional*, defaults to `True`): Whether a row without caption and question is broken.
    """

    def __init__(self, columns: ColumnMap, images=None, need_text: bool = True):
        self.columns, self.images, self.need_text = columns, images, need_text

    def __call__(self, row: Mapping[str, Any]) -> FaceRecord:
        columns = self.columns
        stored = value_of(row, columns.image) if columns.image else None
        picture = open_picture(stored, self.images) if columns.image else None
        identity = value_of(row, columns.identity) if columns.identity else None
        # a picture's file is its name, where there is no other
        name = value_of(row, columns.id) if columns.id else stored if isinstance(stored, str) else None
        captions = [text for column in columns.columns("caption") for text in texts(value_of(row, column), column)]
        questions = self._questions(row)
        if self.need_text and not captions and not questions:
            asked = columns.columns("caption") + columns.columns("question") + columns.columns("conversations")
            raise BrokenSampleError(f"the caption is empty (of the columns {', '.join(asked)})")
        return FaceRecord(
            image=picture,
            captions=captions,
            questions=questions,
            identity=None if identity is None else str(identity),
            id="" if name is None else str(name),
        )

    def _questions(self, row: Mapping[str, Any]) -> list[Question]:
        columns = self.columns
        asked = [text for column in columns.columns("question") for text in texts(value_of(row, column), column)]
        answered = [text for column in columns.columns("answer") for text in texts(value_of(row, column), column)]
        if len(asked) != len(answered):
            raise BrokenSampleError(f"there are {len(asked)} questions with {len(answered)} answers")
        pairs = list(zip(asked, answered, strict=True))
        for column in columns.columns("conversations"):
            pairs += turns(value_of(row, column))
        return [open_question(question, answer) for question, answer in pairs]


def open_question(question: str, answer: str) -> Question:
    """A question that somebody wrote; placeholders of the picture are taken out."""
    return Question(OPEN_QUESTION, "", _PLACEHOLDER.sub(" ", question).strip(), answer.strip())


def texts(value: Any, name: str) -> list[str]:
    """
    A text or a list of texts as the list of those that are not empty.

    Raises:
        BrokenSampleError: if it is something else.
    """
    if value is None:
        return []
    values = list(value) if _is_list(value) else [value]
    for item in values:
        if item is not None and not isinstance(item, str):
            raise BrokenSampleError(f"{name} has type {type(item).__name__}, expected a text")
    return [item.strip() for item in values if item and item.strip()]


def turns(value: Any) -> list[tuple[str, str]]:
    """
    The (question, answer) pairs of a conversation.

    Raises:
        BrokenSampleError: if it is none, or an answer has no question.
    """
    if not _is_list(value) or not all(isinstance(turn, Mapping) for turn in value):
        raise BrokenSampleError(f"a conversation has type {type(value).__name__}, expected a list of turns")
    pairs: list[tuple[str, str]] = []
    asked: str | None = None
    for turn in value:
        if "question" in turn:
            pairs.append((_text(turn["question"]), _text(turn.get("answer"))))
            continue
        speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if speaker in _ASKING:
            asked = _text(text)
        elif speaker in _ANSWERING:
            if asked is None:
                raise BrokenSampleError("a conversation has an answer without a question")
            pairs.append((asked, _text(text)))
            asked = None
        elif speaker != "system":
            raise BrokenSampleError(f"a turn is from {speaker!r}, expected human, user, gpt or assistant")
    return pairs


def _text(value: Any) -> str:
    if _is_list(value):  # content as parts: {"type": "text", "text": ...}
        parts: Iterable[Any] = (part.get("text") for part in value if isinstance(part, Mapping))
        value = " ".join(part for part in parts if isinstance(part, str))
    if not isinstance(value, str):
        raise BrokenSampleError(f"a turn has type {type(value).__name__}, expected a text")
    return value
