"""A registry served by one thread of its own, which tells when a delivery held up all others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from stube import Dispatch, Event
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._core import log
from stube_backends.engine._delivery import OnError
from stube_backends.engine._serving import ServedRegistry

_WARN_EVERY: Final = 1_000_000_000  # nanoseconds between two warnings of a slow dispatch


class ThreadedRegistry(ServedRegistry):
    """The twelve operations, and a daemon thread that sleeps and delivers.

    Args:
        name: of the thread.
        clock, on_error, max_pending, limits: see `ServedRegistry`.
        slow_dispatch_ms: warn of a delivery that took longer than this; None for no warning.

    Raises:
        ValueError: `slow_dispatch_ms` is not positive, or what `ServedRegistry` raises.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], int] | None,
        max_pending: int | None,
        on_error: OnError | None,
        slow_dispatch_ms: float | None,
        limits: Limits | None = None,
    ) -> None:
        if slow_dispatch_ms is not None and not slow_dispatch_ms > 0:
            raise ValueError(f"slow_dispatch_ms must be positive, not {slow_dispatch_ms!r}. Leave it out for silence.")
        self._thread_name = name
        self._slow_dispatch_ms = slow_dispatch_ms
        super().__init__(
            clock=clock, new_lock=threading.RLock, on_error=on_error, max_pending=max_pending, limits=limits
        )

    def _spawn(self, serve: Callable[[], None]) -> Callable[[float | None], bool]:
        thread = threading.Thread(target=serve, name=self._thread_name, daemon=True)
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
            "the delivery of %r to conversation %r took %.1f ms and held up what waits behind it "
            "(%d more since the last such)",
            event.name,
            cid,
            took / 1e6,
            self._kept_back,
        )
        self._next_warning, self._kept_back = now + _WARN_EVERY, 0
