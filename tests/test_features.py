"""Features computed once: the same training as computing them each time, and a cache that knows what it holds."""

import json

import numpy as np
import pytest
import torch

from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.features import DESCRIPTION, FeatureCache
from unif2ace.training.train_text_tokenizer import build_tokenizer


COUNT = 5
PIXELS = torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def collator():
    config = get_preset("tiny")
    texts = ["USER: \nWho is it? ASSISTANT: an old man"] * 20
    return UniF2aceCollator(build_tokenizer(texts, config.text_vocab_size, 5), config)


def build(folder, model, **kwargs):
    options = {"batch_size": 2, "dtype": "float32", "progress": False, **kwargs}
    return FeatureCache.build(
        folder, model.model, lambda i: {"pixel_values": PIXELS[i]}, options.pop("count", COUNT), **options
    )


def test_features_are_those_of_the_encoders(built, tmp_path):
    cache = build(tmp_path, built)
    assert len(cache) == COUNT
    assert np.array_equal(cache.columns["codes"], built.model.encode_images(PIXELS).numpy())
    for name, encode in (("clip_features", built.model.encode_clip), ("face_features", built.model.encode_face)):
        np.testing.assert_allclose(cache.columns[name], encode(PIXELS).numpy(), atol=1e-5)
    small = build(tmp_path / "half", built, dtype="float16")
    assert small.columns["clip_features"].dtype == np.float16 and small.columns["codes"].dtype == np.int32


def test_building_goes_on_where_it_stopped(built, tmp_path):
    seen = []

    def pixels(number):
        seen.append(number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return {"pixel_values": PIXELS[number]}

    with pytest.raises(KeyboardInterrupt):
        FeatureCache.build(tmp_path, built.model, pixels, COUNT, batch_size=2, dtype="float32", progress=False)
    with pytest.raises(FileNotFoundError, match="2 of 5"):
        FeatureCache(tmp_path)
    seen.clear()
    seen += [None] * 4
    FeatureCache.build(tmp_path, built.model, pixels, COUNT, batch_size=2, dtype="float32", progress=False)
    assert seen[4:] == [2, 3, 4]
    whole = build(tmp_path / "whole", built)
    for name, column in FeatureCache(tmp_path).columns.items():
        np.testing.assert_allclose(column, whole.columns[name], atol=1e-6)


def test_a_cache_of_other_weights_is_refused(built, model, tmp_path):
    build(tmp_path, built)
    build(tmp_path, model)  # a copy: the same weights
    with torch.no_grad():
        model.model.vision_tower.embeddings.class_embedding += 1
    with pytest.raises(ValueError, match="other weights"):
        build(tmp_path, model)
    with pytest.raises(ValueError, match="other count"):
        build(tmp_path, built, count=4)
    with pytest.raises(FileNotFoundError, match="no features"):
        FeatureCache(tmp_path / "elsewhere")
    assert json.loads((tmp_path / DESCRIPTION).read_text())["done"] == COUNT


def test_rows_with_features_need_no_picture(built, collator, tmp_path):
    cache = build(tmp_path, built)
    turns = [("Who is it?", "an old man")]
    seen = [{"task": "mmu", "turns": turns, "pixel_values": PIXELS[i]} for i in range(2)]
    known = [{"task": "mmu", "turns": turns} | {k: c[i].copy() for k, c in cache.columns.items()} for i in range(2)]
    with torch.no_grad():
        pictured, computed = collator(seen), collator(known)
        assert "pixel_values" not in computed
        assert computed["clip_features"].shape == (2, 4, 24) and computed["face_features"].shape == (2, 16)
        labels, needs_codes = pictured.pop("labels"), pictured.pop("needs_codes")
        assert needs_codes.all() and torch.equal(labels, computed.pop("labels"))
        torch.testing.assert_close(built(**pictured).logits, built(**computed).logits, atol=1e-5, rtol=0)

    known[1].pop("face_features")
    with pytest.raises(ValueError, match="1 of 2 understanding rows have 'face_features'"):
        collator(known)
    known[0].pop("face_features")
    with pytest.raises(ValueError, match="neither `pixel_values` nor `image`"):
        collator(known)
