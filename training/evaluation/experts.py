"""
What each expert does in a checkpoint: how often it is used, what it is worth, whether it can learn.

Use is the share of tokens (token level) or of image spans (sequence level) that choose an expert, as in the paper's
activation analysis. Worth is counterfactual: the loss on held-out rows with the expert's output replaced (a routed or
shared expert adds nothing, a sequence-level expert becomes copy), minus the loss as it is. A feature's worth is the
loss with every row's feature replaced by another row's. The size of the gradient tells an expert of no use from one
that cannot learn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ...modeling_unif2ace.layout_unif2ace import MMU, T2I, TASKS
from ...modeling_unif2ace.modeling_unif2ace import UniF2aceDecoderLayer, UniF2aceForConditionalGeneration
from ...modeling_unif2ace.moe_unif2ace import UniF2aceSequenceMoE
from ...modeling_unif2ace.objective_unif2ace import answer_positions, hide_codes, row_generator, sample_masks
from ..callbacks import expert_gradients
from ..data.collator import UniF2aceCollator
from ..run_folder import GROUP_NAMES, LEVEL_NAMES, plot_experts
from .results import table
from .statistics import Statistic, ratio, with_interval
from .suite import Part


MAX_ROWS = 32  # of each task: every expert costs a pass over the rows of its task
MAX_QUESTIONS = 3  # about each face
USED_SHARE = 0.05  # of tokens or spans: an expert that fewer choose counts as unused
SHARED = "shared"
_UNITS = {"t2i": "nats a hidden code", "mmu": "nats a token of the answer"}
_LEVELS = {"token": "load", "sequence": "sequence"}  # as the plot calls them


def face_rows(
    images: Sequence[Image.Image],
    captions: Sequence[str | None],
    turns: Sequence[Sequence[tuple[str, str]]],
) -> list[dict[str, Any]]:
    """
    Rows of both tasks for [`measure_experts`], in the form of the collator.

    Args:
        images (`list[PIL.Image.Image]`): The faces.
        captions (`list[str or None]`): What each would be generated from.
        turns (`list[list[tuple[str, str]]]`): Questions about each and their answers; a face without is described.
    """
    rows = []
    for image, caption, asked in list(zip(images, captions, turns, strict=True))[:MAX_ROWS]:
        asked = list(asked)[:MAX_QUESTIONS] or ([("Describe this face.", caption)] if caption else [])
        rows += [{"task": "t2i", "image": image, "text": caption}] if caption else []
        rows += [{"task": "mmu", "image": image, "turns": asked}] if asked else []
    return rows


class ExpertProbe:
    """
    The losses of a model on fixed rows, as it is and with something in it replaced.

    Args:
        model ([`UniF2aceForConditionalGeneration`]): The model; it is left as it was.
        collator ([`UniF2aceCollator`]): Makes batches, with an image processor.
        rows (`list[dict]`): As [`face_rows`] makes them.
        batch_size (`int`, *optional*, defaults to 16): Rows at once; changes no result but that of features.
        seed (`int`, *optional*, defaults to 0): Of the masks.

    Raises:
        ValueError: if a task has fewer than two rows: a feature could not be another row's.
    """

    def __init__(
        self,
        model: UniF2aceForConditionalGeneration,
        collator: UniF2aceCollator,
        rows: Sequence[dict[str, Any]],
        batch_size: int = 16,
        seed: int = 0,
    ):
        self.model = model.eval()
        layers = [module for module in model.modules() if isinstance(module, UniF2aceDecoderLayer)]
        self.layers = dict(enumerate(layers))
        self.batches: dict[str, list[dict[str, torch.Tensor]]] = {}
        self.counts: dict[str, int] = {}
        for task in TASKS:
            of_task = [row for row in rows if row["task"] == task]
            if len(of_task) < 2:
                raise ValueError(
                    f"{len(of_task)} rows of task {task}, expected two or more: give more captioned faces"
                )
            self.counts[task] = len(of_task)
            parts = np.array_split(np.arange(len(of_task)), max(1, len(of_task) // batch_size))
            self.batches[task] = [
                self._batch(collator, [of_task[place] for place in part], part, seed) for part in parts
            ]

    @torch.no_grad()
    def _batch(self, collator: UniF2aceCollator, rows: list[dict], places: np.ndarray, seed: int) -> dict:
        model, config = self.model, self.model.config
        pixels = collator.image_processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
        codes = model.encode_images(pixels["pixel_values"].to(model.device, model.dtype)).cpu()
        batch = collator([row | {"codes": of_row} for row, of_row in zip(rows, codes, strict=True)])
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "needs_codes"}
        if rows[0]["task"] == "t2i":
            batch.pop("pixel_values", None)
            drawn = [sample_masks(1, config.num_image_tokens, row_generator(seed, 0, int(place))) for place in places]
            return hide_codes(batch, config, torch.cat([masked for masked, _ in drawn]).to(model.device))
        # encoders are the slow part, and no expert changes what they say
        for kind, encode in (("clip", model.model.encode_clip), ("face", model.model.encode_face)):
            if kind in model.model.resamplers and f"{kind}_features" not in batch and "pixel_values" in batch:
                more = {"face_pixel_values": batch.get("face_pixel_values")} if kind == "face" else {}
                found = encode(batch["pixel_values"], **more)
                if found is not None:
                    batch[f"{kind}_features"] = found
        return batch

    @torch.no_grad()
    def losses(self, task: str, *changes) -> tuple[np.ndarray, np.ndarray]:
        """
        The summed losses and the number of targets of each row, two arrays (rows,), under `changes`, context managers.
        """
        sums, counts = [], []
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change)
            for batch in self.batches[task]:
                of_rows, targets = self._row_losses(task, batch)
                sums.append(of_rows.double().cpu().numpy())
                counts.append(targets.cpu().numpy())
        return np.concatenate(sums), np.concatenate(counts)

    def _row_losses(self, task: str, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "image_labels")}
        if task == "t2i":
            asked = batch["image_labels"] != -100
            logits = self.model(**inputs, image_logits_mask=asked, use_cache=False).image_logits
            targets = batch["image_labels"][asked] - self.model.config.image_code_offset
        else:
            asked = answer_positions(batch["labels"])
            logits = self.model(**inputs, text_logits_mask=asked, use_cache=False).text_logits
            targets = batch["labels"].roll(-1, dims=1)[asked]
        found = F.cross_entropy(logits.float(), targets, reduction="none")
        rows = asked.nonzero()[:, 0]
        sums = torch.zeros(len(asked), device=found.device).index_add(0, rows, found)
        return sums, asked.sum(-1)

    def use(self, task: str) -> dict[tuple[int, str], np.ndarray]:
        """`(layer, "token" or "sequence")` -> share of tokens or spans that use each expert of the task's group."""
        totals: dict[tuple[int, str], list[np.ndarray]] = {}
        mask: torch.Tensor | None = None

        def count(place: tuple[int, str], chosen: torch.Tensor):  # (cases, experts) of bool
            totals.setdefault(place, []).append(chosen.float().cpu().numpy())

        def routed(layer: int) -> Callable:
            def hook(module, arguments, output):
                index = output[2]  # (B, S, K)
                chosen = F.one_hot(index, module.weight.shape[0]).amax(2).bool()  # (B, S, E)
                count((layer, "token"), chosen[mask])

            return hook

        def spans(layer: int) -> Callable:
            return lambda gates: count((layer, "sequence"), gates > 0)

        with ExitStack() as stack:
            for layer, module in self.layers.items():
                if module.has_experts:
                    router = getattr(module.mlp, f"{task}_router")
                    stack.callback(router.register_forward_hook(routed(layer)).remove)
                if module.sequence_moe is not None:
                    stack.enter_context(watched(module.sequence_moe, spans(layer)))
            for batch in self.batches[task]:
                mask = batch["attention_mask"].bool()
                with torch.no_grad():
                    self._row_losses(task, batch)
        return {place: np.concatenate(found).mean(0) for place, found in totals.items()}

    def gradients(self) -> dict[str, float]:
        """Sizes of the experts' gradients, of the whole objective over the first rows of both tasks."""
        model = self.model
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        model.zero_grad(set_to_none=True)
        model.train()
        try:
            with torch.enable_grad():
                for task in TASKS:
                    batch = dict(self.batches[task][0])
                    batch.setdefault("image_labels", torch.full_like(batch["input_ids"], -100))
                    model(**batch, use_cache=False).loss.backward()
            return expert_gradients(model)
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()
            for parameter, asked in zip(model.parameters(), wanted, strict=True):
                parameter.requires_grad_(asked)


