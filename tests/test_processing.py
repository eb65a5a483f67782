"""The model's sequences: what the processor writes and reads, alone and under transformers' and TRL's hands."""

import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageTextToTextPipeline, PreTrainedTokenizerFast

from unif2ace.modeling_unif2ace import UniF2aceImageError, UniF2aceImageProcessor
from unif2ace.modeling_unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration
from unif2ace.modeling_unif2ace.presets_unif2ace import get_preset
from unif2ace.modeling_unif2ace.processing_unif2ace import UniF2aceProcessor
from unif2ace.training.train_text_tokenizer import build_tokenizer, extend_tokenizer, painted_texts


TEXTS = [
    "A young woman with fair skin. She has long wavy blond hair. She wears hoop earrings.",
    "USER: \nDescribe this face. ASSISTANT: an old man with a grey beard",
] * 3

FACE = Image.new("RGB", (40, 30), (200, 30, 30))
CONFIG = get_preset("tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, CONFIG.text_vocab_size, 5)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return UniF2aceProcessor.from_config(CONFIG, tokenizer)


def user(*parts) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def picture(image=FACE) -> dict:
    return {"type": "image", "image": image}


TOKENIZE = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


# --- the text tokenizer ----------------------------------------------------------------------------------------------


def test_tokenizer_covers_the_models_vocabulary(tokenizer):
    assert len(tokenizer) == CONFIG.text_config.vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.mask_token_id == CONFIG.mask_token_id
    for token in ("[PAD]", "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>", "<|lvg|>"):
        assert tokenizer.convert_tokens_to_ids(token) == CONFIG.special_token_id(token)
    assert tokenizer.pad_token_id == CONFIG.special_token_id("[PAD]")
    assert tokenizer.convert_tokens_to_ids("<|code_0|>") == CONFIG.image_code_offset
    assert tokenizer.convert_tokens_to_ids("<|code_31|>") == CONFIG.mask_token_id - 1


def test_unused_tokens_fill_the_text_vocabulary():
    tokenizer = build_tokenizer(["aaaa"], 300, 5)
    assert len(tokenizer) == 300 + 10 + 32 + 1
    assert tokenizer.convert_tokens_to_ids("[PAD]") == 300
    assert tokenizer.convert_ids_to_tokens(299).startswith("<|unused_")
    with pytest.raises(ValueError, match="text_vocab_size=200, expected at least 258"):
        build_tokenizer(["aaaa"], 200, 5)


@pytest.mark.parametrize(
    "text", ["long hair", "Ünïcødé 😀 漢字\t\n x", " spaces  inside ", "\x00\x7f", "<|soi|> and [PAD]"]
)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert max(ids) < CONFIG.text_vocab_size
    decoded = tokenizer.decode(ids)
    assert decoded in (text, " " + text)


def test_a_word_has_one_token_wherever_it_stands(tokenizer):
    first, inside = tokenizer("hair")["input_ids"], tokenizer("long hair")["input_ids"]
    assert inside[-len(first) :] == first


def test_training_texts_are_reproducible():
    assert list(painted_texts(3)) == list(painted_texts(3))
    one, two = (build_tokenizer(painted_texts(40), 400, 5) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_extending_another_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="already has"):
        extend_tokenizer(tokenizer, 5)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="needs? both"):
        extend_tokenizer(plain, 5)


# --- a description, from which an image is made ----------------------------------------------------------------------


def test_image_prompts_are_left_padded_without_soi(processor, tokenizer):
    texts = ["long hair", "She has long wavy blond hair"]
    prompts = processor(text=texts, generation_mode="image", return_tensors="pt")
    assert set(prompts) == {"input_ids", "attention_mask"}
    t2i = CONFIG.special_token_id("<|t2i|>")
    for row, mask, text in zip(prompts["input_ids"], prompts["attention_mask"], texts, strict=True):
        ids = [t2i, 0, *tokenizer(text)["input_ids"], 1]
        assert row[-len(ids) :].tolist() == ids
        assert (row[: -len(ids)] == tokenizer.pad_token_id).all()
        assert mask.tolist() == [0] * (len(row) - len(ids)) + [1] * len(ids)
    single = processor(text=texts[0], generation_mode="image")["input_ids"]
    assert single == [[t2i, 0, *tokenizer(texts[0])["input_ids"], 1]]


