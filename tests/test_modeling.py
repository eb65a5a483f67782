"""The model as a whole: who sees whom, positions, weights on disk, and the promises of the transformers library."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    PhiConfig,
    PhiForCausalLM,
    pipeline,
)

from unif2ace.modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoder,
    UniF2aceFaceEncoderConfig,
    UniF2aceForConditionalGeneration,
    UniF2aceModel,
    UniF2aceProcessor,
    UniF2aceTextModel,
    get_preset,
)
from unif2ace.training.train_text_tokenizer import build_tokenizer


NUM_CODES = 16  # of the tiny preset
T2I_TEXT, MMU_TEXT = [0, 5, 6, 7, 1], [0, 8, 9, 10, 1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def with_text(**changes):
    """The tiny preset with another transformer."""
    values = get_preset("tiny").to_dict()
    values["text_config"] |= changes
    return UniF2aceConfig(**values)


def image_part(config, codes):
    return [config.special_token_id("<|soi|>"), *codes, config.special_token_id("<|eoi|>")]


def t2i_row(config, codes, text=T2I_TEXT):
    return [config.special_token_id("<|t2i|>"), *text, *image_part(config, codes)]


def mmu_row(config, codes, text=MMU_TEXT):
    return [config.special_token_id("<|mmu|>"), *image_part(config, codes), *text]


def some_codes(config):
    return (torch.randint(config.vq_config.codebook_size, (NUM_CODES,)) + config.image_code_offset).tolist()


def placeholders(config):
    return [config.image_token_id] * NUM_CODES


def padded(config, rows, left):
    """`input_ids` and `attention_mask` of rows; `left` pads of row i before it, the rest of the room behind it."""
    pad = config.text_config.pad_token_id
    length = max(before + len(row) for before, row in zip(left, rows, strict=True))
    ids, mask = [], []
    for before, row in zip(left, rows, strict=True):
        after = length - before - len(row)
        ids.append([pad] * before + row + [pad] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def pictures(count):
    return torch.rand(count, 3, 16, 16) * 2 - 1


def mixed_batch(config):
    rows = [t2i_row(config, some_codes(config)), mmu_row(config, placeholders(config), [0, 8, 9, 10, 11, 12, 1])]
    return padded(config, rows, left=[2, 0]) | {"pixel_values": pictures(1)}


# --- who sees whom


def visible(ids, mask, config):
    """Show-o's rule, place by place: (S, S), True where the row's token may look at the column's."""
    ids, mask = ids.tolist(), mask.tolist()
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    start, end = len(ids), -1
    if config.special_token_id("<|soi|>") in ids:
        start, end = (ids.index(config.special_token_id(token)) for token in ("<|soi|>", "<|eoi|>"))
        if config.special_token_id("<|mmu|>") in ids:
            start = 0
    for query in range(len(ids)):
        for key in range(len(ids)):
            both_inside = start <= query <= end and start <= key <= end
            seen[query, key] = mask[key] and (key <= query or both_inside)
    return seen


@torch.no_grad()
def attended(model, **inputs):
    """What each token looked at in the last layer, (B, S, S)."""
    model.set_attn_implementation("eager")
    return model(**inputs, output_attentions=True).attentions[-1].amin(1) > 0


def test_attention_follows_show_os_rule_in_both_tasks(model):
    config = model.config
    rows = [
        t2i_row(config, some_codes(config)),
        t2i_row(config, some_codes(config), [0, 5, 6, 7, 8, 9, 10, 1]),
        mmu_row(config, some_codes(config)),  # right padded, as in training
        mmu_row(config, some_codes(config)),  # left padded, as in generation
        [config.special_token_id("<|mmu|>"), *MMU_TEXT],  # without a picture
    ]
    batch = padded(config, rows, left=[3, 0, 0, 3, 0])
    seen = attended(model, **batch)
    for row in range(len(rows)):
        real = batch["attention_mask"][row].bool()
        expected = visible(batch["input_ids"][row], batch["attention_mask"][row], config)
        assert torch.equal(seen[row][real], expected[real]), row


