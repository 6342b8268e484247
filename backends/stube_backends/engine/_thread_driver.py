"""A driver with one delivery thread: it sleeps until something is due, delivers it, and sleeps again.

`spawn` runs the delivery loop: on a daemon thread of its own (`daemon_thread`), or as a task in a pool.

Races of a start, which the order of the lines in `start` avoids:

1. Two callers start: the second waits for the lock; then it finds the loop, or tries itself if the first one failed.
2. A signal handler interrupts the start, takes the re-entrant lock and would start a second loop: `setdefault` is one
   step, so one of the two finds the other's token. `spawn` is never re-entered.
3. A signal handler raises at any line, perhaps when the loop is running already: the token is withdrawn, so the next
   operation starts another loop, and this one ends when it looks. The orphaned loop may be asleep, so we wake it, with
   a lock that its replacement does not wait for; it may be delivering, so the new loop waits for `_loop_lock` (G1).
4. A close comes before the loop exists: the loop, when it looks, finds the registry closed.

Races of the loop, see `_serve`:

5. Something is added between the decision how long to sleep and the sleep: the decision is taken under the core's lock,
   the adding thread sees it and wakes the loop, and a wake-up before the sleep makes the sleep return immediately
   (G10).
6. A wait ends early, or a wake-up was for something that is not due: the clock decides, not the wait (G9).
7. The registry is dropped while the loop sleeps: the loop refers to the driver weakly, and the callback of the weak
   reference wakes it (G13). While something is pending or runs, `Core.keepalive` holds the registry, which holds the
   driver; it is cleared, under the lock, when the last of it is over.
8. A close comes after the look that found nothing ready, and somebody waits in `settle`: the loop looks once more, and
   that look releases who waits, because nothing is pending in a closed registry (G21).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from typing_extensions import override

from stube import Dispatch, Event
from stube.arguments import checked_timeout
from stube_backends.engine._arguments import checked_dispatch
from stube_backends.engine._core import FOREVER, REENTRANT, Core
from stube_backends.engine._delivery import Deliverer
from stube_backends.engine._driver import LONGEST_SLEEP, Driver, refuse_inside, sleep_seconds
from stube_backends.engine._failures import Failures, log
from stube_backends.engine._options import Options
from stube_backends.engine._order import EARLIEST
from stube_backends.engine._waiting import decide_sleep_locked, wait_until_idle

_WARN_EVERY: Final = 1_000_000_000  # nanoseconds between two warnings of a slow dispatch

Spawn = Callable[[Callable[[], None]], Callable[[float | None], bool]]
"""`spawn(serve)` runs `serve()` once on another thread and returns immediately.