def test_an_empty_text_may_be_the_prompt_of_no_text(processor):
    several = processor(text=["a hat", " "], generation_mode="image", allow_empty=True, return_tensors="pt")
    empty = processor.unconditional_inputs()
    assert several["attention_mask"][1].sum() == 3
    assert torch.equal(several["input_ids"][1, -3:], empty["input_ids"][0])
    with pytest.raises(ValueError, match="the text is empty"):
        processor(text=["a hat", " "], generation_mode="image")


def test_unconditional_prompt(processor):
    prompts = processor.unconditional_inputs(2)
    assert prompts["input_ids"].tolist() == [[CONFIG.special_token_id("<|t2i|>"), 0, 1]] * 2
    assert prompts["attention_mask"].tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize("text", ["", "  \n", ["long hair", ""]])
def test_empty_description_is_refused(processor, text):
    with pytest.raises(ValueError, match="the text is empty"):
        processor(text=text, generation_mode="image")


def test_long_description_is_refused_or_cut_aloud(processor, tokenizer, caplog):
    limit = CONFIG.max_text_length - 2
    fits = " hair" * (limit // len(tokenizer(" hair")["input_ids"]))
    processor(text=fits, generation_mode="image")
    text = fits + " and " + "green eyes " * 20
    with pytest.raises(ValueError, match=rf"\d+ tokens, the limit is {limit}: .*green eyes'$"):
        processor(text=text, generation_mode="image")
    with caplog.at_level(logging.WARNING), _propagating("unif2ace", "transformers"):
        prompt = processor(text=text, generation_mode="image", truncation=True, return_tensors="pt")
    assert prompt["input_ids"].shape == (1, CONFIG.max_text_length + 1)
    assert prompt["input_ids"][0, -1] == tokenizer.eos_token_id
    assert "this was cut" in caplog.text and "green eyes" in caplog.text


class _propagating:
    """transformers' loggers do not propagate by default, so pytest would not see what they say."""

    def __init__(self, *names):
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self):
        self.before = [logger.propagate for logger in self.loggers]
        for logger in self.loggers:
            logger.propagate = True

    def __exit__(self, *_):
        for logger, propagate in zip(self.loggers, self.before, strict=True):
            logger.propagate = propagate


def test_control_tokens_in_a_description_are_text(processor):
    ids = processor(text="a <|mask|> [PAD]", generation_mode="image")["input_ids"][0]
    assert CONFIG.mask_token_id not in ids and max(ids[1:]) < CONFIG.text_vocab_size


def test_wrong_inputs_for_an_image(processor):
    with pytest.raises(ValueError, match="images were given"):
        processor(images=FACE, text="long hair", generation_mode="image")
    with pytest.raises(ValueError, match="expected a description"):
        processor(generation_mode="image")
    with pytest.raises(ValueError, match="generation_mode='video'"):
        processor(text="long hair", generation_mode="video")
    chat = processor.apply_chat_template([user("long hair")])
    with pytest.raises(ValueError, match="a conversation was given"):
        processor(text=chat, generation_mode="image")


# --- a picture and a conversation ------------------------------------------------------------------------------------


def test_conversation_has_show_os_layout(processor, tokenizer):
    chat = [user(picture(), "Describe this face."), assistant("long hair"), user("And the eyes?")]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == (
        "<|mmu|><|soi|><|mask|><|eoi|><|bos|>USER: \nDescribe this face. ASSISTANT: long hair<|eos|>"
        "USER: \nAnd the eyes? ASSISTANT:"
    )
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **TOKENIZE)
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"}
    count = CONFIG.num_image_tokens
    head = [CONFIG.special_token_id("<|mmu|>"), CONFIG.special_token_id("<|soi|>"), *[CONFIG.mask_token_id] * count]
    head += [CONFIG.special_token_id("<|eoi|>"), tokenizer.bos_token_id]
    ids = inputs["input_ids"][0].tolist()
    assert ids[: len(head)] == head
    assert inputs["mm_token_type_ids"][0].tolist() == [int(i == CONFIG.mask_token_id) for i in ids]
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert tokenizer.decode(ids[len(head) :]).startswith(" USER: \nDescribe")


