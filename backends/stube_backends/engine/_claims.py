"""Which delivery begins next, and what became of it.

`Claims` is what an engine asks of the part that begins deliveries. `SerialClaims` begins one delivery after the other,
for a registry with one delivery thread; `MailboxClaims` (see `_mailboxes`) lets conversations overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stube_backends.engine._backlogs import Backlogs
from stube_backends.engine._batches import Burst, Walk
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._order import Arrival, Publication, ReadyOrder
from stube_backends.engine._timers import CLAIMABLE, Timer, TimerGroups
from stube_backends.engine._topics import Subscription, count_live


class Claims(Protocol):
    """Knows what has left the ready order and is not over. One call at a time, under the lock of the engine."""

    def is_idle(self) -> bool:
        """Say whether nothing runs and nothing has left the order that must still begin."""
        ...

    def running_cids(self) -> set[str]:
        """Return the conversations that have a delivery running."""
        ...

    def parked(self) -> list[Arrival]:
        """Return what has left the order and waits in other rings, in the ready order."""
        ...

    def waiting_timers(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        """Return the timers that have left their groups and have not begun; with `cid` one conversation's."""
        ...

    def waiting_targets(self) -> list[Subscription]:
        """Return the targets of a publication in progress that are live and have not begun."""
        ...

    def queued(self) -> int:
        """Return how many messages of a publication in progress the ledger counts as queued."""
        ...

    def sync_counts(self) -> None:
        """Bring the ledger up to date with what has begun without the lock."""
        ...

    def withdraw(self, timer: Timer) -> bool:
        """Cancel a timer that is CLAIMABLE, and count it; say whether it had not begun."""
        ...

    def cancel_messages(self, cid: str) -> None:
        """Cancel what is parked for a conversation whose last subscription has been removed."""
        ...

    def drop_in_progress(self) -> list[Any]:
        """Drop all that has left the order and has not begun; return what was held, for the caller to release."""
        ...

    def stop(self) -> None:
        """In a forked child: let nothing begin any more of what the parent had begun."""
        ...

    def take_back(self) -> tuple[list[Arrival], list[Timer]]:
        """Give back all that has left the order and has not begun, the arrivals and other timers, to be put in again.

        After an asynchronous exception; `recount` follows."""
        ...

    def recount(self) -> int:
        """Make the ledger's `running` anew, and add to `queued` what a publication in progress still has to begin.

        Returns:
            How many deliveries have begun and have no fate yet.
        """
        ...

    def sizes(self) -> Mapping[str, int]:
        """Return the length of every container."""
        ...

    def _check(self) -> None: ...


