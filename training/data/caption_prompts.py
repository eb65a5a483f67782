"""
The prompts of the caption pipeline, after the steps that the paper describes (its own texts are not published).

Each set of prompts has a version, which is kept with every caption; to change the words, add a version.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionPrompts:
    """
    The texts of one version.

    Args:
        version (`str`): Its name.
        system (`str`): The system message of all requests.
        draft (`str`): Asks for a description; `{known}` is the paragraph `known` or nothing.
        known (`str`): Introduces a caption that the data set has; `{caption}`.
        refine (`str`): Asks to correct a draft; `{draft}` and `{labels}`.
        questions (`str`): Asks for questions about a caption; `{caption}` and `{count}`.
    """

    version: str
    system: str
    draft: str
    known: str
    refine: str
    questions: str


V1 = CaptionPrompts(
    version="1",
    system=(
        "You describe pictures of faces for a data set. Say only what can be seen. Do not name or guess who the "
        "person is, nor nationality, religion, health, wealth or character."
    ),
    draft=(
        "Describe the face in this picture in one paragraph of about 100 words, in plain English. Cover, where it can "
        "be seen: apparent gender and age; face shape and skin; hair colour, length, texture, hairline and bangs; "
        "eyebrows and eyes; nose; mouth and lips; beard, moustache and sideburns; make-up; glasses, jewellery, hat, "
        "mask and other things that are worn; expression and emotion; what the person is doing; direction of the head "
        "and gaze; light and background. Do not mention what is absent. {known}Answer with the paragraph alone."
    ),
    known="The data set says of this picture: [{caption}] Use it where the picture agrees. ",
    refine=(
        "Here is a description of the face in this picture:\n\n{draft}\n\nA classifier read these labels off the same "
        "picture:\n{labels}\n\nRewrite the description. Where description and labels differ, look at the picture and "
        "keep what it shows. Add what the labels mention and the picture shows but the description lacks; say "
        "briefly what the expression suggests, for example that the person seems to be talking or is slightly tired, "
        "if it can be seen. Keep it one paragraph of at most 120 words. Answer with the paragraph alone."
    ),
    questions=(
        "Here is a description of a face:\n\n{caption}\n\nWrite {count} different questions that can be answered from "
        "the description alone, with their answers: about appearance, about emotion and its signs, and about what the "
        "person is doing and why one can tell. Ask as somebody who sees the picture, not the description. Answers are "
        'short, one to twenty words. Answer with a JSON list alone: [{{"question": "...", "answer": "..."}}, ...]'
    ),
)
PROMPTS: dict[str, CaptionPrompts] = {V1.version: V1}
"""Version -> prompts."""


def write_labels(labels: Mapping[str, str]) -> str:
    """Labels as the prompt shows them, one a line; yes/no labels by name, those that do not hold as "not ..."."""
    lines = []
    for name, value in labels.items():
        words = name.replace("_", " ")
        if value == "yes":
            lines.append(f"- {words}")
        elif value == "no":
            lines.append(f"- not {words}")
        else:
            lines.append(f"- {words}: {value}")
    return "\n".join(lines) or "- none"