def test_answer_continues_the_generation_prompt(processor):
    prompt = processor.apply_chat_template([user("Who?")], add_generation_prompt=True, tokenize=True)[0]
    whole = processor.apply_chat_template([user("Who?"), assistant("an old man")], tokenize=True)[0]
    assert whole[: len(prompt)] == prompt
    assert processor.decode(whole[len(prompt) :]) == " an old man<|eos|>"
    # TRL tokenizes the completion alone
    assert processor(text=" an old man<|eos|>")["input_ids"][0] == whole[len(prompt) :]


def test_text_only_and_system_messages(processor):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<|bos|>Be brief. USER: \nHello ASSISTANT:"
    assert "pixel_values" not in processor.apply_chat_template(chat, **TOKENIZE)


def test_bad_conversations(processor):
    for chat, reason in (
        ([user(picture(), picture(), "Same person?")], "2 images, expected at most one"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([user({"type": "video"}, "x")], "type 'video'"),
    ):
        with pytest.raises(Exception, match=reason):
            processor.apply_chat_template(chat)
    with pytest.raises(UniF2aceImageError, match="does not exist"):
        processor.apply_chat_template([user({"type": "image", "path": "no/such.png"}, "x")], **TOKENIZE)
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text="<|mmu|><|soi|><|mask|><|eoi|><|bos|>USER: \nx")


def test_batches_are_left_padded(processor, tokenizer):
    chats = [[user(picture(), "Who?")], [user(picture(FACE.rotate(90)), "Describe this face in detail.")]]
    inputs = processor.apply_chat_template(chats, add_generation_prompt=True, **TOKENIZE)
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert inputs["input_ids"][0, 0] == tokenizer.pad_token_id and inputs["attention_mask"][0, 0] == 0
    assert (inputs["mm_token_type_ids"].sum(1) == CONFIG.num_image_tokens).all()
    right = processor.apply_chat_template(chats, processor_kwargs={"padding_side": "right"}, **TOKENIZE)
    assert right["input_ids"][0, -1] == tokenizer.pad_token_id


def test_plain_text_with_an_image_becomes_a_question(processor):
    plain = processor(images=[FACE, FACE], text=["Who?", "Describe this face."], return_tensors="pt")
    chats = [[user(picture(), "Who?")], [user(picture(), "Describe this face.")]]
    chat = processor.apply_chat_template(chats, add_generation_prompt=True, **TOKENIZE)
    assert all(torch.equal(plain[key], chat[key]) for key in chat)
    assert torch.equal(
        processor(images=FACE, text="Who?", return_tensors="pt")["pixel_values"][0], chat["pixel_values"][0]
    )


def test_assistant_mask_covers_the_answers_and_their_eos(processor):
    chat = [user(picture(), "Who?"), assistant("an old man"), user("Hair?"), assistant("long hair")]
    inputs = processor.apply_chat_template(chat, return_assistant_tokens_mask=True, **TOKENIZE)
    said = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    assert processor.decode(said) == " an old man<|eos|> long hair<|eos|>"


def test_sources_of_a_chat_picture(processor, tmp_path):
    path = tmp_path / "face.png"
    FACE.save(path)
    sources = [{"image": FACE}, {"path": str(path)}, {"url": str(path)}, {"image": str(path)}]
    pixels = [
        processor.apply_chat_template([user({"type": "image", **source}, "x")], **TOKENIZE)["pixel_values"]
        for source in sources
    ]
    assert all(torch.equal(pixels[0], other) for other in pixels)


