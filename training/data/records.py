"""The one record type of all face data: a picture with its captions, questions, attributes and identity."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...pipelines.files import check_new, new_folder
from .language.attributes import ATTRIBUTES, VAGUE_VALUES, WORLD_VALUES
from .language.questions import OPEN_QUESTION, QUESTION_KINDS, Question


@dataclass
class FaceRecord:
    """
    A face with everything that is known about it. What a data set does not have stays empty.

    Args:
        image (`PIL.Image.Image`, *optional*): The picture; `None` while it is still to be painted or loaded.
        captions (`list[str]`, *optional*, defaults to `[]`): Descriptions of the face.
        questions (`list[Question]`, *optional*, defaults to `[]`): Questions about the face with their right answers.
        attributes (`dict[str, str]`, *optional*, defaults to `{}`):
            Known attributes, as in `ATTRIBUTES`, `WORLD_VALUES` or `VAGUE_VALUES`.
        visible (`dict[str, bool]`, *optional*, defaults to `{}`):
            For known attributes, whether the picture shows them. A missing name means that nobody knows.
        identity (`str`, *optional*): The name of the person, equal in all pictures of the same person.
        source (`str`, *optional*, defaults to `""`): The data set that the record comes from.
        id (`str`, *optional*, defaults to `""`): The name of the record in its source.
        excluded (`dict[str, tuple[str, ...]]`, *optional*, defaults to `{}`):
            Values that attributes are known not to have, where the value itself is unknown: "not black hair".
        labels (`dict[str, str]`, *optional*, defaults to `{}`):
            The source's own labels in its own words, for statistics and for results by group; no text is made of them.
    """

    image: Image.Image | None = None
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    visible: dict[str, bool] = field(default_factory=dict)
    identity: str | None = None
    source: str = ""
    id: str = ""
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def validate(self) -> "FaceRecord":
        """
        Checks the record and returns it.

        Returns:
            [`FaceRecord`]: The record itself.

        Raises:
            `TypeError`: If the image is not a PIL image, or a caption is not a text.
            `ValueError`:
                If a caption, question or answer is empty or no text that can be written, a question is of an unknown
                kind, an attribute or value is not in the vocabulary, or visibility is given for an attribute that the
                record does not have.
        """
        name = f"Record {self.id!r} of source {self.source!r}"
        if self.image is not None and not isinstance(self.image, Image.Image):
            raise TypeError(f"{name} has an image of type {type(self.image).__name__}: give a PIL image or None.")
        for caption in self.captions:
            if not isinstance(caption, str):
                raise TypeError(f"{name} has a caption of type {type(caption).__name__}: captions must be texts.")
            if not caption.strip():
                raise ValueError(f"{name} has an empty caption: leave it out or give a text.")
        kinds = (*QUESTION_KINDS, OPEN_QUESTION)
        for question in self.questions:
            if question.kind not in kinds:
                raise ValueError(f"{name} has a question of kind {question.kind!r}: use one of {kinds}.")
            if not question.question.strip() or not question.answer.strip():
                raise ValueError(
                    f"{name} has a question without text or answer: {question!r}; leave it out or fill it."
                )
        asked = [text for question in self.questions for text in (question.question, question.answer)]
        for text in (*self.captions, *asked, self.id, self.identity or ""):
            try:
                text.encode()
            except UnicodeEncodeError:
                shown = ascii(text[:60])
                raise ValueError(f"{ascii(name)} has half a surrogate pair in {shown}: take it out") from None
        for attribute, value in self.attributes.items():
            if attribute not in ATTRIBUTES:
                raise ValueError(f"{name} has the unknown attribute {attribute!r}: use one of {tuple(ATTRIBUTES)}.")
            allowed = ATTRIBUTES[attribute] + WORLD_VALUES.get(attribute, ()) + VAGUE_VALUES.get(attribute, ())
            if value not in allowed:
                raise ValueError(
                    f"{name} has {attribute}={value!r}, which is not a value of it: use one of {allowed}."
                )
        for attribute in self.visible:
            if attribute not in self.attributes:
                raise ValueError(f"{name} says whether {attribute!r} is visible, but gives no value: add one.")
        return self


# Written as a folder of pictures with `metadata.jsonl`, which all readers of image folders understand

_PER_FOLDER = 1000


class FolderWriter:
    """
    Writes records into a new folder, which appears when all are written: a context manager.

    Args:
        folder (`str` or `Path`): The folder.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a folder that exists may be replaced.

    Raises:
        FileExistsError: if it exists and `overwrite` is not given.
        ValueError: at the end, if no record was written.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        check_new(folder, overwrite)
        self.folder, self.overwrite, self.count = Path(folder), overwrite, 0

    def __enter__(self) -> "FolderWriter":
        self._stack = ExitStack()
        self._part = self._stack.enter_context(new_folder(self.folder, self.overwrite))
        self._metadata = self._stack.enter_context((self._part / "metadata.jsonl").open("w", encoding="utf-8"))
        return self

    def add(self, record: FaceRecord) -> None:
        """Write one record; its picture as PNG, which loses nothing."""
        name = f"{self.count // _PER_FOLDER:04}/{self.count:07}.png"
        path = self._part / name
        path.parent.mkdir(exist_ok=True)
        record.image.save(path)
        row: dict[str, Any] = {"file_name": name, "captions": record.captions}
        row["conversations"] = [{"question": item.question, "answer": item.answer} for item in record.questions]
        row |= {"identity": record.identity, "id": record.id, "source": record.source, "labels": record.labels}
        self._metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and not self.count:
            error = ValueError(f"{self.folder} was not written: no sample is left")
            self._stack.__exit__(ValueError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)
