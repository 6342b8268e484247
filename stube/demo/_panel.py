"""The content of the inspector: the registry as plain JSON, one snapshot for all pages."""

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
"""The largest number of conversations that the panel lists, because a page with ten thousand rows is unreadable."""

TIMER_LIMIT = 5
"""The largest number of timers that the panel lists for one conversation, the next ones first."""

SNAPSHOT_SECONDS = 0.25
"""The shortest time for which a snapshot is reused; a page asks at most twice a second."""

LONGEST_SECONDS = 5.0
"""The longest time for which a snapshot is reused, however expensive it was."""

QUESTIONS_PER_SECOND = 100
"""About how often all pages together ask: the more pages there are, the longer each waits before it asks again."""

HOST = "stube.asgi"
"""The instance of the host. It has one subscription in each connected conversation, to a topic on which nothing is ever
published; the panel leaves this topic out."""

_FIRST = ("amber", "brisk", "calm", "dusty", "early", "fern", "gentle", "hazel",
          "ivory", "jolly", "keen", "lunar", "mellow", "noble", "quiet", "rusty")  # fmt: skip
_SECOND = ("badger", "crane", "dormouse", "egret", "finch", "goose", "heron", "ibex",
           "jackdaw", "kestrel", "lynx", "marten", "newt", "otter", "plover", "robin")  # fmt: skip


def name_of(cid: str) -> str:
    """Return the name under which other pages see a conversation.

    A client that knows a cid can speak and leave in its name, so only the conversation's own page is given the cid.
    The name is computed from it by a function that cannot be inverted.
    """
    digest = hashlib.sha256(cid.encode()).digest()
    return f"{_FIRST[digest[0] % 16]}-{_SECOND[digest[1] % 16]}-{digest[2:4].hex()}"


class Panel:
    """The registry as all pages see it: one snapshot, which they share.

    Taking a snapshot costs time in proportion to what is pending, and other operations of the registry wait for it. So
    a snapshot is taken only when a page asks, and is then reused for all pages for a while: the more work it was, the
    longer. Used on one thread.

    Args:
        registry: the registry to show.
        meter: the figures of the charts.
        freezer: the frozen handlers.
        clock: gives milliseconds on the clock of the registry's timers.
    """

    def __init__(self, registry: stube.Backend, meter: Meter, freezer: Freezer, clock: Callable[[], float]) -> None:
        self._registry, self._meter, self._freezer, self._clock = registry, meter, freezer, clock
        self._body = b""
        self._good_until = -inf
        # For each conversation that was waiting in the last snapshot: the instant, on the real clock, since which a
        # delivery of it has been ready without having begun.
        self._waiting_since: dict[str, float] = {}

    def body(self) -> bytes:
        """Return the snapshot as JSON, at most a moment old."""
        now = monotonic()
        if now >= self._good_until:
            # Measure CPU time, not duration: on a busy machine the duration includes the time of other threads.
            begin = thread_time()
            self._body = json.dumps(self._snapshot(now), separators=(",", ":")).encode()
            work = thread_time() - begin
            self._good_until = now + min(LONGEST_SECONDS, max(SNAPSHOT_SECONDS, 20 * work))
        return self._body

    def renew(self) -> None:
        """Discard the snapshot after a large change, so that the next page that asks sees the change."""
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
    """Return True if a delivery of the conversation is ready and has not begun."""
    return info.queued > 0 or any(timer.remaining_ms == 0 for timer in info.timers[:1])


def _topics(info: stube.ConversationInfo) -> list[str]:
    return [subscription.topic for subscription in info.subscriptions if subscription.instance_id != HOST]


def _text(event: stube.EventSpec) -> str:
    """Return the event's name and the first part of its payload, which is enough to tell one event from the next."""
    return event if isinstance(event, str) else " ".join(map(str, event[:2]))
