"""
What a checkpoint must be before its weights are used.

`from_pretrained` of transformers 5.23 follows `../` in a shard index out of the folder, takes an index that disagrees
with its shards, and loads weights that are not numbers; all three silently. Our classes refuse them.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .compat_unif2ace import cached_file


MAX_INDEX_BYTES = 64 * 2**20
# Files of a checkpoint, adapter or processor that hold one JSON object each.
_JSON_FILES = (
    *("config.json", "generation_config.json", "model_index.json", "scheduler_config.json", "adapter_config.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json"),
)
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class UniF2aceCheckpointError(OSError):
    """A checkpoint is damaged, contradicts itself, or reaches out of its folder."""


def weight_files(folder: str | os.PathLike, variant: str | None = None) -> list[Path]:
    """
    The weight files of a checkpoint, after a look at their headers: nothing is loaded.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint's folder.
        variant (`str`, *optional*): As in `model.fp16.safetensors`.

    Returns:
        `list[Path]`: one file, or all shards; none if the folder has no weights.

    Raises:
        UniF2aceCheckpointError: if a file is broken or absent, or the index names files outside the folder or tensors
            that its shards do not hold.
    """
    folder = Path(folder)
    single, index = (folder / _with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if single.is_file():
        _tensor_names(single)
        return [single]
    if not index.is_file():
        return []
    expected = read_index(index)
    for name, tensors in expected.items():
        held = _tensor_names(folder / name)
        if held != tensors:
            example = min(held ^ tensors)
            where = "only in the index" if example in tensors else "only in the file"
            raise UniF2aceCheckpointError(
                f"{index} and {name} disagree on {len(held ^ tensors)} tensors ({example} is {where}), expected the "
                "shards of one model: download or save it again"
            )
    return [folder / name for name in expected]


def read_index(index: Path) -> dict[str, set[str]]:
    """
    The shards that an index names, and the tensors of each.

    Raises:
        UniF2aceCheckpointError: if it is no index, or names anything but safetensors files beside it.
    """
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise UniF2aceCheckpointError(f"{index} has more than {MAX_INDEX_BYTES:,} bytes, expected a list of tensors")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(tensor, name) for tensor, name in weight_map.items() if isinstance(name, str)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UniF2aceCheckpointError(
            f'{index} is broken, expected JSON with a "weight_map": save it again'
        ) from error
    shards: dict[str, set[str]] = {}
    for tensor, name in pairs:
        shards.setdefault(name, set()).add(tensor)
    strange = [name for name in shards if Path(name).name != name or "\\" in name or not name.endswith(".safetensors")]
    if strange or not pairs or len(pairs) != len(weight_map):
        what = f"{strange[0]!r}" if strange else "no file for a tensor"
        raise UniF2aceCheckpointError(f"{index} names {what}, expected names of safetensors files in the same folder")
    return shards


def refuse_broken_json(folder: str | os.PathLike) -> None:
    """
    transformers takes a generation config that is cut for an absent one, and samples otherwise without a word; for
    other files it raises whatever comes, without their name.

    Raises:
        UniF2aceCheckpointError: if a configuration or the tokenizer in the folder is no JSON object.
    """
    for path in (Path(folder) / name for name in _JSON_FILES):
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                content = file.read(MAX_INDEX_BYTES + 1)
            whole = len(content) <= MAX_INDEX_BYTES and isinstance(json.loads(content), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise UniF2aceCheckpointError(f"{path} is broken, expected a JSON object: download or save it again")


def refuse_non_finite(model: torch.nn.Module) -> None:
    """
    Raises:
        UniF2aceCheckpointError: if a weight is infinite or not a number.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if not torch.isfinite(local).all():
            raise UniF2aceCheckpointError(
                f"{name} holds values that are infinite or not a number, expected trained weights: use an earlier "
                "checkpoint, or pass check_finite=False to look at this one"
            )


class UniF2aceSafeLoadingMixin:
    """Gives `from_pretrained` the checks of this file. Stands before `PreTrainedModel` among the bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, check_finite: bool = True, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`] that takes safetensors only and refuses damaged checkpoints.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a repository on the Hub.
            check_finite (`bool`, *optional*, defaults to `True`): Whether to look at every weight after loading.
            model_args, kwargs: As in transformers.

        Raises:
            UniF2aceCheckpointError: see [`weight_files`]; and if a weight is infinite or not a number.
            ValueError: for `use_safetensors=False`: other formats can run code.
        """
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError("use_safetensors=False is not supported: convert the weights to safetensors first")
        folder = _folder_with_index(pretrained_model_name_or_path, kwargs)
        if folder is not None and os.path.isdir(pretrained_model_name_or_path):
            refuse_broken_json(folder)
            weight_files(folder, kwargs.get("variant"))
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if folder is not None and not os.path.isdir(pretrained_model_name_or_path):
            weight_files(folder, kwargs.get("variant"))  # the shards are there now
        if check_finite:
            refuse_non_finite(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded


def _folder_with_index(name: str | os.PathLike | None, kwargs: dict) -> Path | None:
    """The folder to check: a local one, or the cached one of a repository that has an index, checked for bad names."""
    if name is None:
        return None
    if os.path.isdir(name):
        return Path(name) / kwargs.get("subfolder", "")
    download = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    index = cached_file(
        os.fspath(name),
        _with_variant(SAFE_WEIGHTS_INDEX_NAME, kwargs.get("variant")),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **download,
    )
    if index is None:
        return None
    read_index(Path(index))
    return Path(index).parent


def _tensor_names(file: Path) -> set[str]:
    if not file.is_file():
        raise UniF2aceCheckpointError(f"{file} is absent, though the index names it: download or save it again")
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, ValueError, OSError) as error:
        raise UniF2aceCheckpointError(f"{file} is broken ({error}): download or save it again") from error


def _with_variant(name: str, variant: str | None) -> str:
    stem, dot, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


__all__ = [
    "UniF2aceCheckpointError",
    "UniF2aceSafeLoadingMixin",
    "read_index",
    "refuse_broken_json",
    "refuse_non_finite",
    "weight_files",
]
