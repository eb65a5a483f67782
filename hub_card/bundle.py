"""
Make the folder that ships, from a trained model: half precision, everything that is needed to run, a model card.

    python -m unif2ace.hub_card.bundle --model runs/unif2ace/final --out hub_card/unif2ace-faces
    python benchmarks/quality.py                                    # measures what was bundled
    unif2ace evaluate --suite custom --data painted:24 --parts experts   # its experts; kept as docs/experts.json
    python -m unif2ace.hub_card.bundle --card-only --out hub_card/unif2ace-faces --run runs/unif2ace

Weights are stored as float16, but `config.json` says `float32`, so that `from_pretrained` computes in float32: the
smaller file is for the download, and half precision is slow on a CPU.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig

from ..modeling_unif2ace import UniF2aceConfig, UniF2aceForConditionalGeneration, UniF2aceVQModel
from ..modeling_unif2ace.provenance_unif2ace import checkpoint_sha256
from ..pipelines import UniF2aceScheduler
from ..pipelines.files import check_new, new_folder, write_text
from ..training.data.language.attributes import ATTRIBUTES, sample_attributes
from ..training.evaluation.results import card_results
from ..training.run_folder import read_lines
from .card import count_parameters, make_card, render, sections
from .facts import find_results, loss_table, training_minutes
from .remote_code import COMPONENT_CLASSES, PACKAGE, PIPELINE_CLASS


TEMPLATE = "bundled.md.jinja"
CONFIGS = PACKAGE / "training" / "synthetic" / "configs"
STAGES = ("unif2ace-faces.yaml", *(f"unif2ace-faces-{number}.yaml" for number in (2, 3, 4, 5)))
LAST_STAGE = STAGES[-1]
_DECODERS = ("tokenizer-faces-decoder.yaml", "tokenizer-faces-2-decoder.yaml")
MODEL_NAME = "UniF²ace faces"
_SAMPLED_FACES = 4_000
# Attributes that the painter gives to one gender only, or far more often.
_GENDERED = ("lipstick", "makeup", "necklace", "updo", "beard", "mustache", "hairline", "earrings")

MAX_MEGABYTES = 60
MAX_NEW_TOKENS = 160
# Painted faces have large flat areas, of which a model is sure long before it is sure of the face: without strong
# noise on the confidence the background is revealed first and grows over everything. Chosen on 32 validation faces;
# benchmarks/sampling.py compares others.
SAMPLING = {"temperature": 0.7, "confidence_temperature": 12.0}

# diffusers takes classes of other packages from modules that are imported already
_MODULES = {
    "processor": "unif2ace.modeling_unif2ace.processing_unif2ace",
    "scheduler": "unif2ace.pipelines.scheduling_unif2ace",
    "transformer": "unif2ace.modeling_unif2ace.modeling_unif2ace",
}
_PACKAGE_PIPELINE = """\
# What `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs: the package's pipeline
import unif2ace
import unif2ace.modeling_unif2ace.modeling_unif2ace
import unif2ace.modeling_unif2ace.processing_unif2ace
import unif2ace.pipelines.scheduling_unif2ace


class UniF2acePipeline(unif2ace.UniF2acePipeline):
    pass
"""


def to_half(model: UniF2aceForConditionalGeneration) -> UniF2aceForConditionalGeneration:
    """
    Cast a model to float16, in place.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    model.to(torch.float16)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} does not fit into float16; train with weight decay, or ship float32")
    return model


def take_decoder(model: UniF2aceForConditionalGeneration, tokenizer: UniF2aceVQModel) -> None:
    """
    Give a model the decoder of another image tokenizer with the same encoder, so with the same codes.

    Raises:
        ValueError: if the encoders differ.
    """
    own, other = (vq_model.encoder.state_dict() for vq_model in (model.model.vq_model, tokenizer))
    if own.keys() != other.keys() or any(not torch.equal(own[name], other[name]) for name in own):
        raise ValueError("the image tokenizer has another encoder, so other codes, than the model was trained with")
    model.model.vq_model.decoder.load_state_dict(tokenizer.decoder.state_dict())


def generation_config(model: UniF2aceForConditionalGeneration) -> GenerationConfig:
    """Greedy text of at most `MAX_NEW_TOKENS` tokens, and how pictures are sampled."""
    text, learnt = model.config.text_config, vars(model.generation_config)
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        # for `generate(generation_mode="image")`, which knows nothing of the scheduler
        image_temperature=SAMPLING["temperature"],
        image_confidence_temperature=SAMPLING["confidence_temperature"],
        **{name: value for name, value in learnt.items() if name.startswith("complete_prompt")},
    )


