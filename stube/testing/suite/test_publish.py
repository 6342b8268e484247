"""`publish`: to whom, in which order, by reference, and bounded."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest

from stube import Event, RegistryFull, Stats
from stube.testing._capabilities import requires
from stube.testing._drive import PATIENCE, Driver, run_threads
from stube.testing.suite._fixtures import HOUR, NOT_A_NAME, MakeRun, Payload, guarantee, unchanged

_monotonic_ns = time.monotonic_ns


@guarantee("G21")
def test_every_subscriber_gets_the_message_once_and_nobody_else(run: Driver) -> None:
    """Fault: an instance of a conversation that subscribes twice gets one message, or another topic gets it too."""
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


@guarantee("G2")
def test_the_subscribers_of_one_conversation_get_it_in_the_order_in_which_they_subscribed(run: Driver) -> None:
    """Fault: the order of a set or of the names."""
    order = [f"i{number * 7 % 50}" for number in range(50)]
    for instance_id in order:
        run.subscribe("t", instance_id=instance_id)
    run.registry.unsubscribe(cid="c1", instance_id=order[10], topic="t")
    run.subscribe("t", instance_id=order[10])
    order.append(order.pop(10))
    assert run.registry.publish("t", 1) == 50
    run.settle()
    assert [seen.event.instance_id for seen in run.recorder.seen] == order


@guarantee("G2", "G4")
def test_one_publishers_messages_reach_every_subscriber_in_order(run: Driver) -> None:
    """Case 15. Fault: a pool of workers, or a lane per message, in which the second overtakes the slow first.

    Handlers stand still now and then for a moment, a different one each time.
    """
    count, cids = 10_000, ["c1", "c2", "c3"]

    def dawdle(cid: str, event: Event) -> None:
        if event.payload % 1000 == int(cid[1]):
            threading.Event().wait(0.001)

    run.recorder.on("said", dawdle)
    for cid in cids:
        run.subscribe("t", cid=cid)
    for number in range(1, count + 1):
        assert run.registry.publish("t", number) == 3
    run.settle()
    for cid in cids:
        assert [seen.event.payload for seen in run.recorder.of(cid)] == list(range(1, count + 1))
    assert run.stats() == Stats(accepted=3 * count, delivered=3 * count, subscriptions=3)


@guarantee("G2")
def test_timers_and_messages_of_one_instant_begin_in_the_order_of_their_acceptance(run: Driver) -> None:
    """Fault: timers and messages wait in two queues, of which one is emptied before the other."""
    for topic in ("t", "u"):
        run.subscribe(topic, f"said on {topic}")
    wanted = []
    with run.held("c1"):
        for number in range(20):
            wanted += [("tick", number), ("said on t", number), ("tock", number), ("said on u", number)]
            run.schedule(0, ("tick", number))
            run.registry.publish("t", number)
            run.schedule(-1, ("tock", number), instance_id="other")
            run.registry.publish("u", number)
    run.settle()
    assert [(seen.event.name, seen.event.payload) for seen in run.recorder.seen] == wanted


@guarantee("G4")
def test_each_of_many_publishers_is_heard_in_its_own_order(run: Driver) -> None:
    """Fault: the order of a publisher's messages is lost when another publishes in between."""
    publishers, each = 4, 500
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)

    def publish(publisher: int) -> None:
        for number in range(each):
            assert run.registry.publish("t", (publisher, number)) == 2

    run_threads(*(lambda publisher=publisher: publish(publisher) for publisher in range(publishers)))
    run.settle()
    for cid in ("c1", "c2"):
        payloads = [seen.event.payload for seen in run.recorder.of(cid)]
        assert len(payloads) == publishers * each
        for publisher in range(publishers):
            assert [number for who, number in payloads if who == publisher] == list(range(each))


