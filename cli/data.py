"""`unif2ace data`: look at face data sets, and prepare them for training."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_command, add_model_arguments, load_pipeline, positive_int, seed_int


if TYPE_CHECKING:
    from ..training.data.sources import FaceStream

EXAMPLES = """\
examples:
  unif2ace data sources
  unif2ace data inspect photos/ --sheet sheet.png
  unif2ace data inspect someone/faces --columns image=jpg,caption=txt --limit 500
  unif2ace data crop photos/ -o aligned/
  unif2ace data clean aligned/ -o cleaned/ --splits train=0.9,test=0.1
  unif2ace data caption cleaned/train -o captions.jsonl --endpoint http://localhost:8000/v1 --vision-model some-vlm
  unif2ace data prepare cleaned/train -o prepared/ --model runs/faces/final
  unif2ace data render --count 1000 --out rendered/ --workers 2

`unif2ace data COMMAND --help` explains a command. A source is a folder, a data file, a repository on the Hub, or
NAME:PLACE with a name that `unif2ace data sources` lists.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below `unif2ace data`."""
    commands = parser.add_subparsers(title="commands", dest="data_command", required=True, metavar="COMMAND")
    for name, (summary, examples, add, run) in COMMANDS.items():
        command = add_command(commands, name, summary, examples)
        add(command)
        command.set_defaults(run=run)


# The source, which every command has


def add_source_arguments(parser: argparse.ArgumentParser, max_broken: int = 100) -> None:
    """The source and how to read it; [`open_source`] reads these arguments."""
    parser.add_argument("source", help="a folder, a data file, a Hub repository, or NAME:PLACE")
    parser.add_argument("--split", default="train", help="split, of data sets that have some (default: %(default)s)")
    parser.add_argument("--config", metavar="NAME", help="configuration, of Hub data sets")
    parser.add_argument(
        "--columns", metavar="MAP", help="which columns hold what: image=jpg,caption=txt,question=q,answer=a"
    )
    parser.add_argument("--images", metavar="FOLDER", help="where pictures are that the data give by name")
    parser.add_argument(
        "--max-broken",
        type=int,
        default=max_broken,
        metavar="N",
        help="most broken samples to pass over; -1 for any number (default: %(default)s)",
    )


def open_source(arguments: argparse.Namespace, need_text: bool = True, seed: int = 0) -> "FaceStream":
    """The stream that the arguments of [`add_source_arguments`] name."""
    arguments.console.stage(f"reading {arguments.source}")
    from ..training.data.sources import open_faces

    return open_faces(
        arguments.source,
        split=arguments.split,
        config=arguments.config,
        columns=arguments.columns,
        images=arguments.images,
        max_broken=arguments.max_broken,
        seed=seed,
        need_text=need_text,
    )


def broken_lines(stream: "FaceStream") -> list[str]:
    """One line about samples that were passed over, if there were any."""
    return [f"{stream.broken.count} broken samples left out"] if stream.broken.count else []


# The commands: of each its arguments, and what it does


def _sources(arguments: argparse.Namespace) -> None:
    from ..training.data.sources import SOURCES

    width = max(map(len, SOURCES))
    for name, source in SOURCES.items():
        facts = [source.summary, f"terms: {source.licence}", *(f"Hub: {repository}" for repository in source.hub)]
        lines = [f"{name if line == 0 else '':{width}}  {fact}" for line, fact in enumerate(facts)]
        text = "\n".join(lines)
        arguments.console.result(text, name=name, summary=source.summary, terms=source.licence, hub=source.hub)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser, max_broken=-1)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="read so many samples (default: all)")
    parser.add_argument(
        "--sheet",
        type=Path,
        default=Path("contact-sheet.png"),
        metavar="FILE",
        help="the contact sheet (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=positive_int, default=24, metavar="N", help="faces on it (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="chooses them (default: %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all numbers as JSON")


def _inspect(arguments: argparse.Namespace) -> None:
    from ..pipelines.files import write_json
    from ..pipelines.pictures import save_picture
    from ..training.data.inspection import contact_sheet, inspect_faces

    stream = open_source(arguments, need_text=False, seed=arguments.seed)
    found, drawn = inspect_faces(stream, arguments.limit, arguments.samples, arguments.seed)
    arguments.console.result("\n".join(found.lines()), **found.summary())
    if not found.records:
        raise ValueError(f"{arguments.source} has no usable sample")
    written = []
    if arguments.report:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.report, found.summary())
        written.append(arguments.report)
    if drawn:
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        save_picture(contact_sheet(drawn), arguments.sheet)
        written.append(arguments.sheet)
    if written:
        arguments.console.result("\n".join(f"wrote {file}" for file in written), wrote=written)


def _add_crop(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where crops go")
    parser.add_argument("--overwrite", action="store_true", help="replace that folder")
    parser.add_argument(
        "--detector", default="uniface", help="uniface, insightface[:PACK] or landmarks:FILE (default: %(default)s)"
    )
    parser.add_argument("--size", type=positive_int, default=256, metavar="N", help="side in pixels (default: 256)")
    parser.add_argument(
        "--face-scale", type=float, default=0.78, help="1 is as tight as for face encoders (default: %(default)s)"
    )
    parser.add_argument("--min-score", type=float, default=0.5, help="of the detector (default: %(default)s)")
    parser.add_argument(
        "--min-size", type=float, default=12, help="pixels from eyes to mouth, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--max-outside", type=float, default=0.3, help="share of a crop beyond the picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max-faceless", type=int, default=-1, metavar="N", help="stop after so many (default: never)"
    )


def _crop(arguments: argparse.Namespace) -> None:
    from ..training.data.face_crops import crop_faces, make_finder

    finder = make_finder(arguments.detector, arguments.min_score)
    stream = open_source(arguments, need_text=False)
    names = ("size", "face_scale", "min_score", "min_size", "max_outside", "max_faceless", "overwrite")
    options = {name: getattr(arguments, name) for name in names}
    count, faceless = crop_faces(stream, arguments.output, finder, **options)
    lines = [
        *broken_lines(stream),
        f"{arguments.output}: {count} faces; {faceless.count} pictures without a usable one",
    ]
    fields = {"broken": stream.broken.count, "faces": count, "without_face": faceless.count}
    arguments.console.result("\n".join(lines), folder=arguments.output, **fields)


def _add_clean(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="has a folder for each split"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace these folders")
    parser.add_argument("--splits", default="train=1", metavar="NAME=SHARE,...", help="default: %(default)s")
    parser.add_argument(
        "--distance",
        type=int,
        default=16,
        metavar="BITS",
        help="near-duplicates differ in at most so many of 256 bits; -1 keeps them (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="of the division (default: %(default)s)")
    parser.add_argument(
        "--split-by",
        choices=("person", "picture"),
        default="person",
        help="what stays together; picture: a person may be in several splits (default: %(default)s)",
    )


def _clean(arguments: argparse.Namespace) -> None:
    from ..training.data.cleaning import clean, parse_splits

    splits = parse_splits(arguments.splits)
    stream = open_source(arguments, need_text=False)
    names = ("distance", "seed", "overwrite", "split_by")
    done = clean(stream, arguments.output, splits, **{name: getattr(arguments, name) for name in names})
    lines = [*broken_lines(stream), *(f"left out {name}: looks like {other}" for name, other in done.left_out[:10])]
    lines.append(f"{len(done.left_out)} near-duplicates left out")
    for name, count in done.pictures.items():
        lines.append(f"{arguments.output / name}: {count} pictures, {done.people[name]} known people")
    fields = {"left_out": done.left_out, "pictures": done.pictures, "people": done.people}
    arguments.console.result("\n".join(lines), folder=arguments.output, broken=stream.broken.count, **fields)


def _add_classifier(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where it goes")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="most faces to read (default: all)")
    parser.add_argument("--steps", type=positive_int, default=2000, metavar="N", help="default: %(default)s")
    parser.add_argument("--image-size", type=positive_int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=seed_int, default=0, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _classifier(arguments: argparse.Namespace) -> None:
    import shutil

    from ..training.data.attribute_classifier import LabelledFaces, train_classifier, useful_labels

    if (arguments.output / "metrics.json").exists():
        if not arguments.overwrite:
            raise ValueError(
                f"{arguments.output} holds a model: choose another folder, or replace it with --overwrite"
            )
        (arguments.output / "metrics.json").unlink()
        for old in arguments.output.glob("checkpoint-*"):
            shutil.rmtree(old)
    stream = open_source(arguments, need_text=False)
    faces = LabelledFaces(stream, arguments.image_size, arguments.limit)
    lines = broken_lines(stream)
    accuracy = train_classifier(faces, arguments.output, arguments.steps, seed=arguments.seed)
    width = max(map(len, accuracy))
    for name, entry in accuracy.items():
        lines.append(f"{name:{width}}  {entry['accuracy']:.3f}  (commonest value {entry['commonest']:.3f})")
    useful, count = useful_labels(accuracy), len(faces.images)
    lines.append(f"{count} faces; {len(useful)} of {len(accuracy)} labels are read better than by guessing")
    lines.append(f"wrote {arguments.output}")
    fields = {"faces": count, "broken": stream.broken.count, "accuracy": accuracy, "useful": sorted(useful)}
    arguments.console.result("\n".join(lines), folder=arguments.output, **fields)


def _add_caption(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSON lines, added to")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="an OpenAI-compatible server, .../v1")
    parser.add_argument("--vision-model", required=True, metavar="NAME", help="drafts and refines captions")
    parser.add_argument("--text-model", metavar="NAME", help="writes questions (default: the vision model)")
    parser.add_argument("--text-endpoint", metavar="URL", help="its server (default: the same)")
    parser.add_argument(
        "--classifier", type=Path, metavar="FOLDER", help="corrects drafts (default: the data set's own labels)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="least probability of its labels (default: %(default)s)"
    )
    parser.add_argument("--questions", type=int, default=8, metavar="N", help="for each face (default: %(default)s)")
    parser.add_argument("--prompts", default="1", metavar="VERSION", help="of the requests (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=4, metavar="N", help="faces at a time (default: 4)")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="to each server (default: no limit)")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=positive_int, default=1024, metavar="N", help="default: %(default)s")
    parser.add_argument("--attempts", type=positive_int, default=4, metavar="N", help="for each step (default: 4)")
    parser.add_argument("--max-failed", type=int, default=20, metavar="N", help="faces that may fail (default: 20)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="most faces (default: all)")


def _caption(arguments: argparse.Namespace) -> None:
    from ..training.chat_endpoint import ChatEndpoint
    from ..training.data.caption_writer import PROMPTS, CaptionWriter, classifier_labels, write_captions

    if arguments.prompts not in PROMPTS:
        raise ValueError(f"--prompts {arguments.prompts} is unknown, expected one of {', '.join(PROMPTS)}")
    stream = open_source(arguments, need_text=False)
    options = {
        "timeout": arguments.timeout,
        "max_tokens": arguments.max_tokens,
        "requests_per_minute": arguments.requests_per_minute,
        "max_retries": 2,  # quick failures; the writer waits longer between its own attempts
    }
    log = arguments.output.with_suffix(".answers.jsonl")
    vision = ChatEndpoint(arguments.endpoint, arguments.vision_model, log=log, **options)
    text = None
    if arguments.text_model or arguments.text_endpoint:
        # a log of its own: two writers of one file would mix their lines
        text_log = arguments.output.with_suffix(".questions.jsonl")
        url, name = arguments.text_endpoint or arguments.endpoint, arguments.text_model or arguments.vision_model
        text = ChatEndpoint(url, name, log=text_log, **options)
    writer = CaptionWriter(
        vision,
        text,
        classifier_labels(arguments.classifier, arguments.threshold) if arguments.classifier else None,
        PROMPTS[arguments.prompts],
        arguments.questions,
        arguments.attempts,
    )
    written, failed = write_captions(
        stream, arguments.output, writer, arguments.workers, arguments.limit, arguments.max_failed
    )
    lines = broken_lines(stream)
    if failed.count:
        lines.append(f"{failed.count} faces failed; run again to try them again")
    lines.append(f"{arguments.output}: {written} faces written now; requests and answers are in {log}")
    fields = {"broken": stream.broken.count, "failed": failed.count, "written": written, "log": log}
    arguments.console.result("\n".join(lines), file=arguments.output, **fields)


def _part(text: str) -> tuple[int, int]:
    rank, slash, size = text.partition("/")
    if not slash or not rank.isdigit() or not size.isdigit() or int(rank) >= int(size):
        raise argparse.ArgumentTypeError(f"{text!r} is no part, expected NUMBER/COUNT, 0/4 to 3/4")
    return int(rank), int(size)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add_model_arguments(parser)
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="R/N", help="this machine's part of the work")
    parser.add_argument(
        "--shard-size", type=positive_int, default=1000, metavar="N", help="pictures in a file (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="pictures at a time (default: %(default)s)"
    )
    parser.add_argument("--codes-only", action="store_true", help="leave out CLIP and face features")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made otherwise")


def _prepare(arguments: argparse.Namespace) -> None:
    from ..pipelines.files import read_json
    from ..training.data.features import fingerprints
    from ..training.data.prepare import prepare

    stream = open_source(arguments)
    pipe = load_pipeline(arguments)
    model = pipe.transformer.model
    made_with = {name: getattr(arguments, name) for name in ("source", "split", "config", "columns")}
    path = prepare(
        stream,
        arguments.output,
        model,
        pipe.processor.image_processor,
        made_with | {"weights": fingerprints(model)},
        part=arguments.part,
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        features=not arguments.codes_only,
        overwrite=arguments.overwrite,
    )
    manifest = read_json(path)
    rows, files = sum(shard["rows"] for shard in manifest["shards"]), len(manifest["shards"])
    lines = [*broken_lines(stream), f"{arguments.output}: {rows} pictures in {files} files"]
    fields = {"broken": stream.broken.count, "pictures": rows, "files": files}
    arguments.console.result("\n".join(lines), folder=arguments.output, **fields)


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=positive_int, required=True, metavar="N", help="number of faces")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="train",
        help="splits have different people (default: %(default)s)",
    )
    parser.add_argument("--size", type=positive_int, default=128, metavar="N", help="side in pixels (default: 128)")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the whole data set (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace faces that were made otherwise")


def _render(arguments: argparse.Namespace) -> None:
    arguments.console.stage(f"rendering {arguments.count} faces")
    from ..training.synthetic.rendered.dataset import render_faces

    names = ("split", "count", "seed", "size", "workers", "overwrite")
    paths = render_faces(arguments.out, **{name: getattr(arguments, name) for name in names})
    text = f"{arguments.out}: {arguments.count} faces in {len(paths)} files"
    arguments.console.result(text, folder=arguments.out, faces=arguments.count, files=len(paths))


# name -> summary, examples, arguments, what it does
COMMANDS: dict[str, tuple[str, str, Callable, Callable]] = {
    "sources": (
        "list the data sets that are known by name",
        "example:\n  unif2ace data sources\n",
        lambda parser: None,
        _sources,
    ),
    "inspect": (
        "count what a data set holds, find broken files, draw a contact sheet",
        """\
