"""What several commands share: arguments, loading a pipeline, reading and writing pictures, exit codes."""

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines import UniF2acePipeline

EXIT_OK, EXIT_BUG, EXIT_BAD_INPUT, EXIT_NO, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EXIT_OF_SIGNAL = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": 143}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SEED_LIMIT = 2**32


def add_model_arguments(parser: argparse.ArgumentParser):
    """`--model` and `--device`, which `load_pipeline` reads."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="a folder, a Hub repository or unif2ace-faces, the bundled checkpoint (default: that)",
    )
    parser.add_argument(
        "--device", help="where to run: cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)"
    )


def add_length_argument(parser: argparse.ArgumentParser):
    """`--max-new-tokens` of the commands that write text."""
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=160, metavar="N", help="longest answer (default: %(default)s)"
    )


# Input


def check_text(name: str, text: str):
    if not text.strip():
        raise ValueError(f"{name} is empty, expected at least one word")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid UTF-8 at character {error.start}") from error


def open_picture(path: str) -> "Image.Image":
    """A picture of any usual kind as RGB; `ValueError` or `OSError` says what is wrong with it."""
    from ..modeling_unif2ace.pictures_unif2ace import load_image

    return load_image(path)


def load_pipeline(arguments: argparse.Namespace) -> "UniF2acePipeline":
    """The pipeline that `--model` and `--device` name."""
    from ..pipelines import UniF2acePipeline

    silence_libraries()  # now that they are imported
    device = device_of(arguments.device)
    pipe = UniF2acePipeline.from_pretrained(arguments.model).to(device)
    # a progress bar for people, not for log files
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe


def device_of(name: str | None):
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here; try cpu") from error


def positive_int(text: str) -> int:
    """An argument's type: a whole number from 1 up."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small, expected at least 1")
    return value


def seed_int(text: str) -> int:
    """An argument's type: a seed, 0 to 2**32 - 1."""
    value = _whole(text)
    if not 0 <= value < SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{value} is out of range, expected 0 to {SEED_LIMIT - 1}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


# Output


def silence_libraries():
    """
    Loading messages of the libraries tell a user of the command nothing.

    Those that are not imported yet are told by their environment variables, so that a command which needs none of them
    starts at once.
    """
    warnings.simplefilter("ignore")
    for name in ("diffusers", "transformers"):
        os.environ.setdefault(f"{name.upper()}_VERBOSITY", "error")
        if name in sys.modules:
            sys.modules[name].utils.logging.set_verbosity_error()
            sys.modules[name].utils.logging.disable_progress_bar()
