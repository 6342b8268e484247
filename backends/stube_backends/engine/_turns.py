"""Turns: timers do not wait behind a publication to many other conversations (G27).

After some targets of publications the timers have a turn if one is due: those that were ready when it began, and at
most as many as were pending then, so that timers which their handlers make anew for the same instant do not keep a
publication waiting. Only conversations are reordered. Within each the order stays (G2): the messages that were accepted
before a timer of their conversation begin before it. Such a timer goes behind them into the ring `early`, which begins
when the turn is over and before everything else, so that it keeps no timer waiting that follows it.

While that ring is being delivered the timers have turns as well, and more of them go into it. There is a bound: until
it is empty, at most twice as many as were pending when any of these turns began; and none in the first turn after that.
A turn ends at the first timer that would have to go into the ring and may not. So conversations that always have
another message and another timer do not keep the ring full, and everything else waiting.

To find such messages costs one step for each subscription of the timer's conversation, and one for each publication
that waits on these topics, whatever else waits and however many hear the topics.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from stube_backends.engine._ledger import Ledger
from stube_backends.engine._order import Arrival, ReadyOrder
from stube_backends.engine._records import Record, Records
from stube_backends.engine._rings import move_behind
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Publication, Subscription, Topic, TopicIndex

_MOVED_AT_MOST: Final = 64  # timers and messages in one step, which takes a tenth of a millisecond

_joined: Final = attrgetter("joined")


class Turns:
    """Gives timers their turns.

    Args:
        ledger, order, records, topics: the engine's, the same objects as long as the engine lives.
        most: how many targets of publications begin before timers have a turn.
    """

    __slots__ = ("in_a_row", "ledger", "left", "limit", "most", "moved", "order", "records", "room", "topics")

    def __init__(self, ledger: Ledger, order: ReadyOrder, records: Records, topics: TopicIndex, most: int) -> None:
        self.ledger = ledger
        self.order = order
        self.records = records
        self.topics = topics
        self.most = most
        # How many targets have begun since timers had a turn. Written by the delivery thread.
        self.in_a_row = 0
        # The instant at which the present turn began, None while there is none; and how many more timers may begin in
        # it.
        self.limit: int | None = None
        self.left = 0
        # How many timers have gone into `early` since it was empty, and how many may.
        self.moved = self.room = 0

    def next(self, now: int, *, batches: bool) -> Arrival | list[Timer] | None:
        """Take out what must begin next: a timer if timers have a turn, else what `ReadyOrder.take` finds. An empty
        list if this must be called again, after others had a turn of the lock."""
        entry: Arrival | list[Timer] | None = None
        if self.in_a_row >= self.most:
            entry = self._take(now)
        if entry is None:
            entry = self.order.take(now, batches)
        if entry is None:
            self.end()
            self.order.early_cids.clear()
            self.moved = 0
        return entry

    def end(self) -> None:
        """End the turn of the timers: `most` further targets may begin before the next one."""
        self.in_a_row, self.limit = 0, None

    def _take(self, now: int) -> Timer | list[Timer] | None:
        """Take out a timer whose turn it is; None if no timer has a turn at `now`, an empty list as in `next`."""
        order = self.order
        is_first = False  # of the turns since `early` was emptied
        if order.early.is_empty():
            order.early_cids.clear()
            is_first, self.moved = self.moved > 0, 0
        if self.limit is None:
            self.limit, self.left = now, self.ledger.timers
            room = 0 if is_first else 2 * self.left
            self.room = max(self.room, room) if self.moved else room
        step = _MOVED_AT_MOST
        while step > 0:
            timer = order.first_timer(self.limit) if self.left else None
            if timer is None:
                self.end()
                return None
            messages = self._messages_before(timer, arrived=timer is order.arrivals.timer)
            if not messages and timer.cid not in order.early_cids:
                self.left -= 1
                order.take_first_timer(timer)
                return timer
            if self.moved >= self.room:
                self.end()
                return None
            order.early_cids.add(timer.cid)
            for publication, entry in messages[:step]:
                if publication.topic is None:
                    move_behind(order.early.before, publication)
                    publication.aside = True
                else:
                    serve(publication, entry, order.early)
            if len(messages) > step:  # the next step finds the rest
                break
            step -= len(messages) + 1
            self.left, self.moved = self.left - 1, self.moved + 1
            order.move_first_timer(timer)
        return []

    def _messages_before(self, timer: Timer, *, arrived: bool) -> list[tuple[Publication, Subscription]]:
        """Return the messages that precede a timer in its conversation, in their order: each publication, and which of
        its targets."""
        record = self.records.by_cid[timer.cid]
        if not isinstance(record, Record) or (arrived and timer.before is self.order.arrivals):
            return []
        # All that stands before the first timer that arrived are publications. A timer of the wheel was accepted before
        # what arrived at the instant at which it is due.
        latest = timer.before.number if arrived else None
        if record.backlog is not None:
            return [
                (message, message.entries[0])
                for message in record.backlog.messages
                if not message.aside
                and message.entries[0].name is not None
                and (message.number <= latest if latest is not None else message.due < timer.due)
            ]
        found: list[tuple[int, Publication, Subscription]] = []
        for entry in reversed(self.records.subscriptions(timer.cid)):
            topic = self.topics.topics.get(entry.topic)
            publication = topic.oldest if isinstance(topic, Topic) else None
            while publication is not None and (
                publication.number <= latest if latest is not None else publication.due < timer.due
            ):
                if publication.waits_for(entry):
                    found.append((publication.number, publication, entry))
                publication = publication.later
        found.sort(key=_by_acceptance)
        if any(_by_acceptance(one) == _by_acceptance(other) for one, other in pairwise(found)):
            found.sort(key=_in_order)  # several instances of the conversation hear the topic
        return [(publication, entry) for _, publication, entry in found]


def _by_acceptance(found: tuple[int, Publication, Subscription]) -> tuple[int, int]:
    """Return the place of a message among those to its conversation, as far as it can be had in O(1)."""
    return found[0], found[2].joined


def _in_order(found: tuple[int, Publication, Subscription]) -> tuple[int, int]:
    """Return the place of a message among those to its conversation. O(log(all targets))."""
    number, publication, entry = found
    entries = publication.entries
    block = bisect_left(entries, entry.joined, publication.position, publication.length, key=_joined)
    return number, entries.index(entry, block)


def serve(publication: Publication, entry: Subscription, early: Any, *, passed: int = 0) -> Publication:
    """Hand out one target of a publication, as a message of its own which begins early; return the message.

    What an asynchronous exception must find whole changes in one statement. `rebuild` adds to `served` what stands in
    the ring.

    Args:
        publication: waits in the order.
        entry: one of its targets.
        early: the ring of the messages that begin early.
        passed: 1 if it is the target whose turn it is, 0 if it is one behind that.
    """
    part, last = publication.part_for([entry]), early.before
    part.before, part.after = last, early
    last.after, early.before, publication.position, publication.targeted = (
        part, part, publication.position + passed, publication.targeted - 1
    )  # fmt: skip
    if not passed:
        publication.note_served(entry)
    return part
