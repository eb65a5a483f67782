"""Configuration of UniF²ace: the text backbone with its experts, the image tokenizer, the two image encoders."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field
from transformers import CLIPVisionConfig
from transformers.configuration_utils import PreTrainedConfig

from .compat_unif2ace import SubConfigSpec
from .layout_unif2ace import SPECIAL_TOKENS, SequenceLayout


SEQUENCE_EXPERTS = {"t2i": ("copy", "zero", "noise"), "mmu": ("copy", "zero", "clip", "face")}

# Far beyond any model that can be trained: a file that says more would fill the memory, or never be built.
MAX_WIDTH, MAX_LAYERS, MAX_EXPERTS, MAX_VOCABULARY = 2**17, 1024, 4096, 2**24
MAX_LEVELS, MAX_BLOCKS, MAX_BITS, MAX_SIDE = 16, 256, 24, 2**14


def _check_bounds(name: str, value: int, minimum: int, maximum: int):
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} is {value}, expected {minimum} to {maximum}")


def _whole(minimum: int, maximum: int, default: int | None):
    """A field that takes whole numbers from `minimum` to `maximum`, and `None` if its type does."""

    def check(value):
        if value is not None:
            _check_bounds("it", value, minimum, maximum)

    return validated_field(check, default=default)


def _levels(minimum: int, maximum: int, default: tuple[int, ...]):
    """A field that takes a list of 1 to `MAX_LEVELS` whole numbers from `minimum` to `maximum`."""

    def check(values):
        _check_bounds("the number of entries", len(values), 1, MAX_LEVELS)
        for value in values:
            _check_bounds("an entry", value, minimum, maximum)

    return validated_field(check, default=default)


def _check_vision_tower(vision: dict | PreTrainedConfig | None):
    """The numbers of CLIP's that something is divided by or as large as; its own class does not look at them."""
    bounds = {"hidden_size": MAX_WIDTH, "intermediate_size": MAX_WIDTH, "num_attention_heads": MAX_WIDTH}
    bounds |= {"num_hidden_layers": MAX_LAYERS, "image_size": MAX_SIDE, "patch_size": MAX_SIDE}
    for name, maximum in bounds.items() if vision is not None else ():
        value = vision.get(name, 1) if isinstance(vision, dict) else getattr(vision, name)
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, expected a whole number")
        _check_bounds(name, value, 1, maximum)


