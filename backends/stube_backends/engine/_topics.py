"""Topics: the subscriptions of each, and the targets of a publication.

A topic keeps its subscriptions in one list, in the order in which they were added. A publication does not copy it: it
takes a snapshot, the list and its length at that instant, so that it costs its publisher the same for one subscriber
and for 100,000 (G14). That works because the part of a list that a snapshot refers to never moves: a new subscription
is appended behind it, a removed one stays as a tombstone, and compacting makes a new list while a publication waits.
Tombstones never outnumber the live subscriptions, so adding and removing are amortised O(1) in a topic of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from operator import length_hint
from typing import Any, Final

from stube import EventSpec
from stube.arguments import PlainEvent
from stube_backends.engine._arguments import public_event
from stube_backends.engine._rings import unlink
from stube_backends.engine._tables import free_if_empty

_SMALL: Final = 32  # live subscriptions
_JOINED: Final = 64  # subscriptions that share a number

BEING_REMOVED: Final = "".join(("being ", "removed"))
"""Marks a subscription that is being removed together with others. A delivery thread that reads it must take the lock
before it continues, so that the removal looks atomic. Compared with `is`: the string is made at run time and not
interned, so that no event's name is this object."""


class Subscription:
    """One instance's place in a topic. Live while `name` is not None; a tombstone after that, and never live again."""

    __slots__ = ("cid", "event", "instance_id", "joined", "name", "older", "removed", "topic")

    joined: int  # see `TopicIndex.joined`, which sets it
    removed: int  # of a tombstone: `ReadyOrder.last_number` at the removal

    def __init__(self, cid: str, instance_id: str, topic: str, event: PlainEvent) -> None:
        self.cid = cid
        self.instance_id = instance_id
        self.topic = topic  # its name: a reference to the Topic would be a cycle
        self.event: PlainEvent | None = event
        self.name: str | None = event if type(event) is str else event[0]  # `name_of`, written out
        self.older: Subscription | None = None  # a link of `Record.subscriptions`


NONE_SERVED: Final[frozenset[Subscription]] = frozenset()


def count_live(entries: list[Subscription]) -> int:
    """Return how many of these subscriptions have not been removed."""
    return sum(entry.name is not None for entry in entries)


class Topic:
    """The subscriptions of one topic, in the order in which they were added. Kept only while it has a live one.

    Args:
        entries: the first of them, all live.
    """

    __slots__ = ("entries", "live", "newest", "oldest")

    def __init__(self, entries: list[Subscription]) -> None:
        self.entries = entries
        self.live = len(entries)
        # The first and the last publication that wait; `later` links one to the next.
        self.oldest: Publication | None = None
        self.newest: Publication | None = None

    def snapshot_length(self) -> int:
        """Return how many of `entries` the publications that wait refer to.

        Each refers to no fewer than the one before it; those before the last compaction refer to an older list.
        """
        newest = self.newest
        return newest.length if newest is not None and newest.entries is self.entries else 0

    def add(self, publication: Publication) -> None:
        """Let a publication wait that refers to `entries` as they are now."""
        publication.entries = entries = self.entries
        publication.length = len(entries)
        publication.later = None
        newest = self.newest
        if newest is None:
            self.oldest = publication
        else:
            newest.later = publication
        self.newest = publication

    def leave(self, entry: Subscription) -> None:
        """Forget an entry that has become a tombstone, now or later.

        A small topic that no publication refers to keeps no tombstone, because a list of 32 is quickly searched.
        """
        self.live -= 1
        if len(self.entries) <= _SMALL and not self.snapshot_length():
            self.entries.remove(entry)
        else:
            self.compact()

    def compact(self) -> None:
        """Remove the tombstones at the end, and all of them when they outnumber the live entries, or when a small topic
        keeps some that no publication refers to."""
        entries, kept = self.entries, self.snapshot_length()
        while len(entries) > kept and entries[-1].name is None:
            entries.pop()
        if len(entries) > 2 * self.live or (len(entries) > self.live <= _SMALL and not kept):
            self.entries = [entry for entry in entries if entry.name is not None]
            del entries[kept:]  # the old list keeps what waiting publications refer to

    def rebuild(self, live: int, publications: list[Publication]) -> None:
        """Make anew what follows from the entries and from the publications that wait, in their order."""
        self.live = live
        self.oldest = publications[0] if publications else None
        self.newest = publications[-1] if publications else None
        for publication, later in zip_longest(publications, publications[1:]):
            publication.later = later
        self.compact()

    def let_go(self, publication: Publication) -> None:
        """Forget the oldest publication that waits, which has handed out all of its targets."""
        self.oldest, publication.later = publication.later, None
        if self.oldest is None:
            self.newest = None
        if len(self.entries) > self.live:
            self.compact()

    def _check(self, name: str) -> None:
        live = count_live(self.entries)
        assert live == self.live > 0, f"topic {name!r} has {live} live entries, counted {self.live}"
        assert len(self.entries) <= 2 * live, f"topic {name!r} has {len(self.entries)} entries for {live} live"
        lengths, publication = [0], self.oldest
        while publication is not None:
            if publication.entries is self.entries:
                lengths.append(publication.length)
            assert (publication.later is None) == (publication is self.newest), f"topic {name!r} has a wrong end"
            publication = publication.later
        kept = self.snapshot_length()
        assert kept == max(lengths), f"topic {name!r} keeps {kept} entries for publications to {lengths}"
        if live <= _SMALL and not kept:
            assert len(self.entries) == live, f"the small topic {name!r} keeps tombstones"


