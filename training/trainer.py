"""
Training of both tasks at once.

Text-to-image rows learn by D3Diff (`losses.py`) to restore masked image codes, understanding rows by cross-entropy to
say the answers; one forward pass serves both. All randomness of a step (masks, dropped prompts, router noise) comes
from `(seed, step, micro-step, rank)`, so an interrupted and resumed run equals an uninterrupted one.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import CLIPVisionModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_unif2ace.configuration_unif2ace import MMU, T2I, TASKS
from ..modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from ..modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel
from .arguments import UniF2aceTrainingArguments
from .data.sampler import TaskSampler
from .ema import WeightAverage
from .files import write_json
from .losses import balance_of, d3diff_loss, router_usage
from .masking import MaskSchedule, sample_masks, step_generator


FROZEN = (UniF2aceVQModel, CLIPVisionModel, UniF2aceFaceEncoder)
RATIO_BUCKETS = 4  # the text-to-image loss is also logged by quarter of the mask ratio
EMA_FILE = "ema.safetensors"
CLOCK_FILE = "training_clock.json"


class Averages:
    """Sums and counts under a fixed list of names: every process must reduce the same list, or it hangs."""

    def __init__(self, names: list[str]):
        self.names = names
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.values: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor, count: torch.Tensor | float) -> None:
        """Add `count` observations that sum up to `total`; both may be vectors for `name_0`, `name_1`, ..."""
        total = total.detach().float()
        pair = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device).expand_as(total)])
        self.values[name] = self.values[name] + pair if name in self.values else pair

    def means(self, trainer: Trainer) -> dict[str, float]:
        """The mean of each name over all processes; names without observations are left out."""
        table = torch.zeros(2, len(self.names), dtype=torch.float64)
        for name, pair in self.values.items():
            if pair.dim() == 1:
                table[:, self.names.index(name)] = pair.cpu()
            else:
                first = self.names.index(f"{name}_0")
                table[:, first : first + pair.shape[1]] = pair.cpu()
        if trainer.args.world_size > 1:
            table = trainer.accelerator.reduce(table.float().to(trainer.args.device), "sum").double().cpu()
        return {
            name: (total / count).item() for name, total, count in zip(self.names, *table, strict=True) if count > 0
        }


class _AfterEachStep(TrainerCallback):
    """Lets the trainer average the weights and watch the clock."""

    def __init__(self, trainer: "UniF2aceTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.started = time.monotonic()
        self.trainer.look_at_clock()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step)
        self.trainer.look_at_clock()
        if self.trainer.time_share >= 1:
            control.should_training_stop = True


class UniF2aceTrainer(Trainer):
    """
    [`~transformers.Trainer`] for UniF²ace: D3Diff for text-to-image rows, cross-entropy for understanding rows and
    balance losses for the routers of both groups.

    Batches come from [`~unif2ace.training.data.collator.UniF2aceCollator`] (or have its keys). Image tokenizer,
    CLIP tower and face encoder are frozen. The denominators of the losses are those of the whole optimizer step,
    over all micro-batches and processes, so the step does not depend on how it was split. Prediction returns losses
    only; `evaluate` draws the same masks each time.

    Args:
        model (`UniF2aceForConditionalGeneration`): The model, or a PEFT model around it.
        args (`UniF2aceTrainingArguments`): The arguments.
        kwargs: The other arguments of [`~transformers.Trainer`]: `train_dataset`, `data_collator`, ...

    Raises:
        TypeError: if `args` are not `UniF2aceTrainingArguments`.
        ValueError: if several GPUs are visible to one process, or averaging is combined with FSDP.
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
        super().__init__(model=model, args=args, **kwargs)
        # forward has **kwargs, from which Trainer concludes that the model divides its loss by the step's tokens
        self.model_accepts_loss_kwargs = False

        self.schedule = MaskSchedule(args.mask_schedule)
        self.config = model.config
        self.averages = Averages(self._logged_names())
        self.evaluation_batch = 0
        self.started = time.monotonic()
        self.earlier_seconds = 0.0
        self.time_share = 0.0  # of `max_minutes`; see look_at_clock
        self.ema = None
        if args.ema_decay is not None:
            if self.is_fsdp_enabled:
                raise ValueError(f"ema_decay={args.ema_decay} cannot be combined with FSDP: leave one of them out")
            self.ema = WeightAverage(self.model, args.ema_decay)
        self.add_callback(_AfterEachStep(self))

    def _logged_names(self) -> list[str]:
        text = self.config.text_config
        names = ["mask_loss", "score_loss", "mmu_loss", *(f"mask_loss_ratio_{i}" for i in range(RATIO_BUCKETS))]
        for task in TASKS:
            names += [f"{task}_balance", f"{task}_router_max_load", f"{task}_router_entropy"]
            names += [f"{task}_sequence_load_{i}" for i in range(len(text.sequence_experts(task)))]
        return names

    # ---- Data -------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.t2i_fraction is None:
            return super()._get_train_sampler(train_dataset)
        tasks = train_dataset["task"] if isinstance(train_dataset, datasets.Dataset) else train_dataset.tasks
        return TaskSampler(tasks, self.args.t2i_fraction, self.args.seed)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """
        Collect the micro-batches of an optimizer step and draw their randomness.

        Each gets `denominators`: the step's masked codes, text-to-image rows and answer tokens over all processes,
        divided by the factor (micro-batches x processes) by which Trainer and data parallelism divide the loss.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._draw(batch, self.state.global_step, micro) for micro, batch in enumerate(batches)]
        if batches:
            totals = torch.stack([_counts(batch) for batch in batches]).sum(0).to(device)
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, "sum")
            denominators = totals.clamp(min=1) / (len(batches) * self.args.world_size)
            for batch in batches:
                batch["denominators"] = denominators
        return batches, None

    def _draw(self, batch: dict[str, torch.Tensor], step: int, micro_step: int, training: bool = True) -> dict:
        """`batch` with `masked` (T2I rows, N), `without_text` (T2I rows,) and, in training, router noise."""
        generator = step_generator(self.args.seed, step, micro_step, self.args.process_index)
        device = batch["input_ids"].device
        num_rows = int((batch["task_ids"] == T2I).sum())
        masked, _ = sample_masks(num_rows, self.config.num_image_tokens, generator, self.schedule)
        without_text = torch.rand(num_rows, generator=generator) < (self.args.condition_dropout if training else 0)
        drawn = {**batch, "masked": masked.to(device), "without_text": without_text.to(device)}

        text = self.config.text_config
        left = 1 - step / self.args.sequence_router_noise_steps if self.args.sequence_router_noise_steps else 0.0
        scale = self.args.sequence_router_noise * left
        if training and scale > 0 and text.sequence_moe_layers:
            shape = (len(text.sequence_moe_layers), len(batch["task_ids"]), len(text.t2i_sequence_experts))
            drawn["sequence_router_noise"] = (torch.randn(shape, generator=generator) * scale).to(device)
        return drawn

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
            inputs = self._draw(inputs, -1, self.evaluation_batch, training=False)
            inputs["denominators"] = _counts(inputs).clamp(min=1)
            self.evaluation_batch += 1
        if model.training:
            for module in self.frozen:  # Trainer has just put them into training mode: batch norm would learn
                module.eval()
        inputs = dict(inputs)
        masked, labels, task_ids = inputs.pop("masked"), inputs.pop("labels"), inputs["task_ids"]
        mask_total, row_total, answer_total = inputs.pop("denominators")
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
            weighting=self.args.weighting,
            schedule=self.schedule,
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
        loss = loss + self._balance(outputs, task_ids, inputs["attention_mask"])
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
            codes = self.model.encode_images(pixel_values[needs_codes]) + self.config.image_code_offset
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
        prompt = [special("<|t2i|>"), text.bos_token_id, text.eos_token_id]
        input_ids[empty, : end - len(prompt)] = special("[PAD]")
        input_ids[empty, end - len(prompt) : end] = torch.tensor(prompt, device=input_ids.device)
        attention_mask[empty, : end - len(prompt)] = 0

        image_logits_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        image_logits_mask[rows, span] = masked
        inputs.update(input_ids=input_ids, attention_mask=attention_mask, image_logits_mask=image_logits_mask)
        return codes[masked] - self.config.image_code_offset

    def _balance(self, outputs, task_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | float:
        """The weighted balance losses of both groups; also notes how the experts are used."""
        text = self.config.text_config
        total = 0.0
        groups = (
            (T2I, outputs.t2i_router_logits, self.args.t2i_balance_coef),
            (MMU, outputs.mmu_router_logits, self.args.mmu_balance_coef),
        )
        for task, logits, coefficient in groups:
            rows = task_ids == task
            num_rows = int(rows.sum())
            if logits:
                usage = router_usage(logits, attention_mask[rows], text.num_experts_per_tok)
                balance = balance_of(usage)
                total = total + coefficient * balance
                if num_rows:
                    self._note_usage(TASKS[task], balance, usage.load)
            if outputs.sequence_router_logits and num_rows:
                chosen = router_usage(
                    tuple(layer[rows] for layer in outputs.sequence_router_logits), None, text.num_experts_per_sequence
                )
                self.averages.add(f"{TASKS[task]}_sequence_load", chosen.load.mean(0), 1.0)
        return total

    def _note_usage(self, task: str, balance: torch.Tensor, load: torch.Tensor) -> None:
        num_experts = load.shape[-1]
        entropy = torch.special.entr(load).sum(-1).mean() / math.log(max(num_experts, 2))
        self.averages.add(f"{task}_balance", balance, 1.0)
        self.averages.add(f"{task}_router_max_load", load.amax(-1).mean() * num_experts, 1.0)
        self.averages.add(f"{task}_router_entropy", entropy, 1.0)

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

    def look_at_clock(self) -> None:
        """
        Set `time_share`, the share of `max_minutes` that training has taken, earlier parts of a resumed run included.

        All processes take the first one's clock: with clocks of their own their learning rates, and so their
        weights, would drift apart.
        """
        if self.args.max_minutes is None:
            return
        seconds = self.earlier_seconds + time.monotonic() - self.started
        share = torch.tensor(seconds / (60 * self.args.max_minutes), device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.broadcast(share, src=0)
        self.time_share = share.item()

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

    def _averaged_weights(self):
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
            with self._averaged_weights():
                output = super().evaluation_loop(
                    dataloader, description, True, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
                )
            means = self.averages.means(self)
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
            if "mask_loss" in means:
                means["d3diff_loss"] = means["mask_loss"] + self.args.alpha * means["score_loss"]
            logs.update(means)
            self.averages.clear()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the averaged weights if there are any; a checkpoint of the run instead holds the trained weights, to go on
        from, with the average and the clock beside them.
        """
        if not _internal_call:
            with self._averaged_weights():
                super().save_model(output_dir, _internal_call=False)
            return
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = Path(output_dir)
            if self.ema is not None:
                self.ema.save(folder / EMA_FILE)
            seconds = self.earlier_seconds + time.monotonic() - self.started
            write_json(folder / CLOCK_FILE, {"seconds": seconds})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.ema is not None:
            self.ema.load(folder / EMA_FILE)
        self.earlier_seconds = json.loads((folder / CLOCK_FILE).read_text())["seconds"]


def _counts(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Masked codes, text-to-image rows and answer tokens of a batch, (3,) float32."""
    answers = (batch["labels"][:, 1:] != -100).sum()
    return torch.stack([batch["masked"].sum(), answers.new_tensor(len(batch["masked"])), answers]).float()
