"""`unsubscribe`: one subscription, or all of an instance, and what was queued for it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from stube import Event, Stats
from stube.testing._capabilities import requires
from stube.testing._drive import Driver, run_threads
from stube.testing.suite._fixtures import AWKWARD_NAMES, NOT_A_NAME, Payload, guarantee, unchanged


@guarantee("G21")
def test_one_subscription_is_removed_and_its_neighbours_stay(run: Driver) -> None:
    """Case 25. Fault: the whole instance goes, or the whole topic."""
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
def test_without_a_topic_all_of_the_instance_goes(run: Driver) -> None:
    """Fault: the other instances go too, or only the first topic."""
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
def test_removing_what_was_never_there_is_no_error(run: Driver) -> None:
    """Fault: a KeyError, or an entry made by the look-up."""
    run.subscribe("t", cid="c1", instance_id="i1")
    with unchanged(run.registry):
        assert run.registry.unsubscribe(cid="never", instance_id="i1", topic="t") == 0
        assert run.registry.unsubscribe(cid="never", instance_id="i1") == 0
        assert run.registry.unsubscribe(cid="c1", instance_id="never") == 0
        assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic="never") == 0


@guarantee("G5")
@pytest.mark.parametrize("topic", ["t", None])
def test_no_message_that_was_queued_begins_after_unsubscribing(run: Driver, topic: str | None) -> None:
    """Fault: the queue holds finished deliveries that nobody checks again."""
    run.subscribe("t", cid="c1", instance_id="i1")
    run.subscribe("t", cid="c1", instance_id="i2")
    with run.held("c1"):
        for number in range(10):
            assert run.registry.publish("t", number) == 2
        assert run.registry.unsubscribe(cid="c1", instance_id="i1", topic=topic) == 1
        assert run.registry.publish("t", 10) == 1
    run.settle()
    assert [(seen.event.instance_id, seen.event.payload) for seen in run.recorder.seen] == [
        ("i2", number) for number in range(11)
    ]
    assert run.stats() == Stats(accepted=21, delivered=11, cancelled=10, subscriptions=1)


@guarantee("G5", "G20", "G16")
def test_a_handler_that_unsubscribes_another_keeps_the_message_from_it(run: Driver) -> None:
    """Case 12. Fault: the targets of a message are one batch that is delivered to its end.

    A's handler unsubscribes B and subscribes D: C gets the message, D does not, B only if its delivery had begun.
    """
    begun: list[bool] = []

    def shuffle(cid: str, event: Event) -> None:
        if cid != "a":
            return
        assert run.registry.unsubscribe(cid="b", instance_id="main", topic="t") == 1
        begun.append(bool(run.recorder.of("b")))
        run.subscribe("t", cid="d")

    run.recorder.on("said", shuffle)
    for cid in "abc":
        run.subscribe("t", cid=cid)
    with run.held("a", "b", "c"):
        assert run.registry.publish("t", "message") == 3
    run.settle()
    counts = run.counts()
    assert (counts["a"], counts["c"], counts["d"]) == (1, 1, 0)
    if counts["b"]:  # only another thread may have begun it meanwhile
        assert run.recorder.of("b")[0].thread != run.recorder.of("a")[0].thread
    assert run.stats() == Stats(accepted=3, delivered=2 + counts["b"], cancelled=1 - counts["b"], subscriptions=3)
    assert list(run.registry.subscriptions()["t"]) == [("a", "main"), ("c", "main"), ("d", "main")]
    assert len(begun) == 1


@guarantee("G6")
def test_unsubscribing_does_not_wait_for_a_handler_that_has_begun(run: Driver) -> None:
    """Fault: the removal waits for the delivery (here until it is released, after the removal), or disturbs it."""
    gate = run.recorder.gate()
    ended: list[bool] = []

    def stand(cid: str, event: Event) -> None:
        gate.pass_through()
        ended.append(True)

    run.recorder.on("said", stand)
    run.subscribe("t")
    run.registry.publish("t", 1)
    with run.delivering():
        gate.wait_entered()
        assert run.registry.unsubscribe(cid="c1", instance_id="main") == 1
        assert ended == []
    run.settle()
    assert ended == [True]
    assert run.stats() == Stats(accepted=1, delivered=1)


@guarantee("G7")
def test_a_subscribe_that_races_with_an_unsubscribe_is_whole(run: Driver) -> None:
    """Fault: one of the two indexes keeps what the other has lost."""
    rounds = 3000
    removed = 0
    done = threading.Event()

    def subscribe() -> None:
        for number in range(rounds):
            run.subscribe("t", cid="c1", instance_id=f"i{number}")
        done.set()

    def unsubscribe() -> None:
        nonlocal removed
        number = 0
        while number < rounds and not (done.is_set() and number == 0):
            removed += run.registry.unsubscribe(cid="c1", instance_id=f"i{number}", topic="t" if number % 2 else None)
            number += 1

    run_threads(subscribe, unsubscribe)
    left = run.registry.subscriptions().get("t", {})
    assert removed + len(left) == rounds
    assert run.registry.publish("t", 1) == len(left)
    info = run.registry.inspect("c1")
    assert (len(info["c1"].subscriptions) if info else 0) == len(left)
    assert run.registry.remove_subscriptions_for_cid("c1") == len(left)
    run.settle()
    assert run.registry.inspect() == {}


@guarantee("G15")
@pytest.mark.parametrize("which", ["cid", "instance_id", "topic"])
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_unsubscribe_refuses_what_is_no_name(run: Driver, which: str, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: an empty topic means "all topics"."""
    if which == "topic" and wrong is None:
        wrong = 0.0  # None means every topic
    run.subscribe("t", cid="c1", instance_id="main")
    arguments: dict[str, Any] = {"cid": "c1", "instance_id": "main", "topic": "t", which: wrong}
    with unchanged(run.registry), pytest.raises(error, match=which):
        run.registry.unsubscribe(**arguments)


