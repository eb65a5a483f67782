"""
A network that reads labels off faces, trained on any label table.

The paper corrects the drafts of its captions by the labels of such a classifier, trained on CelebV-HQ (its backbone
and thresholds are not known). Ours is the small network that judges painted faces, [`UniF2aceJudge`], with the table's
own labels: quick to train, good enough for coarse labels. Its held-out accuracy is printed and kept beside it,
label by label, next to the share of the commonest value: the caption writer is not told labels that do not beat it.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from ..evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from .records import FaceRecord


ACCURACY_FILE = "accuracy.json"
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


def train_classifier(
    faces: LabelledFaces,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[UniF2aceJudge, dict[str, dict[str, float]]]:
    """
    Train a classifier; unknown labels of a face are not trained.

    Args:
        faces ([`LabelledFaces`]): The data; a tenth is held out.
        steps (`int`, *optional*, defaults to 2000), batch_size (`int`, *optional*, defaults to 64),
        learning_rate (`float`, *optional*, defaults to 1e-3): AdamW with a cosine schedule.
        seed (`int`, *optional*, defaults to 0): Seed of weights, batches and of what is held out.
        device (`str`, *optional*, defaults to `"cpu"`): Where to train.

    Returns:
        The classifier, and for each label its held-out `accuracy`, the share of its `commonest` value there, and how
        many faces (`count`) had it.

    Raises:
        ValueError: if no label has two values.
    """
    values = faces.values()
    if not values:
        raise ValueError("no label has two values that occur at least twice: there is nothing to tell apart")
    torch.manual_seed(seed)
    order = list(range(len(faces.images)))
    random.Random(seed).shuffle(order)
    held_out = order[: max(1, int(_HELD_OUT * len(order)))]
    train = order[len(held_out) :] or held_out
    config = UniF2aceJudgeConfig(
        image_size=faces.images.shape[1], attribute_names=list(values), attribute_values=list(values.values())
    )
    model = UniF2aceJudge(config).to(device)
    places = {name: {value: place for place, value in enumerate(known)} for name, known in values.items()}
    targets = {
        name: torch.tensor([known.get(labels.get(name), _IGNORED) for labels in faces.labels])
        for name, known in places.items()
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in tqdm(range(steps), desc="training", unit="step", disable=None):
        rows = [train[i] for i in torch.randint(len(train), (min(batch_size, len(train)),), generator=generator)]
        logits = model(model.preprocess(faces.images[rows])).logits
        losses = [
            nn.functional.cross_entropy(logits[name], target[rows].to(device), ignore_index=_IGNORED, reduction="sum")
            for name, target in targets.items()
        ]
        known = sum(int((target[rows] != _IGNORED).sum()) for target in targets.values())
        loss = torch.stack(losses).sum() / max(known, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model, _accuracy(model, faces.images[held_out], [faces.labels[i] for i in held_out])


def _accuracy(
    model: UniF2aceJudge, images: np.ndarray, labels: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, float]]:
    predicted = model.predict(images)
    accuracy = {}
    for name, values in predicted.items():
        known = [(value, truth[name]) for value, truth in zip(values, labels, strict=True) if name in truth]
        if known:
            commonest = Counter(truth for _, truth in known).most_common(1)[0][1]
            accuracy[name] = {
                "accuracy": round(sum(value == truth for value, truth in known) / len(known), 4),
                "commonest": round(commonest / len(known), 4),
                "count": len(known),
            }
    return accuracy


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
