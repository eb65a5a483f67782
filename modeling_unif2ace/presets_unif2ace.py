"""Named shapes: `get_preset("tiny")`, also `faces`, `unif2ace-1.8b`, `showo-256` and `showo-512`."""

from .configuration_unif2ace import UniF2aceConfig
from .layout_unif2ace import SPECIAL_TOKENS


def _vocab_size(text_vocab_size: int, num_bits: int) -> int:
    return text_vocab_size + len(SPECIAL_TOKENS) + 2**num_bits + 1


def tiny() -> UniF2aceConfig:
    """Every part of the model in under a million parameters, for tests: 16-pixel images, 16 codes of 5 bits."""
    text_vocab_size = 302
    return UniF2aceConfig(
        text_vocab_size=text_vocab_size,
        max_text_length=24,
        text_config={
            "vocab_size": _vocab_size(text_vocab_size, 5),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "shared_expert_intermediate_size": 32,
            "routed_expert_intermediate_size": 16,
            "num_routed_experts": 4,
            "pad_token_id": text_vocab_size,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "sequence_router_copy_bias": 0.0,
        },
        vq_config={
            "resolution": 16,
            "base_channels": 8,
            "encoder_multipliers": [1, 2, 2],
            "encoder_blocks": [1, 1, 1],
            "decoder_multipliers": [1, 1, 2],
            "decoder_blocks": [1, 1, 1],
            "num_bits": 5,
            "norm_num_groups": 4,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 16,
        },
        face_config={
            "image_size": 16,
            "stem_channels": 8,
            "stage_channels": [8, 16],
            "stage_blocks": [1, 1],
            "embedding_size": 16,
        },
        resampler_hidden_size=32,
        resampler_num_heads=4,
        noise_feature_size=16,
    )


def faces() -> UniF2aceConfig:
    """The shape of the bundled checkpoint: 64-pixel painted faces, 256 codes of 10 bits, both levels of experts."""
    text_vocab_size = 1014
    return UniF2aceConfig(
        text_vocab_size=text_vocab_size,
        max_text_length=160,
        image_position_embeddings=True,
        text_config={
            "vocab_size": _vocab_size(text_vocab_size, 10),
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "max_position_embeddings": 1024,
            "hidden_act": "gelu_pytorch_tanh",  # the function of gelu_new, in one kernel
            "shared_expert_intermediate_size": 512,
            "routed_expert_intermediate_size": 128,
            "num_routed_experts": 8,
            "pad_token_id": text_vocab_size,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "sequence_router_copy_bias": 0.0,
        },
        vq_config={
            "resolution": 64,
            "base_channels": 16,
            "encoder_multipliers": [1, 2, 4],
            "encoder_blocks": [0, 1, 1],
            "decoder_multipliers": [1, 2, 4],
            "decoder_blocks": [1, 1, 0],
            "num_bits": 10,
            "norm_num_groups": 8,
        },
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": 128,
        },
        face_config={
            "image_size": 64,
            "stem_channels": 16,
            "stage_channels": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1],
            "embedding_size": 128,
        },
        vision_feature_layer=-1,
        resampler_hidden_size=192,
        resampler_num_heads=6,
        resampler_intermediate_size=384,
        noise_feature_size=64,
    )


def full() -> UniF2aceConfig:
    """
    Show-o's shape (Phi-1.5, 256 codes of 13 bits) with a shared expert 1536 wide and 8 routed experts 512 wide in
    each group of all 24 layers. The paper says 1.8B parameters but not the widths; with the resamplers these give it.
    """
    return UniF2aceConfig()


def showo_256() -> UniF2aceConfig:
    """Show-o itself at 256 pixels (`showlab/show-o`): dense, without experts of either level."""
    return UniF2aceConfig(text_config={"moe_layers": [], "sequence_moe_layers": []})


def showo_512() -> UniF2aceConfig:
    """Show-o at 512 pixels (`showlab/show-o-512x512`): the same weights' shapes, 1024 codes an image."""
    config = showo_256().to_dict()
    config["vq_config"]["resolution"] = 512
    return UniF2aceConfig(**config)


PRESETS = {
    "tiny": tiny,
    "faces": faces,
    "1.8b": full,
    "unif2ace-1.8b": full,
    "showo-256": showo_256,
    "showo-512": showo_512,
}


def get_preset(name: str) -> UniF2aceConfig:
    """
    A fresh configuration of a named shape.

    Args:
        name (`str`): One of `PRESETS`: `"tiny"`, `"faces"`, `"unif2ace-1.8b"` (or `"1.8b"`), `"showo-256"`,
            `"showo-512"`.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]()


__all__ = ["PRESETS", "get_preset"]
