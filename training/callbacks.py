"""Callbacks of training: logs, progress, plots, samples, the watch on experts, publishing."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..modeling_unif2ace.layout_unif2ace import MMU, TASKS
from ..modeling_unif2ace.modeling_unif2ace import UniF2aceDecoderLayer
from ..modeling_unif2ace.moe_unif2ace import UniF2aceExperts
from ..modeling_unif2ace.processing_unif2ace import UniF2aceProcessor
from ..pipelines.files import replacing
from ..pipelines.hooks import publisher
from .run_folder import LOG_FILE, RUN_FILE, append_line, plot_experts, plot_losses, read_lines, write_run


if TYPE_CHECKING:
    from .trainer import UniF2aceTrainer

logger = logging.get_logger(__name__)

EXPERTS_FILE = "experts.jsonl"
STAGING = ".publish"  # where a model waits to be published, beside the run's checkpoints
SHOWN = ("loss", "mask_loss", "mmu_loss")  # beside the progress bar


class JsonLog(TrainerCallback):
    """
    Append every log to a file, one JSON object a line, as it comes: readable while training runs and after a crash.

    Args:
        path (`str` or `Path`): The file, `log.jsonl` in the output folder by convention.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        entry = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 1), **(logs or {})}
        with _worth_no_run(self.path):
            append_line(self.path, entry)


@contextmanager
def _worth_no_run(path: Path) -> Iterator[None]:
    """A full disk must not end a training for the sake of a log or a picture."""
    try:
        yield
    except OSError as error:
        logger.error(f"{path} could not be written: {error}")


class Progress(TrainerCallback):
    """
    One bar with the remaining time, over the steps or, with `max_minutes`, over the time; beside it the last losses.
    Where nobody watches, in a log file, a line now and then instead.

    Args:
        trainer ([`UniF2aceTrainer`]): Knows how much of `max_minutes` is over.
    """

    def __init__(self, trainer: "UniF2aceTrainer"):
        self.trainer, self.bar = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        timed = args.max_minutes is not None
        watched = sys.stderr.isatty()
        self.bar = tqdm(
            total=round(60 * args.max_minutes) if timed else state.max_steps,
            initial=self._done(state, timed),
            unit="s" if timed else "step",
            desc="train",
            dynamic_ncols=watched,
            mininterval=0.5 if watched else 60,
        )

    def _done(self, state, timed: bool) -> int:
        return round(self.trainer.time_share * 60 * self.trainer.args.max_minutes) if timed else state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(self._done(state, args.max_minutes is not None) - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and "loss" in (logs or {}):
            shown = {name: f"{logs[name]:.3g}" for name in SHOWN if name in logs}
            self.bar.set_postfix({"step": state.global_step, **shown}, refresh=False)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.bar is not None and metrics:
            shown = [f"{name} {metrics[f'eval_{name}']:.4g}" for name in SHOWN if f"eval_{name}" in metrics]
            self.bar.write(f"step {state.global_step}, held out: {', '.join(shown)}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@torch.no_grad()
def expert_gradients(model: nn.Module) -> dict[str, float]:
    """
    The size of each expert's gradient, after a backward pass: the root mean square over its weights (of a
    sequence-level expert, its mixing weights), or over its router's row if that is larger.

    Args:
        model (`nn.Module`): The model; what is not trained is left out. So are the last layer's sequence-level experts
            of understanding rows: nobody reads what that layer makes of a picture.

    Returns:
        `dict[str, float]`: `"layers.3 t2i routed 5"`, `"layers.3 mmu sequence 2 (clip)"`, ... -> size.
    """

    def size(gradient: torch.Tensor | None) -> torch.Tensor | float:
        return 0.0 if gradient is None else gradient.float().square().flatten(1).mean(1).sqrt()  # of each row

    found: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, UniF2aceDecoderLayer)}
    for name, layer in layers.items():
        place, last = f"layers.{name.rpartition('.')[2]}", name == list(layers)[-1]
        for i, task in enumerate(TASKS):
            if layer.has_experts and any(p.grad is not None for p in layer.mlp.parameters()):
                rows = size(getattr(layer.mlp, f"{task}_router").weight.grad)
                experts = [module for module in layer.mlp.modules() if isinstance(module, UniF2aceExperts)][0]
                weights = [size(p.grad).chunk(len(TASKS))[i] for p in experts.parameters() if p.grad is not None]
                sizes = torch.stack(
                    [*weights, rows] if isinstance(rows, torch.Tensor) else weights or [torch.zeros(0)]
                )
                found.update({f"{place} {task} routed {e}": x for e, x in enumerate(sizes.amax(0))})
            router = None if layer.sequence_moe is None else layer.sequence_moe.router
            if router is None or router.weight.grad is None or (last and task == TASKS[MMU]):
                continue
            for e, kind in enumerate(layer.sequence_moe.expert_names[i]):
                mixing = layer.sequence_moe.mixing[kind].grad if kind in layer.sequence_moe.mixing else None
                parts = [
                    part.square().mean().sqrt()
                    for part in (router.weight.grad[i, e].float(), mixing)
                    if part is not None
                ]
                found[f"{place} {task} sequence {e} ({kind})"] = torch.stack(parts).amax()
    sizes = torch.stack(list(found.values())).tolist() if found else []
    return dict(zip(found, sizes, strict=True))


