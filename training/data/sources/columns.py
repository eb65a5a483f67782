"""Any table of faces: which column is the picture, which the caption, which the question and the answer."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from ....modeling_unif2ace.pictures_unif2ace import SUFFIXES
from ..language.questions import OPEN_QUESTION, Question
from ..records import FaceRecord
from .readers import ending
from .stream import BROKEN, BrokenSampleError, open_picture


_TAGS = ("tags", "taglist", "tagstring", "wd14tags", "wdtags", "keywords")  # a list of them is one caption
# Usual names, the likeliest first; compared in lower case without separators.
_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "picture", "photo", "face", "jpg", "jpeg", "png", "webp", "imagebytes", "imagepath",
              "imgpath", "filename", "imagefilename", "filenames", "imagefile", "imagename", "file", "filepath",
              "path", "image1", "name"),
    "caption": ("caption", "captions", "facecaption", "refinedcaption", "longcaption", "description", "descriptions",
                "text", "texts", "txt", "prompt", "prompts", "jsoncaption", "laioncaption", "recaption",
                "imagecaption", "blipcaption", "captiontext", "texten", "captionen", "encaption", "entext", "sentence",
                "sentences", "alttext", "alt", "title", "labeltext", "additionalfeature", "instanceprompt", *_TAGS),
    "question": ("question", "questions", "query", "instruction"),
    "answer": ("answer", "answers", "response", "label"),
    "conversations": ("conversations", "conversation", "messages", "vqa", "qa", "qapairs", "dialog", "dialogue"),
    "identity": ("identity", "celebid", "personid", "identityid", "subject", "subjectid", "person"),
    "id": ("id", "imageid", "key", "uid", "sampleid", "questionid"),
}  # fmt: skip
SAMPLE = 100  # rows that a guess looks at
_VALUES_KEPT = 50  # of one column, for the guess
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


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, `None` if there is none; a dot reaches into an object."""
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    value = row.get(outer)
    return value_of(value, inner) if dot and isinstance(value, Mapping) else None


def sample_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """
    The columns of some rows, those inside of objects as `column.name`, with the first values of each that are not
    empty; of pictures their kind alone is kept.

    Args:
        rows (`Iterable[Mapping]`): Rows, pictures not decoded; the first 100 are looked at, broken ones passed over.
    """
    found: dict[str, list[Any]] = {}
    for row in islice((row for row in rows if not row.get(BROKEN)), SAMPLE):
        for outer, value in row.items():
            inside = {outer: value} if not outer.startswith("__") else {}
            if isinstance(value, Mapping) and not _is_picture(value):
                inside = {f"{outer}.{inner}": item for inner, item in value.items()}
            for name, item in inside.items():
                values = found.setdefault(name, [])
                if not _is_empty(item) and len(values) < _VALUES_KEPT:
                    values.append(_light(item))
    return found


def _is_picture(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"bytes", "path"} & set(value))


def _is_empty(value: Any) -> bool:
    if _is_picture(value):
        return not (value.get("bytes") or value.get("path"))
    return value is None or value != value or (hasattr(value, "__len__") and not len(value))


def _light(value: Any) -> Any:
    """A value for looking at: not the bytes of whole pictures."""
    if _is_picture(value):
        return {"bytes": value["bytes"][:16] if value.get("bytes") else None, "path": value.get("path")}
    return value[:16] if isinstance(value, (bytes, bytearray)) else value


