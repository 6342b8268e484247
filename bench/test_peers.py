"""The peers do the whole work, because otherwise a comparison with them would be unfair."""

from __future__ import annotations

from typing import Any

import pytest

import bench.peers.emitters as emitters
from bench.measuring import Plan
from bench.peers.by_hand import ByHand
from bench.peers.emitters import BareEmitter, Blinker, Channels, Emitter, FanOutPeer, Psygnal, ThreadPool
from bench.peers.presence import present
from bench.peers.timers import (
    Asyncio,
    BackgroundScheduler,
    PausedScheduler,
    Scheduler,
    ThreadTimers,
    TimerPeer,
    TwistedClock,
    Uvloop,
    VirtualTime,
)
from stube import Event

TIMERS: list[type[TimerPeer]] = [
    Asyncio,
    Uvloop,
    Scheduler,
    ThreadTimers,
    BackgroundScheduler,
    TwistedClock,
    VirtualTime,
]
FIRING: list[type[TimerPeer]] = [Asyncio, Uvloop, Scheduler, PausedScheduler, TwistedClock, VirtualTime]
EMITTERS: list[type[FanOutPeer]] = [Emitter, Blinker, Psygnal, ThreadPool, Channels]


def _pending(peer: Any) -> int:
    return sum(len(handles) for handles in peer.handles.values())


@pytest.mark.parametrize("kind", present(TIMERS), ids=lambda kind: kind.name)
def test_a_timer_peer_files_every_handle_and_cancels_by_conversation(kind: type[TimerPeer]) -> None:
    """Fault: a peer does not keep the handles that its user needs to end a conversation, so it has less work."""
    peer = kind()
    try:
        plan = Plan(20, 60, 120, 4)
        peer.fill(plan)
        assert _pending(peer) == 20
        peer.cancel(plan.names[:3])
        assert _pending(peer) == 5
        peer.cancel(plan.names[3:])
    finally:
        peer.close()


@pytest.mark.parametrize("kind", present(FIRING), ids=lambda kind: kind.name)
def test_a_timer_peer_fires_every_timer(kind: type[TimerPeer]) -> None:
    """Fault: `fire` of a peer returns before all timers have fired."""
    peer: Any = kind()
    try:
        peer.fill(Plan(20, 0.0001, 0.001, 4))
        peer.fire()
        assert dict(peer.handles) == {}, "the dict of a conversation without a timer is kept"
    finally:
        peer.close()


def test_the_host_by_hand_builds_and_ends_conversations() -> None:
    """Fault: it keeps less than its user needs to end a conversation; or its end leaves something."""
    peer = ByHand()
    try:
        names = peer.build([("lobby", "room 1", 60.0), ("lobby", "room 2", 60.0)])
        assert [len(peer.timers[cid]) for cid in names] == [2, 2]
        assert peer.topics == {"lobby": set(names), "room 1": {names[0]}, "room 2": {names[1]}}
        peer.end_all(names[:1])
        assert peer.topics == {"lobby": {names[1]}, "room 2": {names[1]}}
        peer.end_all(names[1:])
        assert [peer.flows, peer.timers, peer.topics, peer.topics_of] == [{}, {}, {}, {}]
    finally:
        peer.close()


@pytest.mark.parametrize("kind", present(EMITTERS), ids=lambda kind: kind.name)
def test_an_emitter_calls_the_dispatch_for_every_subscriber(
    kind: type[FanOutPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a peer builds no event, calls another dispatch, or drops messages."""
    seen: list[tuple[str, Event]] = []
    monkeypatch.setattr(emitters, "ignore", lambda cid, event: seen.append((cid, event)))
    peer = kind(3)
    try:
        peer.run(4)
    finally:
        peer.close()
    assert sorted((cid, event.payload) for cid, event in seen) == [
        (f"s{subscriber}", message) for subscriber in range(3) for message in range(4)
    ]
    assert {(event.instance_id, event.name) for _, event in seen} == {("main", "said")}


@pytest.mark.parametrize("kind", present([*EMITTERS, BareEmitter]), ids=lambda kind: kind.name)
def test_an_emitter_publishes_once_to_its_caller(kind: type[FanOutPeer]) -> None:
    """Fault: a single publication of a peer raises or never returns."""
    peer = kind(3)
    try:
        peer.publish("hello")
    finally:
        peer.close()
