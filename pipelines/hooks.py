"""
What the rooms above this one do for it and for training, so that nothing here imports them: the root package registers
it. Light enough to be imported by everything; a copy of the code that came from the Hub has no hooks.
"""

from collections.abc import Callable
from typing import Any


_registered: dict[str, Callable] = {}


def register(**hooks: Callable) -> None:
    """
    Say who does what.

    Args:
        publisher: Called without arguments when something is to be published; returns `publish(folder, repo_id,
            **options)`, whose keyword-only arguments are the options that there are.
        card_writer: Called when an adapter is fresh; returns `write(folder)`, which writes `README.md`.
        code: Returns the files of code that go into the folder of a pipeline, so that diffusers loads it where the
            package is not installed: the content of each by its path.
    """
    _registered.update(hooks)


def publisher() -> Callable:
    """
    The way to the Hub: `publish(folder, repo_id, **options)`.

    Raises:
        OSError: if there is none, since this code came from the Hub, or if it needs something that is not installed.
    """
    return _call("publisher", "publishing needs the package unif2ace: install it, and load with UniF2acePipeline")


def card_writer() -> Callable:
    """
    Who writes the card of a fresh adapter: `write(folder)`.

    Raises:
        OSError: as [`publisher`].
    """
    return _call("card_writer", "cards are written by the package unif2ace: install it")


def pipeline_code() -> dict[str, bytes] | None:
    """The files of code that go into the folder of a pipeline; `None` where this code is such a copy itself."""
    return _registered["code"]() if "code" in _registered else None


def _call(name: str, what_is_missing: str) -> Any:
    if name not in _registered:
        raise OSError(what_is_missing)
    return _registered[name]()


__all__ = ["card_writer", "pipeline_code", "publisher", "register"]
