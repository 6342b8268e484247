"""The engine's operations, one at a time: their results, their figures in the ledger, and their refusals.

The conformance suite shows the same through the public interface. This file tests the figures and the edge cases that
the suite cannot reach, such as a bound that is met exactly, or a timer that is admitted after its cancel.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from typing import Any

import pytest
from typing_extensions import override

from stube import ConversationInfo, RegistryClosed, RegistryFull, Stats, SubscriptionInfo, TimerInfo
from stube_backends.engine import Engine
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import FanOut, Publication, Topic
from stube_backends.engine._wheel import SLOT_BITS
from tests.backends.helpers import begin_fan_out, begun_fan_out, figures, snapshots

CLOSED = "The registry is closed, so nothing can be added to it. Create a new one."
MS = 1_000_000
SLOT = 1 << SLOT_BITS


class Owner:
    """An owner that cancels for the handles of its timers, as a registry does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def cancel_timer(self, timer: Timer) -> bool:
        return self.engine.cancel(timer) is not None


class Plain:
    """A payload that the engine must neither test nor compare."""

    def __bool__(self) -> bool:
        raise AssertionError("tested")

    @override
    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]


def full(held: int, wanted: int, bound: int) -> str:
    """Return the message of a `RegistryFull`."""
    return (
        f"The registry holds {held} timers and messages, and {wanted} more "
        f"would pass max_pending={bound}. Raise max_pending, or schedule and publish less."
    )


def schedule(
    engine: Engine, cid: str = "c", delay: int = 0, now: int = 0, event: Any = "e", instance: str = "i"
) -> Timer:
    own(engine)
    return engine.schedule(cid, instance, delay, event, now)


def detached(engine: Engine, cid: str = "c", event: Any = "e") -> Timer:
    own(engine)
    return Timer.pending_admission(engine.records, cid, "i", event)


def own(engine: Engine) -> None:
    """Let the handles of the engine's timers cancel."""
    engine.records.owner = partial(Owner, engine)


def begin(engine: Engine, now: int = 0) -> Timer:
    timer = engine.claims.begin(now)
    assert isinstance(timer, Timer)
    return timer


def subscribe_many(engine: Engine, size: int, topic: str = "t") -> None:
    for number in range(size):
        engine.subscribe(f"c{number}", "i", topic, "said")


# Batons


def test_a_new_baton_replaces_the_old_one_and_returns_it() -> None:
    """Fault: the engine releases the replaced baton itself, but a destructor must not run there."""
    engine = Engine(None)
    first, second = Plain(), Plain()
    assert engine.put_flow("c", first) is None
    assert engine.put_flow("c", second) is first
    assert engine.flows["c"] is second
    assert engine.stats().pending_flows == 1


@pytest.mark.parametrize(("most", "large"), [(64, False), (65, True)])
def test_only_a_table_of_batons_that_was_large_and_is_empty_shrinks(most: int, large: bool) -> None:
    """Fault: the engine shrinks the table every time, while it holds a baton, or never (G13)."""
    engine = Engine(None)
    for number in range(most):
        engine.put_flow(f"c{number}", number)
    engine.put_flow("c0", "again")
    assert engine.flows_large is large
    table = engine.flows
    size = sys.getsizeof(table)
    engine.shrink_flows()
    assert (len(engine.flows), sys.getsizeof(engine.flows), engine.flows_large) == (most, size, True)
    for number in range(most):
        del engine.flows[f"c{number}"]
    engine.shrink_flows()
    assert engine.flows is table, "a baton that is put without the lock at this moment would be lost"
    assert (table, engine.flows_large) == ({}, False)
    assert sys.getsizeof(table) < size / 5


def test_an_emptied_table_of_batons_releases_its_memory() -> None:
    """Fault: `shrink_flows` does nothing, so the empty table stays as large as it ever was (G13)."""
    engine = Engine(None)
    for number in range(2000):
        engine.put_flow(f"c{number}", number)
    for number in range(2000):
        engine.flows.pop(f"c{number}")
    before = sys.getsizeof(engine.flows)
    engine.shrink_flows()
    assert sys.getsizeof(engine.flows) < before / 10


