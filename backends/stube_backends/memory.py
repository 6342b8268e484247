"""The embedded default: one timer wheel, one thread that sleeps and delivers.

For threads and for scripts, in one process. Every operation costs what it touches; `publish` costs its caller the
same at any number of subscribers. Deliveries run one after another on the thread `stube-memory`, so a handler that
blocks holds up all conversations: hand long work to a pool, or use a backend with more threads.

Callers' threads run the operations; the delivery thread runs dispatch and `on_error`, starts with the first timer
or publication, and ends with `close()`, with the registry's collection, or with the program.
"""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from stube import Dispatch
from stube_backends.engine import Core, Engine, LocalRegistry, OnError, OnFull, Options, ThreadDriver, daemon_thread

__all__ = ["MemoryRegistry"]


class MemoryRegistry(LocalRegistry):
    """One engine, one lock, one thread. The entry point `memory`.

    Args:
        clock, max_pending, max_queued, on_error, on_full: see `stube_backends.engine.Options`.
        slow_dispatch_ms: log a warning about a delivery that took longer than this; no warning by default.

    >>> registry = MemoryRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities = LocalRegistry.capabilities | {"own_clock"}

    _driver: ThreadDriver

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
        self._slow_dispatch_ms = slow_dispatch_ms
        super().__init__(
            Options.checked(
                clock=clock, max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full
            )
        )

    @override
    def _new_driver(self, dispatch: Dispatch) -> ThreadDriver:
        core = Core(Engine(self._options.max_pending, limits=self._options.limits), dispatch)
        return ThreadDriver(core, self._options, daemon_thread("stube-memory"), self._slow_dispatch_ms)
