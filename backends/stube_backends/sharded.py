"""For throughput: conversations are hashed over shards, each with its own lock, timer wheel and delivering thread.

A conversation lives in one shard, so its order, its cancelling and its cost are those of `memory`. A handler that
blocks holds up the conversations of its own shard only: with eight shards, eight handlers can wait at a time. Under a
global interpreter lock that is what more shards are good for; without one they also compute side by side.

What goes beyond one conversation costs a step per shard: `publish` one for each shard that holds the topic, the
whole-registry operations one for each shard. Subscribers in different shards hear different publishers' messages in
orders that may differ, and a snapshot shows each shard at an instant of its own: `common_topic_order` and
`one_instant_snapshot` are not promised.

Callers' threads run the operations; the threads `stube-sharded-0`, `-1`, ... run dispatch and `on_error`, several at a
time. Each starts with the first timer or publication of its shard, and ends with `close()`, with the registry's
collection, or with the program.

**Locks.** An operation of one conversation takes its shard's lock. One that must be whole across shards (a publication
to several, `reset_state`, `close`, `install_dispatch`, giving a shard more room) takes several, always in index order
and from none (`together`). A call that interrupts another one on its own thread waits for no lock (`Siblings`). The
shards are a fixed tuple; no lock is ever replaced or deleted, but by a fork.

**Room.** `max_pending` bounds the whole registry, and no operation counts across shards: each shard's engine is bound
by the shard's share. One that has used its share up asks `_make_room`, which looks at all shards in one instant and
deals out anew what is free: a refusal means that the registry was full at that instant (G22). O(shards), and the rarer
the more is free.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from math import ceil
from types import TracebackType
from typing import Any, Final, Self

from stube import (
    Backend,
    ConversationInfo,
    Dispatch,
    EventSpec,
    RegistryClosed,
    RegistryFull,
    Stats,
    TimerHandle,
    monotonic_ns,
)
from stube_backends.engine import (
    EARLIEST,
    NESTED,
    ConversationFull,
    Core,
    Engine,
    Group,
    Limits,
    OnError,
    OnFull,
    PlainEvent,
    ServedCore,
    Siblings,
    ThreadedRegistry,
    Timer,
    checked_dispatch,
    checked_limits,
    checked_timeout,
    delay_in_nanoseconds,
    plain_event,
    plain_name,
    raise_closed,
    registry_full,
    together,
)

__all__ = ["ShardedRegistry", "create"]

_MOST_SHARDS: Final = 1024  # each is a thread
_PATIENT_LOOKS: Final = 3  # for who holds a topic


def _default_shards() -> int:
    """As many as a thread pool has workers by default, for handlers wait more than they compute. Twice as many without
    a global interpreter lock, where callers at work meet in a shard (8 of them on 2 processors: 1.36 times the rate of
    `memory`, and 1.29 with half the shards)."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return min(32, ((os.cpu_count() or 1) + 4) * (1 if has_gil else 2))


class _Shard(ThreadedRegistry):
    """The registry of some of the conversations."""

    def __init__(
        self,
        name: str,
        siblings: Siblings,
        share: int | None,
        *,
        clock: Callable[[], int] | None,
        on_error: OnError | None,
        slow_dispatch_ms: float | None,
        limits: Limits | None,
    ) -> None:
        self.siblings = siblings
        self.share = share
        self.core: ServedCore  # what `_core` is, without a property's 0.05 us
        super().__init__(
            name, clock=clock, max_pending=None, on_error=on_error, slow_dispatch_ms=slow_dispatch_ms, limits=limits
        )

    def _new_core(self, dispatch: Dispatch) -> ServedCore:
        self.core = ServedCore(
            self._new_lock, Engine(self.share, self.siblings.epoch, self._limits), dispatch, self.siblings
        )
        return self.core

    def _start_anew(self) -> None:
        self.siblings = self.siblings.of_this_process()
        super()._start_anew()

    # The core is handed in: in a child forked by a signal handler it is no longer the shard's (G25).

    def adopt_locked(self, core: Core, timer: Timer, delay: int, now: int) -> PlainEvent | None:
        dropped = core.engine.adopt(timer, delay, now)
        self._anchor_locked(core)
        return dropped

    def install_locked(self, core: Core, dispatch: Dispatch) -> Dispatch:
        before, core.dispatch = core.dispatch, self._wrapped(dispatch)
        return before

    def reset_locked(self, core: Core) -> list[Any]:
        return self._reset_locked(core, core.engine.reset)

    def halt_locked(self, core: Core) -> list[Any]:
        held: list[Any] = core.engine.claims.drop_in_progress()
        return held

    def forget_locked(self, core: Core) -> list[Any]:
        return self._reset_locked(core, core.engine.forget_the_rest)

    def close_locked(self, core: Core) -> list[Any]:
        core.serving = False
        return self._reset_locked(core, core.engine.close)

    def publish_locked(self, core: Core, topic: str, msg: Any, now: int) -> int:
        targeted = core.engine.publish(topic, msg, now, checked=True)
        if targeted and not core.anchor:
            core.anchor.append(self)
        return targeted

    def see_that_it_serves(self, core: Core) -> None:
        """Have the shard's thread running, or raise."""
        if not core.serving:
            self._start_serving(core)

    def wake(self) -> None:
        """Have the shard's thread look again, unless it will anyway; and tell of what gave way."""
        if self._core.engine.backlogs is not None:
            self._tell_overflows(self._core)
        if self._core.sleep_until > EARLIEST:
            self._wake(self._core)

    def stop(self, timeout: float | None) -> bool:
        """After `close_locked`: whether the shard's thread has ended."""
        return self._stop_serving(self._core, timeout)