def test_a_reset_forgets_that_the_table_of_batons_was_large() -> None:
    """Fault: the engine shrinks the table needlessly when the first baton after a reset is taken."""
    engine = Engine(None)
    for number in range(2000):
        engine.put_flow(f"c{number}", number)
    engine.reset()
    assert engine.flows == {}
    assert not engine.flows_large


# Bounds


def test_timers_up_to_the_bound_are_accepted_and_one_more_is_refused() -> None:
    """Fault: the engine accepts one too few or too many, a refusal changes something, or its message is wrong (G22)."""
    engine = Engine(2)
    schedule(engine)
    schedule(engine, delay=5)
    before = sizes(engine)
    with pytest.raises(RegistryFull) as caught:
        schedule(engine)
    assert str(caught.value) == full(2, 1, 2)
    assert figures(engine) == {"accepted": 2, "timers": 2}
    assert sizes(engine) == before


def test_timers_and_messages_share_the_bound() -> None:
    """Fault: the bound does not count one of the two, or subtracts it (G22)."""
    engine = Engine(5)
    subscribe_many(engine, 2)
    schedule(engine)
    assert engine.publish("t", "m", 0) == 2
    assert engine.publish("t", "m", 0) == 2
    with pytest.raises(RegistryFull) as caught:
        schedule(engine)
    assert str(caught.value) == full(5, 1, 5)
    engine.cancel_timers("c", None)
    with pytest.raises(RegistryFull) as caught:
        engine.publish("t", "m", 0)
    assert str(caught.value) == full(4, 2, 5)
    assert engine.publish("nobody", "m", 0) == 0
    schedule(engine)
    assert figures(engine) == {"accepted": 6, "timers": 1, "queued": 4, "cancelled": 1}


def test_a_target_that_has_begun_frees_room_for_a_publication() -> None:
    """Fault: the engine updates `queued` before it accepts a timer, but not before a publication (G22)."""
    engine = Engine(3)
    subscribe_many(engine, 3)
    engine.publish("t", "m", 0)
    fan_out = begin_fan_out(engine)
    engine.subscribe("late", "i", "u", "said")
    with pytest.raises(RegistryFull) as caught:
        engine.publish("u", "m", 0)
    assert str(caught.value) == full(3, 1, 3)
    next(fan_out.iterator)
    engine.require_publishable("u")
    assert engine.publish("u", "m", 0) == 1


def test_an_engine_without_max_pending_has_no_bound() -> None:
    """Fault: an engine without `max_pending` refuses a timer when it holds very many."""
    engine = Engine(None)
    engine.ledger.timers = 1 << 60
    schedule(engine)


# Checks before a deferred call


def test_require_admission_refuses_in_the_same_cases_as_schedule() -> None:
    """Fault: the check ignores timers that wait to be admitted, is off by one, or accepts for a closed engine."""
    engine = Engine(4)
    subscribe_many(engine, 1)
    schedule(engine)
    engine.publish("t", "m", 0)
    engine.require_admission(0)
    engine.require_admission(1)
    with pytest.raises(RegistryFull) as caught:
        engine.require_admission(2)
    assert str(caught.value) == full(2, 1, 4)
    engine.close()
    with pytest.raises(RegistryClosed) as closed:
        engine.require_admission(0)
    assert str(closed.value) == CLOSED


def test_require_publishable_counts_the_subscribers_of_the_topic() -> None:
    """Fault: the check refuses a topic without subscribers, or accepts a topic with too many."""
    engine = Engine(2)
    subscribe_many(engine, 2)
    subscribe_many(engine, 1, "small")
    schedule(engine)
    engine.require_publishable("nobody")
    engine.require_publishable("small")
    with pytest.raises(RegistryFull) as caught:
        engine.require_publishable("t")
    assert str(caught.value) == full(1, 2, 2)
    engine.close()
    with pytest.raises(RegistryClosed) as closed:
        engine.require_publishable("nobody")
    assert str(closed.value) == CLOSED


# Admitting


