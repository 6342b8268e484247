"""Conversations: one record holds what is pending for each, and what it listens to.

Whatever is found by a cid is found with one look-up, and goes with one. A record is kept as long as it holds something.
(Two things of a conversation are kept elsewhere. Its baton is in a table of its own, because putting and taking it
needs no lock. Its mailbox is with the claims that need mailboxes: it says who delivers, not what is pending.)

Most conversations have one to three timers and subscriptions, and a container costs more than these do. So a record
keeps both as chains: from the newest on, the link `older` leads through the timers or subscriptions themselves. Such a
chain has at most `FEW` members, because it is walked to find those of one instance. A conversation that has more keeps
them in dicts by instance, until the last one is gone: then one instance costs nothing of what the others have (G14).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from stube_backends.engine._tables import free_if_empty
from stube_backends.engine._timers import OwnerReference, Timer
from stube_backends.engine._topics import Publication, Subscription

FEW: Final = 8
"""How many timers, and how many subscriptions, a record keeps as one chain."""


class Backlog:
    """The messages that wait for one conversation, the oldest first, where their number is bounded."""

    __slots__ = ("messages", "overflowing")

    def __init__(self) -> None:
        self.messages: deque[Publication] = deque()
        self.overflowing = False


class Record:
    """One conversation. Made by `Records.new`."""

    __slots__ = ("backlog", "cid", "owner", "subscriptions", "timers")

    cid: str
    owner: OwnerReference  # who cancels on behalf of a timer's handle
    # The newest timer of the one chain; or the newest of each instance's chain, which may have any length.
    timers: Timer | dict[str, Timer] | None
    # The newest subscription of the one chain; or the subscriptions by instance and topic.
    subscriptions: Subscription | dict[str, dict[str, Subscription]] | None
    backlog: Backlog | None  # kept as long as it has messages

    def all_timers(self) -> list[Timer]:
        """Return the timers, of each instance the newest first."""
        timers = self.timers
        if not isinstance(timers, dict):
            return _chain(timers)
        return [timer for newest in timers.copy().values() for timer in _chain(newest)]

    def timers_of(self, instance_id: str) -> list[Timer]:
        """Return the timers of an instance, the newest first."""
        timers = self.timers
        if isinstance(timers, dict):
            return _chain(timers.get(instance_id))
        return [timer for timer in _chain(timers) if timer.instance_id == instance_id]

    def all_subscriptions(self) -> list[Subscription]:
        """Return the subscriptions, of each instance the newest first."""
        subscriptions = self.subscriptions
        if not isinstance(subscriptions, dict):
            return _chain(subscriptions)
        return [entry for by_topic in subscriptions.copy().values() for entry in by_topic.copy().values()][::-1]

    def subscriptions_of(self, instance_id: str) -> list[Subscription]:
        """Return the subscriptions of an instance."""
        subscriptions = self.subscriptions
        if isinstance(subscriptions, dict):
            return list(subscriptions.get(instance_id, {}).values())
        return [entry for entry in _chain(subscriptions) if entry.instance_id == instance_id]

    def subscription(self, instance_id: str, topic: str) -> Subscription | None:
        """Return the subscription of an instance to a topic."""
        entry = self.subscriptions
        if isinstance(entry, dict):
            return entry.get(instance_id, {}).get(topic)
        while entry is not None and (entry.topic != topic or entry.instance_id != instance_id):
            entry = entry.older
        return entry


class Records:
    """The records of the conversations that hold something, by cid.

    Adding is O(1), removing O(what is removed). A reader that interrupts a change on its own thread finds whole chains:
    what is added is linked to the rest before the record leads to it, and what is removed leaves the chain before its
    own link is cut.
    """

    __slots__ = ("by_cid", "owner")

    def __init__(self) -> None:
        self.by_cid: dict[str, Record] = {}
        # See `Record`. A registry sets it before there are any: to a weak reference, because its subscriptions alone
        # must not keep it alive.
        self.owner: OwnerReference = _nobody

    def new(self, cid: str) -> Record:
        """Make the record of a conversation; it does not stand in the table yet."""
        record = Record()  # without an __init__, which costs 0.1 us of 1.2 for a timer
        record.cid = cid
        record.owner = self.owner
        record.timers = record.subscriptions = record.backlog = None
        return record

    def of(self, cid: str) -> Record:
        """Return the record of a conversation that will hold something."""
        record = self.by_cid.get(cid)
        if record is None:
            record = self.by_cid[cid] = self.new(cid)
        return record

    def drop_if_empty(self, record: Record) -> None:
        """Forget a record if it holds nothing any more."""
        if record.timers is None and record.subscriptions is None and record.backlog is None:
            self.by_cid.pop(record.cid, None)
            free_if_empty(self.by_cid)

    def forget(self) -> dict[str, Record]:
        """Forget everything; return it, for the caller to release. The chains stay as they are."""
        by_cid, self.by_cid = self.by_cid, {}
        return by_cid

    # -- timers ------------------------------------------------------------------------------------------------

    def add_timer(self, timer: Timer, cid: str, instance_id: str) -> None:
        """Make a timer the newest of an instance."""
        timer.instance_id = instance_id
        timer.newer = timer.older = None
        record = self.by_cid.get(cid)
        if record is None:
            timer.record = record = self.new(cid)
            record.timers = timer
            self.by_cid[cid] = record
            return
        timer.record = record
        timers: Any = record.timers
        if type(timers) is not dict:
            chain = _chain(timers)
            if len(chain) < FEW:
                timer.older = timers
                if timers is not None:
                    timers.newer = timer
                record.timers = timer
                return
            timers = record.timers = _by_instance(chain)
        newest = timer.older = timers.get(instance_id)
        if newest is not None:
            newest.newer = timer
        timers[instance_id] = timer

    def remove_timers(self, timers: Iterable[Timer]) -> None:
        """Take out timers, which must be in."""
        for timer in timers:
            older, newer = timer.older, timer.newer
            if newer is not None:
                newer.older = older
            else:
                record: Any = timer.record
                newest = record.timers
                if newest is timer:
                    record.timers = older
                elif older is not None:
                    newest[timer.instance_id] = older
                else:
                    del newest[timer.instance_id]
                if not record.timers:
                    record.timers = None
                    self.drop_if_empty(record)
            if older is not None:
                older.newer = newer
            timer.older = timer.newer = None

    def take_timers(self, cid: str, instance_id: str | None) -> list[Timer]:
        """Take out all timers of a conversation, or of one instance of it."""
        record = self.by_cid.get(cid)
        if record is None:
            return []
        if instance_id is not None:
            timers = record.timers_of(instance_id)
            self.remove_timers(timers)
            return timers
        timers = record.all_timers()
        record.timers = None
        self.drop_if_empty(record)
        for timer in timers:
            timer.older = timer.newer = None
        return timers

    def holds(self, timer: Timer) -> bool:
        """Say whether a timer's record stands in this table, and not in that of the parent process before a fork."""
        record = timer.record
        return record is not None and self.by_cid.get(record.cid) is record

    # -- subscriptions -----------------------------------------------------------------------------------------

    def add_subscription(self, entry: Subscription) -> None:
        """Make a subscription the newest of its conversation."""
        record = self.of(entry.cid)
        subscriptions = record.subscriptions
        if not isinstance(subscriptions, dict):
            chain = _chain(subscriptions)
            if len(chain) < FEW:
                entry.older = subscriptions
                record.subscriptions = entry
                return
            subscriptions = {}
            for other in reversed(chain):
                subscriptions.setdefault(other.instance_id, {})[other.topic] = other
            record.subscriptions = subscriptions
            for other in chain:
                other.older = None
        subscriptions.setdefault(entry.instance_id, {})[entry.topic] = entry

    def take_subscriptions(self, cid: str, instance_id: str | None, topic: str | None) -> list[Subscription]:
        """Take out all subscriptions of a conversation, or of one instance of it, or the instance's one to a topic."""
        record = self.by_cid.get(cid)
        if record is None:
            return []
        if instance_id is None:
            removed = record.all_subscriptions()
            record.subscriptions = None
            for entry in removed:
                entry.older = None
        else:
            one = None if topic is None else record.subscription(instance_id, topic)
            removed = record.subscriptions_of(instance_id) if topic is None else [] if one is None else [one]
            self._take_out(record, removed)
        self.drop_if_empty(record)
        return removed

    def _take_out(self, record: Record, removed: list[Subscription]) -> None:
        """Take out subscriptions of one instance."""
        if isinstance(record.subscriptions, dict):
            for entry in removed:
                by_topic = record.subscriptions[entry.instance_id]
                del by_topic[entry.topic]
                if not by_topic:
                    del record.subscriptions[entry.instance_id]
            if not record.subscriptions:
                record.subscriptions = None
            return
        newer = None
        for entry in _chain(record.subscriptions):
            if entry not in removed:
                newer = entry
                continue
            if newer is None:
                record.subscriptions = entry.older
            else:
                newer.older = entry.older
            entry.older = None

    def _check(self) -> None:
        for cid, record in self.by_cid.items():
            assert record.cid == cid, f"the record of {record.cid!r} stands under {cid!r}"
            _check_timers(record)
            _check_subscriptions(record)
            empty = record.timers is None and record.subscriptions is None and record.backlog is None
            assert not empty, f"the record of {cid!r} holds nothing"


