"""`cancel_timers` and a handle's `cancel()`: final, counted, never interrupting."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from typing import Any

import pytest

from stube import Event, Stats, TimerHandle
from stube.testing._capabilities import requires
from stube.testing._drive import Driver, run_threads
from stube.testing.suite._fixtures import HOUR, NOT_A_NAME, Payload, guarantee, unchanged


@guarantee("G5", "G21")
def test_a_conversations_timers_are_cancelled_and_counted_and_no_others(run: Driver) -> None:
    """Fault: another conversation's timers go too, or the count is that of the conversation's instances."""
    for delay in (1, 2, HOUR):
        for instance_id in ("i1", "i2"):
            run.schedule(delay, cid="c1", instance_id=instance_id)
            run.schedule(delay, cid="c2", instance_id=instance_id)
    # Whatever has begun on a real clock by now was delivered; the count tells of the rest.
    cancelled = run.registry.cancel_timers("c1")
    assert run.registry.cancel_timers("c1") == 0
    run.pass_time(2)
    assert len(run.recorder.of("c1")) == 6 - cancelled
    assert 2 <= cancelled <= 6
    assert len(run.recorder.of("c2")) == 4
    assert run.stats() == Stats(accepted=12, delivered=10 - cancelled, cancelled=cancelled, timers=2)


@guarantee("G21")
def test_timers_of_one_instance_are_cancelled_alone(run: Driver) -> None:
    """Fault: `instance_id` is ignored, or an instance of the same name in another conversation is hit."""
    for cid in ("c1", "c2"):
        for instance_id in ("i1", "i1", "i2"):
            run.schedule(HOUR, cid=cid, instance_id=instance_id)
    assert run.registry.cancel_timers("c1", instance_id="i1") == 2
    assert run.registry.cancel_timers("c1", instance_id="i1") == 0
    assert run.registry.cancel_timers("c1", instance_id="never") == 0
    assert [timer.instance_id for timer in run.registry.inspect("c1")["c1"].timers] == ["i2"]
    assert len(run.registry.inspect("c2")["c2"].timers) == 3
    assert run.registry.cancel_timers("c1") == 1
    assert run.registry.cancel_timers("never") == 0
    assert run.stats() == Stats(accepted=6, cancelled=3, timers=3)


@guarantee("G5")
def test_a_handle_cancels_its_own_timer_once(run: Driver) -> None:
    """Fault: a handle says True twice, or of a timer that has fired or that `cancel_timers` had cancelled."""
    first, second = run.schedule(HOUR, "first"), run.schedule(HOUR, "second")
    third, fired = run.schedule(HOUR, "third"), run.schedule(0, "fired")
    run.settle()
    assert first.cancel() is True
    assert first.cancel() is False
    assert fired.cancel() is False
    assert [timer.event for timer in run.registry.inspect("c1")["c1"].timers] == ["second", "third"]
    assert run.registry.cancel_timers("c1") == 2
    assert second.cancel() is False
    assert third.cancel() is False
    assert run.recorder.names == ["fired"]
    assert run.stats() == Stats(accepted=4, delivered=1, cancelled=3)


@guarantee("G5")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_a_timer_that_is_due_already_is_cancelled_too(run: Driver, how: str) -> None:
    """Fault: due timers have been moved to a ready queue that the cancel does not look through.

    Held up behind a delivery of the same conversation until both are due: 20 ms on a real clock.
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
def test_a_handler_that_cancels_another_conversation_that_is_due_keeps_it_from_beginning(run: Driver) -> None:
    """Case 8. Fault: a batch of due timers is claimed as a whole, so those behind the first cannot be cancelled."""
    begun_at_return: list[bool] = []
    counts: list[int] = []

    def cancel(cid: str, event: Event) -> None:
        counts.append(run.registry.cancel_timers("c2"))
        begun_at_return.append(bool(run.recorder.of("c2")))

    run.recorder.on("cancel", cancel)
    with run.held("c1", "c2", advance_ms=5):
        run.schedule(1, "cancel", cid="c1")
        run.schedule(1, "victim", cid="c2")
    run.pass_time(5)
    delivered = len(run.recorder.of("c2"))
    assert counts[0] + delivered == 1
    # Only another thread may have begun it meanwhile; then the cancel did not count it.
    canceller = run.recorder.of("c1")[0].thread
    assert begun_at_return == [False] or run.recorder.of("c2")[0].thread != canceller
    assert all(seen.thread != canceller for seen in run.recorder.of("c2"))
    assert run.stats() == Stats(accepted=2, delivered=1 + delivered, cancelled=counts[0])


