"""
A [`~transformers.Trainer`] whose runs can be stopped and go on as if nothing had happened: signals, a time budget,
averaged weights, checkpoints that are whole. The model's trainer and those of its parts are made of it.
"""

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from ..pipelines.files import only_run, write_json
from .arguments import RunArguments
from .callbacks import JsonLog, Progress
from .checkpoints import being_written, is_write_error, last_checkpoint, why_incomplete


logger = logging.get_logger(__name__)

EMA_FILE = "ema.safetensors"
CLOCK_FILE = "training_clock.json"


LOCK_FILE = ".lock"


class _NothingLeft(Exception):
    """A run that is resumed has made all its steps already."""


class _AfterEachStep(TrainerCallback):
    """Lets the trainer average the weights, close the step's books, and stop when it is told or the time is over."""

    def __init__(self, trainer: "RunTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.started = time.monotonic()
        self.trainer.look_around()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:  # Trainer itself would make a step more
            raise _NothingLeft

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.ema is not None:
            trainer.ema.step(trainer.averaged.values())
        trainer.end_step()
        trainer.look_around()
        if trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True
        elif trainer.time_share >= 1:
            control.should_training_stop = True


def cosine_share(progress: float, warmup_share: float = 0.04) -> float:
    """Factor of the learning rate at `progress` in [0, 1] of the training: linear warm-up, then a cosine to 0."""
    if progress < warmup_share:
        return max(progress / warmup_share, 0.02)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup_share) / (1.0 - warmup_share))))


