"""Features computed once: the same training as computing them each time, and a folder that knows what it holds."""

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.modeling_unif2ace import UniF2aceImageProcessor, get_preset
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.features import encode_pictures
from unif2ace.training.data.rows import make_rows
from unif2ace.training.train_text_tokenizer import build_tokenizer


COUNT = 5
PIXELS = torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROCESSOR = UniF2aceImageProcessor.from_resolution(16)


@pytest.fixture(scope="module")
def collator():
    config = get_preset("tiny")
    texts = ["USER: \nWho is it? ASSISTANT: an old man"] * 20
    return UniF2aceCollator(build_tokenizer(texts, config.text_vocab_size, 5), config)


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
        (folder / f"{number}.txt").write_text("an old man")
    return folder


def rows_of(faces, features, model, processor=PROCESSOR):
    data = {"source": "faces", "train": {"path": str(faces)}, "features": str(features)}
    return make_rows(data, 0, model.model, processor, progress=False)[0]


def test_features_are_those_of_the_encoders(built, faces, tmp_path):
    rows = rows_of(faces, tmp_path / "features", built)
    for row in rows:
        pixels = PROCESSOR(row["image"], return_tensors="pt")["pixel_values"]
        assert torch.equal(row["codes"], built.model.encode_images(pixels)[0])
        for name, encode in (("clip_features", built.model.encode_clip), ("face_features", built.model.encode_face)):
            torch.testing.assert_close(row[name], encode(pixels)[0].float(), atol=2e-3, rtol=2e-3)
    exact = encode_pictures(built.model, {"pixel_values": PIXELS}, "float32")
    np.testing.assert_array_equal(exact["clip_features"], built.model.encode_clip(PIXELS).numpy())


def test_features_are_made_once(built, faces, tmp_path):
    first = [row["codes"] for row in rows_of(faces, tmp_path / "features", built)]
    again = rows_of(faces, tmp_path / "features", built, processor=None)  # nothing is left to encode
    assert all(torch.equal(row["codes"], codes) for row, codes in zip(again, first, strict=True))


def test_features_of_other_weights_or_other_faces_are_refused(built, model, faces, tmp_path):
    rows_of(faces, tmp_path / "features", built)
    rows_of(faces, tmp_path / "features", model)  # a copy: the same weights
    (faces / "0.png").unlink()
    with pytest.raises(ValueError, match="says count=5, but 4 is asked for"):
        rows_of(faces, tmp_path / "features", built)
    faces.rename(tmp_path / "others")
    with pytest.raises(ValueError, match="is asked for: choose another folder, delete it"):
        rows_of(tmp_path / "others", tmp_path / "features", built)
    with torch.no_grad():
        model.model.vision_tower.embeddings.class_embedding += 1
    with pytest.raises(ValueError, match="says count=5|says weights="):
        rows_of(tmp_path / "others", tmp_path / "features", model)


def test_rows_with_features_need_no_picture(built, collator):
    columns = encode_pictures(built.model, {"pixel_values": PIXELS}, "float32")
    turns = [("Who is it?", "an old man")]
    seen = [{"task": "mmu", "turns": turns, "pixel_values": PIXELS[i]} for i in range(2)]
    known = [{"task": "mmu", "turns": turns} | {k: c[i].copy() for k, c in columns.items()} for i in range(2)]
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
