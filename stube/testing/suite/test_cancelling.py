"""Cancelling by any operation: final, never interrupting, atomic in a race (G5 to G7)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from stube import Event, Stats, TimerHandle
from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import (
    Driver,
    Gate,
    Injector,
    first_difference,
    monotonic_ns,
    run_threads,
    tracing,
    wait_or_standstill,
)
from stube.testing.suite._fixtures import HOUR, costly, guarantee


@guarantee("G5")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_a_timer_that_is_already_due_can_be_cancelled(run: Driver, how: str) -> None:
    """Fault: due timers have been moved to a ready queue that the cancel does not search.

    A delivery of the same conversation holds both timers up until they are due: 20 ms on a real clock.
    """
    with run.held("c1"):
        handle = run.schedule(0, "due", instance_id="i1")
        run.schedule(0, "other", instance_id="i2")
        if run.clock is None:
            threading.Event().wait(0.020)
        if how == "handle":
            assert handle.cancel() is True
        elif how == "instance":
            assert run.registry.cancel_timers("c1", instance_id="i1") == 1
        else:
            assert run.registry.cancel_timers("c1") == 2
        assert handle.cancel() is False
    run.settle()
    left = [] if how == "cancel_timers" else ["other"]
    assert run.recorder.names == left
    assert run.stats() == Stats(accepted=2, delivered=len(left), cancelled=2 - len(left))


@guarantee("G5")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_a_timer_among_many_can_be_cancelled(run: Driver, how: str) -> None:
    """Fault: among many timers a cancel searches at the wrong place, or gives up, or only marks a timer whose mark is
    lost when the dead entries are cleared away.

    The timers to be cancelled are due, but held up; before and behind them are 20,000 others, of which half are
    cancelled, too.
    """
    with run.held("c1"):
        others = [run.schedule(HOUR + number * 7919 % 20_000, cid=f"other {number % 50}") for number in range(10_000)]
        handles = [run.schedule(0, ("victim", number), cid="c1", instance_id=f"i{number}") for number in range(20)]
        others += [run.schedule(HOUR + number * 7919 % 20_000, cid=f"other {number % 50}") for number in range(10_000)]
        if how == "handle":
            assert [handle.cancel() for handle in handles] == [True] * 20
        elif how == "instance":
            assert [run.registry.cancel_timers("c1", instance_id=f"i{number}") for number in range(20)] == [1] * 20
        else:
            assert run.registry.cancel_timers("c1") == 20
        assert all(handle.cancel() for handle in others[::2])
        run.schedule(0, "end", cid="c1")
    run.settle()
    assert run.recorder.names == ["end"]
    assert not any(handle.cancel() for handle in (*handles, *others[::2]))
    assert sum(run.registry.cancel_timers(f"other {number}") for number in range(50)) == 10_000
    assert run.stats() == Stats(accepted=20_021, delivered=1, cancelled=20_020)


@guarantee("G5", "G10")
def test_thousands_of_cancelled_deliveries_hold_up_no_live_one(run: Driver) -> None:
    """Fault: what looks for the next live timer or target calls itself for each cancelled one, or gives up after some
    of them and sleeps."""
    for _ in range(6000):  # so that a heap has no reason to drop its cancelled timers
        run.schedule(HOUR, cid="c3")
    for number in range(2000):
        run.subscribe("t", cid=f"gone {number}")
    run.subscribe("t", "heard", cid="c2")
    with run.held("c1", "c2", advance_ms=5):
        for _ in range(2000):
            run.schedule(1, "victim")
        run.schedule(2, "live")
        assert run.registry.publish("t", "message") == 2001
        assert run.registry.cancel_timers("c1", instance_id="main") == 2001
        run.schedule(2, "live")
        for number in range(2000):
            run.registry.remove_subscriptions_for_cid(f"gone {number}")
    run.pass_time(5)
    # What is not held up, because another thread delivers it, may have begun before it was removed.
    assert [seen.event.name for cid in ("c1", "c2") for seen in run.recorder.of(cid)] == ["live", "heard"]


@guarantee("G5", "G7")
@costly
@pytest.mark.parametrize("how", ["cancel_timers", "remove_subscriptions_for_cid", "unsubscribe"])
def test_a_delivery_thread_sees_a_removal_in_one_step(run: Driver, how: str) -> None:
    """Fault: an operation that removes several things removes them one after the other without a lock, and the delivery
    thread finds the later one after the earlier one has gone.

    Two deliveries of a conversation are held up. At each line of the operation that removes both, they are let go. So
    none, the first or both begin, and what begins is not counted as removed.
    """
    at = 0
    for at in range(10_000):
        cid = f"c{at}"
        for name in ("first", "second"):
            run.subscribe(name, name, cid=cid, instance_id="main" if how == "unsubscribe" else name)
        with run.held(cid) as gate:
            for name in ("first", "second"):
                if how == "cancel_timers":
                    run.schedule(0, name, cid=cid, instance_id=name)
                else:
                    run.registry.publish(name, 1)

            def let_go(gate: Gate = gate, cid: str = cid) -> None:
                gate.release()
                wait_or_standstill(lambda: len(run.recorder.of(cid)) == 2)

            injector = Injector(at, let_go, library=False)
            with tracing(injector):
                if how == "unsubscribe":
                    run.registry.unsubscribe(cid=cid, instance_id="main")
                else:
                    getattr(run.registry, how)(cid)
        run.settle()
        begun = [seen.event.name for seen in run.recorder.of(cid)]
        assert begun in ([], ["first"], ["first", "second"]), f"{begun} begins at {injector.fired}"
        run.registry.remove_subscriptions_for_cid(cid)
        if not injector.fired:
            break
    stats = run.stats()
    assert stats.delivered == len(run.recorder.seen)
    assert stats.delivered + stats.cancelled == 2 * (at + 1)


@guarantee("G5")
def test_a_handler_can_cancel_due_timers_of_another_conversation(run: Driver) -> None:
    """Case 8. Fault: a batch of due timers is claimed as a whole, so those behind the first cannot be cancelled."""
    begun_at_return: list[bool] = []
    counts: list[int] = []

    def cancel(cid: str, event: Event) -> None:
        counts.append(run.registry.cancel_timers("c2"))
        begun_at_return.append(bool(run.recorder.of("c2")))

    run.recorder.on("cancel", cancel)
    with run.held("c1", advance_ms=5):
        run.schedule(1, "cancel", cid="c1")
        run.schedule(1, "victim", cid="c2")
    run.pass_time(5)
    delivered = len(run.recorder.of("c2"))
    assert counts[0] + delivered == 1
    # It may have begun before the cancel, which then did not count it; another delivery thread may have claimed it.
    canceller = run.recorder.of("c1")[0].thread
    assert begun_at_return == [True] or all(seen.thread != canceller for seen in run.recorder.of("c2"))
    assert run.stats() == Stats(accepted=2, delivered=1 + delivered, cancelled=counts[0])


@guarantee("G5", "G20")
def test_a_handler_can_cancel_due_timers_of_its_own_conversation(run: Driver) -> None:
    """Case 14. Fault: the rest of the own conversation's batch is delivered after the cancel."""
    counts: list[int] = []
    run.recorder.on("cancel", lambda cid, event: counts.append(run.registry.cancel_timers("c1")))
    with run.held("c1"):
        run.schedule(0, "cancel")
        run.schedule(0, "victim")
        run.schedule(0, "victim", instance_id="other")
        run.schedule(HOUR, "victim")
    run.settle()
    assert counts == [3]
    assert run.recorder.names == ["cancel"]
    assert run.stats() == Stats(accepted=4, delivered=1, cancelled=3)


