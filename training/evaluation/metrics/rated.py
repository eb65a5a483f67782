"""What metrics have in common whose numbers come from a judge behind a chat endpoint."""

from abc import abstractmethod

from ...chat_endpoint import ChatEndpoint
from ..judging import JudgePrompt, item_means, rate, summarize_ratings
from ..statistics import mean
from .base import FaceMetric, check_same_length


class RatedMetric(FaceMetric):
    """
    A metric that a judge rates.

    Args:
        endpoint ([`~unif2ace.training.chat_endpoint.ChatEndpoint`]): The judge.
        prompt ([`~unif2ace.training.evaluation.judging.JudgePrompt`], *optional*): Another question to it.
        repeats (`int`, *optional*, defaults to 3): Ratings of each item.
        options: Those of [`~unif2ace.training.evaluation.judging.rate`].
    """

    name_of_score: str
    default_prompt: JudgePrompt

    def __init__(self, endpoint: ChatEndpoint, prompt: JudgePrompt | None = None, repeats: int = 3, **options):
        self.endpoint, self.prompt, self.repeats = endpoint, prompt or self.default_prompt, repeats
        self.rate_options = options
        self._extras: dict = {}
        super().__init__()

    @abstractmethod
    def questions(self, **inputs) -> tuple[list[dict[str, str]], list | None]:
        """The prompt's fields for each item, and pictures."""

    def statistics(self, **inputs):
        check_same_length(**inputs)
        fields, images = self.questions(**inputs)
        options = {"repeats": self.repeats} | self.rate_options
        ratings, failures = rate(self.endpoint, self.prompt, fields, images, **options)
        self._extras = summarize_ratings(ratings) | {
            "failures": failures[:10],
            "judge": self.endpoint.model,
            "temperature": self.endpoint.temperature,
            "prompt": self.prompt.describe(),
        }
        return {self.name_of_score: mean(item_means(ratings))}

    def extras(self):
        return self._extras


__all__ = ["RatedMetric"]
