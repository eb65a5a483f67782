"""What both engines share: a thread of their own, a bounded queue before it, and an end that everybody hears of."""

import threading
from collections import deque
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..pipeline_unif2ace import UniF2acePipeline


class QueueFullError(RuntimeError):
    """
    More work waits than is allowed to.

    Args:
        retry_after (`float`): Seconds after which a place may be free.
    """

    def __init__(self, retry_after: float):
        super().__init__(f"the service is busy: try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class EngineClosedError(RuntimeError):
    """The engine has been shut down."""

    def __init__(self):
        super().__init__("the service is shutting down")


class Engine:
    """
    Work for many callers with one model, in a thread of its own, which begins at the end of `__init__`.

    Args:
        pipe ([`UniF2acePipeline`]): Another engine may use it at the same time.
        max_batch_size (`int`): Items under way at once.
        max_waiting (`int`): Items that may wait.
    """

    seconds_each = 1.0  # that an item which waits takes, by experience

    def __init__(self, pipe: "UniF2acePipeline", max_batch_size: int, max_waiting: int):
        self.pipe, self.max_batch_size, self.max_waiting = pipe, max_batch_size, max_waiting
        self._waiting: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._live, name=type(self).__name__, daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Items that nothing has been done for."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether work is taken in."""
        return self._thread.is_alive() and not self._closing

    def check_room(self, count: int = 1):
        """`QueueFullError` or `EngineClosedError` if `count` items could not be taken in now: worth asking first."""
        with self._changed:
            if self._closing:
                raise EngineClosedError
            if len(self._waiting) + count > self.max_waiting:
                raise QueueFullError(max(1.0, len(self._waiting) * self.seconds_each))

    def close(self, timeout: float | None = 10):
        """Finish nothing more: what waits or is under way ends with `EngineClosedError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _enter(self, items: list):
        """Take items in, all or none."""
        with self._changed:
            self.check_room(len(items))
            self._waiting.extend(items)
            self._changed.notify()

    def _leave(self, item: Any):
        """An item that nobody wants any more leaves the queue at once."""
        with self._changed:
            if item in self._waiting:
                self._waiting.remove(item)

    def _live(self):
        try:
            self._run()
        finally:
            with self._changed:
                self._closing = True
                left, self._waiting = list(self._waiting), deque()
            for item in left:
                self._fail(item, EngineClosedError())

    def _run(self):
        """Work until `_closing`, and end what is under way."""
        raise NotImplementedError

    def _fail(self, item: Any, error: Exception):
        """Tell who waits for an item that it will not come."""
        raise NotImplementedError


__all__ = ["Engine", "EngineClosedError", "QueueFullError"]
