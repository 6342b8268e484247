"""Claims that begin one delivery after the other, for one delivery thread. Implements `Claims`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stube_backends.engine._backlogs import Backlogs
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._order import Arrival, ReadyOrder
from stube_backends.engine._records import Records
from stube_backends.engine._timers import CLAIMABLE, DueBatch, Timer
from stube_backends.engine._topics import FanOut, Publication, Subscription, TopicIndex, count_live
from stube_backends.engine._turns import Turns

_SLICE: Final = 512  # entries of a publication that are handed out together
IN_A_ROW: Final = 32
"""How many targets begin before timers have a turn: half of what G27 allows, because a turn may leave timers to the
next one."""


class SerialClaims:
    """Begins one delivery after the other.

    Args:
        ledger, order, records, topics, backlogs: the engine's, the same objects as long as the engine lives.
    """

    __slots__ = ("backlogs", "batch", "fan_out", "ledger", "order", "records", "running_cid", "turns")

    def __init__(
        self, ledger: Ledger, order: ReadyOrder, records: Records, topics: TopicIndex, backlogs: Backlogs | None
    ) -> None:
        self.ledger = ledger
        self.order = order
        self.records = records
        self.turns = Turns(ledger, order, records, topics, IN_A_ROW)
        self.backlogs = backlogs
        self.fan_out: FanOut | None = None  # the slice of a publication that is being delivered
        self.batch: DueBatch | None = None  # the timers that are being delivered together
        self.running_cid: str | None = None  # the conversation whose timer is being delivered

    # -- for the delivery thread -------------------------------------------------------------------------------

    def begin(self, now: int, failed: bool | None = None) -> Timer | DueBatch | FanOut | None:
        """Count the fate of what ran last, and claim what must begin next.

        Args:
            now: of all that is ready at this instant.
            failed: the fate of the timer that the last call handed out; None when it handed out none.

        Returns:
            None when nothing is ready. A timer is handed out claimed: in no ring, so that no cancel finds it any
            more; `Timer.claim` gives its delivery. The timers of a batch are still to be claimed, each by a pop, and
            the targets of a fan-out, see `FanOut.claim_each`.
        """
        ledger = self.ledger
        if failed is not None:
            self.finish_timer(failed)
        elif self.batch is not None and (not ledger.running or self.finish_batch()):
            ledger.running += 1  # an exception that had to be raised interrupted it; it is continued
            return self.batch
        if self.fan_out is not None:  # an exception came before it was delivered, or before it was ended
            self.abandon()
        order = self.order
        if now > order.last_accepted_ns:
            order.last_accepted_ns = now
        turns = self.turns  # asked only if it has something to do or to forget: it costs 3 % of a delivery on `virtual`
        is_asked = turns.in_a_row or turns.moved or order.early_cids
        entry = turns.next(now, batches=True) if is_asked else order.take(now)
        if entry is None:
            return None
        if type(entry) is list:
            return self._begin_batch(entry)
        ledger.running += 1
        if type(entry) is not Timer:
            return self._begin_fan_out(entry)  # type: ignore[arg-type]
        ledger.timers -= 1
        self.running_cid = entry.cid
        self.records.remove_timers((entry,))
        return entry

    def finish_timer(self, failed: bool) -> None:
        """Count the fate of the timer that was begun."""
        self.running_cid = None
        self.ledger.running -= 1
        if failed:
            self.ledger.failed += 1
        else:
            self.ledger.delivered += 1

    def finish_batch(self) -> bool:
        """Count the fates of the batch's timers, as far as they have begun; forget it when all have, and say whether
        some are left.

        A delivery that was claimed and then interrupted by an asynchronous exception (such as Ctrl-C) has failed.
        """
        self.sync_counts()
        batch, ledger = self.batch, self.ledger
        assert batch is not None
        begun, delivered = batch.accounted, batch.delivered
        self.running_cid = None
        fates = (ledger.running - 1, ledger.delivered + delivered, ledger.failed + begun - delivered)
        left = (batch.total - begun, 0, 0)
        # One statement: CPython runs signal handlers only at calls and at backward jumps, so that an asynchronous
        # exception finds all of these figures stored or none.
        (ledger.running, ledger.delivered, ledger.failed), (batch.total, batch.accounted, batch.delivered) = fates, left
        if batch.timers:
            return True
        self.batch = None
        return False

    def finish_fan_out(self, fan_out: FanOut, delivered: int, failed: int = 0) -> None:
        """Count the fates of a fan-out's targets: so many delivered and failed since the last call, and those that were
        passed over. Targets that have not begun begin the next time."""
        self.sync_counts()
        ledger, passed_over = self.ledger, fan_out.cancelled + fan_out.dropped
        most = (ledger.running - 1, ledger.delivered + delivered, ledger.failed + failed)
        rest = (ledger.cancelled + fan_out.cancelled, ledger.dropped + fan_out.dropped)
        left = (fan_out.decided + delivered + failed + passed_over, 0, 0)
        # One statement, as above.
        (
            (ledger.running, ledger.delivered, ledger.failed),
            (ledger.cancelled, ledger.dropped),
            (fan_out.decided, fan_out.cancelled, fan_out.dropped),
        ) = (most, rest, left)
        self._end_fan_out(fan_out)

    def abandon(self) -> None:
        """After an exception that left the delivering: count the fate of a timer that was begun, as failed.

        What has not begun of a fan-out or a batch begins the next time."""
        fan_out = self.fan_out
        if not self.ledger.running:
            if fan_out is not None:  # its fates have been counted
                self._end_fan_out(fan_out)
            return
        if self.batch is not None:
            self.finish_batch()
        elif fan_out is None:
            self.finish_timer(failed=True)
        else:  # the fates of what has begun are lost
            self.finish_fan_out(fan_out, 0, fan_out.begun - fan_out.decided - fan_out.cancelled - fan_out.dropped)

    # -- for the engine, see `Claims` --------------------------------------------------------------------------

    def is_idle(self) -> bool:
        return not self.ledger.running

    def running_cids(self) -> set[str]:
        if self.ledger.running and self.fan_out is not None:
            current = self.fan_out.current
            return set() if current is None else {current.cid}
        return set() if self.running_cid is None else {self.running_cid}

    def parked(self) -> list[Arrival]:
        return []

    def waiting_timers(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        return [] if self.batch is None else self.batch.waiting(cid, instance_id)

    def waiting_targets(self) -> list[Subscription]:
        return [] if self.fan_out is None else self.fan_out.rest()

    def queued(self) -> int:
        return 0 if self.fan_out is None or self.fan_out.stopped else self.fan_out.total - self.fan_out.accounted

    def sync_counts(self) -> None:
        batch = self.batch
        if batch is not None:
            begun = batch.begun
            self.ledger.timers -= begun - batch.accounted
            batch.accounted = begun
        fan_out = self.fan_out
        if fan_out is not None and not fan_out.stopped:
            begun = fan_out.begun
            self.ledger.queued -= begun - fan_out.accounted
            fan_out.accounted = begun

    def withdraw(self, timer: Timer) -> bool:
        if self.batch is None or not self.batch.withdraw(timer):
            return False
        self.ledger.timers -= 1
        self.ledger.cancelled += 1
        return True

    def cancel_messages(self, cid: str) -> None:
        """Nothing is parked here."""

    def drop_in_progress(self) -> list[Any]:
        self.turns.limit = None  # the turn is over; `in_a_row` belongs to the delivery thread
        ledger, fan_out, batch = self.ledger, self.fan_out, self.batch
        held: list[Any] = [fan_out]
        if fan_out is not None and not fan_out.stopped:
            ledger.queued -= fan_out.total - fan_out.accounted  # the delivery thread counts their fates
            held.append(fan_out.stop())
            if not ledger.running:  # it had been interrupted
                self._end_fan_out(fan_out)
        if batch is not None:
            rest = batch.stop()
            self.sync_counts()
            ledger.timers -= len(rest)
            ledger.dropped += len(rest)
            for timer in rest:
                held.append(timer.event)
                timer.event = timer.table = timer.after = None
            if not ledger.running:
                self.batch = None
        return held

    def stop(self) -> None:
        for batch in (self.fan_out, self.batch):
            if batch is not None:
                batch.stop()

    def take_back(self) -> tuple[list[Arrival], list[Timer]]:
        return [], [] if self.batch is None else self.batch.stop()

    def recount(self) -> int:
        ledger, fan_out, batch = self.ledger, self.fan_out, self.batch
        begun = ledger.running
        if batch is not None:
            batch.accounted = begun = batch.begun
            if not ledger.running:
                self.batch = None
        if fan_out is None:
            return begun
        if fan_out.stopped:
            return fan_out.total - fan_out.decided
        fan_out.accounted = fan_out.begun  # read once: the fan-out may be continued in another thread
        ledger.queued += fan_out.total - fan_out.accounted
        return fan_out.accounted - fan_out.decided

    def sizes(self) -> Mapping[str, int]:
        return {
            "targets of the fan-out": 0 if self.fan_out is None else len(self.fan_out.targets),
            "timers of the batch": 0 if self.batch is None else len(self.batch.timers),
        }

    # -- helpers -----------------------------------------------------------------------------------------------

    def _begin_batch(self, timers: list[Timer]) -> DueBatch:
        self.batch = DueBatch(timers)
        for timer in timers:
            timer.after = CLAIMABLE
        self.records.remove_timers(timers)
        self.ledger.running += 1
        return self.batch

    def _begin_fan_out(self, publication: Publication) -> FanOut:
        if self.backlogs is not None and not publication.position:
            self.backlogs.forget(publication)
        # Handed out even when no target is left, so that the message is released where user code may run.
        targets, end = publication.slice(_SLICE)
        fan_out, left = FanOut(publication, targets), publication.targeted - len(targets)
        self.fan_out, publication.position, publication.targeted = fan_out, end, left  # one statement, as above
        return fan_out

    def _end_fan_out(self, fan_out: FanOut) -> None:
        """Forget a fan-out. Targets that have not begun go back to the publication, or have been dropped with it; the
        publication leaves the order when it has no more."""
        rest, publication = fan_out.targets[fan_out.begun :], fan_out.publication
        if fan_out.stopped:
            fan_out.decided += len(rest)
            self.ledger.drop_messages(len(rest), count_live(rest))
            self.fan_out = None
            return
        position, targeted = publication.position, publication.targeted + len(rest)
        if rest:
            position = publication.entries.index(rest[0], max(0, position - _SLICE), position)
            if self.backlogs is not None:
                self.backlogs.put_back(publication)
        self.fan_out, publication.position, publication.targeted = None, position, targeted
        if position == publication.length and publication.after is not None:
            publication.close()

    def _check(self) -> None:
        self.sync_counts()
        batch, fan_out = self.batch, self.fan_out
        if batch is not None:
            assert 0 <= batch.delivered <= batch.accounted <= batch.total, f"the batch counts {batch.delivered}"
        if fan_out is not None:
            decided = fan_out.decided + fan_out.cancelled + fan_out.dropped
            assert 0 <= decided <= fan_out.total, f"{decided} of {fan_out.total} targets are decided"
            assert fan_out.stopped or fan_out.accounted == fan_out.begun, (
                f"{fan_out.accounted} targets of {fan_out.begun} accounted"
            )
