"""Text to image: prompts, masks and logits are those that the original Show-o computed (`t2i_forward`)."""

import pytest
import torch
from showo_mask import showo_attention_mask

from unif2ace import UniF2aceProcessor


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded(showo_recordings):
    return showo_recordings.load("t2i_forward")


@pytest.fixture(scope="module")
def batch(showo, recorded):
    """All six rows, conditional and unconditional."""
    input_ids = torch.cat([recorded["input_ids"], recorded["uncond_input_ids"]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != showo.config.text_config.pad_token_id).long()}


@pytest.fixture(scope="module")
def ours(showo, batch):
    with torch.no_grad():
        return showo(**batch, output_hidden_states=True)


def test_special_tokens_have_the_original_ids(showo, showo_folder, showo_recordings):
    processor = UniF2aceProcessor.from_pretrained(showo_folder)
    for token, number in showo_recordings.readme["special_tokens"].items():
        if token not in ("<|sot|>", "<|eot|>", "<|pad|>"):
            assert showo.config.special_token_id(token) == number
            assert processor.tokenizer.convert_tokens_to_ids(token) == number
    readme = showo_recordings.readme
    assert processor.tokenizer.pad_token_id == showo.config.text_config.pad_token_id == readme["pad_id"]
    assert showo.config.text_config.bos_token_id == readme["special_tokens"]["<|sot|>"]
    assert processor.tokenizer.mask_token_id == showo.config.mask_token_id == readme["mask_token_id"]
    assert showo.config.image_code_offset == readme["image_token_offset"]
    assert len(processor.tokenizer) == readme["vocab_size"]


def test_prompts_are_tokenized_padded_and_cut_alike(showo, showo_folder, showo_recordings, recorded):
    processor = UniF2aceProcessor.from_pretrained(showo_folder)
    prompts = showo_recordings.about("t2i_forward")["prompts"]
    text = processor(
        text=prompts, generation_mode="image", padding="max_length", truncation=True, return_tensors="pt"
    )["input_ids"]
    start = showo.config.max_text_length + 1
    assert torch.equal(text, recorded["input_ids"][:, :start])
    empty = processor.unconditional_inputs()["input_ids"]
    assert torch.equal(empty.expand(len(prompts), -1), recorded["uncond_input_ids"][:, start - 3 : start])


def test_masks_equal_the_originals(showo, batch, recorded):
    mask = showo_attention_mask(batch["input_ids"], showo.config)
    assert torch.equal(mask, recorded["attention_bool"])


def test_the_model_uses_that_mask_wherever_a_token_stands(showo, batch, recorded):
    """Rows of padding are nobody's business: the original lets them look around, ours does not compute them."""
    seen = []
    hook = showo.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        showo(**batch)
    hook.remove()
    real = batch["attention_mask"].bool()
    assert torch.equal(seen[0][:, 0][real], recorded["attention_bool"][:, 0][real])


def test_hidden_states_equal_the_originals(ours, batch, recorded):
    real = batch["attention_mask"].bool()
    for state, name in ((0, "hidden_embed"), (1, "hidden_after_layer0"), (-1, "hidden_final_norm")):
        torch.testing.assert_close(ours.hidden_states[state][real], recorded[name][real], **TOLERANCE)


def test_logits_equal_the_originals(showo, ours, batch, recorded):
    config, n = showo.config, showo.config.num_image_tokens
    expected = recorded["logits_image_codes"]
    codes = slice(config.image_code_offset, config.mask_token_id)
    torch.testing.assert_close(ours.logits[: len(expected), -n - 1 : -1, codes], expected, **TOLERANCE)
    torch.testing.assert_close(ours.logits[:, -1], recorded["logits_last_position_full"], **TOLERANCE)
    expected = recorded["logits_text_region_text_vocab"]
    real = batch["attention_mask"][:, : expected.shape[1]].bool()
    text = ours.logits[:, : expected.shape[1], : config.image_code_offset]
    torch.testing.assert_close(text[real], expected[real], **TOLERANCE)


@torch.no_grad()
def test_the_cached_prompt_gives_the_same_logits(showo, recorded):
    """One denoising step over a prompt encoded once, padding dropped, is the original's forward pass."""
    config = showo.config
    start = config.max_text_length + 1
    prompts = recorded["input_ids"][:, :start]
    state = showo.encode_prompt(prompts, (prompts != config.text_config.pad_token_id).long(), guidance=False)
    ids = recorded["input_ids"][:, start + 1 : -1]
    codes = (ids - config.image_code_offset).masked_fill(ids == config.mask_token_id, -1)
    logits = showo.predict_codes(codes, state)
    expected = recorded["logits_image_codes"][: len(logits)]
    torch.testing.assert_close(logits[: len(expected)], expected, **TOLERANCE)
