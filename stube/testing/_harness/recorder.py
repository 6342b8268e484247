"""A dispatch that records every delivery, and gates that hold deliveries inside dispatch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stube import Event
from stube.testing._harness.clock import PATIENCE

__all__ = ["HOLD", "SENTINEL", "Gate", "Recorder", "Seen"]

HOLD: Final = "stube-hold"
SENTINEL: Final = "stube-sentinel"


class Seen(NamedTuple):
    """One delivery as the recorder saw it."""

    cid: str
    event: Event
    at_ms: float
    """When it began: virtual milliseconds, or those of `time.monotonic_ns`."""
    thread: int


class Gate:
    """Holds deliveries inside dispatch until the test releases them."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.entered = threading.Event()
        self.released = threading.Event()
        self.gave_up = False
        """Whether a delivery was held for too long, because what should have released it waited for the delivery."""

    def release(self) -> None:
        """Let the held deliveries return. May be called again."""
        self.released.set()

    def wait_entered(self) -> None:
        """Wait until a delivery is held."""
        assert self.entered.wait(PATIENCE), "no delivery came to the gate"

    def pass_through(self) -> None:
        """Called by the delivery: report that it has entered, and wait until it is released."""
        self.entered.set()
        if not self.released.wait(6 * PATIENCE):  # longer than a test takes to prepare what shall wait
            self.gave_up = True


class Recorder:
    """A dispatch that records every delivery, in the order in which they begin, and checks G1.

    `on(name, handler)` runs `handler(cid, event)` inside the deliveries of that event name. Deliveries that the driver
    caused for its own use are not recorded.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        # Guards everything below.
        self._condition = threading.Condition()
        self._running: set[str] = set()
        self._handlers: dict[str, Callable[[str, Event], object]] = {}
        self._gates: dict[str, Gate] = {}
        self._sentinels: dict[str, threading.Event] = {}
        self._made = 0
        self.seen: list[Seen] = []
        self.overlaps: list[str] = []
        """Conversations that had two deliveries at the same time; empty when G1 holds."""

    def __call__(self, cid: str, event: Event) -> None:
        if event.name == SENTINEL:
            self._sentinels.pop(event.payload).set()
            return
        if event.name == HOLD:
            self._gates[event.payload].pass_through()
            return
        at_ms = self._now_ms()
        with self._condition:
            if cid in self._running:
                self.overlaps.append(cid)
            self._running.add(cid)
            self.seen.append(Seen(cid, event, at_ms, threading.get_ident()))
            handler = self._handlers.get(event.name)
            self._condition.notify_all()
        try:
            if handler is not None:
                handler(cid, event)
        finally:
            with self._condition:
                self._running.discard(cid)

    def on(self, name: str, handler: Callable[[str, Event], object]) -> None:
        """Run `handler` inside every delivery whose event has this name."""
        self._handlers[name] = handler

    def gate(self) -> Gate:
        """Return a new gate."""
        self._made += 1
        gate = Gate(f"gate-{self._made}")
        self._gates[gate.key] = gate
        return gate

    def sentinel(self) -> tuple[str, threading.Event]:
        """Return a key that the driver may schedule, and the event that is set when the key is delivered."""
        self._made += 1
        key, arrived = f"sentinel-{self._made}", threading.Event()
        self._sentinels[key] = arrived
        return key, arrived

    @property
    def gave_up(self) -> bool:
        """Whether a gate opened by itself."""
        return any(gate.gave_up for gate in list(self._gates.values()))

    def release_all(self) -> None:
        """Open every gate, so that no delivery stays held after a failure."""
        for gate in self._gates.values():
            gate.release()

    def wait_for(self, count: int, timeout: float = PATIENCE) -> bool:
        """Wait until `count` deliveries have begun. Return whether they did in time."""
        with self._condition:
            return self._condition.wait_for(lambda: len(self.seen) >= count, timeout)

    def clear(self) -> None:
        """Forget what was recorded, including the payloads."""
        with self._condition:
            self.seen.clear()

    @property
    def names(self) -> list[str]:
        """The event names, in the order in which the deliveries began."""
        return [seen.event.name for seen in list(self.seen)]

    @property
    def payloads(self) -> list[Any]:
        """The payloads, in the order in which the deliveries began."""
        return [seen.event.payload for seen in list(self.seen)]

    @property
    def cids(self) -> list[str]:
        """The conversations, in the order in which the deliveries began."""
        return [seen.cid for seen in list(self.seen)]

    def of(self, cid: str) -> list[Seen]:
        """Return the deliveries of one conversation."""
        return [seen for seen in list(self.seen) if seen.cid == cid]
