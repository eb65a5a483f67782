"""
What the options that trade quality for time really trade, on painted faces: CPU time of a picture beside the share of
the attributes asked for that a judge finds in it.

    python benchmarks/tradeoffs.py --count 100 --into docs/inference.md

Every row draws the same faces from the same seeds as the first; its difference to the first is paired. The int8 rows
need torchao and are left out without it. Needs the judge, as
`benchmarks/quality.py` does.
"""

import argparse
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from reporting import cpu_seconds, machine, put_section, table

from unif2ace import UniF2acePipeline, UniF2aceScheduler
from unif2ace.training.data.language.attributes import ATTRIBUTES, COARSE_ATTRIBUTES
from unif2ace.training.data.records import FaceRecord
from unif2ace.training.evaluation.faces import stated_in
from unif2ace.training.evaluation.judge import UniF2aceJudge
from unif2ace.training.evaluation.measures import cases_and_hits
from unif2ace.training.synthetic.worlds import WORLDS


@dataclass
class Option:
    """One row: a name, and what differs from the defaults in the call, in the scheduler and in the weights."""

    name: str
    call: dict = field(default_factory=dict)
    scheduler: dict = field(default_factory=dict)
    weights: str | None = None


OPTIONS = [
    Option("16 steps, guidance 4 (default)"),
    Option("12 steps", {"num_inference_steps": 12}),
    Option("8 steps", {"num_inference_steps": 8}),
    Option("8 steps, arccos schedule", {"num_inference_steps": 8}, {"masking_schedule": "arccos"}),
    Option("8 steps, linear schedule", {"num_inference_steps": 8}, {"masking_schedule": "linear"}),
    Option("4 steps", {"num_inference_steps": 4}),
    Option("ancestral sampling", {}, {"sampling": "ancestral"}),
    Option("entropy-bounded, 32 nats a step", {}, {"sampling": "entropy_bounded", "entropy_bound": 32.0}),
    Option("early exit below 100 nats", {}, {"early_exit_entropy": 100.0}),
    Option("guidance on the last three quarters", {"guidance_interval": (0.25, 1.0)}),
    Option("guidance on the first half", {"guidance_interval": (0.0, 0.5)}),
    Option("no guidance", {"guidance_scale": 1.0}),
    Option("bf16", weights="bf16"),
    Option("int8 weights", weights="int8_weight_only"),
    Option("int8 weights and activations", weights="int8_dynamic"),
]


def load(model: str | None, weights: str | None = None) -> UniF2acePipeline:
    """The pipeline, with its weights as they are or in another form."""
    pipe = UniF2acePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if weights == "bf16":
        pipe.to(torch.bfloat16)
    elif weights:
        quantize(pipe, weights)
    return pipe


def quantize(pipe: UniF2acePipeline, kind: str):
    """8-bit linear layers by torchao, as docs/inference.md does it."""
    import torchao.quantization as torchao
    from torch import nn

    config = {
        "int8_weight_only": torchao.Int8WeightOnlyConfig,
        "int8_dynamic": torchao.Int8DynamicActivationInt8WeightConfig,
    }[kind]
    layers = pipe.transformer.model.language_model.layers
    torchao.quantize_(layers, config(), filter_fn=lambda module, name: isinstance(module, nn.Linear))


