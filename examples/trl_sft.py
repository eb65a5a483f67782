"""
Supervised tuning of the understanding side with TRL: the model learns what the assistant says, given the picture.

    python examples/trl_sft.py --output runs/sft                      # painted faces
    python examples/trl_sft.py --output runs/sft --data my_faces/     # pictures with captions
    unif2ace describe face.png --model runs/sft

Writes a LoRA adapter of the understanding group: pictures are generated as before, bit for bit.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from unif2ace import UniF2acePipeline
from unif2ace.training.adapters import lora_config, restrict_to_tasks
from unif2ace.training.data.conversations import conversation_rows, load_faces


def make_trainer(options: argparse.Namespace, pipe: UniF2acePipeline | None = None) -> SFTTrainer:
    """TRL's trainer for the options of the command."""
    pipe = pipe or UniF2acePipeline.from_pretrained(options.base)
    model = pipe.transformer
    rows = conversation_rows(load_faces(options.data, options.count), options.seed)
    trainer = SFTTrainer(
        model=model,
        processing_class=pipe.processor,
        train_dataset=Dataset.from_list(rows).shuffle(seed=options.seed),
        # only the experts of the understanding group: what they learn cannot change generation
        peft_config=lora_config(model.config, "experts", ["mmu"], options.rank),
        args=SFTConfig(
            output_dir=str(options.output),
            assistant_only_loss=True,  # not the question, which it will never have to write
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
    parser = argparse.ArgumentParser(description="Supervised tuning of descriptions and answers with TRL.")
    parser.add_argument("--output", type=Path, required=True, help="where the adapter goes; must be new or empty")
    parser.add_argument("--data", default="painted", help="'painted' or a folder (default: %(default)s)")
    parser.add_argument("--count", type=int, help="faces (default: 64 painted ones, or all of the folder)")
    parser.add_argument("--base", help="checkpoint (default: the bundled one)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} exists and is not empty; choose another folder")
    trainer = make_trainer(options)
    trainer.train()
    trainer.model.save_pretrained(options.output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; wrote {options.output}")


if __name__ == "__main__":
    main()