class ExpertWatch(TrainerCallback):
    """
    Warns, once, when an expert has had no gradient for 100 steps, by a look at every tenth: neither is it used, nor
    can its router learn to. A group without any gradient has no rows in the data, and is left out.
    """

    STEPS, EVERY = 100, 10

    def __init__(self):
        self.last_seen: dict[str, int] = {}
        self.warned: set[str] = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.EVERY or any(hasattr(p, "full_tensor") for p in model.parameters()):
            return  # the parts of sharded weights say nothing about an expert
        sizes = expert_gradients(model)
        alive = {(name.split()[1], name.split()[2]) for name, size in sizes.items() if size > 0}
        dead = []
        for name, size in sizes.items():
            since = self.last_seen.setdefault(name, state.global_step)
            if size > 0 or tuple(name.split()[1:3]) not in alive:
                self.last_seen[name] = state.global_step
            elif state.global_step - since >= self.STEPS and name not in self.warned:
                dead.append(name)
        if dead:
            self.warned.update(dead)
            shown = ", ".join(dead[:5]) + (f" and {len(dead) - 5} more" if len(dead) > 5 else "")
            logger.warning(
                f"no gradient for {self.STEPS} steps: {shown}. Such experts cannot learn; give their group a "
                "balance coefficient above 0, or the features that they need"
            )


def report(trainer: "UniF2aceTrainer", pictures: dict[str, Image.Image], texts: dict[str, str] | None = None) -> None:
    """
    Send pictures and texts to whichever of TensorBoard, W&B and trackio `report_to` names.

    Args:
        trainer ([`UniF2aceTrainer`]): Its callbacks hold the connections.
        pictures (`dict[str, Image.Image]`): Name to picture.
        texts (`dict[str, str]`, *optional*): Name to text.
    """
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        name = type(callback).__name__
        if name == "TensorBoardCallback" and callback.tb_writer is not None:
            for key, picture in pictures.items():
                callback.tb_writer.add_image(key, np.asarray(picture), step, dataformats="HWC")
            for key, text in (texts or {}).items():
                callback.tb_writer.add_text(key, text, step)
        elif name in ("WandbCallback", "TrackioCallback"):
            library = getattr(callback, "_wandb" if name == "WandbCallback" else "_trackio", None)
            if library is not None:
                images = {key: library.Image(picture) for key, picture in pictures.items()}
                library.log({**images, **(texts or {}), "train/global_step": step})


