"""Checkpoints in the layout of transformers, written shard by shard, so that only one shard is in memory."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from ...pipelines.files import write_json


# Small, because a shard is held in memory until it is full.
MAX_SHARD_BYTES = 500_000_000
WEIGHTS_NAME = "model"


@dataclass
class Job:
    """
    Tensors that are made together.

    Args:
        shapes (`dict[str, tuple[int, ...]]`): Their names and shapes, in the order in which they are written.
        make (`Callable`): Makes them, by name. Tensors must not share memory with each other.
    """

    shapes: dict[str, tuple[int, ...]]
    make: Callable[[], dict[str, torch.Tensor]]


def write_checkpoint(
    folder: Path,
    jobs: Iterable[Job],
    dtype: torch.dtype,
    name: str = WEIGHTS_NAME,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = False,
) -> int:
    """
    Write tensors as `{name}.safetensors`, or as shards with an index. At most one shard and one job are in memory.

    Args:
        folder (`Path`): Where to write; it exists.
        jobs (`Iterable[Job]`): What to write, in this order.
        dtype (`torch.dtype`): Type of all floating point tensors.
        name (`str`, *optional*, defaults to `"model"`): First part of the files' names.
        max_shard_bytes (`int`, *optional*): Largest shard; a larger tensor has a shard of its own.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        `int`: Bytes of all tensors.

    Raises:
        OSError: if the file system has no room, which is checked before anything is made, or writing fails.
        ValueError: if a job makes other tensors than it promised.
    """
    jobs = list(jobs)
    sizes = {key: torch.Size(shape).numel() * dtype.itemsize for job in jobs for key, shape in job.shapes.items()}
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if total > free:
        raise OSError(
            f"the result needs {total / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free where it should go: make "
            "room, or choose another place"
        )
    shards = _plan(sizes, max_shard_bytes)
    files = [f"{name}.safetensors"]
    if len(shards) > 1:
        files = [f"{name}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    remaining, shard = iter(zip(files, shards, strict=True)), {}
    file, wanted = next(remaining)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for job in jobs:
            made = job.make()
            if {key: tuple(tensor.shape) for key, tensor in made.items()} != job.shapes:
                raise ValueError(f"{', '.join(job.shapes)} were promised, but other tensors were made: this is a bug")
            for key in job.shapes:
                tensor = made.pop(key)
                shard[key] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
                bar.update(sizes[key])
                if len(shard) == len(wanted):
                    try:
                        save_file(shard, folder / file, metadata={"format": "pt"})
                    except SafetensorError as error:
                        raise OSError(
                            f"{file} could not be written ({error}): make room, or choose another place"
                        ) from error
                    shard = {}
                    file, wanted = next(remaining, (None, []))
            del made
    if len(shards) > 1:
        weight_map = {key: file for file, names in zip(files, shards, strict=True) for key in names}
        write_json(
            folder / f"{name}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    return total


def _plan(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names of each shard."""
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards
