"""The parts of the engine, each on its own: the wheel, the topics, the ready order."""

from __future__ import annotations

import random
import sys
from functools import partial
from typing import Any

import pytest

from stube.testing._harness import Injector, tracing
from stube_backends.engine import EARLIEST
from stube_backends.engine._core import FOREVER
from stube_backends.engine._order import ReadyOrder
from stube_backends.engine._rings import unlink
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import (
    BEING_REMOVED,
    NONE_SERVED,
    FanOut,
    Publication,
    Subscription,
    Topic,
    TopicIndex,
)
from stube_backends.engine._wheel import LONG, SLOT_BITS, Slot, TimerWheel
from tests.backends.helpers import snapshots

SLOT = 1 << SLOT_BITS
NUMBER = 1  # of every publication; what is removed later has the same one


def timer_due(due: int) -> Timer:
    timer = Timer()
    timer.due = due
    timer.event = "e"
    timer.table = None
    return timer


def wheel_of(*dues: int) -> tuple[TimerWheel, list[Timer]]:
    wheel, timers = TimerWheel(), [timer_due(due) for due in dues]
    for timer in timers:
        wheel.add(timer)
    wheel._check()
    return wheel, timers


def take_due(wheel: TimerWheel, limit: int) -> Timer | None:
    """Take out the earliest timer that is due at `limit` or before; None when there is none."""
    timer = wheel.first_due(limit)
    if timer is not None:
        wheel.take_first()
    return timer


def remove(wheel: TimerWheel, timer: Timer) -> None:
    order = ReadyOrder()
    order.last_number = NUMBER
    order.wheel = wheel
    order.discard((timer,))
    order.arrivals.cut()
    order.early.cut()


def drained(wheel: TimerWheel, limit: int) -> list[Timer]:
    found = []
    while (timer := take_due(wheel, limit)) is not None:
        wheel._check()
        found.append(timer)
    return found


# Constants


def test_earliest_and_forever_are_beyond_every_clock_reading() -> None:
    """Fault: a clock reads an instant earlier than EARLIEST, or later than FOREVER."""
    assert EARLIEST < -(2**64)
    assert FOREVER > 2**64
    assert SLOT == 268_435_456
    assert LONG == 16 * SLOT


# The wheel


def test_timers_leave_the_wheel_when_they_are_due_and_no_earlier() -> None:
    """Fault: `first_due` excludes its limit, or returns a timer as soon as the slot of the timer begins (G9)."""
    wheel, (early, late) = wheel_of(SLOT + 5, 2 * SLOT)
    assert take_due(wheel, SLOT - 1) is None
    assert len(wheel.slots) == 2
    assert take_due(wheel, SLOT) is None
    assert (len(wheel.slots), wheel.number) == (1, 3)
    assert take_due(wheel, SLOT + 4) is None
    assert take_due(wheel, SLOT + 5) is early
    assert (early.after, wheel.number, wheel.order) == (None, None, [])
    assert take_due(wheel, 2 * SLOT - 1) is None
    assert len(wheel.slots) == 1
    assert take_due(wheel, 2 * SLOT) is late
    assert take_due(wheel, FOREVER) is None
    wheel._check()


def test_empty_rings_can_be_iterated() -> None:
    """Fault: a re-entrant call that finds a new ring before its first entry raises (G20)."""
    assert list(Slot(3)) == []
    assert list(ReadyOrder().arrivals) == []


def test_an_empty_wheel_returns_no_timer_and_no_instant() -> None:
    """Fault: an empty wheel raises, or returns an instant."""
    wheel = TimerWheel()
    assert take_due(wheel, FOREVER) is None
    assert wheel.next_instant() is None
    assert wheel.next_due() is None
    assert list(wheel) == []


def test_the_wheel_returns_the_next_instant_and_the_earliest_due_one() -> None:
    """Fault: the delivery thread sleeps past a due instant, or wakes up again and again before it (G10)."""
    wheel, timers = wheel_of(5 * SLOT + 9, 3 * SLOT + 7, 3 * SLOT + 5)
    assert (wheel.next_instant(), wheel.next_due()) == (3 * SLOT, 3 * SLOT + 5)
    assert take_due(wheel, 3 * SLOT) is None  # opens the slot
    assert (wheel.next_instant(), wheel.next_due()) == (3 * SLOT + 5, 3 * SLOT + 5)
    remove(wheel, timers[2])
    assert (wheel.next_instant(), wheel.next_due()) == (3 * SLOT + 7, 3 * SLOT + 7)
    assert wheel.order == [timers[1]]
    remove(wheel, timers[1])
    assert (wheel.next_instant(), wheel.next_due()) == (5 * SLOT, 5 * SLOT + 9)
    wheel.add(timer_due(4 * SLOT + 1))
    assert (wheel.next_instant(), wheel.next_due()) == (4 * SLOT, 4 * SLOT + 1)
    wheel.add(timer_due(4 * SLOT))
    wheel.add(timer_due(6 * SLOT))
    assert wheel.next_instant() == 4 * SLOT
    for timer in list(wheel):
        remove(wheel, timer)
        wheel._check()
    assert (wheel.next_instant(), wheel.next_due(), wheel.first) == (None, None, None)


