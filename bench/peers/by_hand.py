"""The whole life of a conversation as a host writes it by hand on asyncio: dicts of sets, and `call_later`.

It lacks order, calls from other threads, and an end that is final for a timer that is already due. A timer that is
cancelled stays in the loop's heap, with what it refers to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

__all__ = ["ByHand"]


class ByHand:
    """What a host keeps of its conversations."""

    name = "by hand"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.flows: dict[str, str] = {}
        self.timers: dict[str, set[asyncio.TimerHandle]] = {}
        self.topics: dict[str, set[str]] = {}  # the conversations that hear each
        self.topics_of: dict[str, set[str]] = {}

    def open(self) -> str:
        """Open a conversation; return its name."""
        return os.urandom(16).hex()

    def schedule(self, cid: str, instance_id: str, delay: float, event: str) -> None:
        """Call the handler `delay` seconds from now."""
        handle = self.loop.call_later(delay, self._fired, cid, instance_id, event)
        mine = self.timers.get(cid)
        if mine is None:
            self.timers[cid] = {handle}
        else:
            mine.add(handle)

    def subscribe(self, cid: str, topic: str) -> None:
        """Let a conversation hear a topic. Which of its components does, its handler knows."""
        self.topics.setdefault(topic, set()).add(cid)
        self.topics_of.setdefault(cid, set()).add(topic)

    def end(self, cid: str) -> None:
        """Forget everything of a conversation, and the sets that have become empty."""
        self.flows.pop(cid, None)
        for handle in self.timers.pop(cid, ()):
            handle.cancel()
        for topic in self.topics_of.pop(cid, ()):
            hearers = self.topics[topic]
            hearers.discard(cid)
            if not hearers:
                del self.topics[topic]

    def _fired(self, cid: str, instance_id: str, event: str) -> None:
        raise NotImplementedError("no timer of this measurement is due before its end")

    # The measured bodies, each a loop of its own, as in the peers of timers.

    def build(self, plan: Sequence[tuple[str, str, float]]) -> list[str]:
        """Build a conversation for each two topics and delay; return their names."""
        made = []
        for lobby, room, delay in plan:
            cid = self.open()
            self.flows[cid] = "flow"
            self.flows.pop(cid, None)
            self.schedule(cid, "clock", delay, "tick")
            self.schedule(cid, "idle", delay + 1800, "idle")
            self.subscribe(cid, lobby)
            self.subscribe(cid, room)
            made.append(cid)
        return made

    def end_all(self, names: Sequence[str]) -> None:
        """End these conversations."""
        for cid in names:
            self.end(cid)

    def close(self) -> None:
        """Release everything."""
        self.loop.close()
