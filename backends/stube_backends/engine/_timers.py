"""Timers, grouped by the conversation and the instance that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from typing_extensions import override

from stube import Event
from stube.arguments import PlainEvent
from stube_backends.engine._arguments import event_with_payload, name_of
from stube_backends.engine._tables import free_if_empty

PENDING_ADMISSION: Final = object()
"""The `after` of a timer whose handle has been given out and which stands in no ring yet."""

CLAIMABLE: Final = object()
"""The `after` of a timer in a batch, from which the delivery thread claims it without the lock."""


class TimerOwner(Protocol):
    """Cancels a timer on behalf of its handle: the registry."""

    def cancel_timer(self, timer: Timer) -> bool: ...


class Timer:
    """One scheduled delivery; at the same time its own handle.

    A timer is threaded through two rings, that of its slot (`before`, `after`) and that of its group (`older`,
    `newer`), so that it can be taken out of both in O(1) without a container per timer (Varghese and Lauck,
    "Hashed and Hierarchical Timing Wheels", 1987, scheme 6). Being its own handle, and two links instead of two
    dict entries, make it 120 bytes with its due instant.

    A timer is pending while `after` is not None. The thread that takes it out of its ring, under the lock, decides its
    fate: this is the claim that makes cancelling final (G5). The claim also takes its event and its group, so that a
    handle that outlives its timer keeps nothing alive. There is no `__weakref__` slot, because the callback of a weak
    reference would be user code inside the engine.
    """

    __slots__ = ("after", "before", "due", "event", "group", "newer", "older")

    due: int
    event: PlainEvent | None
    group: Group | None
    # Links are `Any`: the next link of the last timer is the ring's head, which is of another class.
    before: Any
    # The next in the ring; OPEN in the open slot, CLAIMABLE in a batch, PENDING_ADMISSION before any. None once it is
    # over.
    after: Any
    older: Any
    newer: Any

    # No __init__: the engine sets `due` and `event`, `TimerGroups` and the ring set the rest (0.1 us of 1.2).

    @classmethod
    def pending_admission(cls, event: PlainEvent, group: Group) -> Timer:
        """Make a timer that can be cancelled by its handle but stands in no ring yet, nor in the group that it
        names."""
        del group.older, group.newer
        timer = cls()
        timer.event = event
        timer.group = group
        timer.after = PENDING_ADMISSION
        return timer

    def claim(self) -> tuple[str, Event]:
        """Take the delivery off a timer that has left its ring or its batch: the conversation and the event."""
        group, spec = self.group, self.event
        self.group = self.event = None  # from now on the handle keeps nothing alive
        assert group is not None
        if type(spec) is str:
            return group.cid, Event(group.instance_id, spec, due=self.due)
        assert spec is not None
        return group.cid, event_with_payload(group.instance_id, spec, self.due)

    def cancel(self) -> bool:
        """See `stube.TimerHandle`."""
        group = self.group
        return group is not None and group.owner.cancel_timer(self)

    @override
    def __repr__(self) -> str:
        group, event = self.group, self.event
        if group is None or event is None:
            return "<Timer: over>"
        return f"<Timer {name_of(event)!r} of {group.cid!r}, {group.instance_id!r}>"


class Group:
    """The timers of one instance: the ring's head, and what they have in common."""

    __slots__ = ("cid", "instance_id", "newer", "older", "owner")

    def __init__(self, cid: str, instance_id: str, owner: TimerOwner) -> None:
        self.cid = cid
        self.instance_id = instance_id
        self.owner = owner
        self.older: Any = self
        self.newer: Any = self

    def __iter__(self) -> Iterator[Timer]:
        """Yield the timers from the oldest on. The one yielded may be removed before the next one is asked for."""
        timer = self.newer
        while timer is not self:
            following = timer.newer
            yield timer
            timer = following


class TimerGroups:
    """The timers of each conversation, instance by instance; each look-up and each change is O(1)."""

    __slots__ = ("by_cid",)

    def __init__(self) -> None:
        self.by_cid: dict[str, dict[str, Group]] = {}

    def add(self, timer: Timer, cid: str, instance_id: str, owner: TimerOwner) -> None:
        """Put a timer last in the group of an instance, which is made with its first timer."""
        groups = self.by_cid.get(cid)
        group = None if groups is None else groups.get(instance_id)
        if group is None:
            group = self.by_cid.setdefault(cid, {})[instance_id] = Group(cid, instance_id, owner)
        timer.group = group
        newest = group.older
        timer.older = newest
        timer.newer = group
        newest.newer = timer
        group.older = timer

    def remove(self, timers: Iterable[Timer]) -> None:
        """Take timers out of their groups, and out of the index each group that has become empty."""
        for timer in timers:
            older, newer = timer.older, timer.newer
            older.newer = newer
            newer.older = older
            del timer.older, timer.newer
            if older is newer:  # only the head is left, a ring of its own
                self._forget(older)
                del older.older, older.newer

    def take(self, cid: str, instance_id: str | None) -> list[Timer]:
        """Take out all timers of a conversation, or of one instance of it; O(their number)."""
        if instance_id is None:
            groups = list(self.by_cid.pop(cid, {}).values())
        else:
            group = self.by_cid.get(cid, {}).get(instance_id)
            groups = [] if group is None else [group]
        # Out of the index before the rings are cut, so that a reader that interrupts these lines finds whole rings.
        if instance_id is None:
            free_if_empty(self.by_cid)
        elif groups:
            self._forget(groups[0])
        return _cut(groups)

    def holds(self, timer: Timer) -> bool:
        """Say whether a timer's group stands in this index, and not in that of the parent process before a fork."""
        group = timer.group
        return group is not None and self.by_cid.get(group.cid, {}).get(group.instance_id) is group

    def clear(self) -> None:
        """Forget everything, and cut the rings."""
        by_cid, self.by_cid = self.by_cid, {}
        for groups in by_cid.values():
            _cut(groups.values())

    def _forget(self, group: Group) -> None:
        groups = self.by_cid[group.cid]
        del groups[group.instance_id]
        if not groups:
            del self.by_cid[group.cid]
            free_if_empty(self.by_cid)

    def _check(self) -> None:
        for cid, groups in self.by_cid.items():
            assert groups, f"conversation {cid!r} is kept without a group"
            for instance_id, group in groups.items():
                assert (group.cid, group.instance_id) == (cid, instance_id), f"misplaced: {cid!r}, {instance_id!r}"
                timers = list(group)
                assert timers, f"group {cid!r}, {instance_id!r} is kept without a timer"
                for timer in timers:
                    assert timer.group is group, f"{timer!r} stands in a foreign group"
                    assert timer.event is not None, f"a dead timer stands in the group {cid!r}, {instance_id!r}"
                    assert timer.newer.older is timer, f"the ring of {cid!r}, {instance_id!r} is broken at {timer!r}"


def _cut(groups: Iterable[Group]) -> list[Timer]:
    """Take the rings of groups apart and return their timers. A ring that is not cut is a cycle, which only the garbage
    collector frees."""
    timers = []
    for group in groups:
        timer = group.newer
        del group.older, group.newer
        while timer is not group:
            timers.append(timer)
            following = timer.newer
            del timer.older, timer.newer
            timer = following
    return timers


class DueBatch:
    """Timers that were due together and have left the wheel and their groups: claimed one by one, the last one first.

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
        found = []
        for timer in self.timers.copy():
            group = timer.group
            if group is None or cid not in (None, group.cid) or instance_id not in (None, group.instance_id):
                continue
            found.append(timer)
        return found

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