@pytest.mark.parametrize("delay", [0, 7])
def test_an_admitted_timer_is_like_a_scheduled_one(delay: int) -> None:
    """Fault: the admitted timer is in no ring or no group, is due at another instant, or is not counted."""
    engine = Engine(None)
    schedule(engine, "first", delay=delay)
    event = ("e", Plain())
    timer = detached(engine, event=event)
    assert engine.admit(timer, delay, 0) is None
    assert figures(engine) == {"accepted": 2, "timers": 2}
    assert timer.table is engine.records
    assert engine.records.timers("c", "i") == [timer]
    assert timer.due == delay
    assert engine.claims.begin(delay) is not timer
    assert engine.claims.begin(delay, False) is timer
    assert timer.event is event


def test_an_admission_is_no_earlier_than_the_latest_acceptance() -> None:
    """Fault: an admission gets an earlier instant than the acceptance before it, so arrivals are out of order (G2)."""
    engine = Engine(None)
    schedule(engine, now=50)
    timer, other = detached(engine, "d"), detached(engine, "d")
    engine.admit(timer, 0, 40)
    engine.admit(other, 3, 60)
    schedule(engine, now=55)
    engine._check()
    assert (timer.due, other.due, engine.order.last_accepted_ns) == (50, 63, 60)
    assert inspect(engine, "d", 50)["d"].timers[1].remaining_ms == 13 / MS


def test_a_timer_cancelled_before_its_admission_counts_as_cancelled() -> None:
    """Fault: the engine admits the cancelled timer, counts it as dropped, or does not count it."""
    engine = Engine(None)
    for _ in range(2):
        timer = detached(engine, event=("e", 1))
        assert timer.cancel()
        assert not timer.cancel()
        assert (timer.event, timer.table, timer.after) == (None, None, None)
        assert engine.admit(timer, 5, 0) is None
    assert figures(engine) == {"accepted": 2, "cancelled": 2}
    assert set(sizes(engine).values()) == {0}


@pytest.mark.parametrize("why", ["closed", "full of timers", "full of both"])
def test_an_admission_without_room_is_dropped_and_returns_its_event(why: str) -> None:
    """Fault: the engine exceeds the bound, holds a timer although it is closed, or releases the event itself."""
    engine = Engine(2)
    subscribe_many(engine, 1)
    schedule(engine)
    if why == "full of timers":
        schedule(engine)
    else:
        engine.publish("t", "m", 0)
    if why == "closed":
        engine.close()
    before = dict(figures(engine))
    for number in (1, 2):
        event = ("e", Plain())
        timer = detached(engine, event=event)
        assert engine.admit(timer, 5, 0) is event
        assert (timer.event, timer.table, timer.after) == (None, None, None)
        assert not timer.cancel()
        assert engine.ledger.dropped == before.get("dropped", 0) + number
        assert engine.ledger.accepted == before["accepted"] + number
    engine._check()


def test_an_admission_up_to_the_bound_is_accepted() -> None:
    """Fault: the bound is off by one, or messages are subtracted from it."""
    engine = Engine(3)
    subscribe_many(engine, 1)
    schedule(engine)
    engine.publish("t", "m", 0)
    assert engine.admit(detached(engine), 5, 0) is None
    assert figures(engine) == {"accepted": 3, "timers": 2, "queued": 1}
    assert engine.admit(detached(engine), 5, 0) == "e"


# Cancelling


@pytest.mark.parametrize("delay", [0, 7, 3 * SLOT])
def test_a_cancel_returns_the_event_and_empties_the_handle(delay: int) -> None:
    """Fault: the handle keeps the payload alive, or the engine releases the event itself (G13, G20)."""
    engine = Engine(None)
    event = ("e", Plain())
    timer = schedule(engine, delay=delay, event=event)
    assert engine.cancel(timer) is event
    assert (timer.event, timer.table, timer.after) == (None, None, None)
    assert engine.cancel(timer) is None
    assert figures(engine) == {"accepted": 1, "cancelled": 1}
    assert set(sizes(engine).values()) == {0}


def test_an_engine_does_not_cancel_a_timer_of_another_engine() -> None:
    """Fault: in a forked child, a handle from before the fork cancels its timer and unlinks it from rings (G25)."""
    engine, other = Engine(None), Engine(None)
    timer = schedule(engine)
    schedule(other)
    assert other.cancel(timer) is None
    assert timer.event == "e"
    assert engine.cancel(timer) == "e"
    assert figures(engine) == {"accepted": 1, "cancelled": 1}
    assert figures(other) == {"accepted": 1, "timers": 1}


