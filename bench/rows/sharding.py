"""The benefit of shards, several callers and handlers that block, and their cost for a single caller."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.measuring import Effort, Plan, Row, clock, interleaved, row
from bench.rows.timers import schedule_rate
from bench.subjects import drained, filled, opened
from stube import Backend, Event

__all__ = ["blocking", "eight_callers", "eight_callers_free_threaded", "gil_enabled", "one_caller"]

_CALLERS = 8
_BLOCK_S = 0.001
_MOST_ROUNDS_OF_WAITING = 3  # each takes ten seconds and more, nearly all of it in sleep
_PEER = "memory"


def gil_enabled() -> bool:
    """Return True if only one thread at a time runs Python."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def one_caller(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure schedules per second of one thread."""
    plan = Plan(effort.size(100_000), 1, 600)
    figures = interleaved(
        effort.rounds, {"own": partial(schedule_rate, backend, plan), _PEER: partial(schedule_rate, _PEER, plan)}
    )
    work = f"one caller thread, schedule_event, {plan.count:,} pending"
    yield row(work, backend, figures["own"], "1/s", peer=_PEER, beside=figures[_PEER], must=0.8, aim=0.9)


def eight_callers(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure timers scheduled and cancelled per second by 8 threads, each with conversations of its own."""
    return _callers(backend, effort, _CALLERS, 1.0, None) if gil_enabled() else iter(())


def eight_callers_free_threaded(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the same with 8 and with 2 threads on a free-threaded Python; yield nothing on one with the GIL."""
    if not gil_enabled():
        yield from _callers(backend, effort, 2, None, 1.3)
        yield from _callers(backend, effort, _CALLERS, 1.3, 1.6)


def _callers(backend: str, effort: Effort, callers: int, must: float | None, aim: float | None) -> Iterator[Row]:
    plans = _plans(effort.size(100_000), callers)
    figures = interleaved(
        effort.rounds, {"own": partial(_callers_rate, backend, plans), _PEER: partial(_callers_rate, _PEER, plans)}
    )
    work = f"{callers} caller threads, schedule_event and cancel_timers, {plans[0].count * callers:,} pending"
    build = "" if gil_enabled() else ", free-threaded build"
    yield row(work + build, backend, figures["own"], "1/s", peer=_PEER, beside=figures[_PEER], must=must, aim=aim)


def _plans(count: int, callers: int) -> list[Plan]:
    """Return a plan for each thread, with 125 conversations of its own."""
    each = max(1, count // callers)
    return [Plan(each, 1, 600, 125, prefix=f"t{number} c") for number in range(callers)]


def _callers_rate(backend: str, plans: Sequence[Plan]) -> float:
    """Return timers per second, from the instant at which all threads are released to the end of the last thread."""
    began: list[float] = []
    ended: list[float] = []
    start = threading.Barrier(len(plans), action=lambda: began.append(clock()))

    def call(plan: Plan) -> None:
        start.wait()
        filled(registry, plan)
        for cid in plan.names:
            registry.cancel_timers(cid)
        ended.append(clock())

    gc.collect()
    with opened(backend) as registry:
        threads = [threading.Thread(target=call, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not registry.stats().timers
    return sum(plan.count for plan in plans) / (max(ended) - began[0])


def blocking(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure deliveries per second to 10,000 conversations whose handlers block for 1 ms."""
    count = effort.size(10_000)
    names = [f"c{number}" for number in range(count)]

    def schedule(registry: Backend) -> None:
        for cid in names:
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=0, event="work")

    def publish(registry: Backend) -> None:
        assert registry.publish("topic", None) == count

    kinds: tuple[tuple[str, Callable[[Backend], None]], ...] = (("timers", schedule), ("one publication", publish))
    for what, begin in kinds:
        figures = interleaved(
            min(effort.rounds, _MOST_ROUNDS_OF_WAITING),
            {
                "own": partial(_blocking_rate, backend, names, begin),
                _PEER: partial(_blocking_rate, _PEER, names, begin),
            },
        )
        work = f"dispatch that blocks 1 ms, {count:,} conversations, {what}"
        yield row(work, backend, figures["own"], "1/s", peer=_PEER, beside=figures[_PEER], must=7.0)


def _blocking_rate(backend: str, names: list[str], begin: Callable[[Backend], None]) -> float:
    def block(cid: str, event: Event) -> None:
        time.sleep(_BLOCK_S)

    with opened(backend) as registry:
        for cid in names:
            registry.subscribe(cid=cid, instance_id="main", topic="topic", event="said")
        registry.install_dispatch(block)
        began = clock()
        begin(registry)
        drained(registry)
        return len(names) / (clock() - began)
