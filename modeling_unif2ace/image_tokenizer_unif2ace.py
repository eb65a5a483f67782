"""The image tokenizer: MAGVIT-v2's encoder and decoder with lookup-free quantisation (LFQ)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from .checkpoint_unif2ace import UniF2aceSafeLoadingMixin
from .compat_unif2ace import init
from .configuration_unif2ace import UniF2aceVQConfig


@dataclass
class UniF2aceVQOutput(ModelOutput):
    """
    What [`UniF2aceVQModel`] gives in training.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(batch, channels, height, width)`):
            The decoded image, not clamped; gradients reach the encoder through the straight-through estimator.
        codes (`torch.LongTensor` of shape `(batch, tokens)`): The codes, row by row.
        commitment_loss (`torch.FloatTensor`): Scalar, not weighted: see [`lookup_free_losses`].
        entropy_loss (`torch.FloatTensor`): Scalar, not weighted: see [`lookup_free_losses`].
        hidden (`torch.FloatTensor` of shape `(batch, bits, height / f, width / f)`):
            The encoder's outputs, whose signs are the bits.
    """

    reconstruction: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    entropy_loss: torch.FloatTensor | None = None
    hidden: torch.FloatTensor | None = None


def bits_to_codes(bits: torch.Tensor) -> torch.LongTensor:
    """
    Numbers of the codes whose bits are given.

    Args:
        bits (`torch.Tensor` of shape `(batch, bits, height, width)`): Positive means 1; channel 0 is the highest bit.

    Returns:
        `torch.LongTensor` of shape `(batch, height * width)`, row by row.
    """
    powers = 2 ** torch.arange(bits.shape[1] - 1, -1, -1, device=bits.device)
    return ((bits > 0).long() * powers[:, None, None]).sum(1).flatten(1)


def codes_to_bits(codes: torch.LongTensor, num_bits: int, height: int, width: int) -> torch.FloatTensor:
    """
    Bits of codes, as -1 and +1: the inverse of [`bits_to_codes`].

    Args:
        codes (`torch.LongTensor` of shape `(batch, height * width)`): Codes, row by row.
        num_bits (`int`): Bits of a code.
        height (`int`): Codes from top to bottom.
        width (`int`): Codes from left to right.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_bits, height, width)`.
    """
    shifts = torch.arange(num_bits - 1, -1, -1, device=codes.device)
    bits = (codes[:, None, :] >> shifts[:, None]) & 1
    return (2 * bits - 1).float().unflatten(2, (height, width))


def lookup_free_losses(hidden: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Commitment and entropy terms of lookup-free quantisation (MAGVIT-v2, arXiv 2310.05737, section 3.1).

    Commitment is `mean((z - sign(z))²)` with a constant `sign(z)`. Entropy is `E[H(q(z))] - H(E[q(z)])`: each code
    certain, all codes used. `q` is the softmax of the negative squared distances to the codes; since the codes are
    all corners of a cube it is a product over bits with `p(bit = 1) = sigmoid(4 z)`, so the first term is exact.
    The second is taken bit by bit as in Show-o, an upper bound of the joint entropy. Means over bits, in nats.

    Args:
        hidden (`torch.Tensor` of shape `(batch, bits, height, width)`): The encoder's output `z`.
        quantized (`torch.Tensor`, same shape): `sign(z)`, -1 or +1.

    Returns:
        Two scalars: commitment, and entropy in `[-log 2, log 2]`.
    """
    commitment = F.mse_loss(hidden, quantized.detach())
    logits = 4 * hidden
    probability = torch.sigmoid(logits)
    # H(p) = softplus(x) - p x for p = sigmoid(x): no logarithm of zero
    certainty = (F.softplus(logits) - probability * logits).mean()
    mean = probability.mean((0, 2, 3))
    usage = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).mean()
    return commitment, certainty - usage


def _group_norm(channels: int, config: UniF2aceVQConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)


