"""The training command's configuration, and a model built around trained parts."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import tiny_pipeline

from unif2ace import UniF2acePipeline
from unif2ace.cli import main
from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset
from unif2ace.training.train import build_model, exchange_parts, load_config, start_afresh, train


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: tiny\ntraining:\n  learning_rate: 1e-3\n  max_steps: 5\n")
    return path


def test_config_reads_numbers_and_overrides(config_file):
    config = load_config(config_file, ["training.max_steps=20", "training.alpha=5e-2", "data.folder=runs/x"])
    assert config["training"] == {"learning_rate": 1e-3, "max_steps": 20, "alpha": 5e-2}
    assert config["data"] == {"folder": "runs/x"}
    with pytest.raises(ValueError, match="key=value"):
        load_config(config_file, ["training.max_steps"])
    with pytest.raises(ValueError, match="'trainning'"):
        load_config(config_file, ["trainning.max_steps=1"])


def test_parts_are_taken_over_with_their_shape(tmp_path):
    source = UniF2aceForConditionalGeneration(get_preset("tiny")).model
    for name in ("vq_model", "vision_tower", "face_encoder"):
        source.get_submodule(name).save_pretrained(tmp_path / name)
    torch.manual_seed(1)
    parts = {name: tmp_path / name for name in ("vq_model", "vision_tower", "face_encoder")}
    changes = {"text_config": {"num_hidden_layers": 1, "moe_layers": [0], "sequence_moe_layers": [0]}}
    model = build_model("tiny", parts, changes)
    for name in parts:
        built, trained = model.model.get_submodule(name).state_dict(), source.get_submodule(name).state_dict()
        assert all(torch.equal(built[key], trained[key]) for key in trained), name
    assert len(model.model.language_model.layers) == 1
    with pytest.raises(ValueError, match="'decoder'"):
        build_model("tiny", {"decoder": tmp_path})


def test_parts_of_a_trained_model_are_exchanged(model, tmp_path):
    other = UniF2aceForConditionalGeneration(get_preset("tiny")).model.vision_tower
    other.save_pretrained(tmp_path / "tower")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exchange_parts(model, {"vision_tower": tmp_path / "tower"})
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("model.vision_tower.") for name in changed)
    other.config.num_hidden_layers += 1
    type(other)(other.config).save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match="does not fit the model's vision_tower"):
        exchange_parts(model, {"vision_tower": tmp_path / "deeper"})


def test_named_modules_of_a_trained_model_start_afresh(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    start_afresh(model, ["model.resamplers.clip"])
    changed = {name for name, parameter in model.named_parameters() if not (parameter == 0.5).all()}
    assert changed == {name for name, _ in model.named_parameters() if name.startswith("model.resamplers.clip.")}
    with pytest.raises(ValueError, match="model.resampler.clip"):
        start_afresh(model, ["model.resampler.clip"])


def test_command_reports_mistakes_in_one_line(config_file, capsys):
    assert main(["train", "--config", str(config_file.with_name("missing.yaml"))]) == 2
    stage, error = capsys.readouterr().err.splitlines()
    assert stage.startswith("preparing ") and error.startswith("unif2ace train: error: ")


def test_a_number_out_of_its_bounds_is_named_in_one_line(config_file, tmp_path, capsys):
    changes = ["--set", f"training.output_dir={tmp_path / 'run'}", "--set", "model.text_config.hidden_size=0"]
    assert main(["train", "--config", str(config_file), *changes]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "field 'hidden_size'" in error and "it is 0, expected 1 to" in error


def test_an_earlier_run_is_not_overwritten(config_file, tmp_path, capsys):
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    changes = ["--set", f"training.output_dir={tmp_path / 'run'}"]
    assert main(["train", "--config", str(config_file), *changes]) == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-5"]


@pytest.fixture(scope="module")
def without_encoders(tmp_path_factory):
    """A model as Show-o's weights become one: feature experts but no encoders; sampling numbers of its own."""
    folder = tmp_path_factory.mktemp("base")
    pipe = tiny_pipeline()
    model = pipe.transformer
    model.model.vision_tower.save_pretrained(folder / "vision_tower")
    model.model.face_encoder.save_pretrained(folder / "face_encoder")
    model.model.set_vision_tower(None)
    model.model.set_face_encoder(None)
    model.generation_config.image_temperature = 0.7
    model.generation_config.image_confidence_temperature = 12.0
    model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)
    return folder


def trained_from(base, output, parts=(), **training):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "save_steps": 2, **training}
    settings |= {"output_dir": str(output), "disable_tqdm": True, "dataloader_pin_memory": False}
    data = {"source": "unif2ace.training.synthetic.painted.rows:PaintedRecords", "train": {"count": 8, "size": 16}}
    config = {"initial": str(base), "parts": {name: str(base / name) for name in parts}}
    return train({**config, "data": data, "training": settings})


def test_experts_without_features_are_not_trained_in_silence(without_encoders, tmp_path):
    with pytest.raises(ValueError, match="clip experts.*parts.vision_tower.*--without clip"):
        trained_from(without_encoders, tmp_path / "none")
    with pytest.raises(ValueError, match="face experts.*parts.face_encoder.*--without face"):
        trained_from(without_encoders, tmp_path / "clip", ["vision_tower"])
    trained_from(without_encoders, tmp_path / "told", without=["clip", "face"])
    with pytest.raises(ValueError, match="'clip', 'face'"):
        trained_from(without_encoders, tmp_path / "x", without=["zero"])


def test_encoders_come_as_parts_and_the_checkpoint_keeps_them_and_the_sampling_numbers(without_encoders, tmp_path):
    trained_from(without_encoders, tmp_path / "run", ["vision_tower", "face_encoder"])
    for name in ("final", "checkpoint-2"):
        folder = tmp_path / "run" / name
        model, info = UniF2aceForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for part in ("vision_tower", "face_encoder"):
            stored = load_file(without_encoders / part / "model.safetensors")
            kept = model.model.get_submodule(part).state_dict()
            assert stored and all(torch.equal(kept[key], value) for key, value in stored.items())
        assert model.generation_config.image_temperature == 0.7
        assert model.generation_config.image_confidence_temperature == 12.0
    pipe = UniF2acePipeline.from_pretrained(tmp_path / "run" / "final")  # and it samples like its base
    assert pipe.scheduler.config.temperature == 0.7 and pipe.scheduler.config.confidence_temperature == 12.0
