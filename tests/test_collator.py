"""Token sequences of both tasks in one batch."""

import pytest
import torch
from PIL import Image

from unif2ace.modeling_unif2ace import UniF2aceImageProcessor, UniF2aceProcessor, get_preset
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.sampler import ShuffledSampler, TaskSampler
from unif2ace.training.train_text_tokenizer import build_tokenizer


TURNS = [("What is on the head?", "a red hat"), ("Is he old?", "no")]


@pytest.fixture(scope="module")
def config():
    return get_preset("tiny")


@pytest.fixture(scope="module")
def tokenizer(config):
    texts = ["a young woman with a red hat", "What is on the head?", "USER: \nIs he old? ASSISTANT: no"] * 20
    return build_tokenizer(texts, config.text_vocab_size, config.vq_config.num_bits)


@pytest.fixture(scope="module")
def collator(config, tokenizer):
    return UniF2aceCollator(tokenizer, config, UniF2aceImageProcessor.from_resolution(config.vq_config.resolution))


def rows(config):
    n, side = config.num_image_tokens, config.vq_config.resolution
    pixels = torch.zeros(3, side, side)
    made = [
        {"task": "t2i", "text": "a red hat", "codes": torch.arange(n)},
        {"task": "mmu", "turns": TURNS, "codes": torch.arange(n) + 1, "pixel_values": pixels},
        {"task": "t2i", "text": "a young woman", "codes": torch.arange(n) + 2},
    ]
    return made


def test_clip_input_is_refused_with_a_hint(config, tokenizer):
    clip = type(config)(**config.to_dict() | {"understanding_input": "clip"})
    with pytest.raises(ValueError, match="prepare such rows with the processor"):
        UniF2aceCollator(tokenizer, clip)