@strict
class UniF2aceTextConfig(PreTrainedConfig):
    r"""
    The transformer that reads text and image codes (Show-o's decoder, Phi-1.5 shape) with two levels of experts.

    The defaults are Show-o's shape with the expert widths of the 1.8B preset.

    Args:
        vocab_size (`int`, *optional*, defaults to 58498):
            Text tokens + 10 special tokens + image codes + 1 mask token.
        hidden_size (`int`, *optional*, defaults to 2048): Width of the hidden states.
        intermediate_size (`int`, *optional*, defaults to 8192): Width of the dense MLP in layers without experts.
        num_hidden_layers (`int`, *optional*, defaults to 24): Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 32): Attention heads; must divide `hidden_size`.
        num_key_value_heads (`int`, *optional*): Key/value heads; as many as attention heads when not given.
        hidden_act (`str`, *optional*, defaults to `"gelu_new"`): Activation of MLP and experts.
        max_position_embeddings (`int`, *optional*, defaults to 2048): Longest sequence of text and image tokens.
        qk_layernorm (`bool`, *optional*, defaults to `True`): LayerNorm on queries and keys (Show-o forces it on).
        block_form (`str`, *optional*, defaults to `"parallel"`):
            `"parallel"` is Phi's block, one LayerNorm and `x + attention + experts`: the only one that keeps
            pretrained weights' function. `"sequential"` is the block as the paper's method figure draws it.
        moe_layers (`list[int]`, *optional*):
            Layers whose MLP is the grouped token-level MoE. All when not given; `[]` is exactly Show-o's MLP.
        num_routed_experts (`int`, *optional*, defaults to 8): Routed experts in each of the two groups.
        num_experts_per_tok (`int`, *optional*, defaults to 2): Routed experts that a token uses.
        shared_expert_intermediate_size (`int`, *optional*, defaults to 1536): Width of each group's shared expert.
        routed_expert_intermediate_size (`int`, *optional*, defaults to 512): Width of each routed expert.
        norm_topk_prob (`bool`, *optional*, defaults to `True`): Make the chosen experts' weights add to one.
        sequence_moe_layers (`list[int]`, *optional*):
            Layers that end with the grouped sequence-level MoE. All when not given; `[]` turns it off.
        t2i_sequence_experts (`list[str]`, *optional*, defaults to `["copy", "copy", "zero", "noise"]`):
            Sequence-level experts of the text-to-image group (paper section 3.3).
        mmu_sequence_experts (`list[str]`, *optional*, defaults to `["copy", "copy", "clip", "face"]`):
            Sequence-level experts of the understanding group; as many as in the other group.
        num_experts_per_sequence (`int`, *optional*, defaults to 2): Sequence-level experts that an image span uses.
        sequence_router_copy_bias (`float`, *optional*, defaults to 1.0):
            Initial logit of the copy experts. Above zero the router starts at copy + copy, the identity, which
            converted checkpoints need; zero lets a model trained from scratch use all experts from the start.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the initial weights.

    Raises:
        StrictDataclassError: if a number is out of its bounds, or two contradict each other; the message names them.
    """

    model_type = "unif2ace_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = _whole(1, MAX_VOCABULARY, 58_498)
    hidden_size: int = _whole(1, MAX_WIDTH, 2048)
    intermediate_size: int = _whole(1, MAX_WIDTH, 8192)
    num_hidden_layers: int = _whole(1, MAX_LAYERS, 24)
    num_attention_heads: int = _whole(1, MAX_WIDTH, 32)
    num_key_value_heads: int | None = _whole(1, MAX_WIDTH, None)
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attention_dropout: float | int = 0.0
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = _whole(1, MAX_VOCABULARY, 2048)
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    qk_layernorm: bool = True
    pad_token_id: int | None = 50_295
    bos_token_id: int | None = 50_256
    eos_token_id: int | list[int] | None = 50_256

    block_form: Literal["parallel", "sequential"] = "parallel"
    moe_layers: list[int] | None = None
    num_routed_experts: int = _whole(0, MAX_EXPERTS, 8)
    num_experts_per_tok: int = _whole(0, MAX_EXPERTS, 2)
    shared_expert_intermediate_size: int = _whole(1, MAX_WIDTH, 1536)
    routed_expert_intermediate_size: int = _whole(1, MAX_WIDTH, 512)
    norm_topk_prob: bool = True
    sequence_moe_layers: list[int] | None = None
    t2i_sequence_experts: list[str] | tuple[str, ...] = ("copy", "copy", "zero", "noise")
    mmu_sequence_experts: list[str] | tuple[str, ...] = ("copy", "copy", "clip", "face")
    num_experts_per_sequence: int = 2
    sequence_router_copy_bias: float = 1.0

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        every_layer = list(range(self.num_hidden_layers))
        self.moe_layers = every_layer if self.moe_layers is None else sorted(self.moe_layers)
        self.sequence_moe_layers = (
            every_layer if self.sequence_moe_layers is None else sorted(self.sequence_moe_layers)
        )
        self.t2i_sequence_experts = list(self.t2i_sequence_experts)
        self.mmu_sequence_experts = list(self.mmu_sequence_experts)
        kwargs.setdefault("partial_rotary_factor", 0.5)  # Phi rotates the first half of each head
        super().__post_init__(**kwargs)

    def validate_attention(self):
        """Part of `@strict`: numbers of attention that contradict each other."""
        name = type(self).__name__
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{name}: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{name}: num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )

    def validate_token_experts(self):
        """Part of `@strict`: numbers of the token-level experts that contradict each other."""
        name = type(self).__name__
        for field in ("moe_layers", "sequence_moe_layers"):
            outside = [layer for layer in getattr(self, field) if not 0 <= layer < self.num_hidden_layers]
            if outside:
                raise ValueError(
                    f"{name}: {field} names layers {outside}, but there are {self.num_hidden_layers} layers"
                )
        if self.moe_layers:
            if not 1 <= self.num_experts_per_tok <= self.num_routed_experts:
                raise ValueError(
                    f"{name}: num_experts_per_tok={self.num_experts_per_tok}, expected 1 to "
                    f"num_routed_experts={self.num_routed_experts}"
                )
            # grouped matrix products need rows of a multiple of 16 bytes in every dtype
            for field in ("hidden_size", "routed_expert_intermediate_size"):
                if getattr(self, field) % 8:
                    raise ValueError(f"{name}: {field}={getattr(self, field)} is not a multiple of 8")

    def validate_sequence_experts(self):
        """Part of `@strict`: lists of sequence-level experts that cannot be built or never be used."""
        name = type(self).__name__
        for task, known in SEQUENCE_EXPERTS.items():
            for expert in self.sequence_experts(task):
                if expert not in known:
                    raise ValueError(
                        f"{name}: {task}_sequence_experts={expert!r}, expected one of {', '.join(map(repr, known))}"
                    )
            if not {"copy", "zero"} & set(self.sequence_experts(task)):
                raise ValueError(
                    f"{name}: {task}_sequence_experts={self.sequence_experts(task)} has neither copy nor zero; "
                    "without an encoder none of its experts could be used"
                )
        if len(self.t2i_sequence_experts) != len(self.mmu_sequence_experts):
            raise ValueError(
                f"{name}: {len(self.t2i_sequence_experts)} t2i_sequence_experts but "
                f"{len(self.mmu_sequence_experts)} mmu_sequence_experts; both groups need as many"
            )
        if not 1 <= self.num_experts_per_sequence <= len(self.t2i_sequence_experts):
            raise ValueError(
                f"{name}: num_experts_per_sequence={self.num_experts_per_sequence}, expected 1 to "
                f"{len(self.t2i_sequence_experts)}, the number of experts in a group"
            )

    def sequence_experts(self, task: str) -> list[str]:
        """Names of the sequence-level experts of `task` (`"t2i"` or `"mmu"`), in router order."""
        return self.t2i_sequence_experts if task == "t2i" else self.mmu_sequence_experts


