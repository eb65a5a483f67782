"""What `unif2ace generate --prompts` does with its arguments."""

import argparse
import sys

from ..pipelines.loading_unif2ace import checkpoint_numbers
from ..pipelines.serving.batch_generation import BatchOptions, generate_all
from ..pipelines.serving.prompt_list import read_prompts
from .common import EXIT_INTERRUPTED, load_pipeline, silence_libraries


# arguments of a single picture, and what they are when not given
_SINGLE = {"text": None, "seed": None, "negative": None, "num_images": 1, "grid": False}


def generate_list(arguments: argparse.Namespace) -> int:
    """Make the pictures of a list and say how it went; returns the exit code."""
    for name, default in _SINGLE.items():
        if getattr(arguments, name) != default:
            shown = "a text" if name == "text" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{shown} was given with --prompts, whose lines say what to make: leave one of them out")
    if arguments.out is None:
        raise ValueError("--prompts needs --out, the folder for its pictures")
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
    options = BatchOptions(
        out=arguments.out,
        model=arguments.model,
        device=arguments.device,
        format=arguments.format,
        workers=arguments.workers,
        engine=arguments.engine,
        batch_size=arguments.batch_size,
        max_bad=arguments.max_bad,
        overwrite=arguments.overwrite,
    )
    summary = generate_all(items, options, load, errors)
    print(f"{arguments.out}: {summary.made} made, {summary.kept} there already, {len(summary.errors)} bad")
    return EXIT_INTERRUPTED if summary.interrupted else 0


def load(options: BatchOptions):
    """The pipeline of a run, in whichever process."""
    silence_libraries()
    return load_pipeline(argparse.Namespace(model=options.model, device=options.device))
