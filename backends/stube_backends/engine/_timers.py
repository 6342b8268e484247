"""Timers: scheduled deliveries, each its own handle; and batches of them that are due together."""

from __future__ import annotations

from typing import Any, Final, Protocol

from typing_extensions import override

from stube import NO_PAYLOAD, Event
from stube.arguments import PlainEvent
from stube_backends.engine._arguments import NO_SIGNALS, event_with_payload, name_of

PENDING_ADMISSION: Final = object()
"""The `after` of a timer whose handle has been given out and which stands in no ring yet."""

CLAIMABLE: Final = object()
"""The `after` of a timer in a batch, from which the delivery thread claims it without the lock."""


class TimerOwner(Protocol):
    """Cancels a timer on behalf of its handle: the registry."""

    def cancel_timer(self, timer: Timer) -> bool: ...


class OwnerReference(Protocol):
    """Returns the owner as long as it exists: a weak reference."""

    def __call__(self) -> TimerOwner | None: ...


class TimerTable(Protocol):
    """What a timer needs of the table in which its conversation stands."""

    owner: OwnerReference


class Timer:
    """One scheduled delivery; at the same time its own handle.

    A timer is threaded through the ring of its slot (`before`, `after`) and a chain of its conversation (`older`,
    `newer`), so that it can be taken out of both in O(1) without a container per timer (Varghese and Lauck,
    "Hashed and Hierarchical Timing Wheels", 1987, scheme 6). Being its own handle, and two links instead of two
    dict entries, make it 144 bytes with its due instant, and all that a conversation of one timer needs.

    A timer is pending while `after` is not None. The thread that takes it out of its ring, under the lock, decides its
    fate: this is the claim that makes cancelling final (G5). The claim also takes its event and its table, so that a
    handle that outlives its timer keeps nothing alive. There is no `__weakref__` slot, because the callback of a weak
    reference would be user code inside the engine.
    """

    __slots__ = ("after", "before", "cid", "due", "event", "instance_id", "newer", "older", "table")

    cid: str

    due: int
    event: PlainEvent | None
    instance_id: str
    table: TimerTable | None
    # Links of the ring are `Any`: the next link of the last timer is the ring's head, which is of another class.
    before: Any
    # The next in the ring; OPEN in the open slot, CLAIMABLE in a batch, PENDING_ADMISSION before any. None once it is
    # over.
    after: Any
    older: Timer | None
    newer: Timer | None

    # No __init__: the engine sets `due` and `event`, `Records` and the ring set the rest (0.1 us of 1.2).

    @classmethod
    def pending_admission(cls, table: TimerTable, cid: str, instance_id: str, event: PlainEvent) -> Timer:
        """Make a timer that can be cancelled by its handle but stands in no ring yet, nor in the table."""
        timer = cls()
        timer.table = table
        timer.cid = cid
        timer.instance_id = instance_id
        timer.event = event
        timer.after = PENDING_ADMISSION
        return timer

    def claim(self) -> tuple[str, Event]:
        """Take the delivery off a timer that has left its ring or its batch: the conversation and the event."""
        spec = self.event
        self.table = self.event = None  # from now on the handle keeps nothing alive
        if type(spec) is str:
            return self.cid, Event(self.instance_id, spec, NO_PAYLOAD, NO_SIGNALS, self.due)
        assert spec is not None
        return self.cid, event_with_payload(self.instance_id, spec, self.due)

    def cancel(self) -> bool:
        """See `stube.TimerHandle`."""
        table = self.table
        owner = None if table is None else table.owner()
        return owner is not None and owner.cancel_timer(self)

    @override
    def __repr__(self) -> str:
        event = self.event
        return "<Timer: over>" if event is None else f"<Timer {name_of(event)!r} of {self.cid!r}, {self.instance_id!r}>"


class DueBatch:
    """Timers that were due together and have left the wheel and their table: claimed one by one, the last one first.

    The delivery thread pops a timer off the list, a caller that cancels removes it: each is one atomic step, so that
    exactly one of them has it (G5), and no timer costs a turn of the lock.
    """

    __slots__ = ("accounted", "delivered", "timers", "total")

    def __init__(self, timers: list[Timer]) -> None:
        self.timers = timers
        self.total = len(timers)  # without those that were cancelled, so that what is not in the list has begun
        self.accounted = 0  # how many of the begun ones have been taken out of the ledger's `timers`
        self.delivered = 0  # written by the delivery thread; what has begun and is not among these has failed

    @property
    def begun(self) -> int:
        """How many the delivery thread has claimed."""
        return self.total - len(self.timers)

    def waiting(self, cid: str | None = None, instance_id: str | None = None) -> list[Timer]:
        """Return the timers that may still be waiting; with `cid` those of one conversation, or of one instance."""
        return [
            timer
            for timer in self.timers.copy()
            if timer.event is not None and cid in (None, timer.cid) and instance_id in (None, timer.instance_id)
        ]

    def withdraw(self, timer: Timer) -> bool:
        """Take a timer out before it begins; say whether it had not begun."""
        try:
            self.timers.remove(timer)
        except ValueError:
            return False
        self.total -= 1
        return True

    def stop(self) -> list[Timer]:
        """Let no other timer begin; return those that would have, in the order in which they would.

        Removes from the front of the list, where the timers stand that would begin last: a timer that the delivery
        thread still pops was due before all that are returned.
        """
        rest = []
        while self.timers:
            try:
                rest.append(self.timers.pop(0))
            except IndexError:  # the delivery thread took the last one at this moment
                break
        self.total -= len(rest)
        rest.reverse()
        return rest
