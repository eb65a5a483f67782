"""Two evaluation runs side by side, with significance."""

from collections.abc import Mapping

from .results import interval, measures_of, table
from .statistics import paired_difference


_LEVEL = 0.05


def comparison(before: Mapping, after: Mapping) -> str:
    """
    Two runs side by side, as Markdown.

    Args:
        before, after (`dict`): Results of two runs of one suite.

    Returns:
        `str`: a table with a line for each measure that both have, and what differs between the settings.

    Raises:
        ValueError: if the suites differ, or no measure is in both.
    """
    if before["suite"] != after["suite"]:
        raise ValueError(f"A is of suite {before['suite']}, B of suite {after['suite']}; compare runs of one suite")
    rows = compare(before, after)
    if not rows:
        raise ValueError("the two runs have no measure in common")
    cells = [
        [
            row["name"],
            interval(row["before"]),
            interval(row["after"]),
            f"{row['difference']:+.3f}"
            + (f" [{row['low']:+.3f}, {row['high']:+.3f}]" if row["low"] is not None else ""),
            "–" if row["p_value"] is None else f"{row['p_value']:.3f}{' *' if row['significant'] else ''}",
            {True: "better", False: "worse", None: ""}[row["improved"] if row["significant"] else None],
        ]
        for row in rows
    ]
    parts = [table(["measure", "A", "B", "B − A", "p", ""], cells)]
    unpaired = [row["name"] for row in rows if row["p_value"] is not None and not row["paired"]]
    if unpaired:
        parts.append(f"Not paired, since the pictures differ: {', '.join(unpaired)}.")
    parts.append(_differences(before, after))
    return "\n\n".join(parts)


def compare(before: Mapping, after: Mapping) -> list[dict]:
    """
    What [`comparison`] shows, as data.

    Returns:
        `list[dict]`: for each common measure `name`, `before`, `after`, `difference`, `low`, `high`, `p_value` (the
        last three `None` for measures without resampling), `paired`, `improved` (whether B is on the better side) and
        `significant` (after Holm's correction).
    """
    rows = []
    first, second = measures_of(before), measures_of(after)
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        part = name.split(": ")[0]
        difference = b["value"] - a["value"]
        row = {"name": name, "before": a, "after": b, "difference": difference, "improved": None}
        row |= {"low": None, "high": None, "p_value": None, "paired": False, "significant": False}
        if a["better"] is not None and difference:
            row["improved"] = (difference > 0) == (a["better"] == "higher")
        if a["replicates"] and b["replicates"] and len(a["replicates"]) == len(b["replicates"]):
            row["paired"] = before["parts"][part]["items"] == after["parts"][part]["items"]
            row |= paired_difference(_numbers(a["replicates"]), _numbers(b["replicates"]), row["paired"])
        rows.append(row)
    # Holm (1979): the smallest of n p-values is compared with level / n, the next one with level / (n - 1), ...
    tested = sorted((row for row in rows if row["p_value"] is not None), key=lambda row: row["p_value"])
    for place, row in enumerate(tested):
        if row["p_value"] > _LEVEL / (len(tested) - place):
            break
        row["significant"] = True
    return rows


def _numbers(replicates: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in replicates]


def _differences(before: Mapping, after: Mapping) -> str:
    lines = []
    for kind in ("settings", "versions"):
        for name in sorted(before[kind].keys() | after[kind].keys()):
            a, b = before[kind].get(name), after[kind].get(name)
            if a != b:
                lines.append(f"- {name}: `{a}` → `{b}`")
    return "Settings that differ:\n\n" + "\n".join(lines) if lines else "Settings and versions are the same."


__all__ = ["compare", "comparison"]
