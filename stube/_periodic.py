"""Periodic timers: one handle for events that a conversation gets again and again, without drift.

Each tick is an ordinary timer of the registry. Its payload says which periodic timer it belongs to; a registry passes
its event through `event_for_dispatch` directly before dispatch, which schedules the following tick and returns the
event that dispatch gets. So a tick that is late delays no later one, and a handler that fails ends nothing.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, get_args

from stube._errors import RegistryClosed
from stube._events import NO_PAYLOAD, Event, EventSpec
from stube._registry import Registry, TimerHandle
from stube._typing import override
from stube.arguments import delay_in_nanoseconds, exact_milliseconds, milliseconds, plain_event, plain_name

__all__ = ["Missed", "PeriodicTimer", "event_for_dispatch", "present_instant"]

Missed: TypeAlias = Literal["skip", "make_up"]
"""What becomes of the ticks that are over when one begins late: they are skipped, or all of them made up for."""


class Owner(Protocol):
    """What a periodic timer asks of its conversation."""

    @property
    def cid(self) -> str: ...

    @property
    def ended(self) -> bool: ...

    @property
    def _registry(self) -> Registry: ...

    @property
    def _periodic(self) -> set[PeriodicTimer] | None:
        """Return the periodic timers that are not over."""


class PeriodicTimer:
    """A timer that fires at every whole period after the instant at which it was made. Made by `Conversation.every`.

    It is a `TimerHandle`. Any thread may cancel it, its own handler as well.
    """

    # No lock: a tick must not wait for one whose owner waits for the registry. The timer is over when it has left the
    # set of its conversation, which is one step, so that one of several cancels does it; or when the conversation has
    # ended. What cancels takes it out BEFORE it cancels the pending tick, and `schedule_next` looks AFTER it has
    # scheduled one: in each order, one of the two sees the other. The next tick cannot begin in between, because the
    # deliveries of a conversation run one after the other.
    __slots__ = (
        "_began", "_instance_id", "_makes_up", "_name", "_number", "_owner", "_payload", "_period", "_timer",
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
        self._number = 0  # of the tick that is pending, or was delivered last; used by the delivering thread
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
        try:
            (self._owner._periodic or set()).remove(self)
        except KeyError:
            return False
        timer = self._timer
        if timer is not None:
            timer.cancel()
        return True

    def forget(self) -> None:
        """Let no further tick be scheduled, for a caller that cancels the pending one."""
        (self._owner._periodic or set()).discard(self)

    def begin_tick(self) -> Event:
        """Return the event of the tick that is being delivered, and schedule the next one."""
        due = self._began + self._number * self._period
        if not self._is_over():
            try:
                self.schedule_next()
            except BaseException as exc:
                self.forget()
                if not isinstance(exc, Exception):
                    raise
                if not isinstance(exc, RegistryClosed):
                    from logging import getLogger  # slow to import

                    getLogger("stube").error("%r of conversation %r ends: %s", self, self._owner.cid, exc)
        return Event(self._instance_id, self._name, self._payload, due=due)

    def schedule_next(self) -> None:
        """Schedule the next tick: the one after the last, or the first one that is not over."""
        registry = self._owner._registry
        elapsed = present_instant(registry, "every") - self._began
        self._number += 1
        if not self._makes_up:
            self._number = max(self._number, -(-elapsed // self._period))
        left = self._number * self._period - elapsed
        timer = self._timer = registry.schedule_event(
            cid=self._owner.cid,
            instance_id=self._instance_id,
            delay_ms=exact_milliseconds(max(0, left)),
            event=(self._name, _Tick(self)),
        )
        if self._is_over():
            timer.cancel()

    def _is_over(self) -> bool:
        return self._owner.ended or self not in (self._owner._periodic or ())

    @override
    def __repr__(self) -> str:
        state = ", over" if self._is_over() else ""
        return f"<PeriodicTimer {self._name!r} every {milliseconds(self._period):g} ms{state}>"


class _Tick:
    """The payload of a tick that is pending. No handler gets it, so that no other event can have it."""

    __slots__ = ("timer",)

    def __init__(self, timer: PeriodicTimer) -> None:
        self.timer = timer

    @override
    def __repr__(self) -> str:
        return repr(self.timer)


def event_for_dispatch(event: Event) -> Event:
    """Return the event that dispatch gets: the same, or that of a periodic timer, whose next tick is scheduled thereby.

    For backends: called for each event of a timer directly before dispatch, while this thread holds no lock. A registry
    that does so says it with `begins_periodic_timers = True`.
    """
    payload = event.payload
    return payload.timer.begin_tick() if type(payload) is _Tick else event


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