examples:
  unif2ace data inspect photos/
  unif2ace data inspect celeba:/data/celeba-hq --limit 1000 --sheet celeba.png --report celeba.json
""",
        _add_inspect,
        _inspect,
    ),
    "crop": (
        "find faces, turn them upright and cut them out",
        """\
examples:
  unif2ace data crop photos/ -o aligned/ --detector uniface
  unif2ace data crop celeba:/data/celeba -o aligned/ --detector landmarks:/data/celeba/list_landmarks_celeba.txt

A landmark file is JSON, {"a.jpg": [[x, y], five times]}, or a table as CelebA's: left eye, right eye (as seen in the
picture), nose, left and right corner of the mouth, in pixels. uniface: pip install ".[align]".
""",
        _add_crop,
        _crop,
    ),
    "clean": (
        "leave out near-duplicates, split by person",
        """\
examples:
  unif2ace data clean photos/ -o cleaned/
  unif2ace data clean celeba:/data/celeba -o cleaned/ --splits train=0.9,validation=0.05,test=0.05

Each split is a folder of pictures with metadata.jsonl. Near-duplicates are found by perceptual hash and a look at
both pictures over the whole data set, so none is left on the two sides of a split. A picture whose person is not known
is a person of its own.
""",
        _add_clean,
        _clean,
    ),
    "classifier": (
        "train a network that reads labels off faces",
        """\