def test_a_timer_that_has_begun_cannot_be_cancelled() -> None:
    """Fault: a cancel between the claim and the delivery counts the timer a second time, or breaks a ring (G5)."""
    engine = Engine(None)
    first, _ = schedule(engine), schedule(engine)
    assert begin(engine) is first
    assert engine.cancel(first) is None
    assert first.event == "e"
    assert figures(engine) == {"accepted": 2, "timers": 1, "running": 1}
    assert engine.cancel_timers("c", None) == ["e"]


def test_cancel_timers_returns_every_event_and_empties_the_handles() -> None:
    """Fault: the engine releases an event itself, or a handle keeps one alive (G13, G20)."""
    engine = Engine(None)
    events = [(f"e{number}", Plain()) for number in range(4)]
    timers = [schedule(engine, delay=number * SLOT, event=event) for number, event in enumerate(events)]
    other = schedule(engine, instance="other")
    returned = engine.cancel_timers("c", "i")
    assert {id(event) for event in returned} == {id(event) for event in events}
    assert [(timer.event, timer.table, timer.after) for timer in timers] == [(None, None, None)] * 4
    assert figures(engine) == {"accepted": 5, "timers": 1, "cancelled": 4}
    assert engine.cancel_timers("c", "i") == []
    assert engine.cancel_timers("nobody", None) == []
    assert other.cancel()


# A closed engine


def test_a_closed_engine_refuses_additions_and_accepts_removals() -> None:
    """Fault: a closed engine accepts an addition, or raises another error or another message (G24)."""
    engine = Engine(None)
    subscribe_many(engine, 1)
    assert engine.closed == False  # noqa: E712 - `is` would tell the type checker that it stays so
    engine.close()
    assert engine.closed == True  # noqa: E712
    for refused in (
        lambda: engine.put_flow("c", 1),
        lambda: schedule(engine),
        lambda: engine.subscribe("c", "i", "t", "e"),
        lambda: engine.publish("t", "m", 0),
        lambda: engine.publish("nobody", "m", 0),
    ):
        with pytest.raises(RegistryClosed) as caught:
            refused()
        assert str(caught.value) == CLOSED
    assert engine.unsubscribe("c", None, None) == []
    assert engine.cancel_timers("c", None) == []
    assert set(sizes(engine).values()) == {0}


# Publishing and the order of instants


def test_a_publication_keeps_its_topic_instant_message_and_targets() -> None:
    """Fault: a publication has the topic name, the instant, the message or the targets of another one."""
    engine = Engine(None)
    subscribe_many(engine, 3)
    message = Plain()
    assert engine.publish("t", message, 5) == 3
    (publication,) = engine.order.arrivals
    assert isinstance(publication, Publication)
    assert (publication.topic_name, publication.due, publication.targeted, publication.length) == ("t", 5, 3, 3)
    assert publication.message is message
    topic = engine.topics.topics["t"]
    assert isinstance(topic, Topic)
    assert snapshots(topic) == (1, 3)
    engine.publish("t", message, 5)
    assert snapshots(topic) == (2, 3)
    assert figures(engine) == {"accepted": 6, "queued": 6}
    fan_out = begin_fan_out(engine, 5)
    assert (fan_out.topic_name, fan_out.total) == ("t", 3)
    assert fan_out.message is message


def test_instants_of_acceptance_never_decrease() -> None:
    """Fault: a caller reads the clock and then waits for the lock, so a later acceptance comes first (G2)."""
    engine = Engine(None)
    subscribe_many(engine, 1)
    late = schedule(engine, now=100)
    early = schedule(engine, now=90)
    engine.publish("t", "m", 80)
    engine.publish("t", "m", 120)
    waiting = schedule(engine, now=110, delay=7)
    assert (late.due, early.due, waiting.due) == (100, 100, 127)
    assert [entry.due for entry in engine.order.arrivals] == [100, 100, 100, 120]
    assert engine.order.last_accepted_ns == 120
    engine.claims.begin(200)
    assert engine.order.last_accepted_ns == 200
    engine.claims.finish_timer(failed=False)
    engine.claims.begin(150)
    assert engine.order.last_accepted_ns == 200


# Delivering


