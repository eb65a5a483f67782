"""
Measure a checkpoint on held-out painted faces: image tokenizer, generated faces, answers, captions.

    python benchmarks/quality.py                                    # the bundled checkpoint, all parts
    python benchmarks/quality.py --model runs/unif2ace/final --parts vqa,captions --count 100

Needs the render cache of the test split and the judge, an attribute classifier of original paintings:

    python -m unif2ace.training.data.painted --split train --count 30000 --out runs/painted --workers 2
    python -m unif2ace.training.data.painted --split test --count 1000 --out runs/painted --workers 2
    python -m unif2ace.training.train_encoders judge --config training/configs/encoders-faces.yaml

Writes a JSON file after each part (parts measured earlier on the same model with the same settings are kept), the same
as Markdown beside it, and a contact sheet of generated faces. Everything is seeded.
"""

import argparse
import json
import platform
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from tqdm import tqdm

from unif2ace import UniF2acePipeline, __version__
from unif2ace.pipelines.provenance_unif2ace import checkpoint_sha256
from unif2ace.training.data.captions import parse_caption, write_caption
from unif2ace.training.data.painted import attributes_of, load_rendered
from unif2ace.training.data.questions import write_questions
from unif2ace.training.data.visibility import assumed_visible
from unif2ace.training.evaluation.exact_visibility import exact_visibility
from unif2ace.training.evaluation.judge import UniF2aceJudge
from unif2ace.training.evaluation.painted import (
    code_use,
    psnr,
    score_answers,
    score_captions,
    score_generation,
    score_reconstructions,
    with_interval,
)
from unif2ace.training.evaluation.report import quality_markdown, summary_table
from unif2ace.training.files import replacing, write_text


PARTS = ("tokenizer", "generation", "vqa", "captions")
SPLIT = "test"
QUESTIONS_PER_FACE = 8
ANSWER_TOKENS = 48  # the longest right answer, a list of signs of emotion, is shorter
SHEET_FACES, SHEET_COLUMNS = 24, 8


class TestFaces:
    """The held-out faces with their words: what is asked for, asked about and to be described."""

    def __init__(self, options: argparse.Namespace):
        count = options.count
        self.pictures = np.array(load_rendered(options.data, SPLIT, count)[:count])
        self.attributes = [attributes_of(index, SPLIT) for index in range(count)]
        seen = exact_visibility(options.data, SPLIT, count, options.workers)
        described = [assumed_visible(attributes) for attributes in self.attributes]
        self.visible = seen
        # what a full sentence, written by the cautious rules, speaks of or leaves unsaid, and the picture shows
        self.told = [{name: a[name] and b[name] for name in a} for a, b in zip(seen, described, strict=True)]
        self.captions = [
            write_caption(attributes, visible, random.Random(f"caption-{index}"), coverage=1.0)
            for index, (attributes, visible) in enumerate(zip(self.attributes, described, strict=True))
        ]
        self.questions = [
            write_questions(attributes, told, random.Random(f"questions-{index}"), QUESTIONS_PER_FACE)
            for index, (attributes, told) in enumerate(zip(self.attributes, self.told, strict=True))
        ]

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.pictures]


def batches(count: int, size: int, description: str):
    """Slices of at most `size`, with a progress bar."""
    with tqdm(total=count, desc=description) as progress:
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield slice(start, stop)
            progress.update(stop - start)


