"""What a run writes beside its weights: logs, plots, samples; and that looking does not change the run."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unif2ace.cli import main
from unif2ace.training.run_folder import append_line, plot_experts, plot_losses, read_lines
from unif2ace.training.train import load_config, train


CONFIG = """
preset: tiny
model: {max_text_length: 160}
data:
  source: unif2ace.training.synthetic.painted.rows:PaintedRecords
  train: {count: 8, size: 16}
  validation: {count: 2, size: 16, split: validation}
  features: %(folder)s/features
samples:
  every: 2
  prompts: [a man, an old woman]
  pictures: 1
  num_inference_steps: 2
  max_new_tokens: 4
training:
  max_steps: 4
  per_device_train_batch_size: 4
  per_device_eval_batch_size: 4
  t2i_fraction: 0.5
  ema_decay: 0.9
  logging_steps: 2
  eval_strategy: steps
  eval_steps: 2
  save_strategy: steps
  save_steps: 4
  use_cpu: true
  dataloader_pin_memory: false
  report_to: tensorboard
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configuration")
    path = folder / "run.yaml"
    path.write_text(CONFIG % {"folder": folder})
    return path


@pytest.fixture(scope="module")
def run(config_file):
    folder = config_file.parent / "run"
    assert main(["train", "--config", str(config_file), "--output", str(folder)]) == 0
    return folder


def test_run_folder_says_what_ran(run):
    (start,) = json.loads((run / "run.json").read_text())
    assert start["packages"]["torch"] == torch.__version__
    assert start["rows"] == 16 and start["trained_parameters"] < start["parameters"]
    assert load_config(run / "config.yaml")["training"]["output_dir"] == str(run)
    steps = [entry["step"] for entry in read_lines(run / "log.jsonl") if "loss" in entry]
    assert steps == [2, 4]
    assert [entry["step"] for entry in read_lines(run / "log.jsonl") if "eval_mask_loss" in entry] == [2, 4]
    experts = read_lines(run / "experts.jsonl")
    assert [sum(layer) for layer in experts[-1]["mmu_load"]] == pytest.approx([1, 1], abs=1e-3)


def test_plots_and_samples_are_pictures(run):
    for name in ("plots/losses.png", "plots/experts.png", "samples/step-000002.png", "samples/step-000004.png"):
        with Image.open(run / name) as picture:
            picture.load()
    assert Image.open(run / "samples" / "step-000002.png").size == (32, 16)  # two of 16 pixels
    captions = read_lines(run / "samples" / "captions.jsonl")
    assert [(caption["step"], caption["picture"]) for caption in captions] == [(2, 0), (4, 0)]


def test_tensorboard_gets_plots_samples_and_every_term(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = run.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload().Tags()
    assert {"plots/experts", "plots/losses", "samples/pictures"} <= set(found["images"])
    assert {"train/t2i_dead_experts", "train/mask_loss", "eval/mmu_loss"} <= set(found["scalars"])
    assert any("samples/caption_0" in name for name in found["tensors"])


def test_samples_and_plots_do_not_change_the_run(run, config_file):
    quiet = load_config(config_file, [f"training.output_dir={config_file.parent / 'quiet'}"])
    quiet.pop("samples")
    quiet["training"] |= {"report_to": "none", "eval_strategy": "no", "disable_tqdm": True}
    train(quiet)
    ours, theirs = (
        load_file(folder / "checkpoint-4" / "model.safetensors") for folder in (run, config_file.parent / "quiet")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (f"samples.prompts=[{'word ' * 300}]", "limit is 158"),
        ("samples.every=0", "every=0"),
        ("training.learning_rat=1", "training.learning_rat is unknown"),
        ("data.source=nowhere:rows", "nowhere"),
        ("data.source=painted_rows", "package.module:function"),
        ("data.train.colour=red", "does not take"),
        ("data.pases=2", "data.pases is unknown"),
        ("preset=huge", "no preset 'huge'"),
    ],
)
def test_mistakes_are_one_sentence(config_file, tmp_path, capsys, change, words):
    command = ["train", "--config", str(config_file), "--output", str(tmp_path / "run"), "--set", change]
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("unif2ace train: error: ") and words in error
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_unknown_configurations_are_listed(capsys):
    assert main(["train", "--config", "nothing"]) == 2
    assert "unif2ace-faces" in capsys.readouterr().err
    assert load_config("unif2ace-faces")["preset"] == "faces"


def test_plots_need_matplotlib_and_say_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        plot_losses([{"step": 1, "mask_loss": 2.0}])


def test_plots_of_little():
    assert plot_losses([]).size[0] > 100
    assert plot_experts({"t2i_load": torch.tensor([[0.5, 0.5, 0.0]])}).size[0] > 100


def test_a_killed_runs_half_line_spoils_no_other(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"said": "\xc3')  # cut off within a letter
    append_line(log, {"step": 2})
    append_line(log, {"said": "ä"})
    assert read_lines(log) == [{"step": 1}, {"step": 2}, {"said": "ä"}]
