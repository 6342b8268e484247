"""Conversations: what is pending for each and what it listens to, found with one look-up.

A conversation that holds one timer and nothing else is represented by that timer; one that holds anything else has a
`Record`. It is forgotten as soon as it holds nothing.

Most conversations have one to three timers and subscriptions, and a container costs more than these do. So a record
keeps both as chains: from the newest on, the link `older` leads through the timers or subscriptions themselves. To find
those of one instance such a chain is walked, so it has at most `FEW` members, unless all are timers of one instance. A
conversation that has more keeps them in dicts by instance, until the last one is gone: then one instance costs nothing
of what the others have (G14).

Two things of a conversation are kept elsewhere. Its baton is in a table of its own, because putting and taking it needs
no lock. Its mailbox is with the claims that need mailboxes: it says who delivers, not what is pending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from stube.arguments import PlainEvent
from stube_backends.engine._tables import free_if_empty
from stube_backends.engine._timers import OwnerReference, Timer
from stube_backends.engine._topics import Publication, Subscription

FEW: Final = 8
"""How many timers of several instances, and how many subscriptions, a record keeps as one chain."""


class Backlog:
    """The messages that wait for one conversation, the oldest first, where their number is bounded."""

    __slots__ = ("messages", "overflowing")

    def __init__(self) -> None:
        self.messages: deque[Publication] = deque()
        self.overflowing = False


class Record:
    """What one conversation holds.

    Args:
        timers: the newest timer of the one chain; or the newest of each instance's chain, which may have any length.
    """

    __slots__ = ("backlog", "mixed", "subscriptions", "timers")

    def __init__(self, timers: Timer | None = None) -> None:
        self.timers: Timer | dict[str, Timer] | None = timers
        self.mixed = False  # whether the one chain has timers of several instances
        # The newest subscription of the one chain; or the subscriptions by instance and topic.
        self.subscriptions: Subscription | dict[str, dict[str, Subscription]] | None = None
        self.backlog: Backlog | None = None  # kept as long as it has messages


class Records:
    """The conversations that hold something, by cid.

    Adding is O(1), removing O(what is removed). A reader that interrupts a change on its own thread finds whole chains:
    what is added is linked to the rest before the table leads to it, and what is removed leaves the chain before its
    own link is cut.
    """

    __slots__ = ("by_cid", "owner")

    def __init__(self) -> None:
        self.by_cid: dict[str, Record | Timer] = {}
        # Who cancels on behalf of the timers' handles. A registry sets it before there are any, to a weak reference:
        # its subscriptions alone must not keep it alive.
        self.owner: OwnerReference = _nobody

    def of(self, cid: str) -> Record:
        """Return the record of a conversation that will hold more than one timer."""
        entry = self.by_cid.get(cid)
        if isinstance(entry, Record):
            return entry
        record = self.by_cid[cid] = Record(entry)
        return record

    def find(self, cid: str) -> Record | None:
        """Return the record of a conversation; None for one that holds a single timer or nothing."""
        entry = self.by_cid.get(cid)
        return entry if isinstance(entry, Record) else None

    def drop_if_empty(self, cid: str, record: Record) -> None:
        """Forget a conversation if its record holds nothing any more."""
        if record.timers is None and record.subscriptions is None and record.backlog is None:
            self.by_cid.pop(cid, None)
            free_if_empty(self.by_cid)

    def forget(self) -> dict[str, Record | Timer]:
        """Forget everything; return it, for the caller to release. The chains stay as they are."""
        by_cid, self.by_cid = self.by_cid, {}
        return by_cid

    # -- timers ------------------------------------------------------------------------------------------------

    def timers(self, cid: str, instance_id: str | None = None) -> list[Timer]:
        """Return the timers of a conversation, or of one instance of it; of each instance the newest first."""
        entry = self.by_cid.get(cid)
        timers: Timer | dict[str, Timer] | None = entry.timers if isinstance(entry, Record) else entry
        if instance_id is None:
            return _all_timers(timers)
        if isinstance(timers, dict):
            return _chain(timers.get(instance_id))
        if isinstance(entry, Record) and entry.mixed:
            return [timer for timer in _chain(timers) if timer.instance_id == instance_id]
        return _chain(timers) if timers is not None and timers.instance_id == instance_id else []

    def add_timer(self, timer: Timer) -> None:
        """Take in a timer, which has its names and no links yet."""
        timer.table = self
        timer.newer = timer.older = None
        if timer.cid not in self.by_cid:
            self.by_cid[timer.cid] = timer
        else:
            self.add_another(timer)

    def add_another(self, timer: Timer) -> None:
        """Take in a timer of a conversation that holds something already."""
        record = self.by_cid[timer.cid]
        if type(record) is Timer:
            timer.older = record
            record.newer = timer
            mixed = record.instance_id != timer.instance_id
            record = Record(timer)
            record.mixed = mixed
            self.by_cid[timer.cid] = record
            return
        assert isinstance(record, Record)
        newest: Any = record.timers
        if type(newest) is Timer:
            if newest.instance_id != timer.instance_id or record.mixed:
                if not _has_few(newest):
                    record.timers = _by_instance(newest) if record.mixed else {newest.instance_id: newest}
                    self.add_another(timer)
                    return
                record.mixed = True
            timer.older = newest
            newest.newer = timer
            record.timers = timer
        elif newest is None:
            record.timers = timer
            record.mixed = False
        else:
            by_instance = newest
            newest = timer.older = by_instance.get(timer.instance_id)
            if newest is not None:
                newest.newer = timer
            by_instance[timer.instance_id] = timer

    def remove_timers(self, timers: Iterable[Timer]) -> None:
        """Take out timers, which must be in."""
        by_cid = self.by_cid
        for timer in timers:
            older, newer = timer.older, timer.newer
            if newer is not None:
                newer.older = older
            else:
                record: Any = by_cid[timer.cid]
                if record is timer:
                    del by_cid[timer.cid]
                    continue
                newest = record.timers
                if newest is timer:
                    record.timers = older
                elif older is not None:
                    newest[timer.instance_id] = older
                else:
                    del newest[timer.instance_id]
                if not record.timers:
                    record.timers = None
                    self.drop_if_empty(timer.cid, record)
            if older is not None:
                older.newer = newer
            timer.older = timer.newer = None
        if not by_cid:
            by_cid.clear()  # see `free_if_empty`

    def take_timers(self, cid: str, instance_id: str | None) -> list[Timer]:
        """Take out all timers of a conversation, or of one instance of it."""
        record = self.by_cid.get(cid)
        if record is None:
            return []
        if type(record) is Timer and instance_id in (None, record.instance_id):
            del self.by_cid[cid]
            if not self.by_cid:
                self.by_cid.clear()
            return [record]
        timers = self.timers(cid, instance_id)
        if instance_id is not None:
            self.remove_timers(timers)
            return timers
        assert isinstance(record, Record)
        record.timers = None
        self.drop_if_empty(cid, record)
        for timer in timers:
            timer.older = timer.newer = None
        return timers

    def take(self, cid: str) -> tuple[list[Timer], list[Subscription]]:
        """Take out all timers and subscriptions of a conversation."""
        record = self.by_cid.get(cid)
        if not isinstance(record, Record):
            return self.take_timers(cid, None), []
        timers, subscriptions = _all_timers(record.timers), _all_subscriptions(record.subscriptions)
        record.timers = record.subscriptions = None
        if record.backlog is None:
            del self.by_cid[cid]
            if not self.by_cid:
                self.by_cid.clear()  # see `free_if_empty`
        for timer in timers:
            timer.older = timer.newer = None
        for entry in subscriptions:
            entry.older = None
        return timers, subscriptions

    # -- subscriptions -----------------------------------------------------------------------------------------

    def subscriptions(self, cid: str, instance_id: str | None = None) -> list[Subscription]:
        """Return the subscriptions of a conversation, or of one instance of it; of each instance the newest first."""
        record = self.find(cid)
        subscriptions = None if record is None else record.subscriptions
        if instance_id is None:
            return _all_subscriptions(subscriptions)
        if isinstance(subscriptions, dict):
            return list(subscriptions.get(instance_id, {}).values())[::-1]
        return [entry for entry in _chain(subscriptions) if entry.instance_id == instance_id]

    def find_or_add(self, cid: str, instance_id: str, topic: str, event: PlainEvent) -> tuple[Subscription, bool]:
        """Return the subscription of an instance to a topic, and whether it is a new one, with this event."""
        record = self.by_cid.get(cid)
        newest = record.subscriptions if isinstance(record, Record) else None
        length = 0
        if isinstance(newest, dict):
            found = newest.get(instance_id, {}).get(topic)
            if found is not None:
                return found, False
            length = FEW
        else:
            entry = newest
            while entry is not None:
                if entry.topic == topic and entry.instance_id == instance_id:
                    return entry, False
                length += 1
                entry = entry.older
        new = Subscription(cid, instance_id, topic, event)
        if not isinstance(record, Record):
            record = self.by_cid[cid] = Record(record)
        _add_subscription(record, new, length)
        return new, True

    def subscription(self, cid: str, instance_id: str, topic: str) -> Subscription | None:
        """Return the subscription of an instance to a topic."""
        record = self.by_cid.get(cid)
        if not isinstance(record, Record):
            return None
        entry = record.subscriptions
        if isinstance(entry, dict):
            return entry.get(instance_id, {}).get(topic)
        while entry is not None and (entry.topic != topic or entry.instance_id != instance_id):
            entry = entry.older
        return entry

    def add_subscription(self, entry: Subscription) -> None:
        """Make a subscription the newest of its conversation."""
        record = self.of(entry.cid)
        chain = [] if isinstance(record.subscriptions, dict) else _chain(record.subscriptions)
        _add_subscription(record, entry, len(chain))

    def take_subscriptions(self, cid: str, instance_id: str | None, topic: str | None) -> list[Subscription]:
        """Take out all subscriptions of a conversation, or of one instance of it, or the instance's one to a topic."""
        record = self.find(cid)
        if record is None:
            return []
        if instance_id is None:
            removed = self.subscriptions(cid)
            record.subscriptions = None
            for entry in removed:
                entry.older = None
        else:
            one = None if topic is None else self.subscription(cid, instance_id, topic)
            removed = self.subscriptions(cid, instance_id) if topic is None else [] if one is None else [one]
            _take_out(record, removed)
        self.drop_if_empty(cid, record)
        return removed

    def _check(self) -> None:
        for cid, record in self.by_cid.items():
            for timer in self.timers(cid):
                assert (timer.table, timer.cid) == (self, cid), f"{timer!r} stands under {cid!r}"
                assert timer.event is not None, f"a dead timer stands under {cid!r}"
                assert timer.older is None or timer.older.newer is timer, f"the chain is broken at {timer!r}"
            for entry in self.subscriptions(cid):
                assert entry.cid == cid, f"the subscription of {entry.cid!r} stands under {cid!r}"
                assert entry.name is not None, f"a removed subscription stands under {cid!r}"
            if isinstance(record, Record):
                empty = record.timers is None and record.subscriptions is None and record.backlog is None
                assert not empty, f"the record of {cid!r} holds nothing"
                _check_shape(cid, record)


