"""Waiting for other threads without an event: until they are done, or until all of them are blocked.

A sweep stops one thread at a line and lets another one act. The other thread either completes its operation, or needs a
lock that the stopped thread holds. No event tells the second case, but it can be observed: no other thread executes
anything.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from stube.testing._harness.clock import monotonic

__all__ = ["is_runnable", "join_or_standstill", "wait_or_standstill"]

_PAUSE: Final = 0.0002  # seconds between two looks, in which the others run
_LOOKS: Final = 3  # looks in a row at which no thread has moved; a thread between two locks is seen to move
_LIMIT: Final = 0.25  # seconds; reached only where some thread never stops moving


def join_or_standstill(thread: threading.Thread) -> None:
    """Wait until a thread has ended, or until it waits for something that the caller holds."""
    wait_or_standstill(lambda: not thread.is_alive())


def wait_or_standstill(done: Callable[[], bool]) -> None:
    """Wait until `done()`, or until no thread except the caller's moves."""
    deadline = monotonic() + _LIMIT
    pause = threading.Event()
    before, same = None, 0
    while not done() and same < _LOOKS and monotonic() < deadline:
        pause.wait(_PAUSE)
        places = _places()
        same = same + 1 if places is not None and places == before else 0
        before = places


def _places() -> dict[int, tuple[int, int]] | None:
    """The instruction at which each other thread is; None while one of them has work to do."""
    if any(is_runnable(thread) for thread in threading.enumerate() if thread is not threading.current_thread()):
        return None
    me = threading.get_ident()
    return {ident: (id(frame), frame.f_lasti) for ident, frame in sys._current_frames().items() if ident != me}


def is_runnable(thread: threading.Thread) -> bool:
    """Tell whether a thread only waits for a processor. On a busy machine such a thread does not move either.

    Only Linux tells. Elsewhere the answer is False, and a sweep may go on a little early: it then proves less at one
    line, but never fails because of it.
    """
    try:
        with open(f"/proc/self/task/{thread.native_id}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"R"
    except (OSError, IndexError):
        return False
