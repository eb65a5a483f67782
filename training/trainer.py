"""
Training of both tasks at once.

One forward pass serves both tasks. What is minimised is an objective (`modeling_unif2ace/objective_unif2ace.py`): the
trainer adds up its named terms and logs them. All randomness of a step (masks, dropped prompts, router noise) comes
from `(seed, step, row of the step)`, and all denominators are those of the whole step: a step is the same however it
is split into micro-batches and processes, and an interrupted and resumed run equals an uninterrupted one bit for bit.
"""

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import Sampler
from transformers import CLIPVisionModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from transformers.utils import logging

from ..modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from ..modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel
from ..modeling_unif2ace.layout_unif2ace import MMU, T2I
from ..modeling_unif2ace.moe_unif2ace import UniF2aceSequenceMoE
from ..modeling_unif2ace.objective_unif2ace import (
    NO_LABEL,
    MaskSchedule,
    UniF2aceObjective,
    answer_positions,
    hide_codes,
    row_generator,
    sample_masks,
)
from ..pipelines.files import write_json
from .arguments import UniF2aceTrainingArguments
from .callbacks import ExpertWatch, publish_trainer
from .checkpoints import being_written, is_write_error, last_checkpoint, why_incomplete
from .data.rows import check_rows
from .data.sampler import ShuffledSampler, TaskSampler
from .optimizers import MuonAdamWFactory


logger = logging.get_logger(__name__)

FROZEN = (UniF2aceVQModel, CLIPVisionModel, UniF2aceFaceEncoder)
EMA_FILE = "ema.safetensors"
CLOCK_FILE = "training_clock.json"
OBJECTIVE_FILE = "objective.safetensors"


