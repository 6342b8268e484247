"""The backends under measurement: those that are installed, and the helpers that bodies call on any of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Final, cast

from bench.measuring import Plan, clock, leave_out
from stube import Backend, Event, VirtualBackend, available_backends, create_registry, is_virtual

__all__ = [
    "UNBOUNDED",
    "as_virtual",
    "drained",
    "filled",
    "held",
    "ignore",
    "installed",
    "join_many",
    "opened",
    "options_of",
    "wait_until",
]

UNBOUNDED: Final = 10**15
"""A `max_pending` that no body reaches, for work that holds more than a million deliveries back. It costs the same as
any other bound, whereas None might cost less."""
_PATIENCE: Final = 300.0  # seconds; reached only when something is wrong


@cache
def options_of(name: str) -> tuple[str, ...] | None:
    """Return the options of an installed backend; None if there is none of that name, or it does not load."""
    for info in available_backends():
        if info.name == name and info.loads:
            return info.options
    return None


def installed(specs: Sequence[str]) -> list[str]:
    """Return those of `specs` whose backend is installed. The others are left out, which is reported once."""
    found = []
    for spec in specs:
        name = spec.partition("://")[0]
        if options_of(name) is None:
            leave_out(f"The backend {name!r} is not installed here and is left out.")
        else:
            found.append(spec)
    return found


def ignore(cid: str, event: Event) -> None:
    """A dispatch that does nothing."""


def opened(spec: str, **options: object) -> Backend:
    """Return a new registry whose dispatch does nothing."""
    registry = create_registry(spec, **options)
    registry.install_dispatch(ignore)
    return registry


def filled(registry: Backend, plan: Plan) -> None:
    """Schedule every timer of the plan."""
    schedule = registry.schedule_event
    for cid, delay in plan.in_milliseconds:
        schedule(cid=cid, instance_id="main", delay_ms=delay, event="tick")


def join_many(registry: Backend, count: int, topic: str = "topic") -> None:
    """Subscribe `count` conversations to a topic."""
    for number in range(count):
        registry.subscribe(cid=f"s{number}", instance_id="main", topic=topic, event="said")


def drained(registry: Backend) -> None:
    """Wait until everything that is pending has been delivered."""
    assert registry.join(None if is_virtual(registry) else _PATIENCE)


@contextmanager
def held(registry: Backend) -> Iterator[Callable[[], None]]:
    """Hold all deliveries until the function that the block is given is called, or the block ends.

    Each delivery thread waits inside one delivery. The dispatch for the other deliveries is the one that does nothing.
    A virtual registry delivers only when it is told to, so there is nothing to hold.
    """
    if is_virtual(registry):
        yield lambda: None
        return
    released = threading.Event()
    arrived = threading.Semaphore(0)

    def hold(cid: str, event: Event) -> None:
        arrived.release()
        released.wait()

    registry.install_dispatch(hold)
    # Enough of them that every shard gets one. Those that wait behind another one are cancelled.
    holders = [f"holder {number}" for number in range(512)]
    for cid in holders:
        registry.schedule_event(cid=cid, instance_id="main", delay_ms=0, event="hold")
    assert arrived.acquire(timeout=_PATIENCE)
    while arrived.acquire(timeout=0.02):  # the number of delivery threads is unknown, but all arrive at about one time
        pass
    for cid in holders:
        registry.cancel_timers(cid)
    registry.install_dispatch(ignore)
    try:
        yield released.set
    finally:
        released.set()


def as_virtual(registry: Backend) -> VirtualBackend:
    """Return the same registry with the type of a virtual one."""
    return cast(VirtualBackend, registry)


def wait_until(instant: float) -> None:
    """Sleep until the clock of the measurements has reached `instant`."""
    pause = threading.Event()
    while (left := instant - clock()) > 0:
        pause.wait(left)
