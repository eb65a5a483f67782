"""
The paper's ablations on painted faces: small models, alike but for one thing, trained and compared.

    python benchmarks/ablations.py --seeds 0 1 2
    python benchmarks/ablations.py --arms d3diff mask_only score_only --seeds 0 --set training.max_steps=500
    python benchmarks/ablations.py --table-only --write docs/ablations.md

Every finished run is one line of `runs/ablations/results.jsonl`; runs that are there already are not repeated, so the
command goes on where it stopped. The runs of one seed have the same data in the same order, the same masks and, where
their shapes agree, the same initial weights: differences to the default are taken seed by seed.
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
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2aceProcessor
from unif2ace.training.arguments import UniF2aceTrainingArguments
from unif2ace.training.callbacks import append_line, read_lines
from unif2ace.training.data.captions import write_caption
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.painted import attributes_of, load_rendered
from unif2ace.training.data.questions import write_questions
from unif2ace.training.data.visibility import assumed_visible
from unif2ace.training.files import replacing, write_text
from unif2ace.training.run_folder import git_revision
from unif2ace.training.train import EXIT_CODES, override
from unif2ace.training.trainer import UniF2aceTrainer


CONFIG = Path(__file__).with_suffix(".yaml")
MARKS = ("<!-- table -->", "<!-- /table -->")
DEFAULT = "d3diff"

# What each arm changes: in the text configuration, and in the training arguments.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    DEFAULT: ("D3Diff, α = 0.01, both levels, top-2 (the default)", {}, {}),
    "mask_only": ("mask term only", {}, {"alpha": 0.0}),
    "mask_scaled": ("mask term only, × (1 + αN) = 1.64", {}, {"alpha": 0.0, "mask_weight": 1.64}),
    "score_only": ("score term only, α = 0.01", {}, {"mask_weight": 0.0}),
    "moe_none": ("no experts", {"moe_layers": [], "sequence_moe_layers": []}, {}),
    "moe_token": ("token level only", {"sequence_moe_layers": []}, {}),
    "moe_sequence": ("sequence level only", {"moe_layers": []}, {}),
    "no_face": ("without the face expert", {"mmu_sequence_experts": ["copy", "copy", "clip", "copy"]}, {}),
    "no_clip": ("without the CLIP expert", {"mmu_sequence_experts": ["copy", "copy", "copy", "face"]}, {}),
    "top_1": ("token level top-1", {"num_experts_per_tok": 1}, {}),
    "top_4": ("token level top-4", {"num_experts_per_tok": 4}, {}),
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
    ("top-2 beats top-1", DEFAULT, "top_1", ("mask_loss", "mmu_loss")),
    ("top-2 is as good as top-4", DEFAULT, "top_4", ("mask_loss", "mmu_loss")),
)


class Rows(Dataset):
    """
    Each face once as a short prompt and once as a few questions; words depend on the number of the row alone.

    Args:
        features (`dict[str, np.ndarray]`): `codes`, `clip_features`, `face_features` of the pictures.
        split (`str`): Split of the painted faces.
        coverage (`float`): Share of the attributes that a prompt states.
        questions (`int`): Questions in a row.
    """

    def __init__(self, features: dict[str, np.ndarray], split: str, coverage: float, questions: int):
        self.features, self.split, self.coverage, self.questions = features, split, coverage, questions
        self.count = len(features["codes"])
        self.tasks = ["t2i"] * self.count + ["mmu"] * self.count

    def __len__(self) -> int:
        return 2 * self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        face = index % self.count
        rng = random.Random(f"{self.split}-{index}")
        attributes = attributes_of(face, self.split)
        visible = assumed_visible(attributes)
        row = {name: torch.from_numpy(column[face].copy()) for name, column in self.features.items()}
        if index < self.count:
            return {**row, "task": "t2i", "text": write_caption(attributes, visible, rng, coverage=self.coverage).text}
        asked = write_questions(attributes, visible, rng, self.questions)
        return {**row, "task": "mmu", "turns": [(question.question, question.answer) for question in asked]}


@torch.no_grad()
def features_of(config: dict[str, Any], split: str, count: int, folder: Path) -> dict[str, np.ndarray]:
    """Codes of the reduced pictures, CLIP and face features of the whole ones, kept on disk."""
    base = Path(config["base"])
    path = folder / f"features-{split}-{count}-{config['resolution']}.npz"
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
    changes = {**config["model"], "vision_config": None, "face_config": None, "vision_model_id": None}
    changes["clip_feature_size"], changes["face_feature_size"] = base.clip_feature_size, base.face_feature_size
    changes["vq_config"] = {**fields["vq_config"], "resolution": config["resolution"]}
    changes["text_config"] = {**fields["text_config"], **config["model"]["text_config"], **ARMS[arm][1]}
    return UniF2aceConfig(**{**fields, **changes})


def run_arm(config: dict[str, Any], arm: str, seed: int, rows: dict[str, Rows]) -> dict[str, Any]:
    """Train one model and measure it on held-out faces."""
    base = UniF2aceConfig.from_pretrained(config["base"])
    set_seed(seed)
    model = UniF2aceForConditionalGeneration(model_config(config, base, arm))
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
            raise SystemExit(EXIT_CODES[trainer.stopped_by])
        trainer.args.weighting = "elbo"  # one measure for all arms
        found = trainer.evaluate()
    return {
        "arm": arm,
        "seed": seed,
        "mask_loss": found["eval_mask_loss"],
        "bound": found["eval_score_loss"] / model.config.num_image_tokens,
        "mmu_loss": found["eval_mmu_loss"],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - started, 1),
    }


def settings_key(config: dict[str, Any]) -> str:
    """A short name for the settings that all arms share."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def table(results: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
    """Means and spreads, differences to the default, and which orderings hold, as Markdown."""
    by_arm: dict[str, dict[int, dict]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    steps, batch = config["training"]["max_steps"], config["training"]["per_device_train_batch_size"]
    lines = [
        f"{len(results)} runs of {steps} steps of {batch} rows, {config['validation_count']} held-out faces. Mean "
        "over the seeds, ± standard deviation; in brackets the mean difference to the default, seed by seed. Less is "
        "better.",
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
    lines += ["", "| ordering in the paper | here, by | mean gain | seeds that agree |", "|---|---|---|---|"]
    for claim, better, worse, metrics in ORDERINGS:
        seeds = sorted(by_arm.get(better, {}).keys() & by_arm.get(worse, {}).keys())
        for metric in metrics if seeds else ():
            gains = [by_arm[worse][s][metric] - by_arm[better][s][metric] for s in seeds]
            agree = sum(gain > 0 for gain in gains)
            name = METRICS[metric].partition(",")[0]
            lines.append(f"| {claim} | {name} | {_mean(gains, sign='+')} | {agree} of {len(seeds)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean:{sign}.3f}{spread}"


def put_table(document: str, text: str) -> str:
    """`document` with what stands between the marks replaced by `text`."""
    before, found, rest = document.partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not found or not ended:
        raise ValueError(f"the document has no place for the table: expected the lines {MARKS[0]} and {MARKS[1]}")
    return f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}"


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
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="(default: %(default)s)")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    override(config, options.set)
    key = settings_key(config)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"

    def finished() -> list[dict[str, Any]]:
        return [line for line in (read_lines(path) if path.exists() else []) if line["settings"] == key]

    done = {(line["arm"], line["seed"]) for line in finished()}
    todo = [(arm, seed) for seed in options.seeds for arm in options.arms if (arm, seed) not in done]
    if todo and not options.table_only:
        counts = {"train": config["train_count"], "validation": config["validation_count"]}
        rows = {
            split: Rows(
                features_of(config, split, count, options.output),
                split,
                config["prompt_coverage"],
                config["questions"],
            )
            for split, count in counts.items()
        }
        for arm, seed in (bar := tqdm(todo, unit="run")):
            bar.set_postfix(arm=arm, seed=seed)
            result = run_arm(config, arm, seed, rows)
            if not all(math.isfinite(result[metric]) for metric in METRICS):
                print(f"{arm}, seed {seed}: not finite", file=sys.stderr)
            append_line(path, {"settings": key, "revision": git_revision(), **result})
    text = table(finished(), config)
    print(text)
    if options.write:
        write_text(options.write, put_table(options.write.read_text(encoding="utf-8"), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
