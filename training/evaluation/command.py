"""The command `unif2ace evaluate`: every metric of a suite for one checkpoint, resumable part by part."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...cli import device_of, positive_int, seed_int


if TYPE_CHECKING:
    from .subject import Subject
    from .suite import Suite

EXAMPLES = """\
examples:
  unif2ace evaluate --suite painted                                  # the bundled checkpoint
  unif2ace evaluate runs/unif2ace/final --suite painted --parts vqa,captions --limit 100

Results go to OUT as JSON and Markdown after each part. The name of the file ends with a hash of settings and versions:
the same command goes on where it stopped, another one writes another file. `unif2ace compare` reads two of them.
"""
SUITES = ("painted",)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "repo", nargs="?", metavar="REPO", help="a checkpoint's folder or a Hub repository (default: the bundled one)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--suite", choices=SUITES, default="painted", help="what to measure (default: %(default)s)")
    parser.add_argument("--parts", metavar="A,B", help="some of the suite's parts (default: all that can be measured)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N items")
    parser.add_argument(
        "--seeds", type=seed_int, nargs="+", default=[0], metavar="SEED", help="of generated faces (default: 0)"
    )
    parser.add_argument("--steps", type=positive_int, default=16, help="decoding steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=25, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes, each with its own copy of the model; on a CPU as many as cores (default: %(default)s)",
    )
    parser.add_argument(
        "--device", help="where to run: cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="measure again what is measured already")
    parser.add_argument(
        "--hub-folder",
        type=Path,
        metavar="DIR",
        help="also write DIR/.eval_results/SUITE.yaml, which the Hub shows on a model's page",
    )
    parser.add_argument(
        "--dataset-id", metavar="ORG/NAME", help="the data set on the Hub that these results belong to"
    )

    painted = parser.add_argument_group("suite painted")
    painted.add_argument(
        "--painted", type=Path, default=Path("runs/painted"), metavar="DIR", help="render cache (default: %(default)s)"
    )
    painted.add_argument(
        "--judge",
        type=Path,
        default=Path("runs/judge/final"),
        metavar="DIR",
        help="attribute classifier of painted faces (default: %(default)s)",
    )


def run(arguments: argparse.Namespace):
    from .results import main_table, write_hub_entries
    from .suite import run_suite

    parts = None if arguments.parts is None else arguments.parts.split(",")
    with make_subject(arguments) as subject:
        suite = make_suite(arguments, subject)
        results, path = run_suite(suite, arguments.out, parts, arguments.overwrite)
    print(main_table(results))
    for part, why in results["skipped"].items():
        print(f"not measured: {part}: {why}")
    print(f"wrote {path} and {path.with_suffix('.md')}")
    if arguments.hub_folder is not None:
        print(f"wrote {write_hub_entries(results, arguments.hub_folder, arguments.dataset_id)}")


def make_subject(arguments: argparse.Namespace) -> "Subject":
    """The checkpoint that the arguments name."""
    from .subject import Subject

    return Subject(
        arguments.repo,
        arguments.revision,
        device_of(arguments.device),
        arguments.batch_size,
        arguments.workers,
        arguments.out / "pictures",
        progress=sys.stderr.isatty(),
    )


def make_suite(arguments: argparse.Namespace, subject: "Subject") -> "Suite":
    """The suite that the arguments name."""
    from .painted_suite import PaintedFaces, PaintedSuite

    faces = PaintedFaces(arguments.painted, arguments.limit or 500, arguments.workers)
    sampling = (arguments.seeds, arguments.steps, arguments.guidance)
    return PaintedSuite(subject, faces, arguments.judge, *sampling)
