"""
Metrics by large models as judges: versioned prompts, ratings read out of their answers, every rating repeated.

A judge's number is not reproducible by others unless its prompt, model and spread are known. So prompts have versions,
which are stored with the results, every item is rated several times, and the spread is reported beside the mean.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from ...chat_endpoint import ChatEndpoint, ChatEndpointError
from ..statistics import mean
from .base import FaceMetric, check_same_length


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_SEED_STEP = 1_000  # between the repetitions of a rating, so that another try at one is never another repetition


@dataclass(frozen=True)
class JudgePrompt:
    """
    A question to a judge whose answer begins with a rating.

    Args:
        name (`str`), version (`str`): What it is called in results; a changed text needs a new version.
        text (`str`): The question, with `{fields}`.
        lowest (`float`), highest (`float`): The scale.
        system (`str`, *optional*): The system message.
    """

    name: str
    version: str
    text: str
    lowest: float
    highest: float
    system: str | None = None

    def describe(self) -> dict:
        """What results store of it."""
        return {"name": self.name, "version": self.version, "text": self.text, "system": self.system}


class UnusableRatingError(ValueError):
    """An answer out of which no rating can be read."""


def parse_rating(answer: str, lowest: float, highest: float) -> float:
    """
    Read the rating out of a judge's answer: the first line with a number, which must hold just one rating.

    "7", "7.5", "Score: 7", "7/10", "**8** out of 10" and `{"score": 7}` are ratings; "6 8" and "between 6 and 8" are
    not, since nobody can tell which number is meant.

    Args:
        answer (`str`): What the judge wrote.
        lowest (`float`), highest (`float`): The scale.

    Returns:
        `float`: The rating.

    Raises:
        UnusableRatingError: if there is none, more than one, or one off the scale.
    """
    for line in answer.splitlines():
        # "out of 10" and "/10" name the scale
        line = re.sub(rf"(?:/|\bout of)\s*{highest:g}\b", " ", line, flags=re.IGNORECASE)
        numbers = [float(found) for found in _NUMBER.findall(line)]
        if not numbers:
            continue
        if len(numbers) > 1:
            raise UnusableRatingError(f"{line.strip()!r} has {len(numbers)} numbers, expected one rating")
        if not lowest <= numbers[0] <= highest:
            raise UnusableRatingError(f"{numbers[0]:g} is off the scale from {lowest:g} to {highest:g}")
        return numbers[0]
    raise UnusableRatingError(f"{answer.strip()[:80]!r} has no number in it")


def rate(
    endpoint: ChatEndpoint,
    prompt: JudgePrompt,
    fields: Sequence[Mapping[str, str]],
    images: Sequence[Image.Image] | None = None,
    repeats: int = 3,
    attempts: int = 3,
    max_failures: float = 0.1,
    parallel: int = 4,
    progress: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """
    Let a judge rate items.

    Args:
        endpoint ([`~unif2ace.training.chat_endpoint.ChatEndpoint`]): The judge.
        prompt ([`JudgePrompt`]): What it is asked.
        fields (`list[dict[str, str]]`): What goes into the prompt, for each item.
        images (`list[PIL.Image.Image]`, *optional*): A picture for each item, for judges that see.
        repeats (`int`, *optional*, defaults to 3): Ratings of each item, with different seeds.
        attempts (`int`, *optional*, defaults to 3): How often an answer of no use is asked for again.
        max_failures (`float`, *optional*, defaults to 0.1): Largest share of ratings that may fail after that.
        parallel (`int`, *optional*, defaults to 4): Requests under way at once.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `tuple[np.ndarray, list[str]]`: ratings `(items, repeats)`, NaN where they failed, and why they failed.

    Raises:
        ChatEndpointError: if more than `max_failures` of the ratings failed.
        ValueError: if there are no items, or a number is below 1.
    """
    if not fields or repeats < 1 or attempts < 1:
        raise ValueError(f"{len(fields)} items, repeats={repeats}, attempts={attempts}; expected at least 1 of each")

    def one(task: tuple[int, int]) -> tuple[float, str | None]:
        item, repeat = task
        text = prompt.text.format_map(fields[item])
        image = None if images is None else images[item]
        for attempt in range(attempts):
            try:
                answer = endpoint.ask(text, image, prompt.system, seed=repeat * _SEED_STEP + attempt)
                return parse_rating(answer, prompt.lowest, prompt.highest), None
            except (ChatEndpointError, UnusableRatingError) as error:
                reason = f"item {item}: {error}"
        return float("nan"), reason

    tasks = [(item, repeat) for item in range(len(fields)) for repeat in range(repeats)]
    with ThreadPoolExecutor(parallel) as pool:
        found = list(tqdm(pool.map(one, tasks), total=len(tasks), desc=prompt.name, disable=not progress))
    failures = [reason for _, reason in found if reason is not None]
    if len(failures) > max_failures * len(tasks):
        raise ChatEndpointError(
            f"{len(failures)} of {len(tasks)} ratings failed, more than {max_failures:.0%}; the last: {failures[-1]}"
        )
    return np.array([score for score, _ in found]).reshape(len(fields), repeats), failures


def summarize_ratings(ratings: np.ndarray) -> dict:
    """
    How much a judge agrees with itself.

    Args:
        ratings (`np.ndarray` of shape `(items, repeats)`): NaN where a rating failed.

    Returns:
        `dict`: `spread` (mean over items of the standard deviation over repeats, `None` with one repeat), `repeats`
        (the mean rating of each repeat alone) and `failed` (number of ratings).
    """
    several = np.isfinite(ratings).sum(axis=1) > 1
    spread = float(np.nanstd(ratings[several], axis=1, ddof=1).mean()) if several.any() else None
    means = [float(np.nanmean(of_repeat)) if np.isfinite(of_repeat).any() else None for of_repeat in ratings.T]
    return {"spread": spread, "repeats": means, "failed": int(np.isnan(ratings).sum())}


def item_means(ratings: np.ndarray) -> np.ndarray:
    """The mean rating of each item; NaN where all failed."""
    known = np.isfinite(ratings)
    total = np.where(known, ratings, 0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(ratings), np.nan), where=known.any(axis=1))


class RatedMetric(FaceMetric):
    """
    A metric that a judge rates.

    Args:
        endpoint ([`~unif2ace.training.chat_endpoint.ChatEndpoint`]): The judge.
        prompt ([`~unif2ace.training.evaluation.metrics.judged.JudgePrompt`], *optional*): Another question to it.
        repeats (`int`, *optional*, defaults to 3): Ratings of each item.
        attempts, max_failures, parallel, progress: As [`rate`] takes them.
        options: Those of `evaluate.Metric`.
    """

    name_of_score: str
    default_prompt: JudgePrompt

    def __init__(
        self,
        endpoint: ChatEndpoint,
        prompt: JudgePrompt | None = None,
        repeats: int = 3,
        attempts: int = 3,
        max_failures: float = 0.1,
        parallel: int = 4,
        progress: bool = False,
        **options,
    ):
        self.endpoint, self.prompt = endpoint, prompt or self.default_prompt
        self.rate_options = {
            "repeats": repeats,
            "attempts": attempts,
            "max_failures": max_failures,
            "parallel": parallel,
            "progress": progress,
        }
        self._extras: dict = {}
        super().__init__(**options)

    @abstractmethod
    def questions(self, **inputs) -> tuple[list[dict[str, str]], list | None]:
        """The prompt's fields for each item, and pictures."""

    def statistics(self, **inputs):
        check_same_length(**inputs)
        fields, images = self.questions(**inputs)
        ratings, failures = rate(self.endpoint, self.prompt, fields, images, **self.rate_options)
        self._extras = summarize_ratings(ratings) | {
            "failures": failures[:10],
            "judge": self.endpoint.model,
            "temperature": self.endpoint.temperature,
            "prompt": self.prompt.describe(),
        }
        return {self.name_of_score: mean(item_means(ratings))}

    def extras(self):
        return self._extras


