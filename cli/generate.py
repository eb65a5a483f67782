"""`unif2ace generate`: make pictures of faces from sentences, one or a whole list of them."""

import argparse
import os
import sys
import time
from pathlib import Path

from ..pipelines.pictures import enlarge, picture_grid, save_picture
from ..pipelines.seeds import picture_seeds
from ..pipelines.serving.prompt_list import BATCH_SIZE, ENGINES, FORMATS, read_prompts
from .common import (
    EXIT_INTERRUPTED,
    Console,
    add_model_arguments,
    add_sampling_arguments,
    check_text,
    load_pipeline,
    picture_file,
    positive_int,
    silence_libraries,
)


EXAMPLES = """\
examples:
  unif2ace generate "an old man with pale skin, short gray hair and round glasses, in a green t-shirt" -o face.png
  unif2ace generate "a young woman with hoop earrings" --seed 7 --num-images 4 --grid -o faces.png

  unif2ace generate --prompts faces.jsonl --out faces/ --workers 2

A picture that exists under the output name is replaced, once the new one is complete. Picture number i of --num-images
is made from seed + i alone, so `--seed` with that number makes it again.
--upscale makes the file larger for looking at it, by resampling: nothing is drawn that the model did not draw.
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
        type=picture_file,
        default=Path("face.png"),
        metavar="FILE",
        help="where the picture goes (PNG, JPEG or WebP by its ending; folders are made); several pictures get "
        "numbers: face-0.png, face-1.png, ... (default: %(default)s)",
    )
    add_sampling_arguments(parser)
    parser.add_argument("--negative", metavar="TEXT", help="what the face must not look like")
    parser.add_argument(
        "--complete-prompt",
        action=argparse.BooleanOptionalAction,
        help="let the model complete the text before it draws (default: the checkpoint's own; the completed text is "
        "printed and written into the file)",
    )
    parser.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="pictures (default: %(default)s)"
    )
    parser.add_argument("--grid", action="store_true", help="put all pictures into one file, side by side")
    parser.add_argument(
        "--upscale",
        type=int,
        choices=range(1, 9),
        default=1,
        metavar="N",
        help="enlarge N times for viewing, 1 to 8; the file's metadata say so (default: %(default)s)",
    )
    group = parser.add_argument_group("a list of prompts")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a list of prompts, .jsonl or .txt")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="where its pictures and manifest.jsonl go")
    group.add_argument("--format", choices=FORMATS, default="png", help="(default: %(default)s)")
    group.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: %(default)s)")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="who runs several workers; auto is Ray Data if it is installed, else a process pool",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        default=BATCH_SIZE,
        metavar="N",
        help="pictures at once (default: %(default)s)",
    )
    group.add_argument(
        "--max-bad", type=int, default=10, metavar="N", help="bad lines that are skipped (default: %(default)s)"
    )
    group.add_argument("--overwrite", action="store_true", help="make pictures again whose settings have changed")


def run(arguments: argparse.Namespace) -> int | None:
    """Make the pictures, and say where they are and from which seeds."""
    if arguments.prompts is not None:
        return _generate_list(arguments)
    if arguments.text is None:
        raise ValueError("there is no text: say what the face looks like, or give a list with --prompts")
    check_text("the text", arguments.text)
    pipe = load_pipeline(arguments)
    import torch

    files = _output_files(arguments)
    seeds = picture_seeds(arguments.seed, arguments.num_images)
    pictures = []
    for first in range(0, len(seeds), BATCH_SIZE):
        batch = seeds[first : first + BATCH_SIZE]
        arguments.console.stage(f"drawing {first + 1} to {first + len(batch)} of {len(seeds)}")
        start = time.perf_counter()
        output = pipe(
            arguments.text,
            guidance_scale=arguments.guidance,
            num_inference_steps=arguments.steps,
            generator=[torch.Generator().manual_seed(seed) for seed in batch],
            num_images_per_prompt=len(batch),
            negative_prompt=arguments.negative,
            complete_prompt=arguments.complete_prompt,
        )
        made, completed = output.images, output.completed_prompts or [None] * len(batch)
        seconds = (time.perf_counter() - start) / len(batch)  # of one picture: its share
        for number, (seed, picture, prompt) in enumerate(zip(batch, made, completed, strict=True), first):
            pictures.append(enlarge(picture, arguments.upscale))
            file, place = files[0] if arguments.grid else files[number], ""
            if arguments.grid:
                place = f"picture {number}  "
            else:
                save_picture(pictures[-1], file)
            text = f"{file}  {place}seed {seed}  {seconds:.1f} s" + (f"  {prompt}" if prompt else "")
            facts = {} if prompt is None else {"completed_prompt": prompt}
            arguments.console.result(text, file=file, picture=number, seed=seed, seconds=seconds, **facts)
    if arguments.grid:
        save_picture(picture_grid(pictures), files[0])


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


# arguments of a single picture, and what they are when not given
_SINGLE = {"text": None, "seed": None, "negative": None, "num_images": 1, "grid": False, "upscale": 1}
_SINGLE["complete_prompt"] = None


def _generate_list(arguments: argparse.Namespace) -> int:
    for name, default in _SINGLE.items():
        if getattr(arguments, name) != default:
            shown = "a text" if name == "text" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{shown} was given with --prompts, whose lines say what to make: leave one of them out")
    if arguments.out is None:
        raise ValueError("--prompts needs --out, the folder for its pictures")
    arguments.console.stage(f"reading {arguments.prompts}")
    from ..pipelines.loading_unif2ace import checkpoint_numbers
    from ..pipelines.serving.batch_generation import BatchOptions, generate_all

    steps, guidance = arguments.steps, arguments.guidance
    if steps is None or guidance is None:
        own = checkpoint_numbers(arguments.model)
        steps = own.num_inference_steps if steps is None else steps
        guidance = own.guidance_scale if guidance is None else guidance
    items, errors = read_prompts(arguments.prompts, steps, guidance)
    for error in errors:
        print(f"{arguments.prompts}: {error}", file=sys.stderr)
    if not items and not errors:
        raise ValueError(f"{arguments.prompts} is empty, expected a prompt in each line")
    options = BatchOptions(**{field: getattr(arguments, field) for field in BatchOptions.__dataclass_fields__})
    arguments.console.stage(f"drawing {len(items)} pictures")
    summary = generate_all(items, options, load, errors)
    counts = {"made": summary.made, "kept": summary.kept, "bad": len(summary.errors)}
    text = f"{arguments.out}: {summary.made} made, {summary.kept} there already, {len(summary.errors)} bad"
    arguments.console.result(text, folder=arguments.out, **counts, interrupted=summary.interrupted)
    return EXIT_INTERRUPTED if summary.interrupted else 0


def load(options):
    """The pipeline of a run, in whichever process."""
    silence_libraries()
    return load_pipeline(argparse.Namespace(model=options.model, device=options.device, console=Console(quiet=True)))
