"""
Train UniF²ace, from a preset and its trained parts or from a checkpoint, on painted faces or on any other.

    unif2ace train --config unif2ace-faces
    unif2ace train --config unif2ace-faces --resume
    unif2ace train --config my.yaml --set training.max_steps=20 --output runs/trial
    torchrun --nproc_per_node 2 -m unif2ace.cli train --config unif2ace-faces

A configuration is a YAML file; `docs/training.md` explains its sections, `training/synthetic/configs` and
`examples/training` hold some. The run's folder gets `config.yaml`, `run.json` (revision, versions, start of every
resumption), `log.jsonl`, `experts.jsonl`, `plots/`, `samples/`, checkpoints and, in the end, `final/`: the
averaged weights with the processor, a folder that `from_pretrained` reads.

A fresh model needs other parts first: `make train-faces` runs everything in its order, `make train-painted` likewise
for the bundled checkpoint.
"""

import itertools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, set_seed
from transformers.distributed import DistributedConfig

from ..modeling_unif2ace import (
    UniF2aceConfig,
    UniF2aceFaceEncoder,
    UniF2aceForConditionalGeneration,
    UniF2aceImageProcessor,
    UniF2aceProcessor,
    UniF2aceVQModel,
    get_preset,
)
from .arguments import UniF2aceTrainingArguments
from .callbacks import RunPlots, Samples
from .checkpoints import last_checkpoint
from .data.collator import UniF2aceCollator
from .data.rows import make_rows
from .run_folder import LOG_FILE, write_run
from .train_text_tokenizer import build_tokenizer
from .trainer import UniF2aceTrainer


PART_CLASSES = {"vq_model": UniF2aceVQModel, "vision_tower": CLIPVisionModel, "face_encoder": UniF2aceFaceEncoder}
PART_CONFIGS = {"vq_model": "vq_config", "vision_tower": "vision_config", "face_encoder": "face_config"}
SECTIONS = "preset initial fresh model text_tokenizer parts data samples generation distributed training".split()
TOKENIZER_ROWS = 4000  # whose words make a text tokenizer, where the configuration names none


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number: YAML 1.1 wants `1.0e-3`, which nobody remembers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: list[str] = ()) -> dict[str, Any]:
    """
    Read a YAML configuration with the sections `SECTIONS`.

    Args:
        path (`str` or `Path`): The file, or the name of one of the package's configurations, like `"unif2ace-faces"`.
        overrides (`list[str]`, *optional*): Changes like `"training.max_steps=20"`; values are YAML.

    Raises:
        ValueError: if a section is unknown or an override is malformed.
    """
    config = _parse(_find_config(path).read_text(encoding="utf-8"), path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a configuration: expected the sections {', '.join(SECTIONS)}")
    override(config, overrides)
    unknown = set(config) - set(SECTIONS)
    if unknown:
        raise ValueError(f"{path} has the unknown section {min(unknown)!r}, expected {', '.join(SECTIONS)}")
    return config


def override(config: dict[str, Any], changes: list[str]) -> None:
    """
    Change values of a configuration in place, by `"section.name=value"`; values are YAML.

    Raises:
        ValueError: if a change is malformed.
    """
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change!r}, expected key=value, for example training.max_steps=20")
        *folders, name = key.split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = _parse(value, change)


def _parse(text: str, name: str | Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split()) or "too deep"
        raise ValueError(f"{str(name)[:200]} is not YAML that can be read ({problem[:300]}): mend it") from None


