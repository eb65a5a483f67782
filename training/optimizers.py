"""Muon for the weight matrices, AdamW for everything else, in one optimizer."""

from collections.abc import Iterable

import torch
from torch import nn


# Matrices that AdamW trains all the same: tables that are looked up, the head, and routers, whose rows are classes.
TABLES = ("embed_tokens", "lm_head", "router", "queries", "mixing", "position_embeddings")


def orthogonalised(matrices: torch.Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> torch.Tensor:
    """
    The nearest semi-orthogonal matrices, roughly, by a quintic Newton-Schulz iteration (Muon, Jordan et al. 2024).

    Args:
        matrices (`torch.Tensor` of shape `(..., rows, columns)`): Matrices, each on its own.
        steps (`int`, *optional*, defaults to 5): Iterations; singular values end between about 0.7 and 1.2.
        dtype (`torch.dtype`, *optional*):
            What the iteration is computed in, the matrices' own when not given. bfloat16 is precise enough: the
            result is only roughly semi-orthogonal anyway.

    Returns:
        `torch.Tensor` of the same shape and dtype as `matrices`. A matrix of zeros stays one.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    states = matrices.mT if tall else matrices
    states = (states / states.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = states @ states.mT
        states = a * states + (b * gram + c * gram @ gram) @ states
    return (states.mT if tall else states).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    r"""
    Muon with AdamW's step size for parameters of groups with `muon=True`, AdamW for the others.

    Muon's step is the orthogonalised momentum times 0.2·sqrt(max(rows, columns)), which gives it the root mean square
    of AdamW's usual step (Liu et al. 2025, "Muon is scalable for LLM training"), so learning rates mean the same for
    both. Fused experts (experts, rows, columns) are orthogonalised expert by expert.

    Args:
        params (`Iterable[dict]`): Parameter groups; each may set `lr`, `weight_decay` and `muon`.
        lr (`float`, *optional*, defaults to 1e-3): Learning rate.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.98)`): AdamW's.
        eps (`float`, *optional*, defaults to 1e-8): AdamW's.
        momentum (`float`, *optional*, defaults to 0.95): Muon's, in Nesterov's form.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled, for both.
        bf16 (`bool`, *optional*, defaults to `False`): Orthogonalise in bfloat16, half the time where it is fast.
    """

    def __init__(
        self,
        params: Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        bf16: bool = False,
    ):
        self.orthogonalise_dtype = torch.bfloat16 if bf16 else None
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "muon": False,
        }
        super().__init__(params, defaults)
        self._share()

    def _share(self):
        """
        Give the groups without Muon to torch's own AdamW, fused: the same dictionaries and the same state, so that
        schedulers, checkpoints and whoever else looks see one optimizer.
        """
        groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw = torch.optim.AdamW(groups, fused=True) if groups else None
        if self.adamw is not None:
            self.adamw.state = self.state

    def __setstate__(self, state: dict):
        super().__setstate__(state)
        self._share()  # the state that was loaded is another dictionary

    @torch.no_grad()
    def step(self, closure=None):
        """One update; returns the closure's loss if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    self._muon(parameter, parameter.grad, self.state[parameter], group)
        if self.adamw is not None:
            self.adamw.step()
        return loss

    def _muon(self, parameter: torch.Tensor, grad: torch.Tensor, state: dict, group: dict):
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        direction = orthogonalised(grad.lerp(state["momentum"], group["momentum"]), dtype=self.orthogonalise_dtype)
        parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape[-2:]) ** 0.5)


class MuonAdamWFactory:
    """Builds [`MuonAdamW`] for a model, in the form that [`~transformers.Trainer`] takes for such optimizers."""

    def __call__(self, model: nn.Module, lr: float, muon_lr: float, weight_decay: float, **kwargs) -> MuonAdamW:
        """
        Args:
            model (`nn.Module`): The model; parameters without gradient are left out.
            lr (`float`): Learning rate of what AdamW trains.
            muon_lr (`float`): Learning rate of the weight matrices.
            weight_decay (`float`): Of matrices; vectors have none.
            kwargs: `betas`, `eps`, `momentum`, `bf16` of [`MuonAdamW`].
        """
        matrices, tables, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() < 2 or name.endswith("bias"):  # the fused experts' biases are matrices in shape only
                vectors.append(parameter)
            else:
                (tables if any(table in name for table in TABLES) else matrices).append(parameter)
        groups = [
            {"params": matrices, "lr": muon_lr, "weight_decay": weight_decay, "muon": True},
            {"params": tables, "lr": lr, "weight_decay": weight_decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ]
        return MuonAdamW([group for group in groups if group["params"]], lr=lr, **kwargs)


__all__ = ["MuonAdamW", "MuonAdamWFactory", "orthogonalised"]
