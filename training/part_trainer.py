"""
Training of the model's parts (image tokenizer, encoders, classifiers) by transformers' Trainer.

A part is a [`PartTask`], which draws its own batches: from `(seed, number of the batch)`, so that an interrupted and
resumed run sees the batches of an uninterrupted one, and several processes see different ones.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from ..pipelines.files import write_json
from .arguments import RunArguments
from .checkpoints import last_checkpoint
from .run_folder import LOG_FILE
from .run_trainer import RunTrainer, cosine_share


METRICS_FILE = "metrics.json"
ENDLESS = 2**31  # steps, of a run that time ends


class PartTask(ABC):
    """
    What training needs to know of a part.

    Attributes:
        model (`PreTrainedModel`): What is saved in the end.
        trained (`nn.Module`): What is optimised: the model and heads that only training needs.
    """

    model: PreTrainedModel
    trained: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches have to be."""
        return next(self.trained.parameters()).device

    @abstractmethod
    def loss(
        self, rng: np.random.Generator, batch_size: int, progress: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch drawn with `rng`, and its terms for the log; `progress` in [0, 1] of the training."""

    @abstractmethod
    def evaluate(self) -> dict:
        """Metrics on held-out data."""

    def reload(self) -> None:  # noqa: B027 - an optional hook
        """Take in data that has appeared since; called after each checkpoint."""

    def watch(self) -> dict[str, float]:
        """A few quick metrics on held-out data, for the log at each checkpoint."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the trained network."""
        self.model.save_pretrained(folder)


class _Loss(nn.Module):
    """A task as a module: data parallelism has to see a forward pass."""

    def __init__(self, task: PartTask, batch_size: int, seed: int):
        super().__init__()
        self.trained = task.trained
        self.draw = lambda number, progress: task.loss(np.random.default_rng((seed, number)), batch_size, progress)

    def forward(self, number: int, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        return self.draw(number, progress)


class _SaveByTheClock(TrainerCallback):
    """A checkpoint every so many minutes, and at the end."""

    def __init__(self, trainer: "PartTrainer", minutes: float):
        self.trainer, self.minutes, self.saved = trainer, minutes, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = self.trainer.seconds

    def on_step_end(self, args, state, control, **kwargs):
        due = self.trainer.seconds - self.saved > 60 * self.minutes
        if due or control.should_training_stop or state.global_step >= state.max_steps:
            self.saved, control.should_save = self.trainer.seconds, True

    def on_save(self, args, state, control, **kwargs):
        task = self.trainer.task
        with self.trainer.averaged_weights():
            task.trained.eval()
            found = task.watch()
            task.trained.train()
        if found:
            self.trainer.log(found)
        task.reload()


class PartTrainer(RunTrainer):
    """
    [`~transformers.Trainer`] of a [`PartTask`].

    Args:
        task (`PartTask`): What is trained and on what.
        args (`RunArguments`): The arguments; a batch of theirs is one batch of the task.
        batch_size (`int`): Examples in a batch of the task.
        checkpoint_minutes (`float`): Minutes between checkpoints.
        warmup_share (`float`, *optional*):
            The learning rate rises over this share of the training and then follows a cosine to zero, by the clock or
            by steps. By the arguments when not given.
    """

    def __init__(
        self,
        task: PartTask,
        args: RunArguments,
        batch_size: int,
        checkpoint_minutes: float,
        warmup_share: float | None = None,
    ):
        self.task, self.warmup_share = task, warmup_share
        super().__init__(
            model=_Loss(task, batch_size, args.seed),
            args=args,
            train_dataset=range(args.max_steps * args.world_size),  # the numbers of the batches
            data_collator=lambda numbers: {"number": numbers[0]},
        )
        self.keep_log(Path(args.output_dir) / LOG_FILE)
        self.add_callback(_SaveByTheClock(self, checkpoint_minutes))

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.args.max_minutes is not None:
            return min(1.0, self.time_share)
        return min(1.0, self.state.global_step / self.args.max_steps)

    def learning_rate_factor(self, num_training_steps: int) -> Callable[[int], float] | None:
        """The base's, or with `warmup_share` the one that follows `progress`."""
        if self.warmup_share is None:
            return super().learning_rate_factor(num_training_steps)
        return lambda step: cosine_share(self.progress, self.warmup_share)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None):
        """
        The task's loss; its terms are logged.

        Raises:
            FloatingPointError: if it is not a number.
        """
        loss, terms = model(inputs["number"], self.progress)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; lower learning_rate (now "
                f"{self.args.learning_rate})"
            )
        for name, value in terms.items():
            self.averages.add(name, torch.as_tensor(value), 1.0)
        return (loss, terms) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """safetensors wants the usual layout, where convolutions are faster in another one."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: tensor.contiguous() for name, tensor in state_dict.items()})

    def run(self) -> dict:
        """
        Train to the end, going on from a checkpoint if there is one; evaluate and save the averaged weights, if there
        are any, to `final/` and the metrics to `metrics.json`. A finished run stays as it is.

        Returns:
            `dict`: The metrics with `steps` and `minutes`.

        Raises:
            KeyboardInterrupt: if a signal ended the training; a checkpoint is there.
        """
        output = Path(self.args.output_dir)
        if (output / METRICS_FILE).is_file():  # written last: this run is finished
            return json.loads((output / METRICS_FILE).read_text(encoding="utf-8"))
        self.train(resume_from_checkpoint=any(output.glob("checkpoint-*")) and str(last_checkpoint(output)))
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        with self.averaged_weights():
            self.task.trained.eval()
            metrics = self.task.evaluate()
            metrics |= {"steps": self.state.global_step, "minutes": round(self.seconds / 60, 2)}
            if self.is_world_process_zero():
                self.task.save(output / "final")
                write_json(output / METRICS_FILE, metrics)
        self.accelerator.wait_for_everyone()  # who reads the result finds it
        return metrics
