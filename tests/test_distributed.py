"""More than one process: two on this machine do what one does, and the examples' configurations hold together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.distributed import DistributedConfig

from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, get_preset
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.train import SECTIONS, load_config, train


EXAMPLES = Path(__file__).parents[1] / "examples" / "training"
CONFIG = {
    "preset": "tiny",
    "model": {"max_text_length": 160},
    "data": {
        "source": "unif2ace.training.synthetic.painted.rows:PaintedRecords",
        "train": {"count": 16, "size": 16},
    },
    "training": {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "t2i_fraction": 0.5,
        "optim": "sgd",  # Adam makes large steps of rounding errors
        "learning_rate": 0.1,
        "t2i_balance_coef": 0.1,
        "mmu_balance_coef": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    },
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train({**CONFIG, "training": {**CONFIG["training"], "output_dir": str(folder)}})
    torch.set_num_threads(threads)
    return folder


def torchrun(folder, config):
    """The run of two processes."""
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["-m", "unif2ace.cli", "train", "--config", str(path), "--output", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def logs(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def assert_same_run(run, alone):
    for ours, theirs in zip(logs(run), logs(alone), strict=True):
        for key in ("loss", "grad_norm", "mask_loss", "score_loss", "mmu_loss", "t2i_balance", "mmu_balance"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (run, alone))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0, msg=name)


def test_two_processes_do_what_one_does(alone, tmp_path):
    """Micro-batches of one row: at every moment one process has a prompt and the other one a conversation."""
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    run = torchrun(tmp_path, {**CONFIG, "training": {**CONFIG["training"], **split}})
    assert_same_run(run, alone)
    assert json.loads((run / "run.json").read_text())[0]["processes"] == 2


@pytest.mark.slow
def test_fsdp2_does_what_one_process_does(alone, tmp_path):
    """Sharded by transformers while loading; saved whole, under the model's own name, and read by one process."""
    training = {**CONFIG["training"], "per_device_train_batch_size": 4}
    training |= {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    run = torchrun(tmp_path, {**CONFIG, "distributed": {"fsdp_size": 2}, "training": training})
    assert_same_run(run, alone)
    for folder in (run / "final", run / "checkpoint-2"):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["UniF2aceForConditionalGeneration"]
        assert not list(folder.glob("*.py"))
        _, report = UniF2aceForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_hold_together(path, tmp_path):
    """Every name in them is known, and the numbers fit the number of processes that the file is for."""
    content = yaml.safe_load(path.read_text())
    if "compute_environment" in content:
        check_accelerate(path, content)
        return
    config = load_config(path, [f"training.output_dir={tmp_path}", "training.use_cpu=true", "training.bf16=false"])
    assert set(config) <= set(SECTIONS)
    arguments = UniF2aceTrainingArguments(**config["training"])
    DistributedConfig(**config.get("distributed", {}))
    if "preset" in config:
        fields = get_preset(config["preset"]).to_dict()
        for name, value in config.get("model", {}).items():
            fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
        with torch.device("meta"):
            UniF2aceForConditionalGeneration(type(get_preset("tiny"))(**fields))
    assert arguments.per_device_train_batch_size * (arguments.t2i_fraction or 0.5) >= 1


def check_accelerate(path, content):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    loaded = load_config_from_file(str(path))
    assert loaded.num_processes == content["num_processes"] and loaded.num_processes % 8 == 0
    fsdp = content["fsdp_config"]
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] in UniF2aceForConditionalGeneration._no_split_modules
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), "-m", "unif2ace.cli", "train", "--config", "x.yaml"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp and int(arguments.fsdp_version) == 2
    assert arguments.num_machines == content["num_machines"]
