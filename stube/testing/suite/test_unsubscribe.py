"""`unsubscribe`: one subscription, or all subscriptions of an instance."""

from __future__ import annotations

from itertools import product
from typing import Any

from stube import Stats
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import NOT_A_NAME, guarantee, refused, unchanged


@guarantee("G21")
def test_unsubscribe_removes_one_subscription_only(run: Driver) -> None:
    """Case 25. Fault: the whole instance is removed, or the whole topic."""
    for cid in ("c1", "c2"):
        for instance_id in ("i1", "i2"):
            for topic in ("t", "u"):
                run.subscribe(topic, "said", cid=cid, instance_id=instance_id)
    assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic="t") == 1
    assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic="t") == 0
    assert run.registry.subscriptions() == {
        "t": {("c1", "i2"): "said", ("c2", "i1"): "said", ("c2", "i2"): "said"},
        "u": {("c1", "i1"): "said", ("c1", "i2"): "said", ("c2", "i1"): "said", ("c2", "i2"): "said"},
    }
    assert run.registry.publish("t", 1) == 3
    assert run.registry.publish("u", 1) == 4
    run.settle()
    assert len(run.recorder.of("c1")) == 3
    assert run.stats() == Stats(accepted=7, delivered=7, subscriptions=7)


@guarantee("G21")
def test_unsubscribe_without_a_topic_removes_all_of_the_instance(run: Driver) -> None:
    """Fault: the other instances are removed too, or only the first topic."""
    for topic in ("t", "u", "v"):
        run.subscribe(topic, cid="c1", instance_id="i1")
        run.subscribe(topic, cid="c1", instance_id="i2")
    assert run.registry.unsubscribe(cid="c1", instance_id="i1") == 3
    assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic=None) == 0
    assert [info.instance_id for info in run.registry.inspect("c1")["c1"].subscriptions] == ["i2"] * 3
    assert {topic: list(found) for topic, found in run.registry.subscriptions().items()} == {
        topic: [("c1", "i2")] for topic in ("t", "u", "v")
    }


@guarantee("G21")
def test_unsubscribe_of_an_unknown_subscription_is_no_error(run: Driver) -> None:
    """Fault: the call raises KeyError, or its look-up makes an entry."""
    run.subscribe("t", cid="c1", instance_id="i1")
    with unchanged(run.registry):
        assert run.registry.unsubscribe(cid="never", instance_id="i1", topic="t") == 0
        assert run.registry.unsubscribe(cid="never", instance_id="i1") == 0
        assert run.registry.unsubscribe(cid="c1", instance_id="never") == 0
        assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic="never") == 0


@guarantee("G15")
def test_unsubscribe_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: an empty topic means "all topics"."""
    run.subscribe("t", cid="c1", instance_id="main")
    for which, (value, error) in product(("cid", "instance_id", "topic"), NOT_A_NAME):
        wrong = 0.0 if which == "topic" and value is None else value  # None means every topic
        arguments: dict[str, Any] = {"cid": "c1", "instance_id": "main", "topic": "t", which: wrong}
        with refused(wrong, error, which, registry=run.registry):
            run.registry.unsubscribe(**arguments)
