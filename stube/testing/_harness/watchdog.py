"""A deadlock in a test becomes a failed assertion that says where each thread stands.

A timer interrupts the main thread once per second. If no thread has moved for some seconds, nothing will move any more,
because every wait for something that must happen is shorter (`PATIENCE`). So a deadlock fails the test long before a
time limit would, and a busy machine does not: a thread that waits for a processor counts as moving.
"""

from __future__ import annotations

import bdb
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from stube.testing._harness.clock import PATIENCE, monotonic
from stube.testing._harness.standstill import is_runnable

__all__ = ["OF_PYTEST", "Overdue", "timed_out", "watchdog"]

_PERIOD: Final = 0.1 * PATIENCE  # seconds between two looks
_STANDSTILL: Final = 1.2 * PATIENCE  # seconds; longer than any wait of a test
_MOST_FRAMES: Final = 4  # of each thread
_MOST_THREADS: Final = 6
OF_PYTEST: Final = re.compile(r"[\\/](_pytest|pluggy)[\\/]")
"""Found in the names of pytest's own files, with which the stack of a test ends."""
_ELSEWHERE: Final = frozenset({subprocess.__file__, bdb.__file__})
_PYDEVD: Final = "pydevd"  # the debugger of several editors, which stops threads outside of Python code

timed_out: Final[list[float]] = []
"""Seconds after which a deadlock was found in the current test. Its registry may hang, so the fixture does not close
it."""


class Overdue(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """Raised in the main thread by `watchdog`: the threads stand still, or the block took too long."""


@contextmanager
def watchdog(seconds: float | None = 3 * PATIENCE) -> Iterator[None]:
    """Raise `Overdue` inside the block when all threads stand still, or when the block takes longer than `seconds`.

    That interrupts a thread which waits for its own lock. Works in the main thread of systems that have `setitimer`;
    elsewhere the test runner's own time limit must do.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    begin = monotonic()
    moved_at, before = begin, dict[int, tuple[int, int]]()

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal moved_at, before
        now = monotonic()
        places = _places(frame)
        if places != before or not places:
            moved_at, before = now, places
        too_long = seconds is not None and now > begin + seconds
        if too_long or now > moved_at + _STANDSTILL:
            timed_out.append(now - begin)
            moved_at = now  # raised again later, because a backend may take it for a failure of dispatch
            why = "took too long" if too_long else "stands still, most likely because of a deadlock"
            raise Overdue(f"after {now - begin:.0f} s the test {why}:\n{_stacks(frame)}")

    previous = signal.signal(signal.SIGALRM, look)
    left, interval = signal.setitimer(signal.ITIMER_REAL, _PERIOD, _PERIOD)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left:  # the test runner's own time limit, or an outer watchdog, continues on the same timer
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (monotonic() - begin)), interval)


def _places(frame: FrameType | None) -> dict[int, tuple[int, int]]:
    """Return the instruction at which each thread is; nothing while one of them, or somebody else, has work to do."""
    if frame is None or _PYDEVD in sys.modules or _is_elsewhere(frame):
        return {}
    if any(is_runnable(thread) for thread in threading.enumerate() if thread is not threading.current_thread()):
        return {}
    frames = {**sys._current_frames(), threading.get_ident(): frame}
    return {ident: (id(frame), frame.f_lasti) for ident, frame in frames.items()}


def _is_elsewhere(frame: FrameType) -> bool:
    """Tell whether the test waits for another process, or for a person in a debugger."""
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code.co_filename in _ELSEWHERE:
            return True
        outer = outer.f_back
    return False


def _stacks(frame: FrameType | None) -> str:
    """Say where each thread is, the main one first."""
    frames = {ident: other for ident, other in sys._current_frames().items() if ident != threading.get_ident()}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = [_stack("this thread", frame)] if frame is not None else []
    told += [_stack(f"the thread {names.get(ident, ident)!r}", other) for ident, other in frames.items()]
    return "\n".join(told[:_MOST_THREADS])


def _stack(name: str, frame: FrameType) -> str:
    summary = traceback.extract_stack(frame)[::-1]
    of_pytest = next((at for at, one in enumerate(summary) if OF_PYTEST.search(one.filename)), None)
    summary = summary[:of_pytest][:_MOST_FRAMES] or summary[:_MOST_FRAMES]
    places = [f"{one.name}, {os.path.basename(one.filename)}:{one.lineno}" for one in summary]
    return f"{name} is in {', called by '.join(places)}"
