import json

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig, attribute_accuracy, attribute_loss
from unif2ace.training.run_trainer import cosine_share
from unif2ace.training.synthetic.encoder_tasks import JudgeTask, PatchProbe, augment
from unif2ace.training.synthetic.faces import Faces
from unif2ace.training.synthetic.painted.dataset import attributes_of, render
from unif2ace.training.synthetic.train_encoders import train


def small_judge() -> UniF2aceJudge:
    torch.manual_seed(0)
    config = UniF2aceJudgeConfig(image_size=16, stage_channels=[8, 8, 8], head_channels=4, feature_size=16)
    return UniF2aceJudge(config)


def test_default_judge_has_a_head_for_each_attribute():
    judge = UniF2aceJudge(UniF2aceJudgeConfig())
    assert 0.5e6 < sum(parameter.numel() for parameter in judge.parameters()) < 0.9e6
    logits = judge(torch.zeros(2, 3, 64, 64)).logits
    assert {name: logit.shape[1] for name, logit in logits.items()} == {k: len(v) for k, v in ATTRIBUTES.items()}


def test_labels_and_predictions_survive_saving(tmp_path):
    judge = small_judge().eval()
    judge.save_pretrained(tmp_path)
    again = UniF2aceJudge.from_pretrained(tmp_path)
    assert again.config.labels == judge.config.labels and list(again.config.labels) == list(ATTRIBUTES)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    predicted = again.predict(pictures)
    assert predicted == judge.predict(pictures)
    assert all(len(predicted[name]) == 5 and set(predicted[name]) <= set(ATTRIBUTES[name]) for name in ATTRIBUTES)
    torch.testing.assert_close(again.features(pictures), judge.features(pictures))


def test_all_kinds_of_pictures_are_read_alike_and_batches_do_not_matter():
    judge = small_judge()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    expected = judge.features(pictures)
    assert judge.training and expected.shape == (5, 16)
    for images in (torch.from_numpy(pictures), torch.from_numpy(pictures).permute(0, 3, 1, 2)):
        torch.testing.assert_close(judge.features(images), expected)
    torch.testing.assert_close(judge.features([Image.fromarray(picture) for picture in pictures], 2), expected)
    assert judge.features([Image.new("L", (40, 40))]).shape == (1, 16)
    assert judge.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 16)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.uint8)])
def test_wrong_pictures_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8"):
        small_judge().predict(images)


def test_feature_maps_carry_gradients():
    pixels = torch.zeros(1, 3, 16, 16, requires_grad=True)
    maps = small_judge().feature_maps(pixels)
    assert [feature_map.shape[-1] for feature_map in maps] == [8, 4, 2]
    sum(feature_map.sum() for feature_map in maps).backward()
    assert pixels.grad is not None


def test_hidden_attributes_are_not_learnt(tmp_path):
    render(tmp_path, "train", 20, size=16)
    faces = Faces(tmp_path)
    labels = faces.labels
    assert labels == UniF2aceJudgeConfig().labels
    targets = faces.targets(range(20), labels)
    for index in range(20):
        attributes = attributes_of(index)
        for column, (name, seen) in enumerate(assumed_visible(attributes).items()):
            assert list(labels)[column] == name
            assert targets[index, column] == (labels[name].index(attributes[name]) if seen else -100)
    logits = {name: torch.zeros(20, len(values), requires_grad=True) for name, values in labels.items()}
    attribute_loss(logits, targets).backward()
    for column, logit in enumerate(logits.values()):
        assert torch.equal(logit.grad.abs().sum(1) > 0, targets[:, column] != -100)


def test_accuracy_counts_what_can_be_seen():
    predicted = {"mask": ["no", "yes", "no"], "mole": ["no", "no", "no"]}
    truth = [{"mask": "no", "mole": "yes"}, {"mask": "no", "mole": "no"}, {"mole": "no"}]
    assert attribute_accuracy(predicted, truth) == {"mask": 0.5, "mole": pytest.approx(2 / 3)}
    hidden = [{"mask": False, "mole": False}, {"mask": False, "mole": True}, {"mask": True, "mole": False}]
    assert attribute_accuracy(predicted, truth, hidden) == {"mole": 1.0}


def test_augmentation_shifts_but_never_mirrors():
    picture = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    picture[:, 4:8, 2:5] = 255
    for seed in range(20):
        pixels = augment(picture, np.random.default_rng(seed), noise=0.0)
        columns = (pixels[0, 0] > 0).any(0).nonzero().flatten()
        assert pixels.shape == (1, 3, 16, 16) and columns.max() < 8 and len(columns) == 3


def test_patch_probe_learns_from_patches():
    torch.manual_seed(0)
    probe = PatchProbe(8, {"mask": ["no", "yes"], "mole": ["no", "yes"]}, teacher_channels=6)
    patches = torch.randn(3, 16, 8, requires_grad=True)
    assert probe.attributes(patches)["mole"].shape == (3, 2)
    probe.imitation_loss(patches, torch.randn(3, 6, 4, 4)).backward()
    assert patches.grad.abs().sum() > 0


def test_learning_rate_follows_the_budget():
    assert cosine_share(0.0) < 0.1 and cosine_share(0.04) == pytest.approx(1.0) and cosine_share(1.0) == 0.0


def test_training_resumes_and_saves(tmp_path):
    render(tmp_path / "painted", "train", 24, size=16)
    render(tmp_path / "painted", "validation", 8, size=16)
    config = {"data": str(tmp_path / "painted"), "seed": 0}
    settings = {"output": str(tmp_path / "judge"), "minutes": 0.02, "batch_size": 8, "at_least": 16}
    settings |= {"learning_rate": 1e-3, "weight_decay": 0.0}
    torch.manual_seed(0)
    metrics = train(JudgeTask(config, settings), settings)
    assert metrics["steps"] > 0 and set(metrics["majority"]) == set(metrics["accuracy"])
    assert json.loads((tmp_path / "judge" / "metrics.json").read_text()) == metrics
    assert UniF2aceJudge.from_pretrained(tmp_path / "judge" / "final").config.image_size == 16
