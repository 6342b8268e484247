"""The engine whose deliveries overlap: how entries are parked in mailboxes, claimed, and returned to the ready order.

Each test makes the calls of the delivery thread one by one, and checks the engine after each.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from stube import Event
from stube_backends.engine import EARLIEST, Engine
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._mailboxes import AGAIN, IN_A_ROW, Mailbox, MailboxClaims
from stube_backends.engine._recovery import rebuild

MS: Final = 1_000_000


class Checked(Engine[MailboxClaims]):
    """An engine whose deliveries overlap, checked after every step."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(None, limits=limits, claims=MailboxClaims)

    def tick(self, cid: str = "a", event: Any = "tick", *, delay: int = 0, now: int = 0, instance: str = "i") -> Any:
        timer = self.schedule(cid, instance, delay, event, now)
        self._check()
        return timer

    def serve(self, now: int = 0) -> Mailbox:
        box = self.claims.next_box(now, "server")
        self._check()
        assert box is not None
        return box

    def take(self, box: Mailbox) -> Event | None:
        event = self.claims.claim(box)
        self._check()
        return event

    def rest(self, box: Mailbox) -> list[str]:
        """Deliver everything that is left in a mailbox; return the names of the events."""
        names = []
        while (event := self.take(box)) is not None:
            names.append(event.name)
            self.claims.finish(box, False)
        return names


@pytest.fixture
def engine() -> Checked:
    return Checked()


def sort(engine: Checked, now: int = 0) -> None:
    """Park what is ready. All of it must belong to conversations whose mailboxes have a server."""
    assert engine.claims.next_box(now, "server") is None
    engine._check()


def test_a_conversation_has_one_mailbox_and_one_server(engine: Checked) -> None:
    """G1. Fault: the engine makes a second mailbox for a conversation that already has a server."""
    engine.tick(event="one")
    box = engine.serve()
    engine.tick(event="two")
    engine.tick("b", event="other")
    other = engine.serve()
    assert (box.cid, other.cid) == ("a", "b")
    assert engine.claims.next_box(0, "server") is None
    assert engine.rest(box) == ["one", "two"]
    assert engine.rest(other) == ["other"]
    assert engine.claims.boxes == {}


def test_the_ledger_separates_parked_from_running_deliveries(engine: Checked) -> None:
    """Fault: the ledger counts a parked entry as begun, or a running delivery as parked."""
    engine.subscribe("a", "i", "t", "said")
    engine.tick()
    engine.publish("t", "message", 0)
    box = engine.serve()
    sort(engine)
    figures = engine.ledger
    assert (figures.timers, figures.queued, figures.running) == (1, 1, 0)
    assert engine.take(box) == Event("i", "tick")
    assert (figures.timers, figures.queued, figures.running) == (0, 1, 1)
    assert inspect(engine, None, 0)["a"].running == inspect(engine, None, 0)["a"].queued == 1
    engine.claims.finish(box, True)
    assert engine.take(box) == Event("i", "said", "message")
    engine.claims.finish(box, False)
    assert (figures.failed, figures.delivered, figures.running) == (1, 1, 0)
    assert engine.take(box) is None
    engine.unsubscribe("a", None, None)
    assert not any(size for name, size in sizes(engine).items() if name != "garbage")


def test_a_publication_is_sorted_into_mailboxes_in_subscriber_order(engine: Checked) -> None:
    """Fault: the engine reverses the order of the subscribers, or forgets one of them."""
    for cid in "abc":
        engine.subscribe(cid, "i", "t", "said")
    engine.publish("t", 1, 0)
    boxes = [engine.serve() for _ in range(3)]
    assert [box.cid for box in boxes] == ["a", "b", "c"]
    sort(engine)
    assert [engine.rest(box) for box in boxes] == [["said"]] * 3


def test_a_subscription_removed_before_the_claim_gets_no_message(engine: Checked) -> None:
    """G5. Fault: a message counts as begun as soon as it is sorted into a mailbox."""
    for cid in "abc":
        engine.subscribe(cid, "i", "t", "said")
    engine.publish("t", 1, 0)
    engine.unsubscribe("a", "i", "t")
    box = engine.serve()
    assert box.cid == "b"
    engine.unsubscribe("c", "i", None)
    sort(engine)
    engine.unsubscribe("b", "i", "t")
    assert engine.take(box) is None
    assert engine.ledger.cancelled == 3
    assert engine.ledger.queued == 0
    assert engine.claims.take_garbage()
    assert engine.claims.take_garbage() == []