class _AfterEachStep(TrainerCallback):
    """Lets the trainer average the weights, close the step's books, and stop when it is told or the time is over."""

    def __init__(self, trainer: "UniF2aceTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.started = time.monotonic()
        self.trainer.look_around()

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.ema is not None:
            trainer.ema.step(trainer.averaged.values())
        trainer.objective.end_step(trainer.sum_over_processes)
        trainer.look_around()
        if trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True
        elif trainer.time_share >= 1:
            control.should_training_stop = True


class Averages:
    """Means of what training observes between two logs, over all processes."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}  # (2, ...) each: totals and counts

    def add(self, name: str, total: torch.Tensor, count: torch.Tensor | float) -> None:
        """Add `count` observations that sum up to `total`; both scalars, or of one shape for a table."""
        total = total.detach().float()
        pair = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device).expand_as(total)])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def means(self, trainer: "UniF2aceTrainer") -> dict[str, float | torch.Tensor]:
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


class UniF2aceTrainer(Trainer):
    """
    [`~transformers.Trainer`] for UniF²ace: both tasks in every batch, by the objective of the paper or another one.

    Batches come from [`~unif2ace.training.data.collator.UniF2aceCollator`] (or have its keys). Image tokenizer,
    CLIP tower and face encoder are frozen. Masks and denominators are those of the whole optimizer step, over all
    micro-batches and processes, so the step does not depend on how it was split. Prediction returns losses only;
    `evaluate` draws the same masks each time.

    SIGTERM (and the first Ctrl-C) ends training after the running step, with a checkpoint; `stopped_by` then names
    the signal. A checkpoint that is being written is marked, see [`~unif2ace.training.checkpoints.last_checkpoint`];
    if the disk does not take it, it is removed and training goes on.

    Args:
        model (`UniF2aceForConditionalGeneration`): The model, or a PEFT model around it.
        args (`UniF2aceTrainingArguments`): The arguments.
        objective (`UniF2aceObjective`, *optional*):
            What is minimised. The paper's, with the weights of `args`, when not given.
        kwargs: The other arguments of [`~transformers.Trainer`]: `train_dataset`, `data_collator`, ...

    Raises:
        TypeError: if `args` are not `UniF2aceTrainingArguments`.
        ValueError:
            if several GPUs are visible to one process, averaging is combined with FSDP, the objective has weights to
            be trained, or a data set lacks a column.
    """

    # compute_loss divides by the counts of the whole step and undoes what Trainer divides by (see get_batch_samples)
    loss_is_scaled_for_ga = False

    def __init__(
        self, model: nn.Module, args: UniF2aceTrainingArguments, objective: UniF2aceObjective | None = None, **kwargs
    ):
        if not isinstance(args, UniF2aceTrainingArguments):
            raise TypeError(f"args are {type(args).__name__}, expected UniF2aceTrainingArguments")
        if args.n_gpu > 1:
            raise ValueError(f"one process sees {args.n_gpu} GPUs: start one process for each with torchrun")
        self.frozen = [module for module in model.modules() if isinstance(module, FROZEN)]
        for module in self.frozen:
            module.requires_grad_(False)
        kinds = {"clip": CLIPVisionModel, "face": UniF2aceFaceEncoder}
        self.encoders = {kind for kind, wanted in kinds.items() if any(isinstance(m, wanted) for m in self.frozen)}
        if args.muon_learning_rate is not None:
            betas = (args.adam_beta1, args.adam_beta2)
            settings = {"muon_lr": args.muon_learning_rate, "lr": args.learning_rate, "betas": betas}
            settings |= {"eps": args.adam_epsilon, "weight_decay": args.weight_decay, "bf16": args.bf16}
            kwargs.setdefault("optimizer_cls_and_kwargs", (MuonAdamWFactory, settings))
        super().__init__(model=model, args=args, **kwargs)
        check_rows(self.train_dataset, "train_dataset")
        check_rows(self.eval_dataset, "eval_dataset")
        # forward has **kwargs, from which Trainer concludes that the model divides its loss by the step's tokens
        self.model_accepts_loss_kwargs = False

        self.schedule = MaskSchedule(args.mask_schedule)
        self.config = model.config
        self.objective = (args.make_objective(self.config) if objective is None else objective).to(args.device)
        if any(parameter.requires_grad for parameter in self.objective.parameters()):
            raise ValueError("the objective has weights of its own, which nobody would train: put them into the model")
        self.averages = Averages()
        self.sequence_moes = [module for module in model.modules() if isinstance(module, UniF2aceSequenceMoE)]
        for sequence_moe in self.sequence_moes:
            sequence_moe.routing = args.sequence_routing
        self.expert_use: dict[str, torch.Tensor] = {}  # shares of the choices at the last log, (layers, E) each
        self.evaluation_batch = 0
        self.stopped_by: str | None = None
        self._signal = 0
        self._encodes_sharded = False
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
        self.add_callback(ExpertWatch())

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, summed over all processes."""
        return self.accelerator.reduce(tensor, "sum") if self.args.world_size > 1 else tensor

    # ---- Data -------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(train_dataset, "__len__"):
            return None  # a stream has its own order
        if self.args.t2i_fraction is None:
            if self.args.train_sampling_strategy != "random":
                return super()._get_train_sampler(train_dataset)
            return ShuffledSampler(len(train_dataset), self.args.seed)
        tasks = train_dataset["task"] if isinstance(train_dataset, datasets.Dataset) else train_dataset.tasks
        return TaskSampler(tasks, self.args.t2i_fraction, self.args.seed)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """
        Collect the micro-batches of an optimizer step and draw their randomness.

        Each gets `denominators`: what the objective counts, over the whole step and all processes, divided by the
        factor (micro-batches x processes) by which Trainer and data parallelism divide the loss.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self._check_features(batch)
        dense_steps = self.args.sequence_dense_steps
        for sequence_moe in self.sequence_moes:
            sequence_moe.density = max(0.0, 1 - self.state.global_step / dense_steps) if dense_steps else 0.0
        batches = [
            self._draw(batch, self.state.global_step, self._first_row(micro, self.args.per_device_train_batch_size))
            for micro, batch in enumerate(batches)
        ]
        if batches:
            totals = torch.stack([self.objective.counts(batch, batch["masked"]) for batch in batches]).sum(0)
            totals = self.sum_over_processes(totals.to(device)).clamp(min=1)
            denominators = totals / (len(batches) * self.args.world_size)
            for batch in batches:
                batch["denominators"] = denominators
        return batches, None

    def _check_features(self, batch: dict[str, torch.Tensor]) -> None:
        """Refuse to train feature experts that nobody gives features to: they would be left out in silence."""
        if not (batch["task_ids"] == MMU).any():
            return
        text = self.config.text_config
        kinds = {"clip", "face"}.intersection(text.mmu_sequence_experts if text.sequence_moe_layers else ())
        for kind in sorted(kinds - set(self.args.without)):
            part = {"clip": "vision_tower", "face": "face_encoder"}[kind]
            provided = f"{kind}_features" in batch or ("pixel_values" in batch and kind in self.encoders)
            if not provided:
                raise ValueError(
                    f"the model has {kind} experts, but neither the data (`{kind}_features`) nor an encoder provides "
                    f"what they need: give parts.{part}, or train without them (--without {kind})"
                )

    def _first_row(self, micro_step: int, batch_size: int) -> int:
        """The place in the step of this process's first row: processes take whole batches in turn."""
        return (micro_step * self.args.world_size + self.args.process_index) * batch_size

    def _draw(self, batch: dict[str, torch.Tensor], step: int, first_row: int, training: bool = True) -> dict:
        """`batch` with `masked` (T2I rows, N) and, in training, empty prompts and router noise."""
        text, device = self.config.text_config, batch["input_ids"].device
        steps = self.args.sequence_router_noise_steps
        share = step / steps if steps else 1.0  # over which the noise rises from 0 and falls to 0
        scale = 0.0
        if training and text.sequence_moe_layers and share < 1:
            scale = self.args.sequence_router_noise * 4 * share * (1 - share)
        shape = (len(text.sequence_moe_layers), len(text.t2i_sequence_experts))
        masked = torch.zeros(0, self.config.num_image_tokens, dtype=torch.bool)
        masks, dropped, noise = [masked], [], []
        for place, task in enumerate(batch["task_ids"].tolist()):
            generator = row_generator(self.args.seed, step, first_row + place)
            if task == T2I:
                masks.append(sample_masks(1, self.config.num_image_tokens, generator, self.schedule)[0])
                chance = torch.rand((), generator=generator).item()
                dropped.append(training and chance < self.args.condition_dropout)
            if scale > 0:
                noise.append(torch.randn(shape, generator=generator) * scale)
        drawn = {**batch, "masked": torch.cat(masks).to(device)}
        if any(dropped):
            empty = (batch["task_ids"] == T2I).nonzero()[:, 0][torch.tensor(dropped, device=device)]
            drawn = self.config.layout.drop_prompts(drawn, empty)
        if noise:
            drawn["sequence_router_noise"] = torch.stack(noise, dim=1).to(device)  # (layers, B, E)
        return drawn

    # ---- Loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        """
        Mask, run the model once, and add up the terms of the objective.

        Args:
            model (`nn.Module`): The (wrapped) model.
            inputs (`dict`): A batch of the collator.
            return_outputs (`bool`, *optional*, defaults to `False`): Also return the model's output.
            num_items_in_batch: Not used: see [`get_batch_samples`].

        Returns:
            The scalar loss, or `(loss, outputs)`.
        """
        if "masked" not in inputs:  # evaluation
            first_row = self._first_row(self.evaluation_batch, self.args.per_device_eval_batch_size)
            inputs = self._draw(inputs, -1, first_row, training=False)
            inputs["denominators"] = self.objective.counts(inputs, inputs["masked"]).clamp(min=1)
            self.evaluation_batch += 1
        if model.training:
            for module in self.frozen:  # Trainer has just put them into training mode: batch norm would learn
                module.eval()
        batch = self._fill_codes(inputs)
        batch = hide_codes(batch, self.config, batch.pop("masked"))
        labels, image_labels = batch["labels"], batch["image_labels"]
        seen_by_model = {k: v for k, v in batch.items() if k not in ("labels", "image_labels", "denominators")}
        outputs = model(
            **seen_by_model,
            image_logits_mask=image_labels != NO_LABEL,
            text_logits_mask=answer_positions(labels),
            use_cache=False,
            output_t2i_router_logits=True,
            output_mmu_router_logits=True,
            output_sequence_router_logits=True,
        )
        self.objective.train(model.training)
        self.objective.notes = {}
        terms = self.objective(outputs, batch)
        notes = {name: (term, 1.0) for name, term in terms.items()} | self.objective.notes
        for name, (total, count) in notes.items():
            self.averages.add(name, total, count)
        loss = self.objective.total(terms)
        return (loss, outputs) if return_outputs else loss

    def _fill_codes(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` with the codes of rows that came without; pictures are kept for understanding rows only."""
        batch = dict(inputs)
        needs_codes, is_mmu = batch.pop("needs_codes", None), batch["task_ids"] == MMU
        if needs_codes is not None:
            pixel_values = batch["pixel_values"]
            codes = self._encode_images(pixel_values[needs_codes]) + self.config.image_code_offset
            holes = (batch["input_ids"] == self.config.image_token_id) & needs_codes[:, None]
            batch["input_ids"] = batch["input_ids"].masked_scatter(holes, codes)
            batch["pixel_values"] = pixel_values[is_mmu]
        if not is_mmu.any():
            batch.pop("pixel_values", None)
            batch.pop("face_pixel_values", None)
        return batch

    def _encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image codes, also of a sharded model: FSDP gathers its weights for `forward` only, unless told otherwise."""
        if isinstance(self.model, FSDPModule) and not self._encodes_sharded:
            register_fsdp_forward_method(self.model, "encode_images")
            self._encodes_sharded = True
        return self.model.encode_images(pixel_values)

    # ---- Optimizer and learning rate --------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay acts on matrices only: no biases (also those of the fused experts), norms or embeddings."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and "bias" not in name and "embedding" not in name and id(parameter) not in tables
        ]

    def look_around(self) -> None:
        """
        Set `time_share`, the share of `max_minutes` that training has taken (earlier parts of a resumed run included),
        and `stopped_by`, if a signal came.

        All processes take the first one's clock and stop at the same step: with clocks of their own their learning
        rates, and so their weights, would drift apart, and one that stops alone leaves the others waiting.
        """
        seconds = self.earlier_seconds + time.monotonic() - self.started
        share = 0.0 if self.args.max_minutes is None else seconds / (60 * self.args.max_minutes)
        number = self._signal
        if self.args.world_size > 1:
            news = torch.tensor([share if self.args.process_index == 0 else 0.0, number], device=self.args.device)
            torch.distributed.all_reduce(news, torch.distributed.ReduceOp.MAX)
            share, number = news[0].item(), int(news[1])
        self.time_share = share
        self.stopped_by = signal.Signals(number).name if number else None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The scheduler of the arguments, or with `max_minutes` warm-up steps and a cosine over the time."""
        if self.args.max_minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup = max(self.args.get_warmup_steps(num_training_steps), 1)

            def factor(step: int) -> float:
                cosine = (1 + math.cos(math.pi * min(self.time_share, 1.0))) / 2
                return min(1.0, (step + 1) / warmup) * cosine

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

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
        self.evaluation_batch = 0
        try:
            with self.averaged_weights():
                output = super().evaluation_loop(
                    dataloader, description, True, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
                )
            means = self.averages.means(self)
            self.objective.summarize(means)
        finally:
            self.averages = training_averages
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None):
        """The loss of a batch; logits are not returned, since the head is computed at a few positions only."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log to the training logs."""
        if "loss" in logs:
            means = self.averages.means(self)
            self.expert_use = self.objective.summarize(means)
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
                average = dict(zip(self.averaged, self.ema.shadow_params, strict=True))
                save_file(average, folder / EMA_FILE, {"step": str(self.ema.optimization_step)})
            save_file(self.objective.state_dict(), folder / OBJECTIVE_FILE)
            seconds = self.earlier_seconds + time.monotonic() - self.started
            write_json(folder / CLOCK_FILE, {"seconds": seconds, **self._step_size()})

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

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> list:
        """
        Publish the model as `unif2ace publish` does: both layouts, with code and a card made from this run.

        Args:
            token (`str`, *optional*): Access token; `args.hub_token` by default.
            private (`bool`, *optional*): Whether new repositories are private; `args.hub_private_repo` by default.
            kwargs:
                Other options of [`~unif2ace.hub_card.publish.publish`]; `license` is `args.hub_license` by default.
            commit_message, blocking, revision: Accepted because every trainer has them; not used.

        Returns:
            `list[PublishedRepository]`; empty in other processes than the first.
        """
        options = {
            "token": token or self.args.hub_token,
            "private": self.args.hub_private_repo if private is None else private,
            "license": self.args.hub_license,
        }
        name = self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        return publish_trainer(self, name, **(options | kwargs))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: `publish` makes repositories when there is something to put into them."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy != "end":
            self.push_to_hub(samples=0)

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
        self.objective.load_state_dict(load_file(folder / OBJECTIVE_FILE, device=str(self.args.device)))
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
            ValueError: if the checkpoint is not whole, or was written with another number of rows a step.
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
        try:
            return super().train(resume_from_checkpoint or None, **kwargs)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame) -> None:
        if self._signal:
            raise KeyboardInterrupt  # asked twice: at once
        self._signal = number
        # not through the logger, which the command line silences
        print(f"{signal.Signals(number).name}: training stops after this step, with a checkpoint", file=sys.stderr)
