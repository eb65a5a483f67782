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


__all__ = ["publisher", "set_publisher"]
