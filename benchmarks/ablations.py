"""
The paper's ablations on painted faces: small models, alike but for one thing, trained and compared.

    python benchmarks/ablations.py --seeds 0 1 2 3 4 --write docs/ablations.md
    python benchmarks/ablations.py --tables routing noise --seeds 0 1 2 --write docs/ablations.md
    python benchmarks/ablations.py --arms d3diff mask_only --seeds 0 --set training.max_steps=2000
    python benchmarks/ablations.py --table-only --write docs/ablations.md

The arms and the tables that compare them are in `ablations.yaml`. Every finished run is one line of
`runs/ablations/results.jsonl`; runs that are there already are not repeated, so the command goes on where it stopped,
and a new arm repeats no other. Processes with different `--seeds` or `--arms` can share the folder.

The runs of one seed have the same data in the same order, the same masks and, where their shapes agree, the same
initial weights: differences to the default are taken seed by seed. All runs are measured on the same faces under the
same masks.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from reporting import put_section
from reporting import table as markdown_table
from scipy.stats import t as student_t
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2aceProcessor
from unif2ace.modeling_unif2ace.layout_unif2ace import MMU, T2I, TASKS
from unif2ace.modeling_unif2ace.moe_unif2ace import UniF2aceSequenceMoE, noise_feature
from unif2ace.modeling_unif2ace.objective_unif2ace import UniF2aceObjective
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.pipelines.files import replacing
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.callbacks import expert_gradients
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.language.captions import write_caption
from unif2ace.training.data.language.questions import write_questions
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.evaluation.experts import as_copy
from unif2ace.training.run_folder import append_line, git_revision, read_lines
from unif2ace.training.synthetic.faces import Faces
from unif2ace.training.synthetic.painted.dataset import attributes_of
from unif2ace.training.train import override
from unif2ace.training.trainer import UniF2aceTrainer


CONFIG = Path(__file__).with_suffix(".yaml")
METRICS = {
    "mask_loss": "masked cross-entropy, nats a code",
    "bound": "likelihood bound, nats a code",
    "mmu_loss": "answers, nats a token",
}
HOLDS, REVERSED, NONE, UNKNOWN = "holds", "reversed", "no difference", "one seed"
MASK_SAMPLES = 16  # masks of each ratio that the noise feature's spread is measured over


class Rows(Dataset):
    """
    Each face once as a short prompt and once as a few questions; words depend on the number of the row alone, and are
    kept, since all runs read the same ones.

    Args:
        features (`dict[str, np.ndarray]`): `codes`, `clip_features`, `face_features` of the pictures.
        split (`str`): Split of the painted faces.
        words (`dict[str, Any]`):
            `attributes` that are spoken of, `coverage` (share of them that a prompt states), `questions` in a row and
            the `kinds` of them.
        blind (`bool`, *optional*, defaults to `False`):
            Leave out what a row is conditioned on: prompts are empty, questions come with the next face's picture.
    """

    def __init__(self, features: dict[str, np.ndarray], split: str, words: dict[str, Any], blind: bool = False):
        self.features, self.split, self.words, self.blind = features, split, words, blind
        self.written: dict[int, str | list[tuple[str, str]]] = {}
        self.count = len(features["codes"])
        self.tasks = ["t2i"] * self.count + ["mmu"] * self.count

    def __len__(self) -> int:
        return 2 * self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        is_prompt, face = index < self.count, index % self.count
        pictured = (face + 1) % self.count if self.blind and not is_prompt else face
        row = {name: torch.from_numpy(column[pictured].copy()) for name, column in self.features.items()}
        if index not in self.written:
            self.written[index] = self._write(index, face, is_prompt)
        if is_prompt:
            return {**row, "task": "t2i", "text": "" if self.blind else self.written[index]}
        return {**row, "task": "mmu", "turns": self.written[index]}

    def _write(self, index: int, face: int, is_prompt: bool) -> str | list[tuple[str, str]]:
        rng = random.Random(f"{self.split}-{index}")
        attributes = attributes_of(face, self.split)
        visible = {
            name: seen and name in self.words["attributes"] for name, seen in assumed_visible(attributes).items()
        }
        if is_prompt:
            return write_caption(attributes, visible, rng, coverage=self.words["coverage"]).text
        asked = write_questions(attributes, visible, rng, self.words["questions"], self.words["kinds"])
        return [(question.question, question.answer) for question in asked]


@torch.no_grad()
def features_of(config: dict[str, Any], split: str, count: int, folder: Path) -> dict[str, np.ndarray]:
    """Codes of the reduced pictures, CLIP and face features of the whole ones, kept on disk."""
    base = Path(config["base"])
    path = folder / f"features-{checkpoint_sha256(base)[:12]}-{split}-{count}-{config['resolution']}.npz"
    if path.exists():
        with np.load(path) as stored:
            return dict(stored)
    model = UniF2aceForConditionalGeneration.from_pretrained(base, dtype="float32").model.eval()
    faces = Faces(config["pictures"], split, at_least=count)
    columns: dict[str, list[np.ndarray]] = {"codes": [], "clip_features": [], "face_features": []}
    for start in tqdm(range(0, count, 64), desc=f"features, {split}"):
        pixels = faces.pixels(range(start, min(start + 64, count)))
        small = F.interpolate(pixels, size=config["resolution"], mode="bicubic", antialias=True, align_corners=False)
        columns["codes"].append(model.encode_images(small.clamp(-1, 1)).numpy())
        columns["clip_features"].append(model.encode_clip(pixels).numpy().astype(np.float16))
        columns["face_features"].append(model.encode_face(pixels).numpy())
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    with replacing(path) as part:
        np.savez(part, **found)
    return found


def model_config(config: dict[str, Any], base: UniF2aceConfig, arm: str) -> UniF2aceConfig:
    """The shape of an arm's model."""
    fields, changed = base.to_dict(), config["arms"][arm].get("model", {})
    changes = {**config["model"], **changed, "vision_config": None, "face_config": None}
    changes["clip_feature_size"], changes["face_feature_size"] = base.clip_feature_size, base.face_feature_size
    changes["vq_config"] = {**fields["vq_config"], "resolution": config["resolution"]}
    text_config = changed.get("text_config", {})
    changes["text_config"] = {**fields["text_config"], **config["model"]["text_config"], **text_config}
    return UniF2aceConfig(**{**fields, **changes})