@torch.no_grad()
def test_prompt_text_does_not_know_the_picture(model):
    config = model.config
    first, second = (torch.tensor([t2i_row(config, some_codes(config))]) for _ in range(2))
    logits, other = model(input_ids=first).logits, model(input_ids=second).logits
    text = 1 + len(T2I_TEXT)
    assert torch.equal(logits[:, :text], other[:, :text])  # on one thread, see conftest.py
    changed = (logits - other).abs().amax(-1)[0] > 0
    assert changed[text:].all()  # start-of-image and end-of-image are inside the picture's block


@torch.no_grad()
def test_the_picture_of_an_understanding_row_does_not_know_the_question(model):
    config, codes = model.config, some_codes(model.config)
    first, second = (torch.tensor([mmu_row(config, codes, text)]) for text in (MMU_TEXT, [0, 20, 21, 22, 1]))
    logits, other = model(input_ids=first).logits, model(input_ids=second).logits
    prefix = NUM_CODES + 4  # up to bos, the same in both
    assert torch.equal(logits[:, :prefix], other[:, :prefix])  # on one thread, see conftest.py
    assert not torch.equal(logits[:, prefix], other[:, prefix])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make_row", [t2i_row, mmu_row])
def test_padding_on_the_left_changes_nothing(model, make_row, attention):
    model.set_attn_implementation(attention)
    row = make_row(model.config, some_codes(model.config))
    alone = model(input_ids=torch.tensor([row])).logits
    batch = padded(model.config, [row, row], left=[0, 7])
    logits = model(**batch).logits
    torch.testing.assert_close(logits[:1, : len(row)], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1:, 7:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter(model):
    batch = padded(model.config, [t2i_row(model.config, some_codes(model.config))], left=[4])
    before = model(**batch).logits[:, 4:]
    batch["input_ids"][:, :4] = 77
    torch.testing.assert_close(model(**batch).logits[:, 4:], before, atol=1e-6, rtol=1e-6)


def test_start_of_image_is_at_the_same_position_whatever_the_prompt(model):
    config = model.config
    rows = [t2i_row(config, some_codes(config)), t2i_row(config, some_codes(config), [0, 5, 6, 7, 8, 1])]
    batch = padded(config, rows, left=[3, 0])
    task_ids = torch.tensor([0, 0])
    span = model.config.layout.find_image(batch["input_ids"], task_ids)
    positions = model.config.layout.positions(batch["input_ids"], batch["attention_mask"], task_ids, span)
    first_code = config.max_text_length + 2
    for row in range(2):
        expected = torch.arange(first_code, first_code + NUM_CODES)
        assert torch.equal(positions[row, span.positions[row]], expected)
        assert positions[row, span.positions[row, 0] - 1] == config.max_text_length + 1
        start = int(batch["attention_mask"][row].argmax())
        real = positions[row, start : span.positions[row, 0]]
        assert torch.equal(real, torch.arange(first_code - len(real), first_code))  # without a gap


def test_understanding_rows_count_their_real_tokens(model):
    config = model.config
    batch = padded(config, [mmu_row(config, some_codes(config))], left=[3])
    task_ids = torch.tensor([1])
    span = model.config.layout.find_image(batch["input_ids"], task_ids)
    positions = model.config.layout.positions(batch["input_ids"], batch["attention_mask"], task_ids, span)
    assert torch.equal(positions[0, 3:], torch.arange(positions.shape[1] - 3))
    assert not positions[0, :3].any()


# --- the same function as Phi (and so Show-o: test_showo_*.py)


@torch.no_grad()
def test_without_experts_it_is_stock_phi():
    config = with_text(moe_layers=[], sequence_moe_layers=[])
    model = UniF2aceForConditionalGeneration(config).eval()
    for parameter in model.model.language_model.parameters():
        parameter.normal_(std=0.3)
    text = config.text_config.to_dict()
    fields = [
        field for field in PhiConfig().to_dict() if field in text and field not in ("model_type", "architectures")
    ]
    phi = PhiForCausalLM(PhiConfig(**{field: text[field] for field in fields})).eval()
    state = {name.replace("model.language_model.", "model."): value for name, value in model.state_dict().items()}
    phi.load_state_dict({name: state[name] for name in phi.state_dict()})

    batch = padded(config, [t2i_row(config, some_codes(config)), mmu_row(config, some_codes(config))], left=[2, 0])
    seen = [visible(*row, config) for row in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    mask = torch.stack(seen)[:, None]
    positions = torch.arange(mask.shape[-1]).expand(2, -1)
    ours = model(**batch, position_ids=positions).logits
    theirs = phi(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions).logits
    real = batch["attention_mask"].bool()
    assert torch.equal(ours[real], theirs[real])


@torch.no_grad()
def test_the_sequential_block_is_another_function_and_runs():
    torch.manual_seed(0)
    parallel = UniF2aceForConditionalGeneration(with_text()).eval()
    sequential = UniF2aceForConditionalGeneration(with_text(block_form="sequential")).eval()
    missing, unexpected = sequential.load_state_dict(parallel.state_dict(), strict=False)
    assert not unexpected and all("post_attention_layernorm" in name for name in missing) and missing
    batch = mixed_batch(parallel.config)
    logits, other = parallel(**batch).logits, sequential(**batch).logits
    assert torch.isfinite(other).all()
    assert not torch.allclose(logits, other, atol=1e-4)


# --- outputs


def test_router_logits_are_recorded_by_group(model):
    batch = mixed_batch(model.config)
    length = batch["input_ids"].shape[1]
    outputs = model(
        **batch,
        output_t2i_router_logits=True,
        output_mmu_router_logits=True,
        output_sequence_router_logits=True,
        output_hidden_states=True,
    )
    assert [tuple(logits.shape) for logits in outputs.t2i_router_logits] == [(1, length, 4)] * 2
    assert [tuple(logits.shape) for logits in outputs.mmu_router_logits] == [(1, length, 4)] * 2
    assert [tuple(logits.shape) for logits in outputs.sequence_router_logits] == [(2, 4)] * 2
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, length, 32)] * 3
    assert outputs.t2i_router_logits[0].dtype == torch.float32
    plain = model(**batch)
    assert plain.t2i_router_logits is None and plain.hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize(("wanted", "kept"), [([0, -1], {0, 2}), (1, {1}), ([2, 7, -9], {2})])
