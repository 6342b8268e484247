"""The embedded default: one timer wheel, one scheduler thread that also delivers.

For threads and for scripts, in one process. Every operation costs what it touches; `publish` costs its caller the
same at any number of subscribers. Deliveries run one after another on the thread `stube-memory`, so a handler that
blocks holds up all conversations: hand long work to a pool, or use a backend with more threads.

Callers' threads run the operations; the scheduler thread runs dispatch and `on_error`, starts with the first timer
or publication, and ends with `close()`, with the registry's collection, or with the program.
"""

from __future__ import annotations

from collections.abc import Callable

from stube import Backend
from stube_backends.engine import OnError, OnFull, ThreadedRegistry, checked_limits

__all__ = ["MemoryRegistry", "create"]


class MemoryRegistry(ThreadedRegistry):
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
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
        slow_dispatch_ms: float | None = None,
    ) -> None:
        super().__init__(
            "stube-memory",
            clock=clock,
            max_pending=max_pending,
            on_error=on_error,
            slow_dispatch_ms=slow_dispatch_ms,
            limits=checked_limits(max_queued, on_full),
        )


def create(
    *,
    clock: Callable[[], int] | None = None,
    max_pending: int | None = 1_000_000,
    max_queued: int | None = None,
    on_error: OnError | None = None,
    on_full: OnFull = "drop_oldest",
    slow_dispatch_ms: float | None = None,
) -> Backend:
    """The entry point `memory`.

    Args:
        clock: monotonic nanoseconds as `int`, advancing in real time; `time.monotonic_ns` by default.
        max_pending: the bound of timers and queued messages together; None for none.
        max_queued: how many messages may wait for one conversation, and how many timers; None, the default, for no
            bound. A timer too many raises `RegistryFull`. With a bound `publish` costs its caller O(subscribers), and
            scheduling O(timers of the conversation).
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
        on_full: what gives way to a message too many: the oldest message of the conversation, or, with
            `"end"`, all that the registry holds of it. Logged, and handed to `on_error` with a `RegistryFull`, once
            for each burst, on the thread that publishes.
        slow_dispatch_ms: warn of a delivery that took longer than this; no warning by default.
    """
    return MemoryRegistry(
        clock=clock,
        max_pending=max_pending,
        max_queued=max_queued,
        on_error=on_error,
        on_full=on_full,
        slow_dispatch_ms=slow_dispatch_ms,
    )