def test_each_fate_of_a_timer_is_counted_as_itself() -> None:
    """Fault: the ledger counts a failure as delivered, or a timer as running after its end."""
    engine = Engine(None)
    for _ in range(6):
        schedule(engine)
    for failed in (None, False, True, True):
        assert isinstance(engine.claims.begin(0, failed), Timer)
        assert engine.ledger.running == 1
    assert figures(engine) == {"accepted": 6, "timers": 2, "running": 1, "delivered": 1, "failed": 2}
    engine.claims.finish_timer(failed=True)
    engine.claims.begin(0)
    engine.claims.finish_timer(failed=False)
    assert figures(engine) == {"accepted": 6, "timers": 1, "delivered": 2, "failed": 3}
    assert engine.claims.begin(-1) is not None
    assert engine.claims.begin(0, False) is None
    assert figures(engine) == {"accepted": 6, "delivered": 3, "failed": 3}


def test_each_fate_of_the_targets_of_a_fan_out_is_counted_as_itself() -> None:
    """Fault: the ledger counts one fate as another, or the engine forgets the fan-out before its end, or never."""
    engine = Engine(None)
    subscribe_many(engine, 8)
    engine.publish("t", "m", 0)
    engine.unsubscribe("c0", None, None)
    fan_out = begin_fan_out(engine)
    for _ in range(4):
        next(fan_out.iterator)
    fan_out.cancelled = 1
    engine.claims.finish_fan_out(fan_out, 1, 2)
    assert (fan_out.cancelled, fan_out.dropped) == (0, 0)
    assert (engine.claims.fan_out, fan_out.decided, fan_out.accounted) == (None, 4, 4)
    assert figures(engine) == {"accepted": 8, "queued": 4, "delivered": 1, "cancelled": 1, "failed": 2}
    rest = begin_fan_out(engine)
    assert [target.cid for target in rest.iterator] == ["c4", "c5", "c6", "c7"]
    engine.claims.finish_fan_out(rest, 4)
    assert (rest.decided, engine.claims.fan_out) == (4, None)
    assert figures(engine) == {"accepted": 8, "delivered": 5, "cancelled": 1, "failed": 2}


def test_an_interrupted_delivery_is_not_counted_as_running() -> None:
    """Fault: an interrupted timer stays running or gets no fate, or a fan-out loses targets that have not begun."""
    engine = Engine(None)
    engine.claims.abandon()
    assert figures(engine) == {}
    schedule(engine)
    engine.claims.begin(0)
    engine.claims.abandon()
    assert figures(engine) == {"accepted": 1, "failed": 1}
    subscribe_many(engine, 2)
    engine.publish("t", "m", 0)
    fan_out = begin_fan_out(engine)
    engine.claims.abandon()
    assert engine.claims.fan_out is None
    assert figures(engine) == {"accepted": 3, "failed": 1, "queued": 2}
    again = begin_fan_out(engine)
    assert again.targets == fan_out.targets
    next(again.iterator)
    assert begin_fan_out(engine).targets == again.targets[1:]  # the fate of the first is lost
    assert engine.ledger.failed == 2


def test_idle_means_that_nothing_runs_and_nothing_is_ready() -> None:
    """Fault: `settle` returns while a delivery runs or is ready, or waits for a timer that is not due; or `join`
    returns before that timer."""
    engine = Engine(None)
    assert engine.is_idle(0, timers_too=False) is True
    assert engine.is_idle(0, timers_too=True) is True
    schedule(engine, delay=10)
    assert engine.is_idle(9, timers_too=False) is True
    assert engine.is_idle(10, timers_too=False) is False
    assert engine.is_idle(11, timers_too=False) is False
    assert engine.is_idle(9, timers_too=True) is False
    begin(engine, 10)
    assert engine.is_idle(10, timers_too=False) is False
    assert engine.is_idle(10, timers_too=True) is False
    engine.claims.finish_timer(failed=False)
    assert engine.is_idle(10, timers_too=True) is True
    schedule(engine, now=10)
    assert engine.is_idle(0, timers_too=False) is False
    begin(engine, 10)
    engine.claims.finish_timer(failed=False)
    subscribe_many(engine, 1)
    engine.publish("t", "m", 10)
    assert engine.is_idle(0, timers_too=False) is False
    fan_out = begin_fan_out(engine, 10)
    engine.ledger.running = 0
    assert engine.is_idle(10, timers_too=True) is False  # an interrupted fan-out
    engine.ledger.running = 1
    list(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 1)
    assert engine.is_idle(10, timers_too=True) is True


