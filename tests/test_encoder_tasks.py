import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPVisionModel

from unif2ace.modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from unif2ace.training.synthetic.encoder_tasks import ClipTask, FaceTask
from unif2ace.training.synthetic.painted.dataset import render
from unif2ace.training.synthetic.train_encoders import main, train
from unif2ace.training.train_text_tokenizer import build_tokenizer


LOOP = {"minutes": 0.01, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.0}


@pytest.fixture
def config(tmp_path):
    return {"preset": "tiny", "data": str(tmp_path), "text_tokenizer": str(tmp_path / "tokenizer"), "seed": 0}


def test_clip_trains_and_its_tower_is_loadable(config, tmp_path):
    render(tmp_path, "train", 12, size=16)
    render(tmp_path, "validation", 100, size=16)
    build_tokenizer(["A woman with long hair."], text_vocab_size=302, num_bits=5).save_pretrained(
        tmp_path / "tokenizer"
    )
    judge = UniF2aceJudge(UniF2aceJudgeConfig(image_size=16, stage_channels=[8, 8, 8], head_channels=4))
    judge.save_pretrained(tmp_path / "judge")
    settings = LOOP | {
        "output": str(tmp_path / "clip"),
        "at_least": 8,
        "judge": str(tmp_path / "judge"),
        "attribute_weight": 1.0,
        "teacher_weight": 1.0,
        "vision": {"num_hidden_layers": 1},
        "projection_dim": 8,
        "text_hidden_size": 16,
        "text_layers": 1,
        "text_heads": 2,
        "max_text_length": 24,
    }
    task = ClipTask(config, settings)
    tokens = task.tokenize(["woman", "a woman with a very long caption " * 9])
    assert tokens["input_ids"].shape == (2, 24) and (tokens["input_ids"][:, 0] == task.tokenizer.bos_token_id).all()
    assert tokens["input_ids"][1, -1] == task.tokenizer.eos_token_id
    metrics = train(task, settings)
    assert 0.0 <= metrics["text_to_image_recall_at_1_of_100"] <= 1.0
    model = CLIPModel.from_pretrained(tmp_path / "clip" / "final")
    tower = CLIPVisionModel.from_pretrained(tmp_path / "clip" / "final")
    pixels = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(tower(pixels).last_hidden_state, model.vision_model(pixels).last_hidden_state)


def test_face_encoder_trains(config, tmp_path):
    render(tmp_path, "train", 6, size=32, pictures_per_person=2)
    render(tmp_path, "validation", 8, size=32, pictures_per_person=2)
    settings = LOOP | {
        "output": str(tmp_path / "face"),
        "margin": 0.3,
        "scale": 16.0,
        "trait_weight": 1.0,
    }
    task = FaceTask(config, settings)
    assert len(task.people) == 3 and "skin" in task.traits.labels and "hair_color" not in task.traits.labels
    loss, terms = task.loss(np.random.default_rng(0), 4, progress=1.0)
    assert loss.item() == pytest.approx(terms["arcface_loss"] + terms["trait_loss"], rel=1e-5)
    assert 0.0 <= train(task, settings)["verification_accuracy"] <= 1.0
    UniF2aceFaceEncoder.from_pretrained(tmp_path / "face" / "final")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["judge", "--config", str(tmp_path / "absent.yaml")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
