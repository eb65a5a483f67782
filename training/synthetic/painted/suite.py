"""
The suite `painted`: a checkpoint on held-out painted faces, whose every attribute is known.

It needs the render cache of the test split and the judge, an attribute classifier of original paintings:

    python -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 --out runs/painted --workers 2
    python -m unif2ace.training.synthetic.painted.dataset --split test --count 1000 --out runs/painted --workers 2
    python -m unif2ace.training.synthetic.train_encoders judge --config training/synthetic/configs/encoders-faces.yaml
"""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ....modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ...data.language.attributes import ATTRIBUTES, COARSE_ATTRIBUTES
from ...data.language.captions import Caption, parse_caption, write_caption
from ...data.language.questions import Question, write_questions
from ...data.language.visibility import assumed_visible
from ...evaluation.degradations import DEGRADATIONS, degrade
from ...evaluation.experts import MAX_ROWS, face_rows, has_experts, measure_experts
from ...evaluation.extractors import FaceFeatures, JudgeFeatures
from ...evaluation.judge import UniF2aceJudge
from ...evaluation.metrics import CodeEntropy, Diversity, IdentitySimilarity, Memorisation
from ...evaluation.metrics.distances import frechet_distance, kernel_distance
from ...evaluation.statistics import mean, ratio, slices_by, without_replicates
from ...evaluation.subject import Subject, picture_seed
from ...evaluation.suite import Part, Suite
from .dataset import attributes_of, load_rendered
from .exact_visibility import exact_visibility
from .measures import (
    cases_and_hits,
    code_use,
    psnr,
    score_answers,
    score_captions,
    score_generation,
    score_reconstructions,
)


SPLIT = "test"
QUESTIONS_PER_FACE = 8
ANSWER_TOKENS = 48  # the longest right answer, a list of signs of emotion, is shorter
DIVERSE_FACES, DIVERSE_PICTURES = 50, 4  # sentences, and pictures of each
ROBUSTNESS_FACES = 100  # every one is asked about once for each degradation
TRAINING_FACES = 10_000  # among which copies are looked for, at most
_RECONSTRUCTED_AT_ONCE = 50


