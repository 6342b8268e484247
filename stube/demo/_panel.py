"""What the side panel shows: the registry as plain JSON."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from itertools import islice
from typing import Any

import stube

PANEL_LIMIT = 100
"""Conversations that the panel lists; a page with ten thousand rows shows nothing."""

_FIRST = ("amber", "brisk", "calm", "dusty", "early", "fern", "gentle", "hazel",
          "ivory", "jolly", "keen", "lunar", "mellow", "noble", "quiet", "rusty")  # fmt: skip
_SECOND = ("badger", "crane", "dormouse", "egret", "finch", "goose", "heron", "ibex",
           "jackdaw", "kestrel", "lynx", "marten", "newt", "otter", "plover", "robin")  # fmt: skip


def name_of(cid: str) -> str:
    """What others see of a conversation.

    Whoever knows a cid can speak and leave in its name, so it is never shown to anybody but its own page;
    this name is made from it by a function that cannot be turned round.
    """
    digest = hashlib.sha256(cid.encode()).digest()
    return f"{_FIRST[digest[0] % 16]}-{_SECOND[digest[1] % 16]}-{digest[2:4].hex()}"


def panel(registry: stube.Backend) -> dict[str, Any]:
    """The registry at this moment, as JSON can carry it."""
    held = registry.inspect()
    stats = registry.stats()
    return {
        "backend": type(registry).__name__,
        "capabilities": sorted(registry.capabilities),
        "total": len(held),
        "conversations": [_conversation(cid, info) for cid, info in islice(held.items(), PANEL_LIMIT)],
        "topics": {topic: len(subscribers) for topic, subscribers in registry.subscriptions().items()},
        "stats": asdict(stats),
        "equation": stats.equation,
        "balanced": stats.balanced,
    }


def _conversation(cid: str, info: stube.ConversationInfo) -> dict[str, Any]:
    return {
        "name": name_of(cid),
        "timers": [
            {"event": _text(timer.event), "remaining_ms": round(timer.remaining_ms, 1)} for timer in info.timers
        ],
        "topics": [subscription.topic for subscription in info.subscriptions],
        "queued": info.queued,
        "running": info.running,
        "pending_flow": info.pending_flow,
    }


def _text(event: stube.EventSpec) -> str:
    return event if isinstance(event, str) else " ".join(map(str, event))
