"""The sampling of image codes as a diffusers scheduler."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..modeling_unif2ace.sampling_unif2ace import (
    DecodingPlan,
    ImageSampling,
    MaskSchedule,
    check_count,
    check_generator,
    mask_codes,
    row_generators,
    truncate_logits,
)


# fields that the scheduler shares with ImageSampling
_NUMBERS = (
    "sampling",
    "masking_schedule",
    "temperature",
    "top_k",
    "top_p",
    "confidence_temperature",
    "confidence_schedule",
    "entropy_bound",
    "early_exit_entropy",
)


@dataclass
class UniF2aceSchedulerOutput(BaseOutput):
    """
    Output of [`UniF2aceScheduler.step`].

    Args:
        prev_sample (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`):
            The codes after the step; -1 where they are not known yet.
        pred_original_sample (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`):
            The codes with every masked one drawn: a preview of the result.
        pred_logits (`torch.FloatTensor` of shape `(batch_size, num_image_tokens or num_positions, codebook_size)`):
            What they were drawn from: the model's logits after temperature, top-k and top-p.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor | None = None
    pred_logits: torch.FloatTensor | None = None


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

    A code that is not known is -1. `timesteps` fall from 1, where nothing is known, towards 0, as diffusers has agreed
    on for discrete diffusion; temperature, top-k and top-p are the scheduler's.

    Args:
        masking_schedule (`str`, *optional*, defaults to `"cosine"`):
            Share of masked codes over the steps: `"cosine"`, `"linear"`, `"pow"` (or `"pow3"`, `"pow0.5"`, ...),
            `"sigmoid"`, `"arccos"`, `"log"` or `"exp"`.
        sampling (`str`, *optional*, defaults to `"maskgit"`):
            `"maskgit"`, `"ancestral"`, `"entropy_bounded"` or `"showo"`.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before codes are drawn; 0 takes the most likely code.
        top_k (`int`, *optional*): Draw from so many codes, the most likely ones; from all when not given.
        top_p (`float`, *optional*):
            Draw from the most likely codes whose probabilities add to this share; from all when not given.
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
        masking_schedule: str = "cosine",
        sampling: str = "maskgit",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        confidence_temperature: float = 1.0,
        confidence_schedule: str = "linear",
        entropy_bound: float = 8.0,
        early_exit_entropy: float | None = None,
    ):
        self.sampling_numbers()  # refuses what is wrong
        self.num_inference_steps: int | None = None
        self.timesteps: torch.FloatTensor | None = None
        self._plan: DecodingPlan | None = None

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
        """What a saved configuration says, without the `mask_token_id` that it had before: it was always -1."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "mask_token_id"}, **kwargs)

    @classmethod
    def from_generation_config(cls, config) -> "UniF2aceScheduler":
        """The scheduler of a checkpoint's sampling numbers, which stand in its `generation_config`."""
        numbers = ImageSampling.from_generation_config(config)
        return cls(**{name: getattr(numbers, name) for name in _NUMBERS})

    def sampling_numbers(self, **others) -> ImageSampling:
        """
        The numbers of this scheduler, as the model's `start_decoding` takes them.

        Args:
            others: Fields of [`~unif2ace.modeling_unif2ace.sampling_unif2ace.ImageSampling`] that the scheduler has
                not: `num_inference_steps`, `guidance_scale`, `guidance_interval`.
        """
        return ImageSampling(**{name: self.config[name] for name in _NUMBERS}, **others)

    @property
    def may_finish_early(self) -> bool:
        """Whether all codes can be known before the last step; a loop that looks waits for the device at each step."""
        return DecodingPlan(self.sampling_numbers()).may_finish_early

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        initially_masked: list[int] | None = None,
    ):
        """
        Plan the steps: `timesteps` (num_inference_steps,) float32 are 1, 1 - 1/T, ..., 1/T.

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
        self.num_inference_steps = check_count("num_inference_steps", num_inference_steps)
        self.timesteps = torch.arange(self.num_inference_steps, 0, -1) / self.num_inference_steps
        numbers = self.sampling_numbers(num_inference_steps=num_inference_steps)
        self._plan = DecodingPlan(numbers, initially_masked, device)

    def max_masked(self, timestep: float | torch.Tensor, num_image_tokens: int) -> int:
        """
        The most codes that can be masked in a row before the step at `timestep`: so many places need logits. Known
        without a look at the device.

        Args:
            timestep (`float` or `torch.Tensor`): One of `timesteps`.
            num_image_tokens (`int`): Codes of an image.
        """
        return self._plan.max_masked(self._step_number(timestep), num_image_tokens)

    def masked_positions(self, sample: torch.LongTensor, timestep: float | torch.Tensor) -> torch.LongTensor:
        """
        The places of `sample` (batch_size, num_image_tokens) that need logits at `timestep`, all masked ones among
        them: (batch_size, `max_masked(timestep)`).
        """
        return self._plan.positions(sample, self._step_number(timestep))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.LongTensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        positions: torch.LongTensor | None = None,
    ) -> UniF2aceSchedulerOutput | tuple:
        """
        Reveal some of the masked codes. Known codes never change; after the last timestep all are known.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, num_image_tokens, codebook_size)`):
                Logits over the codes.
            timestep (`float` or `torch.Tensor`): One of `timesteps`.
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
        number, numbers = self._step_number(timestep), self.sampling_numbers()
        if numbers.sampling != "showo":
            generator = self._generators(generator, sample.shape[0])
        codes, predicted = self._plan.step(model_output, sample, number, generator, positions)
        pred_logits = truncate_logits(model_output.float(), numbers) / (numbers.temperature or 1.0)
        if not return_dict:
            return codes, predicted, pred_logits
        return UniF2aceSchedulerOutput(codes, predicted, pred_logits)

    def add_noise(
        self,
        original_samples: torch.LongTensor,
        timesteps: float | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        mask_ratio: float | None = None,
    ) -> torch.LongTensor:
        """
        Mask random codes: as many as are masked before the step at `timesteps`, or a share of them.

        Args:
            original_samples (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`): Codes.
            timesteps (`float` or `torch.Tensor` of shape `()` or `(batch_size,)`, *optional*):
                In [0, 1]; 1 masks everything. What the model sees at that time: `set_timesteps` need not be called.
            generator (`torch.Generator` or list of them, *optional*): As in `step`.
            mask_ratio (`float`, *optional*): Share in [0, 1] instead of `timesteps`.

        Returns:
            `torch.LongTensor` of shape `(batch_size, num_image_tokens)`: a copy with -1 at exactly
            `round(share · num_image_tokens)` positions of each row.

        Raises:
            ValueError: unless exactly one of `timesteps` and `mask_ratio` is given, in [0, 1].
        """
        batch_size, num_image_tokens = original_samples.shape
        if (timesteps is None) == (mask_ratio is None):
            raise ValueError("add_noise needs either `timesteps` or `mask_ratio`, one of the two")
        if mask_ratio is None:
            schedule = MaskSchedule(self.config.masking_schedule)
            per_row = torch.as_tensor(timesteps).expand(batch_size).tolist()
            ratios = [schedule.ratio(1 - time, num_image_tokens) for time in per_row]
        elif 0 <= mask_ratio <= 1:
            ratios = [mask_ratio] * batch_size
        else:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected a number from 0 to 1")
        num_masked = torch.tensor([round(num_image_tokens * ratio) for ratio in ratios])
        return mask_codes(original_samples, num_masked, self._generators(generator, batch_size))

    def _step_number(self, timestep: float | torch.Tensor) -> int:
        """The number of a step, from 0 on, that begins at `timestep`."""
        if self.num_inference_steps is None:
            raise ValueError("the scheduler has no steps yet: call `set_timesteps` first")
        steps, time = self.num_inference_steps, torch.as_tensor(timestep)
        if not time.is_floating_point():
            raise ValueError(f"timestep {timestep} is a step's number: give one of `timesteps`, from 1 to 1/{steps}")
        left = round(float(time) * steps)
        if not 1 <= left <= steps or abs(float(time) * steps - left) > 0.01:
            raise ValueError(f"timestep {float(time):g} is not one of the {steps} `timesteps`, from 1 to 1/{steps}")
        return steps - left

    @staticmethod
    def _generators(generator, batch_size: int) -> list[torch.Generator]:
        check_generator(generator, batch_size)
        return generator if isinstance(generator, (list, tuple)) else row_generators(generator, batch_size)


__all__ = ["UniF2aceScheduler", "UniF2aceSchedulerOutput"]
