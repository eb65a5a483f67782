"""Moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class WeightAverage:
    """
    Exponential moving average, in float32, of the weights of `model` that are trained.

    Args:
        model (`nn.Module`): The model; parameters without gradient are left out.
        decay (`float`): Share of the old average kept at a step, in [0, 1]; warmed up as min(decay, (1 + t)/(10 + t)),
            so that the first steps do not linger in it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step number `step` (from 1 on) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the model has the averaged weights."""
        with torch.no_grad():
            trained = {name: p.detach().clone() for name, p in self.parameters.items()}
            for name, p in self.parameters.items():
                p.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(trained[name])

    def save(self, path: str | Path) -> None:
        """Write the average to a safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, path)

    def load(self, path: str | Path) -> None:
        """
        Read the average from a file that [`save`] wrote.

        Raises:
            ValueError: if the file is for other parameters.
        """
        stored = load_file(path)
        if stored.keys() != self.average.keys():
            differing = sorted(stored.keys() ^ self.average.keys())
            raise ValueError(
                f"{path} is the average of another model: {len(differing)} names differ, first {differing[0]}"
            )
        for name, tensor in stored.items():
            self.average[name].copy_(tensor)