# What is replaced


@contextmanager
def _hooked(register: Callable, hook: Callable) -> Iterator[None]:
    handle = register(hook)  # only now: a change that is made and not entered must do nothing
    try:
        yield
    finally:
        handle.remove()


def without_routed(layer: UniF2aceDecoderLayer, task: str, expert: int | None = None):
    """A routed expert of a layer (or all of the task's) adds nothing."""
    group = layer.mlp.num_routed_experts
    first = TASKS.index(task) * group
    gone = range(first, first + group) if expert is None else range(first + expert, first + expert + 1)

    def hook(module, arguments):
        states, index, weights = arguments
        return states, index, weights.masked_fill((index >= gone.start) & (index < gone.stop), 0.0)

    return _hooked(layer.mlp.experts.register_forward_pre_hook, hook)


def without_shared(layer: UniF2aceDecoderLayer, task: str):
    """The shared expert of a group adds nothing."""
    module = layer.mlp.shared_experts[task]
    return _hooked(module.register_forward_hook, lambda module, arguments, output: torch.zeros_like(output))


def other_feature(model: UniF2aceForConditionalGeneration, kind: str):
    """Every row's feature is that of the row before it in its batch."""

    def hook(module, arguments):
        return arguments[0].roll(1, 0), *arguments[1:]

    return _hooked(model.model.resamplers[kind].register_forward_pre_hook, hook)