It is called by the first operation that needs a delivery; once more in a forked child, and after a call that raised. It
returns a function that waits until `serve` has ended, for at most so many seconds (None for no bound), and says whether
it has. That function must not refer to the registry. When no thread can be had it raises, and so does the operation,
which has then changed nothing (G23)."""


def daemon_thread(name: str) -> Spawn:
    """Return a `Spawn` that starts a daemon thread with this name."""

    def spawn(serve: Callable[[], None]) -> Callable[[float | None], bool]:
        thread = threading.Thread(target=serve, name=name, daemon=True)
        thread.start()

        def end(timeout: float | None) -> bool:
            thread.join(timeout)
            return not thread.is_alive()

        return end

    return spawn


class ThreadDriver(Driver):
    """Delivers on one thread, which starts with the first timer or publication and ends with `close()`, with the
    registry's collection, or with the program.

    Args:
        core: new, and of the same registry.
        options: of the registry.
        spawn: runs the loop.
        slow_dispatch_ms: log a warning about a delivery that took longer; None for no warning.

    Raises:
        ValueError: `slow_dispatch_ms` is not positive.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_deliverer",
        "_end",
        "_loop_lock",
        "_loop_thread_id",
        "_loop_token",
        "_slow_dispatch_ms",
        "_spawn",
        "_start_lock",
        "_wakeup",
        "core",
    )

    core: Core

    def __init__(self, core: Core, options: Options, spawn: Spawn, slow_dispatch_ms: float | None = None) -> None:
        if slow_dispatch_ms is not None and not slow_dispatch_ms > 0:
            raise ValueError(f"slow_dispatch_ms must be positive, not {slow_dispatch_ms!r}. Leave it out for silence.")
        self.core = core
        self._clock = options.clock
        self._deliverer = Deliverer(core, Failures(options.on_error), options.clock)
        self._spawn = spawn
        self._slow_dispatch_ms = slow_dispatch_ms
        self._start_lock = core.group.start_lock
        self._loop_token: dict[str, object] = {}  # of the one loop that is wanted; changed by single steps
        self._end: Callable[[float | None], bool] | None = None  # waits for the loop's end; guarded by _start_lock
        self._loop_lock = threading.Lock()  # held by the one loop that delivers; no other thread takes it
        self._loop_thread_id: int | None = None  # written by the loop that holds _loop_lock
        # The sleeping loop waits for this lock; releasing it wakes the loop. A release before the loop sleeps is not
        # lost, and two count as one. (An Event, a Condition and a queue.Queue each contain a lock, for which a signal
        # handler in the middle of a call would wait without end.)
        self._wakeup = _locked()

    @override
    def enter(self) -> Core:
        return self.core

    @override
    def prepare(self, dispatch: Callable[..., Any]) -> Dispatch:
        checked_dispatch(dispatch)
        if self._slow_dispatch_ms is None:
            return dispatch
        return _Timed(dispatch, self._clock, int(self._slow_dispatch_ms * 1_000_000))

    @override
    def start(self) -> None:
        core = self.core
        if self._run_alone(self._start_alone) is REENTRANT:
            core.engine.require_open()
            core.deferred.defer(self._start_deferred)
            return
        if core.engine.closed:  # by a close that saw no loop yet
            core.started = False
            _wake_up(self._wakeup)

    @override
    def wake(self) -> None:
        # Lower first and wake second: a caller that reads the low value and therefore does not wake the loop can rely
        # on this wake-up, after which the loop looks at everything again.
        core = self.core
        try:
            core.sleep_until = EARLIEST
            self._wakeup.release()
        except RuntimeError:
            pass  # the loop has been woken already and has not looked yet
        except BaseException:
            core.sleep_until = FOREVER  # a signal handler raised: let the next caller wake the loop
            raise

    @override
    def stop(self, timeout: float | None) -> bool:
        _wake_up(self._wakeup)
        if self._run_alone(_nothing) is REENTRANT:  # else no other thread is in the middle of a start
            return False  # the deferred close waits for the loop
        end = self._end
        if end is None:  # or a signal handler closes in the middle of `spawn`, and the loop will find the engine closed
            return True
        return not self.delivers_here() and end(timeout)

    @override
    def wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        timeout = checked_timeout(timeout)
        if self.delivers_here():
            refuse_inside("join" if timers_too else "settle")
        return wait_until_idle(self.core, self.wake, self._clock(), timeout, timers_too=timers_too)

    @override
    def delivers_here(self) -> bool:
        return self._loop_thread_id == threading.get_ident()

    @override
    def call_back(self, function: Callable[..., object], *arguments: Any) -> None:
        function(*arguments)

    def _run_alone(self, operation: Callable[[], None]) -> object:
        """Run `operation` while no other thread starts a driver of the group.

        A thread that is inside an operation must not wait for another one that starts, because that one may have been
        interrupted, and may wait for the lock of that operation: then the answer is REENTRANT.

        A signal handler may raise between any two lines. So the lock is released inside the `try`, and after an
        exception if this thread still owns it, as in `Core.run_locked`.
        """
        lock = self._start_lock
        is_mine: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]
        if is_mine():  # a signal handler or finalizer has interrupted a start of this thread, which will release
            operation()
            return None
        try:
            if not lock.acquire(blocking=not self.core.is_reentrant()):
                return REENTRANT
            operation()
            lock.release()
        except BaseException:
            if is_mine():
                lock.release()
            raise
        return None

    def _start_alone(self) -> None:
        core, token = self.core, object()
        core.engine.require_open()
        try:
            if self._loop_token.setdefault("token", token) is token:
                # The loop does not refer to the core, because the host's dispatch may refer to the registry.
                wakeup = self._wakeup
                reference: weakref.ref[ThreadDriver] = weakref.ref(self, lambda _: _wake_up(wakeup))
                self._end = self._spawn(partial(_serve, reference, token, wakeup, core.keepalive))
                core.started = True
        except BaseException:
            if self._loop_token.get("token") is token:
                core.started = False
                self._end = None
                orphan, self._wakeup = self._wakeup, _locked()
                del self._loop_token["token"]
                _wake_up(orphan)
            raise

    def _start_deferred(self) -> None:
        try:
            self.start()
        except Exception as exc:  # noqa: BLE001 - its caller has returned; the next operation that needs a loop tries again
            log(logging.WARNING, "could not start the delivery thread: %s", exc)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _round(self, token: object) -> float | None:
        """Deliver what is ready; return the seconds to sleep, or None to end the loop."""
        with self._loop_lock:
            if self._loop_token.get("token") is not token:
                return None  # in a forked child, or after a start that raised
            self._loop_thread_id = threading.get_ident()
            seconds = None
            try:
                seconds = self._deliver_until_asleep()
            finally:
                if seconds is None:
                    self._loop_thread_id = None
            return seconds

    def _deliver_until_asleep(self) -> float | None:
        core = self.core
        while True:
            self._deliverer.deliver(self._clock(), self._nothing_ready_locked)
            if core.retired or (core.engine.closed and not core.waiters):
                return None
            until = core.sleep_until
            if until == FOREVER:
                return LONGEST_SLEEP
            remaining = until - self._clock()
            if remaining > 0:
                return sleep_seconds(remaining)

    def _nothing_ready_locked(self, now: int, fresh: bool) -> None:
        decide_sleep_locked(self.core, now, fresh)


def _nothing() -> None:
    """Do nothing."""


def _locked() -> threading.Lock:
    """Return a new lock that is taken."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def _wake_up(wakeup: threading.Lock) -> None:
    """Wake the loop that waits for this lock, now or when it next waits."""
    with suppress(RuntimeError):  # it has been woken already and has not looked yet
        wakeup.release()


def _serve(
    reference: weakref.ref[ThreadDriver], token: object, wakeup: threading.Lock, keepalive: list[object]
) -> None:
    """Run the loop. While it sleeps it keeps nothing of the registry alive but what `keepalive` holds."""
    while (driver := reference()) is not None and (seconds := driver._round(token)) is not None:
        del driver
        wakeup.acquire(timeout=seconds)


class _Timed:
    """A dispatch that logs slow deliveries, at most once a second, and says how many warnings it left out."""

    def __init__(self, dispatch: Dispatch, clock: Callable[[], int], limit: int) -> None:
        self._dispatch = dispatch
        self._clock = clock
        self._limit = limit
        self._next_warning: int | None = None  # written by the delivery thread only
        self._left_out = 0

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
            self._left_out += 1
            return
        log(
            logging.WARNING,
            "the delivery of %r to conversation %r took %.1f ms and held up what waits behind it "
            "(%d more since the last such)",
            event.name,
            cid,
            took / 1e6,
            self._left_out,
        )
        self._next_warning, self._left_out = now + _WARN_EVERY, 0
