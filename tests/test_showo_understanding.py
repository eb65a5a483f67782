"""Understanding: masks, logits and words are the original Show-o's, with codes (`mmu`) and CLIP (`mmu_clip`)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from showo_mask import showo_attention_mask

from unif2ace import UniF2aceForConditionalGeneration, UniF2acePipeline, UniF2aceProcessor
from unif2ace.training.convert.showo import convert_showo, export_showo
from unif2ace.training.convert.showo_layout import ExpertChoice


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded(showo_recordings):
    return showo_recordings.load("mmu")


@pytest.fixture(scope="module")
def cases(showo_recordings):
    return showo_recordings.about("mmu")["cases"]


def used_mask(model, **inputs):
    """The mask that the first layer gets, (B, 1, L, L)."""
    seen = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    hook.remove()
    return seen[0], outputs


def test_masks_and_logits_equal_the_originals(showo, cases, recorded):
    for case in cases:
        name = case["case"]
        input_ids, expected = recorded[f"{name}.input_ids"], recorded[f"{name}.attention_bool"]
        assert torch.equal(showo_attention_mask(input_ids, showo.config), expected)
        mask, outputs = used_mask(showo, input_ids=input_ids)
        assert torch.equal(mask, expected)
        logits = recorded[f"{name}.logits_image_positions_text_vocab"]
        ours = outputs.logits[:, : logits.shape[1], : logits.shape[2]]
        torch.testing.assert_close(ours, logits, **TOLERANCE)
        last = recorded[f"{name}.logits_after_image"]
        torch.testing.assert_close(outputs.logits[:, -last.shape[1] :], last, **TOLERANCE)


def test_words_equal_the_originals(showo, cases, recorded):
    """Greedy and sampled. The random weights say image codes too, which `generate` forbids unless told otherwise."""
    for case in cases:
        input_ids = recorded[f"{case['case']}.input_ids"]
        options = {"do_sample": False}
        if case["top_k"] > 1:
            options = {"do_sample": True, "top_k": case["top_k"], "temperature": case["temperature"]}
            torch.manual_seed(int(case["rng"].split("manual_seed(")[1].split(")")[0]))
        common = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "suppress_tokens": None}
        common |= {"max_new_tokens": case["max_new_tokens"], **options}
        words = showo.generate(**common, eos_token_id=-1)[0, input_ids.shape[1] :]
        assert words.tolist() == recorded[f"{case['case']}.out_tokens"].tolist(), case["case"]
        if "eot_token_for_stop" in case:
            words = showo.generate(**common, eos_token_id=case["eot_token_for_stop"])[0, input_ids.shape[1] :]
            assert words.tolist() == recorded[f"{case['case']}.out_tokens_stop"].tolist()


def test_questions_are_laid_out_alike(showo_folder, showo, cases, recorded):
    processor = UniF2aceProcessor.from_pretrained(showo_folder)
    for case in cases:
        question = case["question"].removeprefix("USER:").removesuffix("ASSISTANT:").strip()
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        text = text.replace(processor.image_token, processor.image_token * showo.config.num_image_tokens)
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = recorded[f"{case['case']}.input_ids"]
        is_code = expected >= showo.config.image_code_offset
        assert torch.equal(ids, expected.masked_fill(is_code, showo.config.image_token_id))


# --- the variant that reads CLIP features


@pytest.fixture(scope="module")
def clip_recorded(showo_recordings):
    return showo_recordings.load("mmu_clip")


@pytest.fixture(scope="module")
def clip_sources(showo_sources, clip_recorded, tmp_path_factory):
    """The recorded checkpoint with the projector, as the original would save it, in two shards."""
    folder = tmp_path_factory.mktemp("showo-clip") / "show-o-w-clip-vit"
    shutil.copytree(showo_sources["source"], folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    weights |= {name: tensor for name, tensor in clip_recorded.items() if name.startswith("mm_projector.")}
    names = list(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name].clone() for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text()) | {"w_clip_vit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return showo_sources | {"source": folder}


@pytest.fixture(scope="module")
def clip_folder(clip_sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("showo-clip-converted") / "dense"
    convert_showo(destination=folder, experts=ExpertChoice("none"), **clip_sources)
    return folder


@pytest.fixture(scope="module")
def clip_model(clip_folder):
    return UniF2aceForConditionalGeneration.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="module")
def clip_inputs(clip_model, clip_recorded):
    """The original's ids with as many placeholders behind start-of-image as there are patches."""
    config, features = clip_model.config, clip_recorded["clip_features"]
    ids = clip_recorded["input_ids_llava"]
    after = int((ids[0] == config.special_token_id("<|soi|>")).nonzero()) + 1
    holes = torch.full((len(ids), features.shape[1]), config.image_token_id)
    return {"input_ids": torch.cat([ids[:, :after], holes, ids[:, after:]], dim=1), "clip_features": features}


