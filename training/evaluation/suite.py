"""What every evaluation suite has in common: parts that are measured one by one, into a file from which it resumes."""

import hashlib
import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ... import __version__
from ...pipelines.files import write_json, write_text
from ...pipelines.pictures import save_picture
from .results import markdown, to_json
from .statistics import Statistic, in_slices, with_interval
from .subject import code_sha256


if TYPE_CHECKING:
    from .metrics import FaceMetric

_LIBRARIES = ("torch", "transformers", "diffusers", "datasets", "torchmetrics", "resvg-py")


@dataclass
class Part:
    """
    What one part of a suite found.

    Args:
        measures (`dict[str, dict]`):
            Name -> `value`, `low`, `high`, `replicates` (`None` without an interval), `count`, `better` ("higher",
            "lower" or `None`) and `slices` (name -> `value`, `low`, `high`, `count`).
        details (`dict`): Whatever else is worth keeping; JSON.
        items (`list[str]`): Names of the pictures in their order: two runs are paired where these are equal.
        pictures (`dict[str, PIL.Image.Image]`): Figures to keep beside the results, by name. With `"markdown"` in
            `details` the report has a section of its own for the part.
    """

    items: list[str]
    measures: dict[str, dict] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def add(
        self,
        name: str,
        statistic: Statistic,
        better: str | None = "higher",
        slices: Mapping[str, np.ndarray] | None = None,
    ) -> dict:
        """Measure a statistic of the part's pictures, with interval and slices; where it is undefined, nothing."""
        count = len(self.items)
        if not np.isfinite(statistic(np.ones((1, count)))[0]):
            return {}
        return self.add_measured(name, with_interval(statistic, count), better, in_slices(statistic, slices or {}))

    def add_metric(
        self, metric: "FaceMetric", slices: Mapping[str, np.ndarray] | None = None, prefix: str = "", **inputs
    ) -> None:
        """Measure all numbers of a metric; one row of its inputs for each picture of the part."""
        for name, statistic in metric.statistics(**inputs).items():
            self.add(prefix + name, statistic, metric.better[name], slices)
        if metric.extras():
            self.details[prefix + type(metric).__name__] = metric.extras()

    def add_measured(
        self, name: str, measured: Mapping | None, better: str | None = "higher", slices: Mapping | None = None
    ) -> dict:
        """Take over a number that was measured elsewhere (`None` is left out)."""
        if measured is None:
            return {}
        entry = {"low": None, "high": None, "replicates": None, "count": len(self.items), "better": better}
        self.measures[name] = entry | dict(measured) | ({"slices": dict(slices)} if slices else {})
        return self.measures[name]


class Suite(ABC):
    """
    A set of measurements of one checkpoint on one set of pictures.

    Class attributes:
        name (`str`): As on the command line.
        parts (`tuple[str, ...]`): All parts, in their order; `measure_<part>` measures one.
        on_request (`tuple[str, ...]`): Parts that are measured only when they are named.
        dataset_id (`str`, *optional*): The data set's repository on the Hub.
    """

    name: str
    parts: tuple[str, ...]
    on_request: tuple[str, ...] = ()
    dataset_id: str | None = None

    @property
    @abstractmethod
    def settings(self) -> dict:
        """Everything that decides the numbers; JSON. `model`, `model_sha256`, `revision`, `count` and more."""

    def missing(self, part: str) -> str | None:
        """What a part lacks, as a sentence that says how to mend it; `None` if it can be measured."""
        return None

    def measure(self, part: str) -> Part:
        """Measure one part."""
        return getattr(self, f"measure_{part}")()


def versions() -> dict[str, str]:
    """Versions of everything that takes part in the numbers and is installed."""
    found = {"unif2ace": __version__, "code": code_sha256()[:12], "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def result_path(suite: Suite, folder: Path) -> Path:
    """Where the results of a suite go: the name ends with a hash of settings and versions, so no run meets another."""
    settings = json.dumps([suite.settings, versions()], sort_keys=True, default=str)
    # the last part of a path or of a Hub repository's name
    model = Path(suite.settings["model"]).name or "model"
    return Path(folder) / f"{suite.name}-{model}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}.json"


def items_sha256(items: Sequence[str]) -> str:
    """One hash of names in their order."""
    return hashlib.sha256("\n".join(items).encode()).hexdigest()


def run_suite(
    suite: Suite, folder: Path, parts: Sequence[str] | None = None, overwrite: bool = False
) -> tuple[dict, Path]:
    """
    Measure the parts that are not measured yet, and write the results after each.

    Args:
        suite ([`Suite`]): The suite.
        folder (`Path`): Where the results go, as JSON and as Markdown.
        parts (`list[str]`, *optional*): Some of its parts; by default all but those on request.
        overwrite (`bool`, *optional*, defaults to `False`): Measure again what is measured already.

    Returns:
        `tuple[dict, Path]`: the results with all parts measured so far, and their file.

    Raises:
        ValueError: if there is no such part, or none of the parts asked for can be measured.
    """
    usual = [part for part in suite.parts if part not in suite.on_request]
    chosen = usual if parts is None else list(parts)
    unknown = [part for part in chosen if part not in suite.parts]
    if unknown:
        raise ValueError(f"suite {suite.name} has no part {unknown[0]!r}, expected some of {', '.join(suite.parts)}")
    path = result_path(suite, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {"suite": suite.name, "dataset_id": suite.dataset_id, "settings": suite.settings} | results
    results |= {"versions": versions()}
    results.setdefault("parts", {})
    wanted = [part for part in chosen if overwrite or part not in results["parts"]]
    lacking = {part: suite.missing(part) for part in wanted}
    results["skipped"] = {part: why for part, why in lacking.items() if why is not None}
    for part in (part for part in wanted if lacking[part] is None):
        start = time.monotonic()
        found = suite.measure(part)
        results["parts"][part] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1),
            "items": {"count": len(found.items), "sha256": items_sha256(found.items)},
            "measures": found.measures,
            "details": found.details,
        }
        results["parts"] = {name: results["parts"][name] for name in suite.parts if name in results["parts"]}
        for name, picture in found.pictures.items():
            save_picture(picture, path.with_name(f"{path.stem}-{name}.png"))
        write_json(path, to_json(results))
        write_text(path.with_suffix(".md"), markdown(results))
    if not any(part in results["parts"] for part in chosen):
        reasons = "; ".join(f"{part}: {why}" for part, why in results["skipped"].items())
        raise ValueError(f"nothing can be measured: {reasons}")
    return results, path


__all__ = ["Part", "Suite", "items_sha256", "result_path", "run_suite", "versions"]