class PaintedFaces:
    """
    The held-out faces with their words: what is asked for, asked about and to be described.

    Args:
        folder (`str` or `os.PathLike`): The render cache.
        count (`int`): Faces, from the first on.
        workers (`int`, *optional*, defaults to 1): Processes that find out what the pictures show.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` to choose settings by.

    Raises:
        FileNotFoundError: if the render cache does not have so many.
    """

    def __init__(self, folder: str | Path, count: int, workers: int = 1, split: str = SPLIT):
        self.folder, self.count, self.workers, self.split = Path(folder), count, workers, split
        self.pictures = np.array(load_rendered(folder, split, count)[:count])
        self.attributes = [attributes_of(index, split) for index in range(count)]

    @cached_property
    def visible(self) -> list[dict[str, bool]]:
        """Which attributes each picture shows, exactly."""
        return exact_visibility(self.folder, self.split, self.count, self.workers)

    @cached_property
    def described(self) -> list[dict[str, bool]]:
        """Which attributes full sentences speak of or leave unsaid, by the cautious rules."""
        return [assumed_visible(attributes) for attributes in self.attributes]

    @cached_property
    def told(self) -> list[dict[str, bool]]:
        """Those of them that the picture shows."""
        return [{name: a[name] and b[name] for name in a} for a, b in zip(self.visible, self.described, strict=True)]

    @cached_property
    def captions(self) -> list[Caption]:
        """A full sentence about each face."""
        return [
            write_caption(attributes, visible, random.Random(f"caption-{index}"), coverage=1.0)
            for index, (attributes, visible) in enumerate(zip(self.attributes, self.described, strict=True))
        ]

    @cached_property
    def questions(self) -> list[list[Question]]:
        """The questions about each face."""
        return [
            write_questions(attributes, told, random.Random(f"questions-{index}"), QUESTIONS_PER_FACE)
            for index, (attributes, told) in enumerate(zip(self.attributes, self.told, strict=True))
        ]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures for a model."""
        return [Image.fromarray(picture) for picture in self.pictures]

    @property
    def items(self) -> list[str]:
        """Their names."""
        return [f"painted-{self.split}-{index}" for index in range(self.count)]


class PaintedSuite(Suite):
    """
    The suite.

    Args:
        subject ([`Subject`]): The checkpoint.
        faces ([`PaintedFaces`]): The held-out faces.
        judge_folder (`str` or `os.PathLike`): Folder of the judge.
        seeds (`list[int]`, *optional*, defaults to `[0]`): Every sentence is drawn once with each.
        steps (`int`, *optional*, defaults to 16): Decoding steps.
        guidance (`float`, *optional*, defaults to 4.0): Guidance scale.

    Raises:
        ValueError: if the faces have another size than the checkpoint's pictures.
        FileNotFoundError: if there is no judge.
    """

    name = "painted"
    parts = (
        "tokenizer",
        "generation",
        "vqa",
        "captions",
        "distribution",
        "diversity",
        "identity",
        "memorisation",
        "robustness",
        "experts",
    )
    on_request = ("experts",)

    def __init__(
        self,
        subject: Subject,
        faces: PaintedFaces,
        judge_folder: str | Path,
        seeds: Sequence[int] = (0,),
        steps: int = 16,
        guidance: float = 4.0,
    ):
        judge_folder = Path(judge_folder)
        if not (judge_folder / "config.json").is_file():
            raise FileNotFoundError(
                f"there is no judge in {judge_folder}; train it with `python -m "
                "unif2ace.training.synthetic.train_encoders judge "
                "--config training/synthetic/configs/encoders-faces.yaml`"
            )
        size = faces.pictures.shape[1]
        if size != subject.resolution:
            raise ValueError(f"{faces.folder} has {size}-pixel faces, the model {subject.resolution}-pixel ones")
        self.subject, self.faces = subject, faces
        self.seeds, self.steps, self.guidance = list(seeds), steps, guidance
        self.judge = UniF2aceJudge.from_pretrained(judge_folder).eval()
        self._judge_sha256 = checkpoint_sha256(judge_folder)
        self._generated: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def settings(self) -> dict:
        return {
            "model": "hub_card/unif2ace-faces" if self.subject.name == "bundled" else self.subject.name,
            "revision": self.subject.revision,
            "model_sha256": self.subject.sha256,
            "judge_sha256": self._judge_sha256,
            "split": self.faces.split,
            "count": self.faces.count,
            "seeds": self.seeds,
            "steps": self.steps,
            "guidance": self.guidance,
        }

    @cached_property
    def slices(self) -> dict[str, np.ndarray]:
        """The faces by skin tone, age and gender presentation."""
        return slices_by(self.faces.attributes)

    @cached_property
    def read_in_originals(self) -> dict[str, list[str]]:
        """What the judge reads in the originals: the ceiling of what can be measured with it."""
        return self.judge.predict(self.faces.pictures)

    @cached_property
    def reconstructed(self) -> tuple[np.ndarray, np.ndarray]:
        """The originals through the image tokenizer: pictures and codes."""
        model, codes, pictures = self.subject.pipe.transformer, [], []
        starts = range(0, self.faces.count, _RECONSTRUCTED_AT_ONCE)
        for start in tqdm(starts, desc="reconstructing", disable=not self.subject.progress):
            batch = self.faces.pictures[start : start + _RECONSTRUCTED_AT_ONCE]
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).to(model.device, model.dtype) / 127.5 - 1
            codes.append(model.encode_images(pixels))
            decoded = model.decode_image_tokens(codes[-1]).float()
            pictures.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
        return np.concatenate(pictures), torch.cat(codes).cpu().numpy()

    def generated(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A face for each full sentence: pictures and codes."""
        if seed not in self._generated:
            self._generated[seed] = self.subject.generate(
                [caption.text for caption in self.faces.captions],
                [picture_seed(seed, index) for index in range(self.faces.count)],
                self.steps,
                self.guidance,
                f"generating, seed {seed}",
            )
        return self._generated[seed]

    def measure_tokenizer(self) -> Part:
        """Reconstruct the originals."""
        part = Part(self.faces.items)
        pictures, codes = self.reconstructed
        decibels = psnr(self.faces.pictures, pictures)
        read = self.judge.predict(pictures)
        scores = score_reconstructions(read, self.read_in_originals, self.faces.attributes, self.faces.visible)
        finite = np.where(np.isfinite(decibels), decibels, np.nan)
        measured = part.add("psnr", mean(finite), slices=self.slices)
        part.add_measured("judge_loss", scores["judge_loss"], better="lower")
        cases, right = cases_and_hits(read, self.faces.attributes, self.faces.visible)
        part.add("attribute_accuracy", ratio(right.sum(1), cases.sum(1)), slices=self.slices)
        use = code_use(codes, self.subject.pipe.transformer.config.vq_config.codebook_size)
        interval = {name: measured[name] for name in ("value", "low", "high")}
        part.details = without_replicates({"psnr": interval, "code_use": use, **scores})
        return part

    def measure_generation(self) -> Part:
        """Generate a face for each full sentence, once with each seed."""
        part, faces = Part(self.faces.items), self.faces
        readings = [self.judge.predict(self.generated(seed)[0]) for seed in self.seeds]
        stated = [
            {name: told[name] for name in caption.attributes}
            for told, caption in zip(faces.told, faces.captions, strict=True)
        ]
        for counted, suffix, key in ((stated, "", "stated"), (faces.told, "_with_unsaid", "visible")):
            scores = score_generation(readings, self.read_in_originals, faces.attributes, counted)
            for name in ("lift", "coarse_lift", "pooled_lift"):
                part.add_measured(name + suffix, scores[name])
            part.details[key] = without_replicates(scores)
            found = [cases_and_hits(read, faces.attributes, counted) for read in readings]
            cases, right = found[0][0], np.mean([right for _, right in found], axis=0)
            part.add("attribute_accuracy" + suffix, ratio(right.sum(1), cases.sum(1)), slices=self.slices)
            coarse = [place for place, name in enumerate(ATTRIBUTES) if name in COARSE_ATTRIBUTES]
            statistic = ratio(right[:, coarse].sum(1), cases[:, coarse].sum(1))
            part.add("coarse_attribute_accuracy" + suffix, statistic, slices=self.slices)
        return part

    def measure_vqa(self) -> Part:
        """Ask every question of its picture."""
        part, faces = Part(self.faces.items), self.faces
        scores, right, asked = self.answer(faces.images)
        part.add("accuracy", ratio(right, asked), slices=self.slices)
        part.add_measured("lift", scores["overall"]["lift"])
        for kind, score in scores["kinds"].items():
            part.add_measured(f"accuracy of {kind} questions", score["accuracy"])
        part.details = without_replicates(scores)
        return part

    def answer(self, images: Sequence[Image.Image]) -> tuple[dict, np.ndarray, np.ndarray]:
        """Ask about the first faces, as these pictures show them: scores, and of each face right answers and asked."""
        questions = self.faces.questions[: len(images)]
        asked = [(row, question) for row, of_face in enumerate(questions) for question in of_face]
        given = self.subject.answer(
            [images[row] for row, _ in asked],
            [question.question for _, question in asked],
            ANSWER_TOKENS,
            # explanations are the long answers: they are asked for together
            order=[(question.kind == "reasoning", len(question.question)) for _, question in asked],
        )
        answers: list[list[str]] = [[] for _ in questions]
        for (row, _), text in zip(asked, given, strict=True):
            answers[row].append(text)
        scores = score_answers(questions, answers)
        return scores, *scores.pop("per_picture")

    def measure_captions(self) -> Part:
        """Describe every picture."""
        part, faces = Part(self.faces.items), self.faces
        texts = self.subject.describe(faces.images)
        said = [parse_caption(text) for text in texts]
        references = [caption.attributes for caption in faces.captions]
        scores = score_captions(said, faces.attributes, references)
        told, right, wanted, found = scores.pop("per_picture")
        part.add("precision", ratio(right, told), slices=self.slices)
        part.add("recall", ratio(found, wanted), slices=self.slices)
        part.add("attributes_stated", mean(told), better=None)
        part.details = without_replicates(scores | {"examples": texts[:8]})
        return part

    def missing(self, part: str) -> str | None:
        if part in ("identity", "memorisation") and self.subject.pipe.transformer.model.face_encoder is None:
            return "the checkpoint has no face encoder"
        if part == "memorisation":
            try:
                load_rendered(self.faces.folder, "train")
            except FileNotFoundError as error:
                return str(error)
        if part == "experts" and not has_experts(self.subject.pipe.transformer):
            return "the model has no experts"
        if part in ("distribution", "identity", "experts") and self.faces.count < 2:
            return "one face has no distribution: raise the limit"
        return None

    def measure_distribution(self) -> Part:
        """Distances between all generated faces and all originals, in the judge's features."""
        part, features = Part(self.faces.items), JudgeFeatures(self.judge)
        real = features(self.faces.pictures)
        made = [features(self.generated(seed)[0]) for seed in self.seeds]
        of_seeds = [kernel_distance(of_seed, real) for of_seed in made]
        part.add("kernel_distance", lambda weights: np.mean([s(weights) for s in of_seeds], 0), "lower", self.slices)
        reconstructed = kernel_distance(features(self.reconstructed[0]), real)
        part.add("kernel_distance_of_reconstructions", reconstructed, "lower", self.slices)
        distances = [frechet_distance(of_seed, real) for of_seed in made]
        part.add_measured("frechet_distance", {"value": float(np.mean(distances))}, "lower")
        part.details = {"features": features.name, "frechet_distance_of_seeds": distances}
        return part

    def measure_diversity(self) -> Part:
        """Several pictures of the first sentences."""
        chosen, seeds = _fewer(self.faces, DIVERSE_FACES), range(self.seeds[0], self.seeds[0] + DIVERSE_PICTURES)
        texts = [self.faces.captions[index].text for index in chosen for _ in seeds]
        numbers = [picture_seed(seed, index) for index in chosen for seed in seeds]
        pictures, codes = self.subject.generate(texts, numbers, self.steps, self.guidance, "generating for diversity")
        part = Part([f"{self.faces.items[index]}#{seed}" for index in chosen for seed in seeds])
        part.add_metric(Diversity(self.judge), predictions=pictures, references=texts)
        part.add_metric(CodeEntropy(), predictions=codes, references=texts)
        return part

    def measure_identity(self) -> Part:
        """Whether the tokenizer keeps persons apart, and whether generated faces look like the person described."""
        part = Part(self.faces.items)
        metric = IdentitySimilarity(FaceFeatures(self.subject.pipe.transformer.model.face_encoder))
        for prefix, pictures in (("reconstructed_", self.reconstructed[0]), ("", self.generated(self.seeds[0])[0])):
            inputs = {"predictions": pictures, "references": self.faces.pictures}
            part.add_metric(metric, self.slices, prefix, **inputs)
        return part

    def measure_memorisation(self) -> Part:
        """The nearest training face of each generated one."""
        part = Part(self.faces.items)
        metric = Memorisation(FaceFeatures(self.subject.pipe.transformer.model.face_encoder))
        training = load_rendered(self.faces.folder, "train")[:TRAINING_FACES]
        inputs = {"training": np.asarray(training), "new": self.faces.pictures}
        part.add_metric(metric, self.slices, predictions=self.generated(self.seeds[0])[0], **inputs)
        return part

    def measure_robustness(self) -> Part:
        """The same questions about degraded pictures."""
        chosen = _fewer(self.faces, ROBUSTNESS_FACES)
        part, images = Part([self.faces.items[index] for index in chosen]), self.faces.images[: len(chosen)]
        for kind in ("none", *DEGRADATIONS):
            worse = images if kind == "none" else [degrade(image, kind, seed=i) for i, image in enumerate(images)]
            _, right, asked = self.answer(worse)
            part.add(f"accuracy, {kind.replace('_', ' ')}", ratio(right, asked))
        part.details = {"severity": 2, "questions": sum(map(len, self.faces.questions[: len(chosen)]))}
        return part

    def measure_experts(self) -> Part:
        """How often each expert is used, what it is worth, and whether it can learn."""
        chosen = _fewer(self.faces, MAX_ROWS)
        turns = [[(question.question, question.answer) for question in self.faces.questions[i]] for i in chosen]
        images = self.faces.images[: len(chosen)]
        rows = face_rows(images, [self.faces.captions[i].text for i in chosen], turns)
        return measure_experts(self.subject.pipe.transformer, self.subject.pipe.processor, rows)


def _fewer(faces: PaintedFaces, count: int) -> range:
    """The numbers of the first faces, at most `count`."""
    return range(min(count, faces.count))


__all__ = ["ANSWER_TOKENS", "PaintedFaces", "PaintedSuite", "QUESTIONS_PER_FACE", "SPLIT"]
