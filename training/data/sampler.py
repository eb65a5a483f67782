"""The order of the rows: shuffled, and both tasks in every batch."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ...modeling_unif2ace.layout_unif2ace import TASKS


class ShuffledSampler(Sampler[int]):
    """
    Rows in an order that depends on the seed and the epoch alone, so that a resumed run finds its place in any epoch.

    Args:
        length (`int`): Rows.
        seed (`int`, *optional*, defaults to 0): Seed; with the epoch it fixes the order.
    """

    def __init__(self, length: int, seed: int = 0):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of epoch number `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.length, generator=self._generator()).tolist()

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)


class TaskSampler(ShuffledSampler):
    """
    Shuffle rows of two tasks so that any run of consecutive rows has the wanted share of each, to one row.

    An epoch has as many rows as the data set; the task that is short of rows begins again, shuffled anew.

    Args:
        tasks (`Sequence[str]`): Task of each row, `"t2i"` or `"mmu"`.
        t2i_fraction (`float`): Share of text-to-image rows, in [0, 1].
        seed (`int`, *optional*, defaults to 0): Seed; with the epoch it fixes the order.

    Raises:
        ValueError: if there is no row of a task whose share is not zero.
    """

    def __init__(self, tasks: Sequence[str], t2i_fraction: float, seed: int = 0):
        codes = torch.tensor([TASKS.index(task) for task in tasks])
        super().__init__(len(codes), seed)
        self.rows = [(codes == task).nonzero()[:, 0] for task in range(len(TASKS))]
        self.t2i_fraction = t2i_fraction
        for name, rows, share in zip(TASKS, self.rows, (t2i_fraction, 1 - t2i_fraction), strict=True):
            if share > 0 and len(rows) == 0:
                raise ValueError(f"no {name} row among {len(codes)}, but t2i_fraction={t2i_fraction} asks for some")

    def __iter__(self) -> Iterator[int]:
        generator = self._generator()
        queues = [self._endless(rows, generator) for rows in self.rows]
        for place in range(self.length):
            is_t2i = int((place + 1) * self.t2i_fraction + 1e-9) > int(place * self.t2i_fraction + 1e-9)
            yield next(queues[0 if is_t2i else 1])

    @staticmethod
    def _endless(rows: torch.Tensor, generator: torch.Generator) -> Iterator[int]:
        while True:
            yield from rows[torch.randperm(len(rows), generator=generator)].tolist()
