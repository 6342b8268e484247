"""Making the derived state of an engine anew after an asynchronous exception has interrupted an operation.

Operations refuse before they change anything, so only an asynchronous exception (a signal handler that raises, such as
Ctrl-C, between any two lines) can leave one half done. Then the primary facts are still there, because rings are linked
and cut in an order that keeps walking them forward legal. What follows from these facts is made anew: the wheel, the
records, the topics, the figures of the ledger. The interrupted operation may have happened or not. O(everything
pending).
"""

from __future__ import annotations

from typing import Any

from stube_backends.engine._engine import Engine
from stube_backends.engine._order import Arrival
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import BEING_REMOVED, Publication, Topic


def rebuild(engine: Engine[Any]) -> None:
    """Make everything anew that can be derived. The caller holds the lock; the interrupted operation has ended."""
    engine.flows.pop("", None)  # of an interrupted `free_if_empty_unlocked`
    recorded = [timer for cid in engine.records.by_cid for timer in engine.records.timers(cid)]
    taken = [timer for timer in recorded if _was_taken(timer)]
    parked, timers = engine.claims.take_back()
    # Of a conversation, what is parked or was taken begins before what stands in `early`.
    early = sorted([*parked, *taken, *engine.order.early], key=lambda entry: entry.due)
    arrivals = list(engine.order.arrivals)
    publications = [entry for entry in (*early, *arrivals) if type(entry) is Publication]
    engine.records.forget()
    _rebuild_topics(engine, publications)
    if engine.backlogs is not None:
        # One that is being delivered stands in the order until that is over, but waits no more.
        engine.backlogs.rebuild(entry for entry in publications if entry.position < entry.length)
    by_number = {entry.number: entry for entry in arrivals if type(entry) is Publication and entry.topic is not None}
    for entry in early:  # of which an interrupted `serve` may not have noted one
        if type(entry) is Publication and entry.number in by_number:
            by_number[entry.number].note_served(entry.entries[0])
    ledger = engine.ledger
    ledger.timers = _put_in_again(engine, early, arrivals, timers, recorded)
    ledger.queued = sum(publication.targeted for publication in publications)
    begun = engine.claims.recount()
    decided = ledger.delivered + ledger.failed + ledger.cancelled + ledger.dropped
    ledger.accepted = decided + ledger.timers + ledger.queued + begun


def _put_in_again(
    engine: Engine[Any], early: list[Arrival], arrivals: list[Arrival], taken_back: list[Timer], recorded: list[Timer]
) -> int:
    """Make every timer pending that the order, the records or the claims still know; return how many there are."""
    order = engine.order
    # Sorting keeps equals as they stand in their slots, in the order of acceptance; timers that only their record knows
    # come last. While a slot is being opened its timers stand in `order`, where not all of them are marked yet.
    waiting = taken_back + order.wheel.order[::-1] + sorted(order.wheel, key=lambda timer: timer.due) + recorded
    order.forget()
    seen: set[int] = set()
    for entry in early:
        if type(entry) is Publication:
            entry.aside = True
            order.early_cids.add(entry.entries[0].cid)
            order.early.append(entry)
        elif _take_in(engine, entry, seen):
            order.early_cids.add(entry.cid)  # type: ignore[union-attr]
            order.early.append(entry)
    for entry in arrivals:
        if type(entry) is Publication:
            order.arrivals.append(entry)
        elif _take_in(engine, entry, seen):
            order.arrivals.append_timer(entry)  # type: ignore[arg-type]
    for timer in waiting:
        if _take_in(engine, timer, seen):
            order.wheel.add(timer, timer.due - order.last_accepted_ns)
    return len(seen)


def _was_taken(timer: Timer) -> bool:
    """Say whether a pending timer has left its ring to begin next, and was neither claimed nor parked. (While one is
    being scheduled its `after` is not set.)"""
    return timer.event is not None and getattr(timer, "after", timer) is None


def _take_in(engine: Engine[Any], timer: Any, seen: set[int]) -> bool:
    """Record a timer that is pending and was not met before; return whether it is."""
    if timer.event is None or timer.table is None or id(timer) in seen:
        return False
    seen.add(id(timer))
    engine.records.add_timer(timer)
    return True


def _rebuild_topics(engine: Engine[Any], publications: list[Publication]) -> None:
    """Make the index anew from the topics' own lists, and record the subscriptions.

    The topics stay the same objects, for publications that wait.
    """
    index = engine.topics
    waiting: dict[int, list[Publication]] = {}
    for publication in publications:
        waiting.setdefault(id(publication.topic), []).append(publication)
    for name, topic in index.forget().items():
        entries = topic.entries if isinstance(topic, Topic) else [topic]
        for entry in entries:
            if entry.name is BEING_REMOVED:
                entry.removed = engine.order.last_number
                entry.name = entry.event = None
        live = [entry for entry in entries if entry.name is not None]
        if not live:
            continue
        index.topics[name] = topic
        index.count += len(live)
        for entry in live:
            entry.older = None
            engine.records.add_subscription(entry)
        if isinstance(topic, Topic):
            topic.rebuild(len(live), waiting.get(id(topic), []))
    index.generation.token = object()  # a topic may have been added by the interrupted operation, without a new token
