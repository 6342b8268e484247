"""Detects handlers that keep one instant of the virtual clock from ending."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from typing_extensions import override

from stube import VirtualTimeError
from stube.arguments import milliseconds
from stube_backends.engine._arguments import name_of
from stube_backends.engine._order import ReadyOrder
from stube_backends.engine._serial import SerialClaims
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import FanOut
from stube_backends.virtual._trace import Tracer

_LONGEST_CHAIN: Final = 10_000  # rounds of arrivals at one instant


class WatchedClaims(SerialClaims):
    """Claims that refuse endless chains and tell the tracer what causes a delivery.

    What has arrived by now is one round; what its deliveries make arrive at the same instant is the next. A chain
    shows in the number of rounds, however wide each is.
    """

    __slots__ = ("head", "instant", "left", "rounds", "tracer")

    def __init__(self, tracer: Tracer, *parts: Any) -> None:
        super().__init__(*parts)
        self.tracer = tracer
        self.begin_window()

    def begin_window(self) -> None:
        """Count from zero, because a caller moves the clock, or has what is ready delivered."""
        self.instant: int | None = None  # whose rounds are counted
        self.rounds = 0
        self.left = 0  # how many arrivals of this round have not left
        self.head: int | None = None  # the identity of the first arrival when `begin` was last called

    @override
    def begin(self, now: int, failed: bool | None = None) -> Timer | DueBatch | FanOut | None:
        if failed is not None:
            self.finish_timer(failed)  # before anything can be raised
        if now != self.instant:
            self.instant, self.rounds, self.left = now, 0, 0
        arrivals = self.order.arrivals
        if arrivals.after is not arrivals:
            head = id(arrivals.after)
            if self.left and head != self.head:
                self.left -= 1
            self.head = head
            interrupted = self.fan_out is not None or (self.batch is not None and self.batch.timers)
            if not self.left and not interrupted:
                self._begin_round()
        work = SerialClaims.begin(self, now)  # because super() costs 3 % of a delivery (CPython 3.11)
        if work is not None:
            self.tracer.cause = f"topic {work.topic_name}" if isinstance(work, FanOut) else "timer"
        return work

    def _begin_round(self) -> None:
        self.left = sum(1 for _ in self.order.arrivals)
        self.rounds += 1
        if self.rounds > _LONGEST_CHAIN:
            self.rounds = self.left = 0
            raise VirtualTimeError(
                f"Handlers keep scheduling work for the same instant ({milliseconds(self.tracer.clock.now)} ms) after "
                f"{_LONGEST_CHAIN} rounds; next is {describe_next(self.order)}. Use a delay greater than 0."
            )


def describe_next(order: ReadyOrder) -> str:
    """Describe what begins next, for an error message."""
    entry = next(iter(order.arrivals), None) or min(order.wheel, key=attrgetter("due"), default=None)
    if isinstance(entry, Timer) and entry.event is not None:
        return f"the timer {name_of(entry.event)!r} of instance {entry.instance_id!r} of conversation {entry.cid!r}"
    return f"a message on the topic {getattr(entry, 'topic_name', None)!r}"