@guarantee("G4")
@requires("common_topic_order")
def test_all_subscribers_of_a_topic_hear_many_publishers_in_one_common_order(run: Driver) -> None:
    """Fault: the message is put into each conversation's own queue without one order over all."""
    cids = [f"c{number}" for number in range(5)]
    for cid in cids:
        run.subscribe("t", cid=cid)

    def publish(publisher: int) -> None:
        for number in range(300):
            run.registry.publish("t", (publisher, number))

    run_threads(*(lambda publisher=publisher: publish(publisher) for publisher in range(4)))
    run.settle()
    orders = [[seen.event.payload for seen in run.recorder.of(cid)] for cid in cids]
    assert len(orders[0]) == 1200
    assert all(order == orders[0] for order in orders)


@guarantee("G3", "G1")
def test_a_message_is_never_delivered_inside_publish(run: Driver) -> None:
    """Fault: publish calls its subscribers on its own stack, the publishing subscriber itself included."""
    log: list[str] = []

    def said(cid: str, event: Event) -> None:
        log.append(f"{event.payload} begins")
        if event.payload < 3:
            assert run.registry.publish("t", event.payload + 1) == 1
        log.append(f"{event.payload} ends")

    run.recorder.on("said", said)
    run.subscribe("t")
    inside = threading.local()
    inside.call = True
    on_stack: list[bool] = []
    run.recorder.on("other", lambda cid, event: on_stack.append(getattr(inside, "call", False)))
    run.subscribe("u", "other")
    assert run.registry.publish("t", 1) == 1
    assert run.registry.publish("u", 1) == 1
    inside.call = False
    run.settle()
    assert log == ["1 begins", "1 ends", "2 begins", "2 ends", "3 begins", "3 ends"]
    assert on_stack == [False]


@guarantee("G1")
def test_at_most_one_delivery_of_a_conversation_runs_at_any_moment(run: Driver) -> None:
    """Fault: two threads (or a nested call) deliver to one conversation at once. The recorder sees every overlap.

    Each handler stands still for a moment, so that a second one would come in: 200 deliveries, from timers and
    messages of four threads, to two instances.
    """
    run.recorder.on("said", lambda cid, event: threading.Event().wait(0.0005))
    run.recorder.on("tick", lambda cid, event: threading.Event().wait(0.0005))
    for instance_id in ("i1", "i2"):
        run.subscribe("t", "said", instance_id=instance_id)

    def work() -> None:
        for number in range(15):
            run.registry.publish("t", number)
            run.schedule(number % 3, "tick")

    run_threads(work, work, work, work)
    run.pass_time(3)
    assert run.recorder.overlaps == []
    assert run.stats() == Stats(accepted=180, delivered=180, subscriptions=2)


@guarantee("G16")
def test_a_subscriber_that_stays_misses_nothing_while_others_come_and_go(run: Driver) -> None:
    """Fault: the subscribers are iterated while they change: one is skipped, or a RuntimeError is raised."""
    rounds = 600
    run.subscribe("t", cid="stays")
    done = threading.Event()
    targeted: list[int] = []

    def come_and_go(thread: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            run.subscribe("t", cid=f"g{thread}", instance_id=f"i{number % 7}")
            run.registry.unsubscribe(cid=f"g{thread}", instance_id=f"i{(number + 3) % 7}", topic="t")

    def publish() -> None:
        try:
            for number in range(rounds):
                targeted.append(run.registry.publish("t", number))
        finally:
            done.set()

    run_threads(publish, lambda: come_and_go(1), lambda: come_and_go(2))
    stats = run.stats()
    assert [seen.event.payload for seen in run.recorder.of("stays")] == list(range(rounds))
    assert sum(targeted) == stats.accepted == stats.delivered + stats.cancelled
    assert stats.delivered == len(run.recorder.seen)


@guarantee("G17")
@requires("by_reference")
def test_a_message_is_the_very_object_and_nothing_is_asked_of_it(run: Driver) -> None:
    """Fault: `if msg:`, a comparison, a hash, a copy for each subscriber, or a `repr` for a log."""

    class Hostile:
        def _refuse(self, *args: Any) -> Any:
            raise AssertionError("the registry looked into a message")

        __eq__ = __ne__ = __lt__ = __gt__ = __bool__ = __len__ = __iter__ = __getitem__ = _refuse
        __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __repr__ = __str__ = __format__ = _refuse
        __hash__ = _refuse

    message = Hostile()
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)
    assert run.registry.publish("t", message) == 2
    run.registry.inspect()
    run.settle()
    assert [payload is message for payload in run.recorder.payloads] == [True, True]