@contextmanager
def _amounts(moe: UniF2aceSequenceMoE, change: Callable) -> Iterator[None]:
    """What a layer mixes is what `change` makes of it; several changes of one layer work one on the other."""
    before, original = vars(moe).get("amounts"), moe.amounts

    def changed(gates, pooled, kind_of_expert, features):
        return change(gates, kind_of_expert, *original(gates, pooled, kind_of_expert, features))

    moe.amounts = changed  # hides the method of the class
    try:
        yield
    finally:
        del moe.amounts
        if before is not None:
            moe.amounts = before


def watched(moe: UniF2aceSequenceMoE, see: Callable[[torch.Tensor], None]):
    """`see` is called with the gates (spans, experts) of every pass."""

    def change(gates, kind_of_expert, keep, amounts):
        see(gates)
        return keep, amounts

    return _amounts(moe, change)


def as_copy(moe: UniF2aceSequenceMoE, kind: str):
    """Sequence-level experts of a kind give back what they were given."""

    def change(gates, kind_of_expert, keep, amounts):
        if kind in amounts:  # what was the feature's is x's
            return keep + amounts[kind], {name: amount for name, amount in amounts.items() if name != kind}
        if kind == "zero":
            place = moe.kinds.index(kind)
            keep = keep + torch.einsum("re,re->r", gates, kind_of_expert[:, :, place])
        return keep, amounts

    return _amounts(moe, change)


# The part of a suite