class UniF2aceVQResnetBlock(nn.Module):
    """`x + conv(silu(norm(conv(silu(norm(x))))))`, with a 1x1 convolution on `x` where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, config: UniF2aceVQConfig):
        super().__init__()
        self.norm1 = _group_norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = self.nin_shortcut(hidden) if self.changes_width else hidden
        hidden = self.conv1(F.silu(self.norm1(hidden)))
        return residual + self.conv2(F.silu(self.norm2(hidden)))


class UniF2aceVQAttnBlock(nn.Module):
    """One head of attention between all places of the feature map, with a residual connection."""

    def __init__(self, channels: int, config: UniF2aceVQConfig):
        super().__init__()
        self.norm = _group_norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        mixed = mixed.transpose(1, 2).unflatten(2, hidden.shape[2:])
        return hidden + self.proj_out(mixed)


class UniF2aceVQDownsample(nn.Module):
    """Halves the map; pads at the right and the bottom only, as the original does."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class UniF2aceVQUpsample(nn.Module):
    """Doubles the map: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class UniF2aceVQLevel(nn.Module):
    """ResNet blocks at one resolution, then the change to the next one, if any."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, config: UniF2aceVQConfig):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(
            UniF2aceVQResnetBlock(before, after, config) for before, after in zip(widths, widths[1:], strict=False)
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            hidden = block(hidden)
        if self.downsample is not None:
            hidden = self.downsample(hidden)
        if self.upsample is not None:
            hidden = self.upsample(hidden)
        return hidden


class UniF2aceVQMiddle(nn.Module):
    """ResNet block, attention, ResNet block at the lowest resolution."""

    def __init__(self, channels: int, config: UniF2aceVQConfig):
        super().__init__()
        self.block_1 = UniF2aceVQResnetBlock(channels, channels, config)
        self.attn_1 = UniF2aceVQAttnBlock(channels, config)
        self.block_2 = UniF2aceVQResnetBlock(channels, channels, config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden)))


