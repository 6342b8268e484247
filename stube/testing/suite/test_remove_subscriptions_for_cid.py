"""`remove_subscriptions_for_cid`: a conversation leaves every topic."""

from __future__ import annotations

from stube import Stats
from stube.testing._harness import Driver
from stube.testing.suite._fixtures import NOT_A_NAME, guarantee, refused


@guarantee("G21")
def test_removal_takes_all_subscriptions_of_one_conversation_only(run: Driver) -> None:
    """Fault: only one instance is removed, or every subscriber of the topics."""
    for cid in ("c1", "c2"):
        for instance_id in ("i1", "i2"):
            for topic in ("t", "u"):
                run.subscribe(topic, cid=cid, instance_id=instance_id)
    run.subscribe("alone", cid="c1")
    run.registry.put_pending_flow("c1", "flow")
    run.schedule(3_600_000, cid="c1")
    assert run.registry.remove_subscriptions_for_cid("c1") == 5
    assert run.registry.remove_subscriptions_for_cid("c1") == 0
    assert run.registry.remove_subscriptions_for_cid("never") == 0
    assert {topic: list(found) for topic, found in run.registry.subscriptions().items()} == {
        "t": [("c2", "i1"), ("c2", "i2")],
        "u": [("c2", "i1"), ("c2", "i2")],
    }
    info = run.registry.inspect("c1")["c1"]
    assert (info.subscriptions, len(info.timers), info.pending_flow) == ((), 1, True)
    assert run.registry.publish("alone", 1) == 0
    assert run.registry.publish("t", 1) == 2
    assert run.stats() == Stats(accepted=3, delivered=2, timers=1, subscriptions=4, pending_flows=1)


@guarantee("G15")
def test_remove_subscriptions_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: the name is looked up unchecked."""
    run.subscribe(cid="c1")
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "cid", registry=run.registry):
            run.registry.remove_subscriptions_for_cid(wrong)