@strict
class UniF2aceVQConfig(PreTrainedConfig):
    r"""
    The image tokenizer: MAGVIT-v2 with lookup-free quantisation, weight-compatible with `showlab/magvitv2`.

    Args:
        resolution (`int`, *optional*, defaults to 256): Side of the square images, in pixels.
        in_channels (`int`, *optional*, defaults to 3): Colour channels.
        base_channels (`int`, *optional*, defaults to 128): Channels of the first level.
        encoder_multipliers (`list[int]`): Channels of each encoder level, as multiples of `base_channels`.
        encoder_blocks (`list[int]`): ResNet blocks of each encoder level.
        decoder_multipliers (`list[int]`): Channels of each decoder level (level 0 is the full resolution).
        decoder_blocks (`list[int]`): ResNet blocks of each decoder level.
        num_bits (`int`, *optional*, defaults to 13): Bits of a code; the codebook has `2**num_bits` codes.
        norm_num_groups (`int`, *optional*, defaults to 32): Groups of the GroupNorms.
        patch_size (`int`, *optional*, defaults to 1):
            Squares of so many pixels a side are stacked into channels before the first level and unstacked behind the
            last one: with 2, a quarter of the time for the same number of codes. MAGVIT-v2 has 1.

    The image is halved between levels, so a code stands for a square of `patch_size * 2**(levels - 1)` pixels a side.
    """

    model_type = "unif2ace_vq"
    base_config_key = "vq_config"
    _LISTS = ("encoder_multipliers", "encoder_blocks", "decoder_multipliers", "decoder_blocks")

    resolution: int = _whole(1, MAX_SIDE, 256)
    in_channels: int = _whole(1, MAX_WIDTH, 3)
    base_channels: int = _whole(1, MAX_WIDTH, 128)
    encoder_multipliers: list[int] | tuple[int, ...] = _levels(1, MAX_WIDTH, (1, 2, 2, 4, 4))
    encoder_blocks: list[int] | tuple[int, ...] = _levels(0, MAX_BLOCKS, (4, 3, 4, 3, 4))
    decoder_multipliers: list[int] | tuple[int, ...] = _levels(1, MAX_WIDTH, (1, 1, 2, 2, 4))
    decoder_blocks: list[int] | tuple[int, ...] = _levels(0, MAX_BLOCKS, (4, 4, 3, 4, 3))
    num_bits: int = _whole(1, MAX_BITS, 13)
    norm_num_groups: int = _whole(1, MAX_WIDTH, 32)
    patch_size: int = _whole(1, 16, 1)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for unread in ("entropy_loss_weight", "commitment_loss_weight"):  # of older checkpoints
            kwargs.pop(unread, None)
        for field in self._LISTS:
            setattr(self, field, list(getattr(self, field)))
        super().__post_init__(**kwargs)

    def validate_levels(self):
        """Part of `@strict`: levels that contradict each other or the resolution."""
        name = type(self).__name__
        lengths = {field: len(getattr(self, field)) for field in self._LISTS}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{name}: the four lists give the levels and must be equally long, got {lengths}")
        if self.resolution % self.downsample_factor:
            raise ValueError(
                f"{name}: resolution={self.resolution} is not a multiple of {self.downsample_factor}, the side of a "
                f"code with {len(self.encoder_blocks)} levels"
            )
        for multiplier in (*self.encoder_multipliers, *self.decoder_multipliers):
            _check_bounds(f"{name}: {multiplier} x base_channels", multiplier * self.base_channels, 1, MAX_WIDTH)
            if multiplier * self.base_channels % self.norm_num_groups:
                raise ValueError(
                    f"{name}: {multiplier} x base_channels={self.base_channels} is not a multiple of "
                    f"norm_num_groups={self.norm_num_groups}"
                )

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.num_bits

    @property
    def downsample_factor(self) -> int:
        """Side of the square of pixels that one code stands for."""
        return self.patch_size * 2 ** (len(self.encoder_blocks) - 1)

    @property
    def grid_size(self) -> int:
        """Codes along one side of an image."""
        return self.resolution // self.downsample_factor


