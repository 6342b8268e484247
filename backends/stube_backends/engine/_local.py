"""A registry in one process: the twelve operations on one core, whose deliveries a driver runs.

A backend derives from `LocalRegistry` and says in one hook, `_new_driver`, which driver runs its deliveries.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import override

from stube import Backend, ConversationInfo, Dispatch, EventSpec, RegistryFull, Stats, TimerHandle
from stube.arguments import PlainEvent, checked_timeout, delay_in_nanoseconds, plain_event, plain_name
from stube_backends.engine._backlogs import Overflow
from stube_backends.engine._core import REENTRANT, Core, ignore
from stube_backends.engine._driver import Driver, refuse_missing_members
from stube_backends.engine._engine import raise_closed_to_dispatch
from stube_backends.engine._failures import Failures, log
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._options import Options
from stube_backends.engine._order import EARLIEST
from stube_backends.engine._process import register
from stube_backends.engine._timers import Timer


class LocalRegistry(Backend):
    """The twelve operations on one `Core`, and what else a backend has.

    Args:
        options: what the host chose.

    A subclass implements `_new_driver`; one that does not is refused when the class is created.
    """

    capabilities: frozenset[str] = frozenset(
        {"common_topic_order", "fair", "one_instant_snapshot", "by_reference", "fork", "sizes"}
    )

    begins_periodic_timers = True
    """See `stube.PeriodicTimer`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._clock = options.clock
        # Everything that belongs to one life of the registry. Replaced in a forked child only.
        self._driver = self._own(self._new_driver(ignore))
        register(self)

    @override
    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        refuse_missing_members(cls, LocalRegistry, ("_new_driver",))

    def _new_driver(self, dispatch: Dispatch) -> Driver:
        """Make a core on a new engine, and its driver; start nothing.

        Called when the registry is made, and in a forked child.

        Args:
            dispatch: the core's, at first; in a forked child the parent's, which `Driver.prepare` returned there.
        """
        raise NotImplementedError

    # -- the twelve operations ---------------------------------------------------------------------------------

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        driver = self._driver
        prepared = driver.prepare(dispatch)  # first, because a call that is refused must not bind to a loop (G15)
        core = driver.enter()
        if core.engine.closed:
            raise_closed_to_dispatch()
        core.dispatch = prepared

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if flow_id is None:
            raise TypeError("flow_id must not be None, because None means that there is no baton. Pass anything else.")
        core = self._driver.enter()
        replaced = core.engine.put_flow(cid, flow_id)  # one step, and so without the lock
        if replaced is not None and core.is_reentrant():
            core.deferred.release_later(replaced)

    @override
    def pending_flow(self, cid: str, /) -> Any | None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        core = self._driver.enter()
        engine = core.engine
        flow_id = engine.flows.pop(cid, None)  # one step, and so without the lock; exactly one taker (G8)
        if engine.flows_large and not engine.flows:
            core.run_locked(engine.shrink_flows)  # REENTRANT is fine: the next call that empties it will do it
        return flow_id

    @override
    def forget_pending_flow(self, cid: str, /) -> bool:
        return self.pending_flow(cid) is not None

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        # The checks' usual outcomes stand here, because four calls cost 17 % of a schedule.
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if type(instance_id) is not str or not instance_id:
            instance_id = plain_name("instance_id", instance_id)
        plain = event if type(event) is str and event else plain_event(event)
        delay = delay_in_nanoseconds(delay_ms)
        while True:
            driver = self._driver  # in a child that a signal handler forked it is another one than the last time
            core = driver.enter()
            if not core.started:
                driver.start()
            try:
                timer = core.schedule(self, cid, instance_id, delay, plain, self._clock())
            except RegistryFull as exc:
                if not self._make_room(exc):
                    raise
                if not core.is_reentrant():
                    continue
                timer = None
            if timer is None:
                return self._defer_schedule(core, cid, instance_id, delay, plain)
            if timer.due < core.sleep_until:
                driver.wake()
            return timer

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if instance_id is not None:
            instance_id = plain_name("instance_id", instance_id)
        core = self._driver.enter()
        events = core.cancel_timers(cid, instance_id)
        if events is None:
            core.deferred.defer(self._cancel_timers_deferred, cid, instance_id)
            return 0
        if core.waiters:
            self._driver.wake()
        return len(events)

    @override
    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if type(instance_id) is not str or not instance_id:
            instance_id = plain_name("instance_id", instance_id)
        if type(topic) is not str or not topic:
            topic = plain_name("topic", topic)
        plain = event if type(event) is str and event else plain_event(event)
        core = self._driver.enter()
        replaced = core.run_locked(core.engine.subscribe, cid, instance_id, topic, plain)
        if replaced is REENTRANT:
            core.engine.require_open()
            core.deferred.defer(self._subscribe_deferred, cid, instance_id, topic, plain)

    @override
    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        cid = plain_name("cid", cid)
        instance_id = plain_name("instance_id", instance_id)
        if topic is not None:
            topic = plain_name("topic", topic)
        return self._unsubscribe(cid, instance_id, topic)

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._unsubscribe(plain_name("cid", cid), None, None)

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        if type(topic) is not str or not topic:
            topic = plain_name("topic", topic)
        driver = self._driver
        core = driver.enter()
        if not core.started and not (core.mutating and core.held_by_me()):
            if topic not in core.engine.topics.topics and not core.engine.closed:
                return 0  # there is no subscriber to deliver to
            core.run_locked(core.engine.require_publishable, topic)  # a refused publication starts nothing
            driver.start()
        targeted = core.publish(self, topic, msg, self._clock())
        if targeted is None:  # a re-entrant call
            core.engine.require_open()
            core.deferred.defer(self.publish, topic, msg)
            return 0
        if core.engine.backlogs is not None:
            self._report_overflows(core)
        if targeted and core.sleep_until > EARLIEST:
            driver.wake()
        return targeted

    @override
    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        core = self._driver.enter()
        found: dict[str, dict[tuple[str, str], EventSpec]] = self._read(core, core.engine.subscriptions)
        return found

    @override
    def reset_state(self) -> None:
        core = self._driver.enter()
        held = core.run_locked(self._reset_locked, core, core.engine.reset)
        if held is REENTRANT:
            # Clear the batons now, so that batons put after this call survive the deferred reset.
            core.deferred.release_later(core.engine.forget_flows())
            core.deferred.defer(self._reset_deferred)
        elif core.waiters:
            self._driver.wake()

    # -- what else a backend has -------------------------------------------------------------------------------

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        core = self._driver.enter()
        held = core.run_locked(self._reset_locked, core, core.engine.close)
        core.started = False
        if held is REENTRANT:
            core.deferred.release_later(core.engine.refuse())
            core.deferred.defer(self.close, 0)
        if core.is_reentrant():
            timeout = 0.0  # the interrupted operation may hold the lock that the delivery thread needs to end
        del held
        return self._driver.stop(timeout)

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._driver.wait(timeout, timers_too=False)

    @override
    def join(self, timeout: float | None = None) -> bool:
        return self._driver.wait(timeout, timers_too=True)

    def end_conversation(self, cid: str, /) -> None:
        """Cancel the timers of a conversation, remove its subscriptions and forget its baton, in one step.

        What a `Conversation` calls when it ends. O(what the conversation holds).
        """
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        core = self._driver.enter()
        held = core.run_locked(core.end_conversation_locked, cid)
        if held is REENTRANT:
            self.cancel_timers(cid)  # each of these three knows what to defer
            self._unsubscribe(cid, None, None)
            self.pending_flow(cid)
        elif core.waiters:
            self._driver.wake()

    def defer_if_inside(self, call: Callable[[], object], /) -> bool:
        """If this thread is inside an operation of the registry, make a call when that is over; return whether it is.

        For a `Conversation` that must not wait then (G20).
        """
        core = self._driver.core
        if not core.is_reentrant():
            return False
        core.deferred.defer(call)
        return True

    @property
    @override
    def now_ns(self) -> int:
        return self._clock()

    @override
    def stats(self) -> Stats:
        core = self._driver.enter()
        snapshot = core.run_locked(core.engine.stats)
        return core.engine.stats_as_they_stand() if snapshot is REENTRANT else snapshot

    @override
    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        if cid is not None:
            cid = plain_name("cid", cid)
        core = self._driver.enter()
        found: dict[str, ConversationInfo] = self._read(core, inspect, core.engine, cid, self._clock())
        return found

    def sizes(self) -> Mapping[str, int]:
        """Return the length of every internal container, for the suite's leak tests."""
        core = self._driver.enter()
        return {
            **self._read(core, sizes, core.engine),
            "deferred": len(core.deferred.pending()),
            "waiters": len(core.waiters),
            "keepalive": len(core.keepalive),
        }

    @override
    def __repr__(self) -> str:
        core = self._driver.core
        figures = core.engine.ledger
        state = " closed" if core.engine.closed else ""
        return f"<{type(self).__name__}{state}: {figures.timers} timers, {figures.queued} queued>"

    # -- for handles, forks and shards -------------------------------------------------------------------------

    def cancel_timer(self, timer: Timer) -> bool:
        """Cancel one timer, for `Timer.cancel`."""
        core = self._driver.enter()
        event = core.run_locked(self._cancel_locked, core, core.engine.cancel, timer)
        if event is REENTRANT:
            core.deferred.defer(self.cancel_timer, timer)
            return False
        if core.waiters:
            self._driver.wake()
        return event is not None

    def start_anew(self) -> None:
        """In a forked child: become an empty registry with the same options and the same dispatch (G25)."""
        old = self._driver.core
        self._driver = self._own(self._new_driver(old.dispatch))
        if old.engine.closed:
            self._driver.core.engine.refuse()
        old.abandon_after_fork()

    def close_at_exit(self, timeout: float) -> None:
        """When the program ends: stop delivering, and wait so many seconds at most for a delivery that runs (G24)."""
        self.close(timeout)

    def _make_room(self, exc: RegistryFull) -> bool:
        """Return whether there may be room now for a timer that was refused with `exc`. A shard asks its siblings."""
        return False

    def _require_room_for_deferred(self, core: Core) -> None:
        """Refuse one more deferred timer, as far as that is known while another operation is under way."""
        deferred = sum(operation == self._admit_deferred for operation, _ in core.deferred.pending())
        core.engine.require_admission(deferred)

    def _admit_deferred(self, core: Core, timer: Timer, delay: int) -> None:
        core.run_locked(self._admit_locked, core, timer, delay, self._clock())
        self._driver.wake()  # whatever its due instant, because this is rare

    # -- helpers -----------------------------------------------------------------------------------------------

    def _own(self, driver: Driver) -> Driver:
        """Cancel what this driver's core accepts, on behalf of the handles."""
        driver.core.engine.records.owner = weakref.ref(self)
        return driver

    def _defer_schedule(self, core: Core, cid: str, instance_id: str, delay: int, event: PlainEvent) -> Timer:
        """Within another operation of this thread: accept a timer when that operation has released the lock."""
        timer = Timer.pending_admission(core.engine.records, cid, instance_id, event)
        self._require_room_for_deferred(core)
        core.deferred.defer(self._admit_deferred, core, timer, delay)
        return timer

    def _admit_locked(self, core: Core, timer: Timer, delay: int, now: int) -> PlainEvent | None:
        dropped = core.engine.admit(timer, delay, now)
        core.interrupt_at = min(core.interrupt_at, now + delay)
        if core.engine.ledger.timers and not core.keepalive:
            core.keepalive.append(self)
        return dropped

    def _cancel_locked(self, core: Core, cancel: Callable[..., Any], *arguments: Any) -> Any:
        result = cancel(*arguments)
        core.let_go_locked()
        return result

    def _reset_locked(self, core: Core, reset: Callable[[], list[Any]]) -> list[Any]:
        held = reset()
        core.let_go_locked()
        return held

    def _reset_deferred(self) -> None:
        core = self._driver.core
        held = core.run_locked(self._reset_locked, core, core.engine.forget_the_rest)
        if core.waiters:
            self._driver.wake()
        del held

    def _cancel_timers_deferred(self, cid: str, instance_id: str | None) -> None:
        self.cancel_timers(cid, instance_id=instance_id)

    def _subscribe_deferred(self, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        self.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    def _unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> int:
        core = self._driver.enter()
        events = core.run_locked(core.engine.unsubscribe, cid, instance_id, topic)
        if events is REENTRANT:
            core.deferred.defer(self._unsubscribe, cid, instance_id, topic)
            return 0
        return len(events)

    def _read(self, core: Core, read: Callable[..., Any], *arguments: Any) -> Any:
        """Read under the lock; or, when this thread is inside an operation, without it.

        Inside an operation of another core of the group, a third thread may be changing what is read: then once more.
        """
        while (result := core.run_locked(read, *arguments)) is REENTRANT:
            try:
                return read(*arguments)
            except (AttributeError, KeyError, RuntimeError):
                if core.held_by_me():
                    raise
        return result

    def _report_overflows(self, core: Core) -> None:
        """Report what back-pressure removed, once for each burst, and let go of it."""
        overflows = core.run_locked(core.engine.take_overflows)
        if overflows is not REENTRANT:
            for overflow in overflows:
                if overflow.first:
                    self._driver.call_back(self._report_overflow, overflow)

    def _report_overflow(self, overflow: Overflow) -> None:
        assert self._options.limits is not None
        what = "it has been ended" if overflow.ended else "its oldest messages are dropped until nothing waits for it"
        error = RegistryFull(
            f"The conversation {overflow.cid!r} had max_queued={self._options.limits.max_queued} messages waiting when "
            f"another came: {what}. See whether its handler hangs, or raise max_queued."
        )
        log(logging.WARNING, "%s", error)
        Failures(self._options.on_error).notify(overflow.cid, overflow.event, error)

    def _check(self) -> None:
        """Assert every invariant of the engine. For tests, at a moment when nothing runs."""
        core = self._driver.core
        core.run_locked(core.engine._check)
