"""Captions and questions of records that have attributes only, by the template engine of the painted faces."""

import random

from ..language.captions import write_caption
from ..language.questions import TABLE_QUESTION_KINDS, write_questions
from ..records import FaceRecord


COVERAGES = (1.0, 0.7, 0.4)  # of the captions, as for painted faces
NUM_QUESTIONS = 8


def write_words(record: FaceRecord, rng: random.Random) -> None:
    """
    Write captions and questions into a record that has attributes but none of its own.

    What a label table says is taken to be visible: people or a classifier saw it. A caption that could state nothing
    ("a person") is left out.

    Args:
        record ([`FaceRecord`]): The record, changed in place.
        rng (`random.Random`): The source of all choices.
    """
    if not record.attributes and not record.excluded:
        return
    for name in record.attributes:
        record.visible.setdefault(name, True)
    if not record.captions:
        captions = [write_caption(record.attributes, record.visible, rng, coverage=share) for share in COVERAGES]
        record.captions = [caption.text for caption in captions if caption.attributes]
    if not record.questions:
        record.questions = write_questions(
            record.attributes, record.visible, rng, NUM_QUESTIONS, TABLE_QUESTION_KINDS, record.excluded
        )
