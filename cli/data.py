"""`unif2ace data`: look at face data sets, and prepare them for training."""

import argparse
from importlib import import_module


EXAMPLES = """\
examples:
  unif2ace data sources
  unif2ace data inspect photos/ --sheet sheet.png
  unif2ace data inspect someone/faces --columns image=jpg,caption=txt --limit 500
  unif2ace data crop photos/ -o aligned/
  unif2ace data clean aligned/ -o cleaned/ --splits train=0.9,test=0.1
  unif2ace data caption cleaned/train -o captions.jsonl --endpoint http://localhost:8000/v1 --vision-model some-vlm
  unif2ace data prepare cleaned/train -o prepared/ --model runs/faces/final

`unif2ace data COMMAND --help` explains a command. A source is a folder, a data file, a repository on the Hub, or
NAME:PLACE with a name that `unif2ace data sources` lists.
"""

# name -> (module of `training.data`, summary); the module has `EXAMPLES`, `add_arguments(parser)` and `run(arguments)`
COMMANDS: dict[str, tuple[str, str]] = {
    "sources": ("source_arguments", "list the data sets that are known by name"),
    "inspect": ("inspection", "count what a data set holds, find broken files, draw a contact sheet"),
    "crop": ("face_crops", "find faces, turn them upright and cut them out"),
    "clean": ("cleaning", "leave out near-duplicates, split by person"),
    "classifier": ("attribute_classifier", "train a network that reads labels off faces"),
    "caption": ("caption_writer", "write captions and questions by large models behind an endpoint"),
    "prepare": ("prepare", "encode pictures once: parquet files with codes and features for training"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below `unif2ace data`."""
    commands = parser.add_subparsers(title="commands", dest="data_command", required=True, metavar="COMMAND")
    for name, (place, summary) in COMMANDS.items():
        module = import_module(f"..training.data.{place}", __package__)
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary.capitalize()}.",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run_data=module.run)


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen command."""
    arguments.run_data(arguments)