def default_arm(config: dict[str, Any]) -> str:
    """What all arms are compared with."""
    return next(iter(config["arms"]))


def initial_model(
    config: dict[str, Any], base: UniF2aceConfig, arm: str, seed: int
) -> UniF2aceForConditionalGeneration:
    """An untrained model: what it has in common with the default model of the seed starts from the same values."""
    set_seed(seed)
    default = UniF2aceForConditionalGeneration(model_config(config, base, default_arm(config)))
    if arm == default_arm(config):
        return default
    set_seed(seed)
    model = UniF2aceForConditionalGeneration(model_config(config, base, arm))
    weights, shared = model.state_dict(), default.state_dict()
    for name, weight in weights.items():
        if name in shared and shared[name].shape == weight.shape:
            weight.copy_(shared[name])
    return model


class _Trainer(UniF2aceTrainer):
    """Keeps the experts' use in evaluation as well."""

    def summarize(self, means: dict[str, Any], training: bool = True) -> None:
        self.expert_use = self.objective.summarize(means)


class _LastGradients(TrainerCallback):
    """Keeps the sizes of the experts' gradients at the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == state.max_steps - 1:
            self.sizes = expert_gradients(model)


def run_arm(config: dict[str, Any], arm: str, seed: int, rows: dict[str, Rows]) -> dict[str, Any]:
    """Train one model and measure it on held-out faces."""
    base = UniF2aceConfig.from_pretrained(config["base"])
    model = initial_model(config, base, arm, seed)
    processor = UniF2aceProcessor.from_pretrained(config["base"])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = UniF2aceTrainingArguments(
            folder,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_steps=10**9,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            without=["clip", "face"],  # the arms leave experts out
            **{**config["training"], **config["arms"][arm].get("training", {})},
        )
        gradients = _LastGradients()
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=UniF2aceCollator(processor.tokenizer, model.config),
            callbacks=[gradients],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if trainer.stopped_by is not None:  # half a run is no result
            raise SystemExit(f"stopped by {trainer.stopped_by}")
        # one measure for all arms and seeds: the ELBO's weights, and the masks of one seed
        trainer.objective, trainer.args.seed = UniF2aceObjective(model.config, weighting="elbo"), 0
        blind = trainer.evaluate(rows["blind"])
        found = trainer.evaluate()
        result = {
            "arm": arm,
            "seed": seed,
            "mask_loss": found["eval_mask_loss"],
            "bound": found["eval_score_loss"] / model.config.num_image_tokens,
            "mmu_loss": found["eval_mmu_loss"],
            "blind_mask_loss": blind["eval_mask_loss"],
            "blind_mmu_loss": blind["eval_mmu_loss"],
            "experts": experts_of(trainer, found, gradients.sizes),
            "noise": noise_spread(model),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
    return result | {"seconds": round(time.monotonic() - started, 1)}


def experts_of(trainer: _Trainer, found: dict[str, float], gradients: dict[str, float]) -> dict[str, Any]:
    """
    What became of the experts: of each kind of the sequence level but copy, by its group, the `use` (share of the
    spans that choose it, in the layer that uses it most) and the `cost` of making it copy in all layers; how many of
    both levels are `unused`, layer by layer, chosen by nobody on the held-out faces; which have `no_gradient` at the
    last step, out of so many `trained`.
    """
    text, kinds, unused = trainer.model.config.text_config, {}, {}
    for name, table in trainer.expert_use.items():
        task, _, level = name.partition("_")
        if level == "load":
            unused[name] = int((table == 0).sum())
            continue
        # nobody reads what the last layer makes of a picture that is looked at
        layers = table[: text.num_hidden_layers - 1] if task == TASKS[MMU] else table
        places = {e: kind for e, kind in enumerate(text.sequence_experts(task)) if kind != "copy"}
        unused[name] = int((layers[:, list(places)] == 0).sum())
        spans = (layers * text.num_experts_per_sequence).amax(0)
        kinds |= {f"{task} {kind}": {"use": round(float(spans[e]), 4)} for e, kind in places.items()}
    moes = [module for module in trainer.model.modules() if isinstance(module, UniF2aceSequenceMoE)]
    for name, of_kind in kinds.items():
        task, kind = name.split()
        metric = "eval_mask_loss" if task == TASKS[T2I] else "eval_mmu_loss"
        with ExitStack() as stack:
            for moe in moes:
                stack.enter_context(as_copy(moe, kind))
            of_kind["cost"] = trainer.evaluate()[metric] - found[metric]
    without = [name for name, size in gradients.items() if size == 0]
    return {"kinds": kinds, "unused": unused, "no_gradient": without, "trained": len(gradients)}


@torch.no_grad()
def noise_spread(model: UniF2aceForConditionalGeneration) -> dict[str, float]:
    """
    What the noise expert can tell apart behind its resampler: the root mean square of its states (`size`), how far
    they move with the mask ratio (`ratios`, the standard deviation over the ratios 1/N to 1 of the mean over masks)
    and with the mask at one ratio (`masks`), as root mean squares over places and channels.
    """
    config, resamplers = model.config, model.model.resamplers
    if "noise" not in resamplers:
        return {}
    count = config.num_image_tokens
    order = torch.rand(count, MASK_SAMPLES, count, generator=torch.Generator().manual_seed(0)).argsort(-1)
    masked = order < torch.arange(1, count + 1)[:, None, None]  # (ratios, masks, N)
    feature = noise_feature(masked.flatten(0, 1), config.noise_feature, config.noise_feature_size)
    states = resamplers["noise"](feature.to(model.device)[:, None]).unflatten(0, masked.shape[:2])

    def rms(values: torch.Tensor) -> float:
        return values.square().mean().sqrt().item()

    of_ratio = states.mean(1)
    return {
        "size": rms(states),
        "ratios": rms(of_ratio - of_ratio.mean(0)),
        "masks": rms(states - of_ratio[:, None]),
    }


def run_key(config: dict[str, Any], arm: str) -> str:
    """A short name for all that decides an arm's runs but the seed: neither other arms nor titles."""
    settings = {name: value for name, value in config.items() if name not in ("arms", "tables", "pictures")}
    changes = {name: value for name, value in config["arms"][arm].items() if name != "title"}
    settings |= {"base": checkpoint_sha256(config["base"]), "arm": changes}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