class UniF2aceVQQuantConv(nn.Conv2d):
    """The sign of its sums decides the bits, so they are summed in float32, whatever the model's dtype."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()  # PEFT makes its own of this class without one
            return F.conv2d(hidden.float(), self.weight.float(), bias)


class UniF2aceVQEncoder(nn.Module):
    """From pixels `(batch, channels, height, width)` to real-valued bits `(batch, bits, height / f, width / f)`."""

    def __init__(self, config: UniF2aceVQConfig):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in (1, *config.encoder_multipliers)]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            UniF2aceVQLevel(widths[level], widths[level + 1], blocks, config)
            for level, blocks in enumerate(config.encoder_blocks)
        )
        for level in range(len(self.down) - 1):
            self.down[level].downsample = UniF2aceVQDownsample(widths[level + 1])
        self.mid = UniF2aceVQMiddle(widths[-1], config)
        self.norm_out = _group_norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], config.num_bits, 3, padding=1)
        self.quant_conv = UniF2aceVQQuantConv(config.num_bits, config.num_bits, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.patch_size > 1:
            pixel_values = F.pixel_unshuffle(pixel_values, self.patch_size)
        # convolutions of few channels are about twice as fast on CPUs with the channels innermost
        hidden = self.conv_in(pixel_values.contiguous(memory_format=torch.channels_last))
        for level in self.down:
            hidden = level(hidden)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(hidden)))))


class UniF2aceVQDecoder(nn.Module):
    """From bits `(batch, bits, height, width)`, -1 or +1, to pixels `(batch, channels, height * f, width * f)`."""

    def __init__(self, config: UniF2aceVQConfig):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.decoder_multipliers]
        before = [*widths[1:], widths[-1]]  # levels run from the last to the first
        self.post_quant_conv = nn.Conv2d(config.num_bits, config.num_bits, 1)
        self.conv_in = nn.Conv2d(config.num_bits, widths[-1], 3, padding=1)
        self.mid = UniF2aceVQMiddle(widths[-1], config)
        self.up = nn.ModuleList(
            UniF2aceVQLevel(before[level], widths[level], blocks, config)
            for level, blocks in enumerate(config.decoder_blocks)
        )
        for level in range(1, len(self.up)):
            self.up[level].upsample = UniF2aceVQUpsample(widths[level])
        self.norm_out = _group_norm(widths[0], config)
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(widths[0], config.in_channels * config.patch_size**2, 3, padding=1)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        bits = bits.to(self.conv_in.weight.dtype)
        hidden = self.conv_in(self.post_quant_conv(bits).contiguous(memory_format=torch.channels_last))
        hidden = self.mid(hidden)
        for level in reversed(self.up):
            hidden = level(hidden)
        pixels = self.conv_out(F.silu(self.norm_out(hidden)))
        return F.pixel_shuffle(pixels, self.patch_size) if self.patch_size > 1 else pixels


class UniF2aceVQModel(UniF2aceSafeLoadingMixin, PreTrainedModel):
    r"""
    MAGVIT-v2 with lookup-free quantisation: images to codes and back.

    A code is the signs of the encoder's outputs, channel 0 the highest bit; codes run row by row. Weights and their
    names are those of Show-o's `showlab/magvitv2`; the two tables that it stores (`quantize.*`) are computed here.

    Args:
        config ([`UniF2aceVQConfig`]): The shape.

    Example:

    ```python
    >>> codes = model.encode(pixel_values)  # (1, 3, 64, 64) in [-1, 1] -> (1, 256)
    >>> pixels = model.decode(codes)  # (1, 3, 64, 64) in [-1, 1]
    ```
    """

    config: UniF2aceVQConfig
    config_class = UniF2aceVQConfig
    base_model_prefix = "vq_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["UniF2aceVQResnetBlock", "UniF2aceVQAttnBlock"]
    # the attention blocks are its own and always the same: whatever the whole model uses is right
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _keys_to_ignore_on_load_unexpected = [r"quantize\.(embedding|power_vals)$"]

    def __init__(self, config: UniF2aceVQConfig):
        super().__init__(config)
        self.encoder = UniF2aceVQEncoder(config)
        self.decoder = UniF2aceVQDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # torch's own initialisation, as the original: the library's normal(0.02) is too small for narrow layers
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _check_pixels(self, pixel_values: torch.Tensor):
        factor, channels = self.config.downsample_factor, self.config.in_channels
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] != channels
            or any(n % factor for n in pixel_values.shape[2:])
        ):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {channels}, height, width) "
                f"with sides that are multiples of {factor}; the image processor makes them"
            )

    @torch.no_grad()
    def encode(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """
        Codes of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Pixels in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(batch, height / f * width / f)` with `f = config.downsample_factor`: codes in
            `[0, config.codebook_size)`, row by row.

        Raises:
            ValueError: if the shape does not fit.
        """
        self._check_pixels(pixel_values)
        return bits_to_codes(self.encoder(pixel_values.to(self.dtype)))

    @torch.no_grad()
    def decode(self, codes: torch.LongTensor, shape: tuple[int, int] | None = None) -> torch.FloatTensor:
        """
        Images of codes.

        Args:
            codes (`torch.LongTensor` of shape `(batch, tokens)`): Codes in `[0, config.codebook_size)`, row by row.
            shape (`tuple[int, int]`, *optional*): Rows and columns of codes; a square when not given.

        Returns:
            `torch.FloatTensor` of shape `(batch, channels, height, width)`: pixels, clamped to [-1, 1].

        Raises:
            ValueError: if a code is outside the codebook or the codes do not fill the shape.
        """
        height, width = shape if shape is not None else (round(codes.shape[-1] ** 0.5),) * 2
        if codes.ndim != 2 or codes.shape[1] != height * width:
            raise ValueError(
                f"codes has shape {tuple(codes.shape)}, expected (batch, {height * width}) for {height} x {width} "
                "codes; give `shape` when the image is not square"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codebook_size:
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}, expected 0 to "
                f"{self.config.codebook_size - 1}; masked places must be filled before decoding"
            )
        return self.decoder(codes_to_bits(codes, self.config.num_bits, height, width)).clamp(-1, 1)

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> UniF2aceVQOutput:
        """
        Reconstructs images through their codes, with the terms that training needs.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Pixels in [-1, 1].

        Returns:
            [`UniF2aceVQOutput`]

        Raises:
            ValueError: if the shape does not fit.
        """
        self._check_pixels(pixel_values)
        hidden = self.encoder(pixel_values.to(self.dtype))
        signs = torch.where(hidden > 0, 1.0, -1.0)
        commitment_loss, entropy_loss = lookup_free_losses(hidden, signs)
        return UniF2aceVQOutput(
            reconstruction=self.decoder(hidden + (signs - hidden).detach()),
            codes=bits_to_codes(signs),
            commitment_loss=commitment_loss,
            entropy_loss=entropy_loss,
            hidden=hidden,
        )


__all__ = ["UniF2aceVQModel", "UniF2aceVQOutput"]
