"""Calls and objects that the tests of several backends share."""

from __future__ import annotations

from typing import Any

from stube import Backend, TimerHandle
from stube_backends.engine import Engine
from stube_backends.engine._topics import FanOut, Topic


def begun_fan_out(size: int) -> tuple[Engine, FanOut]:
    """Return an engine and its one publication, which has begun; none of its targets c0, c1, ... has."""
    engine = Engine(None)
    for number in range(size):
        engine.subscribe(f"c{number}", "i", "t", "said")
    engine.publish("t", "message", 0)
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    return engine, fan_out


def begin_fan_out(engine: Engine, now: int = 0) -> FanOut:
    """Begin the next delivery, which must be a publication's."""
    fan_out = engine.claims.begin(now)
    assert isinstance(fan_out, FanOut)
    return fan_out


def tick(registry: Backend, delay_ms: float = 0, event: Any = "tick", cid: str = "c1") -> TimerHandle:
    """Schedule a timer of the instance `main`."""
    return registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay_ms, event=event)


def figures(engine: Engine[Any]) -> dict[str, int]:
    """Return the figures of the ledger that are not 0."""
    engine._check()
    ledger = engine.ledger
    return {name: getattr(ledger, name) for name in ledger.__slots__ if getattr(ledger, name)}


def snapshots(topic: Topic) -> tuple[int, int]:
    """Return how many publications wait that refer to the topic's present list, and how much of it they refer to."""
    count, publication = 0, topic.oldest
    while publication is not None:
        count += publication.entries is topic.entries
        publication = publication.later
    return count, topic.snapshot_length()