example:
  unif2ace data classifier celebv-hq:/data/celebv-hq -o runs/classifier --steps 5000

A run that was cut off goes on from its last checkpoint when it is started again.
""",
        _add_classifier,
        _classifier,
    ),
    "caption": (
        "write captions and questions by large models behind an endpoint",
        """\
examples:
  unif2ace data caption photos/ -o photos/captions.jsonl --endpoint http://localhost:8000/v1 --vision-model my-vlm
  unif2ace data caption celebv-hq:/data/celebv-hq -o captions.jsonl --classifier runs/classifier \\
      --endpoint https://api.openai.com/v1 --vision-model gpt-4o --text-model gpt-4 --requests-per-minute 60

The key is read from OPENAI_API_KEY. Written beside a folder's pictures as captions.jsonl, the captions are read with
them: unif2ace data inspect photos/
""",
        _add_caption,
        _caption,
    ),
    "prepare": (
        "encode pictures once: parquet files with codes and features for training",
        """\
examples:
  unif2ace data prepare photos/ -o prepared/ --model runs/faces/final
  unif2ace data prepare celeba:/data/celeba-hq -o prepared/ --part 0/4

A run that was cut off goes on when it is started again. With --part, several machines share the work and the folder.
""",
        _add_prepare,
        _prepare,
    ),
    "render": (
        "render people of whom everything is known: an endless, labelled, licence-clean data set",
        """\
examples:
  unif2ace data render --count 1000 --out rendered/
  unif2ace data render --count 30000 --out rendered/ --workers 4
  unif2ace data render --count 1000 --out rendered/ --split test

A run that was cut off goes on when it is started again. `datasets.load_dataset("rendered")` reads the folder, and
so do the other commands: unif2ace data inspect rendered/. Needs pip install "unif2ace[synthetic]" (docs/rendered.md).
""",
        _add_render,
        _render,
    ),
}
