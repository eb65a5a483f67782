"""
Write the model card of a checkpoint that was trained on painted faces, from what its training left behind.

    python -m unif2ace.hub_card.card --checkpoint hub_card/unif2ace-faces --run runs/unif2ace

The card is generated, never edited: configuration, training log and measured quality go into
`templates/model_card.md.jinja`. Numbers are used only if they were measured on exactly these weights.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..modeling_unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration
from ..pipelines.files import write_text
from ..pipelines.provenance_unif2ace import checkpoint_sha256
from ..training.data.language.attributes import ATTRIBUTES, sample_attributes
from ..training.evaluation.results import table
from ..training.synthetic.painted.report import explanation, questions_table, summary_table


PACKAGE = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
CONFIGS = PACKAGE / "training" / "configs"
STAGES = ("unif2ace-faces.yaml", *(f"unif2ace-faces-{number}.yaml" for number in (2, 3, 4, 5)))
LAST_STAGE = STAGES[-1]
MODEL_NAME = "UniF²ace faces"
LOSS_COLUMNS = {
    "loss": "total",
    "mask_loss": "masked codes",
    "score_loss": "score",
    "mmu_loss": "text",
    "eval_loss": "total, held out",
}
LOSS_ROWS = 6
_SAMPLED_FACES = 4_000
# Attributes that the painter gives to one gender only, or far more often.
_GENDERED = ("lipstick", "makeup", "necklace", "updo", "beard", "mustache", "hairline", "earrings")


def training_minutes(log: list[Mapping]) -> float:
    """Minutes that a logged run took; the clock starts again at zero when a run is resumed."""
    seconds, before = 0.0, 0.0
    for entry in log:
        if entry["seconds"] < before:
            seconds += before
        before = entry["seconds"]
    return (seconds + before) / 60


def read_log(path: Path) -> list[dict]:
    """The entries of a `log.jsonl`; of a step that was logged again after a resumption all are kept."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def loss_table(log: list[Mapping]) -> str:
    """The course of the losses at about `LOSS_ROWS` steps, first and last included."""
    by_step: dict[int, dict] = {}
    for entry in log:
        losses = {name: entry[name] for name in LOSS_COLUMNS if name in entry}
        if losses:
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


def painter_shares() -> dict[str, str]:
    """What the painter paints how often, in words: `{attribute: "man 50 %, woman 50 %"}` for what describes people."""
    faces = [sample_attributes(random.Random(f"card-{number}")) for number in range(_SAMPLED_FACES)]

    def shares(name: str, among: list[dict[str, str]]) -> str:
        counted = [(value, sum(face[name] == value for face in among)) for value in ATTRIBUTES[name]]
        return ", ".join(f"{value} {100 * count / len(among):.0f} %" for value, count in counted)

    described = {name: shares(name, faces) for name in ("gender", "age", "skin", "hair_color")}
    for gender in ATTRIBUTES["gender"]:
        group = [face for face in faces if face["gender"] == gender]
        described |= {f"{name} of a {gender}": shares(name, group) for name in _GENDERED}
    return described


def _stages(configs: Path) -> list[dict]:
    """The trainings in their order: command and minutes, from the committed configurations."""
    encoders = _read_yaml(configs / "encoders-faces.yaml")
    tokenizer = _read_yaml(configs / "tokenizer-faces.yaml")
    module = "python -m unif2ace.training"
    encoder = f"{module}.train_encoders {{}} --config training/synthetic/configs/encoders-faces.yaml"
    train_tokenizer = f"{module}.train_tokenizer --config training/synthetic/configs/tokenizer-faces.yaml"
    paint = f"{module}.data.painted --out runs/painted"
    stages = [
        {"what": "paint 30,000 faces", "command": f"{paint} --split train --count 30000"},
        {"what": "and some to validate on", "command": f"{paint} --split validation --count 1000"},
        {"what": "and to test on", "command": f"{paint} --split test --count 1000"},
        {"what": "text tokenizer", "command": f"{module}.train_text_tokenizer --out runs/text_tokenizer"},
        # its features are part of the losses of what follows
        {"what": "attribute classifier", "command": encoder.format("judge"), "minutes": encoders["judge"]["minutes"]},
        {"what": "image tokenizer", "command": train_tokenizer, "minutes": tokenizer.get("minutes")},
        {"what": "codes of all pictures", "command": f"{train_tokenizer} --encode"},
    ]
    for name, what in (("clip", "CLIP encoder"), ("face", "face encoder")):
        stages.append({"what": what, "command": encoder.format(name), "minutes": encoders[name].get("minutes")})
    train = (
        "OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m unif2ace.training.train --config training/synthetic/configs/"
    )
    models = [
        {
            "what": f"the model, {number} stage",
            "command": train + config,
            "minutes": _read_yaml(configs / config)["training"]["max_minutes"],
        }
        for number, config in zip(("first", "second", "third", "fourth", "fifth"), STAGES, strict=True)
    ]
    clip, tokenizer = "encoders-faces-2.yaml", "tokenizer-faces-2.yaml"
    train_tokenizer = f"{module}.train_tokenizer --config training/synthetic/configs/"
    same_codes = {"second": "tokenizer-faces-decoder.yaml", "fourth": "tokenizer-faces-2-decoder.yaml"}
    decoders = [
        {
            "what": f"image tokenizer, {number} stage: a better decoder for the same codes",
            "command": train_tokenizer + config,
            "minutes": _read_yaml(configs / config)["minutes"],
        }
        for number, config in same_codes.items()
    ]
    return [
        *stages,
        *models[:2],
        {
            "what": "CLIP encoder, second stage",
            "command": f"{module}.train_encoders clip --config training/synthetic/configs/{clip} --threads 2",
            "minutes": _read_yaml(configs / clip)["clip"]["minutes"],
        },
        models[2],
        decoders[0],
        {
            "what": "image tokenizer, third stage",
            "command": train_tokenizer + tokenizer,
            "minutes": _read_yaml(configs / tokenizer)["minutes"],
        },
        {"what": "its codes of all pictures", "command": f"{train_tokenizer}{tokenizer} --encode"},
        *models[3:],
        decoders[1],
    ]


