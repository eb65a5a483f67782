"""
Measure a checkpoint on held-out faces of a world and write `docs/quality.md`: the suite of `unif2ace evaluate`, its
four main parts, as the documentation and the model card show them.

    python benchmarks/quality.py                                    # the bundled checkpoint, all four parts
    python benchmarks/quality.py --model runs/unif2ace/final --parts vqa,captions --count 100

docs/evaluation.md says what it needs. The suite keeps its results in `results/` (parts measured
before on the same model with the same settings are kept); this writes them to `docs/` without resampled values, the
same as Markdown beside it, and a contact sheet of generated faces. Everything is seeded. Generated pictures are kept,
so an interrupted run goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unif2ace.pipelines.files import replacing, write_text
from unif2ace.training.evaluation.faces import FaceSuite, Resources
from unif2ace.training.evaluation.report import MODEL_PARTS, quality_markdown, summary_table
from unif2ace.training.evaluation.results import to_json
from unif2ace.training.evaluation.statistics import without_replicates
from unif2ace.training.evaluation.subject import Subject
from unif2ace.training.evaluation.suite import run_suite
from unif2ace.training.synthetic.worlds import WORLDS


SHEET_FACES, SHEET_COLUMNS = 24, 8


def save_sheet(path: Path, originals: np.ndarray, generated: np.ndarray) -> None:
    """Generated faces, each below the painting whose description it was made from, at twice their size."""
    side = generated.shape[1] * 2
    shown = min(SHEET_FACES, len(generated))
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, -(-shown // SHEET_COLUMNS) * 2 * side), "white")
    for number in range(shown):
        row, column = divmod(number, SHEET_COLUMNS)
        for below, picture in enumerate((originals[number], generated[number])):
            enlarged = Image.fromarray(picture).resize((side, side))
            sheet.paste(enlarged, (column * side, (2 * row + below) * side))
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure a checkpoint on held-out painted faces.",
        epilog="example: python benchmarks/quality.py --model runs/unif2ace/final --parts vqa,captions --count 100",
    )
    parser.add_argument("--model", default="bundled", help="a checkpoint's folder, or bundled (default: %(default)s)")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge/final"), help="default: %(default)s")
    parser.add_argument("--world", choices=WORLDS, default="painted", help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="the world's folder (default: runs/WORLD)")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=500, help="faces, from the first on (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of generated faces (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(MODEL_PARTS), help="some of %(default)s (default: all)")
    parser.add_argument("--batch-size", type=int, default=25, help="changes no result (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes; changes no result (default: %(default)s)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the model runs (default: cuda if there is one, else cpu)",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("runs/evaluation/pictures"), help="kept pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="what the suite keeps (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/quality.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    unknown = sorted(set(options.parts) - set(MODEL_PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(MODEL_PARTS)}")
    for name in ("count", "steps", "batch_size", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if options.model != "bundled" and not Path(options.model).is_dir():
        parser.error(f"there is no folder {options.model}")
    return options


def make_suite(options: argparse.Namespace) -> FaceSuite:
    """The suite that the options describe; `OSError` or `ValueError` says what is missing."""
    subject = Subject(
        None if options.model == "bundled" else options.model,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
        store=options.pictures,
    )
    world = WORLDS[options.world]
    folder = options.data or Path(world.folder)
    faces = world.held_out(folder, options.count, options.split, subject.resolution, options.workers)
    resources = Resources(classifier=str(options.judge), features=f"judge:{options.judge}", device=options.device)
    source = f"{options.world} ({options.split})"
    return FaceSuite(subject, faces, source, resources, options.world, options.seeds, options.steps, options.guidance)


def measure(suite: FaceSuite, options: argparse.Namespace) -> dict:
    """Measure the parts asked for and write the three files."""
    results, _ = run_suite(suite, options.results, options.parts)
    results = without_replicates(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(to_json(results), indent=1) + "\n")
    write_text(options.out.with_suffix(".md"), quality_markdown(results))
    if "generation" in options.parts:
        save_sheet(
            options.out.with_suffix(".png"),
            np.stack([np.asarray(image) for image in suite.originals]),
            suite.generated(options.seeds[0])[0],
        )
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parse_options(arguments)
    try:
        suite = make_suite(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with suite.subject:
        results = measure(suite, options)
    print(summary_table(results))
    print(f"\nwrote {options.out} and {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
