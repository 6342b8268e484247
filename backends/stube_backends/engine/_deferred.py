"""Re-entrant calls that wait until the operation that they interrupted has released its lock."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from stube import StubeError
from stube_backends.engine._failures import log


class DeferredCalls(dict[int, deque[tuple[Callable[..., object], tuple[Any, ...]]]]):
    """The deferred calls of a registry, for each thread its own; true while there are any.

    A thread adds to, runs and removes its own entry only, so no lock is needed.
    """

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: set[int] = set()  # the threads inside `run`; each adds and removes itself

    def defer(self, operation: Callable[..., object], *arguments: Any) -> None:
        """Queue a call of this thread. It runs when the interrupted operation has released its lock."""
        self.setdefault(threading.get_ident(), deque()).append((operation, arguments))

    def release_later(self, held: object) -> None:
        """Keep an object until the interrupted operation has released its lock, because a destructor is user code."""
        self.defer(_release, held)

    def pending(self) -> list[tuple[Callable[..., object], tuple[Any, ...]]]:
        """Return the calls of all threads that have not run. Another thread may change its queue: then look again."""
        while True:
            try:
                return [call for mine in self.values() for call in mine]
            except RuntimeError:
                pass

    def run(self, is_reentrant: Callable[[], bool]) -> None:
        """Run this thread's calls in order, unless it is still inside an operation. An error can only be logged.

        Their callers have returned. Each of these operations calls this method again when it releases the lock; that
        call returns immediately, so that ten thousand finalizers in one collection are a loop and no recursion.

        Args:
            is_reentrant: tells whether this thread is inside another operation, which will call this method again.
        """
        thread = threading.get_ident()
        if thread in self._running or is_reentrant():
            return
        self._running.add(thread)
        try:
            mine = self.get(thread)
            while mine:
                operation, arguments = mine.popleft()
                try:
                    operation(*arguments)
                except StubeError as exc:
                    log(
                        logging.WARNING,
                        "a deferred operation (called from a signal handler or finalizer) failed: %s",
                        exc,
                    )
        finally:
            self._running.discard(thread)
        # A signal handler may run between any two of these lines. While the thread was in `_running`, this call was
        # responsible for what the handler deferred; from now on the handler's own call is. So look once more.
        if mine:
            self.run(is_reentrant)
        if not self.get(thread):
            self.pop(thread, None)

    def forget(self) -> None:
        """In a forked child: drop the calls, which were made in the parent and run there."""
        for mine in self.values():
            mine.clear()


def _release(_held: object) -> None:
    """Let the argument go."""
