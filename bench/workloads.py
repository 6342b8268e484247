"""Whole workloads of hosts: each is a context manager that gives the body to measure, which is run once.

`bench/test_workloads.py` runs them, each round on a new registry.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from bench.measuring import Plan
from bench.subjects import UNBOUNDED, as_virtual, drained, filled, held, join_many, opened
from stube import Backend, Conversations, Event, is_virtual

__all__ = ["WORKLOADS", "Workload"]

Body = Callable[[], None]
_AN_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True)
class Workload:
    """One workload at the sizes at which it is measured."""

    name: str
    sizes: tuple[int, ...]
    prepared: Callable[[str, int], AbstractContextManager[Body]]


@contextmanager
def mount_storm(backend: str, size: int) -> Iterator[Body]:
    """After a deploy all pages come back at the same time: each gets a baton, a time-out of an hour and a topic; then
    its stream connects and takes the baton."""

    def body() -> None:
        for conversation in [conversations.open() for _ in range(size)]:
            conversation.put_flow("checkout")
            conversation.schedule("abandoned", _AN_HOUR_MS)
            conversation.subscribe("news", "said")
        taken = sum(conversation.take_flow() is not None for conversation in conversations)
        assert taken == size

    with opened(backend) as registry:
        conversations = Conversations(registry)
        yield body


@contextmanager
def chat_room(backend: str, size: int) -> Iterator[Body]:
    """Four threads publish 50 messages each to a room of `size`, until all subscribers have received all messages."""
    publishers, messages = 4, 50

    def publish() -> None:
        for number in range(messages):
            registry.publish("room", ("said", number))

    def body() -> None:
        threads = [threading.Thread(target=publish) for _ in range(publishers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drained(registry)
        assert registry.stats().delivered == publishers * messages * size

    with opened(backend, max_pending=UNBOUNDED) as registry:
        join_many(registry, size, "room")
        yield body


@contextmanager
def clock_per_tab(backend: str, size: int) -> Iterator[Body]:
    """Each of `size` tabs has a clock: a timer that re-arms itself ten times, as fast as it can."""
    ticks = 10
    left: defaultdict[str, int] = defaultdict(lambda: ticks)

    def tick(cid: str, event: Event) -> None:
        left[cid] -= 1
        if left[cid]:
            arm(cid)

    def arm(cid: str) -> None:
        registry.schedule_event(cid=cid, instance_id="clock", delay_ms=1, event="tick")

    def body() -> None:
        for number in range(size):
            arm(f"c{number}")
        drained(registry)
        assert registry.stats().delivered == ticks * size

    with opened(backend) as registry:
        registry.install_dispatch(tick)
        yield body


@contextmanager
def time_outs(backend: str, size: int) -> Iterator[Body]:
    """`size` requests, a hundred at a time, each with a time-out of 30 s that its response cancels, except for one in a
    hundred."""

    def body() -> None:
        waiting: deque[Any] = deque()
        for number in range(size):
            cid = f"c{number % 1000}"
            waiting.append(registry.schedule_event(cid=cid, instance_id="main", delay_ms=30_000, event="time-out"))
            if len(waiting) == 100:
                answered = waiting.popleft()
                if number % 100:
                    answered.cancel()

    with opened(backend) as registry:
        yield body


@contextmanager
def conversations_end(backend: str, size: int) -> Iterator[Body]:
    """A thousand conversations of three timers and three topics end, one by one, beside `size` foreign timers and
    `size` foreign subscriptions."""
    with opened(backend, max_pending=UNBOUNDED) as registry, held(registry):
        filled(registry, Plan(size, 3600, 7200))
        join_many(registry, size, "topic 0")
        conversations = Conversations(registry)
        ending = [conversations.open() for _ in range(min(size, 1000))]
        for conversation in ending:
            for number in range(3):
                conversation.schedule("tick", _AN_HOUR_MS)
                conversation.subscribe(f"topic {number}", "said")

        def body() -> None:
            for conversation in ending:
                conversation.end()
            assert registry.stats().timers == size

        yield body
        registry.reset_state()


@contextmanager
def overdue_burst(backend: str, size: int) -> Iterator[Body]:
    """`size` timers are overdue at the same time, because the machine was asleep or a handler was slow."""
    with opened(backend) as registry, held(registry) as release:
        filled(registry, Plan(size, 0.0001, 0.010))
        if not is_virtual(registry):
            time.sleep(0.02)  # until the last one is overdue; there is no event to wait for

        def body() -> None:
            release()
            _let_pass(registry, 20)
            assert registry.stats().delivered >= size

        yield body


def _let_pass(registry: Backend, milliseconds: float) -> None:
    if is_virtual(registry):
        as_virtual(registry).advance(milliseconds)
    else:
        drained(registry)


WORKLOADS: Final = (
    Workload("mount storm", (10_000, 100_000), mount_storm),
    Workload("chat room", (10, 1000), chat_room),
    Workload("a clock per tab", (1000, 10_000), clock_per_tab),
    Workload("time-outs nearly always cancelled", (100_000,), time_outs),
    Workload("1000 conversations end beside foreign state", (1000, 100_000), conversations_end),
    Workload("overdue burst", (10_000, 100_000), overdue_burst),
)
