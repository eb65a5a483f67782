"""The suites `facexbench` and `facebench`: multiple-choice questions about photographs of faces."""

from collections.abc import Sequence

import numpy as np

from ...modeling_unif2ace import load_image
from .choices import LETTERS, ChoiceQuestion, parse_choice, side_by_side
from .metrics import ChoiceAccuracy
from .slices import slices_by
from .subject import Subject
from .suite import Part, Suite


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


__all__ = ["ANSWER_TOKENS", "ChoiceSuite"]
