"""`Conversations` and `Conversation`, which use only the twelve operations and so work on any registry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from stube import (
    NO_PAYLOAD,
    Backend,
    Conversation,
    ConversationEnded,
    Conversations,
    Event,
    RegistryFull,
    Stats,
)
from stube.testing._contract.capabilities import requires
from stube.testing._harness import Driver, RegistryProxy, run_threads
from stube.testing.suite._fixtures import HOUR, MakeRun, guarantee, logging_to


@guarantee("G21")
def test_a_conversation_handle_does_what_the_operations_do(run: Driver) -> None:
    """Fault: an argument is passed on under a wrong name, or a default differs."""
    conversations = Conversations(run.registry)
    conversation = conversations.open("c1")
    assert conversation.cid == "c1"
    conversation.put_flow("checkout")
    assert run.registry.inspect("c1")["c1"].pending_flow
    assert conversation.take_flow() == "checkout"
    assert conversation.take_flow() is None
    conversation.subscribe("t", "said")
    conversation.subscribe("u", "said", instance_id="other")
    assert run.registry.subscriptions() == {"t": {("c1", "main"): "said"}, "u": {("c1", "other"): "said"}}
    handle = conversation.schedule("late", timedelta(hours=1))
    conversation.schedule(("soon", 1), 5, instance_id="other")
    run.registry.publish("t", "hello")
    run.pass_time(5)
    assert sorted((seen.event.name, seen.event.instance_id) for seen in run.recorder.seen) == [
        ("said", "main"),
        ("soon", "other"),
    ]
    assert HOUR - 60_000 < run.registry.inspect("c1")["c1"].timers[0].remaining_ms <= HOUR
    assert handle.cancel()
    conversation.schedule("late", HOUR)
    assert conversation.cancel_timers() == 1
    assert conversation.unsubscribe("t") == 1
    assert conversation.unsubscribe(instance_id="other") == 1
    assert run.stats() == Stats(accepted=4, delivered=2, cancelled=2)


@guarantee("G21")
def test_a_handle_cancels_the_timers_of_one_instance(run: Driver) -> None:
    """Fault: the instance is ignored, or another conversation's timers are cancelled as well."""
    conversations = Conversations(run.registry)
    conversation = conversations.open("c1")
    for instance_id in ("one", "one", "two"):
        conversation.schedule("tick", HOUR, instance_id=instance_id)
    conversations.open("c2").schedule("tick", HOUR, instance_id="one")
    assert conversation.cancel_timers(instance_id="one") == 2
    assert conversation.cancel_timers(instance_id="one") == 0
    assert {cid: len(info.timers) for cid, info in run.registry.inspect().items()} == {"c1": 1, "c2": 1}
    assert conversation.cancel_timers() == 1


@guarantee("G21")
def test_a_time_out_that_starts_again_replaces_the_one_before(run: Driver) -> None:
    """Fault: the old timer is left, another instance's timer is cancelled, or the new one is cancelled as well."""
    conversation = Conversations(run.registry).open("c1")
    conversation.schedule("other", 2, instance_id="other")
    first = conversation.schedule("idle", HOUR, instance_id="idle")
    for number, delay in enumerate((HOUR, HOUR, 1)):
        conversation.schedule(("idle", number), delay, instance_id="idle", replace=True)
    assert not first.cancel()
    run.pass_time(2)
    assert set(run.recorder.payloads) == {2, NO_PAYLOAD}
    assert run.stats() == Stats(accepted=5, delivered=2, cancelled=3)


