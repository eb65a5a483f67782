"""
Show-o's layout in our terms: names of tensors, their shapes, configurations, tokenizer. `convert_showo.py` uses it.

The language model of Show-o is ours without experts, tensor for tensor; its image tokenizer (`showlab/magvitv2`) has
our names. Its configuration holds no sizes of the language model (the original takes them from `llm_model_path`), so
they are read off the tensors; what tensors do not tell (rotary base, longest sequence, activation) comes from the
language model's own `config.json`, or is Phi-1.5's.
"""

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from ...modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoderConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceVQConfig,
    UniF2aceVQModel,
)
from ...modeling_unif2ace.image_tokenizer_unif2ace import codes_to_bits
from ...modeling_unif2ace.layout_unif2ace import SPECIAL_TOKENS
from ...pipelines.files import read_json
from ...pipelines.loading_unif2ace import fetch_folder
from .upcycle import expert_widths


SHOWO_CLASS = "Showo"
DEFAULT_TEXT_MODEL = "microsoft/phi-1_5"
TOKENIZER_FILES = [
    "config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
]
# Show-o's image tokenizer stores its codebook; ours computes it.
CODEBOOK_KEYS = ("quantize.embedding", "quantize.power_vals")
END_OF_TEXT = "<|endoftext|>"

_LAYER = re.compile(r"showo\.model\.layers\.(\d+)\.")
_PREFIXES = (
    ("model.language_model.", "showo.model."),
    ("lm_head.", "showo.lm_head."),
    ("model.mm_projector.", "mm_projector."),
)
# fields of a Phi configuration that the tensors do not tell
_PHI_FIELDS = ("hidden_act", "layer_norm_eps", "max_position_embeddings")