@guarantee("G5", "G20")
def test_a_handler_cancels_what_is_due_behind_it_in_its_own_conversation(run: Driver) -> None:
    """Case 14. Fault: the rest of the batch of one's own conversation is delivered after the cancel."""
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


@guarantee("G6")
def test_a_delivery_that_has_begun_is_neither_counted_nor_awaited_nor_disturbed(run: Driver) -> None:
    """Fault: the cancel waits for the running handler (here it never returns), or counts it as cancelled."""
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
def test_each_timer_is_cancelled_or_delivered_never_both_never_neither(run: Driver) -> None:
    """Case 8. Fault: cancel and delivery each look at the timer before the other has taken it.

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
    assert set(delivered) | cancelled == set(range(number))
    assert not set(delivered) & cancelled
    assert run.stats() == Stats(accepted=number, delivered=len(delivered), cancelled=len(cancelled))


@guarantee("G5", "G7")
def test_of_many_threads_that_cancel_one_timer_exactly_one_did(run: Driver) -> None:
    """Fault: the flag of the handle and the index of the conversation are looked at under different locks."""
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
def test_a_schedule_that_races_with_a_cancel_is_whole(run: Driver) -> None:
    """Fault: the cancel removes the conversation's index while the schedule adds to it: a timer nobody can cancel."""
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


@guarantee("G5", "G6", "G20")
def test_a_handler_ends_its_own_conversation_undisturbed(run: Driver) -> None:
    """Case 14. Fault: the handler waits for itself, or what is queued behind it begins after it has ended all."""
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


@guarantee("G15")
@pytest.mark.parametrize("which", ["cid", "instance_id"])
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_cancel_timers_refuses_what_is_no_name(run: Driver, which: str, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: an empty instance means "all of them", which a caller with an empty variable did not mean."""
    if which == "instance_id" and wrong is None:
        wrong = 0.0  # None means every instance
    run.schedule(HOUR)
    with unchanged(run.registry), pytest.raises(error, match=which):
        if which == "cid":
            run.registry.cancel_timers(wrong)
        else:
            run.registry.cancel_timers("c1", instance_id=wrong)


@guarantee("G13")
@requires("by_reference")
def test_what_cancelled_timers_held_is_free_at_once(run: Driver) -> None:
    """Case 2. Fault: cancelled timers are marked and stay in the heap until they would have been due."""
    count = 100_000
    watched = []
    payload: Payload | None = None
    for number in range(count):
        payload = Payload()
        watched.append(weakref.ref(payload))
        run.schedule(HOUR + number % 977, ("timeout", payload), cid=f"c{number % 100}")
    del payload
    assert sum(run.registry.cancel_timers(f"c{number}") for number in range(100)) == count
    gc.collect()
    assert sum(reference() is not None for reference in watched) == 0
    assert run.stats() == Stats(accepted=count, cancelled=count)


@guarantee("G13")
@requires("sizes")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_cancelled_timers_leave_nothing_in_any_container(run: Driver, how: str) -> None:
    """Fault: an emptied slot, an index of instances or a tombstone for each cancelled timer stays.

    A few timers of others stay in the same slots, so that no container may be thrown away as a whole.
    """
    delays = [0.5, 1, 7, 1000, 60_000, HOUR, 10**9, 10**15, 10**30]
    for delay in delays[3:]:
        run.schedule(delay, cid="other")
    before = run.sizes()
    for number in range(300):
        handles = [run.schedule(delay, cid=f"c{number}", instance_id=f"i{delay}") for delay in delays[3:]]
        if how == "handle":
            assert all(handle.cancel() for handle in handles)
        elif how == "instance":
            for delay in delays[3:]:
                assert run.registry.cancel_timers(f"c{number}", instance_id=f"i{delay}") == 1
        else:
            assert run.registry.cancel_timers(f"c{number}") == len(handles)
    assert run.sizes() == before


@guarantee("G10", "G24")
def test_cancelling_the_only_timer_leaves_nothing_to_wait_for(run: Driver) -> None:
    """Case 9. Fault: `join` or `close` waits for the instant of a timer that has been cancelled.

    Real time: both return at once; the bound of 5 s stands for "not an hour".
    """
    handle = run.schedule(HOUR)
    assert handle.cancel()
    assert run.registry.join(5.0)
    assert run.registry.close(5.0)