def test_removing_all_subscriptions_cancels_the_parked_messages(engine: Checked) -> None:
    """G13. Fault: the messages stay until a handler returns, which may never happen; or the timers go as well."""
    for topic in ("t", "u"):
        engine.subscribe("a", "i", topic, "said")
    engine.tick()
    box = engine.serve()
    engine.take(box)
    engine.publish("t", 1, 0)
    engine.publish("u", 2, 0)
    engine.tick(event="stays")
    sort(engine)
    engine.claims.take_garbage()
    assert len(engine.unsubscribe("a", None, None)) == 2
    assert (engine.ledger.queued, engine.ledger.cancelled) == (0, 2)
    assert [spent.message for spent in engine.claims.take_garbage()] == [1, 2]  # type: ignore[attr-defined]
    engine._check()
    engine.claims.finish(box, False)
    assert engine.rest(box) == ["stays"]


def test_a_cancel_finds_parked_timers(engine: Checked) -> None:
    """G5. Fault: no cancel finds a parked timer, because it has left the ready order."""
    engine.tick(event="runs")
    box = engine.serve()
    engine.take(box)
    first = engine.tick(event="first")
    engine.tick(event="second", instance="j")
    engine.tick(event="third", delay=1)
    sort(engine, 1)
    assert engine.cancel(first) == "first"
    assert engine.cancel(first) is None
    assert engine.cancel_timers("a", "j") == ["second"]
    assert engine.cancel_timers("a", None) == ["third"]
    engine._check()
    engine.claims.finish(box, False)
    assert engine.rest(box) == []


def test_entries_that_a_server_leaves_begin_before_later_ones(engine: Checked) -> None:
    """G2. Fault: an entry that a server returns begins after one of its conversation that was accepted later."""
    engine.subscribe("a", "i", "t", "said")
    engine.tick(event="runs")
    box = engine.serve()
    engine.take(box)
    engine.tick(event="one", delay=3 * MS)
    engine.publish("t", 1, 2 * MS)
    engine.tick(event="two", now=4 * MS)
    sort(engine, 4 * MS)
    engine.tick("b", event="other", now=3 * MS)
    engine.publish("t", 2, 5 * MS)
    engine.tick(event="three", delay=MS, now=5 * MS)
    engine.claims.finish(box, True)
    engine.claims.leave(box)
    engine._check()
    assert box.server is None
    assert engine.claims.boxes == {}
    served = [engine.serve(7 * MS), engine.serve(7 * MS)]
    sort(engine, 7 * MS)
    names = {box.cid: engine.rest(box) for box in served}
    assert names == {"a": ["said", "one", "two", "said", "three"], "b": ["other"]}


def test_servers_that_leave_return_their_entries_in_the_order_of_each_conversation(engine: Checked) -> None:
    """G2. Fault: what a server returns begins behind later entries of its conversation that begin early as well."""
    boxes = {}
    for cid in "ab":
        engine.tick(cid, "runs")
        boxes[cid] = engine.serve()
        engine.take(boxes[cid])
    for instant in range(1, 6):
        engine.tick("a" if instant % 2 else "b", f"e{instant}", now=instant)
    sort(engine, 9)
    for box in boxes.values():
        engine.claims.finish(box, False)
        engine.claims.leave(box)
        engine._check()
    assert [entry.due for entry in engine.order.early] == [1, 3, 5, 2, 4]
    assert [entry.cid for entry in engine.order.early] == ["a", "a", "a", "b", "b"]
    engine.claims.leave(engine.serve(9))  # which has only the first entry in its mailbox
    assert [entry.due for entry in engine.order.early] == [1, 3, 5, 2, 4]


def test_parking_many_entries_takes_several_calls(engine: Checked) -> None:
    """Fault: one call parks messages to a hundred thousand busy conversations, while callers wait for the lock."""
    engine.tick()
    box = engine.serve()
    for number in range(600):
        engine.tick(event=f"e{number}")
    assert engine.claims.next_box(0, "server") is AGAIN
    assert engine.claims.next_box(0, "server") is AGAIN
    sort(engine)
    assert engine.rest(box) == ["tick", *(f"e{number}" for number in range(600))]


def test_passing_over_many_removed_subscriptions_takes_several_calls(engine: Checked) -> None:
    """Fault: one call passes over a hundred thousand targets that have left, while callers wait for the lock."""
    for number in range(600):
        engine.subscribe(f"c{number}", "i", "t", "said")
    engine.publish("t", "m", 0)
    for number in range(599):
        engine.unsubscribe(f"c{number}", "i", None)
    for cancelled in (256, 512):
        assert engine.claims.next_box(0, "server") is AGAIN
        assert engine.stats().cancelled == cancelled
    box = engine.claims.next_box(0, "server")
    assert box is not None
    assert (box.cid, engine.stats().cancelled) == ("c599", 599)


