"""Registries with one fault each. They show that a check which passes can also fail.

Each stands in front of a real one and breaks it in at most five lines. They are selected like a third party's:
`--registry tests.broken_registries:Lossy`.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import Any

from typing_extensions import override

import stube
from stube.testing._harness import RegistryProxy


class Broken(RegistryProxy):
    """A registry with one fault, in front of a memory registry that it makes."""

    def __init__(self, *, max_pending: int | None = 1_000_000) -> None:
        super().__init__(stube.create_registry("memory", max_pending=max_pending))
        self._count = itertools.count(1)
        self._held: list[Any] = []


class Lossy(Broken):
    """Loses every seventh message, and says that it was delivered."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        if next(self._count) % 7 == 0:
            return len(self.registry.subscriptions().get(topic, ()))
        return self.registry.publish(topic, msg)


class Doubling(Broken):
    """Delivers every seventh message twice."""

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        if next(self._count) % 7 == 0:
            self.registry.publish(topic, msg)
        return self.registry.publish(topic, msg)


class Reordering(Broken):
    """Delivers messages ten at a time, the last one first.

    That breaks a sender's order only where two of the ten are of one sender: with few clients. Across senders no order
    is promised that a client could see.
    """

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        self._held.append((topic, msg))
        if len(self._held) == 10:
            while self._held:
                self.registry.publish(*self._held.pop())
        return len(self.registry.subscriptions().get(topic, ()))


class Immortal(Broken):
    """Cancels nothing."""

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return 0


class Deaf(Broken):
    """Hands out handles that say they have cancelled and have not."""

    @override
    def schedule_event(self, **arguments: Any) -> stube.TimerHandle:
        self.registry.schedule_event(**arguments)
        return self

    def cancel(self) -> bool:
        return True


class Leaking(Broken):
    """Keeps the subscriptions of a conversation that has ended."""

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return 0


class Hasty(Broken):
    """Its timers begin after four fifths of their delay."""

    @override
    def schedule_event(self, *, delay_ms: float, **arguments: Any) -> stube.TimerHandle:
        return self.registry.schedule_event(delay_ms=delay_ms * 0.8, **arguments)


class Miscounting(Broken):
    """Forgets one delivery, on both sides of its ledger, so that the ledger balances all the same."""

    @override
    def stats(self) -> stube.Stats:
        stats = self.registry.stats()
        return replace(stats, accepted=max(0, stats.accepted - 1), delivered=max(0, stats.delivered - 1))


class Unbalanced(Broken):
    """Counts a cancelled timer as dropped, too."""

    @override
    def stats(self) -> stube.Stats:
        stats = self.registry.stats()
        return replace(stats, dropped=stats.dropped + (1 if stats.cancelled else 0))


class Stuck(Broken):
    """Never delivers: messages and timers stay pending."""

    @override
    def install_dispatch(self, dispatch: stube.Dispatch, /) -> None:
        pass


class Hanging(Broken):
    """Never returns from `settle` until `release` is set."""

    release = threading.Event()

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return self.release.wait()
