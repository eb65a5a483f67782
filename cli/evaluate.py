"""The command `unif2ace evaluate`: every metric of a suite for one checkpoint, resumable part by part."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device_argument, device_of, positive_int, seed_int


if TYPE_CHECKING:
    from ..training.evaluation.subject import Subject
    from ..training.evaluation.suite import Suite

EXAMPLES = """\
examples:
  unif2ace evaluate --suite painted                                  # the bundled checkpoint
  unif2ace evaluate runs/unif2ace/final --suite painted --parts vqa,captions --limit 100
  unif2ace evaluate org/model --suite custom --data photos/
  unif2ace evaluate --suite custom --data painted:32 --parts experts  # what each expert does: use, worth, gradients
  unif2ace evaluate org/model --suite paper --data faces:/data/test --features vision:facebook/dinov2-base \\
      --vqa-models llava-hf/llava-1.5-7b-hf --judge-url http://localhost:8000/v1 --judge-model some-vlm
  unif2ace evaluate org/model --suite facexbench --data /data/facexbench --parts likelihood

Results go to OUT as JSON and Markdown after each part. The name of the file ends with a hash of settings and versions:
the same command goes on where it stopped, another one writes another file. `unif2ace compare` reads two of them.
"""
SUITES = ("painted", "rendered", "paper", "custom", "facexbench", "facebench")
WORLDS = ("painted", "rendered")
MEASURED_FACES = 500


def add_arguments(parser: argparse.ArgumentParser):
    """The command's arguments."""
    parser.add_argument(
        "repo", nargs="?", metavar="REPO", help="a checkpoint's folder or a Hub repository (default: the bundled one)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--suite", choices=SUITES, default="painted", help="what to measure (default: %(default)s)")
    parser.add_argument(
        "--parts", metavar="A,B", help="some of the suite's parts (default: all but experts, which takes long)"
    )
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
    add_device_argument(parser)
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
    parser.add_argument(
        "--update-card", action="store_true", help="put the results into the README.md of the checkpoint's folder"
    )

    worlds = parser.add_argument_group("suites painted and rendered")
    worlds.add_argument(
        "--painted", metavar="DIR", help="where what painted faces show is remembered (default: runs/painted)"
    )
    worlds.add_argument("--rendered", metavar="DIR", help="folder of rendered faces (default: runs/rendered)")
    worlds.add_argument(
        "--judge",
        default="runs/judge/final",
        metavar="DIR",
        help="attribute classifier of such faces (default: %(default)s)",
    )

    data = parser.add_argument_group("what is measured on")
    data.add_argument(
        "--data",
        metavar="SOURCE",
        help="any face data set, as `unif2ace data` takes it: a folder, a data file, a Hub repository, NAME:PLACE; "
        "for facexbench and facebench the benchmark's folder",
    )
    data.add_argument("--split", default="test", help="split of a world or a Hub data set (default: %(default)s)")
    data.add_argument("--config", metavar="NAME", help="configuration of a Hub data set")
    data.add_argument("--columns", metavar="MAP", help="which columns hold what: image=jpg,caption=txt")
    data.add_argument("--images", metavar="DIR", help="where pictures are that the data give by name")

    tools = parser.add_argument_group("what measures (parts without it are left out)")
    tools.add_argument(
        "--features",
        metavar="SPEC",
        help="of Fréchet and kernel distance: vision:MODEL, face:DIR, judge:DIR, or inception (of a world: its judge)",
    )
    tools.add_argument("--clip-model", metavar="MODEL", help="of CLIPScore: CLIP, SigLIP, Long-CLIP, ...")
    tools.add_argument(
        "--long-text",
        choices=("sentences", "truncate", "error"),
        default="sentences",
        help="what CLIPScore does with captions that are too long for its model (default: %(default)s)",
    )
    tools.add_argument(
        "--vqa-models", nargs="+", default=[], metavar="MODEL", help="of VQAScore: any image-text model"
    )
    tools.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server: VLM-score, Desc, Conv")
    tools.add_argument("--judge-model", metavar="NAME", help="its model; the key is read from OPENAI_API_KEY")
    tools.add_argument("--judge-repeats", type=positive_int, default=3, metavar="N", help="ratings (default: 3)")
    tools.add_argument("--identity", metavar="SPEC", help="a face encoder, face:DIR (default: the checkpoint's own)")
    tools.add_argument("--classifier", metavar="DIR", help="an attribute classifier for pictures of this kind")
    tools.add_argument("--training", metavar="SOURCE", help="the training faces, among which copies are looked for")


