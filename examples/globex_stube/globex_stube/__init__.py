"""A backend of actors: one thread owns the state, another one delivers, and everybody sends messages.

`GlobexRegistry` checks the arguments of each operation on the caller's thread and asks the registry's actor to run it
(`_actor.py`); the actor is the only one that touches the state (`_state.py`). An operation costs two switches of
threads, whatever else it costs. A handler that blocks holds up all conversations, but no operation.

Callers' threads check arguments, read the clock and free what they have removed; the state thread runs the operations;
the delivery thread runs dispatch and `on_error`. Both threads start with the first operation that adds something, and
end with `close()`, with the registry's collection, or with the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import override

from stube import (
    Backend,
    ConversationInfo,
    Dispatch,
    Event,
    EventSpec,
    RegistryClosed,
    Stats,
    TimerHandle,
    is_coroutine_function,
    monotonic_ns,
)

from ._actor import Actor
from ._state import Hooks, OnError, Spec, State, Timer

__all__ = ["GlobexRegistry", "OnError"]


class GlobexRegistry(Backend):
    """A registry whose state belongs to an actor. The entry point `globex`.

    Args:
        clock: returns monotonic nanoseconds that advance in real time.
        max_pending: how many timers and queued messages the registry holds at most; None for no bound.
        on_error: called as `on_error(cid, event, exception)` on the delivery thread when a delivery has failed.

    >>> registry = GlobexRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> registry.join(), registry.close()
    c1 Event('main', 'tick')
    (True, True)
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        max_pending: int | None = 1_000_000,
        on_error: OnError | None = None,
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending}. Leave it out, or give None.")
        self._hooks = Hooks(_ignore, clock or monotonic_ns, on_error)
        self._actor = Actor(max_pending, self._hooks)

    @property
    @override
    def capabilities(self) -> frozenset[str]:
        return frozenset({"by_reference", "common_topic_order", "fork", "one_instant_snapshot", "own_clock", "sizes"})

    def __del__(self) -> None:
        actor: Actor | None = getattr(self, "_actor", None)  # None when the options were wrong
        if actor is not None:
            actor.orphan()

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        if not callable(dispatch):
            raise TypeError(f"dispatch must be callable, not {_kind(dispatch)}. Give a function of (cid, event).")
        if is_coroutine_function(dispatch):
            raise TypeError("dispatch is an async function, which globex cannot await. Use the backend 'asyncio'.")
        if self._actor.state.closed:
            raise RegistryClosed("The registry has been closed, so nothing can be installed. Create a new one.")
        self._hooks.dispatch = dispatch

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        cid = _name("cid", cid)
        if flow_id is None:
            raise TypeError("flow_id must not be None, which means that there is none. Give any other object.")
        self._actor.add(None, State.put_pending_flow, cid, flow_id)

    @override
    def pending_flow(self, cid: str, /) -> Any | None:
        return self._actor.take(State.pending_flow, _name("cid", cid))

    @override
    def forget_pending_flow(self, cid: str, /) -> bool:
        return self._actor.remove(False, State.forget_pending_flow, _name("cid", cid))

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        timer = Timer(_name("cid", cid), _name("instance_id", instance_id))
        delay, spec = _nanoseconds(delay_ms), _spec(event)
        self._actor.add(None, State.schedule, timer, spec, self._hooks.clock(), delay, self._hooks)
        return _Handle(self._actor, timer)

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        cid = _name("cid", cid)
        return self._actor.remove(0, State.cancel_timers, cid, _name_or_none("instance_id", instance_id))

    @override
    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        names = _name("cid", cid), _name("instance_id", instance_id), _name("topic", topic)
        self._actor.add(None, State.subscribe, *names, _spec(event))

    @override
    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        cid, instance_id = _name("cid", cid), _name("instance_id", instance_id)
        return self._actor.remove(0, State.unsubscribe, cid, instance_id, _name_or_none("topic", topic))

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return self._actor.remove(0, State.remove_subscriptions_for_cid, _name("cid", cid))

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        topic = _name("topic", topic)
        return self._actor.add(0, State.publish, topic, msg, self._hooks.clock(), self._hooks)

    @override
    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        return self._actor.read(State.subscriptions)

    @override
    def reset_state(self) -> None:
        self._actor.remove(None, State.reset)

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        return self._actor.close(timeout)

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait(timeout, timers_too=False)

    @override
    def join(self, timeout: float | None = None) -> bool:
        return self._wait(timeout, timers_too=True)

    def _wait(self, timeout: float | None, *, timers_too: bool) -> bool:
        if self._actor.is_delivering_here():
            raise RuntimeError("settle and join would wait for the delivery that calls them. Call them outside.")
        return self._actor.wait_until_idle(self._hooks.clock(), timeout, timers_too=timers_too)

    @property
    @override
    def now_ns(self) -> int:
        return self._hooks.clock()

    @override
    def stats(self) -> Stats:
        return self._actor.read(State.stats)

    @override
    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        return self._actor.read(State.inspect, _name_or_none("cid", cid), self._hooks.clock())

    def sizes(self) -> Mapping[str, int]:
        """The length of every internal container, for the suite's leak tests."""
        return self._actor.read(State.sizes)


class _Handle(TimerHandle):
    """Cancels one timer. It refers to the actor, and neither to the registry nor to the payload."""

    __slots__ = ("_actor", "_timer")

    def __init__(self, actor: Actor, timer: Timer) -> None:
        self._actor = actor
        self._timer = timer

    @override
    def cancel(self) -> bool:
        return self._actor.remove(False, State.cancel, self._timer)


def _ignore(_cid: str, _event: Event) -> None:
    """The dispatch of a registry before `install_dispatch`."""


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _name(parameter: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a str, not {_kind(value)}. Give a name.")
    name = str.__str__(value)  # the plain string: no method of a subclass may be called
    if not name:
        raise ValueError(f"{parameter} must not be empty. Give a name.")
    return name


def _name_or_none(parameter: str, value: object) -> str | None:
    return None if value is None else _name(parameter, value)


def _spec(event: object) -> Spec:
    if isinstance(event, str):
        return _name("event", event)
    if not isinstance(event, (tuple, list)):
        raise TypeError(f"event must be a str, a tuple or a list, not {_kind(event)}. Give a name, or (name, payload).")
    items: tuple[Any, ...] = tuple(event)
    if not items:
        raise ValueError("event must not be empty. Give a name, or (name, payload).")
    return (_name("the name of event", items[0]), *items[1:])


def _nanoseconds(delay_ms: object) -> int:
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):
        raise TypeError(f"delay_ms must be an int or a float, not {_kind(delay_ms)}. Give milliseconds.")
    if isinstance(delay_ms, int):
        return max(0, int(delay_ms) * 1_000_000)
    if not math.isfinite(delay_ms):
        raise ValueError(f"delay_ms must be finite, not {delay_ms}. Give milliseconds.")
    product = delay_ms * 1e6
    return max(0, math.ceil(product) if math.isfinite(product) else int(delay_ms) * 1_000_000)
