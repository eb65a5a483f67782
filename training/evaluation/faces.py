"""
The suites of faces: every metric that the records and the given models allow, part by part.

`painted` and `rendered` are worlds ([`~unif2ace.training.synthetic.worlds`]): each attribute of their faces is known,
and whether the picture shows it. `paper` and `custom` take any face data set, with captions, questions, attributes or
none of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ..chat_endpoint import ChatEndpoint
from ..data.language.attributes import ATTRIBUTES, COARSE_ATTRIBUTES
from ..data.language.captions import parse_caption
from ..data.language.questions import normalize_answer
from ..data.records import FaceRecord
from ..data.sources import open_faces
from .degradations import DEGRADATIONS, degrade
from .experts import MAX_ROWS, face_rows, has_experts, measure_experts
from .extractors import Extractor, FaceFeatures, open_extractor
from .judge import UniF2aceJudge
from .measures import (
    cases_and_hits,
    code_use,
    psnr,
    score_answers,
    score_captions,
    score_generation,
    score_reconstructions,
)
from .metrics import (
    CaptionAttributes,
    ClipScore,
    CodeEntropy,
    ConversationScore,
    DescriptionScore,
    Diversity,
    FaceMetric,
    IdentitySimilarity,
    Memorisation,
    VlmScore,
    VqaScore,
)
from .metrics.distances import frechet_distance, kernel_distance
from .statistics import SLICED_BY, Statistic, mean, ratio, slices_by, without_replicates
from .subject import Subject, picture_seed
from .suite import Part, Suite


DIVERSE_FACES, DIVERSE_PICTURES = 50, 4  # captions, and pictures of each
ROBUSTNESS_FACES = 100  # whose questions are asked once for each degradation
ANSWER_TOKENS = 64
_RECONSTRUCTED_AT_ONCE = 50
_TRAIN_JUDGE = (
    "python -m unif2ace.training.synthetic.train_encoders judge "
    "--config training/synthetic/configs/encoders-faces.yaml"
)

_WORLD = ("tokenizer", "generation", "vqa", "captions", "distribution", "diversity", "identity", "memorisation")
_RATED = ("clip_score", "vqa_score", "vlm_score", "descriptions", "conversations")
SUITES = {
    "painted": (*_WORLD, "robustness", "experts"),
    "rendered": (*_WORLD, "robustness", "experts"),
    # the metrics of UniF²ace's tables. The paper leaves open how many pictures, which Inception, which judge prompts:
    # numbers are comparable with each other, not with the paper's. CLIPScore is added.
    "paper": ("distribution", *_RATED),
    "custom": ("distribution", *_RATED, "answers", "captions", "attributes", "identity", "diversity", "memorisation")
    + ("robustness", "tokenizer", "experts"),
}
"""Suite -> its parts. `answers` and `vqa` are one part, and so are `attributes` and `generation`."""


@dataclass(frozen=True)
class Resources:
    """
    What measuring needs besides the checkpoint; parts whose resource is missing are left out with a word about it.

    Args:
        features (`str`, *optional*): Features of distances, see [`~unif2ace.training.evaluation.extractors`].
        identity (`str`, *optional*): A face encoder, `"face:FOLDER"`; the checkpoint's own when not given.
        clip_model (`str`, *optional*): Model of the CLIPScore.
        long_text (`str`, *optional*, defaults to `"sentences"`): See [`ClipScore`].
        vqa_models (`tuple[str, ...]`, *optional*): Models of the VQAScore.
        classifier (`str`, *optional*): Folder of an attribute classifier for pictures of this kind.
        judge_url (`str`, *optional*), judge_model (`str`, *optional*): An OpenAI-compatible server and its model.
        judge_repeats (`int`, *optional*, defaults to 3): Ratings of each item.
        judge_log (`str`, *optional*): File that keeps the judge's answers.
        training (`str`, *optional*): The training data, for memorisation; as `source`.
        device (`str`, *optional*, defaults to `"cpu"`): Where all these run.
    """

    features: str | None = None
    identity: str | None = None
    clip_model: str | None = None
    long_text: str = "sentences"
    vqa_models: tuple[str, ...] = ()
    classifier: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_repeats: int = 3
    judge_log: str | None = None
    training: str | None = None
    device: str = "cpu"

    @cached_property
    def endpoint(self) -> ChatEndpoint:
        """The judge."""
        return ChatEndpoint(self.judge_url, self.judge_model, log=self.judge_log)

    @property
    def has_classifier(self) -> bool:
        """Whether the folder of the classifier is given and is there."""
        return self.classifier is not None and (Path(self.classifier) / "config.json").is_file()

    @cached_property
    def judge(self) -> UniF2aceJudge:
        """The attribute classifier."""
        return UniF2aceJudge.from_pretrained(self.classifier).eval().to(self.device)


class FaceSuite(Suite):
    """
    Every metric that the records and the resources allow.

    Faces are generated from the first caption of each record, with each seed; scores are means over the seeds.
    Captions that are longer than the model reads are shortened by whole sentences for generation (how many is in the
    details), and scored as a whole. Where records say what their picture shows (`visible`), only that counts.

    Args:
        subject ([`Subject`]): The checkpoint.
        records (`list[FaceRecord]`): The faces.
        source (`str`): What they are called in the settings.
        resources ([`Resources`]): See there.
        name (`str`, *optional*, defaults to `"custom"`): One of [`SUITES`].
        seeds (`list[int]`, *optional*), steps (`int`, *optional*), guidance (`float`, *optional*): Of generation.
        dataset_id (`str`, *optional*): Their repository on the Hub.

    Raises:
        ValueError: if there are no records.
    """

    on_request = ("experts",)

    def __init__(
        self,
        subject: Subject,
        records: Sequence[FaceRecord],
        source: str,
        resources: Resources,
        name: str = "custom",
        seeds: Sequence[int] = (0,),
        steps: int = 16,
        guidance: float = 4.0,
        dataset_id: str | None = None,
    ):
        if not len(records):
            raise ValueError(f"{source} has no records")
        self.name, self.parts = name, SUITES[name]
        self.subject, self.records, self.source, self.resources = subject, list(records), source, resources
        self.seeds, self.steps, self.guidance = list(seeds), steps, guidance
        self.dataset_id = dataset_id
        self.captioned = [record for record in self.records if record.captions]
        self.attributed = [record for record in self.records if record.attributes]
        self.asked = [record for record in self.records if record.questions]
        self._generated: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def settings(self) -> dict:
        resources = asdict(self.resources)
        for name in ("judge_log", "device"):  # they change no number
            resources.pop(name)
        classifier = self.resources.classifier if self.resources.has_classifier else None
        return {
            "model": self.subject.name,
            "revision": self.subject.revision,
            "model_sha256": self.subject.sha256,
            "judge_sha256": checkpoint_sha256(classifier) if classifier else None,
            "source": self.source,
            "count": len(self.records),
            "seeds": self.seeds,
            "steps": self.steps,
            "guidance": self.guidance,
            **resources,
        }

    def missing(self, part: str) -> str | None:
        captions = "fewer than two records have captions" if len(self.captioned) < 2 else None
        questions = "no record has questions" if not self.asked else None
        attributes = "no record has attributes" if not self.attributed else None
        judge = self._lacks("judge_url", "--judge-url and --judge-model")
        own = self.subject.pipe.transformer.model.face_encoder is not None
        encoder = None if own or self.resources.identity else "the checkpoint has no face encoder: give --identity"
        experts = None if has_experts(self.subject.pipe.transformer) else "the model has no experts"
        classifier = self._lacks("classifier", "--classifier")
        if classifier is None and not self.resources.has_classifier:
            classifier = f"there is no classifier in {self.resources.classifier}: `{_TRAIN_JUDGE}` trains one"
        generated = [captions, attributes, classifier]
        needs = {
            "distribution": [captions, self._lacks("features", "--features")],
            "clip_score": [captions, self._lacks("clip_model", "--clip-model")],
            "vqa_score": [captions, self._lacks("vqa_models", "--vqa-models")],
            "vlm_score": [captions, judge],
            "descriptions": [captions, judge],
            "conversations": [questions, judge],
            "answers": [questions],
            "vqa": [questions],
            "captions": [attributes],
            "attributes": generated,
            "generation": generated,
            "identity": [captions, encoder],
            "diversity": [captions],
            "memorisation": [captions, encoder, self._lacks("training", "--training")],
            "robustness": [questions],
            "experts": [captions, experts],
        }
        return next((why for why in needs.get(part, ()) if why is not None), None)

    def _lacks(self, resource: str, argument: str) -> str | None:
        return None if getattr(self.resources, resource) else f"give {argument}"

    # The faces and what is made of them

    @cached_property
    def texts(self) -> list[str]:
        """What faces are generated from."""
        return [self.subject.fit(record.captions[0]) for record in self.captioned]

    @property
    def references(self) -> list[str]:
        """Whole captions."""
        return [record.captions[0] for record in self.captioned]

    @cached_property
    def originals(self) -> list[Image.Image]:
        """The real face of each caption."""
        return [record.image.convert("RGB") for record in self.captioned]

    def generated(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A face for each caption: pictures and codes."""
        if seed not in self._generated:
            seeds = [picture_seed(seed, index) for index in range(len(self.texts))]
            made = self.subject.generate(self.texts, seeds, self.steps, self.guidance, f"generating, seed {seed}")
            self._generated[seed] = made
        return self._generated[seed]

    def pictures(self, seed: int) -> list[Image.Image]:
        """The same as pictures of PIL."""
        return [Image.fromarray(picture) for picture in self.generated(seed)[0]]

    @cached_property
    def identity(self) -> Extractor:
        """The face encoder."""
        if self.resources.identity is not None:
            return open_extractor(self.resources.identity, self.resources.device)
        return FaceFeatures(self.subject.pipe.transformer.model.face_encoder, name="face: the checkpoint's own")

    def reconstructed(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures as the image tokenizer gets them, as it gives them back, and their codes."""
        model, process = self.subject.pipe.transformer, self.subject.pipe.processor.image_processor
        originals, decoded, codes = [], [], []
        for start in tqdm(
            range(0, len(images), _RECONSTRUCTED_AT_ONCE), desc="reconstructing", disable=not self.subject.progress
        ):
            batch = list(images[start : start + _RECONSTRUCTED_AT_ONCE])
            pixels = process(batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
            codes.append(model.encode_images(pixels))
            originals.append(_as_bytes(pixels.permute(0, 2, 3, 1)))
            decoded.append(_as_bytes(model.decode_image_tokens(codes[-1])))
        return np.concatenate(originals), np.concatenate(decoded), torch.cat(codes).cpu().numpy()

    def _part(self, records: Sequence[FaceRecord]) -> tuple[Part, dict[str, np.ndarray]]:
        slices = slices_by([_groups(record) for record in records], [*SLICED_BY, "race"])
        return Part([record.id or str(place) for place, record in enumerate(records)]), slices

    def _over_seeds(self, part: Part, slices: Mapping, metric: FaceMetric, prefix: str = "", **inputs) -> None:
        """A metric of generated faces, the mean over the seeds."""
        found = [metric.statistics(predictions=self.pictures(seed), **inputs) for seed in self.seeds]
        for name in found[0]:
            part.add(prefix + name, _mean_of([of_seed[name] for of_seed in found]), metric.better[name], slices)
        if metric.extras():
            part.details[prefix + type(metric).__name__] = metric.extras()

    # Parts: pictures

    def measure_tokenizer(self) -> Part:
        """Reconstruct the pictures: PSNR, codes in use, and what the classifier still reads."""
        part, slices = self._part(self.records)
        originals, pictures, codes = self.reconstructed([record.image for record in self.records])
        decibels = psnr(originals, pictures)
        part.add("psnr", mean(np.where(np.isfinite(decibels), decibels, np.nan)), slices=slices)
        part.details["code_use"] = code_use(codes, self.subject.pipe.transformer.config.vq_config.codebook_size)
        if self.resources.has_classifier and self.attributed:
            shown = list(map(shown_in, self.records))
            read, before = (self.resources.judge.predict(faces) for faces in (pictures, originals))
            scores = score_reconstructions(read, before, shown)
            part.add_measured("judge_loss", scores.pop("judge_loss"), better="lower")
            cases, right = cases_and_hits(read, shown)
            part.add("attribute_accuracy", ratio(right.sum(1), cases.sum(1)), slices=slices)
            part.details |= scores
        return part

    def measure_generation(self) -> Part:
        """Whether generated faces show what their captions state, as the classifier reads them."""
        part, slices = self._part(self.captioned)
        readings = [self.resources.judge.predict(self.generated(seed)[0]) for seed in self.seeds]
        on_originals = self.resources.judge.predict(self.originals)
        counted = {"": ("stated", list(map(stated_in, self.captioned)))}
        if all(record.visible for record in self.captioned):  # else nobody knows what goes without saying
            counted["_with_unsaid"] = ("visible", list(map(shown_in, self.captioned)))
        coarse = [place for place, name in enumerate(ATTRIBUTES) if name in COARSE_ATTRIBUTES]
        for suffix, (kind, asked) in counted.items():
            scores = score_generation(readings, on_originals, asked)
            for name in ("lift", "coarse_lift", "pooled_lift"):
                part.add_measured(name + suffix, scores[name])
            part.details[kind] = without_replicates(scores)
            found = [cases_and_hits(read, asked) for read in readings]
            cases, right = found[0][0], np.mean([right for _, right in found], axis=0)
            part.add("attribute_accuracy" + suffix, ratio(right.sum(1), cases.sum(1)), slices=slices)
            statistic = ratio(right[:, coarse].sum(1), cases[:, coarse].sum(1))
            part.add("coarse_attribute_accuracy" + suffix, statistic, slices=slices)
            best = cases_and_hits(on_originals, asked)[1]
            part.add("ceiling" + suffix, ratio(best.sum(1), cases.sum(1)), None)
        return part

    measure_attributes = measure_generation

    def measure_distribution(self) -> Part:
        """Distances of generated and of reconstructed faces from real ones."""
        part, slices = self._part(self.captioned)
        extractor = open_extractor(self.resources.features, self.resources.device)
        real = extractor(self.originals)
        made = [extractor(self.pictures(seed)) for seed in self.seeds]
        statistic = _mean_of([kernel_distance(of_seed, real) for of_seed in made])
        part.add("kernel_distance", statistic, "lower", slices)
        originals, reconstructed, _ = self.reconstructed(self.originals)
        statistic = kernel_distance(extractor(reconstructed), extractor(originals))
        part.add("kernel_distance_of_reconstructions", statistic, "lower", slices)
        distances = [frechet_distance(of_seed, real) for of_seed in made]
        part.add_measured("frechet_distance", {"value": float(np.mean(distances))}, "lower")
        shortened = sum(text != whole for text, whole in zip(self.texts, self.references, strict=True))
        part.details = {"features": extractor.name, "frechet_distance_of_seeds": distances}
        part.details["shortened_captions"] = shortened
        return part

    def measure_clip_score(self) -> Part:
        """CLIPScore of generated faces with their captions."""
        part, slices = self._part(self.captioned)
        resources = self.resources
        metric = ClipScore(resources.clip_model, long_text=resources.long_text, device=resources.device)
        self._over_seeds(part, slices, metric, references=self.references)
        return part

    def measure_vqa_score(self) -> Part:
        """VQAScore of generated faces with their captions, by each model."""
        part, slices = self._part(self.captioned)
        for model in self.resources.vqa_models:
            metric = VqaScore(model, device=self.resources.device)
            self._over_seeds(part, slices, metric, prefix=f"{Path(model).name} ", references=self.references)
        return part

    def measure_vlm_score(self) -> Part:
        """Generated faces, rated by a judge that sees."""
        part, slices = self._part(self.captioned)
        metric = VlmScore(self.resources.endpoint, repeats=self.resources.judge_repeats)
        self._over_seeds(part, slices, metric, references=self.references)
        return part

    def measure_identity(self) -> Part:
        """Whether generated faces look like the person described, and whether the tokenizer keeps persons apart."""
        part, slices = self._part(self.captioned)
        metric = IdentitySimilarity(self.identity)
        originals, reconstructed, _ = self.reconstructed(self.originals)
        inputs = {"predictions": reconstructed, "references": originals}
        part.add_metric(metric, slices, "reconstructed_", **inputs)
        self._over_seeds(part, slices, metric, references=self.originals)
        return part

    def measure_diversity(self) -> Part:
        """Several faces of the first captions."""
        texts = self.texts[:DIVERSE_FACES]
        prompts = [text for text in texts for _ in range(DIVERSE_PICTURES)]
        seeds = [
            picture_seed(self.seeds[0] + i, place) for place in range(len(texts)) for i in range(DIVERSE_PICTURES)
        ]
        arguments = (prompts, seeds, self.steps, self.guidance, "generating for diversity")
        pictures, codes = self.subject.generate(*arguments)
        part = Part([f"{place}#{seed}" for place, seed in enumerate(seeds)])
        part.add_metric(CodeEntropy(), predictions=codes, references=prompts)
        if self.resources.has_classifier:
            part.add_metric(Diversity(self.resources.judge), predictions=pictures, references=prompts)
        return part

    def measure_memorisation(self) -> Part:
        """The nearest training face of each generated one, beside that of each real one."""
        part, slices = self._part(self.captioned)
        training = [record.image for record in open_faces(self.resources.training, need_text=False)]
        inputs = {"training": training, "new": self.originals}
        part.add_metric(Memorisation(self.identity), slices, predictions=self.pictures(self.seeds[0]), **inputs)
        return part

    # Parts: understanding

    @cached_property
    def answers(self) -> list[list[str]]:
        """The answers to all questions about each face."""
        return self.ask(self.asked, [record.image for record in self.asked])

    def ask(self, records: Sequence[FaceRecord], images: Sequence[Image.Image]) -> list[list[str]]:
        """Ask the questions about faces, as these pictures show them."""
        pairs = [(row, question) for row, record in enumerate(records) for question in record.questions]
        given = self.subject.answer(
            [images[row] for row, _ in pairs],
            [question.question for _, question in pairs],
            ANSWER_TOKENS,
            # explanations are the long answers: they are asked for together
            order=[(question.kind == "reasoning", len(question.question)) for _, question in pairs],
        )
        answers: list[list[str]] = [[] for _ in records]
        for (row, _), text in zip(pairs, given, strict=True):
            answers[row].append(text)
        return answers

    def measure_vqa(self) -> Part:
        """Exact match of the answers, also beside the commonest answer and by kind of question."""
        part, slices = self._part(self.asked)
        questions = [record.questions for record in self.asked]
        scores = score_answers(questions, self.answers)
        right, asked = scores.pop("per_picture")
        part.add("accuracy", ratio(right, asked), slices=slices)
        part.add_measured("lift", scores["overall"]["lift"])
        begun = [
            sum(_words(answer).startswith(_words(q.answer)) for q, answer in zip(of_face, given, strict=True))
            for of_face, given in zip(questions, self.answers, strict=True)
        ]
        part.add("starts_right", ratio(begun, asked))
        for kind, score in scores["kinds"].items():
            part.add_measured(f"accuracy of {kind} questions", score["accuracy"])
        part.details = without_replicates(scores)
        part.details["examples"] = [
            {"question": question.question, "answer": answer, "right": question.answer}
            for question, answer in zip(questions[0], self.answers[0], strict=True)
        ]
        return part

    measure_answers = measure_vqa

    def measure_conversations(self) -> Part:
        """The answers, rated by a judge."""
        pairs = [(record, question) for record in self.asked for question in record.questions]
        part, slices = self._part([record for record, _ in pairs])
        part.items = [f"{item}?{place}" for place, item in enumerate(part.items)]
        metric = ConversationScore(self.resources.endpoint, repeats=self.resources.judge_repeats)
        inputs = {
            "references": [question.answer for _, question in pairs],
            "questions": [question.question for _, question in pairs],
        }
        given = [answer for of_face in self.answers for answer in of_face]
        part.add_metric(metric, slices, predictions=given, **inputs)
        return part

    def measure_descriptions(self) -> Part:
        """Descriptions of the real faces, rated by a judge beside the captions."""
        part, slices = self._part(self.captioned)
        texts = self.subject.describe(self.originals)
        metric = DescriptionScore(self.resources.endpoint, repeats=self.resources.judge_repeats)
        part.add_metric(metric, slices, predictions=texts, references=self.references)
        part.details["examples"] = texts[:8]
        return part

    def measure_captions(self) -> Part:
        """
        What descriptions of the real faces state, beside the known attributes: of a world's faces those that their
        own caption states are wanted, of others all.
        """
        part, slices = self._part(self.attributed)
        texts = self.subject.describe([record.image for record in self.attributed])
        truths = [record.attributes for record in self.attributed]
        wanted = [
            [n for n in parse_caption(record.captions[0]) if n in record.attributes]
            if record.visible and record.captions
            else list(record.attributes)
            for record in self.attributed
        ]
        part.add_metric(CaptionAttributes(), slices, predictions=texts, references=truths, wanted=wanted)
        rows = score_captions([parse_caption(text) for text in texts], truths, wanted)
        part.details = {"attributes": rows, "reference_facts": float(np.mean(list(map(len, wanted))))}
        part.details["examples"] = texts[:8]
        return part

    def measure_robustness(self) -> Part:
        """The first faces' questions again, about degraded pictures."""
        records = self.asked[:ROBUSTNESS_FACES]
        part, _ = self._part(records)
        images, questions = [record.image.convert("RGB") for record in records], [r.questions for r in records]
        for kind in ("none", *DEGRADATIONS):
            worse = images if kind == "none" else [degrade(image, kind, seed=i) for i, image in enumerate(images)]
            scores = score_answers(questions, self.ask(records, worse))
            part.add(f"accuracy, {kind.replace('_', ' ')}", ratio(*scores["per_picture"]))
        part.details = {"severity": 2, "questions": sum(map(len, questions))}
        return part

    def measure_experts(self) -> Part:
        """How often each expert is used, what it is worth, and whether it can learn."""
        records = self.captioned[:MAX_ROWS]
        turns = [[(question.question, question.answer) for question in record.questions] for record in records]
        rows = face_rows([record.image for record in records], self.texts[:MAX_ROWS], turns)
        return measure_experts(self.subject.pipe.transformer, self.subject.pipe.processor, rows)


def _as_bytes(pixels: torch.Tensor) -> np.ndarray:
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def _words(text: str) -> str:
    return f"{normalize_answer(text)} "


def shown_in(record: FaceRecord) -> dict[str, str]:
    """Its known attributes but for those that the picture is known to hide."""
    return {name: value for name, value in record.attributes.items() if record.visible.get(name, True)}


def stated_in(record: FaceRecord) -> dict[str, str]:
    """What its first caption states of them."""
    shown = shown_in(record)
    return {name: value for name, value in parse_caption(record.captions[0]).items() if name in shown}


def _groups(record: FaceRecord) -> dict[str, str]:
    """By what a record's results are sliced: its attributes, else the source's own labels."""
    return {name.lower(): value for name, value in record.labels.items()} | record.attributes


__all__ = ["SUITES", "FaceSuite", "Resources", "shown_in", "stated_in"]