def test_clip_features_give_the_originals_states_and_logits(showo_recordings, clip_model, clip_recorded, clip_inputs):
    projected = clip_model.model.mm_projector(clip_recorded["clip_features"])
    torch.testing.assert_close(projected, clip_recorded["projected"], **TOLERANCE)
    mask, outputs = used_mask(clip_model, **clip_inputs)
    torch.testing.assert_close(outputs.hidden_states[0], clip_recorded["inputs_embeds"], **TOLERANCE)
    expected = showo_attention_mask(clip_inputs["input_ids"], clip_model.config)
    assert torch.equal(mask, expected)
    system = showo_recordings.about("mmu_clip")["system_prompt_len"]
    rows = [0, 1, system, system + 1, system + 2, system + 577, system + 578, -1]
    assert torch.equal(mask[:, :, rows], clip_recorded["attention_bool_first_and_last_rows"])
    states = outputs.hidden_states[-1]
    first, last = clip_recorded["hidden_final_norm_first16"], clip_recorded["hidden_final_norm_last64"]
    torch.testing.assert_close(states[:, : first.shape[1]], first, **TOLERANCE)
    torch.testing.assert_close(states[:, -last.shape[1] :], last, **TOLERANCE)
    logits = clip_recorded["logits_last8"]
    torch.testing.assert_close(outputs.logits[:, -logits.shape[1] :], logits, **TOLERANCE)


def test_words_from_clip_features_equal_the_originals(clip_model, clip_recorded, clip_inputs):
    expected = clip_recorded["out_tokens"]
    words = clip_model.generate(
        **clip_inputs,
        attention_mask=torch.ones_like(clip_inputs["input_ids"]),
        max_new_tokens=len(expected),
        do_sample=False,
        suppress_tokens=None,
        eos_token_id=-1,
    )
    assert words[0, clip_inputs["input_ids"].shape[1] :].tolist() == expected.tolist()


def test_a_clip_conversion_upcycles_and_goes_home(clip_sources, clip_model, clip_inputs, clip_folder, tmp_path):
    convert_showo(destination=tmp_path / "experts", **clip_sources)
    upcycled = UniF2aceForConditionalGeneration.from_pretrained(tmp_path / "experts").eval()
    with torch.no_grad():
        assert torch.equal(upcycled(**clip_inputs).logits, clip_model(**clip_inputs).logits)
    home = export_showo(clip_folder, tmp_path / "home")
    assert json.loads((home / "config.json").read_text())["w_clip_vit"] is True
    back, first = load_file(home / "pytorch_model.safetensors"), {}
    for shard in clip_sources["source"].glob("*.safetensors"):
        first |= load_file(shard)
    assert back.keys() == first.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())


def test_the_clip_variant_runs_in_the_pipeline(showo_recordings, clip_sources, clip_recorded, tmp_path):
    """With a vision tower in the checkpoint: pictures to words and words to pictures, both tasks in one batch too."""
    from PIL import Image
    from transformers import CLIPConfig, CLIPModel

    width = clip_recorded["clip_features"].shape[-1]
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    patch_size = 4 if showo_recordings.geometry["nvq"] != 36 else 6  # not as many patches as codes
    num_patches = (24 // patch_size) ** 2
    tower = CLIPModel(
        CLIPConfig(
            vision_config=sizes | {"image_size": 24, "patch_size": patch_size},
            text_config=sizes | {"vocab_size": 20},
            projection_dim=8,
        )
    )
    tower.save_pretrained(tmp_path / "clip")
    convert_showo(destination=tmp_path / "model", clip=tmp_path / "clip", **clip_sources)
    pipe = UniF2acePipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    config = pipe.transformer.config
    assert config.num_understanding_tokens == num_patches != config.num_image_tokens
    expected = dict(tower.vision_model.named_parameters())
    tower_parameters = dict(pipe.transformer.model.vision_tower.named_parameters())
    assert all(torch.equal(tower_parameters[name], value) for name, value in expected.items())

    picture = pipe("w1 w2 w3", num_inference_steps=2).images[0]
    assert isinstance(picture, Image.Image)
    one, two = pipe.answer([picture, picture.rotate(90)], "w4 ?", max_new_tokens=4)
    assert (one, two) == tuple(pipe.answer(image, "w4 ?", max_new_tokens=4) for image in (picture, picture.rotate(90)))

    # a batch of both tasks, whose image spans differ in length, is the two rows alone
    model, n = pipe.transformer.eval(), config.num_image_tokens
    special = config.special_token_id
    drawn = [special("<|t2i|>"), 0, 5, 0, special("<|soi|>"), *[config.mask_token_id] * n, special("<|eoi|>")]
    patches = [special("<|soi|>"), *[config.mask_token_id] * num_patches, special("<|eoi|>")]
    seen = [special("<|mmu|>"), 7, 8, *patches, 9, 10]
    length = max(len(drawn), len(seen))
    pad = config.text_config.pad_token_id
    rows = torch.tensor([[pad] * (length - len(drawn)) + drawn, seen + [pad] * (length - len(seen))])
    pixels = torch.rand(1, 3, 24, 24) * 2 - 1
    for module in model.modules():  # let the sequence experts do something
        if type(module).__name__ == "UniF2aceSequenceRouter":
            torch.nn.init.normal_(module.bias, std=3.0)
    both = model(input_ids=rows, attention_mask=(rows != pad).long(), pixel_values=pixels)
    alone = model(input_ids=torch.tensor([drawn])), model(input_ids=torch.tensor([seen]), pixel_values=pixels)
    torch.testing.assert_close(both.logits[:1, -len(drawn) :], alone[0].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logits[1:, : len(seen)], alone[1].logits, atol=1e-4, rtol=1e-4)
    both.logits.sum().backward()
    with pytest.raises(ValueError, match="patches each"):
        model(input_ids=torch.tensor([seen]), clip_features=torch.zeros(1, num_patches - 1, width))


def test_without_features_the_clip_variant_says_what_it_needs(clip_model, clip_inputs):
    with pytest.raises(ValueError, match="set_vision_tower"):
        clip_model(input_ids=clip_inputs["input_ids"])
