"""The command `unif2ace edit`: change a picture of a face by a sentence, everywhere or in a region."""

import argparse
from pathlib import Path

from ..pipelines.pictures import save_picture
from ..pipelines.regions_unif2ace import FACE_PARTS
from ..pipelines.seeds import picture_seeds
from .common import (
    add_face_argument,
    add_model_arguments,
    add_sampling_arguments,
    load_pipeline,
    open_picture,
    picture_file,
)


EXAMPLES = """\
examples:
  unif2ace edit face.png "a woman with round glasses" --source "a woman" -o glasses.png
  unif2ace edit face.png "a laughing woman" --region mouth -o laughing.png
  unif2ace edit face.png "a man with a hat" --mask mask.png -o hat.png
  unif2ace edit face.png "a man with a hat" --outpaint 0.25,0.5,0.25,0 -o wider.png
  unif2ace edit face.png "a man with a beard" --vary 0.5 --seed 7 -o other.png

The sentence says what the face looks like afterwards. With --source, which says what it looks like now, only what the
two differ in is drawn anew. --region takes a part of the face or a box left,top,right,bottom from 0 to 1; --mask is a
picture of the same size, white where to repaint.
"""


def add_arguments(parser: argparse.ArgumentParser):
    """The arguments of the command."""
    add_face_argument(parser)
    parser.add_argument("text", help="what the face looks like afterwards")
    parser.add_argument(
        "-o", "--output", type=picture_file, default=Path("edited.png"), metavar="FILE", help="default: %(default)s"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--region", type=_region, help=f"{', '.join(FACE_PARTS)}, or left,top,right,bottom")
    where.add_argument("--mask", help="a mask's file, white where to repaint")
    where.add_argument("--outpaint", type=_numbers, metavar="L,T,R,B", help="margins to add, as shares of the picture")
    where.add_argument("--vary", type=float, metavar="SHARE", help="draw a random share of the picture anew")
    parser.add_argument("--source", metavar="TEXT", help="what the face looks like now")
    parser.add_argument(
        "--strength", type=float, default=0.3, help="share that --source may change (default: %(default)s)"
    )
    add_sampling_arguments(parser)
    parser.add_argument(
        "--keep-pixels", action="store_true", help="put the original's pixels back outside of region or mask"
    )
    add_model_arguments(parser)


def run(arguments: argparse.Namespace):
    """Edit, save, and say with which seed."""
    by_area = arguments.region or arguments.mask or arguments.outpaint
    if arguments.keep_pixels and not by_area:
        raise ValueError("--keep-pixels needs --region, --mask or --outpaint: otherwise there is no outside to keep")
    if arguments.source and (arguments.mask or arguments.outpaint or arguments.vary is not None):
        raise ValueError("--source chooses by itself what to change, at most within --region: leave the other one out")
    face = open_picture(arguments.image)
    mask = open_picture(arguments.mask).convert("L") if arguments.mask else arguments.region
    pipe = load_pipeline(arguments)
    import torch

    (seed,) = picture_seeds(arguments.seed, 1)
    arguments.console.stage("editing")
    common = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "generator": torch.Generator().manual_seed(seed),
    }
    if arguments.vary is not None:
        output = pipe.vary(arguments.text, face, arguments.vary, **common)
    elif arguments.outpaint:
        output = pipe.outpaint(arguments.text, face, arguments.outpaint, keep_pixels=arguments.keep_pixels, **common)
    elif mask is not None and not arguments.source:
        output = pipe.inpaint(arguments.text, face, mask, keep_pixels=arguments.keep_pixels, **common)
    else:
        output = pipe.edit(
            arguments.text, face, arguments.source, arguments.strength, region=arguments.region, **common
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_picture(output.images[0], arguments.output)
    arguments.console.result(f"{arguments.output}  seed {seed}", file=arguments.output, seed=seed)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers with commas between them") from None


def _region(text: str) -> str | tuple[float, ...]:
    return _numbers(text) if "," in text else text
