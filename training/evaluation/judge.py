"""
The judge: a small convolutional network that reads the 48 attributes off a painted face.

It measures generated faces: paint nothing, ask the judge which attributes it sees, compare with the prompt. Its own
accuracy on held-out painted faces is the ceiling of that measure and is reported beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import ModelOutput

from ..data.language.attributes import ATTRIBUTES


@strict
class UniF2aceJudgeConfig(PreTrainedConfig):
    r"""
    Sizes and labels of a [`UniF2aceJudge`].

    Args:
        image_size (`int`, *optional*, defaults to 64): Side of the pictures, in pixels; a multiple of 16.
        stage_channels (`list[int]`): Channels at a half, a quarter and an eighth of the resolution.
        head_channels (`int`, *optional*, defaults to 64): Channels at a sixteenth, before flattening.
        feature_size (`int`, *optional*, defaults to 256): Length of the feature vector of a picture.
        attribute_names (`list[str]`, *optional*): Names of the attributes, in the order of the outputs.
        attribute_values (`list[list[str]]`, *optional*): The values of each attribute, in the order of the outputs.

    The labels are two lists and not a mapping, because a saved configuration sorts the keys of mappings.
    """

    model_type = "unif2ace_judge"

    image_size: int = 64
    stage_channels: list[int] | tuple[int, ...] = (48, 96, 128)
    head_channels: int = 64
    feature_size: int = 256
    attribute_names: list[str] | tuple[str, ...] | None = None
    attribute_values: list | tuple | None = None

    def __post_init__(self, **kwargs):
        if self.attribute_names is None:
            self.attribute_names = list(ATTRIBUTES)
            self.attribute_values = [list(values) for values in ATTRIBUTES.values()]
        self.stage_channels = list(self.stage_channels)
        if len(self.stage_channels) != 3:
            raise ValueError(f"UniF2aceJudgeConfig: stage_channels={self.stage_channels}, expected three numbers")
        if self.image_size % 16:
            raise ValueError(f"UniF2aceJudgeConfig: image_size={self.image_size}, expected a multiple of 16")
        if self.attribute_values is None or len(self.attribute_names) != len(self.attribute_values):
            raise ValueError("UniF2aceJudgeConfig: give one list of attribute_values for each of attribute_names")
        super().__post_init__(**kwargs)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Attribute name -> its values, in the order of the outputs."""
        return dict(zip(self.attribute_names, self.attribute_values, strict=True))


