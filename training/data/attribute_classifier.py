"""
A network that reads labels off faces, trained on any label table.

The paper corrects the drafts of its captions by the labels of such a classifier, trained on CelebV-HQ (its backbone
and thresholds are not known). Ours is the small network that judges painted faces, [`UniF2aceJudge`], with the table's
own labels: quick to train, good enough for coarse labels. Its held-out accuracy is printed and kept beside it,
label by label, next to the share of the commonest value: the caption writer is not told labels that do not beat it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...pipelines.files import read_json
from ..arguments import RunArguments
from ..evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig, attribute_loss
from ..part_trainer import METRICS_FILE, PartTask, PartTrainer
from .records import FaceRecord


_IGNORED = -100
_HELD_OUT = 0.1
_MARGIN = 0.01  # by how much a label has to be read better than by always guessing its commonest value


class LabelledFaces:
    """
    Pictures and labels of a data set, in memory.

    Args:
        records (`Iterable[FaceRecord]`): The data set; records without label are passed over.
        image_size (`int`): Side that pictures are brought to.
        limit (`int`, *optional*): Most pictures to take.

    Attributes:
        images (`np.ndarray` of shape `(faces, image_size, image_size, 3)`): uint8.
        labels (`list[dict[str, str]]`): What is known of each.

    Raises:
        ValueError: if no record has a label.
    """

    def __init__(self, records: Iterable[FaceRecord], image_size: int, limit: int | None = None):
        images, self.labels = [], []
        for record in tqdm(records, total=limit, desc="reading", unit="face", disable=None):
            labels = record.labels or record.attributes
            if record.image is None or not labels:
                continue
            images.append(np.asarray(record.image.resize((image_size, image_size), Image.Resampling.BICUBIC)))
            self.labels.append(dict(labels))
            if limit is not None and len(images) >= limit:
                break
        if not images:
            raise ValueError("the data set has no picture with labels: a classifier needs a label table")
        self.images = np.stack(images)

    def values(self, least: int = 2) -> dict[str, list[str]]:
        """Label -> its values; those with only one value, or seen fewer than `least` times, are left out."""
        counts: dict[str, Counter] = {}
        for labels in self.labels:
            for name, value in labels.items():
                counts.setdefault(name, Counter())[value] += 1
        found = {name: sorted(v for v, n in counter.items() if n >= least) for name, counter in counts.items()}
        return {name: values for name, values in sorted(found.items()) if len(values) > 1}


class ClassifierTask(PartTask):
    """
    Cross-entropy on the labels that are known of each face; a tenth of the faces is held out.

    Args:
        faces ([`LabelledFaces`]): The data.
        seed (`int`, *optional*, defaults to 0): Seed of the weights and of what is held out.

    Raises:
        ValueError: if no label has two values.
    """

    def __init__(self, faces: LabelledFaces, seed: int = 0):
        values = faces.values()
        if not values:
            raise ValueError("no label has two values that occur at least twice: there is nothing to tell apart")
        self.faces = faces
        order = np.random.default_rng(seed).permutation(len(faces.images))
        self.held_out, train = np.split(order, [max(1, int(_HELD_OUT * len(order)))])
        self.train = train if len(train) else self.held_out
        places = [{value: place for place, value in enumerate(known)} for known in values.values()]
        self.targets = torch.tensor(
            [[known.get(labels.get(name), _IGNORED) for name, known in zip(values, places, strict=True)]
             for labels in faces.labels]
        )  # fmt: skip
        torch.manual_seed(seed)
        config = UniF2aceJudgeConfig(
            image_size=faces.images.shape[1], attribute_names=list(values), attribute_values=list(values.values())
        )
        self.model = self.trained = UniF2aceJudge(config)

    def loss(self, rng, batch_size, progress):
        rows = rng.choice(self.train, min(batch_size, len(self.train)))
        logits = self.model(self.model.preprocess(self.faces.images[rows])).logits
        loss = attribute_loss(logits, self.targets[rows].to(self.device))
        return loss, {"label_loss": loss.item()}

    def evaluate(self) -> dict:
        """For each label its held-out `accuracy`, the share of its `commonest` value, how many faces had it."""
        labels = [self.faces.labels[place] for place in self.held_out]
        accuracy = {}
        for name, predicted in self.model.predict(self.faces.images[self.held_out]).items():
            known = [(value, truth[name]) for value, truth in zip(predicted, labels, strict=True) if name in truth]
            if known:
                commonest = Counter(truth for _, truth in known).most_common(1)[0][1]
                accuracy[name] = {
                    "accuracy": round(sum(value == truth for value, truth in known) / len(known), 4),
                    "commonest": round(commonest / len(known), 4),
                    "count": len(known),
                }
        return {"labels": accuracy}


def train_classifier(
    faces: LabelledFaces,
    output: str | Path,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """
    Train a classifier; unknown labels of a face are not trained.

    Args:
        faces ([`LabelledFaces`]): The data; a tenth is held out.
        output (`str` or `Path`):
            The run's folder: `log.jsonl`, a checkpoint every minute, from which an interrupted run goes on, and in
            the end `metrics.json` and the classifier in `final/`.
        steps (`int`, *optional*, defaults to 2000), batch_size (`int`, *optional*, defaults to 64),
        learning_rate (`float`, *optional*, defaults to 1e-3): AdamW with a cosine schedule.
        seed (`int`, *optional*, defaults to 0): Seed of weights, batches and of what is held out.

    Returns:
        For each label its held-out `accuracy`, the share of its `commonest` value there, and how many faces (`count`)
        had it.

    Raises:
        ValueError: if no label has two values.
        KeyboardInterrupt: if a signal ended the training; a checkpoint is there.
    """
    args = RunArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        weight_decay=0.01,
        seed=seed,
        logging_steps=20,
        save_strategy="no",
        save_total_limit=1,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
    )
    return PartTrainer(ClassifierTask(faces, seed), args, batch_size, checkpoint_minutes=1.0).run()["labels"]


def load_classifier(folder: str | Path) -> tuple[UniF2aceJudge, list[str]]:
    """
    The classifier of a run's folder, and the labels that it reads better than a guess at the commonest value.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it reads no label better.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: train a classifier with `unif2ace data classifier`")
    names = useful_labels(read_json(path)["labels"])
    if not names:
        raise ValueError(f"the classifier in {folder} reads no label better than by guessing: train it longer")
    return UniF2aceJudge.from_pretrained(Path(folder) / "final").eval(), names


@torch.no_grad()
def read_labels(
    model: UniF2aceJudge, image: Image.Image, threshold: float = 0.8, names: Sequence[str] | None = None
) -> dict[str, str]:
    """
    The labels of a face of which a classifier is sure.

    Args:
        model ([`UniF2aceJudge`]): The classifier.
        image (`PIL.Image.Image`): The face.
        threshold (`float`, *optional*, defaults to 0.8): Least probability.
        names (`Sequence[str]`, *optional*): The labels to read; all of the classifier when not given.

    Returns:
        `dict[str, str]`: Label -> value.
    """
    logits = model(model.preprocess([image])).logits
    found = {}
    for name, values in model.config.labels.items():
        if names is None or name in names:
            probability, place = logits[name][0].softmax(-1).max(-1)
            if probability >= threshold:
                found[name] = values[int(place)]
    return found


def useful_labels(accuracy: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The labels that the classifier reads better than a guess at the commonest value."""
    return [name for name, entry in accuracy.items() if entry["accuracy"] >= entry["commonest"] + _MARGIN]
