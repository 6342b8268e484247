"""The records of conversations, and the timers as their own handles."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from stube import Event
from stube_backends.engine._records import FEW, Backlog, Records
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import Subscription


class Owner:
    """An owner that records the timers whose handles were cancelled."""

    def __init__(self) -> None:
        self.asked: list[Timer] = []

    def cancel_timer(self, timer: Timer) -> bool:
        self.asked.append(timer)
        return True


def nobody() -> None:
    """Return no owner."""


def pending(spec: Any, owner: Any = nobody) -> Timer:
    records = Records()
    records.owner = owner
    return Timer.pending_admission(records, "c", "i", spec)


def timer_of(records: Records, cid: str = "c", instance_id: str = "i") -> Timer:
    timer = Timer()
    timer.cid, timer.instance_id, timer.event = cid, instance_id, "e"
    records.add_timer(timer)
    return timer


def topic_of(records: Records, cid: str = "c", instance_id: str = "i", topic: str = "t") -> Subscription:
    entry = Subscription(cid, instance_id, topic, "said")
    records.add_subscription(entry)
    return entry


# Timers as handles


def test_the_repr_of_a_timer_shows_its_names_but_no_payload() -> None:
    """Fault: the repr shows a payload, or raises when the timer is over."""
    timer = pending(("tick", object()))
    assert repr(timer) == "<Timer 'tick' of 'c', 'i'>"
    timer.table = timer.event = None
    assert repr(timer) == "<Timer: over>"


def test_a_handle_asks_its_owner_only_until_the_timer_is_over() -> None:
    """Fault: the handle does not ask its owner, returns another answer, or raises when the timer or the owner is
    gone."""
    owner = Owner()
    timer = pending("e", weakref.ref(owner))
    assert timer.cancel() is True
    assert owner.asked == [timer]
    table, timer.table = timer.table, None
    assert timer.cancel() is False
    timer.table = table
    del owner
    assert timer.cancel() is False


@pytest.mark.parametrize(
    ("spec", "event"),
    [
        ("tick", Event("i", "tick")),
        (("tick",), Event("i", "tick")),
        (("tick", 1), Event("i", "tick", 1)),
        (("tick", 1, 2), Event("i", "tick", (1, 2))),
    ],
)
def test_a_claim_returns_the_delivery_and_empties_the_timer(spec: Any, event: Event) -> None:
    """Fault: the claim returns another event, or the handle keeps a payload or a registry alive (G13)."""
    timer = pending(spec)
    timer.due = 7
    cid, claimed = timer.claim()
    assert (cid, claimed, claimed.due) == ("c", event, 7)
    assert (timer.event, timer.table, timer.cancel()) == (None, None, False)


@pytest.mark.usefixtures("uncollected")
def test_a_timer_pending_admission_needs_no_garbage_collector() -> None:
    """Fault: a timer that is in no chain yet refers to itself, and waits for the collector (G13)."""
    pending("e")


# Timers in records


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 3 * FEW])
@pytest.mark.parametrize("instances", [1, 2, 3 * FEW])
def test_the_timers_of_a_conversation_and_of_one_instance_are_found(count: int, instances: int) -> None:
    """Fault: a timer is lost, or found under another instance, when the one chain is taken apart."""
    records = Records()
    timers = [timer_of(records, "c", f"i{number % instances}") for number in range(count)]
    foreign = timer_of(records, "d", "i0")
    records._check()
    record = records.find("c")
    assert (record is None) is (count == 1)
    if record is not None:
        assert isinstance(record.timers, dict) is (count > FEW and instances > 1)
    assert {*records.timers("c")} == {*timers}
    for number in range(min(instances, count)):
        assert records.timers("c", f"i{number}") == timers[number::instances][::-1]
    assert records.timers("c", "nobody") == records.timers("nobody") == records.timers("nobody", "i0") == []
    assert records.timers("d") == records.timers("d", "i0") == [foreign]


@pytest.mark.parametrize("before", [1, FEW - 1, FEW, 3 * FEW])
def test_another_instance_may_join_a_chain_of_any_length(before: int) -> None:
    """Fault: a chain of one instance is walked when another one joins, or does not become one of several (G14)."""
    records = Records()
    first = [timer_of(records, "c", "i") for _ in range(before)]
    second = [timer_of(records, "c", "j") for _ in range(2)]
    third = timer_of(records, "c", "i")
    records._check()
    record = records.find("c")
    assert record is not None
    assert isinstance(record.timers, dict) is (before > FEW - 3)
    assert records.timers("c", "i") == [third, *first[::-1]]
    assert records.timers("c", "j") == second[::-1]


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 2 * FEW])
def test_a_removed_timer_leaves_its_conversation_and_is_cut(count: int) -> None:
    """Fault: a removed timer keeps its links, which keep the others alive; or the conversation stays when it is empty
    (G13)."""
    chance = random.Random(count)
    for _ in range(20):
        records = Records()
        timers = [timer_of(records, "c", chance.choice("ij")) for _ in range(count)]
        chance.shuffle(timers)
        while timers:
            timer = timers.pop()
            records.remove_timers((timer,))
            timer.table = None
            records._check()
            assert (timer.older, timer.newer) == (None, None)
            assert {*records.timers("c")} == {*timers}
        assert records.by_cid == {}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("instance_id", [None, "i", "j", "nobody"])
@pytest.mark.parametrize("count", [1, 2, 5, 3 * FEW])
def test_take_removes_all_timers_of_a_conversation_or_an_instance(count: int, instance_id: str | None) -> None:
    """Fault: `take_timers` removes timers of another instance, leaves some, or does not cut them (G13)."""
    records = Records()
    timers = [timer_of(records, "c", "ij"[number % 2]) for number in range(count)]
    timer_of(records, "d")
    taken = records.take_timers("c", instance_id)
    assert {*taken} == {timer for timer in timers if instance_id in (None, timer.instance_id)}
    assert all(timer.older is timer.newer is None for timer in taken)
    records._check()
    assert records.take_timers("c", instance_id) == []
    rest = records.take_timers("c", None)
    assert {*rest} == {*timers} - {*taken}
    assert list(records.by_cid) == ["d"]
    assert records.take_timers("nobody", None) == records.take_timers("nobody", "i") == []
    for timer in (*timers, *records.take_timers("d", None)):
        timer.table = None


# Subscriptions in records


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 3 * FEW])
def test_a_record_finds_its_subscriptions_by_instance_and_topic(count: int) -> None:
    """Fault: a subscription is lost, or another is found, when the one chain becomes tables."""
    records = Records()
    entries = [topic_of(records, "c", "ij"[number % 2], f"t{number // 2}") for number in range(count)]
    topic_of(records, "d", "i", "t0")
    records._check()
    assert isinstance(records.of("c").subscriptions, dict) is (count > FEW)
    assert {*records.subscriptions("c")} == {*entries}
    for entry in entries:
        assert records.subscription("c", entry.instance_id, entry.topic) is entry
    for instance in "ij":
        assert records.subscriptions("c", instance) == entries["ij".index(instance) :: 2][::-1]
    assert records.subscription("c", "i", "nothing") is records.subscription("c", "nobody", "t0") is None
    assert records.subscriptions("c", "nobody") == records.subscriptions("nobody", "i") == []


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    ("instance_id", "topic", "count"),
    [(None, None, 3), ("i", None, 2), ("i", "t", 1), ("j", "t", 1), ("i", "nothing", 0), ("nobody", None, 0)],
)
@pytest.mark.parametrize("more", [0, 2 * FEW])
def test_take_removes_the_subscriptions_that_fit(
    instance_id: str | None, topic: str | None, count: int, more: int
) -> None:
    """Fault: `take_subscriptions` removes too many or too few, does not cut a link, or keeps an empty record (G13)."""
    records = Records()
    entries = [topic_of(records, "c", *names) for names in (("i", "t"), ("j", "t"), ("i", "u"))]
    entries += [topic_of(records, "c", "k", f"t{number}") for number in range(more)]
    topic_of(records, "d")
    taken = records.take_subscriptions("c", instance_id, topic)
    records._check()
    assert len(taken) == count + (more if instance_id is None else 0)
    assert all(entry.older is None for entry in taken)
    assert records.take_subscriptions("c", instance_id, topic) == []
    assert records.take_subscriptions("nobody", instance_id, topic) == []
    for instance in "ijk":
        taken += records.take_subscriptions("c", instance, None)
        records._check()
    assert {*taken} == {*entries}
    assert list(records.by_cid) == ["d"]


# The record as a whole


def test_a_record_stays_until_nothing_of_it_is_left() -> None:
    """Fault: the record goes with its timers while it has subscriptions or waiting messages, or the other way round."""
    for first in range(3):
        records = Records()
        timer_of(records)
        topic_of(records)
        record = records.of("c")
        record.backlog = Backlog()
        removals: list[Callable[[], object]] = [
            partial(records.take_timers, "c", None),
            partial(records.take_subscriptions, "c", "i", None),
            partial(setattr, record, "backlog", None),
        ]
        for step in range(3):
            assert records.by_cid == {"c": record}
            removals[(first + step) % 3]()
            records.drop_if_empty("c", record)
        assert records.by_cid == {}


@pytest.mark.parametrize("what", ["timers", "timers one by one", "timers by instance", "subscriptions"])
def test_an_emptied_table_of_conversations_releases_its_memory(what: str) -> None:
    """Fault: the empty table stays as large as it ever was (G13)."""
    records = Records()
    cids = [f"c{number}" for number in range(2000)]
    timers = [topic_of(records, cid) if what == "subscriptions" else timer_of(records, cid) for cid in cids]
    table = sys.getsizeof(records.by_cid)
    for cid, timer in zip(cids, timers, strict=True):
        if isinstance(timer, Subscription):
            records.take_subscriptions(cid, None, None)
        elif what == "timers one by one":
            records.remove_timers((timer,))
        else:
            records.take_timers(cid, "i" if what == "timers by instance" else None)
    assert sys.getsizeof(records.by_cid) < table / 10


def test_random_changes_keep_every_record_exact() -> None:
    """Fault: after some sequence of changes a record holds what has left, or lost what has not (G13, G14)."""
    chance, records = random.Random(11), Records()
    timers: list[Timer] = []
    entries: list[Subscription] = []
    for _ in range(4000):
        cid, instance_id, topic = chance.choice("cd"), chance.choice("ijk"), f"t{chance.randrange(6)}"
        change = chance.random()
        if change < 0.4:
            timers.append(timer_of(records, cid, instance_id))
        elif change < 0.6 and timers:
            timer = timers.pop(chance.randrange(len(timers)))
            records.remove_timers((timer,))
        elif change < 0.65:
            gone = {*records.take_timers(cid, chance.choice((None, instance_id)))}
            timers = [timer for timer in timers if timer not in gone]
        elif change < 0.85:
            if records.subscription(cid, instance_id, topic) is None:
                entries.append(topic_of(records, cid, instance_id, topic))
        else:
            names = chance.choice(((None, None), (instance_id, None), (instance_id, topic), (instance_id, topic)))
            left = {*records.take_subscriptions(cid, *names)}
            entries = [entry for entry in entries if entry not in left]
        records._check()
        assert {timer for cid in "cd" for timer in records.timers(cid)} == {*timers}
        assert {entry for cid in "cd" for entry in records.subscriptions(cid)} == {*entries}
