"""
Reward tuning of generation on painted faces: prompts state attributes, the judge says which of them it sees.

    # once:
    python -m unif2ace.training.synthetic.train_encoders judge --config training/synthetic/configs/encoders-faces.yaml
    python examples/reward_tuning.py --judge runs/judge/final --output runs/reward

Measures the shipping sampler on held-out prompts before and after, with the same seeds, and writes the adapter, the
log and `results.json`. An experiment: `docs/finetuning.md` says what it gave. The reward is the measure, so what the
judge misreads is learnt as well; pictures should be looked at (`sheet.png`).
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unif2ace import UniF2acePipeline
from unif2ace.modeling_unif2ace.provenance_unif2ace import describe_checkpoint
from unif2ace.pipelines.files import write_json
from unif2ace.pipelines.pictures import picture_grid, save_picture
from unif2ace.training.evaluation.judge import UniF2aceJudge
from unif2ace.training.evaluation.results import interval, table
from unif2ace.training.evaluation.statistics import ratio_with_interval
from unif2ace.training.reward import (
    CREDITS,
    AttributeReward,
    GenerationRewardTrainer,
    Prompt,
    RewardArguments,
)
from unif2ace.training.synthetic.painted.rows import painted_prompts


def draw(pipe: UniF2acePipeline, prompts: list[Prompt], what: str) -> list[Image.Image]:
    """One picture of each prompt with the shipping sampler; picture i always from the same noise."""
    images = []
    for start in tqdm(range(0, len(prompts), 8), desc=what, leave=False):
        part = prompts[start : start + 8]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        images += pipe([prompt.text for prompt in part], generator=generators).images
    return images


def report(results: dict, rows: list[list[str]]) -> str:
    """The measured numbers as a table, with what was done."""
    args = results["arguments"]
    rewards, kl = results["reward"], results["kl"][1]
    name, version = results["checkpoint"]
    text = (
        f"Checkpoint {name} ({version}). "
        f"{results['updates']} updates of {args['prompts_per_update']} prompts with {args['group_size']} pictures, "
        f"{args['num_inference_steps']} sampling steps, learning rate {args['learning_rate']}, "
        f"{results['minutes']:.0f} minutes; measured with the shipping sampler on {args['held_out']} other prompts. "
        f"Reward of the rollouts, first and last tenth: {rewards[0]:.3f} and {rewards[1]:.3f}; KL at the end {kl:.4f}."
    )
    return text + "\n\n" + table(["on held-out prompts [95 % interval]", "before", "after", "difference"], rows)


def main(arguments: list[str] | None = None) -> dict:
    """The command."""
    defaults = RewardArguments()
    parser = argparse.ArgumentParser(description="Tune generation with the judge's reading as reward (GRPO).")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge/final"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--base", help="checkpoint (default: the bundled one)")
    parser.add_argument("--prompts", type=int, default=512, help="prompts to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=64, help="prompts to measure on (default: %(default)s)")
    for name in ("updates", "prompts_per_update", "group_size", "num_inference_steps", "trained_steps", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("learning_rate", "beta", "guidance_scale", "max_minutes"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name))
    parser.add_argument("--sampling", default=defaults.sampling)
    parser.add_argument("--credit", choices=CREDITS, default=defaults.credit)
    options = parser.parse_args(arguments)
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} exists and is not empty; choose another folder")

    started = time.monotonic()
    pipe = UniF2acePipeline.from_pretrained(options.base)
    pipe.set_progress_bar_config(disable=True)
    checkpoint, version = describe_checkpoint(pipe.transformer.name_or_path)
    judge = UniF2aceJudge.from_pretrained(options.judge)
    right, probability = AttributeReward(judge, soft=False), AttributeReward(judge)
    held_out = painted_prompts(options.held_out, "test")
    options.output.mkdir(parents=True, exist_ok=True)
    names = RewardArguments.__dataclass_fields__
    args = RewardArguments(**{name: value for name, value in vars(options).items() if name in names})

    before = draw(pipe, held_out, "before")
    trainer = GenerationRewardTrainer(
        pipe, probability, painted_prompts(options.prompts), args, options.output / "log.jsonl"
    )
    log = trainer.train()
    trainer.save(options.output / "adapter")
    after = draw(pipe, held_out, "after")

    rows = []
    results = {"checkpoint": [checkpoint, (version or "")[:19]], "updates": len(log), "minutes": 0.0, "measures": {}}
    for name, reward in (("attributes read rightly", right), ("the judge's probability of them", probability)):
        values = [reward(images, held_out).numpy() for images in (before, after)]
        ones = np.ones(len(held_out))
        measured = [ratio_with_interval(value, ones) for value in (*values, values[1] - values[0])]
        results["measures"][name] = dict(zip(("before", "after", "difference"), measured, strict=True))
        rows.append([name, *map(interval, measured)])
    tenth = max(1, len(log) // 10)
    for name in ("reward", "kl"):
        ends = (log[:tenth], log[-tenth:])
        results[name] = [float(np.mean([entry[name] for entry in part])) for part in ends]
    results["minutes"] = (time.monotonic() - started) / 60
    results["arguments"] = asdict(args) | {"held_out": options.held_out, "prompts": options.prompts}
    write_json(options.output / "results.json", results)
    save_picture(picture_grid([*before[:8], *after[:8]]), options.output / "sheet.png")
    print(report(results, rows))
    return results


if __name__ == "__main__":
    main()