def test_timers_of_one_instant_leave_in_the_order_of_acceptance() -> None:
    """Fault: sorting, or inserting into the open slot, reverses timers that are due at the same instant (G2)."""
    wheel, early = wheel_of(*[SLOT + 5] * 3)
    assert take_due(wheel, SLOT) is None
    late = [timer_due(SLOT + 5) for _ in range(3)]
    before, behind = timer_due(SLOT + 4), timer_due(SLOT + 6)
    for timer in (*late, behind, before):
        wheel.add(timer)
        wheel._check()
    assert drained(wheel, SLOT + 6) == [before, *early, *late, behind]


def test_the_wheel_passes_over_tombstones_of_the_open_slot() -> None:
    """Fault: the wheel returns a cancelled timer of the open slot, or does not find the live timer behind it."""
    wheel, timers = wheel_of(*(SLOT + number for number in range(9)))
    assert take_due(wheel, SLOT - 1) is None
    assert take_due(wheel, SLOT) is timers[0]
    for number in (1, 2, 3):
        remove(wheel, timers[number])
        wheel._check()
    assert len(wheel.order) == 8  # the tombstones are still there
    assert list(wheel) == timers[4:]
    assert wheel.next_instant() == SLOT + 4
    assert len(wheel.order) == 5  # now they have been removed
    remove(wheel, timers[4])
    assert take_due(wheel, SLOT + 4) is None
    assert drained(wheel, SLOT + 8) == timers[5:]
    assert (wheel.number, wheel.live, wheel.order) == (None, 0, [])


def test_tombstones_are_removed_when_they_outnumber_live_timers() -> None:
    """Fault: the wheel keeps more tombstones, or compacts at each cancel, which then costs O(size of the slot)."""
    wheel, timers = wheel_of(*(SLOT + number for number in range(10)))
    assert take_due(wheel, SLOT - 1) is take_due(wheel, SLOT - 1) is None
    take_due(wheel, SLOT)
    lengths = []
    for timer in timers[:0:-1]:  # from the latest one on, where `next_instant` does not remove tombstones
        remove(wheel, timer)
        wheel._check()
        lengths.append(len(wheel.order))
    assert lengths == [9, 9, 9, 9, 4, 4, 4, 1, 0]
    assert wheel.number is None


def test_taking_a_timer_compacts_a_slot_with_many_tombstones() -> None:
    """Fault: after a timer was taken, the open slot holds more tombstones than live timers (G13)."""
    wheel, timers = wheel_of(*(SLOT + number for number in range(6)))
    take_due(wheel, SLOT - 1)
    assert take_due(wheel, SLOT) is timers[0]
    for number in (5, 4):
        remove(wheel, timers[number])
    assert len(wheel.order) == 5
    assert take_due(wheel, SLOT + 1) is timers[1]
    assert len(wheel.order) == 4
    assert take_due(wheel, SLOT + 2) is timers[2]
    assert wheel.order == [timers[3]]
    assert take_due(wheel, SLOT + 3) is timers[3]
    assert (wheel.order, wheel.number) == ([], None)


def test_taking_a_batch_compacts_a_slot_with_many_tombstones() -> None:
    """Fault: after a batch was taken, the open slot holds more tombstones than live timers (G13)."""
    wheel, timers = wheel_of(*(SLOT + number for number in range(68)))
    assert take_due(wheel, SLOT - 1) is take_due(wheel, SLOT - 1) is None
    assert take_due(wheel, SLOT) is timers[0]
    for timer in timers[-2:]:
        remove(wheel, timer)
    assert len(wheel.order) == 67
    assert wheel.take_batch(2 * SLOT) == timers[64:0:-1]
    wheel._check()
    assert wheel.order == [timers[65]]


def test_a_timer_for_an_emptied_open_slot_gets_a_new_slot() -> None:
    """Fault: the wheel adds a timer to a slot that has been emptied, as if it were still open."""
    wheel, _ = wheel_of(SLOT + 1)
    assert len(drained(wheel, SLOT + 1)) == 1
    again = timer_due(SLOT + 2)
    wheel.add(again)
    assert (wheel.number, len(wheel.slots), wheel.live) == (None, 1, 0)
    assert drained(wheel, SLOT + 2) == [again]
    wheel, (timer,) = wheel_of(SLOT + 1)
    take_due(wheel, SLOT)
    remove(wheel, timer)
    assert (wheel.number, wheel.order) == (None, [])
    wheel.add(again)
    wheel._check()
    assert drained(wheel, SLOT + 2) == [again]


def test_timers_with_a_long_wait_share_a_coarse_slot_until_it_begins() -> None:
    """Fault: the wheel makes a fine slot for every distant timer, or dissolves a coarse slot too early or too late."""
    wheel = TimerWheel()
    for number in range(16):
        wheel.add(timer_due(2 * LONG + number * SLOT), LONG)
    assert len(wheel.slots) == 1
    wheel.add(timer_due(2 * LONG + 5), LONG - 1)
    wheel._check()
    assert len(wheel.slots) == 2
    assert take_due(wheel, 2 * LONG - 1) is None
    assert (len(wheel.slots), wheel.next_instant()) == (2, 2 * LONG)
    assert len(drained(wheel, 2 * LONG)) == 1
    assert (len(wheel.slots), wheel.next_instant()) == (15, 2 * LONG + 5)
    assert len(drained(wheel, 3 * LONG)) == 16


