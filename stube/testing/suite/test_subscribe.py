"""`subscribe`: a conversation hears what is published from then on, as the event that it asked for."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from stube import Event, EventSpec, Stats
from stube.testing._harness import Driver, first_difference, run_threads
from stube.testing.suite._fixtures import AWKWARD_NAMES, NOT_A_NAME, guarantee, refused
from stube.testing.suite.test_schedule_event import WRONG_EVENTS


@guarantee("G21", "G7")
def test_a_subscription_takes_effect_when_the_call_returns(run: Driver) -> None:
    """Case 31. Fault: the subscription is queued, so it misses a message published right after the call."""
    for number in range(1000):
        run.subscribe(f"t{number}", ("said", number))
        assert run.registry.publish(f"t{number}", number) == 1
    run.settle()
    assert first_difference(run.recorder.payloads, range(1000)) is None
    assert run.stats() == Stats(accepted=1000, delivered=1000, subscriptions=1000)


@guarantee("G21")
@pytest.mark.parametrize("spec", ["said", ("said",), ["said"], ("said", 1), ["said", 1, 2]], ids=repr)
@pytest.mark.parametrize("message", ["hello", None, 0, (1, 2), [], {}], ids=repr)
def test_the_message_replaces_the_payload_of_the_spec(run: Driver, spec: EventSpec, message: Any) -> None:
    """Fault: the spec's own payload is delivered or added, or a message of None becomes no payload."""
    run.subscribe("t", spec, cid="c1", instance_id="chat")
    assert run.registry.publish("t", message) == 1
    run.settle()
    assert [(seen.cid, seen.event) for seen in run.recorder.seen] == [("c1", Event("chat", "said", message))]
    assert type(run.recorder.payloads[0]) is type(message)


@guarantee("G21")
def test_a_subscriber_receives_no_earlier_message(run: Driver) -> None:
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
    """Fault: a second subscription is added, or the replaced one moves to the end; or an event of the same name counts
    as the same event."""
    for cid in ("c1", "c2", "c3"):
        run.subscribe("t", "old", cid=cid)
    run.subscribe("t", "new", cid="c2")
    run.subscribe("t", ["newest", 0], cid="c1")
    run.subscribe("t", ["newest", 1], cid="c1")
    assert run.registry.subscriptions()["t"] == {
        ("c1", "main"): ("newest", 1),
        ("c2", "main"): "new",
        ("c3", "main"): "old",
    }
    assert run.subscribers("t") == [("c1", "main"), ("c2", "main"), ("c3", "main")]
    assert run.registry.publish("t", 1) == 3
    run.settle()
    assert {seen.cid: seen.event.name for seen in run.recorder.seen} == {"c1": "newest", "c2": "new", "c3": "old"}
    assert run.stats() == Stats(accepted=3, delivered=3, subscriptions=3)


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
    others = [seen.cid for seen in run.recorder.seen if seen.cid != "c1"]
    assert first_difference(sorted(others), sorted(AWKWARD_NAMES)) is None
    assert first_difference([seen.event.instance_id for seen in run.recorder.of("c1")], AWKWARD_NAMES) is None
    for name in AWKWARD_NAMES:
        assert run.registry.unsubscribe(cid="c1", instance_id=name, topic="shared") == 1
        assert run.registry.remove_subscriptions_for_cid(name) == 1
    assert run.registry.subscriptions() == {}


@guarantee("G21")
def test_subscriptions_made_by_many_threads_are_all_kept(run: Driver) -> None:
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
def test_subscribe_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: one of the two indexes has been changed before the argument is refused."""
    for which, (wrong, error) in product(("cid", "instance_id", "topic"), NOT_A_NAME):
        arguments: dict[str, Any] = {"cid": "c1", "instance_id": "main", "topic": "t", which: wrong}
        with refused(wrong, error, which, registry=run.registry):
            run.registry.subscribe(**arguments, event="said")


@guarantee("G15")
def test_subscribe_refuses_an_invalid_event(run: Driver) -> None:
    """Case 24. Fault: the event is checked only when a message arrives; or it has replaced the old one by then."""
    run.subscribe("t", "old", cid="c1")
    for wrong, error in WRONG_EVENTS:
        for topic, cid in (("t", "c1"), ("u", "c2")):
            with refused(wrong, error, "event", registry=run.registry):
                run.subscribe(topic, wrong, cid=cid)
