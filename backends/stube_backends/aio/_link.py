"""The link between a registry and its event loop: how a round is requested, now or when something is due."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol

from stube import monotonic_ns
from stube_backends.engine import EARLIEST, Core
from stube_backends.engine._driver import sleep_seconds
from stube_backends.engine._waiting import release_waiters_locked

# A loop may count whole milliseconds and let its timers go early. After an early alarm the next one is set for at least
# this long, in seconds, and twice as long each further time, so that the loop does not spin until the time has come.
_MIN_REARM_S: Final = 0.001
RETRY_S: Final = 0.05  # how long nothing is begun after a round that raised, or while the loop is ending
_LOST_WAKEUP_NS: Final = 1_000_000_000  # a requested round that has not run after this has been lost


class HasRounds(Protocol):
    """A driver that delivers in rounds."""

    def run_round(self, rang_for: int | None) -> None:
        """Deliver what is ready.

        Args:
            rang_for: the due instant for which the loop's timer was armed; None if the round was requested.
        """


class LoopLink:
    """Which loop delivers for a core, and its one armed timer.

    Args:
        core: of the registry.
        clock: of the registry.
        loop: to start with; None for none.
        driver: runs the rounds. The loop keeps nothing of the registry alive but what `Core.keepalive` holds.
    """

    __slots__ = ("_clock", "_driver", "alarm", "core", "early_wakeups", "loop", "paused", "requested_at")

    def __init__(self, core: Core, clock: Callable[[], int], loop: AbstractEventLoop | None, driver: HasRounds) -> None:
        self.core = core
        self._clock = clock
        self._driver = weakref.ref(driver)
        self.loop = loop  # changed under the lock; None while there is none
        self.alarm: asyncio.TimerHandle | None = None  # used on the loop only
        self.early_wakeups = 0  # how many times in a row the alarm rang too early; used on the loop only
        self.requested_at: int | None = None  # since when a round is on its way; set by the caller, unset by the round
        self.paused = False  # whether nothing is begun, because the loop is ending; used on the loop only

    def on_loop(self) -> bool:
        """Return whether the caller runs on the loop."""
        running = asyncio._get_running_loop()
        return running is not None and running is self.loop

    def wake(self) -> None:
        """Request a round. One request is enough until it is answered, so `sleep_until` is not lowered.

        A request that a signal handler's exception has consumed, between the loop and the first line of the round, is
        not answered; after a second it counts as lost.
        """
        loop = self.loop
        if loop is None:
            if self.core.waiters:
                self.core.run_locked(release_waiters_locked, self.core, self._clock())
            return
        now = monotonic_ns()
        if self.requested_at is not None and now - self.requested_at < _LOST_WAKEUP_NS:
            return
        try:
            self.requested_at = now
            self._request(loop.call_soon_threadsafe)
        except RuntimeError:  # the loop has been closed, and what is pending waits for the next one
            self.requested_at = None
            if self.loop is not loop:  # which exists already, and was not woken because this one was
                self.wake()
        except BaseException:
            self.requested_at = None  # a signal handler raised: let the next caller request a round
            raise

    def retry_later(self) -> None:
        """Request a round in a moment, after one that raised."""
        if self.loop is not None:
            self.requested_at = monotonic_ns()
            self._request(partial(self.loop.call_later, RETRY_S))

    def disarm(self) -> None:
        """Note that the requested round has come, and cancel the alarm."""
        self.requested_at = None
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

    def arm(self, next_instant: int | None, rang_for: int | None) -> None:
        """Have the next round called at an instant: EARLIEST for immediately, None for never."""
        loop = self.loop
        if next_instant is None or loop is None:
            return
        if next_instant == EARLIEST:
            self.wake()
            return
        now = self._clock()
        self.early_wakeups = min(self.early_wakeups + 1, 7) if rang_for is not None and now < rang_for else 0
        seconds = sleep_seconds(next_instant - now)
        if self.early_wakeups:
            seconds = max(seconds, _MIN_REARM_S * 2 ** (self.early_wakeups - 1))
        self.alarm = self._request(partial(loop.call_later, seconds), next_instant)

    def pause_if_ending(self) -> bool:
        """Begin nothing while every task of the loop is being cancelled; return whether that is so."""
        loop = self.loop
        if loop is None or not _is_ending(loop):
            return False
        if not self.paused:
            self.paused = True
            loop.call_later(RETRY_S, self._resume, False, context=Context())
        return True

    def _resume(self, was_alive: bool) -> None:
        """Continue if the loop is alive, now and a moment ago. (In the end `asyncio.run` runs tasks of its own, which
        are not cancelled, for a moment.) If it has ended, what is pending waits for the next loop."""
        loop = self.loop
        if loop is None or loop is not asyncio._get_running_loop():
            return
        is_alive = not asyncio.all_tasks(loop) or not _is_ending(loop)
        if is_alive and was_alive:
            self.paused = False
            self.wake()
        else:
            loop.call_later(RETRY_S, self._resume, is_alive, context=Context())

    def _request(self, call: Callable[..., Any], rang_for: int | None = None) -> Any:
        return call(_run_round, self._driver, self.core.keepalive, rang_for, context=Context())


def _run_round(driver: weakref.ref[HasRounds], keepalive: list[object], rang_for: int | None) -> None:
    """Run a round: the callback that the loop calls. It does not refer to the core, because the host's dispatch may
    refer to the registry."""
    alive = driver()
    if alive is not None:
        alive.run_round(rang_for)


def _is_ending(loop: AbstractEventLoop) -> bool:
    """Return whether every task of a loop is being cancelled, as `asyncio.run` does it in the end."""
    return all(task.cancelling() for task in asyncio.all_tasks(loop))
