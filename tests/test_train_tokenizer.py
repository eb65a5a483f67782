"""Training of the image tokenizer on a few random pictures: all stages, resuming, writing codes."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unif2ace.modeling_unif2ace import UniF2aceVQModel, get_preset
from unif2ace.training.synthetic.train_tokenizer import (
    TokenizerTask,
    TokenizerTrainingArguments,
    encode_split,
    read_pictures,
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
        np.save(folder / f"{split}.npy", rng.integers(0, 256, (8, side, side, 3), dtype=np.uint8))
    return folder


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
    pixels = read_pictures(np.load(pictures / "train.npy"), np.arange(8))
    assert torch.equal(first.encode(pixels), second.encode(pixels))
    assert not torch.equal(first.decode(first.encode(pixels)), second.decode(first.encode(pixels)))


def test_codes_on_disk_are_those_of_the_tokenizer(train, pictures):
    model = train("run")
    codes = np.load(encode_split(model, pictures, "train"))
    assert codes.dtype == np.uint16
    pixels = read_pictures(np.load(pictures / "train.npy"), np.arange(8))
    np.testing.assert_array_equal(codes, model.encode(pixels).numpy())


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