@strict
class UniF2aceFaceEncoderConfig(PreTrainedConfig):
    r"""
    The face encoder: an IResNet with ArcFace's head, as AntelopeV2's `glintr100` (the defaults: IResNet-100).

    Args:
        image_size (`int`, *optional*, defaults to 112): Side of the aligned face crop, in pixels.
        stem_channels (`int`, *optional*, defaults to 64): Channels before the first stage.
        stage_channels (`list[int]`): Channels of each stage; each stage halves the picture.
        stage_blocks (`list[int]`): Residual blocks of each stage ([3, 13, 30, 3] is IResNet-100).
        embedding_size (`int`, *optional*, defaults to 512): Length of the face embedding.
        alignment (`str`, *optional*, defaults to `"whole"`):
            What the encoder was trained on: `"whole"` pictures, resized, or `"five_points"`, faces cut out so that
            their landmarks lie where ArcFace wants them.
        weights_license (`str`, *optional*): Licence of converted weights, kept with them.
    """

    model_type = "unif2ace_face_encoder"
    base_config_key = "face_config"

    image_size: int = _whole(1, MAX_SIDE, 112)
    in_channels: int = _whole(1, MAX_WIDTH, 3)
    stem_channels: int = _whole(1, MAX_WIDTH, 64)
    stage_channels: list[int] | tuple[int, ...] = _levels(1, MAX_WIDTH, (64, 128, 256, 512))
    stage_blocks: list[int] | tuple[int, ...] = _levels(1, MAX_BLOCKS, (3, 13, 30, 3))
    embedding_size: int = _whole(1, MAX_WIDTH, 512)
    initializer_range: float = 0.1
    alignment: Literal["whole", "five_points"] = "whole"
    weights_license: str | None = None

    def __post_init__(self, **kwargs):
        self.stage_channels, self.stage_blocks = list(self.stage_channels), list(self.stage_blocks)
        super().__post_init__(**kwargs)

    def validate_stages(self):
        """Part of `@strict`: stages that contradict each other or the size of the picture."""
        name = type(self).__name__
        if len(self.stage_channels) != len(self.stage_blocks):
            raise ValueError(
                f"{name}: {len(self.stage_channels)} stage_channels but {len(self.stage_blocks)} stage_blocks; "
                "give one of each per stage"
            )
        if self.image_size % 2 ** len(self.stage_blocks):
            raise ValueError(
                f"{name}: image_size={self.image_size} is not a multiple of {2 ** len(self.stage_blocks)}; "
                f"each of the {len(self.stage_blocks)} stages halves it"
            )

    @property
    def feature_grid(self) -> int:
        """Side of the last stage's feature map."""
        return self.image_size // 2 ** len(self.stage_blocks)