def showo_name(name: str) -> str:
    """Show-o's name of one of our dense model's tensors (not of the image tokenizer's)."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} has no counterpart in Show-o")


def our_name(name: str) -> str:
    """The inverse of [`showo_name`]."""
    for ours, theirs in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise ValueError(f"{name} is not a name of Show-o's")


def model_shapes(config: UniF2aceConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model, without making them."""
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def showo_shapes(config: UniF2aceConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that Show-o's checkpoint of a dense configuration has; also of one with experts, left out here."""
    values = config.to_dict()
    values["text_config"] |= {"moe_layers": [], "sequence_moe_layers": []}
    dense = UniF2aceConfig(**values | {"vision_config": None, "face_config": None})
    return {
        showo_name(name): shape
        for name, shape in model_shapes(dense).items()
        if not name.startswith(("model.vq_model.", "model.vision_tower.", "model.face_encoder."))
    }


def magvit_shapes(config: UniF2aceVQConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that Show-o's checkpoint of an image tokenizer has."""
    with torch.device("meta"):
        model = UniF2aceVQModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes | {CODEBOOK_KEYS[0]: (config.codebook_size, config.num_bits), CODEBOOK_KEYS[1]: (config.num_bits,)}


def codebook_tables(config: UniF2aceVQConfig) -> dict[str, torch.Tensor]:
    """The two tables that Show-o stores: every code's bits as -1 and +1, and the bits' weights."""
    codes = torch.arange(config.codebook_size)[None]
    bits = codes_to_bits(codes, config.num_bits, 1, config.codebook_size)[0, :, 0].T
    weights = 2 ** torch.arange(config.num_bits - 1, -1, -1)
    return {CODEBOOK_KEYS[0]: bits.float().contiguous(), CODEBOOK_KEYS[1]: weights}


# What the source says


def read_showo_config(folder: Path) -> dict[str, Any]:
    """
    Show-o's `config.json`.

    Raises:
        ValueError: if it is absent or broken, is another model's, or its numbers contradict each other.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no config.json, expected a checkpoint of Show-o") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: download it again") from error
    if not isinstance(config, dict) or config.get("_class_name") != SHOWO_CLASS:
        found = "no model"
        if isinstance(config, dict):
            found = config.get("_class_name") or (config.get("architectures") or [config.get("model_type")])[0]
        raise ValueError(f"{folder} holds a checkpoint of {found}, expected Show-o's (_class_name {SHOWO_CLASS!r})")
    numbers = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens")
    absent = [name for name in numbers if not isinstance(config.get(name), int)]
    if absent:
        raise ValueError(f"{path} has no number for {', '.join(absent)}, expected Show-o's configuration")
    expected = config["llm_vocab_size"] + len(SPECIAL_TOKENS) + config["codebook_size"] + 1
    if config["vocab_size"] != expected:
        raise ValueError(
            f"{path} has vocab_size={config['vocab_size']}, expected {expected} = {config['llm_vocab_size']} text + "
            f"{len(SPECIAL_TOKENS)} special + {config['codebook_size']} codes + 1 mask"
        )
    if config.get("mask_token_id", expected - 1) != expected - 1:
        raise ValueError(f"{path} has mask_token_id={config['mask_token_id']}, expected the last id, {expected - 1}")
    return config


@dataclass(frozen=True)
class ShowoText:
    """The text tokenizer and what the own configuration says of the language model that Show-o began with."""

    tokenizer: PreTrainedTokenizerFast
    fields: dict[str, Any]


def read_text_model(name: str | os.PathLike, text_vocab_size: int) -> ShowoText:
    """
    Tokenizer and configuration of the language model that Show-o was made from.

    Args:
        name (`str` or `os.PathLike`): A folder with `tokenizer.json` (and perhaps `config.json`), or a Hub id.
        text_vocab_size (`int`): Ids of text in the checkpoint.

    Raises:
        OSError: if there is no tokenizer.
        ValueError: if it has another number of ids, or no end of text.
    """
    folder = fetch_folder(name, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{name} has no tokenizer.json, expected the text tokenizer of {DEFAULT_TEXT_MODEL}")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library of tokenizers raises plain Exception for broken files
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read ({error}): download it again") from error
    for kind in ("bos_token", "eos_token"):
        if getattr(tokenizer, kind) is None and END_OF_TEXT in tokenizer.get_vocab():
            setattr(tokenizer, kind, END_OF_TEXT)
    if len(tokenizer) != text_vocab_size:
        raise ValueError(
            f"the tokenizer {name} has {len(tokenizer)} ids, but the checkpoint was trained with {text_vocab_size} "
            "ids of text: give the tokenizer that it was trained with (--text-model)"
        )
    config_file, fields = folder / "config.json", {}
    if config_file.is_file():
        try:
            fields = _phi_fields(read_json(config_file))
        except ValueError as error:
            raise ValueError(f"{config_file} is not JSON: download it again") from error
    return ShowoText(tokenizer, fields)


def _phi_fields(config: dict[str, Any]) -> dict[str, Any]:
    fields = {name: config[name] for name in _PHI_FIELDS if config.get(name) is not None}
    rope = dict(config.get("rope_parameters") or {})
    for name, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", 0.5)):
        rope.setdefault(name, config.get(name, default))
    return fields | {"rope_parameters": {"rope_type": "default"} | rope}


def text_sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """
    Sizes of Show-o's language model, read off its tensors' shapes.

    Raises:
        ValueError: if the tensors that tell them are not there.
    """
    first = "showo.model.layers.0."
    needed = ["showo.model.embed_tokens.weight"]
    needed += [first + name for name in ("self_attn.q_layernorm.weight", "self_attn.k_proj.weight", "mlp.fc1.weight")]
    absent = [name for name in needed if name not in shapes]
    if absent:
        known = next(iter(shapes), "nothing")
        raise ValueError(f"the checkpoint has no {absent[0]} (but {known}, ...), expected Show-o's tensors")
    embeddings, norm, keys, mlp = (shapes[name] for name in needed)
    layers = {int(match[1]) for match in map(_LAYER.match, shapes) if match}
    return {
        "vocab_size": embeddings[0],
        "hidden_size": embeddings[1],
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": embeddings[1] // norm[0],
        "num_key_value_heads": keys[0] // norm[0],
        "intermediate_size": mlp[0],
    }


def magvit_config(shapes: dict[str, tuple[int, ...]], num_image_tokens: int) -> UniF2aceVQConfig:
    """
    The image tokenizer's configuration, read off its tensors' shapes.

    Args:
        shapes (`dict[str, tuple[int, ...]]`): Show-o's tensors.
        num_image_tokens (`int`): Codes of an image; with the number of levels they give the resolution.

    Raises:
        ValueError: if the tensors that tell are not there, or the numbers do not fit.
    """

    def levels(side: str) -> list[int]:
        found = {int(name.split(".")[2]) for name in shapes if name.startswith(side)}
        return list(range(max(found, default=-1) + 1))

    def blocks(level: str) -> int:
        return len({name.split(".")[4] for name in shapes if name.startswith(f"{level}.block.")})

    def width(level: str) -> int:
        return shapes[f"{level}.block.0.conv1.weight"][0]

    try:
        base, bits = shapes["encoder.conv_in.weight"][0], shapes["encoder.quant_conv.weight"][0]
        down, up = ([f"{side}.{level}" for level in levels(side)] for side in ("encoder.down", "decoder.up"))
        widths = [width(level) for level in (*down, *up)]
    except (KeyError, IndexError) as error:
        raise ValueError(f"the image tokenizer has no {error}, expected the tensors of showlab/magvitv2") from error
    if any(wide % base for wide in widths):
        raise ValueError(f"the image tokenizer's levels are {widths} wide, expected multiples of the first, {base}")
    grid = math.isqrt(num_image_tokens)
    if grid**2 != num_image_tokens:
        raise ValueError(f"images have {num_image_tokens} codes, expected a square number")
    return UniF2aceVQConfig(
        resolution=grid * 2 ** (len(down) - 1),
        in_channels=shapes["encoder.conv_in.weight"][1],
        base_channels=base,
        encoder_multipliers=[width(level) // base for level in down],
        encoder_blocks=[blocks(level) for level in down],
        decoder_multipliers=[width(level) // base for level in up],
        decoder_blocks=[blocks(level) for level in up],
        num_bits=bits,
    )


# The configuration that we make of it


@dataclass(frozen=True)
class ExpertChoice:
    """
    What upcycling makes of each MLP.

    Args:
        method (`str`): `"none"`, `"full-shared"` or `"split"`, see `upcycle.py`.
        num_routed_experts (`int`, *optional*): Routed experts of each group; 8 when not given.
        num_experts_per_tok (`int`, *optional*): How many of them a token uses; 2 when not given.
        shared_width (`int`, *optional*): Width of the shared expert (`"split"` only).
        routed_width (`int`, *optional*): Width of the routed experts; a sixteenth of the MLP when not given.
    """

    method: str = "full-shared"
    num_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    shared_width: int | None = None
    routed_width: int | None = None


def make_config(
    showo: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    vq_config: UniF2aceVQConfig,
    text: ShowoText,
    experts: ExpertChoice,
    max_text_length: int = 128,
    preset: UniF2aceConfig | None = None,
    vision_config: CLIPVisionConfig | None = None,
    face_config: UniF2aceFaceEncoderConfig | None = None,
) -> UniF2aceConfig:
    """
    Our configuration of a Show-o checkpoint.

    Args:
        showo (`dict`): Show-o's configuration.
        shapes (`dict[str, tuple[int, ...]]`): Shapes of Show-o's tensors.
        vq_config (`UniF2aceVQConfig`): The image tokenizer.
        text (`ShowoText`): Tokenizer, and numbers that the tensors do not tell.
        experts (`ExpertChoice`): What the MLPs become.
        max_text_length (`int`, *optional*, defaults to 128): Text slots of a prompt (`max_seq_length` of Show-o).
        preset (`UniF2aceConfig`, *optional*): The shape that the checkpoint must have, and the experts' widths.
        vision_config (`CLIPVisionConfig`, *optional*): A CLIP tower that comes into the checkpoint.
        face_config (`UniF2aceFaceEncoderConfig`, *optional*): A face encoder that comes into the checkpoint.

    Raises:
        ValueError: if checkpoint, preset and choices do not fit together; the message says which numbers.
    """
    sizes = text_sizes(shapes)
    if sizes["vocab_size"] != showo["vocab_size"]:
        raise ValueError(
            f"the checkpoint's vocabulary has {sizes['vocab_size']} ids, but its config.json says "
            f"vocab_size={showo['vocab_size']}: they do not belong together"
        )
    if vq_config.codebook_size != showo["codebook_size"]:
        raise ValueError(
            f"the image tokenizer has {vq_config.codebook_size} codes, but the checkpoint was trained with "
            f"{showo['codebook_size']}: give the image tokenizer that it was trained with (--magvit)"
        )
    if preset is not None:
        _check_preset(preset, sizes, showo, vq_config)
        if experts.method == "split" and preset.text_config.moe_layers:
            widths = preset.text_config
            experts = replace(
                experts,
                shared_width=experts.shared_width or widths.shared_expert_intermediate_size,
                routed_width=experts.routed_width or widths.routed_expert_intermediate_size,
            )
    every_layer = list(range(sizes["num_hidden_layers"])) if experts.method != "none" else []
    num_routed = experts.num_routed_experts or 8
    text_config = {
        **text.fields,
        **sizes,
        "pad_token_id": showo["llm_vocab_size"],
        "bos_token_id": text.tokenizer.bos_token_id,
        "eos_token_id": text.tokenizer.eos_token_id,
        "moe_layers": every_layer,
        "sequence_moe_layers": every_layer,
        "num_routed_experts": num_routed,
        "num_experts_per_tok": experts.num_experts_per_tok or min(2, num_routed),
        "sequence_router_copy_bias": 1.0,  # copy + copy, the identity
    }
    if every_layer:
        shared, routed = expert_widths(
            experts.method, sizes["intermediate_size"], num_routed, experts.shared_width, experts.routed_width
        )
        text_config |= {"shared_expert_intermediate_size": shared, "routed_expert_intermediate_size": routed}
    clip_input = bool(showo.get("w_clip_vit"))
    clip_width = {}
    if clip_input and vision_config is None and "mm_projector.0.weight" in shapes:
        clip_width["clip_feature_size"] = shapes["mm_projector.0.weight"][1]
    width = min(1024, sizes["hidden_size"])
    return UniF2aceConfig(
        text_config=text_config,
        vq_config=vq_config.to_dict(),
        vision_config=None if vision_config is None else vision_config.to_dict(),
        face_config=None if face_config is None else face_config.to_dict(),
        text_vocab_size=showo["llm_vocab_size"],
        max_text_length=max_text_length,
        understanding_input="clip" if clip_input else "codes",
        resampler_hidden_size=width,
        resampler_num_heads=16 if width % 16 == 0 else 1,
        **clip_width,
    )


def _check_preset(preset: UniF2aceConfig, sizes: dict[str, int], showo: dict[str, Any], vq_config: UniF2aceVQConfig):
    found = sizes | {"num_image_tokens": showo["num_vq_tokens"], "num_bits": vq_config.num_bits}
    wanted = {name: getattr(preset.text_config, name) for name in sizes}
    wanted |= {"num_image_tokens": preset.num_image_tokens, "num_bits": preset.vq_config.num_bits}
    wrong = [f"{name}={found[name]} instead of {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if wrong:
        raise ValueError(
            f"the checkpoint does not have the preset's shape: {', '.join(wrong)}; take another preset, or none, "
            "which takes the shape from the checkpoint"
        )


def showo_config(config: UniF2aceConfig, text_model: str = DEFAULT_TEXT_MODEL) -> dict[str, Any]:
    """Show-o's `config.json` of one of our dense models."""
    return {
        "_class_name": SHOWO_CLASS,
        "_diffusers_version": "0.29.2",
        "codebook_size": config.vq_config.codebook_size,
        "llm_model_path": text_model,
        "llm_vocab_size": config.text_vocab_size,
        "load_from_showo": True,
        "mask_token_id": config.mask_token_id,
        "num_vq_tokens": config.num_image_tokens,
        "vocab_size": config.text_config.vocab_size,
        "w_clip_vit": config.understanding_input == "clip",
    }
