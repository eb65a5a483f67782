"""
Multiple-choice questions about photographs of faces: how an answer becomes letters, and the suites `facexbench` and
`facebench`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...modeling_unif2ace import load_image
from ...pipelines.pictures import picture_grid
from .metrics.text import ChoiceAccuracy
from .statistics import slices_by
from .subject import Subject
from .suite import Part, Suite


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
INSTRUCTION = {
    False: "Answer with the letter of the right option.",
    True: "Answer with the letters of all right options.",
}


@dataclass(frozen=True)
class ChoiceQuestion:
    """
    A question with options.

    Args:
        id (`str`): Its name in the benchmark.
        images (`tuple[Path, ...]`): Its pictures.
        question (`str`): The question.
        options (`tuple[str, ...]`): The options, without letters.
        right (`str`): Letters of the right options, for example `"B"` or `"ACD"`.
        several (`bool`, *optional*, defaults to `False`): Whether several options may be right.
        groups (`dict[str, str]`, *optional*): By which results are sliced: category, task, type.
    """

    id: str
    images: tuple[Path, ...]
    question: str
    options: tuple[str, ...]
    right: str
    several: bool = False
    groups: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        letters = LETTERS[: len(self.options)]
        if len(self.options) < 2 or not self.right or not set(self.right) <= set(letters):
            raise ValueError(
                f"question {self.id}: right={self.right!r} with {len(self.options)} options, expected letters of "
                f"{letters!r} and two options or more"
            )

    @property
    def prompt(self) -> str:
        """The question as it is put to a model."""
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.options, strict=False))
        return f"{self.question}\n{options}\n{INSTRUCTION[self.several]}"


def parse_choice(answer: str, options: Sequence[str], several: bool = False) -> str:
    """
    Read the chosen letters out of an answer.

    "B", "(B)", "B. brown", "The answer is B" are letters; an answer without a letter counts as the option whose text
    it is or, if there is just one, that it contains. Of a single choice with several letters the first one counts.

    Args:
        answer (`str`): What the model wrote.
        options (`list[str]`): The options, without letters.
        several (`bool`, *optional*, defaults to `False`): Whether several letters may be chosen.

    Returns:
        `str`: the letters, sorted; empty if none can be read.
    """
    letters = LETTERS[: len(options)]
    # an option in full, with or without its letter
    plain, texts = _plain(answer), [_plain(option) for option in options]
    for letter, text in zip(letters, texts, strict=True):
        if plain in (text, f"{letter.lower()} {text}"):
            return letter
    if several and re.fullmatch(rf"[{letters}]+", answer.strip()):
        return "".join(sorted(set(answer.strip())))
    # "A man with ..." begins with an article and not with a letter
    found = re.findall(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])(?!(?<=A) (?!or\b|and\b|is\b)[a-z])", answer)
    if not found:
        inside = [letter for letter, text in zip(letters, texts, strict=True) if f" {text} " in f" {plain} "]
        found = inside if several or len(inside) == 1 else []
    return "".join(sorted(set(found))) if several else "".join(found[:1])


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures in one, in reading order: what a model sees that takes one picture."""

    if len(images) == 1:
        return images[0]
    side = max(max(image.size) for image in images)
    return picture_grid([image.resize((side, side), Image.Resampling.BICUBIC) for image in images])


ANSWER_TOKENS = 16


class ChoiceSuite(Suite):
    """
    Multiple-choice questions, in two ways.

    `generation`: the model writes an answer, out of which the letters are read
    ([`~unif2ace.training.evaluation.choices.parse_choice`]): what users see, but a model that does not keep to the
    form fails. `likelihood`: the option whose letter is the likeliest answer is chosen: what the model knows; only for
    questions with one right option. `chance` is the accuracy of guessing.

    A question about several pictures is asked about all of them side by side in one, since the model takes one.

    Args:
        subject ([`Subject`]): The checkpoint.
        questions (`list[ChoiceQuestion]`): The benchmark.
        name (`str`): `"facexbench"` or `"facebench"`.
        dataset_id (`str`, *optional*): Its data set on the Hub.
        limit (`int`, *optional*): Only so many questions, evenly spread over the benchmark.

    Raises:
        ValueError: if there are no questions.
    """

    parts = ("likelihood", "generation")

    def __init__(
        self,
        subject: Subject,
        questions: Sequence[ChoiceQuestion],
        name: str,
        dataset_id: str | None = None,
        limit: int | None = None,
    ):
        if limit is not None and limit < len(questions):
            questions = [questions[place] for place in np.linspace(0, len(questions) - 1, limit).round().astype(int)]
        if not questions:
            raise ValueError(f"{name} has no questions")
        self.subject, self.questions = subject, list(questions)
        self.name, self.dataset_id = name, dataset_id

    @property
    def settings(self) -> dict:
        return {
            "model": self.subject.name,
            "revision": self.subject.revision,
            "model_sha256": self.subject.sha256,
            "count": len(self.questions),
        }

    def missing(self, part: str) -> str | None:
        if part == "likelihood" and all(question.several for question in self.questions):
            return "all questions have several right options, which only generation can choose"
        return None

    def measure_likelihood(self) -> Part:
        """Choose the letter that is the likeliest answer."""
        asked = [question for question in self.questions if not question.several]
        options = [list(LETTERS[: len(question.options)]) for question in asked]
        weighed = self.subject.log_probabilities(self._images(asked), [q.prompt for q in asked], options)
        return self._score(asked, [LETTERS[int(np.argmax(of_question))] for of_question in weighed])

    def measure_generation(self) -> Part:
        """Read the letters out of what the model writes."""
        asked = self.questions
        answers = self.subject.answer(self._images(asked), [q.prompt for q in asked], ANSWER_TOKENS)
        letters = [parse_choice(a, q.options, q.several) for a, q in zip(answers, asked, strict=True)]
        part = self._score(asked, letters)
        part.details["examples"] = [
            {"id": question.id, "answer": answer, "read": read, "right": question.right}
            for question, answer, read in zip(asked[:20], answers, letters, strict=False)
        ]
        return part

    def _images(self, questions: Sequence[ChoiceQuestion]) -> list:
        return [side_by_side([load_image(str(path)) for path in question.images]) for question in questions]

    def _score(self, questions: Sequence[ChoiceQuestion], letters: Sequence[str]) -> Part:
        part = Part([question.id for question in questions])
        names = list(dict.fromkeys(name for question in questions for name in question.groups))
        slices = slices_by([question.groups for question in questions], names)
        part.add_metric(ChoiceAccuracy(), slices, predictions=letters, references=[q.right for q in questions])
        chance = float(np.mean([0 if q.several else 1 / len(q.options) for q in questions]))
        part.add_measured("chance", {"value": chance}, better=None)
        return part


__all__ = ["ANSWER_TOKENS", "ChoiceQuestion", "ChoiceSuite", "LETTERS", "parse_choice", "side_by_side"]
