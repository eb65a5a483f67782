"""The command `unif2ace compare`: two evaluation runs side by side, with significance."""

import argparse
from pathlib import Path


EXAMPLES = """\
example:
  unif2ace compare results/painted-a-1a2b3c4d.json results/painted-b-5e6f7a8b.json

The difference is B minus A with its 95 % bootstrap interval. Where both runs measured the same pictures the comparison
is paired: each resampled set holds the same pictures in both, which makes it far sharper. A star marks p < 0.05 after
Holm's correction for the number of measures; runs that differ in seeds only show how much chance there is.
"""


def add_arguments(parser: argparse.ArgumentParser):
    """The command's arguments."""
    parser.add_argument("before", type=Path, metavar="A.json", help="results of `unif2ace evaluate`")
    parser.add_argument("after", type=Path, metavar="B.json", help="results of another run")


def run(arguments: argparse.Namespace):
    """Print both runs and what differs between them."""
    from ..training.evaluation.compare import comparison
    from ..training.evaluation.results import load_results

    table = comparison(load_results(arguments.before), load_results(arguments.after))
    arguments.console.result(table, table=table)
