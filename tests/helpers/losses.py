"""Losses of unpacked tensors, as the tests have them."""

import torch

from unif2ace.modeling_unif2ace.objective_unif2ace import D3DiffLoss, balance_loss, d3diff_loss, router_usage


def d3diff_loss_padded(logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor, **options) -> D3DiffLoss:
    """`d3diff_loss` of logits (B, N, C) and codes (B, N), True in `masked` where the model saw the mask token."""
    row = masked.nonzero()[:, 0]
    return d3diff_loss(logits[masked], targets[masked], row, masked.sum(-1), masked.shape[-1], **options)


def balance_of_logits(router_logits, attention_mask, top_k: int) -> torch.Tensor:
    """The balance loss of a group's router logits, (B, S, E) of each layer."""
    return balance_loss(router_usage(router_logits, attention_mask, top_k))