Runs = dict[str, dict[int, dict[str, Any]]]  # by arm and seed


def table(by_arm: Runs, config: dict[str, Any], name: str) -> str:
    """Means and spreads, differences to the default, and which orderings hold, as Markdown."""
    wanted, default = config["tables"][name], default_arm(config)
    by_arm = {arm: by_arm[arm] for arm in wanted["arms"] if by_arm.get(arm)}
    text, training = config["model"]["text_config"], config["training"]
    blind = list(by_arm.get(default, {}).values())
    lines = [
        f"{sum(map(len, by_arm.values()))} runs of {training['max_steps']} steps of "
        f"{training['per_device_train_batch_size']} rows; {text['num_hidden_layers']} layers, {text['hidden_size']} "
        f"wide; {config['validation_count']} held-out faces; tokenizers and encoders of checkpoint "
        f"`{checkpoint_sha256(config['base'])[:12]}`. Mean over the seeds, ± standard deviation; in brackets the mean "
        "difference to the default, seed by seed, with its 95 % interval (Student's t). Less is better.",
    ]
    if blind:
        without = [_mean([run[f"blind_{metric}"] for run in blind]) for metric in ("mask_loss", "mmu_loss")]
        lines[0] += (
            f" Without its prompt the default has a masked cross-entropy of {without[0]}, and with another face's "
            f"picture it says the answers at {without[1]}."
        )
    rows = []
    for arm, runs in by_arm.items():
        cells = [config["arms"][arm]["title"], str(len(runs))]
        for metric in METRICS:
            cell = _mean([run[metric] for run in runs.values()])
            shared = sorted(runs.keys() & by_arm.get(default, {}).keys())
            if arm != default and shared:
                cell += f" ({_interval([runs[s][metric] - by_arm[default][s][metric] for s in shared])})"
            cells.append(cell)
        rows.append(cells)
    lines += ["", markdown_table(["", "seeds", *METRICS.values()], rows)]
    if wanted.get("experts"):
        lines += ["", *_experts_table(by_arm, config)]
    if wanted.get("noise"):
        lines += ["", *_noise_table(by_arm, config)]
    rows, found = [], {}
    for claim, better, worse, metrics in wanted["orderings"]:
        seeds = sorted(by_arm.get(better, {}).keys() & by_arm.get(worse, {}).keys())
        for metric in metrics if seeds else ():
            gains = [by_arm[worse][s][metric] - by_arm[better][s][metric] for s in seeds]
            agree, measure = sum(gain > 0 for gain in gains), METRICS[metric].partition(",")[0]
            rows.append([claim, measure, _interval(gains), f"{agree} of {len(seeds)}", verdict(gains)])
            found.setdefault(verdict(gains), []).append(f"{claim} ({measure})")
    lines += ["", markdown_table(["ordering", "here, by", "mean gain", "seeds that agree", "so"], rows)]
    for answer in (HOLDS, REVERSED, NONE):
        if answer in found:
            lines += ["", f"**{answer.capitalize()}**: {'; '.join(found[answer])}."]
    if UNKNOWN in found:
        lines += ["", "With one seed there is no spread to compare a gain with, so nothing is said of the ordering."]
    return "\n".join(lines)