@guarantee("G5", "G6", "G20")
def test_a_handler_that_ends_its_own_conversation_runs_to_its_end(run: Driver) -> None:
    """Case 14. Fault: the handler waits for itself, or a delivery queued behind it begins after its cancels."""
    log: list[object] = []

    def end(cid: str, event: Event) -> None:
        log.append(run.registry.cancel_timers(cid))
        log.append(run.registry.remove_subscriptions_for_cid(cid))
        log.append(run.registry.forget_pending_flow(cid))
        log.append("finished")

    run.recorder.on("end", end)
    run.registry.put_pending_flow("c1", "flow")
    run.subscribe("t", "said", cid="c1")
    with run.held("c1"):
        run.schedule(0, "end")
        run.schedule(0, "victim")
        run.schedule(HOUR, "victim")
        for number in range(3):
            assert run.registry.publish("t", number) == 1
    run.settle()
    assert log == [2, 1, True, "finished"]
    assert run.recorder.names == ["end"]
    assert run.registry.inspect() == {}
    assert run.stats() == Stats(accepted=6, delivered=1, cancelled=5)


@guarantee("G6")
def test_a_cancel_ignores_a_delivery_that_has_begun(run: Driver) -> None:
    """Fault: the cancel waits for the running handler (and here would never return), or counts it as cancelled."""
    gate = run.recorder.gate()
    ended: list[bool] = []

    def stand(cid: str, event: Event) -> None:
        gate.pass_through()
        ended.append(True)

    run.recorder.on("stand", stand)
    handle = run.schedule(0, "stand")
    with run.delivering():
        gate.wait_entered()
        assert run.registry.cancel_timers("c1") == 0
        assert run.registry.cancel_timers("c1", instance_id="main") == 0
        assert handle.cancel() is False
        assert run.registry.remove_subscriptions_for_cid("c1") == 0
        assert ended == []
        assert run.registry.inspect("c1")["c1"].running == 1
    run.settle()
    assert ended == [True]
    assert run.stats() == Stats(accepted=1, delivered=1)


