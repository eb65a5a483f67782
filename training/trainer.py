"""
Training of both tasks at once.

One forward pass serves both tasks. What is minimised is an objective (`modeling_unif2ace/objective_unif2ace.py`): the
trainer adds up its named terms and logs them. All randomness of a step (masks, dropped prompts, router noise) comes
from `(seed, step, row of the step)`, and all denominators are those of the whole step: a step is the same however it
is split into micro-batches and processes, and an interrupted and resumed run equals an uninterrupted one bit for bit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import Sampler
from transformers import CLIPVisionModel
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from ..modeling_unif2ace.image_tokenizer_unif2ace import UniF2aceVQModel
from ..modeling_unif2ace.layout_unif2ace import MMU, T2I
from ..modeling_unif2ace.moe_unif2ace import UniF2aceSequenceMoE
from ..modeling_unif2ace.objective_unif2ace import (
    NO_LABEL,
    UniF2aceObjective,
    answer_positions,
    hide_codes,
    row_generator,
    sample_masks,
)
from ..modeling_unif2ace.sampling_unif2ace import MaskSchedule
from .arguments import UniF2aceTrainingArguments
from .callbacks import ExpertWatch, publish_trainer
from .data.rows import check_rows
from .data.sampler import ShuffledSampler, TaskSampler
from .optimizers import MuonAdamWFactory
from .run_trainer import RunTrainer


logger = logging.get_logger(__name__)

FROZEN = (UniF2aceVQModel, CLIPVisionModel, UniF2aceFaceEncoder)
OBJECTIVE_FILE = "objective.safetensors"


class UniF2aceTrainer(RunTrainer):
    """
    [`~transformers.Trainer`] for UniF²ace: both tasks in every batch, by the objective of the paper or another one.

    Batches come from [`~unif2ace.training.data.collator.UniF2aceCollator`] (or have its keys). Image tokenizer,
    CLIP tower and face encoder are frozen. Masks and denominators are those of the whole optimizer step, over all
    micro-batches and processes, so the step does not depend on how it was split. Prediction returns losses only;
    `evaluate` draws the same masks each time.
    Runs can be stopped and go on as those of [`~unif2ace.training.run_trainer.RunTrainer`].

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
        self.sequence_moes = [module for module in model.modules() if isinstance(module, UniF2aceSequenceMoE)]
        for sequence_moe in self.sequence_moes:
            sequence_moe.routing = args.sequence_routing
        self.expert_use: dict[str, torch.Tensor] = {}  # shares of the choices at the last log, (layers, E) each
        self.evaluation_batch = 0
        self._encodes_sharded = False
        self.add_callback(ExpertWatch())

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
        steps = min(self.args.sequence_dense_steps, self.state.max_steps // 2)
        share, rise = self.state.global_step / steps if steps else 1.0, self.args.sequence_dense_rise
        for sequence_moe in self.sequence_moes:
            sequence_moe.density = share / rise if share < rise else max(0.0, (1 - share) / (1 - rise))
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
        if not (self._pictured(batch) & (batch["task_ids"] == MMU)).any():
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

    def _pictured(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which rows (B,) hold a picture, or a place for one."""
        return (batch["input_ids"] >= self.config.image_code_offset).any(-1)

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
        pictured = self._pictured(batch)
        needs_codes, is_mmu = batch.pop("needs_codes", None), batch["task_ids"][pictured] == MMU
        if needs_codes is not None:
            pixel_values = batch["pixel_values"]
            codes = self._encode_images(pixel_values[needs_codes[pictured]]) + self.config.image_code_offset
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

    # ---- What the run keeps -----------------------------------------------------------------------------------------

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """The same masks at each evaluation."""
        self.evaluation_batch = 0
        return super().evaluation_loop(*args, **kwargs)

    def end_step(self) -> None:
        """Close the objective's books."""
        self.objective.end_step(self.sum_over_processes)

    def summarize(self, means: dict[str, Any], training: bool = True) -> None:
        """The objective's summary; the tables of single experts are kept in `expert_use`."""
        tables = self.objective.summarize(means)
        if training:
            self.expert_use = tables

    def save_state(self, folder: Path) -> None:
        """The objective's state, such as the loads of the experts."""
        save_file(self.objective.state_dict(), folder / OBJECTIVE_FILE)

    def load_state(self, folder: Path) -> None:
        """What [`save_state`] wrote."""
        self.objective.load_state_dict(load_file(folder / OBJECTIVE_FILE, device=str(self.args.device)))

    def prediction_step(self, model, inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None):
        """The loss of a batch; logits are not returned, since the head is computed at a few positions only."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

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
