"""Both generation modes: caches against recomputation, batches against single rows, guidance, beams, bad input."""

import copy
import shutil
import threading

import pytest
import torch
import transformers

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset
from unif2ace.modeling_unif2ace.sampling_unif2ace import (
    DecodingStep,
    ImageSampling,
    MaskSchedule,
    confidence_temperatures,
    masked_positions,
    maskgit_step,
    row_generators,
)
from unif2ace.training.train_text_tokenizer import build_tokenizer


NUM_CODES, STEPS = 16, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(get_preset("tiny")).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a new model is indifferent; this one has opinions that depend on what it reads
    return model


@pytest.fixture(scope="module")
def prompts(model):
    """Two prompts of unequal length, left padded."""
    pad, t2i = (model.config.special_token_id(token) for token in ("[PAD]", "<|t2i|>"))
    input_ids = torch.tensor([[pad, pad, t2i, 0, 5, 1], [t2i, 0, 6, 7, 8, 1]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != pad).long()}


@pytest.fixture(scope="module")
def questions(model):
    """Two questions of unequal length about two pictures, left padded."""
    config = model.config
    pad, mmu, soi, eoi = (config.special_token_id(token) for token in ("[PAD]", "<|mmu|>", "<|soi|>", "<|eoi|>"))
    image = [mmu, soi, *[config.image_token_id] * NUM_CODES, eoi, 0]
    input_ids = torch.tensor([[pad, pad, *image, 8], [*image, 9, 10, 11]])
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"input_ids": input_ids, "attention_mask": (input_ids != pad).long(), "pixel_values": pixels}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(model, prompts, **kwargs):
    return model.generate(**prompts, generation_mode="image", num_inference_steps=STEPS, **kwargs)


def row_of(prompts, row):
    """One prompt without padding."""
    real = prompts["attention_mask"][row].bool()
    return {"input_ids": prompts["input_ids"][row][real][None]}


def some_codes(model, rows):
    return torch.randint(-1, model.config.vq_config.codebook_size, (rows, NUM_CODES))


def recomputed_logits(model, codes, prompts):
    """The image's logits from the whole sequence, without any cache."""
    config = model.config
    ids = torch.where(codes < 0, config.mask_token_id, codes + config.image_code_offset)
    soi, eoi = (torch.full((len(ids), 1), config.special_token_id(token)) for token in ("<|soi|>", "<|eoi|>"))
    length = prompts["input_ids"].shape[1]
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, NUM_CODES + 2), value=1)
    whole = torch.cat([prompts["input_ids"], soi, ids, eoi], dim=1)
    logits = model(input_ids=whole, attention_mask=mask).logits
    return logits[:, length + 1 : -1, config.image_code_offset : config.mask_token_id]


# --- pictures


@torch.no_grad()
def test_a_cached_prompt_gives_the_logits_of_the_whole_sequence(model, prompts):
    codes = some_codes(model, 2)
    prompt = model.encode_prompt(**prompts)
    expected = recomputed_logits(model, codes, prompts)
    logits = model.predict_codes(codes, prompt)
    assert logits.dtype == torch.float32 and logits.shape == (2, NUM_CODES, 32)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    # reading a prompt does not write into it
    assert torch.equal(model.predict_codes(codes, prompt), logits)


@torch.no_grad()
def test_a_cached_prompt_draws_the_codes_of_the_whole_sequence(model, prompts):
    codes = torch.full((2, NUM_CODES), -1)
    generators = row_generators(seeded(1, 2), 2)
    for step, noise in enumerate(confidence_temperatures("linear", 1.0, STEPS), start=1):
        num_masked = MaskSchedule("cosine").num_masked(step / STEPS, NUM_CODES)
        place = DecodingStep(num_masked=num_masked, confidence_temperature=noise)
        logits = recomputed_logits(model, codes, prompts)
        codes, _ = maskgit_step(logits, codes, place, ImageSampling(), generators)
    assert torch.equal(draw(model, prompts, generator=seeded(1, 2), guidance_scale=1.0), codes)


