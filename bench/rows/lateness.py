"""The lateness of many timers: 2,000 due within 0.9 s, on an idle machine and beside a thread that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.measuring import Effort, Plan, Row, clock, interleaved, quantile, rows_beside
from bench.peers.presence import present
from bench.peers.timers import Asyncio, ThreadTimers, TimerPeer, Uvloop
from bench.subjects import opened
from stube import is_virtual

__all__ = ["PEERS", "late", "lateness", "late_timers", "peer_late"]

PEERS: Sequence[type[TimerPeer]] = (ThreadTimers, Asyncio, Uvloop)


def lateness(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the 50th and 99th percentile of the lateness of 2,000 timers in 0.9 s, on an idle machine."""
    plan = late_timers(effort)
    bodies: dict[str, Callable[[], list[float]]] = {"own": partial(late, backend, plan)}
    for kind in present(PEERS if effort.every_peer else PEERS[:1]):
        bodies[kind.name] = partial(peer_late, kind, plan)
    figures = interleaved(effort.rounds, bodies)
    for work, share, must, aim in (("lateness p99", 0.99, 1.0, 0.5), ("lateness p50", 0.5, None, None)):
        quantiles = {name: [quantile(late, share) * 1e6 for late in rounds] for name, rounds in figures.items()}
        yield from rows_beside(
            f"{work}, {plan.count:,} timers in {plan.high_s - plan.low_s:.2g} s",
            backend,
            quantiles,
            "us",
            target=ThreadTimers.name,
            sense="<=",
            must=must,
            aim=aim,
        )


def late_timers(effort: Effort) -> Plan:
    """Return the timers to measure. The first is due late enough for a peer to start two thousand threads before."""
    hurry = 1.0 if effort.scale >= 0.1 else 0.1  # for tests, which measure nothing
    return Plan(effort.size(2000), 0.6 * hurry, 1.5 * hurry)


@contextmanager
def _computing(loaded: bool, plan: Plan) -> Iterator[None]:
    """Run a thread that computes without a pause, from shortly before the first timer is due until the block ends."""
    over = threading.Event()

    def compute() -> None:
        over.wait(plan.low_s - 0.05)
        while not over.is_set():
            sum(range(100))

    thread = threading.Thread(target=compute, daemon=True)
    if loaded:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if loaded:
            thread.join()


def late(backend: str, plan: Plan, *, loaded: bool = False) -> list[float]:
    """Return the lateness of each timer of a registry in seconds; all 0 on a virtual one, whose clock waits."""
    found: list[float] = []
    with opened(backend) as registry, _computing(loaded, plan):
        if is_virtual(registry):
            return [0.0] * plan.count
        registry.install_dispatch(lambda cid, event: found.append(clock() - event.payload))
        for cid, delay in plan.in_milliseconds:
            due = clock() + delay / 1000
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay, event=("tick", due))
        assert registry.join(60)
    return found


def peer_late(kind: type[TimerPeer], plan: Plan, *, loaded: bool = False) -> list[float]:
    """Return the lateness of each timer of a peer in seconds."""
    with _computing(loaded, plan):
        return _late_threads(plan) if kind is ThreadTimers else _late_in_loop(kind, plan)


def _late_threads(plan: Plan) -> list[float]:
    found: list[float] = []
    timers = []
    for _, delay in plan.in_seconds:
        timer = threading.Timer(delay, _record, (found, clock() + delay))
        timer.start()
        timers.append(timer)
    for timer in timers:
        timer.join()
    return found


def _record(found: list[float], due: float) -> None:
    found.append(clock() - due)


def _late_in_loop(kind: type[TimerPeer], plan: Plan) -> list[float]:
    found: list[float] = []
    peer: Any = kind()

    def record(due: float) -> None:
        found.append(clock() - due)
        if len(found) == plan.count:
            peer.loop.stop()

    for _, delay in plan.in_seconds:
        peer.loop.call_later(delay, record, clock() + delay)
    peer.loop.run_forever()
    peer.close()
    return found
