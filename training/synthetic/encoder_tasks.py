"""What `train_encoders` trains: for each small network its data, its loss and its evaluation."""

import random
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionModel

from ...modeling_unif2ace.configuration_unif2ace import UniF2aceFaceEncoderConfig
from ...modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from ...modeling_unif2ace.presets_unif2ace import get_preset
from ..data.language.captions import write_caption
from ..evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig, attribute_accuracy, attribute_loss
from ..part_trainer import PartTask
from .faces import Faces, to_pixel_values


def augment(pictures: np.ndarray, rng: np.random.Generator, shift: int = 2, noise: float = 0.02) -> torch.Tensor:
    """
    Shift each picture by up to `shift` pixels and add noise. Never mirrored: left and right are attributes.

    Args:
        pictures (`np.ndarray` of uint8 and shape `(batch_size, side, side, 3)`): RGB.
        rng (`np.random.Generator`): Source of randomness.
        shift (`int`, *optional*, defaults to 2): Largest shift, in pixels; the border is repeated.
        noise (`float`, *optional*, defaults to 0.02): Standard deviation, in units of the [-1, 1] range.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 3, side, side)` in about [-1, 1].
    """
    side = pictures.shape[1]
    padded = np.pad(pictures, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * shift + 1, (len(pictures), 2))
    crops = [picture[y : y + side, x : x + side] for picture, (y, x) in zip(padded, corners, strict=True)]
    pixels = to_pixel_values(np.stack(crops))
    return pixels + noise * torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))


