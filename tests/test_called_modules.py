"""Modules are called, never read past their hooks: each is offloaded and adapted in turn, and nothing changes."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import nn

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset


CONFIG = get_preset("tiny")
CONFIG.image_position_embeddings = True
LAYOUT = CONFIG.layout
QUESTION = torch.tensor([[LAYOUT.mmu, LAYOUT.soi, *[LAYOUT.mask] * LAYOUT.num_codes, LAYOUT.eoi, LAYOUT.bos, 5, 6, 7]])
PROMPT = torch.tensor([[LAYOUT.t2i, LAYOUT.bos, 7, 8, LAYOUT.eos]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    return model


@torch.no_grad()
def results(model) -> dict[str, torch.Tensor]:
    """What users call, past `forward` too."""
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = torch.full((1, LAYOUT.num_codes), -1)
    codes[0, ::2] = torch.arange(LAYOUT.num_codes // 2)
    return {
        "answer": model(input_ids=QUESTION, pixel_values=pixels).logits,
        "codes": model.predict_codes(codes, model.encode_prompt(PROMPT), 2.0),
        "picture": model.decode_image_tokens(codes.clamp(min=0)),
        "bits": model.model.vq_model.encoder(pixels),
        "clip": model.model.encode_clip(pixels),
        "face": model.model.encode_face(pixels),
    }


def modules_of(model) -> list[str]:
    """The large parts, and the small ones of a layer and of a resampler."""
    inside = ("model.language_model.layers.0.", "model.resamplers.noise")
    containers = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict)  # which are never called
    return [
        name
        for name, module in model.named_modules()
        if (name.count(".") < 2 or name == inside[0][:-1] or name.startswith(inside) and name.count(".") < 5)
        and not isinstance(module, containers)
        and list(module.parameters())
    ]


def test_any_part_may_be_offloaded(model):
    wanted = results(model)
    names = modules_of(model)
    assert {"", "lm_head", "model", "model.language_model.layers.0.sequence_moe"} <= set(names)
    for name in names:
        offloaded = copy.deepcopy(model)
        part = offloaded.get_submodule(name)
        cpu_offload(part, execution_device=torch.device("cpu"))
        assert all(weight.is_meta for weight in part.parameters()), name
        for key, value in results(offloaded).items():
            torch.testing.assert_close(value, wanted[key], atol=1e-6, rtol=1e-5, msg=f"{key} without {name}")


@pytest.mark.parametrize(
    "target",
    ["lm_head", "quant_conv", "post_quant_conv", "conv_out", "q_proj", "fc1", "in_proj", "embed_tokens", "out_proj"],
)
def test_any_part_may_be_adapted(model, target):
    """An adapter that is added at each call gives what it gives once it is part of the weights."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=[target], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    before, unmerged = results(model), results(adapted.base_model.model)
    merged = results(adapted.merge_and_unload())
    assert any(not torch.allclose(unmerged[key], before[key], atol=1e-3) for key in before)
    for key in before:
        torch.testing.assert_close(unmerged[key], merged[key], atol=1e-3, rtol=1e-3, msg=f"{key} with {target}")
    if target == "lm_head":
        assert not torch.allclose(unmerged["codes"], before["codes"], atol=1e-2)
