"""The index of a history: which call published a message, when a delivery was claimed, who subscribed at an instant.

Every answer is cautious: an answer is `surely` only if no scheduling of the threads explains the records otherwise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from math import ceil
from typing import Final, NamedTuple

from stube.testing._history.records import Call, History, Run
from stube.testing._history.sequential_specs import NEVER, Claim, covers

__all__ = ["Delivery", "Item", "Place", "Index"]

_EARLIEST: Final = -NEVER


class Item(NamedTuple):
    """A timer or a message that was accepted, and the instants at which it becomes ready by the registry's clock."""

    call: Call
    id: str
    delay: int
    earliest: float
    latest: float


class Delivery(NamedTuple):
    """A delivery, its item, and the delivery that ran before it in its conversation."""

    run: Run
    item: Item
    previous: Run | None
    claim: Claim


class Place(NamedTuple):
    """The place of a subscription, which may exist or not."""

    cid: str
    instance_id: str
    topic: str


class Index:
    """A history, indexed by conversation, timer, message and subscription.

    Args:
        history: the records.
        skew: nanoseconds by which the clocks of two recorders differ at most.
        clock_error: nanoseconds by which a recorder's reading of the registry's clock may be wrong.

    Raises:
        ValueError: two timers or messages have one id.
    """

    def __init__(self, history: History, *, skew: int, clock_error: int) -> None:
        self.history = history
        self.skew = skew
        self.clock_error = clock_error
        self.begins_at = history.begins_at
        self.calls = sorted((call for call in history.calls if not call.error), key=lambda call: call.called_at)
        self.timers: dict[str, Item] = {}
        self.messages: dict[str, Item] = {}
        for call in self.calls:
            if call.operation in ("schedule_event", "publish"):
                item = _item(call)
                if item.id in self.timers or item.id in self.messages:
                    raise ValueError(
                        f"Two timers or messages of the history have the id {item.id!r}. Give each one of its own."
                    )
                (self.messages if call.operation == "publish" else self.timers)[item.id] = item
        self.cancels: dict[str, list[Call]] = defaultdict(list)
        for call in self._of("cancel"):
            self.cancels[call.arguments["id"]].append(call)
        self._resets = list(self._of("reset_state"))
        self._removals: dict[tuple[str, bool], list[Call]] = {}
        self.runs: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(history.runs, key=lambda run: run.began_at):
            self.runs[run.cid].append(run)
        self.overlapping = {cid for cid in self.runs if any(self.overlaps(cid))}
        self.deliveries: dict[str, list[Delivery]] = {}
        """By conversation, in the order in which they began, without the strange and the repeated ones."""
        self.strange: list[Run] = []
        """Runs whose timer or message was not accepted for that conversation and instance."""
        self.repeated: list[tuple[Run, Run]] = []
        """Second runs of a timer, or of a message for one instance, each behind the first run."""
        self._read_runs()
        self._places: dict[Place, _Membership] = {}
        for call in self._of("subscribe"):
            self.place(Place(*(call.arguments[name] for name in Place._fields)))

    def end(self, call: Call) -> float:
        """Return the latest instant at which the call can have had its effect, on any recorder's clock."""
        return NEVER if call.returned_at is None else call.returned_at + self.skew

    def precedes(self, first: Call, second: Call) -> bool:
        """Tell whether the first call surely had its effect before the second."""
        return self.end(first) < second.called_at

    def removals(self, cid: str, *, timers: bool) -> list[Call]:
        """Return the calls that cancel timers of the conversation, or end its subscriptions, resets included.

        They are in the order of the calls' instants.
        """
        key = (cid, timers)
        if key not in self._removals:
            names = ("cancel_timers",) if timers else ("unsubscribe", "remove_subscriptions_for_cid")
            mine = [call for call in self._of(*names) if call.arguments["cid"] == cid]
            self._removals[key] = sorted([*mine, *self._resets], key=lambda call: call.called_at)
        return self._removals[key]

    def covering(self, item: Item, cid: str, instance_id: str) -> Iterator[Call]:
        """Yield the calls that would cancel the timer, or end the instance's subscription to the message's topic."""
        timer = item.id in self.timers
        topic = None if timer else item.call.arguments["topic"]
        found = self.removals(cid, timers=timer)
        if timer and item.id in self.cancels:
            found = sorted([*found, *self.cancels[item.id]], key=lambda call: call.called_at)
        for call in found:
            if covers(call, cid, instance_id, timer=item.id if timer else None, topic=topic):
                yield call

    def place(self, place: Place) -> _Membership:
        """Return when an instance subscribed to a topic."""
        if place not in self._places:
            removals = [
                call for call in self.removals(place.cid, timers=False) if covers(call, *place[:2], topic=place.topic)
            ]
            subscribes = [
                call
                for call in self._of("subscribe")
                if tuple(call.arguments[name] for name in Place._fields) == place
            ]  # fmt: skip
            self._places[place] = _Membership(self, subscribes, removals)
        return self._places[place]

    def places_of(self, topic: str) -> list[Place]:
        """Return every place that was ever subscribed to the topic."""
        return [place for place in self._places if place.topic == topic]

    def overlaps(self, cid: str) -> Iterator[tuple[Run, Run]]:
        """Yield the pairs of deliveries of a conversation that surely ran at the same time."""
        last: Run | None = None
        for run in self.runs[cid]:
            if last is not None and run.began_at + self.skew < _ended(last):
                yield last, run
            if last is None or _ended(run) > _ended(last):
                last = run

    def _of(self, *operations: str) -> Iterator[Call]:
        return (call for call in self.calls if call.operation in operations)

    def _read_runs(self) -> None:
        # At each of these instants the clock showed no more than the reading. So a timer due later was claimed later.
        readings = sorted((call.clock_before, call.called_at) for call in self.calls if call.clock_before is not None)
        clock = [reading for reading, _ in readings]
        instants = list(accumulate((at for _, at in readings), max))
        first: dict[tuple[str, str, str], Run] = {}
        for cid, runs in self.runs.items():
            deliveries = self.deliveries[cid] = []
            previous: Run | None = None
            for run in runs:
                item = self._item_of(run)
                key = ("", "", run.id) if run.id in self.timers else (cid, run.instance_id, run.id)
                if item is None:
                    self.strange.append(run)
                elif key in first:
                    self.repeated.append((first[key], run))
                else:
                    first[key] = run
                    start = item.call.called_at
                    if previous is not None and cid not in self.overlapping:
                        start = max(start, previous.ended_at or start)
                    early = bisect_left(clock, item.earliest - self.clock_error)
                    if early:
                        start = max(start, instants[early - 1])
                    end = run.began_at + self.skew
                    deliveries.append(Delivery(run, item, previous, Claim(min(start, end), end, run)))
                previous = run

    def _item_of(self, run: Run) -> Item | None:
        """Return what the run delivers; None if that was accepted for another instance, or later, or never."""
        item = self.timers.get(run.id) or self.messages.get(run.id)
        if item is None or run.began_at + self.skew < item.call.called_at:
            return None
        given = item.call.arguments
        if run.id in self.timers and (given["cid"], given["instance_id"]) != (run.cid, run.instance_id):
            return None
        return item


