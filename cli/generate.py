"""`unif2ace generate`: make pictures of faces from sentences."""

import argparse
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..pipelines.pictures import picture_grid, save_picture
from .common import (
    PICTURE_SUFFIXES,
    SEED_LIMIT,
    add_model_arguments,
    check_text,
    load_pipeline,
    positive_int,
    seed_int,
)


if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines import UniF2acePipeline

# Pictures made at once: more take more memory and hardly less time.
BATCH_SIZE = 8

EXAMPLES = """\
examples:
  unif2ace generate "an old man with pale skin, short gray hair and round glasses, in a green t-shirt" -o face.png
  unif2ace generate "a young woman with hoop earrings" --seed 7 --num-images 4 --grid -o faces.png

  unif2ace generate --prompts faces.jsonl --out faces/ --workers 2

A picture that exists under the output name is replaced, once the new one is complete. Picture number i of --num-images
is made from seed + i alone, so `--seed` with that number makes it again.
A list (--prompts) is a .jsonl file of {"id": ..., "prompt": ...}, with "seed", "steps", "guidance" and "negative" if
wanted, or a .txt file of one prompt a line. A broken-off run goes on with the same command (docs/batch.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("text", nargs="?", help="what the face looks like")
    parser.add_argument(
        "-o",
        "--output",
        type=output_path,
        default=Path("face.png"),
        metavar="FILE",
        help="where the picture goes (PNG, JPEG or WebP by its ending; folders are made); several pictures get "
        "numbers: face-0.png, face-1.png, ... (default: %(default)s)",
    )
    parser.add_argument("--steps", type=positive_int, help="decoding steps (default: the checkpoint's)")
    parser.add_argument(
        "--guidance",
        type=float,
        help="how strongly the picture follows the text; 1 is no guidance (default: the checkpoint's)",
    )
    parser.add_argument("--negative", metavar="TEXT", help="what the face must not look like")
    parser.add_argument("--seed", type=seed_int, help="makes the picture repeatable (default: a random one, printed)")
    parser.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="pictures (default: %(default)s)"
    )
    parser.add_argument("--grid", action="store_true", help="put all pictures into one file, side by side")
    add_list_arguments(parser)


def add_list_arguments(parser: argparse.ArgumentParser):
    """The arguments that belong to `generate --prompts`."""
    group = parser.add_argument_group("a list of prompts")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a list of prompts, .jsonl or .txt")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="where its pictures and manifest.jsonl go")
    group.add_argument("--format", choices=("png", "jpg", "webp"), default="png", help="(default: %(default)s)")
    group.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: %(default)s)")
    group.add_argument(
        "--engine",
        choices=("auto", "processes", "ray"),
        default="auto",
        help="who runs several workers; auto is Ray Data if it is installed, else a process pool",
    )
    group.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="pictures at once (default: %(default)s)"
    )
    group.add_argument(
        "--max-bad", type=int, default=10, metavar="N", help="bad lines that are skipped (default: %(default)s)"
    )
    group.add_argument("--overwrite", action="store_true", help="make pictures again whose settings have changed")


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.prompts is not None:
        from .generate_list import generate_list

        return generate_list(arguments)
    if arguments.text is None:
        raise ValueError("there is no text: say what the face looks like, or give a list with --prompts")
    check_text("the text", arguments.text)
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


def output_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    return path
