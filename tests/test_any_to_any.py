"""transformers' `pipeline` in one line: texts, pictures and conversations to texts or pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, pipeline

from unif2ace import UniF2aceForConditionalGeneration, UniF2aceProcessor
from unif2ace.modeling_unif2ace import UniF2aceAnyToAnyPipeline, get_preset
from unif2ace.modeling_unif2ace.provenance_unif2ace import read_provenance
from unif2ace.modeling_unif2ace.watermark_unif2ace import embed_watermark
from unif2ace.training.train_text_tokenizer import build_tokenizer


TEXTS = ["a man with a hat and a beard", "a young woman with round glasses. Describe this face."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    model = UniF2aceForConditionalGeneration(get_preset("tiny")).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a new model is indifferent; this one has opinions that depend on the prompt
    text = model.config.text_config
    model.generation_config = GenerationConfig(
        max_new_tokens=8, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, image_temperature=0.5
    )
    model.save_pretrained(folder)
    config = model.config
    tokenizer = build_tokenizer(TEXTS * 3, config.text_vocab_size, config.vq_config.num_bits)
    UniF2aceProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def faces(folder):
    return pipeline("face-any-to-any", model=str(folder))


@pytest.fixture(scope="module")
def face():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))


def drawing(seed=1):
    return {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(seed)}


def test_text_to_picture(faces):
    assert isinstance(faces, UniF2aceAnyToAnyPipeline)
    options = {"text": TEXTS[0], "generation_mode": "image"}
    (made,) = faces(**options, generate_kwargs=drawing(), watermark=False)
    picture = made["generated_image"]
    assert picture.size == (16, 16) and picture.mode == "RGB"
    inputs = faces.processor(text=TEXTS[0], generation_mode="image", return_tensors="pt")
    codes = faces.model.generate(**inputs, generation_mode="image", temperature=0.5, **drawing())
    pixels = faces.model.decode_image_tokens(codes)
    (expected,) = faces.processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert picture.tobytes() == expected.tobytes() and read_provenance(picture) is None
    (made,) = faces(**options, generate_kwargs=drawing())  # marked, as by the other pipeline
    marked = made["generated_image"]
    assert marked.tobytes() == embed_watermark(expected).tobytes() != picture.tobytes()
    origin = read_provenance(marked)
    assert (
        origin.seed == 1
        and origin.checkpoint == Path(faces.model.name_or_path).name
        and origin.revision.startswith("sha256:")
    )


def test_several_texts_to_pictures(faces):
    made = faces(text=TEXTS[:1] * 2, generation_mode="image", generate_kwargs=drawing())
    pictures = [item["generated_image"] if isinstance(item, dict) else item[0]["generated_image"] for item in made]
    assert len(pictures) == 2 and all(picture.size == (16, 16) for picture in pictures)


def test_conversation_to_picture(faces):
    chat = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Whom shall I draw?"},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]},
    ]
    (asked,) = faces(text=chat, generation_mode="image", generate_kwargs=drawing())
    (plain,) = faces(text=TEXTS[0], generation_mode="image", generate_kwargs=drawing())
    assert asked["generated_image"].tobytes() == plain["generated_image"].tobytes()


def test_picture_to_text_as_the_stock_pipeline_says_it(faces, folder, face):
    stock = pipeline("image-text-to-text", model=str(folder))
    arguments = {"images": face, "text": "Describe this face.", "max_new_tokens": 6, "return_full_text": False}
    (ours,), (theirs,) = faces(**arguments), stock(**arguments)
    assert ours["generated_text"].strip() == theirs["generated_text"].strip() != ""
    chat = [{"role": "user", "content": [{"type": "image", "image": face}, {"type": "text", "text": "Who is it?"}]}]
    (answer,) = faces(text=chat, max_new_tokens=6, return_full_text=False)
    assert isinstance(answer["generated_text"], str)


def test_what_it_cannot_do_is_said(faces, face):
    with pytest.raises(ValueError, match="makes a picture from text alone"):
        faces(images=face, text=TEXTS[0], generation_mode="image")
    with pytest.raises(ValueError, match="video"):
        faces(text=TEXTS[0], generation_mode="video")


def test_a_published_configuration_does_not_ask_for_trust(folder):
    """The repository's own pipeline is for those without the package."""
    from unif2ace.hub_card.remote_code import CUSTOM_PIPELINES

    config = type(pipeline("face-any-to-any", model=str(folder)).model.config).from_pretrained(
        folder, custom_pipelines=CUSTOM_PIPELINES
    )
    assert not hasattr(config, "custom_pipelines") and "face-any-to-any" in CUSTOM_PIPELINES
