"""The timer wheel: which timer is due next.

Time is cut into slots of 2**28 ns (268 ms). A slot keeps its timers unsorted, in the order in which they came, so
scheduling is a look-up and a link, and cancelling an unlink. Only the slot under the hand is put in order, when
its time has begun: one sort, which keeps ties in the order of acceptance.
"""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

from sortedcontainers import SortedList

from stube_backends.engine._timers import Timer

# Coarse enough that 100,000 timers over ten minutes share slots (45 each, 7 in each of six shards) and a million
# still sort in passing (450 each); fine enough that a hundred thousand one-second clocks are not sorted in one piece.
SLOT_BITS: Final = 28

# A burst is claimed without the lock, and looked through by whoever cancels a conversation meanwhile: 64 share one turn
# of the lock well enough, and are looked through in 3 us.
_BURST: Final = 64

_FEW: Final = 32  # numbers of dropped slots that are not worth sweeping

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

    Which closed slot is the earliest is kept in `begins`. Which one comes behind it is asked only when that one has
    gone: the numbers of new slots gather in `fresh` and are sorted in then, together, and the number of a slot that was
    dropped stays until it comes to the front or until the numbers are twice as many as the slots. (A new slot costs
    its caller 0.3 us, and 1.6 sorted in at once; with several wheels and few timers in each slot that is a third of a
    schedule.)
    """

    __slots__ = ("begins", "find_slot", "fresh", "live", "number", "numbers", "order", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}  # the closed ones, by number
        self.numbers: SortedList[int] = SortedList()
        self.fresh: list[int] = []
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
        if self.begins is None:
            return None
        return min(timer.due for timer in self.slots[self.begins >> SLOT_BITS])

    def drop(self, slot: Slot) -> None:
        """Forget a closed slot whose last timer has left, and cut its head, a ring of its own by now."""
        del self.slots[slot.number]
        del slot.before, slot.after
        if not self.slots:
            self.begins = None
            self.slots.clear()  # gives the table back
            self.numbers.clear()
            self.fresh.clear()
        elif slot.number << SLOT_BITS == self.begins:
            self.begins = self._earliest() << SLOT_BITS
        elif len(self.numbers) + len(self.fresh) > 2 * len(self.slots) + _FEW:
            self.numbers = SortedList(self.slots)
            self.fresh.clear()

    def _earliest(self) -> int:
        """The number of the earliest closed slot, of which there is one."""
        numbers, slots = self.numbers, self.slots
        numbers.update(self.fresh)
        self.fresh.clear()
        while numbers[0] not in slots:
            del numbers[0]
        return numbers[0]

    def _new_slot(self, number: int) -> Slot:
        slot = Slot(number)
        self.fresh.append(number)
        self.slots[number] = slot
        begins = number << SLOT_BITS
        if self.begins is None or begins < self.begins:
            self.begins = begins
        return slot

    def _open_earliest(self) -> list[Timer]:
        """Dissolve the earliest ring into `order`. Cutting it here, timer by timer as they lie, spares the memory of
        both neighbours with every delivery (0.2 us of 0.9)."""
        assert self.begins is not None
        slot = self.slots[self.begins >> SLOT_BITS]
        order: list[Timer] = []
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
        for slot in self.slots.values():  # in no order
            yield from slot
        yield from [timer for timer in self.order if timer.after is OPEN]

    def _check(self) -> None:
        self.numbers._check()  # type: ignore[attr-defined]
        assert {*self.numbers, *self.fresh} >= self.slots.keys(), "a slot has no number, and will not be found"
        assert len(self.numbers) + len(self.fresh) <= 2 * len(self.slots) + _FEW, "numbers of dropped slots are kept"
        for number, slot in self.slots.items():
            timers = list(slot)
            assert timers, f"slot {number} is kept without a timer"
            for timer in timers:
                assert timer.due >> SLOT_BITS == number, f"{timer!r}, due {timer.due}, stands in slot {number}"
                assert timer.after.before is timer, f"the ring of slot {number} is broken at {timer!r}"
        begins = min(self.slots) << SLOT_BITS if self.slots else None
        assert self.begins == begins, f"the earliest slot begins at {begins}, not {self.begins}"
        live = [timer for timer in self.order if timer.after is OPEN]
        assert len(live) == self.live, f"the open slot has {len(live)} live timers, counted {self.live}"
        assert len(self.order) <= 2 * self.live, f"{len(self.order)} entries in the open slot for {self.live} live"
        assert bool(live) == (self.number is not None), f"slot {self.number} is open with {len(live)} timers"
        dues = [timer.due for timer in live]
        assert dues == sorted(dues, reverse=True), f"the open slot is out of order: {dues}"
        assert all(due >> SLOT_BITS == self.number for due in dues), f"strangers in slot {self.number}: {dues}"
        if self.slots and self.number is not None:
            assert self.number < min(self.slots), "a closed slot is earlier than the open one"


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
