"""
The objective of both tasks: D3Diff for pictures, cross-entropy for answers, balance losses for the routers; and the
masking that makes a batch for it.

The score-entropy term of the paper (section 3.2) is, with a softmax over the image codes, a weighted cross-entropy:
at a masked position the score entropy equals `-r·log p(x0)` (plus a constant in the paper's parametrisation) with
`r = (1 - λ)/λ`, and its gradient is the same. Training uses that closed form, which has no 0·∞ at λ = 1; the literal
score entropy is kept below as the reference that the tests compare with.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_unif2ace import UniF2aceConfig
from .layout_unif2ace import MMU, T2I, TASKS
from .sampling_unif2ace import MaskSchedule


NO_LABEL = -100  # what no loss reads
WEIGHTINGS = ("inverse_ratio", "elbo", "dse")
BALANCE_SCOPES = ("step", "micro_batch")
RATIO_BUCKETS = 4  # the text-to-image loss is also noted by quarter of the mask ratio


# ---- Masking --------------------------------------------------------------------------------------------------------


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
    num_masked = (schedule.ratio(uniform, num_tokens) * num_tokens).round().long().clamp(min=1, max=num_tokens)
    places = torch.rand(batch_size, num_tokens, generator=generator).argsort(dim=-1)
    return places < num_masked.unsqueeze(-1), num_masked / num_tokens


def hide_codes(
    batch: Mapping[str, torch.Tensor],
    config: UniF2aceConfig,
    masked: torch.BoolTensor | None = None,
    schedule: MaskSchedule | None = None,
) -> dict[str, torch.Tensor]:
    """
    Mask image codes of a collator's batch, and tell the objective what they were.

    `model(**hide_codes(batch, config))` is the whole objective, so a `transformers.Trainer` or a loop of one's own
    trains both tasks. [`UniF2aceTrainer`] does this itself.

    Args:
        batch (`dict`): `input_ids` and `task_ids`, as the collator makes them, with the codes in place: the
            text-to-image rows' N codes end one column before the last.
        config (`UniF2aceConfig`): The model's configuration.
        masked (`torch.BoolTensor` of shape `(text-to-image rows, N)`, *optional*):
            True where a code is to be hidden; drawn from torch's global generator when not given.
        schedule (`MaskSchedule`, *optional*): Of the masks that are drawn; cosine when not given.

    Returns:
        `batch` with other `input_ids`, and `image_labels` (B, S): the vocabulary ids of the hidden codes, -100
        elsewhere.
    """
    n, input_ids = config.num_image_tokens, batch["input_ids"].clone()
    rows = (batch["task_ids"] == T2I).nonzero()[:, 0]
    if masked is None:
        masked = sample_masks(len(rows), n, schedule=schedule)[0].to(input_ids.device)
    span = slice(input_ids.shape[1] - n - 1, input_ids.shape[1] - 1)
    codes = input_ids[rows, span]
    input_ids[rows, span] = codes.masked_fill(masked, config.mask_token_id)
    image_labels = torch.full_like(input_ids, NO_LABEL)
    image_labels[rows, span] = codes.masked_fill(~masked, NO_LABEL)
    return {**batch, "input_ids": input_ids, "image_labels": image_labels}


# ---- D3Diff ---------------------------------------------------------------------------------------------------------


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


def score_weight(
    ratio: torch.Tensor, weighting: str, schedule: MaskSchedule, num_tokens: int = 256, power: float = 1.0
) -> torch.Tensor:
    """
    Weight of a row's summed cross-entropy in the score term.

    Args:
        ratio (`torch.Tensor`): Realised mask ratios λ in (0, 1].
        weighting (`str`):
            `"inverse_ratio"`, 1/λ to the `power` (to the first, RADD's λ-DCE); `"elbo"`, |λ'|/λ of the schedule;
            `"dse"`, (1 − λ)/λ, the score entropy without the rate of the noise.
        schedule (`MaskSchedule`): Read by `"elbo"` only.
        num_tokens (`int`, *optional*, defaults to 256): Codes of an image, which some schedules depend on.
        power (`float`, *optional*, defaults to 1.0):
            Read by `"inverse_ratio"` only: the larger, the more do pictures of which little is hidden count; at 0 the
            score term is the plain cross-entropy, summed.

    Raises:
        ValueError: if there is no such weighting.
    """
    if weighting == "inverse_ratio":
        return 1 / ratio**power
    if weighting == "elbo":
        return schedule.elbo_weight(ratio, num_tokens)
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
    weighting_power: float = 1.0,
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
        weighting_power (`float`, *optional*, defaults to 1.0): The `power` of [`score_weight`].
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
    weight = score_weight(ratio, weighting, schedule or MaskSchedule(), num_tokens, weighting_power)
    weighted = token_loss if position_weight is None else token_loss * position_weight
    mask_loss = weighted.sum() / mask_denominator
    score_loss = (weighted * weight[row]).sum() / row_denominator
    loss = mask_loss if mask_weight == 1 else mask_weight * mask_loss
    loss = loss if alpha == 0 else loss + alpha * score_loss
    return D3DiffLoss(loss, mask_loss, score_loss, token_loss)


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


# ---- Balance of the experts -----------------------------------------------------------------------------------------


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


def balance_loss(usage: RouterUsage) -> torch.Tensor:
    """
    Load-balance loss `E·Σ_e f_e·P_e` of a routing that [`router_usage`] has measured, mean over layers; 1 when it is
    even. `f` is the share of chosen slots (the paper's load with the 1/K of MoE++ and Switch, so that it adds up to 1
    whatever K is; transformers' Mixtral leaves the 1/K out) and `P` the mean probability, both without padding.
    """
    return usage.load.shape[-1] * (usage.load * usage.probability).sum(-1).mean()


class StepLoad(nn.Module):
    """
    The share of its group's choices that each expert got in an optimizer step, over all micro-batches and processes.

    The balance loss `E·Σ f·P` is not additive over parts of a step: `f` has to be that of the whole step, which is
    known only when the step is over. So it is taken from the step before (even at the first), which makes the loss of
    a step the same however the step is split into micro-batches and processes.

    Args:
        num_layers (`int`), num_experts (`int`): The routers of one group.
    """

    def __init__(self, num_layers: int, num_experts: int):
        super().__init__()
        shape = (len(TASKS), num_layers, num_experts)
        self.load = nn.Buffer(torch.full(shape, 1 / max(num_experts, 1)))
        self.counts = nn.Buffer(torch.zeros(shape), persistent=False)

    def end_step(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """
        Make what was counted in this step the `load` (tasks, layers, E); a group without tokens keeps its own.
        `reduce` sums a tensor over all processes.
        """
        counts = reduce(self.counts)
        total = counts.sum(-1, keepdim=True)
        self.load = torch.where(total > 0, counts / total.clamp(min=1), self.load)
        self.counts = torch.zeros_like(self.load)


def summarize_load(load: torch.Tensor) -> dict[str, float]:
    """
    How evenly a group's experts are used.

    Args:
        load (`torch.Tensor` of shape `(layers, E)`): Shares of the choices, each row adding up to 1.

    Returns:
        `max_load`, the busiest expert's share in units of the even share, mean over layers (1 is even); `entropy`, in
        units of the even load's (1 is even); `dead_experts`, how many, over all layers, nobody chose.
    """
    num_experts = load.shape[-1]
    return {
        "router_max_load": load.amax(-1).mean().item() * num_experts,
        "router_entropy": torch.special.entr(load).sum(-1).mean().item() / math.log(max(num_experts, 2)),
        "dead_experts": float((load == 0).sum().item()),
    }


# ---- The objective --------------------------------------------------------------------------------------------------


def answer_positions(labels: torch.LongTensor) -> torch.BoolTensor:
    """Where (B, S) the text head is needed: one place before each label that is not -100."""
    return F.pad(labels[:, 1:] != NO_LABEL, (0, 1))


class UniF2aceObjective(nn.Module):
    r"""
    What training minimises: `Σ weights[name]·term` over the named terms that `forward` returns.

    - `mask_loss` and `score_loss`, the two terms of D3Diff, over text-to-image rows;
    - `mmu_loss`, the cross-entropy of an answer's token, over understanding rows;
    - `t2i_balance`, `mmu_balance`, `t2i_sequence_balance`, `mmu_sequence_balance`: the balance of the groups' experts.

    For another loss, subclass it, add terms and put their weights into `weights` (1 where there is none); give it to
    [`UniF2aceTrainer`] as `objective`, or set `model.objective`. `note` what else should be logged.

    Terms are means over the batch, unless the batch brings `denominators`: then they are the batch's parts of the
    means over the whole optimizer step, and a step is the same however it was split. `counts` gives what has to be
    summed for them.

    Args:
        config (`UniF2aceConfig`): The model's configuration.
        alpha (`float`, *optional*, defaults to 0.01): Weight of D3Diff's score term (paper section 3.2).
        mask_weight (`float`, *optional*, defaults to 1.0): Weight of D3Diff's mask term.
        weighting (`str`, *optional*, defaults to `"inverse_ratio"`): See [`score_weight`].
        weighting_power (`float`, *optional*, defaults to 1.0):
            With `"inverse_ratio"` the score term weighs a picture by 1/λ to this power.
        schedule (`str`, *optional*, defaults to `"cosine"`): The [`MaskSchedule`], read by `weighting="elbo"`.
        mmu_weight (`float`, *optional*, defaults to 1.0): Weight of the answers.
        t2i_balance_coef, mmu_balance_coef (`float`, *optional*, defaults to 0.01):
            Weights of the balance of each group's token-level experts.
        t2i_sequence_balance_coef, mmu_sequence_balance_coef (`float`, *optional*, defaults to 0.0):
            Likewise of the sequence-level experts. Ours: the paper balances the token level only.
        balance_scope (`str`, *optional*, defaults to `"micro_batch"`):
            What the loads of the balance losses are counted over. `"micro_batch"`, the batch itself, as in Switch and
            Mixtral; `"step"`, the optimizer step before: then whoever trains calls `end_step`.
        code_weights (`torch.FloatTensor` of shape `(N,)`, *optional*):
            Factor of each code's loss by its place in the grid; all 1 when not given. Not in the paper.
    """

    def __init__(
        self,
        config: UniF2aceConfig,
        alpha: float = 0.01,
        mask_weight: float = 1.0,
        weighting: str = "inverse_ratio",
        weighting_power: float = 1.0,
        schedule: str = "cosine",
        mmu_weight: float = 1.0,
        t2i_balance_coef: float = 0.01,
        mmu_balance_coef: float = 0.01,
        t2i_sequence_balance_coef: float = 0.0,
        mmu_sequence_balance_coef: float = 0.0,
        balance_scope: str = "micro_batch",
        code_weights: torch.FloatTensor | None = None,
    ):
        super().__init__()
        self.config = config
        self.weighting, self.weighting_power, self.schedule = weighting, weighting_power, MaskSchedule(schedule)
        self.weights = {
            "mask_loss": mask_weight,
            "score_loss": alpha,
            "mmu_loss": mmu_weight,
            "t2i_balance": t2i_balance_coef,
            "mmu_balance": mmu_balance_coef,
            "t2i_sequence_balance": t2i_sequence_balance_coef,
            "mmu_sequence_balance": mmu_sequence_balance_coef,
        }
        self.notes: dict[str, tuple[torch.Tensor, torch.Tensor | float]] | None = None
        self.code_weights = None if code_weights is None else nn.Buffer(code_weights, persistent=False)
        self.loads = None
        if balance_scope == "step":
            text = config.text_config
            self.loads = nn.ModuleDict(
                {
                    "token": StepLoad(len(text.moe_layers), text.num_routed_experts),
                    "sequence": StepLoad(len(text.sequence_moe_layers), len(text.t2i_sequence_experts)),
                }
            )

    def forward(self, outputs, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs ([`UniF2aceOutput`]):
                `image_logits` at the places of `image_labels`, `text_logits` at [`answer_positions`] of `labels`, and
                the router logits of all three kinds.
            batch (`dict`):
                What the model saw: `input_ids`, `image_labels` and, all of them optional, `labels`, `attention_mask`,
                `task_ids`, `denominators`.

        Returns:
            `dict[str, torch.Tensor]`: scalars in float32, not weighted; with zero gradients where there are no rows.
        """
        is_t2i = self.task_ids(batch) == T2I
        mask_total, row_total, answer_total, *token_totals = batch.get("denominators", (None,) * 7)
        terms = self.d3diff(outputs.image_logits, batch, is_t2i, mask_total, row_total)
        if batch.get("labels") is not None:
            terms["mmu_loss"] = self.answers(outputs.text_logits, batch["labels"], answer_total)
        for level in ("token", "sequence"):
            for task in (T2I, MMU):
                rows = is_t2i if task == T2I else ~is_t2i
                total = token_totals[task + len(TASKS) * (level == "sequence")]
                terms.update(self.balance(level, task, outputs, batch, rows, total))
        return terms

    def total(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss: the weighted sum of what `forward` returned."""
        return sum(
            term if self.weights.get(name, 1) == 1 else self.weights[name] * term for name, term in terms.items()
        )

    def task_ids(self, batch: Mapping[str, torch.Tensor]) -> torch.LongTensor:
        """The rows' tasks (B,), told by the batch or by `<|t2i|>`."""
        if batch.get("task_ids") is not None:
            return batch["task_ids"]
        return self.config.layout.task_ids(batch["input_ids"])

    def note(self, name: str, total: torch.Tensor, count: torch.Tensor | float = 1.0) -> None:
        """
        Note something to be logged as the mean of `count` observations that add up to `total`, both scalars or of one
        shape. A term that is not noted is logged as its mean over micro-batches.
        """
        if self.notes is not None:
            self.notes[name] = (total.detach(), count)

    def d3diff(self, image_logits, batch, is_t2i, mask_total=None, row_total=None) -> dict[str, torch.Tensor]:
        """The terms of D3Diff over the hidden codes."""
        image_labels = batch["image_labels"]
        masked = image_labels != NO_LABEL
        targets = image_labels[masked] - self.config.image_code_offset
        row, column = masked[is_t2i].nonzero().unbind(-1)
        num_masked = masked[is_t2i].sum(-1)
        code_weight = None
        if self.code_weights is not None:
            first = (batch["input_ids"][is_t2i] >= self.config.image_code_offset).int().argmax(-1)
            code_weight = self.code_weights[column - first[row]]
        loss = d3diff_loss(
            image_logits,
            targets,
            row=row,
            num_masked=num_masked,
            num_tokens=self.config.num_image_tokens,
            weighting=self.weighting,
            schedule=self.schedule,
            weighting_power=self.weighting_power,
            position_weight=code_weight,
            mask_denominator=mask_total,
            row_denominator=row_total,
        )
        if self.notes is not None:
            self.note(
                "score_loss", loss.score_loss * (len(num_masked) if row_total is None else row_total), len(num_masked)
            )
            self.note("mask_loss", loss.token_loss.sum(), len(targets))
            bucket = (
                (num_masked / self.config.num_image_tokens * RATIO_BUCKETS).long().clamp(max=RATIO_BUCKETS - 1)[row]
            )
            zeros = torch.zeros(RATIO_BUCKETS, device=bucket.device)
            total = zeros.index_add(0, bucket, loss.token_loss.detach())
            self.note("mask_loss_ratio", total, zeros.index_add(0, bucket, torch.ones_like(loss.token_loss)))
        return {"mask_loss": loss.mask_loss, "score_loss": loss.score_loss}

    def answers(self, text_logits, labels, answer_total=None) -> torch.Tensor:
        """The cross-entropy of the answers' tokens."""
        targets = labels[:, 1:][labels[:, 1:] != NO_LABEL]
        loss = F.cross_entropy(text_logits.float(), targets, reduction="sum")
        self.note("mmu_loss", loss, len(targets))
        return loss / (max(len(targets), 1) if answer_total is None else answer_total)

    def balance(self, level: str, task: int, outputs, batch, rows, num_tokens=None) -> dict[str, torch.Tensor]:
        """The balance of one group's experts; nothing if there are none."""
        text, name = self.config.text_config, TASKS[task]
        if level == "token":
            logits, top_k, prefix = getattr(outputs, f"{name}_router_logits"), text.num_experts_per_tok, name
            mask = None if batch.get("attention_mask") is None else batch["attention_mask"][rows]
        else:
            logits, top_k, prefix = outputs.sequence_router_logits, text.num_experts_per_sequence, f"{name}_sequence"
            has_image, mask = (batch["input_ids"] >= self.config.image_code_offset).any(-1), None
            rows = rows[has_image]
            logits = logits and tuple(layer[rows] for layer in logits)
        if not logits:
            return {}
        step_load = self.loads[level] if self.loads is not None and self.training else None
        usage = router_usage(logits, mask, top_k, num_tokens if step_load is not None else None)
        has_rows = bool(rows.any())
        if step_load is not None:
            step_load.counts[task] += usage.counts.detach()
            usage.load = step_load.load[task]
        balance = balance_loss(usage)
        # with loads of the step each micro-batch brings its part, even nothing
        self.note(f"{prefix}_balance", balance, float(has_rows or step_load is not None))
        num_choices = usage.counts.sum(-1, keepdim=True).expand_as(usage.counts)
        self.note(f"{name}_load" if level == "token" else prefix, usage.counts, num_choices)
        return {f"{prefix}_balance": balance}

    def counts(self, batch: Mapping[str, torch.Tensor], masked: torch.BoolTensor) -> torch.Tensor:
        """
        What the terms are divided by, (7,) float32: masked codes, text-to-image rows, answer tokens, tokens of either
        task, rows with an image of either task. Sums over parts of a step are the step's.

        Args:
            batch (`dict`): As the model will see it, but for the masks.
            masked (`torch.BoolTensor` of shape `(text-to-image rows, N)`): The codes that will be hidden.
        """
        is_t2i, lengths = self.task_ids(batch) == T2I, batch["attention_mask"].sum(-1)
        has_image = (batch["input_ids"] >= self.config.image_code_offset).any(-1)
        groups = (is_t2i, ~is_t2i)
        return torch.stack(
            [
                masked.sum(),
                is_t2i.sum(),
                answer_positions(batch["labels"]).sum(),
                *(lengths[group].sum() for group in groups),
                *((group & has_image).sum() for group in groups),
            ]
        ).float()

    def end_step(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Close the books of an optimizer step; `reduce` sums a tensor over all processes."""
        for load in () if self.loads is None else self.loads.values():
            load.end_step(reduce)

    def summarize(self, means: dict[str, float | torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Make `means`, the means of what was noted, fit for a log, in place: tables of single experts, which would be
        hundreds of numbers, are taken out and returned, (layers, experts) each, and their summary put in.
        """
        tables = {}
        for task in TASKS:
            for key in (f"{task}_load", f"{task}_sequence"):
                table = means.pop(key, None)
                if table is None or table.isnan().any():
                    continue
                tables[key] = table
                if key.endswith("load"):
                    means.update({f"{task}_{name}": value for name, value in summarize_load(table).items()})
                else:
                    means.update({f"{key}_load_{i}": x for i, x in enumerate(table.mean(0).tolist())})
        buckets = means.pop("mask_loss_ratio", torch.zeros(0)).tolist()
        means.update({f"mask_loss_ratio_{i}": x for i, x in enumerate(buckets) if not math.isnan(x)})
        if "mask_loss" in means:
            means["d3diff_loss"] = sum(self.weights[name] * means[name] for name in ("mask_loss", "score_loss"))
        for name in [name for name, mean in means.items() if isinstance(mean, torch.Tensor)]:
            tables[name] = means.pop(name)
        return tables


__all__ = ["UniF2aceObjective", "hide_codes"]
