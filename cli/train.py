"""`unif2ace train`."""

import argparse
import time
from pathlib import Path

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
    arguments.console.stage(f"preparing {arguments.config}")
    import torch

    from ..training.train import load_config, train

    config = load_config(arguments.config, arguments.set)
    given = {"output_dir": arguments.output, "without": arguments.without and arguments.without.split(",")}
    given["disable_tqdm"] = arguments.quiet or None
    for name, value in given.items():
        if value:
            config.setdefault("training", {})[name] = value
    started = time.monotonic()
    trainer = train(config, arguments.resume)
    if trainer.is_world_process_zero():
        _summarize(trainer, time.monotonic() - started, arguments.console)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # not before the first process has written everything: torchrun ends all when one goes wrong on its way out
        trainer.accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()
    return EXIT_OK if trainer.stopped_by is None else EXIT_OF_SIGNAL[trainer.stopped_by]


def _summarize(trainer, seconds: float, console) -> None:
    from ..training.callbacks import SHOWN
    from ..training.run_folder import LOG_FILE, read_lines

    output, steps, measures = Path(trainer.args.output_dir), trainer.state.global_step, {}
    lines = [f"{steps} steps in {seconds / 60:.1f} minutes"]
    entries = read_lines(output / LOG_FILE)
    for prefix, title in (("", "training"), ("eval_", "held out")):
        last = next((entry for entry in reversed(entries) if f"{prefix}loss" in entry), {})
        shown = {name: last[prefix + name] for name in SHOWN if prefix + name in last}
        if shown:
            measures[title] = {"step": last["step"], **shown}
            shown = [f"{name} {value:.4g}" for name, value in shown.items()]
            lines.append(f"{title}, step {last['step']}: {', '.join(shown)}")
    stopped, final = trainer.stopped_by, str(output / "final")
    lines.append(f"wrote {final}" if stopped is None else f"stopped by {stopped}; go on with --resume")
    console.result(
        "\n".join(lines),
        steps=steps,
        seconds=seconds,
        measures=measures,
        stopped_by=stopped,
        model=final if stopped is None else None,
    )
