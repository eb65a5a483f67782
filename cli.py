"""The console command `unif2ace`: generate faces from sentences, describe faces, answer questions about them."""

import argparse
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .training.files import replacing


if TYPE_CHECKING:
    from PIL import Image

    from .pipelines import UniF2acePipeline

EXIT_OK, EXIT_BUG, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Pictures made at once: more take more memory and hardly less time.
BATCH_SIZE = 8
SEED_LIMIT = 2**32

GENERATE_EXAMPLES = """\
examples:
  unif2ace generate "a smiling old man with round glasses and a grey beard" -o face.png
  unif2ace generate "a young woman with hoop earrings" --seed 7 --num-images 4 --grid -o faces.png

A picture that exists under the output name is replaced, once the new one is complete. Picture number i of --num-images
is made from seed + i alone, so `--seed` with that number makes it again.
"""
DESCRIBE_EXAMPLES = """\
example:
  unif2ace describe face.png
"""
ASK_EXAMPLES = """\
example:
  unif2ace ask face.png "What is on his head?"
"""

# Commands that live in a module of their own: its place (relative to the package) and a summary. The module has
# `EXAMPLES`, `add_arguments(parser)` and `run(arguments)`, and is imported only when its command is called.
MODULES: dict[str, tuple[str, str]] = {
    "finetune": ("training.finetune", "fine-tune a checkpoint on a folder of faces (LoRA)"),
}

EXAMPLES = """\
examples:
  unif2ace generate "a smiling old man with round glasses and a grey beard" -o face.png
  unif2ace describe face.png
  unif2ace ask face.png "What is on his head?"

`unif2ace COMMAND --help` explains a command.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        argv (`list[str]`, *optional*): Arguments without the program's name; those of the process when not given.

    Returns:
        `int`: 0, or 2 for bad input (one line on stderr says what is wrong), 130 when interrupted, 1 for a failure
        that is not the input's.
    """
    try:
        argv = sys.argv[1:] if argv is None else argv
        arguments = _build_parser(argv[0] if argv else None).parse_args(argv)
    except SystemExit as stop:  # after --help, --version or an error message
        return int(stop.code or EXIT_OK)
    if arguments.debug:
        arguments.run(arguments)
        return EXIT_OK
    try:
        _silence_libraries()
        arguments.run(arguments)
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:  # what the package raises for bad texts, pictures and checkpoints
        return _fail(arguments, str(error), EXIT_BAD_INPUT)
    except Exception as error:
        return _fail(arguments, f"{type(error).__name__}: {error} (--debug shows where)", EXIT_BUG)


def _build_parser(called: str | None) -> argparse.ArgumentParser:
    """The whole command line; of `MODULES` only the `called` command gets its arguments."""
    parser = _Parser(
        prog="unif2ace",
        description="One model, both directions: a face from a sentence, a sentence from a face.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    generate = _add_command(
        commands, "generate", _generate, "make a picture of a face from a sentence", GENERATE_EXAMPLES
    )
    generate.add_argument("text", help="what the face looks like")
    generate.add_argument(
        "-o",
        "--output",
        type=_output_path,
        default=Path("face.png"),
        metavar="FILE",
        help="where the picture goes (PNG, JPEG or WebP by its ending; folders are made); several pictures get "
        "numbers: face-0.png, face-1.png, ... (default: %(default)s)",
    )
    generate.add_argument("--steps", type=positive_int, default=16, help="decoding steps (default: %(default)s)")
    generate.add_argument(
        "--guidance",
        type=float,
        default=4.0,
        help="how strongly the picture follows the text; 1 is no guidance (default: %(default)s)",
    )
    generate.add_argument("--negative", metavar="TEXT", help="what the face must not look like")
    generate.add_argument(
        "--seed", type=seed_int, help="makes the picture repeatable (default: a random one, printed)"
    )
    generate.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="pictures (default: %(default)s)"
    )
    generate.add_argument("--grid", action="store_true", help="put all pictures into one file, side by side")

    describe = _add_command(commands, "describe", _describe, "describe the face in a picture", DESCRIBE_EXAMPLES)
    describe.add_argument("image", help="a picture of a face, cropped to the head")
    describe.add_argument("--prompt", help="the request (default: Describe this face.)")
    add_length_argument(describe)

    ask = _add_command(commands, "ask", _ask, "answer a question about the face in a picture", ASK_EXAMPLES)
    ask.add_argument("image", help="a picture of a face, cropped to the head")
    ask.add_argument("question", help="the question")
    add_length_argument(ask)

    for name, (place, summary) in MODULES.items():
        if name != called:
            commands.add_parser(name, help=summary)
            continue
        module = import_module(f".{place}", __package__)
        parser_of_module = _add_parser(commands, name, module.run, summary, module.EXAMPLES)
        module.add_arguments(parser_of_module)
    return parser


