"""A registry that one thread serves: it sleeps until something is due, delivers it, and sleeps again.

A backend derives from `ServedRegistry` and says in one hook, `_spawn`, what runs that loop: a thread, a task in a pool.

Numbered races of a start, which the order of the lines in `_start_serving` avoids:

1. Two callers start: the second waits for the lock, and finds the loop, or tries itself where the first failed.
2. A signal handler interrupts the start, passes the re-entrant lock and would start a second loop: `setdefault` is one
   step, so one of the two finds the other's token. Nothing is spawned within a spawn.
3. A signal handler raises at any line, perhaps when the loop runs already: the token is withdrawn, so that the next
   operation starts another loop, and this one ends when it looks. It might sleep, hence the call; it might just be
   delivering, hence the turn (G1).
4. A close comes before the loop is there: the loop, when it looks, finds the registry closed.

And of the loop, see `_serve`:

5. Something is added between the decision how long to sleep and the sleep: the decision is taken under the lock, the
   adder sees it and calls, and a call that comes before the sleep makes it return at once (G10).
6. A wait that ends early, or a call for something that is not due: the clock decides, not the wait (G9).
7. The registry is dropped while the loop sleeps: the loop holds it weakly, and the callback of the weak reference
   calls (G13). While something is pending, `anchor` holds the registry; it is emptied, under the lock, with the last
   pending thing.
8. A loop that is no longer wanted gets the call that was meant for its successor: it passes it on.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from stube import Dispatch, monotonic_ns
from stube_backends.engine._arguments import checked_timeout
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._core import FOREVER, Core, ReentrantLock, Siblings, log
from stube_backends.engine._delivery import OnError
from stube_backends.engine._engine import Engine
from stube_backends.engine._local import LocalRegistry, live_registries
from stube_backends.engine._order import EARLIEST

_LONGEST_SLEEP: Final = 3600  # seconds; a far timer is looked at once an hour, whatever its delay
_EXIT_PATIENCE: Final = 0.5  # seconds that a program which just ends waits for deliveries that run


class ServedCore(Core):
    """A core with the loop that serves it. All of it is new in a forked child."""

    __slots__ = ("end", "served_by", "server", "start_lock", "turn", "wakeup")

    def __init__(
        self,
        new_lock: Callable[[], ReentrantLock],
        engine: Engine[Any],
        dispatch: Dispatch,
        siblings: Siblings | None = None,
    ) -> None:
        super().__init__(new_lock(), engine, dispatch, siblings)
        if self.siblings.start_lock is None:
            self.siblings.start_lock = new_lock()
        self.start_lock = self.siblings.start_lock  # re-entrant, for a signal handler in the middle of a start
        self.served_by: dict[str, object] = {}  # the token of the one loop that is wanted; changed by single steps
        self.end: Callable[[float | None], bool] | None = None  # waits for the loop's end; guarded by start_lock
        self.turn = threading.Lock()  # held by the one loop that delivers; nobody else takes it
        self.server: int | None = None  # the thread of the loop; written by whoever has the turn
        # The sleeping loop waits for this lock; releasing it is the wake-up call. A call that comes before the loop
        # sleeps is not lost, and two are one. (An Event, a Condition and a queue.Queue each have a lock inside, for
        # which a signal handler in the middle of a call would wait for ever.)
        self.wakeup = threading.Lock()
        self.wakeup.acquire()


class ServedRegistry(LocalRegistry):
    """The twelve operations, and a loop that delivers. It starts with the first timer or publication, and ends with
    `close()`, with the registry's collection, or with the program.

    Args:
        clock: monotonic nanoseconds as `int`, advancing in real time; None for `time.monotonic_ns`.
        new_lock, on_error, max_pending, limits: see `LocalRegistry`.

    Raises:
        ValueError: the clock's reading is no `int`.
    """

    capabilities = LocalRegistry.capabilities | {"own_clock"}

    _core: ServedCore

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None,
        new_lock: Callable[[], ReentrantLock],
        on_error: OnError | None,
        max_pending: int | None,
        limits: Limits | None = None,
    ) -> None:
        if clock is not None and type(clock()) is not int:
            raise ValueError("clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.")
        super().__init__(
            clock=clock or monotonic_ns, new_lock=new_lock, on_error=on_error, max_pending=max_pending, limits=limits
        )

    def _spawn(self, serve: Callable[[], None]) -> Callable[[float | None], bool]:
        """Run `serve()` once, on a thread of the backend's own, and return at once.

        Called with the first operation that needs somebody who delivers; once more in a forked child, and after a call
        that raised.

        Returns:
            A function that waits until `serve` has ended, for so many seconds at most or, with None, for as long as it
            takes, and says whether it has. It must not hold the registry.

        Raises:
            Exception: no thread can be had. The operation raises it too, and has changed nothing (G23).
        """
        raise NotImplementedError

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False, what="settle")

    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True, what="join")

    def delivers_here(self) -> bool:
        """Whether this thread is the one that delivers, and the caller so inside a delivery."""
        return self._core.server == threading.get_ident()

    def _wait(self, timeout: float | None, *, timers_too: bool, what: str) -> bool:
        timeout = checked_timeout(timeout)
        if self.delivers_here():
            raise RuntimeError(f"{what}() was called from inside a delivery and would wait for itself. Return first.")
        return self._wait_until_idle(self._core, timeout, timers_too=timers_too)

    # -- the hooks of LocalRegistry ----------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> ServedCore:
        return ServedCore(self._new_lock, Engine(self._max_pending, limits=self._limits), dispatch)

    def _start_serving(self, core: Core) -> None:
        assert isinstance(core, ServedCore)
        token = object()
        if not core.start_lock.acquire(blocking=not core.nested()):
            # Whoever holds it may have been interrupted, and wait for what this thread is half-way through.
            self._refuse_if_closed(core)
            core.later(self._start_later, core)
            return
        try:
            self._refuse_if_closed(core)
            try:
                if core.served_by.setdefault("token", token) is token:
                    # By way of the core the loop would hold the registry: the host's dispatch may know it.
                    wakeup = core.wakeup
                    reference: weakref.ref[ServedRegistry] = weakref.ref(self, lambda _: _call(wakeup))
                    core.end = self._spawn(partial(_serve, reference, token, wakeup, core.anchor))
                    core.serving = True
            except BaseException:
                if core.served_by.get("token") is token:
                    core.serving = False
                    core.end = None
                    del core.served_by["token"]
                    _call(core.wakeup)
                raise
        finally:
            core.start_lock.release()
        if core.engine.closed:  # by a close that saw no loop yet
            core.serving = False
            _call(core.wakeup)

    def _start_later(self, core: Core) -> None:
        try:
            self._start_serving(core)
        except Exception as exc:  # noqa: BLE001 - nobody is left to be told; the next operation that needs a loop tries again
            log(logging.WARNING, "what delivers could not be started: %s", exc)

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        assert isinstance(core, ServedCore)
        _call(core.wakeup)
        if not core.start_lock.acquire(blocking=not core.nested()):
            return False  # the close that was noted sees to it
        try:  # no loop is half-started behind our back
            end = core.end
        finally:
            core.start_lock.release()
        if end is None:  # or a signal handler closes in the middle of a spawn, and the loop will find it closed
            return True
        return core.server != threading.get_ident() and end(timeout)

    def _wake(self, core: Core) -> None:
        # Lowered first and called second: whoever reads the low value and therefore does not call can rely on
        # this call, after which the loop looks at everything again.
        assert isinstance(core, ServedCore)
        try:
            core.sleep_until = EARLIEST
            core.wakeup.release()
        except RuntimeError:
            pass  # it has been called already and has not looked yet
        except BaseException:
            core.sleep_until = FOREVER  # a signal handler raised: let the next one call
            raise

    # -- the loop ----------------------------------------------------------------------------------------------

    def _round(self, token: object) -> float | None:
        """One round of the loop: deliver what is ready; the seconds to sleep, or None to end."""
        core = self._core
        with core.turn:
            if core.served_by.get("token") is not token:
                return None  # in a forked child, or after a start that was broken off
            core.server = threading.get_ident()
            seconds = None
            try:
                seconds = self._deliver_until_asleep(core)
            finally:
                if seconds is None:
                    core.server = None
            return seconds

    def _deliver_until_asleep(self, core: ServedCore) -> float | None:
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


def _call(wakeup: threading.Lock) -> None:
    """Wake whoever waits for `wakeup`, now or when it next waits."""
    with suppress(RuntimeError):  # it has been called already and has not looked yet
        wakeup.release()


def _serve(reference: weakref.ref[ServedRegistry], token: object, wakeup: threading.Lock, anchor: list[object]) -> None:
    """The loop. Of the registry it holds no more than `anchor` does while it sleeps."""
    while (registry := reference()) is not None and (seconds := registry._round(token)) is not None:
        del registry
        wakeup.acquire(timeout=seconds)
    _call(wakeup)


def close_at_exit(kind: type[LocalRegistry]) -> None:
    """A program that just ends: close every registry of a kind, and wait a moment for deliveries that run (G24)."""
    deadline = monotonic_ns() + int(_EXIT_PATIENCE * 1e9)
    registries = [registry for registry in live_registries() if isinstance(registry, kind)]
    for registry in registries:
        registry.close(timeout=0)
    for registry in registries:
        registry.close(timeout=max(0.0, (deadline - monotonic_ns()) / 1e9))


atexit.register(close_at_exit, ServedRegistry)