def test_hidden_states_are_recorded_by_index(model, wanted, kept):
    batch = mixed_batch(model.config)
    every = model(**batch, output_hidden_states=True).hidden_states
    some = model(**batch, output_hidden_states=wanted).hidden_states
    assert len(some) == len(every) and {index for index, state in enumerate(some) if state is not None} == kept
    assert all(torch.equal(some[index], every[index]) for index in kept)


@torch.no_grad()
def test_masks_for_the_head_pick_places_of_the_full_logits(model):
    batch, config = mixed_batch(model.config), model.config
    full = model(**batch).logits
    image_mask = torch.zeros(full.shape[:2], dtype=torch.bool)
    image_mask[0, 8:12] = True
    outputs = model(**batch, image_logits_mask=image_mask, text_logits_mask=~image_mask)
    assert outputs.logits is None
    codes = slice(config.image_code_offset, config.mask_token_id)
    torch.testing.assert_close(outputs.image_logits, full[image_mask][:, codes], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs.text_logits, full[~image_mask], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, full[:, -2:], atol=1e-6, rtol=1e-6)


def test_the_loss_is_next_token_cross_entropy(model):
    batch = mixed_batch(model.config)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0] = -100
    outputs = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[1, :-1], labels[1, 1:])
    torch.testing.assert_close(outputs.loss, expected)
    with pytest.raises(ValueError, match="labels need all logits"):
        model(**batch, labels=labels, text_logits_mask=labels >= 0)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(model):
    model.train()
    batch = mixed_batch(model.config)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        loss = model(**batch, labels=labels, use_cache=False).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), grads))
    (loss, grads), (again, same) = results
    torch.testing.assert_close(loss, again)
    assert grads.keys() == same.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(same[name], grad, atol=1e-6, rtol=1e-5, msg=name)