class Generation:
    """Shared by the indexes of one registry: `token` is another object after a topic was added to one of them.

    A thread that reads it, looks for a topic in each index without a lock, and then finds it unchanged has missed none.
    """

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token = object()


class TopicIndex:
    """The subscriptions by topic. A topic is its only subscription until there is a second one or a message."""

    __slots__ = ("_joins", "count", "generation", "joined", "topics")

    def __init__(self, generation: Generation | None = None) -> None:
        self.generation = generation or Generation()
        self.topics: dict[str, Subscription | Topic] = {}
        self.count = 0
        # The number of a subscription that joins now. Later ones have no smaller number, and `_JOINED` share an object,
        # because an int for each would cost a third of it.
        self.joined = 0
        self._joins = 0

    def add(self, entry: Subscription) -> None:
        """Take in a subscription."""
        entry.joined = self.joined  # first, so that what interrupts these lines finds none in a topic without it
        name = entry.topic
        topic = self.topics.get(name)
        if topic is None:
            self.topics[name] = entry
            self.generation.token = object()  # after the topic, for a thread that reads it and then looks for the topic
        elif type(topic) is Topic:
            topic.entries.append(entry)
            topic.live += 1
        else:
            self.topics[name] = Topic([topic, entry])  # type: ignore[list-item]
        self.count += 1
        self._joins += 1
        if not self._joins % _JOINED:
            self.joined = self._joins

    def publishable(self, topic_name: str) -> Topic | None:
        """Return a topic that is about to get a message; None when it has no subscriber."""
        topic = self.topics.get(topic_name)
        if topic is None or type(topic) is Topic:
            return topic
        found = self.topics[topic_name] = Topic([topic])  # type: ignore[list-item]
        return found

    def forget(self) -> dict[str, Subscription | Topic]:
        """Forget everything; return it, for the caller to release."""
        topics, self.topics, self.count = self.topics, {}, 0
        return topics

    def remove(self, entries: list[Subscription], number: int) -> list[PlainEvent | None]:
        """Remove subscriptions after the publication `number`; return their events, which the caller releases where
        user code may run.

        The removal looks atomic without the lock, too: all that are removed are marked before a topic is gone from the
        index, and before the delivery thread passes the first of them over.
        """
        if len(entries) > 1:
            for entry in entries:
                entry.name = BEING_REMOVED
        topics = self.topics
        events = []
        for entry in entries:
            events.append(entry.event)
            entry.removed = number
            entry.event = entry.name = None
            topic = topics[entry.topic]
            if type(topic) is Topic:
                topic.leave(entry)
                if not topic.live:
                    del topics[entry.topic]
            else:
                del topics[entry.topic]
        self.count -= len(entries)
        free_if_empty(topics)
        return events

    def live(self, topic_name: str) -> int:
        """Return how many subscribers a topic has."""
        topic = self.topics.get(topic_name)
        return 0 if topic is None else topic.live if type(topic) is Topic else 1

    def entries(self) -> dict[str, list[Subscription]]:
        """Return the subscriptions of each topic, and tombstones among them."""
        return {
            name: topic.entries if type(topic) is Topic else [topic]  # type: ignore[list-item]
            for name, topic in self.topics.items()
        }

    def snapshot(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        """Return `{topic: {(cid, instance_id): event}}`, made for the caller."""
        found = {
            name: {
                (entry.cid, entry.instance_id): public_event(entry.event)
                for entry in entries
                if entry.event is not None
            }
            for name, entries in self.entries().items()
        }
        return {name: subscribers for name, subscribers in found.items() if subscribers}

    def _check(self) -> None:
        live = sum(map(count_live, self.entries().values()))
        assert live == self.count, f"{live} subscriptions, counted {self.count}"
        for name, topic in self.topics.items():
            if type(topic) is Topic:
                topic._check(name)
            else:
                assert count_live([topic]) == 1, f"topic {name!r} is a removed subscription"  # type: ignore[list-item]


class Publication:
    """One message to the subscribers of one instant: one entry, however many they are.

    It waits in the order until the last of its targets has begun, and hands them out a slice at a time: beginning costs
    the same however many they are (G27).
    """

    __slots__ = (
        "after",
        "aside",
        "before",
        "due",
        "entries",
        "later",
        "length",
        "message",
        "number",
        "position",
        "served",
        "targeted",
        "topic",
        "topic_name",
    )

    # No __init__: the engine sets the fields, and the ring the links (0.1 us of 0.6).
    after: Any
    aside: bool  # of a message to one target: whether it begins early or waits in a mailbox, and arrives no more
    before: Any
    due: int
    entries: list[Subscription]
    later: Publication | None  # the next one of its topic
    length: int
    message: Any
    number: int  # in the order of acceptance, see `ReadyOrder.last_number`
    position: int  # the entries before it have been handed out
    served: set[Subscription] | frozenset[Subscription]  # targets behind it that have been handed out before their turn
    targeted: int  # the targets that have not been handed out, those that have been removed since included
    topic: Topic | None  # whose list `entries` is; None for a list that is the publication's own
    topic_name: str

    def waiting(self) -> list[Subscription]:
        """Return the targets that have not been handed out and are live."""
        left = self.entries[self.position : self.length]
        return [entry for entry in left if entry.name is not None and entry not in self.served]

    def waits_for(self, entry: Subscription) -> bool:
        """Say whether a live subscription of the topic is a target that has not been handed out. O(1)."""
        entries, joined, position, length = self.entries, entry.joined, self.position, self.length
        if position == length or entry in self.served:
            return False
        first, last = entries[position].joined, entries[length - 1].joined
        if first < joined < last:
            return True
        # Fewer than `_JOINED` of a list have the same number, and they stand together.
        while position < length and joined == first and entries[position].joined == first:
            if entries[position] is entry:
                return True
            position += 1
        while position < length and joined == last and entries[length - 1].joined == last:
            length -= 1
            if entries[length] is entry:
                return True
        return False

    def slice(self, most: int) -> tuple[list[Subscription], int]:
        """Return the targets among the next `most` entries, for the caller to hand out, and the position behind
        them."""
        end = min(self.position + most, self.length)
        entries, topic = self.entries, self.topic
        if topic is not None and entries is topic.entries and len(entries) == topic.live and not self.served:
            return entries[self.position : end], end  # there is no tombstone
        return [entry for entry in entries[self.position : end] if self.is_left(entry)], end

    def close(self) -> None:
        """Leave the order, because every target has been handed out."""
        unlink(self)
        if self.topic is not None:
            self.topic.let_go(self)

    def part_for(self, targets: list[Subscription]) -> Publication:
        """Return a publication of the same message to these targets only."""
        part = Publication()
        part.due = self.due
        part.topic_name = self.topic_name
        part.topic = None
        part.entries = targets
        part.number = self.number
        part.aside = False
        part.position = 0
        part.served = NONE_SERVED
        part.length = part.targeted = len(targets)
        part.message = self.message
        return part

    def note_served(self, entry: Subscription) -> None:
        """Note that a target has been handed out before its turn. May be called again."""
        if self.served is NONE_SERVED:
            self.served = set()
        self.served.add(entry)  # type: ignore[union-attr]

    def is_left(self, entry: Subscription) -> bool:
        """Say whether an entry is a target that was not handed out before its turn, live or removed since."""
        return (entry.name is not None or entry.removed >= self.number) and entry not in self.served


class FanOut:
    """A slice of a publication that has begun: its targets, and an iterator positioned behind the one that began last.

    Args:
        publication: which waits in the order.
        targets: the next of its targets.

    Reading a target's `name` is its claim. A name means that the delivery has begun, None that its subscription was
    removed before, and BEING_REMOVED that it is being removed: what becomes of it shows under the lock. Only
    the delivery thread advances the iterator, because two threads on one iterator may get the same target.
    """

    __slots__ = (
        "accounted",
        "cancelled",
        "decided",
        "dropped",
        "due",
        "iterator",
        "message",
        "publication",
        "stopped",
        "targets",
        "topic_name",
        "total",
    )

    def __init__(self, publication: Publication, targets: list[Subscription]) -> None:
        self.publication = publication
        self.topic_name = publication.topic_name
        self.message = publication.message
        self.due = publication.due
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
                continue
            self.cancelled += 1
            if not self.pass_over(target, wait):
                return

    def pass_over(self, target: Subscription, wait: Callable[[], object]) -> bool:
        """Decide the fate of a target whose name, when it was read, was no event's; say whether the next one may begin.

        The caller has counted it as cancelled. It did so before this call, because a call may run a signal handler; if
        the handler raises, a target without a fate would be taken for one that dispatch was called for. A loop that
        must be faster than `claim_each` reads the name itself and calls this for the rest.
        """
        if target.name is BEING_REMOVED:
            wait()
            if target.name is BEING_REMOVED:  # marked by a reset, which counts the fates of those behind this one
                self.cancelled, self.dropped = self.cancelled - 1, self.dropped + 1
                return False
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