def _experts_table(by_arm: Runs, config: dict[str, Any]) -> list[str]:
    """Of each arm the sequence level's experts, and how many of both levels came to nothing."""
    kinds = list(dict.fromkeys(kind for runs in by_arm.values() for run in runs.values() for kind in _kinds(run)))
    rows = []
    for arm, runs in by_arm.items():
        cells = [config["arms"][arm]["title"]]
        for kind in kinds:
            use, cost = ([_kinds(run)[kind][what] for run in runs.values()] for what in ("use", "cost"))
            each = "/".join(f"{100 * share:.0f}" for share in use)
            cells.append(f"{each} %, {_mean(cost, sign='+')}")
        unused = [sum(run["experts"]["unused"].values()) for run in runs.values()]
        dead = [len(run["experts"]["no_gradient"]) for run in runs.values()]
        rows.append([*cells, "/".join(map(str, unused)), "/".join(map(str, dead))])
    return [
        "Of each seed, how many spans use an expert in the layer that uses it most, and, as a mean, what the loss "
        "rises by when it is made copy in all layers; how many experts of both levels, counted layer by layer, nobody "
        "chose on held-out faces, and how many had no gradient at the last step.",
        "",
        markdown_table(["", *kinds, "unused", "without gradient"], rows),
    ]


