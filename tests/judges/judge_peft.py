"""PEFT's common tests, applied to our model: all tests come from its source distribution, none from here."""

import inspect
import tempfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tests.testing_common import PeftCommonTester
from transformers import AutoModelForMultimodalLM

from unif2ace import UniF2aceForConditionalGeneration
from unif2ace.modeling_unif2ace import get_preset


ADAPTERS = {
    # not q_proj and v_proj: the frozen CLIP tower has such names too, and would be adapted without effect
    "attention": {"target_modules": ["dense"]},
    "experts": {"target_modules": [], "target_parameters": ["experts.up_proj", "experts.down_proj"]},
}
# Two helpers of another test, and one for prompts instead of adapters.
NOT_FOR_US = (
    "_test_weighted_combination_of_adapters_lora",
    "_test_weighted_combination_of_adapters_ia3",
    "_test_training_prompt_learning_tasks",
)
# Of adapters on parameters, which fused experts need.
LIMITS_OF_PEFT = {
    "_test_mixed_adapter_batches": "PEFT does not mix adapters on parameters in a batch",
    "_test_generate_with_mixed_adapter_batches_and_beam_search": "PEFT does not mix adapters on parameters in a batch",
    "_test_training_layer_indexing": "PEFT ignores layers_to_transform for parameters",
    "_test_weighted_combination_of_adapters": "PEFT does not combine adapters on parameters",
}
# What a fresh adapter does not show, as it changes nothing.
NEEDS_A_CHANGE = ("merge", "unload", "mixed", "disable", "save", "multiple", "conversion")
# Arguments that a few tests have beside the common ones.
MORE = {"raises_err": False, "dtype": torch.bfloat16, "test_name": "lora", "safe_serialization": True}


def common_tests() -> list[str]:
    names = [name for name, _ in inspect.getmembers(PeftCommonTester, inspect.isfunction)]
    return [name for name in names if name.startswith("_test_") and name not in NOT_FOR_US]


@pytest.fixture(scope="module")
def checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = UniF2aceForConditionalGeneration(get_preset("tiny")).eval()
        model.generation_config.pad_token_id = model.config.text_config.pad_token_id
        model.config.eos_token_id = model.config.text_config.eos_token_id  # a test asks the whole model for it
        model.save_pretrained(Path(folder) / "tiny")
        yield str(Path(folder) / "tiny")


class TestPeft(PeftCommonTester):
    transformers_class = AutoModelForMultimodalLM

    def prepare_inputs_for_testing(self):
        input_ids = torch.tensor([[5, 6, 7], [8, 9, 10]]).to(self.torch_device)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    @pytest.mark.parametrize("name", common_tests())
    @pytest.mark.parametrize("adapter", ADAPTERS)
    def test_common(self, checkpoint, adapter, name):
        if adapter == "experts" and name in LIMITS_OF_PEFT:
            pytest.skip(LIMITS_OF_PEFT[name])
        options = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.0, **ADAPTERS[adapter]}
        if any(word in name for word in NEEDS_A_CHANGE):
            options["init_lora_weights"] = False
        test = getattr(self, name)
        more = {key: value for key, value in MORE.items() if key in inspect.signature(test).parameters}
        test(model_id=checkpoint, config_cls=LoraConfig, config_kwargs=options, **more)
