"""Back-pressure: how much may wait for one conversation, and what gives way when it is more.

With a bound for each conversation a publication is taken apart when it is accepted, into one for each subscriber: only
so can the oldest message of one conversation go, at once, and its memory with it. So `publish` costs its caller a step
for each subscriber then; and scheduling a step for each timer of the conversation.

A conversation whose messages do not fit is told of once for each burst: from the first drop until nothing waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from stube import Event, RegistryFull
from stube_backends.engine._order import Publication, part_of
from stube_backends.engine._rings import unlink
from stube_backends.engine._tables import free_if_empty

if TYPE_CHECKING:
    from stube_backends.engine._engine import Engine
    from stube_backends.engine._topics import Topic

OnFull: TypeAlias = Literal["drop_oldest", "end"]


class ConversationFull(RegistryFull):
    """One conversation holds as much as it may; others may have room."""


class Limits(NamedTuple):
    """How much may wait for one conversation."""

    max_queued: int
    """Messages; and as many timers."""
    on_full: OnFull
    """What gives way to a message that does not fit: the oldest message, or the conversation."""


class Overflow(NamedTuple):
    """What gave way, and was held; for whoever leaves the lock to tell of and to drop."""

    cid: str
    event: Event
    """The first that was dropped."""
    ended: bool
    first: bool
    """Whether it is the first of its burst."""
    held: list[Any]


class Backlog:
    """The messages that wait for one conversation, the oldest first. Kept as long as there are any."""

    __slots__ = ("messages", "overflowing")

    def __init__(self) -> None:
        self.messages: deque[Publication] = deque()
        self.overflowing = False


class Backlogs:
    """What waits for whom, where each conversation has its bound."""

    __slots__ = ("by_cid", "limits", "overflows")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.by_cid: dict[str, Backlog] = {}
        self.overflows: list[Overflow] = []

    def require_room(self, engine: Engine, cid: str) -> None:
        """Raise when one more timer would be too much."""
        if self.is_full(engine, cid):
            most = self.limits.max_queued
            raise ConversationFull(
                f"The conversation {cid!r} holds {most} timers, and one more would pass max_queued={most}. "
                "Raise max_queued, or schedule less."
            )

    def is_full(self, engine: Engine, cid: str) -> bool:
        """Whether one more timer would be too much."""
        most = self.limits.max_queued
        if engine.ledger.timers < most:
            return False
        return sum(1 for group in engine.groups.by_cid.get(cid, {}).values() for _ in group) >= most

    def publish(self, engine: Engine, topic: Topic, publication: Publication) -> None:
        """Accept a publication for each of its targets; what does not fit gives way."""
        ledger = engine.ledger
        for target in [entry for entry in topic.entries if entry.name is not None]:
            ledger.accepted += 1
            if target.name is None:  # its conversation ended at the message of another of its instances
                ledger.dropped += 1
                continue
            message = part_of(publication, [target])
            engine.order.arrivals.append(message)
            ledger.queued += 1
            backlog = self.by_cid.get(target.cid)
            if backlog is None:
                backlog = self.by_cid[target.cid] = Backlog()
            backlog.messages.append(message)
            if len(backlog.messages) > self.limits.max_queued:
                self._give_way(engine, target.cid, backlog)

    def forget(self, message: Publication) -> None:
        """A message has begun, or its subscription has gone."""
        cid = message.entries[0].cid
        backlog = self.by_cid[cid]
        if backlog.messages[0] is message:
            backlog.messages.popleft()
        else:
            backlog.messages.remove(message)
        if not backlog.messages:
            self._drop(cid)

    def take_overflows(self) -> list[Overflow]:
        """What has given way since the last time."""
        overflows, self.overflows = self.overflows, []
        return overflows

    def rebuild(self, publications: Iterable[Publication]) -> None:
        """Make everything anew, of the messages that wait."""
        self.by_cid = {}
        for message in publications:
            self.by_cid.setdefault(message.entries[0].cid, Backlog()).messages.append(message)

    def _give_way(self, engine: Engine, cid: str, backlog: Backlog) -> None:
        oldest = backlog.messages[0]
        target = oldest.entries[0]
        event = Event(target.instance_id, target.name or "", oldest.message)
        held: list[Any] = []
        first, backlog.overflowing = not backlog.overflowing, True
        if self.limits.on_full == "end":
            self._end(engine, cid, backlog, held)
        else:
            self._discard(engine, backlog.messages.popleft(), held)
        self.overflows.append(Overflow(cid, event, self.limits.on_full == "end", first, held))

    def _end(self, engine: Engine, cid: str, backlog: Backlog, held: list[Any]) -> None:
        """Drop everything of a conversation: its fate is an overflow policy's, not a canceller's."""
        while backlog.messages:
            self._discard(engine, backlog.messages.popleft(), held)
        self._drop(cid)
        timers = engine.cancel_timers(cid, None)
        engine.ledger.cancelled -= len(timers)
        engine.ledger.dropped += len(timers)
        held += [timers, engine.topics.remove(cid, None, None), engine.flows.pop(cid, None)]

    def _discard(self, engine: Engine, message: Publication, held: list[Any]) -> None:
        unlink(message)
        engine.ledger.queued -= 1
        if message.entries[0].name is None:
            engine.ledger.cancelled += 1
        else:
            engine.ledger.dropped += 1
        held.append(message)

    def _drop(self, cid: str) -> None:
        del self.by_cid[cid]
        free_if_empty(self.by_cid)

    def _check(self, waiting: Iterable[Publication]) -> None:
        mine = {id(message) for backlog in self.by_cid.values() for message in backlog.messages}
        theirs = {id(message) for message in waiting}
        assert mine == theirs, f"{len(mine)} messages in backlogs, {len(theirs)} in the order"
        for cid, backlog in self.by_cid.items():
            assert backlog.messages, f"the backlog of {cid!r} is kept without a message"
            assert len(backlog.messages) <= self.limits.max_queued, f"the backlog of {cid!r} is over its bound"
            assert all(message.entries[0].cid == cid for message in backlog.messages), f"a stranger waits for {cid!r}"


def checked_limits(max_queued: int | None, on_full: OnFull) -> Limits | None:
    """The limits that a host chose; None for none."""
    if on_full not in get_args(OnFull):
        raise ValueError(f"on_full must be 'drop_oldest' or 'end', not {on_full!r}. Choose one of them.")
    if max_queued is None:
        return None
    if max_queued < 1:
        raise ValueError(f"max_queued must be at least 1, not {max_queued!r}. Leave it out, or give None.")
    return Limits(max_queued, on_full)
