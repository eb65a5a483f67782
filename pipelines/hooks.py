"""
What the rooms above this one do for it and for training, so that nothing here imports them: the root package registers
it. Light enough to be imported by everything; a copy of the code that came from the Hub has no hooks.
"""

from collections.abc import Callable


_find_publisher: Callable[[], Callable] | None = None
_make_code: Callable[[], dict[str, bytes]] | None = None


def set_publisher(find: Callable[[], Callable] | None) -> None:
    """
    Say how models get to the Hub.

    Args:
        find (`Callable`, *optional*):
            Called without arguments when something is to be published; returns `publish(folder, repo_id, **options)`,
            whose keyword-only arguments are the options that there are. `None` takes the publisher away.
    """
    global _find_publisher
    _find_publisher = find


def publisher() -> Callable:
    """
    The way to the Hub: `publish(folder, repo_id, **options)`.

    Raises:
        OSError: if there is none, since this code came from the Hub, or if it needs something that is not installed.
    """
    if _find_publisher is None:
        raise OSError("publishing needs the package unif2ace: install it, and load with UniF2acePipeline")
    return _find_publisher()


_find_card_writer: Callable[[], Callable] | None = None


def set_card_writer(find: Callable[[], Callable] | None) -> None:
    """
    Say who writes the card of a fresh adapter.

    Args:
        find (`Callable`, *optional*): As for [`set_publisher`]; returns `write(folder)`, which writes `README.md`.
    """
    global _find_card_writer
    _find_card_writer = find


def card_writer() -> Callable:
    """
    Who writes the card of a fresh adapter: `write(folder)`.

    Raises:
        OSError: as [`publisher`].
    """
    if _find_card_writer is None:
        raise OSError("cards are written by the package unif2ace: install it")
    return _find_card_writer()


def set_code(make: Callable[[], dict[str, bytes]] | None) -> None:
    """
    Say what code goes into the folder of a pipeline, so that diffusers loads it where the package is not installed.

    Args:
        make (`Callable`, *optional*): Returns the content of each file by its path in the folder.
    """
    global _make_code
    _make_code = make


def pipeline_code() -> dict[str, bytes] | None:
    """The files of code that go into the folder of a pipeline; `None` where this code is such a copy itself."""
    return None if _make_code is None else _make_code()


__all__ = ["card_writer", "pipeline_code", "publisher", "set_card_writer", "set_code", "set_publisher"]