@guarantee("G15", "G22")
def test_a_replacement_that_is_refused_changes_nothing(make_run: MakeRun) -> None:
    """Fault: the old timer is cancelled before the new one is checked. In a full registry the new one has its room."""
    run = make_run(max_pending=1)
    conversation = Conversations(run.registry).open("c1")
    conversation.schedule("idle", HOUR)
    wrong = (((), 1, "main"), ("idle", float("nan"), "main"), ("idle", 1, ""), ("idle", "1", "main"))
    for event, delay, instance_id in wrong:
        with pytest.raises((TypeError, ValueError)):
            conversation.schedule(event, delay, instance_id=instance_id, replace=True)  # type: ignore[arg-type]
    with pytest.raises(RegistryFull):
        conversation.schedule("idle", 1, instance_id="other", replace=True)
    assert run.registry.stats() == Stats(timers=1, accepted=1)
    conversation.schedule("again", HOUR, replace=True)
    assert [timer.event for timer in run.registry.inspect()["c1"].timers] == ["again"]
    conversation.end()
    with pytest.raises(ConversationEnded):
        conversation.schedule("idle", 1, replace=True)
    assert run.registry.stats() == Stats(accepted=2, cancelled=2)


@guarantee("G21")
@requires("own_clock")
def test_a_tick_counts_from_the_instant_for_which_the_one_before_was_meant(make_run: MakeRun) -> None:
    """Fault: a late handler delays what it schedules, so that a clock drifts; or missed ticks come in a burst."""
    instant, dues = 10**9, list[int]()
    run = make_run(clock=lambda: instant)
    conversation = Conversations(run.registry).open("c1")

    def tick(cid: str, event: Event) -> None:
        dues.append(event.due or 0)
        if len(dues) < 7:
            conversation.schedule("tick", 100.5, since=event)

    run.recorder.on("tick", tick)
    conversation.schedule("tick", 100.5)
    # In time; 40 ms late; past two ticks; in time again; at the very instant of the next one; late by a nanosecond.
    for step in (100_500_000, 140_500_000, 231_500_000, 30_000_000, 201_000_000, 100_500_001):
        instant += step
        run.settle()
    assert dues == [10**9 + number * 100_500_000 for number in (1, 2, 3, 5, 6, 7, 8)]


@guarantee("G2")
@requires("own_clock")
def test_ticks_that_are_late_together_count_each_from_its_own_instant(make_run: MakeRun) -> None:
    """Fault: of timers that are delivered together, one shows the instant of another."""
    instant = 10**9
    run = make_run(clock=lambda: instant)
    conversations = Conversations(run.registry)

    def tick(cid: str, event: Event) -> None:
        conversations.open(cid).schedule("next", 50, since=event)

    run.recorder.on("tick", tick)
    with run.held():
        for number in range(20):
            conversations.open(f"c{number}").schedule("tick", 1 + number)
        instant += 40_000_000
    run.settle()
    instant += 50_000_000
    run.settle()
    due = {seen.cid: seen.event.due for seen in run.recorder.seen if seen.event.name == "next"}
    assert due == {f"c{number}": 10**9 + (51 + number) * 1_000_000 for number in range(20)}


@guarantee("G21")
def test_what_counts_from_an_event_is_refused_where_it_cannot(run: Driver) -> None:
    """Fault: an event that a host built counts from the clock's beginning; or a delay of 0 is a division by zero."""
    conversation = Conversations(run.registry).open("c1")
    for wrong, error in ((Event("main", "click"), ValueError), ("tick", TypeError), (5, TypeError)):
        with pytest.raises(error, match="an event that a registry delivered"):
            conversation.schedule("tick", 1, since=wrong)  # type: ignore[arg-type]
    assert run.registry.stats().timers == 0
    run.recorder.on("tick", lambda cid, event: conversation.schedule("no delay", 0, since=event))
    conversation.schedule("tick", 0)
    run.settle()
    run.settle()
    assert run.recorder.names == ["tick", "no delay"]


@guarantee("G21")
def test_an_ended_handle_changes_nothing_of_its_successor(run: Driver) -> None:
    """Case 41. Fault: a method of a handle that has ended acts on the conversation that has its name now."""
    conversations = Conversations(run.registry)
    old = conversations.open("t")
    old.end()
    conversation = conversations.open("t")
    conversation.put_flow("flow")
    conversation.schedule("tick", HOUR)
    conversation.subscribe("topic", "said")
    before = run.registry.inspect()
    assert (old.cancel_timers(), old.cancel_timers(instance_id="main"), old.unsubscribe()) == (0, 0, 0)
    assert (old.unsubscribe("topic"), old.take_flow()) == (0, None)
    old.end()
    assert run.registry.inspect().keys() == before.keys()
    assert run.registry.inspect()["t"].pending_flow
    assert (conversation.cancel_timers(), conversation.unsubscribe(), conversation.take_flow()) == (1, 1, "flow")


