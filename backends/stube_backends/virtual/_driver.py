"""The driver of a virtual clock: the caller that moves the clock delivers, on its own stack, what becomes due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from operator import attrgetter
from typing import Any, Final

from typing_extensions import override

from stube import Dispatch, VirtualTimeError
from stube.arguments import checked_timeout
from stube_backends.engine import EARLIEST, Core, Deliverer, Driver, Engine, Failures, OnError
from stube_backends.engine._awaiting import AwaitingDeliverer, HandlerHangs
from stube_backends.engine._core import REENTRANT
from stube_backends.virtual._chains import WatchedClaims, describe_next
from stube_backends.virtual._clock import AdvanceLock, Clock, Window
from stube_backends.virtual._trace import Tracer

MANY: Final = 100_000  # deliveries, after which handlers are taken to re-arm themselves without end
_AWAITING: Final = frozenset({"advance_async", "settled", "joined"})


class _HandlerIsStuck(VirtualTimeError):  # noqa: N818 - a state that is met, not a mistake
    """A coroutine handler has not returned in time."""


class VirtualDriver(Driver):
    """Delivers while a caller moves the clock.

    Args:
        engine: new, with these claims.
        dispatch: the core's.
        clock, tracer: of the registry.
        on_error: see `Options`.
    """

    __slots__ = ("_advance_lock", "_awaiting", "_clock", "_deliverer", "_engine", "_tracer", "_window", "core")

    core: Core

    def __init__(
        self, engine: Engine[WatchedClaims], dispatch: Dispatch, clock: Clock, tracer: Tracer, on_error: OnError | None
    ) -> None:
        self.core = Core(engine, dispatch)
        self._engine = engine
        self._clock = clock
        self._tracer = tracer
        failures = Failures(on_error, reraised=(KeyboardInterrupt,))
        self._deliverer = Deliverer(self.core, failures, clock)
        self._awaiting = AwaitingDeliverer(self.core, failures)
        self._advance_lock = AdvanceLock()
        self._window: Window | None = None  # set by the thread that holds _advance_lock

    @override
    def enter(self) -> Core:
        return self.core

    @override
    def prepare(self, dispatch: Callable[..., Any]) -> Dispatch:
        return self._tracer.traced(dispatch)

    @override
    def start(self) -> None:
        core = self.core
        core.engine.require_open()
        core.sleep_until = EARLIEST  # no thread sleeps, so none is woken when something is added
        core.started = True

    @override
    def wake(self) -> None:
        pass  # the thread that moves the clock looks again before each step

    @override
    def stop(self, timeout: float | None) -> bool:
        lock = self._advance_lock
        if lock.held_by_me():  # from inside a delivery, or from a signal handler between two of them
            return not self.delivers_here()
        try:
            free = lock.acquire(timeout)
            if free:
                lock.release()
        except BaseException:  # a signal handler raised
            if lock.held_by_me():
                lock.release()
            raise
        return free

    @override
    def wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        timeout = checked_timeout(timeout)
        with self._advancing("join" if timers_too else "settle", patience=timeout, waits=True) as mine:
            if not mine:
                return False
            if not timers_too:
                self._deliverer.deliver(self._clock.now, self._nothing_ready_locked)
                return True
            if timeout is None:
                self._move(None, self._most())
                return True
            self._move(self._clock.now + int(timeout * 1e9))
            return self.next_due() is None

    @override
    def delivers_here(self) -> bool:
        # Between two deliveries a signal handler of the thread that moves the clock may well call.
        return self._advance_lock.held_by_me() and self._engine.ledger.running > 0

    @override
    def call_back(self, function: Callable[..., object], *arguments: Any) -> None:
        function(*arguments)

    # -- the clock ---------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """Return when the next delivery is due, in nanoseconds; None when nothing is pending."""
        due = self.core.run_locked(self._next_due_locked)
        if due is not REENTRANT:
            return due  # type: ignore[no-any-return]
        # The wheel may be in the middle of a change, so walk it instead of asking it.
        engine = self._engine
        instants = map(attrgetter("due"), engine.order.wheel)
        return self._clock.now if _has_ready(engine) else min(instants, default=None)

    def advance(self, nanoseconds: int) -> None:
        """Move the clock on, and deliver at each due instant in turn."""
        with self._advancing("advance"):
            self._move(self._clock.now + nanoseconds, run_to_end=True)

    async def advance_async(self, nanoseconds: int, patience: float | None) -> None:
        """Move the clock on, and await the handlers of each due instant in turn."""
        with self._advancing("advance_async"):
            await self._move_awaiting(self._clock.now + nanoseconds, patience, run_to_end=True)

    def run_until_idle(self, limit: int) -> int:
        """Move the clock on until nothing is pending; return the number of deliveries."""
        with self._advancing("run_until_idle"):
            return self._move(None, limit)

    async def settled(self, patience: float | None) -> bool:
        """Await the handlers of what is ready; return whether every one has returned in time."""
        return await self._awaited("settled", patience, self._clock.now)

    async def joined(self, timeout: float | None, patience: float | None) -> bool:
        """Await the handlers of what is pending, up to `timeout` seconds of the clock; return whether all is over."""
        end = None if timeout is None else self._clock.now + int(timeout * 1e9)
        return await self._awaited("joined", patience, end) and self.next_due() is None

    async def _awaited(self, what: str, patience: float | None, end: int | None) -> bool:
        with self._advancing(what, waits=True):
            try:
                await self._move_awaiting(end, patience, None if end is not None else self._most())
            except _HandlerIsStuck:
                return False
        return True

    def _most(self) -> int:
        """Return after how many deliveries `join` gives up hope that there is an end."""
        ledger = self._engine.ledger
        return ledger.timers + ledger.queued + MANY

    def _next_due_locked(self) -> int | None:
        self._engine.claims.sync_counts()
        return self._clock.now if _has_ready(self._engine) else self._engine.order.wheel.next_due()

    def _nothing_ready_locked(self, now: int, fresh: bool) -> int | None:
        """Move the clock on, under the same lock as the look that found nothing.

        What another thread adds comes before the look, which then finds it, or after the move, and then its instant
        of acceptance is not before the one that the clock shows now, though the thread may have read it earlier.
        """
        engine = self._engine
        instant = engine.order.wheel.next_instant()  # what has arrived was ready
        if instant is None:
            self.core.let_go_locked()
        window = self._window
        if window is None:
            return None
        end = window.end
        window.has_more = instant is not None and (end is None or instant <= end)
        if window.max_deliveries is not None:
            window.over_limit = engine.ledger.delivered + engine.ledger.failed + window.has_more > window.max_deliveries
        if window.has_more and not window.over_limit:
            end = instant
        elif window.over_limit or (instant is None and not window.run_to_end):
            return None
        if end is not None and end > now:
            self._clock.now = engine.order.last_accepted_ns = end
        return end if window.has_more and not window.over_limit else None

    @contextmanager
    def _advancing(self, what: str, *, patience: float | None = None, waits: bool = False) -> Iterator[bool]:
        """Be the thread that moves the clock; yields False if another thread still moves it
        after `patience` seconds."""
        core, lock = self.core, self._advance_lock
        if getattr(core.dispatch, "awaited", False) and what not in _AWAITING:
            raise VirtualTimeError(
                f"{what}() cannot await the coroutine function that was installed as dispatch. "
                "Await advance_async(), settled() or joined() instead."
            )
        if self.delivers_here():
            error = RuntimeError if waits else VirtualTimeError
            raise error(f"{what}() was called from inside a delivery and would overtake it. Return first.")
        if core.is_reentrant():
            raise VirtualTimeError(
                f"{what}() was called from a signal handler or finalizer that interrupted another operation of the "
                "registry, and would deadlock. Call it after that operation has returned."
            )
        try:
            mine = lock.acquire(patience if waits else 0)
            if not mine and not waits:
                raise VirtualTimeError(f"{what}() was called while another thread moves the clock. Use one thread.")
            if mine:
                self._engine.claims.begin_window()
            yield mine
        except BaseException:
            if not core.retired and lock.held_by_me():
                core.run_locked(self._abandon_locked)
            raise
        finally:
            # Ask the lock and not `mine`, because a signal handler may have raised before that was set.
            if lock.held_by_me():
                lock.release()

    def _abandon_locked(self) -> None:
        self._engine.claims.abandon()
        self.core.let_go_locked()

    def _move(self, end: int | None, limit: int | None = None, *, run_to_end: bool = False) -> int:
        """Deliver at this instant and at each one after it up to `end`, None for no end; return how many there were.

        `_nothing_ready_locked` moves the clock. It stays at the last delivery when nothing is pending any more, unless
        `run_to_end` is set.
        """
        with self._opened(end, limit, run_to_end=run_to_end) as window:
            count = self._deliverer.deliver(self._clock.now, self._nothing_ready_locked)
            self._refuse_over_limit(window, limit, count)
            return count

    async def _move_awaiting(
        self, end: int | None, patience: float | None, limit: int | None = None, *, run_to_end: bool = False
    ) -> None:
        """`_move`, awaiting the handlers: in a task with an empty context, which is cancelled with this call."""
        from asyncio import create_task  # heavy, and loaded already where a caller awaits this

        async def move() -> None:
            with self._opened(end, limit, run_to_end=run_to_end) as window:
                count = await self._awaiting.deliver(self._clock.now, self._nothing_ready_locked, patience)
                self._refuse_over_limit(window, limit, count)

        try:
            await create_task(move(), context=Context())
        except HandlerHangs as exc:
            cid, event = exc.cid, exc.event
            raise _HandlerIsStuck(
                f"The handler of {event.name!r} of instance {event.instance_id!r} of conversation {cid!r} has not "
                f"returned within {patience} s of real time, and was cancelled. See what it waits for: the clock "
                "does not move while a handler runs."
            ) from None

    @contextmanager
    def _opened(self, end: int | None, limit: int | None, *, run_to_end: bool) -> Iterator[Window]:
        """Open a window for the length of the block."""
        ledger = self._engine.ledger
        max_deliveries = None if limit is None else ledger.delivered + ledger.failed + limit
        self._window = window = Window(end, max_deliveries, run_to_end=run_to_end)
        try:
            yield window
        finally:
            self._window = None

    def _refuse_over_limit(self, window: Window, limit: int | None, count: int) -> None:
        # In a child that a handler forked the window was the parent's.
        if window.over_limit and not self.core.retired:
            more = f", and next is {describe_next(self._engine.order)}" if window.has_more else ""
            raise VirtualTimeError(
                f"More than {limit} deliveries: {count} so far{more}. End what re-arms itself, or raise the limit."
            )


def _has_ready(engine: Engine[WatchedClaims]) -> bool:
    # Not `has_arrived`, because a publication stays in the order until its last delivery is over.
    has_arrived = engine.order.arrivals.timer is not None or not engine.order.early.is_empty()
    return has_arrived or engine.ledger.queued > 0 or bool(engine.claims.waiting_timers())
