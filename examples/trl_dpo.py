"""
Preference tuning of the understanding side with TRL: right descriptions become likelier than wrong ones (DPO).

    python examples/trl_dpo.py --output runs/dpo                    # painted faces: captions with and without mistakes
    python examples/trl_dpo.py --output runs/dpo --data my_faces/   # `chosen` and `rejected` in metadata.jsonl
    unif2ace describe face.png --model runs/dpo

A folder without preferences rejects the captions of other pictures. The reference is the model without the adapter, so
nothing is loaded twice. Writes a LoRA adapter of the understanding group: pictures are generated as before.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from unif2ace import UniF2acePipeline
from unif2ace.training.adapters import lora_config, restrict_to_tasks
from unif2ace.training.data.conversations import folder_preferences, load_faces, preference_rows


def make_trainer(options: argparse.Namespace, pipe: UniF2acePipeline | None = None) -> DPOTrainer:
    """TRL's trainer for the options of the command."""
    pipe = pipe or UniF2acePipeline.from_pretrained(options.base)
    model = pipe.transformer
    rows = folder_preferences(options.data)
    rows = rows or preference_rows(load_faces(options.data, options.count), options.seed)
    trainer = DPOTrainer(
        model=model,
        processing_class=pipe.processor,
        train_dataset=Dataset.from_list(rows).shuffle(seed=options.seed),
        peft_config=lora_config(model.config, "experts", ["mmu"], options.rank),
        args=DPOConfig(
            output_dir=str(options.output),
            beta=options.beta,
            max_length=None,  # cutting a row could cut the picture
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
    parser = argparse.ArgumentParser(description="Preference tuning of descriptions with TRL (DPO).")
    parser.add_argument("--output", type=Path, required=True, help="where the adapter goes; must be new or empty")
    parser.add_argument("--data", default="painted", help="'painted' or a folder (default: %(default)s)")
    parser.add_argument("--count", type=int, help="faces (default: 64 painted ones, or all of the folder)")
    parser.add_argument("--base", help="checkpoint (default: the bundled one)")
    parser.add_argument("--beta", type=float, default=0.1, help="how close to the reference (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} exists and is not empty; choose another folder")
    trainer = make_trainer(options)
    trainer.train()
    trainer.model.save_pretrained(options.output)
    log = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    first, last = log[0]["rewards/accuracies"], log[-1]["rewards/accuracies"]
    print(f"the right description is preferred in {first:.0%} -> {last:.0%} of the pairs; wrote {options.output}")


if __name__ == "__main__":
    main()
