"""The records of conversations, and the timers as their own handles."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Callable, Iterator
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


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Check that the test leaves nothing for the garbage collector: all that it dropped was freed without a cycle."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


def nobody() -> None:
    """Return no owner."""


def pending(spec: Any, owner: Any = nobody) -> Timer:
    records = Records()
    records.owner = owner
    return Timer.pending_admission(spec, records.new("c"), "i")


def timer_of(records: Records, cid: str = "c", instance_id: str = "i") -> Timer:
    timer = Timer()
    timer.event = "e"
    records.add_timer(timer, cid, instance_id)
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
    record, timer.record = timer.record, None
    assert repr(timer) == "<Timer: over>"
    timer.record, timer.event = record, None
    assert repr(timer) == "<Timer: over>"


def test_a_handle_asks_its_owner_only_until_the_timer_is_over() -> None:
    """Fault: the handle does not ask its owner, returns another answer, or raises when the timer or the owner is
    gone."""
    owner = Owner()
    timer = pending("e", weakref.ref(owner))
    assert timer.cancel() is True
    assert owner.asked == [timer]
    record, timer.record = timer.record, None
    assert timer.cancel() is False
    timer.record = record
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
    assert (timer.event, timer.record, timer.cancel()) == (None, None, False)


@pytest.mark.usefixtures("uncollected")
def test_a_timer_pending_admission_needs_no_garbage_collector() -> None:
    """Fault: the record, which here only names the conversation, waits for the collector (G13)."""
    pending("e")


# Timers in records


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 3 * FEW])
@pytest.mark.parametrize("instances", [1, 2, 3 * FEW])
def test_a_record_finds_its_timers_and_those_of_one_instance(count: int, instances: int) -> None:
    """Fault: a timer is lost, or found under another instance, when the one chain is taken apart."""
    records = Records()
    timers = [timer_of(records, "c", f"i{number % instances}") for number in range(count)]
    foreign = timer_of(records, "d", "i0")
    records._check()
    record = records.by_cid["c"]
    assert isinstance(record.timers, dict) is (count > FEW)
    assert {*record.all_timers()} == {*timers}
    for number in range(min(instances, count)):
        assert record.timers_of(f"i{number}") == timers[number::instances][::-1]
    assert record.timers_of("nobody") == []
    assert records.by_cid["d"].all_timers() == [foreign]


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 2 * FEW])
def test_a_removed_timer_leaves_its_record_and_is_cut(count: int) -> None:
    """Fault: a removed timer keeps its links, which keep the others alive; or the record stays when it is empty
    (G13)."""
    chance = random.Random(count)
    for _ in range(20):
        records = Records()
        timers = [timer_of(records, "c", chance.choice("ij")) for _ in range(count)]
        chance.shuffle(timers)
        while timers:
            timer = timers.pop()
            records.remove_timers((timer,))
            records._check()
            assert (timer.older, timer.newer) == (None, None)
            assert {*records.by_cid["c"].all_timers()} == {*timers} if timers else records.by_cid == {}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("instance_id", [None, "i", "j", "nobody"])
@pytest.mark.parametrize("count", [5, 3 * FEW])
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
    assert {*records.take_timers("c", None)} == {*timers} - {*taken}
    assert list(records.by_cid) == ["d"]
    assert len(records.take_timers("d", None)) == 1
    assert records.take_timers("nobody", None) == records.take_timers("nobody", "i") == []


def test_only_the_table_with_the_record_of_a_timer_holds_the_timer() -> None:
    """Fault: `holds` returns True for a timer of another table, as that of the parent is in a fork, or of none."""
    records, others = Records(), Records()
    timer = timer_of(records)
    timer_of(others)
    assert records.holds(timer) is True
    assert others.holds(timer) is False
    assert Records().holds(timer) is False
    assert records.holds(pending("e")) is False
    timer.record = None
    assert records.holds(timer) is False


# Subscriptions in records


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 3 * FEW])
def test_a_record_finds_its_subscriptions_by_instance_and_topic(count: int) -> None:
    """Fault: a subscription is lost, or another is found, when the one chain becomes tables."""
    records = Records()
    entries = [topic_of(records, "c", "ij"[number % 2], f"t{number // 2}") for number in range(count)]
    topic_of(records, "d", "i", "t0")
    records._check()
    record = records.by_cid["c"]
    assert isinstance(record.subscriptions, dict) is (count > FEW)
    assert {*record.all_subscriptions()} == {*entries}
    for entry in entries:
        assert record.subscription(entry.instance_id, entry.topic) is entry
        assert entry in record.subscriptions_of(entry.instance_id)
    assert {*record.subscriptions_of("i")} == {*entries[::2]}
    assert record.subscription("i", "nothing") is record.subscription("nobody", "t0") is None
    assert record.subscriptions_of("nobody") == []


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
            records.drop_if_empty(record)
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
            record = records.by_cid.get(cid)
            if record is None or record.subscription(instance_id, topic) is None:
                entries.append(topic_of(records, cid, instance_id, topic))
        else:
            names = chance.choice(((None, None), (instance_id, None), (instance_id, topic), (instance_id, topic)))
            left = {*records.take_subscriptions(cid, *names)}
            entries = [entry for entry in entries if entry not in left]
        records._check()
        held = records.by_cid.values()
        assert {timer for record in held for timer in record.all_timers()} == {*timers}
        assert {entry for record in held for entry in record.all_subscriptions()} == {*entries}
