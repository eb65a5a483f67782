"""An end for what hangs."""

import signal
from contextlib import contextmanager


@contextmanager
def no_longer_than(seconds: int):
    """Ends what hangs with an error."""

    def stop(*_):
        raise AssertionError(f"not finished after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
