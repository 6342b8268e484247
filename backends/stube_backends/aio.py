"""The backend of asyncio applications: the event loop is the scheduler, and dispatch may be a coroutine function.

No thread and no polling: the loop has one armed timer, for the earliest due instant. Loops let timers go early, so the
registry's own clock decides when it rings, and it is armed anew. Conversations interleave: a handler that waits holds
up its own conversation only. A handler that blocks holds up the loop, and with it everything.

**Which loop.** The one given as `loop`; else the running one when the first operation is called on one. When that loop
has been closed, what is pending waits for the next: one registry, made at import, serves every `asyncio.run` of a
program. Deliveries that were under way when their loop closed are broken off, and have failed.

**Which thread.** Operations may be called from any thread; they take a lock for microseconds and never wait for the
loop. Dispatch and `on_error` run on the loop's thread. There, `close` does not wait, and `settle` and `join` raise:
await `aclose`, `settled` and `joined` instead.

**How it delivers.** A round is a callback of the loop. It takes what is ready in the ready order and calls dispatch
itself, until nothing is left or its slice of time is over; or, for a coroutine function, starts a task for each
conversation that has none. Such a runner claims one delivery after the other, so that claiming and entering the handler
are one step of the loop, and is gone when its mailbox is empty. The mailbox refers to it, for the loop does so weakly.
Each runner, and each call of a plain function, has an empty context of its own: nothing of the caller's is kept.

Numbered races, which the order of the lines avoids:

1. Something is added between the look that finds nothing and the arming: the look sets `sleep_until` under the lock,
   the adder sees it, and its call comes after this callback (G10).
2. The loop closes between two lines of a call: then the call finds it closed, and so does the next operation.
3. A runner is cancelled before its first step, which none of its own lines sees: its done callback does.
4. A signal handler raises in a round: what the round had in its hands is left, and the round is called again.
5. `asyncio.run` cancels all tasks in the end and lets the loop go on meanwhile: nothing is begun until some task of the
   loop is not being cancelled, so that what waits is for the next loop.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from asyncio import AbstractEventLoop, CancelledError, Task
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final

from stube import AsyncBackend, Dispatch, Event, monotonic_ns
from stube_backends.engine import (
    AGAIN,
    EARLIEST,
    FOREVER,
    NESTED,
    AsyncClosing,
    Core,
    Engine,
    LocalRegistry,
    Mailbox,
    MailboxClaims,
    OnError,
    OnFull,
    Overflow,
    Waiter,
    checked_limits,
    checked_timeout,
    close_at_exit,
    is_coroutine_function,
    log,
)

__all__ = ["AsyncioRegistry", "create"]

# How long a round may go on before others on the loop have their turn, in nanoseconds. Long enough to call the handlers
# of two thousand pages for one message before the first page writes: with less, ticks that are due stand behind the
# writing as well (in single runs p99 was 285 ms late with 2 ms, and 160 to 230 with 20 and 25).
_SLICE: Final = 20_000_000
_LONGEST_SLEEP: Final = 3600  # seconds; a far timer is looked at once an hour, whatever its delay
# A loop may count whole milliseconds and let its timers go early. So as not to be armed again and again until it is
# true, it is armed for this at least after it was early, in seconds, and for twice as much each time that it is again.
_COARSE: Final = 0.001

# How long nothing is begun after a round that raised, or while all tasks of the loop are being cancelled.
_BREATH: Final = 0.05  # seconds
_STALE: Final = 1_000_000_000  # nanoseconds after which a call that was not answered has been lost

AnyDispatch = Callable[[str, Event], Awaitable[None] | None]


class _Awaited:
    """An installed coroutine function. Of its kind, so that one look at `Core.dispatch` says what and how."""

    __slots__ = ("_function",)

    def __init__(self, function: AnyDispatch) -> None:
        self._function = function

    def __call__(self, cid: str, event: Event) -> Any:
        return self._function(cid, event)


class _LoopCore(Core):
    """A core, and the loop that delivers for it."""

    __slots__ = ("alarm", "called", "early", "loop", "paused")

    engine: Engine[MailboxClaims]

    def __init__(self, engine: Engine[MailboxClaims], dispatch: Dispatch) -> None:
        super().__init__(threading.RLock(), engine, dispatch)
        self.serving = True  # nobody has to be started
        self.loop: AbstractEventLoop | None = None  # changed under the lock; None while there is none
        self.alarm: asyncio.TimerHandle | None = None  # touched on the loop only
        self.early = 0  # how many times in a row the alarm rang too early; touched on the loop only
        self.called: int | None = None  # since when a round is on its way; set by who calls it, unset by the round
        self.paused = False  # whether nothing is begun, for the loop is coming to its end; touched on the loop only


class _Release:
    """What a waiter on a loop has in place of a lock."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def release(self) -> None:
        with suppress(RuntimeError):  # the loop has closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._set, context=Context())

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class AsyncioRegistry(AsyncClosing, LocalRegistry):
    """One engine and one lock on an event loop.

    >>> async def main():
    ...     async with AsyncioRegistry() as registry:
    ...         async def dispatch(cid, event):
    ...             await asyncio.sleep(0)
    ...             print(cid, event)
    ...         registry.install_dispatch(dispatch)
    ...         timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    ...         await registry.joined()
    >>> asyncio.run(main())
    c1 Event('main', 'tick')
    """

    capabilities = LocalRegistry.capabilities | {"coroutine_dispatch", "own_clock"}
    _handed_on = (KeyboardInterrupt,)

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        loop: AbstractEventLoop | None = None,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
    ) -> None:
        if loop is not None and not isinstance(loop, AbstractEventLoop):
            raise ValueError(f"loop must be an event loop, not {loop!r}. Leave it out for the one that is running.")
        if loop is not None and loop.is_closed():
            raise ValueError(f"loop {loop!r} is closed. Leave it out for the one that is running.")
        if clock is not None and type(clock()) is not int:
            raise ValueError("clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.")
        super().__init__(
            clock=clock or monotonic_ns,
            new_lock=threading.RLock,
            on_error=on_error,
            max_pending=max_pending,
            limits=checked_limits(max_queued, on_full),
        )
        self._own.loop = loop

    def install_dispatch(self, dispatch: AnyDispatch, /) -> None:
        super().install_dispatch(dispatch)  # type: ignore[arg-type]

    # -- waiting -----------------------------------------------------------------------------------------------

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False, call="settle", instead="settled")

    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True, call="join", instead="joined")

    async def settled(self, timeout: float | None = 5.0) -> bool:
        return await self._waited(timeout, timers_too=False, call="settled")

    async def joined(self, timeout: float | None = None) -> bool:
        return await self._waited(timeout, timers_too=True, call="joined")

    async def aclose(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        core = self._core
        if self.close(0) or self._delivers_here(core):
            return not core.engine.claims.boxes
        return await self._waited(timeout, timers_too=False, call="aclose")

    def _wait(self, timeout: float | None, *, timers_too: bool, call: str, instead: str) -> bool:
        timeout = checked_timeout(timeout)
        core = self._core
        if self._on_its_loop(core):
            raise RuntimeError(
                f"{call}() was called on the thread of the event loop, which would stand still and deliver nothing. "
                f"Use `await {instead}()`, and not from inside a delivery."
            )
        return self._wait_until_idle(core, timeout, timers_too=timers_too)

    async def _waited(self, timeout: float | None, *, timers_too: bool, call: str) -> bool:
        timeout = checked_timeout(timeout)
        core = self._core
        if self._delivers_here(core):
            raise RuntimeError(f"{call}() was called from inside a delivery and would wait for itself. Return first.")
        release = _Release(asyncio.get_running_loop())
        waiter = Waiter(timers_too, self._clock(), release)
        if core.exclusively(self._enlist_locked, core, waiter):
            return True
        core.called = None  # whatever has become of the call that is under way
        self._wake(core)
        try:
            async with asyncio.timeout(timeout):
                await release.future
            return True
        except TimeoutError:
            return False
        finally:
            core.exclusively(self._delist_locked, core, waiter)

    def _on_its_loop(self, core: _LoopCore) -> bool:
        running = asyncio._get_running_loop()
        return running is not None and running is core.loop

    def _delivers_here(self, core: _LoopCore) -> bool:
        """Whether the caller, a coroutine, is a delivery. A task that a handler made is another."""
        task = asyncio.current_task()
        return self._on_its_loop(core) and any(box.server is task for box in core.engine.claims.boxes.values())

    # -- which loop --------------------------------------------------------------------------------------------

    @property
    def _core(self) -> _LoopCore:
        """What every operation begins with; so here it is seen whether there is a loop to bind to."""
        core = self._own
        loop = core.loop
        if loop is None or loop.is_closed():
            self._bind(core)
        return core

    @_core.setter
    def _core(self, core: Core) -> None:
        assert isinstance(core, _LoopCore)
        self._own = core

    def _bind(self, core: _LoopCore) -> None:
        if core.loop is not None:
            self._part(core, core.loop)
        running = asyncio._get_running_loop()
        if running is not None and core.exclusively(self._bind_locked, core, running) is True:
            self._wake(core)

    def _bind_locked(self, core: _LoopCore, loop: AbstractEventLoop) -> bool:
        if core.loop is not None or core.engine.closed:
            return False
        core.loop = loop
        return True

    def _part(self, core: _LoopCore, loop: AbstractEventLoop) -> None:
        """Leave a loop that has been closed: what was under way on it has failed, what waits will be delivered on the
        next. Silent, for nobody can do anything about it any more."""
        left: list[tuple[Mailbox, object]] = []
        try:
            if core.exclusively(self._part_locked, core, loop, left) is NESTED:
                return
            for box, runner in left:
                if isinstance(runner, Task):
                    _break_off(runner)
                core.exclusively(self._leave_locked, core, box)
        finally:  # a signal handler may have raised
            for box, runner in left:
                if box.server is runner:
                    core.exclusively(self._leave_locked, core, box)
        self._wake(core)  # somebody may have bound it anew meanwhile; and who waits for this may go on

    def _part_locked(self, core: _LoopCore, loop: AbstractEventLoop, left: list[tuple[Mailbox, object]]) -> None:
        if core.loop is loop:  # else another thread was first
            left += [(box, box.server) for box in core.engine.claims.boxes.values()]
            core.loop = core.alarm = core.called = None
            core.sleep_until = FOREVER
            core.paused = False

    # -- who delivers ------------------------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> _LoopCore:
        return _LoopCore(Engine(self._max_pending, limits=self._limits, claims=MailboxClaims), dispatch)

    def _start_serving(self, core: Core) -> None:
        self._refuse_if_closed(core)  # the only time when it is not serving

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        assert isinstance(core, _LoopCore)
        self._wake(core)  # to disarm the alarm
        if core.nested() or self._on_its_loop(core):
            return not core.engine.claims.boxes
        return self._wait_until_idle(core, timeout, timers_too=False)

    def _wake(self, core: Core) -> None:
        # One call is enough until it is answered, so `sleep_until` is left alone. A call that a signal handler's
        # exception has eaten, between the loop and the first line of `_look`, is not answered.
        assert isinstance(core, _LoopCore)
        loop = core.loop
        if loop is None:
            if core.waiters:
                core.exclusively(self._release_waiters_locked, core, self._clock())
            return
        now = monotonic_ns()
        if core.called is not None and now - core.called < _STALE:
            return
        try:
            core.called = now
            self._call(core, loop.call_soon_threadsafe)
        except RuntimeError:  # it has been closed, and what waits is for the next
            core.called = None
            if core.loop is not loop:  # which is there already, and was not called because this one was
                self._wake(core)
        except BaseException:
            core.called = None  # a signal handler raised: let the next one call
            raise

    def _call(self, core: _LoopCore, call: Callable[..., Any], instant: int | None = None) -> Any:
        """Have the loop call a round. Of the registry it holds no more than `anchor` does meanwhile."""
        return call(_look, weakref.ref(self), core.anchor, instant, context=Context())

    def _round(self, instant: int | None) -> None:
        """Deliver what is ready, and see that the next round comes. `instant` is what the alarm was set for, that rang;
        None when somebody called."""
        try:
            core = self._own
            loop = core.loop
            if loop is None or loop is not asyncio._get_running_loop():
                return  # the loop has been left, or this is its copy in a forked child
            core.called = None
            if core.alarm is not None:
                core.alarm.cancel()
                core.alarm = None
            if not core.paused:
                self._arm(core, loop, self._deliver_for_a_while(core), instant)
        except BaseException:  # a handler's or a signal handler's; or no task can be made
            core = self._own
            core.exclusively(self._recover_locked, core)
            if core.loop is not None:
                core.called = monotonic_ns()
                self._call(core, partial(core.loop.call_later, _BREATH))
            raise

    def _arm(self, core: _LoopCore, loop: AbstractEventLoop, next_instant: int | None, instant: int | None) -> None:
        """Have the next round called when it is time."""
        if next_instant is None:
            return
        if next_instant == EARLIEST:
            self._wake(core)
            return
        now = self._clock()
        core.early = min(core.early + 1, 7) if instant is not None and now < instant else 0
        seconds = min(next_instant - now, _LONGEST_SLEEP * 10**9) / 1e9
        if core.early:
            seconds = max(seconds, _COARSE * 2 ** (core.early - 1))
        core.alarm = self._call(core, partial(loop.call_later, seconds), next_instant)

    def _recover_locked(self, core: _LoopCore) -> None:
        """After a round that was broken off: leave what it had in its hands."""
        for box in [box for box in core.engine.claims.boxes.values() if box.server is self]:
            self._leave_locked(core, box)

    def _deliver_for_a_while(self, core: _LoopCore) -> int | None:
        """Deliver until nothing is ready: the instant at which something will be, None for never; or until the slice of
        time is over: EARLIEST."""
        began = now = self._clock()
        delivered = False
        while self._own is core:  # in a child forked by a handler it is not, and the batch is the parent's
            box = self._start_one(core, now) if type(core.dispatch) is _Awaited else self._deliver_one(core, now)
            if core.engine.claims.spent:
                core.exclusively(core.engine.claims.take_spent)
            if box is not None:
                delivered = True
                if self._clock() - began > _SLICE:
                    return EARLIEST
            elif delivered:
                now, delivered = self._clock(), False  # something may have become due since
            else:
                instant: int | None = core.exclusively(self._rest_locked, core, now)
                return instant
        return None

    def _rest_locked(self, core: _LoopCore, now: int) -> int | None:
        """When there is something to do next. Decided under the same lock as the look that found nothing: whatever is
        added from now on finds `sleep_until` set."""
        engine = core.engine
        instant = engine.claims.next_instant()
        core.sleep_until = FOREVER if instant is None else min(instant, FOREVER)
        self._let_go_locked(core)
        self._release_waiters_locked(core, now)
        return instant

    def _start_one(self, core: _LoopCore, now: int) -> Mailbox | None:
        """Start a runner for the next conversation that has something ready and no runner."""
        box: Mailbox | None = core.exclusively(core.engine.claims.next_box, now, self)
        if box is not None and box is not AGAIN:
            self._start(core, box)
        return box

    def _deliver_one(self, core: _LoopCore, now: int) -> Mailbox | None:
        """Call dispatch for the next delivery of a conversation that has no runner; one is started for what dispatch
        returns, if it can be awaited."""
        begun: tuple[Mailbox | None, Event | None] = core.exclusively(self._begin_locked, core, now)
        box, event = begun
        if box is None or event is None:
            return box
        result = handed_on = None
        try:
            result = Context().run(core.dispatch, box.cid, event)
            failed = False
        except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
            failed, handed_on = self._judge(box.cid, event, exc)
        if isinstance(result, Awaitable):
            box.begun = (event, result)
            self._start(core, box)
            return box
        core.exclusively(self._leave_locked, core, box, failed)
        if handed_on is not None:
            try:
                raise handed_on from None
            finally:
                del handed_on  # it holds this frame, by its traceback
        return box

    def _begin_locked(self, core: _LoopCore, now: int) -> tuple[Mailbox | None, Event | None]:
        while (box := core.engine.claims.next_box(now, self)) is not None and box is not AGAIN:
            event = core.engine.claims.claim(box)
            if event is not None:
                return box, event
        return box, None

    def _leave_locked(self, core: _LoopCore, box: Mailbox, failed: bool = True) -> None:
        if box.running:
            core.engine.claims.finish(box, failed)
        core.engine.claims.leave(box)
        self._let_go_locked(core)

    def _start(self, core: _LoopCore, box: Mailbox) -> None:
        """Start a runner for a conversation; its first delivery may have been begun."""
        loop = core.loop
        assert loop is not None
        runner = self._run(core, box)
        try:
            # Not by the argument `context`, of which not every task factory knows.
            task: Task[None] = Context().run(loop.create_task, runner)
        except BaseException:
            runner.close()
            self._end_unbegun(box)
            raise
        _keep_silent(task)
        if box.server is self:  # else it has begun, and perhaps ended: an eager one
            box.server = task
        task.add_done_callback(partial(self._runner_is_over, core, box), context=Context())

    async def _run(self, core: _LoopCore, box: Mailbox) -> None:
        """Deliver to one conversation, one after the other, until nothing waits for it."""
        runner = box.server = asyncio.current_task()
        begun, box.begun = box.begun or (None, None), None
        event, result = begun
        del begun
        while self._own is core:
            if event is None:
                event = core.exclusively(self._claim_locked, core, box)
                if core.engine.claims.spent:
                    core.exclusively(core.engine.claims.take_spent)
                if event is None:
                    break
            handed_on: BaseException | None = None
            try:
                if result is None:
                    result = core.dispatch(box.cid, event)
                if isinstance(result, Awaitable):
                    await result
                failed = False
            except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                # What ends with its loop is no fault of anybody's: a program that ends says nothing of it.
                of_the_end = isinstance(exc, (CancelledError, GeneratorExit)) and _is_over(runner)
                failed, handed_on = self._judge(box.cid, event, exc, logging.DEBUG if of_the_end else logging.ERROR)
            event = result = None
            core.exclusively(core.engine.claims.finish, box, failed)
            if handed_on is not None:
                try:
                    raise handed_on from None
                finally:
                    del handed_on
            if _is_over(runner):
                return
            if box.after is not box:
                await asyncio.sleep(0)  # others have their turn, also where handlers never wait
        if core.waiters:
            self._wake(core)

    def _claim_locked(self, core: _LoopCore, box: Mailbox) -> Event | None:
        event = core.engine.claims.claim(box)
        if event is None:
            self._let_go_locked(core)
        return event

    def _runner_is_over(self, core: _LoopCore, box: Mailbox, runner: Task[None]) -> None:
        if not runner.cancelled():
            runner.exception()  # has been counted, logged and raised; the loop need not tell of it again
        if box.server is not runner:
            return
        # It could not go on.
        self._end_unbegun(box)
        core.exclusively(self._leave_locked, core, box)
        loop = core.loop
        if loop is not None and (runner.cancelled() or runner.cancelling()) and _is_ending(loop):
            if not core.paused:
                core.paused = True
                loop.call_later(_BREATH, self._resume, core, False, context=Context())
        else:
            self._wake(core)

    def _resume(self, core: _LoopCore, lived: bool) -> None:
        """Go on when the loop lives, now and a moment before; what waits is for the next one if it has come to its end.
        (In the end `asyncio.run` runs tasks of its own, which nobody cancels, for a moment.)"""
        loop = core.loop
        if loop is None or loop is not asyncio._get_running_loop():
            return
        lives = not asyncio.all_tasks(loop) or not _is_ending(loop)
        if lives and lived:
            core.paused = False
            self._wake(core)
        else:
            loop.call_later(_BREATH, self._resume, core, lives, context=Context())

    def _end_unbegun(self, box: Mailbox) -> None:
        """Tell of a delivery whose awaitable nobody awaits, for its runner ended before its first step."""
        begun, box.begun = box.begun, None
        if begun is not None:
            event, result = begun
            if isinstance(result, Coroutine):
                result.close()
            self._judge(box.cid, event, CancelledError("the task of the delivery ended before it began"))

    # -- the hooks of LocalRegistry ----------------------------------------------------------------------------

    def _check_dispatch(self, dispatch: Callable[..., Any]) -> None:
        is_coroutine_function(dispatch)  # refuses what cannot be called

    def _wrapped(self, dispatch: Any) -> Any:
        return _Awaited(dispatch) if is_coroutine_function(dispatch) else dispatch

    def _unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> int:
        count = super()._unsubscribe(cid, instance_id, topic)
        core = self._own
        if core.engine.claims.spent:
            core.exclusively(core.engine.claims.take_spent)
        return count

    def _tell_overflow(self, overflow: Overflow) -> None:
        loop = self._own.loop
        if loop is None:
            super()._tell_overflow(overflow)
            return
        with suppress(RuntimeError):  # the loop has been closed, and nobody listens any more
            loop.call_soon_threadsafe(super()._tell_overflow, overflow, context=Context())

    def _core_as_it_is(self) -> Core:
        return self._own


def _look(reference: weakref.ref[AsyncioRegistry], anchor: list[object], instant: int | None) -> None:
    """What the loop calls. The core is not handed in: the host's dispatch may know the registry."""
    registry = reference()
    if registry is not None:
        registry._round(instant)


def _is_over(runner: Task[Any] | None) -> bool:
    """Whether a runner shall end, and not only a part of what it does: somebody cancels it, or breaks it off."""
    if asyncio._get_running_loop() is None or asyncio.current_task() is not runner or runner is None:
        return True  # its coroutine is being closed, from outside
    return runner.cancelling() > 0


def _is_ending(loop: AbstractEventLoop) -> bool:
    """Whether every task of a loop is being cancelled, as `asyncio.run` does it in the end."""
    return all(task.cancelling() for task in asyncio.all_tasks(loop))


def _keep_silent(task: Task[None]) -> None:
    """A runner that is not over when its loop is gone is broken off, and asyncio need not tell of it."""
    with suppress(AttributeError):  # of another class, by a task factory
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def _break_off(runner: Task[None]) -> None:
    """End a runner whose loop is closed: its handler's clean-up runs, and the loop has nothing to complain of."""
    coroutine = runner.get_coro()
    try:
        if coroutine is not None:
            coroutine.close()
    except BaseException as exc:  # noqa: BLE001 - user code's clean-up; nobody is left to be told
        log(logging.DEBUG, "a delivery whose event loop is closed did not end well", exc_info=exc)


def create(
    *,
    clock: Callable[[], int] | None = None,
    loop: AbstractEventLoop | None = None,
    max_pending: int | None = 1_000_000,
    max_queued: int | None = None,
    on_error: OnError | None = None,
    on_full: OnFull = "drop_oldest",
) -> AsyncBackend:
    """The entry point `asyncio`.

    Args:
        clock: monotonic nanoseconds as `int`, advancing in real time; `time.monotonic_ns` by default.
        loop: the event loop; by default the one that runs when the first operation is called on one.
        max_pending: the bound of timers and queued messages together; None for none.
        max_queued: how many messages may wait for one conversation, and how many timers; None, the default, for no
            bound. A timer too many raises `RegistryFull`. With a bound `publish` costs its caller O(subscribers), and
            scheduling O(timers of the conversation).
        on_error: called as `on_error(cid, event, exception)` on the loop's thread after a delivery failed.
        on_full: what gives way to a message too many: the oldest message of the conversation, or, with
            `"end"`, all that the registry holds of it. Logged, and handed to `on_error` with a `RegistryFull`, once
            for each burst, on the loop's thread.
    """
    return AsyncioRegistry(
        clock=clock, loop=loop, max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full
    )


atexit.register(close_at_exit, AsyncioRegistry)
