"""Each operation alone, on a registry that already holds little or much: its preparation, and its measured body.

While an operation is measured nothing is delivered. Each round leaves the registry as it found it, so that all rounds
of a test measure the same. `bench/test_operations.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.measuring import Plan
from bench.subjects import filled, join_many
from stube import Backend

__all__ = ["OPERATIONS", "Operation"]

Held = Any
"""The objects that one round has prepared for its body."""
_AN_HOUR_MS: Final = 3_600_000
_EVERY_SIZE: Final = (1000, 10_000, 100_000, 1_000_000)
_BOTH_ENDS: Final = (1000, 1_000_000)


@dataclass(frozen=True)
class Operation:
    """One operation, `count` times in a round."""

    name: str
    group: str
    sizes: Sequence[int]
    """The numbers of things that the registry holds; `fill` adds them."""
    fill: Callable[[Backend, int], None]
    body: Callable[[Backend, Held], None]
    prepare: Callable[[Backend, list[str]], Held] = lambda registry, names: names
    """Called before each round, unmeasured: restores the registry, and returns what the body needs."""
    count: int = 1000
    whole: bool = False
    """True if the body is one operation on everything that was prepared, which is then as much as the size says."""


# The content of the registry


def _pending(registry: Backend, size: int) -> None:
    filled(registry, Plan(size, 3600, 7200))


def _subscribers(registry: Backend, size: int) -> None:
    join_many(registry, size)


def _topics(registry: Backend, size: int) -> None:
    for number in range(size):
        registry.subscribe(cid=f"s{number}", instance_id="main", topic=f"far {number}", event="said")


def _batons(registry: Backend, size: int) -> None:
    for number in range(size):
        registry.put_pending_flow(f"s{number}", "flow")


def _nothing(registry: Backend, size: int) -> None:
    """Add nothing, because `prepare` adds in each round what a reset removes."""


# The preparations and bodies of the rounds


def _fresh_names(registry: Backend, names: list[str]) -> list[str]:
    for cid in names:
        registry.cancel_timers(cid)
        registry.remove_subscriptions_for_cid(cid)
    return names


def _put_and_take(registry: Backend, names: list[str]) -> None:
    for cid in names:
        registry.put_pending_flow(cid, "flow")
        registry.pending_flow(cid)


def _schedule(registry: Backend, names: list[str]) -> None:
    schedule = registry.schedule_event
    for cid in names:
        schedule(cid=cid, instance_id="main", delay_ms=_AN_HOUR_MS, event="tick")


def _handles(registry: Backend, names: list[str]) -> list[Any]:
    _fresh_names(registry, names)
    return [registry.schedule_event(cid=cid, instance_id="main", delay_ms=_AN_HOUR_MS, event="tick") for cid in names]


def _cancel_handles(registry: Backend, handles: list[Any]) -> None:
    for handle in handles:
        handle.cancel()


def _three_timers(registry: Backend, names: list[str]) -> list[str]:
    for _ in range(3):
        _schedule(registry, names)
    return names


def _cancel_timers(registry: Backend, names: list[str]) -> None:
    for cid in names:
        registry.cancel_timers(cid)


def _subscribe(registry: Backend, names: list[str]) -> None:
    for cid in names:
        registry.subscribe(cid=cid, instance_id="main", topic="topic", event="said")


def _joined(registry: Backend, names: list[str]) -> list[str]:
    _subscribe(registry, names)
    return names


def _unsubscribe(registry: Backend, names: list[str]) -> None:
    for cid in names:
        registry.unsubscribe(cid=cid, instance_id="main", topic="topic")


def _join_and_leave(registry: Backend, names: list[str]) -> None:
    for cid in names:
        registry.subscribe(cid=cid, instance_id="main", topic="topic", event="said")
        registry.unsubscribe(cid=cid, instance_id="main", topic="topic")


def _publish(registry: Backend, names: list[str]) -> None:
    publish = registry.publish
    for cid in names:
        publish("topic", cid)


def _stats(registry: Backend, names: list[str]) -> None:
    for _ in names:
        registry.stats()


def _subscriptions(registry: Backend, names: list[str]) -> None:
    for _ in names:
        registry.subscriptions()


def _reset(registry: Backend, names: list[str]) -> None:
    registry.reset_state()


def _much_to_forget(registry: Backend, names: list[str]) -> list[str]:
    for cid in names:
        registry.put_pending_flow(cid, "flow")
    _three_timers(registry, names)
    return _joined(registry, names)


OPERATIONS: Final = (
    Operation("put and take a baton", "batons", _BOTH_ENDS, _batons, _put_and_take),
    Operation("schedule_event", "timers", _EVERY_SIZE, _pending, _schedule, _fresh_names),
    Operation("TimerHandle.cancel", "timers", _EVERY_SIZE, _pending, _cancel_handles, _handles),
    Operation("cancel_timers, three each", "timers", _EVERY_SIZE, _pending, _cancel_timers, _three_timers),
    Operation("subscribe", "topics", _BOTH_ENDS, _topics, _subscribe, _fresh_names),
    Operation("unsubscribe", "topics", _BOTH_ENDS, _topics, _unsubscribe, _joined),
    Operation("join and leave a topic", "topics", _EVERY_SIZE[:3], _subscribers, _join_and_leave),
    Operation("publish, dispatch held", "topics", _EVERY_SIZE[:3], _subscribers, _publish, count=100),
    Operation("subscriptions()", "snapshots", _EVERY_SIZE[:3], _topics, _subscriptions, count=1),
    Operation("stats()", "snapshots", _BOTH_ENDS, _pending, _stats),
    Operation("reset_state", "snapshots", _EVERY_SIZE[:3], _nothing, _reset, _much_to_forget, whole=True),
)
"""The size of `reset_state` is the number of conversations that it forgets, each with a baton, 3 timers and a topic."""
