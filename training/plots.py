"""Pictures of a run: curves of the losses, and which experts are used."""

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from ..modeling_unif2ace.pictures_unif2ace import load_image


CURVES = (
    ("mask_loss", "masked cross-entropy, nats a code"),
    ("mmu_loss", "answers' cross-entropy, nats a token"),
    ("score_loss", "score term"),
    ("learning_rate", "learning rate"),
)
GROUP_NAMES = {"t2i": "text to image", "mmu": "understanding"}
LEVEL_NAMES = {"load": "token level", "sequence": "sequence level"}


def _figure(columns: int, width: float, height: float):
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no window system
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'unif2ace[train]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
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
