"""What a training run left behind, read for its card: configuration, starts of the run, log."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..training.callbacks import LOG_FILE, read_lines
from ..training.data.sources import SOURCES, Source
from ..training.evaluation.results import without_places
from ..training.run_folder import CONFIG_FILE, RUN_FILE
from .card import training_minutes


# places and secrets of the machine that trained, and what only concerns how it reported
_PRIVATE = ("dir", "token", "run_name", "report_to", "hub_", "push_to_hub", "disable_tqdm", "local_rank", "resume")


@dataclass
class RunFacts:
    """
    A run, as [`~unif2ace.training.run_folder.write_run`] and the log of training describe it.

    Args:
        folder (`Path`, *optional*): Where it was found.
        config (`dict`): Its configuration; empty if it left none.
        starts (`list[dict]`): One entry for each time it was started.
        log (`list[dict]`): Logged entries, each with its `step`.
    """

    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def find(cls, model: Path, run: str | os.PathLike | None = None) -> "RunFacts":
        """
        The run of a model: the folder that is named, or the model's own, or the one around it.

        Raises:
            FileNotFoundError: if a folder is named that holds no run.
        """
        for folder in (Path(run),) if run is not None else (model, model.resolve().parent):
            facts = cls(
                folder,
                _read_yaml(folder / CONFIG_FILE) or {},
                _read_yaml(folder / RUN_FILE) or [],  # JSON is YAML
                read_lines(folder / LOG_FILE) if (folder / LOG_FILE).is_file() else [],
            )
            if facts.starts or facts.log:
                return facts
        if run is not None:
            raise FileNotFoundError(f"{run} is no run's folder: it has neither {RUN_FILE} nor {LOG_FILE}")
        return cls()

    @property
    def arguments(self) -> dict[str, Any]:
        """Training arguments that were given, without places and secrets of the machine."""
        given = self.config.get("training", {})
        return {name: value for name, value in given.items() if not any(part in name for part in _PRIVATE)}

    @property
    def versions(self) -> str:
        """Versions of the packages at the last start."""
        last = self.starts[-1] if self.starts else {}
        found = {"python": last.get("python")} | last.get("packages", {})
        return ", ".join(f"{name} {version}" for name, version in found.items() if version)

    @property
    def datasets(self) -> list[str]:
        """
        Data sets on the Hub that it was trained on, of those that the package knows: of other names it cannot be said
        whether they are repositories or folders.
        """
        return [place for source, place in self._known_sources() if place in source.hub]

    def data_sentence(self) -> str:
        """What it was trained on, as far as the run says it, and the terms of data sets that are known."""
        data, rows = self.config.get("data"), next((start["rows"] for start in self.starts if "rows" in start), None)
        sentences = [f"{rows:,} rows."] if rows is not None else []
        if isinstance(data, dict):
            sentences.append("; ".join(f"`{name}`: {without_places(value)}" for name, value in _scalars(data)) + ".")
        elif data:
            sentences.append(str(data))
        known = dict.fromkeys((source.summary, source.licence) for source, _ in self._known_sources())
        sentences += [f"{summary}. Terms: {licence}." for summary, licence in known]
        return " ".join(sentences) or "The run does not say what it was trained on."

    def _known_sources(self) -> list[tuple[Source, str]]:
        """Each data set that the configuration names and the package knows, and the place that it names."""
        data, found = self.config.get("data"), {}
        for key, value in _scalars(data) if isinstance(data, dict) else ():
            if key.endswith(".path") and isinstance(value, str):
                name, _, place = value.rpartition(":")
                source = next((known for known in SOURCES.values() if name == known.name or value in known.hub), None)
                if value in SOURCES and SOURCES[value].hub:  # its name alone is its first repository
                    source, place = SOURCES[value], SOURCES[value].hub[0]
                if source is not None:
                    found[source.name, place] = (source, place)
        return list(found.values())

    def time_sentence(self) -> str:
        """How long it took, and on what."""
        sentences = []
        if self.log:
            steps = max(entry.get("step", 0) for entry in self.log)
            timed = [entry for entry in self.log if "seconds" in entry]
            minutes = f" in {training_minutes(timed):.1f} minutes" if timed else ""
            sentences.append(f"{steps:,} steps{minutes}")
        if self.starts:
            last = self.starts[-1]
            count = last.get("processes", 1)
            sentences.append(
                f"{count} process{'es' if count > 1 else ''} on {last.get('device', 'an unknown device')}"
            )
            if "parameters" in last:
                trained, every = last.get("trained_parameters", 0) / 1e6, last["parameters"] / 1e6
                sentences.append(f"{trained:,.1f}M of {every:,.1f}M parameters trained")
            if len(self.starts) > 1:
                sentences.append(f"started {len(self.starts)} times")
        return "; ".join(sentences) + "." if sentences else ""


def _scalars(content: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """`name.of.place`, value of everything in nested dictionaries but lists."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{start}{name}.")
        elif isinstance(value, (str, int, float, bool)):
            yield start + name, value


def _read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