def fitted(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures (batch_size, 3, side, side) at the size that an encoder reads, as the model brings them to it."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)


class FacesTask(PartTask):
    """A task on the faces of a folder, those that are there now and those that appear while it trains."""

    def __init__(self, config: dict, settings: dict):
        self.settings = settings
        self.folder, self.half = settings.get("data", config.get("data")), settings.get("half")
        self.faces = Faces(self.folder, "train", settings.get("at_least", 1), self.half)

    def reload(self) -> None:
        self.faces.reload()

    @cached_property
    def held_out(self) -> Faces:
        """The validation split."""
        return Faces(self.folder, "validation", half=self.half)

    def draw(self, rng: np.random.Generator, batch_size: int) -> tuple[np.ndarray, torch.Tensor]:
        """Numbers and augmented pictures of a batch of different training faces."""
        numbers = rng.choice(len(self.faces), batch_size, replace=False)
        return numbers, augment(self.faces.pictures(numbers), rng).to(self.device)


class JudgeTask(FacesTask):
    """Cross-entropy on the visible attributes."""

    def __init__(self, config: dict, settings: dict):
        super().__init__(config, settings)
        labels = self.faces.labels
        shape = {"attribute_names": list(labels), "attribute_values": list(labels.values())}
        shape |= {"image_size": self.faces.side} | settings.get("model", {})
        self.model = UniF2aceJudge(UniF2aceJudgeConfig(**shape))
        self.model.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.trained = self.model

    def loss(self, rng, batch_size, progress):
        numbers, pixels = self.draw(rng, batch_size)
        targets = self.faces.targets(numbers, self.model.config.labels).to(self.device)
        loss = attribute_loss(self.model(pixels.contiguous(memory_format=torch.channels_last)).logits, targets)
        return loss, {"attribute_loss": loss.item()}

    def evaluate(self) -> dict:
        """Accuracy of each attribute where it is visible, and of always guessing its most frequent value."""
        faces = self.held_out
        accuracy = attribute_accuracy(self.model.predict(faces.pictures()), faces.attributes, faces.visible)
        majority = {}
        for name in accuracy:
            values = [face[name] for face, seen in zip(faces.attributes, faces.visible, strict=True) if seen[name]]
            majority[name] = max(values.count(value) for value in set(values)) / len(values)
        return {
            "mean_accuracy": float(np.mean(list(accuracy.values()))),
            "mean_majority": float(np.mean(list(majority.values()))),
            "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
            "majority": {name: round(value, 4) for name, value in majority.items()},
        }


class PatchProbe(nn.Module):
    """
    Heads on CLIP's patch states that only training has: they make the states carry the attributes.

    Each attribute has a query that pools the patches by attention; a linear map imitates the judge's feature map,
    which has one place for each patch.
    """

    def __init__(self, hidden_size: int, labels: dict[str, list[str]], teacher_channels: int):
        super().__init__()
        self.labels = labels
        self.queries = nn.Parameter(torch.randn(len(labels), hidden_size) * hidden_size**-0.5)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, len(values)) for values in labels.values())
        self.imitation = nn.Linear(hidden_size, teacher_channels)
        self.teacher_norm = nn.BatchNorm1d(teacher_channels, affine=False)

    def attributes(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each attribute from patch states (batch_size, patches, hidden_size)."""
        patches = F.layer_norm(patches, patches.shape[-1:])
        pooled = (patches @ self.queries.T).softmax(dim=1).transpose(1, 2) @ patches
        heads = zip(self.labels, self.classifiers, pooled.unbind(1), strict=True)
        return {name: head(states) for name, head, states in heads}

    def imitation_loss(self, patches: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
        """Mean squared error to the teacher's standardised feature map (batch_size, channels, side, side)."""
        target = self.teacher_norm(F.adaptive_avg_pool2d(teacher_map, int(patches.shape[1] ** 0.5)).flatten(2))
        return F.mse_loss(self.imitation(F.layer_norm(patches, patches.shape[-1:])), target.transpose(1, 2))


class ClipTask(FacesTask):
    """Contrastive learning on pictures and captions, with probes that keep the attributes in the patch states."""

    def __init__(self, config: dict, settings: dict):
        super().__init__(config, settings)
        self.tokenizer = AutoTokenizer.from_pretrained(config["text_tokenizer"], padding_side="right")
        self.teacher = UniF2aceJudge.from_pretrained(settings["judge"]).eval().requires_grad_(False)
        self.model = CLIPModel(self._build_config(config, settings))
        if settings.get("initial"):  # a trained vision tower; the text tower, which no model keeps, begins afresh
            tower = CLIPVisionModel.from_pretrained(settings["initial"])
            self.model.vision_model.load_state_dict(tower.state_dict())
        hidden_size = self.model.config.vision_config.hidden_size
        self.image_size = self.model.config.vision_config.image_size
        self.probe = PatchProbe(hidden_size, self.teacher.config.labels, self.teacher.config.stage_channels[-1])
        self.trained = nn.ModuleDict({"model": self.model, "probe": self.probe})

    def _build_config(self, config: dict, settings: dict) -> CLIPConfig:
        text_config = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": settings["text_hidden_size"],
            "intermediate_size": 4 * settings["text_hidden_size"],
            "num_hidden_layers": settings["text_layers"],
            "num_attention_heads": settings["text_heads"],
            "hidden_act": "gelu",
            "max_position_embeddings": settings["max_text_length"],
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision_config = get_preset(config["preset"]).vision_config.to_dict() | settings["vision"]
        return CLIPConfig(
            text_config=text_config, vision_config=vision_config, projection_dim=settings["projection_dim"]
        )

    def tokenize(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """`bos` caption `eos`, padded on the right; a caption that is too long loses its end but not its `eos`."""
        room = self.settings["max_text_length"] - 2
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self.tokenizer(captions, add_special_tokens=False)["input_ids"]
        return self.tokenizer.pad({"input_ids": [[bos, *row[:room], eos] for row in ids]}, return_tensors="pt")

    def write_captions(self, faces: Faces, numbers, coverage: float, rng: random.Random) -> list[str]:
        """One caption of each face."""
        known = ((faces.attributes[n], faces.visible[n]) for n in numbers)
        return [write_caption(*face, rng, coverage=coverage).text for face in known]

    def loss(self, rng, batch_size, progress):
        numbers, pixels = self.draw(rng, batch_size)
        # one coverage for the whole batch: texts of one length waste no padding
        coverage = 1.0 if rng.random() < 0.2 else float(rng.uniform(0.25, 0.8))
        captions = self.write_captions(self.faces, numbers, coverage, random.Random(int(rng.integers(2**31))))
        text = {name: ids.to(self.device) for name, ids in self.tokenize(captions).items()}
        output = self.model(**text, pixel_values=fitted(pixels, self.image_size), return_loss=True)
        patches = output.vision_model_output.last_hidden_state[:, 1:]
        targets = self.faces.targets(numbers, self.probe.labels).to(self.device)
        attribute = attribute_loss(self.probe.attributes(patches), targets)
        with torch.no_grad():
            teacher_map = self.teacher.to(self.device).feature_maps(pixels)[-1]
        imitation = self.probe.imitation_loss(patches, teacher_map)
        total = output.loss + self.settings["attribute_weight"] * attribute
        total = total + self.settings["teacher_weight"] * imitation
        right = torch.arange(batch_size, device=self.device)
        terms = {
            "contrastive_loss": output.loss.item(),
            "batch_recall_at_1": (output.logits_per_text.argmax(-1) == right).float().mean().item(),
            "attribute_loss": attribute.item(),
            "imitation_loss": imitation.item(),
        }
        return total, terms

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Retrieval among 100 faces by full captions, and attribute accuracy of the probe on the patch states."""
        faces = self.held_out
        recalls, predicted = {"text_to_image": [], "image_to_text": []}, {name: [] for name in self.probe.labels}
        for start in range(0, len(faces) - len(faces) % 100, 100):
            numbers = range(start, start + 100)
            text = self.tokenize(self.write_captions(faces, numbers, 1.0, random.Random(f"validation-{start}")))
            text = {name: ids.to(self.device) for name, ids in text.items()}
            pixels = fitted(faces.pixels(numbers).to(self.device), self.image_size)
            output = self.model(**text, pixel_values=pixels)
            right = torch.arange(100, device=self.device)
            recalls["text_to_image"].append((output.logits_per_text.argmax(-1) == right).float().mean().item())
            recalls["image_to_text"].append((output.logits_per_image.argmax(-1) == right).float().mean().item())
            logits = self.probe.attributes(output.vision_model_output.last_hidden_state[:, 1:])
            for name, logit in logits.items():
                predicted[name] += [self.probe.labels[name][choice] for choice in logit.argmax(-1).tolist()]
        measured = slice(len(next(iter(predicted.values()))))
        accuracy = attribute_accuracy(predicted, faces.attributes[measured], faces.visible[measured])
        metrics = {f"{name}_recall_at_1_of_100": float(np.mean(values)) for name, values in recalls.items()}
        metrics["mean_patch_probe_accuracy"] = float(np.mean(list(accuracy.values())))
        return metrics | {"patch_probe_accuracy": {name: round(value, 4) for name, value in accuracy.items()}}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class ArcFaceHead(nn.Module):
    """
    Additive angular margin softmax (Deng et al., CVPR 2019).

    Args:
        embedding_size (`int`): Length of the embeddings.
        people (`int`): Number of identities.
        scale (`float`): Norm of the rescaled embeddings, `s`.
    """

    def __init__(self, embedding_size: int, people: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(people, embedding_size))
        self.scale = scale

    def forward(
        self, embeddings: torch.Tensor, people: torch.Tensor, margin: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and cosines (batch_size, people); `margin` in radians."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        own = cosines.gather(1, people[:, None])
        angles = own.clamp(-1.0 + 1e-6, 1.0 - 1e-6).acos()
        # beyond pi the cosine would rise again and reward the worst embeddings
        with_margin = torch.where(angles + margin < torch.pi, (angles + margin).cos(), own - margin * np.sin(margin))
        return F.cross_entropy(self.scale * cosines.scatter(1, people[:, None], with_margin), people), cosines


class TraitHead(nn.Module):
    """
    Reads off the embedding the attributes that stay with a person.

    Pushing apart a thousand people takes long to say anything about a single feature; these are known, and an
    embedding that holds them tells people apart.

    Args:
        embedding_size (`int`): Length of the embeddings.
        labels (`dict[str, list[str]]`): The attributes and their values.
    """

    def __init__(self, embedding_size: int, labels: dict[str, list[str]]):
        super().__init__()
        self.labels = labels
        self.classifiers = nn.ModuleList(nn.Linear(embedding_size, len(values)) for values in labels.values())

    def forward(self, embeddings: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
        """Mean cross-entropy of the attributes that can be seen."""
        logits = {name: head(embeddings) for name, head in zip(self.labels, self.classifiers, strict=True)}
        return attribute_loss(logits, targets)


class FaceTask(FacesTask):
    """
    ArcFace and traits on people of whom there are several pictures: hair, expression, pose, accessories and light
    change between them. Who appears while it trains is left out: the head has a row for each person.
    """

    def __init__(self, config: dict, settings: dict):
        super().__init__(config, settings)
        shape = get_preset(config["preset"]).face_config.to_dict() | settings.get("model", {})
        face_config = UniF2aceFaceEncoderConfig(**shape)
        self.people = list(self.faces.people().values())
        if not self.people:
            raise ValueError(f"{self.folder} has one picture of each person: a face encoder needs several")
        self.model = UniF2aceFaceEncoder(face_config)
        self.model.to(memory_format=torch.channels_last)
        self.head = ArcFaceHead(face_config.embedding_size, len(self.people), settings["scale"])
        lasting = {name: values for name, values in self.faces.labels.items() if name in self.faces.lasting()}
        self.traits = TraitHead(face_config.embedding_size, lasting)
        self.trained = nn.ModuleDict({"model": self.model, "head": self.head, "traits": self.traits})

    def reload(self) -> None:
        """Nothing: see above."""

    def loss(self, rng, batch_size, progress):
        people = rng.integers(0, len(self.people), batch_size)
        numbers = [self.people[person][rng.integers(len(self.people[person]))] for person in people]
        pixels = augment(self.faces.pictures(numbers), rng).to(self.device, memory_format=torch.channels_last)
        people = torch.from_numpy(people).to(self.device)
        # the margin comes in over the first third: from a random start it would only push everything apart
        margin = self.settings["margin"] * min(1.0, 3.0 * progress)
        embeddings = self.model(fitted(pixels, self.model.config.image_size)).embeddings
        loss, cosines = self.head(embeddings, people, margin)
        traits = self.traits(embeddings, self.faces.targets(numbers, self.traits.labels).to(self.device))
        accuracy = (cosines.argmax(1) == people).float().mean()
        terms = {"arcface_loss": loss.item(), "trait_loss": traits.item(), "accuracy": accuracy.item()}
        return loss + self.settings["trait_weight"] * traits, terms

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Verification on people who were not trained on: same or different person, threshold from the other half."""
        groups = self.held_out.people().values()
        parts = [self.held_out.pixels(numbers).to(self.device) for numbers in groups]
        embeddings = torch.cat(
            [self.model(fitted(pixels, self.model.config.image_size)).embeddings for pixels in parts]
        ).cpu()
        people = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(numbers) for numbers in groups]))
        return verification_metrics(embeddings, people)


