"""Training of the image tokenizer on a few random pictures: all stages, resuming, writing codes."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unif2ace.modeling_unif2ace import UniF2aceVQConfig, UniF2aceVQModel, get_preset
from unif2ace.training.synthetic.faces import Faces, encode_faces, write_shards
from unif2ace.training.synthetic.painted.dataset import painted_face, painted_features
from unif2ace.training.synthetic.train_tokenizer import (
    TokenizerTask,
    TokenizerTrainingArguments,
    decorrelation,
    train_tokenizer,
)


@pytest.fixture(scope="module", autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # the trainer sets its own


@pytest.fixture
def pictures(tmp_path):
    side = get_preset("tiny").vq_config.resolution
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        write_shards(folder, split, 8, partial(_noise, rng.integers(2**31), side), painted_features(), {}, 5)
    return folder


def _noise(seed, side, ranges):
    record = painted_face(0)
    known = {name: getattr(record, name) for name in ("captions", "attributes", "visible", "identity", "source")}
    for start, stop in ranges:
        for number in range(start, stop):
            noise = np.random.default_rng((seed, number)).integers(0, 256, (side, side, 3), dtype=np.uint8)
            yield {"image": Image.fromarray(noise), "questions": [], "id": str(number)} | known


@pytest.fixture
def train(pictures, tmp_path):
    def run(name, steps=3, **arguments):
        settings = {"preset": "tiny", "data": str(pictures), "output": str(tmp_path / name), "steps": steps}
        return train_tokenizer(TokenizerTrainingArguments(**settings, batch_size=4, **arguments))

    return run


@pytest.mark.parametrize("bf16", [False, True])
def test_training_changes_the_weights_and_leaves_a_loadable_tokenizer(train, tmp_path, bf16):
    trained = train("run", bf16=bf16)
    loaded = UniF2aceVQModel.from_pretrained(tmp_path / "run" / "final")
    torch.manual_seed(0)
    fresh = UniF2aceVQModel(get_preset("tiny").vq_config)
    for name, value in trained.state_dict().items():
        assert value.dtype == torch.float32
        assert value.isfinite().all(), name
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("bf16", [False, True])
def test_resuming_a_finished_run_changes_nothing(train, tmp_path, bf16):
    train("run", bf16=bf16)
    before = load_file(tmp_path / "run" / "final" / "model.safetensors")
    train("run", bf16=bf16)
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_an_interrupted_run_ends_as_an_uninterrupted_one(train, tmp_path, monkeypatch):
    train("whole", steps=6, checkpoint_minutes=0.0)
    loss, calls = TokenizerTask.loss, []

    def interrupted(task, rng, batch_size, progress):
        calls.append(progress)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(task, rng, batch_size, progress)

    monkeypatch.setattr(TokenizerTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", steps=6, checkpoint_minutes=0.0)  # a checkpoint after each step
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    train("stopped", steps=6, checkpoint_minutes=0.0)
    assert len(calls) == 5 + 2
    whole, stopped = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "stopped"))
    for name, value in whole.items():
        assert torch.equal(value, stopped[name]), name


def test_a_frozen_encoder_keeps_its_codes(train, tmp_path, pictures):
    first = train("first")
    second = train("second", initial=str(tmp_path / "first" / "final"), freeze_encoder=True)
    pixels = Faces(pictures).pixels()
    assert torch.equal(first.encode(pixels), second.encode(pixels))
    assert not torch.equal(first.decode(first.encode(pixels)), second.decode(first.encode(pixels)))


def test_the_encoded_folder_has_the_codes_and_small_pictures(train, pictures, tmp_path):
    model, faces = train("run").eval(), Faces(pictures)
    encode_faces(model, pictures, tmp_path / "encoded", "train", per_file=5)
    encoded = Faces(tmp_path / "encoded")
    assert np.array_equal(np.stack(encoded.codes), model.encode(faces.pixels()).numpy())
    assert np.array_equal(encoded.pictures(), faces.pictures()) and encoded.attributes == faces.attributes
    first, second = (path.read_bytes() for path in sorted((tmp_path / "encoded").glob("*.parquet")))
    # another tokenizer's codes, or other pictures, replace them as a whole
    paths = encode_faces(model, pictures, tmp_path / "encoded", "train", webp_quality=5, per_file=5)
    smaller = Faces(tmp_path / "encoded")
    assert [path.stat().st_size < len(old) for path, old in zip(paths, (first, second), strict=True)] == [True, True]
    assert np.array_equal(np.stack(smaller.codes), np.stack(encoded.codes))
    assert not np.array_equal(smaller.pictures(), faces.pictures())


def test_bits_that_say_the_same_cost():
    bit = torch.randn(2, 1, 4, 4)
    assert decorrelation(bit.expand(-1, 3, -1, -1)).item() == pytest.approx(1.0, abs=1e-5)
    assert decorrelation(torch.cat([bit, -bit], 1)).item() == pytest.approx(1.0, abs=1e-5)
    apart = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).view(1, 2, 2, 2)
    assert decorrelation(apart).item() == pytest.approx(0.0, abs=1e-6)


def test_patches_are_pixels_in_other_places(pictures):
    shape = get_preset("tiny").vq_config.to_dict() | {"patch_size": 2}
    model = UniF2aceVQModel(UniF2aceVQConfig(**shape)).eval()
    pixels = Faces(pictures).pixels([0, 1])
    codes = model.encode(pixels)
    assert model.config.grid_size == 2 and codes.shape == (2, 4)
    assert model.decode(codes).shape == pixels.shape and model(pixels).reconstruction.shape == pixels.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "give one of the two"),
        ({"minutes": 1.0}, "give one of the two"),
        ({"freeze_encoder": True}, "name a trained tokenizer"),
        ({"perceptual_weight": 0.1}, "needs `judge`"),
    ],
)
def test_contradictions_are_refused(changes, message):
    settings = {"preset": "tiny", "data": "data", "output": "run", "steps": 3}
    with pytest.raises(ValueError, match=message):
        TokenizerTrainingArguments(**settings | changes)
