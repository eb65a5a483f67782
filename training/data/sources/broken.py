"""Broken samples: named, counted and passed over, up to a limit."""

import sys
from typing import Any


DEFAULT_MAX_BROKEN = 100
_NAMED = 20  # broken samples that are kept by name; all are counted


class BrokenSampleError(ValueError):
    """One sample cannot be used: what is wrong with it. The stream counts it and goes on."""


class TooManyBrokenSamplesError(ValueError):
    """More samples of a data set are broken than its reader accepts."""


class BrokenSamples:
    """
    The broken samples of one data set.

    Args:
        source (`str`): What to call the data set in messages.
        limit (`int`, *optional*, defaults to 100): Most broken samples that are accepted; -1 for any number.

    A sample that is met again, in another pass, counts once.

    Attributes:
        named (`list[tuple[str, str]]`): The first of them, as (name, what is wrong).
    """

    def __init__(self, source: str, limit: int = DEFAULT_MAX_BROKEN):
        if limit < -1:
            raise ValueError(f"max_broken={limit}, expected 0 or more, or -1 for any number")
        self.source, self.limit = source, limit
        self.seen: set[str] = set()
        self.named: list[tuple[str, str]] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.seen)

    def add(self, name: str, error: Exception) -> None:
        """
        Count a broken sample.

        Raises:
            TooManyBrokenSamplesError: if it is one more than the limit.
        """
        if name in self.seen:
            return
        self.seen.add(name)
        if len(self.named) < _NAMED:
            self.named.append((name, str(error)))
            print(f"{self.source}: left out {name}: {error}", file=sys.stderr)
        if 0 <= self.limit < self.count:
            first = "; ".join(f"{name}: {problem}" for name, problem in self.named[:3])
            raise TooManyBrokenSamplesError(
                f"{self.source} has more than {self.limit} broken samples ({first}): mend them, or accept more with "
                f"max_broken (--max-broken)"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {
            "count": self.count,
            "seen": sorted(self.seen),
            "named": [list(item) for item in self.named],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from `state`."""
        self.seen = set(state["seen"])
        self.named = [tuple(item) for item in state["named"]]