class RunPlots(TrainerCallback):
    """
    Write the experts' use to `experts.jsonl` at every log, and plots to `plots/` whenever a checkpoint is written and
    at the end: `losses.png` and `experts.png`.

    Args:
        trainer ([`UniF2aceTrainer`]): Counts the experts' use.
        folder (`str` or `Path`): The run's folder, with `log.jsonl`.
    """

    def __init__(self, trainer: "UniF2aceTrainer", folder: str | Path):
        self.trainer, self.folder = trainer, Path(folder)
        text = trainer.config.text_config
        self.names = {f"{task}_sequence": text.sequence_experts(task) for task in TASKS}

    def on_log(self, args, state, control, logs=None, **kwargs):
        use = self.trainer.expert_use
        if state.is_world_process_zero and use and "loss" in (logs or {}):
            rounded = {name: [[round(x, 5) for x in row] for row in table.tolist()] for name, table in use.items()}
            with _worth_no_run(self.folder / EXPERTS_FILE):
                append_line(self.folder / EXPERTS_FILE, {"step": state.global_step, **rounded})

    def on_save(self, args, state, control, **kwargs):
        self.draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self.draw(state)

    def draw(self, state) -> None:
        """Draw what there is to draw."""
        log = self.folder / LOG_FILE
        if not state.is_world_process_zero or not log.exists():
            return
        try:
            pictures = {"losses": plot_losses(read_lines(log))}
            if self.trainer.expert_use:
                pictures["experts"] = plot_experts(self.trainer.expert_use, self.names)
        except ImportError as error:
            logger.warning_once(str(error))
            return
        plots = self.folder / "plots"
        with _worth_no_run(plots):
            plots.mkdir(exist_ok=True)
            for name, picture in pictures.items():
                with replacing(plots / f"{name}.png") as part:
                    picture.save(part)
        report(self.trainer, {f"plots/{name}": picture for name, picture in pictures.items()})


class Samples(TrainerCallback):
    """
    Draw pictures for some prompts with the pipeline that ships, and describe some pictures, every so many steps: to
    `samples/step-000500.png`, one picture for each prompt, and `samples/captions.jsonl`.

    The averaged weights draw if there are any. Every picture has a seed of its own and the global random state is
    left as it was, so a run with samples trains the same weights as one without.

    Args:
        trainer ([`UniF2aceTrainer`]): Its `processing_class` must be a [`UniF2aceProcessor`].
        folder (`str` or `Path`): The run's folder.
        prompts (`Sequence[str]`): What to draw.
        pictures (`Sequence[Image.Image]`, *optional*, defaults to `()`): What to describe.
        every (`int`, *optional*, defaults to 500): Steps between samples; also at the end.
        num_inference_steps (`int`, *optional*, defaults to 16): Decoding steps.
        guidance_scale (`float`, *optional*, defaults to 4.0): Guidance.
        max_new_tokens (`int`, *optional*, defaults to 160): Longest caption.

    Raises:
        ValueError: if the trainer has no processor, its model is sharded over processes, or a prompt is too long.
    """

    def __init__(
        self,
        trainer: "UniF2aceTrainer",
        folder: str | Path,
        prompts: Sequence[str],
        pictures: Sequence[Image.Image] = (),
        every: int = 500,
        num_inference_steps: int = 16,
        guidance_scale: float = 4.0,
        max_new_tokens: int = 160,
    ):
        if trainer.processing_class is None:
            raise ValueError("samples need the trainer's processing_class, a UniF2aceProcessor")
        if trainer.is_fsdp_enabled or trainer.is_distributed_loading_by_transformers:
            raise ValueError("samples cannot be drawn from a model that is sharded (FSDP): leave them out")
        if every < 1:
            raise ValueError(f"every={every}, expected at least 1 step between samples")
        self.trainer, self.folder = trainer, Path(folder) / "samples"
        self.prompts, self.pictures, self.every = list(prompts), list(pictures), every
        self.options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        self.max_new_tokens = max_new_tokens
        self.last_step = -1
        if self.prompts:  # a prompt that does not fit shall be known now
            trainer.processing_class(text=self.prompts, generation_mode="image")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self.draw(state)

    @torch.no_grad()
    def draw(self, state) -> None:
        """Draw and describe now."""
        if not state.is_world_process_zero or state.global_step == self.last_step:
            return
        self.last_step = state.global_step
        from ..pipelines import UniF2acePipeline
        from ..pipelines.pictures import picture_grid
        from ..pipelines.scheduling_unif2ace import UniF2aceScheduler

        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        was_training = model.training
        pipe = UniF2acePipeline(model, UniF2aceScheduler(), trainer.processing_class)
        pipe.set_progress_bar_config(disable=True)
        model.eval()
        try:
            with torch.random.fork_rng(), trainer.averaged_weights():
                grid, captions = None, []
                if self.prompts:
                    generators = [torch.Generator().manual_seed(i) for i in range(len(self.prompts))]
                    grid = picture_grid(pipe(self.prompts, generator=generators, **self.options).images)
                for picture in self.pictures:
                    captions.append(pipe.describe(picture, max_new_tokens=self.max_new_tokens))
        finally:
            model.train(was_training)
        with _worth_no_run(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if grid is not None:
                with replacing(self.folder / f"step-{state.global_step:06d}.png") as part:
                    grid.save(part)
            for number, caption in enumerate(captions):
                entry = {"step": state.global_step, "picture": number, "caption": caption}
                append_line(self.folder / "captions.jsonl", entry)
        pictures = {} if grid is None else {"samples/pictures": grid}
        report(trainer, pictures, {f"samples/caption_{i}": caption for i, caption in enumerate(captions)})


def publish_trainer(trainer: "UniF2aceTrainer", repo_id: str, **options: Any) -> list:
    """
    Publish a trainer's model as it is now: the averaged weights if there are any, or the adapter of a PEFT model.

    Every process must call it; the first one uploads.

    Args:
        trainer ([`UniF2aceTrainer`]): The trainer; its `processing_class` goes with the model.
        repo_id (`str`): Repository on the Hub.
        options: As [`~unif2ace.hub_card.publish.publish`] takes them: `license`, `private`, `overwrite`, ...

    Returns:
        `list[~unif2ace.hub_card.publish.PublishedRepository]`; empty in other processes than the first.

    Raises:
        ValueError: if the trainer has no processor; and what `publish` raises.
    """
    publish = publisher()
    if not isinstance(trainer.processing_class, UniF2aceProcessor):
        kind = type(trainer.processing_class).__name__
        raise ValueError(
            f"the trainer's processing_class is a {kind}, expected the model's UniF2aceProcessor: give it"
        )
    output = Path(trainer.args.output_dir)
    folder = output / STAGING
    asked, trainer.args.push_to_hub = trainer.args.push_to_hub, False  # save_model would come here again
    try:
        trainer.save_model(str(folder))
        if not trainer.is_world_process_zero():
            return []
        if not (output / RUN_FILE).is_file():  # not started by `unif2ace train`
            _write_facts(trainer, folder)
        return publish(folder, repo_id, **{"run": None if (folder / RUN_FILE).is_file() else output, **options})
    finally:
        trainer.args.push_to_hub = asked
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)


