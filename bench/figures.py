"""The figures of the process-local backends, each beside what a user would pick instead, in one run.

Rounds of a figure and of its peer are interleaved, and the ratio is the median over the rounds: machines are shared and
noisy, so an absolute figure is only a hint. `--write FILE` writes the table as Markdown. A peer that is not installed
(`pip install 'stube[bench]'`) leaves its rows without a ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import random
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stube import Conversations, Event, create_registry

clock = time.perf_counter
BACKENDS = ("memory", "virtual")


@dataclass
class Row:
    """One line of the table."""

    work: str
    backend: str
    figure: str
    peer: str = ""
    ratio: float | None = None
    must: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        mark = "" if self.met is None else ("met" if self.met else "**missed**")
        return [
            self.work,
            self.backend,
            self.figure,
            self.peer,
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.must,
            mark,
        ]


def seconds(body: Callable[[], object]) -> float:
    gc.collect()
    started = clock()
    body()
    return clock() - started


def rate(count: float) -> str:
    return f"{count / 1e6:.2f} M/s" if count >= 1e6 else f"{count / 1e3:.0f} k/s"


def delays(count: int, low: float, high: float) -> list[float]:
    generator = random.Random(1)
    return [generator.uniform(low, high) for _ in range(count)]


def cids(count: int, conversations: int = 1000) -> list[str]:
    return [f"c{number % conversations}" for number in range(count)]


def ignore(cid: str, event: Event) -> None:
    """A dispatch that does nothing."""


# -- timers ----------------------------------------------------------------------------------------------------


def fill(registry: Any, count: int, low: float = 1000, high: float = 600_000) -> None:
    schedule = registry.schedule_event
    for cid, delay in zip(cids(count), delays(count, low, high), strict=True):
        schedule(cid=cid, instance_id="main", delay_ms=delay, event="tick")


def fill_loop(loop: asyncio.AbstractEventLoop, count: int) -> dict[str, dict[int, asyncio.TimerHandle]]:
    handles: dict[str, dict[int, asyncio.TimerHandle]] = {}

    def fire(cid: str, instance_id: str, name: str, key: int) -> None:
        handles[cid].pop(key, None)

    for key, (cid, delay) in enumerate(zip(cids(count), delays(count, 1, 600), strict=True)):
        handle = loop.call_later(delay, fire, cid, "main", "tick", key)
        handles.setdefault(cid, {})[key] = handle
    return handles


def schedule_and_cancel(backend: str, rounds: int) -> Iterable[Row]:
    count = 100_000
    fills, cancels, peer_fills, peer_cancels = [], [], [], []
    for _ in range(rounds):
        with create_registry(backend) as registry:
            fills.append(seconds(lambda: fill(registry, count)))
            cancels.append(seconds(lambda: [registry.cancel_timers(f"c{n}") for n in range(1000)]))
        loop = asyncio.new_event_loop()
        handles: dict[str, dict[int, asyncio.TimerHandle]] = {}
        peer_fills.append(seconds(lambda: handles.update(fill_loop(loop, count))))  # noqa: B023

        def cancel_all() -> None:
            for n in range(1000):
                for handle in handles.pop(f"c{n}").values():  # noqa: B023
                    handle.cancel()

        peer_cancels.append(seconds(cancel_all))
        loop.close()
    for work, own, other, must in (
        ("schedule_event, 100k pending over 1-600 s", fills, peer_fills, 1.5),
        ("cancel_timers over 1000 conversations", cancels, peer_cancels, 1.0),
    ):
        ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
        mine, theirs = count / statistics.median(own), count / statistics.median(other)
        yield Row(work, backend, rate(mine), f"asyncio and a dict {rate(theirs)}", ratio, f"≥ {must}", ratio >= must)


def schedule_at_sizes(backend: str, rounds: int) -> Iterable[Row]:
    small, large = [], []
    for _ in range(rounds):
        for count, rates in ((10_000, small), (1_000_000, large)):
            with create_registry(backend, max_pending=None) as registry:
                rates.append(count / seconds(lambda: fill(registry, count)))  # noqa: B023
    ratio = statistics.median(b / a for a, b in zip(small, large, strict=True))
    yield Row(
        "the same at 1,000,000 pending",
        backend,
        rate(statistics.median(large)),
        f"its own at 10,000: {rate(statistics.median(small))}",
        ratio,
        "≥ 0.7",
        ratio >= 0.7,
    )


def fire_overdue(backend: str, rounds: int) -> Iterable[Row]:
    count = 100_000
    new_loop, peer = _loop()
    own, other = [], []
    for _ in range(rounds):
        own.append(_fire(backend, count))
        other.append(_fire_loop(new_loop, count))
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    theirs = f"{peer} {rate(count / statistics.median(other))}"
    must = "≥ 2.0" if peer == "uvloop" else ""
    yield Row(
        "firing overdue timers",
        backend,
        rate(count / statistics.median(own)),
        theirs,
        ratio,
        must,
        ratio >= 2.0 if must else None,
    )


def _fire(backend: str, count: int) -> float:
    with create_registry(backend) as registry:
        if backend == "virtual":
            registry.install_dispatch(ignore)
            fill(registry, count, 0.1, 10)
            return seconds(lambda: registry.advance(1000))  # type: ignore[attr-defined]
        held, released = threading.Event(), threading.Event()

        def hold(cid: str, event: Event) -> None:
            registry.install_dispatch(ignore)
            held.set()
            released.wait()

        registry.install_dispatch(hold)
        registry.schedule_event(cid="holder", instance_id="main", delay_ms=0, event="hold")
        held.wait()
        fill(registry, count, 0.1, 10)
        time.sleep(0.02)  # until the last one is overdue

        def release() -> None:
            released.set()
            registry.join()

        return seconds(release)


def _loop() -> tuple[Callable[[], asyncio.AbstractEventLoop], str]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop, "asyncio"
    return uvloop.new_event_loop, "uvloop"


def _fire_loop(new_loop: Callable[[], asyncio.AbstractEventLoop], count: int) -> float:
    loop = new_loop()
    handles: dict[str, dict[int, asyncio.TimerHandle]] = {}
    left = count

    def fire(cid: str, key: int) -> None:
        nonlocal left
        del handles[cid][key]
        left -= 1
        if not left:
            loop.stop()

    for key, (cid, delay) in enumerate(zip(cids(count), delays(count, 0.0001, 0.010), strict=True)):
        handles.setdefault(cid, {})[key] = loop.call_later(delay, fire, cid, key)
    time.sleep(0.02)
    took = seconds(loop.run_forever)
    loop.close()
    return took


def lateness(backend: str, rounds: int) -> Iterable[Row]:
    if backend == "virtual":
        return
    count = 2000
    own, other = [], []
    for _ in range(rounds):
        own.append(_lateness(count))
        other.append(_lateness_of_threads(count))
    for work, quantile in (("lateness p50, 2,000 timers in 0.9 s", 0.5), ("lateness p99", 0.99)):
        mine = statistics.median(_quantile(late, quantile) for late in own)
        theirs = statistics.median(_quantile(late, quantile) for late in other)
        ratio = mine / theirs
        must = "≤ 1.0" if quantile == 0.99 else ""
        yield Row(
            work,
            backend,
            f"{mine * 1e6:.0f} us",
            f"threading.Timer {theirs * 1e6:.0f} us",
            ratio,
            must,
            ratio <= 1.0 if must else None,
        )


def _quantile(values: list[float], quantile: float) -> float:
    return sorted(values)[int(len(values) * quantile)]


def _lateness(count: int) -> list[float]:
    late: list[float] = []
    with create_registry("memory") as registry:
        registry.install_dispatch(lambda cid, event: late.append(clock() - event.payload))
        for cid, delay in zip(cids(count), delays(count, 100, 900), strict=True):
            due = clock() + delay / 1000
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay, event=("tick", due))
        registry.join()
    return late


def _lateness_of_threads(count: int) -> list[float]:
    late: list[float] = []
    timers = []
    for delay in delays(count, 0.1, 0.9):
        due = clock() + delay
        timer = threading.Timer(delay, lambda due=due: late.append(clock() - due))
        timer.start()
        timers.append(timer)
    for timer in timers:
        timer.join()
    return late


def bytes_per_timer(backend: str, rounds: int) -> Iterable[Row]:
    for work, count, span, must in (
        ("bytes per timer, 10,000 in 1000 conversations, dense", 10_000, 10_000, 260),
        ("bytes per timer, 1,000 in 1000 conversations, sparse", 1000, 3_600_000, 600),
    ):
        names, spans = cids(count), delays(count, 1000, span)
        with create_registry(backend) as registry:
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for cid, delay in zip(names, spans, strict=True):
                registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay, event="tick")
            gc.collect()
            size = (tracemalloc.get_traced_memory()[0] - before) / count
            tracemalloc.stop()
        yield Row(work, backend, f"{size:.0f} B", "", None, f"≤ {must} B", size <= must)


def wakeups(backend: str, rounds: int) -> Iterable[Row]:
    if backend == "virtual":
        return
    seen = 0

    def counting() -> int:
        nonlocal seen
        seen += 1
        return time.monotonic_ns()

    with create_registry(backend, clock=counting) as registry:
        registry.schedule_event(cid="c", instance_id="main", delay_ms=3_600_000, event="far")
        registry.settle()
        time.sleep(0.2)
        before = seen
        time.sleep(3)
        woken = seen - before
    yield Row("looks at the clock in 3 s of waiting for a far timer", backend, f"{woken}", "", None, "0", woken == 0)


# -- topics ----------------------------------------------------------------------------------------------------


def fan_out(backend: str, rounds: int) -> Iterable[Row]:
    try:
        from pyee import EventEmitter
    except ImportError:
        EventEmitter = None  # type: ignore[assignment,misc]  # noqa: N806
    for size in (1, 100, 10_000):
        own, same, bare = [], [], []
        for _ in range(rounds):
            messages = max(20, 500_000 // size) if size > 1 else 50_000
            with create_registry(backend, max_pending=None) as registry:
                registry.install_dispatch(ignore)
                _join_many(registry, size)

                def body() -> None:
                    for number in range(messages):  # noqa: B023
                        registry.publish("topic", number)
                    assert registry.settle(60)

                own.append(messages * size / seconds(body))
            if EventEmitter is not None:
                same.append(_emit(EventEmitter(), size, messages, bare=False))
                bare.append(_emit(EventEmitter(), size, messages, bare=True))
        work = f"deliveries at fan-out {size:,}"
        mine = rate(statistics.median(own))
        if not same:
            yield Row(work, backend, mine)
            continue
        must = "≥ 1.5" if size > 1 and backend == "memory" else ""
        ratio = statistics.median(a / b for a, b in zip(own, same, strict=True))
        peer = f"pyee, the same event and dispatch {rate(statistics.median(same))}"
        yield Row(work, backend, mine, peer, ratio, must, ratio >= 1.5 if must else None)
        ratio = statistics.median(a / b for a, b in zip(own, bare, strict=True))
        yield Row(work, backend, mine, f"pyee, a bare callback {rate(statistics.median(bare))}", ratio)


def _join_many(registry: Any, count: int, topic: str = "topic") -> None:
    for number in range(count):
        registry.subscribe(cid=f"s{number}", instance_id="main", topic=topic, event="said")


def _emit(emitter: Any, size: int, messages: int, *, bare: bool) -> float:
    def listener(cid: str) -> Callable[[Any], None]:
        if bare:
            return lambda message: None
        return lambda message: ignore(cid, Event("main", "said", message))

    for number in range(size):
        emitter.add_listener("topic", listener(f"s{number}"))

    def body() -> None:
        for number in range(messages):
            emitter.emit("topic", number)

    return messages * size / seconds(body)


def publish_cost(backend: str, rounds: int) -> Iterable[Row]:
    count = 2000
    costs = {}
    for size in (1, 100, 10_000, 100_000):
        taken = [_publish_cost(backend, size, count) for _ in range(rounds)]
        costs[size] = statistics.median(taken) * 1e9
    flat = max(costs.values()) / min(costs.values())
    figure = ", ".join(f"{size:,}: {cost:.0f} ns" for size, cost in costs.items())
    met = max(costs.values()) <= 1000 and flat <= 1.5
    yield Row("one publish by fan-out, dispatch held", backend, figure, "its own smallest", flat, "≤ 1 us, ≤ 1.5", met)


def _publish_cost(backend: str, size: int, count: int) -> float:
    with create_registry(backend, max_pending=None) as registry, _held(registry, backend):
        _join_many(registry, size)
        return seconds(lambda: [registry.publish("topic", None) for _ in range(count)]) / count


@contextmanager
def _held(registry: Any, backend: str) -> Iterator[None]:
    """While the block runs nothing is delivered; at its end nothing is left to deliver."""
    held, released = threading.Event(), threading.Event()

    def hold(cid: str, event: Event) -> None:
        registry.install_dispatch(ignore)
        held.set()
        released.wait()

    if backend != "virtual":
        registry.install_dispatch(hold)
        registry.schedule_event(cid="holder", instance_id="main", delay_ms=0, event="hold")
        held.wait()
    yield
    registry.reset_state()
    released.set()


def join_and_leave(backend: str, rounds: int) -> Iterable[Row]:
    count = 2000
    costs = {}
    for size in (0, 100_000):
        taken = []
        for _ in range(rounds):
            with create_registry(backend, max_pending=None) as registry, _held(registry, backend):
                _join_many(registry, size)

                def body() -> None:
                    for number in range(count):
                        registry.subscribe(cid="guest", instance_id="main", topic="topic", event="said")
                        if number % 1000 == 0:
                            registry.publish("topic", None)
                        registry.unsubscribe(cid="guest", instance_id="main", topic="topic")

                taken.append(seconds(body) / count)
        costs[size] = statistics.median(taken) * 1e6
    ratio = costs[100_000] / costs[0]
    yield Row(
        "joining and leaving a topic of 100,000, publications in between, dispatch held",
        backend,
        f"{costs[100_000]:.1f} us",
        f"an empty topic {costs[0]:.1f} us",
        ratio,
        "≤ 2",
        ratio <= 2,
    )


def end_of_a_conversation(backend: str, rounds: int) -> Iterable[Row]:
    count = 1000
    costs = {}
    for foreign in (0, 1_000_000):
        with create_registry(backend, max_pending=None) as registry:
            conversations = Conversations(registry)
            _join_many(registry, min(foreign, 100_000), "topic 0")
            for number in range(max(0, foreign - 100_000)):
                registry.subscribe(cid=f"f{number}", instance_id="main", topic=f"far {number % 1000}", event="said")
            taken = []
            for _ in range(rounds):
                opened = [conversations.open() for _ in range(count)]
                for conversation in opened:
                    for number in range(3):
                        conversation.schedule("tick", 60_000 + number)
                        conversation.subscribe(f"topic {number}", "said")
                taken.append(seconds(lambda: [conversation.end() for conversation in opened]) / count)  # noqa: B023
            costs[foreign] = statistics.median(taken) * 1e6
    ratio = costs[1_000_000] / costs[0]
    yield Row(
        "ending a conversation of 3 timers and 3 topics beside 1,000,000 foreign subscriptions",
        backend,
        f"{costs[1_000_000]:.1f} us",
        f"an empty registry {costs[0]:.1f} us",
        ratio,
        "≤ 1.5",
        ratio <= 1.5,
    )


# -- batons, and the virtual clock -------------------------------------------------------------------------------


def batons(backend: str, rounds: int) -> Iterable[Row]:
    names = cids(100_000)
    rates = []
    for _ in range(rounds):
        with create_registry(backend) as registry:
            put, take = registry.put_pending_flow, registry.pending_flow

            def body() -> None:
                for cid in names:
                    put(cid, "flow")  # noqa: B023
                    take(cid)  # noqa: B023

            rates.append(len(names) / seconds(body))
    figure = statistics.median(rates)
    yield Row("put_pending_flow + pending_flow, pairs", backend, rate(figure), "", None, "≥ 1.5 M/s", figure >= 1.5e6)


def virtual_time(backend: str, rounds: int) -> Iterable[Row]:
    if backend != "virtual":
        return
    count = 100_000
    own, other = [], []
    for _ in range(rounds):

        def body() -> None:
            with create_registry("virtual") as registry:
                registry.install_dispatch(ignore)
                fill(registry, count)
                registry.advance(600_000)

        own.append(seconds(body))
        peer = _reactivex(count)
        if peer is not None:
            other.append(peer)
    mine = statistics.median(own)
    if other:
        theirs = statistics.median(other)
        ratio = theirs / mine
        yield Row(
            "timers in and fired",
            backend,
            rate(count / mine),
            f"RxPY {rate(count / theirs)}",
            ratio,
            "≥ 3",
            ratio >= 3,
        )
    day = seconds(_a_day)
    yield Row("a day of 100,000 idle time-outs, all cancelled", backend, f"{day:.2f} s", "", None, "< 1 s", day < 1)


def _reactivex(count: int) -> float | None:
    try:
        from reactivex.scheduler import VirtualTimeScheduler
    except ImportError:
        return None

    def body() -> None:
        scheduler = VirtualTimeScheduler()
        handles: dict[str, dict[int, Any]] = {}
        for key, (cid, delay) in enumerate(zip(cids(count), delays(count, 1, 600), strict=True)):

            def fire(_scheduler: Any, _state: Any, cid: str = cid, key: int = key) -> None:
                del handles[cid][key]

            handles.setdefault(cid, {})[key] = scheduler.schedule_relative(delay, fire)
        scheduler.start()

    return seconds(body)


def _a_day() -> None:
    with create_registry("virtual") as registry:
        for number in range(100_000):
            handle = registry.schedule_event(cid=f"c{number}", instance_id="main", delay_ms=1_800_000, event="idle")
            handle.cancel()
            if number % 100 == 0:
                registry.advance(86_400)


FIGURES = (
    schedule_and_cancel,
    schedule_at_sizes,
    fire_overdue,
    lateness,
    bytes_per_timer,
    fan_out,
    publish_cost,
    join_and_leave,
    batons,
    end_of_a_conversation,
    virtual_time,
    wakeups,
)
HEADINGS = ["work", "backend", "figure", "beside", "ratio", "must", ""]


def table(rows: list[Row]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of each figure (default 3)")
    parser.add_argument("--only", metavar="NAME", help="only the figures whose function has this in its name")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for figure in FIGURES:
        if arguments.only and arguments.only not in figure.__name__:
            continue
        for backend in BACKENDS:
            print(f"{figure.__name__} on {backend} ...", file=sys.stderr, flush=True)
            for row in figure(backend, arguments.rounds):
                if backend != "memory" and figure is not virtual_time:
                    row.must, row.met = "", None  # the targets are memory's, unless a figure is another's alone
                rows.append(row)
    machine = f"CPython {platform.python_version()}, {platform.machine()}, {platform.system()}"
    text = f"{machine}, the median of {arguments.rounds} interleaved rounds.\n\n{table(rows)}\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(f"# Figures\n\nMade by `make figures`. {text}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
