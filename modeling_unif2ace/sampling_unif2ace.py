"""
Sampling of image codes: the numbers it takes, mask schedules, and the steps: MaskGIT, ancestral, entropy-bounded, and
Show-o's own. A sampler is one entry of `SAMPLERS`; `generate`, pipeline, server and reward training all draw by it.

Conventions: `codes` is `(batch_size, num_image_tokens)` int64 with values in `[0, codebook_size)`, or `MASKED_CODE`
where the code is not known yet. `progress` runs from 0 (everything masked) to 1 (nothing masked). No step reads a
value back from the device, so that a sampling loop never waits for an accelerator.

Only masked codes need logits, so every step takes `positions`: the places that `logits` are for, `num_positions` in
each row ([`masked_positions`]). Without them logits are for all places. The codes drawn are the same either way.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper


MASKED_CODE = -1
"""Stands for a code that is not known."""
MASK_SCHEDULES = ("cosine", "linear", "pow", "sigmoid", "arccos", "log", "exp")
CONFIDENCE_SCHEDULES = ("linear", "showo")

# A seed is drawn as a non-negative int64.
_SEED_LIMIT = 2**63 - 1
# Schedules are evaluated in floating point; a count that should be whole must not fall just below it.
_COUNT_TOLERANCE = 1e-6
# Steepness of the sigmoid schedule, as in Show-o's and open-MUSE's code.
_SIGMOID_RANGE = 3.0
# What Show-o clamps all schedules but the cosine to, and what its logarithms take.
_SMALLEST, _SMALLEST_LOG = 1e-6, 1e-20
# "pow" with an exponent: pow0.5, pow3, ...
_POWER = re.compile(r"pow(\d+(?:\.\d+)?)?")


@dataclass(frozen=True)
class MaskSchedule:
    r"""
    The share λ of codes that are masked, falling from 1 to 0 while u runs from 0 to 1: in sampling u is the progress,
    in training it is drawn at random.

    Args:
        name (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"` is cos(πu/2) (MaskGIT, Show-o), `"linear"` is 1 - u, `"pow"` is 1 - u² (MaskGIT's square
            schedule) and `"pow3"` is 1 - u³ (its cubic one; any exponent), `"sigmoid"` is a sigmoid over [-3, 3],
            `"arccos"` is arccos(u) · 2/π, `"log"` is -log u / log N and `"exp"` is 1 - N^(u - 1), both of MaskGIT's
            code, with N codes; stretched to start at 1 and end at 0. Concave ones reveal little at first; `"log"`,
            and `"pow"` with an exponent below 1, reveal most at first.

    Raises:
        ValueError: if there is no such schedule.
    """

    name: str = "cosine"

    def __post_init__(self):
        power = _POWER.fullmatch(self.name) if isinstance(self.name, str) else None
        if self.name not in MASK_SCHEDULES and not (power and float(power[1]) > 0):
            raise ValueError(
                f"mask schedule {self.name!r} is unknown, expected one of {', '.join(MASK_SCHEDULES)}, or pow with an "
                "exponent as in pow3"
            )

    @property
    def _power(self) -> float:
        return 1.0 if self.name == "linear" else float(_POWER.fullmatch(self.name)[1] or 2)

    def ratio(self, progress: float | torch.Tensor, num_codes: int = 256) -> float | torch.Tensor:
        """
        λ(u).

        Args:
            progress (`float` or `torch.FloatTensor`): u in [0, 1]; of a tensor elementwise, in its precision.
            num_codes (`int`, *optional*, defaults to 256): N of `"log"` and `"exp"`.

        Returns:
            As `progress`, in [0, 1]; of a number exactly 1 at 0 and exactly 0 at 1.

        Raises:
            ValueError: if a number is not in [0, 1].
        """
        if not isinstance(progress, torch.Tensor):
            if not 0 <= progress <= 1:
                raise ValueError(f"progress is {progress}, expected a number from 0 to 1")
            inside = 0 < progress < 1
            return (
                self.ratio(torch.tensor(progress, dtype=torch.float64), num_codes).item() if inside else 1.0 - progress
            )
        num_codes = max(num_codes, 2)
        if self.name == "cosine":
            return torch.cos(progress * (math.pi / 2))
        if self.name == "sigmoid":
            start, end = progress.new_tensor([-_SIGMOID_RANGE, _SIGMOID_RANGE]).sigmoid()
            return (end - (progress * 2 * _SIGMOID_RANGE - _SIGMOID_RANGE).sigmoid()) / (end - start)
        if self.name == "arccos":
            return torch.acos(progress) * (2 / math.pi)
        if self.name == "log":
            return (-progress.log() / math.log(num_codes)).clamp(max=1)
        if self.name == "exp":
            return (1 - num_codes ** (progress - 1)) / (1 - 1 / num_codes)
        return 1 - progress**self._power

    def elbo_weight(self, ratio: torch.Tensor, num_codes: int = 256) -> torch.Tensor:
        """
        |λ'(u)| / λ at `ratio`, elementwise: the weight that makes the masked cross-entropy a bound on the likelihood,
        written in λ itself. (π/2)·√(1 − λ²)/λ for the cosine and 1/λ for the linear schedule.
        """
        num_codes = max(num_codes, 2)
        if self.name == "cosine":
            slope = (math.pi / 2) * (1 - ratio**2).clamp(min=0).sqrt()
        elif self.name == "sigmoid":
            start, end = ratio.new_tensor([-_SIGMOID_RANGE, _SIGMOID_RANGE]).sigmoid()
            value = end - ratio * (end - start)
            slope = 2 * _SIGMOID_RANGE * value * (1 - value) / (end - start)
        elif self.name == "arccos":
            slope = (2 / math.pi) / torch.sin(ratio * (math.pi / 2))
        elif self.name == "log":
            slope = num_codes**ratio / math.log(num_codes)
        elif self.name == "exp":
            slope = math.log(num_codes) * (1 / (1 - 1 / num_codes) - ratio)
        else:
            slope = self._power * (1 - ratio).clamp(min=0) ** (1 - 1 / self._power)
        return slope / ratio

    def num_masked(self, progress: float, num_codes: int) -> int:
        """
        How many of N codes stay masked after a step that ends at `progress` in [0, 1]: `floor(N λ)`, but at least one
        before the end, so that every step has work to do (Show-o). With inpainting N are those that were masked.
        """
        if num_codes == 0 or progress == 1:
            return 0
        return max(1, math.floor(num_codes * self.ratio(progress, num_codes) + _COUNT_TOLERANCE))

    def showo_ratio(self, progress: torch.Tensor) -> torch.Tensor:
        """[`ratio`] as Show-o's code has it, which does not let its other schedules than the cosine reach 0."""
        ratio = self.ratio(progress)
        return ratio if self.name == "cosine" else ratio.clamp(_SMALLEST, 1.0)


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