def _write_facts(trainer: "UniF2aceTrainer", folder: Path):
    """Arguments and log of a run that was started from Python, as `unif2ace train` leaves them."""
    args, model = trainer.args, trainer.model
    given = {
        name: value
        for name, value in args.to_dict().items()
        if isinstance(value, (bool, int, float, str)) and value != getattr(type(args), name, None)
    }
    write_run(
        folder,
        {"data": type(trainer.train_dataset).__name__, "training": given},
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        rows=len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None,
        processes=args.world_size,
    )
    for entry in trainer.state.log_history:
        append_line(folder / LOG_FILE, entry)


class PublishCallback(TrainerCallback):
    """
    Publishes when training ends, and if wanted at every checkpoint.

    Args:
        trainer ([`UniF2aceTrainer`]): The trainer that it is added to.
        repo_id (`str`): Repository on the Hub.
        every_save (`bool`, *optional*, defaults to `False`): Also publish whenever a checkpoint is saved.
        options: As [`~unif2ace.hub_card.publish.publish`] takes them.

    Example:

    ```python
    trainer.add_callback(PublishCallback(trainer, "me/faces", license="apache-2.0", private=True))
    ```
    """

    def __init__(self, trainer: "UniF2aceTrainer", repo_id: str, every_save: bool = False, **options: Any):
        self.trainer, self.repo_id, self.every_save, self.options = trainer, repo_id, every_save, options

    def on_save(self, args, state, control, **kwargs):
        if self.every_save and state.global_step < state.max_steps:
            publish_trainer(self.trainer, self.repo_id, **{"samples": 0, **self.options})

    def on_train_end(self, args, state, control, **kwargs):
        publish_trainer(self.trainer, self.repo_id, **self.options)
