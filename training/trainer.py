"""
Training of both tasks at once.

Text-to-image rows learn by D3Diff (`losses.py`) to restore masked image codes, understanding rows by cross-entropy to
say the answers; one forward pass serves both. All randomness of a step (masks, dropped prompts, router noise) comes
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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import CLIPVisionModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from transformers.utils import logging

from ..modeling_unif2ace.configuration_unif2ace import MMU, T2I, TASKS
from ..modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from ..modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel
from ..pipelines.files import write_json
from .arguments import UniF2aceTrainingArguments
from .averages import Averages
from .checkpoints import is_write_error, marked_incomplete
from .data.rows import check_rows
from .data.sampler import ShuffledSampler, TaskSampler
from .ema import WeightAverage
from .losses import balance_of, d3diff_loss, router_usage
from .masking import MaskSchedule, row_generator, sample_masks
from .optimizers import MuonAdamWFactory
from .region_weights import region_weights
from .routing import StepLoad, summarize_load


logger = logging.get_logger(__name__)

FROZEN = (UniF2aceVQModel, CLIPVisionModel, UniF2aceFaceEncoder)
NUM_EMPTY_PROMPT_TOKENS = 3  # `<|t2i|> bos eos`, the prompt without text
RATIO_BUCKETS = 4  # the text-to-image loss is also logged by quarter of the mask ratio
EMA_FILE = "ema.safetensors"
CLOCK_FILE = "training_clock.json"
LOAD_FILE = "router_load.safetensors"


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
            trainer.ema.update(state.global_step)
        trainer.step_load.end_step(trainer.accelerator)
        trainer.look_around()
        if trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True
        elif trainer.time_share >= 1:
            control.should_training_stop = True


class UniF2aceTrainer(Trainer):
    """
    [`~transformers.Trainer`] for UniF²ace: D3Diff for text-to-image rows, cross-entropy for understanding rows and
    balance losses for the routers of both groups.

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
        kwargs: The other arguments of [`~transformers.Trainer`]: `train_dataset`, `data_collator`, ...

    Raises:
        TypeError: if `args` are not `UniF2aceTrainingArguments`.
        ValueError:
            if several GPUs are visible to one process, averaging is combined with FSDP, or a data set lacks a column.
    """

    # compute_loss divides by the counts of the whole step and undoes what Trainer divides by (see get_batch_samples)
    loss_is_scaled_for_ga = False

    def __init__(self, model: nn.Module, args: UniF2aceTrainingArguments, **kwargs):
        if not isinstance(args, UniF2aceTrainingArguments):
            raise TypeError(f"args are {type(args).__name__}, expected UniF2aceTrainingArguments")
        if args.n_gpu > 1:
            raise ValueError(f"one process sees {args.n_gpu} GPUs: start one process for each with torchrun")
        self.frozen = [module for module in model.modules() if isinstance(module, FROZEN)]
        for module in self.frozen:
            module.requires_grad_(False)
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
        self.region_weights: torch.Tensor | None = None  # (N,)
        if args.region_weights:
            weights = region_weights(args.region_weights, self.config.vq_config.grid_size)
            self.region_weights = weights.to(args.device)
        self.averages = Averages(self._logged_names())
        self.step_load = StepLoad(self.config.text_config, args.device)
        self.expert_use: dict[str, torch.Tensor] = {}  # shares of the choices at the last log, (layers, E) each
        self.evaluation_batch = 0
        self.stopped_by: str | None = None
        self._signal = 0
        self._encodes_sharded = False
        self.started = time.monotonic()
        self.earlier_seconds = 0.0
        self.time_share = 0.0  # of `max_minutes`; see look_around
        self.ema = None
        if args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_distributed_loading_by_transformers:
                raise ValueError(f"ema_decay={args.ema_decay} cannot be combined with FSDP: leave one of them out")
            self.ema = WeightAverage(self.model, args.ema_decay)
        self.add_callback(_AfterEachStep(self))

    def _logged_names(self) -> list[str]:
        text = self.config.text_config
        names = ["mask_loss", "score_loss", "mmu_loss", *(f"mask_loss_ratio_{i}" for i in range(RATIO_BUCKETS))]
        for task in TASKS:
            names.append(f"{task}_balance")
            names += [f"{task}_load_{i}" for i in range(len(text.moe_layers) * text.num_routed_experts)]
            num_choices = len(text.sequence_moe_layers) * len(text.sequence_experts(task))
            names += [f"{task}_sequence_{i}" for i in range(num_choices)]
        return names

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

        Each gets `denominators`: the step's masked codes, text-to-image rows, answer tokens, and tokens of either task
        over all processes, divided by the factor (micro-batches x processes) by which Trainer and data parallelism
        divide the loss.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [
            self._draw(batch, self.state.global_step, self._first_row(micro, self.args.per_device_train_batch_size))
            for micro, batch in enumerate(batches)
        ]
        if batches:
            totals = torch.stack([self._counts(batch) for batch in batches]).sum(0).to(device)
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, "sum")
            denominators = totals.clamp(min=1) / (len(batches) * self.args.world_size)
            for batch in batches:
                batch["denominators"] = denominators
        return batches, None

    def _first_row(self, micro_step: int, batch_size: int) -> int:
        """The place in the step of this process's first row: processes take whole batches in turn."""
        return (micro_step * self.args.world_size + self.args.process_index) * batch_size

    def _draw(self, batch: dict[str, torch.Tensor], step: int, first_row: int, training: bool = True) -> dict:
        """`batch` with `masked` (T2I rows, N), `without_text` (T2I rows,) and, in training, router noise."""
        text, device = self.config.text_config, batch["input_ids"].device
        left = 1 - step / self.args.sequence_router_noise_steps if self.args.sequence_router_noise_steps else 0.0
        scale = self.args.sequence_router_noise * left if training and text.sequence_moe_layers else 0.0
        shape = (len(text.sequence_moe_layers), len(text.t2i_sequence_experts))
        masked = torch.zeros(0, self.config.num_image_tokens, dtype=torch.bool)
        masks, dropped, noise = [masked], [], []
        for place, task in enumerate(batch["task_ids"].tolist()):
            generator = row_generator(self.args.seed, step, first_row + place)
            if task == T2I:
                masks.append(sample_masks(1, self.config.num_image_tokens, generator, self.schedule)[0])
                share = torch.rand((), generator=generator).item()
                dropped.append(training and share < self.args.condition_dropout)
            if scale > 0:
                noise.append(torch.randn(shape, generator=generator) * scale)
        drawn = {
            **batch,
            "masked": torch.cat(masks).to(device),
            "without_text": torch.tensor(dropped, dtype=torch.bool, device=device),
        }
        if noise:
            drawn["sequence_router_noise"] = torch.stack(noise, dim=1).to(device)  # (layers, B, E)
        return drawn

    def _counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Masked codes, text-to-image rows, answer tokens, and tokens of either task in a batch, (5,) float32."""
        answers = (batch["labels"][:, 1:] != -100).sum()
        is_t2i = batch["task_ids"] == T2I
        lengths = batch["attention_mask"].sum(-1)
        without_text = self.config.num_image_tokens + 2 + NUM_EMPTY_PROMPT_TOKENS
        t2i_tokens = torch.where(batch["without_text"], without_text, lengths[is_t2i]).sum()
        counts = (batch["masked"].sum(), is_t2i.sum(), answers, t2i_tokens, lengths[~is_t2i].sum())
        return torch.stack(counts).float()

    # ---- Loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        """
        Mask, run the model once, and add up `d3diff + mmu_weight·mmu + coef·balance` of both groups.

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
            inputs["denominators"] = self._counts(inputs).clamp(min=1)
            self.evaluation_batch += 1
        if model.training:
            for module in self.frozen:  # Trainer has just put them into training mode: batch norm would learn
                module.eval()
        inputs = dict(inputs)
        masked, labels, task_ids = inputs.pop("masked"), inputs.pop("labels"), inputs["task_ids"]
        mask_total, row_total, answer_total, *token_totals = inputs.pop("denominators")
        targets = self._corrupt(inputs, masked)
        is_answer = F.pad(labels[:, 1:] != -100, (0, 1))

        outputs = model(
            **inputs,
            text_logits_mask=is_answer,
            use_cache=False,
            output_t2i_router_logits=True,
            output_mmu_router_logits=True,
            output_sequence_router_logits=True,
        )
        d3diff = d3diff_loss(
            outputs.image_logits,
            targets,
            row=masked.nonzero()[:, 0],
            num_masked=masked.sum(-1),
            num_tokens=self.config.num_image_tokens,
            alpha=self.args.alpha,
            mask_weight=self.args.mask_weight,
            weighting=self.args.weighting,
            schedule=self.schedule,
            position_weight=None if self.region_weights is None else self.region_weights.expand_as(masked)[masked],
            mask_denominator=mask_total,
            row_denominator=row_total,
        )
        answers = labels[:, 1:][is_answer[:, :-1]]
        answer_loss = F.cross_entropy(outputs.text_logits.float(), answers, reduction="sum")
        loss = d3diff.loss + self.args.mmu_weight * answer_loss / answer_total

        self.averages.add("score_loss", d3diff.score_loss * row_total, len(masked))
        self.averages.add("mask_loss", d3diff.token_loss.sum(), len(targets))
        self.averages.add("mmu_loss", answer_loss, len(answers))
        self._note_ratio_buckets(d3diff.token_loss, masked)
        loss = loss + self._balance(outputs, task_ids, inputs["attention_mask"], token_totals, model.training)
        return (loss, outputs) if return_outputs else loss

    def _corrupt(self, inputs: dict[str, Any], masked: torch.Tensor) -> torch.Tensor:
        """
        Hide the masked codes and the dropped prompts in `inputs`, whose entries it replaces; return the hidden codes.

        The codes of all text-to-image rows stand in the same columns, which makes this a few slices.
        """
        n = self.config.num_image_tokens
        input_ids, attention_mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
        task_ids, pixel_values = inputs["task_ids"], inputs.get("pixel_values")
        length = input_ids.shape[1]
        rows = (task_ids == T2I).nonzero()[:, 0]

        needs_codes = inputs.pop("needs_codes", None)
        if needs_codes is not None:
            codes = self._encode_images(pixel_values[needs_codes]) + self.config.image_code_offset
            holes = (input_ids == self.config.image_token_id) & needs_codes[:, None]
            input_ids = input_ids.masked_scatter(holes, codes)
            inputs["pixel_values"] = pixel_values[task_ids == MMU]
        if not (task_ids == MMU).any():
            inputs.pop("pixel_values", None)

        span = slice(length - n - 1, length - 1)
        codes = input_ids[rows, span]
        input_ids[rows, span] = codes.masked_fill(masked, self.config.mask_token_id)

        # no text: `[PAD ...] <|t2i|> bos eos`, the unconditional prompt of guidance
        empty, end = rows[inputs.pop("without_text")], length - n - 2
        special = self.config.special_token_id
        text = self.config.text_config
        prompt = [special("<|t2i|>"), text.bos_token_id, text.eos_token_id]  # NUM_EMPTY_PROMPT_TOKENS
        input_ids[empty, : end - len(prompt)] = special("[PAD]")
        input_ids[empty, end - len(prompt) : end] = torch.tensor(prompt, device=input_ids.device)
        attention_mask[empty, : end - len(prompt)] = 0

        image_logits_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        image_logits_mask[rows, span] = masked
        inputs.update(input_ids=input_ids, attention_mask=attention_mask, image_logits_mask=image_logits_mask)
        return codes[masked] - self.config.image_code_offset

    def _encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image codes, also of a sharded model: FSDP gathers its weights for `forward` only, unless told otherwise."""
        if isinstance(self.model, FSDPModule) and not self._encodes_sharded:
            register_fsdp_forward_method(self.model, "encode_images")
            self._encodes_sharded = True
        return self.model.encode_images(pixel_values)

    def _balance(
        self, outputs, task_ids: torch.Tensor, attention_mask: torch.Tensor, token_totals: list, training: bool
    ) -> torch.Tensor | float:
        """The weighted balance losses of both groups; also notes how the experts are used."""
        text = self.config.text_config
        whole_step = training and self.args.balance_scope == "step"
        total = 0.0
        groups = (
            (T2I, outputs.t2i_router_logits, self.args.t2i_balance_coef),
            (MMU, outputs.mmu_router_logits, self.args.mmu_balance_coef),
        )
        for task, logits, coefficient in groups:
            rows, name = task_ids == task, TASKS[task]
            has_rows = bool(rows.any())
            if logits:
                num_tokens = token_totals[task] if whole_step else None
                usage = router_usage(logits, attention_mask[rows], text.num_experts_per_tok, num_tokens)
                if whole_step:
                    self.step_load.add(task, usage.counts)
                    usage.load = self.step_load.load[task]
                balance = balance_of(usage)
                total = total + coefficient * balance
                if has_rows or whole_step:  # then each micro-batch brings its part, even nothing
                    self.averages.add(f"{name}_balance", balance, 1.0)
                if has_rows:
                    num_choices = usage.counts.sum(-1, keepdim=True).expand_as(usage.counts)
                    self.averages.add(f"{name}_load", usage.counts.flatten(), num_choices.flatten())
            if outputs.sequence_router_logits and has_rows:
                chosen = router_usage(
                    tuple(layer[rows] for layer in outputs.sequence_router_logits), None, text.num_experts_per_sequence
                )
                num_choices = chosen.counts.sum(-1, keepdim=True).expand_as(chosen.counts)
                self.averages.add(f"{name}_sequence", chosen.counts.flatten(), num_choices.flatten())
        return total

    def _take_expert_use(self, means: dict[str, float]) -> dict[str, torch.Tensor]:
        """
        Take the loads of single experts out of `means`, where they would be hundreds of numbers, and put their summary
        in. Returns the tables, (layers, experts) each.
        """
        text, tables = self.config.text_config, {}
        for task in TASKS:
            experts = {"load": text.num_routed_experts, "sequence": len(text.sequence_experts(task))}
            for kind, num_experts in experts.items():
                names = [name for name in self.averages.names if name.rpartition("_")[0] == f"{task}_{kind}"]
                if not names or names[0] not in means:
                    continue
                table = torch.tensor([means.pop(name) for name in names]).view(-1, num_experts)
                tables[f"{task}_{kind}"] = table
                if kind == "load":
                    means.update({f"{task}_{name}": value for name, value in summarize_load(table).items()})
                else:
                    means.update({f"{task}_sequence_load_{i}": x for i, x in enumerate(table.mean(0).tolist())})
        return tables

    @torch.no_grad()
    def _note_ratio_buckets(self, token_loss: torch.Tensor, masked: torch.Tensor) -> None:
        row = masked.nonzero()[:, 0]
        bucket = (masked.float().mean(-1) * RATIO_BUCKETS).long().clamp(max=RATIO_BUCKETS - 1)[row]
        total = token_loss.new_zeros(RATIO_BUCKETS).index_add(0, bucket, token_loss)
        count = token_loss.new_zeros(RATIO_BUCKETS).index_add(0, bucket, torch.ones_like(token_loss))
        self.averages.add("mask_loss_ratio", total, count)

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

    def averaged_weights(self):
        """A context in which the model has its averaged weights, if there are any."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop over the averaged weights, with every term of the loss among the metrics."""
        training_averages, self.averages = self.averages, Averages(self.averages.names)
        self.evaluation_batch = 0
        try:
            with self.averaged_weights():
                output = super().evaluation_loop(
                    dataloader, description, True, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
                )
            means = self.averages.means(self)
            self._take_expert_use(means)
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
        """Add the averages since the last log, and their D3Diff total, to the training logs."""
        if "loss" in logs:
            means = self.averages.means(self)
            self.expert_use = self._take_expert_use(means)
            if "mask_loss" in means:
                weighted = self.args.mask_weight * means["mask_loss"], self.args.alpha * means["score_loss"]
                means["d3diff_loss"] = sum(weighted)
            logs.update(means)
            self.averages.clear()
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
                self.ema.save(folder / EMA_FILE)
            self.step_load.save(folder / LOAD_FILE)
            seconds = self.earlier_seconds + time.monotonic() - self.started
            write_json(folder / CLOCK_FILE, {"seconds": seconds})

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
            with marked_incomplete(folder) if self.args.should_save else nullcontext():
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
        from .hub import publish_trainer

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
            self.ema.load(folder / EMA_FILE)
        if (folder / LOAD_FILE).exists():  # not in checkpoints of version 0.1
            self.step_load.restore(folder / LOAD_FILE)
        self.earlier_seconds = json.loads((folder / CLOCK_FILE).read_text())["seconds"]

    # ---- Signals ----------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """[`~transformers.Trainer.train`], which ends after the running step when SIGTERM or Ctrl-C comes."""
        self._signal, self.stopped_by = 0, None
        try:
            earlier = {number: signal.signal(number, self._note_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread, where signals cannot be caught
            earlier = {}
        try:
            return super().train(*args, **kwargs)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame) -> None:
        if self._signal:
            raise KeyboardInterrupt  # asked twice: at once
        self._signal = number
        # not through the logger, which the command line silences
        print(f"{signal.Signals(number).name}: training stops after this step, with a checkpoint", file=sys.stderr)
