"""`remove_subscriptions_for_cid`: a conversation leaves every topic."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stube import Stats
from stube.testing._capabilities import requires
from stube.testing._drive import Driver, run_threads
from stube.testing.suite._fixtures import NOT_A_NAME, guarantee, unchanged

_monotonic_ns = time.monotonic_ns


@guarantee("G21")
def test_all_of_one_conversation_goes_and_nothing_of_another(run: Driver) -> None:
    """Fault: only one instance goes, or everybody in the topics."""
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


@guarantee("G5")
def test_nothing_queued_for_the_conversation_begins_after_the_removal(run: Driver) -> None:
    """Fault: what is queued is delivered although the conversation has gone."""
    for cid in ("c1", "c2"):
        for topic in ("t", "u"):
            run.subscribe(topic, cid=cid)
    with run.held("c1", "c2"):
        for number in range(5):
            assert run.registry.publish("t", number) == 2
            assert run.registry.publish("u", number) == 2
        assert run.registry.remove_subscriptions_for_cid("c1") == 2
    run.settle()
    assert run.recorder.of("c1") == []
    assert [seen.event.payload for seen in run.recorder.of("c2")] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert run.stats() == Stats(accepted=20, delivered=10, cancelled=10, subscriptions=2)


@guarantee("G7")
def test_a_subscribe_that_races_with_the_removal_is_whole(run: Driver) -> None:
    """Fault: the conversation's index is dropped while somebody adds to it: a subscriber that nobody can remove."""
    rounds = 3000
    removed: list[int] = []

    def subscribe() -> None:
        for number in range(rounds):
            run.subscribe(f"t{number % 5}", cid="c1", instance_id=f"i{number}")

    def remove() -> None:
        for _ in range(rounds):
            removed.append(run.registry.remove_subscriptions_for_cid("c1"))

    run_threads(subscribe, remove)
    left = sum(len(found) for found in run.registry.subscriptions().values())
    assert sum(removed) + left == rounds
    assert run.registry.remove_subscriptions_for_cid("c1") == left
    assert run.registry.subscriptions() == {}
    assert sum(run.registry.publish(f"t{number}", number) for number in range(5)) == 0
    assert run.stats() == Stats()


@guarantee("G15")
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_remove_subscriptions_refuses_what_is_no_name(run: Driver, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: the name is looked up unchecked."""
    run.subscribe(cid="c1")
    with unchanged(run.registry), pytest.raises(error, match="cid"):
        run.registry.remove_subscriptions_for_cid(wrong)


@guarantee("G13")
@requires("sizes")
def test_conversations_that_left_their_topics_leave_nothing(run: Driver) -> None:
    """Case 4. Fault: an emptied topic, or the conversation's emptied index, stays as a key."""
    run.subscribe("everybody", cid="other")
    before = run.sizes()
    for number in range(5000):
        for topic in ("everybody", f"t{number}", f"u{number}"):
            run.subscribe(topic, cid=f"c{number}")
    for number in range(5000):
        assert run.registry.remove_subscriptions_for_cid(f"c{number}") == 3
    assert run.sizes() == before
    assert list(run.registry.subscriptions()) == ["everybody"]


@guarantee("G14")
def test_leaving_costs_what_the_conversation_holds_and_not_what_its_topics_hold(run: Driver) -> None:
    """Fault: every subscriber of the topic, or every topic of the registry, is looked at.

    Compared with 100,000 other subscribers and 10,000 other topics and without; 25 times as much passes, linear fails.
    """

    def typical() -> float:
        figures = []
        for _ in range(200):
            run.subscribe("crowd", cid="mine")
            run.subscribe("mine", cid="mine")
            start = _monotonic_ns()
            assert run.registry.remove_subscriptions_for_cid("mine") == 2
            figures.append(_monotonic_ns() - start)
        return sorted(figures)[len(figures) // 4]

    alone = typical()
    for number in range(100_000):
        run.subscribe("crowd", cid=f"c{number}")
    for number in range(10_000):
        run.subscribe(f"t{number}", cid=f"c{number}")
    assert typical() < 25 * max(alone, 2_000)