def test_an_engine_with_a_publication_to_no_live_target_is_not_idle() -> None:
    """Fault: the engine is idle although it still holds the message."""
    engine = Engine(None)
    subscribe_many(engine, 1)
    engine.publish("t", "m", 0)
    engine.unsubscribe("c0", None, None)
    engine.ledger.queued -= 1
    engine.ledger.cancelled += 1
    assert engine.is_idle(0, timers_too=False) is False
    assert engine.is_idle(0, timers_too=True) is False


# Reset


def test_a_reset_returns_everything_held_and_counts_it_as_dropped() -> None:
    """Fault: the engine releases an event or a message itself, or counts a fate twice (G18, G20)."""
    engine = Engine(None)
    event, message, flow = ("e", Plain()), Plain(), Plain()
    engine.put_flow("c", flow)
    timers = [schedule(engine, event=event), schedule(engine, delay=SLOT, event=event)]
    subscribe_many(engine, 3)
    engine.publish("t", message, 0)
    engine.unsubscribe("c1", None, None)
    engine.publish("t", message, 0)
    held = engine.reset()
    assert figures(engine) == {"accepted": 7, "dropped": 6, "cancelled": 1}
    assert sum(each is event for each in held) == 2
    assert held[-1]["c"] is flow
    assert [(timer.event, timer.table, timer.after) for timer in timers] == [(None, None, None)] * 2
    assert set(sizes(engine).values()) == {0}
    assert engine.subscriptions() == {}
    assert engine.stats() == Stats(0, 0, 0, 0, 0, 7, 0, 0, 1, 6)


def test_a_reset_forgets_an_interrupted_fan_out() -> None:
    """Fault: the interrupted fan-out continues after the reset (G18)."""
    engine, fan_out = begun_fan_out(3)
    next(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 1)
    engine.unsubscribe("c2", None, None)
    held = engine.reset()
    assert any(each is fan_out.publication for each in held)
    assert engine.claims.fan_out is None
    assert figures(engine) == {"accepted": 3, "delivered": 1, "dropped": 1, "cancelled": 1}
    assert engine.claims.begin(0) is None


def test_interrupting_a_fan_out_after_a_reset_counts_no_failure() -> None:
    """Fault: the reset forgets a running fan-out, so its interruption counts as a failed timer, never accepted."""
    engine, fan_out = begun_fan_out(2)
    engine.reset()
    assert engine.claims.fan_out is fan_out
    engine.claims.abandon()
    assert figures(engine) == {"accepted": 2, "dropped": 2}


@pytest.mark.parametrize("ended_by", ["the delivery thread", "an interruption"])
def test_a_fan_out_that_a_reset_stopped_counts_each_target_once(ended_by: str) -> None:
    """Fault: the target at which the delivery thread found the fan-out stopped counts twice, or as failed."""
    engine, fan_out = begun_fan_out(4)
    claims = fan_out.claim_each(lambda: None)
    assert next(claims)[0].cid == "c0"
    engine.reset()
    assert next(claims, None) is None
    if ended_by == "the delivery thread":
        engine.claims.finish_fan_out(fan_out, 1)
    else:
        engine.claims.abandon()
    assert (fan_out.decided, engine.claims.fan_out) == (4, None)
    fate = "delivered" if ended_by == "the delivery thread" else "failed"
    assert figures(engine) == {"accepted": 4, "dropped": 3, fate: 1}


def test_what_is_dropped_in_progress_is_no_longer_queued() -> None:
    """Fault: the targets of the fan-out in progress stay queued, or those of a later publication do not."""
    engine = Engine(None)
    subscribe_many(engine, 3)
    for _ in range(3):
        engine.publish("t", "m", 0)
    next(begin_fan_out(engine).iterator)
    assert engine.stats().queued == 8
    engine.claims.drop_in_progress()
    assert figures(engine) == {"accepted": 9, "queued": 6, "running": 1}


