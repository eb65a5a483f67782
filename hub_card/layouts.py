"""
What goes into the repositories of a model: the files, where they come from, and under which names.

One model makes two repositories. `"transformers"` has everything at its root, which the Auto classes and `pipeline`
want; `"diffusers"` has `model_index.json` and a folder for each component, which `DiffusionPipeline` wants. Weights
are read where they are: nothing is copied on disk.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .._versions import BASE, requirement
from ..modeling_unif2ace.checkpoint_unif2ace import weight_files
from ..pipelines.files import parse_json
from ..pipelines.loading_unif2ace import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BUNDLED_NAME,
    MODEL_TYPE,
    CheckpointFolders,
    bundled_checkpoint,
    checkpoint_scheduler,
    is_bundled,
)
from ..training.disclosure import public_config
from . import remote_code
from .remote_code import MODEL_CLASS, PACKAGE, PIPELINE_CLASS, PROCESSOR_CLASS


ADAPTER = "adapter"

PROCESSOR_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
# papers that come with converted weights, or that their maker put beside them
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "THIRD_PARTY.md")
SCHEDULER_FILE = "scheduler_config.json"

Content = Path | bytes


class Checkpoint(CheckpointFolders):
    """A checkpoint on disk, in either layout, or a PEFT adapter, with all that publishing needs."""

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Checkpoint":
        """
        Find a checkpoint's parts.

        Raises:
            FileNotFoundError: if the folder is absent or holds no checkpoint, or lacks a file that is needed.
            ValueError: if the model is of another kind.
        """
        if is_bundled(folder):
            folder = bundled_checkpoint()
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is no folder, expected a trained model or an adapter")
        found = super().read(folder)
        if found.is_adapter:
            _require(found.root, ADAPTER_FILES)
            return found
        _require(found.model, ("config.json",))
        _require(found.processor, PROCESSOR_FILES[:-1])
        kind = read_json(found.model / "config.json").get("model_type")
        if kind != MODEL_TYPE:
            raise ValueError(f"{folder} holds a model of type {kind!r}, expected {MODEL_TYPE!r}")
        if not weight_files(found.model):
            raise FileNotFoundError(f"{found.model} has no safetensors weights: save the model with save_pretrained")
        return found

    @property
    def config(self) -> dict:
        """The model's configuration, or the adapter's."""
        return read_json(self.model / ("adapter_config.json" if self.is_adapter else "config.json"))


def repository_files(checkpoint: Checkpoint, layout: str, base_model: str | None = None) -> dict[str, Content]:
    """
    The files of a repository, without its card.

    Args:
        checkpoint ([`Checkpoint`]): The model.
        layout (`str`): `"transformers"`, `"diffusers"` or `"adapter"`.
        base_model (`str`, *optional*): Hub id of the model that an adapter changes.

    Returns:
        `dict[str, Path | bytes]`: a file on disk, or its content, by its path in the repository.
    """
    if layout == ADAPTER:
        files = _adapter(checkpoint, base_model)
    else:
        files = _transformers(checkpoint) if layout == "transformers" else _diffusers(checkpoint)
    for name in LICENCE_FILES:
        if (checkpoint.root / name).is_file():
            files[name] = checkpoint.root / name
    if layout != ADAPTER:  # code is under the package's licence; a model that brings its own keeps that one's name
        files["LICENSE" if "LICENSE" not in files else "LICENSE.code"] = PACKAGE / "LICENSE"
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(layout)).encode()
    return dict(sorted(files.items()))


def requirements(layout: str) -> list[str]:
    """The tested ranges of what a repository needs to run: `["accelerate>=1.12,<1.16", ...]`."""
    names = set(BASE) - {"diffusers"} | {"diffusers": {"diffusers"}, ADAPTER: {"peft"}}.get(layout, set())
    return [requirement(name) for name in sorted(names)]


def _transformers(checkpoint: Checkpoint) -> dict[str, Content]:
    return {
        **_model(checkpoint),
        **_processor(checkpoint),
        **(_scheduler(checkpoint) if (checkpoint.scheduler / SCHEDULER_FILE).is_file() else {}),
        **remote_code.flat_code(),
    }


def _diffusers(checkpoint: Checkpoint) -> dict[str, Content]:
    files = {f"transformer/{name}": content for name, content in _model(checkpoint).items()}
    files |= {f"processor/{name}": content for name, content in _processor(checkpoint).items()}
    files |= _scheduler(checkpoint)
    files |= remote_code.diffusers_code()
    # for the Auto classes with `subfolder=`, which look for code at the root all the same
    files |= remote_code.flat_code()
    index = {"_class_name": list(PIPELINE_CLASS), "_diffusers_version": version("diffusers")}
    index |= {name: list(place) for name, place in remote_code.COMPONENT_CLASSES.items()}
    return files | {"model_index.json": to_json(index)}


def _adapter(checkpoint: Checkpoint, base: str | None) -> dict[str, Content]:
    # the checkpoint inside the package has the same name for everybody
    if base != BUNDLED_NAME and (not base or base.count("/") != 1 or os.path.isabs(base) or os.path.isdir(base)):
        raise ValueError(
            f"the adapter's base_model_name_or_path is {base!r}, expected the Hub repository of the model that it "
            "changes: publish the base first, or name it with base_model=... (--base-model ORG/NAME)"
        )
    config = public_config(checkpoint.config) | {"base_model_name_or_path": base}
    files: dict[str, Content] = {"adapter_config.json": to_json(config)}
    files[ADAPTER_FILES[1]] = _bare_weights(checkpoint.root / ADAPTER_FILES[1])
    for name in PROCESSOR_FILES:
        path = checkpoint.root / name
        if path.is_file():
            files[name] = to_json(public_config(read_json(path))) if name.endswith("_config.json") else path
    return files


def _model(checkpoint: Checkpoint) -> dict[str, Content]:
    config = public_config(checkpoint.config) | {
        "architectures": [MODEL_CLASS[1]],
        "auto_map": remote_code.MODEL_AUTO_MAP,
        "custom_pipelines": remote_code.CUSTOM_PIPELINES,
    }
    files: dict[str, Content] = {"config.json": to_json(config)}
    weights = weight_files(checkpoint.model)
    files |= {path.name: _bare_weights(path) for path in weights}
    if len(weights) > 1 or weights[0].name != "model.safetensors":
        index = read_json(checkpoint.model / "model.safetensors.index.json")
        sizes = {name: size for name, size in index.get("metadata", {}).items() if isinstance(size, int)}
        files["model.safetensors.index.json"] = to_json({"metadata": sizes, "weight_map": index["weight_map"]})
    if (checkpoint.model / "generation_config.json").is_file():
        files["generation_config.json"] = to_json(
            public_config(read_json(checkpoint.model / "generation_config.json"))
        )
    return files


def _processor(checkpoint: Checkpoint) -> dict[str, Content]:
    files: dict[str, Content] = {}
    for name in PROCESSOR_FILES:
        if (checkpoint.processor / name).is_file():
            files[name] = checkpoint.processor / name
    config = public_config(read_json(checkpoint.processor / "processor_config.json"))
    config |= {"processor_class": PROCESSOR_CLASS[1], "auto_map": remote_code.PROCESSOR_AUTO_MAP}
    if isinstance(config.get("image_processor"), dict):  # `AutoImageProcessor` reads this part alone
        config["image_processor"] = config["image_processor"] | {"auto_map": remote_code.PROCESSOR_AUTO_MAP}
    files["processor_config.json"] = to_json(config)
    tokenizer = public_config(read_json(checkpoint.processor / "tokenizer_config.json"))
    tokenizer.pop("auto_map", None)  # it needs no code of its own
    files["tokenizer_config.json"] = to_json(tokenizer)
    return files


def _scheduler(checkpoint: Checkpoint) -> dict[str, Content]:
    scheduler = json.loads(checkpoint_scheduler(checkpoint).to_json_string())
    return {f"scheduler/{SCHEDULER_FILE}": to_json(public_config(scheduler))}


def _bare_weights(path: Path) -> Path:
    """
    Weights whose header holds nothing but tensors.

    Raises:
        ValueError: if trainers have written notes into it, or it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            notes = sorted(set(weights.metadata() or {}) - {"format"})
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}), expected safetensors: save the model again") from error
    if notes:
        raise ValueError(
            f"{path} has notes in its header ({', '.join(notes[:4])}), which would be published: load it and save it "
            "again with save_pretrained"
        )
    return path


def read_json(path: Path) -> dict:
    """
    Raises:
        ValueError: if the file does not hold a JSON object.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}), expected JSON: save the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def to_json(content: dict) -> bytes:
    """JSON as the libraries write it."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _require(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}: save model and processor there with save_pretrained")