def _nobody() -> None:
    """Return no owner: the engine belongs to no registry."""


def _chain(newest: Any) -> list[Any]:
    """Return the timers or subscriptions of a chain, the newest first."""
    found = []
    while newest is not None:
        found.append(newest)
        newest = newest.older
    return found


def _all_timers(timers: Timer | dict[str, Timer] | None) -> list[Timer]:
    """Return the timers of a record, of each instance the newest first."""
    if not isinstance(timers, dict):
        return _chain(timers)
    return [timer for newest in timers.copy().values() for timer in _chain(newest)]


def _all_subscriptions(subscriptions: Subscription | dict[str, dict[str, Subscription]] | None) -> list[Subscription]:
    """Return the subscriptions of a record, of each instance the newest first."""
    if not isinstance(subscriptions, dict):
        return _chain(subscriptions)
    return [entry for by_topic in subscriptions.copy().values() for entry in by_topic.copy().values()][::-1]


def _has_few(newest: Any) -> bool:
    """Say whether there is room for another one in a chain."""
    length = 0
    while newest is not None:
        length, newest = length + 1, newest.older
        if length == FEW:
            return False
    return True


def _by_instance(newest: Timer) -> dict[str, Timer]:
    """Make one chain for each instance of one chain; return the newest timer of each."""
    found: dict[str, Timer] = {}
    for timer in reversed(_chain(newest)):
        older = found.get(timer.instance_id)
        timer.older, timer.newer = older, None
        if older is not None:
            older.newer = timer
        found[timer.instance_id] = timer
    return found


