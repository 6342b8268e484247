"""A backend that delivers through an executor of `concurrent.futures`, one conversation at a time.

Every operation costs what it costs on the engine. One task in the executor sleeps until something is due and delivers
it, so a handler that blocks holds up all conversations. The task starts with the first timer or publication, and ends
with `close()`, with the registry's collection, or with the program.

Callers' threads run the operations; the executor's thread runs dispatch and `on_error`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any

from stube import Backend
from stube_backends.engine import OnError, ServedRegistry

__all__ = ["AcmeRegistry", "DaemonExecutor", "create"]


class DaemonExecutor(Executor):
    """Runs each task on a daemon thread of its own.

    A `ThreadPoolExecutor` is no default: the interpreter joins its threads at exit, before anything could be told to
    end, and a delivery that never returns would hold up the end of the program for ever (G24).
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as exc:
                    future.set_exception(exc)
                    raise  # nobody asks for the result, so the thread tells

        thread = threading.Thread(target=run, name="acme", daemon=True)
        thread.start()
        self._threads.append(thread)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for thread in self._threads if wait else ():
            thread.join()


class AcmeRegistry(ServedRegistry):
    """One engine, one lock, one task in an executor.

    >>> registry = create()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    def __init__(self, executor: Callable[[], Executor], **options: Any) -> None:
        super().__init__(new_lock=threading.RLock, **options)
        self._new_executor = executor

    def _spawn(self, serve: Callable[[], None]) -> Callable[[float | None], bool]:
        executor = self._new_executor()
        task = executor.submit(serve)

        def end(timeout: float | None) -> bool:
            if wait([task], timeout).not_done:
                return False
            executor.shutdown()  # waits for threads that have nothing left to do
            return True

        return end


def create(
    *,
    clock: Callable[[], int] | None = None,
    executor: Callable[[], Executor] = DaemonExecutor,
    max_pending: int | None = 1_000_000,
    on_error: OnError | None = None,
) -> Backend:
    """The entry point `acme`.

    Args:
        clock: monotonic nanoseconds as `int`, advancing in real time; `time.monotonic_ns` by default.
        executor: makes the executor, with the first timer or publication and once more in a forked child; the close
            shuts it down. By default one with a daemon thread. Of another one's threads the registry takes one for as
            long as it is open, so where they are joined at exit, close the registry before the program ends.
        max_pending: the bound of timers and queued messages together; None for none.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
    """
    return AcmeRegistry(executor, clock=clock, max_pending=max_pending, on_error=on_error)
