"""
D3Diff, the loss of text-to-image training, and the balance loss of the routers.

The score-entropy term of the paper (section 3.2) is, with a softmax over the image codes, a weighted cross-entropy:
at a masked position the score entropy equals `-r·log p(x0)` (plus a constant in the paper's parametrisation) with
`r = (1 - λ)/λ`, and its gradient is the same. Training uses that closed form, which has no 0·∞ at λ = 1; the literal
score entropy is kept below as the reference that the tests compare with.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .masking import MaskSchedule


WEIGHTINGS = ("inverse_ratio", "elbo", "dse")


@dataclass
class D3DiffLoss:
    """
    `loss = mask_weight·mask_loss + alpha·score_loss` (scalars) and `token_loss`, the cross-entropy of each masked
    position, never weighted.
    """

    loss: torch.Tensor
    mask_loss: torch.Tensor
    score_loss: torch.Tensor
    token_loss: torch.Tensor


def score_weight(ratio: torch.Tensor, weighting: str, schedule: MaskSchedule) -> torch.Tensor:
    """
    Weight of a row's summed cross-entropy in the score term.

    Args:
        ratio (`torch.Tensor`): Realised mask ratios λ in (0, 1].
        weighting (`str`):
            `"inverse_ratio"`, 1/λ (RADD's λ-DCE); `"elbo"`, |λ'|/λ of the schedule; `"dse"`, (1 − λ)/λ, the score
            entropy without the rate of the noise.
        schedule (`MaskSchedule`): Read by `"elbo"` only.

    Raises:
        ValueError: if there is no such weighting.
    """
    if weighting == "inverse_ratio":
        return 1 / ratio
    if weighting == "elbo":
        return schedule.elbo_weight(ratio)
    if weighting == "dse":
        return (1 - ratio) / ratio
    raise ValueError(f"weighting {weighting!r}, expected one of {', '.join(map(repr, WEIGHTINGS))}")


def d3diff_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    row: torch.Tensor,
    num_masked: torch.Tensor,
    num_tokens: int,
    alpha: float = 0.01,
    mask_weight: float = 1.0,
    weighting: str = "inverse_ratio",
    schedule: MaskSchedule | None = None,
    position_weight: torch.Tensor | None = None,
    mask_denominator: torch.Tensor | float | None = None,
    row_denominator: torch.Tensor | float | None = None,
) -> D3DiffLoss:
    """
    D3Diff over the masked positions of a batch, packed one after the other.

    Args:
        logits (`torch.Tensor` of shape `(n, C)`):
            Scores over the C image codes (and nothing else: a softmax over more states is biased) at masked positions.
        targets (`torch.Tensor` of shape `(n,)`): Clean codes in [0, C), int64.
        row (`torch.Tensor` of shape `(n,)`): Row of the batch, in [0, B), that each position belongs to.
        num_masked (`torch.Tensor` of shape `(B,)`): Masked positions of each row; adds up to n.
        num_tokens (`int`): Codes N of an image.
        alpha (`float`, *optional*, defaults to 0.01): Weight of the score term; 0 gives the mask term exactly.
        mask_weight (`float`, *optional*, defaults to 1): Weight of the mask term; 0 is the paper's "only score".
        weighting (`str`, *optional*, defaults to `"inverse_ratio"`): See [`score_weight`].
        schedule (`MaskSchedule`, *optional*): The schedule of `weighting="elbo"`; cosine when not given.
        position_weight (`torch.Tensor` of shape `(n,)`, *optional*):
            Factor of each position's cross-entropy in both terms; 1 when not given. Not in the paper.
        mask_denominator (`float`, *optional*):
            Masked positions to divide the mask term by. Give the count over all micro-batches and processes of an
            optimizer step, so that the result does not depend on how the step was split. n when not given.
        row_denominator (`float`, *optional*): Rows to divide the score term by, likewise. B when not given.

    Returns:
        [`D3DiffLoss`] in float32. Without any masked position all terms are 0, with zero gradients.
    """
    token_loss = F.cross_entropy(logits.float(), targets, reduction="none")
    mask_denominator = max(targets.numel(), 1) if mask_denominator is None else mask_denominator
    row_denominator = max(num_masked.numel(), 1) if row_denominator is None else row_denominator

    ratio = num_masked.clamp(min=1).float() / num_tokens
    weight = score_weight(ratio, weighting, schedule or MaskSchedule())
    weighted = token_loss if position_weight is None else token_loss * position_weight
    mask_loss = weighted.sum() / mask_denominator
    score_loss = (weighted * weight[row]).sum() / row_denominator
    loss = mask_loss if mask_weight == 1 else mask_weight * mask_loss
    loss = loss if alpha == 0 else loss + alpha * score_loss
    return D3DiffLoss(loss, mask_loss, score_loss, token_loss)


def d3diff_loss_padded(
    logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor, **kwargs: object
) -> D3DiffLoss:
    """
    [`d3diff_loss`] for unpacked tensors.

    Args:
        logits (`torch.Tensor` of shape `(B, N, C)`): Scores over the C image codes.
        targets (`torch.Tensor` of shape `(B, N)`): Clean codes, int64.
        masked (`torch.Tensor` of shape `(B, N)`): True where the model saw the mask token.
        kwargs: `alpha`, `weighting`, `schedule` and the denominators of [`d3diff_loss`].
    """
    row = masked.nonzero()[:, 0]
    return d3diff_loss(logits[masked], targets[masked], row, masked.sum(-1), masked.shape[-1], **kwargs)


def score_entropy(log_probs: torch.Tensor, targets: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """
    Score entropy at masked positions as SEDD and RADD write it, score `s = r·p` with `r = (1 - λ)/λ`. Reference only:
    it equals `-r·log p(x0)` and is not a number at λ = 1.

    Args:
        log_probs (`torch.Tensor` of shape `(n, C)`): Log-probabilities of the codes.
        targets (`torch.Tensor` of shape `(n,)`): Clean codes.
        ratio (`torch.Tensor` of shape `(n,)`): Probability λ that a token is masked at this time.
    """
    odds = (1 - ratio) / ratio
    return _literal_score_entropy(log_probs, targets, odds, scale=odds)


def score_entropy_paper(log_probs: torch.Tensor, targets: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """
    [`score_entropy`] with the paper's score `s = p/q(mask | x0) = p/λ`: larger by `1 + r·log(1 - λ)`, which does not
    depend on the model.
    """
    return _literal_score_entropy(log_probs, targets, (1 - ratio) / ratio, scale=1 / ratio)


def _literal_score_entropy(log_probs, targets, odds, scale):
    score = scale.unsqueeze(-1) * log_probs.exp()
    score_of_target = score.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return score.sum(-1) - odds * score_of_target.log() + odds * (odds.log() - 1)


@dataclass
class RouterUsage:
    """
    How the tokens of a batch were routed, `(layers, E)` each: `counts`, how many tokens chose an expert; `load`, its
    share of all choices, which adds up to 1 and has no gradient; `probability`, the router's mean probability.
    """

    counts: torch.Tensor
    load: torch.Tensor
    probability: torch.Tensor


def router_usage(
    router_logits: tuple[torch.Tensor, ...],
    attention_mask: torch.Tensor | None,
    top_k: int,
    num_tokens: torch.Tensor | float | None = None,
) -> RouterUsage:
    """
    Measure the routing of one group.

    Args:
        router_logits (`tuple` of `torch.Tensor` of shape `(B, S, E)` or `(B, E)`): Logits of each layer's router.
        attention_mask (`torch.Tensor` of shape `(B, S)` or `(B,)`, *optional*): 0 at padding, which is left out.
        top_k (`int`): Experts that a token uses.
        num_tokens (`float`, *optional*):
            Tokens to divide the probabilities by: with those of the whole optimizer step, of which this is a part, the
            parts add up. The tokens at hand when not given.
    """
    probability = torch.stack(router_logits).float().softmax(-1).flatten(1, -2)  # (layers, tokens, E)
    chosen = torch.zeros_like(probability).scatter_(-1, probability.detach().topk(top_k, dim=-1).indices, 1.0)
    tokens = probability.new_ones(probability.shape[1]) if attention_mask is None else attention_mask.flatten().float()
    counts = torch.einsum("lte,t->le", chosen, tokens)
    total = tokens.sum().clamp(min=1)
    return RouterUsage(
        counts=counts,
        load=counts / (total * top_k),
        probability=torch.einsum("lte,t->le", probability, tokens) / (total if num_tokens is None else num_tokens),
    )


def balance_loss(
    router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None, top_k: int
) -> torch.Tensor:
    """
    Load-balance loss of one group, `E·Σ_e f_e·P_e`, mean over layers; 1 when the routing is even.

    `f` is the share of chosen slots (the paper's load with the 1/K of MoE++ and Switch, so that it adds up to 1
    whatever K is; transformers' Mixtral leaves the 1/K out) and `P` the mean probability, both without padding.

    Args:
        router_logits (`tuple` of `torch.Tensor` of shape `(B, S, E)`): Logits of each layer's router.
        attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 0 at padding.
        top_k (`int`): Experts that a token uses.

    Returns:
        Scalar in float32; 0 for a group without rows or without layers.
    """
    if not router_logits:
        return torch.zeros(())
    usage = router_usage(router_logits, attention_mask, top_k)
    return balance_of(usage)


def balance_of(usage: RouterUsage) -> torch.Tensor:
    """The balance loss of a routing that [`router_usage`] has measured."""
    return usage.load.shape[-1] * (usage.load * usage.probability).sum(-1).mean()
