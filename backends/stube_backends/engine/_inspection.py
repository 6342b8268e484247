"""What an engine shows of itself to people and to tests. O(what is pending); it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stube import ConversationInfo, SubscriptionInfo, TimerInfo
from stube.arguments import milliseconds
from stube_backends.engine._arguments import public_event
from stube_backends.engine._engine import Engine
from stube_backends.engine._topics import Publication


def inspect(engine: Engine[Any], cid: str | None, now: int) -> dict[str, ConversationInfo]:
    """Return what is held, conversation by conversation; with `cid` only that one."""
    claims = engine.claims
    queued = _queued_by_cid(engine)
    running = claims.running_cids()
    found = {*engine.flows, *engine.records.by_cid, *queued, *running}
    found.update(timer.cid for timer in claims.waiting_timers())
    found.discard("")  # see `free_if_empty_unlocked`
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


def sizes(engine: Engine[Any]) -> Mapping[str, int]:
    """Return the length of every container."""
    wheel = engine.order.wheel
    records = engine.records
    cids = list(records.by_cid)
    arrived = [*engine.order.waiting(), *engine.claims.parked()]
    publications = [entry for entry in arrived if type(entry) is Publication]
    entries = {id(entries): entries for entries in engine.topics.entries().values()}
    entries.update((id(publication.entries), publication.entries) for publication in publications)
    return {
        "pending flows": len(engine.flows),
        "conversations": len(cids),
        "timers of conversations": sum(len(records.timers(cid)) for cid in cids),
        "subscriptions of conversations": sum(len(records.subscriptions(cid)) for cid in cids),
        "slots": len(wheel.slots),
        "timers in slots": sum(1 for _ in wheel),
        "open slot": len(wheel.order),
        "arrivals": len(arrived),
        "conversations that begin early": len(engine.order.early_cids),
        "topics": len(engine.topics.topics),
        "topic entries": sum(map(len, entries.values())),
        **({} if engine.backlogs is None else engine.backlogs.sizes()),
        **engine.claims.sizes(),
    }


def _queued_by_cid(engine: Engine[Any]) -> dict[str, int]:
    queued: dict[str, int] = {}
    waiting = engine.claims.waiting_targets()
    for entry in (*engine.order.waiting(), *engine.claims.parked()):
        if type(entry) is Publication:
            waiting += entry.waiting()
    for target in waiting:
        queued[target.cid] = queued.get(target.cid, 0) + 1
    return queued


def _timers_of(engine: Engine[Any], cid: str, now: int) -> tuple[TimerInfo, ...]:
    timers = engine.claims.waiting_timers(cid) + engine.records.timers(cid)[::-1]
    timers.sort(key=lambda timer: timer.due)
    return tuple(
        TimerInfo(timer.instance_id, public_event(timer.event), max(0.0, milliseconds(timer.due - now)))
        for timer in timers
        if timer.event is not None
    )


def _subscriptions_of(engine: Engine[Any], cid: str) -> tuple[SubscriptionInfo, ...]:
    return tuple(
        SubscriptionInfo(entry.instance_id, entry.topic, public_event(entry.event))
        for entry in engine.records.subscriptions(cid)[::-1]
        if entry.event is not None
    )
