"""The suites `paper` and `custom`: any face data set, with captions, questions, attributes or none of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..chat_endpoint import ChatEndpoint
from ..data.language.captions import parse_caption
from ..data.records import FaceRecord
from ..data.sources import open_faces
from .degradations import DEGRADATIONS, degrade
from .experts import MAX_ROWS, face_rows, has_experts, measure_experts
from .extractors import Extractor, FaceFeatures, open_extractor
from .judge import UniF2aceJudge
from .metrics import (
    AnswerAccuracy,
    AttributeAccuracy,
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
from .statistics import SLICED_BY, slices_by
from .subject import Subject, picture_seed
from .suite import Part, Suite


DIVERSE_FACES, DIVERSE_PICTURES = 50, 4
ROBUSTNESS_QUESTIONS = 500
ANSWER_TOKENS = 64


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

    @cached_property
    def judge(self) -> UniF2aceJudge:
        """The attribute classifier."""
        return UniF2aceJudge.from_pretrained(self.classifier).eval().to(self.device)


class RecordsSuite(Suite):
    """
    Every metric that the records and the resources allow.

    Faces are generated from the first caption of each record, with each seed; scores are means over the seeds.
    Captions that are longer than the model reads are shortened by whole sentences for generation (how many is in the
    details), and scored as a whole.

    Args:
        subject ([`Subject`]): The checkpoint.
        records (`list[FaceRecord]`): The data set.
        source (`str`): What it is called in the settings.
        resources ([`Resources`]): See there.
        seeds (`list[int]`, *optional*), steps (`int`, *optional*), guidance (`float`, *optional*): Of generation.
        dataset_id (`str`, *optional*): Its repository on the Hub.

    Raises:
        ValueError: if there are no records.
    """

    name = "custom"
    parts = (
        "distribution",
        "clip_score",
        "vqa_score",
        "vlm_score",
        "descriptions",
        "conversations",
        "answers",
        "captions",
        "attributes",
        "identity",
        "diversity",
        "memorisation",
        "robustness",
        "experts",
    )
    on_request = ("experts",)

    def __init__(
        self,
        subject: Subject,
        records: Sequence[FaceRecord],
        source: str,
        resources: Resources,
        seeds: Sequence[int] = (0,),
        steps: int = 16,
        guidance: float = 4.0,
        dataset_id: str | None = None,
    ):
        if not len(records):
            raise ValueError(f"{source} has no records")
        self.subject, self.records, self.source, self.resources = subject, list(records), source, resources
        self.seeds, self.steps, self.guidance = list(seeds), steps, guidance
        self.dataset_id = dataset_id
        self.captioned = [record for record in self.records if record.captions]
        self.attributed = [record for record in self.records if record.attributes]
        self.asked = [(record, question) for record in self.records for question in record.questions]
        self._generated: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def settings(self) -> dict:
        resources = asdict(self.resources)
        for name in ("judge_log", "device"):  # they change no number
            resources.pop(name)
        return {
            "model": self.subject.name,
            "revision": self.subject.revision,
            "model_sha256": self.subject.sha256,
            "source": self.source,
            "count": len(self.records),
            "seeds": self.seeds,
            "steps": self.steps,
            "guidance": self.guidance,
            **resources,
        }

    def missing(self, part: str) -> str | None:
        needs = {
            "distribution": [self._no_captions, self._lacks("features", "--features")],
            "clip_score": [self._no_captions, self._lacks("clip_model", "--clip-model")],
            "vqa_score": [self._no_captions, self._lacks("vqa_models", "--vqa-models")],
            "vlm_score": [self._no_captions, self._lacks("judge_url", "--judge-url and --judge-model")],
            "descriptions": [self._no_captions, self._lacks("judge_url", "--judge-url and --judge-model")],
            "conversations": [self._no_questions, self._lacks("judge_url", "--judge-url and --judge-model")],
            "answers": [self._no_questions],
            "captions": [self._no_attributes],
            "attributes": [self._no_captions, self._no_attributes, self._lacks("classifier", "--classifier")],
            "identity": [self._no_captions, self._no_encoder],
            "diversity": [self._no_captions],
            "memorisation": [self._no_captions, self._no_encoder, self._lacks("training", "--training")],
            "robustness": [self._no_questions],
            "experts": [self._no_captions, self._no_experts],
        }
        return next((why for why in (check() for check in needs[part]) if why is not None), None)

    def _lacks(self, resource: str, argument: str) -> Callable[[], str | None]:
        return lambda: None if getattr(self.resources, resource) else f"give {argument}"

    def _no_captions(self) -> str | None:
        return None if len(self.captioned) > 1 else "fewer than two records have captions"

    def _no_questions(self) -> str | None:
        return None if self.asked else "no record has questions"

    def _no_attributes(self) -> str | None:
        return None if self.attributed else "no record has attributes"

    def _no_encoder(self) -> str | None:
        own = self.subject.pipe.transformer.model.face_encoder is not None
        return None if own or self.resources.identity else "the checkpoint has no face encoder: give --identity"

    def _no_experts(self) -> str | None:
        return None if has_experts(self.subject.pipe.transformer) else "the model has no experts"

    # Generated faces and what they are compared with

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

    def _part(self, records: Sequence[FaceRecord]) -> tuple[Part, dict[str, np.ndarray]]:
        slices = slices_by([_groups(record) for record in records], [*SLICED_BY, "race"])
        return Part([record.id or str(place) for place, record in enumerate(records)]), slices

    def _over_seeds(self, part: Part, slices: Mapping, metric: FaceMetric, prefix: str = "", **inputs) -> None:
        """A metric of generated faces, the mean over the seeds."""
        found = [metric.statistics(predictions=self.pictures(seed), **inputs) for seed in self.seeds]
        for name in found[0]:
            statistics = [of_seed[name] for of_seed in found]
            statistic = lambda weights, statistics=statistics: np.mean([s(weights) for s in statistics], axis=0)  # noqa: E731
            part.add(prefix + name, statistic, metric.better[name], slices)
        if metric.extras():
            part.details[prefix + type(metric).__name__] = metric.extras()

    # Parts: generation

    def measure_distribution(self) -> Part:
        """Distances between generated and real faces."""
        part, slices = self._part(self.captioned)
        extractor = open_extractor(self.resources.features, self.resources.device)
        real = extractor(self.originals)
        made = [extractor(self.pictures(seed)) for seed in self.seeds]
        statistics = [kernel_distance(of_seed, real) for of_seed in made]
        part.add("kernel_distance", lambda weights: np.mean([s(weights) for s in statistics], 0), "lower", slices)
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

    def measure_attributes(self) -> Part:
        """Whether generated faces show the attributes that their captions state."""
        records = [record for record in self.captioned if record.attributes]
        part, slices = self._part(self.captioned)
        stated = [
            {name: value for name, value in parse_caption(record.captions[0]).items() if name in record.attributes}
            for record in self.captioned
        ]
        inputs = {"references": stated, "originals": self.originals}
        self._over_seeds(part, slices, AttributeAccuracy(self.resources.judge), **inputs)
        part.details["records_with_attributes"] = len(records)
        return part

    def measure_identity(self) -> Part:
        """Whether generated faces look like the person described."""
        part, slices = self._part(self.captioned)
        self._over_seeds(part, slices, IdentitySimilarity(self.identity), references=self.originals)
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
        if self.resources.classifier:
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
    def answers(self) -> list[str]:
        """The answer to every question."""
        images = [record.image for record, _ in self.asked]
        return self.subject.answer(images, [question.question for _, question in self.asked], ANSWER_TOKENS)

    def _asked_part(self) -> tuple[Part, dict[str, np.ndarray]]:
        part, slices = self._part([record for record, _ in self.asked])
        part.items = [f"{item}?{place}" for place, item in enumerate(part.items)]
        return part, slices

    def measure_answers(self) -> Part:
        """Exact match of the answers."""
        part, slices = self._asked_part()
        right = [question.answer for _, question in self.asked]
        part.add_metric(AnswerAccuracy(), slices, predictions=self.answers, references=right)
        part.details["examples"] = [
            {"question": question.question, "answer": answer, "right": question.answer}
            for (_, question), answer in zip(self.asked[:20], self.answers, strict=False)
        ]
        return part

    def measure_conversations(self) -> Part:
        """The answers, rated by a judge."""
        part, slices = self._asked_part()
        metric = ConversationScore(self.resources.endpoint, repeats=self.resources.judge_repeats)
        inputs = {
            "references": [question.answer for _, question in self.asked],
            "questions": [question.question for _, question in self.asked],
        }
        part.add_metric(metric, slices, predictions=self.answers, **inputs)
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
        """What descriptions of the real faces state, beside the known attributes."""
        part, slices = self._part(self.attributed)
        texts = self.subject.describe([record.image for record in self.attributed])
        truths = [record.attributes for record in self.attributed]
        part.add_metric(CaptionAttributes(), slices, predictions=texts, references=truths)
        part.details["examples"] = texts[:8]
        return part

    def measure_robustness(self) -> Part:
        """The first questions again, about degraded pictures."""
        asked = self.asked[:ROBUSTNESS_QUESTIONS]
        part = Part([f"{record.id}?{place}" for place, (record, _) in enumerate(asked)])
        right = [question.answer for _, question in asked]
        for kind in ("none", *DEGRADATIONS):
            images = [record.image.convert("RGB") for record, _ in asked]
            if kind != "none":
                images = [degrade(image, kind, seed=place) for place, image in enumerate(images)]
            answers = self.subject.answer(images, [question.question for _, question in asked], ANSWER_TOKENS)
            statistic = AnswerAccuracy().statistics(predictions=answers, references=right)["accuracy"]
            part.add(f"accuracy, {kind.replace('_', ' ')}", statistic)
        part.details = {"severity": 2}
        return part

    def measure_experts(self) -> Part:
        """How often each expert is used, what it is worth, and whether it can learn."""
        records = self.captioned[:MAX_ROWS]
        turns = [[(question.question, question.answer) for question in record.questions] for record in records]
        rows = face_rows([record.image for record in records], self.texts[:MAX_ROWS], turns)
        return measure_experts(self.subject.pipe.transformer, self.subject.pipe.processor, rows)


class PaperSuite(RecordsSuite):
    """
    The metrics of UniF²ace's tables: FID, VQAScore and VLM-score of generated faces, Desc and Conv of descriptions and
    answers. The paper leaves open how many pictures, which Inception, which judge prompts: numbers are comparable with
    each other, not with the paper's. CLIPScore is added.
    """

    name = "paper"
    parts = ("distribution", "clip_score", "vqa_score", "vlm_score", "descriptions", "conversations")


def _groups(record: FaceRecord) -> dict[str, str]:
    """By what a record's results are sliced: its attributes, else the source's own labels."""
    return {name.lower(): value for name, value in record.labels.items()} | record.attributes


__all__ = ["PaperSuite", "RecordsSuite", "Resources"]
