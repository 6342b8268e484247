"""Scheduling, cancelling and firing of timers, beside other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.measuring import Effort, Plan, Row, interleaved, rows_beside, seconds
from bench.peers.presence import present
from bench.peers.timers import (
    Asyncio,
    BackgroundScheduler,
    CancelledScheduler,
    FiringScheduler,
    PausedScheduler,
    Scheduler,
    ThreadTimers,
    TimerPeer,
    TwistedClock,
    Uvloop,
)
from bench.subjects import as_virtual, filled, held, opened
from stube import is_virtual

__all__ = [
    "cancel",
    "cancel_rate",
    "fire",
    "fire_rate",
    "peer_cancel_rate",
    "peer_fire_rate",
    "peer_schedule_rate",
    "schedule",
    "schedule_a_million",
    "schedule_rate",
]

_OVERDUE_S = 0.02  # after this time all timers of the row about firing are overdue
Figure = Callable[[Plan], float]


def schedule(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure schedules per second up to 100,000 pending timers, with all validation, grouping and re-entrancy: in 1000
    conversations, and in the shape of life, a conversation each."""
    count = effort.size(100_000)
    others = (Uvloop, Scheduler, ThreadTimers, BackgroundScheduler, TwistedClock)
    for pending, conversations, must, aim in (
        (count, 1000, 1.5, 2.0),
        (count, count, 1.5, 1.8),
        (3 * count, 3 * count, 1.5, 1.8),
    ):
        plan = Plan(pending, 1, 600, conversations)
        yield from _schedule(backend, effort, plan, others if conversations == 1000 else (), must, aim)


def schedule_a_million(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the same at 1,000,000 pending."""
    return _schedule(backend, effort, Plan(effort.size(1_000_000), 1, 600), (), 1.3, 1.8)


def _schedule(
    backend: str, effort: Effort, plan: Plan, others: Sequence[type[TimerPeer]], must: float, aim: float
) -> Iterator[Row]:
    work = f"schedule_event, {plan.count:,} pending over 1-600 s, {_in(plan)}"
    own = partial(schedule_rate, backend)
    return _beside(work, effort, backend, plan, own, peer_schedule_rate, Asyncio, others, must, aim)


def cancel(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure timers cancelled per second by ending conversations, of 100 timers each and of one; their payloads are
    freed on return."""
    count = effort.size(100_000)
    others = (Uvloop, CancelledScheduler, ThreadTimers, BackgroundScheduler, TwistedClock)
    for conversations, besides, must, aim in ((1000, others, 1.0, 1.5), (count, (), 0.6, 0.65)):
        plan = Plan(count, 1, 600, conversations)
        work, own = f"cancel_timers, {count:,} timers {_in(plan)}", partial(cancel_rate, backend)
        yield from _beside(work, effort, backend, plan, own, peer_cancel_rate, Asyncio, besides, must, aim)


def fire(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure overdue timers delivered per second, those of one conversation in order: of 1000 conversations, and of a
    conversation each."""
    count = effort.size(100_000)
    others = (Asyncio, FiringScheduler, PausedScheduler, TwistedClock)
    for conversations, besides, must, aim in ((1000, others, 1.7, 2.0), (count, (), 1.4, 1.8)):
        plan = Plan(count, 0.0001, 0.010, conversations)
        work, own = f"firing {count:,} overdue timers {_in(plan)}", partial(fire_rate, backend)
        yield from _beside(work, effort, backend, plan, own, peer_fire_rate, Uvloop, besides, must, aim)


def _in(plan: Plan) -> str:
    return "in a conversation each" if len(plan.names) == plan.count else f"in {len(plan.names):,} conversations"


def _beside(
    work: str,
    effort: Effort,
    backend: str,
    plan: Plan,
    own: Figure,
    peer: Callable[[type[TimerPeer], Plan], float],
    target: type[TimerPeer],
    others: Sequence[type[TimerPeer]],
    must: float,
    aim: float,
) -> Iterator[Row]:
    """Yield the rows of one figure beside the peer of the target, and beside others if every peer is measured."""
    bodies = {"own": partial(own, plan)}
    details = {}
    for kind in present([target, *(others if effort.every_peer else ())]):
        fewer = plan
        if kind.most is not None and kind.most < plan.count:
            fewer = plan.first(kind.most)
            details[kind.name] = f"the peer with {kind.most:,} timers"
        bodies[kind.name] = partial(peer, kind, fewer)
    figures = interleaved(effort.rounds, bodies)
    yield from rows_beside(work, backend, figures, "1/s", target=target.name, must=must, aim=aim, details=details)


def schedule_rate(backend: str, plan: Plan) -> float:
    """Return schedules per second of a new registry."""
    with opened(backend) as registry:
        return plan.count / seconds(lambda: filled(registry, plan))


def cancel_rate(backend: str, plan: Plan) -> float:
    """Return timers cancelled per second, one conversation at a time."""

    def body() -> None:
        cancel_timers = registry.cancel_timers
        for cid in plan.names:
            cancel_timers(cid)

    with opened(backend) as registry:
        filled(registry, plan)
        took = seconds(body)
        assert not registry.stats().timers
    return plan.count / took


def fire_rate(backend: str, plan: Plan) -> float:
    """Return deliveries per second of timers that are all overdue."""
    with opened(backend) as registry:
        if is_virtual(registry):
            filled(registry, plan)
            return plan.count / seconds(lambda: as_virtual(registry).advance(1000 * _OVERDUE_S))
        with held(registry) as release:
            filled(registry, plan)
            time.sleep(_OVERDUE_S)  # until the last one is overdue; there is no event to wait for

            def drain() -> None:
                release()
                assert registry.join()

            return plan.count / seconds(drain)


def peer_schedule_rate(kind: type[TimerPeer], plan: Plan) -> float:
    """Return schedules per second of a new peer."""
    peer = kind()
    try:
        return plan.count / seconds(lambda: peer.fill(plan))
    finally:
        peer.close()


def peer_cancel_rate(kind: type[TimerPeer], plan: Plan) -> float:
    """Return timers that a peer cancels per second, one conversation at a time."""
    peer = kind()
    try:
        peer.fill(plan)
        return plan.count / seconds(lambda: peer.cancel(plan.names))
    finally:
        peer.close()


def peer_fire_rate(kind: type[TimerPeer], plan: Plan) -> float:
    """Return overdue timers that a peer fires per second."""
    peer = kind()
    try:
        peer.fill(plan)
        time.sleep(_OVERDUE_S)
        return plan.count / seconds(peer.fire)
    finally:
        peer.close()