def test_a_server_that_continues_gives_way_to_a_due_timer_after_a_row_of_targets(engine: Checked) -> None:
    """Fault: it gives way before, for a timer that is not due, or never (G27)."""
    engine.tick("other", now=0, delay=5)
    given_way = [engine.claims.must_give_way(now) for now in (4,) * (IN_A_ROW + 1) + (5,)]
    assert given_way == [False] * (IN_A_ROW + 1) + [True]
    box = engine.claims.next_box(5, "server")
    assert box is not None
    assert box.cid == "other"
    assert not engine.claims.must_give_way(5), "it gives way although the timer has had its turn"


def test_the_engine_is_idle_when_nothing_is_served_or_ready(engine: Checked) -> None:
    """Fault: the engine is idle although a message is parked or a publication is being sorted."""
    assert engine.is_idle(0, timers_too=True)
    engine.subscribe("a", "i", "t", "said")
    engine.subscribe("b", "i", "t", "said")
    engine.publish("t", 1, 0)
    box = engine.serve()
    assert engine.claims.next_instant() == EARLIEST
    other = engine.serve()
    sort(engine)
    assert engine.claims.next_instant() is None
    for each in (box, other):
        assert not engine.is_idle(0, timers_too=False)
        assert engine.rest(each) == ["said"]
    assert engine.is_idle(0, timers_too=True)
    engine.tick(delay=5)
    assert engine.is_idle(4, timers_too=False)
    assert not engine.is_idle(4, timers_too=True)
    assert not engine.is_idle(5, timers_too=False)


def test_a_reset_empties_the_mailboxes_but_keeps_their_servers(engine: Checked) -> None:
    """G18. Fault: a parked entry begins after the reset, or never gets a fate."""
    for cid in "abc":
        engine.subscribe(cid, "i", "t", "said")
    engine.tick(event="runs")
    box = engine.serve()
    engine.take(box)
    timer = engine.tick()
    engine.publish("t", 1, 0)
    engine.unsubscribe("c", "i", "t")
    other = engine.serve()
    assert other.cid == "b"
    held = engine.reset()
    engine._check()
    assert len(held) > 3
    assert (engine.ledger.dropped, engine.ledger.cancelled) == (3, 1)
    assert (engine.ledger.timers, engine.ledger.queued, engine.ledger.running) == (0, 0, 1)
    assert timer.event is timer.table is timer.after is None
    engine.tick(event="new")
    sort(engine)
    engine.claims.finish(box, False)
    assert engine.rest(box) == ["new"]
    assert engine.rest(other) == []


def test_recovery_returns_parked_entries_to_the_ready_order(engine: Checked) -> None:
    """Fault: after an asynchronous exception a parked entry is lost or begins twice."""
    for cid in "abc":
        engine.subscribe(cid, "i", "t", "said")
    engine.tick(event="runs")
    box = engine.serve()
    engine.take(box)
    engine.tick(event="one", delay=2)
    engine.publish("t", 1, 3)
    engine.tick(event="two", now=4)
    other = engine.serve(5)
    assert other.cid == "b"
    rebuild(engine)
    engine._check()
    assert (engine.ledger.timers, engine.ledger.queued, engine.ledger.running) == (2, 3, 1)
    third = engine.serve(5)
    sort(engine, 5)
    engine.claims.finish(box, False)
    assert engine.rest(box) == ["one", "said", "two"]
    assert engine.rest(other) == engine.rest(third) == ["said"]
    assert engine.ledger.accepted == engine.ledger.delivered == 6


def test_sizes_count_mailboxes_and_parked_entries(engine: Checked) -> None:
    """Fault: the leak tests do not see a leak in a mailbox."""
    for cid in "abc":
        engine.subscribe(cid, "i", "t", "said")
    engine.tick()
    engine.serve()
    engine.tick()
    engine.publish("t", 1, 0)
    engine.serve()
    found = sizes(engine)
    assert (found["mailboxes"], found["arrivals"]) == (2, 5)


def test_max_queued_counts_parked_messages_too() -> None:
    """Fault: back-pressure does not count a parked message, or does not drop it as the oldest one."""
    engine = Checked(Limits(2, "drop_oldest"))
    engine.subscribe("a", "i", "t", "said")
    engine.tick()
    box = engine.serve()
    engine.take(box)
    for number in range(3):
        engine.publish("t", number, 0)
        sort(engine)
    engine.publish("t", 3, 0)
    engine._check()
    assert [overflow.event.payload for overflow in engine.take_overflows()] == [0, 1]
    assert engine.ledger.dropped == 2
    sort(engine)
    engine.claims.finish(box, False)
    payloads = []
    while (event := engine.take(box)) is not None:
        payloads.append(event.payload)
        engine.claims.finish(box, False)
    assert payloads == [2, 3]
    engine.publish("t", 4, 0)
    box = engine.serve()
    engine.take(box)
    engine.publish("t", 5, 0)
    sort(engine)
    engine.unsubscribe("a", None, None)
    engine._check()
    assert engine.records.by_cid == {}