class SerialClaims:
    """Begins one delivery after the other.

    Args:
        ledger, order, groups, backlogs: the engine's, the same objects as long as the engine lives.
    """

    __slots__ = ("backlogs", "burst", "groups", "ledger", "order", "running_cid", "walk")

    def __init__(self, ledger: Ledger, order: ReadyOrder, groups: TimerGroups, backlogs: Backlogs | None) -> None:
        self.ledger = ledger
        self.order = order
        self.groups = groups
        self.backlogs = backlogs
        self.walk: Walk | None = None  # the publication that is being delivered
        self.burst: Burst | None = None  # the timers that are being delivered together
        self.running_cid: str | None = None  # the conversation whose timer is being delivered

    # -- for the delivery thread -------------------------------------------------------------------------------

    def begin(self, now: int, failed: bool | None = None) -> Timer | Burst | Walk | None:
        """Count the fate of what ran last, and claim what must begin next.

        Args:
            now: of all that is ready at this instant.
            failed: the fate of the timer that the last call handed out; None when it handed out none.

        Returns:
            None when nothing is ready. A timer is handed out claimed: in no ring, so that no cancel finds it any
            more; `Timer.claim` gives its delivery. The timers of a burst are still to be claimed, each by a pop, and
            the targets of a walk, see `Walk.claim_each`.
        """
        ledger = self.ledger
        if failed is not None:
            self.finish_timer(failed)
        elif self.burst is not None and (not ledger.running or self.finish_burst()):
            ledger.running += 1  # an exception that had to be raised interrupted it; it is continued
            return self.burst
        if self.walk is not None:  # interrupted in the same way
            ledger.running += 1
            return self.walk
        order = self.order
        if now > order.latest:
            order.latest = now
        timers = order.take_burst(now)
        if timers is not None:
            return self._begin_burst(timers)
        entry = order.take(now)
        if entry is None:
            return None
        ledger.running += 1
        if type(entry) is not Timer:
            return self._begin_walk(entry)  # type: ignore[arg-type]
        ledger.timers -= 1
        self.running_cid = entry.group.cid  # type: ignore[union-attr]  # a pending timer has one
        self.groups.remove((entry,))
        return entry

    def finish_timer(self, failed: bool) -> None:
        """Count the fate of the timer that was begun."""
        self.running_cid = None
        self.ledger.running -= 1
        if failed:
            self.ledger.failed += 1
        else:
            self.ledger.delivered += 1

    def finish_burst(self) -> bool:
        """Count the fates of the burst's timers, as far as they have begun; forget it when all have, and say whether
        some are left.

        A delivery that was claimed and then interrupted by an asynchronous exception (such as Ctrl-C) has failed.
        """
        self.sync_counts()
        burst, ledger = self.burst, self.ledger
        assert burst is not None
        begun, delivered = burst.accounted, burst.delivered
        self.running_cid = None
        fates = (ledger.running - 1, ledger.delivered + delivered, ledger.failed + begun - delivered)
        left = (burst.total - begun, 0, 0)
        # One statement: CPython runs signal handlers only at calls and at backward jumps, so that an asynchronous
        # exception finds all of these figures stored or none.
        (ledger.running, ledger.delivered, ledger.failed), (burst.total, burst.accounted, burst.delivered) = fates, left
        if burst.timers:
            return True
        self.burst = None
        return False

    def finish_walk(self, walk: Walk, delivered: int, failed: int = 0) -> None:
        """Count the fates of a walk's targets, as far as they are decided, and forget the walk when all are: so many
        delivered and failed since the last call, and those that were passed over."""
        self.sync_counts()
        ledger, passed_over = self.ledger, walk.cancelled + walk.dropped
        most = (ledger.running - 1, ledger.delivered + delivered, ledger.failed + failed)
        rest = (ledger.cancelled + walk.cancelled, ledger.dropped + walk.dropped)
        left = (walk.decided + delivered + failed + passed_over, 0, 0)
        # One statement, as above.
        (
            (ledger.running, ledger.delivered, ledger.failed),
            (ledger.cancelled, ledger.dropped),
            (walk.decided, walk.cancelled, walk.dropped),
        ) = (most, rest, left)
        if walk.stopped:
            self._drop_rest(walk)
        elif walk.begun == walk.total:
            self.walk = None

    def abandon(self) -> None:
        """After an exception that left the delivering: count the fate of a timer that was begun, as failed. A walk or
        a burst is continued the next time."""
        if not self.ledger.running:
            return
        walk = self.walk
        if self.burst is not None:
            self.finish_burst()
        elif walk is None:
            self.finish_timer(failed=True)
        else:  # the fates of what has begun are lost
            self.finish_walk(walk, 0, walk.begun - walk.decided - walk.cancelled - walk.dropped)

    # -- for the engine, see `Claims` --------------------------------------------------------------------------

    def is_idle(self) -> bool:
        return not self.ledger.running

    def running_cids(self) -> set[str]:
        if self.ledger.running and self.walk is not None:
            current = self.walk.current
            return set() if current is None else {current.cid}
        return set() if self.running_cid is None else {self.running_cid}

    def parked(self) -> list[Arrival]:
        return []

    def waiting_timers(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        return [] if self.burst is None else self.burst.waiting(cid, instance_id)

    def waiting_targets(self) -> list[Subscription]:
        return [] if self.walk is None else self.walk.rest()

    def queued(self) -> int:
        return 0 if self.walk is None or self.walk.stopped else self.walk.total - self.walk.accounted

    def sync_counts(self) -> None:
        burst = self.burst
        if burst is not None:
            begun = burst.begun
            self.ledger.timers -= begun - burst.accounted
            burst.accounted = begun
        walk = self.walk
        if walk is not None and not walk.stopped:
            begun = walk.begun
            self.ledger.queued -= begun - walk.accounted
            walk.accounted = begun

    def withdraw(self, timer: Timer) -> bool:
        if self.burst is None or not self.burst.withdraw(timer):
            return False
        self.ledger.timers -= 1
        self.ledger.cancelled += 1
        return True

    def cancel_messages(self, cid: str) -> None:
        """Nothing is parked here."""

    def drop_in_progress(self) -> list[Any]:
        self.sync_counts()
        ledger, walk, burst = self.ledger, self.walk, self.burst
        held: list[Any] = [walk]
        if walk is not None and not walk.stopped:
            ledger.queued -= walk.total - walk.accounted  # the delivery thread counts their fates
            held.append(walk.stop())
            if not ledger.running:  # it had been interrupted
                self._drop_rest(walk)
        if burst is not None:
            rest = burst.stop()
            self.sync_counts()
            ledger.timers -= len(rest)
            ledger.dropped += len(rest)
            for timer in rest:
                held.append(timer.event)
                timer.event = timer.group = timer.after = None
            if not ledger.running:
                self.burst = None
        return held

    def stop(self) -> None:
        for batch in (self.walk, self.burst):
            if batch is not None:
                batch.stop()

    def take_back(self) -> tuple[list[Arrival], list[Timer]]:
        return [], [] if self.burst is None else self.burst.stop()

    def recount(self) -> int:
        ledger, walk, burst = self.ledger, self.walk, self.burst
        begun = ledger.running
        if burst is not None:
            burst.accounted = begun = burst.begun
            if not ledger.running:
                self.burst = None
        if walk is None:
            return begun
        if walk.stopped:
            return walk.total - walk.decided
        walk.accounted = walk.begun  # read once: the walk may be continued in another thread
        ledger.queued += walk.total - walk.accounted
        return walk.accounted - walk.decided

    def sizes(self) -> Mapping[str, int]:
        return {
            "targets of the walk": 0 if self.walk is None else len(self.walk.targets),
            "timers of the burst": 0 if self.burst is None else len(self.burst.timers),
        }

    # -- helpers -----------------------------------------------------------------------------------------------

    def _begin_burst(self, timers: list[Timer]) -> Burst:
        self.burst = Burst(timers)
        for timer in timers:
            timer.after = CLAIMABLE
        self.groups.remove(timers)
        self.ledger.running += 1
        return self.burst

    def _begin_walk(self, publication: Publication) -> Walk:
        if self.backlogs is not None:
            self.backlogs.forget(publication)
        targets = publication.topic.targets(publication.entries, publication.length)
        cancelled = publication.targeted - len(targets)
        if cancelled:  # subscriptions that were removed between the publishing and now
            self.ledger.cancelled += cancelled
            self.ledger.queued -= cancelled
        # Handed out even when no target is left, so that the message is released where user code may run.
        self.walk = Walk(publication, targets)
        return self.walk

    def _drop_rest(self, walk: Walk) -> None:
        """Count the fates of the targets of a stopped walk that have not begun, and forget the walk."""
        rest = walk.targets[walk.begun :]
        walk.decided += len(rest)
        self.ledger.drop_messages(len(rest), count_live(rest))
        self.walk = None

    def _check(self) -> None:
        self.sync_counts()
        burst, walk = self.burst, self.walk
        if burst is not None:
            assert 0 <= burst.delivered <= burst.accounted <= burst.total, f"the burst counts {burst.delivered}"
        if walk is not None:
            decided = walk.decided + walk.cancelled + walk.dropped
            assert 0 <= decided <= walk.total, f"{decided} of {walk.total} targets are decided"
            assert walk.stopped or walk.accounted == walk.begun, f"{walk.accounted} targets of {walk.begun} accounted"
