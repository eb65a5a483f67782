"""The arguments that every command has which reads a face data set; and the list of known ones."""

import argparse

from .sources import SOURCES, FaceStream, open_faces
from .sources.broken import DEFAULT_MAX_BROKEN


EXAMPLES = """\
example:
  unif2ace data sources
"""


def add_source_arguments(parser: argparse.ArgumentParser, max_broken: int = DEFAULT_MAX_BROKEN) -> None:
    """The source and how to read it; [`open_source`] reads these arguments."""
    parser.add_argument("source", help="a folder, a data file, a Hub repository, or NAME:PLACE")
    parser.add_argument("--split", default="train", help="split, of Hub data sets (default: %(default)s)")
    parser.add_argument("--config", metavar="NAME", help="configuration, of Hub data sets")
    parser.add_argument(
        "--columns", metavar="MAP", help="which columns hold what: image=jpg,caption=txt,question=q,answer=a"
    )
    parser.add_argument("--images", metavar="FOLDER", help="where pictures are that the data give by name")
    parser.add_argument(
        "--max-broken",
        type=int,
        default=max_broken,
        metavar="N",
        help="most broken samples to pass over; -1 for any number (default: %(default)s)",
    )


def open_source(arguments: argparse.Namespace, need_text: bool = True, seed: int = 0) -> FaceStream:
    """The stream that the arguments of [`add_source_arguments`] name."""
    return open_faces(
        arguments.source,
        split=arguments.split,
        config=arguments.config,
        columns=arguments.columns,
        images=arguments.images,
        max_broken=arguments.max_broken,
        seed=seed,
        need_text=need_text,
    )


def print_broken(stream: FaceStream) -> None:
    """One line about samples that were passed over, if there were any."""
    if stream.broken.count:
        print(f"{stream.broken.count} broken samples left out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command `unif2ace data sources` has no arguments."""


def run(arguments: argparse.Namespace) -> None:
    """Print the registry."""
    width = max(map(len, SOURCES))
    for name, source in SOURCES.items():
        print(f"{name:{width}}  {source.summary}")
        print(f"{'':{width}}  terms: {source.licence}")
        for repository in source.hub:
            print(f"{'':{width}}  Hub: {repository}")
