"""What a training run left behind, read for its card: `run.json`, the log, measured quality."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.run_record import RUN_FILE


LOG_FILES = ("log.jsonl", "trainer_state.json")


@dataclass
class RunFacts:
    """
    A run.

    Args:
        folder (`Path`, *optional*): Where it was found.
        record (`dict`): What [`~unif2ace.training.run_record.RunRecord`] wrote; empty without it.
        log (`list[dict]`): Logged entries, each with its `step`.
    """

    folder: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def find(cls, model: Path, run: str | os.PathLike | None = None) -> "RunFacts":
        """
        The run of a model: the folder that is named, or the model's own or the one around it.

        Raises:
            FileNotFoundError: if a folder is named that holds no run.
        """
        for folder in (Path(run),) if run is not None else (model, model.resolve().parent):
            facts = cls(folder, _read_object(folder / RUN_FILE), _read_log(folder))
            if facts.record or facts.log:
                return facts
        if run is not None:
            raise FileNotFoundError(
                f"{run} holds neither {RUN_FILE} nor {' nor '.join(LOG_FILES)}: it is no run's folder"
            )
        return cls()

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The course of every logged loss: (step, value) pairs by name."""
        found: dict[str, dict[int, float]] = {}
        for entry in self.log:
            for name, value in entry.items():
                if name.endswith("loss") and isinstance(value, (int, float)) and "step" in entry:
                    found.setdefault(name, {})[entry["step"]] = float(value)
        return {name: sorted(points.items()) for name, points in found.items() if len(points) > 1}


def _read_log(folder: Path) -> list[dict[str, Any]]:
    for name in LOG_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return json.loads(path.read_text(encoding="utf-8")).get("log_history", [])
    return []


def _read_object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
