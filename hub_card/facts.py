"""What is known of a model, read for its card: what its training left behind, and what was measured on its weights."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..training.data.sources import SOURCES, Source
from ..training.disclosure import public
from ..training.evaluation.results import HUB_FOLDER, hub_yaml, load_results, table
from ..training.run_folder import CONFIG_FILE, LOG_FILE, PACKAGES, RUN_FILE, read_lines
from .layouts import Content


RESULTS = "results"  # where `unif2ace evaluate` puts them unless it is told otherwise
FINETUNE_FOLDER, SUMMARY_FILE = "run", "summary.json"  # what `unif2ace finetune` leaves beside its adapter

# Training arguments that a card may name; all others concern the machine, its accounts or how it reported.
PUBLIC_ARGUMENTS = frozenset(
    """
    alpha mask_weight weighting weighting_power mask_schedule region_weights mmu_weight t2i_balance_coef
    mmu_balance_coef t2i_sequence_balance_coef mmu_sequence_balance_coef balance_scope condition_dropout
    sequence_routing sequence_dense_steps sequence_router_noise sequence_router_noise_steps without t2i_fraction
    muon_learning_rate ema_decay max_minutes
    per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs max_steps
    learning_rate lr_scheduler_type warmup_steps warmup_ratio optim weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_grad_norm label_smoothing_factor neftune_noise_alpha bf16 fp16 tf32 gradient_checkpointing torch_compile
    seed data_seed full_determinism eval_strategy eval_steps logging_steps save_strategy save_steps
    """.split()
)
PUBLIC_FINETUNE = (
    "preset",
    "tasks",
    "trigger",
    "steps",
    "batch_size",
    "learning_rate",
    "rank",
    "prior",
    "seed",
    "bf16",
)
# of a configuration's `data`: numbers of rows and the kind of source; places only where the package knows the data set
PUBLIC_DATA = frozenset(
    "source passes count validation_count split max_rows seed questions_per_face captions_per_face augment".split()
)

LOSS_COLUMNS = {
    "loss": "total",
    "mask_loss": "masked codes",
    "score_loss": "score",
    "mmu_loss": "text",
    "eval_loss": "total, held out",
}
LOSS_ROWS = 6
_VERSION = re.compile(r"\d[\w.+-]{0,40}")
# what `unif2ace evaluate` notes beside each number
_NOTED_HASH = re.compile(r"model sha256 ([0-9a-f]{12})")


def training_minutes(log: list[Mapping]) -> float:
    """Minutes that a logged run took; the clock starts again at zero when a run is resumed."""
    seconds, before = 0.0, 0.0
    for entry in log:
        if entry["seconds"] < before:
            seconds += before
        before = entry["seconds"]
    return (seconds + before) / 60


def loss_table(log: list[Mapping]) -> str:
    """The course of the losses at about `LOSS_ROWS` steps, first and last included; empty without any."""
    by_step: dict[int, dict] = {}
    for entry in log:
        losses = {name: entry[name] for name in LOSS_COLUMNS if isinstance(entry.get(name), (int, float))}
        if losses and isinstance(entry.get("step"), int):
            by_step.setdefault(entry["step"], {}).update(losses)
    if not by_step:
        return ""
    steps = sorted(by_step)
    # held-out losses are rarer than the others: the value shown is the last one known at the step
    known: dict[str, float] = {}
    filled = {}
    for step in steps:
        known = known | by_step[step]
        filled[step] = known
    parts = min(LOSS_ROWS, len(steps)) - 1
    shown = sorted({steps[round(part * (len(steps) - 1) / max(parts, 1))] for part in range(parts + 1)})
    columns = [name for name in LOSS_COLUMNS if name in known]
    rows = [[str(step), *(f"{filled[step][n]:.3f}" if n in filled[step] else "–" for n in columns)] for step in shown]
    return table(["step", *(LOSS_COLUMNS[name] for name in columns)], rows)


@dataclass
class RunFacts:
    """
    A run, as [`~unif2ace.training.run_folder.write_run`], the log of training and `unif2ace finetune` describe it.

    Args:
        folder (`Path`, *optional*): Where it was found.
        config (`dict`): Its configuration; empty if it left none.
        starts (`list[dict]`): One entry for each time it was started.
        log (`list[dict]`): Logged entries, each with its `step`.
        summary (`dict`): What a fine-tuning says of itself; empty for other runs.
    """

    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, model: Path, run: str | os.PathLike | None = None) -> "RunFacts":
        """
        The run of a model: the folder that is named, or the model's own, its fine-tuning's, or the one around it.

        Raises:
            FileNotFoundError: if a folder is named that holds no run.
        """
        places = (Path(run),) if run is not None else (model, model / FINETUNE_FOLDER, model.resolve().parent)
        for folder in places:
            facts = cls(
                folder,
                _read_yaml(folder / CONFIG_FILE, {}),
                _read_yaml(folder / RUN_FILE, []),  # JSON is YAML
                read_lines(folder / LOG_FILE) if (folder / LOG_FILE).is_file() else [],
                _read_yaml(folder / SUMMARY_FILE, {}),
            )
            if facts.starts or facts.log or facts.summary:
                return facts
        if run is not None:
            raise FileNotFoundError(f"{run} is no run's folder: it has neither {RUN_FILE} nor {LOG_FILE}")
        return cls()

    @property
    def arguments(self) -> dict[str, Any]:
        """Training arguments that were given, of those that a card may name."""
        if self.summary:
            given, names = self.summary.get("settings", {}), PUBLIC_FINETUNE
        else:
            given, names = self.config.get("training", {}), PUBLIC_ARGUMENTS
        shown = public({name: value for name, value in given.items() if name in names and value is not None})
        return {name: value for name, value in shown.items() if value != {}}

    @property
    def trigger(self) -> str | None:
        """The name of who a fine-tuning has learnt."""
        return public(self.summary.get("settings", {}).get("trigger"))

    @property
    def prompts(self) -> list[str]:
        """What a fine-tuning's sample pictures were drawn from."""
        return public(self.summary.get("prompts") or [])

    @property
    def versions(self) -> str:
        """Versions of the packages at the last start."""
        last = self.starts[-1] if self.starts else {}
        found = {"python": last.get("python")} | (last.get("packages") or {}) | (self.summary.get("versions") or {})
        named = {name: str(found[name]) for name in ("python", *PACKAGES) if found.get(name)}
        return ", ".join(f"{name} {version}" for name, version in named.items() if _VERSION.fullmatch(version))

    @property
    def datasets(self) -> list[str]:
        """
        Data sets on the Hub that it was trained on, of those that the package knows: of other names it cannot be said
        whether they are repositories or folders.
        """
        return [place for source, place in self._known_sources() if place in source.hub]

    def data_sentence(self) -> str:
        """What it was trained on, as far as the run says it, and the terms of data sets that are known."""
        sentences = []
        if self.summary:
            sentences.append(f"{public(self.summary.get('pictures'))} pictures.")
            if self.summary.get("prior"):
                count = public(self.summary["prior"])
                sentences.append(f"{count} pictures of the base model's own were learnt again to keep what it knows.")
        rows = next((start["rows"] for start in self.starts if isinstance(start.get("rows"), int)), None)
        if rows is not None:
            sentences.append(f"{rows:,} rows.")
        data = self.config.get("data")
        if isinstance(data, dict):
            shown = [f"`{name}`: {value}" for name, value in self._data_facts(data)]
            sentences += ["; ".join(shown) + "."] if shown else []
        elif isinstance(data, str) and data.isidentifier():  # the class of a data set made in Python
            sentences.append(data)
        known = dict.fromkeys((source.summary, source.licence) for source, _ in self._known_sources())
        sentences += [f"{summary}. Terms: {licence}." for summary, licence in known]
        return " ".join(sentences) or "The run does not say what it was trained on."

    def _data_facts(self, data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        known = {source.name for source, _ in self._known_sources()}
        for name, value in _scalars(data):
            last = name.rpartition(".")[2]
            if last in PUBLIC_DATA:
                if (shown := public(value)) is not None:
                    yield name, shown
            elif last == "path" and isinstance(value, str):
                kind, _, place = value.rpartition(":")
                on_hub = any(place in source.hub for source in SOURCES.values())
                if value in SOURCES or on_hub or kind in known:
                    yield name, value if value in SOURCES or on_hub else f"{kind}:…"

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
        if self.log or self.summary:
            steps = self.summary.get("steps") or max((entry.get("step", 0) for entry in self.log), default=0)
            timed = [entry for entry in self.log if "seconds" in entry]
            minutes = self.summary["seconds"] / 60 if self.summary.get("seconds") else training_minutes(timed)
            sentences.append(f"{steps:,} steps" + (f" in {minutes:.1f} minutes" if minutes else ""))
        if self.starts:
            last = self.starts[-1]
            count = last.get("processes", 1)
            device = public(last.get("device")) or "an unknown device"
            sentences.append(f"{count} process{'es' if count > 1 else ''} on {device}")
            if "parameters" in last:
                sentences.append(_trained(last.get("trained_parameters", 0), last["parameters"]))
            if len(self.starts) > 1:
                sentences.append(f"started {len(self.starts)} times")
        elif self.summary:
            sentences.append(f"on `{public(self.summary.get('device')) or 'an unknown device'}`")
            if self.summary.get("parameters"):
                sentences.append(_trained(*self.summary["parameters"]))
        return "; ".join(sentences) + "." if sentences else ""


def _trained(trained: int, parameters: int) -> str:
    return f"{trained / 1e6:,.2f}M of {parameters / 1e6:,.1f}M parameters trained"


def _scalars(content: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """`name.of.place`, value of everything in nested dictionaries but lists."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{start}{name}.")
        elif isinstance(value, (str, int, float, bool)):
            yield f"{start}{name}", value


def _read_yaml(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is broken ({type(error).__name__}): take it away, or name another run") from error
    return content if isinstance(content, type(otherwise)) else otherwise


# What was measured


def find_results(
    hashes: Sequence[str],
    folders: Sequence[Path],
    named: Sequence[str | os.PathLike] | None = None,
    if_fitting: Sequence[str | os.PathLike] = (),
) -> list[dict]:
    """
    Results that were measured on some weights: of each suite the run with the most parts, then items, then the latest.

    Args:
        hashes (`list[str]`): Of the weights, as `checkpoint_sha256` gives them: the whole folder's, and the model's.
        folders (`list[Path]`): Where to look for files; those of other weights are passed over.
        named (`list[str or os.PathLike]`, *optional*): Files to take instead of looking for them.
        if_fitting (`list[str or os.PathLike]`, *optional*): Files to take too if they are of these weights.

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
    places = [Path(path) for path in if_fitting]
    if named is None:
        places += sorted({path.resolve() for folder in folders for path in folder.glob("*.json")})
    for path in places:
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
