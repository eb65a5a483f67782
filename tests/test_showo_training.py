"""Training: masks, prompts, labels, losses and gradients are those of the original Show-o (`training`, `mmu`)."""

import pytest
import torch
from showo_mask import showo_attention_mask

from unif2ace import UniF2aceForConditionalGeneration, UniF2aceProcessor
from unif2ace.modeling_unif2ace.objective_unif2ace import sample_masks
from unif2ace.training.convert.showo_layout import our_name
from unif2ace.training.convert.showo_training import ShowoPrompts, showo_losses


@pytest.fixture(scope="module")
def recorded(showo_recordings):
    return showo_recordings.load("training")


@pytest.fixture(scope="module")
def about(showo_recordings):
    return showo_recordings.about("training")


@pytest.fixture(scope="module")
def prompts(showo, showo_folder):
    return ShowoPrompts(UniF2aceProcessor.from_pretrained(showo_folder).tokenizer, showo.config)


def test_masks_are_drawn_alike(showo, recorded, about):
    image_ids = recorded["image_ids"]
    torch.manual_seed(about["seed_mask"])
    masked, ratio = sample_masks(*image_ids.shape)
    assert torch.equal(image_ids.masked_fill(masked, showo.config.mask_token_id), recorded["masked_image_ids"])
    assert torch.equal(image_ids.masked_fill(~masked, -100), recorded["image_labels"])
    expected = (recorded["mask_prob"] * image_ids.shape[1]).round().clamp(min=1) / image_ids.shape[1]
    torch.testing.assert_close(ratio, expected)


def test_prompts_labels_and_masks_equal_the_originals(showo, recorded, about, prompts):
    torch.manual_seed(about["seed_prompt"])
    dropped = torch.rand(len(about["t2i_texts"])) < about["cond_dropout_prob"]
    parts = [prompts.t2i(about["t2i_texts"], recorded["masked_image_ids"], recorded["image_labels"], dropped)]
    parts.append(prompts.lm(about["lm_texts"], parts[0][0].shape[1]))
    parts.append(prompts.mmu(about["mmu_texts"], recorded["mmu_image_ids"]))
    for name, tensors in zip(("input_ids", "labels"), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(tensors), recorded[name]), name
    assert torch.equal(showo_attention_mask(recorded["input_ids"], showo.config), recorded["attention_bool"])


def test_caption_prompts_equal_the_originals(showo, showo_recordings, prompts):
    about, recorded = showo_recordings.about("mmu"), showo_recordings.load("mmu")
    input_ids, labels = prompts.mmu(about["prompt_texts"], recorded["prompt.image_ids"])
    assert torch.equal(input_ids, recorded["prompt.input_ids"])
    assert torch.equal(labels, recorded["prompt.labels"])
    assert torch.equal(showo_attention_mask(input_ids, showo.config), recorded["prompt.attention_bool"])


def test_losses_and_gradients_equal_the_originals(showo_folder, recorded, about):
    model = UniF2aceForConditionalGeneration.from_pretrained(showo_folder)
    losses = showo_losses(model, recorded["input_ids"], recorded["labels"])
    relative = {"rtol": 1e-6, "atol": 0}
    for name in ("t2i", "lm", "mmu"):
        torch.testing.assert_close(getattr(losses, name), recorded[f"loss_{name}"], **relative)
    torch.testing.assert_close(losses.total(), recorded["loss_total"], **relative)

    losses.total().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = [name.removeprefix("grad.") for name in recorded if name.startswith("grad.")]
    assert names
    for name in names:
        torch.testing.assert_close(gradients[our_name(name)], recorded[f"grad.{name}"], atol=1e-5, rtol=1e-4)
    for name, norm in about["grad_norms"].items():
        # in float64: torch's float32 norm of half a million numbers is off by 1e-4
        assert gradients[our_name(name)].double().norm().item() == pytest.approx(norm, rel=1e-5), name


def test_the_order_of_rows_and_absent_tasks_do_not_matter(showo, recorded):
    order = torch.tensor(range(len(recorded["input_ids"]))).flip(0)
    with torch.no_grad():
        whole = showo_losses(showo, recorded["input_ids"], recorded["labels"])
        turned = showo_losses(showo, recorded["input_ids"][order], recorded["labels"][order])
        pictures = showo_losses(showo, recorded["input_ids"][:1], recorded["labels"][:1])
    for name in ("t2i", "lm", "mmu"):
        torch.testing.assert_close(getattr(turned, name), getattr(whole, name))
    assert pictures.lm == pictures.mmu == 0 and pictures.t2i.isfinite()
