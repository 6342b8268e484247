"""The timer wheel: which timer is due next.

Time is cut into slots of 2**27 ns (134 ms). A slot keeps its timers unsorted, in the order in which they came, so
scheduling is a look-up and a link, and cancelling an unlink. Only the slot under the hand is put in order, when
its time has begun: one sort, which keeps ties in the order of acceptance.
"""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

from sortedcontainers import SortedDict

from stube_backends.engine._timers import Timer

# Coarse enough that 100,000 timers over ten minutes share slots (22 each) and a million still sort in passing
# (220 each); fine enough that a hundred thousand one-second clocks are not sorted in one piece.
SLOT_BITS: Final = 27

_due: Final = attrgetter("due")


def _not_due(timer: Timer) -> int:
    return -timer.due


class Slot:
    """A stretch of time: the head of the ring of the timers that are due in it."""

    __slots__ = ("after", "before", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.before: Any = self
        self.after: Any = self

    def __iter__(self) -> Iterator[Timer]:
        timer = self.after
        while timer is not self:
            yield timer
            timer = timer.after


class TimerWheel:
    """Pending timers by due instant: O(1) in and out, one sort per slot when its time has come.

    `slots` is the truth. `order` is the open slot, sorted, the next timer last; a timer that is cancelled leaves
    its slot at once, and its empty shell stays in `order` until half of it are shells, or until the slot is empty.
    """

    __slots__ = ("begins", "open", "order", "shells", "slots")

    def __init__(self) -> None:
        self.slots: SortedDict[int, Slot] = SortedDict()
        self.begins: int | None = None  # the instant at which the earliest slot begins; None without a slot
        self.open: Slot | None = None  # the slot that `order` is made of; always the earliest one
        self.order: list[Timer] = []
        self.shells = 0  # at least the number of shells in `order`

    def add(self, timer: Timer) -> None:
        """Take in a timer that is due later than the latest instant that was collected."""
        number = timer.due >> SLOT_BITS
        slot = self.slots.get(number)
        if slot is None:
            slot = self._new_slot(number)
        link(timer, slot)
        if slot is self.open:
            # Leftmost among its equals: `order` is walked from its end, so a later comer goes behind them.
            insort_left(self.order, timer, key=_not_due)

    def remove(self, timer: Timer) -> None:
        """Take a timer out, which may also stand in another ring than a slot's (see `ReadyOrder`)."""
        unlink(timer, self)
        if self.order:
            # It may not have stood in `order` at all: counting one too many tidies early, and still amortised O(1).
            self.shells += 1
            if self.shells > len(self.order) // 2:
                self.order = [timer for timer in self.order if timer.after is not None]
                self.shells = 0

    def take_due(self, limit: int) -> Timer | None:
        """Take out the earliest timer that is due at `limit` or before; None when there is none."""
        order = self.order
        while True:
            while order:
                timer = order[-1]
                if timer.after is None:  # a shell
                    order.pop()
                    self.shells -= 1
                elif timer.due <= limit:
                    order.pop()
                    unlink(timer, self)
                    return timer
                else:
                    return None
            if self.begins is None or self.begins > limit:
                return None
            order = self._open_earliest()

    def next_instant(self) -> int | None:
        """When to look again: the earliest due instant if its slot is open, else the beginning of its slot."""
        order = self.order
        while order:
            if order[-1].after is not None:
                return order[-1].due
            order.pop()
            self.shells -= 1
        return self.begins

    def next_due(self) -> int | None:
        """The earliest due instant, O(size of the earliest slot)."""
        if not self.slots:
            return None
        return min(timer.due for timer in self.slots.peekitem(0)[1])

    def _new_slot(self, number: int) -> Slot:
        slot = Slot(number)
        self.slots[number] = slot
        begins = number << SLOT_BITS
        if self.begins is None or begins < self.begins:
            self.begins = begins
        return slot

    def _open_earliest(self) -> list[Timer]:
        slot: Slot = self.slots.peekitem(0)[1]
        self.open = slot
        self.order = sorted(slot, key=_due)
        self.order.reverse()
        self.shells = 0
        return self.order

    def drop(self, slot: Slot) -> None:
        """Forget a slot whose last timer has left."""
        del self.slots[slot.number]
        if slot is self.open:
            self.open = None
            self.order = []
            self.shells = 0
        if self.slots:
            self.begins = self.slots.peekitem(0)[0] << SLOT_BITS
        else:
            self.begins = None
            dict.clear(self.slots)  # gives the table back; the sorted list of keys is empty already

    def __iter__(self) -> Iterator[Timer]:
        values: Any = dict.values
        for slot in values(self.slots):  # in no order, but whole even while a key is being sorted in
            yield from slot

    def _check(self) -> None:
        self.slots._check()  # type: ignore[attr-defined]
        for number, slot in self.slots.items():
            timers = list(slot)
            assert timers, f"slot {number} is kept without a timer"
            for timer in timers:
                assert timer.due >> SLOT_BITS == number, f"{timer!r}, due {timer.due}, stands in slot {number}"
                assert timer.after is not None
                assert timer.after.before is timer, f"the ring of slot {number} is broken at {timer!r}"
        begins = self.slots.peekitem(0)[0] << SLOT_BITS if self.slots else None
        assert self.begins == begins, f"the earliest slot begins at {begins}, not {self.begins}"
        if self.open is None:
            assert not self.order, "an order without an open slot"
            return
        assert self.open is self.slots.peekitem(0)[1], "the open slot is not the earliest"
        live = [timer for timer in reversed(self.order) if timer.after is not None]
        assert live == sorted(self.open, key=_due), "the order of the open slot is wrong"
        assert len(self.order) - len(live) <= self.shells, f"{len(self.order) - len(live)} shells, counted {self.shells}"


def link(timer: Any, ring: Any) -> None:
    """Put an entry last in a ring, a slot's or that of the arrivals. Every prefix of these lines leaves the forward ring whole, for a reader that
    interrupts them."""
    last = ring.before
    timer.before = last
    timer.after = ring
    last.after = timer
    ring.before = timer


def unlink(timer: Any, wheel: TimerWheel) -> None:
    """Take an entry out of its ring, and the slot out of the wheel when it was the last."""
    before, after = timer.before, timer.after
    before.after = after
    after.before = before
    timer.after = None
    del timer.before
    if before is after and type(before) is Slot:
        wheel.drop(before)