def test_the_drops_of_several_resets_add_up() -> None:
    """Fault: a second reset replaces the count of the drops of the first one."""
    engine = Engine(None)
    for _ in range(3):
        subscribe_many(engine, 2)
        schedule(engine)
        engine.publish("t", "m", 0)
        engine.publish("t", "m", 0)
        engine.unsubscribe("c0", None, None)
        engine.reset()
    assert figures(engine) == {"accepted": 15, "dropped": 9, "cancelled": 6}


# Inspection


def test_inspect_shows_the_state_of_each_conversation() -> None:
    """Fault: `inspect` leaves out a conversation, shows the state of another, or a figure is off by one."""
    engine = Engine(None)
    engine.put_flow("baton", 1)
    schedule(engine, "timers", delay=3 * SLOT, event=("later", 1))
    schedule(engine, "timers", delay=2 * MS, instance="j")
    engine.subscribe("subscriber", "i", "t", ("said", 2))
    engine.subscribe("subscriber", "j", "u", "heard")
    engine.subscribe("queued", "i", "t", "said")
    engine.publish("t", "m", 0)
    engine.publish("t", "m", 0)
    engine.publish("u", "m", 0)
    engine.unsubscribe("queued", None, None)
    found = inspect(engine, None, MS)
    assert list(found) == ["baton", "subscriber", "timers"]
    empty: dict[str, Any] = {"timers": (), "subscriptions": (), "queued": 0, "running": 0, "pending_flow": False}
    assert found["baton"] == ConversationInfo(**{**empty, "pending_flow": True})
    assert found["timers"] == ConversationInfo(
        **{**empty, "timers": (TimerInfo("j", "e", 1.0), TimerInfo("i", ("later", 1), 3 * SLOT / MS - 1))}
    )
    subscriptions = (SubscriptionInfo("i", "t", ("said", 2)), SubscriptionInfo("j", "u", "heard"))
    assert found["subscriber"] == ConversationInfo(**{**empty, "subscriptions": subscriptions, "queued": 3})
    assert inspect(engine, "timers", 10 * SLOT)["timers"].timers[0].remaining_ms == 0.0
    assert inspect(engine, "baton", 0).keys() == {"baton"}
    assert inspect(engine, "nobody", 0) == {}


def test_inspect_shows_only_the_running_conversation_as_running() -> None:
    """Fault: `inspect` shows a conversation as running after the end of its fan-out or of its timer."""
    engine = Engine(None)
    schedule(engine, "timer")
    begin(engine)
    assert {cid: info.running for cid, info in inspect(engine, None, 0).items()} == {"timer": 1}
    subscribe_many(engine, 2)
    engine.claims.finish_timer(failed=False)
    engine.publish("t", "m", 0)
    assert {cid: info.running for cid, info in inspect(engine, None, 0).items()} == {"c0": 0, "c1": 0}
    fan_out = begin_fan_out(engine)
    assert {info.running for info in inspect(engine, None, 0).values()} == {0}
    next(fan_out.iterator)
    shown = {cid: (info.running, info.queued) for cid, info in inspect(engine, None, 0).items()}
    assert shown == {"c0": (1, 0), "c1": (0, 1)}
    engine.unsubscribe("c0", None, None)
    assert inspect(engine, "c0", 0)["c0"].running == 1
    engine.claims.finish_fan_out(fan_out, 1)
    assert inspect(engine, "c0", 0) == {}
    next(fan_out.iterator)


def test_sizes_report_every_container_separately() -> None:
    """Fault: the sizes leave out a container, so the leak tests do not see a leak in it (G13)."""
    engine = Engine(None)
    engine.put_flow("c", 1)
    for number in range(3):
        schedule(engine, "c", delay=SLOT * (1 + number), instance=f"i{number % 2}")
    schedule(engine, "d", delay=SLOT)
    schedule(engine, "d")
    subscribe_many(engine, 3)
    engine.subscribe("c0", "j", "t", "said")
    engine.subscribe("c0", "j", "u", "said")
    engine.publish("t", "m", 0)
    engine.publish("u", "m", 0)
    assert sizes(engine) == {
        "pending flows": 1,
        "conversations": 5,
        "timers of conversations": 5,
        "subscriptions of conversations": 5,
        "slots": 3,
        "timers in slots": 4,
        "open slot": 0,
        "arrivals": 3,
        "conversations that begin early": 0,
        "topics": 2,
        "topic entries": 5,
        "targets of the fan-out": 0,
        "timers of the batch": 0,
    }
    begin(engine)
    engine.claims.finish_timer(failed=False)
    fan_out = begin_fan_out(engine)
    begun = sizes(engine)
    assert (begun["targets of the fan-out"], begun["arrivals"]) == (4, 2)
    list(fan_out.iterator)
    engine.claims.finish_fan_out(fan_out, 4)
    assert sizes(engine)["targets of the fan-out"] == 0
    engine.unsubscribe("c0", "j", "u")  # now only the publication still refers to the list
    assert sizes(engine)["topic entries"] == 5


