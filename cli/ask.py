"""`unif2ace ask`: answer questions about the face in a picture."""

import argparse

from .common import add_length_argument, add_model_arguments, check_text, load_pipeline, open_picture


EXAMPLES = """\
examples:
  unif2ace ask face.png "What is on his head?"
  unif2ace ask face.png "Is he smiling?" "What color is the hair?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("image", help="a picture of a face, cropped to the head")
    parser.add_argument("question", nargs="+", help="the question; several get a line each")
    add_length_argument(parser)


def run(arguments: argparse.Namespace):
    for question in arguments.question:
        check_text("the question", question)
    image = open_picture(arguments.image)
    answers = load_pipeline(arguments).answer(image, arguments.question, max_new_tokens=arguments.max_new_tokens)
    print(*answers, sep="\n")