@dataclass
class UniF2aceJudgeOutput(ModelOutput):
    """
    Output of [`UniF2aceJudge`].

    Args:
        logits (`dict[str, torch.FloatTensor]`): For each attribute `(batch_size, number of values)`.
        features (`torch.FloatTensor` of shape `(batch_size, feature_size)`): What the attributes are read from.
        feature_maps (`tuple(torch.FloatTensor)`):
            `(batch_size, channels, side, side)` at a half, a quarter and an eighth of the resolution.
    """

    logits: dict[str, torch.FloatTensor] | None = None
    features: torch.FloatTensor | None = None
    feature_maps: tuple[torch.FloatTensor, ...] | None = None


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UniF2aceJudge(PreTrainedModel):
    """
    Multi-head attribute classifier of painted faces, with about 0.7 million parameters.

    Args:
        config (`UniF2aceJudgeConfig`): Sizes and labels.
    """

    config_class = UniF2aceJudgeConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = ""

    def __init__(self, config: UniF2aceJudgeConfig):
        super().__init__(config)
        half, quarter, eighth = config.stage_channels
        stem, between = max(8, half * 2 // 3), quarter * 2 // 3
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_convolution(3, stem, 4, 2), _convolution(stem, half, 3, 1)),
                nn.Sequential(_convolution(half, between, 3, 2), _convolution(between, quarter, 3, 1)),
                nn.Sequential(_convolution(quarter, eighth, 3, 2), _convolution(eighth, eighth, 3, 1)),
            ]
        )
        # flattened, not pooled: what an attribute looks like depends on where it is
        self.neck = nn.Sequential(_convolution(eighth, config.head_channels, 3, 2), nn.Flatten())
        self.dropout = nn.Dropout(0.1)
        self.projection = nn.Linear(config.head_channels * (config.image_size // 16) ** 2, config.feature_size)
        self.classifier = nn.Linear(config.feature_size, sum(len(values) for values in config.attribute_values))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            init.normal_(module.weight, mean=0.0, std=(2 / fan_in) ** 0.5)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def feature_maps(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Feature maps for perceptual losses; differentiable.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`): RGB in [-1, 1].

        Returns:
            `tuple(torch.FloatTensor)`: three maps, at a half, a quarter and an eighth of the resolution.
        """
        maps = []
        for stage in self.stages:
            pixel_values = stage(pixel_values)
            maps.append(pixel_values)
        return tuple(maps)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> UniF2aceJudgeOutput:
        """
        Read the attributes.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`): RGB in [-1, 1].

        Returns:
            [`UniF2aceJudgeOutput`]
        """
        maps = self.feature_maps(pixel_values)
        features = nn.functional.relu(self.projection(self.dropout(self.neck(maps[-1]))))
        parts = self.classifier(features).split([len(values) for values in self.config.attribute_values], dim=-1)
        logits = dict(zip(self.config.attribute_names, parts, strict=True))
        return UniF2aceJudgeOutput(logits=logits, features=features, feature_maps=maps)

    def preprocess(self, images: torch.Tensor | np.ndarray | Sequence[Image.Image]) -> torch.Tensor:
        """
        Turn pictures into `pixel_values` in [-1, 1].

        Args:
            images (`torch.Tensor`, `np.ndarray` or list of `PIL.Image.Image`):
                uint8 of shape `(batch_size, 3, side, side)` or `(batch_size, side, side, 3)`, or pictures. What is not
                `image_size` pixels a side is resized.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`.

        Raises:
            ValueError: if the array is not of uint8 or has another shape.
        """
        size = self.config.image_size
        if isinstance(images, (list, tuple)):
            pictures = [image.convert("RGB") for image in images]
            # Pillow only copies what has the right size already
            images = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in pictures])
        pixels = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or 3 not in (pixels.shape[1], pixels.shape[-1]):
            raise ValueError(
                f"images have dtype {pixels.dtype} and shape {tuple(pixels.shape)}, expected uint8 of shape "
                "(batch_size, 3, side, side) or (batch_size, side, side, 3); scale pictures in [-1, 1] to 0-255 first"
            )
        if pixels.shape[1] != 3:
            pixels = pixels.permute(0, 3, 1, 2)
        pixels = pixels.to(self.device, self.dtype) / 127.5 - 1.0
        if pixels.shape[-2:] != (size, size):
            pixels = nn.functional.interpolate(
                pixels, (size, size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1.0, 1.0)
        return pixels

    @torch.no_grad()
    def predict(self, images, batch_size: int = 256) -> dict[str, list[str]]:
        """
        The most likely value of every attribute for each picture.

        Args:
            images: See [`~UniF2aceJudge.preprocess`].
            batch_size (`int`, *optional*, defaults to 256): Pictures in one pass.

        Returns:
            `dict[str, list[str]]`: Attribute name -> one value for each picture.
        """
        predicted: dict[str, list[str]] = {name: [] for name in self.config.attribute_names}
        labels = self.config.labels
        for output in self._passes(images, batch_size):
            for name, logits in output.logits.items():
                predicted[name] += [labels[name][choice] for choice in logits.argmax(-1).tolist()]
        return predicted

    @torch.no_grad()
    def features(self, images, batch_size: int = 256) -> torch.Tensor:
        """
        Feature vectors, for example for a Fréchet distance between two sets of pictures.

        Args:
            images: See [`~UniF2aceJudge.preprocess`].
            batch_size (`int`, *optional*, defaults to 256): Pictures in one pass.

        Returns:
            `torch.FloatTensor` of shape `(number of pictures, feature_size)`.
        """
        return torch.cat([output.features for output in self._passes(images, batch_size)])

    def _passes(self, images, batch_size: int):
        training = self.training
        self.eval()
        try:
            for start in range(0, len(images), batch_size):
                yield self(self.preprocess(images[start : start + batch_size]))
        finally:
            self.train(training)


def attribute_loss(logits: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """
    Mean cross-entropy over all attributes that are known.

    Args:
        logits (`dict[str, torch.FloatTensor]`): Attribute name -> logits of its values, `(batch_size, values)`.
        targets (`torch.LongTensor` of shape `(batch_size, number of attributes)`): Places of values; -100: unknown.
    """
    terms = [
        nn.functional.cross_entropy(logit, targets[:, k], reduction="sum") for k, logit in enumerate(logits.values())
    ]
    return torch.stack(terms).sum() / (targets != -100).sum().clamp(min=1)


def attribute_accuracy(
    predicted: Mapping[str, Sequence[str]],
    attributes: Sequence[Mapping[str, str]],
    visible: Sequence[Mapping[str, bool]] | None = None,
) -> dict[str, float]:
    """
    Share of pictures of which an attribute was read rightly, among those where it can be seen.

    Args:
        predicted (`dict[str, list[str]]`): What [`UniF2aceJudge.predict`] returned.
        attributes (`list[dict[str, str]]`): True (or asked for) attributes of each picture; absent ones do not count.
        visible (`list[dict[str, bool]]`, *optional*): Which of them can be seen; all of them when not given.

    Returns:
        `dict[str, float]`: Attribute name -> accuracy; without the attributes that nobody shows.
    """
    accuracy = {}
    for name, values in predicted.items():
        hits = [
            values[i] == truth[name]
            for i, truth in enumerate(attributes)
            if name in truth and (visible is None or visible[i][name])
        ]
        if hits:
            accuracy[name] = sum(hits) / len(hits)
    return accuracy


__all__ = ["UniF2aceJudge", "UniF2aceJudgeConfig", "UniF2aceJudgeOutput", "attribute_accuracy", "attribute_loss"]
