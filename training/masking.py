"""Which image codes are hidden at a training step: the mask schedule and its reproducible randomness."""

import math
import random
from dataclasses import dataclass

import torch


SCHEDULES = ("cosine", "linear")


@dataclass(frozen=True)
class MaskSchedule:
    """
    Mask ratio λ as a function of u, uniform in [0, 1].

    Args:
        name (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"`, λ = cos(πu/2) (MaskGIT, Show-o), or `"linear"`, λ = 1 − u.

    Raises:
        ValueError: if there is no such schedule.
    """

    name: str = "cosine"

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise ValueError(f"mask schedule {self.name!r}, expected one of {', '.join(map(repr, SCHEDULES))}")

    def ratio(self, uniform: torch.Tensor) -> torch.Tensor:
        """λ(u), elementwise, same shape as `uniform`."""
        return torch.cos(uniform * (math.pi / 2)) if self.name == "cosine" else 1 - uniform

    def elbo_weight(self, ratio: torch.Tensor) -> torch.Tensor:
        """
        |λ'(u)| / λ, the weight that makes the masked cross-entropy a bound on the likelihood, written in λ itself:
        (π/2)·√(1 − λ²)/λ for the cosine and 1/λ for the linear schedule.
        """
        if self.name == "cosine":
            return (math.pi / 2) * (1 - ratio**2).clamp(min=0).sqrt() / ratio
        return 1 / ratio


def row_generator(seed: int, step: int, row: int) -> torch.Generator:
    """
    A CPU generator for one row of an optimizer step.

    `row` is the row's place in the whole step, over all processes and micro-batches. So the noise of a step depends
    neither on how the step is split nor on what happened before: runs with other micro-batches or processes, and runs
    that were interrupted, draw the same. The global random state can promise neither (data loaders prefetch).
    """
    return torch.Generator().manual_seed(random.Random(f"{seed}-{step}-{row}").getrandbits(63))


def sample_masks(
    batch_size: int,
    num_tokens: int,
    generator: torch.Generator | None = None,
    schedule: MaskSchedule | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw the masks of a batch as Show-o does: u ~ U(0, 1) per image, k = max(1, round(N·λ(u))) random positions.

    Args:
        batch_size (`int`): Images B.
        num_tokens (`int`): Codes N of an image.
        generator (`torch.Generator`, *optional*): CPU generator; the global one when not given.
        schedule (`MaskSchedule`, *optional*): Cosine when not given.

    Returns:
        `masked` (B, N) bool, True where the code is replaced by the mask token, and the realised ratio k/N, (B,)
        float32, which is at least 1/N, so that dividing by it is safe.
    """
    schedule = schedule or MaskSchedule()
    uniform = torch.rand(batch_size, generator=generator)
    num_masked = (schedule.ratio(uniform) * num_tokens).round().long().clamp(min=1, max=num_tokens)
    places = torch.rand(batch_size, num_tokens, generator=generator).argsort(dim=-1)
    return places < num_masked.unsqueeze(-1), num_masked / num_tokens