def measure_experts(
    model: UniF2aceForConditionalGeneration, processor, rows: Sequence[dict[str, Any]], batch_size: int = 16
) -> Part:
    """
    The routing report of a checkpoint.

    Args:
        model ([`UniF2aceForConditionalGeneration`]): The model; it is left as it was.
        processor ([`UniF2aceProcessor`]): Its processor.
        rows (`list[dict]`): Held-out rows of both tasks, as [`face_rows`] makes them.
        batch_size (`int`, *optional*, defaults to 16): Rows at once.

    Returns:
        [`Part`]: losses and costs over all layers as measures with intervals; in its details `experts`, a list with
        `layer`, `task`, `level`, `expert`, `use`, `cost`, `low`, `high` and `gradient` of each, and `markdown`; and
        the paper's plot of their use.

    Raises:
        ValueError: if a task has fewer than two rows.
    """
    probe = ExpertProbe(model, UniF2aceCollator.from_processor(processor, model.config), rows)
    items = [f"{task}-{place}" for task in TASKS for place in range(probe.counts[task])]
    part, base = Part(items), {task: probe.losses(task) for task in TASKS}
    entries = [entry for task in TASKS for entry in _of_task(probe, task, base[task], probe.use(task))]
    gradients = probe.gradients()
    for entry in entries:
        entry["gradient"] = gradients.get(entry.pop("name"))

    for task in TASKS:
        part.add(f"loss, {GROUP_NAMES[task]}", _everywhere(probe, task, *base[task]), "lower")

    def cost(task: str, *changes) -> Statistic:
        sums, counts = probe.losses(task, *changes)
        return _everywhere(probe, task, sums - base[task][0], counts)

    for task in TASKS:
        used = {(entry["level"], entry["expert"]) for entry in entries if entry["task"] == task and entry["use"]}
        with_moe = [layer for layer in probe.layers.values() if layer.has_experts]
        if with_moe:
            removed = [without_routed(layer, task) for layer in with_moe]
            part.add(f"cost without routed experts, {GROUP_NAMES[task]}", cost(task, *removed), None)
        moes = [layer.sequence_moe for layer in probe.layers.values() if layer.sequence_moe is not None]
        for kind in dict.fromkeys(name for level, name in sorted(used) if level == "sequence" and name != "copy"):
            replaced = [as_copy(moe, kind) for moe in moes]
            part.add(f"cost of {kind} as copy, {GROUP_NAMES[task]}", cost(task, *replaced), None)
        for kind in model.model.resamplers:
            if (kind == "noise") == (task == "t2i"):
                statistic = cost(task, other_feature(model, kind))
                part.add(f"cost of another row's {kind} feature, {GROUP_NAMES[task]}", statistic, None)
    part.details = {"experts": entries, "rows": probe.counts}
    part.details["markdown"] = experts_markdown(entries)
    part.pictures["experts"] = plot_experts(*use_tables(entries))
    return part


