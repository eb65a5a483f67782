"""Results of a suite as JSON, as Markdown, as entries for the Hub and for the model card."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from ...modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ...pipelines.files import read_json, write_text
from ..disclosure import public
from .statistics import rounded


HUB_FOLDER = ".eval_results"
_SPLIT = re.compile(r" \((\w+)\)$")  # of a source


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table cell; a dash for `None`."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(measured: Mapping[str, float] | None, digits: int = 3) -> str:
    """A measured value, with its 95 % interval where there is one: `0.812 [0.800, 0.824]`; a dash for `None`."""
    if measured is None:
        return "–"
    if measured["low"] is None:
        return number(measured["value"], digits)
    low, high = number(measured["low"], digits), number(measured["high"], digits)
    return f"{number(measured['value'], digits)} [{low}, {high}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def to_json(results):
    """The same with plain numbers: JSON knows no NaN, and resampled values need few digits."""
    if isinstance(results, Mapping):
        return {
            str(name): rounded(value) if name == "replicates" and value is not None else to_json(value)
            for name, value in results.items()
        }
    if isinstance(results, (list, tuple)):
        return [to_json(value) for value in results]
    if hasattr(results, "item"):  # numbers of numpy and torch
        results = results.item()
    return None if isinstance(results, float) and not math.isfinite(results) else results


def load_results(path: str | Path) -> dict:
    """
    Read a file that `unif2ace evaluate` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is something else.
    """
    try:
        results = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}), expected one that `unif2ace evaluate` wrote") from error
    if not isinstance(results, dict) or not {"suite", "settings", "parts"} <= results.keys():
        raise ValueError(f"{path} holds no results of `unif2ace evaluate`, expected suite, settings and parts in it")
    return results


def measures_of(results: Mapping) -> dict[str, dict]:
    """`part: measure` -> what was measured, of all parts."""
    return {
        f"{part}: {name}": measured
        for part, found in results["parts"].items()
        for name, measured in found["measures"].items()
    }


def main_table(results: Mapping) -> str:
    """All measures, one a line."""
    arrows = {"higher": "↑", "lower": "↓", None: ""}
    rows = [
        [f"{name} {arrows[entry['better']]}".strip(), interval(entry), str(entry["count"])]
        for name, entry in measures_of(results).items()
    ]
    return table(["measure", "value [95 % interval]", "cases"], rows)


_SLICED_BY = {"skin": "apparent skin tone", "age": "apparent age", "gender": "gender presentation"}


def slices_by_group(results: Mapping) -> str:
    """
    The slices as a table for each attribute: a measure a line, a group a column, the worst group in bold.

    Where parts of the suite have different numbers of cases, the heading has the lowest and the highest.
    """
    found: dict[str, dict[str, dict[str, dict]]] = {}
    worst = {}
    for name, entry in measures_of(results).items():
        of_attributes: dict[str, dict[str, dict]] = {}
        for group, of_slice in entry.get("slices", {}).items():
            attribute, _, value = group.partition("=")
            of_attributes.setdefault(attribute, {})[value] = of_slice
        for attribute, groups in of_attributes.items():
            found.setdefault(attribute, {})[name] = groups
            if entry["better"] is not None and len(groups) > 1:
                choose = min if entry["better"] == "higher" else max
                worst[attribute, name] = choose(groups, key=lambda value: groups[value]["value"])
    tables = []
    for attribute, rows in found.items():
        values = sorted({value for groups in rows.values() for value in groups})
        header = [f"by {_SLICED_BY.get(attribute, attribute)}"]
        for value in values:
            counts = sorted({groups[value]["count"] for groups in rows.values() if value in groups})
            header.append(f"{value} ({'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})")
        lines = []
        for name, groups in rows.items():
            cells = {value: interval(of_slice) for value, of_slice in groups.items()}
            if (attribute, name) in worst:
                cells[worst[attribute, name]] = f"**{cells[worst[attribute, name]]}**"
            lines.append([name, *(cells.get(value, "–") for value in values)])
        tables.append(table(header, lines))
    return "\n\n".join(tables)


# settings that a public report may name; their values go through `public`
_PUBLIC_SETTINGS = (
    ("model", "revision", "model_sha256", "judge_sha256", "source", "split", "count", "seeds", "steps", "guidance")
    + ("features", "identity", "clip_model", "long_text", "vqa_models", "classifier", "judge_model", "judge_repeats")
    + ("training", "questions", "rows", "batch_size")
)


def settings_line(results: Mapping, for_all: bool = False) -> str:
    """How it was measured, in one paragraph; one `for_all` names nothing of the machine that measured."""
    shown = results["settings"]
    if for_all:
        shown = public({name: shown[name] for name in _PUBLIC_SETTINGS if name in shown})
    shown = {name: value for name, value in shown.items() if value is not None and value != {}}
    settings = "; ".join(f"{name} `{value}`" for name, value in shown.items())
    libraries = ", ".join(f"{name} {number}" for name, number in public(results["versions"]).items())
    return f"Settings: {settings}. Versions: {libraries}."


def part_sections(results: Mapping) -> dict[str, str]:
    """What parts say at length, as Markdown, by the name of the part."""
    texts = {part: found.get("details", {}).get("markdown") for part, found in results["parts"].items()}
    return {part: text for part, text in texts.items() if text}


def markdown(results: Mapping) -> str:
    """The whole report of a run."""
    parts = [f"# Evaluation: {results['suite']}", main_table(results)]
    sliced = slices_by_group(results)
    if sliced:
        parts += ["## Slices", sliced]
    parts += [f"## Part {part}\n\n{text}" for part, text in part_sections(results).items()]
    if results.get("skipped"):
        parts += ["## Not measured", "\n".join(f"- {part}: {why}" for part, why in results["skipped"].items())]
    return "\n\n".join([*parts, settings_line(results)]) + "\n"


def hub_entries(results: Mapping, dataset_id: str | None = None) -> list[EvalResultEntry]:
    """
    The measures as entries of `.eval_results/*.yaml`, which the Hub shows on the model's page.

    Args:
        results (`dict`): What `unif2ace evaluate` wrote.
        dataset_id (`str`, *optional*): The data set on the Hub, if the suite does not know it.

    Raises:
        ValueError: if no data set on the Hub is known: the Hub has no place for such a result.
    """
    dataset_id = dataset_id or results.get("dataset_id")
    if dataset_id is None:
        raise ValueError(
            f"results of suite {results['suite']} belong to no data set on the Hub; name one with --dataset-id"
        )
    settings = results["settings"]
    notes = f"{settings['count']} items; model sha256 {settings['model_sha256'][:12]}; unif2ace evaluate"
    return [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=f"{part}/{name}",
            value=round(entry["value"], 4),
            date=found["date"],
            notes=notes if entry["low"] is None else f"{notes}; 95 % [{entry['low']:.4f}, {entry['high']:.4f}]",
        )
        for part, found in results["parts"].items()
        for name, entry in found["measures"].items()
    ]


def hub_yaml(results: Mapping, dataset_id: str | None = None) -> str:
    """[`hub_entries`] as the content of a file."""
    entries = eval_result_entries_to_yaml(hub_entries(results, dataset_id))
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def write_hub_entries(results: Mapping, folder: str | Path, dataset_id: str | None = None) -> Path:
    """Write `folder/.eval_results/<suite>.yaml` and return its path; see [`hub_entries`]."""
    content = hub_yaml(results, dataset_id)
    path = Path(folder) / HUB_FOLDER / f"{results['suite']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


_TASKS = {
    "tokenizer": "image-to-image",
    "generation": "text-to-image",
    "captions": "image-to-text",
    "vqa": "visual-question-answering",
    "choice": "visual-question-answering",
}


def card_results(results: Mapping) -> list[EvalResult]:
    """
    The measures for a model card's metadata (`ModelCardData(eval_results=...)`), the older form of the same.

    A card must show a number only if it was measured on its own weights: compare `settings["model_sha256"]`.
    """
    split = _SPLIT.search(str(results["settings"].get("source")))
    return [
        EvalResult(
            task_type=_TASKS.get(part, "image-text-to-text"),
            dataset_type=_dataset(results),
            dataset_name=results["suite"],
            dataset_split=split and split[1],
            metric_type=name.replace(" ", "_"),
            metric_name=f"{part}: {name}",
            metric_value=round(entry["value"], 4),
        )
        for part, found in results["parts"].items()
        if part != "experts"  # says what is inside, not how good it is
        for name, entry in found["measures"].items()
    ]


def _dataset(results: Mapping) -> str:
    return results.get("dataset_id") or f"{results['suite']}-faces"


def card_section(results: Mapping, introduction: str | None = None) -> str:
    """
    The measures as a section of a model card: all of them, by group of people, and how they were measured.

    Args:
        results (`dict`): What `unif2ace evaluate` wrote.
        introduction (`str`, *optional*): What a suite has to say of its own, in place of the table of all measures.
    """
    sliced = slices_by_group(results)
    parts = [f"### Suite `{results['suite']}`", introduction or main_table(results)]
    if sliced:
        parts += ["The same for groups of what the pictures show; the worst group in bold, cases in brackets:", sliced]
    parts += [f"#### Part {part}\n\n{text}" for part, text in part_sections(results).items()]
    return "\n\n".join([*parts, settings_line(results, for_all=True)])


def update_card(results: Mapping, folder: str | Path) -> Path:
    """
    Put the results into the model card of a checkpoint's folder: numbers into its metadata, tables into its text,
    in place of what an earlier run of the suite put there.

    Args:
        results (`dict`): What `unif2ace evaluate` wrote.
        folder (`str` or `Path`): The folder, with `README.md` in it.

    Returns:
        `Path`: The card.

    Raises:
        OSError: if there is no card.
        ValueError: if the folder holds other weights than those that were measured.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected the model card of the checkpoint")
    found = checkpoint_sha256(folder)
    if found != results["settings"]["model_sha256"]:
        raise ValueError(f"{folder} holds other weights than those measured, so its card cannot have these results")
    card = ModelCard.load(path)
    kept = [result for result in card.data.eval_results or [] if result.dataset_type != _dataset(results)]
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = kept + card_results(results)
    start, end = (f"<!-- {mark}evaluation: {results['suite']} -->" for mark in ("", "/"))
    section = f"{start}\n{card_section(results)}\n{end}"
    before, mark, rest = card.text.partition(start)
    if mark:
        card.text = before + section + rest.partition(end)[2]
    else:
        title = "" if "<!-- evaluation: " in card.text else "## Evaluation\n\n"
        card.text = f"{card.text.rstrip()}\n\n{title}{section}\n"
    write_text(path, str(card))
    return path


__all__ = [
    "card_results",
    "card_section",
    "hub_entries",
    "hub_yaml",
    "interval",
    "load_results",
    "main_table",
    "markdown",
    "measures_of",
    "number",
    "slices_by_group",
    "table",
    "to_json",
    "update_card",
    "write_hub_entries",
]