def test_layout_of_both_tasks(config, tokenizer, collator):
    batch = collator(rows(config))
    n, length = config.num_image_tokens, batch["input_ids"].shape[1]
    special, offset = config.special_token_id, config.image_code_offset
    assert batch["task_ids"].tolist() == [0, 1, 0]

    for row, text, first in ((0, "a red hat", 0), (2, "a young woman", 2)):
        ids = batch["input_ids"][row].tolist()
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = [special("<|t2i|>"), tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        codes = [offset + first + i for i in range(n)]
        expected = [*prompt, special("<|soi|>"), *codes, special("<|eoi|>")]
        padding = length - len(expected)
        assert ids == [special("[PAD]")] * padding + expected
        assert batch["attention_mask"][row].tolist() == [0] * padding + [1] * len(expected)
        assert (batch["labels"][row] == -100).all()

    ids = batch["input_ids"][1]
    real = int(batch["attention_mask"][1].sum())
    assert batch["attention_mask"][1, :real].all()
    assert ids[:2].tolist() == [special("<|mmu|>"), special("<|soi|>")]
    assert ids[2 : n + 2].tolist() == [offset + 1 + i for i in range(n)]
    assert ids[n + 2].item() == special("<|eoi|>")
    labelled = batch["labels"][1] != -100
    assert torch.equal(batch["labels"][1][labelled], ids[labelled])
    eos = tokenizer.eos_token
    assert tokenizer.decode(batch["labels"][1][labelled]) == f" a red hat{eos} no{eos}"
    assert batch["pixel_values"].shape == (1, 3, 16, 16)


def test_dialogues_are_what_the_chat_template_writes(config, tokenizer, collator):
    processor = UniF2aceProcessor(
        collator.image_processor, tokenizer, num_image_tokens=config.num_image_tokens, max_text_length=22
    )
    picture = Image.new("RGB", (16, 16))
    messages = []
    for number, (question, answer) in enumerate(TURNS):
        content = [{"type": "text", "text": question}]
        if number == 0:
            content.insert(0, {"type": "image", "image": picture})
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    chat = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    row = {"task": "mmu", "turns": TURNS, "codes": None, "image": picture}
    batch = collator([row])
    assert batch["input_ids"].tolist() == chat["input_ids"].tolist()
    torch.testing.assert_close(batch["pixel_values"], chat["pixel_values"])


def test_conversations_without_a_picture_are_what_the_chat_template_writes(config, tokenizer, collator):
    processor = UniF2aceProcessor(
        collator.image_processor, tokenizer, num_image_tokens=config.num_image_tokens, max_text_length=22
    )
    messages = [
        {"role": role, "content": text}
        for turn in TURNS
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    chat = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    talk = {"task": "mmu", "turns": TURNS, "pictured": False}
    assert collator([talk])["input_ids"].tolist() == chat["input_ids"].tolist()
    batch = collator([talk, *rows(config)])
    length = int(batch["attention_mask"][0].sum())
    assert batch["input_ids"][0, :length].tolist() == chat["input_ids"][0].tolist()
    assert (batch["labels"][0] != -100).sum() == (batch["labels"][2] != -100).sum() and "needs_codes" not in batch
    without = collator(rows(config))
    assert torch.equal(batch["pixel_values"], without["pixel_values"])
    columns = without["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][1:, -columns:][0], without["input_ids"][0])


def test_rows_without_codes_bring_all_pictures(config, collator):
    made = rows(config)
    picture = Image.new("RGB", (20, 16), "white")
    for row in made:
        row.pop("pixel_values", None)
        row["image"] = picture
    made[2]["codes"] = None
    batch = collator(made)
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["needs_codes"].tolist() == [False, False, True]
    assert (batch["input_ids"][2] == config.image_token_id).sum() == config.num_image_tokens


def test_long_texts_are_cut(config, tokenizer, collator):
    made = rows(config)
    made[0]["text"] = "hat " * 200
    batch = collator(made)
    prompt_length = int(batch["attention_mask"][0].sum()) - config.num_image_tokens - 2
    assert prompt_length == config.max_text_length + 1
    assert batch["input_ids"][0, -config.num_image_tokens - 3].item() == tokenizer.eos_token_id

    short = UniF2aceCollator(tokenizer, config, max_length=config.num_image_tokens + 30)
    made[1]["turns"] = TURNS * 30
    assert int(short(made[1:2])["attention_mask"].sum()) <= config.num_image_tokens + 30


def test_one_task_only(config, collator):
    assert "pixel_values" not in collator(rows(config)[:1])
    assert collator(rows(config)[1:2])["task_ids"].tolist() == [1]


def test_bad_rows_are_refused(config, tokenizer, collator):
    with pytest.raises(ValueError, match="'t2v'"):
        collator([{"task": "t2v"}])
    with pytest.raises(ValueError, match="neither"):
        collator([{"task": "mmu", "turns": TURNS, "codes": torch.zeros(16)}])
    with pytest.raises(ValueError, match="image_processor"):
        UniF2aceCollator(tokenizer, config)([{"task": "mmu", "turns": TURNS, "image": Image.new("RGB", (16, 16))}])
    with pytest.raises(ValueError, match=r"\(3,\), expected \(16,\)"):
        collator([{"task": "t2i", "text": "a", "codes": torch.zeros(3)}])
    with pytest.raises(ValueError, match="max_length"):
        UniF2aceCollator(tokenizer, config, max_length=10)


def test_shuffled_order_is_that_of_seed_and_epoch():
    sampler = ShuffledSampler(20, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(20)) and first != sorted(first)
    torch.manual_seed(9)
    assert list(sampler) == list(ShuffledSampler(20, seed=3)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first and len(sampler) == 20


def test_sampler_mixes_the_tasks():
    tasks = ["t2i"] * 50 + ["mmu"] * 10
    sampler = TaskSampler(tasks, t2i_fraction=2 / 3, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 60
    for start in range(0, 60, 6):
        assert sum(tasks[i] == "t2i" for i in order[start : start + 6]) == 4
    assert sorted(i for i in order if i >= 50) == sorted(list(range(50, 60)) * 2)
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order
    with pytest.raises(ValueError, match="no mmu row"):
        TaskSampler(["t2i"], 0.5)


# The checkpoint's own words


OWN = (
    "{{ '<|mmu|><|soi|><|mask|><|eoi|>' + bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'Q: ' }}{% for part in message.content if part.type == 'text' %}"
    "{{ part.text | trim }}{% endfor %}{{ '<|t2v|>' }}"
    "{% else %}{{ 'A: ' ~ message.content[0].text | trim ~ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '' }}{% endif %}"
)


def test_default_template_given_by_name_changes_nothing(config, tokenizer, collator):
    from unif2ace.modeling_unif2ace.processing_unif2ace import CHAT_TEMPLATE

    row = rows(config)[1]
    spelled = UniF2aceCollator(tokenizer, config, chat_template=CHAT_TEMPLATE)([row])
    wanted = collator([row])
    assert torch.equal(spelled["input_ids"], wanted["input_ids"])
    # and the general way spells it as the short one
    general = UniF2aceCollator(tokenizer, config, chat_template=CHAT_TEMPLATE + "{# the same #}")([row])
    assert torch.equal(general["input_ids"], wanted["input_ids"]) and torch.equal(general["labels"], wanted["labels"])


def test_a_checkpoints_own_template_is_what_training_spells(config, tokenizer):
    turns = [("Is this a <|soi|> hat?", "a red <|mask|> hat"), ("Is he old?", "no")]
    row = {**rows(config)[1], "turns": turns}
    batch = UniF2aceCollator(tokenizer, config, chat_template=OWN)([row])
    processor = UniF2aceProcessor(
        UniF2aceImageProcessor.from_resolution(config.vq_config.resolution),
        tokenizer,
        chat_template=OWN,
        num_image_tokens=config.num_image_tokens,
    )
    picture = Image.new("RGB", (16, 16))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": turns[0][0]}]}]
    chat += [{"role": "assistant", "content": [{"type": "text", "text": turns[0][1]}]}]
    chat += [{"role": "user", "content": [{"type": "text", "text": turns[1][0]}]}]
    asked = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = batch["input_ids"][0].tolist()
    behind = config.num_image_tokens + 3
    assert ids[behind : len(asked["input_ids"][0])] == asked["input_ids"][0][behind:]
    labels = [label for label in batch["labels"][0].tolist() if label != -100]
    words = tokenizer(["A: a red <|mask|> hat", "A: no"], add_special_tokens=False, split_special_tokens=True)
    eos = tokenizer.eos_token_id
    assert labels == [*words["input_ids"][0], eos, *words["input_ids"][1], eos]


def test_templates_that_cannot_be_trained_on_are_refused(config, tokenizer):
    for template, words in (("{{ messages[-1].role }}", "begins with"), (OWN + "{{ messages | length }}", "anew")):
        with pytest.raises(ValueError, match=words):
            UniF2aceCollator(tokenizer, config, chat_template=template)([rows(config)[1]])


def test_prompts_that_are_cut_are_told_in_the_same_words(config, tokenizer, monkeypatch):
    told = set()  # transformers' `warning_once` says the same words once
    monkeypatch.setattr("unif2ace.training.data.collator.logger.warning_once", told.add, raising=False)
    collator = UniF2aceCollator(tokenizer, config)
    for length in (200, 300, 400):
        collator([{**rows(config)[0], "text": "hat " * length}])
    assert len(told) == 1 and "they are cut" in told.pop()
