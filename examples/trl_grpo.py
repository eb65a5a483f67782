"""
Reward tuning of the understanding side with TRL: what earns a reward is said more often (GRPO).

    python examples/trl_grpo.py --output runs/grpo                    # painted faces: captions and questions
    python examples/trl_grpo.py --output runs/grpo --data my_faces/   # pictures with captions
    unif2ace describe face.png --model runs/grpo

The reward is how many words an answer shares with the known one; put a function of your own into `make_trainer`. The
reference is the model without the adapter. Writes a LoRA adapter of the understanding group: pictures are generated as
before. `training/reward.py` is the same for what the model draws.
"""

import argparse
from collections import Counter
from pathlib import Path

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from unif2ace import UniF2acePipeline
from unif2ace.training.adapters import lora_config, restrict_to_tasks
from unif2ace.training.data.conversations import load_faces, question_rows


def shared_words(completions: list[list[dict]], answer: list[str], **kwargs) -> list[float]:
    """The harmonic mean of precision and recall over words, 0 to 1, of each completion and the known answer."""
    rewards = []
    for completion, known in zip(completions, answer, strict=True):
        said, wanted = (Counter(text.lower().replace(".", "").split()) for text in (completion[0]["content"], known))
        rewards.append(2 * (said & wanted).total() / max(said.total() + wanted.total(), 1))
    return rewards


def make_trainer(options: argparse.Namespace, pipe: UniF2acePipeline | None = None) -> GRPOTrainer:
    """TRL's trainer for the options of the command."""
    pipe = pipe or UniF2acePipeline.from_pretrained(options.base)
    model = pipe.transformer
    rows = question_rows(load_faces(options.data, options.count), options.seed)
    trainer = GRPOTrainer(
        model=model,
        processing_class=pipe.processor,
        reward_funcs=shared_words,
        train_dataset=Dataset.from_list(rows).shuffle(seed=options.seed),
        # only the experts of the understanding group: what they learn cannot change generation
        peft_config=lora_config(model.config, "experts", ["mmu"], options.rank),
        args=GRPOConfig(
            output_dir=str(options.output),
            beta=options.beta,
            num_generations=options.group_size,
            max_completion_length=options.max_new_tokens,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            logging_steps=max(1, options.steps // 20),
            save_strategy="no",
            report_to=[],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=model.device.type == "cpu",
        ),
    )
    restrict_to_tasks(trainer.model, ["mmu"])
    return trainer


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Reward tuning of descriptions and answers with TRL (GRPO).")
    parser.add_argument("--output", type=Path, required=True, help="where the adapter goes; must be new or empty")
    parser.add_argument("--data", default="painted", help="'painted' or a folder (default: %(default)s)")
    parser.add_argument("--count", type=int, help="faces (default: 64 painted ones, or all of the folder)")
    parser.add_argument("--base", help="checkpoint (default: the bundled one)")
    parser.add_argument("--beta", type=float, default=0.02, help="how close to the reference (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=4, help="answers that are compared (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--batch-size", type=int, default=8, help="answers a step, whole groups (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} exists and is not empty; choose another folder")
    trainer = make_trainer(options)
    trainer.train()
    trainer.model.save_pretrained(options.output)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"mean reward {rewards[0]:.3f} -> {rewards[-1]:.3f}; wrote {options.output}")


if __name__ == "__main__":
    main()
