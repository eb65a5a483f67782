"""
The releases that this package was tested with, at both ends: the one place that states them; and what says that
something is not installed.

`setup.py` takes its requirements from `BASE` and `OPTIONAL`, what is published on the Hub repeats them, and importing
the package compares them with what is installed. docs/versions.md says how they are moved. Standard library only:
`setup.py` runs this file before anything else is installed.
"""

import re
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


PYTHON = ">=3.11,<3.14"
# Floors are run by CI with constraints-lowest.txt. Libraries that change what we stand on in minor releases are capped
# at the newest minor release that CI has run, the others at their next major release.
BASE = {
    "accelerate": ">=1.12,<1.16",
    "diffusers": ">=0.42,<0.43",
    "huggingface_hub": ">=2.4,<2.5",
    "jinja2": ">=3.1.6,<4",  # chat templates
    "numpy": ">=2,<3",
    "pillow": ">=11,<14",
    "safetensors": ">=0.8,<0.9",
    "tokenizers": ">=0.23.3,<0.24",
    "torch": ">=2.13,<3",
    "tqdm": ">=4.67,<5",
    "transformers": ">=5.23,<5.25",
}
# what some extras bring and is as sensitive to its release
OPTIONAL = {
    "datasets": ">=5.2,<5.3",
    "peft": ">=0.21,<0.22",
    "trl": ">=1.16,<1.17",
}


def requirement(name: str) -> str:
    """The tested range of one library, as pip takes it: `"transformers>=5.23,<5.25"`."""
    return f"{name}{(BASE | OPTIONAL)[name]}"


def check_installed() -> None:
    """
    Compare what is installed with the tested ranges; the package does it once, when it is imported.

    Warns of libraries that are newer.

    Raises:
        ImportError: If a library of `BASE` is older than its floor; the message has the command that mends it.
    """
    too_old = [name for name in BASE if _place(name) < 0]
    if too_old:
        raise ImportError(f"unif2ace does not run with {_listed(too_old)}: {_command(too_old)}")
    hint = newer_hint()
    if hint:
        warnings.warn(hint, stacklevel=2)


def newer_hint() -> str:
    """A sentence about what is newer than the tested range, with the command that goes back; `""` if nothing is."""
    too_new = [name for name in BASE | OPTIONAL if _place(name) > 0]
    if not too_new:
        return ""
    return f"unif2ace was not tested with {_listed(too_new)}; if something fails: {_command(too_new)}"


def need(module: str, extra: str) -> ModuleType:
    """
    Import what an extra of this package brings.

    Args:
        module (`str`): Its name, `"matplotlib.figure"`.
        extra (`str`): The extra of setup.py that has it.

    Raises:
        ModuleNotFoundError: If it is not installed; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing(error, extra) or str(error), name=error.name) from error


def missing(error: ModuleNotFoundError, extra: str | None) -> str | None:
    """
    What to do about a module that was not found, in a sentence.

    Args:
        error (`ModuleNotFoundError`): What Python said, or `need`, or code that has words of its own.
        extra (`str`, *optional*): The extra that the work at hand needs.

    Returns:
        `str`: The sentence; `None` if nothing has to be installed: a library is there and lacks a part.
    """
    if "pip install" in str(error):
        return str(error)
    library = (error.name or "").partition(".")[0]
    if extra is None or not library or find_spec(library) is not None:
        return None
    try:
        version("unif2ace")
    except PackageNotFoundError:  # a checkout on the path: pip knows its folder, not its name
        return f'{library} is not installed: pip install "{Path(__file__).parent}[{extra}]"'
    return f'{library} is not installed: pip install "unif2ace[{extra}]"'


@cache
def _place(name: str) -> int:
    """Where the installed release is: -1 below the tested range, 0 inside, 1 above; 0 if it is not installed."""
    try:
        installed = _release(version(name))
    except PackageNotFoundError:  # whoever imports it will say so
        return 0
    floor, cap = (_release(end) for end in (BASE | OPTIONAL)[name].split(","))
    return -1 if installed < floor else int(installed >= cap)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version, (5, 25) for `"5.25.0.dev0"` as for `"<5.25"`: a preview counts as the release."""
    numbers = [int(number) for number in re.search(r"\d+(\.\d+)*", text)[0].split(".")]
    while numbers[-1:] == [0]:
        numbers.pop()
    return tuple(numbers)


def _listed(names: list[str]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _command(names: list[str]) -> str:
    return "pip install " + " ".join(f'"{requirement(name)}"' for name in names)
