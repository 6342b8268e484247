"""Back-pressure: how much may wait for one conversation, and what is dropped when it is more.

With a bound for each conversation a publication is taken apart when it is accepted, into one for each subscriber: only
so can the oldest message of one conversation be dropped immediately, and its memory with it. Therefore `publish` costs
its caller one step for each subscriber, and scheduling one step for each timer of the conversation.

An overflow of a conversation is reported once: at the first message that is dropped, and then not again until no
message waits for the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from stube import Event, RegistryFull
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._records import Backlog, Records
from stube_backends.engine._rings import unlink
from stube_backends.engine._topics import Publication, Topic

OnFull: TypeAlias = Literal["drop_oldest", "end"]


class ConversationFull(RegistryFull):
    """One conversation holds as much as it may; others may have room."""


class Limits(NamedTuple):
    """How much may wait for one conversation."""

    max_queued: int
    """The bound of its messages, and of its timers."""
    on_full: OnFull
    """What is dropped for a message that does not fit: the oldest message, or all of the conversation."""


class Overflow(NamedTuple):
    """What was dropped for a message that did not fit, to be reported and released when no lock is held."""

    cid: str
    event: Event
    """The first delivery that was dropped."""
    ended: bool
    first: bool
    """Whether it is to be reported."""
    held: list[Any]


class Backlogs:
    """The messages that wait for each conversation, where each has its bound.

    Args:
        limits: of each conversation.
        arrive: puts a publication into the ready order.
        ledger, records: the engine's, the same objects as long as the engine lives.
    """

    __slots__ = ("_arrive", "ledger", "limits", "overflows", "records")

    def __init__(self, limits: Limits, arrive: Callable[[Publication], None], ledger: Ledger, records: Records) -> None:
        self.limits = limits
        self._arrive = arrive
        self.ledger = ledger
        self.records = records
        self.overflows: list[Overflow] = []

    def require_room(self, cid: str) -> None:
        """Raise when one more timer would be too much."""
        if self.is_full(cid):
            most = self.limits.max_queued
            raise ConversationFull(
                f"The conversation {cid!r} holds {most} timers, and one more would pass max_queued={most}. "
                "Raise max_queued, or schedule less."
            )

    def is_full(self, cid: str) -> bool:
        """Say whether one more timer would be too much."""
        most = self.limits.max_queued
        if self.ledger.timers < most:
            return False
        return len(self.records.timers(cid)) >= most

    def publish(self, topic: Topic, publication: Publication, end: Callable[[str], list[Any]]) -> None:
        """Accept a publication for each of its targets, and drop what does not fit.

        Args:
            topic: of the publication.
            publication: in no ring yet.
            end: drops the timers, the subscriptions and the baton of a conversation; returns what was held.
        """
        ledger = self.ledger
        for target in [entry for entry in topic.entries if entry.name is not None]:
            ledger.accepted += 1
            if target.name is None:  # its conversation was ended by the message to another of its instances
                ledger.dropped += 1
                continue
            message = publication.part_for([target])
            self._arrive(message)
            ledger.queued += 1
            backlog = self._take_in(target.cid, message)
            if len(backlog.messages) > self.limits.max_queued:
                self._overflow(target.cid, backlog, end)

    def forget(self, message: Publication) -> None:
        """Forget a message that has begun, or whose subscription has been removed."""
        cid = message.entries[0].cid
        backlog = self.records.of(cid).backlog
        assert backlog is not None
        if backlog.messages[0] is message:
            backlog.messages.popleft()
        else:
            backlog.messages.remove(message)
        if not backlog.messages:
            self._drop(cid)

    def put_back(self, message: Publication) -> None:
        """Let a message wait again that has been forgotten and has not begun: it is the oldest of its conversation."""
        record = self.records.of(message.entries[0].cid)
        if record.backlog is None:
            record.backlog = Backlog()
        if message not in record.backlog.messages:  # a `rebuild` has not put it back already
            record.backlog.messages.appendleft(message)

    def take_overflows(self) -> list[Overflow]:
        """Return the overflows since the last call."""
        overflows, self.overflows = self.overflows, []
        return overflows

    def rebuild(self, publications: Iterable[Publication]) -> None:
        """Make the backlogs anew, of the messages that wait, in records that have none."""
        for message in publications:
            self._take_in(message.entries[0].cid, message)

    def sizes(self) -> Mapping[str, int]:
        """Return the length of every container."""
        return {
            "messages in backlogs": sum(len(backlog.messages) for backlog in self._backlogs().values()),
            "overflows": len(self.overflows),
        }

    def _overflow(self, cid: str, backlog: Backlog, end: Callable[[str], list[Any]]) -> None:
        oldest = backlog.messages[0]
        target = oldest.entries[0]
        event = Event(target.instance_id, target.name or "", oldest.message, due=oldest.due)
        held: list[Any] = []
        first, backlog.overflowing = not backlog.overflowing, True
        ends = self.limits.on_full == "end"
        if ends:
            while backlog.messages:
                self._discard(backlog.messages.popleft(), held)
            self._drop(cid)
            held += end(cid)
        else:
            self._discard(backlog.messages.popleft(), held)
        self.overflows.append(Overflow(cid, event, ends, first, held))

    def _discard(self, message: Publication, held: list[Any]) -> None:
        unlink(message)
        self.ledger.queued -= 1
        self.ledger.drop_messages(1, int(message.entries[0].name is not None))
        held.append(message)

    def _take_in(self, cid: str, message: Publication) -> Backlog:
        record = self.records.of(cid)
        backlog = record.backlog
        if backlog is None:
            backlog = record.backlog = Backlog()
        backlog.messages.append(message)
        return backlog

    def _drop(self, cid: str) -> None:
        record = self.records.of(cid)
        record.backlog = None
        self.records.drop_if_empty(cid, record)

    def _backlogs(self) -> dict[str, Backlog]:
        found = ((cid, self.records.find(cid)) for cid in list(self.records.by_cid))
        return {cid: record.backlog for cid, record in found if record is not None and record.backlog is not None}

    def _check(self, waiting: Iterable[Publication]) -> None:
        mine = {id(message) for backlog in self._backlogs().values() for message in backlog.messages}
        theirs = {id(message) for message in waiting}
        assert mine == theirs, f"{len(mine)} messages in backlogs, {len(theirs)} in the order"
        for cid, backlog in self._backlogs().items():
            assert backlog.messages, f"the backlog of {cid!r} is kept without a message"
            assert len(backlog.messages) <= self.limits.max_queued, f"the backlog of {cid!r} is over its bound"
            assert all(message.entries[0].cid == cid for message in backlog.messages), f"a stranger waits for {cid!r}"


def checked_limits(max_queued: int | None, on_full: OnFull) -> Limits | None:
    """Return the limits that a host chose, None for none; or raise."""
    if on_full not in get_args(OnFull):
        raise ValueError(f"on_full must be 'drop_oldest' or 'end', not {on_full!r}. Choose one of them.")
    if max_queued is None:
        return None
    if max_queued < 1:
        raise ValueError(f"max_queued must be at least 1, not {max_queued!r}. Leave it out, or give None.")
    return Limits(max_queued, on_full)
