"""`unif2ace ask`: answer questions about the face in a picture."""

import argparse

from .common import (
    add_face_argument,
    add_length_argument,
    add_model_arguments,
    check_text,
    load_pipeline,
    open_picture,
)


EXAMPLES = """\
examples:
  unif2ace ask face.png "What is on his head?"
  unif2ace ask face.png "Is he smiling?" "What color is the hair?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_model_arguments(parser)
    add_face_argument(parser)
    parser.add_argument("question", nargs="+", help="the question; several get a line each")
    add_length_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer each question."""
    for question in arguments.question:
        check_text("the question", question)
    image = open_picture(arguments.image)
    pipe = load_pipeline(arguments)
    arguments.console.stage("answering")
    answers = pipe.answer(image, arguments.question, max_new_tokens=arguments.max_new_tokens)
    for question, answer in zip(arguments.question, answers, strict=True):
        arguments.console.result(answer, file=arguments.image, question=question, answer=answer)
