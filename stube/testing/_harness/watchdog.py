"""A time limit for a block that may deadlock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from stube.testing._harness.clock import PATIENCE, monotonic

__all__ = ["Overdue", "timed_out", "watchdog"]

timed_out: Final[list[float]] = []
"""Timeouts that expired in the current test. Its registry may be deadlocked, so the fixture does not close it."""


class Overdue(Exception):  # noqa: N818 - a state that is met, not a mistake
    """Raised in the main thread by `watchdog`: the block took too long, most likely because of a deadlock."""


@contextmanager
def watchdog(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise `Overdue` inside the block when it takes longer, which interrupts a thread that waits for its own lock.

    Works in the main thread of systems that have `setitimer`; elsewhere the test runner's own time limit must do.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        timed_out.append(seconds)
        raise Overdue(f"the block took longer than {seconds} s, most likely because of a deadlock")

    previous = signal.signal(signal.SIGALRM, expire)
    begin = monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left:  # the test runner's own time limit continues, on the same timer
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (monotonic() - begin)), interval)
