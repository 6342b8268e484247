"""What has begun but is not over: the targets of one publication, or timers that were due together.

Both are claimed target by target or timer by timer without the lock, by the delivery thread alone, so that a delivery
costs no turn of the lock. How many have begun is read off an iterator or a list, so that it need not be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

from stube_backends.engine._order import Publication
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import BEING_REMOVED, Subscription


class FanOut:
    """A publication that has begun: its targets, and an iterator positioned behind the target that began last.

    Reading a target's `name` is its claim. A name means that the delivery has begun, None that its subscription was
    removed before, and BEING_REMOVED that it is being removed: what becomes of it shows under the lock. Only
    the delivery thread advances the iterator, because two threads on one iterator may get the same target.
    """

    __slots__ = (
        "accounted",
        "cancelled",
        "decided",
        "dropped",
        "iterator",
        "message",
        "stopped",
        "targets",
        "topic_name",
        "total",
    )

    def __init__(self, publication: Publication, targets: list[Subscription]) -> None:
        self.topic_name = publication.topic_name
        self.message = publication.message
        self.targets = targets
        self.total = len(targets)
        self.iterator = iter(targets)
        self.accounted = 0  # how many of the begun ones have been taken out of the ledger's `queued`
        self.decided = 0  # how many of them have their fate in the ledger
        self.stopped = False  # whether what has not begun was forgotten
        # Fates of targets that were passed over, which the ledger does not have yet. Written by the delivery thread.
        self.cancelled = self.dropped = 0

    @property
    def begun(self) -> int:
        """How many targets have begun or were passed over."""
        return self.total - length_hint(self.iterator)

    @property
    def current(self) -> Subscription | None:
        """The target that began last."""
        begun = self.begun
        return self.targets[begun - 1] if begun else None

    def claim_each(self, wait: Callable[[], object]) -> Iterator[tuple[Subscription, str]]:
        """Claim one target after the other; yield each with the name of its event.

        Args:
            wait: returns when the thread that holds the lock has released it.
        """
        for target in self.iterator:
            name = target.name
            if name is not None and name is not BEING_REMOVED:
                yield target, name
            elif not self.pass_over(target, wait):
                return

    def pass_over(self, target: Subscription, wait: Callable[[], object]) -> bool:
        """Count a target whose name, when it was read, was no event's; say whether the next target may begin.

        A loop that must be faster than `claim_each` reads the name itself and calls this for the rest.
        """
        if target.name is BEING_REMOVED:
            wait()
            if target.name is BEING_REMOVED:  # marked by a reset, which counts the fates of those behind this one
                self.dropped += 1
                return False
        self.cancelled += 1
        return True

    def rest(self) -> list[Subscription]:
        """Return the targets that have not begun and are live."""
        return [] if self.stopped else [entry for entry in self.targets[self.begun :] if entry.name is not None]

    def stop(self) -> list[Any]:
        """Let no other target begin; return the events of the targets, for the caller to drop.

        Every subscription is dead after that, so all targets are marked, whichever of them the delivery thread reads
        next. It ends at the first one that is marked; only that thread knows how many have begun.
        """
        self.stopped = True
        events = []
        for target in self.targets:
            if target.name is not None:
                target.name = BEING_REMOVED
                events.append(target.event)
                target.event = None
        return events


class DueBatch:
    """Timers that were due together and have left the wheel and their groups: claimed one by one, the last one first.

    The delivery thread pops a timer off the list, a caller that cancels removes it: each is one atomic step, so that
    exactly one of them has it (G5), and no timer costs a turn of the lock.
    """

    __slots__ = ("accounted", "delivered", "timers", "total")

    def __init__(self, timers: list[Timer]) -> None:
        self.timers = timers
        self.total = len(timers)  # without those that were cancelled, so that what is not in the list has begun
        self.accounted = 0  # how many of the begun ones have been taken out of the ledger's `timers`
        self.delivered = 0  # written by the delivery thread; what has begun and is not among these has failed

    @property
    def begun(self) -> int:
        """How many the delivery thread has claimed."""
        return self.total - len(self.timers)

    def waiting(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        """Return the timers that may still be waiting; with `cid` those of one conversation, or of one instance."""
        found = []
        for timer in self.timers.copy():
            group = timer.group
            if group is None or cid not in (None, group.cid) or instance_id not in (None, group.instance_id):
                continue
            found.append(timer)
        return found

    def withdraw(self, timer: Timer) -> bool:
        """Take a timer out before it begins; say whether it had not begun."""
        try:
            self.timers.remove(timer)
        except ValueError:
            return False
        self.total -= 1
        return True

    def stop(self) -> list[Timer]:
        """Let no other timer begin; return those that would have, in the order in which they would.

        Removes from the front of the list, where the timers stand that would begin last: a timer that the delivery
        thread still pops was due before all that are returned.
        """
        rest = []
        while self.timers:
            try:
                rest.append(self.timers.pop(0))
            except IndexError:  # the delivery thread took the last one at this moment
                break
        self.total -= len(rest)
        rest.reverse()
        return rest