def verification_metrics(embeddings: torch.Tensor, people: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """
    How well cosines of embeddings tell pairs of one person from as many pairs of two persons.

    Args:
        embeddings (`torch.FloatTensor` of shape `(pictures, embedding_size)`): Need not be normalised.
        people (`torch.LongTensor` of shape `(pictures,)`): Who it is.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of pairs.

    Returns:
        `dict[str, float]`: `verification_accuracy` (threshold chosen on one half of the pairs, measured on the other,
        both ways), `auc`, and the mean cosines `same_cosine` and `different_cosine`.
    """
    cosines = F.normalize(embeddings) @ F.normalize(embeddings).T
    first, second = torch.triu_indices(len(people), len(people), offset=1)
    same = people[first] == people[second]
    scores = cosines[first, second]
    generator = torch.Generator().manual_seed(seed)
    positive, negative = scores[same], scores[~same]
    positive = positive[torch.randperm(len(positive), generator=generator)]
    negative = negative[torch.randperm(len(negative), generator=generator)[: len(positive)]]
    half = len(positive) // 2

    def accuracy(threshold, positives, negatives):
        return ((positives > threshold).float().mean() + (negatives <= threshold).float().mean()).item() / 2

    measured = []
    for tuned, tested in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        candidates = torch.linspace(-1, 1, 401)
        best = max(candidates, key=lambda t, part=tuned: accuracy(t, positive[part], negative[part]))
        measured.append(accuracy(best, positive[tested], negative[tested]))
    ranks = torch.searchsorted(negative.sort().values, positive)
    return {
        "verification_accuracy": float(np.mean(measured)),
        "auc": ranks.float().mean().item() / len(negative),
        "same_cosine": positive.mean().item(),
        "different_cosine": negative.mean().item(),
    }


TASKS = {"judge": JudgeTask, "clip": ClipTask, "face": FaceTask}
