"""`subscribe`: who gets what is published from now on, and under which name."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest

from stube import Event, EventSpec, Stats
from stube.testing._capabilities import requires
from stube.testing._drive import Driver, run_threads
from stube.testing.suite._fixtures import AWKWARD_NAMES, NOT_A_NAME, Payload, guarantee, unchanged
from stube.testing.suite.test_schedule_event import WRONG_EVENTS

_monotonic_ns = time.monotonic_ns


@guarantee("G21", "G7")
def test_a_subscription_counts_from_the_moment_the_call_returns(run: Driver) -> None:
    """Case 31. Fault: subscribing is queued, so a message published right after it is missed."""
    for number in range(1000):
        run.subscribe(f"t{number}", ("said", number))
        assert run.registry.publish(f"t{number}", number) == 1
    run.settle()
    assert run.recorder.payloads == list(range(1000))
    assert run.stats() == Stats(accepted=1000, delivered=1000, subscriptions=1000)


@guarantee("G21")
@pytest.mark.parametrize("spec", ["said", ("said",), ["said"], ("said", 1), ["said", 1, 2]], ids=repr)
@pytest.mark.parametrize("message", ["hello", None, 0, (1, 2), [], {}], ids=repr)
def test_the_message_is_the_payload_whatever_else_the_spec_holds(run: Driver, spec: EventSpec, message: Any) -> None:
    """Fault: the spec's own payload is delivered or added, or a message of None becomes no payload."""
    run.subscribe("t", spec, cid="c1", instance_id="chat")
    assert run.registry.publish("t", message) == 1
    run.settle()
    assert [(seen.cid, seen.event) for seen in run.recorder.seen] == [("c1", Event("chat", "said", message))]
    assert type(run.recorder.payloads[0]) is type(message)


@guarantee("G21")
def test_what_was_published_before_is_not_received(run: Driver) -> None:
    """Fault: the subscribers are looked up when the message is delivered."""
    run.subscribe(cid="c0")
    with run.held("c0", "c1"):
        assert run.registry.publish("t", "before") == 1
        run.subscribe(cid="c1")
        assert run.registry.publish("t", "after") == 2
    run.settle()
    assert [seen.event.payload for seen in run.recorder.of("c0")] == ["before", "after"]
    assert [seen.event.payload for seen in run.recorder.of("c1")] == ["after"]


@guarantee("G2")
def test_subscribing_again_replaces_the_event_and_keeps_the_place(run: Driver) -> None:
    """Fault: a second subscription is added, or the replaced one moves to the end."""
    for cid in ("c1", "c2", "c3"):
        run.subscribe("t", "old", cid=cid)
    run.subscribe("t", "new", cid="c2")
    run.subscribe("t", ["newest", 1], cid="c1")
    assert list(run.registry.subscriptions()["t"].items()) == [
        (("c1", "main"), ("newest", 1)),
        (("c2", "main"), "new"),
        (("c3", "main"), "old"),
    ]
    assert run.registry.publish("t", 1) == 3
    run.settle()
    assert {seen.cid: seen.event.name for seen in run.recorder.seen} == {"c1": "newest", "c2": "new", "c3": "old"}
    assert run.stats() == Stats(accepted=3, delivered=3, subscriptions=3)


@guarantee("G5")
def test_a_queued_message_arrives_once_under_the_name_that_replaced_the_old_one(run: Driver) -> None:
    """Case 14d. Fault: the name is bound at `publish`, or the replacing drops, or doubles, what is queued."""
    run.subscribe("t", "old")
    with run.held("c1"):
        assert run.registry.publish("t", "message") == 1
        run.subscribe("t", "new")
    run.settle()
    assert [seen.event for seen in run.recorder.seen] == [Event("main", "new", "message")]
    assert run.stats() == Stats(accepted=1, delivered=1, subscriptions=1)


@guarantee("G5")
@pytest.mark.parametrize("how", ["unsubscribe", "instance", "remove", "reset"])
def test_subscribing_anew_does_not_revive_old_messages(run: Driver, how: str) -> None:
    """Case 14d. Fault: at delivery only "is it subscribed?" is asked, not "is it still the same subscription?"."""
    run.subscribe("t", "said")
    with run.held("c1"):
        assert run.registry.publish("t", "old") == 1
        if how == "unsubscribe":
            assert run.registry.unsubscribe(cid="c1", instance_id="main", topic="t") == 1
        elif how == "instance":
            assert run.registry.unsubscribe(cid="c1", instance_id="main") == 1
        elif how == "remove":
            assert run.registry.remove_subscriptions_for_cid("c1") == 1
        else:
            run.registry.reset_state()
        run.subscribe("t", "said")
        assert run.registry.publish("t", "new") == 1
    run.settle()
    assert run.recorder.payloads == ["new"]
    gone = {"dropped": 1} if how == "reset" else {"cancelled": 1}
    assert run.stats() == Stats(accepted=2, delivered=1, subscriptions=1, **gone)


