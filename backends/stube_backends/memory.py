"""The embedded default: one timer wheel, one scheduler thread that also delivers.

For threads and for scripts, in one process. Every operation costs what it touches; `publish` costs its caller the
same at any number of subscribers. Deliveries run one after another on the thread `stube-memory`, so a handler that
blocks holds up all conversations: hand long work to a pool, or use a backend with more threads.

Callers' threads run the operations; the scheduler thread runs dispatch and `on_error`, starts with the first timer
or publication, and ends with `close()`, with the registry's collection, or with the program.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from stube import Backend, Dispatch, Event, monotonic_ns
from stube_backends.engine import (
    EARLIEST,
    FOREVER,
    Core,
    Engine,
    LocalRegistry,
    OnError,
    checked_timeout,
    live_registries,
    log,
)

__all__ = ["MemoryRegistry", "create"]

_LONGEST_SLEEP: Final = 3600  # seconds; a far timer is looked at once an hour, whatever its delay
_EXIT_PATIENCE: Final = 0.5  # seconds that a program which just ends waits for a running delivery
_WARN_EVERY: Final = 1_000_000_000  # nanoseconds between two warnings of a slow dispatch


class _MemoryCore(Core):
    """A core with its scheduler thread."""

    __slots__ = ("served_by", "start_lock", "thread", "turn", "wakeup")

    def __init__(self, engine: Engine, dispatch: Dispatch) -> None:
        super().__init__(threading.RLock(), engine, dispatch)
        self.thread: threading.Thread | None = None  # guarded by start_lock
        self.start_lock = threading.RLock()  # re-entrant, for a signal handler in the middle of a start
        self.served_by: dict[str, object] = {}  # the token of the one thread that is wanted; changed by single steps
        self.turn = threading.Lock()  # held by the one thread that delivers; nobody else takes it
        # The sleeping thread waits for this lock; releasing it is the wake-up call. A call that comes before the
        # thread sleeps is not lost, and two are one.
        self.wakeup = threading.Lock()
        self.wakeup.acquire()


class MemoryRegistry(LocalRegistry):
    """One engine, one lock, one thread.

    >>> registry = MemoryRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities = LocalRegistry.capabilities | {"own_clock"}

    _core: _MemoryCore

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
        if clock is not None and type(clock()) is not int:
            raise ValueError("clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.")
        self._slow_dispatch_ms = slow_dispatch_ms
        super().__init__(
            clock=clock or monotonic_ns, new_lock=threading.RLock, on_error=on_error, max_pending=max_pending
        )

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False, what="settle")

    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True, what="join")

    # -- who delivers ------------------------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> _MemoryCore:
        return _MemoryCore(Engine(self._max_pending), dispatch)

    def _start_serving(self, core: Core) -> None:
        """Numbered races that the order of the lines avoids:

        1. Two callers start: the second waits for the lock, and finds the thread, or tries itself where the first
           failed.
        2. A signal handler interrupts the start, passes the re-entrant lock and would start a second thread:
           `setdefault` is one step, so one of the two finds the other's token.
        3. A signal handler raises at any line, perhaps when the thread runs already: the token is withdrawn, so that
           the next operation starts another thread, and this one ends when it looks. It might sleep, hence the call;
           it might just be delivering, hence the turn (G1).
        4. A close comes before the thread is there: the thread, when it looks, finds the registry closed.
        """
        assert isinstance(core, _MemoryCore)
        token = object()
        with core.start_lock:
            self._refuse_if_closed(core)
            try:
                if core.served_by.setdefault("token", token) is token:
                    core.thread = self._new_thread(core, token)
                    core.thread.start()
                    core.serving = True
            except BaseException:
                if core.served_by.get("token") is token:
                    core.serving = False
                    core.thread = None
                    del core.served_by["token"]
                    _call(core.wakeup)
                raise
        if core.engine.closed:  # by a close that saw no thread yet
            core.serving = False
            _call(core.wakeup)

    def _new_thread(self, core: _MemoryCore, token: object) -> threading.Thread:
        wakeup = core.wakeup
        # The thread holds the registry weakly while it sleeps, so that one which was dropped is collected; the
        # callback then ends the thread.
        reference = weakref.ref(self, lambda _: _call(wakeup))
        arguments = (reference, token, wakeup, core.anchor)
        return threading.Thread(target=_serve, args=arguments, name="stube-memory", daemon=True)

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        assert isinstance(core, _MemoryCore)
        _call(core.wakeup)
        with core.start_lock:  # no thread is half-started behind our back
            thread = core.thread
        if thread is None or not thread.is_alive():
            return True
        if thread is threading.current_thread():
            return False
        thread.join(timeout)
        return not thread.is_alive()

    def _wake(self, core: Core) -> None:
        # Lowered first and called second: whoever reads the low value and therefore does not call can rely on
        # this call, after which the thread looks at everything again.
        assert isinstance(core, _MemoryCore)
        try:
            core.sleep_until = EARLIEST
            core.wakeup.release()
        except RuntimeError:
            pass  # it has been called already and has not looked yet
        except BaseException:
            core.sleep_until = FOREVER  # a signal handler raised: let the next one call
            raise

    def _round(self, token: object) -> float | None:
        """One round of the scheduler thread: deliver what is ready; the seconds to sleep, or None to end."""
        core = self._core
        with core.turn:
            if core.served_by.get("token") is not token:
                return None  # a forked child, or a start that was broken off: another serves when one is needed
            while True:
                now = self._clock()
                self._deliver(core, now)
                if core.engine.closed or self._core is not core:
                    return None
                until = core.sleep_until
                if until == FOREVER:
                    return _LONGEST_SLEEP
                remaining = until - self._clock()
                if remaining > 0:
                    return min(remaining, _LONGEST_SLEEP * 10**9) / 1e9

    def _wait(self, timeout: float | None, *, timers_too: bool, what: str) -> bool:
        timeout = checked_timeout(timeout)
        if self._core.thread is threading.current_thread():
            raise RuntimeError(f"{what}() was called from inside a delivery and would wait for itself. Return first.")
        return self._wait_until_idle(self._core, timeout, timers_too=timers_too)

    def _wrapped(self, dispatch: Dispatch) -> Dispatch:
        if self._slow_dispatch_ms is None:
            return dispatch
        return _Timed(dispatch, self._clock, int(self._slow_dispatch_ms * 1_000_000))


