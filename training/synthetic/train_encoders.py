"""
Trains the small networks around the model on the faces of a folder: the judge (attribute classifier of the
evaluation), the CLIP whose vision tower feeds the CLIP expert, and the face encoder that feeds the face expert.

    python -m unif2ace.training.synthetic.train_encoders judge --config training/synthetic/configs/encoders-faces.yaml

A run writes, under the `output` of its section, `log.jsonl`, a checkpoint every minute (run again to go on from it),
`metrics.json` and the trained network in `final/`. The learning rate follows the clock: it reaches zero exactly when
the time budget `minutes` is spent, whatever the machine's speed.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from ..arguments import RunArguments
from ..part_trainer import ENDLESS, PartTask, PartTrainer
from .encoder_tasks import TASKS


def train(task: PartTask, settings: dict, seed: int = 0) -> dict:
    """
    Train one network until its time budget is spent, evaluate it and save it.

    Args:
        task (`PartTask`): What is trained and on what.
        settings (`dict`): A section of the YAML file: output, minutes, batch_size, learning_rate, weight_decay.
        seed (`int`, *optional*, defaults to 0): Seed of the examples' order; step `n` is the same after a resume.

    Returns:
        `dict`: The metrics of `task.evaluate()` with `steps` and `minutes`, also written to `metrics.json`.
    """
    args = RunArguments(
        output_dir=settings["output"],
        max_minutes=settings["minutes"],
        max_steps=ENDLESS,
        per_device_train_batch_size=1,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        bf16=settings.get("bf16", False),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=20,
        save_strategy="no",
        save_total_limit=1,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
    )
    trainer = PartTrainer(task, args, settings["batch_size"], checkpoint_minutes=1.0, warmup_share=0.04)
    return trainer.run()


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the text at the top of this file."""
    parser = argparse.ArgumentParser(
        description="Train the judge, the CLIP or the face encoder on the faces of a folder.",
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
