"""The suites `paper` and `custom` on a folder of faces, with real (tiny) models and a real judge server."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace import UniF2aceForConditionalGeneration
from unif2ace.cli import main
from unif2ace.modeling_unif2ace import get_preset
from unif2ace.training.data.records import FaceRecord
from unif2ace.training.data.sources import open_faces
from unif2ace.training.evaluation.compare import comparison
from unif2ace.training.evaluation.faces import FaceSuite, Resources
from unif2ace.training.evaluation.judge import UniF2aceJudge, UniF2aceJudgeConfig
from unif2ace.training.evaluation.results import load_results
from unif2ace.training.evaluation.subject import Subject
from unif2ace.training.synthetic.painted.dataset import painted_face


COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with captions, as anybody has them."""
    folder = tmp_path_factory.mktemp("faces")
    for index in range(COUNT):
        record = painted_face(index, "test", size=32)
        record.image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(record.captions[0] + "\n")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    config = UniF2aceJudgeConfig(image_size=16, stage_channels=[8, 8, 8], head_channels=4, feature_size=8)
    UniF2aceJudge(config).save_pretrained(folder)
    return folder


@pytest.fixture
def subject(talking_checkpoint, tmp_path):
    return Subject(talking_checkpoint, store=tmp_path / "pictures", progress=False)


def test_a_folder_from_the_command_line(talking_checkpoint, folder, classifier, tmp_path, capsys):
    command = ["evaluate", str(talking_checkpoint), "--suite", "custom", "--data", str(folder), "--limit", "3"]
    command += ["--device", "cpu", "--steps", "2", "--seeds", "0", "1", "--out", str(tmp_path)]
    command += ["--features", f"judge:{classifier}", "--training", str(folder)]
    assert main(command) == 0
    out = capsys.readouterr().out
    for part in ("distribution: kernel_distance", "identity: identity_similarity", "diversity: code_entropy"):
        assert part in out
    assert "not measured: clip_score: give --clip-model" in out and "not measured: answers: no record has" in out
    (path,) = tmp_path.glob("custom-*.json")
    results = load_results(path)
    assert results["settings"]["features"] == f"judge:{classifier}" and results["settings"]["count"] == 3
    assert results["parts"]["memorisation"]["details"]["Memorisation"]["training_pictures"] == COUNT
    assert main([*command, "--guidance", "2"]) == 0
    (other,) = set(tmp_path.glob("custom-*.json")) - {path}
    assert "- guidance: `4.0` → `2.0`" in comparison(results, load_results(other))


def test_every_part_of_attributed_faces(subject, classifier):
    records = open_faces("painted:2", split="test").table()
    resources = Resources(features=f"judge:{classifier}", classifier=str(classifier))
    suite = FaceSuite(subject, records, "painted", resources, steps=2)
    for part in ("answers", "captions", "attributes", "identity", "robustness", "tokenizer"):
        assert suite.missing(part) is None
        found = suite.measure(part)
        assert found.measures and json.dumps(found.details)
        if part != "robustness":
            sliced = [measure["slices"] for measure in found.measures.values() if "slices" in measure]
            assert any(name.startswith("gender=") for of_measure in sliced for name in of_measure)
    assert len(suite.measure("robustness").measures) == 6
    assert suite.missing("vlm_score") == "give --judge-url and --judge-model"


def test_judged_parts(subject, chat_server):
    chat_server.replies = [
        lambda request: "50\nHalf of it." if isinstance(request["messages"][-1]["content"], list) else "6\nFair."
    ]
    records = open_faces("painted:2", split="test").table()
    resources = Resources(judge_url=chat_server.url, judge_model="judge-1", judge_repeats=2)
    suite = FaceSuite(subject, records, "painted", resources, "paper", steps=2)
    assert suite.measure("vlm_score").measures["vlm_score"]["value"] == 50
    descriptions = suite.measure("descriptions")
    assert descriptions.measures["description_score"]["value"] == 6
    details = descriptions.details["DescriptionScore"]
    assert details["judge"] == "judge-1" and details["prompt"]["version"] and details["spread"] == 0
    conversations = suite.measure("conversations")
    assert conversations.measures["conversation_score"]["count"] == 16  # eight questions about each
    assert suite.missing("distribution") == "give --features"


def test_long_captions_are_shortened_by_sentences(subject):
    short = "A man with a beard."
    long = " ".join([short] * 100)
    fitted = subject.fit(long)
    assert subject.fit(short) == short and long.startswith(fitted) and fitted.endswith(".") and len(fitted) < len(long)
    endless = subject.fit("man " * 1000)
    assert endless.startswith("man man") and len(endless) < 4000
    subject.generate([fitted, endless], [0, 1], steps=1, guidance=1.0)
    with pytest.raises(ValueError, match="longer than"):
        subject.fit("x" * 100_000)


def test_what_cannot_be_measured_is_said(subject, talking_checkpoint, folder, tmp_path, capsys):
    bare = [FaceRecord(image=Image.new("RGB", (16, 16)), id="1")]
    suite = FaceSuite(subject, bare, "bare", Resources())
    # the tokenizer needs nothing but pictures
    assert [part for part in suite.parts if suite.missing(part) is None] == ["tokenizer"]
    assert suite.measure("tokenizer").measures["psnr"]["value"] > 0
    with pytest.raises(ValueError, match="no records"):
        FaceSuite(subject, [], "empty", Resources())
    command = ["evaluate", str(talking_checkpoint), "--device", "cpu", "--suite", "paper"]
    command += ["--out", str(tmp_path)]
    assert main([*command, "--data", str(folder)]) == 2 and "nothing can be measured" in capsys.readouterr().err
    assert main([*command, "--data", str(folder), "--judge-url", "http://x"]) == 2
    assert "belong together" in capsys.readouterr().err
    assert main([*command, "--data", str(folder / "absent")]) == 2


def test_seeds_are_averaged(subject, classifier):
    records = open_faces("painted:3", split="test").table()
    resources = Resources(features=f"judge:{classifier}")
    values = []
    for seeds in ([0], [1], [0, 1]):
        part = FaceSuite(subject, records, "painted", resources, seeds=seeds, steps=2).measure("identity")
        values.append(part.measures["identity_similarity"]["value"])
    assert values[2] == pytest.approx(np.mean(values[:2]))


def test_a_checkpoint_without_face_encoder_can_use_another(subject):
    config = get_preset("tiny")
    torch.manual_seed(0)
    assert UniF2aceForConditionalGeneration(config).model.face_encoder is not None
    encoder, subject.pipe.transformer.model.face_encoder = subject.pipe.transformer.model.face_encoder, None
    records = open_faces("painted:2", split="test").table()
    assert "give --identity" in FaceSuite(subject, records, "painted", Resources()).missing("identity")
    assert FaceSuite(subject, records, "painted", Resources(identity="face:x")).missing("identity") is None
    subject.pipe.transformer.model.face_encoder = encoder
