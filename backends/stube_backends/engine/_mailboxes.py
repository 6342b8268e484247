"""Deliveries that overlap: conversations interleave, and each stays serial.

A delivery that takes its time (a coroutine) delays its own conversation only. What becomes ready for that conversation
in the meantime is parked in its mailbox, in the ready order, and claimed there. Parked is not begun: a timer in a
mailbox stands in a ring as before and in its record, so cancelling finds it; the subscription of a message is looked at
again when the message is claimed.

A thread that delivers does, one call at a time under the lock of the engine:

1. `next_box` sorts what is ready into mailboxes, until there is one without a server; the caller becomes its server.
2. `claim` takes the next entry of a mailbox: a delivery has begun. None says that there is no more, and that the
   mailbox is gone.
3. `finish` counts the fate of what was claimed.

A mailbox exists as long as it has a server. A server that cannot continue (because its event loop is being closed)
calls `leave`, and what is parked goes back to the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stube import Event
from stube_backends.engine._arguments import NO_SIGNALS
from stube_backends.engine._backlogs import Backlogs
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._order import Arrival, ReadyOrder
from stube_backends.engine._records import Records
from stube_backends.engine._rings import Ring, move_behind, unlink
from stube_backends.engine._tables import free_if_empty
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Publication, Subscription, TopicIndex, count_live
from stube_backends.engine._turns import Turns, serve

_PARKED_AT_MOST: Final = 256  # or passed over, in one call, so that others get their turn of the lock
IN_A_ROW: Final = 16
"""How many targets begin before timers have a turn: fewer than elsewhere, because a delivery on a loop costs more."""


class Mailbox(Ring):
    """What waits for one conversation, in the ready order, and the server that delivers it."""

    __slots__ = ("begun", "cid", "running", "server")

    def __init__(self, cid: str, server: object) -> None:
        Ring.__init__(self)  # `super()` costs 3 % of a delivery, and most deliveries need a new mailbox
        self.cid = cid
        self.running = False  # whether a delivery of it has begun and is not over
        # For the server: the event of a delivery whose dispatch has been called, and the result still to be awaited.
        self.begun: tuple[Event, Any] | None = None
        self.server = server  # delivers it, one entry after the other; None when that is over


AGAIN: Final = Mailbox("", None)
"""What `next_box` returns when it has not come to an end and others should have a turn."""


def _park(box: Mailbox, entry: Any) -> None:
    """Put an entry last in a mailbox: a timer that is in no ring, or a message from its ring."""
    if type(entry) is Timer:
        box.append(entry)
    else:
        move_behind(box.before, entry)
        entry.aside = True


class MailboxClaims:
    """Begins deliveries of several conversations; each has a mailbox while one of its deliveries runs.

    Implements `Claims`. The arguments are those of `SerialClaims`.
    """

    __slots__ = ("backlogs", "batch", "boxes", "garbage", "ledger", "order", "records", "turns")

    def __init__(
        self, ledger: Ledger, order: ReadyOrder, records: Records, topics: TopicIndex, backlogs: Backlogs | None
    ) -> None:
        self.ledger = ledger
        self.order = order
        self.records = records
        self.turns = Turns(ledger, order, records, topics, IN_A_ROW)
        self.backlogs = backlogs
        self.batch: object | None = None  # each delivery is claimed under the lock
        self.boxes: dict[str, Mailbox] = {}
        # Entries that are over. They must be released outside the lock, because that may run a destructor.
        self.garbage: list[object] = []

    # -- for a thread that delivers ----------------------------------------------------------------------------

    def next_box(self, now: int, server: object) -> Mailbox | None:
        """Return a mailbox that `server` serves from now on, with something in it that is ready at `now`; None when
        there is none, AGAIN to be called again."""
        if now > self.order.last_accepted_ns:
            self.order.last_accepted_ns = now
        for _ in range(_PARKED_AT_MOST):
            entry = self._next_entry(now)
            if entry is None:
                return None
            if isinstance(entry, list):
                return AGAIN
            cid = entry.cid if isinstance(entry, Timer) else entry.entries[0].cid
            box = self.boxes.get(cid)
            if box is not None:
                _park(box, entry)
                continue
            box = self.boxes[cid] = Mailbox(cid, server)
            _park(box, entry)
            return box
        return AGAIN

    def claim(self, box: Mailbox) -> Event | None:
        """Begin the next delivery of a mailbox; None when there is none, and the mailbox is gone."""
        ledger = self.ledger
        while (entry := box.after) is not box:
            unlink(entry)
            if type(entry) is Timer:
                ledger.timers -= 1
                self.records.remove_timers((entry,))
                _, event = entry.claim()
            else:
                target = entry.entries[0]
                ledger.queued -= 1
                if self.backlogs is not None:
                    self.backlogs.forget(entry)
                if target.name is None:
                    ledger.cancelled += 1
                    self.garbage.append(entry)
                    continue
                event = Event(target.instance_id, target.name, entry.message, NO_SIGNALS, entry.due)
            ledger.running += 1
            box.running = True
            return event
        self.leave(box)
        return None

    def must_give_way(self, now: int) -> bool:
        """Count the next delivery of a server that continues; say whether it must `leave` its mailbox before that,
        because so many targets have begun in a row that a timer which is ready at `now` has its turn."""
        order, turns = self.order, self.turns
        turns.in_a_row += 1
        if turns.in_a_row <= turns.most:
            return False
        if now > order.last_accepted_ns:
            order.last_accepted_ns = now
        return order.first_timer(now) is not None

    def finish(self, box: Mailbox, failed: bool) -> None:
        """Count the fate of the delivery that was claimed of this mailbox.

        Nothing is left to count when its server was given up, and ends later.
        """
        if not box.running:
            return
        box.running = False
        self.ledger.running -= 1
        if failed:
            self.ledger.failed += 1
        else:
            self.ledger.delivered += 1

    def leave(self, box: Mailbox) -> None:
        """Take the server off a mailbox: the mailbox is gone, and what is parked in it waits in the order again."""
        early, early_cids = self.order.early, self.order.early_cids
        if not box.is_empty():
            # Last, unless entries of the conversation may stand there: they were accepted later.
            place: Any = early if box.cid in early_cids else early.before
            early_cids.add(box.cid)
            while (entry := box.after) is not box:  # one after the other, so that `rebuild` finds the rest
                move_behind(place, entry)
                place = entry
        if self.boxes.get(box.cid) is box:  # else an interrupted call has done this, and there may be another one
            del self.boxes[box.cid]
        free_if_empty(self.boxes)
        box.server = None

    def take_garbage(self) -> list[object]:
        """Return the entries that are over, for the caller to release when it holds no lock."""
        spent, self.garbage = self.garbage, []
        return spent

    def next_instant(self) -> int | None:
        """Return the instant at which to look again: EARLIEST when something is ready, None when nothing is pending."""
        return self.order.next_instant()

    # -- for the engine, see `Claims` --------------------------------------------------------------------------

    def is_idle(self) -> bool:
        return not self.boxes and not self.ledger.running

    def running_cids(self) -> set[str]:
        return {box.cid for box in self.boxes.values() if box.running}

    def parked(self) -> list[Arrival]:
        entries = [entry for box in self.boxes.values() for entry in box]
        entries.sort(key=lambda entry: entry.due)
        return entries

    def waiting_timers(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        return []

    def waiting_targets(self) -> list[Subscription]:
        return []

    def queued(self) -> int:
        return 0

    def sync_counts(self) -> None:
        """Nothing begins without the lock here."""

    def withdraw(self, timer: Timer) -> bool:
        return False

    def cancel_messages(self, cid: str) -> None:
        """Cancel what is parked, because a handler that never returns would keep the messages alive (G13)."""
        box = self.boxes.get(cid)
        for entry in [] if box is None else list(box):
            if type(entry) is Publication:
                unlink(entry)
                if self.backlogs is not None:
                    self.backlogs.forget(entry)
                self.ledger.queued -= 1
                self.ledger.cancelled += 1
                self.garbage.append(entry)

    def drop_in_progress(self) -> list[Any]:
        self.turns.limit = None  # the turn is over
        held: list[Any] = []
        for entry in self._unpark():
            if type(entry) is Timer:
                held.append(entry.event)
                self.records.remove_timers((entry,))
                entry.event = entry.table = None
                self.ledger.timers -= 1
                self.ledger.dropped += 1
            else:
                assert isinstance(entry, Publication)
                held.append(entry)
                self.ledger.queued -= entry.targeted
                self.ledger.drop_messages(entry.targeted, count_live(entry.entries))
        return held

    def stop(self) -> None:
        """The servers of the parent process are tasks of its event loop, which the child does not run."""

    def take_back(self) -> tuple[list[Arrival], list[Timer]]:
        return self._unpark(), []

    def recount(self) -> int:
        self.ledger.running = sum(box.running for box in self.boxes.values())
        return self.ledger.running

    def sizes(self) -> Mapping[str, int]:
        return {"mailboxes": len(self.boxes), "garbage": len(self.garbage)}

    # -- helpers -----------------------------------------------------------------------------------------------

    def _unpark(self) -> list[Arrival]:
        """Take out what is parked, in no ring any more. A mailbox keeps its server."""
        entries = self.parked()
        for box in self.boxes.values():
            box.release_all()
        return entries

    def _next_entry(self, now: int) -> Arrival | list[Timer] | None:
        """Return what must be sorted next, of all that is ready at `now`: a timer, which has been taken out, or a
        message to one target, which stays where it is until it is parked. An empty list as `Turns.next`."""
        order = self.order
        passed_over = 0
        while True:
            head = self.turns.next(now, batches=False)
            if not isinstance(head, Publication):
                return head
            self.turns.in_a_row += 1
            if head.topic is None:  # it is to one target already
                return head
            while head.position < head.length:
                target = head.entries[head.position]
                is_left = head.is_left(target)
                if is_left and target.name is not None:
                    return serve(head, target, order.early, passed=1)
                self.ledger.queued -= is_left
                self.ledger.cancelled += is_left
                head.position, head.targeted = head.position + 1, head.targeted - is_left
                passed_over += 1
                if passed_over == _PARKED_AT_MOST:
                    return []
            head.close()
            self.garbage.append(head)

    def _check(self) -> None:
        for cid, box in self.boxes.items():
            box._check()
            assert box.cid == cid, f"the mailbox of {box.cid!r} stands under {cid!r}"
            assert box.server is not None, f"nothing serves the mailbox of {cid!r}"
            dues = [entry.due for entry in box]
            assert dues == sorted(dues), f"the mailbox of {cid!r} is out of order: {dues}"
        running = sum(box.running for box in self.boxes.values())
        assert running <= self.ledger.running, f"{running} deliveries run, counted {self.ledger.running}"
