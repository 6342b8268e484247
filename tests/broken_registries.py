"""Registries with one fault each, to see that a check which passes can also fail.

Each wraps a real one and breaks it in at most five lines. They are selected as a third party's would be:
`--registry tests.broken_registries:create_lossy`.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from types import TracebackType
from typing import Any, cast

import stube


class _Wrapped:
    """Whatever a fault does not touch goes to the registry behind it."""

    def __init__(self, max_pending: int | None) -> None:
        self._registry = stube.create_registry("memory", max_pending=max_pending)
        self._count = itertools.count(1)
        self._held: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def __enter__(self) -> _Wrapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.close()


class Lossy(_Wrapped):
    """Loses every seventh message, and says that it was delivered."""

    def publish(self, topic: str, msg: Any, /) -> int:
        if next(self._count) % 7 == 0:
            return len(self._registry.subscriptions().get(topic, ()))
        return self._registry.publish(topic, msg)


class Doubling(_Wrapped):
    """Delivers every seventh message twice."""

    def publish(self, topic: str, msg: Any, /) -> int:
        if next(self._count) % 7 == 0:
            self._registry.publish(topic, msg)
        return self._registry.publish(topic, msg)


class Reordering(_Wrapped):
    """Delivers messages ten at a time, the last one first.

    That breaks a sender's order only where two of the ten are of one sender: with few clients. Across senders no order
    is promised that a client could see.
    """

    def publish(self, topic: str, msg: Any, /) -> int:
        self._held.append((topic, msg))
        if len(self._held) == 10:
            while self._held:
                self._registry.publish(*self._held.pop())
        return len(self._registry.subscriptions().get(topic, ()))


class Immortal(_Wrapped):
    """Cancels nothing."""

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return 0


class Deaf(_Wrapped):
    """Hands out handles that say they have cancelled and have not."""

    def schedule_event(self, **arguments: Any) -> stube.TimerHandle:
        self._registry.schedule_event(**arguments)
        return self

    def cancel(self) -> bool:
        return True


class Leaking(_Wrapped):
    """Keeps the subscriptions of a conversation that has ended."""

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return 0


class Hasty(_Wrapped):
    """Its timers begin after four fifths of their delay."""

    def schedule_event(self, *, delay_ms: float, **arguments: Any) -> stube.TimerHandle:
        return self._registry.schedule_event(delay_ms=delay_ms * 0.8, **arguments)


class Miscounting(_Wrapped):
    """Forgets one delivery, on both sides of its ledger, so that the ledger balances all the same."""

    def stats(self) -> stube.Stats:
        stats = self._registry.stats()
        return replace(stats, accepted=max(0, stats.accepted - 1), delivered=max(0, stats.delivered - 1))


class Unbalanced(_Wrapped):
    """Counts a cancelled timer as dropped, too."""

    def stats(self) -> stube.Stats:
        stats = self._registry.stats()
        return replace(stats, dropped=stats.dropped + (1 if stats.cancelled else 0))


class Stuck(_Wrapped):
    """Never delivers: what is published and what is scheduled stays where it is."""

    def install_dispatch(self, dispatch: stube.Dispatch, /) -> None:
        pass


class Hanging(_Wrapped):
    """Never comes back from `settle`, until `release` is set."""

    release = threading.Event()

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self.release.wait()


def create_lossy(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Lossy(max_pending))


def create_doubling(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Doubling(max_pending))


def create_reordering(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Reordering(max_pending))


def create_immortal(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Immortal(max_pending))


def create_deaf(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Deaf(max_pending))


def create_leaking(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Leaking(max_pending))


def create_hasty(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Hasty(max_pending))


def create_miscounting(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Miscounting(max_pending))


def create_unbalanced(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Unbalanced(max_pending))


def create_stuck(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Stuck(max_pending))


def create_hanging(*, max_pending: int | None = 1_000_000) -> stube.Backend:
    return cast("stube.Backend", Hanging(max_pending))
