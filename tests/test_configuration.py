"""Configurations: strict types, numbers that must fit together, JSON, presets."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import AutoConfig, CLIPVisionConfig

from unif2ace.modeling_unif2ace import (
    PRESETS,
    UniF2aceConfig,
    UniF2aceFaceEncoderConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceTextConfig,
    UniF2aceVQConfig,
    get_preset,
)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def changed(config, **parts):
    """The configuration built again with other numbers; a part may be a dict of changes."""
    values = config.to_dict()
    for name, value in parts.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return UniF2aceConfig(**values)


@pytest.mark.parametrize(
    "config_class, field, value",
    [
        (UniF2aceTextConfig, "hidden_size", "2048"),
        (UniF2aceTextConfig, "hidden_size", 2048.0),
        (UniF2aceTextConfig, "moe_layers", [1.5]),
        (UniF2aceTextConfig, "norm_topk_prob", "yes"),
        (UniF2aceVQConfig, "num_bits", 12.5),
        (UniF2aceFaceEncoderConfig, "stage_blocks", "3, 13, 30, 3"),
        (UniF2aceConfig, "noise_feature", 3),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(config_class, field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        config_class(**{field: value})


@pytest.mark.parametrize(
    "values, words",
    [
        ({"hidden_size": 100, "num_attention_heads": 16}, ["hidden_size=100", "num_attention_heads=16"]),
        ({"num_key_value_heads": 5}, ["num_attention_heads=32", "num_key_value_heads=5"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "it is 0, expected 1 to"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "it is 0, expected 1 to"]),
        ({"block_form": "diagonal"}, ["block_form", "diagonal", "'parallel'", "'sequential'"]),
        ({"moe_layers": [0, 24]}, ["moe_layers", "[24]", "24 layers"]),
        ({"sequence_moe_layers": [-1]}, ["sequence_moe_layers", "[-1]", "24 layers"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok=9", "num_routed_experts=8"]),
        ({"num_experts_per_tok": 0}, ["num_experts_per_tok=0", "1 to"]),
        ({"routed_expert_intermediate_size": 12}, ["routed_expert_intermediate_size=12", "multiple of 8"]),
        ({"hidden_size": 36, "num_attention_heads": 4}, ["hidden_size=36", "multiple of 8"]),
        ({"t2i_sequence_experts": ["copy", "copy", "zero", "clip"]}, ["t2i_sequence_experts='clip'", "'noise'"]),
        ({"mmu_sequence_experts": ["copy", "noise"]}, ["mmu_sequence_experts='noise'", "'face'"]),
        ({"t2i_sequence_experts": ["copy", "zero", "noise"]}, ["3 t2i_sequence_experts", "4 mmu_sequence_experts"]),
        ({"num_experts_per_sequence": 5}, ["num_experts_per_sequence=5", "1 to 4"]),
    ],
)
def test_contradictions_in_the_text_model_are_named(values, words):
    with pytest.raises(StrictDataclassError) as error:
        UniF2aceTextConfig(**values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"encoder_blocks": [1, 1]}, ["encoder_blocks", "2", "5"]),
        ({"decoder_blocks": [1, 1, 1, 1, -1]}, ["decoder_blocks", "an entry is -1, expected 0 to 256"]),
        ({"encoder_multipliers": []}, ["encoder_multipliers", "the number of entries is 0, expected 1 to 16"]),
        ({"resolution": 250}, ["resolution=250", "16", "5 levels"]),
        ({"num_bits": 0}, ["num_bits", "it is 0, expected 1 to 24"]),
        ({"base_channels": 24}, ["base_channels=24", "norm_num_groups=32"]),
    ],
)
def test_contradictions_in_the_image_tokenizer_are_named(values, words):
    with pytest.raises(StrictDataclassError) as error:
        UniF2aceVQConfig(**values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"stage_channels": [64, 128]}, ["2 stage_channels", "4 stage_blocks"]),
        ({"image_size": 100}, ["image_size=100", "16", "4 stages"]),
    ],
)
def test_contradictions_in_the_face_encoder_are_named(values, words):
    with pytest.raises(StrictDataclassError) as error:
        UniF2aceFaceEncoderConfig(**values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"text_config": {"vocab_size": 400}}, ["vocab_size=400", "expected 345", "302 text", "32 codes"]),
        ({"vq_config": {"num_bits": 6}}, ["vocab_size=345", "expected 377", "64 codes"]),
        ({"max_text_length": 300}, ["max_text_length=300", "16 image codes", "319", "max_position_embeddings=256"]),
        ({"resampler_num_heads": 5}, ["resampler_hidden_size=32", "resampler_num_heads=5"]),
        ({"noise_feature": "pink"}, ["noise_feature", "pink", "'mask_ratio'", "'gaussian'"]),
        ({"noise_feature_size": 15}, ["noise_feature_size=15", "even"]),
        ({"vision_config": {"patch_size": 0}}, ["vision_config", "patch_size is 0, expected 1 to"]),
    ],
)
def test_contradictions_between_the_parts_are_named(parts, words):
    with pytest.raises(StrictDataclassError) as error:
        changed(get_preset("tiny"), **parts)
    for word in words:
        assert word in str(error.value)


def test_a_number_that_is_set_later_is_checked_too(tmp_path):
    config = get_preset("tiny")
    with pytest.raises(StrictDataclassError, match="resampler_depth"):
        config.resampler_depth = -1
    config.text_config.num_key_value_heads = 3
    with pytest.raises(StrictDataclassError, match="num_attention_heads=4 is not a multiple of num_key_value_heads=3"):
        config.text_config.save_pretrained(tmp_path)


def test_not_given_lists_mean_every_layer_and_an_empty_list_means_none():
    config = UniF2aceTextConfig(num_hidden_layers=3)
    assert config.moe_layers == config.sequence_moe_layers == [0, 1, 2]
    config = UniF2aceTextConfig(num_hidden_layers=3, moe_layers=[2, 0], sequence_moe_layers=[])
    assert (config.moe_layers, config.sequence_moe_layers) == ([0, 2], [])


def test_the_vocabulary_is_laid_out_as_in_show_o():
    config = UniF2aceConfig()
    assert config.special_token_id("[PAD]") == config.text_config.pad_token_id == 50_295
    assert config.special_token_id("<|soi|>") == 50_296
    assert config.special_token_id("<|t2i|>") == 50_300
    assert config.special_token_id("<|lvg|>") == 50_304
    assert config.image_code_offset == 50_305
    assert config.mask_token_id == config.image_token_id == config.text_config.vocab_size - 1 == 58_497
    assert config.num_image_tokens == 256


def test_feature_sizes_come_from_the_encoders_that_are_there():
    config = get_preset("tiny")
    assert config.clip_feature_size == config.vision_config.hidden_size == 24
    assert config.face_feature_size == config.face_config.embedding_size == 16
    bare = UniF2aceConfig()
    assert (bare.clip_feature_size, bare.face_feature_size) == (1024, 512)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip_keeps_every_value_and_the_types_of_the_parts(name, tmp_path):
    config = get_preset(name)
    config.save_pretrained(tmp_path)
    for loaded in (UniF2aceConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is UniF2aceConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert type(loaded.text_config) is UniF2aceTextConfig
        assert type(loaded.vq_config) is UniF2aceVQConfig


def test_json_round_trip_keeps_encoders_that_are_there_and_those_that_are_not(tmp_path):
    config = get_preset("tiny")
    config.save_pretrained(tmp_path / "with")
    loaded = UniF2aceConfig.from_pretrained(tmp_path / "with")
    assert type(loaded.vision_config) is CLIPVisionConfig
    assert type(loaded.face_config) is UniF2aceFaceEncoderConfig

    changed(config, vision_config=None, face_config=None).save_pretrained(tmp_path / "without")
    loaded = UniF2aceConfig.from_pretrained(tmp_path / "without")
    assert loaded.vision_config is None and loaded.face_config is None
    assert (loaded.clip_feature_size, loaded.face_feature_size) == (24, 16)  # the resamplers' widths stay known


def test_parts_may_be_given_as_objects():
    tiny = get_preset("tiny")
    config = UniF2aceConfig(
        text_config=tiny.text_config,
        vq_config=tiny.vq_config,
        text_vocab_size=tiny.text_vocab_size,
        max_text_length=24,
        resampler_num_heads=4,
    )
    assert config.text_config.hidden_size == 32 and config.vision_config is None


def test_presets_are_fresh_each_time():
    first = get_preset("tiny")
    first.text_config.hidden_size = 64
    assert get_preset("tiny").text_config.hidden_size == 32


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'huge'.*tiny, faces, 1\.8b, unif2ace-1\.8b, showo-256, showo-512"):
        get_preset("huge")


def test_the_tiny_preset_has_every_part_in_under_a_million_parameters():
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(get_preset("tiny"))
    assert parameters(model) < 1_000_000
    assert set(model.model.resamplers) == {"noise", "clip", "face"}
    assert model.model.vision_tower is not None and model.model.face_encoder is not None


def test_the_faces_preset_builds_a_model():
    config = get_preset("faces")
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(config)
    assert config.num_image_tokens == 256 and config.vq_config.codebook_size == 1024
    assert model.model.image_position_embeddings.shape == (256, 192)


def test_the_full_preset_has_the_papers_number_of_parameters():
    config = get_preset("1.8b")
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(config)
    assert model.model.vision_tower is None and model.model.face_encoder is None
    text, transformer = config.text_config, model.model.language_model
    total = parameters(transformer) + parameters(model.lm_head)
    one_expert = parameters(transformer.layers[0].mlp.experts) // (2 * text.num_routed_experts)
    idle = sum(
        parameters(layer.mlp.shared_experts["mmu"])
        + parameters(layer.mlp.mmu_router)
        + (2 * text.num_routed_experts - text.num_experts_per_tok) * one_expert
        for layer in transformer.layers
    )
    print(f"transformer and head: {total:,}; used by one token: {total - idle:,}")
    print(f"image tokenizer: {parameters(model.model.vq_model):,}; resamplers: {parameters(model.model.resamplers):,}")
    assert total == 1_752_550_722
    assert total - idle == 895_573_314
    assert total + parameters(model.model.resamplers) == 1_799_261_506  # the paper's 1.8B
    assert get_preset("unif2ace-1.8b").to_dict() == config.to_dict()


@pytest.mark.parametrize(("name", "num_codes"), [("showo-256", 256), ("showo-512", 1024)])
def test_the_show_o_presets_have_show_os_number_of_parameters(name, num_codes):
    config = get_preset(name)
    with torch.device("meta"):
        model = UniF2aceForConditionalGeneration(config)
    assert config.num_image_tokens == num_codes
    assert not config.text_config.moe_layers and not model.model.resamplers
    assert parameters(model.model.language_model) + parameters(model.lm_head) == 1_448_176_770
    assert parameters(model.model.vq_model) == 95_387_004


def test_fields_that_nobody_reads_any_more_are_taken_and_dropped(tmp_path):
    """Checkpoints of before have them."""
    old = get_preset("tiny").to_dict() | {"vision_model_id": "openai/clip-vit-large-patch14-336"}
    old["vq_config"] |= {"entropy_loss_weight": 0.1, "commitment_loss_weight": 0.25}
    config = UniF2aceConfig(**old)
    assert config.to_dict() == get_preset("tiny").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(old | {"model_type": "unif2ace"}))
    assert UniF2aceConfig.from_pretrained(tmp_path).vq_config.to_dict() == config.vq_config.to_dict()


def test_several_end_tokens_spell_prompts_with_the_first():
    config = get_preset("tiny")
    config.text_config.eos_token_id = [1, 2]
    special = config.special_token_id
    assert config.layout.prompt([]) == [special("<|t2i|>"), 0, 1]
