"""The face encoder: an improved ResNet (IResNet) that maps an aligned face to an ArcFace identity embedding."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .checkpoint_unif2ace import UniF2aceSafeLoadingMixin
from .compat_unif2ace import init
from .configuration_unif2ace import UniF2aceFaceEncoderConfig


@dataclass
class UniF2aceFaceEncoderOutput(ModelOutput):
    """
    Output of [`UniF2aceFaceEncoder`].

    Args:
        embeddings (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
            Identity embeddings, not normalised; compare them by cosine.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, channels, feature_grid, feature_grid)`):
            Feature map of the last stage.
    """

    embeddings: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class UniF2aceFaceEncoderBlock(nn.Module):
    """IBasicBlock of InsightFace: BN, conv, BN, PReLU, strided conv, BN; no activation after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.prelu(self.bn2(self.conv1(self.bn1(hidden_states))))
        return self.bn3(self.conv2(hidden_states)) + residual


class UniF2aceFaceEncoder(UniF2aceSafeLoadingMixin, PreTrainedModel):
    """
    IResNet with ArcFace's output layers; with the default configuration the shape of AntelopeV2's `glintr100`.

    Args:
        config (`UniF2aceFaceEncoderConfig`): Sizes; `stage_blocks` of [3, 13, 30, 3] is IResNet-100.
    """

    config_class = UniF2aceFaceEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = ""
    _no_split_modules = ["UniF2aceFaceEncoderBlock"]
    # no attention in here: whatever the whole model uses is right
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, config: UniF2aceFaceEncoderConfig):
        super().__init__(config)
        self.conv1 = nn.Conv2d(config.in_channels, config.stem_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.prelu = nn.PReLU(config.stem_channels)
        stages, channels = [], config.stem_channels
        for out_channels, num_blocks in zip(config.stage_channels, config.stage_blocks, strict=True):
            blocks = [UniF2aceFaceEncoderBlock(channels, out_channels, 2)]
            blocks += [UniF2aceFaceEncoderBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = out_channels
        self.layers = nn.ModuleList(stages)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(channels * config.feature_grid**2, config.embedding_size)
        self.features = nn.BatchNorm1d(config.embedding_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> UniF2aceFaceEncoderOutput:
        """
        Embed aligned faces.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, image_size, image_size)`):
                RGB in [-1, 1], aligned as [`align_largest_face`] does.

        Returns:
            [`UniF2aceFaceEncoderOutput`]

        Raises:
            ValueError: if the pictures have another shape.
        """
        size, channels = self.config.image_size, self.config.in_channels
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected "
                f"(batch_size, {channels}, {size}, {size}); resize or align the faces first"
            )
        hidden_states = self.prelu(self.bn1(self.conv1(pixel_values.to(self.conv1.weight.dtype))))
        for stage in self.layers:
            hidden_states = stage(hidden_states)
        embeddings = self.features(self.fc(self.dropout(self.bn2(hidden_states)).flatten(1)))
        return UniF2aceFaceEncoderOutput(embeddings=embeddings, last_hidden_state=hidden_states)


__all__ = ["UniF2aceFaceEncoder", "UniF2aceFaceEncoderOutput"]
