"""The lateness of clocks beside publications to many other conversations (G27), and without them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Final

from bench.measuring import Effort, Row, clock, interleaved, quantile, row
from bench.subjects import UNBOUNDED, join_many, options_of
from stube import Backend, Conversations, Event, create_registry

__all__ = ["clocks"]

_CLOCKS: Final = 100
_PERIOD_MS: Final = 10
_POLL_S: Final = 0.001  # how often the publisher looks whether its last publication but one has been delivered


def clocks(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure how many milliseconds back-to-back publications add to the p99 lateness of 100 clocks of 10 ms."""
    hearers, duration_s = effort.size(100_000), max(0.2, 3 * effort.scale)
    bodies: dict[str, Callable[[], list[float]]] = {
        "with": partial(_late, backend, hearers, duration_s, publishing=True),
        "without": partial(_late, backend, hearers, duration_s, publishing=False),
    }
    figures = interleaved(effort.rounds, bodies)
    late = {name: [quantile(each, 0.99) for each in rounds] for name, rounds in figures.items()}
    yield row(
        f"p99 lateness of {_CLOCKS} clocks of {_PERIOD_MS} ms that publications to {hearers:,} others add",
        backend,
        [max(0.0, busy - quiet) for busy, quiet in zip(late["with"], late["without"], strict=True)],
        "ms",
        sense="<=",
        must=1.0,
        aim=0.2,
        detail=f"{median(late['with']):.2g} ms with them, {median(late['without']):.2g} ms without",
    )


def _late(backend: str, hearers: int, duration_s: float, *, publishing: bool) -> list[float]:
    """Return the lateness of each tick in milliseconds."""
    found: list[float] = []

    def dispatch(cid: str, event: Event) -> None:
        if event.name == "tick" and event.due is not None:
            found.append((registry.now_ns - event.due) / 1e6)
            conversation = conversations.get(cid)
            if conversation is not None:
                conversation.schedule("tick", _PERIOD_MS, since=event)

    with _served(backend) as registry:
        registry.install_dispatch(dispatch)
        join_many(registry, hearers)
        conversations = Conversations(registry)
        for number in range(_CLOCKS):
            conversations.open().schedule("tick", _PERIOD_MS * (1 + number / _CLOCKS))
        ends = clock() + duration_s
        pause = threading.Event()
        while clock() < ends:
            if publishing and registry.stats().queued <= hearers:
                registry.publish("topic", "hello")
            pause.wait(_POLL_S)
        for conversation in conversations:
            conversation.end()
        registry.reset_state()
    return found


@contextmanager
def _served(backend: str) -> Iterator[Backend]:
    """Give a registry that delivers; one of `asyncio` on a loop in a thread of its own."""
    if "loop" not in (options_of(backend.partition("://")[0]) or ()):
        with create_registry(backend, max_pending=UNBOUNDED) as registry:
            yield registry
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with create_registry(backend, loop=loop, max_pending=UNBOUNDED) as registry:
            yield registry
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