def measure(
    option: Option, pipe: UniF2acePipeline, faces: list[FaceRecord], judge: UniF2aceJudge, options: argparse.Namespace
) -> dict:
    """Draw all faces with an option: time, steps, and right attributes of each picture."""
    texts, steps, seconds, pictures = [face.captions[0] for face in faces], [], 0.0, []
    arguments = {"num_inference_steps": 16, "guidance_scale": 4.0, "watermark": False, **option.call}

    def count(pipeline, step, timestep, tensors):
        steps.append(step)
        return tensors

    pipe(texts[0], num_inference_steps=1, guidance_scale=4.0)  # warm
    for start in range(0, len(texts), options.batch_size):
        batch = texts[start : start + options.batch_size]
        generators = [torch.Generator().manual_seed(start + row) for row in range(len(batch))]
        made, taken = cpu_seconds(
            lambda batch=batch, rows=generators: pipe(batch, generator=rows, callback_on_step_end=count, **arguments)
        )
        pictures += made.images
        seconds += taken
    cases, right = cases_and_hits(judge.predict(pictures), list(map(stated_in, faces)))
    return {
        "seconds": seconds / len(texts),
        "steps": len(steps) / -(-len(texts) // options.batch_size),
        "cases": cases,
        "right": right,
    }


def share(found: dict, coarse: bool = False) -> float:
    """Share of the attributes asked for that are there."""
    chosen = [place for place, name in enumerate(ATTRIBUTES) if not coarse or name in COARSE_ATTRIBUTES]
    return found["right"][:, chosen].sum() / found["cases"][:, chosen].sum()


def difference(found: dict, base: dict) -> str:
    """Paired difference of the shares to the first row's, in points, with two standard errors over pictures."""
    gained = (found["right"] - base["right"]).sum(1) / base["cases"].sum(1)
    error = gained.std(ddof=1) / np.sqrt(len(gained))
    return f"{100 * gained.mean():+.1f} ± {200 * error:.1f}"


def add_options(parser: argparse.ArgumentParser, split: str, count: int) -> None:
    """The options that say which checkpoint draws which faces, and who judges them."""
    parser.add_argument("--model", help="a checkpoint's folder (default: the bundled one)")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge/final"), help="default: %(default)s")
    parser.add_argument("--world", choices=WORLDS, default="painted", help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="its folder (default: runs/WORLD)")
    parser.add_argument("--count", type=int, default=count, help=f"faces of the {split} split (default: {count})")
    parser.add_argument("--batch-size", type=int, default=8, help="changes no picture (default: %(default)s)")


def held_out(options: argparse.Namespace, split: str, size: int) -> list[FaceRecord]:
    """The faces that the options name; `OSError` if they are not there."""
    world = WORLDS[options.world]
    return world.held_out(options.data or Path(world.folder), options.count, split, size, 1)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure the options that trade quality for time.")
    add_options(parser, split="test", count=100)
    parser.add_argument("--into", type=Path, help="a document to put the table into, as docs/inference.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        plain = load(options.model)
        faces = held_out(options, "test", plain.transformer.config.vq_config.resolution)
        judge = UniF2aceJudge.from_pretrained(options.judge).eval()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    has_torchao = importlib.util.find_spec("torchao") is not None
    scheduler_config = plain.scheduler.config
    rows, base = [], None
    for option in OPTIONS:
        if (option.weights or "").startswith("int8") and not has_torchao:
            print(f"{option.name}: left out, torchao is not installed")
            continue
        pipe = plain if option.weights is None else load(options.model, option.weights)
        pipe.scheduler = UniF2aceScheduler.from_config(scheduler_config, **option.scheduler)
        found = measure(option, pipe, faces, judge, options)
        base = base or found
        rows.append(
            [
                option.name,
                f"{found['steps']:.1f}",
                f"{found['seconds']:.2f}",
                f"{base['seconds'] / found['seconds']:.2f} ×",
                f"{share(found):.3f}",
                f"{share(found, coarse=True):.3f}",
                "" if found is base else difference(found, base),
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    cases, right = cases_and_hits(judge.predict([face.image for face in faces]), list(map(stated_in, faces)))
    header = ["option", "steps", "CPU s a picture", "speed", "attributes right", "coarse ones", "difference, points"]
    report = (
        f"{options.count} faces of the test split, batches of {options.batch_size}, one seed each; the judge finds "
        f"{right.sum() / cases.sum():.3f} of the attributes in the original pictures.\n\n{table(header, rows)}\n\n"
        f"{machine()}"
    )
    print(f"\n{report}")
    if options.into:
        put_section(options.into, "tradeoffs", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