def test_bfloat16_runs(model):
    model.to(torch.bfloat16)
    batch = mixed_batch(model.config)
    outputs = model(**batch, output_t2i_router_logits=True)
    assert outputs.logits.dtype == torch.bfloat16 and torch.isfinite(outputs.logits).all()
    assert outputs.t2i_router_logits[0].dtype == torch.float32  # routing stays exact


# --- bad input


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_pictures_than_rows_is_refused(model, count):
    rows = [mmu_row(model.config, placeholders(model.config))] * 2
    with pytest.raises(ValueError, match=f"{count} images .* 2 understanding rows"):
        model(**padded(model.config, rows, left=[0, 0]), pixel_values=pictures(count))


def test_half_an_image_is_refused(model):
    row = mmu_row(model.config, placeholders(model.config)[:-1])
    with pytest.raises(ValueError, match=r"15.*expected 0 or 16"):
        model(input_ids=torch.tensor([row]), pixel_values=pictures(1))


def test_codes_and_placeholders_in_one_row_are_refused(model):
    row = mmu_row(model.config, placeholders(model.config)[:-1] + [model.config.image_code_offset])
    with pytest.raises(ValueError, match=r"\[15\] image placeholders, expected 16"):
        model(input_ids=torch.tensor([row]), pixel_values=pictures(1))


def test_a_picture_without_placeholders_is_refused(model):
    with pytest.raises(ValueError, match="1 images were given, but the text has no image placeholders"):
        model(input_ids=torch.tensor([MMU_TEXT]), pixel_values=pictures(1))


def test_ids_and_embeddings_together_are_refused(model):
    language_model = model.model.language_model
    ids = torch.tensor([MMU_TEXT])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        language_model(input_ids=ids, inputs_embeds=language_model.embed_tokens(ids))


@torch.no_grad()
def test_codes_in_place_of_pictures_give_the_same(model):
    config, pixels = model.config, pictures(1)
    codes = (model.encode_images(pixels)[0] + config.image_code_offset).tolist()
    from_pixels = model(input_ids=torch.tensor([mmu_row(config, placeholders(config))]), pixel_values=pixels).logits
    from_codes = model(input_ids=torch.tensor([mmu_row(config, codes)]), pixel_values=pixels).logits
    assert torch.equal(from_pixels, from_codes)


# --- encoders


def test_frozen_parts_stay_in_evaluation_mode(model):
    model.train()
    assert model.training and model.model.language_model.training and model.model.resamplers.training
    for frozen in (model.model.vq_model, model.model.vision_tower, model.model.face_encoder):
        assert not any(module.training for module in frozen.modules())


def test_training_does_not_move_the_face_encoders_statistics(model):
    model.train()
    before = {name: value.clone() for name, value in model.model.face_encoder.state_dict().items()}
    model(**mixed_batch(model.config)).logits.sum().backward()
    for name, value in model.model.face_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.model.face_encoder.parameters())


def test_encoders_of_another_size_are_refused(model):
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    with pytest.raises(ValueError, match="width 16.*clip_feature_size=24"):
        model.model.set_vision_tower(CLIPVisionModel(vision))
    face = UniF2aceFaceEncoderConfig(
        image_size=16, stem_channels=8, stage_channels=[8], stage_blocks=[1], embedding_size=8
    )
    with pytest.raises(ValueError, match="length 8.*face_feature_size=16"):
        model.model.set_face_encoder(UniF2aceFaceEncoder(face))
    model.model.set_vision_tower(None)
    assert model.model.encode_clip(pictures(1)) is None