class _Membership:
    """The times of one subscription, from the calls that added it and those that may have removed it."""

    def __init__(self, index: Index, subscribes: list[Call], removals: list[Call]) -> None:
        self._index = index
        self.subscribes = subscribes
        self.removals = removals
        # A removal that returned 0 has removed nothing, so `surely` ignores it. `possibly` counts it all the same,
        # because it needs only the chance of a removal. Both lists are in the order of the calls' instants.
        effective = [call for call in removals if call.result != 0]
        self._returned = sorted((index.end(call), call.called_at) for call in subscribes)
        self._last_called = list(accumulate((called for _, called in self._returned), max))
        self._called = [call.called_at for call in subscribes]
        self._last_end = list(accumulate(map(index.end, subscribes), max))
        self._removal_called = [call.called_at for call in effective]
        self._removal_last_end = list(accumulate(map(index.end, effective), max))
        self._all_called = [call.called_at for call in removals]
        self._first_end = list(accumulate(map(index.end, reversed(removals)), min))[::-1]

    def surely(self, call: Call, *, and_stays: bool = False) -> bool:
        """Tell whether the subscription existed during the whole call; with `and_stays`, also ever after."""
        before = bisect_left(self._returned, (call.called_at, _EARLIEST))
        if not before:
            return False
        since = self._last_called[before - 1]
        until = NEVER if and_stays else self._index.end(call)
        possible = bisect_right(self._removal_called, until)
        return not possible or self._removal_last_end[possible - 1] < since

    def possibly(self, call: Call) -> bool:
        """Tell whether the subscription may have existed at some instant of the call."""
        before = bisect_right(self._called, self._index.end(call))
        if not before:
            return False
        since = self._last_end[before - 1]
        after = bisect_right(self._all_called, since)
        return after == len(self._all_called) or self._first_end[after] >= call.called_at

    def latest(self, call: Call) -> Call:
        """Return the latest `subscribe` that the call may have seen; there is one where `possibly` is True."""
        return self.subscribes[bisect_right(self._called, self._index.end(call)) - 1]


def _ended(run: Run) -> float:
    return NEVER if run.ended_at is None else run.ended_at


def _item(call: Call) -> Item:
    delay = _nanoseconds(call.arguments.get("delay_ms", 0))
    earliest = -NEVER if call.clock_before is None else call.clock_before + delay
    latest = NEVER if call.clock_after is None or call.returned_at is None else call.clock_after + delay
    return Item(call, call.arguments["id"], delay, earliest, latest)


def _nanoseconds(delay_ms: float) -> int:
    """Return a delay as G11 defines it: the float's product, rounded up."""
    try:
        return max(0, ceil(delay_ms * 1_000_000))
    except OverflowError:  # the product of so large a float is infinite
        return int(Fraction(delay_ms) * 1_000_000)
