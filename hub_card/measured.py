"""What `unif2ace evaluate` measured on a model, found for its card."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..training.evaluation.results import HUB_FOLDER, hub_yaml, load_results
from .layouts import Content


RESULTS = "results"  # where `unif2ace evaluate` puts them unless it is told otherwise
# what `unif2ace evaluate` notes beside each number
_NOTED_HASH = re.compile(r"model sha256 ([0-9a-f]{12})")


def find_results(
    hashes: Sequence[str], folders: Sequence[Path], named: Sequence[str | os.PathLike] | None = None
) -> list[dict]:
    """
    Results that were measured on some weights: of each suite the run with the most parts, then items, then the latest.

    Args:
        hashes (`list[str]`): Of the weights, as `checkpoint_sha256` gives them: the whole folder's, and the model's.
        folders (`list[Path]`): Where to look for files; those of other weights are passed over.
        named (`list[str or os.PathLike]`, *optional*): Files to take instead.

    Raises:
        OSError: if a named file does not exist.
        ValueError: if a named file holds no results, or those of other weights.
    """
    found = [load_results(path) for path in named or ()]
    for path, results in zip(named or (), found, strict=True):
        if results["settings"].get("model_sha256") not in hashes:
            raise ValueError(
                f"{path} was measured on other weights than those to publish: run `unif2ace evaluate` on this model"
            )
    if named is None:
        for path in sorted({path.resolve() for folder in folders for path in folder.glob("*.json")}):
            try:
                results = load_results(path)
            except (OSError, ValueError):  # some other file
                continue
            if results["settings"].get("model_sha256") in hashes:
                found.append(results)
    best = {results["suite"]: results for results in sorted(found, key=_extent)}
    return [best[suite] for suite in sorted(best)]


def _extent(results: dict) -> tuple[int, int, str]:
    parts = results["parts"].values()
    return len(parts), results["settings"].get("count", 0), max((part["date"] for part in parts), default="")


def hub_results(hashes: Sequence[str], folder: Path, results: Sequence[dict]) -> dict[str, Content]:
    """
    Files for `.eval_results/`, which the Hub shows on a model's page: those in the model's folder, and one of each
    suite that has a data set on the Hub.

    Args:
        hashes (`list[str]`): Of the weights; files that note another one are left out.
        folder (`Path`): The model's folder.
        results (`list[dict]`): What was measured.
    """
    files: dict[str, Content] = {}
    for path in sorted((folder / HUB_FOLDER).glob("*.yaml")):
        noted = set(_NOTED_HASH.findall(path.read_text(encoding="utf-8")))
        if noted <= {full[:12] for full in hashes}:
            files[f"{HUB_FOLDER}/{path.name}"] = path
    for of_suite in results:
        if of_suite.get("dataset_id"):
            files[f"{HUB_FOLDER}/{of_suite['suite']}.yaml"] = hub_yaml(of_suite).encode()
    return files
