"""The names of libraries that may change: each does what we use it for, and nobody uses one that is not listed."""

import ast
import contextlib
import copy
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import AttentionInterface

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2aceTextModel
from unif2ace.modeling_unif2ace import adapters_unif2ace, compat_unif2ace, get_preset, peft_unif2ace
from unif2ace.modeling_unif2ace.attention_unif2ace import eager_attention
from unif2ace.modeling_unif2ace.compat_unif2ace import CACHE, DynamicCache, cached_file, create_causal_mask, init
from unif2ace.modeling_unif2ace.image_processing_unif2ace import UniF2aceImageProcessor


CONFIG = get_preset("tiny")
IDS = torch.tensor([[0, 20, 30, 40, 50]])
# Public by their documentation, though transformers does not export them at its top.
DOCUMENTED = {
    "transformers.activations": {"ACT2FN"},
    "transformers.image_utils": {"ImageInput", "PILImageResampling"},
    "transformers.modeling_outputs": {"BaseModelOutputWithPast", "CausalLMOutputWithPast", "ModelOutput"},
    "transformers.pipelines": {"PIPELINE_REGISTRY"},
    "transformers.pipelines.any_to_any": {"AnyToAnyPipeline", "Chat"},  # see compat_unif2ace.py
    "transformers.processing_utils": {"ImagesKwargs", "ProcessingKwargs", "Unpack"},
    "transformers.utils": {
        "ModelOutput",
        "SAFE_WEIGHTS_INDEX_NAME",
        "SAFE_WEIGHTS_NAME",
        "TransformersKwargs",
        "can_return_tuple",
        "is_peft_available",
        "logging",
    },
    "huggingface_hub.dataclasses": {"strict", "validated_field"},
}


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    return UniF2aceTextModel(CONFIG.text_config).eval()


def test_no_private_name_is_used_anywhere_else():
    for path in Path(compat_unif2ace.__file__).parent.glob("*.py"):
        if path.stem == "compat_unif2ace":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.startswith(("transformers.", "peft"))], path
            if not isinstance(node, ast.ImportFrom) or node.level:
                continue
            library = node.module.partition(".")[0]
            if library not in ("transformers", "peft", "huggingface_hub", "tokenizers", "accelerate"):
                continue
            for name in (alias.name for alias in node.names):
                known = DOCUMENTED.get(node.module, set())
                exported = library == "transformers" and name in dir(transformers)
                optional = (path.stem, node.module) == ("peft_unif2ace", "peft.utils")  # see the test below
                assert name in known or exported or optional, f"{path.name}: {node.module}.{name}"


def test_nothing_of_a_sibling_model_is_used():
    sources = [path.read_text() for path in Path(compat_unif2ace.__file__).parent.glob("*.py")]
    assert not [source for source in sources if re.search(r"transformers\.models\.(?!auto\.)", source)]


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_by_either_name(text_model, built, name):
    whole = text_model(IDS).last_hidden_state
    cache = DynamicCache()
    first = text_model(IDS[:, :3], use_cache=True, **{name: cache})
    assert getattr(first, CACHE) is cache and cache.get_seq_length() == 3
    second = text_model(IDS[:, 3:], **{name: cache}).last_hidden_state
    torch.testing.assert_close(second, whole[:, 3:], atol=1e-5, rtol=1e-4)
    cache = DynamicCache()
    output = built(IDS, use_cache=True, **{name: cache})
    assert getattr(output, CACHE) is cache is output[CACHE] and cache.get_seq_length() == 5
    written = built.generate(IDS, max_new_tokens=4, do_sample=False)
    cache = DynamicCache()
    assert torch.equal(built.generate(IDS, max_new_tokens=4, do_sample=False, **{name: cache}), written)
    assert cache.get_seq_length() == written.shape[1] - 1


