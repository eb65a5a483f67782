"""
Sampling of image codes: mask schedules, one MaskGIT step, one ancestral step. Pure functions on tensors.

Conventions: `codes` is `(batch_size, num_image_tokens)` int64 with values in `[0, codebook_size)`, or `MASKED_CODE`
where the code is not known yet. `progress` runs from 0 (everything masked) to 1 (nothing masked). No step reads a
value back from the device, so that a sampling loop never waits for an accelerator.
"""

import math

import torch


MASKED_CODE = -1
MASK_SCHEDULES = ("cosine", "linear", "pow", "sigmoid")
CONFIDENCE_SCHEDULES = ("linear", "showo")

# A seed is drawn as a non-negative int64.
_SEED_LIMIT = 2**63 - 1
# Schedules are evaluated in floating point; a count that should be whole must not fall just below it.
_COUNT_TOLERANCE = 1e-6
# Steepness of the sigmoid schedule, as in Show-o's and open-MUSE's code.
_SIGMOID_RANGE = 3.0


def mask_ratio(schedule: str, progress: float) -> float:
    r"""
    The share λ of codes that are masked.

    Args:
        schedule (`str`): `"cosine"` is cos(πu/2) (MaskGIT, Show-o), `"linear"` is 1 - u, `"pow"` is 1 - u² (MaskGIT's
            square schedule), `"sigmoid"` is a sigmoid over [-3, 3], stretched to end exactly at 1 and 0.
        progress (`float`): u in [0, 1].

    Returns:
        `float`: λ in [0, 1]; exactly 1 at `progress=0`, exactly 0 at `progress=1`.

    Raises:
        ValueError: if the schedule is unknown or `progress` is not in [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}, expected a number from 0 to 1")
    if schedule == "cosine":
        return math.sin(math.pi / 2 * (1 - progress))  # cos(πu/2), but exactly zero at u = 1
    if schedule == "linear":
        return 1 - progress
    if schedule == "pow":
        return 1 - progress**2
    if schedule == "sigmoid":
        start, end = _sigmoid(-_SIGMOID_RANGE), _sigmoid(_SIGMOID_RANGE)
        # at u = 1 the argument is exactly the upper end of the range, so the difference is exactly zero
        return (end - _sigmoid((2 * progress - 1) * _SIGMOID_RANGE)) / (end - start)
    raise ValueError(f"mask schedule {schedule!r} is unknown, expected one of {', '.join(MASK_SCHEDULES)}")


def num_masked_codes(schedule: str, progress: float, num_image_tokens: int) -> int:
    r"""
    How many codes stay masked: `floor(N λ)`, but at least one before the end, so that every step has work to do
    (Show-o).

    Args:
        schedule (`str`): One of `MASK_SCHEDULES`.
        progress (`float`): Progress *after* the step, in [0, 1].
        num_image_tokens (`int`): N.

    Returns:
        `int`: 0 at `progress=1`, else from 1 to N.
    """
    ratio = mask_ratio(schedule, progress)
    return max(1, math.floor(num_image_tokens * ratio + _COUNT_TOLERANCE)) if ratio > 0 else 0


def confidence_temperatures(schedule: str, start: float, num_steps: int) -> list[float]:
    r"""
    Weight of the Gumbel noise on the confidence at each step.

    Args:
        schedule (`str`): `"linear"` is τ (1 - u) with u the progress after the step (MaskGIT). `"showo"` multiplies
            the temperature by (1 - u) at every step, so it falls as a product, as in Show-o's code.
        start (`float`): τ.
        num_steps (`int`): Steps T.

    Returns:
        `list[float]`: T values, the last one 0.

    Raises:
        ValueError: if the schedule is unknown.
    """
    remaining = [1 - (step + 1) / num_steps for step in range(num_steps)]
    if schedule == "linear":
        return [start * share for share in remaining]
    if schedule == "showo":
        values = []
        for share in remaining:
            start = start * share
            values.append(start)
        return values
    raise ValueError(f"confidence schedule {schedule!r} is unknown, expected one of {', '.join(CONFIDENCE_SCHEDULES)}")


def row_generators(
    generator: torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...] | None, batch_size: int
) -> list[torch.Generator]:
    r"""
    One generator per row, so that a picture does not depend on the others in its batch.

    Each row's generator is new, on the CPU, and seeded by one number drawn from what the caller gave: from the row's
    own generator in a list, or in row order from a single one. So row i is the same whether it is made alone or in a
    batch, row 0 of `generator=g` is that of `generator=[g]`, a caller's generator advances by one draw per picture
    however many steps are made, and all devices see the same noise.

    Args:
        generator (`torch.Generator` or list of them, *optional*):
            On any device. Without one the seeds come from torch's global CPU generator.
        batch_size (`int`): Rows; a list must have as many generators.

    Returns:
        `list[torch.Generator]` of `batch_size` generators.

    Raises:
        ValueError: if a list has another length than `batch_size`.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for {batch_size} images; give one, or one per image")
        sources = generator
    else:
        sources = [generator] * batch_size
    rows = []
    for source in sources:
        device = "cpu" if source is None else source.device
        seed = torch.randint(_SEED_LIMIT, (), generator=source, device=device)
        rows.append(torch.Generator().manual_seed(int(seed)))
    return rows


