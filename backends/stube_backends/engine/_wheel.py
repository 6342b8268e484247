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

# A burst is claimed without the lock, and looked through by whoever cancels a conversation meanwhile: 64 share one turn
# of the lock well enough, and are looked through in 3 us.
_BURST: Final = 64

_due: Final = attrgetter("due")


def _not_due(timer: Timer) -> int:
    return -timer.due


OPEN: Final = object()
"""The `after` of a timer in the open slot."""


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

    A closed slot is a ring. The open slot, always the earliest one, is the list `order`, sorted, the next timer last;
    its ring is dissolved, and the `after` of its timers is `OPEN`. A timer that is cancelled leaves a ring at once. In
    `order` an empty shell stays of it until half of the list are shells, or until no live timer is left.
    """

    __slots__ = ("begins", "find_slot", "live", "number", "order", "slots")

    def __init__(self) -> None:
        self.slots: SortedDict[int, Slot] = SortedDict()  # the closed ones, by number
        self.find_slot = self.slots.get
        self.begins: int | None = None  # the instant at which the earliest closed slot begins; None without one
        self.number: int | None = None  # of the open slot; None when none is open
        self.order: list[Timer] = []
        self.live = 0  # how many of `order` are no shells

    def add(self, timer: Timer) -> None:
        """Take in a timer that is due later than the latest instant that was collected."""
        number = timer.due >> SLOT_BITS
        slot = self.find_slot(number)
        if slot is None:
            if number == self.number:
                # Leftmost among its equals: `order` is walked from its end, so a later comer goes behind them.
                timer.after = OPEN
                insort_left(self.order, timer, key=_not_due)
                self.live += 1
                return
            slot = self._new_slot(number)
        last = slot.before  # `link`, written out
        timer.before = last
        timer.after = slot
        last.after = timer
        slot.before = timer

    def remove(self, timer: Timer) -> None:
        """Take a timer out, which may also stand in another ring than a slot's (see `ReadyOrder`)."""
        after = timer.after
        if after is not OPEN:
            before = timer.before  # `unlink`, written out
            before.after = after
            after.before = before
            timer.after = None
            del timer.before
            if before is after and type(before) is Slot:
                self.drop(before)
            return
        timer.after = None
        self.live -= 1
        if len(self.order) > 2 * self.live:
            self._tidy()

    def take_due(self, limit: int) -> Timer | None:
        """Take out the earliest timer that is due at `limit` or before; None when there is none."""
        order = self.order
        while not order or order[-1].after is not OPEN:
            if order:
                order.pop()  # a shell
            elif self.begins is None or self.begins > limit:
                return None
            else:
                order = self._open_earliest()
        timer = order[-1]
        if timer.due > limit:
            return None
        order.pop()
        timer.after = None
        self.live -= 1
        if len(order) > 2 * self.live or not order:
            self._tidy()
        return timer

    def take_burst(self, limit: int) -> list[Timer] | None:
        """Take out the next timers of the open slot that are due at `limit` or before, the earliest last; None when
        they are fewer than two. At most 64."""
        order = self.order
        if len(order) < 2 or order[-2].due > limit:
            return None
        burst = order[-_BURST:]
        if burst[0].due > limit:
            burst = [timer for timer in burst if timer.due <= limit]
        del order[-len(burst) :]
        if len(order) + len(burst) > self.live:
            burst = [timer for timer in burst if timer.after is OPEN]
        self.live -= len(burst)
        if len(order) > 2 * self.live or not order:
            self._tidy()
        return burst

    def next_instant(self) -> int | None:
        """When to look again: the earliest due instant if its slot is open, else the beginning of its slot."""
        if self.live:
            while self.order[-1].after is not OPEN:
                self.order.pop()
            return self.order[-1].due
        return self.begins

    def next_due(self) -> int | None:
        """The earliest due instant, O(size of the earliest slot)."""
        if self.live:
            return self.next_instant()
        return min(timer.due for timer in self.slots.peekitem(0)[1]) if self.slots else None

    def drop(self, slot: Slot) -> None:
        """Forget a closed slot whose last timer has left, and cut its head, a ring of its own by now."""
        del self.slots[slot.number]
        del slot.before, slot.after
        if self.slots:
            self.begins = self.slots.peekitem(0)[0] << SLOT_BITS
        else:
            self.begins = None
            table: Any = self.slots
            dict.clear(table)  # gives the table back; the sorted list of keys is empty already

    def _new_slot(self, number: int) -> Slot:
        slot = Slot(number)
        self.slots[number] = slot
        begins = number << SLOT_BITS
        if self.begins is None or begins < self.begins:
            self.begins = begins
        return slot

    def _open_earliest(self) -> list[Timer]:
        """Dissolve the earliest ring into `order`. Cutting it here, timer by timer as they lie, spares the memory of
        both neighbours with every delivery (0.2 us of 0.9)."""
        slot: Slot = self.slots.peekitem(0)[1]
        order = []
        timer = slot.after
        while timer is not slot:  # `list(slot)`, written out (0.05 us of 0.9)
            order.append(timer)
            timer = timer.after
        self.drop(slot)
        for timer in order:
            timer.after = OPEN
            del timer.before
        order.sort(key=_due)
        order.reverse()
        self.order = order
        self.number = slot.number
        self.live = len(order)
        return order

    def _tidy(self) -> None:
        """Drop the shells, now that they outnumber the living; and close the slot when nobody lives in it."""
        self.order = [timer for timer in self.order if timer.after is OPEN]
        if not self.order:
            self.number = None

    def __iter__(self) -> Iterator[Timer]:
        values: Any = dict.values
        for slot in values(self.slots):  # in no order, but whole even while a key is being sorted in
            yield from slot
        yield from [timer for timer in self.order if timer.after is OPEN]

    def _check(self) -> None:
        self.slots._check()  # type: ignore[attr-defined]
        for number, slot in self.slots.items():
            timers = list(slot)
            assert timers, f"slot {number} is kept without a timer"
            for timer in timers:
                assert timer.due >> SLOT_BITS == number, f"{timer!r}, due {timer.due}, stands in slot {number}"
                assert timer.after.before is timer, f"the ring of slot {number} is broken at {timer!r}"
        begins = self.slots.peekitem(0)[0] << SLOT_BITS if self.slots else None
        assert self.begins == begins, f"the earliest slot begins at {begins}, not {self.begins}"
        live = [timer for timer in self.order if timer.after is OPEN]
        assert len(live) == self.live, f"the open slot has {len(live)} live timers, counted {self.live}"
        assert len(self.order) <= 2 * self.live, f"{len(self.order)} entries in the open slot for {self.live} live"
        assert bool(live) == (self.number is not None), f"slot {self.number} is open with {len(live)} timers"
        dues = [timer.due for timer in live]
        assert dues == sorted(dues, reverse=True), f"the open slot is out of order: {dues}"
        assert all(due >> SLOT_BITS == self.number for due in dues), f"strangers in slot {self.number}: {dues}"
        if self.slots and self.number is not None:
            assert self.number < self.slots.peekitem(0)[0], "a closed slot is earlier than the open one"


def link(timer: Any, ring: Any) -> None:
    """Put an entry last in a ring, a slot's or that of the arrivals.

    Every prefix of these lines leaves the forward ring whole, for a reader that interrupts them.
    """
    last = ring.before
    timer.before = last
    timer.after = ring
    last.after = timer
    ring.before = timer


def unlink(entry: Any) -> None:
    """Take an entry out of the ring of the arrivals."""
    before, after = entry.before, entry.after
    before.after = after
    after.before = before
    entry.after = None
    del entry.before
