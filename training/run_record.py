"""What a training run was: arguments, data, machine, versions, time. The model card is made from it."""

import dataclasses
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .files import write_json


RUN_FILE = "run.json"
PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "peft", "datasets")
# places and secrets of the machine that trained, and what only concerns how it reported
_PRIVATE = ("dir", "token", "run_name", "report_to", "hub_", "push_to_hub", "disable_tqdm", "local_rank", "resume")


class RunRecord(TrainerCallback):
    """
    Keeps `run.json` in the output folder: written when training starts, completed when it ends.

    Args:
        trainer (`Trainer`): The trainer whose run is recorded.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.start = time.monotonic()
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / RUN_FILE
        earlier = json.loads(path.read_text()) if path.is_file() and state.global_step else {}
        self.earlier_seconds = earlier.get("seconds", 0.0)
        self.record = {
            "started": earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": changed_arguments(args),
            "seed": args.seed,
            "rows_per_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "processes": args.world_size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "data": describe_data(self.trainer.train_dataset),
            "hardware": hardware(),
            "versions": package_versions(),
        }
        self._write(args, state)

    def on_save(self, args, state, control, **kwargs):
        self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, state, finished=datetime.now(UTC).isoformat(timespec="seconds"))

    def _write(self, args, state, finished: str | None = None):
        if state.is_world_process_zero:
            seconds = round(self.earlier_seconds + time.monotonic() - self.start, 1)
            progress = {"finished": finished, "seconds": seconds, "steps": state.global_step}
            write_json(Path(args.output_dir) / RUN_FILE, self.record | progress)


def changed_arguments(args) -> dict[str, Any]:
    """The training arguments that were not left at their defaults, without places and secrets of the machine."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    shown = {}
    for name, value in args.to_dict().items():
        is_plain = isinstance(value, (bool, int, float, str))
        if is_plain and name in defaults and value != defaults[name] and not any(part in name for part in _PRIVATE):
            shown[name] = value
    return shown


def describe_data(dataset: Any) -> dict[str, Any]:
    """Name, size, source and licence of a data set, as far as it tells them."""
    found: dict[str, Any] = {"kind": type(dataset).__name__}
    if hasattr(dataset, "__len__"):
        found["rows"] = len(dataset)
    info = getattr(dataset, "info", None)  # of a `datasets.Dataset`
    for name in ("dataset_name", "license", "homepage", "description"):
        value = getattr(info, name, None)
        if value:
            found[name] = str(value)[:500]
    about = getattr(dataset, "provenance", None)  # a sentence, of a data set of ours
    return found | ({"provenance": str(about)} if isinstance(about, str) else {})


def hardware() -> dict[str, Any]:
    """The machine that computes."""
    found: dict[str, Any] = {"system": platform.system(), "machine": platform.machine()}
    found["cpu_cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = names
        found["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def package_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