def run(arguments: argparse.Namespace):
    """Measure the suite, part by part."""
    arguments.console.stage(f"measuring {arguments.repo or 'unif2ace-faces'} by the suite {arguments.suite}")
    from ..training.evaluation.results import main_table, update_card, write_hub_entries
    from ..training.evaluation.suite import run_suite

    parts = None if arguments.parts is None else arguments.parts.split(",")
    with make_subject(arguments) as subject:
        suite = make_suite(arguments, subject)
        results, path = run_suite(suite, arguments.out, parts, arguments.overwrite)
    written = [path, path.with_suffix(".md")]
    if arguments.hub_folder is not None:
        written.append(write_hub_entries(results, arguments.hub_folder, arguments.dataset_id))
    if arguments.update_card:
        written.append(update_card(results, subject.folder))
    lines = [main_table(results), *(f"not measured: {part}: {why}" for part, why in results["skipped"].items())]
    lines += [f"wrote {file}" for file in written]
    measures = {part: found["measures"] for part, found in results["parts"].items()}
    arguments.console.result("\n".join(lines), written=written, skipped=results["skipped"], measures=measures)


def make_subject(arguments: argparse.Namespace) -> "Subject":
    """The checkpoint that the arguments name."""
    from ..training.evaluation.subject import Subject

    return Subject(
        arguments.repo,
        arguments.revision,
        device_of(arguments.device),
        arguments.batch_size,
        arguments.workers,
        arguments.out / "pictures",
        progress=arguments.console.bars,
    )


def make_suite(arguments: argparse.Namespace, subject: "Subject") -> "Suite":
    """The suite that the arguments name."""
    if arguments.suite in WORLDS:
        return _world_suite(arguments, subject)
    if arguments.data is None:
        raise ValueError(f"suite {arguments.suite} needs data: give --data")
    if arguments.suite in ("facexbench", "facebench"):
        return _choice_suite(arguments, subject)
    return _records_suite(arguments, subject)


def _world_suite(arguments: argparse.Namespace, subject: "Subject") -> "Suite":
    from ..training.synthetic.worlds import WORLDS as FACES

    world = FACES[arguments.suite]
    folder = getattr(arguments, arguments.suite) or world.folder
    count = arguments.limit or MEASURED_FACES
    records = world.held_out(folder, count, arguments.split, subject.resolution, arguments.workers)
    arguments.classifier = arguments.classifier or arguments.judge
    arguments.features = arguments.features or f"judge:{arguments.classifier}"
    arguments.training = arguments.training or world.training(folder)
    return _face_suite(arguments, subject, records, arguments.suite)


def _choice_suite(arguments: argparse.Namespace, subject: "Subject") -> "Suite":
    from ..training.evaluation.benchmarks import DATASET_IDS, LOADERS
    from ..training.evaluation.choices import ChoiceSuite

    questions = LOADERS[arguments.suite](arguments.data)
    dataset_id = arguments.dataset_id or DATASET_IDS[arguments.suite]
    return ChoiceSuite(subject, questions, arguments.suite, dataset_id, arguments.limit)


def _records_suite(arguments: argparse.Namespace, subject: "Subject") -> "Suite":
    from ..training.data.sources import open_faces
    from .data import broken_lines

    stream = open_faces(
        arguments.data,
        split=arguments.split,
        config=arguments.config,
        columns=arguments.columns,
        images=arguments.images,
        need_text=False,
    )
    records = stream.table(arguments.limit or MEASURED_FACES)
    for line in broken_lines(stream):
        arguments.console.stage(line)
    return _face_suite(arguments, subject, records, arguments.data)


def _face_suite(arguments: argparse.Namespace, subject: "Subject", records, place: str) -> "Suite":
    from ..training.evaluation.faces import FaceSuite, Resources

    if (arguments.judge_url is None) != (arguments.judge_model is None):
        raise ValueError("--judge-url and --judge-model belong together: give both or neither")
    names = ("features", "identity", "clip_model", "long_text", "classifier", "judge_url", "judge_model")
    names += ("judge_repeats", "training")
    resources = Resources(
        **{name: getattr(arguments, name) for name in names},
        vqa_models=tuple(arguments.vqa_models),
        judge_log=str(arguments.out / "judge.jsonl"),
        device=str(device_of(arguments.device)),
    )
    return FaceSuite(
        subject,
        records,
        f"{place} ({arguments.split})",  # the split is a part of what is measured, and so of the name
        resources,
        arguments.suite,
        arguments.seeds,
        arguments.steps,
        arguments.guidance,
        arguments.dataset_id,
    )