def _call(wakeup: threading.Lock) -> None:
    """Wake whoever waits for `wakeup`, now or when it next waits."""
    try:
        wakeup.release()
    except RuntimeError:  # it has been called already and has not looked yet
        pass


def _serve(reference: weakref.ref[MemoryRegistry], token: object, wakeup: threading.Lock, anchor: list[object]) -> None:
    """The scheduler thread.

    Numbered races that the order of the lines avoids:
    1. Something is added between the decision how long to sleep and the sleep: the decision is taken under the
       lock, the adder sees it and calls, and a call that comes before the sleep makes it return at once.
    2. The registry is dropped while the thread sleeps: the weak reference's callback calls. While something is
       pending, `anchor` keeps the registry alive; it is emptied, under the lock, with the last pending thing.
    3. A start is broken off, and another thread is started while the first one already sleeps: both wait for one
       call. Whoever gets it and is not wanted passes it on.
    4. A wait that ends early (a call for somebody else, a loop that is late): the clock decides, not the wait.
    """
    while True:
        registry = reference()
        if registry is None:
            return
        seconds = registry._round(token)
        if seconds is None:
            _call(wakeup)  # if it was not for this thread, it was for its successor
            return
        del registry
        wakeup.acquire(timeout=seconds)


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


@atexit.register
def _close_all() -> None:
    """A program that just ends: stop all threads, and wait a moment for deliveries that run."""
    deadline = monotonic_ns() + int(_EXIT_PATIENCE * 1e9)
    registries = [registry for registry in live_registries() if isinstance(registry, MemoryRegistry)]
    for registry in registries:
        registry.close(timeout=0)
    for registry in registries:
        registry.close(timeout=max(0.0, (deadline - monotonic_ns()) / 1e9))


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