@guarantee("G5", "G6")
def test_each_timer_is_either_cancelled_or_delivered(run: Driver) -> None:
    """Case 8. Fault: cancel and delivery each check the timer before the other has claimed it.

    10,000 timers of 0 to 2 ms, each cancelled at a random moment around its due instant.
    """
    chance = random.Random(8)
    cancelled: set[int] = set()
    number = 0
    for _ in range(100):
        cids = range(number, number + 100)
        number += 100
        handles: dict[int, TimerHandle] = {}
        for index in cids:
            handles[index] = run.schedule(chance.uniform(0, 2), ("tick", index), cid=f"c{index}")
        order = list(cids)
        chance.shuffle(order)
        for index in order:
            if run.clock is not None and chance.random() < 0.1:
                run.clock.advance(chance.uniform(0, 0.3))
            if index % 2:
                hit = run.registry.cancel_timers(f"c{index}") == 1
            else:
                hit = handles[index].cancel()
            if hit:
                cancelled.add(index)
    run.pass_time(2)
    delivered = run.recorder.payloads
    assert len(delivered) == len(set(delivered))
    assert first_difference(sorted({*delivered, *cancelled}), range(number)) is None
    assert not set(delivered) & cancelled
    assert run.stats() == Stats(accepted=number, delivered=len(delivered), cancelled=len(cancelled))


@guarantee("G5", "G7")
def test_exactly_one_of_many_threads_cancels_a_timer(run: Driver) -> None:
    """Fault: the handle's flag and the conversation's index are read under different locks."""
    rounds = 1000
    handles = [run.schedule(HOUR, cid=f"c{number}") for number in range(rounds)]
    counts = [0, 0, 0, 0]

    def by_handle(slot: int) -> None:
        for handle in handles:
            counts[slot] += handle.cancel()

    def by_cid(slot: int) -> None:
        for number in range(rounds):
            counts[slot] += run.registry.cancel_timers(f"c{number}")

    run_threads(lambda: by_handle(0), lambda: by_handle(1), lambda: by_cid(2), lambda: by_cid(3))
    assert sum(counts) == rounds
    assert run.stats() == Stats(accepted=rounds, cancelled=rounds)


