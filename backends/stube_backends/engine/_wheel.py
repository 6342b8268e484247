"""The timer wheel: which timer is due next.

Time is cut into slots of 2**28 ns (268 ms). A slot keeps its timers unsorted, in the order in which they came, so
scheduling is a look-up and a link, and cancelling an unlink. Only the earliest slot is put in order, when its time has
begun: one sort, which keeps ties in the order of acceptance. It is then the open slot.

A timer with a long delay goes to a coarse slot of 2**32 ns (4.3 s) first and, when the time of that slot has begun, to
its fine slot: a wheel above a wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme 7). Most
time-outs are cancelled before that. (100,000 timers over ten minutes cost 1.4 us each in six shards, and 1.7 us with
fine slots alone.)
"""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from sortedcontainers import SortedList
from typing_extensions import override

from stube_backends.engine._rings import Ring, move_behind
from stube_backends.engine._tables import free_if_empty
from stube_backends.engine._timers import Timer

# Fine enough that a hundred thousand one-second clocks are not sorted in one piece, and coarse enough that a hundred
# thousand timers over ten minutes share slots (700 each, 120 in each of six shards).
SLOT_BITS: Final = 28
COARSE_BITS: Final = 32

LONG: Final = 1 << COARSE_BITS
"""The wait from which on a timer goes to a coarse slot: at least the length of a coarse slot. Therefore no timer comes
to a coarse slot whose time has begun, and of two timers due at one instant the one in the coarse slot was accepted
first."""

_HALF_BITS: Final = SLOT_BITS - 1
_COARSE_STEP: Final = COARSE_BITS - _HALF_BITS

# A batch is claimed without the lock, and a caller that cancels a conversation looks through it: 64 timers are enough
# to make the turn of the lock cheap for each of them, and are looked through in 3 us.
_BATCH: Final = 64

_FEW: Final = 32  # numbers of dropped slots that are not worth sweeping

_due: Final = attrgetter("due")


def _not_due(timer: Timer) -> int:
    return -timer.due


OPEN: Final = object()
"""The `after` of a timer in the open slot."""


def slot_number(due: int, wait: int) -> int:
    """The number of the slot for a timer that is due at `due` and waits `wait` until then.

    A number is twice the number of the fine slot that begins when this slot does, and one more if this slot is fine
    itself. Slots therefore begin in the order of their numbers, a coarse one before the first fine one of its stretch.
    """
    return due >> _HALF_BITS | 1 if wait < LONG else due >> COARSE_BITS << _COARSE_STEP


