"""An engine whose deliveries overlap: conversations interleave, and each stays serial.

A delivery that takes its time (a coroutine) holds up its own conversation only. What becomes ready for that one
meanwhile is parked in its mailbox, in the ready order, and claimed there. Parked is not begun: a timer in a mailbox
stands in a ring as before and in its group, so cancelling finds it; a message is looked at again when it is claimed.

Whoever delivers does, one call at a time like all of the engine:

1. `next_box` sorts what is ready into mailboxes, until there is one that nobody serves yet; the caller serves it.
2. `claim` takes the next of it: a delivery has begun. None says that there is no more, and that the mailbox is gone.
3. `finish` counts the fate of what was claimed.

A mailbox exists as long as somebody serves it. Who cannot go on (a loop that is being closed) calls `leave`, and what
is parked goes back to where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stube import Event
from stube_backends.engine._arguments import PlainEvent
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._engine import Engine, count_live
from stube_backends.engine._order import EARLIEST, Arrival, Publication, part_of
from stube_backends.engine._rings import Ring, insert_after, unlink
from stube_backends.engine._tables import free_if_empty
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Subscription

_PARKED_AT_MOST: Final = 256  # in one call, so that others get their turn of the lock


class Mailbox(Ring):
    """What waits for one conversation, in the ready order: the head of its ring, and who sees to it."""

    __slots__ = ("begun", "cid", "running", "server")

    def __init__(self, cid: str, server: object) -> None:
        super().__init__()
        self.cid = cid
        self.running = False  # whether a delivery of it has begun and is not over
        # For who serves it: what has been begun and is still to be gone on with.
        self.begun: tuple[Event, Any] | None = None
        self.server = server  # who delivers it, one after the other; None when that is over


AGAIN: Final = Mailbox("", None)
"""What `next_box` returns when it has not come to an end and others should have a turn."""


class MailboxEngine(Engine):
    """The engine, with a mailbox for each conversation that has a delivery running.

    Args:
        max_pending: the bound of `timers + queued`; None for none.
        limits: of each conversation; None for none.
    """

    __slots__ = ("boxes", "publication", "spent", "targets")

    def __init__(self, max_pending: int | None, limits: Limits | None = None) -> None:
        super().__init__(max_pending, limits=limits)
        self.boxes: dict[str, Mailbox] = {}
        self.publication: Publication | None = None  # whose targets are being sorted into mailboxes
        self.targets: list[Subscription] = []  # those of them that have not been, the next one last
        # What is over and held something, for whoever leaves the lock to drop, for destructors are user code.
        self.spent: list[object] = []

    def next_box(self, now: int, server: object) -> Mailbox | None:
        """A mailbox that `server` serves from now on, with something in it that is ready at `now`; None when there is
        none, AGAIN to be called again."""
        if now > self.latest:
            self.latest = now
        for _ in range(_PARKED_AT_MOST):
            entry = self._next_entry(now)
            if entry is None:
                return None
            if type(entry) is Timer:
                cid = entry.group.cid  # type: ignore[union-attr]  # a pending timer has one
            else:
                cid = entry.entries[0].cid  # type: ignore[union-attr]
            box = self.boxes.get(cid)
            if box is not None:
                box.append(entry)
                continue
            box = self.boxes[cid] = Mailbox(cid, server)
            box.append(entry)
            return box
        return AGAIN

    def claim(self, box: Mailbox) -> Event | None:
        """Begin the next delivery of a mailbox; None when there is none, and the mailbox is gone."""
        ledger = self.ledger
        while (entry := box.after) is not box:
            unlink(entry)
            if type(entry) is Timer:
                ledger.timers -= 1
                self.groups.remove((entry,))
                _, event = entry.claim()
            else:
                target = entry.entries[0]
                ledger.queued -= 1
                if self.backlogs is not None:
                    self.backlogs.forget(entry)
                if target.name is None:
                    ledger.cancelled += 1
                    self.spent.append(entry)
                    continue
                event = Event(target.instance_id, target.name, entry.message)
            ledger.running += 1
            box.running = True
            return event
        self.leave(box)
        return None

    def finish(self, box: Mailbox, failed: bool) -> None:
        """Count the fate of the delivery that was claimed of this mailbox."""
        box.running = False
        self.finish_timer(failed)

    def leave(self, box: Mailbox) -> None:
        """Nobody serves this mailbox any more: it is gone, and what is parked in it waits in the order again."""
        place: Any = self.order.arrivals
        while (entry := box.after) is not box:  # one after the other, so that `mend` finds the rest
            # Behind the one before it, and before those of the same instant, which were not taken when it was.
            while place.after is not self.order.arrivals and place.after.due < entry.due:
                place = place.after
            unlink(entry)
            insert_after(place, entry)
            place = entry
        self.boxes.pop(box.cid, None)
        free_if_empty(self.boxes)
        box.server = None

    def unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> list[PlainEvent | None]:
        """Remove the subscriptions that fit; their events. With all of a conversation's its parked messages are gone,
        too: a handler that never returns would keep them for ever."""
        events = super().unsubscribe(cid, instance_id, topic)
        box = self.boxes.get(cid) if instance_id is None else None
        for entry in [] if box is None else list(box):
            if type(entry) is Publication:
                unlink(entry)
                if self.backlogs is not None:
                    self.backlogs.forget(entry)
                self.ledger.queued -= 1
                self.ledger.cancelled += 1
                self.spent.append(entry)
        return events

    def take_spent(self) -> list[object]:
        """What is over and was held, for the caller to drop when no lock is held."""
        spent, self.spent = self.spent, []
        return spent

    def next_instant(self) -> int | None:
        """When something will be ready or must be looked at: EARLIEST for at once, None for never."""
        return self.order.next_instant() if self.publication is None else EARLIEST

    def is_idle(self, now: int, *, timers_too: bool) -> bool:
        """See `Engine.is_idle`."""
        return not self.boxes and super().is_idle(now, timers_too=timers_too)

    def parked(self) -> list[Arrival]:
        """What waits in mailboxes, and what is on its way into them."""
        entries = [entry for box in self.boxes.values() for entry in box]
        entries.sort(key=lambda entry: entry.due)
        if self.publication is not None and self.publication.after is None:  # else it has not left the order
            entries.append(part_of(self.publication, self.targets[::-1]))
        return entries

    def unpark(self) -> list[Arrival]:
        """Take out what is parked, in no ring any more. Who serves a mailbox goes on serving it."""
        entries = self.parked()
        for box in self.boxes.values():
            box.release_all()
        self.publication, self.targets = None, []
        return entries

    def halt(self) -> list[Any]:
        """Drop what is parked; what was held."""
        held: list[Any] = super().halt()
        for entry in self.unpark():
            if type(entry) is Timer:
                held.append(entry.event)
                self.groups.remove((entry,))
                entry.event = entry.group = None
                self.ledger.timers -= 1
                self.ledger.dropped += 1
            else:
                assert isinstance(entry, Publication)
                held.append(entry)
                self.ledger.queued -= entry.targeted
                self._drop_messages(entry.targeted, count_live(entry.entries))
        return held

    def count_running(self) -> int:
        """See `Engine.count_running`."""
        return sum(box.running for box in self.boxes.values())

    def running(self) -> set[str]:
        """The conversations that have a delivery running."""
        return {box.cid for box in self.boxes.values() if box.running}

    def sizes(self) -> Mapping[str, int]:
        """The length of every container in the engine."""
        return {
            **super().sizes(),
            "mailboxes": len(self.boxes),
            "targets to sort": len(self.targets),
            "spent": len(self.spent),
        }

    # -- helpers -----------------------------------------------------------------------------------------------

    def _next_entry(self, now: int) -> Arrival | None:
        """Take out what must be sorted next, of all that is ready at `now`: a timer, or a message to one target."""
        while True:
            if self.publication is not None:
                while self.targets:
                    target = self.targets.pop()
                    if target.name is not None:
                        return part_of(self.publication, [target])
                    self.ledger.queued -= 1
                    self.ledger.cancelled += 1
                self.spent.append(self.publication)
                self.publication = None
            head: Any = self.order.arrivals.after
            timer = self.order.wheel.take_due(now if head is self.order.arrivals else head.due)
            if timer is not None:
                return timer
            if head is self.order.arrivals:
                return None
            if type(head) is not Publication or self.backlogs is not None:  # which is to one target already
                unlink(head)
                return head  # type: ignore[no-any-return]
            targets = head.topic.targets(head.entries, head.length)
            cancelled = head.targeted - len(targets)  # those who left between the publishing and now
            self.ledger.cancelled += cancelled
            self.ledger.queued -= cancelled
            targets.reverse()
            # First kept and then taken out, so that it is not lost with all its targets in between.
            self.publication, self.targets = head, targets
            unlink(head)

    def _check(self) -> None:
        super()._check()
        for cid, box in self.boxes.items():
            assert box.cid == cid, f"the mailbox of {box.cid!r} stands under {cid!r}"
            assert box.server is not None, f"nobody will look into the mailbox of {cid!r}"
            dues = [entry.due for entry in box]
            assert dues == sorted(dues), f"the mailbox of {cid!r} is out of order: {dues}"
            box._check()
        running = sum(box.running for box in self.boxes.values())
        assert running <= self.ledger.running, f"{running} deliveries run, counted {self.ledger.running}"
