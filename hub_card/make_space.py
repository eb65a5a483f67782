"""
Make the folder of a Space: the demo with this package beside it, so that it needs nothing but its requirements.

    python -m unif2ace.hub_card.make_space --out runs/space
    hf upload ORG/NAME runs/space --repo-type space
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from ..pipelines.files import new_folder
from .remote_code import PACKAGE


SPACE = Path(__file__).parent / "space"
# what of the package runs; a checkout has more at its root
_PARTS = ("__init__.py", "_versions.py", "LICENSE", "cli", "modeling_unif2ace", "pipelines", "training", "hub_card")


def make_space(out: str | os.PathLike, overwrite: bool = False) -> Path:
    """
    Write a Space that brings the package along.

    Args:
        out (`str` or `os.PathLike`): The folder to make.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a folder that exists may be replaced.

    Returns:
        `Path`: The folder.

    Raises:
        FileExistsError: if it exists and `overwrite` is not given.
    """
    with new_folder(out, overwrite) as folder:
        shutil.copytree(SPACE, folder, dirs_exist_ok=True)
        for name in _PARTS:
            source, target = PACKAGE / name, folder / "unif2ace" / name
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "space"))
            else:
                shutil.copy(source, target)
    return Path(out)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unif2ace.hub_card.make_space",
        description="Make the folder of a Space with the demo and this package in it.",
        epilog="example: python -m unif2ace.hub_card.make_space --out runs/space",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    options = parser.parse_args(arguments)
    try:
        folder = make_space(options.out, options.overwrite)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}: hf upload ORG/NAME {folder} --repo-type space")
    return 0


if __name__ == "__main__":
    sys.exit(main())
