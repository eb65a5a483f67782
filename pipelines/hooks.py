"""
What the rooms above this one do for it and for training, so that nothing here imports them: the root package registers
it. Light enough to be imported by everything; a copy of the code that came from the Hub has no hooks.
"""

from collections.abc import Callable


_find_publisher: Callable[[], Callable] | None = None


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


__all__ = ["card_writer", "publisher", "set_card_writer", "set_publisher"]
