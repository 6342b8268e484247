"""The ready order: timers and publications, merged by their ready instants (G2).

A publication is ready at the instant at which it was accepted, a timer at its due instant. What is ready at the
very instant of its acceptance (every publication, and every timer without delay) arrives in one ring, in the order
of acceptance; instants of acceptance never run backwards, so that ring is sorted. A timer with a delay waits in the
wheel. Merging the two needs no sequence numbers: a timer of the wheel that is due at the instant of an arrival was
accepted before that instant, so on a tie the wheel goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from stube.arguments import PlainEvent
from stube_backends.engine._rings import Ring, move_behind, unlink
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Publication
from stube_backends.engine._wheel import OPEN, Slot, TimerWheel

EARLIEST: Final = -(1 << 100)
"""An instant before every clock reading."""


Arrival: TypeAlias = Timer | Publication


class Arrivals(Ring):
    """The ring of what was ready when it was accepted.

    `timer` is the first timer in it, None without one. The search for the next one begins behind the one that leaves,
    so that it is amortised O(1).
    """

    __slots__ = ("timer",)

    def __init__(self) -> None:
        super().__init__()
        self.timer: Timer | None = None

    def append_timer(self, timer: Timer) -> None:
        """Put a timer last."""
        self.append(timer)
        if self.timer is None:
            self.timer = timer

    def pass_over(self, timer: Timer) -> None:
        """Look for the timer behind the first one, which is about to leave."""
        self.timer = self._timer_from(timer.after)

    def _timer_from(self, entry: Any) -> Timer | None:
        while entry is not self:
            if type(entry) is Timer:
                return entry
            entry = entry.after
        return None


class ReadyOrder:
    """All that is pending, in the order in which it must begin."""

    __slots__ = ("arrivals", "early", "early_cids", "last_accepted_ns", "last_number", "wheel")

    def __init__(self) -> None:
        self.last_number = 0  # of the publications, in the order of acceptance
        # The latest instant at which anything was accepted or `begin` was called. No instant of acceptance is earlier.
        self.last_accepted_ns = EARLIEST
        self.forget()

    def forget(self) -> None:
        """Be empty, and leave the links of what stood in the order as they are."""
        self.wheel = TimerWheel()
        self.arrivals = Arrivals()
        # What begins before everything else: timers with the messages that precede them, and what was given back by
        # those who had taken it out.
        self.early = Ring()
        self.early_cids: set[str] = set()  # whose entries stand in `early`, or have stood there since it was empty

    def waiting(self) -> list[Arrival]:
        """Return all that was ready when it was accepted, in the order in which it begins."""
        return [*self.early, *self.arrivals]

    def has_arrived(self) -> bool:
        """Say whether there is anything that was ready when it was accepted."""
        arrivals, early = self.arrivals, self.early
        return arrivals.after is not arrivals or early.after is not early

    def arrive(self, publication: Publication) -> None:
        """Take in a publication, accepted at `last_accepted_ns`."""
        self.arrivals.append(publication)

    def discard(self, timers: Iterable[Timer]) -> list[PlainEvent | None]:
        """Take out timers, and empty them; return their events.

        They may stand in the wheel, among the arrivals or in another ring of arrivals: a timer's links do not tell.
        """
        events = []
        for timer in timers:
            events.append(timer.event)
            timer.event = timer.table = None
            after = timer.after
            if after is OPEN:
                self.wheel.remove_from_open(timer)
                continue
            if timer is self.arrivals.timer:
                self.arrivals.pass_over(timer)
            # `unlink`, written out (0.05 us of 0.3 for each timer of a conversation that is cancelled).
            before = timer.before
            before.after = after
            after.before = before
            timer.after = None
            del timer.before
            if before is after and type(after) is Slot:
                self.wheel.drop(after)
        if self.early_cids and self.early.is_empty():
            self.early_cids.clear()
        return events

    def take(self, now: int, batches: bool = True) -> Arrival | list[Timer] | None:
        """Take out what must begin next, of all that is ready at `now`: a timer or, with `batches`, the several timers
        of `TimerWheel.take_batch`. A publication is returned too, but stays where it is."""
        head: Any = self.early.after
        if head is not self.early:
            if type(head) is Timer:
                unlink(head)
            return head  # type: ignore[no-any-return]
        head = self.arrivals.after
        limit = now if head is self.arrivals else head.due
        batch = self.wheel.take_batch(limit) if batches else None
        if batch:
            return batch
        timer = self.wheel.first_due(limit)
        if timer is not None:
            self.wheel.take_first()
            return timer
        if head is self.arrivals:
            return None
        if type(head) is Timer:
            self.take_first_timer(head)
        return head  # type: ignore[no-any-return]

    def take_first_timer(self, timer: Timer) -> None:
        """Take out what `first_timer` has returned."""
        if timer is self.arrivals.timer:
            self.arrivals.pass_over(timer)
            unlink(timer)
        else:
            self.wheel.take_first()

    def move_first_timer(self, timer: Timer) -> None:
        """Move what `first_timer` has returned behind all that begins early."""
        if timer is self.arrivals.timer:
            self.arrivals.pass_over(timer)
            move_behind(self.early.before, timer)
        else:
            self.wheel.take_first()
            self.early.append(timer)

    def first_timer(self, limit: int) -> Timer | None:
        """Return the timer that would begin next if there were no publications, of those ready at `limit`."""
        timer, arrived = self.wheel.first_due(limit), self.arrivals.timer
        if arrived is None or arrived.due > limit or (timer is not None and timer.due <= arrived.due):
            return timer
        return arrived

    def next_timer_instant(self) -> int | None:
        """Return the instant at which to look for a timer: EARLIEST when one has arrived, None when none is pending."""
        return EARLIEST if self.arrivals.timer is not None else self.wheel.next_instant()

    def next_instant(self) -> int | None:
        """Return the instant at which to look again: EARLIEST when something is ready, None when nothing is pending."""
        return EARLIEST if self.has_arrived() else self.wheel.next_instant()

    def is_ready(self, now: int) -> bool:
        """Say whether something is ready at `now`."""
        if self.has_arrived():
            return True
        instant = self.wheel.next_instant()
        if instant is None or instant > now:
            return False
        due = self.wheel.next_due()
        return due is not None and due <= now

    def clear(self) -> list[Arrival]:
        """Forget everything; return what was forgotten, dead and cut from each other."""
        arrivals, early, wheel = self.arrivals, self.early, self.wheel
        self.forget()
        entries: list[Arrival] = [*early, *arrivals, *wheel]
        for entry in entries:
            if entry.after is not OPEN:
                del entry.before
            entry.after = None
        heads: list[Ring] = [arrivals, early, *wheel.slots.values()]
        for head in heads:
            head.cut()
        return entries

    def _check(self) -> None:
        self.wheel._check()
        self.arrivals._check()
        self.early._check()
        strangers = {entry.cid if type(entry) is Timer else entry.entries[0].cid for entry in self.early}
        strangers -= self.early_cids
        assert not strangers, f"{strangers} begin early, and are not noted"
        first = next((entry for entry in self.arrivals if type(entry) is Timer), None)
        assert self.arrivals.timer is first, f"the first timer that arrived is {first!r}, not {self.arrivals.timer!r}"
        instants = [entry.due for entry in self.arrivals]
        assert instants == sorted(instants), f"arrivals out of order: {instants}"
        numbers = [entry.number for entry in self.arrivals if type(entry) is Publication]
        assert numbers == sorted(numbers), f"publications out of order: {numbers}"
        assert not numbers or numbers[-1] <= self.last_number, f"publication {numbers[-1]} of {self.last_number}"
        latest = self.last_accepted_ns
        assert not instants or instants[-1] <= latest, f"arrivals of {instants}, the latest accepted at {latest}"
