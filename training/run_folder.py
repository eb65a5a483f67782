"""What a run leaves behind: configuration, revision and versions, its log, and pictures of it."""

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from .._versions import need
from ..modeling_unif2ace.pictures_unif2ace import load_image
from ..pipelines.files import write_json, write_text


CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"
LOG_FILE = "log.jsonl"
PACKAGES = ("unif2ace", "torch", "transformers", "diffusers", "accelerate", "peft", "datasets", "safetensors", "numpy")
CURVES = (
    ("mask_loss", "masked cross-entropy, nats a code"),
    ("mmu_loss", "answers' cross-entropy, nats a token"),
    ("score_loss", "score term"),
    ("learning_rate", "learning rate"),
)
GROUP_NAMES = {"t2i": "text to image", "mmu": "understanding"}
LEVEL_NAMES = {"load": "token level", "sequence": "sequence level"}


def write_run(folder: str | Path, config: dict[str, Any], **facts: Any) -> None:
    """
    Write `config.yaml` and add this start to `run.json`, a list with one entry for each start of the run.

    Args:
        folder (`str` or `Path`): The run's folder; made if it does not exist.
        config (`dict`): The configuration as it is used, after all overrides.
        facts: More to write down, such as numbers of rows and parameters.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    path = folder / RUN_FILE
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    starts.append(
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "revision": git_revision(),
            "packages": package_versions(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            **facts,
        }
    )
    write_json(path, starts)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that training depends on, of those that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str | None:
    """The commit of the working tree that the package runs from, with `+changes` if it is not clean, or `None`."""

    def git(*arguments: str) -> str:
        place = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(place), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[1]:
            return None  # installed somewhere inside of another repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def append_line(path: Path, entry: dict) -> None:
    """Add a JSON object to a file of lines, on a line of its own even if a killed run has left half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())


def read_lines(path: str | Path) -> list[dict]:
    """The JSON objects of a file of lines; a last one that was cut off is left out."""
    entries = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _figure(columns: int, width: float, height: float):
    # not pyplot: no global state, no window system
    figure = need("matplotlib.figure", "train").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _picture(figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return load_image(buffer.getvalue())


def plot_losses(entries: Sequence[Mapping[str, float]]) -> Image.Image:
    """
    Curves of the losses over the steps, those of evaluations with markers.

    Args:
        entries (`Sequence[Mapping]`): The entries of `log.jsonl`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    drawn = [curve for curve in CURVES if any(curve[0] in entry for entry in entries)] or CURVES[:1]
    figure, axes = _figure(len(drawn), 4 * len(drawn), 3)
    for axis, (name, title) in zip(axes, drawn, strict=True):
        for key, style in ((name, {"linewidth": 1}), (f"eval_{name}", {"marker": "o", "markersize": 3})):
            points = [(entry["step"], entry[key]) for entry in entries if key in entry and "step" in entry]
            if points:
                label = "held out" if key.startswith("eval_") else "training"
                axis.plot(*zip(*points, strict=True), label=label, **style)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    return _picture(figure)


def plot_experts(tables: Mapping[str, torch.Tensor], names: Mapping[str, Sequence[str]] | None = None) -> Image.Image:
    """
    How often each expert is chosen, layer by layer: circles whose area is the share, as in the paper's routing plot,
    and crosses where nobody chose.

    Args:
        tables (`Mapping[str, torch.Tensor]`):
            Shares of the choices, (layers, experts), by `"t2i_load"`, `"mmu_load"`, `"t2i_sequence"` and
            `"mmu_sequence"`.
        names (`Mapping[str, Sequence[str]]`, *optional*): Names of a table's experts; numbers when not given.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    rows = max((len(table) for table in tables.values()), default=1)
    columns = sum(table.shape[1] for table in tables.values())
    figure, axes = _figure(max(len(tables), 1), 2 + 0.45 * columns + len(tables), 1.6 + 0.4 * rows)
    for axis, (key, table) in zip(axes, tables.items(), strict=False):
        task, _, level = key.partition("_")
        layers, experts = table.shape
        for layer in range(layers):
            for expert in range(experts):
                share = table[layer, expert].item()
                if share:
                    axis.scatter(expert, layer, s=400 * share, color="tab:blue")
                else:  # nobody chose it
                    axis.scatter(expert, layer, s=30, color="tab:red", marker="x")
        axis.set_title(f"{GROUP_NAMES.get(task, task)}, {LEVEL_NAMES.get(level, level)}", fontsize=9)
        labels = (names or {}).get(key) or [str(i + 1) for i in range(experts)]
        axis.set_xticks(range(experts), labels, fontsize=8)
        axis.set_yticks(range(layers), range(layers), fontsize=8)
        axis.set_xlim(-0.6, experts - 0.4)
        axis.set_ylim(-0.6, layers - 0.4)
        axis.set_ylabel("layer", fontsize=8)
    return _picture(figure)