def test_transformers_pipeline(processor, tokenizer):
    torch.manual_seed(0)
    pipe = ImageTextToTextPipeline(
        model=UniF2aceForConditionalGeneration(CONFIG).eval(), processor=processor, tokenizer=tokenizer
    )
    chat = [user(picture(), "Describe this face.")]
    chatted = pipe(text=chat, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    plain = pipe(images=FACE, text="Describe this face.", max_new_tokens=4, return_full_text=False)
    assert isinstance(chatted, str) and "USER" not in chatted
    assert plain[0]["generated_text"] == chatted
    batch = pipe(images=[FACE, FACE], text=["Describe this face.", "Who?"], max_new_tokens=4, batch_size=2)
    assert [row["input_text"] for row in batch] == ["Describe this face.", "Who?"]


@pytest.mark.slow  # trl takes long to import
def test_trl_collator(processor):
    sft_trainer = pytest.importorskip("trl.trainer.sft_trainer")
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    answers = [assistant("an old man"), assistant("long hair")]
    rows = [{"images": [FACE], "messages": [*question, answer]} for answer in answers]
    collator = sft_trainer.DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    batch = collator(rows)
    said = [processor.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert said == [" an old man<|eos|>", " long hair<|eos|>"]
    rows = [{"images": [FACE], "prompt": question, "completion": [answer]} for answer in answers]
    collator = sft_trainer.DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    split = collator(rows)
    assert all(torch.equal(split[key], batch[key]) for key in ("input_ids", "labels", "pixel_values"))


# --- outputs, and files ----------------------------------------------------------------------------------------------


def test_post_processing(processor, tokenizer):
    row = [CONFIG.special_token_id("<|mmu|>"), CONFIG.image_code_offset, *tokenizer("long hair")["input_ids"], 1]
    ids = torch.tensor([row, row])
    assert processor.post_process_image_text_to_text(ids) == ["long hair"] * 2
    assert processor.post_process_image_text_to_text(ids[0]) == ["long hair"]
    whole = processor.post_process_multimodal_output(ids, skip_special_tokens=False)
    assert whole == ["<|mmu|><|code_0|> long hair<|eos|>"] * 2
    pixels = torch.full((2, 16, 16, 3), -1.0, dtype=torch.bfloat16)
    pixels[1] = 3.0
    black, white = processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert black.size == (16, 16) and black.getpixel((0, 0)) == (0, 0, 0) and white.getpixel((0, 0)) == (255,) * 3
    with pytest.raises(ValueError, match="decode codes"):
        processor.post_process_multimodal_output(torch.zeros(1, 16, dtype=torch.long), generation_mode="image")
    with pytest.raises(ValueError, match="generation_mode='sound'"):
        processor.post_process_multimodal_output(pixels, generation_mode="sound")


def test_8_bit_pictures_survive_a_round_trip(processor):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pixels = processor.image_processor(noise, return_tensors="pt").pixel_values.permute(0, 2, 3, 1)
    assert np.array_equal(processor.post_process_multimodal_output(pixels, generation_mode="image")[0], noise)


def test_processor_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    for loaded in (
        UniF2aceProcessor.from_pretrained(tmp_path / "processor"),
        UniF2aceProcessor.from_pretrained(tmp_path, subfolder="processor"),
    ):
        assert isinstance(loaded.image_processor, UniF2aceImageProcessor)
        assert loaded.num_image_tokens == CONFIG.num_image_tokens
        assert loaded.max_text_length == CONFIG.max_text_length
        assert loaded.chat_template == processor.chat_template
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert loaded.tokenizer.padding_side == "left"
        chat = [user(picture(), "Describe this face."), assistant("long hair")]
        before, after = (p.apply_chat_template(chat, **TOKENIZE) for p in (processor, loaded))
        assert all(torch.equal(before[key], after[key]) for key in before)
        text = "She has long <|soi|> hair"
        assert loaded(text=text, generation_mode="image") == processor(text=text, generation_mode="image")


def test_unfit_tokenizers_are_refused(processor, tokenizer):
    with pytest.raises(ValueError, match="were not made for each other"):
        UniF2aceProcessor.from_config(get_preset("faces"), tokenizer)
    plain = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(TEXTS, 302, 5).backend_tokenizer)
    with pytest.raises(ValueError, match="the tokenizer lacks pad_token"):
        UniF2aceProcessor(processor.image_processor, plain)


def test_threads_do_not_tokenize_with_each_others_options(processor):
    """A description's control tokens stay text and a chat's stay control tokens, whatever others do meanwhile."""
    description = "<|soi|><|mask|> a man"
    chat = [{"role": "user", "content": "<|eoi|> Who is on this picture?"}]
    calls = (
        lambda: processor(text=description, generation_mode="image", return_tensors="pt")["input_ids"],
        lambda: processor.apply_chat_template(chat, **TOKENIZE)["input_ids"],
    )
    wanted, wrong = [call() for call in calls], []

    def run(call, ids):
        for _ in range(2500):
            if not torch.equal(call(), ids):
                wrong.append(ids)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(calls, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