@guarantee("G17", "G15")
@requires("cross_process")
def test_what_the_wire_cannot_carry_is_refused_where_it_is_handed_in(run: Driver) -> None:
    """Case 38. Fault: it fails later, in a thread or at the subscriber, or the error does not say where it is."""
    run.subscribe("t")
    message = {"items": [1, {"culprit": threading.Lock()}]}
    for call in (
        lambda: run.registry.publish("t", message),
        lambda: run.schedule(0, ("tick", message)),
        lambda: run.registry.put_pending_flow("c1", message),
    ):
        with unchanged(run.registry), pytest.raises(TypeError, match="culprit"):
            call()


@guarantee("G22", "G15")
def test_what_would_pass_max_pending_is_refused_whole(make_run: MakeRun) -> None:
    """Fault: a part of the targets gets the message before the bound is met, or timers and messages count apart."""
    run = make_run(max_pending=5)
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)
    handles = [run.schedule(HOUR, cid="c3") for _ in range(4)]
    for message in (1, None):
        with unchanged(run.registry), pytest.raises(RegistryFull, match="max_pending"):
            run.registry.publish("t", message)
    assert run.registry.publish("nobody", 1) == 0
    handles.append(run.schedule(HOUR, cid="c4"))
    with unchanged(run.registry), pytest.raises(RegistryFull, match="5"):
        run.schedule(HOUR, cid="c5")
    assert handles[0].cancel()
    handles.append(run.schedule(HOUR, cid="c5"))
    assert run.registry.cancel_timers("c3") == 3
    assert run.registry.publish("t", "room") == 2
    run.settle()
    assert run.recorder.payloads == ["room", "room"]
    assert run.stats() == Stats(accepted=8, delivered=2, cancelled=4, timers=2, subscriptions=2)


@guarantee("G22")
def test_what_is_queued_counts_until_it_begins(make_run: MakeRun) -> None:
    """Fault: only timers are counted, or what has begun still is."""
    run = make_run(max_pending=4)
    run.subscribe("t", cid="c1")
    with run.held("c1"):
        for number in range(4):
            assert run.registry.publish("t", number) == 1
        with pytest.raises(RegistryFull):
            run.registry.publish("t", "too much")
        with pytest.raises(RegistryFull):
            run.schedule(HOUR)
    run.settle()
    assert run.recorder.payloads == [0, 1, 2, 3]
    assert run.registry.publish("t", 4) == 1
    assert run.stats() == Stats(accepted=5, delivered=5, subscriptions=1)


@guarantee("G22")
def test_a_removed_subscriptions_messages_free_their_room_when_they_are_reached(make_run: MakeRun) -> None:
    """Fault: the room of cancelled messages is never given back."""
    run = make_run(max_pending=4)
    for _ in range(5):
        run.subscribe("t", cid="c1")
        with run.held("c1"):
            for number in range(4):
                assert run.registry.publish("t", number) == 1
            assert run.registry.remove_subscriptions_for_cid("c1") == 1
        run.settle()
    assert run.recorder.seen == []
    assert run.stats() == Stats(accepted=20, cancelled=20)


@guarantee("G22")
def test_there_may_be_no_bound(make_run: MakeRun) -> None:
    """Fault: None is compared with a number."""
    run = make_run(max_pending=None)
    for number in range(1000):
        run.schedule(HOUR, cid=f"c{number}")
    assert run.registry.stats().timers == 1000


