"""
Reward tuning of generation: GRPO (arXiv:2402.03300) for the masked sampler.

A group of pictures is drawn for each prompt, scored, and what was better than its group becomes likelier. With the
ancestral sampler the likelihood of a whole trajectory is exact: which places are revealed does not depend on the
model, and the revealed codes are draws from its softmax, so

    log p(trajectory) = Σ over steps Σ over places revealed in the step  log π(code | codes so far, prompt).

Which of the hidden places a step reveals is chance, hence noise. `credit="hidden"` takes all of them, with the
codes that they got in the end, each by the share of the hidden places that the step reveals (after UniGRPO,
arXiv:2505.15809). The expectation stays, as far as a place's distribution does not depend on what is revealed first.

The loss is the clipped policy gradient of that sum plus β times the exact KL divergence to the model before tuning, at
the same places; both are divided by the number of codes. The reference is the same model with its adapters switched
off, so it costs no memory. Other samplings can be used for the rollouts: their choice of places is then taken as
given.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import get_peft_model
from PIL import Image
from tqdm import tqdm

from ..modeling_unif2ace.sampling_unif2ace import MASKED_CODE, ImageSampling
from ..pipelines import UniF2acePipeline
from ..pipelines.files import write_json
from .adapters import lora_config, restrict_to_tasks
from .evaluation.judge import UniF2aceJudge
from .run_folder import append_line


CREDITS = ("revealed", "hidden")


@dataclass
class Prompt:
    """A prompt, and what a reward wants to know about it: here the attributes that it states."""

    text: str
    wanted: dict[str, str] = field(default_factory=dict)


Reward = Callable[[list[Image.Image], list[Prompt]], torch.Tensor]
"""From pictures and their prompts to one number each, `(pictures,)` float32."""


class AttributeReward:
    """
    The share of the stated attributes that the judge sees in the picture.

    Args:
        judge (`UniF2aceJudge`): The trained judge.
        soft (`bool`, *optional*, defaults to `True`):
            The judge's probability of the wanted values instead of right or wrong: less noise, same order.
    """

    def __init__(self, judge: UniF2aceJudge, soft: bool = True):
        self.judge, self.soft = judge.eval(), soft

    @torch.no_grad()
    def __call__(self, images: list[Image.Image], prompts: list[Prompt]) -> torch.Tensor:
        output = self.judge(self.judge.preprocess(images))
        labels = self.judge.config.labels
        rewards = []
        for row, prompt in enumerate(prompts):
            scores = []
            for name, value in prompt.wanted.items():
                logits = output.logits[name][row].float()
                place = labels[name].index(value)
                scores.append(logits.softmax(-1)[place] if self.soft else (logits.argmax(-1) == place).float())
            if not scores:
                raise ValueError(f"prompt {prompt.text!r} states no attribute, so there is nothing to reward")
            rewards.append(torch.stack(scores).mean())
        return torch.stack(rewards)


# The mathematics


def group_advantages(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """
    How much better each picture is than its group.

    Args:
        rewards (`torch.Tensor` of shape `(prompts, group_size)`): Rewards.
        scale (`bool`, *optional*, defaults to `True`):
            Divide by the group's standard deviation (GRPO); without, groups that differ more weigh more (Dr. GRPO,
            arXiv:2503.20783).

    Returns:
        `torch.Tensor` of the same shape; each row sums to zero, and is zero where all rewards are equal.
    """
    centered = rewards - rewards.mean(-1, keepdim=True)
    if not scale:
        return centered
    return centered / (rewards.std(-1, correction=0, keepdim=True) + 1e-4)


def revealed_places(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Places (B, N) that a step has revealed: masked in the codes before it and known after it."""
    return (before == MASKED_CODE) & (after != MASKED_CODE)


def credits_of_step(before: torch.Tensor, after: torch.Tensor, credit: str = "revealed") -> torch.Tensor:
    """
    How much each place (B, N) counts in the gradient of a step, float32; a row sums to what the step has revealed.

    Args:
        before, after (`torch.Tensor` of shape `(B, N)`): Codes before and after the step.
        credit (`str`, *optional*, defaults to `"revealed"`):
            `"revealed"`: 1 where the step has revealed a code. `"hidden"`: wherever a code was hidden before it, the
            share of these that the step has revealed.
    """
    revealed = revealed_places(before, after).float()
    if credit == "revealed":
        return revealed
    hidden = (before == MASKED_CODE).float()
    return hidden * revealed.sum(-1, keepdim=True) / hidden.sum(-1, keepdim=True).clamp(min=1)