@guarantee("G13")
@requires("sizes", "by_reference")
def test_a_removed_subscription_leaves_neither_container_nor_payload(run: Driver) -> None:
    """Case 4. Fault: an emptied topic, conversation or instance stays as a key."""
    run.subscribe("t", cid="other")
    before = run.sizes()
    watched = []
    for index, name in enumerate(AWKWARD_NAMES * 20):
        payload = Payload()
        watched.append(weakref.ref(payload))
        run.subscribe("t", ("said", payload), cid=f"c{index}", instance_id=name)
        run.subscribe(name, ("said", payload), cid=f"c{index}", instance_id=name)
        assert run.registry.unsubscribe(cid=f"c{index}", instance_id=name, topic=name) == 1
        assert run.registry.unsubscribe(cid=f"c{index}", instance_id=name, topic="t") == 1
        del payload
    gc.collect()
    assert run.sizes() == before
    assert not any(reference() for reference in watched)


@guarantee("G13")
@requires("sizes")
def test_one_who_subscribes_and_leaves_for_ever_leaves_no_trace_in_a_lasting_topic(run: Driver) -> None:
    """Fault: tombstones in the order of a topic that are swept only when the topic empties."""
    for cid in ("first", "second"):
        run.subscribe("t", cid=cid)
    grown, last = [], ""
    for _ in range(4):
        for number in range(5000):
            # There is always a newer one behind the one that leaves.
            run.subscribe("t", cid=f"c{number}")
            if last:
                assert run.registry.unsubscribe(cid=last, instance_id="main", topic="t") == 1
            last = f"c{number}"
        grown.append(sum(run.sizes().values()))
    # What is swept lazily may stay in proportion to what is live, not to what ever was.
    assert max(grown) <= grown[0] + 50
    assert grown[0] < 500
    assert list(run.registry.subscriptions()["t"]) == [("first", "main"), ("second", "main"), (last, "main")]