def test_the_mask_builder_knows_blocks_and_columns():
    config = copy.deepcopy(CONFIG.text_config)
    config._attn_implementation = "eager"
    columns = torch.tensor([[False, False, False, False, True]])
    mask = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, 5, 8),
        attention_mask=torch.tensor([[0, 1, 1, 1, 1]]),
        block_sequence_ids=torch.tensor([[-1, 0, 0, -1, -1]]),
        or_mask_function=lambda row, head, query, key: columns[row, key],
        **{CACHE: None},
    )
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen[1:] == [[0, 1, 1, 0, 1], [0, 1, 1, 0, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_users_may_bring_their_own_attention(text_model):
    calls = []

    def mine(module, query, key, value, attention_mask, **kwargs):
        calls.append(module.layer_idx)
        return eager_attention(module, query, key, value, attention_mask, kwargs["scaling"])

    AttentionInterface.register("sdpa_of_a_test", mine)  # a name with "sdpa" gets its kind of mask: none, if causal
    model = copy.deepcopy(text_model)
    mask = torch.ones(1, 1, 5, 5).tril().log()
    model.set_attn_implementation("sdpa_of_a_test")
    output = model(IDS, attention_mask=mask, prepared_mask=True).last_hidden_state
    assert calls == [0, 1]
    torch.testing.assert_close(output, text_model(IDS).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_activation_checkpointing_fills_no_cache(text_model):
    model = copy.deepcopy(text_model).train()
    model.activation_checkpointing_enable()
    output = model(IDS, use_cache=True)
    assert getattr(output, CACHE) is None
    cache = DynamicCache()
    output = model(IDS, cache=cache)
    output.last_hidden_state.sum().backward()
    assert cache.get_seq_length() == 0 and model.embed_tokens.weight.grad.abs().sum() > 0


def test_initialisation_leaves_loaded_weights_alone():
    loaded, fresh = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    loaded._is_hf_initialized = True
    with torch.no_grad():
        for weight in (loaded, fresh):
            init.zeros_(weight)
    assert loaded.tolist() == [1.0] * 4 and fresh.tolist() == [0.0] * 4


def test_experts_have_several_implementations_with_one_result(text_model):
    model = copy.deepcopy(text_model)
    model.set_experts_implementation("eager")
    written_out = model(IDS).last_hidden_state
    model.set_experts_implementation("grouped_mm")
    torch.testing.assert_close(model(IDS).last_hidden_state, written_out, atol=1e-5, rtol=1e-4)


def test_pictures_need_no_torchvision():
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    before = set(sys.modules)
    pixels = UniF2aceImageProcessor.from_resolution(16)(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16) and pixels.abs().max() <= 1
    assert not {name for name in set(sys.modules) - before if name.startswith("torchvision")}


def test_parts_of_a_configuration_may_be_absent(tmp_path):
    fields = CONFIG.to_dict()
    config = UniF2aceConfig(**fields | {"vision_config": None, "face_config": None})
    config.save_pretrained(tmp_path)
    again = UniF2aceConfig.from_pretrained(tmp_path)
    assert again.vision_config is None and again.face_config is None
    assert type(again.vq_config) is type(CONFIG.vq_config) and again.vq_config.num_bits == CONFIG.vq_config.num_bits


def test_a_file_that_a_repository_lacks_is_none(tmp_path):
    options = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    (tmp_path / "there.json").write_text("{}")
    assert cached_file(str(tmp_path), "there.json", **options) == str(tmp_path / "there.json")
    assert cached_file(str(tmp_path), "missing.json", **options) is None
    assert cached_file("nobody/nothing", "missing.json", local_files_only=True, **options) is None


def test_transformers_is_told_of_adapters(built, tmp_path):
    model = copy.deepcopy(built)
    names = sorted(model.state_dict())
    config = LoraConfig(target_modules=peft_unif2ace.ATTENTION_MODULES)
    get_peft_model(model, config)
    adapters_unif2ace.mark_adapters(model)
    model.peft_config = {"default": config}
    with contextlib.suppress(ValueError):  # 5.24 asks for a newer PEFT than there is
        model.save_pretrained(tmp_path)  # of the adapters alone: names of wrapped layers would load nowhere
    assert not (tmp_path / "model.safetensors").exists()
    model.unload_adapters()
    assert sorted(model.state_dict()) == names and not hasattr(model, "peft_config")
    model.save_pretrained(tmp_path / "whole")
    loaded = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_the_package_lives_without_pefts_table(monkeypatch):
    import peft.utils

    monkeypatch.delattr(peft.utils, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING")
    peft_unif2ace.register_peft_defaults()  # nothing happens