class ShardedRegistry:
    """A fixed tuple of shards.

    >>> registry = ShardedRegistry(shards=2)
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities: frozenset[str] = ThreadedRegistry.capabilities - {"common_topic_order", "one_instant_snapshot"}

    def __init__(
        self,
        *,
        shards: int | None = None,
        clock: Callable[[], int] | None = None,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
        slow_dispatch_ms: float | None = None,
    ) -> None:
        number = _default_shards() if shards is None else _checked_shards(shards)
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending!r}. Leave it out, or give None.")
        limits = checked_limits(max_queued, on_full)
        self._max_pending = max_pending
        self._clock = clock or monotonic_ns
        siblings = Siblings()
        self._shards = tuple(
            _Shard(
                f"stube-sharded-{index}",
                siblings,
                None if max_pending is None else max_pending // number + (index < max_pending % number),
                clock=clock,
                on_error=on_error,
                slow_dispatch_ms=slow_dispatch_ms,
                limits=limits,
            )
            for index in range(number)
        )
        self._count = number

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        checked_dispatch(dispatch)
        if self._together(self._install_locked, dispatch) is NESTED:
            self._refuse_if_closed()
            self._later(self.install_dispatch, dispatch)

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        self._shard_of(cid).put_pending_flow(cid, flow_id)

    def pending_flow(self, cid: str, /) -> Any | None:
        return self._shard_of(cid).pending_flow(cid)

    def forget_pending_flow(self, cid: str, /) -> bool:
        return self._shard_of(cid).forget_pending_flow(cid)

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        # `LocalRegistry.schedule_event`, written out (0.2 us of 1.9); the comments stand there.
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if type(instance_id) is not str or not instance_id:
            instance_id = plain_name("instance_id", instance_id)
        plain = event if type(event) is str and event else plain_event(event)
        if type(delay_ms) is float and 1e-3 < delay_ms < 1e9:
            delay = ceil(delay_ms * 1e6)
            if delay / 1e6 < delay_ms:
                delay += 1
        else:
            delay = delay_in_nanoseconds(delay_ms)
        shard = self._shards[hash(cid) % self._count]
        core = shard.core
        if not core.serving:
            shard.see_that_it_serves(core)
        now = self._clock()
        if core.busy and core.owned():
            return self._schedule_later(shard, cid, instance_id, delay, plain)
        timer = None
        try:
            if core.acquire():
                core.busy = True
                timer = core.engine.schedule(shard, cid, instance_id, delay, plain, now)
                if not core.anchor:
                    core.anchor.append(shard)
                core.busy = False
                core.release()
        except BaseException as exc:
            core.recover(exc)
            if not isinstance(exc, RegistryFull) or isinstance(exc, ConversationFull):
                raise
        if timer is None:
            if core.nested():
                return self._schedule_later(shard, cid, instance_id, delay, plain)
            self._make_room(partial(self._one_in, shard))  # the shard's share is used up
            return self.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        if core.deferred:
            core.catch_up()
        if timer.due < core.sleep_until:
            shard.wake()
        return timer

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return self._shard_of(cid).cancel_timers(cid, instance_id=instance_id)

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        self._shard_of(cid).subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        return self._shard_of(cid).unsubscribe(cid=cid, instance_id=instance_id, topic=topic)

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._shard_of(cid).remove_subscriptions_for_cid(cid)

    def publish(self, topic: str, msg: Any, /) -> int:
        topic = plain_name("topic", topic)
        core = self._shards[0].core
        if core.deferred and core.nested():  # behind a subscription that this thread has only noted
            self._refuse_if_closed()
            self._later(self.publish, topic, msg)
            return 0
        # The shards that are found with the epoch unchanged are all that hold the topic. A publication that still
        # finds it unchanged under their locks therefore reaches all subscribers of that instant, although it has not
        # locked the other shards (G16).
        epoch = core.engine.topics.epoch
        looks = 0
        while True:
            looks += 1
            since = epoch.now
            holders: Sequence[_Shard] = self._shards  # where topics come and go too fast, all of them are locked
            if looks <= _PATIENT_LOOKS:
                holders = [shard for shard in holders if topic in shard.core.engine.topics.topics]
            if not holders and epoch.now is since:
                self._refuse_if_closed()
                return 0
            targeted, full = None, False
            try:
                if holders:
                    targeted = self._publish_to(holders, topic, msg, since)
            except RegistryFull:
                full = True  # a shard's share is used up
            if targeted is not None:
                return targeted
            if full and not self._make_room(partial(self._live_in, topic)):
                self._later(self.publish, topic, msg)
                return 0

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        found: dict[str, dict[tuple[str, str], EventSpec]] = {}
        for shard in self._shards:
            for topic, subscribers in shard.subscriptions().items():
                found.setdefault(topic, {}).update(subscribers)
        return found

    def reset_state(self) -> None:
        if self._together(self._all_locked, _Shard.halt_locked, _Shard.reset_locked) is NESTED:
            for shard in self._shards:  # the batons go at once, as they come: those put from now on must stay
                shard.core.drop_later(shard.core.engine.forget_flows())
            self._later(self._reset_later)
        self._call_for_waiters()

    # -- what else a backend has -------------------------------------------------------------------------------

    def close(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        held = self._together(self._all_locked, _Shard.halt_locked, _Shard.forget_locked, _Shard.close_locked)
        if held is NESTED:
            for shard in self._shards:
                shard.core.drop_later(shard.core.engine.refuse())
            self._later(self.close, 0)
        if held is NESTED or self._delivers_here():
            timeout = 0.0
        del held
        left = _Patience(timeout)
        for shard in self._shards:
            shard.stop(0.0)  # all are told before one is waited for
        return all(shard.stop(left()) for shard in self._shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, "settle")

    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, "join")

    def stats(self) -> Stats:
        return _sum([shard.stats() for shard in self._shards])

    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        if cid is not None:
            return self._shard_of(cid).inspect(cid)
        found: dict[str, ConversationInfo] = {}
        for shard in self._shards:
            found |= shard.inspect()
        return dict(sorted(found.items()))

    def sizes(self) -> Mapping[str, int]:
        """The length of every internal container, all shards together, for the suite's leak tests."""
        total: dict[str, int] = {}
        for shard in self._shards:
            for name, size in shard.sizes().items():
                total[name] = total.get(name, 0) + size
        total["deferred"] //= self._count  # one container, which each of them counts
        return total

    def __repr__(self) -> str:
        engines = [shard.core.engine for shard in self._shards]
        timers, queued = (sum(getattr(engine.ledger, name) for engine in engines) for name in ("timers", "queued"))
        state = " closed" if engines[0].closed else ""
        return f"<ShardedRegistry{state}: {self._count} shards, {timers} timers, {queued} queued>"

    # -- helpers -----------------------------------------------------------------------------------------------

    def _shard_of(self, cid: str) -> _Shard:
        if type(cid) is not str:
            cid = plain_name("cid", cid)
        return self._shards[hash(cid) % self._count]

    def _delivers_here(self) -> bool:
        return any(shard.delivers_here() for shard in self._shards)

    def _refuse_if_closed(self) -> None:
        if self._shards[0].core.engine.closed:
            raise_closed()

    def _together(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Run `operation(cores, *arguments)` while nobody else runs one on any shard, or NESTED."""
        cores = [shard.core for shard in self._shards]
        return together(cores, operation, cores, *arguments)

    def _each_locked(self, cores: Sequence[Core], operation: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [operation(shard, core, *arguments) for shard, core in zip(self._shards, cores, strict=True)]

    def _all_locked(self, cores: Sequence[Core], *steps: Callable[[_Shard, Core], list[Any]]) -> list[Any]:
        """One step on all shards before the next, so that whoever takes no lock sees none of them ahead by more."""
        return [self._each_locked(cores, step) for step in steps]

    def _reset_later(self) -> None:
        self._together(self._all_locked, _Shard.halt_locked, _Shard.forget_locked)
        self._call_for_waiters()

    def _call_for_waiters(self) -> None:
        for shard in self._shards:
            if shard.core.waiters:
                shard.wake()

    def _one_in(self, shard: _Shard) -> list[int]:
        return [int(each is shard) for each in self._shards]

    def _live_in(self, topic: str) -> list[int]:
        return [shard.core.engine.topics.live(topic) for shard in self._shards]

    def _later(self, operation: Callable[..., object], *arguments: Any) -> None:
        self._shards[0].core.later(operation, *arguments)

    def _install_locked(self, cores: Sequence[Core], dispatch: Dispatch) -> list[Any]:
        """Returns what was installed before, for the caller to drop."""
        if cores[0].engine.closed:
            raise RegistryClosed("The registry is closed, so it delivers nothing any more. Create a new one.")
        return self._each_locked(cores, _Shard.install_locked, dispatch)

    def _publish_to(self, holders: Sequence[_Shard], topic: str, msg: Any, since: object) -> int | None:
        """Publish to these shards: all of them accept the message, or none. None when they may not be all that hold
        the topic."""
        cores = [shard.core for shard in holders]
        if not all(core.serving for core in cores):
            together(cores, _require_publishable_locked, cores, topic)  # what is refused starts nobody
            for shard, core in zip(holders, cores, strict=True):
                shard.see_that_it_serves(core)
        now = self._clock()
        targeted = together(cores, self._publish_locked, holders, cores, topic, msg, now, since)
        if targeted is NESTED:
            self._later(self.publish, topic, msg)
            return 0
        if targeted is None:
            return None
        for shard in holders:
            shard.wake()
        return int(sum(targeted))

    def _publish_locked(
        self,
        holders: Sequence[_Shard],
        cores: Sequence[Core],
        topic: str,
        msg: Any,
        now: int,
        since: object,
    ) -> list[int] | None:
        if cores[0].engine.topics.epoch.now is not since and len(holders) < self._count:
            return None
        _require_publishable_locked(cores, topic)  # all, before the first takes it
        return [shard.publish_locked(core, topic, msg, now) for shard, core in zip(holders, cores, strict=True)]

    def _make_room(self, wanted: Callable[[], list[int]]) -> bool:
        """Deal out what is free, so that each of these shards can take so many; False when that had to wait.

        Raises:
            RegistryFull: all shards together have no room for so many.
        """
        if self._together(self._deal_out_locked, wanted) is not NESTED:
            return True
        # This thread is half-way through another operation. Whether there is room shows as the figures stand.
        self._free(self._pending(), sum(wanted()))
        return False

    def _pending(self) -> int:
        return sum(shard.core.engine.pending_as_it_stands() for shard in self._shards)

    def _deal_out_locked(self, cores: Sequence[Core], wanted: Callable[[], list[int]]) -> None:
        pending, more = [core.engine.pending() for core in cores], wanted()
        each, over = divmod(self._free(sum(pending), sum(more)), self._count)
        for index, core in enumerate(cores):
            core.engine.max_pending = pending[index] + more[index] + each + (index < over)

    def _free(self, pending: int, more: int) -> int:
        """How much room is left behind so many `more`; raises when that is less than none."""
        bound = self._max_pending
        assert bound is not None, "a registry without a bound is never full"
        if pending + more > bound:
            raise registry_full(pending, more, bound)
        return bound - pending - more

    def _schedule_later(self, shard: _Shard, cid: str, instance_id: str, delay: int, event: PlainEvent) -> TimerHandle:
        """Within another operation of this thread: accept it when that has been left."""
        self._refuse_if_closed()
        if self._max_pending is not None:
            noted = sum(operation == self._adopt for operation, _ in shard.core.noted())
            self._free(self._pending() + noted, 1)
        timer = Timer.detached(event, Group(cid, instance_id, shard))
        self._later(self._adopt, shard, timer, delay)
        return timer

    def _adopt(self, shard: _Shard, timer: Timer, delay: int) -> None:
        self._together(self._adopt_locked, shard, timer, delay, self._clock())
        shard.wake()

    def _adopt_locked(self, cores: Sequence[Core], shard: _Shard, timer: Timer, delay: int, now: int) -> object:
        if self._max_pending is not None:
            with suppress(RegistryFull):  # the shard has no room either then, and counts the timer as dropped
                self._deal_out_locked(cores, partial(self._one_in, shard))
        return shard.adopt_locked(cores[self._shards.index(shard)], timer, delay, now)

    def _wait(self, timeout: float | None, what: str) -> bool:
        """Wait for one shard after the other; and once more, for what one has meanwhile sent to another."""
        left = _Patience(checked_timeout(timeout))
        since = self._clock()
        if self._delivers_here():
            raise RuntimeError(f"{what}() was called from inside a delivery and would wait for itself. Return first.")
        while True:
            if not all(getattr(shard, what)(left()) for shard in self._shards):
                return False
            idle = self._together(self._is_idle_locked, since, what == "join")
            if idle or left() == 0:
                return bool(idle)

    def _is_idle_locked(self, cores: Sequence[Core], now: int, timers_too: bool) -> bool:
        return all(core.engine.is_idle(now, timers_too=timers_too) for core in cores)

    def _check(self) -> None:
        """Assert every invariant of every shard. For tests, at a moment when nothing runs."""
        for shard in self._shards:
            shard._check()
        if self._max_pending is not None:
            shares = [shard.core.engine.max_pending for shard in self._shards]
            assert sum(shares) == self._max_pending, f"shares {shares} of max_pending={self._max_pending}"


class _Patience:
    """What is left of a timeout, in seconds; None for no bound."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic_ns() + int(timeout * 1e9)

    def __call__(self) -> float | None:
        return None if self._end is None else max(0.0, (self._end - monotonic_ns()) / 1e9)


def _require_publishable_locked(cores: Sequence[Core], topic: str) -> None:
    for core in cores:
        core.engine.require_publishable(topic)


def _sum(snapshots: Sequence[Stats]) -> Stats:
    return Stats(*(sum(getattr(each, field.name) for each in snapshots) for field in fields(Stats)))


def _checked_shards(shards: object) -> int:
    if isinstance(shards, bool) or not isinstance(shards, int):
        raise TypeError(f"shards must be an int, not {shards!r}. Pass a number of shards.")
    if not 1 <= shards <= _MOST_SHARDS:
        raise ValueError(f"shards must be from 1 to {_MOST_SHARDS}, not {shards!r}. Each is a thread; 8 serve well.")
    return shards


def create(
    *,
    shards: int | None = None,
    clock: Callable[[], int] | None = None,
    max_pending: int | None = 1_000_000,
    max_queued: int | None = None,
    on_error: OnError | None = None,
    on_full: OnFull = "drop_oldest",
    slow_dispatch_ms: float | None = None,
) -> Backend:
    """The entry point `sharded`.

    Args:
        shards: how many, from 1 to 1024; by default four more than the machine has processors, without a global
            interpreter lock twice that, and 32 at most.
        clock: monotonic nanoseconds as `int`, advancing in real time; `time.monotonic_ns` by default.
        max_pending: the bound of timers and queued messages together, in all shards; None for none.
        max_queued: how many messages may wait for one conversation, and how many timers; None, the default, for no
            bound. A timer too many raises `RegistryFull`. With a bound `publish` costs its caller O(subscribers), and
            scheduling O(timers of the conversation).
        on_error: called as `on_error(cid, event, exception)` after a delivery failed, by several threads at a time.
        on_full: what gives way to a message too many: the oldest message of the conversation, or, with
            `"end"`, all that the registry holds of it. Logged, and handed to `on_error` with a `RegistryFull`, once
            for each burst, on the thread that publishes.
        slow_dispatch_ms: warn of a delivery that took longer than this; no warning by default.
    """
    return ShardedRegistry(
        shards=shards,
        clock=clock,
        max_pending=max_pending,
        max_queued=max_queued,
        on_error=on_error,
        on_full=on_full,
        slow_dispatch_ms=slow_dispatch_ms,
    )