def _everywhere(probe: ExpertProbe, task: str, sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """The statistic "sum over the rows of a task over its targets", with the other task's rows as nothing."""
    padded = {T2I: (0, probe.counts["mmu"]), MMU: (probe.counts["t2i"], 0)}[TASKS.index(task)]
    return ratio(np.pad(sums, padded), np.pad(counts, padded))


def _of_task(
    probe: ExpertProbe, task: str, base: tuple[np.ndarray, np.ndarray], use: dict[tuple[int, str], np.ndarray]
) -> Iterator[dict]:
    """Every expert of a task's group, layer by layer."""

    def cost(change) -> dict[str, float]:
        sums, counts = probe.losses(task, change)
        measured = with_interval(ratio(sums - base[0], counts), len(counts))
        return {"cost": measured["value"], "low": measured["low"], "high": measured["high"]}

    nothing = {"cost": 0.0, "low": 0.0, "high": 0.0}  # exactly: nobody chose it
    for number, layer in probe.layers.items():
        place = {"layer": number, "task": task}
        for expert, share in enumerate(use.get((number, "token"), ())):
            entry = place | {"level": "token", "expert": str(expert + 1), "use": float(share)}
            entry["name"] = f"layers.{number} {task} routed {expert}"
            yield entry | (cost(without_routed(layer, task, expert)) if share else nothing)
        if layer.has_experts:
            entry = place | {"level": "token", "expert": SHARED, "use": 1.0, "name": ""}
            yield entry | cost(without_shared(layer, task))
        if layer.sequence_moe is None:
            continue
        kinds = layer.sequence_moe.expert_names[TASKS.index(task)]
        for expert, share in enumerate(use.get((number, "sequence"), ())):
            kind = kinds[expert]
            entry = place | {"level": "sequence", "expert": kind, "use": float(share)}
            entry["name"] = f"layers.{number} {task} sequence {expert} ({kind})"
            yield entry | (cost(as_copy(layer.sequence_moe, kind)) if share and kind != "copy" else nothing)


def experts_markdown(entries: Sequence[dict]) -> str:
    """The report's tables: of each task and level the layers as lines, the experts as columns."""
    parts = [
        "Of each expert: how often it is used (share of tokens, or of image spans); what the loss rises by when it is "
        "replaced, a routed or shared expert by nothing and a sequence-level one by copy (a star where the 95 % "
        "interval over rows does not hold zero); and the size of its gradient. In the last layer nobody reads what "
        "sequence-level experts make of a picture that is looked at."
    ]
    for task in TASKS:
        for level in _LEVELS:
            chosen = [entry for entry in entries if (entry["task"], entry["level"]) == (task, level)]
            if not chosen:
                continue
            layers = list(dict.fromkeys(entry["layer"] for entry in chosen))
            lines = {layer: [entry for entry in chosen if entry["layer"] == layer] for layer in layers}
            header = ["layer", *(entry["expert"] for entry in lines[layers[0]])]
            body = [[str(layer), *map(_cell, lines[layer])] for layer in layers]
            title = f"**{GROUP_NAMES[task]}, {LEVEL_NAMES[_LEVELS[level]]}** (cost in {_UNITS[task]})"
            parts += [title, table(header, body)]
    parts.insert(1, idle_experts(entries))
    return "\n\n".join(parts)


def idle_experts(entries: Sequence[dict]) -> str:
    """A sentence that names each expert of no use, and whether it gets a gradient, by which it could learn."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for entry in entries:
        if entry["expert"] != "copy":
            found.setdefault((entry["task"], entry["level"], entry["expert"]), []).append(entry)
    named = []
    for (task, level, expert), layers in found.items():
        used = [entry for entry in layers if entry["use"] >= USED_SHARE]
        if any(entry["low"] > 0 for entry in used):
            continue
        what = "costs nothing when it is replaced" if used else "is not used"
        sizes = [entry["gradient"] for entry in layers if entry["gradient"] is not None]
        gradient = f"gradient {min(sizes):.0e} to {max(sizes):.0e}" if sizes and max(sizes) else "no gradient"
        named.append(f"{expert} of {GROUP_NAMES[task]}, {LEVEL_NAMES[_LEVELS[level]]}, {what} ({gradient})")
    if not named:
        return "Every expert is used in some layer, and replacing it there costs something."
    return (
        f"**Experts that do nothing** (in no layer used by {USED_SHARE:.0%} or more and missed when replaced): "
        f"{'; '.join(named)}. What has a gradient can still learn."
    )


def _cell(entry: dict) -> str:
    star = "\\*" if entry["low"] > 0 or entry["high"] < 0 else ""
    cost = f"{entry['cost']:+.3f}{star}" if entry["use"] and entry["expert"] != "copy" else "–"
    gradient = "" if entry["gradient"] is None else f", {entry['gradient']:.0e}"
    return f"{100 * entry['use']:.0f} %, {cost}{gradient}"


def use_tables(entries: Sequence[dict]) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Shares of the choices and names of the experts, as [`~unif2ace.training.run_folder.plot_experts`] takes them."""
    tables, names = {}, {}
    for task in TASKS:
        for level, shown in _LEVELS.items():
            chosen = [e for e in entries if (e["task"], e["level"]) == (task, level) and e["expert"] != SHARED]
            if not chosen:
                continue
            layers = list(dict.fromkeys(entry["layer"] for entry in chosen))
            shares = torch.tensor([[e["use"] for e in chosen if e["layer"] == layer] for layer in layers])
            tables[f"{task}_{shown}"] = shares / shares.sum(-1, keepdim=True).clamp(min=1e-9)
            names[f"{task}_{shown}"] = [e["expert"] for e in chosen if e["layer"] == layers[0]]
    return tables, names


def has_experts(model: nn.Module) -> bool:
    """Whether a model has experts of either level."""
    layers = [module for module in model.modules() if isinstance(module, UniF2aceDecoderLayer)]
    return any(layer.has_experts or layer.sequence_moe is not None for layer in layers)


__all__ = ["ExpertProbe", "MAX_ROWS", "experts_markdown", "face_rows", "has_experts", "measure_experts", "use_tables"]