class Slot(Ring):
    """A stretch of time, fine or coarse: the ring of the timers that are due in it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @override
    def __iter__(self) -> Iterator[Timer]:
        timer = self.after
        while type(timer) is Timer:
            yield timer
            timer = timer.after
        if timer is not self:  # a reader without the lock, while the ring is dissolved
            raise RuntimeError("timers have moved to another slot")


class TimerWheel:
    """Pending timers by due instant: O(1) in and out, one sort per slot when its time has come.

    A closed slot is a ring. The open slot, a fine one and always the earliest, is the list `order`, sorted, the next
    timer last; its ring is dissolved, and the `after` of its timers is `OPEN`. A timer that is cancelled leaves a ring
    immediately. In `order` it stays as a tombstone until half of the list are tombstones, or until no live timer is
    left.

    `first` is the number of the earliest closed slot. The next one is looked for only when that one has been dropped:
    the numbers of new slots gather in `fresh` and are then sorted in together, and the number of a slot that was
    dropped stays until it comes to the front or until the numbers are twice as many as the slots. (A new slot costs its
    caller 0.3 us, and 1.6 us if its number is sorted in immediately; with several wheels and few timers in each slot
    that is a third of a schedule.)
    """

    __slots__ = ("first", "fresh", "live", "number", "numbers", "order", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}  # the closed ones, by number
        self.numbers: SortedList[int] = SortedList()
        self.fresh: list[int] = []
        self.first: int | None = None  # the number of the earliest closed slot; None without one
        self.number: int | None = None  # of the open slot; None when none is open
        self.order: list[Timer] = []
        self.live = 0  # how many of `order` are no tombstones

    def add(self, timer: Timer, wait: int = 0) -> None:
        """Take in a timer that is due later than the latest instant that was collected, at least `wait` later."""
        due = timer.due
        # `slot_number`, and below `Ring.append`, written out: 5 % of a schedule, which its target needs.
        number = due >> _HALF_BITS | 1 if wait < LONG else due >> COARSE_BITS << _COARSE_STEP
        # Not `slots.get(number)`, with which eight threads take seven times as long without a global interpreter lock
        # (CPython 3.13: 28 thousand timers a second instead of 174 thousand).
        slot = self.slots[number] if number in self.slots else None  # noqa: SIM401
        if slot is None:
            if number == self.number:
                # Leftmost among its equals: `order` is walked from its end, so a later comer goes behind them.
                timer.after = OPEN
                insort_left(self.order, timer, key=_not_due)
                self.live += 1
                return
            slot = self._new_slot(number)
        last = slot.before  # `Ring.append`: in the order of lines that keeps walking forward possible
        timer.before = last
        timer.after = slot
        last.after = timer
        slot.before = timer

    def remove_from_open(self, timer: Timer) -> None:
        """Take a timer out of the open slot. From a ring `ReadyOrder.remove` takes it."""
        timer.after = None
        self.live -= 1
        if len(self.order) > 2 * self.live:
            self._compact()

    def first_due(self, limit: int) -> Timer | None:
        """Return the earliest timer that is due at `limit` or before; None when there is none."""
        order = self.order
        while not order or order[-1].after is not OPEN:
            if order:
                order.pop()  # a tombstone
            elif self.first is None or _begins(self.first) > limit:
                return None
            else:
                order = self._open_earliest()
        timer = order[-1]
        return timer if timer.due <= limit else None

    def take_first(self) -> None:
        """Take out the timer that `first_due` has just returned."""
        order = self.order
        order.pop().after = None
        self.live -= 1
        if len(order) > 2 * self.live or not order:
            self._compact()

    def take_batch(self, limit: int) -> list[Timer] | None:
        """Take out the next timers of the open slot that are due at `limit` or before, the earliest last; None when
        they are fewer than two. At most 64, without those that have been cancelled, so that the list may be empty."""
        order = self.order
        if len(order) < 2 or order[-2].due > limit:
            return None
        batch = order[-_BATCH:]
        if batch[0].due > limit:
            batch = [timer for timer in batch if timer.due <= limit]
        del order[-len(batch) :]
        if len(order) + len(batch) > self.live:
            batch = [timer for timer in batch if timer.after is OPEN]
        self.live -= len(batch)
        if len(order) > 2 * self.live or not order:
            self._compact()
        return batch

    def next_instant(self) -> int | None:
        """Return when to look again: at the earliest due instant if its slot is open, else when its slot begins."""
        if self.live:
            while self.order[-1].after is not OPEN:
                self.order.pop()
            return self.order[-1].due
        return None if self.first is None else _begins(self.first)

    def next_due(self) -> int | None:
        """Return the earliest due instant. O(size of the earliest slot)."""
        if self.live:
            return self.next_instant()
        if self.first is None:
            return None
        due = min(timer.due for timer in self.slots[self.first])
        for number in range(self.first + 1, slot_number(due, 0) + 1, 2):  # fine ones within a coarse one
            if number in self.slots:
                return min(due, min(timer.due for timer in self.slots[number]))
        return due

    def drop(self, slot: Slot) -> None:
        """Forget a closed slot whose last timer has left, and cut its head, which is a ring of its own."""
        del self.slots[slot.number]
        slot.cut()
        if not self.slots:
            free_if_empty(self.slots)
            self.first = None
            self.numbers.clear()
            self.fresh.clear()
            return
        if slot.number == self.first:
            self.first = self._earliest()
        if len(self.numbers) + len(self.fresh) > 2 * len(self.slots) + _FEW:
            self.numbers = SortedList(self.slots)
            self.fresh.clear()

    def _earliest(self) -> int:
        """Return the number of the earliest closed slot. There must be one."""
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
        if self.first is None or number < self.first:
            self.first = number
        return slot

    def _open_earliest(self) -> list[Timer]:
        """Dissolve the earliest ring into `order`; a coarse one into its fine slots, which leaves `order` empty.

        The ring is cut here, timer by timer in the order of the memory, because a delivery that had to touch both
        neighbours would cost 0.2 us more than 0.9.
        """
        assert self.first is not None
        slot = self.slots[self.first]
        if not slot.number & 1:
            self._spread(slot)
            return self.order
        order: list[Timer] = []
        timer = slot.after
        while timer is not slot:  # `list(slot)`, written out: 0.04 us of 0.75, which the target of firing needs
            order.append(timer)
            timer = timer.after
        order.sort(key=_due)
        order.reverse()
        self.order = order  # before the ring is cut, so that `rebuild` finds the timers in their order
        self.drop(slot)
        for timer in order:
            timer.after = OPEN
            del timer.before
        self.number = slot.number
        self.live = len(order)
        return order

    def _spread(self, slot: Slot) -> None:
        """Move the timers of a coarse slot to the front of their fine slots, because they were accepted first.

        From the last one on, so that they are still in order when an asynchronous exception interrupts this.
        """
        while (timer := slot.before) is not slot:
            number = slot_number(timer.due, 0)
            move_behind(self.slots.get(number) or self._new_slot(number), timer)
        self.drop(slot)

    def _compact(self) -> None:
        """Remove the tombstones, now that they outnumber the live timers, and close the slot when no timer is left."""
        self.order = [timer for timer in self.order if timer.after is OPEN]
        if not self.order:
            self.number = None

    def __iter__(self) -> Iterator[Timer]:
        """Yield timers that are due together in the order in which they would begin: of a stretch of time those of the
        coarse slot before those of the fine ones."""
        yield from [timer for timer in reversed(self.order) if timer.after is OPEN]
        for _, slot in sorted(self.slots.items()):
            yield from slot

    def _check(self) -> None:
        self.numbers._check()  # type: ignore[attr-defined]
        assert {*self.numbers, *self.fresh} >= self.slots.keys(), "a slot has no number, and will not be found"
        assert len(self.numbers) + len(self.fresh) <= 2 * len(self.slots) + _FEW, "numbers of dropped slots are kept"
        for number, slot in self.slots.items():
            timers = list(slot)
            assert timers, f"slot {number} is kept without a timer"
            for timer in timers:
                right = slot_number(timer.due, 0 if number & 1 else LONG)
                assert right == number, f"{timer!r}, due {timer.due}, stands in slot {number}"
            slot._check()
        first = min(self.slots, default=None)
        assert self.first == first, f"the earliest slot is {first}, not {self.first}"
        live = [timer for timer in self.order if timer.after is OPEN]
        assert len(live) == self.live, f"the open slot has {len(live)} live timers, counted {self.live}"
        assert len(self.order) <= 2 * self.live, f"{len(self.order)} entries in the open slot for {self.live} live"
        assert bool(live) == (self.number is not None), f"slot {self.number} is open with {len(live)} timers"
        dues = [timer.due for timer in live]
        assert dues == sorted(dues, reverse=True), f"the open slot is out of order: {dues}"
        assert all(slot_number(due, 0) == self.number for due in dues), f"strangers in slot {self.number}: {dues}"
        if self.slots and self.number is not None:
            assert self.number < min(self.slots), "a closed slot is earlier than the open one"


def _begins(number: int) -> int:
    """Return the instant at which a slot begins."""
    return (number & -2) << _HALF_BITS
