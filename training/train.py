"""
Train UniF²ace on painted faces, from a preset and its trained parts.

    python -m unif2ace.training.train --config training/configs/unif2ace-faces.yaml
    python -m unif2ace.training.train --config training/configs/unif2ace-faces.yaml --resume
    python -m unif2ace.training.train --config training/configs/unif2ace-faces.yaml --set training.max_steps=20
    python -m unif2ace.training.train --config training/configs/unif2ace-faces.yaml --set initial=FOLDER

Needs, in this order: the render cache (`training.data.painted`), the image tokenizer and the codes of the pictures
(`training.train_tokenizer`), the two encoders (`training.train_encoders`), the text tokenizer
(`training.train_text_tokenizer`). Writes checkpoints, `log.jsonl` and, in the end, `final/`: the averaged weights with
the processor, a folder that `from_pretrained` reads.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, set_seed

from ..modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoder,
    UniF2aceForConditionalGeneration,
    UniF2aceProcessor,
    UniF2aceVQModel,
    get_preset,
)
from .arguments import UniF2aceTrainingArguments
from .callbacks import JsonLog
from .checkpoints import last_checkpoint
from .data.collator import UniF2aceCollator
from .data.painted_rows import PaintedRows
from .trainer import UniF2aceTrainer


PART_CLASSES = {"vq_model": UniF2aceVQModel, "vision_tower": CLIPVisionModel, "face_encoder": UniF2aceFaceEncoder}
PART_CONFIGS = {"vq_model": "vq_config", "vision_tower": "vision_config", "face_encoder": "face_config"}
SECTIONS = ("preset", "initial", "fresh", "model", "text_tokenizer", "parts", "data", "training")


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number: YAML 1.1 wants `1.0e-3`, which nobody remembers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: list[str] = ()) -> dict[str, Any]:
    """
    Read a YAML configuration with the sections `SECTIONS`.

    Args:
        path (`str` or `Path`): The file.
        overrides (`list[str]`, *optional*): Changes like `"training.max_steps=20"`; values are YAML.

    Raises:
        ValueError: if a section is unknown or an override is malformed.
    """
    config = yaml.load(Path(path).read_text(), Loader=_Loader)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r}, expected key=value, for example training.max_steps=20")
        *folders, name = key.split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = yaml.load(value, Loader=_Loader)
    unknown = set(config) - set(SECTIONS)
    if unknown:
        raise ValueError(f"{path} has the unknown section {min(unknown)!r}, expected {', '.join(SECTIONS)}")
    return config


def build_model(
    preset: str, parts: dict[str, str | Path] | None = None, changes: dict[str, Any] | None = None
) -> UniF2aceForConditionalGeneration:
    """
    A model with fresh weights around trained parts.

    Args:
        preset (`str`): Name of the shape, see [`~unif2ace.modeling_unif2ace.get_preset`].
        parts (`dict`, *optional*):
            Folders of trained `vq_model`, `vision_tower`, `face_encoder`; their configurations replace the preset's.
        changes (`dict`, *optional*): Fields of the configuration to set, `{"text_config": {...}, ...}`.

    Raises:
        ValueError: if a part is unknown, or parts and preset do not fit together.
    """
    unknown = set(parts or ()) - set(PART_CLASSES)
    if unknown:
        raise ValueError(f"unknown part {min(unknown)!r}, expected one of {', '.join(PART_CLASSES)}")
    trained = {name: PART_CLASSES[name].from_pretrained(folder) for name, folder in (parts or {}).items()}
    fields = get_preset(preset).to_dict()
    for name, part in trained.items():
        fields[PART_CONFIGS[name]] = part.config.to_dict()
    for name, value in (changes or {}).items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    model = UniF2aceForConditionalGeneration(UniF2aceConfig(**fields))
    for name, part in trained.items():
        model.model.get_submodule(name).load_state_dict(part.state_dict())
    return model


def start_afresh(model: UniF2aceForConditionalGeneration, names: list[str]) -> None:
    """
    Give the named modules of a trained model new initial weights, as in a fresh model of the same configuration.

    Args:
        model (`UniF2aceForConditionalGeneration`): The model, changed in place.
        names (`list[str]`): Names of modules, like `"model.resamplers.clip"`.

    Raises:
        ValueError: if the model has no module of such a name.
    """
    if not names:
        return
    untrained = UniF2aceForConditionalGeneration(model.config)
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"fresh: the model has no module {name!r}") from error
        module.load_state_dict(untrained.get_submodule(name).state_dict())


def train(config: dict[str, Any], resume: bool = False) -> Path:
    """
    Train as `config` (of [`load_config`]) says.

    Args:
        config (`dict`): The configuration.
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest checkpoint of the output folder.

    Returns:
        `Path`: The folder of the trained model.

    Raises:
        ValueError: if the output folder holds an earlier run that is not to be resumed.
    """
    output = Path(config["training"]["output_dir"])
    earlier = next((path for path in (*output.glob("checkpoint-*"), output / "final") if path.exists()), None)
    if earlier is not None and not resume:
        raise ValueError(f"{earlier} exists: go on from it with --resume, or set another training.output_dir")
    arguments = UniF2aceTrainingArguments(**config["training"])
    set_seed(arguments.seed)
    if config.get("initial"):  # a trained checkpoint instead of fresh weights; codes must be those of its tokenizer
        model = UniF2aceForConditionalGeneration.from_pretrained(config["initial"], dtype="float32")
        start_afresh(model, config.get("fresh", ()))
        processor = UniF2aceProcessor.from_pretrained(config["initial"])
        tokenizer = processor.tokenizer
    else:
        model = build_model(config["preset"], config.get("parts"), config.get("model"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(config["text_tokenizer"])
        processor = UniF2aceProcessor.from_config(model.config, tokenizer)

    data = dict(config["data"])
    validation = data.pop("validation_count")
    folder, passes = data.pop("folder"), data.pop("passes")
    train_rows = PaintedRows(folder, "train", passes=passes, seed=arguments.seed, **data)
    validation_rows = PaintedRows(folder, "validation", count=validation)

    trainer = UniF2aceTrainer(
        model=model,
        args=arguments,
        data_collator=UniF2aceCollator(tokenizer, model.config, processor.image_processor),
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=processor,
        callbacks=[JsonLog(output / "log.jsonl")],
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained / 1e6:.1f}M trained of {model.num_parameters() / 1e6:.1f}M parameters, {len(train_rows)} rows")
    trainer.train(resume_from_checkpoint=str(last_checkpoint(output)) if resume else None)
    trainer.save_model(str(output / "final"))
    return output / "final"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.training.train",
        description="Train UniF²ace on painted faces.",
        epilog="example: python -m unif2ace.training.train --config training/configs/unif2ace-faces.yaml --resume",
    )
    parser.add_argument("--config", required=True, help="YAML file, see training/configs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the file")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    options = parser.parse_args(arguments)
    try:
        final = train(load_config(options.config, options.set), options.resume)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {final}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
