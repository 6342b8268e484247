"""The registry `sharded`: which shards an operation concerns, and how it is atomic across several."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from typing_extensions import override

from stube import Backend, ConversationInfo, Dispatch, EventSpec, RegistryFull, Stats, TimerHandle, monotonic_ns
from stube.arguments import checked_timeout, plain_name
from stube_backends.engine import Core, LocalRegistry, OnError, OnFull, Options, refuse_inside
from stube_backends.engine._core import REENTRANT, ShardGroup, run_all_locked
from stube_backends.engine._engine import raise_closed_to_dispatch
from stube_backends.sharded._room import Room, share_of
from stube_backends.sharded._shard import Shard

_MOST_SHARDS: Final = 1024  # each is a thread
_OPTIMISTIC_ATTEMPTS: Final = 3  # to find the shards that hold a topic without locking all of them


class ShardedRegistry(Backend):
    """A fixed tuple of shards. The entry point `sharded`.

    Args:
        shards: how many, from 1 to 1024; by default four more than the machine has processors, without a global
            interpreter lock twice that, and 32 at most.
        clock, max_pending, max_queued, on_error, on_full: see `stube_backends.engine.Options`; `max_pending` bounds all
            shards together, and several threads may call `on_error` at the same time.
        slow_dispatch_ms: log a warning about a delivery that took longer than this; no warning by default.

    >>> registry = ShardedRegistry(shards=2)
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    capabilities: frozenset[str] = (LocalRegistry.capabilities | {"own_clock"}) - {
        "common_topic_order",
        "one_instant_snapshot",
    }
    begins_periodic_timers = True

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
        options = Options.checked(
            clock=clock, max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full
        )
        self._clock = options.clock
        self._count = number
        group = ShardGroup()
        self._shards = tuple(
            Shard(index, group, share_of(max_pending, number, index), options, slow_dispatch_ms)
            for index in range(number)
        )
        self._room = Room(max_pending, self._shards)
        for shard in self._shards:
            shard.share_room(self._room)

    # -- the twelve operations ---------------------------------------------------------------------------------

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        prepared = [shard.prepare(dispatch) for shard in self._shards]
        if self._run_all_locked(self._install_locked, prepared) is REENTRANT:
            self._require_open()
            self._defer(self.install_dispatch, dispatch)

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        self._shard_of(cid).put_pending_flow(cid, flow_id)

    @override
    def pending_flow(self, cid: str, /) -> Any | None:
        return self._shard_of(cid).pending_flow(cid)

    @override
    def forget_pending_flow(self, cid: str, /) -> bool:
        return self._shard_of(cid).forget_pending_flow(cid)

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        # The lines of `_shard_of` stand here too: its call is 2 % of a schedule, which may cost at most a quarter more
        # than that of `memory`.
        if type(cid) is not str:
            cid = plain_name("cid", cid)
        shard = self._shards[hash(cid) % self._count]
        return shard.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return self._shard_of(cid).cancel_timers(cid, instance_id=instance_id)

    @override
    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        self._shard_of(cid).subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    @override
    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        return self._shard_of(cid).unsubscribe(cid=cid, instance_id=instance_id, topic=topic)

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._shard_of(cid).remove_subscriptions_for_cid(cid)

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        topic = plain_name("topic", topic)
        core = self._shards[0].core
        if core.deferred and core.is_reentrant():  # behind a subscription that this thread has only deferred
            self._require_open()
            self._defer(self.publish, topic, msg)
            return 0
        # The shards found while the generation does not change are all that hold the topic. So a publication that still
        # finds it unchanged under their locks reaches all subscribers of that instant, though it has not locked the
        # other shards (G16).
        generation = core.engine.topics.generation
        attempts = 0
        while True:
            attempts += 1
            since = generation.token
            holders: Sequence[Shard] = self._shards  # after three attempts lock all shards
            if attempts <= _OPTIMISTIC_ATTEMPTS:
                holders = [shard for shard in holders if topic in shard.core.engine.topics.topics]
            if not holders and generation.token is since:
                self._require_open()
                return 0
            targeted, full = None, False
            try:
                if holders:
                    targeted = self._publish_to(holders, topic, msg, since)
            except RegistryFull:
                full = True  # a shard's share is used up
            if targeted is not None:
                return targeted
            if full and not self._room.make(lambda: self._live_in(topic)):
                self._defer(self.publish, topic, msg)
                return 0

    @override
    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        found: dict[str, dict[tuple[str, str], EventSpec]] = {}
        for shard in self._shards:
            for topic, subscribers in shard.subscriptions().items():
                found.setdefault(topic, {}).update(subscribers)
        return found

    @override
    def reset_state(self) -> None:
        if self._run_all_locked(self._all_locked, Shard.drop_in_progress_locked, Shard.reset_locked) is REENTRANT:
            # Clear the batons now, so that batons put after this call survive the deferred reset.
            for shard in self._shards:
                shard.core.deferred.release_later(shard.core.engine.forget_flows())
            self._defer(self._reset_deferred)
        self._wake_for_waiters()

    # -- what else a backend has -------------------------------------------------------------------------------

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        held = self._run_all_locked(
            self._all_locked, Shard.drop_in_progress_locked, Shard.forget_locked, Shard.close_locked
        )
        if held is REENTRANT:
            for shard in self._shards:
                shard.core.deferred.release_later(shard.core.engine.refuse())
            self._defer(self.close, 0)
        if held is REENTRANT or self._delivers_here():
            timeout = 0.0
        del held
        left = _Deadline(timeout)
        for shard in self._shards:
            shard.stop(0.0)  # tell all of them before waiting for one
        return all(shard.stop(left()) for shard in self._shards)

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False)

    @override
    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True)

    def end_conversation(self, cid: str, /) -> None:
        """See `LocalRegistry.end_conversation`."""
        self._shard_of(cid).end_conversation(cid)

    def defer_if_inside(self, call: Callable[[], object], /) -> bool:
        """See `LocalRegistry.defer_if_inside`."""
        return self._shards[0].defer_if_inside(call)  # which share what is deferred

    @property
    @override
    def now_ns(self) -> int:
        return self._clock()

    @override
    def stats(self) -> Stats:
        return _sum([shard.stats() for shard in self._shards])

    @override
    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        if cid is not None:
            return self._shard_of(cid).inspect(cid)
        found: dict[str, ConversationInfo] = {}
        for shard in self._shards:
            found |= shard.inspect()
        return dict(sorted(found.items()))

    def sizes(self) -> Mapping[str, int]:
        """Return the length of every internal container, all shards together, for the suite's leak tests."""
        total: dict[str, int] = {}
        for shard in self._shards:
            for name, size in shard.sizes().items():
                total[name] = total.get(name, 0) + size
        total["deferred"] //= self._count  # one container, which each of them counts
        return total

    @override
    def __repr__(self) -> str:
        engines = [shard.core.engine for shard in self._shards]
        timers, queued = (sum(getattr(engine.ledger, name) for engine in engines) for name in ("timers", "queued"))
        state = " closed" if engines[0].closed else ""
        return f"<ShardedRegistry{state}: {self._count} shards, {timers} timers, {queued} queued>"

    # -- helpers -----------------------------------------------------------------------------------------------

    def _shard_of(self, cid: str) -> Shard:
        if type(cid) is not str:
            cid = plain_name("cid", cid)
        return self._shards[hash(cid) % self._count]

    def _delivers_here(self) -> bool:
        return any(shard.delivers_here() for shard in self._shards)

    def _require_open(self) -> None:
        self._shards[0].core.engine.require_open()

    def _run_all_locked(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Run `operation(cores, *arguments)` while no other thread runs one on any shard, or REENTRANT."""
        cores = self._room.cores()
        return run_all_locked(cores, operation, cores, *arguments)

    def _all_locked(self, cores: Sequence[Core], *steps: Callable[[Shard, Core], list[Any]]) -> list[Any]:
        """Do one step on all shards before the next, so that no shard is ever more than one step ahead of
        another for a reader without the locks."""
        return [[step(shard, core) for shard, core in zip(self._shards, cores, strict=True)] for step in steps]

    def _install_locked(self, cores: Sequence[Core], prepared: Sequence[Dispatch]) -> list[Dispatch]:
        """Return what was installed before, for the caller to release."""
        if cores[0].engine.closed:
            raise_closed_to_dispatch()
        return [
            shard.install_locked(core, dispatch)
            for shard, core, dispatch in zip(self._shards, cores, prepared, strict=True)
        ]

    def _reset_deferred(self) -> None:
        self._run_all_locked(self._all_locked, Shard.drop_in_progress_locked, Shard.forget_locked)
        self._wake_for_waiters()

    def _wake_for_waiters(self) -> None:
        for shard in self._shards:
            if shard.core.waiters:
                shard.wake_and_report()

    def _live_in(self, topic: str) -> list[int]:
        """See `Wanted`: the subscribers of a topic."""
        return [core.engine.topics.live(topic) for core in self._room.cores()]

    def _defer(self, operation: Callable[..., object], *arguments: Any) -> None:
        self._shards[0].core.deferred.defer(operation, *arguments)

    def _publish_to(self, holders: Sequence[Shard], topic: str, msg: Any, since: object) -> int | None:
        """Publish to these shards: all of them accept the message, or none. None when they may not be all that hold
        the topic."""
        cores = [shard.core for shard in holders]
        if not all(core.started for core in cores):
            run_all_locked(cores, _require_publishable_locked, cores, topic)  # a refused publication starts nothing
            for shard, core in zip(holders, cores, strict=True):
                shard.ensure_started(core)
        now = self._clock()
        targeted = run_all_locked(cores, self._publish_locked, holders, cores, topic, msg, now, since)
        if targeted is REENTRANT:
            self._defer(self.publish, topic, msg)
            return 0
        if targeted is None:
            return None
        for shard in holders:
            shard.wake_and_report()
        return int(sum(targeted))

    def _publish_locked(
        self,
        holders: Sequence[Shard],
        cores: Sequence[Core],
        topic: str,
        msg: Any,
        now: int,
        since: object,
    ) -> list[int] | None:
        if cores[0].engine.topics.generation.token is not since and len(holders) < self._count:
            return None
        _require_publishable_locked(cores, topic)  # all, before the first takes it
        return [shard.publish_locked(core, topic, msg, now) for shard, core in zip(holders, cores, strict=True)]

    def _wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        """Wait for one shard after the other; and once more, for what one has sent to another in the meantime."""
        left = _Deadline(checked_timeout(timeout))
        since = self._clock()
        if self._delivers_here():
            refuse_inside("join" if timers_too else "settle")
        while True:
            for shard in self._shards:
                if not (shard.join(left()) if timers_too else shard.settle(left())):
                    return False
            idle = self._run_all_locked(self._is_idle_locked, since, timers_too)
            if idle or left() == 0:
                return bool(idle)

    def _is_idle_locked(self, cores: Sequence[Core], now: int, timers_too: bool) -> bool:
        return all(core.engine.is_idle(now, timers_too=timers_too) for core in cores)

    def _check(self) -> None:
        """Assert every invariant of every shard. For tests, at a moment when nothing runs."""
        for shard in self._shards:
            shard._check()
        self._room._check()


class _Deadline:
    """The seconds that are left of a timeout; None for no bound."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic_ns() + int(timeout * 1e9)

    def __call__(self) -> float | None:
        return None if self._end is None else max(0.0, (self._end - monotonic_ns()) / 1e9)


def _require_publishable_locked(cores: Sequence[Core], topic: str) -> None:
    for core in cores:
        core.engine.require_publishable(topic)


def _sum(snapshots: Sequence[Stats]) -> Stats:
    return Stats(*(sum(getattr(each, field.name) for each in snapshots) for field in fields(Stats)))


def _default_shards() -> int:
    """Return as many as a thread pool has workers by default, because handlers wait more than they compute. Twice as
    many without a global interpreter lock, where callers at work meet in a shard (8 of them on 2 processors: 1.36 times
    the rate of `memory`, and 1.29 with half the shards)."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return min(32, ((os.cpu_count() or 1) + 4) * (1 if has_gil else 2))


def _checked_shards(shards: object) -> int:
    if isinstance(shards, bool) or not isinstance(shards, int):
        raise TypeError(f"shards must be an int, not {shards!r}. Pass a number of shards.")
    if not 1 <= shards <= _MOST_SHARDS:
        raise ValueError(f"shards must be from 1 to {_MOST_SHARDS}, not {shards!r}. Each is a thread; 8 serve well.")
    return shards
