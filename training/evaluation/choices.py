"""Multiple-choice questions about faces: what benchmarks are read into, and how an answer becomes letters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


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
    from ...pipelines.pictures import picture_grid

    if len(images) == 1:
        return images[0]
    side = max(max(image.size) for image in images)
    return picture_grid([image.resize((side, side), Image.Resampling.BICUBIC) for image in images])


__all__ = ["LETTERS", "ChoiceQuestion", "parse_choice", "side_by_side"]