@guarantee("G7")
def test_a_schedule_racing_with_a_cancel_is_atomic(run: Driver) -> None:
    """Fault: the cancel removes the conversation's index while the schedule adds to it: no cancel finds that timer."""
    rounds = 3000
    cancelled = 0
    done = threading.Event()

    def schedule() -> None:
        for _ in range(rounds):
            run.schedule(HOUR)
        done.set()

    def cancel() -> None:
        nonlocal cancelled
        while not done.is_set():
            cancelled += run.registry.cancel_timers("c1")

    run_threads(schedule, cancel)
    info = run.registry.inspect("c1")
    left = len(info["c1"].timers) if info else 0
    assert cancelled + left == rounds
    assert run.registry.cancel_timers("c1") == left
    assert run.registry.inspect("c1") == {}
    assert run.stats() == Stats(accepted=rounds, cancelled=rounds)


@guarantee("G5")
def test_a_queued_message_uses_the_newest_event_of_its_subscription(run: Driver) -> None:
    """Case 14d. Fault: the event is bound at `publish`, or replacing it drops or doubles the queued message."""
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
    """Case 14d. Fault: a delivery checks whether the name is subscribed, not whether it is the same subscription."""
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


@guarantee("G5")
@pytest.mark.parametrize("topic", ["t", None])
def test_no_queued_message_begins_after_unsubscribe(run: Driver, topic: str | None) -> None:
    """Fault: the queue holds complete deliveries, and the delivery thread does not check their subscription again."""
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
def test_a_handler_can_unsubscribe_a_later_target_of_its_message(run: Driver) -> None:
    """Case 12. Fault: the targets of a message are one batch, which is always delivered to its end.

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
    if counts["b"]:  # only another delivery thread may have begun it before
        assert run.recorder.of("b")[0].thread != run.recorder.of("a")[0].thread
    assert run.stats() == Stats(accepted=3, delivered=2 + counts["b"], cancelled=1 - counts["b"], subscriptions=3)
    assert run.subscribers("t") == [("a", "main"), ("c", "main"), ("d", "main")]
    assert len(begun) == 1


@guarantee("G6")
def test_unsubscribe_does_not_wait_for_a_running_handler(run: Driver) -> None:
    """Fault: the removal waits for the running handler (and here would never return), or interrupts it."""
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


@guarantee("G6")
@requires(REAL_TIME)  # on a virtual clock the time of a call says nothing about the delivery
@pytest.mark.parametrize("how", ["cancel_timers", "handle", "unsubscribe", "remove", "forget", "reset"])
def test_no_removal_waits_for_a_running_handler_for_a_while(run: Driver, how: str) -> None:
    """Fault: a removal waits for the running delivery up to some timeout of its own.

    Real time: in the best of five rounds the call must take less than 0.1 s.
    """
    taken = []
    for _ in range(5):
        run.subscribe("t")
        run.registry.put_pending_flow("c1", "flow")
        with run.held("c1"):
            handle = run.schedule(HOUR)
            calls: dict[str, Callable[[], object]] = {
                "cancel_timers": lambda: run.registry.cancel_timers("c1"),
                "handle": handle.cancel,
                "unsubscribe": lambda: run.registry.unsubscribe(cid="c1", instance_id="main"),
                "remove": lambda: run.registry.remove_subscriptions_for_cid("c1"),
                "forget": lambda: run.registry.forget_pending_flow("c1"),
                "reset": run.registry.reset_state,
            }
            start = monotonic_ns()
            calls[how]()
            taken.append((monotonic_ns() - start) / 1e9)
        if taken[-1] < 0.1:
            return
    pytest.fail(f"{how} took {min(taken):.2f} s while a handler ran")


@guarantee("G7")
def test_a_subscribe_racing_with_an_unsubscribe_is_atomic(run: Driver) -> None:
    """Fault: one of the two indexes keeps a subscription that the other has lost."""
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


@guarantee("G5")
def test_no_queued_message_begins_after_removing_its_conversation(run: Driver) -> None:
    """Fault: a queued message is delivered although its conversation has been removed."""
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
def test_a_subscribe_racing_with_the_removal_is_atomic(run: Driver) -> None:
    """Fault: the index of the conversation is dropped while another thread adds to it: no removal finds that entry."""
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
