"""`unif2ace train`."""

import argparse
import time
from pathlib import Path

import torch

from ..training.callbacks import SHOWN
from ..training.run_folder import LOG_FILE, read_lines
from ..training.train import load_config, train
from ..training.trainer import UniF2aceTrainer
from .common import EXIT_OF_SIGNAL, EXIT_OK


EXAMPLES = """\
examples:
  unif2ace train --config unif2ace-faces --output runs/faces
  unif2ace train --config unif2ace-faces --output runs/faces --resume
  unif2ace train --config my.yaml --set training.max_steps=20 --set training.learning_rate=1e-4

Ctrl-C or SIGTERM ends training after the running step, with a checkpoint to --resume from (exit code 130 or 143).
Several processes: torchrun --nproc_per_node N -m unif2ace.cli train --config ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `unif2ace train`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file, or a name from training/synthetic/configs"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the file")
    parser.add_argument(
        "--without",
        metavar="KINDS",
        help="experts that may stay without features, where neither encoders nor data provide them: clip,face",
    )
    parser.add_argument("--output", metavar="FOLDER", help="the run's folder (instead of training.output_dir)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of that folder")


def run(arguments: argparse.Namespace) -> int:
    """The command; 130 or 143 if a signal ended the run."""
    config = load_config(arguments.config, arguments.set)
    if arguments.output:
        config.setdefault("training", {})["output_dir"] = arguments.output
    if arguments.without:
        config.setdefault("training", {})["without"] = arguments.without.split(",")
    started = time.monotonic()
    trainer = train(config, arguments.resume)
    if trainer.is_world_process_zero():
        _summarize(trainer, time.monotonic() - started)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # not before the first process has written everything: torchrun ends all when one goes wrong on its way out
        trainer.accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()
    return EXIT_OK if trainer.stopped_by is None else EXIT_OF_SIGNAL[trainer.stopped_by]


def _summarize(trainer: UniF2aceTrainer, seconds: float) -> None:
    output, state = Path(trainer.args.output_dir), trainer.state
    print(f"{state.global_step} steps in {seconds / 60:.1f} minutes")
    entries = read_lines(output / LOG_FILE)
    for prefix, title in (("", "training"), ("eval_", "held out")):
        last = next((entry for entry in reversed(entries) if f"{prefix}loss" in entry), {})
        shown = [f"{name} {last[prefix + name]:.4g}" for name in SHOWN if prefix + name in last]
        if shown:
            print(f"{title}, step {last['step']}: {', '.join(shown)}")
    if trainer.stopped_by is None:
        print(f"wrote {output / 'final'}")
    else:
        print(f"stopped by {trainer.stopped_by}; go on with --resume")
