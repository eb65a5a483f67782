"""
Trains the small networks around the model on painted faces: the judge (attribute classifier of the evaluation), the
CLIP whose vision tower feeds the CLIP expert, and the face encoder that feeds the face expert.

    python -m unif2ace.training.synthetic.train_encoders judge --config training/synthetic/configs/encoders-faces.yaml

A run writes, under the `output` of its section, `log.jsonl`, `checkpoint.pt` (atomically; run again to go on from it),
`metrics.json` and the trained network in `final/`. The learning rate follows the clock: it reaches zero exactly when
the time budget `minutes` is spent, whatever the machine's speed.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from ...pipelines.files import replacing, write_json
from .encoder_tasks import TASKS, EncoderTask


_CHECKPOINT_SECONDS = 60
_LOG_STEPS = 20
_WARMUP_SHARE = 0.04


def cosine_share(progress: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1] of the budget: linear warm-up, then a cosine to 0."""
    if progress < _WARMUP_SHARE:
        return max(progress / _WARMUP_SHARE, 0.02)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - _WARMUP_SHARE) / (1.0 - _WARMUP_SHARE))))


def build_optimizer(modules: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels only."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def _save_checkpoint(path: Path, task: EncoderTask, optimizer: torch.optim.Optimizer, step: int, seconds: float):
    state = {
        "modules": task.trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "step": step,
        "seconds": seconds,
    }
    with replacing(path) as part:
        torch.save(state, part)


def train(task: EncoderTask, settings: dict, seed: int = 0) -> dict:
    """
    Train one network until its time budget is spent, evaluate it and save it.

    Args:
        task (`EncoderTask`): What is trained and on what.
        settings (`dict`): A section of the YAML file: output, minutes, batch_size, learning_rate, weight_decay.
        seed (`int`, *optional*, defaults to 0): Seed of the examples' order; step `n` is the same after a resume.

    Returns:
        `dict`: The metrics of `task.evaluate()` with `steps` and `minutes`, also written to `metrics.json`.
    """
    output = Path(settings["output"])
    output.mkdir(parents=True, exist_ok=True)
    checkpoint_path = output / "checkpoint.pt"
    optimizer = build_optimizer(task.trained, settings["learning_rate"], settings["weight_decay"])
    step, seconds, budget = 0, 0.0, 60.0 * settings["minutes"]
    if checkpoint_path.exists():
        state = torch.load(checkpoint_path, weights_only=True)
        task.trained.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        step, seconds = state["step"], state["seconds"]

    task.trained.train()
    begun = time.monotonic() - seconds
    saved_at = logged_at = seconds
    sums: dict[str, float] = {}
    with open(output / "log.jsonl", "a") as log, tqdm(total=round(budget), initial=round(seconds), unit="s") as bar:
        while seconds < budget:
            share = cosine_share(seconds / budget)
            for group in optimizer.param_groups:
                group["lr"] = settings["learning_rate"] * share
            rng = np.random.default_rng((seed, step))
            loss, terms = task.loss(rng, settings["batch_size"], progress=seconds / budget)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}; lower learning_rate (now {settings['learning_rate']})"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.trained.parameters(), 1.0)
            optimizer.step()
            step += 1
            seconds = time.monotonic() - begun
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            if step % _LOG_STEPS == 0:
                means = {name: round(value / _LOG_STEPS, 4) for name, value in sums.items()}
                rate = round(_LOG_STEPS * settings["batch_size"] / (seconds - logged_at), 1)
                entry = {"step": step, "seconds": round(seconds, 1), "examples_per_second": rate} | means
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(means)
                bar.update(round(seconds) - bar.n)
                sums, logged_at = {}, seconds
            if seconds - saved_at > _CHECKPOINT_SECONDS:
                _save_checkpoint(checkpoint_path, task, optimizer, step, seconds)
                task.reload()
                saved_at = seconds

    task.trained.eval()
    metrics = task.evaluate() | {"steps": step, "minutes": round(seconds / 60, 2)}
    task.save(output / "final")
    write_json(output / "metrics.json", metrics)
    return metrics


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the text at the top of this file."""
    parser = argparse.ArgumentParser(
        description="Train the judge, the CLIP or the face encoder on painted faces.",
        epilog="example: python -m unif2ace.training.synthetic.train_encoders clip --config encoders-faces.yaml",
    )
    parser.add_argument("encoder", choices=tuple(TASKS))
    parser.add_argument("--config", required=True, help="YAML file, as training/synthetic/configs/encoders-faces.yaml")
    parser.add_argument("--minutes", type=float, help="time budget instead of the file's")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = yaml.safe_load(Path(options.config).read_text())
        settings = config[options.encoder]
        if options.minutes:
            settings["minutes"] = options.minutes
        torch.manual_seed(config["seed"])
        task = TASKS[options.encoder](config, settings)
        metrics = train(task, settings, seed=config["seed"])
    except KeyError as error:
        parser.exit(1, f"error: {options.config} has no setting {error}, which `{options.encoder}` needs\n")
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(1, f"error: {error}\n")
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
