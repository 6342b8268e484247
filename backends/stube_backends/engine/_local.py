"""A registry in one process: the twelve operations on one core.

A backend derives from `LocalRegistry` and adds the part that differs: which lock and clock, who delivers, who waits.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from math import ceil
from types import TracebackType
from typing import Any, Self

from stube import ConversationInfo, Dispatch, EventSpec, RegistryClosed, RegistryFull, Stats, TimerHandle
from stube_backends.engine._arguments import (
    PlainEvent,
    checked_dispatch,
    checked_timeout,
    delay_in_nanoseconds,
    plain_event,
    plain_name,
)
from stube_backends.engine._backlogs import Limits, Overflow
from stube_backends.engine._core import NESTED, Core, ReentrantLock, ignore, log
from stube_backends.engine._delivery import Deliverer, OnError
from stube_backends.engine._engine import Engine, raise_closed
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._order import EARLIEST
from stube_backends.engine._timers import Group, Timer


class LocalRegistry(Deliverer):
    """The twelve operations on one `Core`.

    Args:
        clock: monotonic nanoseconds; never called under the lock.
        new_lock: makes a re-entrant lock.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed, on the delivering thread.
        max_pending: the bound of `timers + queued`; None for none.
        limits: of each conversation; None for none.

    A subclass implements `_start_serving` and `_wake`, and calls `_deliver` where deliveries shall run.
    """

    capabilities: frozenset[str] = frozenset(
        {"common_topic_order", "one_instant_snapshot", "by_reference", "fork", "sizes"}
    )

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        new_lock: Callable[[], ReentrantLock],
        on_error: OnError | None,
        max_pending: int | None,
        limits: Limits | None = None,
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending!r}. Leave it out, or give None.")
        self._clock = clock
        self._new_lock = new_lock
        self._on_error = on_error
        self._max_pending = max_pending
        self._limits = limits
        self._core = self._new_core(self._wrapped(ignore))  # replaced in a forked child only
        _registries.add(weakref.ref(self, _registries.discard))

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        self._check_dispatch(dispatch)
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
        replaced = core.engine.put_flow(cid, flow_id)  # one step, and so without the lock
        if replaced is not None and core.nested():
            core.drop_later(replaced)

    def pending_flow(self, cid: str, /) -> Any | None:
        if type(cid) is not str or not cid:
            cid = plain_name("cid", cid)
        core = self._core
        engine = core.engine
        flow_id = engine.flows.pop(cid, None)  # one step, and so without the lock; exactly one taker (G8)
        if engine.flows_large and not engine.flows:
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
        if type(delay_ms) is float and 1e-3 < delay_ms < 1e9:  # `delay_in_nanoseconds`, written out (0.05 us of 1.2)
            delay = ceil(delay_ms * 1e6)
            if delay / 1e6 < delay_ms:
                delay += 1
        else:
            delay = delay_in_nanoseconds(delay_ms)
        core = self._core
        if not core.serving:
            self._start_serving(core)
        now = self._clock()
        # `Core.exclusively`, written out (0.2 us of 1.2); the comments stand there.
        if core.busy and core.owned():
            return self._schedule_later(core, cid, instance_id, delay, plain)
        try:
            timer = None
            if core.acquire():
                core.busy = True
                timer = core.engine.schedule(self, cid, instance_id, delay, plain, now)
                if not core.anchor:
                    core.anchor.append(self)
                core.busy = False
                core.release()
        except BaseException as exc:
            core.recover(exc)
            raise
        if timer is None:  # what this may raise is no reason to release a lock that an interrupted operation holds
            return self._schedule_later(core, cid, instance_id, delay, plain)
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
        if core.busy and core.owned():  # asked first: who subscribed within the same operation is only noted as well
            self._refuse_if_closed(core)
            core.later(self.publish, topic, msg)
            return 0
        if not core.serving:
            if topic not in core.engine.topics.topics and not core.engine.closed:
                return 0  # nobody to serve yet
            core.exclusively(core.engine.require_publishable, topic)  # what is refused starts nobody
            self._start_serving(core)
        now = self._clock()
        try:
            if not core.acquire():
                core.later(self.publish, topic, msg)
                return 0
            core.busy = True
            targeted = core.engine.publish(topic, msg, now)
            if targeted and not core.anchor:
                core.anchor.append(self)
            core.busy = False
            core.release()
        except BaseException as exc:
            core.recover(exc)
            raise
        if core.deferred:
            core.catch_up()
        if core.engine.backlogs is not None:
            self._tell_overflows(core)
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
        if held is NESTED:  # the batons go at once, as they come: those that are put from now on must stay
            core.drop_later(core.engine.forget_flows())
            core.later(self._reset_later)
        elif core.waiters:
            self._wake(core)

    # -- what else a backend has -------------------------------------------------------------------------------

    def close(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        core = self._core
        held = core.exclusively(self._reset_locked, core, core.engine.close)
        core.serving = False
        if held is NESTED:
            core.drop_later(core.engine.refuse())
            core.later(self.close, 0)
        if core.nested():
            timeout = 0.0  # what this call interrupts may hold the lock that the deliverer needs to end
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
        found: dict[str, ConversationInfo] = self._look(core, inspect, core.engine, cid, self._clock())
        return found

    def sizes(self) -> Mapping[str, int]:
        """The length of every internal container, for the suite's leak tests."""
        core = self._core
        return {
            **self._look(core, sizes, core.engine),
            "deferred": len(core.noted()),
            "waiters": len(core.waiters),
            "anchor": len(core.anchor),
        }

    def __repr__(self) -> str:
        core = self._core_as_it_is()
        figures = core.engine.ledger
        state = " closed" if core.engine.closed else ""
        return f"<{type(self).__name__}{state}: {figures.timers} timers, {figures.queued} queued>"

    # -- for the subclass --------------------------------------------------------------------------------------

    def _new_core(self, dispatch: Dispatch) -> Core:
        return Core(self._new_lock(), Engine(self._max_pending, limits=self._limits), dispatch)

    def _start_serving(self, core: Core) -> None:
        """See that what is accepted will be delivered, or raise and change nothing; sets `core.serving`."""
        raise NotImplementedError

    def _stop_serving(self, core: Core, timeout: float | None) -> bool:
        """After a close: end whoever delivers; whether everything has stopped."""
        raise NotImplementedError

    def _core_as_it_is(self) -> Core:
        """The core, for what is no operation; where an operation does more than read it, see there."""
        return self._core

    def _check_dispatch(self, dispatch: Callable[..., Any]) -> None:
        """Refuse what cannot be called for a delivery."""
        checked_dispatch(dispatch)

    def _wrapped(self, dispatch: Dispatch) -> Dispatch:
        """What to call for a delivery, made of what the host installed."""
        return dispatch

    def _refuse_if_closed(self, core: Core) -> None:
        if core.engine.closed:
            raise_closed()

    # -- helpers -----------------------------------------------------------------------------------------------

    def _tell_overflows(self, core: Core) -> None:
        """Tell of what gave way, once for each burst, and let go of it."""
        overflows = core.exclusively(core.engine.take_overflows)
        if overflows is not NESTED:
            for overflow in overflows:
                if overflow.first:
                    self._tell_overflow(overflow)

    def _tell_overflow(self, overflow: Overflow) -> None:
        assert self._limits is not None
        cid, event = overflow.cid, overflow.event
        what = "it has been ended" if overflow.ended else "its oldest messages are dropped until nothing waits for it"
        error = RegistryFull(
            f"The conversation {cid!r} had max_queued={self._limits.max_queued} messages waiting when another came: "
            f"{what}. See whether its handler hangs, or raise max_queued."
        )
        log(logging.WARNING, "%s", error)
        if self._on_error is not None:
            try:
                self._on_error(cid, event, error)
            except BaseException:  # noqa: BLE001 - it stops nothing (G19)
                pass

    def _cancel_locked(self, core: Core, cancel: Callable[..., Any], *arguments: Any) -> Any:
        result = cancel(*arguments)
        self._let_go_locked(core)
        return result

    def _let_go_locked(self, core: Core) -> None:
        """With nothing pending any more, the registry may be collected."""
        if not core.engine.ledger.timers and not core.engine.ledger.queued:
            core.anchor.clear()

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

    def _reset_later(self) -> None:
        core = self._core
        held = core.exclusively(self._reset_locked, core, core.engine.forget_the_rest)
        if core.waiters:
            self._wake(core)
        del held

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
        noted = sum(operation == self._adopt for operation, _ in core.noted())
        core.engine.require_adoption(noted)
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
        """Read under the lock; or, when this thread is half-way through an operation, as things stand.

        Nested in an operation of a sibling, another thread may be changing what is read: then once more.
        """
        while (result := core.exclusively(read, *arguments)) is NESTED:
            try:
                return read(*arguments)
            except (AttributeError, KeyError, RuntimeError):
                if core.owned():
                    raise
        return result

    def _start_anew(self) -> None:
        """In a forked child: an empty registry with the same options and the same dispatch."""
        old = self._core_as_it_is()
        self._core = self._new_core(old.dispatch)
        if old.engine.closed:
            self._core.engine.refuse()
        old.retire(self._new_lock())

    def _check(self) -> None:
        """Assert every invariant of the engine. For tests, at a moment when nothing runs."""
        self._core.exclusively(self._core.engine._check)


class AsyncClosing:
    """`async with`, for a registry that can be closed by awaiting."""

    async def aclose(self, timeout: float | None = 5.0) -> bool:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        await self.aclose()


# A plain set, for it is copied in one step: a WeakSet cannot be gone through while another thread adds to it.
_registries: set[weakref.ref[LocalRegistry]] = set()


def live_registries() -> list[LocalRegistry]:
    """The registries of this process that have not been collected."""
    return [registry for reference in list(_registries) if (registry := reference()) is not None]


def _start_all_anew() -> None:
    for registry in live_registries():
        registry._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