def test_equal_timers_of_a_coarse_slot_leave_before_those_of_fine_slots() -> None:
    """Fault: a timer leaves after one that was accepted later, or the timers of the coarse slot leave in reverse order
    (G2)."""
    wheel, due = TimerWheel(), 2 * LONG + SLOT + 7
    far, near = [timer_due(due) for _ in range(3)], [timer_due(due) for _ in range(3)]
    for timer in far:
        wheel.add(timer, LONG)
    for timer in near:
        wheel.add(timer, LONG - 1)
    before, behind = timer_due(due - 1), timer_due(due + 1)
    wheel.add(before, 1)
    wheel.add(behind, LONG)
    assert drained(wheel, due + 1) == [before, *far, *near, behind]


def test_next_due_finds_the_earliest_timer_in_a_fine_or_coarse_slot() -> None:
    """Fault: the wheel searches only the coarse slot, or leaves out some of the fine slots within it (G10)."""
    wheel, near = TimerWheel(), timer_due(2 * LONG + 3 * SLOT)
    wheel.add(timer_due(2 * LONG + 5 * SLOT), LONG)
    assert wheel.next_due() == 2 * LONG + 5 * SLOT
    for later in (2 * LONG + 5 * SLOT + 1, 2 * LONG + 6 * SLOT, 3 * LONG):
        wheel.add(timer_due(later))
        assert wheel.next_due() == 2 * LONG + 5 * SLOT
    wheel.add(timer_due(2 * LONG + 5 * SLOT - 1))
    wheel.add(timer_due(2 * LONG + 5 * SLOT - 2))
    assert wheel.next_due() == 2 * LONG + 5 * SLOT - 2
    wheel.add(near)
    wheel.add(timer_due(2 * LONG + 4 * SLOT))
    assert wheel.next_due() == near.due
    wheel.add(timer_due(2 * LONG + 2 * SLOT), LONG)
    assert (wheel.next_instant(), wheel.next_due()) == (2 * LONG, 2 * LONG + 2 * SLOT)


def test_iterating_a_wheel_keeps_equal_timers_in_order() -> None:
    """Fault: of equal timers, those of a coarse slot come after those of a fine slot that was made earlier, or those of
    the open slot come in reverse order. Then recovery, which sorts timers by due instant, puts them in a wrong order
    (G2)."""
    wheel, due = TimerWheel(), 2 * LONG + 7
    wheel.add(timer_due(due - 1))  # the wheel has the fine slot first
    far, near = timer_due(due), timer_due(due)
    wheel.add(far, LONG)
    wheel.add(near)
    assert list(wheel)[::2] == [far, near]
    first, second = timer_due(5), timer_due(5)
    wheel.add(first)
    wheel.add(second)
    assert take_due(wheel, 4) is None
    assert list(wheel)[:2] == [first, second]


@pytest.mark.parametrize("wait", [0, LONG])
def test_an_exception_while_a_slot_opens_keeps_all_timers_in_order(wait: int) -> None:
    """Fault: at some line timers are in no ring, so recovery finds them only through their groups, in another order
    (G2). The test raises at every line of the opening."""
    for at in range(1000):
        wheel = TimerWheel()
        timers = [timer_due(LONG + 9) for _ in range(4)]
        for timer in timers:
            wheel.add(timer, wait)
        if wait:
            timers.append(timer_due(LONG + 9))
            wheel.add(timers[-1])
        try:
            with tracing(Injector(at, interrupt)):
                wheel._open_earliest()
        except KeyboardInterrupt:
            found = wheel.order[::-1] + list(wheel)
            assert sorted(map(id, found)) == sorted(map(id, timers)) or len(found) > len(timers)
            assert [*dict.fromkeys(found)] == timers
        else:
            assert at > 10
            return


def interrupt() -> None:
    """Raise an asynchronous exception, as a signal handler may."""
    raise KeyboardInterrupt


def test_iterating_a_slot_raises_when_its_timer_moves_to_another_slot() -> None:
    """Fault: the iteration follows the other ring without end, because it never reaches its own head (G20)."""
    wheel, timers = TimerWheel(), [timer_due(LONG + 9) for _ in range(4)]
    for timer in timers:
        wheel.add(timer, LONG)
    (slot,) = wheel.slots.values()
    reader = iter(slot)
    assert [next(reader), next(reader)] == timers[:2]
    assert take_due(wheel, LONG) is None
    with pytest.raises(RuntimeError, match=r"^timers have moved to another slot$"):
        list(reader)