def test_drawn_pictures_are_whole(model, prompts):
    codes = draw(model, prompts, generator=seeded(1, 2))
    assert codes.shape == (2, NUM_CODES) and codes.min() >= 0 and codes.max() < 32
    pixels = model.decode_image_tokens(codes)
    assert pixels.shape == (2, 16, 16, 3) and pixels.abs().max() <= 1 and not pixels.requires_grad


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(model, prompts, guidance_scale):
    both = draw(model, prompts, generator=seeded(1, 2), guidance_scale=guidance_scale)
    assert not torch.equal(both[0], both[1])
    for row, number in enumerate((1, 2)):
        alone = draw(model, row_of(prompts, row), generator=seeded(number), guidance_scale=guidance_scale)
        assert torch.equal(both[row], alone[0])


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(model, prompts):
    first = draw(model, prompts, generator=seeded(1, 2))
    assert torch.equal(first, draw(model, prompts, generator=seeded(1, 2)))
    assert not torch.equal(first, draw(model, prompts, generator=seeded(3, 4)))


def test_images_of_one_prompt_follow_each_other(model, prompts):
    images = draw(model, prompts, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    assert images.shape == (4, NUM_CODES)
    for image, (row, number) in enumerate([(0, 1), (0, 2), (1, 3), (1, 4)]):
        alone = draw(model, row_of(prompts, row), generator=seeded(number))
        assert torch.equal(images[image], alone[0])


@torch.no_grad()
def test_guidance_moves_from_the_unconditional_to_the_conditional_logits(model, prompts):
    codes = some_codes(model, 2)
    prompt = model.encode_prompt(**prompts)
    conditional = model.predict_codes(codes, model.encode_prompt(**prompts, guidance=False))
    empty = model.unconditional_prompt().expand(2, -1)
    unconditional = model.predict_codes(codes, model.encode_prompt(empty, guidance=False))
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(model.predict_codes(codes, prompt, 1.0), conditional, atol=1e-5, rtol=1e-5)
    for scale in (0.0, 2.75):
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(model.predict_codes(codes, prompt, scale), expected, atol=1e-4, rtol=1e-4)


def test_the_empty_prompt_is_the_default_negative_prompt(model, prompts):
    empty = model.unconditional_prompt()
    default = draw(model, prompts, generator=seeded(1, 2))
    assert torch.equal(draw(model, prompts, generator=seeded(1, 2), negative_input_ids=empty), default)
    each = draw(model, prompts, generator=seeded(1, 2), negative_input_ids=empty.expand(2, -1))
    assert torch.equal(each, default)


def test_a_negative_prompt_longer_than_the_prompt_needs_no_padding_by_hand(model, prompts):
    negative = torch.tensor([[model.config.special_token_id("<|t2i|>"), 0, 20, 21, 22, 23, 24, 1]])
    strong = {"guidance_scale": 30.0}  # a fresh model hardly listens
    both = draw(model, prompts, generator=seeded(1, 2), negative_input_ids=negative, **strong)
    assert not torch.equal(both, draw(model, prompts, generator=seeded(1, 2), **strong))
    alone = draw(model, row_of(prompts, 0), generator=seeded(1), negative_input_ids=negative, **strong)
    assert torch.equal(both[0], alone[0])


@torch.no_grad()
def test_guidance_without_a_negative_prompt_is_refused(model, prompts):
    prompt = model.encode_prompt(**prompts, guidance=False)
    with pytest.raises(ValueError, match=r"guidance_scale=3\.0 needs a prompt encoded with guidance=True"):
        model.predict_codes(some_codes(model, 2), prompt, 3.0)


def test_another_number_of_generators_than_images_is_refused(model, prompts):
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        draw(model, prompts, generator=seeded(1, 2, 3))


def test_an_unknown_mode_is_refused(model, prompts):
    with pytest.raises(ValueError, match="generation_mode='video', expected 'text' or 'image'"):
        model.generate(**prompts, generation_mode="video")


# --- less work


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_logits_of_some_places_are_those_of_all_places(model, prompts, guidance_scale):
    codes, prompt = some_codes(model, 2), model.encode_prompt(**prompts)
    places = masked_positions(codes, 5)
    some = model.predict_codes(codes, prompt, guidance_scale, positions=places)
    every = model.predict_codes(codes, prompt, guidance_scale)
    assert some.shape == (2, 5, 32)
    torch.testing.assert_close(some, every.gather(1, places[..., None].expand(-1, -1, 32)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_loop_over_all_places_draws_the_same_codes(model, prompts):
    prompt, codes = model.encode_prompt(**prompts), torch.full((2, NUM_CODES), -1)
    rows = row_generators(seeded(1, 2), 2)
    for step, noise in enumerate(confidence_temperatures("linear", 1.0, STEPS), start=1):
        left = MaskSchedule("cosine").num_masked(step / STEPS, NUM_CODES)
        place = DecodingStep(num_masked=left, confidence_temperature=noise)
        codes, _ = maskgit_step(model.predict_codes(codes, prompt, 3.0), codes, place, ImageSampling(), rows)
    assert torch.equal(draw(model, prompts, generator=seeded(1, 2), guidance_scale=3.0), codes)


def test_a_compiled_step_is_one_graph_for_all_prompts_and_draws_the_same_codes(model, prompts):
    """Full graph: a look at the device inside of the step would be an error."""
    eager = [draw(model, prompts, generator=seeded(1, 2))]
    longer = {"input_ids": torch.tensor([[model.config.special_token_id("<|t2i|>"), 0, *range(20, 32), 1]] * 2)}
    eager.append(draw(model, longer, generator=seeded(1, 2)))
    compiled = copy.deepcopy(model)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled.compile_image_decoding(backend=backend)
    assert torch.equal(draw(compiled, prompts, generator=seeded(1, 2)), eager[0])
    assert torch.equal(draw(compiled, longer, generator=seeded(1, 2)), eager[1])
    assert len(graphs) == 1


@pytest.mark.slow
def test_a_step_compiled_to_machine_code_draws_the_same_codes(model, prompts):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    compiled = copy.deepcopy(model)
    compiled.compile_image_decoding()
    for seeds in ((1, 2), (3, 4)):
        assert torch.equal(
            draw(compiled, prompts, generator=seeded(*seeds)), draw(model, prompts, generator=seeded(*seeds))
        )


def test_the_empty_prompt_is_computed_once_when_asked(model, prompts, monkeypatch):
    model, encoded = copy.deepcopy(model), []
    encode = model._encode_text
    monkeypatch.setattr(model, "_encode_text", lambda ids, mask: encoded.append(ids.shape) or encode(ids, mask))
    first = draw(model, prompts, generator=seeded(1, 2))
    assert encoded == [(2, 6), (1, 3)]
    model.remember_unconditional_prompt()
    encoded.clear()
    assert torch.equal(draw(model, prompts, generator=seeded(1, 2)), first) and encoded == [(2, 6)]
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.mul_(2)  # as an optimizer's step does
    encoded.clear()
    changed = draw(model, prompts, generator=seeded(1, 2))
    assert encoded == [(2, 6), (1, 3)]
    model.remember_unconditional_prompt(False)
    assert torch.equal(draw(model, prompts, generator=seeded(1, 2)), changed)


# --- text


def answer(model, questions, **kwargs):
    kwargs = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False} | kwargs
    return model.generate(**questions, **kwargs)[:, questions["input_ids"].shape[1] :]


def test_text_is_the_same_with_a_growing_a_fixed_and_no_cache(model, questions):
    growing = answer(model, questions)
    assert growing.shape == (2, 6)
    assert torch.equal(growing, answer(model, questions, cache_implementation="static"))
    assert torch.equal(growing, answer(model, questions, use_cache=False))


def test_an_answer_is_the_same_alone_and_in_a_batch(model, questions):
    both = answer(model, questions)
    for row in range(2):
        alone = row_of(questions, row) | {"pixel_values": questions["pixel_values"][row : row + 1]}
        assert torch.equal(answer(model, alone), both[row : row + 1])


@torch.no_grad()
def test_answers_follow_from_the_picture(model, questions):
    logits = model(**questions).logits[:, -1]
    swapped = model(**questions | {"pixel_values": questions["pixel_values"].flip(0)}).logits[:, -1]
    assert not torch.allclose(logits, swapped, atol=1e-3)


@torch.no_grad()
def test_each_greedy_token_is_the_best_one_of_a_full_pass(model, questions):
    whole = torch.cat([questions["input_ids"], answer(model, questions)], dim=1)
    mask = torch.nn.functional.pad(questions["attention_mask"], (0, 6), value=1)
    logits = model(input_ids=whole, attention_mask=mask, pixel_values=questions["pixel_values"]).logits[:, -7:-1]
    logits[..., model.config.image_code_offset :] = -torch.inf
    logits[..., model.config.text_config.eos_token_id] = -torch.inf  # min_new_tokens forbids it
    assert torch.equal(logits.argmax(-1), whole[:, -6:])


@pytest.mark.parametrize("do_sample", [False, True])
def test_text_holds_no_image_codes_even_if_the_model_wants_them(model, questions, do_sample):
    eager = copy.deepcopy(model)
    with torch.no_grad():
        eager.lm_head.bias[eager.config.image_code_offset :] = 1000.0
    tokens = answer(eager, questions, do_sample=do_sample)
    assert (tokens < eager.config.image_code_offset).all()
    more = transformers.GenerationConfig(suppress_tokens=[eager.config.mask_token_id], max_new_tokens=6)  # as TRL's
    tokens = eager.generate(**questions, generation_config=more, do_sample=do_sample)[:, -6:]
    assert (tokens < eager.config.image_code_offset).all()
    forced = answer(eager, questions, do_sample=do_sample, suppress_tokens=[0])  # the caller's own choice counts
    assert (forced >= eager.config.image_code_offset).all()


def test_beams_run_and_end_at_least_as_likely_as_the_greedy_answer(model, questions):
    @torch.no_grad()
    def log_likelihood(tokens):
        whole = torch.cat([questions["input_ids"], tokens], dim=1)
        mask = torch.nn.functional.pad(questions["attention_mask"], (0, tokens.shape[1]), value=1)
        logits = model(input_ids=whole, attention_mask=mask, pixel_values=questions["pixel_values"]).logits[:, -3:-1]
        return logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))

    length = {"max_new_tokens": 2, "min_new_tokens": 2}
    greedy, beams = answer(model, questions, **length), answer(model, questions, num_beams=4, **length)
    assert beams.shape == (2, 2)
    assert (log_likelihood(beams) >= log_likelihood(greedy) - 1e-4).all()


