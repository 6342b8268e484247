"""A registry on a clock that only its caller moves, for tests of host applications.

The same engine and the same delivering as `memory`, so that what a test sees is what production does; no thread, no
waiting, and every run like the one before. Deliveries run on the caller's stack, inside `advance`, `run_until_idle`,
`settle` and `join`; a handler sees its own instant, and what it schedules inside the window begins inside the window.
Operations may be called from any thread; the clock is moved by one thread at a time.

For a host on asyncio, dispatch may be a coroutine function: then `advance_async`, `settled` and `joined` deliver, and
the next delivery begins when the handler before it has returned, so that every run is like the one before here, too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from datetime import timedelta
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from stube import Delivery, Dispatch, Event, VirtualBackend, VirtualTimeError
from stube_backends.engine import (
    EARLIEST,
    NESTED,
    AsyncClosing,
    AwaitingDeliverer,
    Burst,
    Core,
    Engine,
    HandlerHangs,
    LocalRegistry,
    OnError,
    OnFull,
    ReadyOrder,
    SerialClaims,
    Timer,
    Walk,
    checked_limits,
    checked_timeout,
    delay_in_nanoseconds,
    is_coroutine_function,
    milliseconds,
    name_of,
)

__all__ = ["VirtualRegistry", "create"]

_TRACE_LENGTH: Final = 10_000  # deliveries
_MANY: Final = 100_000  # deliveries, after which something is taken to re-arm itself for ever
_LONGEST_CHAIN: Final = 10_000  # rounds of arrivals at one instant
_MICROSECOND: Final = timedelta(microseconds=1)


_AWAITING: Final = frozenset({"advance_async", "settled", "joined"})


class _HandlerIsStuck(VirtualTimeError):  # noqa: N818 - a state that is met, not a mistake
    """A coroutine handler has not returned in time."""


class _Clock:
    """Where the virtual clock stands, in nanoseconds."""

    __slots__ = ("now",)

    def __init__(self, now: int) -> None:
        self.now = now  # written by the thread that moves the clock only

    def __call__(self) -> int:
        return self.now


class _Mover:
    """The lock of the thread that moves the clock. One that knows its owner, to refuse it a second time."""

    __slots__ = ("_lock", "owned", "release")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.release = self._lock.release
        self.owned: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    def acquire(self, patience: float | None) -> bool:
        """Take it, within `patience` seconds; None for as long as it takes."""
        return self._lock.acquire(timeout=-1 if patience is None else patience)


class _Window:
    """A stretch of time through which the clock is being moved."""

    __slots__ = ("end", "more", "most", "passed", "to_its_end")

    def __init__(self, end: int | None, most: int | None, *, to_its_end: bool) -> None:
        self.end = end  # None for no end
        self.most = most  # the ledger's count of deliveries that it may come to; None for no bound
        self.to_its_end = to_its_end
        self.more = False  # whether the clock has come to an instant of it that has not been looked at
        self.passed = False  # whether `most` has been passed, or would be by what is next


class _Tracer:
    """What the deliveries of one registry leave in its trace: when, to whom, what, and why."""

    __slots__ = ("cause", "clock", "entries")

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        self.cause = ""
        self.entries: deque[tuple[int, str, str, str, str]] = deque(maxlen=_TRACE_LENGTH)


class _WatchedClaims(SerialClaims):
    """Claims, watched for handlers that keep one instant from ending, and for what causes a delivery.

    What has arrived by now is one round; what its deliveries make arrive at the same instant is the next. A chain
    shows in the number of rounds, however wide each is.
    """

    __slots__ = ("instant", "left", "rounds", "tracer")

    def __init__(self, tracer: _Tracer, *parts: Any) -> None:
        super().__init__(*parts)
        self.tracer = tracer
        self.begin_window()

    def begin_window(self) -> None:
        """Count anew: somebody moves the clock, or lets what is ready be delivered."""
        self.instant: int | None = None  # whose rounds are counted
        self.rounds = 0
        self.left = 0  # how many arrivals of this round have not begun

    def begin(self, now: int, failed: bool | None = None) -> Timer | Burst | Walk | None:
        if failed is not None:
            self.finish_timer(failed)  # before anything can be raised
        if now != self.instant:
            self.instant, self.rounds, self.left = now, 0, 0
        arrivals = self.order.arrivals
        head = arrivals.after
        if head is arrivals:
            work = super().begin(now)
        else:
            broken_off = self.walk is not None or (self.burst is not None and self.burst.timers)
            if not self.left and not broken_off:
                self._begin_round()
            work = super().begin(now)
            if self.left and arrivals.after is not head:
                self.left -= 1
        if work is not None:
            self.tracer.cause = f"topic {work.topic_name}" if isinstance(work, Walk) else "timer"
        return work

    def _begin_round(self) -> None:
        self.left = sum(1 for _ in self.order.arrivals)
        self.rounds += 1
        if self.rounds > _LONGEST_CHAIN:
            self.rounds = self.left = 0
            raise VirtualTimeError(
                f"Handlers go on without end at the instant {milliseconds(self.tracer.clock.now)} ms, "
                f"{_LONGEST_CHAIN} rounds so far; next is {_describe_next(self.order)}. "
                "Give what re-arms itself a delay."
            )


class VirtualRegistry(AsyncClosing, AwaitingDeliverer, LocalRegistry):
    """One engine on a virtual clock.

    >>> registry = VirtualRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(registry.now_ms, cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=1_800_000, event="idle")
    >>> registry.advance(timedelta(minutes=30))
    1800000.0 c1 Event('main', 'idle')
    """

    capabilities = LocalRegistry.capabilities | {"coroutine_dispatch", "virtual_time"}
    _handed_on = (KeyboardInterrupt,)

    def __init__(
        self,
        *,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
        start_ms: float = 0,
    ) -> None:
        if not (isfinite(start_ms) and start_ms >= 0):
            raise ValueError(f"start_ms must be finite and not negative, not {start_ms!r}. Leave it out to start at 0.")
        clock = _Clock(delay_in_nanoseconds(start_ms))
        self._time = clock
        self._tracer = _Tracer(clock)
        super().__init__(
            clock=clock,
            new_lock=threading.RLock,
            on_error=on_error,
            max_pending=max_pending,
            limits=checked_limits(max_queued, on_full),
        )
        self._mover = _Mover()
        self._window: _Window | None = None  # set by whoever holds the mover's lock

    def install_dispatch(self, dispatch: Dispatch | Callable[[str, Event], Awaitable[None]], /) -> None:
        super().install_dispatch(dispatch)  # type: ignore[arg-type]

    # -- the clock ---------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        return milliseconds(self._time.now)

    def next_due_ms(self) -> float | None:
        core = self._core
        due = core.exclusively(self._next_due_locked, core)
        if due is NESTED:  # the wheel may be half-way through a change, so it is not asked but gone through
            engine = core.engine
            instants = map(attrgetter("due"), engine.order.wheel)
            due = self._time.now if _has_ready(engine) else min(instants, default=None)
        return None if due is None else milliseconds(due)

    def advance(self, step: float | timedelta, /) -> None:
        nanoseconds = _step_in_nanoseconds(step)
        with self._moving("advance"):
            self._move(self._core, self._time.now + nanoseconds, to_its_end=True)

    async def advance_async(self, step: float | timedelta, /, *, patience: float | None = 5.0) -> None:
        nanoseconds = _step_in_nanoseconds(step)
        patience = checked_timeout(patience)
        with self._moving("advance_async"):
            await self._move_awaiting(self._core, self._time.now + nanoseconds, patience, to_its_end=True)

    def run_until_idle(self, limit: int = _MANY) -> int:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be an int, not {limit!r}. Pass a number of deliveries.")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}. Pass a number of deliveries.")
        with self._moving("run_until_idle"):
            return self._move(self._core, None, limit)

    @property
    def trace(self) -> list[Delivery]:
        while True:
            try:
                entries = self._tracer.entries.copy()
            except RuntimeError:  # without a global interpreter lock this is not one step; then once more
                continue
            return [Delivery(milliseconds(now), *rest) for now, *rest in entries]

    # -- waiting, which here is delivering ---------------------------------------------------------------------

    def settle(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        with self._moving("settle", patience=timeout, waits=True) as mine:
            if mine:
                self._deliver(self._core, self._time.now)
            return mine

    def join(self, timeout: float | None = None) -> bool:
        timeout = checked_timeout(timeout)
        with self._moving("join", patience=timeout, waits=True) as mine:
            if not mine:
                return False
            if timeout is None:
                self._move(self._core, None, self._most())
                return True
            self._move(self._core, self._time.now + int(timeout * 1e9))
            return self.next_due_ms() is None

    async def settled(self, timeout: float | None = 5.0) -> bool:
        return await self._awaited("settled", timeout, self._time.now)

    async def joined(self, timeout: float | None = None) -> bool:
        timeout = checked_timeout(timeout)
        end = None if timeout is None else self._time.now + int(timeout * 1e9)
        return await self._awaited("joined", 5.0, end) and self.next_due_ms() is None

    async def aclose(self, timeout: float | None = 5.0) -> bool:
        checked_timeout(timeout)
        return self.close(0)  # nothing runs but what another task awaits

    async def _awaited(self, what: str, patience: float | None, end: int | None) -> bool:
        """Deliver up to an instant, None for no end; whether every handler has returned in time."""
        patience = checked_timeout(patience)
        with self._moving(what, waits=True):
            try:
                await self._move_awaiting(self._core, end, patience, None if end is not None else self._most())
            except _HandlerIsStuck:
                return False
        return True

    def _most(self) -> int:
        """How many deliveries `join` takes for an end that will come."""
        ledger = self._core.engine.ledger
        return ledger.timers + ledger.queued + _MANY

    # -- who delivers ------------------------------------------------------------------------------------------

    def _check_dispatch(self, dispatch: Callable[..., Any]) -> None:
        is_coroutine_function(dispatch)  # refuses what cannot be called

    def _new_core(self, dispatch: Dispatch) -> Core:
        claims = partial(_WatchedClaims, self._tracer)
        return Core(threading.RLock(), Engine(self._max_pending, limits=self._limits, claims=claims), dispatch)

    def _delivering(self, core: Core) -> bool:
        """Whether this call comes from inside a delivery. (Between two of them a signal handler may well call.)"""
        return self._mover.owned() and core.engine.ledger.running > 0

    def _claims_of(self, core: Core) -> _WatchedClaims:
        assert isinstance(core.engine.claims, _WatchedClaims)
        return core.engine.claims

    def _start_serving(self, core: Core) -> None:
        self._refuse_if_closed(core)
        core.sleep_until = EARLIEST  # nobody sleeps, so nobody is woken when something is added
        core.serving = True

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        mover = self._mover
        if self._delivering(core) or not mover.acquire(timeout):
            return False
        mover.release()
        return True

    def _wake(self, core: Core) -> None:
        """Nobody sleeps here: whoever moves the clock looks again before each step."""

    def _nothing_ready_locked(self, core: Core, now: int, *, fresh: bool) -> int | None:
        """Move the clock on, under the same lock as the look that found nothing.

        What another thread adds comes before the look, which then finds it, or after the move, and then its instant
        of acceptance is not before the one that the clock shows now, though the thread may have read it earlier.
        """
        engine = core.engine
        instant = engine.order.next_instant()
        if instant is None:
            core.anchor.clear()
        window = self._window
        if window is None:
            return None
        end = window.end
        window.more = instant is not None and (end is None or instant <= end)
        if window.most is not None:
            window.passed = engine.ledger.delivered + engine.ledger.failed + window.more > window.most
        if window.more and not window.passed:
            end = instant
        elif window.passed or (instant is None and not window.to_its_end):
            return None
        if end is not None and end > now:
            self._time.now = engine.order.latest = end
        return end if window.more and not window.passed else None

    def _wrapped(self, dispatch: Dispatch) -> Dispatch:
        tracer = self._tracer
        clock, note = tracer.clock, tracer.entries.append

        def traced(cid: str, event: Event) -> Any:
            note((clock.now, cid, event.instance_id, event.name, tracer.cause))
            return dispatch(cid, event)

        traced.awaited = is_coroutine_function(dispatch)  # type: ignore[attr-defined]
        return traced

    def _start_anew(self) -> None:
        super()._start_anew()
        self._tracer.entries.clear()
        self._mover = _Mover()
        self._window = None

    @contextmanager
    def _moving(self, what: str, *, patience: float | None = None, waits: bool = False) -> Iterator[bool]:
        """Be the thread that moves the clock; what waits for another one may have to give up after `patience`."""
        core, mover = self._core, self._mover
        if getattr(core.dispatch, "awaited", False) and what not in _AWAITING:
            raise VirtualTimeError(
                f"{what}() cannot await the coroutine function that was installed as dispatch. "
                "Await advance_async(), settled() or joined() instead."
            )
        if self._delivering(core):
            error = RuntimeError if waits else VirtualTimeError
            raise error(f"{what}() was called from inside a delivery and would overtake it. Return first.")
        if core.nested():
            raise VirtualTimeError(
                f"{what}() was called from within another operation of the registry, which stands still meanwhile. "
                "Let the signal handler or the finalizer return first."
            )
        try:
            mine = mover.acquire(patience if waits else 0)
            if not mine and not waits:
                raise VirtualTimeError(f"{what}() was called while another thread moves the clock. Use one thread.")
            if mine:
                self._claims_of(core).begin_window()
            yield mine
        except BaseException:
            if self._core is core and mover.owned():
                core.exclusively(self._cancel_locked, core, core.engine.claims.abandon)
            raise
        finally:
            # Asked of the lock and not of `mine`: a signal handler may have raised before that was set.
            if mover.owned():
                mover.release()

    def _move(self, core: Core, end: int | None, limit: int | None = None, *, to_its_end: bool = False) -> int:
        """Deliver at this instant and at each one after it up to `end`, None for no end; how many.

        `_nothing_ready_locked` moves the clock. It stays at the last delivery when nothing is pending any more, unless
        the window is to be gone through `to_its_end`.
        """
        with self._opened(core, end, limit, to_its_end=to_its_end) as window:
            count = self._deliver(core, self._time.now)
            self._refuse_passed(core, window, limit, count)
            return count

    async def _move_awaiting(
        self,
        core: Core,
        end: int | None,
        patience: float | None,
        limit: int | None = None,
        *,
        to_its_end: bool = False,
    ) -> None:
        """`_move`, awaiting the handlers: in a task with an empty context, which is cancelled with this call."""
        from asyncio import create_task  # heavy, and loaded already where anybody awaits this

        async def move() -> None:
            with self._opened(core, end, limit, to_its_end=to_its_end) as window:
                count = await self._deliver_awaiting(core, self._time.now, patience)
                self._refuse_passed(core, window, limit, count)

        try:
            await create_task(move(), context=Context())
        except HandlerHangs as exc:
            cid, event = exc.cid, exc.event
            raise _HandlerIsStuck(
                f"The handler of {event.name!r} of instance {event.instance_id!r} of conversation {cid!r} has not "
                f"returned within {patience} s of real time, and was cancelled. See what it waits for: the clock "
                "stands still meanwhile."
            ) from None

    @contextmanager
    def _opened(self, core: Core, end: int | None, limit: int | None, *, to_its_end: bool) -> Iterator[_Window]:
        """A window, for the length of the block."""
        ledger = core.engine.ledger
        most = None if limit is None else ledger.delivered + ledger.failed + limit
        self._window = window = _Window(end, most, to_its_end=to_its_end)
        try:
            yield window
        finally:
            self._window = None

    def _refuse_passed(self, core: Core, window: _Window, limit: int | None, count: int) -> None:
        # In a child that a handler forked the window was the parent's.
        if window.passed and self._core is core:
            more = f", and next is {_describe_next(core.engine.order)}" if window.more else ""
            raise VirtualTimeError(
                f"More than {limit} deliveries: {count} so far{more}. End what re-arms itself, or raise the limit."
            )

    def _next_due_locked(self, core: Core) -> int | None:
        return self._time.now if _has_ready(core.engine) else core.engine.order.wheel.next_due()


def _has_ready(engine: Engine) -> bool:
    return bool(engine.order.arrivals or engine.claims.waiting_targets() or engine.claims.waiting_timers())


def _describe_next(order: ReadyOrder) -> str:
    entry = next(iter(order.arrivals), None) or min(order.wheel, key=attrgetter("due"), default=None)
    if isinstance(entry, Timer) and entry.event is not None and entry.group is not None:
        group = entry.group
        return f"the timer {name_of(entry.event)!r} of instance {group.instance_id!r} of conversation {group.cid!r}"
    return f"a message on the topic {getattr(entry, 'topic_name', None)!r}"


def _step_in_nanoseconds(step: float | timedelta) -> int:
    if isinstance(step, timedelta):
        nanoseconds = step // _MICROSECOND * 1000
    elif isinstance(step, (int, float)) and not isinstance(step, bool):
        if step != step or step in (float("inf"), float("-inf")):
            raise ValueError(f"The step must be finite, not {step!r}. Pass milliseconds or a timedelta.")
        nanoseconds = delay_in_nanoseconds(step) if step >= 0 else -1
    else:
        raise TypeError(f"The step must be a number or a timedelta, not {step!r}. Pass milliseconds or a timedelta.")
    if nanoseconds < 0:
        raise VirtualTimeError(f"The clock cannot go back by {step!r}. Pass a step that is not negative.")
    return nanoseconds


def create(
    *,
    max_pending: int | None = 1_000_000,
    max_queued: int | None = None,
    on_error: OnError | None = None,
    on_full: OnFull = "drop_oldest",
    start_ms: float = 0,
) -> VirtualBackend:
    """The entry point `virtual`.

    Args:
        max_pending: the bound of timers and queued messages together; None for none.
        max_queued: how many messages may wait for one conversation, and how many timers; None, the default, for no
            bound. A timer too many raises `RegistryFull`. With a bound `publish` costs its caller O(subscribers), and
            scheduling O(timers of the conversation).
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
        on_full: what gives way to a message too many: the oldest message of the conversation, or, with
            `"end"`, all that the registry holds of it. Logged, and handed to `on_error` with a `RegistryFull`, once
            for each burst, on the thread that publishes.
        start_ms: where the clock stands at first, in milliseconds.
    """
    return VirtualRegistry(
        max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full, start_ms=start_ms
    )
