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
from functools import partial
from typing import Any

from typing_extensions import override

from stube import Dispatch
from stube_backends.engine import Core, Driver, Engine, LocalRegistry, OnError, Options, ThreadDriver

__all__ = ["AcmeRegistry", "DaemonExecutor"]


class DaemonExecutor(Executor):
    """Runs each task on a daemon thread of its own.

    A `ThreadPoolExecutor` is no default: the interpreter joins its threads at exit, before anything could be told to
    end, and a delivery that never returns would keep the program from ending (G24).
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as exc:
                    future.set_exception(exc)
                    raise  # because the result is never asked for, the thread reports the exception

        thread = threading.Thread(target=run, name="acme", daemon=True)
        thread.start()
        self._threads.append(thread)
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for thread in self._threads if wait else ():
            thread.join()


class AcmeRegistry(LocalRegistry):
    """One engine, one lock, one task in an executor. The entry point `acme`.

    Args:
        clock, max_pending, on_error: see `stube_backends.engine.Options`.
        executor: makes the executor, with the first timer or publication and once more in a forked child; `close` shuts
            it down. By default one with a daemon thread. Of another one's threads the registry occupies one for as long
            as it is open; so where they are joined at exit, close the registry before the program ends.

    >>> registry = AcmeRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities = LocalRegistry.capabilities | {"own_clock"}

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        executor: Callable[[], Executor] = DaemonExecutor,
        max_pending: int | None = 1_000_000,
        on_error: OnError | None = None,
    ) -> None:
        self._new_executor = executor
        super().__init__(Options.checked(clock=clock, max_pending=max_pending, on_error=on_error))

    @override
    def _new_driver(self, dispatch: Dispatch) -> Driver:
        core = Core(Engine(self._options.max_pending), dispatch)
        return ThreadDriver(core, self._options, partial(_spawn, self._new_executor))


def _spawn(new_executor: Callable[[], Executor], serve: Callable[[], None]) -> Callable[[float | None], bool]:
    executor = new_executor()
    task = executor.submit(serve)

    def end(timeout: float | None) -> bool:
        if wait([task], timeout).not_done:
            return False
        executor.shutdown()  # waits for threads that have nothing left to do
        return True

    return end
