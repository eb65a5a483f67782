"""Trained models to the Hub: what `UniF2aceTrainer.push_to_hub` and [`PublishCallback`] do."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..modeling_unif2ace import UniF2aceProcessor
from ..pipelines.hooks import publisher
from .callbacks import LOG_FILE, append_line
from .run_folder import RUN_FILE, write_run


if TYPE_CHECKING:
    from .trainer import UniF2aceTrainer

STAGING = ".publish"  # beside the run's checkpoints


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
