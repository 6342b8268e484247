"""The driver of an event loop: it binds to a loop, and delivers in rounds. See the package for the whole picture."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from typing_extensions import override

from stube import Dispatch, Event, event_for_dispatch
from stube.arguments import checked_timeout
from stube_backends.aio._link import LoopLink
from stube_backends.aio._runners import Runners
from stube_backends.engine import EARLIEST, Core, Driver, Engine, Failures, Options, refuse_inside, wait_until_idle
from stube_backends.engine._arguments import must_be_awaited
from stube_backends.engine._core import FOREVER, REENTRANT, Waiter
from stube_backends.engine._mailboxes import AGAIN, IN_A_ROW, Mailbox, MailboxClaims
from stube_backends.engine._waiting import delist_locked, enlist_locked, release_waiters_locked, set_sleep_locked

# How long a round may take before others on the loop have their turn, in nanoseconds. Long enough to call the handlers
# of two thousand pages for one message before the first page writes: with less, ticks that are due wait behind the
# writing as well (in single runs p99 was 285 ms late with 2 ms, and 160 to 230 with 20 and 25).
_SLICE: Final = 20_000_000

AnyDispatch = Callable[[str, Event], Awaitable[None] | None]


class _Awaited:
    """An installed coroutine function. A class, so that one look at `Core.dispatch` says what it is and how to call
    it."""

    __slots__ = ("_function",)

    def __init__(self, function: AnyDispatch) -> None:
        self._function = function

    def __call__(self, cid: str, event: Event) -> Any:
        return self._function(cid, event)


class _Release:
    """The end of a wait on a loop, in place of a lock."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def release(self) -> None:
        """End the wait, from any thread."""
        with suppress(RuntimeError):  # the loop has closed, and no coroutine waits any more
            self._loop.call_soon_threadsafe(self._set, context=Context())

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class LoopDriver(Driver):
    """Delivers on an event loop.

    Args:
        dispatch: the core's.
        options: of the registry.
        loop: to deliver on; None for the one that runs when the first operation is called on one.
    """

    __slots__ = ("__weakref__", "_claims", "_clock", "_failures", "_link", "_runners", "core")

    core: Core

    def __init__(self, dispatch: Dispatch, options: Options, loop: AbstractEventLoop | None) -> None:
        engine = Engine(options.max_pending, limits=options.limits, claims=MailboxClaims)
        self.core = Core(engine, dispatch)
        self._claims = engine.claims
        self.core.started = True  # there is nothing to start
        self._clock = options.clock
        self._failures = Failures(options.on_error, reraised=(KeyboardInterrupt,))
        self._link = LoopLink(self.core, options.clock, loop, self)
        self._runners = Runners(self.core, self._claims, self._failures, self._link, options.clock)

    @override
    def enter(self) -> Core:
        """Return the core, after binding to the running loop if there is none yet, or if the last one was closed."""
        loop = self._link.loop
        if loop is None or loop.is_closed():
            self._bind()
        return self.core

    @override
    def prepare(self, dispatch: Callable[..., Any]) -> Dispatch:
        return _Awaited(dispatch) if must_be_awaited(dispatch) else dispatch

    @override
    def start(self) -> None:
        self.core.engine.require_open()  # it is started unless it is closed

    @override
    def wake(self) -> None:
        self._link.wake()

    @override
    def stop(self, timeout: float | None) -> bool:
        self._link.wake()  # to disarm the alarm
        if self.core.is_reentrant() or self._link.on_loop():
            return not self._claims.boxes
        return wait_until_idle(self.core, self.wake, self._clock(), timeout, timers_too=False)

    @override
    def wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        timeout = checked_timeout(timeout)
        self.enter()
        if self._link.on_loop():
            call, instead = ("join", "joined") if timers_too else ("settle", "settled")
            raise RuntimeError(
                f"{call}() was called on the thread of the event loop, which would block and deliver nothing. "
                f"Use `await {instead}()`, and not from inside a delivery."
            )
        return wait_until_idle(self.core, self.wake, self._clock(), timeout, timers_too=timers_too)

    @override
    def delivers_here(self) -> bool:
        """Return whether the caller, a coroutine, is a delivery. A task that a handler made is none."""
        if not self._link.on_loop():
            return False
        task = asyncio.current_task()
        return any(box.server is task for box in self._claims.boxes.values())

    @override
    def call_back(self, function: Callable[..., object], *arguments: Any) -> None:
        loop = self._link.loop
        if loop is None:
            function(*arguments)
            return
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(function, *arguments, context=Context())

    # -- what only an event loop has ---------------------------------------------------------------------------

    async def waited(self, timeout: float | None, *, timers_too: bool, call: str) -> bool:
        """Wait as `wait` does, on the loop; `call` is the operation's name, for the error."""
        timeout = checked_timeout(timeout)
        self.enter()
        if self.delivers_here():
            refuse_inside(call)
        release = _Release(asyncio.get_running_loop())
        waiter = Waiter(timers_too, self._clock(), release)
        try:
            if self.core.run_locked(enlist_locked, self.core, waiter):
                return True
            self._link.requested_at = None  # whatever has become of the round that was requested
            self.wake()
            async with asyncio.timeout(timeout):
                await release.future
            return True
        except TimeoutError:
            return False
        finally:
            self.core.run_locked(delist_locked, self.core, waiter)

    def is_serving(self) -> bool:
        """Return whether a delivery runs or is about to."""
        return bool(self._claims.boxes)

    def release_garbage(self) -> None:
        """See `Runners`."""
        self._runners.release_garbage()

    # -- which loop --------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        if self._link.loop is not None:
            self._leave_closed_loop(self._link.loop)
        running = asyncio._get_running_loop()
        if running is not None and self.core.run_locked(self._bind_locked, running) is True:
            self.wake()

    def _bind_locked(self, loop: AbstractEventLoop) -> bool:
        if self._link.loop is not None or self.core.engine.closed:
            return False
        self._link.loop = loop
        return True

    def _leave_closed_loop(self, loop: AbstractEventLoop) -> None:
        served: list[tuple[Mailbox, object]] = []
        try:
            if self.core.run_locked(self._detach_locked, loop, served) is REENTRANT:
                return
            for box, runner in served:
                self._runners.end(box, runner)
        finally:  # a signal handler may have raised at any line from the detaching on
            for box, runner in served:
                if box.server is runner:
                    self.core.run_locked(self._runners.leave_locked, box)
        self.wake()  # another thread may have bound it anew since; and waiters may be released

    def _detach_locked(self, loop: AbstractEventLoop, served: list[tuple[Mailbox, object]]) -> None:
        link = self._link
        if link.loop is loop:  # else another thread was first
            served += [(box, box.server) for box in self._claims.boxes.values()]
            link.loop = link.alarm = link.requested_at = None
            link.paused = False
            self.core.sleep_until = FOREVER

    # -- rounds ------------------------------------------------------------------------------------------------

    def run_round(self, rang_for: int | None) -> None:
        """Deliver what is ready, and see that the next round comes.

        Args:
            rang_for: the due instant for which the loop's timer was armed; None if the round was requested.
        """
        link = self._link
        try:
            if self.core.retired or not link.on_loop():
                return  # the loop has been left, or this is its copy in a forked child
            link.disarm()
            if not link.paused:
                link.arm(self._deliver_for_a_while(), rang_for)
        except BaseException:  # a handler's or a signal handler's; or no task can be made
            self.core.run_locked(self._leave_mine_locked)
            link.retry_later()
            raise

    def _leave_mine_locked(self) -> None:
        """After a round that raised: give back the mailboxes that it served."""
        for box in [box for box in self._claims.boxes.values() if box.server is self]:
            self._runners.leave_locked(box)

    def _deliver_for_a_while(self) -> int | None:
        """Deliver until nothing is ready, and return the instant at which something will be, None for never; or until
        the slice of time is over, and return EARLIEST."""
        core = self.core
        began = now = self._clock()
        delivered = False
        started = 0
        while not core.retired:  # in a child that a handler forked it is, and the mailboxes are the parent's
            if type(core.dispatch) is _Awaited:
                box = self._start_one(now)
                started += 1
            else:
                box = self._deliver_one(now)
            self._runners.release_garbage()
            if box is not None:
                delivered = True
                now = self._clock()  # a timer may have become due, whose turn it is (G27)
                if now - began > _SLICE or started >= IN_A_ROW:  # a runner begins when the loop goes on
                    return EARLIEST
            elif delivered:
                now, delivered = self._clock(), False  # something may have become due since
            else:
                instant: int | None = core.run_locked(self._next_due_locked, now)
                return instant
        return None

    def _next_due_locked(self, now: int) -> int | None:
        """Return when there is something to do next. Decided under the same lock as the look that found nothing: what
        is added from now on finds `sleep_until` set (race 1)."""
        core = self.core
        instant = self._claims.next_instant()
        set_sleep_locked(core, instant)
        release_waiters_locked(core, now)
        return instant

    def _start_one(self, now: int) -> Mailbox | None:
        """Start a runner for the next conversation that has something ready and no runner."""
        box: Mailbox | None = self.core.run_locked(self._claims.next_box, now, self)
        if box is not None and box is not AGAIN:
            self._runners.start(box, self)
        return box

    def _deliver_one(self, now: int) -> Mailbox | None:
        """Call dispatch for the next delivery of a conversation that has no runner; start one for what dispatch
        returns, if it can be awaited."""
        core = self.core
        begun: tuple[Mailbox | None, Event | None] = core.run_locked(self._begin_locked, now)
        box, event = begun
        if box is None or event is None:
            return box
        result, reported = None, False
        try:
            event = event_for_dispatch(event)
            result = Context().run(core.dispatch, box.cid, event)
            failed = False
        except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
            failed, reported = self._failures.report(box.cid, event, exc), True
        if isinstance(result, Awaitable):
            box.begun = (event, result)
            self._runners.start(box, self)
            return box
        core.run_locked(self._runners.leave_locked, box, failed)
        if reported:
            self._failures.reraise()
        return box

    def _begin_locked(self, now: int) -> tuple[Mailbox | None, Event | None]:
        while (box := self._claims.next_box(now, self)) is not None and box is not AGAIN:
            event = self._claims.claim(box)
            if event is not None:
                return box, event
        return box, None