@guarantee("G21")
def test_conversations_finds_every_open_conversation(run: Driver) -> None:
    """Fault: one cid gets two handles, or an ended conversation is still listed."""
    conversations = Conversations(run.registry)
    first = conversations.open()
    second = conversations.open()
    assert first.cid != second.cid
    assert len(first.cid) >= 16
    assert conversations.open("c1") is conversations.open("c1")
    assert conversations.get(first.cid) is first
    assert conversations.get("never") is None
    assert len(conversations) == 3
    assert set(conversations) == {first, second, conversations.open("c1")}
    first.end()
    assert conversations.get(first.cid) is None
    assert len(conversations) == 2
    for wrong, error in ((7, TypeError), ("", ValueError)):
        with pytest.raises(error):
            conversations.open(wrong)  # type: ignore[arg-type]


@guarantee("G13", "G5")
def test_an_ended_conversation_leaves_nothing_and_accepts_nothing(run: Driver) -> None:
    """Fault: `end` overlooks one of the three kinds of state, or an adding method does not check for the end."""
    conversations = Conversations(run.registry)
    with conversations.open("c1") as conversation:
        conversation.put_flow("flow")
        conversation.subscribe("t", "said")
        conversation.schedule("tick", HOUR)
        live = conversation.ended
    ended = conversation.ended
    conversation.end()
    assert (live, ended) == (False, True)
    assert run.registry.inspect() == {}
    adding: list[Callable[[], object]] = [
        lambda: conversation.put_flow("flow"),
        lambda: conversation.schedule("tick", 0),
        lambda: conversation.subscribe("t", "said"),
    ]
    for add in adding:
        with pytest.raises(ConversationEnded):
            add()
    assert conversation.take_flow() is None
    assert conversation.cancel_timers() == 0
    assert conversation.unsubscribe() == 0
    assert run.registry.inspect() == {}
    assert run.stats() == Stats(accepted=1, cancelled=1)
    again = conversations.open("c1")
    again.schedule("tick", 0)
    conversation.end()
    assert conversations.get("c1") is again
    run.settle()
    assert run.recorder.names == ["tick"]


@guarantee("G7", "G5")
def test_a_self_rearming_timer_stops_when_its_conversation_ends(run: Driver) -> None:
    """Case 14b. Fault: a timer that its handler schedules again while the conversation ends never stops firing.

    The handler waits before it schedules again, until another thread has ended the conversation. The
    `ConversationEnded` that the handler then raises is not counted as a failure.
    """
    conversation = Conversations(run.registry).open("c1")
    gate = run.recorder.gate()

    def tick(cid: str, event: Event) -> None:
        gate.pass_through()
        conversation.schedule("tick", 0)

    run.recorder.on("tick", tick)
    conversation.subscribe("t", "said")
    run.schedule(0)  # not by the handle, which may have ended when this returns
    with run.delivering():
        gate.wait_entered()
        run_threads(conversation.end)
    run.settle()
    assert run.registry.inspect() == {}
    assert run.recorder.names == ["tick"]
    assert run.stats() == Stats(accepted=1, delivered=1)
    run.pass_time(5)
    assert run.recorder.names == ["tick"]