@torch.no_grad()
def test_experts_implementations_agree_and_wrong_names_are_refused(model):
    batch = mixed_batch(model.config)
    logits = {}
    for implementation in ("eager", "grouped_mm"):
        model.set_experts_implementation(implementation)
        assert model.config.text_config._experts_implementation == implementation
        logits[implementation] = model(**batch).logits
    torch.testing.assert_close(logits["eager"], logits["grouped_mm"], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="telepathy"):
        model.set_experts_implementation("telepathy")


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(built, tmp_path_factory):
    """A tiny checkpoint in several files, with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    built.save_pretrained(folder, max_shard_size="200KB")
    texts = ["a man with a hat", "USER: \nWhat does she wear? ASSISTANT: a hat"] * 3
    tokenizer = build_tokenizer(texts, built.config.text_vocab_size, built.config.vq_config.num_bits)
    UniF2aceProcessor.from_config(built.config, tokenizer).save_pretrained(folder)
    return folder


RELOAD = """
import sys, torch
import unif2ace
from transformers import AutoModelForMultimodalLM
torch.set_num_threads(1)
folder, case = sys.argv[1:]
saved = torch.load(case)
model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(**saved["inputs"]).logits
torch.testing.assert_close(logits, saved["logits"], atol=1e-6, rtol=1e-6)
print("equal")
"""


def test_a_checkpoint_gives_the_same_logits_in_a_fresh_process(built, checkpoint, tmp_path):
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    batch = mixed_batch(built.config)
    with torch.no_grad():
        torch.save({"inputs": batch, "logits": built(**batch).logits}, tmp_path / "case.pt")
    result = subprocess.run(
        [sys.executable, "-c", RELOAD, str(checkpoint), str(tmp_path / "case.pt")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("equal")


def test_every_weight_and_buffer_is_back_after_loading(built, checkpoint):
    loaded, info = UniF2aceForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    state = loaded.state_dict()
    for name, value in built.state_dict().items():
        assert torch.equal(state[name], value), name
    for name, buffer in built.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name
    assert "model.language_model.layers.0.sequence_moe.kind_of_expert" not in state
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_can_be_chosen_when_loading(built, checkpoint, attention):
    loaded = UniF2aceForConditionalGeneration.from_pretrained(checkpoint, attn_implementation=attention).eval()
    assert loaded.config.text_config._attn_implementation == attention
    batch = mixed_batch(built.config)
    with torch.no_grad():
        logits, expected = loaded(**batch).logits, built(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)


def test_auto_classes_find_the_model(checkpoint):
    assert type(AutoModelForMultimodalLM.from_pretrained(checkpoint)) is UniF2aceForConditionalGeneration
    assert type(AutoModelForImageTextToText.from_pretrained(checkpoint)) is UniF2aceForConditionalGeneration
    assert type(AutoModel.from_pretrained(checkpoint)) is UniF2aceModel


def test_the_text_model_alone_can_be_saved_and_loaded(built, tmp_path):
    text_model = built.model.language_model
    text_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is UniF2aceTextModel
    ids = torch.tensor([MMU_TEXT])
    with torch.no_grad():
        expected = text_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(loaded(input_ids=ids).last_hidden_state, expected)


def test_transformers_pipeline_answers_questions_about_pictures(checkpoint):
    ask = pipeline("image-text-to-text", model=str(checkpoint))
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": face}, {"type": "text", "text": "What does she wear?"}],
        }
    ]
    answer = ask(text=chat, max_new_tokens=4, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
    with_seed = [ask(text=chat, max_new_tokens=4, return_full_text=False, do_sample=False) for _ in range(2)]
    assert with_seed[0][0]["generated_text"] == with_seed[1][0]["generated_text"]
