"""Publications: deliveries per second, the cost of one to its caller, joining and leaving a topic, beside emitters."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

from bench.measuring import Effort, Row, clock, interleaved, row, rows_beside, seconds
from bench.peers.emitters import BareEmitter, Blinker, Channels, Emitter, FanOutPeer, Psygnal, ThreadPool
from bench.peers.presence import present
from bench.subjects import UNBOUNDED, drained, held, join_many, opened
from stube import Backend

__all__ = ["deliver", "deliveries_per_second", "join_and_leave", "peer_deliveries_per_second", "publish", "wide_enough"]

_DELIVERIES = 500_000
_FEW_MESSAGES = 10  # the least number of messages, however many subscribers each has


def deliver(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure deliveries per second at fan-out 100 to 10,000, from the first publication to the last delivery."""
    yield from _deliveries_beside(backend, effort, 100, Emitter, 1.5, 2.0)
    yield from _deliveries_beside(backend, effort, 1000, Emitter, 1.5, 2.0)
    yield from _deliveries_beside(backend, effort, 10_000, Emitter, 1.5, 2.0)


def deliver_beside_bare_callbacks(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the same beside an emitter whose callbacks take a tuple and do nothing."""
    alone = Effort(effort.rounds, effort.scale)
    for size in (100, 1000, 10_000):
        yield from _deliveries_beside(backend, alone, size, BareEmitter, None, 1.0)


def deliver_to_few(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure deliveries per second where events share little: at fan-out 1, and if each instance has its own name."""
    yield from _deliveries_beside(backend, effort, 1, Emitter, None, None)
    size, messages = effort.size(1000), effort.size(_DELIVERIES // 1000)
    bodies = {
        "own": partial(deliveries_per_second, backend, size, messages, alike=False),
        Emitter.name: partial(peer_deliveries_per_second, Emitter, size, messages),
    }
    figures = interleaved(effort.rounds, bodies if present([Emitter]) else {"own": bodies["own"]})
    work = f"deliveries at fan-out {size:,}, no two subscribers with one instance_id"
    yield from rows_beside(work, backend, figures, "1/s", target=Emitter.name)


def _deliveries_beside(
    backend: str, effort: Effort, size: int, target: type[FanOutPeer], must: float | None, aim: float | None
) -> Iterator[Row]:
    deliveries = effort.size(_DELIVERIES if size > 1 else _DELIVERIES // 10)
    size = size if effort.scale >= 0.01 else min(size, 100)
    messages = max(_FEW_MESSAGES, deliveries // size)
    others: Sequence[type[FanOutPeer]] = (Blinker, Psygnal, ThreadPool, Channels) if effort.every_peer else ()
    bodies = {"own": partial(deliveries_per_second, backend, size, messages)}
    details = {}
    for kind in wide_enough([target, *others], size):
        fewer = messages if kind.most is None else min(messages, max(2, kind.most // size))
        if fewer < messages:
            details[kind.name] = f"the peer with {fewer:,} messages"
        bodies[kind.name] = partial(peer_deliveries_per_second, kind, size, fewer)
    work = f"deliveries at fan-out {size:,}"
    figures = interleaved(effort.rounds, bodies)
    yield from rows_beside(work, backend, figures, "1/s", target=target.name, must=must, aim=aim, details=details)


def wide_enough(kinds: Sequence[type[FanOutPeer]], size: int) -> list[type[FanOutPeer]]:
    """Return the peers that are installed and can be measured with `size` subscribers."""
    return [kind for kind in present(kinds) if kind.widest is None or size <= kind.widest]


def deliveries_per_second(backend: str, size: int, messages: int, *, alike: bool = True) -> float:
    """Return deliveries per second from the first publication to the last delivery, on a new registry."""

    def body() -> None:
        publish = registry.publish
        for number in range(messages):
            publish("topic", number)
        drained(registry)

    with opened(backend, max_pending=UNBOUNDED) as registry:
        for number in range(size):
            name = "main" if alike else f"i{number}"
            registry.subscribe(cid=f"s{number}", instance_id=name, topic="topic", event="said")
        took = seconds(body)
        assert registry.stats().delivered == messages * size
    return messages * size / took


def peer_deliveries_per_second(kind: type[FanOutPeer], size: int, messages: int) -> float:
    """Return the same of a new peer."""
    peer = kind(size)
    try:
        return messages * size / seconds(lambda: peer.run(messages))
    finally:
        peer.close()


def publish(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the cost of one publication to its caller at fan-out 1 to 100,000, while nothing is delivered."""
    sizes = [effort.size(size, size if size < 1000 else 1000) for size in (1, 100, 10_000, 100_000)]
    count = effort.size(1000)
    costs = interleaved(effort.rounds, {f"{size:,}": partial(_publish_ns, backend, size, count) for size in sizes})
    medians = {size: statistics.median(figures) for size, figures in costs.items()}
    dearest = max(medians, key=lambda size: medians[size])
    cheapest = min(medians, key=lambda size: medians[size])
    detail = ", ".join(f"{size}: {cost:.0f} ns" for size, cost in medians.items())
    work = f"one publish, fan-out {sizes[0]} to {sizes[-1]:,}, dispatch held"
    yield row(work, backend, costs[dearest], "ns", sense="<=", must=1000, detail=detail)
    yield row(
        f"{work}: the dearest fan-out beside the cheapest",
        backend,
        costs[dearest],
        "ns",
        peer="itself at the cheapest",
        beside=costs[cheapest],
        sense="<=",
        must=1.5,
        detail=f"{dearest} beside {cheapest}",
    )
    if effort.every_peer:
        size = sizes[2]
        kinds: Sequence[type[FanOutPeer]] = (Emitter, Blinker, Psygnal, ThreadPool, Channels)
        bodies = {kind.name: partial(_peer_publish_ns, kind, size) for kind in wide_enough(kinds, size)}
        figures = {"own": costs[f"{size:,}"], **interleaved(effort.rounds, bodies)}
        yield from rows_beside(
            f"one publish to its caller at fan-out {size:,}", backend, figures, "ns", target="", sense="<="
        )


def _publish_ns(backend: str, size: int, count: int) -> float:
    def body() -> None:
        publish = registry.publish
        for _ in range(count):
            publish("topic", None)

    with opened(backend, max_pending=UNBOUNDED) as registry:
        join_many(registry, size)
        with held(registry):
            took = seconds(body)
            registry.reset_state()
    return took / count * 1e9


def _peer_publish_ns(kind: type[FanOutPeer], size: int) -> float:
    peer = kind(size)
    try:
        return seconds(lambda: peer.publish(1)) * 1e9
    finally:
        peer.close()


def join_and_leave(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure joining and leaving a topic of 100,000, with a publication between the two every time."""
    size, count = effort.size(100_000), effort.size(2000)
    bodies = {
        "own": partial(_join_and_leave_us, backend, size, count),
        "empty": partial(_join_and_leave_us, backend, 0, count),
    }
    figures = interleaved(effort.rounds, bodies)
    yield row(
        f"joining and leaving a topic of {size:,}, publications in between",
        backend,
        figures["own"],
        "us",
        peer="itself in an empty topic",
        beside=figures["empty"],
        sense="<=",
        must=2.0,
        detail="dispatch held; the publications are not in the figure",
    )


def _join_and_leave_us(backend: str, size: int, count: int) -> float:
    with opened(backend, max_pending=UNBOUNDED) as registry:
        join_many(registry, size)
        with held(registry):
            took = sum(_join_and_leave(registry, f"guest {number}") for number in range(count))
            registry.reset_state()
    return took / count * 1e6


def _join_and_leave(registry: Backend, cid: str) -> float:
    began = clock()
    registry.subscribe(cid=cid, instance_id="main", topic="topic", event="said")
    joined = clock()
    registry.publish("topic", None)
    leaves = clock()
    registry.unsubscribe(cid=cid, instance_id="main", topic="topic")
    return clock() - leaves + joined - began
