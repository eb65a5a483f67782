"""Conv: how good an answer to a question about a face is, from 1 to 10, by a judge that reads."""

import datasets

from ..judging import JudgePrompt
from .rated import RatedMetric


PROMPT = JudgePrompt(
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
    [`~unif2ace.training.evaluation.metrics.rated.RatedMetric`].
    """

    columns = {name: datasets.Value("string") for name in ("predictions", "references", "questions")}
    better = {"conversation_score": "higher"}
    urls = ("https://arxiv.org/abs/2503.08120", "https://arxiv.org/abs/2304.08485")
    name_of_score, default_prompt = "conversation_score", PROMPT

    def questions(self, predictions, references, questions):
        fields = zip(questions, references, predictions, strict=True)
        return [{"question": q, "reference": r, "prediction": p} for q, r, p in fields], None


__all__ = ["PROMPT", "ConversationScore"]
