"""The bytes of a timer, a subscription and a baton, measured with `tracemalloc`."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator

from bench.measuring import Effort, Plan, Row, row
from bench.peers.presence import present
from bench.peers.timers import Asyncio, TimerPeer, Uvloop
from bench.subjects import filled, join_many, opened
from stube import Backend

__all__ = ["bytes_per_timer", "everything", "peer_timer_bytes", "timer_bytes"]


def bytes_per_timer(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the bytes of a pending timer and its share of the conversation: many close together, few far apart."""
    dense, sparse = effort.size(10_000), effort.size(1000)
    yield row(
        f"bytes per pending timer, {dense:,} dense",
        backend,
        [timer_bytes(backend, dense_plan(dense))],
        "B",
        sense="<=",
        must=260,
        aim=200,
        detail="in 1000 conversations, within 10 s",
    )
    yield row(
        f"bytes per pending timer, {sparse:,} sparse",
        backend,
        [timer_bytes(backend, sparse_plan(sparse))],
        "B",
        sense="<=",
        must=600,
        detail="a conversation each, over an hour",
    )


def dense_plan(count: int) -> Plan:
    """Return timers close together, in 1000 conversations."""
    return Plan(count, 1, 10)


def sparse_plan(count: int) -> Plan:
    """Return timers far apart, each in a conversation of its own."""
    return Plan(count, 1, 3600, count)


def traced(body: Callable[[], object]) -> int:
    """Return by how many bytes the allocated memory grows while `body` runs, including its return value."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = body()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        del kept
    finally:
        tracemalloc.stop()
    return after - before


def timer_bytes(backend: str, plan: Plan) -> float:
    """Return the bytes per timer of a new registry."""
    with opened(backend) as registry:
        return traced(lambda: filled(registry, plan)) / plan.count


def peer_timer_bytes(kind: type[TimerPeer], plan: Plan) -> float:
    """Return the bytes per timer of a new peer, with its dict of handles."""
    peer = kind()
    try:
        return traced(lambda: peer.fill(plan)) / plan.count
    finally:
        peer.close()


def everything(backends: list[str], effort: Effort) -> Iterator[dict[str, object]]:
    """Yield every entry of the key `memory` of the results."""
    dense, sparse = dense_plan(effort.size(10_000)), sparse_plan(effort.size(1000))
    plans = ((f"timer, {dense.count:,} dense", dense), (f"timer, {sparse.count:,} sparse", sparse))
    count = effort.size(10_000)
    for backend in backends:
        for what, plan in plans:
            yield _entry(what, backend, timer_bytes(backend, plan))
        bodies: tuple[tuple[str, Callable[[Backend], None]], ...] = (
            (f"subscription, {count:,} to one topic", lambda registry: join_many(registry, count)),
            (f"subscription, {count:,} topics of one", lambda registry: _join_each(registry, count)),
            (f"baton, {count:,}", lambda registry: _put_many(registry, count)),
        )
        for what, body in bodies:
            with opened(backend) as registry:
                yield _entry(what, backend, traced(lambda: body(registry)) / count)  # noqa: B023 - called immediately
    for kind in present((Asyncio, Uvloop)):
        for what, plan in plans:
            yield _entry(what, kind.name, peer_timer_bytes(kind, plan))


def _entry(what: str, backend: str, size: float) -> dict[str, object]:
    return {"what": what, "backend": backend, "bytes": size}


def _join_each(registry: Backend, count: int) -> None:
    for number in range(count):
        registry.subscribe(cid=f"s{number}", instance_id="main", topic=f"topic {number}", event="said")


def _put_many(registry: Backend, count: int) -> None:
    for number in range(count):
        registry.put_pending_flow(f"c{number}", "flow")
