"""Batons, and the end of a conversation beside much state of other conversations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.measuring import Effort, Row, interleaved, row, seconds
from bench.subjects import UNBOUNDED, join_many, opened
from stube import Backend

__all__ = ["batons", "end"]


def batons(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure how many times a second a baton is put and taken."""
    count = effort.size(100_000)

    def rate() -> float:
        def body() -> None:
            put, take = registry.put_pending_flow, registry.pending_flow
            for cid, same in pairs:
                put(cid, "flow")
                take(same)

        # Each pair has two equal strings, as in a host: one from the page's handler, one from the stream's request.
        # They are new in each round, because a string that has been looked up has its hash cached.
        pairs = [(f"c{number % 1000}", f"c{number % 1000}") for number in range(count)]
        with opened(backend) as registry:
            return count / seconds(body)

    figures = interleaved(effort.rounds, {"own": rate})
    work = "put_pending_flow and pending_flow, pairs"
    yield row(work, backend, figures["own"], "1/s", must=1.5e6, aim=2e6)


def end(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure ending a conversation of 3 timers and 3 topics beside 1,000,000 foreign subscriptions."""
    foreign, on_its_own, count = effort.size(1_000_000), effort.size(100_000), effort.size(1000)
    with opened(backend, max_pending=UNBOUNDED) as empty, opened(backend, max_pending=UNBOUNDED) as full:
        join_many(full, on_its_own, "topic 0")
        for number in range(foreign - on_its_own):
            full.subscribe(cid=f"f{number}", instance_id="main", topic=f"far {number % 1000}", event="said")
        figures = interleaved(
            effort.rounds, {"own": partial(_end_us, full, count), "empty": partial(_end_us, empty, count)}
        )
        assert full.stats().subscriptions == foreign
    yield row(
        f"ending a conversation of 3 timers and 3 topics beside {foreign:,} foreign subscriptions",
        backend,
        figures["own"],
        "us",
        peer="itself in an empty registry",
        beside=figures["empty"],
        sense="<=",
        must=1.5,
        aim=1.1,
        detail=f"{on_its_own:,} of them on one of its own topics",
    )


def _end_us(registry: Backend, count: int) -> float:
    names = [f"c{number}" for number in range(count)]
    for cid in names:
        registry.put_pending_flow(cid, "flow")
        for number in range(3):
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=60_000 + number, event="tick")
            registry.subscribe(cid=cid, instance_id="main", topic=f"topic {number}", event="said")

    def body() -> None:
        # The same calls as `Conversation.end`, without its handle, whose constant cost would make the ratio smaller.
        for cid in names:
            registry.cancel_timers(cid)
            registry.remove_subscriptions_for_cid(cid)
            registry.forget_pending_flow(cid)

    return seconds(body) / count * 1e6
