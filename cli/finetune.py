"""`unif2ace finetune`."""

import argparse
import json
from pathlib import Path

from ..modeling_unif2ace.layout_unif2ace import TASKS
from ..training.adapters import ABOUT_FULL, FULL, PRESETS
from ..training.finetune import FinetuneSettings, check_output, finetune
from .common import EXIT_OF_SIGNAL, EXIT_OK, load_pipeline, positive_int, seed_int


EXAMPLES = """\
examples:
  unif2ace finetune --data my_faces/ --output my_faces_lora --trigger zora
  unif2ace finetune --data my_faces/ --output my_faces_lora --preset attention+experts --task t2i --steps 800
  unif2ace finetune --data my_faces/ --output my_faces_lora --trigger zora --resume
  unif2ace generate "zora, a woman with a red hat" --model my_faces_lora -o face.png

The folder has pictures, and for each a caption: a .txt or .caption file of the same name, or a line of metadata.jsonl,
{"file_name": ..., "text": ...}; what is not read is named. --trigger is the name of who is to be seen; captions that
lack it get it in front. An output folder that holds something is never written over.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `unif2ace finetune`."""
    defaults = FinetuneSettings("", "")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="pictures of faces with captions")
    parser.add_argument(
        "--output", "-o", required=True, metavar="FOLDER", help="where the result goes; must be new or empty"
    )
    parser.add_argument(
        "--base",
        dest="model",
        metavar="REPO",
        help="the checkpoint to start from: a folder or a Hub repository (default: the bundled checkpoint)",
    )
    about = {name: preset.about for name, preset in PRESETS.items()} | {FULL: ABOUT_FULL}
    about = "; ".join(f"{name}: {text}" for name, text in about.items())
    parser.add_argument(
        "--preset",
        choices=[*PRESETS, FULL],
        default=defaults.preset,
        help=f"what to change. {about} (default: %(default)s)",
    )
    parser.add_argument(
        "--task",
        choices=[*TASKS, "both"],
        default="both",
        help="tune generation (t2i), understanding (mmu) or both (default: %(default)s)",
    )
    parser.add_argument("--trigger", metavar="NAME", help="a name for who is to be seen")
    parser.add_argument(
        "--trigger-only", action="store_true", help="go on where most pictures have no caption but the trigger"
    )
    parser.add_argument("--steps", type=positive_int, default=defaults.steps, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="(default: 1e-3, for --preset full 1e-4)")
    parser.add_argument("--rank", type=positive_int, default=defaults.rank, help="LoRA's rank (default: %(default)s)")
    parser.add_argument(
        "--prior",
        type=int,
        metavar="N",
        help="pictures of the base model's own that are learnt again, so that other prompts keep their meaning "
        "(default: as many as there are faces, with a trigger)",
    )
    parser.add_argument("--seed", type=seed_int, default=defaults.seed, help="(default: %(default)s)")
    parser.add_argument(
        "--save-steps",
        type=positive_int,
        default=defaults.save_steps,
        metavar="N",
        help="steps between checkpoints to resume from (default: %(default)s)",
    )
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, on a GPU that can")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--device", help="where to run: cpu, cuda, cuda:1, mps (default: cuda if there is one)")


def run(arguments: argparse.Namespace) -> int:
    """The command; 130 or 143 if a signal ended the run."""
    settings = FinetuneSettings(
        data=arguments.data,
        output=arguments.output,
        base=arguments.model,
        preset=arguments.preset,
        tasks=list(TASKS) if arguments.task == "both" else [arguments.task],
        trigger=arguments.trigger,
        trigger_only=arguments.trigger_only,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        rank=arguments.rank,
        prior=arguments.prior,
        seed=arguments.seed,
        save_steps=arguments.save_steps,
        bf16=arguments.bf16,
    )
    check_output(Path(settings.output), settings, arguments.resume)  # before the model is loaded
    summary = finetune(settings, load_pipeline(arguments), arguments.resume)
    if "stopped_by" in summary:
        print(f"stopped by {summary['stopped_by']} after step {summary['steps']}; go on with --resume")
        return EXIT_OF_SIGNAL[summary["stopped_by"]]
    loss = ""
    if summary["first_loss"] is not None:
        loss = f", loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f}"
    print(f"{summary['steps']} steps in {summary['seconds'] / 60:.1f} minutes{loss}")
    for kind, change in summary["changed"].items():
        print(f"  {kind}: changed by {change:.1e} (root mean square)" if change else f"  {kind}: untouched")
    print(f"wrote {settings.output}: {', '.join(summary['files'])}")
    print(f"try: unif2ace generate {json.dumps(summary['prompts'][0])} --model {settings.output}")
    return EXIT_OK