def _finish_files(folder: Path) -> None:
    """Compute in float32 whatever the weights are stored in; and let everybody read what some writers keep private."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def serve_diffusers_too(folder: Path) -> None:
    """
    Let `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` load a folder of transformers' layout.

    diffusers takes a component from the root where the folder has none of its name, and its class from a module that
    is imported already: the code that it is trusted with imports the package, which lies around this folder.
    """
    classes = {name: [_MODULES[name], class_name] for name, (_, class_name) in COMPONENT_CLASSES.items()}
    index = {"_class_name": list(PIPELINE_CLASS), "_diffusers_version": version("diffusers"), **classes}
    write_text(folder / "model_index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_text(folder / f"{PIPELINE_CLASS[0]}.py", _PACKAGE_PIPELINE)


def folder_megabytes(folder: Path) -> float:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def bundle(
    model: str | os.PathLike,
    out: str | os.PathLike,
    run: str | os.PathLike | None = None,
    quality: str | os.PathLike | None = None,
    overwrite: bool = False,
    image_tokenizer: str | os.PathLike | None = None,
    results: Sequence[str | os.PathLike] = (),
) -> Path:
    """
    Write the folder of a trained model as it ships. It appears whole or not at all.

    Args:
        model (`str` or `os.PathLike`): Folder of the trained model and its processor.
        out (`str` or `os.PathLike`): Folder to write.
        run (`str` or `os.PathLike`, *optional*): Folder of the training run; the one that holds `model` by default.
        quality (`str` or `os.PathLike`, *optional*): Measured numbers, see [`bundled_card`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing folder may be replaced.
        image_tokenizer (`str` or `os.PathLike`, *optional*):
            Folder of the model's image tokenizer with a decoder that was trained further; see [`take_decoder`].
        results (`list[str or os.PathLike]`, *optional*): More measured numbers, see [`bundled_card`].

    Returns:
        `Path`: The folder.

    Raises:
        FileNotFoundError: if there is no trained model.
        FileExistsError: if the folder exists and `overwrite` is not given.
        ValueError:
            if the result is larger than `MAX_MEGABYTES`, the weights do not fit into float16, or the image tokenizer
            is another one.
    """
    model_folder, out = Path(model), Path(out)
    if not (model_folder / "config.json").is_file():
        raise FileNotFoundError(f"{model_folder} has no config.json, expected the folder of a trained model")
    check_new(out, overwrite)
    trained = AutoModelForMultimodalLM.from_pretrained(model_folder, dtype=torch.float32)
    if image_tokenizer is not None:
        take_decoder(trained, UniF2aceVQModel.from_pretrained(image_tokenizer, dtype=torch.float32))
    processor = AutoProcessor.from_pretrained(model_folder)
    with new_folder(out, overwrite) as folder:
        trained.generation_config = generation_config(trained)
        to_half(trained).save_pretrained(folder)
        processor.save_pretrained(folder)
        UniF2aceScheduler(**SAMPLING).save_pretrained(folder / "scheduler")
        serve_diffusers_too(folder)
        _finish_files(folder)
        card = bundled_card(folder, model_folder.resolve().parent if run is None else run, quality, results=results)
        write_text(folder / "README.md", str(card))
        size = folder_megabytes(folder)
        if size > MAX_MEGABYTES:
            raise ValueError(f"the bundle has {size:.1f} MB, expected at most {MAX_MEGABYTES}: use a smaller preset")
    return out


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
    module, place = "python -m unif2ace.training", "--config training/synthetic/configs/"
    encoders, tokenizer = "encoders-faces.yaml", "tokenizer-faces.yaml"
    encoders_2, tokenizer_2 = "encoders-faces-2.yaml", "tokenizer-faces-2.yaml"
    paint = f"{module}.synthetic.painted.dataset --out runs/painted --split"
    people = f"{module}.synthetic.painted.dataset --out runs/painted-people --pictures-per-person"
    encoder, quantizer = f"{module}.synthetic.train_encoders", f"{module}.synthetic.train_tokenizer {place}"
    train = f"OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m unif2ace.cli train {place}"
    better = "image tokenizer, {} stage: a better decoder for the same codes"

    def minutes(config: str, *keys: str) -> int | None:
        section = _read_yaml(configs / config)
        for key in keys:
            section = section[key]
        return section.get("minutes", section.get("max_minutes"))

    def model(number: int) -> tuple[str, str, int | None]:
        ordinal = ("first", "second", "third", "fourth", "fifth")[number]
        return f"the model, {ordinal} stage", train + STAGES[number], minutes(STAGES[number], "training")

    stages = [
        ("paint 30,000 faces", f"{paint} train --count 30000", None),
        ("and some to validate on", f"{paint} validation --count 1000", None),
        ("and to test on", f"{paint} test --count 1000", None),
        ("1,200 people in ten pictures each", f"{people} 10 --split train --count 12000", None),
        ("and 200 others in four", f"{people} 4 --split validation --count 800", None),
        ("text tokenizer", f"{module}.train_text_tokenizer --out runs/text_tokenizer", None),
        # its features are part of the losses of what follows
        ("attribute classifier", f"{encoder} judge {place}{encoders}", minutes(encoders, "judge")),
        ("image tokenizer", quantizer + tokenizer, minutes(tokenizer)),
        ("codes of all pictures", f"{quantizer}{tokenizer} --encode", None),
        ("CLIP encoder", f"{encoder} clip {place}{encoders}", minutes(encoders, "clip")),
        ("face encoder", f"{encoder} face {place}{encoders}", minutes(encoders, "face")),
        model(0),
        model(1),
        ("CLIP encoder, second stage", f"{encoder} clip {place}{encoders_2} --threads 2", minutes(encoders_2, "clip")),
        model(2),
        (better.format("second"), f"{quantizer}{_DECODERS[0]}", minutes(_DECODERS[0])),
        ("image tokenizer, third stage", quantizer + tokenizer_2, minutes(tokenizer_2)),
        ("its codes of all pictures", f"{quantizer}{tokenizer_2} --encode", None),
        model(3),
        model(4),
        (better.format("fourth"), f"{quantizer}{_DECODERS[1]}", minutes(_DECODERS[1])),
    ]
    return [dict(zip(("what", "command", "minutes"), stage, strict=True)) for stage in stages]


def _read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def bundled_card(
    checkpoint: str | os.PathLike,
    run: str | os.PathLike | None = None,
    quality: str | os.PathLike | None = None,
    configs: str | os.PathLike = CONFIGS,
    results: Sequence[str | os.PathLike] = (),
) -> ModelCard:
    """
    Make the card of a checkpoint that was trained on painted faces by the committed configurations.

    Args:
        checkpoint (`str` or `os.PathLike`): Its folder, in transformers' layout.
        run (`str` or `os.PathLike`, *optional*): Folder of the training run, with `log.jsonl`.
        quality (`str` or `os.PathLike`, *optional*): What `benchmarks/quality.py` wrote.
        configs (`str` or `os.PathLike`, *optional*): Folder of the training configurations; the committed ones.
        results (`list[str or os.PathLike]`, *optional*):
            More that `unif2ace evaluate` wrote, as the experts' report; files of other weights are passed over.

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
    files = [*([quality] if quality else []), *results]
    found = find_results([checkpoint_sha256(checkpoint)], [], None, files)
    log_path = None if run is None else Path(run) / "log.jsonl"
    log = read_lines(log_path) if log_path is not None and log_path.is_file() else []
    metadata = {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["unif2ace", "text-to-image", "image-text-to-text", "diffusers", "face", "painted-faces", "synthetic"],
    }
    if found:
        measured = [result for of_suite in found for result in card_results(of_suite)]
        metadata |= {"model_name": MODEL_NAME, "eval_results": measured}
    body = render(
        TEMPLATE,
        name=MODEL_NAME,
        parameters=f"{count_parameters(config) / 1e6:.1f}",
        megabytes=f"{sum(file.stat().st_size for file in checkpoint.rglob('*.safetensors')) / 2**20:.0f}",
        config=config,
        text=config.text_config,
        resolution=config.vq_config.resolution,
        stages=_stages(configs),
        training=_read_yaml(configs / LAST_STAGE)["training"],
        preset=_read_yaml(configs / STAGES[0])["preset"],
        minutes=f"{training_minutes(log):.0f}" if log else None,
        steps=log[-1]["step"] if log else None,
        loss_table=loss_table(log),
        results=sections(found),
        shares=painter_shares(),
        num_attributes=len(ATTRIBUTES),
        num_values=sum(map(len, ATTRIBUTES.values())),
    )
    return make_card(metadata, body)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.hub_card.bundle",
        description="Make the folder that ships from a trained model.",
        epilog="example: python -m unif2ace.hub_card.bundle --model runs/unif2ace/final --out hub_card/unif2ace-faces",
    )
    parser.add_argument("--model", type=Path, help="folder of the trained model")
    parser.add_argument(
        "--card-only", action="store_true", help="write only the card of --out anew, from --run and --quality"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--run", type=Path, help="folder of the training run (default: the one that holds --model)")
    parser.add_argument(
        "--quality", type=Path, default=Path("docs/quality.json"), help="measured numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="FOLDER",
        help="take its decoder, which was trained on for the same codes",
    )
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[Path("docs/experts.json")],
        metavar="FILE",
        help="more of what `unif2ace evaluate` wrote (default: docs/experts.json, the experts' report)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    if (options.model is None) != options.card_only:
        parser.error("give the trained model with --model, or --card-only")
    try:
        if options.card_only:
            card = bundled_card(options.out, options.run, options.quality, results=options.results)
            write_text(options.out / "README.md", str(card))
            print(f"wrote {options.out / 'README.md'}")
            return 0
        folder = bundle(
            options.model,
            options.out,
            options.run,
            options.quality,
            options.overwrite,
            options.image_tokenizer,
            options.results,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}, {folder_megabytes(folder):.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