def code_log_probs(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, N) of `codes` (B, N) under `logits` (B, N, C); anything where a code is masked."""
    return logits.float().log_softmax(-1).gather(-1, codes.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    clip: float = 0.2,
) -> torch.Tensor:
    """
    The clipped policy gradient (PPO) of one step: its gradient at `log_probs = old_log_probs` is
    `-Σ weight · advantage · ∇ log p`.

    Args:
        log_probs, old_log_probs (`torch.Tensor` of shape `(B, N)`):
            Log-probabilities of the drawn codes now and when they were drawn.
        advantages (`torch.Tensor` of shape `(B,)`): See [`group_advantages`].
        weights (`torch.Tensor` of shape `(B, N)`): How much a code counts; see [`credits_of_step`].
        clip (`float`, *optional*, defaults to 0.2): How far the ratio of probabilities may move.

    Returns:
        Scalar: mean over rows of the weighted sum over codes, divided by N.
    """
    ratio = torch.where(weights > 0, log_probs - old_log_probs, 0.0).exp()
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
    return -(gain * weights).sum() / weights.numel()


def kl_to_reference(logits: torch.Tensor, reference: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Exact KL(model ‖ reference) of the codes' distributions, (B, N, C) both, summed with the weights (B, N).

    Returns:
        Scalar: mean over rows of the sum, divided by N; 0 and without gradient where the two are equal.
    """
    log_p, log_q = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (divergence * weights).sum() / weights.numel()


# The trainer


@dataclass
class RewardArguments:
    """
    Arguments of [`GenerationRewardTrainer`].

    Args:
        updates (`int`, *optional*, defaults to 100): Optimizer steps.
        prompts_per_update (`int`, *optional*, defaults to 4): Groups of an update.
        group_size (`int`, *optional*, defaults to 4): Pictures of a group.
        num_inference_steps (`int`, *optional*, defaults to 8): Sampling steps of a rollout.
        trained_steps (`int`, *optional*, defaults to 2):
            Steps of each rollout, drawn at random, that the gradient is estimated from; the estimate stays unbiased.
        credit (`str`, *optional*, defaults to `"hidden"`):
            Which codes a step is judged by: those that it has `"revealed"`, or all that were `"hidden"` before it. See
            the top of this file.
        iterations (`int`, *optional*, defaults to 1): Optimizer steps with the same rollouts; from 2 on clipping acts.
        guidance_scale (`float`, *optional*, defaults to 1.0): Guidance in rollouts; with it the guided model is tuned.
        sampling (`str`, *optional*, defaults to `"ancestral"`): Of [`UniF2aceScheduler`]; see the top of this file.
        learning_rate (`float`, *optional*, defaults to 3e-4): Constant.
        beta (`float`, *optional*, defaults to 0.05): Weight of the KL divergence to the model before tuning.
        clip (`float`, *optional*, defaults to 0.2): See [`policy_loss`].
        scale_advantages (`bool`, *optional*, defaults to `True`): See [`group_advantages`].
        max_grad_norm (`float`, *optional*, defaults to 1.0): Gradients are cut to this norm.
        preset, rank: See [`~unif2ace.training.adapters.lora_config`]; of the experts the generation group learns.
        max_minutes (`float`, *optional*): Stop after so many minutes.
        seed (`int`, *optional*, defaults to 0): Seed of everything.
    """

    updates: int = 100
    prompts_per_update: int = 4
    group_size: int = 4
    num_inference_steps: int = 8
    trained_steps: int = 2
    credit: str = "hidden"
    iterations: int = 1
    guidance_scale: float = 1.0
    sampling: str = "ancestral"
    learning_rate: float = 3e-4
    beta: float = 0.05
    clip: float = 0.2
    scale_advantages: bool = True
    max_grad_norm: float = 1.0
    preset: str = "attention"
    rank: int = 16
    max_minutes: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("updates", "prompts_per_update", "num_inference_steps", "trained_steps", "iterations", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}, expected at least 2: a group is compared with itself")
        if self.trained_steps > self.num_inference_steps:
            raise ValueError(f"trained_steps={self.trained_steps}, expected at most {self.num_inference_steps}")
        if self.credit not in CREDITS:
            raise ValueError(f"credit={self.credit!r}, expected one of {', '.join(map(repr, CREDITS))}")
        for name in ("learning_rate", "clip", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}, expected more than 0")
        if self.beta < 0:
            raise ValueError(f"beta={self.beta}, expected 0 or more")


