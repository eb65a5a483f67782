"""Callbacks of the training commands."""

import json
import time
from pathlib import Path

from transformers import TrainerCallback


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
