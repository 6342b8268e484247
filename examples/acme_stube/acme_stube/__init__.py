"""A backend that delivers through an executor of `concurrent.futures`, one conversation at a time.

Every operation costs what it costs on the engine. One task in the executor sleeps until something is due and delivers
it, so a handler that blocks holds up all conversations. The task starts with the first timer or publication, and ends
with `close()`, with the registry's collection, or with the program.

Callers' threads run the operations; the executor's thread runs dispatch and `on_error`.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from typing import Any, Final

from stube import Backend, Dispatch, monotonic_ns
from stube_backends.engine import Core, Engine, LocalRegistry, OnError, checked_timeout, live_registries

__all__ = ["AcmeRegistry", "DaemonExecutor", "create"]

_LONGEST_SLEEP: Final = 3600  # seconds; a lock cannot be waited for as long as a timer may be away
_EXIT_PATIENCE: Final = 0.5  # seconds that a program which just ends waits for a running delivery


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


class _AcmeCore(Core):
    """A core with the task that serves it. All of it is new in a forked child."""

    def __init__(self, engine: Engine, dispatch: Dispatch, executor: Executor) -> None:
        super().__init__(threading.RLock(), engine, dispatch)
        self.executor = executor
        self.task: Future[None] | None = None  # guarded by start_lock
        self.start_lock = threading.RLock()  # re-entrant, for a signal handler in the middle of a start
        self.served_by: dict[str, object] = {}  # the token of the one task that is wanted; changed by single steps
        self.turn = threading.Lock()  # held by the one task that delivers; nobody else takes it
        self.deliverer: int | None = None  # the thread of the task that delivers; written by whoever has the turn
        # The sleeping task waits for this lock; releasing it is the wake-up call. A call that comes before the task
        # sleeps is not lost, and two are one. (An Event, a Condition and a queue.Queue each have a lock inside, for
        # which a signal handler in the middle of a call would wait for ever.)
        self.wakeup = threading.Lock()
        self.wakeup.acquire()


class AcmeRegistry(LocalRegistry):
    """One engine, one lock, one task in an executor.

    >>> registry = create()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities = LocalRegistry.capabilities | {"own_clock"}

    _core: _AcmeCore

    def __init__(self, executor: Callable[[], Executor], **options: Any) -> None:
        self._new_executor = executor  # before the next line, which makes the first core
        super().__init__(new_lock=threading.RLock, **options)

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False, what="settle")

    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True, what="join")

    def _wait(self, timeout: float | None, *, timers_too: bool, what: str) -> bool:
        timeout = checked_timeout(timeout)
        if self._core.deliverer == threading.get_ident():
            raise RuntimeError(f"{what}() was called from inside a delivery and would wait for itself. Return first.")
        return self._wait_until_idle(self._core, timeout, timers_too=timers_too)

    # -- the hooks of LocalRegistry ----------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> _AcmeCore:
        return _AcmeCore(Engine(self._max_pending), dispatch, self._new_executor())

    def _start_serving(self, core: Core) -> None:
        """Numbered races that the order of the lines avoids:

        1. Two threads start: the second waits for the lock, and finds the task, or tries itself where the first failed.
        2. A signal handler interrupts the start, passes the re-entrant lock and would start a second task: `setdefault`
           is one step, so one of the two finds the other's token. Nothing is submitted within a submit.
        3. A signal handler raises at any line, perhaps when the task is queued or runs: the token is withdrawn, so that
           the next operation starts another task, and this one ends when it looks. It might sleep, hence the call; it
           might just be delivering, hence the turn (G1).
        4. Another thread closes: it waits for the lock, so it sees the task; and the task, when it looks, sees the end.
        """
        assert isinstance(core, _AcmeCore)
        token = object()
        with core.start_lock:
            self._refuse_if_closed(core)
            try:
                if core.served_by.setdefault("token", token) is token:
                    wakeup = core.wakeup
                    reference: weakref.ref[AcmeRegistry] = weakref.ref(self, lambda _: _call(wakeup))
                    core.task = core.executor.submit(_serve, reference, token, wakeup, core.anchor)
                    core.serving = True
            except BaseException:
                if core.served_by.get("token") is token:
                    core.serving = False
                    del core.served_by["token"]
                    _call(core.wakeup)
                raise

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        assert isinstance(core, _AcmeCore)
        _call(core.wakeup)
        with core.start_lock:
            task = core.task
        if task is None:  # or a signal handler closes in the middle of a submit, which will find the registry closed
            return True
        if core.deliverer == threading.get_ident() or wait([task], timeout).not_done:
            return False
        core.executor.shutdown()  # waits for threads that have nothing left to do
        return True

    def _wake(self, core: Core) -> None:
        assert isinstance(core, _AcmeCore)
        _call(core.wakeup)

    def _round(self, token: object) -> float | None:
        """One round of the task: deliver what is ready; the seconds to sleep, or None to end."""
        core = self._core
        with core.turn:
            if core.served_by.get("token") is not token:
                return None  # in a forked child, or after a start that was broken off
            while True:
                now = self._clock()
                core.deliverer = threading.get_ident()
                self._deliver(core, now)
                core.deliverer = None
                if core.engine.closed or self._core is not core:
                    return None
                remaining = core.sleep_until - self._clock()
                if remaining > 0:
                    return min(remaining / 1e9, _LONGEST_SLEEP)


def _call(wakeup: threading.Lock) -> None:
    """Wake whoever waits for `wakeup`, now or when it next waits."""
    with suppress(RuntimeError):  # it has been called already and has not looked yet
        wakeup.release()


def _serve(reference: weakref.ref[AcmeRegistry], token: object, wakeup: threading.Lock, anchor: list[object]) -> None:
    """The task.

    Numbered races that the order of the lines avoids:
    1. Something is added between the decision how long to sleep and the sleep: the decision is taken under the lock,
       the adder sees it and calls, and a call that comes before the sleep makes it return at once (G10).
    2. A wait that ends early, or a call for something that is not due: the clock decides, not the wait (G9).
    3. The registry is dropped while the task sleeps: the task holds it weakly, and the callback of the weak reference
       calls (G13). While something is pending, `anchor` holds the registry.
    4. A task that is no longer wanted gets the call that was meant for its successor: it passes it on.
    """
    while (registry := reference()) is not None and (seconds := registry._round(token)) is not None:
        del registry
        wakeup.acquire(timeout=seconds)
    _call(wakeup)


@atexit.register
def _close_all() -> None:
    """A program that just ends: end all tasks, and wait a moment for deliveries that run (G24)."""
    deadline = monotonic_ns() + int(_EXIT_PATIENCE * 1e9)
    for registry in live_registries():
        if isinstance(registry, AcmeRegistry):
            registry.close(timeout=max(0.0, (deadline - monotonic_ns()) / 1e9))


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
        executor: makes the executor, once for the registry and once more in a forked child; the close shuts it down.
            By default one with a daemon thread. Of another one's threads the registry takes one for as long as it is
            open, so where they are joined at exit, close the registry before the program ends.
        max_pending: the bound of timers and queued messages together; None for none.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
    """
    if clock is not None and type(clock()) is not int:
        raise ValueError("clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.")
    return AcmeRegistry(executor, clock=clock or monotonic_ns, max_pending=max_pending, on_error=on_error)
