"""The ready order: timers and publications merged by their ready instants (G2).

A publication is ready at the instant at which it was accepted, a timer at its due instant. What is ready at the
very instant of its acceptance (every publication, and every timer without delay) arrives in one ring, in the order
of acceptance; instants of acceptance never run backwards, so that ring is sorted. A timer with a delay waits in the
wheel. Merging needs no sequence numbers: a timer of the wheel that is due at the instant of an arrival was accepted
before that instant, so on a tie the wheel goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import length_hint
from typing import Any, Final, TypeAlias

from stube_backends.engine._rings import Ring, unlink
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import LEAVING, Subscription, Topic
from stube_backends.engine._wheel import OPEN, Slot, TimerWheel


class Publication:
    """One message to the subscribers of one instant: one entry, however many they are."""

    __slots__ = ("after", "before", "due", "entries", "length", "message", "targeted", "topic", "topic_name")

    # No __init__: the engine sets the fields, and `add_arrival` the links (0.1 us of 0.6).
    after: Any
    before: Any
    due: int
    entries: list[Subscription]
    length: int
    message: Any
    targeted: int
    topic: Topic
    topic_name: str


def part_of(publication: Publication, targets: list[Subscription]) -> Publication:
    """A publication of the same message to these targets only."""
    part = Publication()
    part.due = publication.due
    part.topic_name = publication.topic_name
    part.topic = publication.topic
    part.entries = targets
    part.length = part.targeted = len(targets)
    part.message = publication.message
    return part


Arrival: TypeAlias = Timer | Publication


class Walk:
    """A publication that has begun: its targets, and an iterator that stands behind the latest one to begin.

    The walk takes no lock. Reading a target's `name` is its claim: a name, and the delivery has begun; None, and
    it was cancelled before; LEAVING, and what becomes of it shows under the lock. How far the walk has come is read off
    the iterator, so that nobody has to count along. Only who walks advances it: two threads on one iterator may get the
    same target.
    """

    __slots__ = ("accounted", "decided", "iterator", "message", "stopped", "targets", "topic_name", "total")

    def __init__(self, publication: Publication, targets: list[Subscription]) -> None:
        self.topic_name = publication.topic_name
        self.message = publication.message
        self.targets = targets
        self.total = len(targets)
        self.iterator = iter(targets)
        self.accounted = 0  # how many of the begun ones have been taken out of the ledger's `queued`
        self.decided = 0  # how many of them have their fate in the ledger
        self.stopped = False  # whether what has not begun was forgotten

    @property
    def begun(self) -> int:
        """How many targets have begun or were skipped."""
        return self.total - length_hint(self.iterator)

    @property
    def current(self) -> Subscription | None:
        """The target that began last."""
        begun = self.begun
        return self.targets[begun - 1] if begun else None

    def rest(self) -> list[Subscription]:
        """The targets that have not begun and are live."""
        return [] if self.stopped else [entry for entry in self.targets[self.begun :] if entry.name is not None]

    def stop(self) -> list[Any]:
        """Let nothing more of it begin; the events of the targets, for the caller to drop.

        Every subscription is dead after that, so all targets are marked, wherever the walk stands meanwhile. It goes on
        over the marked ones and counts them; who walks alone knows how many those are.
        """
        self.stopped = True
        events = []
        for target in self.targets:
            if target.name is not None:
                target.name = LEAVING
                events.append(target.event)
                target.event = None
        return events


class Burst:
    """Timers that were due together and have left the wheel and their groups: claimed one by one, the last one first.

    Whoever delivers pops a timer off the list, whoever cancels removes it: each is one atomic step, so that exactly one
    of them has it (G5), and a burst needs no turn of the lock for each of its timers. How many have been claimed is
    read off the list's length.
    """

    __slots__ = ("accounted", "delivered", "timers", "total")

    def __init__(self, timers: list[Timer]) -> None:
        self.timers = timers
        self.total = len(timers)  # without those that were cancelled, so that what is not in the list has begun
        self.accounted = 0  # how many of the begun ones have been taken out of the ledger's `timers`
        self.delivered = 0  # written by whoever delivers; what has begun and is not among these has failed

    @property
    def begun(self) -> int:
        """How many have been claimed by whoever delivers."""
        return self.total - len(self.timers)

    def of(self, cid: str, instance_id: str | None) -> list[Timer]:
        """The timers of a conversation, or of one instance, that may still be waiting."""
        found = []
        for timer in self.timers.copy():
            group = timer.group
            if group is not None and group.cid == cid and (instance_id is None or group.instance_id == instance_id):
                found.append(timer)
        return found

    def withdraw(self, timer: Timer) -> bool:
        """Take a timer out before it begins; whether it had not begun."""
        try:
            self.timers.remove(timer)
        except ValueError:
            return False
        self.total -= 1
        return True

    def stop(self) -> list[Timer]:
        """Let nothing more of it begin; the timers that would have, in the order in which they would.

        From the last one to begin: so those that whoever delivers still takes meanwhile come before all of these.
        """
        rest = []
        while self.timers:
            try:
                rest.append(self.timers.pop(0))
            except IndexError:  # whoever delivers took the last one at this moment
                break
        self.total -= len(rest)
        rest.reverse()
        return rest


class Arrivals(Ring):
    """The ring of what was ready when it was accepted."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return self.after is not self


EARLIEST: Final = -(1 << 100)
"""An instant before every other, whatever a clock reads."""


class ReadyOrder:
    """What is pending, in the order in which it must begin."""

    __slots__ = ("arrivals", "wheel")

    def __init__(self) -> None:
        self.wheel = TimerWheel()
        self.arrivals = Arrivals()

    def remove(self, timers: Iterable[Timer]) -> None:
        """Take out timers, whether they stand in the wheel, among the arrivals or in another ring of arrivals.

        One method serves all of them, because a timer's links do not tell in which ring it stands.
        """
        for timer in timers:
            after = timer.after
            if after is OPEN:
                self.wheel.remove_from_open(timer)
                continue
            # `unlink`, written out (0.04 us of 0.36 for each timer of a conversation that is cancelled).
            before = timer.before
            before.after = after
            after.before = before
            timer.after = None
            del timer.before
            if before is after and type(after) is Slot:
                self.wheel.drop(after)

    def take(self, now: int) -> Arrival | None:
        """Take out what must begin next, of all that is ready at `now`."""
        head: Any = self.arrivals.after
        if head is self.arrivals:
            return self.wheel.take_due(now)
        timer = self.wheel.take_due(head.due)
        if timer is not None:
            return timer
        unlink(head)
        return head  # type: ignore[no-any-return]

    def next_instant(self) -> int | None:
        """When something will be ready or must be looked at: EARLIEST for at once, None for never."""
        return self.wheel.next_instant() if self.arrivals.after is self.arrivals else EARLIEST

    def clear(self) -> list[Arrival]:
        """Forget everything; what was forgotten, dead and cut from each other."""
        arrivals, wheel = self.arrivals, self.wheel
        self.arrivals, self.wheel = Arrivals(), TimerWheel()
        entries: list[Arrival] = [*arrivals, *wheel]
        for entry in entries:
            if entry.after is not OPEN:
                del entry.before
            entry.after = None
        heads: list[Ring] = [arrivals, *wheel.slots.values()]
        for head in heads:
            head.cut()
        return entries

    def _check(self) -> None:
        self.wheel._check()
        instants = [entry.due for entry in self.arrivals]
        assert instants == sorted(instants), f"arrivals out of order: {instants}"
        self.arrivals._check()
