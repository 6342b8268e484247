"""What mending makes of an engine that was broken off: whatever is left of the facts is pending again, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stube_backends.engine import Engine
from stube_backends.engine._inspection import sizes
from stube_backends.engine._recovery import rebuild
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import BEING_REMOVED, FanOut, Publication, TopicIndex
from stube_backends.engine._wheel import LONG, SLOT_BITS

SLOT = 1 << SLOT_BITS


class Owner:
    """Owns timers whose handles are not used."""

    def cancel_timer(self, timer: Timer) -> bool:
        raise AssertionError(timer)


OWNER = Owner()


class Broken:
    """An engine with something of everything in it, and what must come out of it afterwards."""

    def __init__(self) -> None:
        self.engine = Engine(None)
        self.timers: list[Timer] = []
        self.delays = (5 * SLOT, 0, SLOT + 7, SLOT + 7, 0, SLOT + 3)
        for number, delay in enumerate(self.delays):
            cid, instance = f"c{number % 2}", f"i{number % 3}"
            self.timers.append(self.engine.schedule(OWNER, cid, instance, delay, ("e", number), 0))
        for number in range(4):
            self.engine.subscribe(f"c{number}", "i", "t", "said")
            self.engine.subscribe(f"c{number}", "j", "t", "said")
        self.engine.subscribe("c0", "i", "u", "heard")
        assert self.engine.publish("t", "first", 0) == 8
        self.engine.subscribe("late", "i", "t", "said")
        assert self.engine.publish("t", "second", 0) == 9
        assert self.engine.publish("u", "third", 0) == 1

    def order(self) -> list[object]:
        """What begins until nothing is left, in its order."""
        found: list[object] = []
        while (work := self.engine.claims.begin(9 * SLOT)) is not None:
            if isinstance(work, FanOut):
                live = [f"{each.cid}{each.instance_id}" for each in work.iterator if each.name is not None]
                found.append((work.message, *live))
                work.cancelled = work.total - len(live)
                self.engine.claims.finish_fan_out(work, len(live))
            elif isinstance(work, DueBatch):
                found += [timer.event for timer in reversed(work.timers)]
                work.delivered = len(work.stop())
                work.total = work.delivered
            else:
                found.append(work.event)
                work.event = work.group = None
                self.engine.claims.finish_timer(failed=False)
            self.engine._check()
        return found


EVERYBODY = ["c0i", "c0j", "c1i", "c1j", "c2i", "c2j", "c3i", "c3j"]
WHOLE: list[object] = [
    ("e", 1),
    ("e", 4),
    ("first", *EVERYBODY),
    ("second", *EVERYBODY, "latei"),
    ("third", "c0i"),
    ("e", 5),
    ("e", 2),
    ("e", 3),
    ("e", 0),
]


def nothing(broken: Broken) -> None:
    """Broken off before the first change, or behind the last."""


def without_groups(broken: Broken) -> None:
    """Everything that can be made of the rings of the wheel and of the arrivals."""
    broken.engine.groups.by_cid = {}


def without_one_group(broken: Broken) -> None:
    del broken.engine.groups.by_cid["c0"]["i2"]


def without_indexes(broken: Broken) -> None:
    broken.engine.topics.by_cid.clear()
    broken.engine.topics.count = 77


def with_wrong_counts(broken: Broken) -> None:
    for topic in broken.engine.topics.topics.values():
        topic.live, topic.snapshots, topic.snapshot_length = 1, 5, 1


def with_wrong_figures(broken: Broken) -> None:
    ledger = broken.engine.ledger
    ledger.timers, ledger.queued, ledger.accepted = 3, 1, 99


def with_a_foreign_index(broken: Broken) -> None:
    topics, broken.engine.topics = broken.engine.topics.topics, TopicIndex()
    broken.engine.topics.topics = topics


@pytest.mark.parametrize(
    "damage",
    [
        nothing,
        without_groups,
        without_one_group,
        without_indexes,
        with_wrong_counts,
        with_wrong_figures,
        with_a_foreign_index,
    ],
)
def test_what_can_be_derived_is_made_anew(damage: Callable[[Broken], None]) -> None:
    """Fault: something pending is lost, begins twice or in another order, or a figure stays wrong (G20)."""
    broken = Broken()
    engine = broken.engine
    damage(broken)
    rebuild(engine)
    engine._check()
    assert (engine.ledger.timers, engine.ledger.queued, engine.ledger.accepted) == (6, 18, 24)
    assert (engine.topics.count, engine.topics.topics["t"].live) == (10, 9)
    topic = engine.topics.topics["t"]
    assert (topic.snapshots, topic.snapshot_length) == (2, 9)
    groups = {cid: {name: list(group) for name, group in found.items()} for cid, found in engine.groups.by_cid.items()}
    assert {cid: sorted(found) for cid, found in groups.items()} == {
        "c0": ["i0", "i1", "i2"],
        "c1": ["i0", "i1", "i2"],
    }
    for cid, found in engine.groups.by_cid.items():
        for name, group in found.items():
            assert (group.cid, group.instance_id, group.owner) == (cid, name, OWNER)
    assert broken.order() == WHOLE
    assert engine.ledger.delivered == 24


def test_a_timer_that_only_its_group_knows_is_pending_again() -> None:
    """Fault: a schedule that was broken off between the group and the wheel loses its timer (G20)."""
    broken = Broken()
    engine = broken.engine
    engine.order.remove(broken.timers[3:5])
    rebuild(engine)
    engine._check()
    assert engine.ledger.timers == 6
    order = broken.order()
    order.remove(("e", 4))
    assert order == [event for event in WHOLE if event != ("e", 4)]


def test_a_timer_that_has_lost_its_event_or_its_group_is_over() -> None:
    """Fault: a cancel that was broken off is undone for a timer whose event has been handed out (G5)."""
    broken = Broken()
    engine = broken.engine
    for number in (1, 2):
        broken.timers[number].event = None
    for number in (3, 4):
        broken.timers[number].group = None
        engine.groups.by_cid[f"c{number % 2}"].clear()
    rebuild(engine)
    engine._check()
    pending = [event for event in broken.order() if isinstance(event, tuple) and event[0] == "e"]
    assert ("e", 0) in pending or engine.ledger.timers == 0
    assert not {("e", number) for number in (1, 2, 3, 4)} & set(pending)


def test_who_has_left_is_in_no_index_and_a_topic_of_the_dead_is_none() -> None:
    """Fault: a tombstone is counted or indexed, or an empty topic stays (G13)."""
    broken = Broken()
    engine = broken.engine
    entries = engine.topics.topics["t"].entries
    for entry in entries[2:]:
        entry.name = entry.event = None
    engine.topics.by_cid["c0"]["i"]["u"].name = None
    rebuild(engine)
    engine._check()
    assert list(engine.topics.topics) == ["t"]
    assert engine.topics.count == 2
    assert {cid: list(found) for cid, found in engine.topics.by_cid.items()} == {"c0": ["i", "j"]}
    assert [event for event in broken.order() if isinstance(event, tuple) and event[0] != "e"] == [
        ("first", "c0i", "c0j"),
        ("second", "c0i", "c0j"),
        ("third",),
    ]


def test_a_fan_out_in_progress_goes_on_and_its_targets_are_counted_once() -> None:
    """Fault: what the fan-out has begun is counted as queued, or what it has decided twice (G19)."""
    broken = Broken()
    engine = broken.engine
    for _ in range(2):
        assert isinstance(engine.claims.begin(0), Timer)
        engine.claims.finish_timer(failed=False)
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    for _ in range(5):
        next(fan_out.iterator)
    fan_out.cancelled = 1
    engine.claims.finish_fan_out(fan_out, 2, 1)
    next(fan_out.iterator)
    engine.ledger.running = 1
    rebuild(engine)
    ledger = engine.ledger
    assert fan_out.accounted == 6
    assert (ledger.timers, ledger.queued) == (4, 12)
    assert ledger.accepted == 2 + 4 + 2 + 4 + 12
    ledger.running = 0
    assert engine.claims.begin(0) is fan_out


def test_a_timer_that_runs_is_counted_among_the_accepted() -> None:
    """Fault: the equation does not hold once it has run."""
    broken = Broken()
    engine = broken.engine
    engine.claims.begin(0)
    rebuild(engine)
    assert (engine.ledger.running, engine.ledger.timers, engine.ledger.accepted) == (1, 5, 24)
    engine.claims.finish_timer(failed=True)
    engine.ledger.cancelled += 2
    engine.ledger.dropped += 3
    rebuild(engine)
    assert engine.ledger.accepted == 29
    engine._check()


def test_an_empty_engine_is_mended_to_an_empty_one() -> None:
    """Fault: mending trips over nothing."""
    engine = Engine(None)
    rebuild(engine)
    engine._check()
    assert set(sizes(engine).values()) == {0}


def test_arrivals_keep_their_order() -> None:
    """Fault: publications go before the timers without delay, or behind them (G2)."""
    engine = Engine(None)
    engine.subscribe("c", "i", "t", "said")
    for number in range(3):
        engine.publish("t", number, 0)
        engine.schedule(OWNER, "c", "i", 0, ("e", number), 0)
    rebuild(engine)
    kinds = [type(entry) for entry in engine.order.arrivals]
    assert kinds == [Publication, Timer] * 3
    engine._check()


def test_the_topics_behind_one_of_the_dead_are_kept() -> None:
    """Fault: with the first topic that is none any more the others are lost."""
    engine = Engine(None)
    for topic in ("a", "b", "c"):
        engine.subscribe("c", "i", topic, "said")
    engine.topics.by_cid["c"]["i"]["a"].name = None
    rebuild(engine)
    engine._check()
    assert list(engine.topics.topics) == ["b", "c"]


def test_timers_of_one_instant_keep_their_order_whatever_they_still_had_to_wait() -> None:
    """Fault: who still waits for long goes to a fine slot, and who is accepted after it comes before it (G2)."""
    engine, due = Engine(None), 3 * LONG
    for number, now in enumerate((0, SLOT)):
        engine.schedule(OWNER, "c", "i", due - now, ("e", number), now)
    rebuild(engine)
    engine._check()
    for number, now in enumerate((2 * SLOT, due - LONG, due - LONG + 1), 2):
        engine.schedule(OWNER, "c", "i", due - now, ("e", number), now)
    rebuild(engine)
    engine._check()
    engine.schedule(OWNER, "c", "i", 5, ("e", 5), due - 5)
    assert engine.claims.begin(due - 1) is None
    taken = []
    while (work := engine.claims.begin(due)) is not None:
        if isinstance(work, Timer):
            taken.append(work.event)
            engine.claims.finish_timer(failed=False)
        else:
            assert isinstance(work, DueBatch)
            taken += [timer.event for timer in reversed(work.timers)]
            work.delivered = len(work.stop())
            work.total = work.delivered
    assert taken == [("e", number) for number in range(6)]


@pytest.mark.parametrize("marked", [1, 2])
def test_what_was_about_to_leave_has_left(marked: int) -> None:
    """Fault: a mark that a removal left behind stays: the subscription is counted, and nobody is ever delivered to."""
    engine = Engine(None)
    for instance in ("i", "j", "k"):
        engine.subscribe("c", instance, "t", "said")
    engine.publish("t", "message", 0)
    leaving = engine.topics.topics["t"].entries[:marked]
    for entry in leaving:
        entry.name = BEING_REMOVED
    rebuild(engine)
    engine._check()
    assert [(entry.name, entry.event) for entry in leaving] == [(None, None)] * marked
    assert engine.stats().subscriptions == 3 - marked
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    assert [target.instance_id for target in fan_out.targets] == ["i", "j", "k"][marked:]
    engine.claims.finish_fan_out(fan_out, len(list(fan_out.iterator)))
    engine._check()


def test_whoever_looks_for_a_topic_meanwhile_looks_again() -> None:
    """Fault: a topic that came before the operation was broken off, and has told nobody yet, is missed (G16)."""
    engine = Engine(None)
    before = engine.topics.generation.token
    rebuild(engine)
    assert engine.topics.generation.token is not before


def test_the_rest_of_a_batch_goes_back_in_its_order() -> None:
    """Fault: equals that had been taken out together begin the other way round (G2)."""
    engine = Engine(None)
    for number in range(5):
        engine.schedule(OWNER, "c", f"i{number % 2}", SLOT + 5, ("e", number), 0)
    assert engine.claims.begin(SLOT) is None  # opens the slot
    assert isinstance(engine.claims.begin(SLOT + 5), DueBatch)
    engine.claims.abandon()
    rebuild(engine)
    engine._check()
    assert engine.claims.begin(SLOT) is None
    batch = engine.claims.begin(SLOT + 5)
    assert isinstance(batch, DueBatch)
    assert [timer.event for timer in reversed(batch.timers)] == [("e", number) for number in range(5)]


def test_equals_of_the_open_slot_stay_in_order() -> None:
    """Fault: the open slot is gone through from its latest timer on (G2)."""
    engine = Engine(None)
    for number in range(5):
        engine.schedule(OWNER, "c", f"i{number % 2}", SLOT + 5, ("e", number), 0)
    assert engine.claims.begin(SLOT) is None
    rebuild(engine)
    engine._check()
    engine.claims.begin(SLOT)
    batch = engine.claims.begin(SLOT + 5)
    assert isinstance(batch, DueBatch)
    assert [timer.event for timer in reversed(batch.timers)] == [("e", number) for number in range(5)]


def test_the_targets_of_a_fan_out_whose_counting_was_lost_have_failed() -> None:
    """Fault: what was delivered before the exception has no fate for ever (the ledger)."""
    engine = Engine(None)
    for number in range(4):
        engine.subscribe(f"c{number}", "i", "t", "said")
    engine.publish("t", "message", 0)
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    next(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 1)
    assert engine.claims.begin(0) is fan_out
    next(fan_out.iterator)
    next(fan_out.iterator)
    engine.claims.abandon()
    engine._check()
    assert (engine.ledger.delivered, engine.ledger.failed, engine.ledger.queued) == (1, 2, 1)
    assert engine.claims.begin(0) is fan_out
    next(fan_out.iterator)
    engine.claims.abandon()
    engine._check()
    assert (engine.claims.fan_out, engine.ledger.failed, engine.ledger.queued) == (None, 3, 0)
