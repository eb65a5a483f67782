"""Desc: how good a description of a face is beside a reference, from 1 to 10, by a judge that reads."""

import datasets

from ..judging import JudgePrompt
from .rated import RatedMetric


# In the manner of LLaVA's review prompt (arXiv 2304.08485), for one answer instead of two.
PROMPT = JudgePrompt(
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
    [`~unif2ace.training.evaluation.metrics.rated.RatedMetric`].
    """

    columns = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
    better = {"description_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120", "https://arxiv.org/abs/2304.08485")
    name_of_score, default_prompt = "description_score", PROMPT

    def questions(self, predictions, references):
        return [{"prediction": p, "reference": r} for p, r in zip(predictions, references, strict=True)], None


__all__ = ["PROMPT", "DescriptionScore"]
