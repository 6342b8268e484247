"""Turns of timers beside publications: who overtakes whom, and who does not (G27, G2)."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from typing import Any

import pytest

from stube_backends.engine import Engine
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._inspection import sizes
from stube_backends.engine._mailboxes import AGAIN, MailboxClaims
from stube_backends.engine._mailboxes import IN_A_ROW as IN_A_ROW_ON_A_LOOP
from stube_backends.engine._records import FEW
from stube_backends.engine._recovery import rebuild
from stube_backends.engine._serial import IN_A_ROW
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import FanOut, Publication
from stube_backends.engine._wheel import SLOT_BITS
from tests.backends.helpers import begin_fan_out

SLOT = 1 << SLOT_BITS


def subscribed(*names: str, topic: str = "t", limits: Limits | None = None) -> Engine:
    """Return an engine with a subscription of the instance `i` for each name, which is its cid."""
    engine = Engine(None, limits=limits)
    for name in names:
        engine.subscribe(name, "i", topic, "said")
    return engine


def step(engine: Engine, now: int, most: int = 1 << 20) -> list[tuple[str, str, Any]]:
    """Deliver what must begin next, at most so many targets; return the conversation, instance and payload of each."""
    while True:
        work = engine.claims.begin(now)
        if isinstance(work, DueBatch) and not work.timers:  # others have a turn of the lock
            engine.claims.finish_batch()
            continue
        if not isinstance(work, FanOut):
            break
        claimed = islice(work.claim_each(lambda: None), most)
        seen = [(target.cid, target.instance_id, work.message) for target, _ in claimed]
        engine.claims.finish_fan_out(work, len(seen))
        engine._check()
        if seen:  # else all of its targets had been removed or handed out
            return seen
    if work is None:
        return []
    timer = work.timers.pop() if isinstance(work, DueBatch) else work
    cid, event = timer.claim()
    if isinstance(work, DueBatch):
        work.delivered += 1
        engine.claims.finish_batch()
    else:
        engine.claims.finish_timer(failed=False)
    engine._check()
    return [(cid, event.instance_id, event.name)]


def give_a_turn(engine: Engine) -> None:
    """Let as many targets have begun as begin in a row."""
    engine.claims.turns.in_a_row = IN_A_ROW


def all_of(engine: Engine, now: int, most: int = 1 << 20) -> list[tuple[str, str, Any]]:
    """Deliver until nothing is ready."""
    seen: list[tuple[str, str, Any]] = []
    while found := step(engine, now, most):
        seen += found
    return seen


@pytest.mark.parametrize("delay", [0, 5])
def test_a_due_timer_overtakes_the_targets_of_other_conversations(delay: int) -> None:
    """Fault: the timer waits until the publication has been delivered to everybody (G27)."""
    engine = subscribed("a", "b", "c")
    engine.publish("t", "m", 0)
    engine.schedule("clock", "i", delay, "tick", 0)
    assert step(engine, 5, most=1) == [("a", "i", "m")]
    assert step(engine, 5, most=1) == [("b", "i", "m")]  # fewer in a row than give a turn
    give_a_turn(engine)
    assert step(engine, 5) == [("clock", "i", "tick")]
    assert step(engine, 5) == [("c", "i", "m")]
    assert engine.claims.begin(5) is None
    assert (engine.claims.turns.in_a_row, engine.claims.turns.limit) == (0, None)


def test_what_arrives_in_a_turn_waits_for_the_next_one() -> None:
    """Fault: a timer without delay that a handler schedules anew for the same instant keeps a publication waiting for
    ever."""
    engine = subscribed("a", "b", "c")
    engine.publish("t", "m", 0)
    engine.schedule("clock", "i", 0, "tick", 0)
    seen = []
    for _ in range(5):
        give_a_turn(engine)
        seen += step(engine, 0, most=1)
        if seen[-1][0] == "clock":
            engine.schedule("clock", "i", 0, "tick", 0)
            seen += step(engine, 0, most=1)
    assert [cid for cid, _, _ in seen] == ["clock", "a", "clock", "b", "clock", "c", "clock", "clock", "clock"]


@pytest.mark.parametrize("delay", [0, 5])
@pytest.mark.parametrize("begun", [0, 1, 2, 3])
def test_the_messages_of_its_own_conversation_precede_a_timer(begun: int, delay: int) -> None:
    """Fault: the timer overtakes an earlier message to its own conversation (G2), or that message begins twice."""
    engine = subscribed("a", "own", "b", "c")
    engine.subscribe("own", "j", "u", "said")
    engine.publish("t", 1, 0)
    engine.publish("u", 2, 0)
    engine.publish("t", 3, 0)
    engine.schedule("own", "i", delay, "tick", 0)
    engine.publish("t", 4, 6)
    seen = [each for _ in range(begun) for each in step(engine, 6, most=1)]
    give_a_turn(engine)
    seen += all_of(engine, 6, most=1)
    mine = [(instance, payload) for cid, instance, payload in seen if cid == "own"]
    assert mine == [("i", 1), ("j", 2), ("i", 3), ("i", "tick"), ("i", 4)]
    assert [payload for cid, _, payload in seen if cid == "c"] == [1, 3, 4]
    place = seen.index(("own", "i", "tick"))
    assert ("b", "i", 3) in seen[place:], "the messages to others went first"
    assert engine.ledger.delivered == engine.ledger.accepted == len(seen) == 14


@pytest.mark.parametrize("limits", [None, Limits(1000, "drop_oldest")])
@pytest.mark.parametrize("delay", [0, 5])
def test_timers_that_messages_precede_keep_no_other_timer_waiting(delay: int, limits: Limits | None) -> None:
    """Fault: a timer waits for the messages that precede others (G27); a second timer of a conversation overtakes the
    first one, or a message is moved twice (G2)."""
    names = [f"c{number}" for number in range(200)]
    engine = subscribed(*names, limits=limits)
    for number in (1, 2):
        engine.publish("t", number, 0)
    for name in names:
        for instance in ("i", "j"):
            engine.schedule(name, instance, delay, "tick", 0)
    engine.schedule("clock", "i", delay, "tick", 0)
    engine.publish("t", 3, 6)
    give_a_turn(engine)
    seen = step(engine, 6, most=1)
    assert seen == [("clock", "i", "tick")]
    assert sizes(engine)["conversations that begin early"] == len(names)
    seen += all_of(engine, 6, most=1)
    for name in names:
        mine = [(instance, payload) for cid, instance, payload in seen if cid == name]
        assert mine == [("i", 1), ("i", 2), ("i", "tick"), ("j", "tick"), ("i", 3)]
    assert sizes(engine)["conversations that begin early"] == 0
    assert engine.ledger.delivered == engine.ledger.accepted == len(seen) == 5 * len(names) + 1


def test_a_timer_that_becomes_due_while_others_wait_for_their_messages_has_its_turn() -> None:
    """Fault: what went ahead of a publication is delivered to its end before another timer begins (G27)."""
    names = [f"c{number}" for number in range(100)]
    engine = subscribed(*names, "other")
    engine.publish("t", 1, 0)
    for name in names:
        engine.schedule(name, "i", 0, "tick", 0)
    give_a_turn(engine)
    seen = step(engine, 0, most=1)
    for name in ("other", "clock", names[0], "late"):
        engine.schedule(name, "i", 0, "next", 0)
    give_a_turn(engine)
    seen += step(engine, 0, most=1)
    assert seen[-1] == ("clock", "i", "next"), "it waited for the messages of others"
    seen += step(engine, 0, most=1)
    assert seen[-1] == ("late", "i", "next"), "it waited for a conversation that had stood aside"
    seen += all_of(engine, 0, most=1)
    assert [payload for cid, _, payload in seen if cid == names[0]] == [1, "tick", "next"]
    assert [payload for cid, _, payload in seen if cid == "other"] == [1, "next"]


@pytest.mark.parametrize(("conversations", "messages"), [(300, 1), (3, 200)])
@pytest.mark.parametrize("limits", [None, Limits(1000, "drop_oldest")])
def test_the_lock_is_released_between_many_timers_and_messages_that_precede_them(
    conversations: int, messages: int, limits: Limits | None
) -> None:
    """Fault: one step moves all of them, however many there are, and keeps every caller waiting (G14)."""
    names = [f"c{number}" for number in range(conversations)]
    engine = subscribed(*names, limits=limits)
    for number in range(messages):
        engine.publish("t", number, 0)
    for name in names:
        engine.schedule(name, "i", 0, "tick", 0)
    give_a_turn(engine)
    moved = [0]
    while isinstance(engine.claims.begin(0), DueBatch):
        moved.append(len(list(engine.order.early)))
        engine.claims.finish_batch()
    steps = [after - before for before, after in pairwise(moved)]
    assert len(steps) >= conversations * (messages + 1) // 65
    assert 0 < max(steps) <= 65
    engine.claims.finish_fan_out(begin_fan_out(engine), 0)
    seen = all_of(engine, 0)
    assert [each for each in seen if each[0] == "c1"] == [
        *[("c1", "i", number) for number in range(messages)], ("c1", "i", "tick")
    ]  # fmt: skip


def test_nothing_of_what_stood_aside_is_remembered_when_the_engine_is_idle() -> None:
    """Fault: if its last timer is cancelled, the next turn, perhaps a day later, is taken for the one after it, in
    which no timer stands aside, and keeps the others waiting (G27)."""
    engine = subscribed("a", "c")
    engine.publish("t", 1, 0)
    timer = engine.schedule("c", "i", 0, "tick", 0)
    give_a_turn(engine)
    assert step(engine, 0) == [("c", "i", 1)]
    engine.cancel(timer)
    assert engine.order.early.is_empty()
    assert sizes(engine)["conversations that begin early"] == 0
    assert step(engine, 0) == [("a", "i", 1)]
    assert engine.claims.begin(0) is None
    assert engine.claims.turns.moved == 0


def test_a_message_to_a_removed_subscription_precedes_no_timer() -> None:
    """Fault: with a bound for each conversation, a timer goes behind a message that nobody gets, and waits for the
    messages to others that went ahead before it (G27)."""
    names = [f"c{number}" for number in range(10)]
    engine = subscribed(*names, "clock", limits=Limits(100, "drop_oldest"))
    engine.publish("t", 1, 0)
    for name in (*names, "clock"):
        engine.schedule(name, "i", 0, "tick", 0)
    engine.unsubscribe("clock", "i", None)
    give_a_turn(engine)
    assert step(engine, 0) == [("clock", "i", "tick")]


def test_a_timer_of_the_wheel_precedes_a_message_accepted_at_its_due_instant() -> None:
    """Fault: on a tie of a timer with a delay and a message, the message begins first (G2)."""
    engine = subscribed("a", "own")
    engine.schedule("own", "i", 5, "tick", 0)
    engine.publish("t", "early", 4)
    engine.publish("t", "tied", 5)
    give_a_turn(engine)
    seen = all_of(engine, 5, most=1)
    assert [payload for cid, _, payload in seen if cid == "own"] == ["early", "tick", "tied"]


def test_timers_and_messages_of_one_instant_keep_their_order_in_a_turn() -> None:
    """Fault: a timer without delay overtakes a message of its conversation that was accepted at the same instant, or is
    overtaken by one (G2): a coarse clock stands still for many acceptances."""
    engine = subscribed("own", "a")
    for number in range(4):
        engine.publish("t", 10 * number, 0)
        engine.schedule("own", "i", 0, f"{10 * number + 1}", 0)
    give_a_turn(engine)
    seen = all_of(engine, 0, most=1)
    assert [int(payload) for cid, _, payload in seen if cid == "own"] == [0, 1, 10, 11, 20, 21, 30, 31]


def test_a_turn_ends_with_the_timers_that_were_ready_when_it_began() -> None:
    """Fault: timers that become due during the turn extend it without end, and no target begins any more."""
    engine = subscribed("a", "b")
    engine.publish("t", "m", 0)
    for number in range(3):
        engine.schedule(f"clock {number}", "i", 1 + number, "tick", 0)
    give_a_turn(engine)
    assert [step(engine, 2)[0][0], step(engine, 9)[0][0]] == ["clock 0", "clock 1"]
    assert step(engine, 9) == [("a", "i", "m"), ("b", "i", "m")]
    assert step(engine, 9) == [("clock 2", "i", "tick")]


def test_several_instances_hear_an_early_message_in_the_order_of_their_subscriptions() -> None:
    """Fault: the instances of one conversation get a message in another order when it begins before its turn."""
    engine = subscribed("a")
    instances = [f"i{number}" for number in range(20)]
    for name in instances:
        engine.subscribe("own", name, "t", "said")
        engine.subscribe("own", name, f"own topic of {name}", "said")
    engine.publish("t", "m", 0)
    engine.schedule("own", "i3", 0, "tick", 0)
    give_a_turn(engine)
    seen = all_of(engine, 0, most=1)
    assert seen == [*(("own", name, "m") for name in instances), ("own", "i3", "tick"), ("a", "i", "m")]


def test_instances_with_many_topics_hear_an_early_message_in_the_order_of_their_subscriptions() -> None:
    """Fault: the order is that in which the record keeps them, by instance, once it has more than a few (G2)."""
    engine = subscribed("a")
    for number in range(2 * FEW):
        engine.subscribe("own", "i1", f"other {number}", "said")
    for name in ("i3", "i1", "i2"):
        engine.subscribe("own", name, "t", "said")
    engine.publish("t", "m", 0)
    engine.schedule("own", "i1", 0, "tick", 0)
    give_a_turn(engine)
    seen = all_of(engine, 0, most=1)
    assert seen[:4] == [*(("own", name, "m") for name in ("i3", "i1", "i2")), ("own", "i1", "tick")]


def test_a_row_begins_anew_when_nothing_is_ready_any_more() -> None:
    """Fault: targets of long ago count, so that timers have a turn too soon and the order differs from run to run."""
    engine = subscribed("a", "b", "c")
    assert engine.claims.turns.in_a_row == 0
    engine.publish("t", "m", 0)
    engine.claims.turns.in_a_row = 3
    assert len(all_of(engine, 0)) == 3
    assert engine.claims.turns.in_a_row == 0


@pytest.mark.parametrize("gone", ["unsubscribed", "cancelled", "reset", "closed", "ended"])
def test_what_is_taken_away_in_the_middle_of_a_turn_never_begins(gone: str) -> None:
    """Fault: an early message or its timer begins after it was removed (G5, G18), or gets no fate or two."""
    engine = subscribed("a", "own", "b")
    engine.publish("t", 1, 0)
    engine.publish("t", 2, 0)
    engine.schedule("own", "i", 0, "tick", 0)
    give_a_turn(engine)
    assert step(engine, 0) == [("own", "i", 1)]
    if gone == "unsubscribed":
        engine.unsubscribe("own", "i", "t")
    elif gone == "cancelled":
        engine.cancel_timers("own", None)
    elif gone == "ended":
        engine.end_conversation("own")
    else:
        (engine.reset if gone == "reset" else engine.close)()
    engine._check()
    rest = all_of(engine, 0, most=1)
    left = {"unsubscribed": ["tick"], "cancelled": [2], "ended": []}.get(gone, [])
    assert [payload for cid, _, payload in rest if cid == "own"] == left
    assert sorted(cid for cid, _, payload in rest if payload != "tick" and cid != "own") == (
        [] if gone in ("reset", "closed") else ["a", "a", "b", "b"]
    )
    assert engine.stats().balanced
    assert engine.order.next_instant() is None


def test_recovery_keeps_the_order_in_the_middle_of_a_turn() -> None:
    """Fault: after an asynchronous exception an early message is lost, comes twice, or behind its timer (G20)."""
    engine = subscribed("a", "own", "b")
    for number in range(3):
        engine.publish("t", number, 0)
    engine.schedule("own", "i", 0, "tick", 0)
    give_a_turn(engine)
    assert step(engine, 0) == [("own", "i", 0)]
    rebuild(engine)
    engine._check()
    engine.publish("t", 3, 0)
    give_a_turn(engine)
    seen = all_of(engine, 0, most=1)
    assert [payload for cid, _, payload in seen if cid == "own"] == [1, 2, "tick", 3]
    assert [payload for cid, _, payload in seen if cid == "b"] == [0, 1, 2, 3]


@pytest.mark.parametrize("limits", [None, Limits(1000, "drop_oldest")])
@pytest.mark.parametrize("seed", range(30))
def test_random_turns_keep_the_order_of_every_conversation(seed: int, limits: Limits | None) -> None:
    """Fault: with some interleaving of turns, changes and interruptions a conversation gets something out of order,
    twice or never (G2, G5), or a figure is wrong."""
    chance, now = random.Random(seed), 0
    engine = Engine(None, limits=limits)
    cids, expected, seen = "abcdef", {cid: [] for cid in "abcdef"}, {cid: [] for cid in "abcdef"}  # type: ignore[var-annotated]
    heard: set[tuple[str, str, str]] = set()
    for number in range(400):
        change, cid = chance.random(), chance.choice(cids)
        if change < 0.2:
            delay = chance.choice((0, 0, 1, 3, SLOT, 5 * SLOT))
            timer = engine.schedule(cid, chance.choice("ij"), delay, f"{number}", now)
            expected[cid].append((timer.due, number, str(number)))
        elif change < 0.35:
            topic, instance = chance.choice("tuv"), chance.choice("ij")
            engine.subscribe(cid, instance, topic, "said")
            heard.add((topic, cid, instance))
        elif change < 0.55:
            topic = chance.choice("tuv")
            engine.publish(topic, number, now)
            for name, hearer, _ in heard:
                if name == topic:
                    expected[hearer].append((now, number, number))
        elif change < 0.6:
            now += chance.choice((1, 2, SLOT))
        else:
            if chance.random() < 0.7:
                give_a_turn(engine)
            for hearer, _, payload in step(engine, now, chance.randint(1, 3)):
                seen[hearer].append(payload)
        engine._check()
    now += 6 * SLOT
    while found := step(engine, now, 2):
        for hearer, _, payload in found:
            seen[hearer].append(payload)
        if chance.random() < 0.5:
            give_a_turn(engine)
    for cid in cids:
        assert seen[cid] == [payload for _, _, payload in sorted(expected[cid], key=lambda entry: entry[:2])]
    assert engine.ledger.delivered == engine.ledger.accepted


@pytest.mark.parametrize("delay", [0, 5])
def test_a_timer_overtakes_others_on_a_loop_as_well(delay: int) -> None:
    """Fault: the mailboxes give timers no turn, or a timer overtakes a message of its own conversation (G27, G2)."""
    engine: Engine[MailboxClaims] = Engine(None, claims=MailboxClaims)
    for name in ("own", *(f"c{number}" for number in range(40))):
        engine.subscribe(name, "i", "t", "said")
    engine.publish("t", 1, 0)
    engine.publish("t", 2, 0)
    engine.schedule("own", "i", delay, "tick", 0)
    engine.schedule("clock", "i", delay, "tick", 0)
    seen = []
    while (box := engine.claims.next_box(5, "server")) is not None:
        while (event := engine.claims.claim(box)) is not None:
            seen.append((box.cid, event.payload if event.name == "said" else "tick"))
            engine.claims.finish(box, failed=False)
        engine._check()
    assert [payload for cid, payload in seen if cid == "own"] == [1, 2, "tick"]
    assert seen.index(("clock", "tick")) <= 1 + IN_A_ROW_ON_A_LOOP + 2
    assert len(seen) == 2 * 41 + 2
    assert engine.stats().balanced


def test_a_parked_message_is_not_taken_for_one_that_waits_in_the_order() -> None:
    """Fault: with a bound for each conversation, messages in the mailbox of a handler that waits are moved before their
    timer, parked again and moved again, without end, and nothing else is delivered (G10, G27)."""
    engine: Engine[MailboxClaims] = Engine(None, limits=Limits(100, "drop_oldest"), claims=MailboxClaims)
    for name in ("own", *(f"c{number}" for number in range(40))):
        engine.subscribe(name, "i", "t", "said")
    for number in (1, 2):
        engine.publish("t", number, 0)
    engine.schedule("own", "i", 0, "tick", 0)
    engine.schedule("clock", "i", 0, "tick", 0)
    claims, seen = engine.claims, []
    own = claims.next_box(0, "server")
    assert own is not None
    assert claims.claim(own) is not None  # and its handler waits
    for _ in range(1000):
        box = claims.next_box(0, "server")
        if box is None:
            break
        while box is not AGAIN and claims.claim(box) is not None:
            seen.append(box.cid)
            claims.finish(box, failed=False)
    assert len(seen) == 2 * 40 + 1
    assert seen.index("clock") <= 40 + IN_A_ROW_ON_A_LOOP
    claims.finish(own, failed=False)
    rest = []
    while (event := claims.claim(own)) is not None:
        rest.append(event.name)
        claims.finish(own, failed=False)
    assert rest == ["said", "tick"]
    engine._check()


def test_the_cost_of_an_early_message_does_not_grow_with_their_number() -> None:
    """Fault: what has been handed out is noted in a new set each time, which is quadratic (G14)."""
    engine = subscribed("a", *(f"c{number}" for number in range(5)))
    engine.publish("t", "m", 0)
    publication = engine.order.arrivals.after
    noted = []
    for number in range(5):
        engine.schedule(f"c{number}", "i", 0, "tick", 0)
    for _ in range(5):
        give_a_turn(engine)
        step(engine, 0)
        step(engine, 0)
        noted.append(publication.served)
    assert len(noted[-1]) == 5
    assert all(one is noted[0] for one in noted)


def test_the_early_messages_are_shown_and_counted() -> None:
    """Fault: an early message that waits is in no snapshot, or counts as no pending work (G13, G22)."""
    engine = subscribed("a", "own")
    engine.publish("t", 1, 0)
    engine.publish("t", 2, 0)
    engine.schedule("own", "i", 0, "tick", 0)
    give_a_turn(engine)
    fan_out = begin_fan_out(engine)
    assert [target.cid for target in fan_out.targets] == ["own"]
    assert engine.order.next_instant() is not None
    assert not engine.is_idle(0, timers_too=False)
    engine._check()
    assert [type(entry) for entry in engine.order.early] == [Publication, Publication, Timer]
    engine.claims.finish_fan_out(fan_out, len(list(fan_out.iterator)))
    assert engine.stats().queued == 3
    engine.reset()
    assert engine.stats().dropped == 4
