"""Means of what training observes between two logs, over all processes."""

import torch
from transformers import Trainer


class Averages:
    """Sums and counts under a fixed list of names: every process must reduce the same list, or it hangs."""

    def __init__(self, names: list[str]):
        self.names = names
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.values: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor, count: torch.Tensor | float) -> None:
        """Add `count` observations that sum up to `total`; both may be vectors for `name_0`, `name_1`, ..."""
        total = total.detach().float()
        pair = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device).expand_as(total)])
        self.values[name] = self.values[name] + pair if name in self.values else pair

    def means(self, trainer: Trainer) -> dict[str, float]:
        """The mean of each name over all processes; names without observations are left out."""
        table = torch.zeros(2, len(self.names), dtype=torch.float64)
        for name, pair in self.values.items():
            if pair.dim() == 1:
                table[:, self.names.index(name)] = pair.cpu()
            else:
                first = self.names.index(f"{name}_0")
                table[:, first : first + pair.shape[1]] = pair.cpu()
        if trainer.args.world_size > 1:
            table = trainer.accelerator.reduce(table.float().to(trainer.args.device), "sum").double().cpu()
        return {
            name: (total / count).item() for name, total, count in zip(self.names, *table, strict=True) if count > 0
        }
