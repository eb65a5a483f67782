"""The sampling of image codes as a diffusers scheduler."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..modeling_unif2ace.sampling_showo_unif2ace import showo_mask_ratio, showo_step
from ..modeling_unif2ace.sampling_unif2ace import (
    CONFIDENCE_SCHEDULES,
    MASKED_CODE,
    ancestral_step,
    check_mask_schedule,
    code_entropies,
    confidence_temperatures,
    entropy_bounded_step,
    mask_codes,
    mask_ratio,
    masked_positions,
    maskgit_step,
    num_masked_codes,
    row_generators,
)


SAMPLINGS = ("maskgit", "ancestral", "entropy_bounded", "showo")


@dataclass
class UniF2aceSchedulerOutput(BaseOutput):
    """
    Output of [`UniF2aceScheduler.step`].

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`):
            The codes after the step; `mask_token_id` where they are not known yet.
        pred_original_sample (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`):
            The codes with every masked one drawn: a preview of the result.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor | None = None


class UniF2aceScheduler(SchedulerMixin, ConfigMixin):
    """
    Fills masked image codes in a few steps.

    `"maskgit"` draws all codes and keeps the ones that the model is most sure of, as many as the mask schedule says
    (MaskGIT, Show-o): few steps are enough. `"ancestral"` samples the reverse process of absorbing diffusion: each
    masked code is revealed with probability (λ_t - λ_s) / λ_t; it follows the model's distribution closely when there
    are many steps. `"entropy_bounded"` reveals at each step as many codes as can be drawn independently without losing
    more than `entropy_bound` nats (EB-Sampler): few where the model is unsure, many where it is sure, so that the
    number of steps depends on the picture; `num_inference_steps` is the most it takes. `"showo"`, together with
    `confidence_schedule="showo"`, repeats Show-o's code to the random number: the same weights, prompts, seed and
    steps give the original's codes (`guidance_scale` is its scale plus one). One generator then draws for the whole
    batch, so a picture is no longer the same alone and in a batch.

    Args:
        mask_token_id (`int`, *optional*, defaults to -1): Stands for a code that is not known; outside the codebook.
        masking_schedule (`str`, *optional*, defaults to `"cosine"`):
            Share of masked codes over the steps: `"cosine"`, `"linear"`, `"pow"` (or `"pow3"`, `"pow0.5"`, ...),
            `"sigmoid"`, `"arccos"`, `"log"` or `"exp"`.
        sampling (`str`, *optional*, defaults to `"maskgit"`):
            `"maskgit"`, `"ancestral"`, `"entropy_bounded"` or `"showo"`.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before codes are drawn; 0 takes the most likely code.
        confidence_temperature (`float`, *optional*, defaults to 1.0):
            Weight of the Gumbel noise on the confidence at the start (`"maskgit"` and `"showo"`).
        confidence_schedule (`str`, *optional*, defaults to `"linear"`):
            How that weight falls: `"linear"` to zero (MaskGIT), or `"showo"`, the product that Show-o's code makes.
        entropy_bound (`float`, *optional*, defaults to 8.0): Nats that a step of `"entropy_bounded"` may lose.
        early_exit_entropy (`float`, *optional*):
            Finish a row at once when the entropies of its masked codes add to less than this many nats. Trades
            quality for steps; never when not given.

    Raises:
        ValueError: if an argument is not one of its values; the message names them.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int = MASKED_CODE,
        masking_schedule: str = "cosine",
        sampling: str = "maskgit",
        temperature: float = 1.0,
        confidence_temperature: float = 1.0,
        confidence_schedule: str = "linear",
        entropy_bound: float = 8.0,
        early_exit_entropy: float | None = None,
    ):
        check_mask_schedule(masking_schedule)
        for name, value, allowed in (
            ("sampling", sampling, SAMPLINGS),
            ("confidence_schedule", confidence_schedule, CONFIDENCE_SCHEDULES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
        if sampling == "showo":
            showo_mask_ratio(masking_schedule, torch.zeros(()))  # has fewer schedules, and says which
        for name, value in (
            ("temperature", temperature),
            ("confidence_temperature", confidence_temperature),
            ("entropy_bound", entropy_bound),
            ("early_exit_entropy", early_exit_entropy or 0.0),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
        if mask_token_id >= 0:
            raise ValueError(f"mask_token_id is {mask_token_id}, a valid code; expected a negative number")
        self.num_inference_steps: int | None = None
        self.timesteps: torch.LongTensor | None = None
        self._mask_ratios: list[float] = []
        self._confidence_temperatures: list[float] = []
        self._initially_masked: list[int] | None = None
        self._num_masked: list[torch.LongTensor] | None = None

    def prepare_generators(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int
    ) -> torch.Generator | list[torch.Generator] | None:
        """
        What a loop over the steps hands to each `step`: one generator per row (`row_generators`), so that a picture
        does not depend on its batch; with `sampling="showo"` the caller's own, which draws for the batch as a whole.
        """
        return generator if self.config.sampling == "showo" else row_generators(generator, batch_size)

    @property
    def may_finish_early(self) -> bool:
        """Whether all codes can be known before the last step; a loop that looks waits for the device at each step."""
        return self.config.sampling == "entropy_bounded" or self.config.early_exit_entropy is not None

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        initially_masked: list[int] | None = None,
    ):
        """
        Plan the steps.

        Args:
            num_inference_steps (`int`): Steps, at least 1. More steps than codes change nothing with `"maskgit"`.
            device (`str` or `torch.device`, *optional*):
                Where the codes are. `timesteps` stay on the CPU: `step` looks its plan up by them, and reading them
                from an accelerator would make every step wait for it.
            initially_masked (`list[int]`, *optional*):
                How many codes of each row are masked before the first step, if not all (inpainting): the schedule is
                then spread over these.

        Raises:
            ValueError: if `num_inference_steps` is less than 1.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, expected at least 1")
        config = self.config
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1)
        # number t: the mask ratio after the step at timestep t, so that the one before it is number t + 1
        self._mask_ratios = [
            mask_ratio(config.masking_schedule, 1 - t / num_inference_steps) for t in range(num_inference_steps + 1)
        ]
        self._confidence_temperatures = confidence_temperatures(
            config.confidence_schedule, config.confidence_temperature, num_inference_steps
        )[::-1]
        self._initially_masked = initially_masked
        self._num_masked = None
        if initially_masked is not None:  # made here, because a step must not send it to the device
            plan = [
                [[self._planned(index, count)] for count in initially_masked] for index in range(num_inference_steps)
            ]
            self._num_masked = list(torch.tensor(plan, device=device).unbind())  # each (rows, 1)

    def _planned(self, index: int, num_image_tokens: int) -> int:
        """Codes that stay masked after the step at timestep `index`."""
        return num_masked_codes(self.config.masking_schedule, 1 - index / self.num_inference_steps, num_image_tokens)

    def max_masked(self, timestep: int | torch.Tensor, num_image_tokens: int) -> int:
        """
        The most codes that can be masked in a row before the step at `timestep`: so many places need logits. Known
        without a look at the device.

        Args:
            timestep (`int` or `torch.Tensor`): One of `timesteps`.
            num_image_tokens (`int`): Codes of an image.
        """
        index = self._index(timestep)
        first = num_image_tokens if self._initially_masked is None else max(self._initially_masked, default=0)
        if self.config.sampling != "maskgit" or index == self.num_inference_steps - 1:
            return first
        # a step reveals at least one code, also where the schedule would keep as many
        return max(1, min(self._planned(index + 1, first), first - (self.num_inference_steps - 1 - index)))

    def masked_positions(self, sample: torch.LongTensor, timestep: int | torch.Tensor) -> torch.LongTensor:
        """
        The places of `sample` (batch_size, num_image_tokens) that need logits at `timestep`, all masked ones among
        them: (batch_size, `max_masked(timestep)`).
        """
        codes = sample.masked_fill(sample == self.config.mask_token_id, MASKED_CODE)
        return masked_positions(codes, self.max_masked(timestep, sample.shape[-1]))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.LongTensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        positions: torch.LongTensor | None = None,
    ) -> UniF2aceSchedulerOutput | tuple:
        """
        Reveal some of the masked codes. Known codes never change; after timestep 0 all are known.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`):
                Logits over the codes.
            timestep (`int` or `torch.Tensor`): One of `timesteps`; 0 is the last.
            sample (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): The codes so far.
            generator (`torch.Generator` or list of them, *optional*):
                A list has one generator per row, and row i draws from number i alone. From a single generator one seed
                per row is drawn at each call. For pictures that do not depend on their batch over several steps, make
                the list once with `row_generators`, as the pipeline does. With `sampling="showo"` a single
                generator draws for all rows together.
            return_dict (`bool`, *optional*, defaults to `True`): `False` returns a tuple.
            positions (`torch.LongTensor` of shape `(batch_size, num_positions)`, *optional*):
                `model_output` is for these places only, as `masked_positions` gives them. The codes are the same.

        Returns:
            [`UniF2aceSchedulerOutput`] or `tuple`.

        Raises:
            ValueError: if `set_timesteps` was not called, the timestep is not one of its steps, or shapes do not fit.
        """
        config, index = self.config, self._index(timestep)
        before = sample.masked_fill(sample == config.mask_token_id, MASKED_CODE)
        common = {"temperature": config.temperature, "positions": positions}
        if config.sampling == "showo":
            progress = (self.num_inference_steps - index) / self.num_inference_steps
            noise = self._confidence_temperatures[index]
            codes, predicted = showo_step(
                model_output, before, config.masking_schedule, progress, noise, generator, **common
            )
        else:
            common["generators"] = self._generators(generator, sample.shape[0])
        if config.sampling == "maskgit":
            num_masked = (
                self._planned(index, sample.shape[-1]) if self._num_masked is None else self._num_masked[index]
            )
            noise = self._confidence_temperatures[index]
            codes, predicted = maskgit_step(model_output, before, num_masked, noise, **common)
        elif config.sampling == "ancestral":
            ratio, next_ratio = self._mask_ratios[index + 1], self._mask_ratios[index]
            codes, predicted = ancestral_step(model_output, before, ratio, next_ratio, **common)
        elif config.sampling == "entropy_bounded":
            bound = config.entropy_bound if index else math.inf
            codes, predicted = entropy_bounded_step(model_output, before, bound, **common)
        if config.early_exit_entropy is not None:
            entropy = code_entropies(model_output, before, positions).sum(-1, keepdim=True)
            codes = torch.where(entropy < config.early_exit_entropy, predicted, codes)
        prev_sample = codes.masked_fill(codes == MASKED_CODE, config.mask_token_id)
        if not return_dict:
            return (prev_sample, predicted)
        return UniF2aceSchedulerOutput(prev_sample=prev_sample, pred_original_sample=predicted)

    def add_noise(
        self,
        original_samples: torch.LongTensor,
        timesteps: int | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        mask_ratio: float | None = None,
    ) -> torch.LongTensor:
        """
        Mask random codes: as many as are masked before the step at `timesteps`, or a share of them.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes.
            timesteps (`int` or `torch.Tensor` of shape `()` or `(batch_size,)`, *optional*):
                From `self.timesteps`. The first of them masks everything.
            generator (`torch.Generator` or list of them, *optional*): As in `step`.
            mask_ratio (`float`, *optional*): Share in [0, 1] instead of `timesteps`.

        Returns:
            `torch.LongTensor` of shape `(batch_size, num_image_tokens)`: a copy with `mask_token_id` at exactly
            `round(share · num_image_tokens)` positions of each row.

        Raises:
            ValueError: unless exactly one of `timesteps` and `mask_ratio` is given, in its range.
        """
        batch_size, num_image_tokens = original_samples.shape
        if (timesteps is None) == (mask_ratio is None):
            raise ValueError("add_noise needs either `timesteps` or `mask_ratio`, one of the two")
        if mask_ratio is None:
            per_row = torch.as_tensor(timesteps).expand(batch_size).tolist()
            ratios = [self._mask_ratios[self._index(t) + 1] for t in per_row]
        elif 0 <= mask_ratio <= 1:
            ratios = [mask_ratio] * batch_size
        else:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected a number from 0 to 1")
        num_masked = torch.tensor([round(num_image_tokens * ratio) for ratio in ratios])
        noisy = mask_codes(original_samples, num_masked, self._generators(generator, batch_size))
        return noisy.masked_fill(noisy == MASKED_CODE, self.config.mask_token_id)

    def _index(self, timestep: int | torch.Tensor) -> int:
        if self.num_inference_steps is None:
            raise ValueError("the scheduler has no steps yet: call `set_timesteps` first")
        index = int(timestep)
        if not 0 <= index < self.num_inference_steps:
            raise ValueError(f"timestep {index} is not one of the {self.num_inference_steps} steps")
        return index

    @staticmethod
    def _generators(generator, batch_size: int) -> list[torch.Generator]:
        if not isinstance(generator, (list, tuple)):
            return row_generators(generator, batch_size)
        if len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for {batch_size} rows; give one, or one per row")
        return list(generator)


__all__ = ["UniF2aceScheduler", "UniF2aceSchedulerOutput"]