def _read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def eval_results(quality: Mapping) -> list[EvalResult]:
    """The main numbers for the card's metadata."""
    found = []

    def add(task: str, metric: str, name: str, measured: Mapping | None):
        if measured is not None:
            found.append(
                EvalResult(
                    task_type=task,
                    dataset_type="painted-faces",
                    dataset_name="painted faces",
                    dataset_split=quality["settings"]["split"],
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(measured["value"], 4),
                )
            )

    if "tokenizer" in quality:
        add("image-to-image", "psnr", "PSNR of the image tokenizer, dB", quality["tokenizer"]["psnr"])
    if "generation" in quality:
        stated = quality["generation"]["stated"]
        add("text-to-image", "attribute_lift", "mean lift over stated attributes", stated["lift"])
        add("text-to-image", "coarse_attribute_lift", "mean lift over coarse attributes", stated["coarse_lift"])
    if "vqa" in quality:
        add("visual-question-answering", "accuracy", "exact-match accuracy", quality["vqa"]["overall"]["accuracy"])
        add("visual-question-answering", "lift", "lift over the commonest answer", quality["vqa"]["overall"]["lift"])
    if "captions" in quality:
        add("image-to-text", "precision", "attribute precision", quality["captions"]["precision"])
        add("image-to-text", "recall", "attribute recall", quality["captions"]["recall"])
    return found


def measured_on(quality_path: Path | None, weights_sha256: str | None) -> dict | None:
    """The measured quality, if there is any and it belongs to these weights."""
    if quality_path is None or not quality_path.is_file():
        return None
    quality = json.loads(quality_path.read_text(encoding="utf-8"))
    return quality if quality["settings"]["model_sha256"] == weights_sha256 else None


def make_card(
    checkpoint: str | os.PathLike,
    run: str | os.PathLike | None = None,
    quality: str | os.PathLike | None = None,
    configs: str | os.PathLike = CONFIGS,
) -> ModelCard:
    """
    Make the card of a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): Its folder, in transformers' layout.
        run (`str` or `os.PathLike`, *optional*): Folder of the training run, with `log.jsonl`.
        quality (`str` or `os.PathLike`, *optional*): What `benchmarks/quality.py` wrote.
        configs (`str` or `os.PathLike`, *optional*): Folder of the training configurations; the committed ones.

    Returns:
        `huggingface_hub.ModelCard`: the card. Without a log it is silent on the course of training; without numbers
        measured on these very weights it says that quality is not measured yet.

    Raises:
        FileNotFoundError: if the checkpoint has no `config.json`, or a configuration is missing.
    """
    checkpoint, configs = Path(checkpoint), Path(configs)
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} has no config.json, expected a checkpoint's folder")
    config = UniF2aceConfig.from_pretrained(checkpoint)
    measured = measured_on(None if quality is None else Path(quality), checkpoint_sha256(checkpoint))
    log_path = None if run is None else Path(run) / "log.jsonl"
    log = read_log(log_path) if log_path is not None and log_path.is_file() else []
    results = eval_results(measured) if measured else []
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["unif2ace", "text-to-image", "image-text-to-text", "diffusers", "face", "painted-faces", "synthetic"],
        model_name=MODEL_NAME if results else None,
        eval_results=results or None,
    )
    text = config.text_config
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=MODEL_NAME,
        parameters=f"{count_parameters(config) / 1e6:.1f}",
        megabytes=f"{sum(file.stat().st_size for file in checkpoint.rglob('*.safetensors')) / 2**20:.0f}",
        config=config,
        text=text,
        resolution=config.vq_config.resolution,
        stages=_stages(configs),
        training=_read_yaml(configs / LAST_STAGE)["training"],
        preset=_read_yaml(configs / STAGES[0])["preset"],
        minutes=f"{training_minutes(log):.0f}" if log else None,
        steps=log[-1]["step"] if log else None,
        loss_table=loss_table(log),
        quality=measured,
        explanation=explanation(measured) if measured else None,
        summary=summary_table(measured) if measured else None,
        questions=questions_table(measured) if measured and "vqa" in measured else None,
        shares=painter_shares(),
        num_attributes=len(ATTRIBUTES),
        num_values=sum(map(len, ATTRIBUTES.values())),
    )


def count_parameters(config: UniF2aceConfig) -> int:
    with torch.device("meta"):  # shapes only
        return UniF2aceForConditionalGeneration(config).num_parameters()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.hub_card.card",
        description="Write README.md into a checkpoint's folder.",
        epilog="example: python -m unif2ace.hub_card.card --checkpoint hub_card/unif2ace-faces --run runs/unif2ace",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--run", type=Path, help="folder of the training run, with log.jsonl")
    parser.add_argument(
        "--quality", type=Path, default=Path("docs/quality.json"), help="measured numbers (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        card = make_card(options.checkpoint, options.run, options.quality)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(options.checkpoint / "README.md", str(card))
    print(f"wrote {options.checkpoint / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
