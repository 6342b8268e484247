"""When the delivery thread sleeps, how a caller blocks until a registry is idle, and how the thread releases it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stube_backends.engine._core import FOREVER, Core, Waiter
from stube_backends.engine._order import EARLIEST


def wait_until_idle(core: Core, wake: Callable[[], None], now: int, timeout: float | None, *, timers_too: bool) -> bool:
    """Block until the delivery thread finds the registry idle; return whether that was within the timeout.

    Args:
        core: of the registry.
        wake: makes the delivery thread look again.
        now: the present instant, on the registry's clock.
        timeout: seconds; None for no bound.
        timers_too: whether pending timers count.

    Raises:
        RuntimeError: the caller has interrupted an operation of the registry.
    """
    if core.is_reentrant():
        raise RuntimeError(
            "settle() or join() would deadlock here, because a signal handler or finalizer called it in the middle of "
            "another operation of this registry. Call it after that operation has returned."
        )
    lock = threading.Lock()
    lock.acquire()
    waiter = Waiter(timers_too, now, lock)
    try:
        if core.run_locked(enlist_locked, core, waiter):
            return True
        wake()
        idle = lock.acquire(timeout=-1 if timeout is None else timeout)
        core.run_locked(delist_locked, core, waiter)
    except BaseException:  # a signal handler raised, at whatever line
        core.run_locked(delist_locked, core, waiter)
        raise
    return idle


def enlist_locked(core: Core, waiter: Waiter) -> bool:
    """Let a waiter wait, unless the registry is idle; return whether it is. Needs the core's lock."""
    if core.engine.is_idle(waiter.since, timers_too=waiter.timers_too):
        return True
    core.waiters.append(waiter)
    return False


def delist_locked(core: Core, waiter: Waiter) -> None:
    """Forget a waiter whose wait is over. Needs the core's lock."""
    if waiter in core.waiters:
        core.waiters.remove(waiter)


def release_waiters_locked(core: Core, now: int) -> None:
    """Release the waiters for which the registry is idle at `now`. Needs the core's lock."""
    # A round may have begun before a waiter called, so `now` alone would be too early.
    for waiter in core.waiters.copy():
        if core.engine.is_idle(max(now, waiter.since), timers_too=waiter.timers_too):
            core.waiters.remove(waiter)
            waiter.lock.release()


def set_sleep_locked(core: Core, instant: int | None) -> None:
    """Let the delivery thread sleep until an instant, None for until it is woken. Needs the core's lock."""
    core.sleep_until = FOREVER if instant is None else min(instant, FOREVER)
    core.let_go_locked()


def decide_sleep_locked(core: Core, now: int, fresh: bool) -> None:
    """Decide how long the delivery thread sleeps, when nothing is ready at `now`. Needs the core's lock.

    It must be the same lock as that of the look that found nothing: what is added from now on finds `sleep_until` set.
    Waiters are released only if `now` is fresh, because behind a slow handler something may have become due since.
    """
    set_sleep_locked(core, core.engine.order.next_instant())
    if core.waiters and (fresh or core.engine.closed):
        release_waiters_locked(core, now)
    elif core.waiters:
        core.sleep_until = EARLIEST  # look again immediately
