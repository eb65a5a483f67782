"""
How a checkpoint's sampling is chosen: temperatures and guidance on validation faces, by the share of the attributes
asked for that a judge finds in the pictures.

    python benchmarks/sampling.py --temperature 0.5 0.7 1 --guidance 3 4 6 --count 48

Every row draws the same faces from the same seeds as the first; its difference to the first is paired. The default
sampling comes first. Needs the judge, as `benchmarks/quality.py` does.
"""

import argparse
import itertools
import sys

import torch
from tradeoffs import Option, add_options, difference, held_out, load, measure, share

from unif2ace import UniF2aceScheduler
from unif2ace.training.evaluation.judge import UniF2aceJudge


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Compare sampling settings on validation faces.")
    add_options(parser, split="validation", count=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[16], help="default: 16")
    for name in ("temperature", "confidence-temperature", "guidance"):
        parser.add_argument(f"--{name}", type=float, nargs="+", help="default: the first row's")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        pipe = load(options.model)
        faces = held_out(options, "validation", pipe.transformer.config.vq_config.resolution)
        judge = UniF2aceJudge.from_pretrained(options.judge).eval()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = pipe.scheduler.config
    default = (config.temperature, config.confidence_temperature, 4.0, 16)
    grid = itertools.product(
        options.temperature or default[:1],
        options.confidence_temperature or default[1:2],
        options.guidance or default[2:3],
        options.steps,
    )
    base = None
    print(
        "temperature | confidence temperature | guidance | steps | attributes right | coarse ones | difference, points"
    )
    for row in (default, *(row for row in grid if row != default)):
        temperature, confidence, guidance, steps = row
        pipe.scheduler = UniF2aceScheduler.from_config(
            config, temperature=temperature, confidence_temperature=confidence
        )
        option = Option("", {"guidance_scale": guidance, "num_inference_steps": steps})
        found = measure(option, pipe, faces, judge, options)
        base = base or found
        shares = f"{share(found):.3f} | {share(found, coarse=True):.3f}"
        print(*row, shares, "" if found is base else difference(found, base), sep=" | ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
