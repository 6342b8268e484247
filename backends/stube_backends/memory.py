"""The embedded default: one timer wheel, one scheduler thread that also delivers.

For threads and for scripts, in one process. Every operation costs what it touches; `publish` costs its caller the
same at any number of subscribers. Deliveries run one after another on the thread `stube-memory`, so a handler that
blocks holds up all conversations: hand long work to a pool, or use a backend with more threads.

Callers' threads run the operations; the scheduler thread runs dispatch and `on_error`, starts with the first timer
or publication, and ends with `close()`, with the registry's collection, or with the program.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from stube import Backend, Dispatch, Event
from stube_backends.engine import OnError, ServedRegistry, log

__all__ = ["MemoryRegistry", "create"]

_WARN_EVERY: Final = 1_000_000_000  # nanoseconds between two warnings of a slow dispatch


class MemoryRegistry(ServedRegistry):
    """One engine, one lock, one thread.

    >>> registry = MemoryRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        max_pending: int | None = 1_000_000,
        on_error: OnError | None = None,
        slow_dispatch_ms: float | None = None,
    ) -> None:
        if slow_dispatch_ms is not None and not slow_dispatch_ms > 0:
            raise ValueError(f"slow_dispatch_ms must be positive, not {slow_dispatch_ms!r}. Leave it out for silence.")
        self._slow_dispatch_ms = slow_dispatch_ms
        super().__init__(clock=clock, new_lock=threading.RLock, on_error=on_error, max_pending=max_pending)

    def _spawn(self, serve: Callable[[], None]) -> Callable[[float | None], bool]:
        thread = threading.Thread(target=serve, name="stube-memory", daemon=True)
        thread.start()

        def end(timeout: float | None) -> bool:
            thread.join(timeout)
            return not thread.is_alive()

        return end

    def _wrapped(self, dispatch: Dispatch) -> Dispatch:
        if self._slow_dispatch_ms is None:
            return dispatch
        return _Timed(dispatch, self._clock, int(self._slow_dispatch_ms * 1_000_000))


class _Timed:
    """A dispatch that warns of slow deliveries, at most once a second, and says how many warnings it kept back."""

    def __init__(self, dispatch: Dispatch, clock: Callable[[], int], limit: int) -> None:
        self._dispatch = dispatch
        self._clock = clock
        self._limit = limit
        self._next_warning: int | None = None  # written by the delivering thread only
        self._kept_back = 0

    def __call__(self, cid: str, event: Event) -> Any:
        started = self._clock()
        try:
            return self._dispatch(cid, event)
        finally:
            ended = self._clock()
            if ended - started > self._limit:
                self._warn(cid, event, ended, ended - started)

    def _warn(self, cid: str, event: Event, now: int, took: int) -> None:
        if self._next_warning is not None and now < self._next_warning:
            self._kept_back += 1
            return
        log(
            logging.WARNING,
            "the delivery of %r to conversation %r took %.1f ms and held up all others (%d more since the last such)",
            event.name,
            cid,
            took / 1e6,
            self._kept_back,
        )
        self._next_warning, self._kept_back = now + _WARN_EVERY, 0


def create(
    *,
    clock: Callable[[], int] | None = None,
    max_pending: int | None = 1_000_000,
    on_error: OnError | None = None,
    slow_dispatch_ms: float | None = None,
) -> Backend:
    """The entry point `memory`.

    Args:
        clock: monotonic nanoseconds as `int`, advancing in real time; `time.monotonic_ns` by default.
        max_pending: the bound of timers and queued messages together; None for none.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
        slow_dispatch_ms: warn of a delivery that took longer than this; no warning by default.
    """
    return MemoryRegistry(clock=clock, max_pending=max_pending, on_error=on_error, slow_dispatch_ms=slow_dispatch_ms)
