"""Making the derived state of an engine anew after an asynchronous exception has interrupted an operation.

Operations refuse before they change anything, so only an asynchronous exception (a signal handler that raises, such as
Ctrl-C, between any two lines) can leave one half done. Then the primary facts are still there, because rings are linked
and cut in an order that keeps walking them forward legal. What follows from these facts is made anew: the wheel, both
indexes, the figures of the ledger. The interrupted operation may have happened or not. O(everything pending).
"""

from __future__ import annotations

from typing import Any

from stube_backends.engine._engine import Engine
from stube_backends.engine._order import Arrival
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import BEING_REMOVED, Publication, Subscription, TopicIndex


def rebuild(engine: Engine[Any]) -> None:
    """Make everything anew that can be derived. The caller holds the lock; the interrupted operation has ended."""
    engine.flows.pop("", None)  # of an interrupted `free_if_empty_unlocked`
    parked, timers = engine.claims.take_back()
    # What was parked had been taken out before the arrivals; but an interrupted `leave` has put back some of it.
    arrivals = sorted([*parked, *engine.order.arrivals], key=lambda entry: entry.due)
    publications = [entry for entry in arrivals if type(entry) is Publication]
    engine.topics = _rebuilt_topics(engine.topics, publications)
    if engine.backlogs is not None:
        engine.backlogs.rebuild(publications)
    ledger = engine.ledger
    ledger.timers = _put_in_again(engine, arrivals, timers)
    ledger.queued = sum(publication.targeted for publication in publications)
    begun = engine.claims.recount()
    decided = ledger.delivered + ledger.failed + ledger.cancelled + ledger.dropped
    ledger.accepted = decided + ledger.timers + ledger.queued + begun


def _put_in_again(engine: Engine[Any], arrivals: list[Arrival], taken_back: list[Timer]) -> int:
    """Make every timer pending that the order, the groups or the claims still know; return how many there are."""
    order, groups = engine.order, engine.groups
    # Sorting keeps equals as they stand in their slots, in the order of acceptance; timers that only their group knows
    # come last. While a slot is being opened its timers stand in `order`, where not all of them are marked yet.
    waiting = taken_back + order.wheel.order[::-1] + sorted(order.wheel, key=lambda timer: timer.due)
    for instances in groups.by_cid.values():
        for group in instances.values():
            waiting += group
    order.forget()
    groups.by_cid = {}
    seen: set[int] = set()
    for entry in arrivals:
        if type(entry) is Publication:
            order.arrivals.append(entry)
        elif _is_pending(entry, seen):
            _regroup(engine, entry)
            order.arrivals.append(entry)
    for timer in waiting:
        if _is_pending(timer, seen):
            _regroup(engine, timer)
            order.wheel.add(timer, timer.due - order.last_accepted_ns)
    return len(seen)


def _is_pending(timer: Any, seen: set[int]) -> bool:
    if timer.event is None or timer.group is None or id(timer) in seen:
        return False
    seen.add(id(timer))
    return True


def _regroup(engine: Engine[Any], timer: Any) -> None:
    group = timer.group
    engine.groups.add(timer, group.cid, group.instance_id, group.owner)


def _rebuilt_topics(old: TopicIndex, publications: list[Publication]) -> TopicIndex:
    """Return an index made from the topics' own lists, whose objects stay the same for publications that wait."""
    index = TopicIndex(old.generation)
    for name, topic in old.topics.items():
        for entry in topic.entries:
            if entry.name is BEING_REMOVED:
                entry.name = entry.event = None
        live = [entry for entry in topic.entries if entry.name is not None]
        if not live:
            continue
        topic.live = len(live)
        lengths = [publication.length for publication in publications if publication.entries is topic.entries]
        topic.snapshots = len(lengths)
        topic.snapshot_length = max(lengths, default=0)
        index.topics[name] = topic
        index.count += len(live)
        for entry in live:
            _index(index, entry)
        topic.compact()
    index.generation.token = object()  # a topic may have been added by the interrupted operation, without a new token
    return index


def _index(index: TopicIndex, entry: Subscription) -> None:
    subscriptions = index.by_cid.setdefault(entry.cid, {}).setdefault(entry.instance_id, {})
    subscriptions[entry.topic] = entry
