"""
Large models as judges: versioned prompts, ratings read out of their answers, every rating repeated.

A judge's number is not reproducible by others unless its prompt, model and spread are known. So prompts have versions,
which are stored with the results, every item is rated several times, and the spread is reported beside the mean.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..chat_endpoint import ChatEndpoint, ChatEndpointError


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


__all__ = ["JudgePrompt", "UnusableRatingError", "item_means", "parse_rating", "rate", "summarize_ratings"]
