"""Checkpoints of other projects, read one tensor at a time: safetensors or PyTorch files, whole or in shards."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...pipelines.files import read_json
from ...pipelines.loading_unif2ace import fetch_folder


# In the order in which they are looked for: what cannot run code first.
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
INDEX_FILES = tuple(f"{name}.index.json" for name in WEIGHT_FILES)
PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PYTORCH_SUFFIXES)

# what a damaged or foreign PyTorch file raises
_PYTORCH_ERRORS = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError)
_ZIP_START = b"PK"


def fetch_weights(name: str | os.PathLike) -> Path:
    """
    The local folder (or file) of a checkpoint; of a repository on the Hub configuration and weights are downloaded,
    PyTorch files only where there is no safetensors.

    Raises:
        OSError: if there is neither.
    """
    folder = fetch_folder(name, ["config.json", "*.safetensors", "*.safetensors.index.json"])
    if folder.is_dir() and not os.path.exists(os.fspath(name)) and not list(folder.glob("*.safetensors")):
        folder = fetch_folder(name, ["config.json", "*.bin", "*.bin.index.json"])
    return folder


class CheckpointReader:
    r"""
    The tensors of a checkpoint by name. Nothing is read until it is asked for, and one file is open at a time.

    PyTorch files are opened with `weights_only=True`, which runs no code of theirs, and mapped, not loaded.

    Args:
        path (`str` or `os.PathLike`): A weight file, or a folder with one weight file or an index of shards.

    Attributes:
        shapes (`dict[str, tuple[int, ...]]`): Shape of every tensor, shard by shard.
        dtypes (`dict[str, torch.dtype]`): Their types.
        files (`list[Path]`): The files.

    Raises:
        FileNotFoundError: if there are no weights, or a shard of the index is absent.
        ValueError: if a file is broken, truncated or holds something else than tensors, or the index is wrong.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.files, index = _weight_files(self.path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file_of: dict[str, Path] = {}
        self._open_file: Path | None = None
        self._tensors = None
        for file in self.files:
            for name, shape, dtype in self._list(file):
                if name in self._file_of:
                    raise ValueError(f"{name} is in {self._file_of[name].name} and again in {file.name}")
                self._file_of[name], self.shapes[name], self.dtypes[name] = file, shape, dtype
        if index is not None:
            self._check_index(index)

    def _check_index(self, index: dict[str, str]):
        strangers = sorted(set(index) ^ set(self._file_of))
        moved = sorted(name for name in set(index) & set(self._file_of) if self._file_of[name].name != index[name])
        if strangers or moved:
            raise ValueError(
                f"{self.path}: the index and the shards disagree about {_few(strangers or moved)}: download it again"
            )

    def _list(self, file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        tensors = self._load(file)
        for name in tensors.keys():  # noqa: SIM118 (a safetensors file has keys and is not iterable)
            tensor = tensors.get_slice(name) if file.suffix == ".safetensors" else tensors[name]
            if file.suffix == ".safetensors":
                yield name, tuple(tensor.get_shape()), _SAFETENSORS_TYPES.get(tensor.get_dtype(), torch.uint8)
            else:
                yield name, tuple(tensor.shape), tensor.dtype

    def _load(self, file: Path):
        if self._open_file == file:
            return self._tensors
        self._tensors = self._open_file = None  # frees the mapping of the file before
        self._tensors = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pytorch(file)
        self._open_file = file
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, on the CPU. Raises `ValueError` if its file turns out to be broken."""
        file = self._file_of[name]
        tensors = self._load(file)
        if file.suffix != ".safetensors":
            return tensors[name]
        try:
            return tensors.get_tensor(name)
        except SafetensorError as error:
            raise _broken(file, error) from error


_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a checkpoint and, if it has one, the index from names to files."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is no weight file, expected one that ends in {', '.join(SUFFIXES)}")
        return [path], None
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}, expected a checkpoint's folder or weight file")
    # a whole file before an index of the same kind, safetensors before PyTorch
    for name, index_name in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if (path / name).is_file():
            return [path / name], None
        if (path / index_name).is_file():
            return _sharded_files(path / index_name)
    raise FileNotFoundError(
        f"{path} holds no weights, expected one of {', '.join(WEIGHT_FILES)}, or an index of shards"
    )


def _sharded_files(index_file: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        index = read_json(index_file)["weight_map"]
        names = list(dict.fromkeys(index.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_file} is broken, expected JSON with a weight_map: download it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in SUFFIXES:
            raise ValueError(f"{index_file} names {name!r}, expected plain names of weight files in the same folder")
        if not (index_file.parent / name).is_file():
            raise FileNotFoundError(f"{index_file} names {name}, which is not there: download it again")
    return [index_file.parent / name for name in names], index


def _open_safetensors(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise _broken(file, error) from error


def _open_pytorch(file: Path) -> dict[str, torch.Tensor]:
    with file.open("rb") as start:
        mappable = start.read(2) == _ZIP_START
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mappable)
    except _PYTORCH_ERRORS as error:
        raise _broken(file, error) from error
    for nested in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(nested), dict):
            content = content[nested]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no dictionary of tensors, expected a state dict")
    return content


def _broken(file: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return ValueError(f"{file} is broken or truncated ({reason}): download it again")


def _few(names: list[str], most: int = 4) -> str:
    """Some of many names."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_keys(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], owner: str):
    """
    Compare the tensors of a checkpoint with those that a model has.

    Args:
        found (`dict[str, tuple[int, ...]]`): Shapes in the checkpoint.
        expected (`dict[str, tuple[int, ...]]`): Shapes in the model.
        owner (`str`): What to call the checkpoint in the message.

    Raises:
        ValueError: if keys are missing, surplus or misshapen; the message names them.
    """
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    faults = [
        f"{len(names)} {kind} ({_few(names)})"
        for kind, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise ValueError(f"{owner} does not have the {len(expected)} tensors that it should have: {'; '.join(faults)}")


def check_finite(name: str, tensor: torch.Tensor):
    """`ValueError` if a tensor has values that are not finite."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite: the checkpoint is damaged")