@guarantee("G15")
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_publish_refuses_what_is_no_topic(run: Driver, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: a topic that is no str has no subscribers, so the slip passes in silence."""
    with unchanged(run.registry), pytest.raises(error, match="topic"):
        run.registry.publish(wrong, "message")


@guarantee("G13", "G5")
@requires("by_reference")
def test_messages_for_conversations_that_ended_meanwhile_are_let_go(make_run: MakeRun) -> None:
    """Case 6. Fault: the queue of a subscriber that has gone stays, with the messages in it."""
    run = make_run(max_pending=None)
    subscribers, messages = 1000, 100
    run.subscribe("warm up", cid="holder")
    run.registry.publish("warm up", 0)
    before = run.sizes() if "sizes" in run.registry.capabilities else None
    begun_late: list[str] = []
    ended = threading.Event()
    run.recorder.on("said", lambda cid, event: begun_late.append(cid) if ended.is_set() else None)
    watched = []
    with run.held("holder"):
        for number in range(subscribers):
            run.subscribe("t", cid=f"c{number}")
        message: Payload | None = None
        for _ in range(messages):
            message = Payload()
            watched.append(weakref.ref(message))
            assert run.registry.publish("t", message) == subscribers
        del message
        for number in range(subscribers):
            assert run.registry.remove_subscriptions_for_cid(f"c{number}") == 1
        ended.set()
    run.settle()
    stats = run.stats()
    assert stats.accepted == 1 + subscribers * messages
    assert stats.delivered + stats.cancelled == stats.accepted
    assert begun_late == []
    run.recorder.clear()
    gc.collect()
    assert sum(reference() is not None for reference in watched) == 0
    assert before is None or run.sizes() == before


@guarantee("G13")
@requires("by_reference")
def test_an_idle_registry_keeps_no_last_message_alive(run: Driver) -> None:
    """Fault: a local variable of the sleeping loop still refers to the last message, or a topic keeps it."""
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)
    for topic in ("t", "nobody"):
        message = Payload()
        watched = weakref.ref(message)
        run.registry.publish(topic, message)
        del message
        run.settle()
        run.recorder.clear()
        gc.collect()
        assert watched() is None


@guarantee("G14")
def test_publishing_costs_its_caller_the_same_for_one_and_for_a_hundred_thousand(make_run: MakeRun) -> None:
    """Fault: publish walks through the subscribers, or copies them.

    With dispatch held up, so that only the caller's own cost shows; 25 times as much passes, a copy does not.
    """
    run = make_run(max_pending=None)

    def typical(topic: str) -> float:
        figures = []
        for number in range(41):
            start = _monotonic_ns()
            run.registry.publish(topic, number)
            figures.append(_monotonic_ns() - start)
        return sorted(figures)[len(figures) // 4]

    run.subscribe("one", cid="c0")
    for number in range(100_000):
        run.subscribe("crowd", cid=f"c{number}")
    with run.held("c0"):
        alone, crowd = typical("one"), typical("crowd")
        run.registry.reset_state()
    assert crowd < 25 * max(alone, 2_000)
    assert run.registry.join(PATIENCE)
    assert run.stats().timers == 0


@guarantee("G16")
def test_the_targets_are_the_subscribers_of_the_instant_of_the_call(run: Driver) -> None:
    """Case 12. Fault: who leaves and comes between publish and delivery changes who gets it, or how many were told."""
    for cid in ("a", "b", "c"):
        run.subscribe("t", cid=cid)
    with run.held("a", "b", "c", "d"):
        assert run.registry.publish("t", 1) == 3
        run.registry.unsubscribe(cid="b", instance_id="main", topic="t")
        run.subscribe("t", cid="d")
        assert run.registry.publish("t", 2) == 3
        run.registry.unsubscribe(cid="a", instance_id="main", topic="t")
        run.subscribe("t", cid="b")
        assert run.registry.publish("t", 3) == 3
    run.settle()
    got = {cid: [seen.event.payload for seen in run.recorder.of(cid)] for cid in "abcd"}
    assert got == {"a": [], "b": [3], "c": [1, 2, 3], "d": [2, 3]}
    assert run.stats() == Stats(accepted=9, delivered=6, cancelled=3, subscriptions=3)
