"""VLM-score: how well a generated face fits its description, from 0 to 100, by a judge that sees."""

import datasets

from ..judging import JudgePrompt
from .rated import RatedMetric


PROMPT = JudgePrompt(
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
    [`~unif2ace.training.evaluation.metrics.rated.RatedMetric`].
    """

    columns = {"predictions": datasets.Image(), "references": datasets.Value("string")}
    better = {"vlm_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120",)
    name_of_score, default_prompt = "vlm_score", PROMPT

    def questions(self, predictions, references):
        return [{"text": text} for text in references], list(predictions)


__all__ = ["PROMPT", "VlmScore"]