def test_sizes_count_every_list_that_only_a_publication_refers_to() -> None:
    """Fault: the sizes count only one of several such lists (G13)."""
    engine = Engine(None)
    for size in (1, 2, 4):
        subscribe_many(engine, size)
        engine.publish("t", "m", 0)
        for number in range(size):
            engine.unsubscribe(f"c{number}", None, None)
    subscribe_many(engine, 8)
    assert sizes(engine)["topic entries"] == 15


def test_a_reentrant_read_of_the_stats_does_not_update_the_ledger() -> None:
    """Fault: a re-entrant call reads the stats, and updates the ledger that another operation is changing (G20)."""
    engine = Engine(None)
    subscribe_many(engine, 2)
    engine.put_flow("c", 1)
    engine.publish("t", "m", 0)
    fan_out = begin_fan_out(engine)
    next(fan_out.iterator)
    assert engine.stats_as_they_stand() == Stats(1, 2, 0, 2, 1, 2, 0, 0, 0, 0)
    assert fan_out.accounted == 0
    assert engine.stats() == Stats(1, 2, 0, 1, 1, 2, 0, 0, 0, 0)
    assert fan_out.accounted == 1


def test_a_large_publication_is_handed_out_in_slices() -> None:
    """Fault: beginning a publication copies the list of all its targets at once (G27), or a slice leaves out or repeats
    one; or a subscription removed before its slice is not counted as cancelled when its turn has come (G5, G22)."""
    engine = Engine(None)
    subscribe_many(engine, 1200)
    assert engine.publish("t", "m", 0) == 1200
    engine.subscribe("late", "i", "t", "said")
    delivered, sizes_of_slices = [], []
    while (fan_out := engine.claims.begin(0)) is not None:
        assert isinstance(fan_out, FanOut)
        sizes_of_slices.append(fan_out.total)
        begun = [target.cid for target, _ in fan_out.claim_each(lambda: None)]
        engine.claims.finish_fan_out(fan_out, len(begun))
        delivered += begun
        engine._check()
        if len(delivered) == 512:
            for number in (3, 600, 601, 1199):
                engine.unsubscribe(f"c{number}", None, None)
            assert figures(engine) == {"accepted": 1200, "delivered": 512, "queued": 688}
        if len(sizes_of_slices) == 2:
            assert figures(engine) == {"accepted": 1200, "delivered": 1022, "cancelled": 2, "queued": 176}
    assert sizes_of_slices == [512, 512, 176]
    assert delivered == [f"c{number}" for number in range(1200) if number not in (600, 601, 1199)]
    assert figures(engine) == {"accepted": 1200, "delivered": 1197, "cancelled": 3}
    assert engine.order.next_instant() is None


@pytest.mark.parametrize("removed", [(), (1, 2, 5)])
def test_targets_that_have_not_begun_begin_the_next_time(removed: tuple[int, ...]) -> None:
    """Fault: after an interruption a target is repeated or left out, whether or not the slice leaves out others."""
    engine = Engine(None)
    subscribe_many(engine, 8)
    engine.publish("t", "m", 0)
    for number in removed:
        engine.unsubscribe(f"c{number}", None, None)
    delivered = []
    while (fan_out := engine.claims.begin(0)) is not None:
        assert isinstance(fan_out, FanOut)
        begun = [target.cid for target, _ in islice(fan_out.claim_each(lambda: None), 1)]
        engine.claims.finish_fan_out(fan_out, len(begun))
        delivered += begun
        engine._check()
    assert delivered == [f"c{number}" for number in range(8) if number not in removed]
    assert engine.ledger.cancelled == len(removed)
