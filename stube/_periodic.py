"""Periodic timers: one handle for events that a conversation gets again and again, without drift.

A registry has timers that fire once. A periodic timer is the payload of such a timer, its next tick. The backend that
is about to deliver the tick calls `PeriodicTimer.tick`, which schedules the one after it and returns the event that
dispatch gets. So a tick that is late delays no later one, and a handler that fails ends nothing.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, Protocol, TypeAlias, get_args

from stube._errors import RegistryClosed, StubeError
from stube._events import NO_PAYLOAD, Event, EventSpec
from stube._registry import Registry, TimerHandle
from stube._typing import override
from stube.arguments import delay_in_nanoseconds, exact_milliseconds, milliseconds, plain_event, plain_name

__all__ = ["Missed", "PeriodicTimer", "present_instant"]

Missed: TypeAlias = Literal["skip", "make_up"]
"""What becomes of the ticks that are over when one begins late: they are skipped, or all of them made up for."""


class Owner(Protocol):
    """What a periodic timer asks of its conversation."""

    _lock: threading.RLock

    @property
    def cid(self) -> str: ...

    @property
    def ended(self) -> bool: ...

    @property
    def _registry(self) -> Registry: ...

    def _forget_periodic(self, timer: PeriodicTimer) -> None:
        """Forget a timer that is over. The caller holds the lock."""


class PeriodicTimer:
    """A timer that fires at every whole period after the instant at which it was made. Made by `Conversation.every`.

    It is a `TimerHandle`. Any thread may cancel it, its own handler as well.
    """

    # Guarded by the lock of the conversation, under which it is also cancelled and ended: `tick` schedules the next one
    # only while it is not. A signal handler or finalizer may cancel it in the middle of `tick`, on the same thread. So
    # `cancel` sets `_cancelled` BEFORE it cancels the timer, and `tick` reads it AFTER it has scheduled one.
    __slots__ = (
        "_began", "_cancelled", "_instance_id", "_makes_up", "_name", "_number", "_owner", "_payload", "_period",
        "_timer",
    )  # fmt: skip

    def __init__(self, owner: Owner, event: EventSpec, period_ms: float, instance_id: str, missed: Missed) -> None:
        plain = plain_event(event)
        payload = () if isinstance(plain, str) else plain[1:]
        self._name: str = plain if isinstance(plain, str) else plain[0]
        self._payload: Any = payload if len(payload) > 1 else payload[0] if payload else NO_PAYLOAD
        self._owner = owner
        self._instance_id = plain_name("instance_id", instance_id)
        self._period = _checked_period(period_ms)  # nanoseconds
        if missed not in get_args(Missed):
            raise ValueError(f"missed must be 'skip' or 'make_up', not {missed!r}. Choose one of them.")
        self._makes_up = missed == "make_up"
        self._number = 0  # of the tick that is pending, or was delivered last
        self._cancelled = False
        self._timer: TimerHandle | None = None
        registry = owner._registry
        if not getattr(registry, "begins_periodic_timers", False):
            raise TypeError(
                f"every needs a registry that begins periodic timers, as those that ship do; {registry!r} does not. "
                "Let the handler schedule its next event, with schedule(..., since=event)."
            )
        self._began = present_instant(registry, "every")

    @property
    def instance_id(self) -> str:
        """The component of the conversation that gets the ticks."""
        return self._instance_id

    def cancel(self) -> bool:
        """Cancel all further ticks; True when this very call did. Final: none begins after the return. O(1)."""
        with self._owner._lock:
            if self._is_over():
                return False
            self._cancelled = True
            self._owner._forget_periodic(self)
            if self._timer is not None:
                self._timer.cancel()
            return True

    def tick(self) -> Event:
        """Return the event of the tick that is being delivered, and schedule the next one.

        For backends: called on the thread that is about to call dispatch, which holds no lock.
        """
        refusal: StubeError | None = None
        with self._owner._lock:
            due = self._began + self._number * self._period
            if not self._is_over():
                try:
                    self._schedule_next()
                except StubeError as exc:
                    self._cancelled = True
                    self._owner._forget_periodic(self)
                    refusal = exc
        if refusal is not None and not isinstance(refusal, RegistryClosed):
            from logging import getLogger  # slow to import

            getLogger("stube").error("%r of conversation %r ends: %s", self, self._owner.cid, refusal)
        return Event(self._instance_id, self._name, self._payload, due=due)

    def _schedule_next(self) -> None:
        """Schedule the next tick: the one after the last, or the first one that has not been missed."""
        registry = self._owner._registry
        elapsed = present_instant(registry, "every") - self._began
        self._number += 1
        if not self._makes_up:
            self._number = max(self._number, -(-elapsed // self._period))
        left = self._number * self._period - elapsed
        self._timer = registry.schedule_event(
            cid=self._owner.cid,
            instance_id=self._instance_id,
            delay_ms=exact_milliseconds(max(0, left)),
            event=(self._name, self),
        )
        if self._is_over():
            self._timer.cancel()

    def _is_over(self) -> bool:
        return self._cancelled or self._owner.ended

    @override
    def __repr__(self) -> str:
        state = ", over" if self._is_over() else ""
        return f"<PeriodicTimer {self._name!r} every {milliseconds(self._period):g} ms{state}>"


def present_instant(registry: Registry, what: str) -> int:
    """Return the present instant on a registry's clock, in nanoseconds.

    Args:
        registry: any; only a `stube.Backend` is sure to show it.
        what: needs the instant, for the error.
    """
    now = getattr(registry, "now_ns", None)
    if type(now) is not int:
        raise TypeError(
            f"{what} needs a registry that shows the present instant, and {registry!r} has no now_ns. "
            "Use a registry that is a stube.Backend."
        )
    return now


def _checked_period(period_ms: float) -> int:
    """Return a period in nanoseconds."""
    period = delay_in_nanoseconds(period_ms, "period")
    if not period:
        raise ValueError(f"period must be greater than 0, not {period_ms!r}. Pass milliseconds or a timedelta.")
    return period
