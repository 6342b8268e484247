"""A registry in one process: the twelve operations, and how what is ready is delivered, on one core.

A backend derives from `LocalRegistry` and adds the part that differs: which lock and clock, who delivers, who waits.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from stube import ConversationEnded, ConversationInfo, Dispatch, Event, EventSpec, RegistryClosed, Stats, TimerHandle
from stube_backends.engine._arguments import (
    PlainEvent,
    checked_dispatch,
    checked_timeout,
    delay_in_nanoseconds,
    name_of,
    plain_event,
    plain_name,
    refuse_result,
)
from stube_backends.engine._core import FOREVER, NESTED, Core, ReentrantLock, ignore
from stube_backends.engine._engine import Engine
from stube_backends.engine._order import EARLIEST, Walk
from stube_backends.engine._timers import Group, Timer

OnError = Callable[[str, Event, BaseException], object]

_logger: Final = logging.getLogger("stube")
_get_ident: Final = threading.get_ident


class LocalRegistry:
    """The twelve operations on one `Core`.

    Args:
        clock: monotonic nanoseconds; never called under the lock.
        new_lock: makes a re-entrant lock.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed, on the delivering thread.
        max_pending: the bound of `timers + queued`; None for none.

    A subclass implements `_start_serving` and `_wake`, and calls `_deliver` where deliveries shall run.
    """

    capabilities: frozenset[str] = frozenset(
        {"common_topic_order", "one_instant_snapshot", "by_reference", "fork", "sizes"}
    )

    # Exceptions that a delivery hands on to whoever called, after they are counted: where that is user code.
    _handed_on: tuple[type[BaseException], ...] = ()

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        new_lock: Callable[[], ReentrantLock],
        on_error: OnError | None,
        max_pending: int | None,
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending!r}. Leave it out, or give None.")
        self._clock = clock
        self._new_lock = new_lock
        self._on_error = on_error
        self._max_pending = max_pending
        self._core = self._new_core(ignore)  # replaced in a forked child only
        _registries.add(self)

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        checked_dispatch(dispatch)
        core = self._core
        if core.engine.closed:
            raise RegistryClosed("The registry is closed, so it delivers nothing any more. Create a new one.")
        core.dispatch = self._wrapped(dispatch)

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if flow_id is None:
            raise TypeError("flow_id must not be None, for None means that there is no baton. Pass anything else.")
        core = self._core
        replaced = core.exclusively(core.engine.put_flow, cid, flow_id)
        if replaced is NESTED:
            self._refuse_if_closed(core)
            core.later(self.put_pending_flow, cid, flow_id)

    def pending_flow(self, cid: str, /) -> Any | None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        core = self._core
        engine = core.engine
        flow_id = engine.flows.pop(cid, None)  # atomic, and so without the lock
        if flow_id is not None and engine.flows_to_shrink:
            core.exclusively(engine.shrink_flows)  # NESTED is fine: the next one to empty it will do it
        return flow_id

    def forget_pending_flow(self, cid: str, /) -> bool:
        return self.pending_flow(cid) is not None

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if type(instance_id) is not str or not instance_id:
            instance_id = plain_name("instance_id", instance_id)
        plain = event if type(event) is str and event else plain_event(event)
        delay = delay_in_nanoseconds(delay_ms)
        core = self._core
        if not core.serving:
            self._start_serving(core)
        now = self._clock()
        # `Core.exclusively`, written out (0.2 us of 1.2); the comments stand there.
        entered = False
        try:
            core.acquire()
            if core.busy:
                core.release()
                return self._schedule_later(core, cid, instance_id, delay, plain)
            core.busy = entered = True
            timer = core.engine.schedule(self, cid, instance_id, delay, plain, now)
            if not core.anchor:
                core.anchor.append(self)
            core.busy = False
        except BaseException:
            core.recover(entered)
            raise
        core.release()
        if core.deferred:
            core.catch_up()
        if timer.due < core.sleep_until:
            self._wake(core)
        return timer

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if instance_id is not None:
            instance_id = plain_name("instance_id", instance_id)
        core = self._core
        events = core.exclusively(self._cancel_locked, core, core.engine.cancel_timers, cid, instance_id)
        if events is NESTED:
            core.later(self._cancel_timers_later, cid, instance_id)
            return 0
        if core.waiters:
            self._wake(core)
        return len(events)

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        if type(instance_id) is not str or not instance_id:
            instance_id = plain_name("instance_id", instance_id)
        if type(topic) is not str or not topic:
            topic = plain_name("topic", topic)
        plain = event if type(event) is str and event else plain_event(event)
        core = self._core
        replaced = core.exclusively(core.engine.subscribe, cid, instance_id, topic, plain)
        if replaced is NESTED:
            self._refuse_if_closed(core)
            core.later(self._subscribe_later, cid, instance_id, topic, plain)

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        cid = plain_name("cid", cid)
        instance_id = plain_name("instance_id", instance_id)
        if topic is not None:
            topic = plain_name("topic", topic)
        return self._unsubscribe(cid, instance_id, topic)

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._unsubscribe(plain_name("cid", cid), None, None)

    def publish(self, topic: str, msg: Any, /) -> int:
        if type(topic) is not str or not topic:
            topic = plain_name("topic", topic)
        core = self._core
        if not core.serving:
            if topic not in core.engine.topics.topics and not core.engine.closed:
                return 0  # nobody to serve yet
            self._start_serving(core)
        now = self._clock()
        entered = False
        try:
            core.acquire()
            if core.busy:
                core.release()
                self._refuse_if_closed(core)
                core.later(self.publish, topic, msg)
                return 0
            core.busy = entered = True
            targeted = core.engine.publish(topic, msg, now)
            if targeted and not core.anchor:
                core.anchor.append(self)
            core.busy = False
        except BaseException:
            core.recover(entered)
            raise
        core.release()
        if core.deferred:
            core.catch_up()
        if targeted and core.sleep_until > EARLIEST:
            self._wake(core)
        return targeted

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        core = self._core
        found: dict[str, dict[tuple[str, str], EventSpec]] = self._look(core, core.engine.subscriptions)
        return found

    def reset_state(self) -> None:
        core = self._core
        held = core.exclusively(self._reset_locked, core, core.engine.reset)
        if held is NESTED:
            core.later(self.reset_state)
        elif core.waiters:
            self._wake(core)

    # -- what else a backend has -------------------------------------------------------------------------------

    def close(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        core = self._core
        held = core.exclusively(self._reset_locked, core, core.engine.close)
        core.serving = False
        if held is NESTED:
            core.engine.closed = True
            core.later(self.close, 0)
            timeout = 0.0
        del held
        return self._stop_serving(core, timeout)

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

    def stats(self) -> Stats:
        core = self._core
        snapshot = core.exclusively(core.engine.stats)
        return core.engine.stats_as_they_stand() if snapshot is NESTED else snapshot

    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        if cid is not None:
            cid = plain_name("cid", cid)
        core = self._core
        found: dict[str, ConversationInfo] = self._look(core, core.engine.inspect, cid, self._clock())
        return found

    def sizes(self) -> Mapping[str, int]:
        """The length of every internal container, for the suite's leak tests."""
        core = self._core
        return {
            **self._look(core, core.engine.sizes),
            "deferred": sum(map(len, core.deferred.values())),
            "waiters": len(core.waiters),
            "anchor": len(core.anchor),
        }

    def __repr__(self) -> str:
        core = self._core
        figures = core.engine.ledger
        state = " closed" if core.engine.closed else ""
        return f"<{type(self).__name__}{state}: {figures.timers} timers, {figures.queued} queued>"

    # -- for the subclass --------------------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> Core:
        return Core(self._new_lock(), Engine(self._max_pending), dispatch)

    def _start_serving(self, core: Core) -> None:
        """See that what is accepted will be delivered, or raise and change nothing; sets `core.serving`."""
        raise NotImplementedError

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        """After a close: end whoever delivers; whether everything has stopped."""
        raise NotImplementedError

    def _wake(self, core: Core) -> None:
        """Make whoever delivers look again."""
        raise NotImplementedError

    def _wrapped(self, dispatch: Dispatch) -> Dispatch:
        """What to call for a delivery, made of what the host installed."""
        return dispatch

    def _refuse_if_closed(self, core: Core) -> None:
        if core.engine.closed:
            raise RegistryClosed("The registry is closed, so nothing can be added to it. Create a new one.")

    def _refuse_inside_delivery(self, core: Core, what: str) -> None:
        if core.deliverer == _get_ident():
            raise RuntimeError(f"{what}() was called from inside a delivery, which would wait for itself. Return first.")

    # -- delivering --------------------------------------------------------------------------------------------

    def _deliver(self, core: Core, now: int) -> int:
        """Deliver what is ready at `now`, in the ready order, and what becomes ready meanwhile before it; how many.

        Runs without the lock, but for one turn of it per timer and per publication. One thread at a time.
        """
        count = 0
        failed: bool | None = None  # the fate of the timer that ran last, counted in the next turn
        core.deliverer = _get_ident()
        try:
            while self._core is core:  # in a child forked by a handler it is not, and the batch is the parent's
                entered = False
                try:  # `Core.exclusively`, written out (0.15 us of 0.6); never nested, for this is no operation
                    core.acquire()
                    core.busy = entered = True
                    work = core.engine.begin(now, failed)
                    failed = None
                    if work is None:
                        self._nothing_ready_locked(core, now)
                    core.busy = False
                except BaseException:
                    core.recover(entered)
                    raise
                core.release()
                if core.deferred:
                    core.catch_up()
                if work is None:
                    break
                count += 1
                if type(work) is not Timer:
                    count += self._deliver_walk(core, work) - 1  # type: ignore[arg-type]
                    del work
                    continue
                cid = work.group.cid  # type: ignore[union-attr]  # a claimed timer has its group and its event
                event = _event_of(work)
                failed = False  # unless the next lines say otherwise
                try:
                    result = core.dispatch(cid, event)
                    if result is not None:
                        refuse_result(result)
                except BaseException as exc:
                    failed, handed_on = self._judge(cid, event, exc)
                    if handed_on is not None:
                        raise handed_on from None
                del work, event  # nothing that was delivered stays alive until the next delivery
        except BaseException:
            if failed is not None and self._core is core:
                core.exclusively(core.engine.finish_timer, failed)
            raise
        finally:
            core.deliverer = None
        return count

    def _nothing_ready_locked(self, core: Core, now: int) -> None:
        """Decide how long to sleep, under the same lock as the look that found nothing: whatever is added from now
        on finds `sleep_until` set (race: a schedule between the decision to sleep and the sleep)."""
        instant = core.engine.order.next_instant()
        core.sleep_until = FOREVER if instant is None else min(instant, FOREVER)
        if instant is None:
            core.anchor.clear()
        if core.waiters:
            self._release_waiters_locked(core, now)

    def _deliver_walk(self, core: Core, walk: Walk) -> int:
        """Deliver a publication that was begun to its targets; to how many.

        The loop that must be fast: one `try` around the whole walk, which goes on behind a target that raised, and
        one event for neighbours that want it under the same name (5 million deliveries a second, 4 with an event
        each).
        """
        message = walk.message
        iterator = walk.iterator
        delivered = cancelled = failed = 0
        instance_id = name = event = None
        while True:
            try:
                for target in iterator:
                    target_name = target.name
                    if target_name is None:
                        cancelled += 1
                        continue
                    if target_name is not name or target.instance_id is not instance_id:
                        name, instance_id = target_name, target.instance_id
                        event = Event(instance_id, name, message)
                    result = core.dispatch(target.cid, event)  # type: ignore[arg-type]
                    if result is not None:
                        refuse_result(result)
                    delivered += 1
            except BaseException as exc:
                has_failed, handed_on = self._judge(target.cid, event, exc)  # type: ignore[arg-type]
                failed += has_failed
                delivered += not has_failed
                if handed_on is None:
                    continue
                core.exclusively(core.engine.finish_walk, walk, delivered, cancelled, failed)
                raise handed_on from None
            break
        if self._core is core:
            core.exclusively(core.engine.finish_walk, walk, delivered, cancelled, failed)
        return delivered + failed

    def _judge(self, cid: str, event: Event, exc: BaseException) -> tuple[bool, BaseException | None]:
        """What an exception that left a delivery means: whether the delivery failed, and what to hand on."""
        if isinstance(exc, ConversationEnded):
            _logger.debug("conversation %r ended during the delivery of %r", cid, event.name)
            return False, None
        handed_on = exc if isinstance(exc, self._handed_on) else None
        try:
            _logger.error(
                "the delivery of %r to instance %r of conversation %r failed",
                event.name,
                event.instance_id,
                cid,
                exc_info=exc,
            )
        except BaseException as second:  # noqa: BLE001 - a log handler that raises stops nothing
            handed_on = handed_on or (second if isinstance(second, self._handed_on) else None)
        if self._on_error is not None:
            try:
                self._on_error(cid, event, exc)
            except BaseException as second:  # noqa: BLE001 - nor does an on_error that raises
                handed_on = handed_on or (second if isinstance(second, self._handed_on) else None)
        return True, handed_on

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait_until_idle(self, core: Core, timeout: float | None, *, timers_too: bool) -> bool:
        """Block until whoever delivers finds the registry idle, or `timeout` seconds have passed."""
        waiter = self._new_lock_for_waiting()
        entry = (timers_too, waiter)
        idle = core.exclusively(self._enlist_locked, core, entry, self._clock())
        if idle is NESTED:
            raise RuntimeError(
                "A registry cannot be waited for from within one of its own operations, which stands still meanwhile. "
                "Let the signal handler or the finalizer return first."
            )
        if idle:
            return True
        self._wake(core)
        try:
            return bool(waiter.acquire(timeout=-1 if timeout is None else timeout))
        finally:
            core.exclusively(self._delist_locked, core, entry)

    def _new_lock_for_waiting(self) -> threading.Lock:
        waiter = threading.Lock()
        waiter.acquire()
        return waiter

    def _enlist_locked(self, core: Core, entry: tuple[bool, Any], now: int) -> bool:
        if core.engine.is_idle(now, timers_too=entry[0]):
            return True
        core.waiters.append(entry)
        return False

    def _delist_locked(self, core: Core, entry: tuple[bool, Any]) -> None:
        if entry in core.waiters:
            core.waiters.remove(entry)

    def _release_waiters_locked(self, core: Core, now: int) -> None:
        for entry in core.waiters.copy():
            if core.engine.is_idle(now, timers_too=entry[0]):
                core.waiters.remove(entry)
                entry[1].release()

    # -- helpers -----------------------------------------------------------------------------------------------

    def _cancel_locked(self, core: Core, cancel: Callable[..., Any], *arguments: Any) -> Any:
        result = cancel(*arguments)
        if not core.engine.ledger.timers and not core.engine.ledger.queued:
            core.anchor.clear()
        return result

    def _reset_locked(self, core: Core, reset: Callable[[], list[Any]]) -> list[Any]:
        held = reset()
        core.anchor.clear()
        return held

    def cancel_timer(self, timer: Timer) -> bool:
        """For `Timer.cancel`."""
        core = self._core
        event = core.exclusively(self._cancel_locked, core, core.engine.cancel, timer)
        if event is NESTED:
            core.later(self.cancel_timer, timer)
            return False
        if core.waiters:
            self._wake(core)
        return event is not None

    def _cancel_timers_later(self, cid: str, instance_id: str | None) -> None:
        self.cancel_timers(cid, instance_id=instance_id)

    def _subscribe_later(self, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        self.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    def _unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> int:
        core = self._core
        events = core.exclusively(core.engine.unsubscribe, cid, instance_id, topic)
        if events is NESTED:
            core.later(self._unsubscribe, cid, instance_id, topic)
            return 0
        return len(events)

    def _schedule_later(self, core: Core, cid: str, instance_id: str, delay: int, event: PlainEvent) -> Timer:
        core.engine.require_adoption(sum(map(len, core.deferred.values())))
        timer = Timer.detached(event, Group(cid, instance_id, self))
        core.later(self._adopt, core, timer, delay)
        return timer

    def _adopt(self, core: Core, timer: Timer, delay: int) -> None:
        core.exclusively(core.engine.adopt, timer, delay, self._clock())
        core.exclusively(self._anchor_locked, core)
        self._wake(core)  # whatever its due instant: nobody waits for this

    def _anchor_locked(self, core: Core) -> None:
        if core.engine.ledger.timers and not core.anchor:
            core.anchor.append(self)

    def _look(self, core: Core, read: Callable[..., Any], *arguments: Any) -> Any:
        """Read under the lock; or, when this thread is half-way through an operation, as things stand."""
        result = core.exclusively(read, *arguments)
        return read(*arguments) if result is NESTED else result

    def _start_anew(self) -> None:
        """In a forked child: an empty registry with the same options and the same dispatch."""
        old = self._core
        self._core = self._new_core(old.dispatch)
        self._core.engine.closed = old.engine.closed
        old.retire(self._new_lock())

    def _check(self) -> None:
        """Assert every invariant of the engine. For tests, at a moment when nothing runs."""
        self._core.exclusively(self._core.engine._check)


def _event_of(timer: Timer) -> Event:
    """The event of a claimed timer, which from now on keeps nothing alive."""
    instance_id = timer.group.instance_id  # type: ignore[union-attr]
    spec: PlainEvent = timer.event  # type: ignore[assignment]
    timer.event = timer.group = None
    if type(spec) is str:
        return Event(instance_id, spec)
    if len(spec) == 1:
        return Event(instance_id, spec[0])
    return Event(instance_id, spec[0], spec[1] if len(spec) == 2 else spec[1:])


_registries: weakref.WeakSet[LocalRegistry] = weakref.WeakSet()


def _start_all_anew() -> None:
    for registry in list(_registries):
        registry._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