def _nobody() -> None:
    """Return no owner: the engine belongs to no registry."""


def _chain(newest: Any) -> list[Any]:
    """Return the timers or subscriptions of a chain, the newest first."""
    found = []
    while newest is not None:
        found.append(newest)
        newest = newest.older
    return found


def _by_instance(timers: list[Timer]) -> dict[str, Timer]:
    """Make one chain for each instance of one chain; return the newest timer of each."""
    newest: dict[str, Timer] = {}
    for timer in reversed(timers):
        older = newest.get(timer.instance_id)
        timer.older, timer.newer = older, None
        if older is not None:
            older.newer = timer
        newest[timer.instance_id] = timer
    return newest


def _check_timers(record: Record) -> None:
    timers = record.timers
    chains: Iterator[tuple[str | None, Any]]
    chains = iter(timers.items() if isinstance(timers, dict) else [(None, timers)] if timers is not None else [])
    for instance_id, newest in chains:
        chain = _chain(newest)
        assert instance_id or len(chain) <= FEW, f"{record.cid!r} has a chain of {len(chain)} timers"
        assert newest.newer is None, f"the chain of {record.cid!r} does not begin at {newest!r}"
        for timer in chain:
            assert timer.record is record, f"{timer!r} stands in the record of {record.cid!r}"
            assert instance_id in (None, timer.instance_id), f"{timer!r} stands in the chain of {instance_id!r}"
            assert timer.event is not None, f"a dead timer stands in the record of {record.cid!r}"
            assert timer.older is None or timer.older.newer is timer, f"the chain is broken at {timer!r}"


def _check_subscriptions(record: Record) -> None:
    subscriptions = record.subscriptions
    if not isinstance(subscriptions, dict):
        assert len(_chain(subscriptions)) <= FEW, f"{record.cid!r} has a chain of {len(_chain(subscriptions))} topics"
    else:
        assert subscriptions, f"{record.cid!r} keeps an empty table of subscriptions"
        for instance_id, by_topic in subscriptions.items():
            assert by_topic, f"instance {instance_id!r} of {record.cid!r} is kept without a subscription"
            for topic, entry in by_topic.items():
                right = (entry.instance_id, entry.topic, entry.older) == (instance_id, topic, None)
                assert right, f"{entry.instance_id!r}, {entry.topic!r} stands under {instance_id!r}, {topic!r}"
    for entry in record.all_subscriptions():
        assert entry.cid == record.cid, f"the subscription of {entry.cid!r} stands in the record of {record.cid!r}"
        assert entry.name is not None, f"a removed subscription stands in the record of {record.cid!r}"