@dataclass
class Rollouts:
    """
    Pictures and how they came about.

    Args:
        prompts (`list[Prompt]`): One for each row; the rows of a group follow each other.
        states (`torch.LongTensor` of shape `(steps + 1, B, N)`): Codes before each step and at the end.
        log_probs (`torch.FloatTensor` of shape `(steps, B, N)`):
            Of the codes at the end, by the distributions that each step drew from.
        images (`list[PIL.Image.Image]`): The pictures.
    """

    prompts: list[Prompt]
    states: torch.LongTensor
    log_probs: torch.FloatTensor
    images: list[Image.Image]


class GenerationRewardTrainer:
    """
    Tunes a LoRA adapter of `pipe.transformer` so that pictures get a higher reward.

    Args:
        pipe (`UniF2acePipeline`): The pipeline; the adapter is put into its model, where it stays active.
        reward (`Reward`): Scores pictures, for example [`AttributeReward`].
        prompts (`Sequence[Prompt]`): What to draw; taken in random order, again and again.
        args (`RewardArguments`): The arguments.
        log_file (`str` or `Path`, *optional*): Gets one JSON object an update.
    """

    def __init__(
        self,
        pipe: UniF2acePipeline,
        reward: Reward,
        prompts: Sequence[Prompt],
        args: RewardArguments,
        log_file: str | Path | None = None,
    ):
        if not prompts:
            raise ValueError("there are no prompts, expected at least one")
        self.pipe, self.reward, self.prompts, self.args = pipe, reward, list(prompts), args
        self.log_file = None if log_file is None else Path(log_file)
        torch.manual_seed(args.seed)
        config = lora_config(pipe.transformer.config, args.preset, ["t2i"], args.rank)
        self.model = get_peft_model(pipe.transformer, config).eval()  # no dropout: a draw and its likelihood agree
        restrict_to_tasks(self.model, ["t2i"])
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.learning_rate, weight_decay=0.0)
        self.log: list[dict[str, float]] = []

    def _batches(self) -> Iterator[tuple[int, list[Prompt]]]:
        """Numbers of the updates and their prompts."""
        rng, queue = random.Random(f"{self.args.seed}-prompts"), []
        for update in range(self.args.updates):
            while len(queue) < self.args.prompts_per_update:
                queue += rng.sample(self.prompts, len(self.prompts))
            yield update, [queue.pop(0) for _ in range(self.args.prompts_per_update)]

    def _encode(self, prompts: list[Prompt]):
        """Keys and values of the prompts, one row for each picture."""
        texts = [prompt.text for prompt in prompts]
        inputs = self.pipe.processor(text=texts, generation_mode="image", return_tensors="pt")
        inputs = inputs.to(self.pipe.transformer.device)
        return self.pipe.transformer.encode_prompt(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            guidance=self.args.guidance_scale != 1.0,
            num_images_per_prompt=self.args.group_size,
        )

    def _logits(self, codes: torch.Tensor, state) -> torch.Tensor:
        return self.pipe.transformer.predict_codes(codes, state, guidance_scale=self.args.guidance_scale)

    @torch.no_grad()
    def rollout(self, prompts: list[Prompt], generator: torch.Generator) -> Rollouts:
        """Draw a group of pictures for each prompt."""
        args, transformer = self.args, self.pipe.transformer
        numbers = ImageSampling(
            sampling=args.sampling,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
        )
        decoding = transformer.start_decoding(self._encode(prompts), numbers, generator, everywhere=True)
        states, distributions = [decoding.codes], []
        for _ in transformer.decode(decoding):
            states.append(decoding.codes)
            distributions.append(decoding.logits)
        codes = decoding.codes
        log_probs = [code_log_probs(logits, codes) for logits in distributions]
        images = self.pipe.processor.post_process_multimodal_output(
            transformer.decode_image_tokens(codes), generation_mode="image"
        )
        rows = [prompt for prompt in prompts for _ in range(args.group_size)]
        return Rollouts(rows, torch.stack(states), torch.stack(log_probs), images)

    def backward(
        self, prompts: list[Prompt], rollouts: Rollouts, advantages: torch.Tensor, steps: Sequence[int]
    ) -> dict[str, float]:
        """
        Add the gradient of the loss, estimated from some steps of the rollouts, to the adapter's weights.

        Args:
            prompts (`list[Prompt]`): The prompts of the groups.
            rollouts (`Rollouts`): Their pictures.
            advantages (`torch.Tensor` of shape `(B,)`): One for each picture.
            steps (`Sequence[int]`): Which steps; the sum over them is scaled up to all.

        Returns:
            `dict[str, float]`: `policy_loss` and `kl`.
        """
        scale = len(rollouts.log_probs) / len(steps)
        totals = {"policy_loss": 0.0, "kl": 0.0}
        for step in steps:
            before = rollouts.states[step]
            weights = credits_of_step(before, rollouts.states[step + 1], self.args.credit)
            if self.args.beta:
                with torch.no_grad(), self.model.disable_adapter():
                    reference = self._logits(before, self._encode(prompts))
            logits = self._logits(before, self._encode(prompts))
            loss = policy_loss(
                code_log_probs(logits, rollouts.states[-1]),
                rollouts.log_probs[step],
                advantages,
                weights,
                self.args.clip,
            )
            totals["policy_loss"] += scale * loss.item()
            if self.args.beta:
                divergence = kl_to_reference(logits, reference, weights)
                loss = loss + self.args.beta * divergence
                totals["kl"] += scale * divergence.item()
            (scale * loss).backward()
        return totals

    def train(self) -> list[dict[str, float]]:
        """
        Tune; Ctrl-C ends it early.

        Returns:
            `list[dict[str, float]]`: One entry an update: `update`, `seconds`, `reward` (mean), `reward_std` (mean
            over groups of the standard deviation), `policy_loss`, `kl`, `grad_norm`.
        """
        args, started = self.args, time.monotonic()
        bar = tqdm(self._batches(), total=args.updates, desc="reward tuning", unit="update")
        try:
            for update, prompts in bar:
                entry = self._update(update, prompts)
                entry["seconds"] = round(time.monotonic() - started, 1)
                self._note(entry)
                bar.set_postfix_str(f"reward {entry['reward']:.3f}, kl {entry['kl']:.4f}")
                if args.max_minutes is not None and entry["seconds"] > 60 * args.max_minutes:
                    break
        except KeyboardInterrupt:  # what was learnt so far can still be measured and saved
            bar.write(f"stopped after {len(self.log)} updates")
        return self.log

    def _update(self, update: int, prompts: list[Prompt]) -> dict[str, float]:
        """Rollouts and the optimizer steps that they are used for; what is logged of them."""
        args = self.args
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + update)
        rollouts = self.rollout(prompts, generator)
        rewards = self.reward(rollouts.images, rollouts.prompts).view(len(prompts), args.group_size)
        advantages = group_advantages(rewards, args.scale_advantages).flatten().to(rollouts.states.device)
        for _ in range(args.iterations):
            steps = torch.randperm(args.num_inference_steps, generator=generator)[: args.trained_steps].tolist()
            self.optimizer.zero_grad()
            losses = self.backward(prompts, rollouts, advantages, steps)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, args.max_grad_norm)
            self.optimizer.step()
        return {
            "update": update,
            "reward": rewards.mean().item(),
            "reward_std": rewards.std(-1, correction=0).mean().item(),
            **losses,
            "grad_norm": norm.item(),
        }

    def _note(self, entry: dict[str, float]) -> None:
        self.log.append(entry)
        if self.log_file is not None:
            append_line(self.log_file, entry)

    def save(self, folder: str | Path) -> None:
        """Write the adapter and the arguments."""
        folder = Path(folder)
        if (folder / "adapter_config.json").exists():
            raise FileExistsError(f"{folder} holds an adapter already; choose another folder")
        self.model.save_pretrained(folder)
        write_json(folder / "reward.json", asdict(self.args))
