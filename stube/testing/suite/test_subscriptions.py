"""`subscriptions`: a snapshot that belongs to the caller."""

from __future__ import annotations

from stube.testing._harness import Driver
from stube.testing.suite._fixtures import guarantee


@guarantee("G16", "G21")
def test_subscriptions_shows_topics_subscribers_and_events(run: Driver) -> None:
    """Fault: empty topics are shown, or an event that was given as a list is shown as a list."""
    assert run.registry.subscriptions() == {}
    run.subscribe("t", "said", cid="c2", instance_id="i1")
    run.subscribe("t", ("said", 1), cid="c1", instance_id="i2")
    run.subscribe("t", ["said", 2], cid="c1", instance_id="i1")
    run.subscribe("u", "heard", cid="c1", instance_id="i1")
    run.subscribe("gone", cid="c1")
    run.registry.unsubscribe(cid="c1", instance_id="main", topic="gone")
    found = run.registry.subscriptions()
    assert found == {
        "t": {("c2", "i1"): "said", ("c1", "i2"): ("said", 1), ("c1", "i1"): ("said", 2)},
        "u": {("c1", "i1"): "heard"},
    }
    of_c1 = [subscriber for subscriber in found["t"] if subscriber[0] == "c1"]
    assert of_c1 == [("c1", "i2"), ("c1", "i1")]
    if "common_topic_order" in run.registry.capabilities:
        assert list(found["t"]) == [("c2", "i1"), *of_c1]
    assert type(found) is dict
    assert all(type(subscribers) is dict for subscribers in found.values())


@guarantee("G16")
def test_subscriptions_returns_a_copy(run: Driver) -> None:
    """Fault: the registry's own dicts are handed out, so the caller can break them, or sees them change."""
    run.subscribe("t", cid="c1")
    run.subscribe("t", cid="c2")
    found = run.registry.subscriptions()
    found["t"].pop(("c1", "main"))
    found["t"][("mallory", "main")] = "said"
    found["new"] = {}
    again = run.registry.subscriptions()
    assert list(again) == ["t"]
    assert sorted(again["t"]) == [("c1", "main"), ("c2", "main")]
    run.subscribe("t", cid="c3")
    assert sorted(again["t"]) == [("c1", "main"), ("c2", "main")]
    assert run.registry.publish("t", 1) == 3
    run.settle()
    assert sorted(run.recorder.cids) == ["c1", "c2", "c3"]
