"""A time limit for a block that may deadlock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from stube.testing._harness.clock import PATIENCE, monotonic

__all__ = ["Overdue", "tripped", "watchdog"]

tripped: Final[list[float]] = []
"""What the watchdog has bitten in the test that runs: its registry may stand still for ever, so nobody closes it."""


class Overdue(Exception):  # noqa: N818 - a state that is met, not a mistake
    """Raised in the main thread by `watchdog`: the block took longer than it may, most likely a deadlock."""


@contextmanager
def watchdog(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise `Overdue` inside the block when it takes longer: a lock that waits for itself is interrupted.

    Works in the main thread of systems that have `setitimer`; elsewhere the runner's own timeout must serve.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def bark(number: int, frame: FrameType | None) -> None:
        tripped.append(seconds)
        raise Overdue(f"the block took longer than {seconds} s: a deadlock, or something like it")

    previous = signal.signal(signal.SIGALRM, bark)
    begin = monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left:  # a runner's own time limit goes on, on the same timer
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (monotonic() - begin)), interval)
