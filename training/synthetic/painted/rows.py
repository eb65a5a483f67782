"""Painted faces as records and as prompts: no files, for trials, tests and measurements."""

import random
from collections.abc import Sequence
from pathlib import Path

from ...data.language.captions import write_caption
from ...data.language.questions import write_questions
from ...data.language.visibility import assumed_visible
from ...data.records import FaceRecord
from ...reward import Prompt
from .dataset import attributes_of, identity_of, painted_face
from .exact_visibility import exact_visibility
from .painter import paint


TESTED_QUESTIONS = 8  # about each held-out face


class PaintedRecords(Sequence):
    """
    Painted faces as records, each painted when it is asked for: no files, for trials and tests.

    Args:
        count (`int`): Faces.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        seed (`int`, *optional*, defaults to 0): Seed that they are painted with.
        size (`int`, *optional*, defaults to 64): Side of the pictures in pixels.
    """

    def __init__(self, count: int, split: str = "train", seed: int = 0, size: int = 64):
        self.count, self.split, self.seed, self.size = count, split, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> FaceRecord:
        if not 0 <= number < self.count:
            raise IndexError(f"face {number} of {self.count}")
        return painted_face(number, self.split, self.seed, self.size)


def held_out_faces(
    folder: str | Path, count: int, split: str = "test", size: int = 64, workers: int = 1
) -> list[FaceRecord]:
    """
    Painted faces to measure by: a full caption and eight questions of each, and which attributes the picture shows.

    Args:
        folder (`str` or `Path`): Where what pictures show is remembered, see
            [`~unif2ace.training.synthetic.painted.exact_visibility.exact_visibility`].
        count (`int`): Faces, from the first on.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` to choose settings by.
        size (`int`, *optional*, defaults to 64): Side of the pictures, in pixels.
        workers (`int`, *optional*, defaults to 1): Processes that find out what the pictures show.

    Returns:
        `list[FaceRecord]`: `visible` holds what the picture shows exactly and sentences speak of by cautious rules.
    """
    faces = []
    for index, seen in enumerate(exact_visibility(folder, split, count, workers)):
        attributes = attributes_of(index, split)
        spoken_of = assumed_visible(attributes)
        visible = {name: spoken_of[name] and seen[name] for name in seen}
        caption = write_caption(attributes, spoken_of, random.Random(f"caption-{index}"), coverage=1.0)
        faces.append(
            FaceRecord(
                image=paint(attributes, identity_of(index, split), size),
                captions=[caption.text],
                questions=write_questions(attributes, visible, random.Random(f"questions-{index}"), TESTED_QUESTIONS),
                attributes=attributes,
                visible=visible,
                source="painted",
                id=f"painted-{split}-{index}",
            )
        )
    return faces


def painted_prompts(count: int, split: str = "train", start: int = 0, coverage: float = 0.6) -> list[Prompt]:
    """Descriptions of painted faces number `start` and following, with the attributes that they state."""
    prompts = []
    for number in range(start, start + count):
        attributes = attributes_of(number, split)
        rng = random.Random(f"reward-{split}-{number}")
        caption = write_caption(attributes, assumed_visible(attributes), rng, coverage=coverage)
        prompts.append(Prompt(caption.text, dict(caption.attributes)))
    return prompts