def _add_parser(commands, name: str, run, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary.capitalize()}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show warnings, and the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_command(commands, name: str, run, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = _add_parser(commands, name, run, summary, examples)
    add_model_arguments(parser)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser):
    """`--model` and `--device`, which `load_pipeline` reads."""
    parser.add_argument(
        "--model", metavar="PATH", help="a checkpoint's folder or a Hub repository (default: the bundled checkpoint)"
    )
    parser.add_argument(
        "--device", help="where to run: cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)"
    )


def add_length_argument(parser: argparse.ArgumentParser):
    """`--max-new-tokens` of the commands that write text."""
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=160, metavar="N", help="longest answer (default: %(default)s)"
    )


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from . import __version__

        print(f"unif2ace {__version__}")
        parser.exit()


# Commands


def _generate(arguments: argparse.Namespace):
    _check_text("the text", arguments.text)
    pipe = load_pipeline(arguments)
    files = _output_files(arguments)
    seed = secrets.randbelow(SEED_LIMIT) if arguments.seed is None else arguments.seed
    pictures = []
    for i, (picture, seconds) in enumerate(_pictures(pipe, arguments, seed)):
        pictures.append(picture)
        if arguments.grid:
            print(f"{files[0]}  picture {i}  seed {seed + i}  {seconds:.1f} s", flush=True)
        else:
            save_picture(picture, files[i])
            print(f"{files[i]}  seed {seed + i}  {seconds:.1f} s", flush=True)
    if arguments.grid:
        save_picture(picture_grid(pictures), files[0])


def _pictures(
    pipe: "UniF2acePipeline", arguments: argparse.Namespace, seed: int
) -> Iterator[tuple["Image.Image", float]]:
    """The pictures, each with the seconds that it took: its share of its batch's time."""
    import torch

    for first in range(0, arguments.num_images, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, arguments.num_images))
        start = time.perf_counter()
        images = pipe(
            arguments.text,
            guidance_scale=arguments.guidance,
            num_inference_steps=arguments.steps,
            generator=[torch.Generator().manual_seed(seed + number) for number in numbers],
            num_images_per_prompt=len(numbers),
            negative_prompt=arguments.negative,
        ).images
        seconds = (time.perf_counter() - start) / len(numbers)
        for image in images:
            yield image, seconds


def _describe(arguments: argparse.Namespace):
    if arguments.prompt is not None:
        _check_text("the prompt", arguments.prompt)
    image = open_picture(arguments.image)
    print(load_pipeline(arguments).describe(image, prompt=arguments.prompt, max_new_tokens=arguments.max_new_tokens))


def _ask(arguments: argparse.Namespace):
    _check_text("the question", arguments.question)
    image = open_picture(arguments.image)
    print(load_pipeline(arguments).answer(image, arguments.question, max_new_tokens=arguments.max_new_tokens))


# Input


def _check_text(name: str, text: str):
    if not text.strip():
        raise ValueError(f"{name} is empty, expected at least one word")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid UTF-8 at character {error.start}") from error


def open_picture(path: str) -> "Image.Image":
    """A picture of any usual kind as RGB; `ValueError` or `OSError` says what is wrong with it."""
    from .modeling_unif2ace.image_processing_unif2ace import load_image

    return load_image(path)


def load_pipeline(arguments: argparse.Namespace) -> "UniF2acePipeline":
    """The pipeline that `--model` and `--device` name."""
    from .pipelines import UniF2acePipeline

    device = _device(arguments.device)
    pipe = UniF2acePipeline.from_pretrained(arguments.model).to(device)
    # a progress bar for people, not for log files
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe


def _device(name: str | None):
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


def _output_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    return path


# Output


def _output_files(arguments: argparse.Namespace) -> list[Path]:
    """The files to write. Their folder is made here: a wrong place shall be known before the work, not after it."""
    output: Path = arguments.output
    if arguments.grid or arguments.num_images == 1:
        files = [output]
    else:
        files = [output.with_stem(f"{output.stem}-{i}") for i in range(arguments.num_images)]
    output.parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder, expected a file name for the picture")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"the folder {output.parent} is not writable")
    return files


def save_picture(picture: "Image.Image", file: Path):
    """Write a picture completely or not at all."""
    with replacing(file) as part:
        picture.save(part)


def picture_grid(pictures: list["Image.Image"]) -> "Image.Image":
    """All pictures in one, row by row, as square as it can be; places that stay empty are white."""
    from PIL import Image

    columns = math.isqrt(len(pictures) - 1) + 1
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * width, i // columns * height))
    return grid


def _silence_libraries():
    """Loading messages of the libraries tell a user of the command nothing."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    one_line = " ".join(message.split())
    print(f"unif2ace {arguments.command}: error: {one_line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
