"""The core of a local registry: its engine behind one lock. This is the only module that takes a lock of an engine.

**Re-entrant calls (G20).** A finalizer or a signal handler can run between any two lines, also while this thread holds
the lock, and may call an operation of the same registry. The lock knows its owner, and `mutating` says that the owner
is inside an operation. A call that finds both leaves the half-changed engine alone, defers itself and returns.
The thread runs its deferred calls when it has released the lock, before the interrupted operation returns. So every
change of the engine runs as a whole, and the engine needs no thought of interruption. A snapshot cannot be deferred;
it reads the engine as it is, which is legal at every line, because rings are linked and unlinked in an order in which
walking them forward always works.

**Several cores of one registry (`ShardGroup`).** A re-entrant call may be for another core than the interrupted one. If
it waited there while a thread inside that core waited here, both would wait without end. So a thread that is inside one
core of a group never waits for another core of it: it defers the call, and behind it every later call, even one for a
core whose lock is free (G2). Only `run_all_locked` holds several locks; a thread that is inside no core takes them in
the order of their indices.

**Forks (G25).** Everything that belongs to one life of a registry hangs on its driver and its core. In a forked child
`_process.py` calls `LocalRegistry.start_anew`, which makes new ones; `abandon_after_fork` marks the old core `retired`.
Code that the fork interrupted in the child continues on the old core, from which nothing is delivered any more.

**The locking protocol**, which `run_locked` shows in its plain form. `schedule`, `cancel_timers`, `publish` and `begin`
contain the same lines with the engine's method called in place (a call through `run_locked` costs 31 % of a schedule).
The order of the lines avoids these races:

1. Another thread sets `mutating` after this thread has read it as False: `acquire` waits for that thread. The answer
   for a re-entrant call cannot change between the two tests, because only the lock's owner writes `mutating`.
2. A re-entrant call before `mutating = True` runs as a whole, before this one has begun.
3. A re-entrant call between `mutating = False` and the last line may have been deferred: so look after the release.
4. A signal handler raises at any line: `recover` leaves the lock as it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from operator import call
from typing import Any, Final, NamedTuple, Protocol

from stube import Dispatch, Event, StubeError
from stube.arguments import PlainEvent
from stube_backends.engine._deferred import DeferredCalls
from stube_backends.engine._engine import Engine
from stube_backends.engine._recovery import rebuild
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import FanOut, Generation


class _Reentrant:
    """The type of `REENTRANT`."""

    __slots__ = ()


REENTRANT: Final = _Reentrant()
"""Returned in place of a result when this thread is inside another operation of the core or of its group."""

FOREVER: Final = 1 << 100
"""Later than any clock reading: "never". An int, because comparing with a float costs 0.1 us."""


def ignore(cid: str, event: Event) -> None:
    """Do nothing: the dispatch until a host installs one."""


class Releasable(Protocol):
    """The end of a wait: a `threading.Lock` that a waiter wants to take, or its like."""

    def release(self) -> None: ...


class Waiter(NamedTuple):
    """A caller that waits in `settle` or `join`."""

    timers_too: bool
    since: int
    """The instant of its call; everything that was ready by then must be over."""
    lock: Releasable
    """Taken until the wait is over."""


class ShardGroup:
    """What the cores of one registry share: their deferred calls, and which of them a thread is inside."""

    __slots__ = ("deferred", "generation", "held_by_me", "process", "start_lock", "successor")

    def __init__(self) -> None:
        self.process = os.getpid()
        self.generation = Generation()  # of their topics
        self.successor: ShardGroup | None = None  # in a forked child
        self.deferred = DeferredCalls()
        self.held_by_me: list[Callable[[], bool]] = []  # of each core's lock: whether this thread holds it
        # Held while a driver of one of the cores starts. One lock for all of them and re-entrant, because a signal
        # handler may interrupt a start with a call that starts another; a thread that is inside an operation never
        # waits for it.
        self.start_lock = threading.RLock()

    def is_reentrant(self) -> bool:
        """Return whether this thread is inside an operation of one of the cores, which the caller interrupts."""
        return any(map(call, self.held_by_me))

    def of_this_process(self) -> ShardGroup:
        """Return the group itself; in a forked child a new one, the same for every core that asks."""
        if self.process == os.getpid():
            return self
        if self.successor is None or self.successor.process != os.getpid():
            self.successor = ShardGroup()
        return self.successor


class Core:
    """One engine, one lock, and the fields that the lock guards.

    Args:
        engine: which nothing else refers to.
        dispatch: where deliveries go.
        group: what this core shares with the other cores of the same registry; None for a single core.
    """

    __slots__ = (
        "acquire",
        "acquire_blocking",
        "deferred",
        "dispatch",
        "engine",
        "group",
        "held_by_me",
        "interrupt_at",
        "keepalive",
        "lock",
        "mutating",
        "release",
        "retired",
        "sleep_until",
        "started",
        "waiters",
    )

    def __init__(self, engine: Engine[Any], dispatch: Dispatch, group: ShardGroup | None = None) -> None:
        self.group = group or ShardGroup()
        self._make_lock(alone=group is None)
        self.engine = engine  # guarded by the lock, except the batons' `pop` and a fan-out's targets
        self.mutating = False  # whether the lock's owner is inside an operation; written by the owner only
        self.deferred = self.group.deferred
        self.dispatch: Callable[[str, Event], Any] = dispatch  # no lock: one reference, read once for every delivery
        # Whether operations need not call `Driver.start`; reset by close, and by a start that failed. Read without the
        # lock, because `start` looks again.
        self.started = False
        # When the delivery thread will next look on its own. Set by that thread under the lock; read without it by
        # callers, which wake the driver if something is due before. See `Driver.wake`.
        self.sleep_until = FOREVER
        # When a fan-out in progress is to be interrupted, because a timer may be due (G27). Set under the lock by who
        # begins the fan-out or schedules a timer; read without it by the thread that delivers the fan-out.
        self.interrupt_at = FOREVER
        self.keepalive: list[object] = []  # holds the registry while anything is pending or runs; guarded by the lock
        self.waiters: list[Waiter] = []  # guarded by the lock
        self.retired = False  # whether this is a forked child, and the core the parent's

    def is_reentrant(self) -> bool:
        """Return whether this thread is inside an operation of this core or its group, which the caller interrupts."""
        return self.group.is_reentrant()

    def acquire_unless_reentrant(self) -> bool:
        """Wait for the lock, which another thread holds, unless this thread is inside another core of the group; return
        whether this thread has the lock."""
        return not self.is_reentrant() and self.acquire_blocking()

    def run_locked(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Run `operation(*arguments)` while no other thread runs one, and return its result.

        What it raises passes through. REENTRANT when this thread is inside another operation of this core; or of one
        of its group, and another thread is inside this core or there are deferred calls, of whichever thread.
        """
        if (self.mutating and self.held_by_me()) or (self.deferred and self.is_reentrant()):
            return REENTRANT
        try:
            if not (self.acquire() or self.acquire_unless_reentrant()):
                return REENTRANT
            self.mutating = True
            result = operation(*arguments)
            self.mutating = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.run_deferred()
        return result

    def schedule(
        self, owner: object, cid: str, instance_id: str, delay: int, event: PlainEvent, now: int
    ) -> Timer | None:
        """Accept a timer: `run_locked` with `Engine.schedule`. None when the call is re-entrant."""
        if (self.mutating and self.held_by_me()) or (self.deferred and self.is_reentrant()):
            return None
        try:
            if not (self.acquire() or self.acquire_unless_reentrant()):
                return None
            self.mutating = True
            timer = self.engine.schedule(cid, instance_id, delay, event, now)
            if timer.due < self.interrupt_at:
                self.interrupt_at = timer.due
            if not self.keepalive:
                self.keepalive.append(owner)
            self.mutating = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.run_deferred()
        return timer

    def cancel_timers(self, cid: str, instance_id: str | None) -> list[PlainEvent | None] | None:
        """Cancel timers: `run_locked` with `Engine.cancel_timers`. None when the call is re-entrant."""
        if (self.mutating and self.held_by_me()) or (self.deferred and self.is_reentrant()):
            return None
        try:
            if not (self.acquire() or self.acquire_unless_reentrant()):
                return None
            self.mutating = True
            events = self.engine.cancel_timers(cid, instance_id)
            if not self.engine.ledger.timers:
                self.let_go_locked()
            self.mutating = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.run_deferred()
        return events

    def publish(self, owner: object, topic: str, message: Any, now: int) -> int | None:
        """Accept a publication: `run_locked` with `Engine.publish`. None when the call is re-entrant."""
        if (self.mutating and self.held_by_me()) or (self.deferred and self.is_reentrant()):
            return None
        try:
            if not (self.acquire() or self.acquire_unless_reentrant()):
                return None
            self.mutating = True
            targeted = self.engine.publish(topic, message, now)
            if targeted and not self.keepalive:
                self.keepalive.append(owner)
            self.mutating = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.run_deferred()
        return targeted

    def begin(
        self,
        now: int,
        failed: bool | None,
        nothing_ready_locked: Callable[[int, bool], int | None],
        fresh: bool,
    ) -> tuple[Timer | DueBatch | FanOut | None, int]:
        """Claim what must begin next: `run_locked` with `SerialClaims.begin`.

        The delivery thread calls it while it holds no lock of the group, so it may wait for this one.

        Args:
            now, failed: see `SerialClaims.begin`.
            nothing_ready_locked: called under the lock, with the instant at which nothing is ready and with `fresh`;
                returns a later instant to look at, or None to stop.
            fresh: whether nothing has been delivered since the clock was read.

        Returns:
            The work, None for none, and the instant at which it was found.
        """
        try:
            self.acquire_blocking()
            self.mutating = True
            work = self.engine.claims.begin(now, failed)
            while work is None:
                instant = nothing_ready_locked(now, fresh)
                if instant is None:
                    break
                now = instant
                work = self.engine.claims.begin(now)
            if type(work) is FanOut:
                instant = self.engine.order.next_timer_instant()
                self.interrupt_at = FOREVER if instant is None else instant
            self.mutating = False
            self.release()
        except BaseException as exc:
            self.recover(exc)
            raise
        if self.deferred:
            self.run_deferred()
        return work, now

    def recover(self, exc: BaseException) -> None:
        """After an exception: rebuild the engine if necessary, and release the lock if this thread still holds it.

        An operation that refuses raises an error of stube's before it changes anything. Anything else is an
        asynchronous exception, which may have interrupted a change.
        """
        if self.held_by_me():
            if self.mutating and not isinstance(exc, StubeError):
                rebuild(self.engine)
            self.mutating = False
            self.release()
        if self.deferred:
            self.run_deferred()

    def run_deferred(self) -> None:
        """Run this thread's deferred calls, unless it is still inside an operation of the group."""
        self.deferred.run(self.group.is_reentrant)

    def end_conversation_locked(self, cid: str) -> list[Any]:
        """Remove all of a conversation; return what was held, for the caller to release."""
        held = self.engine.end_conversation(cid)
        if not self.engine.ledger.timers:
            self.let_go_locked()
        return held

    def let_go_locked(self) -> None:
        """Stop keeping the registry alive if nothing is pending and nothing runs any more.

        A running delivery needs the registry until it is over, because the end of the program waits only for deliveries
        of registries that are alive (G24).
        """
        ledger = self.engine.ledger
        if not ledger.timers and not ledger.queued and not ledger.running:
            self.keepalive.clear()

    def wait_for_lock(self) -> None:
        """Return when the thread that holds the lock has released it."""
        self.run_locked(_nothing)

    def abandon_after_fork(self) -> None:
        """In a forked child: let nothing more of the parent's batch begin, and wait for no thread of the parent."""
        self.retired = True
        self.engine.claims.stop()
        self.deferred.forget()
        if not self.held_by_me():
            # Another thread of the parent may hold the lock, and does not exist here to release it.
            self.group.held_by_me.remove(self.held_by_me)
            self._make_lock(alone=True)

    def _make_lock(self, *, alone: bool) -> None:
        self.lock = threading.RLock()
        # Bound methods are cached, because `with lock` is twice as slow. A core that is alone in its group may always
        # wait for its lock, so its `acquire` blocks and returns True; otherwise `acquire` never waits.
        self.acquire_blocking: Callable[[], bool] = self.lock.acquire
        self.acquire: Callable[[], bool] = self.lock.acquire if alone else partial(self.lock.acquire, False)
        self.release = self.lock.release
        self.held_by_me: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]  # as Condition does
        self.group.held_by_me.append(self.held_by_me)


def _nothing() -> None:
    """Do nothing."""


def run_all_locked(cores: Sequence[Core], operation: Callable[..., Any], *arguments: Any) -> Any:
    """Run `operation(*arguments)` while no other thread runs one on any of these cores of one group, and return its
    result; REENTRANT when this thread is inside an operation of the group.

    Waits for one lock while it holds others: always in the order of `cores`, which must be that of their indices.
    """
    if len(cores) == 1:
        return cores[0].run_locked(operation, *arguments)
    if cores[0].is_reentrant():
        return REENTRANT
    try:
        for core in cores:
            core.lock.acquire()
            core.mutating = True
        result = operation(*arguments)
        for core in cores:
            core.mutating = False
            core.release()
    except BaseException as exc:
        for core in cores:
            core.recover(exc)
        raise
    if cores[0].deferred:
        cores[0].run_deferred()
    return result