def uniform_noise(generators: list[torch.Generator], num: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1), `(len(generators), num)` float32 on `device`: row i comes from generator i alone."""
    rows = [torch.rand(num, generator=generator, device=generator.device).to(device) for generator in generators]
    return torch.stack(rows)


def draw_codes(
    logits: torch.Tensor, codes: torch.Tensor, generators: list[torch.Generator], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw a code for every masked position; known codes stay.

    The draw inverts the cumulative distribution, which takes one random number per position; Gumbel noise would take
    one per position and code.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`): Scores over the codes.
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes so far.
        generators (`list[torch.Generator]`): One per row.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before the draw; 0 takes the most likely code and draws nothing.

    Returns:
        `tuple` of two `(batch_size, num_image_tokens)` tensors: the codes without any mask (int64), and the log
        probability (float32) that the model gives to each, at temperature 1: how sure the model is does not depend on
        how boldly one draws.

    Raises:
        ValueError: if shapes do not fit or `temperature` is negative.
    """
    if logits.shape[:-1] != codes.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} do not fit codes of shape {tuple(codes.shape)}; "
            "expected (batch, tokens, codebook size) and (batch, tokens)"
        )
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}, expected 0 or more")
    logits = logits.float()
    if temperature == 0:
        drawn = logits.argmax(-1)
    else:
        cumulative = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = uniform_noise(generators, codes.shape[-1], logits.device).unsqueeze(-1)
        # `uniform` < 1, so the target lies strictly below the total, and the first cumulative value above it belongs
        # to a code of positive probability
        target = uniform * cumulative[..., -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    predicted = torch.where(codes == MASKED_CODE, drawn, codes)
    chosen = logits.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    return predicted, chosen - logits.logsumexp(-1)


def maskgit_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    num_masked: int,
    confidence_temperature: float,
    generators: list[torch.Generator],
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw all masked codes, keep the most confident ones (MaskGIT, [arXiv:2202.04200](https://arxiv.org/abs/2202.04200)).

    Confidence is `log p + τ · Gumbel noise`. Known codes never change, and every step reveals at least one code of
    each row that has masked ones.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`): Scores over the codes.
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes so far.
        num_masked (`int`): Codes of each row that stay masked; 0 in the last step. See [`num_masked_codes`].
        confidence_temperature (`float`): τ; 0 is no noise. See [`confidence_temperatures`].
        generators (`list[torch.Generator]`): One per row.
        temperature (`float`, *optional*, defaults to 1.0): See [`draw_codes`].

    Returns:
        `tuple` of two `(batch_size, num_image_tokens)` int64 tensors: the codes after the step, and all as drawn.
    """
    predicted, confidence = draw_codes(logits, codes, generators, temperature)
    if num_masked == 0:
        return predicted, predicted
    masked = codes == MASKED_CODE
    if confidence_temperature != 0:
        uniform = uniform_noise(generators, codes.shape[-1], logits.device)
        confidence = confidence - confidence_temperature * (-uniform.clamp(min=1e-20).log()).log()
    confidence = confidence.masked_fill(~masked, math.inf)
    rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)  # 0: the least confident
    again = (masked.sum(-1, keepdim=True) - 1).clamp(0, num_masked)
    return predicted.masked_fill(rank < again, MASKED_CODE), predicted


def ancestral_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    ratio: float,
    next_ratio: float,
    generators: list[torch.Generator],
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    One step of the reverse process of absorbing diffusion: each masked code is revealed on its own with probability
    (λ_t - λ_s) / λ_t, whatever the model thinks of it (RADD, [arXiv:2406.03736](https://arxiv.org/abs/2406.03736)).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`): Scores over the codes.
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes so far.
        ratio (`float`): Mask ratio λ_t before the step, in (0, 1].
        next_ratio (`float`): Mask ratio λ_s after the step, in [0, λ_t]; 0 reveals everything.
        generators (`list[torch.Generator]`): One per row.
        temperature (`float`, *optional*, defaults to 1.0): See [`draw_codes`].

    Returns:
        `tuple` of two `(batch_size, num_image_tokens)` int64 tensors: the codes after the step, and all as drawn.

    Raises:
        ValueError: unless 0 <= λ_s <= λ_t and λ_t > 0.
    """
    if not (0 <= next_ratio <= ratio and ratio > 0):
        raise ValueError(f"mask ratios {ratio} -> {next_ratio}: expected a fall from above 0 to 0 or more")
    predicted, _ = draw_codes(logits, codes, generators, temperature)
    reveal = uniform_noise(generators, codes.shape[-1], logits.device) < (ratio - next_ratio) / ratio
    return torch.where(reveal | (codes != MASKED_CODE), predicted, MASKED_CODE), predicted


def mask_codes(codes: torch.Tensor, num_masked: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    r"""
    The forward process with exact counts: mask random positions.

    Args:
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes.
        num_masked (`torch.LongTensor` of shape `(batch_size,)`): Positions to mask in each row.
        generators (`list[torch.Generator]`): One per row.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_image_tokens)`: a copy with `MASKED_CODE` at those positions.
    """
    order = uniform_noise(generators, codes.shape[-1], codes.device).argsort(dim=-1, stable=True)
    return codes.masked_fill(order.argsort(dim=-1) < num_masked.to(codes.device).unsqueeze(-1), MASKED_CODE)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


__all__ = [
    "CONFIDENCE_SCHEDULES",
    "MASKED_CODE",
    "MASK_SCHEDULES",
    "ancestral_step",
    "confidence_temperatures",
    "draw_codes",
    "mask_codes",
    "mask_ratio",
    "maskgit_step",
    "num_masked_codes",
    "row_generators",
    "uniform_noise",
]