class Averages:
    """Means of what training observes between two logs, over all processes."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}  # (2, ...) each: totals and counts

    def add(self, name: str, total: torch.Tensor, count: torch.Tensor | float) -> None:
        """Add `count` observations that sum up to `total`; both scalars, or of one shape for a table."""
        total = total.detach().float()
        pair = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device).expand_as(total)])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def means(self, trainer: "RunTrainer") -> dict[str, float | torch.Tensor]:
        """
        The mean of each name over all processes; scalars without observations are left out, places of tables without
        are not a number.
        """
        sums = {name: pair.double().cpu() for name, pair in self.sums.items()}
        if trainer.args.world_size > 1:  # every process must reduce the same tensor, or it hangs
            shapes = dict(sorted(gather_object([(name, tuple(pair.shape)) for name, pair in sums.items()])))
            sums = {name: sums.get(name, torch.zeros(shape)).double() for name, shape in shapes.items()}
            flat = torch.cat([pair.flatten() for pair in sums.values()] or [torch.zeros(0)])
            flat = trainer.sum_over_processes(flat.float().to(trainer.args.device)).double().cpu()
            parts = flat.split([math.prod(shape) for shape in shapes.values()])
            sums = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        means = {name: total / count for name, (total, count) in sums.items()}
        return {
            name: mean.float() if mean.ndim else mean.item()
            for name, mean in means.items()
            if mean.ndim or sums[name][1] > 0
        }


class RunTrainer(Trainer):
    """
    A trainer with the promises of `docs/training.md` about stopping and resuming.

    SIGTERM (and the first Ctrl-C) ends training after the running step, with a checkpoint; `stopped_by` then names
    the signal. A checkpoint that is being written is marked, see [`~unif2ace.training.checkpoints.last_checkpoint`];
    if the disk does not take it, it is removed and training goes on. `averages` collects what is logged.

    Args:
        model (`nn.Module`): The model.
        args (`RunArguments`): The arguments.
        kwargs: The other arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: if several GPUs are visible to one process, or averaging is combined with FSDP.
    """

    def __init__(self, model: nn.Module, args: RunArguments, **kwargs):
        if args.n_gpu > 1:
            raise ValueError(f"one process sees {args.n_gpu} GPUs: start one process for each with torchrun")
        super().__init__(model=model, args=args, **kwargs)
        self.averages = Averages()
        self.stopped_by: str | None = None
        self._signal = 0
        self.started = time.monotonic()
        self.earlier_seconds = 0.0
        self.time_share = 0.0  # of `max_minutes`; see look_around
        self.ema: EMAModel | None = None
        self.averaged: dict[str, nn.Parameter] = {}  # the parameters that `ema` averages, in its order
        if args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_distributed_loading_by_transformers:
                raise ValueError(f"ema_decay={args.ema_decay} cannot be combined with FSDP: leave one of them out")
            self.averaged = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            self.ema = EMAModel(self.averaged.values(), decay=args.ema_decay, foreach=True)
            self.ema.to(dtype=torch.float32)
        self.add_callback(_AfterEachStep(self))

    def keep_log(self, path: Path) -> None:
        """Append every log to a file, and show our bar (with `disable_tqdm` none) instead of transformers'."""
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(JsonLog(path))
        if not self.args.disable_tqdm:
            self.add_callback(Progress(self))

    def end_step(self) -> None:
        """What a subclass does after each optimizer step."""

    def summarize(self, means: dict[str, Any], training: bool = True) -> None:
        """What a subclass does, in place, with the means of what was observed before they are logged."""

    def save_state(self, folder: Path) -> None:
        """What a subclass writes into a checkpoint."""

    def load_state(self, folder: Path) -> None:
        """What a subclass reads from a checkpoint."""

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, summed over all processes."""
        return self.accelerator.reduce(tensor, "sum") if self.args.world_size > 1 else tensor

    # ---- Optimizer and learning rate --------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay acts on matrices only: no biases (also those of the fused experts), norms or embeddings."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and "bias" not in name and "embedding" not in name and id(parameter) not in tables
        ]

    @property
    def seconds(self) -> float:
        """How long training has taken, earlier parts of a resumed run included."""
        return self.earlier_seconds + time.monotonic() - self.started

    def look_around(self) -> None:
        """
        Set `time_share`, the share of `max_minutes` that training has taken (earlier parts of a resumed run included),
        and `stopped_by`, if a signal came.

        All processes take the first one's clock and stop at the same step: with clocks of their own their learning
        rates, and so their weights, would drift apart, and one that stops alone leaves the others waiting.
        """
        seconds = self.seconds
        share = 0.0 if self.args.max_minutes is None else seconds / (60 * self.args.max_minutes)
        number = self._signal
        if self.args.world_size > 1:
            news = torch.tensor([share if self.args.process_index == 0 else 0.0, number], device=self.args.device)
            torch.distributed.all_reduce(news, torch.distributed.ReduceOp.MAX)
            share, number = news[0].item(), int(news[1])
        self.time_share = share
        self.stopped_by = signal.Signals(number).name if number else None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The scheduler of the arguments, or what [`learning_rate_factor`] describes."""
        factor = self.learning_rate_factor(num_training_steps)
        if factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def learning_rate_factor(self, num_training_steps: int) -> Callable[[int], float] | None:
        """The factor of the learning rate at a step: with `max_minutes` warm-up steps and a cosine over the time."""
        if self.args.max_minutes is None:
            return None
        warmup = max(self.args.get_warmup_steps(num_training_steps), 1)
        return lambda step: min(1.0, (step + 1) / warmup) * cosine_share(self.time_share, warmup_share=0.0)

    # ---- Evaluation, logs, checkpoints ------------------------------------------------------------------------------

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the model has its averaged weights, if there are any."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.averaged.values())
        self.ema.copy_to(self.averaged.values())
        try:
            yield
        finally:
            self.ema.restore(self.averaged.values())

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop over the averaged weights, with every term of the loss among the metrics."""
        training_averages, self.averages = self.averages, Averages()
        try:
            with self.averaged_weights():
                output = super().evaluation_loop(
                    dataloader, description, True, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
                )
            means = self.averages.means(self)
            self.summarize(means, training=False)
        finally:
            self.averages = training_averages
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log to the training logs."""
        if "loss" in logs:
            means = self.averages.means(self)
            self.summarize(means)
            logs.update(means)
            self.averages = Averages()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the averaged weights if there are any; a checkpoint of the run instead holds the trained weights, to go on
        from, with the average and the clock beside them.
        """
        if not _internal_call:
            with self.averaged_weights():
                super().save_model(output_dir, _internal_call=False)
            return
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = Path(output_dir)
            if self.ema is not None:
                average = zip(self.averaged, self.ema.shadow_params, strict=True)
                average = {name: tensor.contiguous() for name, tensor in average}
                save_file(average, folder / EMA_FILE, {"step": str(self.ema.optimization_step)})
            self.save_state(folder)
            write_json(folder / CLOCK_FILE, {"seconds": self.seconds, **self._step_size()})

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """
        Write a checkpoint that is known to be incomplete until all of it is on the disk, and only then remove older
        ones. If the disk does not take it, remove it and go on: the run has the older ones, and may find room later.
        """
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # Trainer would remove before it is whole
        problem: BaseException | None = None
        try:
            with being_written(folder) if self.args.should_save else nullcontext():
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
        except Exception as error:
            if self.args.world_size > 1 or not is_write_error(error):
                raise
            problem = error
        finally:
            self.args.save_total_limit = limit
        if problem is not None:
            shutil.rmtree(folder, ignore_errors=True)
            logger.error(f"{folder} could not be written ({problem}) and was removed; training goes on without it")
        elif self.args.should_save:
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.ema is not None:
            with safe_open(folder / EMA_FILE, framework="pt") as stored:
                if set(stored.keys()) != self.averaged.keys():
                    differing = sorted(set(stored.keys()) ^ self.averaged.keys())
                    raise ValueError(
                        f"{folder / EMA_FILE} is the average of another model: {len(differing)} names differ, first "
                        f"{differing[0]}; resume with the model that the run was started with"
                    )
                for name, average in zip(self.averaged, self.ema.shadow_params, strict=True):
                    average.copy_(stored.get_tensor(name))
                self.ema.optimization_step = int(stored.metadata()["step"])
        self.load_state(folder)
        clock = json.loads((folder / CLOCK_FILE).read_text(encoding="utf-8"))
        self.earlier_seconds = clock["seconds"]
        now = self._step_size()
        if clock["rows_per_step"] != now["rows_per_step"]:
            raise ValueError(
                f"{folder} was written by {clock['processes']} processes with {clock['rows_per_step']} rows a step, "
                f"but this run has {now['processes']} with {now['rows_per_step']}: set "
                "per_device_train_batch_size and gradient_accumulation_steps so that their product with the processes "
                "is the same"
            )
        if clock["processes"] != now["processes"]:
            logger.warning(
                f"{now['processes']} processes go on with what {clock['processes']} began; a step has "
                f"{now['rows_per_step']} rows as before"
            )

    def _step_size(self) -> dict[str, int]:
        """The processes, and the rows of an optimizer step over all of them."""
        args, processes = self.args, self.args.world_size
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        return {"processes": processes, "rows_per_step": rows}

    # ---- Signals ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        [`~transformers.Trainer.train`], which ends after the running step when SIGTERM or Ctrl-C comes.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to go on from; `True` for the newest whole one of the output folder.
            kwargs: Of [`~transformers.Trainer.train`].

        Raises:
            ValueError:
                if the checkpoint is not whole, or was written with another number of rows a step; or while another
                run trains into the same folder.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_checkpoint(self.args.output_dir, logger.warning))
        elif resume_from_checkpoint:
            problem = why_incomplete(resume_from_checkpoint)
            if problem is not None:
                raise ValueError(
                    f"{resume_from_checkpoint} is not whole, {problem}: resume from an earlier checkpoint"
                )
        self._signal, self.stopped_by = 0, None
        try:
            earlier = {number: signal.signal(number, self._note_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread, where signals cannot be caught
            earlier = {}
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with only_run(folder / LOCK_FILE) if self.args.process_index == 0 else nullcontext():
                return super().train(resume_from_checkpoint or None, **kwargs)
        except _NothingLeft:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.is_in_train = False
            return TrainOutput(self.state.global_step, 0.0, {})
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame) -> None:
        if self._signal:
            raise KeyboardInterrupt  # asked twice: at once
        self._signal = number
        # not through the logger, which the command line silences
        print(f"{signal.Signals(number).name}: training stops after this step, with a checkpoint", file=sys.stderr)