@torch.no_grad()
def measure_tokenizer(pipe: UniF2acePipeline, faces: TestFaces, judge: UniF2aceJudge, options) -> dict:
    """Reconstruct the originals."""
    codes, pictures = [], []
    for batch in batches(len(faces.pictures), 50, "reconstructing"):
        pixels = torch.from_numpy(faces.pictures[batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
        codes.append(pipe.transformer.encode_images(pixels))
        decoded = pipe.transformer.decode_image_tokens(codes[-1])
        pictures.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
    pictures = np.concatenate(pictures)
    decibels = psnr(faces.pictures, pictures)
    count = len(decibels)
    return {
        "psnr": with_interval(lambda weights: weights @ decibels / count, count),
        "code_use": code_use(torch.cat(codes).numpy(), pipe.transformer.config.vq_config.codebook_size),
        **score_reconstructions(
            judge.predict(pictures), judge.predict(faces.pictures), faces.attributes, faces.visible
        ),
    }


def measure_generation(pipe: UniF2acePipeline, faces: TestFaces, judge: UniF2aceJudge, options) -> dict:
    """Generate a face for each full caption, once with each seed."""
    texts = [caption.text for caption in faces.captions]
    readings = []
    for seed in options.seeds:
        pictures = []
        for batch in batches(len(texts), options.batch_size, f"generating, seed {seed}"):
            # a generator for each face: pictures do not depend on the size of the batches
            generators = [
                torch.Generator().manual_seed(1_000_000 * seed + index) for index in range(batch.start, batch.stop)
            ]
            pictures += pipe(
                texts[batch],
                guidance_scale=options.guidance,
                num_inference_steps=options.steps,
                generator=generators,
                watermark=False,  # the model's own pixels are measured
            ).images
        if seed == options.seeds[0]:
            save_sheet(options.out.with_suffix(".png"), faces.pictures, pictures)
        readings.append(judge.predict(pictures))
    originals = judge.predict(faces.pictures)
    stated = [
        {name: told[name] for name in caption.attributes}
        for told, caption in zip(faces.told, faces.captions, strict=True)
    ]
    return {
        "stated": score_generation(readings, originals, faces.attributes, stated),
        "visible": score_generation(readings, originals, faces.attributes, faces.told),
    }


def save_sheet(path: Path, originals: np.ndarray, generated: list[Image.Image]) -> None:
    """Generated faces, each below the painting whose description it was made from, at twice their size."""
    side = generated[0].width * 2
    shown = min(SHEET_FACES, len(generated))
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, -(-shown // SHEET_COLUMNS) * 2 * side), "white")
    for number in range(shown):
        row, column = divmod(number, SHEET_COLUMNS)
        for below, picture in enumerate((Image.fromarray(originals[number]), generated[number])):
            sheet.paste(picture.resize((side, side)), (column * side, (2 * row + below) * side))
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def measure_vqa(pipe: UniF2acePipeline, faces: TestFaces, judge: UniF2aceJudge, options) -> dict:
    """Ask every question of its picture."""
    images = faces.images
    asked = [(row, question.question) for row, of_face in enumerate(faces.questions) for question in of_face]
    answers: list[list[str]] = [[] for _ in images]
    for batch in batches(len(asked), options.batch_size, "asking"):
        rows, texts = zip(*asked[batch], strict=True)
        given = pipe.answer([images[row] for row in rows], list(texts), max_new_tokens=ANSWER_TOKENS)
        for row, answer in zip(rows, given, strict=True):
            answers[row].append(answer)
    return score_answers(faces.questions, answers)


def measure_captions(pipe: UniF2acePipeline, faces: TestFaces, judge: UniF2aceJudge, options) -> dict:
    """Describe every picture."""
    images = faces.images
    texts: list[str] = []
    for batch in batches(len(images), options.batch_size, "describing"):
        texts += pipe.describe(images[batch])
    scores = score_captions(
        [parse_caption(text) for text in texts], faces.attributes, [caption.attributes for caption in faces.captions]
    )
    return scores | {"examples": texts[:8]}


MEASURES = dict(zip(PARTS, (measure_tokenizer, measure_generation, measure_vqa, measure_captions), strict=True))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure a checkpoint on held-out painted faces.",
        epilog="example: python benchmarks/quality.py --model runs/unif2ace/final --parts vqa,captions --count 100",
    )
    parser.add_argument("--model", default="bundled", help="a checkpoint's folder, or bundled (default: %(default)s)")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge/final"), help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/painted"), help="the render cache (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=500, help="faces, from the first on (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of generated faces (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s (default: all)")
    parser.add_argument("--batch-size", type=int, default=25, help="changes no result (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes for exact visibility (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("docs/quality.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    for name in ("count", "steps", "batch_size", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if not (options.judge / "config.json").is_file():
        parser.error(
            f"there is no judge in {options.judge}; train it with `python -m unif2ace.training.train_encoders judge "
            "--config training/configs/encoders-faces.yaml`"
        )
    if options.model != "bundled" and not Path(options.model).is_dir():
        parser.error(f"there is no folder {options.model}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parse_options(arguments)
    try:
        pipe = UniF2acePipeline.from_pretrained(None if options.model == "bundled" else options.model)
        faces = TestFaces(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = pipe.transformer.config.vq_config.resolution
    if faces.pictures.shape[1] != size:
        print(f"error: {options.data} has {faces.pictures.shape[1]}-pixel faces, the model {size}", file=sys.stderr)
        return 2
    pipe.set_progress_bar_config(disable=True)
    judge = UniF2aceJudge.from_pretrained(options.judge).eval()
    settings = {
        "model": "hub_card/unif2ace-faces" if options.model == "bundled" else options.model,
        "model_sha256": checkpoint_sha256(Path(pipe.config._name_or_path)),
        "judge_sha256": checkpoint_sha256(options.judge),
        "split": SPLIT,
        "count": options.count,
        "seeds": options.seeds,
        "steps": options.steps,
        "guidance": options.guidance,
    }
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if results.get("settings") != settings:
        results = {"settings": settings}
    results["versions"] = {
        "unif2ace": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
        "resvg-py": version("resvg-py"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start = time.monotonic()
        measured = MEASURES[part](pipe, faces, judge, options)
        results[part] = measured | {"seconds": round(time.monotonic() - start, 1)}
        write_text(options.out, json.dumps(results, indent=1) + "\n")
        write_text(options.out.with_suffix(".md"), quality_markdown(results))
    print(summary_table(results))
    print(f"\nwrote {options.out} and {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