def test_several_answers_to_one_question(model, questions):
    answers = answer(model, questions, do_sample=True, num_return_sequences=3)
    assert answers.shape == (6, 6)


def test_text_without_a_picture(model):
    answer_ids = model.generate(input_ids=torch.tensor([[0, 5, 6]]), max_new_tokens=3, do_sample=False)
    assert answer_ids.shape[1] <= 6 and (answer_ids < model.config.image_code_offset).all()


def test_beams_are_the_same_with_a_growing_and_a_fixed_cache(model, questions):
    beams = answer(model, questions, num_beams=3)
    assert torch.equal(beams, answer(model, questions, num_beams=3, cache_implementation="static"))


class Collected:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens.extend(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_tokens_are_streamed_as_they_are_made(model, questions):
    alone = row_of(questions, 1) | {"pixel_values": questions["pixel_values"][1:]}
    streamer = Collected()
    tokens = answer(model, alone, streamer=streamer)
    assert streamer.ended and streamer.tokens == alone["input_ids"][0].tolist() + tokens[0].tolist()


def test_stop_strings_end_an_answer(model, questions):
    config = model.config
    tokenizer = build_tokenizer(
        ["a man with a hat and a beard"] * 3, config.text_vocab_size, config.vq_config.num_bits
    )

    def sampled(**kwargs):
        torch.manual_seed(0)
        return answer(
            model, questions, min_new_tokens=None, max_new_tokens=24, do_sample=True, tokenizer=tokenizer, **kwargs
        )

    free = sampled()[0]
    texts = [tokenizer.decode(token) for token in free]
    place = next(i for i, text in enumerate(texts) if i and text.isalpha() and text.isascii())  # a whole letter
    first = texts.index(texts[place])
    stopped = sampled(stop_strings=[texts[place]])[0]
    assert torch.equal(stopped[: first + 1], free[: first + 1])
    assert (stopped[first + 1 :] == model.config.text_config.pad_token_id).all()


def test_threads_share_a_model_without_meeting(model, prompts):
    """Pictures, texts and plain calls at once are what they are alone, and leave the configuration as it was."""
    model = copy.deepcopy(model)
    model.remember_unconditional_prompt()
    config, special = model.config, model.config.special_token_id
    head = [special("<|mmu|>"), special("<|soi|>"), *[config.image_token_id] * NUM_CODES, special("<|eoi|>"), 0, 20]
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    question = {"input_ids": torch.tensor([head]), "pixel_values": pixels}
    calls = [
        lambda: draw(model, prompts, generator=seeded(1, 2)),
        lambda: draw(model, prompts, generator=seeded(3, 4), guidance_scale=1.0, sampling="ancestral"),
        lambda: model.generate(**question, max_new_tokens=6, do_sample=False),
        lambda: model(**question, output_hidden_states=True).logits,
    ]
    state = lambda: (  # noqa: E731
        config.to_json_string(use_diff=False),
        model.generation_config.to_json_string(use_diff=False),
        {name: sorted(vars(module)) for name, module in model.named_modules()},
    )
    with torch.no_grad():
        alone, before, wrong = [call() for call in calls], state(), []

        def run(first):
            with torch.no_grad():
                for turn in range(13):
                    which = (first + turn) % len(calls)
                    if not torch.equal(calls[which](), alone[which]) or state() != before:
                        wrong.append(which)

        threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(torch.equal(call(), result) for call, result in zip(calls, alone, strict=True))


def test_an_answer_holds_text_alone_and_never_changes_its_task(model, questions):
    """With a head bent towards `<|t2i|>`: it is not written, and where a caller allows it, the row stays as it was."""
    model, config = copy.deepcopy(model), model.config
    with torch.no_grad():
        model.lm_head.bias[config.layout.t2i] = 1e4
    written = model.generate(**questions, max_new_tokens=6, do_sample=False)[:, questions["input_ids"].shape[1] :]
    assert (written < config.text_vocab_size).all()
    allowed = model.generate(**questions, max_new_tokens=6, do_sample=False, suppress_tokens=[], use_cache=False)
    assert (allowed[:, -6:] == config.layout.t2i).all()
    cached = model.generate(
        **questions,
        max_new_tokens=6,
        do_sample=False,
        suppress_tokens=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    mask = torch.cat([questions["attention_mask"], torch.ones(2, 5, dtype=torch.long)], dim=1)
    whole = model(
        input_ids=cached.sequences[:, :-1],
        attention_mask=mask,
        pixel_values=questions["pixel_values"],
        task_ids=torch.ones(2, dtype=torch.long),
    ).logits
    torch.testing.assert_close(cached.logits[-1], whole[:, -1], atol=1e-3, rtol=1e-3)


def test_the_vocabulary_cannot_grow_behind_the_image_codes(model):
    for part in (model, model.model):
        size = part.get_input_embeddings().num_embeddings
        assert part.resize_token_embeddings(size) is part.resize_token_embeddings() is part.get_input_embeddings()
        with pytest.raises(ValueError, match="text_vocab_size"):
            part.resize_token_embeddings(size + 1)
