"""The virtual clock: where it stands, which thread moves it, and through which stretch of time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Clock:
    """Where the virtual clock stands, in nanoseconds."""

    __slots__ = ("now",)

    def __init__(self, now: int) -> None:
        self.now = now  # written by the thread that moves the clock only

    def __call__(self) -> int:
        return self.now


class AdvanceLock:
    """The lock of the thread that moves the clock. It knows its owner, so that a second use can be refused."""

    __slots__ = ("_lock", "held_by_me", "release")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.release = self._lock.release
        self.held_by_me: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    def acquire(self, timeout: float | None) -> bool:
        """Take it within `timeout` seconds, None for no bound; return whether that was possible."""
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)


class Window:
    """A stretch of time through which the clock is being moved.

    Args:
        end: its last instant; None for no end.
        max_deliveries: the number of deliveries in the ledger (delivered and failed) that it may come to; None for no
            bound.
        run_to_end: whether the clock moves to `end` even if nothing is pending any more.
    """

    __slots__ = ("end", "has_more", "max_deliveries", "over_limit", "run_to_end")

    def __init__(self, end: int | None, max_deliveries: int | None, *, run_to_end: bool) -> None:
        self.end = end
        self.max_deliveries = max_deliveries
        self.run_to_end = run_to_end
        self.has_more = False  # whether something is still due inside the window
        self.over_limit = False  # whether `max_deliveries` has been passed, or the next delivery would pass it