@pytest.mark.parametrize("first", ["near", "middle"])
def test_the_numbers_of_removed_slots_are_removed_too(first: str) -> None:
    """Fault: the wheel removes old numbers only when the removed slot is not the earliest (G13)."""
    wheel = TimerWheel()
    near, middle = ([timer_due(SLOT * (start + number)) for number in range(200)] for start in (1, 300))
    for timer in (*near, *middle, timer_due(SLOT * 600), timer_due(SLOT * 299)):
        wheel.add(timer)
    for timer in (*middle, *near) if first == "middle" else (*near, *middle):
        remove(wheel, timer)
        wheel._check()
    assert len(wheel.numbers) + len(wheel.fresh) <= 36


@pytest.mark.parametrize("sorted_in", [True, False])
@pytest.mark.parametrize("count", [34, 35])  # so many numbers may stay with one slot, and one more may not
def test_an_emptied_wheel_keeps_no_numbers(count: int, sorted_in: bool) -> None:
    """Fault: numbers of removed slots stay, those that have been sorted in or those that have not (G13)."""
    wheel, timers = wheel_of(*(SLOT * number for number in range(1, count + 1)))
    if sorted_in:
        remove(wheel, timers.pop(0))
        assert (len(wheel.numbers), wheel.fresh) == (count - 1, [])
    for timer in reversed(timers):  # the earliest last, because the numbers before it are removed when it is
        remove(wheel, timer)
        wheel._check()
    assert (list(wheel.numbers), wheel.fresh) == ([], [])


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("how", ["cancelled", "delivered", "cancelled open"])
@pytest.mark.parametrize("wait", [0, LONG])
def test_timers_that_leave_the_wheel_need_no_garbage_collector(how: str, wait: int) -> None:
    """Fault: the wheel does not cut a ring, so its timers and their neighbours wait for the collector (G13)."""
    wheel, timers = TimerWheel(), [timer_due(SLOT + number // 2) for number in range(6)] + [timer_due(5 * SLOT)]
    for timer in timers:
        wheel.add(timer, wait)
    if how == "delivered":
        drained(wheel, 9 * SLOT)
    else:
        if how == "cancelled open":
            take_due(wheel, SLOT - 1)
            wheel._open_earliest()
        for timer in timers:
            remove(wheel, timer)
            assert timer.after is None
            assert not hasattr(timer, "before")
    assert (len(wheel.slots), wheel.order, wheel.live) == (0, [], 0)


def test_an_emptied_index_of_slots_releases_its_memory() -> None:
    """Fault: the empty table stays as large as it ever was (G13)."""
    wheel, timers = wheel_of(*(SLOT * number for number in range(1, 2000)))
    table = sys.getsizeof(wheel.slots)
    for timer in timers:
        remove(wheel, timer)
    assert sys.getsizeof(wheel.slots) < table / 10
    wheel.add(timers[0])
    assert drained(wheel, SLOT) == [timers[0]]


def test_random_timers_leave_in_the_order_of_their_instants() -> None:
    """Fault: after some sequence of operations a timer leaves early, late or in another order than in the model."""
    chance = random.Random(7)
    wheel, model, now = TimerWheel(), [], 0
    for number in range(4000):
        if chance.random() < 0.6:
            wait = chance.choice((1, 3, SLOT // 3, SLOT, 5 * SLOT, 5 * SLOT + 1, LONG - 1, LONG, LONG + 1, 3 * LONG))
            timer = timer_due(now + wait)
            wheel.add(timer, wait)
            model.append((timer.due, number, timer))
        elif model and chance.random() < 0.5:
            _, _, timer = model.pop(chance.randrange(len(model)))
            remove(wheel, timer)
        else:
            now += chance.choice((0, 1, SLOT // 4, 2 * SLOT, LONG - 1))
            expected = sorted(entry for entry in model if entry[0] <= now)
            model = [entry for entry in model if entry[0] > now]
            assert drained(wheel, now) == [timer for _, _, timer in expected]
        assert wheel.next_due() == min((due for due, _, _ in model), default=None)
        assert sorted(map(id, wheel)) == sorted(id(timer) for _, _, timer in model)
        wheel._check()


# Topics


def index_of(*cids: str, topic: str = "t") -> TopicIndex:
    index = TopicIndex()
    for cid in cids:
        join(index, cid, topic=topic, event=("said", cid))
    index._check()
    return index


def join(index: TopicIndex, cid: str, instance_id: str = "i", topic: str = "t", event: Any = "said") -> Subscription:
    entry = Subscription(cid, instance_id, topic, event)
    index.add(entry)
    return entry


def leave(index: TopicIndex, cid: str, topic: str = "t") -> None:
    entries = index.entries()[topic]
    index.remove([entry for entry in entries if entry.cid == cid and entry.name is not None], NUMBER)


def topic_of(index: TopicIndex, name: str = "t") -> Topic:
    topic = index.topics[name]
    assert isinstance(topic, Topic)
    return topic


def names(targets: list[Subscription]) -> list[str]:
    return [target.cid for target in targets]


def test_a_topic_is_its_only_subscription_until_a_second_one_joins() -> None:
    """Fault: the first subscription is lost when the second joins, or a field or a figure is wrong."""
    index = TopicIndex()
    first = join(index, "c", "j", "t", ("heard", 1))
    assert index.topics == {"t": first}
    assert (index.count, index.live("t"), index.live("none")) == (1, 1, 0)
    assert (first.cid, first.instance_id, first.topic, first.event, first.name) == (
        "c",
        "j",
        "t",
        ("heard", 1),
        "heard",
    )
    second, other = join(index, "c", "i"), join(index, "c", "i", "u")
    assert topic_of(index).entries == [first, second]
    assert index.entries() == {"t": [first, second], "u": [other]}
    assert index.snapshot() == {"t": {("c", "j"): ("heard", 1), ("c", "i"): "said"}, "u": {("c", "i"): "said"}}
    assert (index.count, index.live("t"), index.live("u")) == (3, 2, 1)
    index._check()


def test_the_first_subscriber_of_a_topic_begins_a_generation_and_no_other_does() -> None:
    """Fault: a publisher of several shards misses the shard that just got the topic, or looks again in vain (G16)."""
    index = index_of("a")
    first = index.generation.token
    for cid in ("b", "c"):
        join(index, cid)
        assert index.generation.token is first
    join(index, "b", topic="u")
    second = index.generation.token
    assert second is not first
    leave(index, "b", "u")
    assert index.generation.token is second
    join(index, "b", topic="u")
    assert index.generation.token is not second


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_removal_returns_the_events_and_leaves_nothing(size: int) -> None:
    """Fault: `remove` releases an event itself, or keeps a topic without a live subscription (G13, G20)."""
    index = index_of(*(f"c{number}" for number in range(size)))
    entries = list(index.entries()["t"])
    other = join(index, "other", topic="u")
    assert index.remove(entries, NUMBER) == [("said", f"c{number}") for number in range(size)]
    assert [(entry.event, entry.name) for entry in entries] == [(None, None)] * size
    index._check()
    assert (index.topics, index.count) == ({"u": other}, 1)
    assert index.remove([], NUMBER) == []
    assert index.remove([other], NUMBER) == ["said"]
    assert (index.topics, index.count) == ({}, 0)


def test_an_emptied_index_of_topics_releases_its_memory() -> None:
    """Fault: the empty table stays as large as it ever was (G13)."""
    index = TopicIndex()
    entries = [join(index, f"c{number}", topic=f"t{number}") for number in range(2000)]
    table = sys.getsizeof(index.topics)
    for entry in entries:
        index.remove([entry], NUMBER)
    assert sys.getsizeof(index.topics) < table / 10


def test_a_removal_of_several_subscriptions_marks_all_before_one_is_a_tombstone() -> None:
    """Fault: the delivery thread, which reads the names without the lock, passes one over and delivers to another."""
    for at in range(200):
        index = index_of("c")
        join(index, "c", "j")
        join(index, "c", topic="u")
        entries = [entry for entries in index.entries().values() for entry in entries]
        seen: list[str | None] = []
        injector = Injector(at, partial(_read_names, entries, seen))
        injector.run(partial(index.remove, entries, NUMBER))
        if not injector.fired:
            assert at > 20
            return
        assert not {None, "said"} <= set(seen), f"{seen} at {injector.fired}"
    pytest.fail("the removal did not end")


def _read_names(entries: list[Subscription], seen: list[str | None]) -> None:
    seen.extend(entry.name for entry in entries)


def test_a_part_of_a_publication_has_the_same_message_and_instant() -> None:
    """Fault: a message that is parked for one conversation loses what its trace or its order needs."""
    index = index_of("a", "b")
    whole = Publication()
    whole.due, whole.topic_name, whole.topic, whole.message = 7, "t", topic_of(index), "hello"
    whole.number = 3
    part = whole.part_for(topic_of(index).entries[:1])
    assert (part.due, part.topic_name, part.topic, part.message) == (7, "t", None, "hello")
    assert (names(part.entries), part.length, part.targeted) == (["a"], 1, 1)


def waiting_publication(index: TopicIndex, topic: str = "t") -> Publication:
    """Let a publication wait, as `Engine.publish` does."""
    publication = Publication()
    publication.topic = index.publishable(topic)
    assert publication.topic is not None
    publication.position, publication.served, publication.number = 0, NONE_SERVED, NUMBER
    publication.topic.add(publication)
    return publication


def handed_out(publication: Publication) -> list[Subscription]:
    """Return the live targets of a publication, which leaves the order after that."""
    targets, end = publication.slice(publication.length)
    live = [target for target in targets if target.name is not None]
    assert (publication.waiting(), publication.length) == (live, end)
    assert publication.topic is not None
    publication.topic.let_go(publication)
    return live


def test_a_publication_targets_the_live_subscribers_of_its_snapshot() -> None:
    """Fault: a target was subscribed later, was removed, or was removed and subscribed again (G5, G16)."""
    index = index_of("a", "b", "c", "d")
    topic = topic_of(index)
    waiting = waiting_publication(index)
    entries = waiting.entries
    join(index, "late")
    leave(index, "b")
    join(index, "b")
    index._check()
    assert topic.entries is entries
    assert names(handed_out(waiting)) == ["a", "c", "d"]
    assert snapshots(topic) == (0, 0)
    assert names(topic.entries) == ["a", "c", "d", "late", "b"]
    index._check()


def test_a_publication_targets_no_later_subscriber_of_a_full_list() -> None:
    """Fault: when the list has no tombstone, later subscribers are targets, too (G16)."""
    index = index_of("a", "b")
    topic = topic_of(index)
    first, second = waiting_publication(index), waiting_publication(index)
    join(index, "late")
    third = waiting_publication(index)
    assert snapshots(topic) == (3, 3)
    assert names(handed_out(first)) == ["a", "b"]
    assert snapshots(topic) == (2, 3)
    targets = handed_out(second)
    assert names(targets) == ["a", "b"]
    assert targets is not topic.entries
    assert names(handed_out(third)) == ["a", "b", "late"]
    assert snapshots(topic) == (0, 0)


def test_sixty_four_subscriptions_share_a_number() -> None:
    """Fault: each has a number of its own, which costs its memory, or so many share one that finding a subscription in
    a topic takes time in proportion to them."""
    index = index_of(*(f"c{number}" for number in range(200)))
    numbers = [entry.joined for entry in topic_of(index).entries]
    assert numbers == [0] * 64 + [64] * 64 + [128] * 64 + [192] * 8


def test_a_publication_with_an_old_list_does_not_count_for_the_new_one() -> None:
    """Fault: a publication with the replaced list still counts as waiting for the new list."""
    index = index_of("a", "b", "c", "d", "e")
    topic = topic_of(index)
    waiting = waiting_publication(index)
    old = waiting.entries
    for cid in ("a", "b", "c"):
        leave(index, cid)
        index._check()
    assert topic.entries is not old
    assert names(topic.entries) == ["d", "e"]
    assert len(old) == 5
    newer = waiting_publication(index)
    assert names(handed_out(waiting)) == ["d", "e"]
    assert snapshots(topic) == (1, 2)
    assert names(handed_out(newer)) == ["d", "e"]


def test_a_removed_later_subscription_leaves_no_tombstone() -> None:
    """Fault: a waiting publication keeps tombstones at the end of the list, or loses entries of its own (G13)."""
    index = index_of("a", "b", "c")
    topic = topic_of(index)
    waiting = waiting_publication(index)
    entries = waiting.entries
    for cid in ("late", "later"):
        join(index, cid)
    leave(index, "later")
    assert len(entries) == 4
    leave(index, "c")  # in the snapshot, so it stays as a tombstone
    leave(index, "late")
    assert (len(entries), topic.entries is entries) == (3, True)
    assert names(handed_out(waiting)) == ["a", "b"]
    assert names(topic.entries) == ["a", "b"]


def test_a_replaced_list_keeps_only_the_entries_of_its_publications() -> None:
    """Fault: the old list keeps entries that no publication refers to (G13)."""
    index = index_of("a", "b")
    topic = topic_of(index)
    waiting = waiting_publication(index)
    old = waiting.entries
    for number in range(4):
        join(index, f"l{number}")
    for cid in ("a", "b", "l0", "l1"):
        leave(index, cid)
        index._check()
    assert topic.entries is not old
    assert (len(old), snapshots(topic)) == (waiting.length, (0, 0))
    assert names(topic.entries) == ["l2", "l3"]
    assert handed_out(waiting) == []


def test_the_list_of_an_ended_topic_keeps_only_published_entries() -> None:
    """Fault: a publication keeps entries alive that were added to the list after it (G13)."""
    index = index_of("a", "b")
    topic = topic_of(index)
    waiting = waiting_publication(index)
    entries = waiting.entries
    join(index, "late")
    for cid in ("a", "b", "late"):
        leave(index, cid)
    assert "t" not in index.topics
    assert len(entries) == waiting.length == 2
    assert handed_out(waiting) == []
    assert (topic.live, snapshots(topic)) == (0, (0, 0))
    assert len(entries) == 2


@pytest.mark.parametrize(("size", "kept"), [(32, False), (33, False), (34, True), (35, True)])
def test_a_snapshot_leaves_out_removed_subscriptions(size: int, kept: bool) -> None:
    """Fault: the snapshot shows a tombstone, whose event is None, or a topic without live subscriptions (G16)."""
    index = index_of(*(f"c{number}" for number in range(size)))
    leave(index, "c3")
    assert (len(topic_of(index).entries) == size) is kept
    assert ("c3", "i") not in index.snapshot()["t"]
    assert len(index.snapshot()["t"]) == size - 1
    for entry in topic_of(index).entries:
        entry.event = None  # a re-entrant call that interrupts a removal may find them like this
    assert index.snapshot() == {}


@pytest.mark.parametrize(("size", "kept"), [(32, False), (33, False), (34, True), (35, True)])
def test_a_small_topic_keeps_no_tombstone_and_a_large_one_few(size: int, kept: bool) -> None:
    """Fault: a tombstone stays in a small topic, or each removal copies the list of a large one (G13, G14)."""
    index = index_of(*(f"c{number}" for number in range(size)))
    topic = topic_of(index)
    leave(index, "c0")
    index._check()
    assert len(topic.entries) == size - (not kept)
    leave(index, f"c{size - 1}")  # the list loses its last entry without a copy
    assert topic.entries[-1].cid == f"c{size - 2}"
    lengths = []
    for number in range(1, size - 2):
        leave(index, f"c{number}")
        index._check()
        lengths.append(len(topic.entries))
    assert lengths[-1] == topic.live == 1


def test_tombstones_of_a_large_topic_never_outnumber_live_entries() -> None:
    """Fault: the topic compacts its list one removal too early or too late (G14)."""
    index = index_of(*(f"c{number}" for number in range(100)))
    topic = topic_of(index)
    entries = topic.entries
    for number in range(50):
        leave(index, f"c{number}")
    assert topic.entries is entries
    leave(index, "c50")
    assert topic.entries is not entries
    assert len(topic.entries) == topic.live == 49


def test_a_publication_does_not_compact_a_large_topic_with_one_tombstone() -> None:
    """Fault: every publication copies the list of a large topic that has one tombstone (G14)."""
    index = index_of(*(f"c{number}" for number in range(100)))
    topic = topic_of(index)
    leave(index, "c0")
    waiting = waiting_publication(index)
    entries = waiting.entries
    assert len(handed_out(waiting)) == 99
    assert topic.entries is entries
    assert len(entries) == 100


# The ready order


def arrival(due: int) -> Publication:
    publication = Publication()
    publication.due, publication.number = due, NUMBER
    return publication


def test_arrivals_and_timers_are_merged_by_their_instants() -> None:
    """Fault: an arrival begins before a timer due earlier or at the same instant, or after a later one (G2)."""
    order = ReadyOrder()
    order.last_number = NUMBER
    timers = [timer_due(due) for due in (SLOT + 1, SLOT + 3, SLOT + 5)]
    for timer in timers:
        order.wheel.add(timer)
    order.last_accepted_ns = SLOT + 3
    arrivals: list[Any] = [arrival(SLOT + 2), timer_due(SLOT + 3), arrival(SLOT + 3)]
    for entry in arrivals:
        order.arrivals.append_timer(entry) if isinstance(entry, Timer) else order.arrivals.append(entry)
    order._check()
    assert order.arrivals.is_empty() is False
    assert order.next_instant() == EARLIEST
    expected = [timers[0], arrivals[0], timers[1], arrivals[1], arrivals[2]]
    taken: list[Any] = []
    for _ in expected:
        entry = order.take(SLOT + 4)
        if isinstance(entry, Publication):
            assert order.take(SLOT + 4) is entry  # it stays until it is closed
            unlink(entry)
        taken.append(entry)
        order._check()
        assert taken[-1] is not None
        assert taken[-1].after is None
        assert not hasattr(taken[-1], "before")
    assert taken == expected
    assert order.take(SLOT + 4) is None
    assert order.arrivals.is_empty() is True
    assert order.next_instant() == SLOT + 5
    assert order.take(SLOT + 5) is timers[2]
    assert order.next_instant() is None


def test_a_batch_of_cancelled_timers_only_is_passed_over() -> None:
    """Fault: an empty batch begins, or the live timer behind the cancelled ones does not."""
    order = ReadyOrder()
    order.last_number = NUMBER
    timers = [timer_due(SLOT + number) for number in range(5)]
    for timer in timers:
        order.wheel.add(timer)
    assert order.take(SLOT) is timers[0]  # now the slot is open
    order.discard(timers[1:3])
    assert len(order.wheel.order) == 4  # the tombstones are still there
    assert order.take(SLOT + 2) is None
    assert order.take(SLOT + 3) is timers[3]
    order._check()


def test_an_order_is_ready_from_the_earliest_due_instant_on() -> None:
    """Fault: `settle` does not wait for what is due now, or waits for a timer that is not due yet."""
    order = ReadyOrder()
    order.last_number = NUMBER
    assert order.is_ready(FOREVER) is False
    order.wheel.add(timer_due(SLOT + 5))
    assert [order.is_ready(now) for now in (SLOT - 1, SLOT, SLOT + 4, SLOT + 5)] == [False, False, False, True]
    order.wheel.add(timer_due(SLOT))  # when its slot begins
    assert [order.is_ready(now) for now in (SLOT - 1, SLOT)] == [False, True]
    order.arrivals.append(arrival(SLOT - 2))
    assert order.is_ready(SLOT - 2) is True


@pytest.mark.usefixtures("uncollected")
def test_a_cleared_order_is_empty_and_its_entries_are_not_linked() -> None:
    """Fault: an entry stays linked to another one, so it begins later or waits for the collector (G13, G18)."""
    order = ReadyOrder()
    order.last_number = NUMBER
    timers = [timer_due(due) for due in (SLOT, SLOT + 1, SLOT + 2, 5 * SLOT, 5 * SLOT)]
    for timer in timers:
        order.wheel.add(timer)
    assert order.take(SLOT) is timers.pop(0)  # now the slot of the next two is open
    arrivals: list[Any] = [arrival(SLOT), timer_due(SLOT), arrival(SLOT)]
    for entry in arrivals:
        order.arrivals.append_timer(entry) if isinstance(entry, Timer) else order.arrivals.append(entry)
    gone = order.clear()
    assert gone[:3] == arrivals
    assert sorted(map(id, gone[3:])) == sorted(map(id, timers))
    for entry in gone:
        assert entry.after is None
        assert not hasattr(entry, "before") or entry in timers[:2]
    order._check()
    assert (list(order.arrivals), list(order.wheel), order.next_instant()) == ([], [], None)
    order.early.cut()
    del order.arrivals.before, order.arrivals.after  # an empty ring refers to itself, which is a cycle


@pytest.mark.usefixtures("uncollected")
def test_clearing_an_empty_order_leaves_nothing_for_the_collector() -> None:
    """Fault: every reset leaves an empty ring, which refers to itself, to the collector (G13)."""
    order = ReadyOrder()
    order.last_number = NUMBER
    assert order.clear() == []
    order.early.cut()
    del order.arrivals.before, order.arrivals.after


def subscriptions(*cids: str) -> list[Subscription]:
    return [Subscription(cid, "i", "t", "said") for cid in cids]


def fan_out_over(targets: list[Subscription]) -> FanOut:
    publication = arrival(0)
    publication.topic_name = "t"
    publication.message = "m"
    return FanOut(publication, targets)


def test_a_fan_out_knows_its_current_target_and_the_remaining_ones() -> None:
    """Fault: the current target or the remaining targets are off by one."""
    targets = subscriptions("a", "b", "c")
    fan_out = fan_out_over(targets)
    assert (fan_out.begun, fan_out.current, fan_out.total, fan_out.accounted, fan_out.decided) == (0, None, 3, 0, 0)
    assert names(fan_out.rest()) == ["a", "b", "c"]
    next(fan_out.iterator)
    assert (fan_out.begun, fan_out.current) == (1, targets[0])
    targets[1].name = None
    assert names(fan_out.rest()) == ["c"]
    next(fan_out.iterator)
    next(fan_out.iterator)
    assert (fan_out.begun, fan_out.current, fan_out.rest()) == (3, targets[2], [])
    assert next(fan_out.iterator, None) is None
    assert (fan_out.begun, fan_out.current) == (3, targets[2])


def test_a_stopped_fan_out_marks_every_target_and_is_not_advanced() -> None:
    """Fault: a target begins after the reset (G18); or two threads advance one iterator, which is not atomic without
    the global interpreter lock."""
    targets = subscriptions("a", "b", "c")
    targets[1].name = targets[1].event = None
    fan_out = fan_out_over(targets.copy())
    next(fan_out.iterator)
    assert fan_out.stop() == ["said", "said"]
    assert [target.name for target in targets] == [BEING_REMOVED, None, BEING_REMOVED]
    assert [target.event for target in targets] == [None, None, None]
    assert (fan_out.begun, fan_out.current, fan_out.rest()) == (1, targets[0], [])


def test_an_event_name_equal_to_the_removal_mark_is_not_the_mark() -> None:
    """Fault: the engine compares the mark by value, so an event of a host with that name ends a fan-out."""
    assert BEING_REMOVED == "being removed"
    assert sys.intern("being removed") is not BEING_REMOVED


@pytest.mark.parametrize("begun", range(4))
def test_a_stopped_fan_out_still_knows_its_current_target(begun: int) -> None:
    """Fault: after a reset `inspect` shows the running delivery for another conversation, or for none."""
    targets = subscriptions("a", "b", "c")
    fan_out = fan_out_over(targets.copy())
    for _ in range(begun):
        next(fan_out.iterator)
    fan_out.stop()
    assert fan_out.current is (targets[begun - 1] if begun else None)


def test_live_targets_are_claimed_in_order_and_removed_ones_counted() -> None:
    """Fault: a removed target is claimed, its message gets no fate, or the fan-out ends at it (G5)."""
    targets = subscriptions("a", "b", "c", "d")
    targets[1].name = targets[3].name = None
    fan_out = fan_out_over(targets)
    claimed = [(target.cid, name) for target, name in fan_out.claim_each(lambda: pytest.fail("waited"))]
    assert claimed == [("a", "said"), ("c", "said")]
    assert (fan_out.cancelled, fan_out.dropped, fan_out.begun) == (2, 0, 4)


def test_the_delivery_thread_waits_until_a_target_has_been_removed() -> None:
    """Fault: of targets that are removed together the delivery thread passes over one and claims another (G5)."""
    targets = subscriptions("a", "b", "c")
    targets[0].name = BEING_REMOVED

    def wait() -> None:
        targets[0].name = targets[1].name = None

    fan_out = fan_out_over(targets)
    assert [target.cid for target, _ in fan_out.claim_each(wait)] == ["c"]
    assert (fan_out.cancelled, fan_out.dropped) == (2, 0)


def test_a_fan_out_that_a_reset_has_stopped_ends_at_the_next_target() -> None:
    """Fault: the fan-out continues after the reset, or counts targets that the reset has counted (G18)."""
    targets = subscriptions("a", "b", "c")
    fan_out = fan_out_over(targets)
    claims = fan_out.claim_each(lambda: None)
    assert next(claims)[0] is targets[0]
    fan_out.stop()
    assert list(claims) == []
    assert (fan_out.cancelled, fan_out.dropped, fan_out.begun) == (0, 1, 2)