@dataclass(frozen=True)
class ImageSampling:
    """
    The numbers by which pictures are drawn. Their home is a checkpoint's `generation_config.json`, where each has the
    name that it has here with `image_` before it: `image_temperature`, `image_num_inference_steps`, ...

    Args:
        sampling (`str`, *optional*, defaults to `"maskgit"`): One of [`SAMPLERS`].
        num_inference_steps (`int`, *optional*, defaults to 16): Steps in which the codes are revealed.
        guidance_scale (`float`, *optional*, defaults to 4.0):
            `uncond + guidance_scale · (cond − uncond)`; 1 is none. Show-o's scale is this minus one.
        guidance_interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
            Share of the steps at which guidance starts and stops; the others cost half.
        masking_schedule (`str`, *optional*, defaults to `"cosine"`): See [`MaskSchedule`].
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before codes are drawn; 0 takes the most likely code.
        top_k (`int`, *optional*): Draw from so many codes, the most likely ones; from all when not given.
        top_p (`float`, *optional*):
            Draw from the most likely codes whose probabilities add to this share; from all when not given.
        confidence_temperature (`float`, *optional*, defaults to 1.0):
            Weight of the Gumbel noise on the confidence at the start (`"maskgit"` and `"showo"`).
        confidence_schedule (`str`, *optional*, defaults to `"linear"`): See [`confidence_temperatures`].
        entropy_bound (`float`, *optional*, defaults to 8.0): Nats that a step of `"entropy_bounded"` may lose.
        early_exit_entropy (`float`, *optional*):
            Finish a row at once when the entropies of its masked codes add to less than this many nats.

    Raises:
        ValueError: if a number is out of its range; the message says which there is.
        TypeError: if it is no number.
    """

    sampling: str = "maskgit"
    num_inference_steps: int = 16
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    masking_schedule: str = "cosine"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    confidence_temperature: float = 1.0
    confidence_schedule: str = "linear"
    entropy_bound: float = 8.0
    early_exit_entropy: float | None = None

    def __post_init__(self):
        MaskSchedule(self.masking_schedule)  # says which there are
        for name, allowed in (("sampling", SAMPLERS), ("confidence_schedule", CONFIDENCE_SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.type in (int, int | None):
                object.__setattr__(self, name, check_count(name, value))
            elif field.type in (float, float | None):
                if not isinstance(value, Real) or isinstance(value, bool):
                    raise TypeError(f"{name} is {value!r}, expected a number")
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
                object.__setattr__(self, name, float(value))
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected a number above 0 and up to 1")
        try:
            start, stop = self.guidance_interval
            fits = 0 <= start < stop <= 1
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"guidance_interval is {self.guidance_interval!r}, expected two numbers (start, stop) with "
                "0 <= start < stop <= 1"
            )
        object.__setattr__(self, "guidance_interval", (start, stop))

    @classmethod
    def from_generation_config(cls, config, **given) -> "ImageSampling":
        """
        The numbers of a checkpoint.

        Args:
            config (`GenerationConfig`): The model's `generation_config`; what it does not name has its default.
            given: Fields to use instead, unless they are `None`.
        """
        unknown = sorted(given.keys() - {field.name for field in fields(cls)})
        if unknown:
            names = ", ".join(field.name for field in fields(cls))
            raise TypeError(f"there is no number {unknown[0]!r} of image sampling, expected one of {names}")
        known = {field.name: getattr(config, f"image_{field.name}", None) for field in fields(cls)}
        chosen = known | {name: value for name, value in given.items() if value is not None}
        return cls(**{name: value for name, value in chosen.items() if value is not None})

    @classmethod
    def stands_in(cls, config) -> bool:
        """Whether a `GenerationConfig` names any of the numbers."""
        return any(hasattr(config, f"image_{field.name}") for field in fields(cls))

    def write_to(self, config):
        """Put the numbers that are not the defaults into a `GenerationConfig`, and take the others out."""
        for field in fields(self):
            name, value = f"image_{field.name}", getattr(self, field.name)
            if value != field.default:
                setattr(config, name, value)
            elif hasattr(config, name):
                delattr(config, name)


@dataclass(frozen=True)
class DecodingStep:
    """
    A step's place in the plan, as a sampler sees it; by default that of a single step, which reveals everything.

    Args:
        progress (`float`): After the step, in (0, 1].
        ratio, next_ratio (`float`): Shares of masked codes before and after the step.
        num_masked (`int` or `torch.LongTensor` of shape `(batch_size, 1)`): Codes that stay masked; 0 at the end.
        confidence_temperature (`float`): τ of this step.
        is_last (`bool`): Whether all codes must be known after it.
    """

    progress: float = 1.0
    ratio: float = 1.0
    next_ratio: float = 0.0
    num_masked: int | torch.Tensor = 0
    confidence_temperature: float = 0.0
    is_last: bool = False


def check_count(name: str, value: int) -> int:
    """`value` as `int`; `TypeError` or `ValueError` unless it is a whole number of at least 1, of whatever type."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return int(value)


def check_generator(generator: Any, batch_size: int):
    """`TypeError` or `ValueError` unless `generator` is `None`, a `torch.Generator` or a list of `batch_size` such."""
    several = isinstance(generator, (list, tuple))
    for item in generator if several else [generator]:
        if item is not None and not isinstance(item, torch.Generator):
            seeded = f", as torch.Generator().manual_seed({item})" if isinstance(item, Integral) else ""
            raise TypeError(f"generator is {item!r}, expected a torch.Generator or a list of them{seeded}")
    if several and len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators for {batch_size} images; give one, or one per image")


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
        ValueError, TypeError: as [`check_generator`].
    """
    check_generator(generator, batch_size)
    rows = []
    for source in generator if isinstance(generator, (list, tuple)) else [generator] * batch_size:
        device = "cpu" if source is None else source.device
        seed = torch.randint(_SEED_LIMIT, (), generator=source, device=device)
        rows.append(torch.Generator().manual_seed(int(seed)))
    return rows


def uniform_noise(generators: list[torch.Generator], num: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1), `(len(generators), num)` float32 on `device`: row i comes from generator i alone."""
    rows = [torch.rand(num, generator=generator, device=generator.device) for generator in generators]
    if device.type == "cuda" and all(row.device.type == "cpu" for row in rows):
        # from pinned memory the copy does not make the host wait for the steps that are still running
        return torch.stack(rows).pin_memory().to(device, non_blocking=True)
    return torch.stack([row.to(device) for row in rows])


def masked_positions(codes: torch.Tensor, num_positions: int) -> torch.Tensor:
    r"""
    The places of masked codes, in raster order.

    Args:
        codes (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes so far.
        num_positions (`int`): Places of each row; where it has fewer masked codes, places of known ones follow.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_positions)`.
    """
    return (codes != MASKED_CODE).byte().argsort(dim=-1, stable=True)[:, :num_positions]


def draw_codes(
    logits: torch.Tensor,
    codes: torch.Tensor,
    generators: list[torch.Generator],
    temperature: float = 1.0,
    positions: torch.Tensor | None = None,
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
        positions (`torch.LongTensor` of shape `(batch_size, num_positions)`, *optional*):
            `logits` are for these places only, among them every masked one.

    Returns:
        `tuple` of two `(batch_size, num_image_tokens)` tensors: the codes without any mask (int64), and the log
        probability (float32) that the model gives to each, at temperature 1: how sure the model is does not depend on
        how boldly one draws. Places without logits have 0.

    Raises:
        ValueError: if shapes do not fit or `temperature` is negative.
    """
    places = codes if positions is None else positions
    if logits.shape[:-1] != places.shape or len(places) != len(codes):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} do not fit {'codes' if positions is None else 'positions'} of "
            f"shape {tuple(places.shape)}; expected (batch, tokens, codebook size) and (batch, tokens)"
        )
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}, expected 0 or more")
    logits = logits.float()
    if temperature == 0:
        drawn = logits.argmax(-1)
    else:
        cumulative = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = uniform_noise(generators, codes.shape[-1], logits.device)  # one for each place, needed or not
        if positions is not None:
            uniform = uniform.gather(1, positions)
        # `uniform` < 1, so the target lies strictly below the total, and the first cumulative value above it belongs
        # to a code of positive probability
        target = uniform.unsqueeze(-1) * cumulative[..., -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    before = codes if positions is None else codes.gather(1, positions)
    predicted = torch.where(before == MASKED_CODE, drawn, before)
    chosen = logits.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    log_probs = chosen - logits.logsumexp(-1)
    if positions is None:
        return predicted, log_probs
    return codes.scatter(1, positions, predicted), log_probs.new_zeros(codes.shape).scatter(1, positions, log_probs)


def code_entropies(
    logits: torch.Tensor, codes: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.FloatTensor:
    """
    Entropy of each masked code's distribution, in nats, (batch_size, num_image_tokens) float32; 0 at known codes.
    Arguments as in [`draw_codes`].
    """
    log_probs = logits.float().log_softmax(-1)
    entropies = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    if positions is not None:
        entropies = entropies.new_zeros(codes.shape).scatter(1, positions, entropies)
    return entropies.masked_fill(codes != MASKED_CODE, 0.0)


def maskgit_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    step: DecodingStep,
    numbers: ImageSampling,
    generators: list[torch.Generator],
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw all masked codes, keep the most confident ones (MaskGIT, [arXiv:2202.04200](https://arxiv.org/abs/2202.04200)).

    Confidence is `log p + τ · Gumbel noise`. Known codes never change, and every step reveals at least one code of
    each row that has masked ones. Arguments and what is returned: see `SAMPLERS`.
    """
    predicted, confidence = draw_codes(logits, codes, generators, numbers.temperature, positions)
    if isinstance(step.num_masked, int) and step.num_masked == 0:
        return predicted, predicted
    masked = codes == MASKED_CODE
    if step.confidence_temperature != 0:
        uniform = uniform_noise(generators, codes.shape[-1], logits.device)
        confidence = confidence - step.confidence_temperature * (-uniform.clamp(min=1e-20).log()).log()
    confidence = confidence.masked_fill(~masked, math.inf)
    rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)  # 0: the least confident
    again = (masked.sum(-1, keepdim=True) - 1).clamp(min=0).clamp(max=step.num_masked)
    return predicted.masked_fill(rank < again, MASKED_CODE), predicted


def ancestral_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    step: DecodingStep,
    numbers: ImageSampling,
    generators: list[torch.Generator],
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    One step of the reverse process of absorbing diffusion: each masked code is revealed on its own with probability
    (λ_t - λ_s) / λ_t, whatever the model thinks of it (RADD, [arXiv:2406.03736](https://arxiv.org/abs/2406.03736)).
    Arguments and what is returned: see `SAMPLERS`.
    """
    predicted, _ = draw_codes(logits, codes, generators, numbers.temperature, positions)
    probability = (step.ratio - step.next_ratio) / step.ratio
    reveal = uniform_noise(generators, codes.shape[-1], logits.device) < probability
    return torch.where(reveal | (codes != MASKED_CODE), predicted, MASKED_CODE), predicted


def entropy_bounded_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    step: DecodingStep,
    numbers: ImageSampling,
    generators: list[torch.Generator],
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Reveal as many codes as can be drawn independently without losing more than `numbers.entropy_bound` nats: the k
    surest ones for which `Σ entropy - max entropy` is not larger, which bounds their mutual information (EB-Sampler,
    [arXiv:2505.24857](https://arxiv.org/abs/2505.24857)). At least one code of each row with masked ones; in the last
    step all. Entropies are at temperature 1. Arguments and what is returned: see `SAMPLERS`.
    """
    predicted, _ = draw_codes(logits, codes, generators, numbers.temperature, positions)
    bound = math.inf if step.is_last else numbers.entropy_bound
    masked = codes == MASKED_CODE
    ordered, order = code_entropies(logits, codes, positions).masked_fill(~masked, math.inf).sort(dim=-1, stable=True)
    others = ordered.cumsum(-1) - ordered  # ascending, so each is the largest so far
    accepted = (others <= bound) & ordered.isfinite()  # behind the masked ones inf - inf is NaN: not accepted
    reveal = torch.zeros_like(masked).scatter(-1, order, accepted)
    return predicted.masked_fill(masked & ~reveal, MASKED_CODE), predicted


def showo_step(
    logits: torch.Tensor,
    codes: torch.Tensor,
    step: DecodingStep,
    numbers: ImageSampling,
    generator: torch.Generator | list[torch.Generator] | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw all codes, keep the most confident ones, as Show-o's `t2i_generate` does, random numbers included: the same
    weights, prompt and seed give the original's picture.

    What differs from [`maskgit_step`]: one generator draws for the whole batch, so that a picture depends on the
    others in its batch: first an exponential number for each place and code (what `torch.multinomial` draws), then a
    uniform one for each place; a list of generators runs every row on its own. The number of masked codes is computed
    in float32 and on the whole image. And a known code is protected by its confidence only, which a very hot
    temperature can overcome. The other arguments and what is returned: see `SAMPLERS`.

    Raises:
        ValueError: if the temperature is 0.
    """
    if numbers.temperature == 0:
        raise ValueError('temperature is 0, but sampling="showo" draws codes: expected a number above 0')
    if isinstance(generator, (list, tuple)):
        rows = [
            showo_step(
                logits[row : row + 1],
                codes[row : row + 1],
                step,
                numbers,
                own,
                None if positions is None else positions[row : row + 1],
            )
            for row, own in enumerate(generator)
        ]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    source = codes.device if generator is None else generator.device
    probabilities = (logits.float() / numbers.temperature).softmax(-1)  # (B, P, K)
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
    confidence = chosen.clamp(min=_SMALLEST_LOG).log() + step.confidence_temperature * gumbel
    ratio = MaskSchedule(numbers.masking_schedule).showo_ratio(torch.tensor(step.progress))
    num_masked = (codes.shape[1] * ratio).floor().to(logits.device)
    unknown = (codes == MASKED_CODE).sum(-1, keepdim=True)
    again = torch.minimum(unknown - 1, num_masked).clamp(min=1).long().clamp(max=codes.shape[1] - 1)
    threshold = confidence.sort(dim=-1).values.gather(1, again)
    if step.progress >= 1:
        return predicted, predicted
    return predicted.masked_fill(confidence < threshold, MASKED_CODE), predicted


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


def truncate_logits(logits: torch.Tensor, numbers: ImageSampling) -> torch.Tensor:
    """`logits` (…, codebook_size) with minus infinity at codes that `top_k` and `top_p` forbid."""
    if numbers.top_k is None and numbers.top_p is None:
        return logits
    scores = logits.flatten(0, -2).float() / (numbers.temperature or 1.0)
    if numbers.top_k is not None:
        scores = TopKLogitsWarper(numbers.top_k)(None, scores)
    if numbers.top_p is not None:
        scores = TopPLogitsWarper(numbers.top_p)(None, scores)
    return logits.masked_fill(scores.isinf().view_as(logits), -math.inf)


SAMPLERS: dict[str, Callable] = {
    "maskgit": maskgit_step,
    "ancestral": ancestral_step,
    "entropy_bounded": entropy_bounded_step,
    "showo": showo_step,
}
"""
Samplers by name. A new one is one entry. Each takes

- `logits` (`torch.Tensor` of shape `(batch_size, N or K, codebook_size)`): scores, at `positions` if these are given;
- `codes` (`torch.LongTensor` of shape `(batch_size, N)`): the codes so far, `MASKED_CODE` where not known;
- `step` ([`DecodingStep`]) and `numbers` ([`ImageSampling`]): where in the plan it stands, and how to draw;
- `generators` (`list[torch.Generator]`): one per row, of which row i draws alone;
- `positions` (`torch.LongTensor` of shape `(batch_size, K)`, *optional*): the places of `logits`, among them every
  masked one

and returns two int64 tensors `(batch_size, N)`: the codes after the step, and all codes as drawn.
"""


class DecodingPlan:
    """
    The steps of one request, planned: what each reveals. Holds nothing that a step changes.

    Args:
        numbers ([`ImageSampling`]): How to draw.
        initially_masked (`list[int]`, *optional*):
            How many codes of each row are masked before the first step, if not all (inpainting): the schedule is then
            spread over these.
        device (`torch.device`, *optional*): Where the codes are; needed with `initially_masked`.
    """

    def __init__(
        self,
        numbers: ImageSampling,
        initially_masked: list[int] | None = None,
        device: torch.device | str | None = None,
    ):
        self.numbers = numbers
        self.num_steps = steps = numbers.num_inference_steps
        self._initially_masked = initially_masked
        self._schedule = MaskSchedule(numbers.masking_schedule)
        self._noise = confidence_temperatures(numbers.confidence_schedule, numbers.confidence_temperature, steps)
        # number k: the share of masked codes before step k
        self._ratios = [self._schedule.ratio(1 - (steps - k) / steps) for k in range(steps + 1)]
        self._num_masked = None
        if initially_masked is not None:  # made here, because a step must not send it to the device
            plan = [[[self._planned(step, count)] for count in initially_masked] for step in range(steps)]
            self._num_masked = list(torch.tensor(plan, device=device).unbind())  # each (rows, 1)

    def _planned(self, step: int, num_codes: int) -> int:
        """Of `num_codes` how many stay masked after step number `step`."""
        left = self.num_steps - 1 - step
        return self._schedule.num_masked(1 - left / self.num_steps, num_codes)

    def generators(self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int):
        """
        What every step of a loop draws from: one generator per row ([`row_generators`]), so that a picture does not
        depend on its batch; with `sampling="showo"` the caller's own, which draws for the batch as a whole.
        """
        check_generator(generator, batch_size)
        return generator if self.numbers.sampling == "showo" else row_generators(generator, batch_size)

    @property
    def may_finish_early(self) -> bool:
        """Whether all codes can be known before the last step; a loop that looks waits for the device at each step."""
        return self.numbers.sampling == "entropy_bounded" or self.numbers.early_exit_entropy is not None

    def max_masked(self, step: int, num_image_tokens: int) -> int:
        """
        The most codes that can be masked in a row before step number `step`: so many places need logits. Known
        without a look at the device.
        """
        first = num_image_tokens if self._initially_masked is None else max(self._initially_masked, default=0)
        if self.numbers.sampling != "maskgit" or step == 0:
            return first
        # a step reveals at least one code, also where the schedule would keep as many
        return max(1, min(self._planned(step - 1, first), first - step))

    def positions(self, codes: torch.LongTensor, step: int) -> torch.LongTensor:
        """The places of `codes` that need logits at step number `step`, (batch_size, `max_masked(step)`)."""
        return masked_positions(codes, self.max_masked(step, codes.shape[-1]))

    def step(
        self,
        logits: torch.Tensor,
        codes: torch.LongTensor,
        step: int,
        generators: torch.Generator | list[torch.Generator] | None,
        positions: torch.LongTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Reveal some of the masked codes.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, N or K, codebook_size)`): Scores, at `positions` if given.
            codes (`torch.LongTensor` of shape `(batch_size, N)`): Codes so far, `MASKED_CODE` where not known.
            step (`int`): Its number, from 0 on.
            generators: What [`generators`] returned.
            positions (`torch.LongTensor` of shape `(batch_size, K)`, *optional*): See [`positions`].

        Returns:
            `tuple` of two `(batch_size, N)` int64 tensors: the codes after the step, and all as drawn.
        """
        place = DecodingStep(
            progress=(step + 1) / self.num_steps,
            ratio=self._ratios[step],
            next_ratio=self._ratios[step + 1],
            num_masked=self._planned(step, codes.shape[-1]) if self._num_masked is None else self._num_masked[step],
            confidence_temperature=self._noise[step],
            is_last=step == self.num_steps - 1,
        )
        logits = truncate_logits(logits, self.numbers)
        after, predicted = SAMPLERS[self.numbers.sampling](logits, codes, place, self.numbers, generators, positions)
        if self.numbers.early_exit_entropy is not None:
            entropy = code_entropies(logits, codes, positions).sum(-1, keepdim=True)
            after = torch.where(entropy < self.numbers.early_exit_entropy, predicted, after)
        return after, predicted


__all__ = [
    "CONFIDENCE_SCHEDULES",
    "MASKED_CODE",
    "MASK_SCHEDULES",
    "SAMPLERS",
    "DecodingPlan",
    "DecodingStep",
    "ImageSampling",
    "MaskSchedule",
    "ancestral_step",
    "check_count",
    "check_generator",
    "code_entropies",
    "confidence_temperatures",
    "draw_codes",
    "entropy_bounded_step",
    "mask_codes",
    "masked_positions",
    "maskgit_step",
    "row_generators",
    "showo_step",
    "truncate_logits",
    "uniform_noise",
]
