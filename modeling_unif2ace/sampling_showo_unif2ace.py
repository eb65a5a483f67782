"""
One decoding step exactly as Show-o's code does it, random numbers included, so that the same weights, prompt and seed
give the same picture as the original. `UniF2aceScheduler(sampling="showo", confidence_schedule="showo")` uses it.

What differs from `maskgit_step`: one generator draws for the whole batch, so that a picture depends on the others in
its batch; the number of masked codes is computed in float32 and on the whole image; and a known code is protected by
its confidence only, which a very hot temperature can overcome.
"""

import math

import torch

from .sampling_unif2ace import MASKED_CODE


SHOWO_SCHEDULES = ("cosine", "linear", "pow", "sigmoid")

_SMALLEST = 1e-6  # what Show-o clamps all schedules but the cosine to
_SMALLEST_LOG = 1e-20
_SIGMOID_RANGE = 3.0


def showo_mask_ratio(schedule: str, progress: torch.Tensor) -> torch.Tensor:
    r"""
    Show-o's mask ratio, elementwise in the precision of `progress`: near whole numbers of codes the rounding decides.

    Args:
        schedule (`str`): `"cosine"`, `"linear"`, `"pow"` (the square; `"pow3"`, ... for other exponents) or
            `"sigmoid"`.
        progress (`torch.FloatTensor`): u in [0, 1].

    Raises:
        ValueError: if Show-o has no such schedule.
    """
    if schedule == "cosine":
        return torch.cos(progress * math.pi * 0.5)
    if schedule == "linear":
        ratio = 1.0 - progress
    elif schedule.startswith("pow"):
        ratio = 1.0 - progress ** float(schedule.removeprefix("pow") or 2)
    elif schedule == "sigmoid":
        ends = torch.tensor([-_SIGMOID_RANGE, _SIGMOID_RANGE]).sigmoid()
        value = (progress * 2 * _SIGMOID_RANGE - _SIGMOID_RANGE).sigmoid()
        ratio = (ends[1] - value) / (ends[1] - ends[0])
    else:
        raise ValueError(f"Show-o has no mask schedule {schedule!r}, expected one of {', '.join(SHOWO_SCHEDULES)}")
    return ratio.clamp(_SMALLEST, 1.0)


def showo_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    schedule: str,
    progress: float,
    confidence_temperature: float,
    generator: torch.Generator | list[torch.Generator] | None = None,
    temperature: float = 1.0,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw all codes, keep the most confident ones, as Show-o's `t2i_generate` does.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`): Scores over the codes.
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes so far, `MASKED_CODE` if unknown.
        schedule (`str`): As in [`showo_mask_ratio`].
        progress (`float`): Progress *after* the step, (k + 1) / T.
        confidence_temperature (`float`): τ of this step.
        generator (`torch.Generator`, *optional*):
            Draws for the whole batch, first an exponential number for each place and code (what `torch.multinomial`
            draws), then a uniform one for each place. A list of generators runs every row on its own.
        temperature (`float`, *optional*, defaults to 1.0): Divides the logits; Show-o has no such number.
        positions (`torch.LongTensor` of shape `(batch_size, num_positions)`, *optional*):
            `logits` are for these places only, among them every masked one. The random numbers are the same.

    Returns:
        `tuple` of two `(batch_size, num_image_tokens)` int64 tensors: the codes after the step, and all as drawn.

    Raises:
        ValueError: if Show-o has no such schedule, or `temperature` is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}, but sampling="showo" draws codes: expected a number above 0')
    if isinstance(generator, (list, tuple)):
        rows = [
            showo_step(
                logits[row : row + 1],
                codes[row : row + 1],
                schedule,
                progress,
                confidence_temperature,
                own,
                temperature,
                None if positions is None else positions[row : row + 1],
            )
            for row, own in enumerate(generator)
        ]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    source = codes.device if generator is None else generator.device
    probabilities = (logits.float() / temperature).softmax(-1)  # (B, P, K)
    exponential = torch.empty(*codes.shape, logits.shape[-1], device=source).exponential_(1, generator=generator)
    exponential = exponential.to(logits.device)
    before = codes
    if positions is not None:
        exponential = exponential.gather(1, positions[..., None].expand_as(probabilities))
        before = codes.gather(1, positions)
    masked = before == MASKED_CODE
    drawn = torch.where(masked, (probabilities / exponential).argmax(-1), before)
    chosen = probabilities.gather(-1, drawn[..., None]).squeeze(-1)
    sure = torch.finfo(chosen.dtype).max
    chosen = chosen.masked_fill(~masked, sure)
    predicted = drawn
    if positions is not None:
        predicted = codes.scatter(1, positions, drawn)
        chosen = chosen.new_full(codes.shape, sure).scatter(1, positions, chosen)

    uniform = torch.zeros(codes.shape, device=source).uniform_(0, 1, generator=generator).to(logits.device)
    gumbel = -(-uniform.clamp(min=_SMALLEST_LOG).log()).clamp(min=_SMALLEST_LOG).log()
    confidence = chosen.clamp(min=_SMALLEST_LOG).log() + confidence_temperature * gumbel
    num_masked = (codes.shape[1] * showo_mask_ratio(schedule, torch.tensor(progress))).floor().to(logits.device)
    unknown = (codes == MASKED_CODE).sum(-1, keepdim=True)
    again = torch.minimum(unknown - 1, num_masked).clamp(min=1).long().clamp(max=codes.shape[1] - 1)
    threshold = confidence.sort(dim=-1).values.gather(1, again)
    if progress >= 1:
        return predicted, predicted
    return predicted.masked_fill(confidence < threshold, MASKED_CODE), predicted


__all__ = ["SHOWO_SCHEDULES", "showo_mask_ratio", "showo_step"]
