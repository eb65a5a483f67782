"""
The releases that this package was tested with, at both ends: the one place that states them.

`setup.py` takes its requirements from `BASE` and `OPTIONAL`, what is published on the Hub repeats them, and importing
the package compares them with what is installed. docs/versions.md says how they are moved. Standard library only:
`setup.py` runs this file before anything else is installed.
"""

import re
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version


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
