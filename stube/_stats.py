"""The figures that a registry gives of itself: the ledger's snapshot and the view of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from stube._events import EventSpec

__all__ = ["ConversationInfo", "Stats", "SubscriptionInfo", "TimerInfo"]


@dataclass(frozen=True, slots=True)
class Stats:
    """The ledger: every accepted delivery has exactly one fate.

    Whenever nothing is running, `balanced` holds exactly:

        accepted == delivered + failed + cancelled + dropped + timers + queued + running

    No figure is ever negative. Each is counted on its own; none is computed from the others. While deliveries
    run, a figure may lag by the batch in progress. The counters since the start survive a reset; in a forked
    child they start at 0.

    >>> Stats(accepted=3, delivered=2, timers=1).balanced
    True
    >>> Stats(accepted=3, delivered=2).balanced
    False
    """

    pending_flows: int = 0
    """Batons that wait for their stream."""
    subscriptions: int = 0
    """Live subscriptions."""
    timers: int = 0
    """Timers that have not begun, due or not."""
    queued: int = 0
    """Targets of publications that have not begun."""
    running: int = 0
    """Deliveries that have begun and whose fate is not counted yet."""
    accepted: int = 0
    """Since the start: timers scheduled, and targets of publications."""
    delivered: int = 0
    """Since the start: deliveries whose dispatch returned."""
    failed: int = 0
    """Since the start: deliveries whose dispatch raised."""
    cancelled: int = 0
    """Since the start: prevented by a cancelling operation."""
    dropped: int = 0
    """Since the start: discarded by `reset_state`, by `close` or by an overflow policy."""

    @property
    def balanced(self) -> bool:
        """True when the two sides of the equation agree."""
        return self.accepted == (
            self.delivered + self.failed + self.cancelled + self.dropped + self.timers + self.queued + self.running
        )

    @property
    def equation(self) -> str:
        """The equation with its figures, for people.

        >>> Stats(accepted=3, delivered=2, timers=1).equation
        '3 accepted == 2 delivered + 0 failed + 0 cancelled + 0 dropped + 1 timers + 0 queued + 0 running'
        """
        right = ("delivered", "failed", "cancelled", "dropped", "timers", "queued", "running")
        sign = "==" if self.balanced else "!="
        return f"{self.accepted} accepted {sign} " + " + ".join(f"{getattr(self, name)} {name}" for name in right)


@dataclass(frozen=True, slots=True)
class TimerInfo:
    """One pending timer of a conversation."""

    instance_id: str
    event: EventSpec
    remaining_ms: float
    """Milliseconds until it is due; 0.0 when it is due already. Never negative; infinite past what a float holds."""


@dataclass(frozen=True, slots=True)
class SubscriptionInfo:
    """One live subscription of a conversation."""

    instance_id: str
    topic: str
    event: EventSpec


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """Everything that a registry holds of one conversation, at one instant."""

    timers: tuple[TimerInfo, ...] = ()
    """In the order in which they are due."""
    subscriptions: tuple[SubscriptionInfo, ...] = ()
    queued: int = 0
    """Messages that have been published to it and have not begun."""
    running: int = 0
    """1 while one of its deliveries runs, else 0."""
    pending_flow: bool = False
    """True when a baton waits for its stream."""