@guarantee("G13")
def test_the_same_subscription_a_thousand_times_is_one(run: Driver) -> None:
    """Case 5. Fault: the topic's index and the conversation's index differ in what they add up."""
    before = run.sizes() if "sizes" in run.registry.capabilities else None
    for number in range(1000):
        run.subscribe("t", ("said", number))
    assert run.registry.stats().subscriptions == 1
    assert len(run.registry.inspect("c1")["c1"].subscriptions) == 1
    assert run.registry.publish("t", 1) == 1
    assert run.registry.unsubscribe(cid="c1", instance_id="main", topic="t") == 1
    assert run.registry.unsubscribe(cid="c1", instance_id="main") == 0
    assert run.registry.remove_subscriptions_for_cid("c1") == 0
    assert run.registry.subscriptions() == {}
    assert run.registry.publish("t", 2) == 0
    run.settle()
    assert run.registry.inspect() == {}
    assert before is None or run.sizes() == before


@guarantee("G13")
@requires("by_reference")
def test_a_replaced_spec_is_not_kept_alive(run: Driver) -> None:
    """Fault: the earlier event stays in one of the indexes."""
    payload = Payload()
    watched = weakref.ref(payload)
    run.subscribe("t", ("said", payload))
    run.subscribe("t", "said")
    del payload
    gc.collect()
    assert watched() is None


@guarantee("G21")
def test_subscriptions_of_awkward_names_never_collide(run: Driver) -> None:
    """Case 25. Fault: keys are joined strings, or a topic is a pattern."""
    for name in AWKWARD_NAMES:
        run.subscribe(name, "said", cid=name, instance_id="main")
        run.subscribe("shared", "said", cid="c1", instance_id=name)
    assert len(run.registry.subscriptions()) == len(AWKWARD_NAMES) + 1
    for name in AWKWARD_NAMES:
        assert run.registry.publish(name, name) == 1
    assert run.registry.publish("shared", "all") == len(AWKWARD_NAMES)
    run.settle()
    assert [seen.cid for seen in run.recorder.seen if seen.cid != "c1"] == AWKWARD_NAMES
    assert [seen.event.instance_id for seen in run.recorder.of("c1")] == AWKWARD_NAMES
    for name in AWKWARD_NAMES:
        assert run.registry.unsubscribe(cid="c1", instance_id=name, topic="shared") == 1
        assert run.registry.remove_subscriptions_for_cid(name) == 1
    assert run.registry.subscriptions() == {}


@guarantee("G21")
def test_subscriptions_made_by_many_threads_are_all_there(run: Driver) -> None:
    """Fault: an index is read, changed and written back without a lock."""
    threads, each = 8, 300

    def subscribe(thread: int) -> None:
        for number in range(each):
            run.subscribe(f"t{number % 10}", cid=f"c{thread}", instance_id=f"i{number}")

    run_threads(*(lambda thread=thread: subscribe(thread) for thread in range(threads)))
    assert run.registry.stats().subscriptions == threads * each
    assert sum(run.registry.publish(f"t{number}", number) for number in range(10)) == threads * each
    assert sum(run.registry.remove_subscriptions_for_cid(f"c{thread}") for thread in range(threads)) == threads * each
    assert run.registry.subscriptions() == {}
    run.settle()


@guarantee("G15")
@pytest.mark.parametrize("which", ["cid", "instance_id", "topic"])
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_subscribe_refuses_what_is_no_name(run: Driver, which: str, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: one of the two indexes has been changed when the argument fails."""
    arguments: dict[str, Any] = {"cid": "c1", "instance_id": "main", "topic": "t", which: wrong}
    with unchanged(run.registry), pytest.raises(error, match=which):
        run.registry.subscribe(**arguments, event="said")


@guarantee("G15")
@pytest.mark.parametrize(("wrong", "error"), WRONG_EVENTS, ids=repr)
def test_subscribe_refuses_what_is_no_event(run: Driver, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: the event is first looked at when a message arrives; or the old event is gone by then."""
    run.subscribe("t", "old", cid="c1")
    with unchanged(run.registry), pytest.raises(error, match="event"):
        run.subscribe("t", wrong, cid="c1")
    with unchanged(run.registry), pytest.raises(error, match="event"):
        run.subscribe("u", wrong, cid="c2")


@guarantee("G14")
def test_subscribing_and_leaving_cost_the_same_in_a_crowd(run: Driver) -> None:
    """Fault: the subscribers of a topic are a tuple that is copied, or a list that is searched.

    Compared with 100,000 other subscribers of the same topic and without; 25 times as much passes, linear does not.
    """

    def typical() -> float:
        figures = []
        for number in range(200):
            start = _monotonic_ns()
            run.subscribe("crowd", cid="mine", instance_id=f"i{number}")
            run.subscribe("crowd", cid="mine", instance_id="other")
            run.registry.unsubscribe(cid="mine", instance_id=f"i{number}", topic="crowd")
            run.registry.remove_subscriptions_for_cid("mine")
            figures.append(_monotonic_ns() - start)
        return sorted(figures)[len(figures) // 4]

    alone = typical()
    for number in range(100_000):
        run.subscribe("crowd", cid=f"c{number}")
    assert typical() < 25 * max(alone, 4_000)
