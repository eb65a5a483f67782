"""What a run leaves behind, so that it can be repeated: configuration, revision, versions."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from ..pipelines.files import write_json, write_text


CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"
PACKAGES = ("unif2ace", "torch", "transformers", "diffusers", "accelerate", "peft", "datasets", "safetensors", "numpy")


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
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            **facts,
        }
    )
    write_json(path, starts)


def package_versions() -> dict[str, str]:
    """Versions of the packages that training depends on, of those that are installed."""
    versions = {}
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
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).parents[1]:
            return None  # installed somewhere inside of another repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
