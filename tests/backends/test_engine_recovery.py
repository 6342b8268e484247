"""Recovery after an asynchronous exception: every timer and message that the engine still knows is pending, once.

Each test changes an engine as an interrupted operation could have left it, calls `rebuild`, and compares the result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stube_backends.engine
from stube.testing._harness import Injector, tracing
from stube_backends.engine import Engine
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._inspection import sizes
from stube_backends.engine._mailboxes import AGAIN, Mailbox, MailboxClaims
from stube_backends.engine._recovery import rebuild
from stube_backends.engine._rings import unlink
from stube_backends.engine._serial import SerialClaims
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import BEING_REMOVED, FanOut, Publication, Topic, TopicIndex
from stube_backends.engine._wheel import LONG, SLOT_BITS
from tests.backends.helpers import begin_fan_out, begun_fan_out, figures, snapshots

SLOT = 1 << SLOT_BITS
ENGINE = str(Path(stube_backends.engine.__file__).parent)


class Filled:
    """An engine that holds timers of every kind, subscriptions and publications."""

    def __init__(self) -> None:
        self.engine = Engine(None)
        self.timers: list[Timer] = []
        self.delays = (5 * SLOT, 0, SLOT + 7, SLOT + 7, 0, SLOT + 3)
        for number, delay in enumerate(self.delays):
            cid, instance = f"c{number % 2}", f"i{number % 3}"
            self.timers.append(self.engine.schedule(cid, instance, delay, ("e", number), 0))
        for number in range(4):
            self.engine.subscribe(f"c{number}", "i", "t", "said")
            self.engine.subscribe(f"c{number}", "j", "t", "said")
        self.engine.subscribe("c0", "i", "u", "heard")
        assert self.engine.publish("t", "first", 0) == 8
        self.engine.subscribe("late", "i", "t", "said")
        assert self.engine.publish("t", "second", 0) == 9
        assert self.engine.publish("u", "third", 0) == 1

    def order(self) -> list[object]:
        """Deliver until nothing is left; return the timers and publications in the order in which they begin."""
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
                work.event = work.table = None
                self.engine.claims.finish_timer(failed=False)
            self.engine._check()
        return found


SUBSCRIBERS = ["c0i", "c0j", "c1i", "c1j", "c2i", "c2j", "c3i", "c3j"]
WHOLE: list[object] = [
    ("e", 1),
    ("e", 4),
    ("first", *SUBSCRIBERS),
    ("second", *SUBSCRIBERS, "latei"),
    ("third", "c0i"),
    ("e", 5),
    ("e", 2),
    ("e", 3),
    ("e", 0),
]


def without_damage(filled: Filled) -> None:
    """Change nothing: the operation was interrupted before its first change, or after its last."""


def without_records(filled: Filled) -> None:
    """Lose all records, which can be rebuilt from the rings of the wheel and of the arrivals, and from the topics."""
    filled.engine.records.by_cid = {}
    filled.engine.topics.count = 77


def without_one_record(filled: Filled) -> None:
    del filled.engine.records.by_cid["c0"]


def with_empty_records(filled: Filled) -> None:
    records = filled.engine.records
    for cid in records.by_cid:
        record = records.of(cid)
        record.timers = record.subscriptions = None


def with_wrong_counts(filled: Filled) -> None:
    topic = filled.engine.topics.topics["t"]
    assert isinstance(topic, Topic)
    topic.live, topic.oldest, topic.newest = 1, None, None


def with_wrong_figures(filled: Filled) -> None:
    ledger = filled.engine.ledger
    ledger.timers, ledger.queued, ledger.accepted = 3, 1, 99


def with_a_new_index(filled: Filled) -> None:
    topics, filled.engine.topics = filled.engine.topics.topics, TopicIndex()
    filled.engine.topics.topics = topics


@pytest.mark.parametrize(
    "damage",
    [
        without_damage,
        without_records,
        without_one_record,
        with_empty_records,
        with_wrong_counts,
        with_wrong_figures,
        with_a_new_index,
    ],
)
def test_recovery_rebuilds_records_topics_and_counts(damage: Callable[[Filled], None]) -> None:
    """Fault: a pending timer or message is lost, begins twice or in another order, or a figure stays wrong (G20)."""
    filled = Filled()
    engine = filled.engine
    damage(filled)
    rebuild(engine)
    engine._check()
    assert (engine.ledger.timers, engine.ledger.queued, engine.ledger.accepted) == (6, 18, 24)
    topic = engine.topics.topics["t"]
    assert isinstance(topic, Topic)
    assert (engine.topics.count, topic.live) == (10, 9)
    assert snapshots(topic) == (2, 9)
    records = engine.records
    instances = {cid: sorted(timer.instance_id for timer in records.timers(cid)) for cid in records.by_cid}
    assert instances == {"c0": ["i0", "i1", "i2"], "c1": ["i0", "i1", "i2"], "c2": [], "c3": [], "late": []}
    assert filled.order() == WHOLE
    assert engine.ledger.delivered == 24


def test_a_timer_that_is_only_in_its_record_is_pending_after_recovery() -> None:
    """Fault: a schedule that is interrupted between the record and the wheel loses its timer (G20)."""
    filled = Filled()
    engine = filled.engine
    for timer in filled.timers[3:5]:
        unlink(timer)
        del timer.after  # as long as it has stood in no ring
    rebuild(engine)
    engine._check()
    assert engine.ledger.timers == 6
    order = filled.order()
    order.remove(("e", 4))
    assert order == [event for event in WHOLE if event != ("e", 4)]


@pytest.mark.parametrize("kind", [SerialClaims, MailboxClaims])
def test_a_timer_that_was_about_to_begin_begins_before_the_rest_of_its_conversation(kind: Any) -> None:
    """Fault: after an exception between the order and the claim, or the mailbox, a timer goes behind the messages and
    timers of its conversation that follow it (G2)."""
    engine: Any = Engine(None, claims=kind)
    engine.subscribe("c", "i", "t", "said")
    for number in (1, 3):
        engine.schedule("c", "i", 0, f"e{number}", 0)
        engine.publish("t", number + 1, 0)
    engine.claims.turns.in_a_row = engine.claims.turns.most
    taken = engine.claims.turns.next(0, batches=False)
    engine.claims.turns.in_a_row = engine.claims.turns.most
    assert taken is not None
    assert [type(entry) for entry in engine.order.waiting()] == [Publication, Timer, Publication]
    assert engine.claims.turns.next(0, batches=False) is engine.order.early.after  # the rest stands aside
    rebuild(engine)
    engine._check()
    waiting = [entry for entry in engine.order.waiting() if isinstance(entry, Timer) or entry.targeted]
    assert [entry.event if isinstance(entry, Timer) else entry.message for entry in waiting] == ["e1", 2, "e3", 4]


def test_a_timer_without_its_event_or_its_record_is_over_after_recovery() -> None:
    """Fault: recovery undoes an interrupted cancel, although it has already returned the event of the timer (G5)."""
    filled = Filled()
    engine = filled.engine
    for number in (1, 2):
        filled.timers[number].event = None
    for number in (3, 4):
        filled.timers[number].table = None
        engine.records.of(f"c{number % 2}").timers = None
    rebuild(engine)
    engine._check()
    pending = [event for event in filled.order() if isinstance(event, tuple) and event[0] == "e"]
    assert ("e", 0) in pending or engine.ledger.timers == 0
    assert not {("e", number) for number in (1, 2, 3, 4)} & set(pending)


def test_recovery_removes_tombstones_and_empty_topics_from_the_indexes() -> None:
    """Fault: recovery counts or indexes a tombstone, or keeps a topic without live subscriptions (G13)."""
    filled = Filled()
    engine = filled.engine
    entries = engine.topics.entries()
    for entry in (*entries["t"][2:], *entries["u"]):
        entry.removed = engine.order.last_number
        entry.name = entry.event = None
    rebuild(engine)
    engine._check()
    assert list(engine.topics.topics) == ["t"]
    assert engine.topics.count == 2
    assert [entry.instance_id for entry in engine.records.subscriptions("c0")] == ["j", "i"]
    assert [event for event in filled.order() if isinstance(event, tuple) and event[0] != "e"] == [
        ("first", "c0i", "c0j"),
        ("second", "c0i", "c0j"),
        ("third",),
    ]


def test_a_fan_out_continues_after_recovery_and_counts_its_targets_once() -> None:
    """Fault: recovery counts a target that has begun as queued, or a target that has its fate twice (G19)."""
    filled = Filled()
    engine = filled.engine
    for _ in range(2):
        assert isinstance(engine.claims.begin(0), Timer)
        engine.claims.finish_timer(failed=False)
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    for _ in range(5):
        next(fan_out.iterator)
    fan_out.cancelled = 1
    engine.claims.finish_fan_out(fan_out, 3, 1)
    fan_out = begin_fan_out(engine)
    next(fan_out.iterator)
    rebuild(engine)
    ledger = engine.ledger
    assert fan_out.accounted == 1
    assert (ledger.timers, ledger.queued) == (4, 12)
    assert ledger.accepted == 2 + 4 + 5 + 1 + 12
    assert len(list(fan_out.iterator)) == 2
    engine.claims.finish_fan_out(fan_out, 3)
    engine._check()


def test_a_running_fan_out_that_a_reset_stopped_is_counted_after_recovery() -> None:
    """Fault: recovery counts its targets as queued, or those that have their fate a second time (G19)."""
    engine, fan_out = begun_fan_out(5)
    for _ in range(2):
        next(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 2)
    fan_out = begin_fan_out(engine)
    next(fan_out.iterator)
    engine.reset()
    rebuild(engine)
    assert (engine.ledger.accepted, engine.ledger.queued, engine.claims.fan_out) == (5, 0, fan_out)
    engine.claims.finish_fan_out(fan_out, 1)
    engine._check()
    assert (engine.ledger.delivered, engine.ledger.dropped, engine.ledger.accepted) == (3, 2, 5)


def test_a_running_timer_is_still_counted_as_accepted_after_recovery() -> None:
    """Fault: `accepted` differs from the sum of the other figures when the running timer has its fate."""
    filled = Filled()
    engine = filled.engine
    engine.claims.begin(0)
    rebuild(engine)
    assert (engine.ledger.running, engine.ledger.timers, engine.ledger.accepted) == (1, 5, 24)
    engine.claims.finish_timer(failed=True)
    engine.ledger.cancelled += 2
    engine.ledger.dropped += 3
    rebuild(engine)
    assert engine.ledger.accepted == 29
    engine._check()


def test_an_empty_engine_is_still_empty_after_recovery() -> None:
    """Fault: recovery raises when there is nothing to rebuild."""
    engine = Engine(None)
    rebuild(engine)
    engine._check()
    assert set(sizes(engine).values()) == {0}


def test_arrivals_keep_their_order_in_recovery() -> None:
    """Fault: recovery puts all publications before the timers without delay, or after them (G2)."""
    engine = Engine(None)
    engine.subscribe("c", "i", "t", "said")
    for number in range(3):
        engine.publish("t", number, 0)
        engine.schedule("c", "i", 0, ("e", number), 0)
    rebuild(engine)
    kinds = [type(entry) for entry in engine.order.arrivals]
    assert kinds == [Publication, Timer] * 3
    engine._check()


def test_recovery_keeps_the_topics_after_an_empty_one() -> None:
    """Fault: recovery loses the topics that follow the first topic without live subscriptions."""
    engine = Engine(None)
    for topic in ("a", "b", "c"):
        engine.subscribe("c", "i", topic, "said")
    engine.topics.entries()["a"][0].name = None
    rebuild(engine)
    engine._check()
    assert list(engine.topics.topics) == ["b", "c"]


def test_timers_of_one_instant_keep_their_order_in_recovery() -> None:
    """Fault: recovery puts a timer with a long wait into a fine slot, so a timer accepted later begins first (G2)."""
    engine, due = Engine(None), 3 * LONG
    for number, now in enumerate((0, SLOT)):
        engine.schedule("c", "i", due - now, ("e", number), now)
    rebuild(engine)
    engine._check()
    for number, now in enumerate((2 * SLOT, due - LONG, due - LONG + 1), 2):
        engine.schedule("c", "i", due - now, ("e", number), now)
    rebuild(engine)
    engine._check()
    engine.schedule("c", "i", 5, ("e", 5), due - 5)
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
def test_a_subscription_marked_as_being_removed_is_gone_after_recovery(marked: int) -> None:
    """Fault: the mark of an interrupted removal stays, so the subscription is counted but no delivery reaches it."""
    engine = Engine(None)
    for instance in ("i", "j", "k"):
        engine.subscribe("c", instance, "t", "said")
    engine.publish("t", "message", 0)
    leaving = engine.topics.entries()["t"][:marked]
    for entry in leaving:
        entry.name = BEING_REMOVED
    rebuild(engine)
    engine._check()
    assert [(entry.name, entry.event) for entry in leaving] == [(None, None)] * marked
    assert engine.stats().subscriptions == 3 - marked
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    begun = [target.instance_id for target, _ in fan_out.claim_each(lambda: None)]
    assert begun == ["i", "j", "k"][marked:]
    engine.claims.finish_fan_out(fan_out, len(begun))
    engine._check()
    assert figures(engine) == {"accepted": 3, "delivered": 3 - marked, "cancelled": marked}


def test_recovery_makes_concurrent_topic_look_ups_start_again() -> None:
    """Fault: a look-up without the lock misses a topic that the interrupted operation has added (G16)."""
    engine = Engine(None)
    before = engine.topics.generation.token
    rebuild(engine)
    assert engine.topics.generation.token is not before


def test_the_remaining_timers_of_a_batch_keep_their_order_in_recovery() -> None:
    """Fault: timers of one instant that were in a due batch begin in reverse order after recovery (G2)."""
    engine = Engine(None)
    for number in range(5):
        engine.schedule("c", f"i{number % 2}", SLOT + 5, ("e", number), 0)
    assert engine.claims.begin(SLOT) is None  # opens the slot
    assert isinstance(engine.claims.begin(SLOT + 5), DueBatch)
    engine.claims.abandon()
    rebuild(engine)
    engine._check()
    assert engine.claims.begin(SLOT) is None
    batch = engine.claims.begin(SLOT + 5)
    assert isinstance(batch, DueBatch)
    assert [timer.event for timer in reversed(batch.timers)] == [("e", number) for number in range(5)]


def test_equal_timers_of_the_open_slot_keep_their_order_in_recovery() -> None:
    """Fault: recovery reads the open slot from its latest timer to its earliest (G2)."""
    engine = Engine(None)
    for number in range(5):
        engine.schedule("c", f"i{number % 2}", SLOT + 5, ("e", number), 0)
    assert engine.claims.begin(SLOT) is None
    rebuild(engine)
    engine._check()
    engine.claims.begin(SLOT)
    batch = engine.claims.begin(SLOT + 5)
    assert isinstance(batch, DueBatch)
    assert [timer.event for timer in reversed(batch.timers)] == [("e", number) for number in range(5)]


def test_targets_whose_fates_an_exception_lost_count_as_failed() -> None:
    """Fault: a target that was delivered before the exception never gets a fate in the ledger."""
    engine, fan_out = begun_fan_out(4)
    next(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 1)
    fan_out = begin_fan_out(engine)
    next(fan_out.iterator)
    next(fan_out.iterator)
    engine.claims.abandon()
    engine._check()
    assert (engine.ledger.delivered, engine.ledger.failed, engine.ledger.queued) == (1, 2, 1)
    fan_out = begin_fan_out(engine)
    next(fan_out.iterator)
    engine.claims.abandon()
    engine._check()
    assert (engine.claims.fan_out, engine.ledger.failed, engine.ledger.queued) == (None, 3, 0)


def test_an_exception_at_any_line_of_ending_a_fan_out_loses_no_target() -> None:
    """Fault: the fates are counted, and then the targets that have not begun are forgotten with their fan-out (G19)."""
    for at in range(100):
        engine, fan_out = begun_fan_out(4)
        begun = [next(fan_out.iterator).cid for _ in range(2)]
        injector = Injector(at, interrupt)
        try:
            with tracing(injector):
                engine.claims.finish_fan_out(fan_out, 2)
        except KeyboardInterrupt:
            rebuild(engine)
            interrupted = True
            if engine.claims.fan_out is fan_out and (fan_out.decided == 2) is not (engine.ledger.delivered == 2):
                continue  # between two lines of the one statement that counts, where no signal handler runs
        else:
            interrupted = False
        while (work := engine.claims.begin(0)) is not None:
            assert isinstance(work, FanOut)
            found = [target.cid for target in work.iterator]
            engine.claims.finish_fan_out(work, len(found))
            begun += found
        engine._check()
        assert begun == ["c0", "c1", "c2", "c3"], injector.fired
        assert engine.ledger.delivered + engine.ledger.failed == engine.ledger.accepted == 4, injector.fired
        if not interrupted:
            assert at > 10
            return


@pytest.mark.parametrize("begun", [0, 1])
def test_a_bounded_message_that_was_handed_out_is_forgotten_once(begun: int) -> None:
    """Fault: one that is given back is not in the backlog of its conversation and the next delivery of it raises; or
    recovery puts one that is being delivered back, and the next overflow discards it twice (G13, G19)."""
    engine = Engine(None, limits=Limits(2, "drop_oldest"))
    engine.subscribe("c", "i", "t", "said")
    for number in (1, 2):
        engine.publish("t", number, 0)
    fan_out = begin_fan_out(engine)
    for _ in range(begun):
        next(fan_out.iterator)
    if begun:
        rebuild(engine)
        engine.claims.finish_fan_out(fan_out, 1)
    else:
        engine.claims.abandon()
    engine._check()
    assert sizes(engine)["messages in backlogs"] == 2 - begun
    rest = []
    while isinstance(work := engine.claims.begin(0), FanOut):
        rest += [work.message for _ in work.iterator]
        engine.claims.finish_fan_out(work, work.begun)
    assert rest == [1, 2][begun:]
    for number in range(4):
        engine.publish("t", number, 0)
    engine._check()
    assert engine.ledger.dropped == 2


def test_what_is_parked_begins_before_early_messages_after_recovery() -> None:
    """Fault: of one instant the early ones come first, although they were accepted later (G2)."""
    engine: Engine[MailboxClaims] = Engine(None, claims=MailboxClaims)
    engine.subscribe("c", "i", "t", "said")
    for number in range(4):
        engine.publish("t", number, 0)
    claims = engine.claims
    box = claims.next_box(0, "server")
    assert box is not None
    assert claims.claim(box) is not None
    while claims.next_box(0, "server") is AGAIN:
        pass  # the others are parked
    last = box.before
    unlink(last)
    engine.order.early.append(last)
    rebuild(engine)
    engine._check()
    assert [entry.message for entry in engine.order.early] == [1, 2, 3]


@pytest.mark.parametrize("limits", [None, Limits(1000, "drop_oldest")])
def test_an_exception_at_any_line_of_sorting_into_mailboxes_loses_no_message(limits: Limits | None) -> None:
    """Fault: a message has left the order and stands in no mailbox yet, or stands in both (G19, G2)."""
    for at in range(0, 3000, 3):
        engine: Engine[MailboxClaims] = Engine(None, limits=limits, claims=MailboxClaims)
        claims = engine.claims
        claims.turns.most = 2
        for name in ("a", "own", "b", "c"):
            engine.subscribe(name, "i", "t", "said")
        for number in range(3):
            engine.publish("t", number, 0)
        engine.schedule("own", "i", 0, "tick", 0)
        injector = Injector(at, interrupt, within=ENGINE, raises=True)
        seen: dict[str, list[object]] = {}
        running: Mailbox | None = None
        steps = 0
        while True:
            steps += 1
            assert steps < 1000, injector.fired
            try:
                with tracing(injector):
                    box = claims.next_box(0, "server")
            except KeyboardInterrupt:
                rebuild(engine)
                # What stood in a mailbox waits in the order again; only a running delivery keeps its mailbox.
                for each in [each for each in claims.boxes.values() if not each.running]:
                    claims.leave(each)
                continue
            if box is AGAIN:
                continue
            box = running if box is None else box
            if box is None:
                break
            if box is running:
                claims.finish(box, failed=False)
                running = None
            while (event := claims.claim(box)) is not None:
                seen.setdefault(box.cid, []).append(event.payload if event.name == "said" else event.name)
                if box.cid == "own" and event.payload == 0:
                    running = box  # its handler waits, and what comes for it is parked
                    break
                claims.finish(box, failed=False)
        engine._check()
        assert seen == {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2], "own": [0, 1, 2, "tick"]}, injector.fired
        assert engine.ledger.delivered == engine.ledger.accepted, injector.fired
        if not injector.fired:
            assert at > 200
            return
    pytest.fail("the sorting did not end")


def interrupt() -> None:
    """Raise an asynchronous exception, as a signal handler may."""
    raise KeyboardInterrupt
