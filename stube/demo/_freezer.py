"""Handlers that stand still on purpose, to see who else a registry keeps waiting for one of them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, wait


class Freezer:
    """Which conversations have been asked to freeze, and which stand still. Any thread may call anything.

    A freeze is asked for first; it begins when its handler gets its turn, which may be later than the thaw.

    Args:
        bound_ms: how long a handler stands still at most, in milliseconds.
    """

    def __init__(self, bound_ms: float) -> None:
        self.seconds = bound_ms / 1000
        self._lock = threading.Lock()
        # Guarded by the lock. A latch is pending once it is asked for, running once its handler stands still, and
        # done when the handler may go on. A future, because a thread and a coroutine can wait for it alike.
        self._latches: dict[str, Future[None]] = {}

    def ask(self, cid: str) -> bool:
        """Ask for a freeze; False when one is asked for already."""
        latch: Future[None] = Future()
        with self._lock:
            return self._latches.setdefault(cid, latch) is latch

    def thaw(self, cid: str) -> bool:
        """Take a freeze back, whether it has begun or not; False when there was none."""
        with self._lock:
            latch = self._latches.pop(cid, None)
        if latch is None:
            return False
        latch.set_result(None)
        return True

    def is_frozen(self, cid: str) -> bool:
        """Whether the conversation's handler stands still at this moment."""
        with self._lock:
            latch = self._latches.get(cid)
            return latch is not None and latch.running()

    def is_asked(self, cid: str) -> bool:
        """Whether a freeze has been asked for and not been taken back, begun or not."""
        with self._lock:
            return cid in self._latches

    def begin(self, cid: str) -> Future[None] | None:
        """Begin to stand still: what to wait for, or None when the freeze has been taken back meanwhile."""
        with self._lock:
            latch = self._latches.get(cid)
            if latch is None or latch.running():
                return None
            latch.set_running_or_notify_cancel()
            return latch

    def end(self, cid: str, latch: Future[None]) -> None:
        """The handler goes on. What has been asked for since a thaw is another freeze, and stays."""
        with self._lock:
            if self._latches.get(cid) is latch:
                del self._latches[cid]

    def hold(self, latch: Future[None]) -> None:
        """Stand still in a thread: until the thaw, or the bound."""
        wait([latch], self.seconds)

    async def hold_awaiting(self, latch: Future[None]) -> None:
        """Stand still in a coroutine, which keeps no other from running: until the thaw, or the bound."""
        await asyncio.wait([asyncio.wrap_future(latch)], timeout=self.seconds)