def guess_columns(rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> ColumnMap:
    """
    Guess the map from the names and the contents of rows, or of one row; pictures are not decoded.

    A column counts as what most of its values are that are not empty: one row may lack what all others have, or have
    something else. A single column of free text is taken for the caption, whatever its name is.

    Returns:
        [`ColumnMap`]: What was found; kinds that were not found are `None`.
    """
    return guess_from(sample_columns([rows] if isinstance(rows, Mapping) else rows))


def guess_from(columns: Mapping[str, list[Any]]) -> ColumnMap:
    """[`guess_columns`] from what [`sample_columns`] found."""
    found: dict[str, str] = {}

    def fits(kind: str, name: str) -> bool:
        values = columns[name]
        if not values:  # nothing says what it is: its name does, where that is a word for texts
            return kind in ("caption", "question", "answer")
        return 2 * sum(_fits(kind, value) for value in values) >= len(values)

    by_name: dict[str, str] = {}
    for name in sorted(columns, key=lambda name: "." in name):  # an outer name wins
        for known in (name, name.rpartition(".")[2]):
            by_name.setdefault(_plain(known), name)
    for kind, usual in _NAMES.items():
        known = [by_name[name] for name in usual if name in by_name]
        fitting = [column for column in known if column not in found.values() and fits(kind, column)]
        # a column that is empty as far as one sees comes after those that are not
        best = next((column for column in fitting if columns[column]), fitting[0] if fitting else None)
        if best:
            found[kind] = best
    if not (found.get("caption") and columns[found["caption"]]):  # {"captions": {"short": ..., "long": ...}}
        inside = [name for name in columns if "." in name and _plain(name.partition(".")[0]) in _NAMES["caption"]]
        if inside := [name for name in inside if columns[name] and fits("caption", name)]:
            found["caption"] = "+".join(inside)
    if "image" not in found:  # no usual name: take what looks like a picture
        pictures = [name for name in columns if columns[name] and fits("image", name) and name not in found.values()]
        if pictures:
            found["image"] = pictures[0]
    if "answer" in found and "question" not in found:
        del found["answer"]
    words = [found[kind] for kind in ("caption", "question", "conversations") if kind in found]
    if not any(columns.get(name, "+" in name) for name in words):
        prose = [name for name in columns if name not in found.values() and _is_prose(columns[name])]
        if len(prose) == 1:
            found["caption"] = prose[0]
    return ColumnMap(**found)


def _is_prose(values: list[Any]) -> bool:
    """Whether most values are texts of several words, and not the same few again and again."""
    texts = [value for value in values if isinstance(value, str) and len(value.split()) > 2]
    return bool(texts) and 2 * len(texts) > len(values) and 2 * len(set(texts)) >= min(len(texts), 4)


def unread_columns(columns: Mapping[str, list[Any]], used: ColumnMap) -> list[str]:
    """The columns that hold something and that a map does not name, without the bookkeeping of this package."""
    named = {name for item in fields(used) for name in used.columns(item.name)}
    named |= {name.partition(".")[0] for name in named} | {*_OWN}
    return [name for name in columns if columns[name] and not {name, name.partition(".")[0]} & named]


_OWN = ("source", "labels", "attributes", "visible", "draft", "known", "models", "prompts")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _fits(kind: str, value: Any) -> bool:
    if kind == "image":
        if isinstance(value, str):
            return ending(value) in SUFFIXES
        if _is_list(value):
            return len(value) == 1 and _fits(kind, value[0])
        return _is_picture(value) or isinstance(value, (bytes, bytearray)) or hasattr(value, "getexif")
    if kind == "conversations":
        return _is_list(value) and (not value or isinstance(value[0], Mapping))
    if kind in ("identity", "id"):
        return isinstance(value, (str, int, float))
    if kind == "answer" and _is_number(value):
        return True
    return isinstance(value, str) or (_is_list(value) and all(isinstance(item, str) for item in value))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def announce_guess(source: str, columns: Mapping[str, list[Any]], guess: ColumnMap) -> None:
    """Print, to stderr, which columns there are, with a first value of each, and what was made of them."""
    print(f"{source} has the columns", file=sys.stderr)
    for name, values in columns.items():
        value = values[0] if values else None
        shown = "bytes" if isinstance(value, (bytes, bytearray)) else repr(value)
        if _is_picture(value):
            shown = "a picture" if value.get("bytes") else f"a picture's file, {value.get('path')!r}"
        kind = type(value).__name__ if values else "nothing in the first rows"
        print(f"  {name} ({kind}): {shown if len(shown) <= 60 else shown[:57] + '...'}", file=sys.stderr)
    print(f"read as --columns {guess or '(none)'}; name others if wrong", file=sys.stderr)


def check_map(columns: ColumnMap, names: Iterable[str], source: str, need_text: bool = True) -> None:
    """
    See that a map names columns that exist and is enough to train with.

    Raises:
        ValueError: if not; the message lists the columns.
    """
    names = list(names)
    outer = {name.partition(".")[0] for name in names} | {"__key__"}
    for item in fields(columns):
        for name in columns.columns(item.name):
            if name not in names and name not in outer:
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
        stored, identity, name = (
            value_of(row, column) if column else None for column in (columns.image, columns.identity, columns.id)
        )
        if not columns.id and isinstance(stored, str):  # a picture's file is its name, where there is no other
            name = stored
        picture = open_picture(stored, self.images) if columns.image else None
        captions, questions = self.words(row)
        if self.need_text and not captions and not questions:
            asked = [name for kind in ("caption", "question", "conversations") for name in columns.columns(kind)]
            raise BrokenSampleError(f"the caption is empty (of the columns {', '.join(asked)})")
        return FaceRecord(picture, captions, questions, identity=plain_text(identity) or None, id=plain_text(name))

    def words(self, row: Mapping[str, Any]) -> tuple[list[str], list[Question]]:
        """
        Captions and questions of a row.

        Raises:
            BrokenSampleError: if they are no texts.
        """

        def texts_of(kind: str) -> list[str]:
            found = []
            for name in self.columns.columns(kind):
                said = texts(value_of(row, name), name, numbers=kind == "answer")
                is_tags = kind == "caption" and _plain(name.rpartition(".")[2]) in _TAGS
                found += [", ".join(said)] if said and is_tags else said
            return found

        asked, answered = texts_of("question"), texts_of("answer")
        if len(asked) != len(answered):
            raise BrokenSampleError(f"there are {len(asked)} questions with {len(answered)} answers")
        pairs = list(zip(asked, answered, strict=True))
        for name in self.columns.columns("conversations"):
            pairs += turns(value_of(row, name))
        return texts_of("caption"), [open_question(question, answer) for question, answer in pairs]


def open_question(question: str, answer: str) -> Question:
    """A question that somebody wrote; placeholders of the picture are taken out."""
    return Question(OPEN_QUESTION, "", _PLACEHOLDER.sub(" ", question).strip(), answer.strip())


def texts(value: Any, name: str, numbers: bool = False) -> list[str]:
    """
    A text or a list of texts (of numbers too, if these are answers: "How many?") as the list of those that are not
    empty.

    Raises:
        BrokenSampleError: if it is something else.
    """
    found = []
    for item in value if _is_list(value) else [value]:
        if item is None or item != item:  # pandas' nothing
            continue
        if not isinstance(item, str) and not (numbers and _is_number(item)):
            raise BrokenSampleError(f"{name} has type {type(item).__name__}, expected a text")
        found.append(plain_text(item).strip())
    return [text for text in found if text]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def plain_text(value: Any) -> str:
    """
    A name or a number as text, `""` for nothing: texts as they are (`0012`, `None`, `NA`), whole numbers without `.0`.
    """
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def turns(value: Any) -> list[tuple[str, str]]:
    """
    The (question, answer) pairs of a conversation; none of no conversation.

    Raises:
        BrokenSampleError: if it is something else, or an answer has no question.
    """
    if value is None:
        return []
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
    if not isinstance(value, str) and not _is_number(value):
        raise BrokenSampleError(f"a turn has type {type(value).__name__}, expected a text")
    return plain_text(value)
