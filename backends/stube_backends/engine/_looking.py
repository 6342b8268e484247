"""What an engine shows of itself to people and to tests. O(what is pending), and it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stube import ConversationInfo, SubscriptionInfo, TimerInfo
from stube_backends.engine._arguments import milliseconds, public_event
from stube_backends.engine._order import Publication

if TYPE_CHECKING:
    from stube_backends.engine._engine import Engine


def inspect(engine: Engine, cid: str | None, now: int) -> dict[str, ConversationInfo]:
    """What is held, conversation by conversation; with `cid` only that one."""
    queued = _queued_by_cid(engine)
    running = engine.running()
    found = {*engine.flows, *engine.groups.by_cid, *engine.topics.by_cid, *queued, *running}
    if engine.burst is not None:
        found.update(timer.group.cid for timer in engine.burst.timers.copy() if timer.group is not None)
    found.discard("")  # see `Engine.shrink_flows`
    if cid is not None:
        found &= {cid}
    return {
        name: ConversationInfo(
            timers=_timers_of(engine, name, now),
            subscriptions=_subscriptions_of(engine, name),
            queued=queued.get(name, 0),
            running=int(name in running),
            pending_flow=name in engine.flows,
        )
        for name in sorted(found)
    }


def sizes(engine: Engine) -> Mapping[str, int]:
    """The length of every container."""
    wheel = engine.order.wheel
    groups = engine.groups.by_cid.values()
    instances = engine.topics.by_cid.values()
    arrived = [*engine.order.arrivals, *engine.parked()]
    publications = [entry for entry in arrived if type(entry) is Publication]
    topics = engine.topics.topics.values()
    entries = {id(entries): entries for entries in (topic.entries for topic in topics)}
    entries.update((id(publication.entries), publication.entries) for publication in publications)
    return {
        "pending flows": len(engine.flows),
        "conversations with timers": len(engine.groups.by_cid),
        "instances with timers": sum(map(len, groups)),
        "timers in groups": sum(1 for by_instance in groups for group in by_instance.values() for _ in group),
        "slots": len(wheel.slots),
        "timers in slots": sum(1 for _ in wheel),
        "open slot": len(wheel.order),
        "arrivals": len(arrived),
        "topics": len(topics),
        "topic entries": sum(map(len, entries.values())),
        "conversations with subscriptions": len(engine.topics.by_cid),
        "instances with subscriptions": sum(map(len, instances)),
        "subscriptions in instances": sum(len(s) for by_instance in instances for s in by_instance.values()),
        "targets of the walk": 0 if engine.walk is None else len(engine.walk.targets),
        **_backlog_sizes(engine),
        "timers of the burst": 0 if engine.burst is None else len(engine.burst.timers),
    }


def _backlog_sizes(engine: Engine) -> Mapping[str, int]:
    if engine.backlogs is None:
        return {}
    backlogs = engine.backlogs.by_cid.values()
    return {
        "backlogs": len(backlogs),
        "messages in backlogs": sum(len(backlog.messages) for backlog in backlogs),
        "overflows": len(engine.backlogs.overflows),
    }


def _queued_by_cid(engine: Engine) -> dict[str, int]:
    queued: dict[str, int] = {}
    waiting = [] if engine.walk is None else engine.walk.rest()
    for entry in (*engine.order.arrivals, *engine.parked()):
        if type(entry) is Publication:
            waiting += [target for target in entry.entries[: entry.length] if target.name is not None]
    for target in waiting:
        queued[target.cid] = queued.get(target.cid, 0) + 1
    return queued


def _timers_of(engine: Engine, cid: str, now: int) -> tuple[TimerInfo, ...]:
    groups = engine.groups.by_cid.get(cid, {}).values()
    timers = [timer for group in groups for timer in group]
    if engine.burst is not None:
        timers += engine.burst.of(cid, None)
    timers.sort(key=lambda timer: timer.due)
    return tuple(
        TimerInfo(timer.group.instance_id, public_event(timer.event), max(0.0, milliseconds(timer.due - now)))
        for timer in timers
        if timer.event is not None and timer.group is not None
    )


def _subscriptions_of(engine: Engine, cid: str) -> tuple[SubscriptionInfo, ...]:
    return tuple(
        SubscriptionInfo(entry.instance_id, entry.topic, public_event(entry.event))
        for subscriptions in engine.topics.by_cid.get(cid, {}).values()
        for entry in subscriptions.values()
        if entry.event is not None
    )
