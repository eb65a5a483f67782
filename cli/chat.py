"""The command `unif2ace chat`: talk about a picture of a face."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from .common import add_face_argument, add_length_argument, add_model_arguments, load_pipeline, open_picture


EXAMPLES = """\
examples:
  unif2ace chat face.png
  printf 'Is she smiling?\\nHow can you tell?\\n' | unif2ace chat face.png

Each line is a question, and may refer to what was said before. /new forgets what was said, Ctrl+D (or /quit) ends.
"""


def add_arguments(parser: argparse.ArgumentParser):
    """The arguments of the command."""
    add_face_argument(parser)
    add_length_argument(parser)
    add_model_arguments(parser)


def run(arguments: argparse.Namespace):
    """Read the picture once, then answer line by line."""
    image = open_picture(arguments.image)
    pipe = load_pipeline(arguments)
    arguments.console.stage("reading the picture")
    face, messages = pipe.prefill(image), []
    for line in _lines():
        if line == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        messages, pieces = _answer(pipe, messages, face, arguments.max_new_tokens)
        said = ""
        for piece in pieces:
            said += piece
            if not arguments.json:
                print(piece, end="", flush=True)
        arguments.console.result("", question=line, answer=said)  # as text it is there already, but for the line's end
        messages.append({"role": "assistant", "content": said})


def _answer(pipe, messages: list[dict], face, max_new_tokens: int) -> tuple[list[dict], Iterator[str]]:
    """The messages that the model can read at once, without the oldest ones if need be, and the answer's pieces."""
    while True:
        try:
            return messages, pipe.chat(messages, image=face, max_new_tokens=max_new_tokens, stream=True)
        except ValueError:  # too long, as the message says when nothing is left to forget
            if len(messages) == 1:
                raise
            messages = messages[2:]


def _lines() -> Iterator[str]:
    """What is typed, or piped in, line by line without empty ones, until the end."""
    if not sys.stdin.isatty():
        lines = iter(sys.stdin)
    else:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  (arrow keys and history)
        lines = iter(_typed, None)
    for line in lines:
        line = line.strip()
        if line == "/quit":
            return
        if line:
            yield line


def _typed() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None
