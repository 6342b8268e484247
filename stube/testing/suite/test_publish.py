"""`publish`: which subscribers get a message, and which topics are refused."""

from __future__ import annotations

from stube import Stats
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import NOT_A_NAME, guarantee, refused


@guarantee("G21")
def test_publish_reaches_each_subscriber_of_the_topic_once(run: Driver) -> None:
    """Fault: two subscribed instances of a conversation get one message, or another topic's subscriber gets it too."""
    for cid, instance_id in (("c1", "i1"), ("c1", "i2"), ("c2", "i1")):
        run.subscribe("t", f"said to {instance_id}", cid=cid, instance_id=instance_id)
    run.subscribe("u", cid="c3")
    assert run.registry.publish("t", "hello") == 3
    assert run.registry.publish("nobody", "hello") == 0
    run.settle()
    assert sorted((seen.cid, seen.event.instance_id, seen.event.name) for seen in run.recorder.seen) == [
        ("c1", "i1", "said to i1"),
        ("c1", "i2", "said to i2"),
        ("c2", "i1", "said to i1"),
    ]
    assert run.recorder.payloads == ["hello"] * 3
    assert run.stats() == Stats(accepted=3, delivered=3, subscriptions=4)


@guarantee("G15")
def test_publish_refuses_an_invalid_topic(run: Driver) -> None:
    """Case 24. Fault: a topic that is not a str has no subscribers, so the mistake goes unnoticed."""
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "topic", registry=run.registry):
            run.registry.publish(wrong, "message")
