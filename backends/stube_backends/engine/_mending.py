"""Making an engine whole again after an operation was broken off half-way.

Operations refuse before they change anything, so only an exception out of nowhere can break one off: a signal handler
that raises, such as Ctrl-C, between any two lines. Then the primary facts are still there, for rings are linked and cut
in an order that keeps walking them forward legal; what follows from them is made anew: the wheel, both indexes, the
figures of the ledger. What the broken operation was about may have happened or not. O(everything pending).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stube_backends.engine._order import Publication, ReadyOrder
from stube_backends.engine._timers import Timer, TimerGroups
from stube_backends.engine._topics import LEAVING, Subscription, TopicIndex

if TYPE_CHECKING:
    from stube_backends.engine._engine import Engine


def mend(engine: Engine) -> None:
    """Make everything anew that can be derived. The caller holds the lock; nothing that was broken off goes on."""
    engine.flows.pop("", None)  # of a `shrink_flows` that was broken off
    arrivals = [*engine.unpark(), *engine.order.arrivals]  # what was parked was taken before them
    publications = [entry for entry in arrivals if type(entry) is Publication]
    engine.topics = _mended_topics(engine.topics, publications)
    if engine.backlogs is not None:
        engine.backlogs.rebuild(publications)
    ledger = engine.ledger
    ledger.running = engine.count_running()
    burst = engine.burst
    rest = [] if burst is None else burst.stop()  # they go back to where they came from
    ledger.timers = _mend_timers(engine, arrivals, rest)
    ledger.queued = sum(publication.targeted for publication in publications)
    begun = ledger.running
    if burst is not None:
        burst.accounted = begun = burst.begun
        if not ledger.running:
            engine.burst = None
    walk = engine.walk
    if walk is not None and walk.stopped:
        begun = walk.total - walk.decided
    elif walk is not None:
        walk.accounted = walk.begun  # read once: the walk may be going on in another thread
        ledger.queued += walk.total - walk.accounted
        begun = walk.accounted - walk.decided
    decided = ledger.delivered + ledger.failed + ledger.cancelled + ledger.dropped
    ledger.accepted = decided + ledger.timers + ledger.queued + begun


def _mend_timers(engine: Engine, arrivals: list[Timer | Publication], burst: list[Timer]) -> int:
    """Every timer that one of the two structures still knows is pending in both; how many."""
    # Sorting keeps ties as they lie in their slots, in the order of acceptance; strangers to the wheel come last. What
    # was being opened lies in `order`, where not all timers are marked.
    wheel = engine.order.wheel
    waiting = burst + wheel.order[::-1] + sorted(wheel, key=lambda timer: timer.due)
    for groups in engine.groups.by_cid.values():
        for group in groups.values():
            waiting += group
    engine.order, engine.groups = ReadyOrder(), TimerGroups()
    seen: set[int] = set()
    for entry in arrivals:
        if type(entry) is Publication:
            engine.order.arrivals.append(entry)
        elif _is_to_mend(entry, seen):
            _regroup(engine, entry)
            engine.order.arrivals.append(entry)
    for timer in waiting:
        if _is_to_mend(timer, seen):
            _regroup(engine, timer)
            engine.order.wheel.add(timer, timer.due - engine.latest)
    return len(seen)


def _is_to_mend(timer: Any, seen: set[int]) -> bool:
    if timer.event is None or timer.group is None or id(timer) in seen:
        return False
    seen.add(id(timer))
    return True


def _regroup(engine: Engine, timer: Any) -> None:
    group = timer.group
    engine.groups.add(timer, group.cid, group.instance_id, group.owner)


def _mended_topics(old: TopicIndex, publications: list[Publication]) -> TopicIndex:
    """An index of what the topics' own lists say, whose objects and lists stay the same for waiting publications."""
    mended = TopicIndex(old.epoch)
    for name, topic in old.topics.items():
        for entry in topic.entries:
            if entry.name is LEAVING:
                entry.name = entry.event = None
        live = [entry for entry in topic.entries if entry.name is not None]
        if not live:
            continue
        topic.live = len(live)
        lengths = [publication.length for publication in publications if publication.entries is topic.entries]
        topic.waiting = len(lengths)
        topic.pinned = max(lengths, default=0)
        mended.topics[name] = topic
        mended.count += len(live)
        for entry in live:
            _index(mended, entry)
        topic.tidy()
    mended.epoch.now = object()  # one topic may have come half-way
    return mended


def _index(index: TopicIndex, entry: Subscription) -> None:
    subscriptions = index.by_cid.setdefault(entry.cid, {}).setdefault(entry.instance_id, {})
    subscriptions[entry.topic] = entry
