"""
Checkpoints on disk and on the Hub: the one reader of both layouts, and of adapters.

transformers' layout has everything at its root, perhaps with the scheduler's configuration in `scheduler/`; diffusers'
has `model_index.json` and a folder for each component. A folder with `model_index.json` and the components at its root
serves both libraries, as the bundled checkpoint does.
"""

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library huggingface_hub stands on
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig
from transformers.utils import logging

from ..modeling_unif2ace.checkpoint_unif2ace import refuse_broken_json
from ..modeling_unif2ace.sampling_unif2ace import ImageSampling
from .scheduling_unif2ace import UniF2aceScheduler


logger = logging.get_logger(__name__)

MODEL_TYPE = "unif2ace"
BUNDLED_NAME = "unif2ace-faces"  # the folder of the checkpoint inside the package
COMPONENTS = ("transformer", "scheduler", "processor")
DOWNLOAD_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Code is never fetched, nor weights whose format can run code.
_NEVER_FETCHED = ["*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx"]


@dataclass(frozen=True)
class CheckpointFolders:
    """
    Where the parts of a checkpoint are.

    Args:
        root (`Path`): The checkpoint's folder.
        model (`Path`): `config.json` and the weights.
        processor (`Path`): Tokenizer and processor.
        scheduler (`Path`): `scheduler_config.json`, if there is one.
        is_adapter (`bool`): Whether the folder holds a PEFT adapter; all parts are then the folder itself.
    """

    root: Path
    model: Path
    processor: Path
    scheduler: Path
    is_adapter: bool = False

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "CheckpointFolders":
        """
        Find the parts of a checkpoint of either layout, or of an adapter.

        Raises:
            FileNotFoundError: if the folder holds neither.
            UniF2aceCheckpointError: if one of its configurations, or its tokenizer, is no JSON object.
        """
        folders = cls._find(Path(folder))
        for part in {folders.root, folders.model, folders.processor, folders.scheduler}:
            refuse_broken_json(part)
        return folders

    @classmethod
    def _find(cls, folder: Path) -> "CheckpointFolders":
        if (folder / "model_index.json").is_file() and (folder / "transformer").is_dir():
            return cls(folder, folder / "transformer", folder / "processor", folder / "scheduler")
        if (folder / "config.json").is_file():
            return cls(folder, folder, folder, folder / "scheduler")
        if (folder / ADAPTER_CONFIG).is_file():
            return cls(folder, folder, folder, folder, is_adapter=True)
        raise FileNotFoundError(
            f"{folder} holds neither model_index.json, config.json nor {ADAPTER_CONFIG}, so it is no checkpoint: name "
            "the folder that save_pretrained wrote"
        )


def bundled_checkpoint() -> Path:
    """The folder of the checkpoint inside the package; `OSError` if this installation has none."""
    folder = Path(str(resources.files(__package__.rpartition(".")[0]))) / "hub_card" / BUNDLED_NAME
    if not folder.is_dir():
        raise OSError(f"this installation has no bundled checkpoint in {folder}; name a folder or a Hub repository")
    return folder


def is_bundled(name: str | os.PathLike | None) -> bool:
    """Whether a name means the checkpoint inside the package: none, or `unif2ace-faces` where no such folder is."""
    return name is None or (os.fspath(name) == BUNDLED_NAME and not os.path.isdir(name))


def fetch_folder(
    path: str | os.PathLike, files: list[str] | None = None, never: list[str] | None = None, **download
) -> Path:
    """
    A folder or a file on disk, or a repository of the Hub, which is downloaded: the one place that does so.

    Args:
        path (`str` or `os.PathLike`): A folder, a file, a repository, or the bundled checkpoint's name.
        files (`list[str]`, *optional*): Patterns of the only files that are wanted of a repository.
        never (`list[str]`, *optional*): Patterns of files that are not.
        download: Of [`~huggingface_hub.snapshot_download`].

    Raises:
        OSError: if there is no such thing.
    """
    name = os.fspath(path)
    if os.path.exists(name):
        return Path(name)
    if is_bundled(name):
        return bundled_checkpoint()
    if name == f"hub_card/{BUNDLED_NAME}":  # where it lies in a checkout, written elsewhere
        raise OSError(f"there is no folder {name} here: everywhere the bundled checkpoint is called {BUNDLED_NAME}")
    try:
        validate_repo_id(name)
        return Path(snapshot_download(name, allow_patterns=files, ignore_patterns=never, **download))
    except HFValidationError as error:
        raise OSError(
            f"there is no folder {name}, and a repository cannot have that name: name a folder that is there, a "
            f"repository as ORG/NAME, or {BUNDLED_NAME}"
        ) from error
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise OSError(
            f"there is no folder {name}, and no repository of that name could be fetched from the Hub "
            f"({type(error).__name__}); check the name, the access rights and the connection"
        ) from error


