"""A registry under test with its recorder, and the verbs in which virtual and real time differ."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

from stube import Backend, EventSpec, Stats, TimerHandle, VirtualBackend, is_virtual
from stube.testing._harness.clock import PATIENCE, monotonic_ns
from stube.testing._harness.recorder import HOLD, SENTINEL, Gate, Recorder

__all__ = ["Driver", "settle_awaiting", "settles", "while_it_advances"]

_DRIVER: Final = "stube-driver"
_ROUNDS: Final = 4  # looks within `PATIENCE` whether less is pending


class Driver:
    """A registry under test with its recorder, and the few verbs in which virtual and real time differ."""

    def __init__(self, registry: Backend) -> None:
        self.registry = registry
        self.clock: VirtualBackend | None = registry if is_virtual(registry) else None
        self.recorder = Recorder(self.now_ms)
        # Deliveries that the driver caused for its own use; subtracted from the ledger that a test compares.
        self._own = 0
        registry.install_dispatch(self.recorder)

    def now_ms(self) -> float:
        """Return the instant, on the clock of the registry's timers."""
        return monotonic_ns() / 1e6 if self.clock is None else self.clock.now_ms

    def schedule(
        self, delay_ms: float = 0, event: EventSpec = "tick", *, cid: str = "c1", instance_id: str = "main"
    ) -> TimerHandle:
        """`schedule_event` with defaults."""
        return self.registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)

    def subscribe(
        self, topic: str = "t", event: EventSpec = "said", *, cid: str = "c1", instance_id: str = "main"
    ) -> None:
        """`subscribe` with defaults."""
        self.registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event=event)

    def settle(self) -> None:
        """Wait until everything that is ready has been delivered."""
        assert settles(self.registry), f"does not settle: {self.registry.stats().equation}"

    def pass_time(self, ms: float) -> None:
        """Let `ms` pass, and wait until everything that is due by then has been delivered.

        On a real clock a timer of that delay on the same registry tells when the time is over.
        """
        if self.clock is not None:
            self.clock.advance(ms)
            return
        key, arrived = self.recorder.sentinel()
        self._own += 1
        self.registry.schedule_event(cid=_DRIVER, instance_id=_DRIVER, delay_ms=ms, event=(SENTINEL, key))
        assert arrived.wait(ms / 1000 + PATIENCE), f"a timer of {ms} ms did not fire"
        self.settle()

    @contextmanager
    def delivering(self, advance_ms: float | None = None) -> Iterator[None]:
        """Deliver in the background during the block; at its end every gate opens.

        A backend with real time delivers anyway. On a virtual clock a helper thread settles, or advances by
        `advance_ms`; the block may call every operation, but not move the clock.
        """
        if self.clock is None:
            try:
                yield
            finally:
                self.recorder.release_all()
            return
        clock, errors = self.clock, list[BaseException]()

        def deliver() -> None:
            try:
                if advance_ms is None:
                    clock.settle(PATIENCE)
                else:
                    clock.advance(advance_ms)
            except BaseException as exc:  # noqa: BLE001 - handed to the test
                errors.append(exc)

        helper = threading.Thread(target=deliver, daemon=True)
        helper.start()
        try:
            yield
        finally:
            self.recorder.release_all()
            helper.join(PATIENCE)
        assert not helper.is_alive(), "the helper thread does not end"
        if errors:
            raise errors[0]

    @contextmanager
    def held(self, *cids: str, advance_ms: float | None = None) -> Iterator[Gate]:
        """Hold up the deliveries of these conversations during the block; what the block adds must wait.

        A backend with a single delivery thread delivers nothing at all then. See `delivering` for virtual clocks.
        """
        gate = self.recorder.gate()
        for cid in cids or (_DRIVER,):
            self._own += 1
            self.registry.schedule_event(cid=cid, instance_id=_DRIVER, delay_ms=0, event=(HOLD, gate.key))
        with self.delivering(advance_ms):
            gate.wait_entered()
            yield gate

    def stats(self) -> Stats:
        """Settle and return the ledger, without the driver's own deliveries."""
        self.settle()
        stats = self.registry.stats()
        return replace(stats, accepted=stats.accepted - self._own, delivered=stats.delivered - self._own)

    def sizes(self) -> Mapping[str, int]:
        """Settle and return the length of every internal container; capability `sizes`."""
        self.settle()
        return dict(cast(Any, self.registry).sizes())

    def subscribers(self, topic: str) -> list[tuple[str, str]]:
        """Return the subscribers in the order of joining; sorted if the backend has no order across conversations."""
        found = list(self.registry.subscriptions().get(topic, {}))
        return found if "common_topic_order" in self.registry.capabilities else sorted(found)

    def counts(self) -> Counter[str]:
        """Return how many deliveries each conversation had."""
        return Counter(self.recorder.cids)


def settles(registry: Backend) -> bool:
    """Settle a registry, for as long as it gets less to do. Return whether it has settled."""
    return while_it_advances(registry, registry.settle)


def while_it_advances(registry: Backend, wait: Callable[[float], bool]) -> bool:
    """Wait for as long as less and less is pending. Return whether it came about.

    What is much may take long on a busy machine. What is lost stays pending, and what is delivered without end is not
    less in the end. It gives up `PATIENCE` seconds after the last change, which is before the watchdog does.
    """
    least, rounds = _pending(registry.stats()), 0
    while not wait(PATIENCE / _ROUNDS):
        pending, rounds = _pending(registry.stats()), rounds + 1
        if pending < least:
            least, rounds = pending, 1  # it may have changed at the beginning of the round
        elif rounds >= _ROUNDS:
            return False
    return True


def _pending(stats: Stats) -> int:
    return stats.timers + stats.queued + stats.running


def settle_awaiting(registry: Backend) -> None:
    """Settle a registry whose dispatch may return awaitables, which a virtual clock awaits only in `settled`."""
    if is_virtual(registry) and "coroutine_dispatch" in registry.capabilities:
        settled = asyncio.run(registry.settled(PATIENCE))
    else:
        settled = settles(registry)
    assert settled, f"does not settle: {registry.stats().equation}"
