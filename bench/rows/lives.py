"""The whole life of a conversation through the handles: building it, its memory, its end; beside the same by hand.

Each conversation puts and takes a baton, has two timers of two instances, and hears two topics: a room of ten, and a
lobby of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench.measuring import Effort, Row, interleaved, row, seconds
from bench.peers.by_hand import ByHand
from bench.rows.memory import traced
from bench.subjects import opened
from stube import Conversation, Conversations

__all__ = ["lives"]

_ROOM: Final = 10
_LOBBY: Final = 1000
Plan = Sequence[tuple[str, str, float]]
Figures = tuple[float, float]


def lives(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the microseconds of building a conversation and of ending it, and its bytes, its handle included."""
    plan = _plan(effort.size(20_000))
    bodies: dict[str, Callable[[], Figures]] = {"own": lambda: _own_us(backend, plan), "peer": lambda: _peer_us(plan)}
    figures = interleaved(effort.rounds, bodies)
    limits = (("building a conversation", 1.1, 0.95), ("ending a conversation, memory freed on return", 2.0, 1.6))
    for place, (work, must, aim) in enumerate(limits):
        yield row(
            f"{work}, {len(plan):,} of them",
            backend,
            [pair[place] for pair in figures["own"]],
            "us",
            peer=ByHand.name,
            beside=[pair[place] for pair in figures["peer"]],
            sense="<=",
            must=must,
            aim=aim,
            detail="a baton put and taken, two timers of two instances, two subscriptions, through the handles",
        )
    yield row(
        f"bytes of a conversation, {len(plan):,} of them",
        backend,
        [_own_bytes(backend, plan)],
        "B",
        peer=ByHand.name,
        beside=[_peer_bytes(plan)],
        sense="<=",
        must=0.65,
        aim=0.56,
        detail="two timers of two instances, two subscriptions, the handle and the names",
    )


def _plan(count: int) -> Plan:
    """Return the topics and the delay in seconds of each conversation. Those of one topic share its name."""
    rooms = [f"room {number}" for number in range(count // _ROOM + 1)]
    lobbies = [f"lobby {number}" for number in range(count // _LOBBY + 1)]
    return [(lobbies[number // _LOBBY], rooms[number // _ROOM], 600.0 + number / 100) for number in range(count)]


def _build(conversations: Conversations, plan: Plan) -> list[Conversation]:
    made = []
    for lobby, room, delay in plan:
        conversation = conversations.open()
        conversation.put_flow("flow")
        conversation.take_flow()
        conversation.schedule("tick", delay * 1000, instance_id="clock")
        conversation.schedule("idle", delay * 1000 + 1_800_000, instance_id="idle")
        conversation.subscribe(lobby, "said")
        conversation.subscribe(room, "said", instance_id="chat")
        made.append(conversation)
    return made


def _own_us(backend: str, plan: Plan) -> Figures:
    with opened(backend) as registry:
        conversations = Conversations(registry)
        made: list[Conversation] = []
        built = seconds(lambda: made.extend(_build(conversations, plan)))

        def end() -> None:
            for conversation in made:
                conversation.end()

        ended = seconds(end)
        assert registry.inspect() == {}
    return built / len(plan) * 1e6, ended / len(plan) * 1e6


def _peer_us(plan: Plan) -> Figures:
    peer = ByHand()
    try:
        made: list[str] = []
        built = seconds(lambda: made.extend(peer.build(plan)))
        ended = seconds(lambda: peer.end_all(made))
        assert [peer.flows, peer.timers, peer.topics, peer.topics_of] == [{}, {}, {}, {}]
    finally:
        peer.close()
    return built / len(plan) * 1e6, ended / len(plan) * 1e6


def _own_bytes(backend: str, plan: Plan) -> float:
    with opened(backend) as registry:
        conversations = Conversations(registry)
        return traced(lambda: _build(conversations, plan)) / len(plan)


def _peer_bytes(plan: Plan) -> float:
    peer = ByHand()
    try:
        return traced(lambda: peer.build(plan)) / len(plan)
    finally:
        peer.close()
