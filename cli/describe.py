"""`unif2ace describe`: describe the face in a picture."""

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
example:
  unif2ace describe face.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_model_arguments(parser)
    add_face_argument(parser)
    parser.add_argument("--prompt", help="the request (default: Describe this face.)")
    add_length_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Describe the face."""
    if arguments.prompt is not None:
        check_text("the prompt", arguments.prompt)
    image = open_picture(arguments.image)
    pipe = load_pipeline(arguments)
    arguments.console.stage("describing")
    text = pipe.describe(image, prompt=arguments.prompt, max_new_tokens=arguments.max_new_tokens)
    arguments.console.result(text, file=arguments.image, description=text)
