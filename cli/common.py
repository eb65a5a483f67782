"""What the commands share: their common options, what they say and how, loading a pipeline, exit codes."""

import argparse
import errno
import json
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..pipelines.seeds import SEED_LIMIT


if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines import UniF2acePipeline

EXIT_OK, EXIT_BUG, EXIT_BAD_INPUT, EXIT_NO, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EXIT_OF_SIGNAL = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": 143}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# what every command takes, and what is said of it
COMMON_OPTIONS = {
    "json": "print results as JSON, one object a line",
    "quiet": "print results and errors only, no progress",
    "debug": "show warnings, and the traceback of an error",
}
# what the operating system says, by its number, as a sentence about a file
_OF_FILES = {
    errno.ENOENT: "{} does not exist: check the name",
    errno.EACCES: "{} may not be read or written: check its permissions",
    errno.EPERM: "{} may not be read or written: check its permissions",
    errno.EISDIR: "{} is a folder: name a file",
    errno.ENOTDIR: "{} lies in something that is a file: name a folder",
    errno.EEXIST: "{} exists already: choose another place",
    errno.ENOSPC: "{} could not be written, because the disk is full: make room",
    errno.EDQUOT: "{} could not be written, because your share of the disk is full: make room",
    errno.EFBIG: "{} could not be written, because files may not be that large here: raise the limit (ulimit -f)",
    errno.EROFS: "{} could not be written, because the disk is read-only: choose another place",
    errno.ENAMETOOLONG: "{} is too long for the name of a file: choose a shorter one",
    errno.EADDRINUSE: "the port is taken by another program: choose one with --port",
}


# The parser


def add_command(commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command, or of one below it, with the options that all of them have."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, text in COMMON_OPTIONS.items():
        # no default: that of a command below would undo what was given to the one above
        parser.add_argument(f"--{option}", action="store_true", default=argparse.SUPPRESS, help=text)
    return parser


def add_device_argument(parser: argparse.ArgumentParser):
    """`--device`, which `device_of` reads."""
    parser.add_argument(
        "--device", help="where to run: cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)"
    )


def add_model_arguments(parser: argparse.ArgumentParser):
    """`--model` and `--device`, which `load_pipeline` reads."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="a folder, a Hub repository or unif2ace-faces, the bundled checkpoint (default: that)",
    )
    add_device_argument(parser)


def add_face_argument(parser: argparse.ArgumentParser):
    """The picture that a command is about."""
    parser.add_argument("image", help="a picture of a face, cropped to the head")


def add_length_argument(parser: argparse.ArgumentParser):
    """`--max-new-tokens` of the commands that write text."""
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=160, metavar="N", help="longest answer (default: %(default)s)"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser):
    """`--steps`, `--guidance` and `--seed` of the commands that draw."""
    parser.add_argument("--steps", type=positive_int, help="decoding steps (default: the checkpoint's)")
    parser.add_argument(
        "--guidance",
        type=float,
        help="how strongly the picture follows the text; 1 is no guidance (default: the checkpoint's)",
    )
    parser.add_argument("--seed", type=seed_int, help="makes the picture repeatable (default: a random one, printed)")


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


def picture_file(text: str) -> Path:
    """An argument's type: a file to write a picture to."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    return path


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


# What is said


@dataclass(frozen=True)
class Console:
    """
    What a command says: results on stdout, and on stderr a line for each stage, so that there is something to read
    from the first second, in a log file too.

    Args:
        as_json (`bool`): Results as JSON, one object a line.
        quiet (`bool`): No stages.
        out (`TextIO`): Where results go; what libraries print goes elsewhere with `--json`.
    """

    as_json: bool = False
    quiet: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)

    def stage(self, text: str):
        """What begins now."""
        if not self.quiet and is_first_process():
            print(text, file=sys.stderr, flush=True)

    def result(self, text: str, **fields: Any):
        """What came out: a text for people, and the same as fields for programs."""
        shown = json.dumps(fields, ensure_ascii=False, default=str) if self.as_json else text
        print(shown, file=self.out, flush=True)

    @property
    def bars(self) -> bool:
        """Whether bars are drawn: for people, not for log files."""
        return not self.quiet and sys.stderr.isatty()


def is_first_process() -> bool:
    """Whether this is the first, or only, one of the processes that `torchrun` starts: it speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def sentence(error: Exception) -> str:
    """What an error says, in one line; what the operating system says of a file as a sentence."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.args and isinstance(error.args[0], int):
        form = _OF_FILES.get(error.errno)
        name = error.filename if error.filename is not None else "a file"
        reason = (error.strerror or os.strerror(error.errno)).lower()
        text = form.format(name) if form else f"{name}: {reason}"
    return " ".join(text.split())


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


# Input


def check_text(name: str, text: str):
    """`ValueError` unless a text has a word, and can be written as UTF-8."""
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
    arguments.console.stage(f"loading {arguments.model or 'unif2ace-faces'}")
    from ..pipelines import UniF2acePipeline

    silence_libraries()  # now that they are imported
    device = device_of(arguments.device)
    pipe = UniF2acePipeline.from_pretrained(arguments.model).to(device)
    pipe.set_progress_bar_config(disable=not arguments.console.bars, leave=False)
    return pipe


def device_of(name: str | None):
    """The device of that name, or the best one that there is."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here; try cpu") from error