@strict
class UniF2aceConfig(PreTrainedConfig):
    r"""
    A UniF²ace model.

    Args:
        text_config (`UniF2aceTextConfig` or `dict`, *optional*): The transformer.
        vq_config (`UniF2aceVQConfig` or `dict`, *optional*): The image tokenizer.
        vision_config (`CLIPVisionConfig` or `dict`, *optional*):
            A CLIP vision tower that lives in the model and in its checkpoint. Without it the CLIP expert takes
            features from outside (`clip_features`) or from a tower given to `set_vision_tower`.
        face_config (`UniF2aceFaceEncoderConfig` or `dict`, *optional*): Likewise for the face encoder.
        vision_feature_layer (`int`, *optional*, defaults to -2): Hidden state of CLIP that is used (Show-o: -2).
        understanding_input (`str`, *optional*, defaults to `"codes"`):
            How understanding rows see their picture: `"codes"`, the image tokenizer's codes, or `"clip"`, CLIP patch
            features through `mm_projector` (Linear, GELU, Linear), as Show-o's `w_clip_vit` variant.
        num_clip_tokens (`int`, *optional*): Patches of one image, the length of its span with `"clip"`; read from
            `vision_config` when that is given, else 576 (ViT-L/14 at 336 pixels).
        clip_feature_size (`int`, *optional*): Width of CLIP's features; read from `vision_config` when that is given.
        face_feature_size (`int`, *optional*): Width of the face embedding; read from `face_config` when given.
        text_vocab_size (`int`, *optional*, defaults to 50295):
            Ids of ordinary text. The ten special tokens, the image codes and the mask token follow, in this order.
        max_text_length (`int`, *optional*, defaults to 128):
            Text tokens, with `bos` and `eos`, that a text-to-image prompt may have. The image starts at position
            `max_text_length + 1` whatever the text's length, as in Show-o.
        image_position_embeddings (`bool`, *optional*, defaults to `False`):
            Learnt embeddings of the place in the code grid, added to code and mask embeddings. Show-o has none;
            a small model trained from scratch learns the grid much faster with them.
        resampler_hidden_size (`int`, *optional*, defaults to 1024): Width of the resamplers.
        resampler_depth (`int`, *optional*, defaults to 1): Blocks of each resampler.
        resampler_num_heads (`int`, *optional*, defaults to 16): Heads of each resampler.
        resampler_intermediate_size (`int`, *optional*): MLP width of the resamplers; by default 4 times theirs.
        noise_feature (`str`, *optional*, defaults to `"mask_ratio"`):
            What the noise expert is told: `"mask_ratio"`, the sinusoidal embedding of the share of masked codes,
            `"gaussian"`, a standard normal vector, or `"mask_ratio_gaussian"`, half of each.
        noise_feature_size (`int`, *optional*, defaults to 256): Length of that vector.

    Raises:
        StrictDataclassError: if a number is out of its bounds, or the parts contradict each other; the message names
            them.
    """

    model_type = "unif2ace"
    sub_configs_defaults = {
        "text_config": UniF2aceTextConfig,
        "vq_config": UniF2aceVQConfig,
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig, optional=True),
        "face_config": SubConfigSpec(config_class=UniF2aceFaceEncoderConfig, optional=True),
    }

    text_config: dict | PreTrainedConfig | None = None
    vq_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = validated_field(_check_vision_tower, default=None)
    face_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -2
    understanding_input: Literal["codes", "clip"] = "codes"
    num_clip_tokens: int | None = _whole(1, MAX_VOCABULARY, None)
    clip_feature_size: int | None = _whole(1, MAX_WIDTH, None)
    face_feature_size: int | None = _whole(1, MAX_WIDTH, None)
    text_vocab_size: int = _whole(0, MAX_VOCABULARY, 50_295)
    max_text_length: int = _whole(1, MAX_VOCABULARY, 128)
    image_position_embeddings: bool = False
    resampler_hidden_size: int = _whole(1, MAX_WIDTH, 1024)
    resampler_depth: int = _whole(0, MAX_LAYERS, 1)
    resampler_num_heads: int = _whole(1, MAX_WIDTH, 16)
    resampler_intermediate_size: int | None = _whole(1, MAX_WIDTH, None)
    noise_feature: Literal["mask_ratio", "gaussian", "mask_ratio_gaussian"] = "mask_ratio"
    noise_feature_size: int = _whole(1, MAX_WIDTH, 256)
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if not type(self).__module__.startswith("transformers_modules"):
            # Published configurations name the repository's own pipeline, which transformers would run before the
            # registered one, and only with `trust_remote_code=True`.
            kwargs.pop("custom_pipelines", None)
        kwargs.pop("vision_model_id", None)  # of older checkpoints: nothing reads it
        super().__post_init__(**kwargs)
        if self.resampler_intermediate_size is None:
            self.resampler_intermediate_size = 4 * self.resampler_hidden_size
        vision, face = self.vision_config, self.face_config
        if vision is not None:
            self.num_clip_tokens = (vision.image_size // vision.patch_size) ** 2
            self.clip_feature_size = vision.hidden_size
        self.num_clip_tokens = 576 if self.num_clip_tokens is None else self.num_clip_tokens
        self.clip_feature_size = 1024 if self.clip_feature_size is None else self.clip_feature_size
        if face is not None:
            self.face_feature_size = face.embedding_size
        self.face_feature_size = 512 if self.face_feature_size is None else self.face_feature_size

    def validate_parts(self):
        """Part of `@strict`: parts that were not made for each other."""
        name = type(self).__name__
        expected = self.mask_token_id + 1
        if self.text_config.vocab_size != expected:
            raise ValueError(
                f"{name}: text_config.vocab_size={self.text_config.vocab_size}, expected {expected} = "
                f"{self.text_vocab_size} text + {len(SPECIAL_TOKENS)} special + {self.vq_config.codebook_size} codes "
                "+ 1 mask"
            )
        longest = self.max_text_length + 1 + self.num_image_tokens + 2
        if longest > self.text_config.max_position_embeddings:
            raise ValueError(
                f"{name}: a prompt of max_text_length={self.max_text_length} with {self.num_image_tokens} image codes "
                f"needs {longest} positions, but max_position_embeddings={self.text_config.max_position_embeddings}"
            )
        if self.resampler_hidden_size % self.resampler_num_heads:
            raise ValueError(
                f"{name}: resampler_hidden_size={self.resampler_hidden_size} is not a multiple of "
                f"resampler_num_heads={self.resampler_num_heads}"
            )
        if self.understanding_input == "clip" and self.image_position_embeddings:
            raise ValueError(
                f'{name}: image_position_embeddings are for image codes, but understanding_input="clip" has none'
            )
        if self.noise_feature_size % 2:
            raise ValueError(f"{name}: noise_feature_size={self.noise_feature_size} is not even")

    @property
    def num_image_tokens(self) -> int:
        """Codes of one image."""
        return self.vq_config.grid_size**2

    @property
    def num_understanding_tokens(self) -> int:
        """Places that one image takes in an understanding row: its codes, or its CLIP patches."""
        return self.num_clip_tokens if self.understanding_input == "clip" else self.num_image_tokens

    @property
    def image_code_offset(self) -> int:
        """Vocabulary id of image code 0."""
        return self.text_vocab_size + len(SPECIAL_TOKENS)

    @property
    def mask_token_id(self) -> int:
        """Vocabulary id of the mask token, the last one."""
        return self.image_code_offset + self.vq_config.codebook_size

    @property
    def image_token_id(self) -> int:
        """Placeholder that `pixel_values` fill: the mask token, an image code that is not known yet."""
        return self.mask_token_id

    @property
    def layout(self) -> SequenceLayout:
        """How the model's sequences are spelled."""
        return SequenceLayout.from_config(self)

    def special_token_id(self, token: str) -> int:
        """Vocabulary id of one of `SPECIAL_TOKENS`."""
        return self.text_vocab_size + SPECIAL_TOKENS.index(token)


__all__ = ["UniF2aceConfig", "UniF2aceFaceEncoderConfig", "UniF2aceTextConfig", "UniF2aceVQConfig"]