def _find_config(path: str | Path):
    if Path(path).exists():
        return Path(path)
    folder = resources.files(f"{__package__}.synthetic") / "configs"
    if (folder / f"{path}.yaml").is_file():
        return folder / f"{path}.yaml"
    names = sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))
    raise FileNotFoundError(f"there is no configuration {path}: give a YAML file or one of {', '.join(names)}")


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
        ValueError: if a part is unknown.
        StrictDataclassError: if parts and preset do not fit together, or a field has a value that it cannot have.
    """
    trained = _load_parts(parts)
    fields = get_preset(preset).to_dict()
    for name, part in trained.items():
        fields[PART_CONFIGS[name]] = part.config.to_dict()
    for name, value in (changes or {}).items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    model = UniF2aceForConditionalGeneration(UniF2aceConfig(**fields))
    for name, part in trained.items():
        model.model.get_submodule(name).load_state_dict(part.state_dict())
    return model


def _load_parts(parts: dict[str, str | Path] | None) -> dict[str, nn.Module]:
    unknown = set(parts or ()) - set(PART_CLASSES)
    if unknown:
        raise ValueError(f"unknown part {min(unknown)!r}, expected one of {', '.join(PART_CLASSES)}")
    return {name: PART_CLASSES[name].from_pretrained(folder) for name, folder in (parts or {}).items()}


def exchange_parts(model: UniF2aceForConditionalGeneration, parts: dict[str, str | Path] | None) -> None:
    """
    Put other weights of the same shape into parts of a trained model, in place, and give it encoders that it lacks.

    Args:
        model (`UniF2aceForConditionalGeneration`): The model.
        parts (`dict`): Folders of trained `vq_model`, `vision_tower`, `face_encoder`.

    Raises:
        ValueError: if a part is unknown or does not fit.
    """
    for name, part in _load_parts(parts).items():
        if getattr(model.model, name) is None:
            put = {"vision_tower": model.model.set_vision_tower, "face_encoder": model.model.set_face_encoder}[name]
            put(part)
            continue
        try:
            model.model.get_submodule(name).load_state_dict(part.state_dict())
        except RuntimeError as error:
            raise ValueError(f"parts: {parts[name]} does not fit the model's {name}: {error}") from error


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


def train(config: dict[str, Any], resume: bool = False) -> UniF2aceTrainer:
    """
    Train as `config` (of [`load_config`]) says.

    Args:
        config (`dict`): The configuration.
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest whole checkpoint of the output folder.

    Returns:
        [`UniF2aceTrainer`]: After training; its `stopped_by` is `None` if it came to its end, and the trained model is
        in the folder `final` then.

    Raises:
        ValueError: if the output folder holds an earlier run that is not to be resumed, or the configuration is wrong.
        FileNotFoundError: if there is nothing to resume from.
    """
    if "output_dir" not in config.get("training", {}):
        raise ValueError("the run has no folder: give --output, or training.output_dir in the configuration")
    output = Path(config["training"]["output_dir"])
    earlier = next((path for path in (*output.glob("checkpoint-*"), output / "final") if path.exists()), None)
    if earlier is not None and not resume:
        raise ValueError(f"{earlier} exists: go on from it with --resume, or set another training.output_dir")
    arguments = _arguments(config["training"])
    is_first = arguments.process_index == 0
    checkpoint = last_checkpoint(output, print if is_first else None) if resume else None
    set_seed(arguments.seed)

    with arguments.main_process_first(local=False, desc="data and model"):  # which may write caches
        model, processor, train_rows, eval_rows = _prepare(config, arguments, output)
    if config.get("distributed"):
        model = _shard(model, config["distributed"], arguments, output)
    trainer = UniF2aceTrainer(
        model=model,
        args=arguments,
        data_collator=UniF2aceCollator.from_processor(processor, model.config),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
    )
    trainer.keep_log(output / LOG_FILE)
    trainer.add_callback(RunPlots(trainer, output))
    samples = dict(config.get("samples") or {})
    if samples:
        pictures = _pictures(eval_rows if eval_rows is not None else train_rows, samples.pop("pictures", 0))
        trainer.add_callback(Samples(trainer, output, pictures=pictures, **samples))

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    if is_first:
        count = len(train_rows) if hasattr(train_rows, "__len__") else None
        facts = {"trained_parameters": trained, "parameters": total, "rows": count}
        write_run(output, config, resumed_from=checkpoint and checkpoint.name, processes=arguments.world_size, **facts)
        rows = "rows from a stream" if count is None else f"{count} rows"
        print(f"{trained / 1e6:.1f}M trained of {total / 1e6:.1f}M parameters, {rows}")
        if checkpoint is not None:
            print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopped_by is None:
        if trainer.is_fsdp_enabled:  # checkpoints are sharded, but this is to be read by one process
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(output / "final"))
    return trainer


def _arguments(training: dict[str, Any]) -> UniF2aceTrainingArguments:
    try:
        return UniF2aceTrainingArguments(**training)
    except TypeError as error:  # an unknown name, in Python's words
        name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if name is None:
            raise
        raise ValueError(f"training.{name[1]} is unknown: see UniF2aceTrainingArguments for what there is") from error


def _prepare(
    config: dict[str, Any], arguments: UniF2aceTrainingArguments, output: Path
) -> tuple[UniF2aceForConditionalGeneration, UniF2aceProcessor, Dataset, Dataset | None]:
    """Model, processor, training rows and held-out rows."""
    if config.get("initial"):  # a trained checkpoint instead of fresh weights; codes must be those of its tokenizer
        model = UniF2aceForConditionalGeneration.from_pretrained(config["initial"], dtype="float32")
        exchange_parts(model, config.get("parts"))
        start_afresh(model, config.get("fresh", ()))
    else:
        if "preset" not in config:
            raise ValueError("the configuration names neither `initial`, a checkpoint, nor `preset`, a fresh shape")
        model = build_model(config["preset"], config.get("parts"), config.get("model"))
    processor = UniF2aceProcessor.from_pretrained(config["initial"]) if config.get("initial") else None
    image_processor = UniF2aceImageProcessor.from_resolution(model.config.vq_config.resolution)
    if processor is not None:
        image_processor = processor.image_processor
    if model.config.face_config is not None and model.config.face_config.alignment != "whole":
        image_processor.face_size = model.config.face_config.image_size
    for name, value in (config.get("generation") or {}).items():
        setattr(model.generation_config, name, value)
    model.model.to(arguments.device)  # features are computed there
    train_rows, eval_rows = make_rows(
        config["data"],
        arguments.seed,
        model.model,
        image_processor,
        progress=not arguments.disable_tqdm,
    )
    if processor is None:
        processor = UniF2aceProcessor.from_config(model.config, _tokenizer(config, model.config, train_rows, output))
    return model, processor, train_rows, eval_rows


def _shard(
    model: UniF2aceForConditionalGeneration,
    distributed: dict[str, Any],
    arguments: UniF2aceTrainingArguments,
    output: Path,
) -> UniF2aceForConditionalGeneration:
    """
    The model, sharded over the processes by transformers' own FSDP2 as [`~transformers.DistributedConfig`] says. It
    shards while it loads, so the model goes through a folder.
    """
    folder = output / "initial"
    with arguments.main_process_first(local=False, desc="initial weights"):
        if arguments.process_index == 0:
            model.save_pretrained(folder)
    place = "cpu" if arguments.device.type == "cpu" else None
    return UniF2aceForConditionalGeneration.from_pretrained(
        folder, dtype=model.dtype, distributed_config=DistributedConfig(**distributed), device_map=place
    )


def _tokenizer(
    config: dict[str, Any], model_config: UniF2aceConfig, rows: Dataset, output: Path
) -> PreTrainedTokenizerFast:
    """The text tokenizer that the configuration names, or one of the rows' own words, kept in the run's folder."""
    if config.get("text_tokenizer"):
        return PreTrainedTokenizerFast.from_pretrained(config["text_tokenizer"])
    folder = output / "text_tokenizer"
    if not folder.exists():
        texts: list[str] = []
        in_order = (rows[i] for i in range(len(rows))) if hasattr(rows, "__len__") else iter(rows)
        for row in itertools.islice(in_order, TOKENIZER_ROWS):
            texts += [row["text"]] if row["task"] == "t2i" else [text for turn in row["turns"] for text in turn]
        tokenizer = build_tokenizer(texts, model_config.text_vocab_size, model_config.vq_config.num_bits)
        tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _pictures(rows: Dataset, count: int) -> list[Image.Image]:
    """The pictures of the first understanding rows."""
    found: list[Image.Image] = []
    if hasattr(rows, "tasks"):
        of_mmu = (rows[number] for number, task in enumerate(rows.tasks) if task == "mmu")
    else:  # a stream
        of_mmu = (row for row in rows if row["task"] == "mmu")
    for row in itertools.islice(of_mmu, count):
        if row.get("image") is not None:
            found.append(row["image"])
        elif row.get("pixel_values") is not None:
            pixels = ((torch.as_tensor(row["pixel_values"]) + 1) * 127.5).round().clamp(0, 255).byte()
            found.append(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return found