@guarantee("G19")
def test_conversation_ended_raised_by_a_handler_is_no_failure(
    make_registry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: a conversation that ends while its handler re-arms a timer is logged as an error and passed to `on_error`;
    or nobody can find out what became of the delivery. It is logged at DEBUG."""
    errors: list[BaseException] = []
    run = Driver(make_registry(on_error=lambda cid, event, exception: errors.append(exception)))
    conversation = Conversations(run.registry).open("c1")

    def tick(cid: str, event: Event) -> None:
        conversation.end()
        conversation.schedule("tick", 0)

    run.recorder.on("tick", tick)
    with caplog.at_level(logging.DEBUG, "stube"):
        run.schedule(0)  # not by the handle, which may have ended when this returns
        run.settle()
    assert errors == []
    assert [record.levelno for record in caplog.records if record.name == "stube"] == [logging.DEBUG]
    assert run.stats() == Stats(accepted=1, delivered=1)


@guarantee("G19")
def test_conversation_ended_is_no_failure_when_logging_fails(run: Driver) -> None:
    """Fault: an exception of the log handler that records the end turns the delivery into a failure."""

    def emit(record: logging.LogRecord) -> None:
        raise LookupError("logging fails")

    def leave(cid: str, event: Event) -> None:
        raise ConversationEnded(cid)

    run.recorder.on("leave", leave)
    with logging_to(emit, logging.DEBUG):
        run.subscribe("t", "leave")
        run.schedule(0, "leave")
        run.registry.publish("t", "message")
        run.settle()
    assert run.stats() == Stats(subscriptions=1, accepted=2, delivered=2)


class _Meddling(RegistryProxy):
    """A registry that ends a conversation during its next operation, before or after the operation itself."""

    def __init__(self, registry: Backend, moment: str) -> None:
        super().__init__(registry)
        self._moment = moment
        self.conversation: Conversation | None = None

    @override
    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        conversation, self.conversation = self.conversation, None
        if conversation is not None and self._moment == "before":
            conversation.end()
        result = call(*positional, **named)
        if conversation is not None and self._moment == "after":
            conversation.end()
        return result


@guarantee("G7")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["put_flow", "schedule", "subscribe"])
def test_an_add_racing_with_the_end_is_undone_before_it_raises(run: Driver, moment: str, method: str) -> None:
    """Case 14b. Fault: the method checks for the end only before it adds, not after it. Both orders of the race."""
    meddling = _Meddling(run.registry, moment)
    conversation = Conversations(meddling).open("c1")
    adding: dict[str, Callable[[], object]] = {
        "put_flow": lambda: conversation.put_flow("flow"),
        "schedule": lambda: conversation.schedule("tick", HOUR),
        "subscribe": lambda: conversation.subscribe("t", "said"),
    }
    meddling.conversation = conversation
    with pytest.raises(ConversationEnded):
        adding[method]()
    assert run.registry.inspect() == {}
    assert run.registry.subscriptions() == {}
    timers = 1 if method == "schedule" else 0
    assert run.stats() == Stats(accepted=timers, cancelled=timers)


@guarantee("G7", "G13", "G21")
def test_a_conversation_ended_during_adds_leaves_nothing(run: Driver) -> None:
    """Case 14b. Fault: add and end can run in an order in which neither sees the other."""
    conversations = Conversations(run.registry)
    for number in range(200):
        conversation = conversations.open(f"c{number}")

        def add(conversation: Conversation = conversation) -> None:
            with pytest.raises(ConversationEnded):
                for step in range(100_000):
                    conversation.schedule("tick", HOUR, instance_id=f"i{step % 3}")
                    conversation.subscribe(f"t{step % 3}", "said")
                    conversation.put_flow(step)

        run_threads(add, conversation.end)
        assert run.registry.inspect(f"c{number}") == {}
    assert len(conversations) == 0
    stats = run.stats()
    assert stats == Stats(accepted=stats.accepted, cancelled=stats.accepted)


@guarantee("G24")
def test_handles_are_silent_on_a_closed_registry(run: Driver) -> None:
    """Fault: clean-up code fails after the registry was closed."""
    conversation = Conversations(run.registry).open("c1")
    conversation.schedule("tick", HOUR)
    run.registry.close()
    assert conversation.take_flow() is None
    assert conversation.cancel_timers() == 0
    assert conversation.unsubscribe() == 0
    conversation.end()
    assert conversation.ended
