"""
The paper's ablations on painted faces: small models, alike but for one thing, trained and compared.

    python benchmarks/ablations.py --seeds 0 1 2 --write docs/ablations.md
    python benchmarks/ablations.py --arms d3diff mask_only score_only --seeds 0 --set training.max_steps=500
    python benchmarks/ablations.py --table-only --write docs/ablations.md

Every finished run is one line of `runs/ablations/results.jsonl`; runs that are there already are not repeated, so the
command goes on where it stopped. Processes with different `--seeds` or `--arms` can share the folder.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from reporting import put_section
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2aceProcessor
from unif2ace.modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from unif2ace.pipelines.files import replacing
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.language.captions import write_caption
from unif2ace.training.data.language.questions import write_questions
from unif2ace.training.data.language.visibility import assumed_visible
from unif2ace.training.run_folder import append_line, git_revision, read_lines
from unif2ace.training.synthetic.painted.dataset import attributes_of, load_rendered
from unif2ace.training.train import override
from unif2ace.training.trainer import UniF2aceTrainer


CONFIG = Path(__file__).with_suffix(".yaml")
DEFAULT = "d3diff"

# What each arm changes: in the text configuration, and in the training arguments.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    DEFAULT: ("D3Diff, α = 0.01, both levels, top-2 (the default)", {}, {}),
    "mask_only": ("mask term only", {}, {"alpha": 0.0}),
    "mask_scaled": ("mask term only, × (1 + αN)", {}, {"alpha": 0.0, "mask_weight": 1.36}),
    "score_only": ("score term only, α = 0.01", {}, {"mask_weight": 0.0}),
    "moe_none": ("no experts", {"moe_layers": [], "sequence_moe_layers": []}, {}),
    "moe_token": ("token level only", {"sequence_moe_layers": []}, {}),
    "moe_sequence": ("sequence level only", {"moe_layers": []}, {}),
    "no_face": ("without the face expert", {"mmu_sequence_experts": ["copy", "copy", "clip", "copy"]}, {}),
    "no_clip": ("without the CLIP expert", {"mmu_sequence_experts": ["copy", "copy", "copy", "face"]}, {}),
    "top_1": ("token level top-1", {"num_experts_per_tok": 1}, {}),
    "top_4": ("token level top-4", {"num_experts_per_tok": 4}, {}),
    "sequence_top_1": ("sequence level top-1", {"num_experts_per_sequence": 1}, {}),
    "sequence_top_4": ("sequence level top-4", {"num_experts_per_sequence": 4}, {}),
    "alpha_0.1": ("α = 0.1", {}, {"alpha": 0.1}),
    "alpha_0.001": ("α = 0.001", {}, {"alpha": 0.001}),
    "elbo": ("weighting elbo", {}, {"weighting": "elbo"}),
    "dse": ("weighting dse", {}, {"weighting": "dse"}),
}
METRICS = {
    "mask_loss": "masked cross-entropy, nats a code",
    "bound": "likelihood bound, nats a code",
    "mmu_loss": "answers, nats a token",
}
HOLDS, REVERSED, NONE, UNKNOWN = "holds", "reversed", "no difference", "one seed"
# The paper's orderings: what is said to be better, than what, by which measure of ours.
ORDERINGS = (
    ("D3Diff beats mask only", DEFAULT, "mask_only", ("mask_loss", "bound")),
    ("D3Diff beats mask only of the same weight", DEFAULT, "mask_scaled", ("mask_loss", "bound")),
    ("D3Diff beats score only", DEFAULT, "score_only", ("mask_loss", "bound")),
    ("score only beats mask only", "score_only", "mask_only", ("mask_loss", "bound")),
    ("α = 0.01 beats 0.1", DEFAULT, "alpha_0.1", ("mask_loss", "bound")),
    ("α = 0.01 beats 0.001", DEFAULT, "alpha_0.001", ("mask_loss", "bound")),
    ("token level beats no experts", "moe_token", "moe_none", ("mask_loss", "mmu_loss")),
    ("sequence level beats no experts", "moe_sequence", "moe_none", ("mask_loss", "mmu_loss")),
    ("both levels beat the token level", DEFAULT, "moe_token", ("mask_loss", "mmu_loss")),
    ("both levels beat the sequence level", DEFAULT, "moe_sequence", ("mask_loss", "mmu_loss")),
    ("the face expert helps", DEFAULT, "no_face", ("mmu_loss",)),
    ("the CLIP expert helps", DEFAULT, "no_clip", ("mmu_loss",)),
    ("at the sequence level top-2 beats top-1", DEFAULT, "sequence_top_1", ("mask_loss", "mmu_loss")),
    ("at the sequence level top-2 beats top-4", DEFAULT, "sequence_top_4", ("mask_loss", "mmu_loss")),
)


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
    pictures = load_rendered(config["pictures"], split, at_least=count)[:count]
    columns: dict[str, list[np.ndarray]] = {"codes": [], "clip_features": [], "face_features": []}
    for start in tqdm(range(0, count, 64), desc=f"features, {split}"):
        pixels = torch.from_numpy(pictures[start : start + 64].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
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
    fields = base.to_dict()
    changes = {**config["model"], "vision_config": None, "face_config": None}
    changes["clip_feature_size"], changes["face_feature_size"] = base.clip_feature_size, base.face_feature_size
    changes["vq_config"] = {**fields["vq_config"], "resolution": config["resolution"]}
    changes["text_config"] = {**fields["text_config"], **config["model"]["text_config"], **ARMS[arm][1]}
    return UniF2aceConfig(**{**fields, **changes})


def initial_model(
    config: dict[str, Any], base: UniF2aceConfig, arm: str, seed: int
) -> UniF2aceForConditionalGeneration:
    """An untrained model: what it has in common with the default model of the seed starts from the same values."""
    set_seed(seed)
    default = UniF2aceForConditionalGeneration(model_config(config, base, DEFAULT))
    if arm == DEFAULT:
        return default
    set_seed(seed)
    model = UniF2aceForConditionalGeneration(model_config(config, base, arm))
    weights, shared = model.state_dict(), default.state_dict()
    for name, weight in weights.items():
        if name in shared and shared[name].shape == weight.shape:
            weight.copy_(shared[name])
    return model


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
            **{**config["training"], **ARMS[arm][2]},
        )
        trainer = UniF2aceTrainer(
            model=model,
            args=arguments,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=UniF2aceCollator(processor.tokenizer, model.config),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if trainer.stopped_by is not None:  # half a run is no result
            raise SystemExit(f"stopped by {trainer.stopped_by}")
        # one measure for all arms and seeds: the ELBO's weights, and the masks of one seed
        trainer.args.weighting, trainer.args.seed = "elbo", 0
        found, blind = trainer.evaluate(), trainer.evaluate(rows["blind"])
    return {
        "arm": arm,
        "seed": seed,
        "mask_loss": found["eval_mask_loss"],
        "bound": found["eval_score_loss"] / model.config.num_image_tokens,
        "mmu_loss": found["eval_mmu_loss"],
        "blind_mask_loss": blind["eval_mask_loss"],
        "blind_mmu_loss": blind["eval_mmu_loss"],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - started, 1),
    }


def settings_key(config: dict[str, Any]) -> str:
    """A short name for what all arms share: the settings and the checkpoint whose tokenizers and encoders they use."""
    settings = {**config, "base": checkpoint_sha256(config["base"])}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def table(results: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
    """Means and spreads, differences to the default, and which orderings hold, as Markdown."""
    by_arm: dict[str, dict[int, dict]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    steps, batch = config["training"]["max_steps"], config["training"]["per_device_train_batch_size"]
    blind = [r for r in by_arm.get(DEFAULT, {}).values() if "blind_mask_loss" in r]
    lines = [
        f"{len(results)} runs of {steps} steps of {batch} rows; {config['validation_count']} held-out faces; "
        f"tokenizers and encoders of checkpoint `{checkpoint_sha256(config['base'])[:12]}`. Mean over the seeds, "
        "± standard deviation; in brackets the mean difference to the default, seed by seed. Less is better.",
    ]
    if blind:
        without = [_mean([run[f"blind_{metric}"] for run in blind]) for metric in ("mask_loss", "mmu_loss")]
        lines[0] += (
            f" Without its prompt the default has a masked cross-entropy of {without[0]}, and with another face's "
            f"picture it says the answers at {without[1]}."
        )
    lines += [
        "",
        "| | seeds | " + " | ".join(METRICS.values()) + " |",
        "|---|---|" + "---|" * len(METRICS),
    ]
    for arm, (title, _, _) in ARMS.items():
        runs = by_arm.get(arm, {})
        if not runs:
            continue
        cells = [title, str(len(runs))]
        for metric in METRICS:
            values = [run[metric] for run in runs.values()]
            cell = _mean(values)
            shared = sorted(runs.keys() & by_arm.get(DEFAULT, {}).keys())
            if arm != DEFAULT and shared:
                cell += f" ({_mean([runs[s][metric] - by_arm[DEFAULT][s][metric] for s in shared], sign='+')})"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| ordering in the paper | here, by | mean gain | seeds that agree | so |", "|---|---|---|---|---|"]
    found: dict[str, list[str]] = {}
    for claim, better, worse, metrics in ORDERINGS:
        seeds = sorted(by_arm.get(better, {}).keys() & by_arm.get(worse, {}).keys())
        for metric in metrics if seeds else ():
            gains = [by_arm[worse][s][metric] - by_arm[better][s][metric] for s in seeds]
            agree = sum(gain > 0 for gain in gains)
            name = METRICS[metric].partition(",")[0]
            cells = claim, name, _mean(gains, sign="+"), f"{agree} of {len(seeds)}", verdict(gains)
            lines.append(f"| {' | '.join(cells)} |")
            found.setdefault(verdict(gains), []).append(f"{claim} ({name})")
    for name in (HOLDS, REVERSED, NONE):
        if name in found:
            lines += ["", f"**{name.capitalize()}**: {'; '.join(found[name])}."]
    if UNKNOWN in found:
        lines += ["", "With one seed there is no spread to compare a gain with, so nothing is said of the ordering."]
    return "\n".join(lines)


def verdict(gains: Sequence[float]) -> str:
    """
    What the gains of the seeds say of an ordering: nothing, unless all have one sign and their mean is larger than
    their standard deviation.
    """
    if len(gains) < 2:
        return UNKNOWN
    if len({gain > 0 for gain in gains}) > 1 or abs(statistics.fmean(gains)) <= statistics.stdev(gains):
        return NONE
    return HOLDS if gains[0] > 0 else REVERSED


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean:{sign}.3f}{spread}"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="The paper's ablations on painted faces.",
        epilog="example: python benchmarks/ablations.py --seeds 0 1 2 --write docs/ablations.md",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the small model (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of it")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many (default: no end)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="(default: %(default)s)")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    override(config, options.set)
    key = settings_key(config)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"

    def finished() -> dict[tuple[str, int], dict[str, Any]]:
        lines = read_lines(path) if path.exists() else []
        return {(line["arm"], line["seed"]): line for line in lines if line["settings"] == key}

    done = finished()
    todo = [(arm, seed) for seed in options.seeds for arm in options.arms if (arm, seed) not in done]
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
            if (arm, seed) in finished():  # by another process that shares the work
                continue
            bar.set_postfix(arm=arm, seed=seed)
            result = run_arm(config, arm, seed, rows)
            if not all(math.isfinite(result[metric]) for metric in METRICS):
                print(f"{arm}, seed {seed}: not finite", file=sys.stderr)
            append_line(path, {"settings": key, "revision": git_revision(), **result})
    text = table(list(finished().values()), config)
    print(text)
    if options.write:
        put_section(options.write, "table", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