def _kinds(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    return run["experts"]["kinds"]


def _noise_table(by_arm: Runs, config: dict[str, Any]) -> list[str]:
    """Of each arm what the noise feature tells."""
    rows = []
    for arm, runs in by_arm.items():
        spread = [_mean([run["noise"][what] for run in runs.values()]) for what in ("size", "ratios", "masks")]
        use = "/".join(f"{100 * _kinds(run)['t2i noise']['use']:.0f}" for run in runs.values())
        cost = _interval([_kinds(run)["t2i noise"]["cost"] for run in runs.values()])
        rows.append([config["arms"][arm]["title"], *spread, f"{use} %", cost])
    return [
        "Behind the resampler, after training: the size of the states, how far they move with the mask ratio, and how "
        "far with the mask at one ratio (root mean squares); how many spans use the noise expert in the layer that "
        "uses it most; and what the masked cross-entropy rises by when it is made copy.",
        "",
        markdown_table(["", "size", "over mask ratios", "over masks", "use", "cost as copy"], rows),
    ]


def verdict(gains: Sequence[float]) -> str:
    """What the gains of the seeds say of an ordering: nothing, unless their 95 % interval does not hold zero."""
    if len(gains) < 2:
        return UNKNOWN
    if abs(statistics.fmean(gains)) <= half_width(gains):
        return NONE
    return HOLDS if statistics.fmean(gains) > 0 else REVERSED


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean by Student's t."""
    return float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _interval(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    return f"{mean:+.3f}, {mean - half_width(values):+.3f} to {mean + half_width(values):+.3f}"


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean:{sign}.3f}{spread}"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="The paper's ablations on painted faces.",
        epilog="example: python benchmarks/ablations.py --tables routing --seeds 0 1 2 --write docs/ablations.md",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="model and arms (default: %(default)s)")
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="which (default: all)")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="which of the tables' (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of it")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many (default: no end)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="(default: %(default)s)")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this document")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    override(config, options.set)
    for chosen, known in ((options.tables, config["tables"]), (options.arms, config["arms"])):
        unknown = sorted(set(chosen or ()) - set(known))
        if unknown:
            parser.error(f"{unknown[0]!r} is not in {options.config}, expected some of {', '.join(known)}")
    names = options.tables or list(config["tables"])
    arms = list(dict.fromkeys(arm for name in names for arm in config["tables"][name]["arms"]))
    arms = [arm for arm in arms if options.arms is None or arm in options.arms]
    keys = {run_key(config, arm): arm for arm in config["arms"]}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"

    def finished() -> Runs:
        found: Runs = {}
        for line in read_lines(path) if path.exists() else []:
            if line["settings"] in keys:
                found.setdefault(keys[line["settings"]], {})[line["seed"]] = line
        return found

    todo = [(arm, seed) for seed in options.seeds for arm in arms if seed not in finished().get(arm, {})]
    if todo and not options.table_only:
        counts = {"train": config["train_count"], "validation": config["validation_count"]}
        rows = {
            split: Rows(features_of(config, split, count, options.output), split, config["words"])
            for split, count in counts.items()
        }
        rows["blind"] = Rows(rows["validation"].features, "validation", config["words"], blind=True)
        started = time.monotonic()
        for arm, seed in (bar := tqdm(todo, unit="run")):
            if time.monotonic() - started > 60 * options.minutes:
                break
            if seed in finished().get(arm, {}):  # by another process that shares the work
                continue
            bar.set_postfix(arm=arm, seed=seed)
            result = run_arm(config, arm, seed, rows)
            if not all(math.isfinite(result[metric]) for metric in METRICS):
                print(f"{arm}, seed {seed}: not finite", file=sys.stderr)
            append_line(path, {"settings": run_key(config, arm), "revision": git_revision(), **result})
    for name in names:
        text = table(finished(), config, name)
        print(f"{name}\n\n{text}\n")
        if options.write:
            put_section(options.write, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
