"""What the inspector shows: the registry as plain JSON, one snapshot for all pages."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from math import inf
from time import monotonic, thread_time
from typing import Any

import stube
from stube.demo._freezer import Freezer
from stube.demo._meter import Meter

PANEL_LIMIT = 40
"""Conversations that the panel lists; a page with ten thousand rows shows nothing."""

TIMER_LIMIT = 5
"""Timers of one conversation that the panel lists, the next ones first."""

SNAPSHOT_SECONDS = 0.25
"""How long a snapshot serves at least; the pages ask at most twice a second."""

LONGEST_SECONDS = 5.0
"""How long a snapshot serves at most, however much work it was."""

QUESTIONS_PER_SECOND = 100
"""How often all pages together ask, about: the more there are, the longer each waits before it asks again."""

HOST = "stube.asgi"
"""The instance that is the host's own. It has a subscription of its own in each connected conversation, on which nobody
publishes; who lists topics to see who hears what leaves it out."""

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


class Panel:
    """The registry as all pages see it: one snapshot, which they share.

    Taking one costs in proportion to what is pending, and the registry stands still meanwhile. So it is taken only
    when somebody asks, and then serves everybody for a while: the longer it took, the longer. Used on one thread.

    Args:
        registry: whose state is shown.
        meter: what the charts show.
        freezer: who stands still on purpose.
        clock: gives milliseconds on the clock of the registry's timers.
    """

    def __init__(self, registry: stube.Backend, meter: Meter, freezer: Freezer, clock: Callable[[], float]) -> None:
        self._registry, self._meter, self._freezer, self._clock = registry, meter, freezer, clock
        self._body = b""
        self._good_until = -inf
        # Since when, on the real clock, something of a conversation has been ready and has not begun. Only those that
        # the last snapshot saw waiting.
        self._waiting_since: dict[str, float] = {}

    def body(self) -> bytes:
        """The snapshot as JSON, at most a moment old."""
        now = monotonic()
        if now >= self._good_until:
            # Its work, not its duration: on a busy machine that says how long others had the processor.
            begin = thread_time()
            self._body = json.dumps(self._snapshot(now), separators=(",", ":")).encode()
            work = thread_time() - begin
            self._good_until = now + min(LONGEST_SECONDS, max(SNAPSHOT_SECONDS, 20 * work))
        return self._body

    def renew(self) -> None:
        """Somebody has changed a lot at once, and wants to see it: the next to ask gets a snapshot of its own."""
        self._good_until = -inf

    def _snapshot(self, now: float) -> dict[str, Any]:
        held = self._registry.inspect()
        stats = self._registry.stats()
        since = self._waiting_since
        self._waiting_since = {cid: since.get(cid, now) for cid, info in held.items() if _waits(info)}
        return {
            "at_ms": self._clock(),
            "again_ms": max(500, 1000 * len(held) // QUESTIONS_PER_SECOND),
            "backend": type(self._registry).__name__,
            "capabilities": sorted(self._registry.capabilities),
            "total": len(held),
            "conversations": [self._conversation(cid, info, now) for cid, info in islice(held.items(), PANEL_LIMIT)],
            "topics": Counter(topic for info in held.values() for topic in _topics(info)),
            "stats": asdict(stats),
            "equation": stats.equation,
            "balanced": stats.balanced,
            "deliveries": self._meter.deliveries(),
            "lateness_ms": self._meter.lateness(),
        }

    def _conversation(self, cid: str, info: stube.ConversationInfo, now: float) -> dict[str, Any]:
        return {
            "name": name_of(cid),
            "timers": [
                {"event": _text(timer.event), "remaining_ms": round(timer.remaining_ms, 1)}
                for timer in info.timers[:TIMER_LIMIT]
            ],
            "timer_count": len(info.timers),
            "topics": _topics(info),
            "queued": info.queued,
            "running": info.running,
            "pending_flow": info.pending_flow,
            "frozen": self._freezer.is_frozen(cid),
            "waiting_ms": round(1000 * (now - self._waiting_since.get(cid, now))),
        }


def _waits(info: stube.ConversationInfo) -> bool:
    """Whether something of it is ready and has not begun."""
    return info.queued > 0 or any(timer.remaining_ms == 0 for timer in info.timers[:1])


def _topics(info: stube.ConversationInfo) -> list[str]:
    return [subscription.topic for subscription in info.subscriptions if subscription.instance_id != HOST]


def _text(event: stube.EventSpec) -> str:
    """The name and the first of the payload: enough to tell one from the next."""
    return event if isinstance(event, str) else " ".join(map(str, event[:2]))