def _add_subscription(record: Record, entry: Subscription, length: int) -> None:
    """Make a subscription the newest of its conversation, where the chain has this length."""
    subscriptions = record.subscriptions
    if not isinstance(subscriptions, dict):
        if length < FEW:
            entry.older = subscriptions
            record.subscriptions = entry
            return
        chain, subscriptions = _chain(subscriptions), {}
        for other in reversed(chain):
            subscriptions.setdefault(other.instance_id, {})[other.topic] = other
        record.subscriptions = subscriptions
        for other in chain:
            other.older = None
    subscriptions.setdefault(entry.instance_id, {})[entry.topic] = entry


def _take_out(record: Record, removed: list[Subscription]) -> None:
    """Take subscriptions of one instance out of a record."""
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


def _check_shape(cid: str, record: Record) -> None:
    """Assert that chains are short, and that what is kept by instance and topic stands in its place."""
    timers, subscriptions = record.timers, record.subscriptions
    if isinstance(timers, dict):
        for instance_id, newest in timers.items():
            assert newest.newer is None, f"the chain of {cid!r} does not begin at {newest!r}"
            strangers = [timer for timer in _chain(newest) if timer.instance_id != instance_id]
            assert not strangers, f"{strangers!r} stand in the chain of {instance_id!r}"
    else:
        assert timers is None or timers.newer is None, f"the chain of {cid!r} does not begin at {timers!r}"
        chain = _chain(timers)
        assert not record.mixed or len(chain) <= FEW, f"{cid!r} has a chain of {len(chain)} timers"
        instances = {timer.instance_id for timer in chain}
        assert record.mixed or len(instances) <= 1, f"the chain of {cid!r} has timers of {instances}"
    if isinstance(subscriptions, dict):
        for instance_id, by_topic in subscriptions.items():
            assert by_topic, f"instance {instance_id!r} of {cid!r} is kept without a subscription"
            for topic, entry in by_topic.items():
                right = (entry.instance_id, entry.topic, entry.older) == (instance_id, topic, None)
                assert right, f"{entry.instance_id!r}, {entry.topic!r} stands under {instance_id!r}, {topic!r}"
    else:
        assert len(_chain(subscriptions)) <= FEW, f"{cid!r} has a chain of {len(_chain(subscriptions))} subscriptions"
