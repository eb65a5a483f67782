"""`unif2ace finetune`."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from ..training.finetune_settings import ABOUT_FULL, FULL, PRESETS, FinetuneSettings
from .common import EXIT_OF_SIGNAL, EXIT_OK, add_device_argument, load_pipeline, positive_int, seed_int


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
    defaults = FinetuneSettings
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
        choices=("t2i", "mmu", "both"),
        default="both",
        help="tune generation (t2i), understanding (mmu) or both (default: %(default)s)",
    )
    parser.add_argument("--trigger", metavar="NAME", help="a name for who is to be seen")
    parser.add_argument(
        "--trigger-only", action="store_true", help="go on where most or all pictures have no caption but the trigger"
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
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """The command; 130 or 143 if a signal ended the run."""
    arguments.console.stage(f"reading {arguments.data}")
    from ..training.finetune import check_output, finetune

    given = {field.name: getattr(arguments, field.name, None) for field in fields(FinetuneSettings)}
    tasks = {} if arguments.task == "both" else {"tasks": [arguments.task]}
    given = {name: value for name, value in given.items() if value is not None}
    settings = FinetuneSettings(**given, **tasks, base=arguments.model)
    check_output(Path(settings.output), settings, arguments.resume)  # before the model is loaded
    summary = finetune(settings, load_pipeline(arguments), arguments.resume)
    if "stopped_by" in summary:
        arguments.console.result(
            f"stopped by {summary['stopped_by']} after step {summary['steps']}; go on with --resume", **summary
        )
        return EXIT_OF_SIGNAL[summary["stopped_by"]]
    loss = ""
    if summary["first_loss"] is not None:
        loss = f", loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f}"
    lines = [f"{summary['steps']} steps in {summary['seconds'] / 60:.1f} minutes{loss}"]
    for kind, change in summary["changed"].items():
        lines.append(f"  {kind}: changed by {change:.1e} (root mean square)" if change else f"  {kind}: untouched")
    for name, values in summary["measured"].items():
        lines.append(f"  {name}: {values['before']:.3f} before, {values['after']:.3f} after")
    lines.append(f"look at {Path(settings.output) / 'run' / 'sheet.png'}: training pictures, before and after")
    lines.append(f"wrote {settings.output}: {', '.join(summary['files'])}")
    lines.append(f"try: unif2ace generate {json.dumps(summary['prompts'][0])} --model {settings.output}")
    arguments.console.result("\n".join(lines), output=settings.output, **summary)
    return EXIT_OK
