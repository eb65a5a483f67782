"""Runs that are stopped, killed or out of disk, and go on as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from unif2ace.pipelines.files import only_run
from unif2ace.training.checkpoints import INCOMPLETE_FILE, being_written, last_checkpoint, why_incomplete
from unif2ace.training.run_trainer import LOCK_FILE
from unif2ace.training.train import train


STEPS = 24
CONFIG = {
    "preset": "tiny",
    "model": {"max_text_length": 160, "text_config": {"resid_pdrop": 0.1}},  # dropout: the global random state counts
    "data": {
        "source": "unif2ace.training.synthetic.painted.rows:PaintedRecords",
        "train": {"count": 16, "size": 16},
    },
    "training": {
        "max_steps": STEPS,  # three epochs of eight steps
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 5,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    },
}


def config_for(folder, **training):
    return {**CONFIG, "training": {**CONFIG["training"], "output_dir": str(folder), **training}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(config_for(folder))
    return folder


def assert_same_end(folder, whole):
    for name in ("model.safetensors", "ema.safetensors", "objective.safetensors"):
        ours, theirs = (load_file(run / f"checkpoint-{STEPS}" / name) for run in (folder, whole))
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, f"{name}: {len(different)} tensors differ, first {different[0]}"


def start(folder):
    """The command in a process of its own."""
    path = folder / "my.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config_for(folder)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "unif2ace.cli", "train", "--config", str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def logged_steps(folder):
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_stopped_by_sigterm(whole, tmp_path):
    process = start(tmp_path)
    wait_until(lambda: logged_steps(tmp_path) >= 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM; go on with --resume" in output
    stopped_at = int(last_checkpoint(tmp_path).name.rpartition("-")[2])
    assert 3 <= stopped_at < STEPS
    assert not (tmp_path / "final").exists()

    trainer = train(config_for(tmp_path), resume=True)
    assert trainer.stopped_by is None
    assert_same_end(tmp_path, whole)
    assert (tmp_path / "final" / "model.safetensors").exists()
    starts = json.loads((tmp_path / "run.json").read_text())
    assert [start["resumed_from"] for start in starts] == [None, f"checkpoint-{stopped_at}"]


def test_a_run_that_had_only_its_result_to_write_makes_no_step_more(tmp_path):
    config = config_for(tmp_path, max_steps=5)  # in the middle of an epoch
    train(config)
    before = load_file(tmp_path / "final" / "model.safetensors")
    shutil.rmtree(tmp_path / "final")
    assert train(config, resume=True).state.global_step == 5
    after = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_two_runs_do_not_train_into_one_folder(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: logged_steps(tmp_path) >= 1, process)
    with pytest.raises(ValueError, match=f"another run writes to {tmp_path}: wait for it"):
        train(config_for(tmp_path))
    process.kill()
    process.communicate(timeout=300)
    with only_run(tmp_path / LOCK_FILE):  # which ended with the process
        pass


def test_killed_while_a_checkpoint_is_written(whole, tmp_path, capsys):
    process = start(tmp_path)
    second = tmp_path / "checkpoint-10"
    wait_until((second / INCOMPLETE_FILE).exists, process)
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    if why_incomplete(second) is None:  # the disk was faster than the signal: leave what a slower one would have left
        (second / INCOMPLETE_FILE).touch()
        (second / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-5"
    train(config_for(tmp_path), resume=True)
    said = capsys.readouterr().out
    assert f"{second} is skipped: it was being written when the run ended" in said
    assert f"going on from {tmp_path / 'checkpoint-5'}" in said
    assert_same_end(tmp_path, whole)


def flip(path):
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / INCOMPLETE_FILE).touch(), "being written"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "trainer_state.json").write_text('{"a'), "trainer_state.json is cut off"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"a'), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 200_000), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"a": 1}'), "manifest.json cannot be read"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda folder: (folder / "ema.safetensors").unlink(), "ema.safetensors is missing"),
        (lambda folder: (folder / "objective.safetensors").unlink(), "objective.safetensors is missing"),
        (lambda folder: (folder / "training_clock.json").unlink(), "training_clock.json is missing"),
        (lambda folder: flip(folder / "optimizer.pt"), "optimizer.pt is not what was written"),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is not what was written"),
        (lambda folder: flip(folder / "rng_state.pth"), "rng_state.pth is not what was written"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "model.safetensors is cut off"),
        (lambda folder: os.truncate(folder / "optimizer.pt", 1000), "optimizer.pt is cut off"),
        (lambda folder: os.truncate(folder / "ema.safetensors", 4), "ema.safetensors is cut off"),
    ],
)
def test_incomplete_checkpoints_are_recognised(whole, tmp_path, damage, words):
    for step in (20, STEPS):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    said = []
    assert last_checkpoint(tmp_path, said.append).name == f"checkpoint-{STEPS}" and not said
    damage(tmp_path / f"checkpoint-{STEPS}")
    assert last_checkpoint(tmp_path, said.append).name == "checkpoint-20"
    assert len(said) == 1 and words in said[0]
    shutil.rmtree(tmp_path / "checkpoint-20")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        last_checkpoint(tmp_path)


def test_a_failed_write_leaves_its_mark(tmp_path):
    folder = tmp_path / "checkpoint-3"
    with pytest.raises(OSError, match="no room"), being_written(folder):
        (folder / "trainer_state.json").write_text("{}")
        raise OSError("no room")
    assert (folder / INCOMPLETE_FILE).exists()
    with being_written(folder):  # a second attempt starts from nothing
        assert [path.name for path in folder.iterdir()] == [INCOMPLETE_FILE]
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


class LittleRoom(TrainerCallback):
    """No file may be longer than a few pages while the checkpoint of a certain step is written."""

    def __init__(self, step):
        self.step, self.limits = step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, self.limits[1]))

    def on_save(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


@pytest.fixture
def little_room(monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("unif2ace.training.train.RunPlots", lambda trainer, folder: LittleRoom(10))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_costs_the_checkpoint_that_is_being_written(whole, tmp_path, little_room):
    train(config_for(tmp_path, save_total_limit=3))
    written = sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    assert written == [15, 20, STEPS]  # and not 10, which was cleared away: nothing is left of it
    assert_same_end(tmp_path, whole)


def test_full_disk_does_not_cost_an_older_checkpoint(tmp_path, little_room):
    train(config_for(tmp_path, max_steps=10, save_total_limit=1))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    assert why_incomplete(tmp_path / "checkpoint-5") is None


def test_nothing_to_resume_from_is_said(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        train(config_for(tmp_path), resume=True)
    with pytest.raises(ValueError, match="--resume"):
        train(config_for(tmp_path))
    assert Path(tmp_path / "checkpoint-3").exists()
