"""Handlers that block on purpose, to show which other conversations a registry delays while one handler blocks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, wait


class Freezer:
    """The conversations that have been asked to freeze, and those whose handler is frozen. Every method is thread-safe.

    A freeze is first asked for. It begins when its handler is delivered, which may be after it was taken back.

    Args:
        bound_ms: the longest time that a handler stays frozen, in milliseconds.
    """

    def __init__(self, bound_ms: float) -> None:
        self.seconds = bound_ms / 1000
        self._lock = threading.Lock()
        # Guarded by the lock. A latch is pending when a freeze has been asked for, running while its handler is frozen,
        # and done when the handler may continue. A future, because both a thread and a coroutine can wait for it.
        self._latches: dict[str, Future[None]] = {}

    def ask(self, cid: str) -> bool:
        """Ask for a freeze; return False if one has been asked for already."""
        latch: Future[None] = Future()
        with self._lock:
            return self._latches.setdefault(cid, latch) is latch

    def thaw(self, cid: str) -> bool:
        """Take a freeze back, whether it has begun or not; return False if there was none."""
        with self._lock:
            latch = self._latches.pop(cid, None)
        if latch is None:
            return False
        latch.set_result(None)
        return True

    def is_frozen(self, cid: str) -> bool:
        """Return True if the conversation's handler is frozen at this moment."""
        with self._lock:
            latch = self._latches.get(cid)
            return latch is not None and latch.running()

    def is_asked(self, cid: str) -> bool:
        """Return True if a freeze has been asked for and not taken back, whether it has begun or not."""
        with self._lock:
            return cid in self._latches

    def begin(self, cid: str) -> Future[None] | None:
        """Begin a freeze: return the latch to wait for, or None if the freeze has already been taken back."""
        with self._lock:
            latch = self._latches.get(cid)
            if latch is None or latch.running():
                return None
            latch.set_running_or_notify_cancel()
            return latch

    def end(self, cid: str, latch: Future[None]) -> None:
        """End a freeze: its handler continues. A freeze that was asked for after a thaw is another one, and stays."""
        with self._lock:
            if self._latches.get(cid) is latch:
                del self._latches[cid]

    def hold(self, latch: Future[None]) -> None:
        """Block the thread until the thaw, or until the bound has passed."""
        wait([latch], self.seconds)

    async def hold_awaiting(self, latch: Future[None]) -> None:
        """Wait in a coroutine until the thaw, or until the bound has passed. The event loop keeps running."""
        await asyncio.wait([asyncio.wrap_future(latch)], timeout=self.seconds)