VLM_PROMPT = JudgePrompt(
    name="vlm_score",
    version="1",
    system="You are a strict and fair judge of generated pictures of faces.",
    text=(
        "This picture was generated from the following description of a face:\n\n{text}\n\n"
        "Rate from 0 to 100 how well the picture fits the description. Go through the description detail by detail "
        "(age, gender, hair, skin, eyes, accessories, clothes, expression) and look whether the picture shows it; 100 "
        "means that every detail is right and the face is well formed, 50 that about half of them are, 0 that nothing "
        "is. First output a single line with only the rating as a number. Then explain it in one or two sentences."
    ),
    lowest=0,
    highest=100,
)


class VlmScore(RatedMetric):
    """
    The mean rating (0 to 100) of generated faces by a vision-language model; higher is better.

    UniF²ace's tables have a "VLM-score" of this range; its judge and prompt are not published, so the prompt is ours,
    has a version, and is stored with the results: compare only numbers of the same judge and version.

    `compute(predictions=images, references=texts)`; arguments as for
    [`~unif2ace.training.evaluation.metrics.judged.RatedMetric`].
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Value("string")}
    better = {"vlm_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120",)
    name_of_score, default_prompt = "vlm_score", VLM_PROMPT

    def questions(self, predictions, references):
        return [{"text": text} for text in references], list(predictions)


# In the manner of LLaVA's review prompt (arXiv 2304.08485), for one answer instead of two.
DESCRIPTION_PROMPT = JudgePrompt(
    name="description_score",
    version="1",
    system="You are a helpful and precise assistant for checking the quality of descriptions of faces.",
    text=(
        "A model was asked to describe the face in a picture. You cannot see the picture; this is a reference "
        "description of it that you can trust:\n\n[Reference]\n{reference}\n[End of reference]\n\n"
        "[Description]\n{prediction}\n[End of description]\n\n"
        "Rate the helpfulness, relevance, accuracy and level of detail of the description on a scale of 1 to 10, "
        "where a higher score means better; details that contradict the reference count most against it, and details "
        "that the reference leaves open do not count. First output a single line containing only the score as a "
        "number. In the next line explain it, avoiding any bias such as that for longer texts."
    ),
    lowest=1,
    highest=10,
)


class DescriptionScore(RatedMetric):
    """
    The mean rating (1 to 10) of descriptions by a language model; higher is better.

    UniF²ace's "Desc-GPT" and "Desc-DS" (GPT-4o and DeepSeek-v3 as judges, 1 to 10) are of this kind; their prompts are
    not published, so the prompt is ours: compare only numbers of the same judge and version.

    `compute(predictions=descriptions, references=reference_descriptions)`; arguments as for
    [`~unif2ace.training.evaluation.metrics.judged.RatedMetric`].
    """

    columns = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
    better = {"description_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120", "https://arxiv.org/abs/2304.08485")
    name_of_score, default_prompt = "description_score", DESCRIPTION_PROMPT

    def questions(self, predictions, references):
        return [{"prediction": p, "reference": r} for p, r in zip(predictions, references, strict=True)], None


CONVERSATION_PROMPT = JudgePrompt(
    name="conversation_score",
    version="1",
    system="You are a helpful and precise assistant for checking the quality of answers about faces.",
    text=(
        "A model was asked a question about the face in a picture. You cannot see the picture; the reference answer "
        "is right.\n\n[Question]\n{question}\n[End of question]\n\n[Reference answer]\n{reference}\n[End of reference "
        "answer]\n\n[Answer]\n{prediction}\n[End of answer]\n\n"
        "Rate the helpfulness, relevance, accuracy and level of detail of the answer on a scale of 1 to 10, where a "
        "higher score means better; an answer that contradicts the reference gets 1 or 2, whatever its style. First "
        "output a single line containing only the score as a number. In the next line explain it, avoiding any bias "
        "such as that for longer texts."
    ),
    lowest=1,
    highest=10,
)


class ConversationScore(RatedMetric):
    """
    The mean rating (1 to 10) of answers by a language model; higher is better.

    UniF²ace's "Conv-GPT" and "Conv-DS" are of this kind; their prompts are not published, so the prompt is ours:
    compare only numbers of the same judge and version.

    `compute(predictions=answers, references=right_answers, questions=questions)`; arguments as for
    [`~unif2ace.training.evaluation.metrics.judged.RatedMetric`].
    """

    columns = {name: datasets.Value("string") for name in ("predictions", "references", "questions")}
    better = {"conversation_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120", "https://arxiv.org/abs/2304.08485")
    name_of_score, default_prompt = "conversation_score", CONVERSATION_PROMPT

    def questions(self, predictions, references, questions):
        fields = zip(questions, references, predictions, strict=True)
        return [{"question": q, "reference": r, "prediction": p} for q, r, p in fields], None


__all__ = [
    "CONVERSATION_PROMPT",
    "ConversationScore",
    "DESCRIPTION_PROMPT",
    "DescriptionScore",
    "JudgePrompt",
    "RatedMetric",
    "UnusableRatingError",
    "VLM_PROMPT",
    "VlmScore",
    "item_means",
    "parse_rating",
    "rate",
    "summarize_ratings",
]