def fetch_checkpoint(path: str | os.PathLike, files: list[str] | None = None, **download) -> Path:
    """
    The local folder of a checkpoint; one of the Hub is downloaded, without code.

    Args:
        path (`str` or `os.PathLike`): A folder, a repository, or the bundled checkpoint's name.
        files (`list[str]`, *optional*): The only files that are wanted.
        download: Of [`~huggingface_hub.snapshot_download`].

    Raises:
        OSError: if there is no such folder or repository.
    """
    folder = fetch_folder(path, files, _NEVER_FETCHED, **download)
    if not folder.is_dir():
        raise OSError(f"{path} is a file, expected a checkpoint's folder or a repository on the Hub")
    return folder


def fetch_adapter(path: str | os.PathLike, **download) -> Path:
    """The local folder of an adapter; of one on the Hub the two files that are needed are downloaded."""
    folder = fetch_checkpoint(path, files=[ADAPTER_CONFIG, ADAPTER_WEIGHTS], **download)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise OSError(f"{folder} has no {file}, so it is no LoRA adapter that can be loaded")
    return folder


def adapter_base(folder: Path) -> str | None:
    """
    What an adapter changes, as `from_pretrained` takes it: a folder or a repository; `None` is the bundled checkpoint.

    Raises:
        OSError: if the adapter's configuration is broken or does not say.
    """
    file = folder / ADAPTER_CONFIG
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, RecursionError, AttributeError) as error:
        raise OSError(f"{file} is broken: {error}") from error
    if not base or not isinstance(base, str):
        raise OSError(f"{file} does not name its base model: load that, then call load_lora_weights({str(folder)!r})")
    return None if is_bundled(base) else base


def checkpoint_numbers(path: str | os.PathLike | None) -> ImageSampling:
    """How a checkpoint draws pictures, read from its `generation_config.json` without loading it."""
    folders = CheckpointFolders.read(bundled_checkpoint() if path is None else fetch_checkpoint(path))
    if folders.is_adapter:
        return checkpoint_numbers(adapter_base(folders.root))
    return ImageSampling.from_generation_config(_generation_config(folders.model))


def checkpoint_scheduler(folders: CheckpointFolders) -> UniF2aceScheduler:
    """The scheduler with which a checkpoint's pipeline begins, made without loading the model."""
    return _make_scheduler(folders.scheduler, _generation_config(folders.model))


def _generation_config(folder: Path) -> GenerationConfig:
    known = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if known else GenerationConfig()


def load_components(folders: CheckpointFolders, given: dict[str, Any], **model_options) -> dict[str, Any]:
    """
    Model, processor and scheduler of a checkpoint.

    Args:
        folders ([`CheckpointFolders`]): Where they are.
        given (`dict[str, Any]`): Components that are there already, by name.
        model_options: Of the model's `from_pretrained`.

    Raises:
        OSError: if a part is missing or broken, or the model is of another kind.
    """
    components = dict(given)
    if "transformer" not in components:
        components["transformer"] = _load_model(folders.model, **model_options)
    if "processor" not in components:
        components["processor"] = AutoProcessor.from_pretrained(folders.processor)
    if "scheduler" not in components:
        components["scheduler"] = _make_scheduler(folders.scheduler, components["transformer"].generation_config)
    return components


def _make_scheduler(folder: Path, home: GenerationConfig) -> UniF2aceScheduler:
    """The scheduler of the numbers in the generation config; where it names none, the saved one, whose they become."""
    own = UniF2aceScheduler.from_generation_config(home)
    if not (folder / "scheduler_config.json").is_file():
        return own
    saved = UniF2aceScheduler.from_pretrained(folder)
    if not ImageSampling.stands_in(home):
        saved.sampling_numbers().write_to(home)
        return saved
    if saved.sampling_numbers() != own.sampling_numbers():
        logger.warning(
            f"{folder / 'scheduler_config.json'} and generation_config.json have other numbers for drawing pictures; "
            "the latter are used: save the pipeline to bring them together"
        )
    return own


def _load_model(folder: Path, **options) -> Any:
    """The model of a checkpoint that is one, and that has all its weights."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OSError(f"{file} is missing or broken, so the model cannot be loaded") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != MODEL_TYPE:
        raise OSError(f"{folder} holds a model of type {kind!r}, expected {MODEL_TYPE!r}")
    try:
        model, info = AutoModelForMultimodalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    except StrictDataclassError as error:
        raise OSError(f"{file} is no configuration of this model: {' '.join(str(error).split())}") from error
    if info["missing_keys"]:  # transformers would go on with random numbers
        missing = sorted(info["missing_keys"])
        raise OSError(f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} among them: save it again")
    return model


__all__ = [
    "BUNDLED_NAME",
    "CheckpointFolders",
    "bundled_checkpoint",
    "checkpoint_numbers",
    "checkpoint_scheduler",
    "fetch_checkpoint",
    "fetch_folder",
    "is_bundled",
    "load_components",
]
