"""Virtual time: scheduling and firing beside RxPY's and Twisted's clocks, and a day of idle time-outs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench.measuring import Effort, Plan, Row, interleaved, row, rows_beside, seconds
from bench.peers.presence import present
from bench.peers.timers import TimerPeer, TwistedClock, VirtualTime
from bench.subjects import as_virtual, filled, opened

__all__ = ["a_day", "in_and_fired"]

_HALF_AN_HOUR_MS = 30 * 60_000
_DAY_MS = 86_400_000


def in_and_fired(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure timers per second that are scheduled and then fired by moving the clock through ten minutes."""
    count = effort.size(100_000)
    plan = Plan(count, 1, 600)
    kinds: list[type[TimerPeer]] = [VirtualTime, TwistedClock] if effort.every_peer else [VirtualTime]

    def own() -> float:
        def body() -> None:
            filled(registry, plan)
            as_virtual(registry).advance(600_000)

        with opened(backend) as registry:
            took = seconds(body)
            assert registry.stats().delivered == count
        return count / took

    bodies: dict[str, Callable[[], float]] = {"own": own}
    details = {}
    for kind in present(kinds):
        fewer = plan if kind.most is None or kind.most >= count else plan.first(kind.most)
        if fewer is not plan:
            details[kind.name] = f"the peer with {fewer.count:,} timers"
        bodies[kind.name] = partial(_peer_rate, kind, fewer)
    figures = interleaved(effort.rounds, bodies)
    work = f"virtual time, {count:,} timers in and fired"
    yield from rows_beside(work, backend, figures, "1/s", target=VirtualTime.name, must=3.0, details=details)


def _peer_rate(kind: type[TimerPeer], plan: Plan) -> float:
    def body() -> None:
        peer.fill(plan)
        peer.fire()

    peer = kind()
    try:
        return plan.count / seconds(body)
    finally:
        peer.close()


def a_day(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure a day with 100,000 time-outs of half an hour: once all of them fire, and once activity cancels each."""
    count = effort.size(100_000)
    for fires in (True, False):
        figures = interleaved(effort.rounds, {"own": partial(_a_day_s, backend, count, fires)})
        fate = "all of them fire" if fires else "each cancelled by activity"
        work = f"a day of {count:,} idle time-outs, {fate}"
        yield row(work, backend, figures["own"], "s", sense="<=", must=1.0)


def _a_day_s(backend: str, count: int, fires: bool) -> float:
    steps = 1000

    def body() -> None:
        virtual, schedule, number = as_virtual(registry), registry.schedule_event, 0
        for step in range(steps):
            while number * steps < (step + 1) * count:
                cid = f"c{number}"
                handle = schedule(cid=cid, instance_id="main", delay_ms=_HALF_AN_HOUR_MS, event="idle")
                if not fires:
                    handle.cancel()
                number += 1
            virtual.advance(_DAY_MS / steps)
        virtual.run_until_idle()

    with opened(backend) as registry:
        took = seconds(body)
        assert registry.stats().delivered == (count if fires else 0)
    return took
