"""Memory: what is removed is freed immediately: containers, payloads, contexts, threads (G13)."""

from __future__ import annotations

import contextvars
import gc
import logging
import math
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from stube import ConversationEnded, Event, RegistryFull, Stats, TimerHandle
from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import PATIENCE, Driver, live_threads
from stube.testing.suite._fixtures import AWKWARD_NAMES, HOUR, MakeRun, Payload, costly, guarantee


@guarantee("G13")
@requires("by_reference")
def test_a_handle_that_outlives_its_timer_keeps_no_payload_alive(run: Driver) -> None:
    """Fault: the handle refers to the timer's whole entry."""

    def schedule(delay: float) -> tuple[TimerHandle, weakref.ref[Payload]]:
        payload = Payload()
        return run.schedule(delay, ("tick", payload)), weakref.ref(payload)

    fired, fired_payload = schedule(0)
    run.settle()
    cancelled, cancelled_payload = schedule(HOUR)
    assert cancelled.cancel()
    swept, swept_payload = schedule(HOUR)
    assert run.registry.cancel_timers("c1") == 1
    forgotten, forgotten_payload = schedule(HOUR)
    run.registry.reset_state()
    run.recorder.clear()
    run.settle()
    gc.collect()
    assert [fired_payload(), cancelled_payload(), swept_payload(), forgotten_payload()] == [None] * 4
    assert not any(handle.cancel() for handle in (fired, cancelled, swept, forgotten))


@guarantee("G13")
@requires("by_reference")
def test_an_idle_registry_keeps_no_delivered_payload_alive(run: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: a local variable of the sleeping loop, a batch or an exception still refers to the last event."""

    def fail(cid: str, event: Event) -> None:
        raise LookupError(event.name)

    # pytest's log handler would keep the exception alive.
    caplog.set_level(logging.CRITICAL + 1, "stube")
    run.recorder.on("fail", fail)
    for name in ("tick", "fail"):
        for delay in (0, 1):
            payload = Payload()
            watched = weakref.ref(payload)
            run.schedule(delay, (name, payload))
            del payload
            if run.clock is not None:
                run.clock.advance(1)
            else:
                assert run.registry.join(PATIENCE)
            run.recorder.clear()
            gc.collect()
            assert watched() is None, f"the payload of the {name} timer of {delay} ms is alive"


@guarantee("G13")
@requires("by_reference")
def test_an_idle_registry_keeps_no_delivered_message_alive(run: Driver) -> None:
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


@guarantee("G13")
@requires("by_reference")
def test_a_replaced_dispatch_is_not_kept_alive(run: Driver) -> None:
    """Fault: every dispatch that was ever installed is kept, or bound to what was accepted while it was installed."""
    watched: list[weakref.ref[Any]] = []

    def install() -> None:
        host = Payload()
        watched.append(weakref.ref(host))
        run.registry.install_dispatch(lambda cid, event, host=host: run.recorder(cid, event))  # type: ignore[misc]

    run.subscribe("t")
    for number in range(1000):
        install()
        if number % 100 == 0:
            run.schedule(0)
            run.schedule(HOUR)
            run.registry.publish("t", number)
            run.settle()
    run.registry.install_dispatch(run.recorder)
    run.schedule(0)
    run.settle()
    gc.collect()
    assert sum(reference() is not None for reference in watched) == 0


@guarantee("G13")
@requires("by_reference")
def test_what_a_handler_returns_is_not_kept_alive(run: Driver) -> None:
    """Fault: the results of handlers are collected, or the last one stays in a local variable of the loop."""
    watched: list[weakref.ref[Payload]] = []

    def dispatch(cid: str, event: Event) -> Any:
        result = Payload()
        watched.append(weakref.ref(result))
        return result

    run.registry.install_dispatch(dispatch)
    run.subscribe("t")
    for number in range(10):
        run.schedule(0)
        run.registry.publish("t", number)
        run.settle()
    gc.collect()
    assert [reference() is not None for reference in watched] == [False] * 20


@guarantee("G13")
@requires("by_reference")
def test_the_context_of_a_caller_is_not_kept_alive(run: Driver) -> None:
    """Fault: the context of a caller that schedules a timer, or that starts the delivery thread, is copied and kept; or
    its thread is, as a key of what belongs to each caller."""
    variable: contextvars.ContextVar[Payload] = contextvars.ContextVar("variable")
    watched: list[weakref.ref[Payload]] = []

    def call() -> None:
        payload = Payload()
        watched.append(weakref.ref(payload))
        variable.set(payload)
        run.subscribe("t")
        run.schedule(0)
        run.schedule(HOUR)
        run.registry.publish("t", 1)

    contextvars.Context().run(call)
    caller = threading.Thread(target=run.schedule, args=(0,))
    thread = weakref.ref(caller)
    caller.start()
    caller.join(PATIENCE)
    del caller
    run.settle()
    gc.collect()
    assert watched[0]() is None
    assert thread() is None
    assert run.registry.cancel_timers("c1") == 1


@guarantee("G13")
@requires("sizes")
def test_a_self_rearming_timer_is_one_timer_at_every_step(run: Driver) -> None:
    """Case 3. Fault: each new timer leaves a dead entry of the last one, so a ticking clock fills the memory."""
    steps = 10_000
    before = run.sizes()
    left = steps
    worst = 0
    # A virtual clock refuses an endless chain at one instant, so each step takes a millisecond there.
    delay = 0 if run.clock is None else 1

    def again(cid: str, event: Event) -> None:
        nonlocal left, worst
        left -= 1
        if left:
            run.schedule(delay)
        if left % 100 == 0:
            worst = max(worst, len(run.registry.inspect()), len(run.registry.inspect("c1")["c1"].timers))
            run.recorder.clear()

    run.recorder.on("tick", again)
    run.schedule(delay)
    assert run.registry.join(2 * PATIENCE)
    assert left == 0
    assert worst == 1
    assert run.stats() == Stats(accepted=steps, delivered=steps)
    assert run.sizes() == before


@guarantee("G13")
@costly
@requires("sizes")
def test_conversations_that_used_everything_leave_nothing(run: Driver) -> None:
    """Case 4. Fault: a key, an empty container or a lock stays for every conversation that ever existed."""
    before = run.sizes()
    count = 10_000
    for number in range(count):
        name = f"n{number}"
        run.registry.put_pending_flow(name, number)
        run.schedule(number % 3, ("tick", number), cid=name)
        run.subscribe(name, cid=name)
        assert run.registry.publish(name, number) == 1
        if number % 1000 == 0:
            run.pass_time(0)
    run.pass_time(3)
    for number in range(count):
        name = f"n{number}"
        assert run.registry.pending_flow(name) == number
        assert run.registry.remove_subscriptions_for_cid(name) == 1
        assert run.registry.cancel_timers(name) == 0
    assert run.sizes() == before
    assert run.stats() == Stats(accepted=2 * count, delivered=2 * count)


@guarantee("G13")
@costly
@requires("sizes")
def test_conversations_that_never_connected_leave_nothing(run: Driver) -> None:
    """Case 1. Fault: ending a conversation leaves its baton, its cancelled timer or its emptied topic behind."""
    count = 10_000
    run.schedule(HOUR, cid="other")
    run.subscribe("everybody", cid="other")
    before = run.sizes()
    for number in range(count):
        cid = f"c{number}"
        run.registry.put_pending_flow(cid, "checkout")
        run.schedule(HOUR, ("timeout", number), cid=cid)
        run.subscribe(f"topic {number}", cid=cid)
        run.subscribe("everybody", cid=cid)
    assert run.registry.stats() == Stats(
        pending_flows=count, timers=count + 1, subscriptions=2 * count + 1, accepted=count + 1
    )
    for number in range(count):
        cid = f"c{number}"
        assert run.registry.cancel_timers(cid) == 1
        assert run.registry.remove_subscriptions_for_cid(cid) == 2
        assert run.registry.forget_pending_flow(cid)
    assert run.sizes() == before
    assert run.stats() == Stats(timers=1, subscriptions=1, accepted=count + 1, cancelled=count)


@guarantee("G13")
@requires("sizes")
def test_conversations_that_took_their_batons_leave_nothing(run: Driver) -> None:
    """Case 4. Fault: an empty container or a lock stays for every conversation that ever existed."""
    before = run.sizes()
    for number in range(10_000):
        run.registry.put_pending_flow(f"c{number}", number)
        assert run.registry.pending_flow(f"c{number}") == number
    assert run.sizes() == before


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


@guarantee("G13")
@costly
@requires("by_reference")
def test_payloads_of_cancelled_timers_are_released_immediately(run: Driver) -> None:
    """Case 2. Fault: cancelled timers are only marked, and stay in the heap until they would have been due."""
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
@requires("by_reference")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_one_cancelled_timer_among_others_frees_its_payload(run: Driver, how: str) -> None:
    """Fault: a cancelled timer is only marked, and keeps its payload until enough of the others have gone, too."""
    for number in range(10):
        run.schedule(HOUR + number, cid="stays")
        run.schedule(HOUR + number, cid="c1", instance_id="stays")
    payload = Payload()
    watched = weakref.ref(payload)
    handle = run.schedule(HOUR + 5, ("tick", payload), cid="c1")
    del payload
    if how == "handle":
        assert handle.cancel()
    elif how == "instance":
        assert run.registry.cancel_timers("c1", instance_id="main") == 1
    else:
        assert run.registry.cancel_timers("c1") == 11
    gc.collect()
    assert watched() is None


@guarantee("G13")
@requires("by_reference")
@pytest.mark.parametrize("how", ["unsubscribe", "instance", "remove"])
def test_one_removed_subscription_among_others_frees_its_payload(run: Driver, how: str) -> None:
    """Fault: a removed subscription is only marked in its topic, and keeps its event until the topic is cleared up."""
    for number in range(10):
        run.subscribe("t", cid=f"stays {number}")
    payload = Payload()
    watched = weakref.ref(payload)
    run.subscribe("t", ("said", payload), cid="c1")
    for number in range(10):
        run.subscribe("t", cid=f"stays too {number}")
    del payload
    if how == "remove":
        assert run.registry.remove_subscriptions_for_cid("c1") == 1
    else:
        topic = "t" if how == "unsubscribe" else None
        assert run.registry.unsubscribe(cid="c1", instance_id="main", topic=topic) == 1
    gc.collect()
    assert watched() is None


@guarantee("G13")
@requires("sizes")
@pytest.mark.parametrize("kind", ["timer", "subscription"])
def test_instances_of_a_living_conversation_leave_nothing(run: Driver, kind: str) -> None:
    """Fault: the key of an instance stays for as long as its conversation has anything."""
    run.schedule(HOUR, instance_id="stays")
    run.subscribe("stays", instance_id="stays")
    before = run.sizes()
    for number in range(300):
        instance_id = f"i{number}"
        if kind == "timer":
            assert run.schedule(HOUR, instance_id=instance_id).cancel()
        else:
            run.subscribe("t", instance_id=instance_id)
            assert run.registry.unsubscribe(cid="c1", instance_id=instance_id) == 1
    assert run.sizes() == before


@guarantee("G13")
@requires("sizes")
@pytest.mark.parametrize("how", ["cancel_timers", "instance", "handle"])
def test_cancelled_timers_leave_nothing_in_any_container(run: Driver, how: str) -> None:
    """Fault: an empty slot, an index of instances or a tombstone stays for each cancelled timer.

    Timers of another conversation stay in the same slots, so that the backend cannot discard a whole container.
    """
    delays = [4000, 60_000, HOUR, 10**9, 10**15, 10**30]  # none is due within this test, on a busy machine neither
    for delay in delays:
        run.schedule(delay, cid="other")
    before = run.sizes()
    for number in range(300):
        handles = [run.schedule(delay, cid=f"c{number}", instance_id=f"i{delay}") for delay in delays]
        if how == "handle":
            assert all(handle.cancel() for handle in handles)
        elif how == "instance":
            for delay in delays:
                assert run.registry.cancel_timers(f"c{number}", instance_id=f"i{delay}") == 1
        else:
            assert run.registry.cancel_timers(f"c{number}") == len(handles)
    assert run.sizes() == before


@guarantee("G13")
def test_subscribing_a_thousand_times_makes_one_subscription(run: Driver) -> None:
    """Case 5. Fault: the topic's index and the conversation's index count a repeated subscription differently."""
    before = run.sizes() if "sizes" in run.registry.capabilities else None
    for number in range(1000):
        run.subscribe("t", ("said", number))
    assert run.registry.stats().subscriptions == 1
    assert len(run.registry.inspect("c1")["c1"].subscriptions) == 1
    assert run.registry.publish("t", 1) == 1
    assert run.registry.unsubscribe(cid="c1", instance_id="main", topic="t") == 1
    assert run.registry.unsubscribe(cid="c1", instance_id="main") == 0
    assert run.registry.remove_subscriptions_for_cid("c1") == 0
    assert run.registry.subscriptions() == {}
    assert run.registry.publish("t", 2) == 0
    run.settle()
    assert run.registry.inspect() == {}
    assert before is None or run.sizes() == before


@guarantee("G13")
@requires("by_reference")
def test_a_replaced_spec_is_not_kept_alive(run: Driver) -> None:
    """Fault: the earlier event stays in one of the indexes."""
    payload = Payload()
    watched = weakref.ref(payload)
    run.subscribe("t", ("said", payload))
    run.subscribe("t", "said")
    del payload
    gc.collect()
    assert watched() is None


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
def test_repeated_subscribe_unsubscribe_does_not_grow_a_topic(run: Driver) -> None:
    """Fault: the tombstones of a topic are compacted away only when the topic becomes empty."""
    for cid in ("first", "second"):
        run.subscribe("t", cid=cid)
    grown, last = [], ""
    for _ in range(4):
        for number in range(5000):
            # A newer subscriber always stands behind the one that unsubscribes.
            run.subscribe("t", cid=f"c{number}")
            if last:
                assert run.registry.unsubscribe(cid=last, instance_id="main", topic="t") == 1
            last = f"c{number}"
        grown.append(sum(run.sizes().values()))
    # Tombstones may stay in proportion to the live subscribers, not to all that ever subscribed.
    assert max(grown) <= grown[0] + 50
    assert grown[0] < 500
    assert set(run.subscribers("t")) == {("first", "main"), ("second", "main"), (last, "main")}


@guarantee("G13", "G5")
@requires("by_reference")
def test_messages_queued_for_ended_conversations_are_released(make_run: MakeRun) -> None:
    """Case 6. Fault: the queue of a removed subscriber stays, with its messages."""
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
    # A delivery that had begun on another thread may enter its handler late; messages left queued would be 100,000.
    assert len(begun_late) < messages
    run.recorder.clear()
    gc.collect()
    assert sum(reference() is not None for reference in watched) == 0
    assert before is None or run.sizes() == before


@guarantee("G13")
@requires("by_reference")
@pytest.mark.parametrize("end", ["reset_state", "close"])
def test_a_reset_or_close_keeps_no_payload_alive(run: Driver, end: str) -> None:
    """Fault: a reset replaces the containers, and the scheduler or a handle keeps the old ones."""
    watched = []

    def payload() -> Payload:
        made = Payload()
        watched.append(weakref.ref(made))
        return made

    run.registry.put_pending_flow("c1", payload())
    handle = run.schedule(HOUR, ("tick", payload()))
    run.subscribe("t", ("said", payload()))
    with run.held("c1"):
        run.registry.publish("t", payload())
        run.schedule(0, ("tick", payload()))
        run.registry.reset_state() if end == "reset_state" else run.registry.close(0)
    run.settle()
    gc.collect()
    assert run.recorder.seen == []
    assert [reference() for reference in watched] == [None] * 5
    assert handle.cancel() is False


@guarantee("G13")
@requires("by_reference")
@pytest.mark.parametrize("how", ["forget", "cancel", "unsubscribe", "deliver"])
def test_what_is_removed_waits_for_no_garbage_collector(run: Driver, how: str) -> None:
    """Fault: what is removed refers to itself in a circle, so that its payload stays until the garbage collector runs.
    It does not run here. (What a reset or a close drops as a whole may wait for it.)"""
    watched: list[weakref.ref[Payload]] = []

    def payload() -> Payload:
        made = Payload()
        watched.append(weakref.ref(made))
        return made

    gc.collect()
    gc.disable()
    try:
        if how == "forget":
            run.registry.put_pending_flow("c1", payload())
        if how == "cancel":
            run.schedule(HOUR, ("tick", payload()))
        if how == "unsubscribe":
            run.subscribe("t", ("said", payload()))
        if how == "deliver":
            run.subscribe("t", "said")
            run.schedule(0, ("tick", payload()))
            run.registry.publish("t", payload())
            run.settle()
            run.recorder.clear()
        removing: dict[str, Callable[[], object]] = {
            "forget": lambda: run.registry.forget_pending_flow("c1"),
            "cancel": lambda: run.registry.cancel_timers("c1"),
            "unsubscribe": lambda: run.registry.unsubscribe(cid="c1", instance_id="main"),
            "deliver": lambda: None,
        }
        removing[how]()
        run.settle()
        assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()


@guarantee("G13", "G15")
@requires("by_reference")
def test_a_refused_operation_keeps_no_payload_alive(make_run: MakeRun) -> None:
    """Fault: the error of a refused operation refers to itself through a variable, so that the payload stays until the
    garbage collector runs. It does not run here."""
    run = make_run(max_pending=2)
    for cid in ("c1", "c2", "c3"):
        run.subscribe("t", cid=cid)
    gc.collect()
    gc.disable()
    try:
        for refuse in (
            lambda payload: run.registry.publish("t", payload),
            lambda payload: run.schedule(math.inf, ("tick", payload)),
            lambda payload: run.subscribe("", ("said", payload)),
        ):
            payload = Payload()
            watched = weakref.ref(payload)
            with suppress(RegistryFull, ValueError):
                refuse(payload)
            del payload
            assert watched() is None
    finally:
        gc.enable()


@guarantee("G13", "G21")
@requires(REAL_TIME)  # on a virtual clock a timeout passes in no time
def test_waiting_in_vain_leaves_nothing(run: Driver) -> None:
    """Fault: a `settle` or `join` that gave up stays in the list of those to be woken. Of 3,000 of them, 64 KiB may
    remain."""
    run.schedule(HOUR)
    with run.held():
        run.registry.settle(0)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(1500):
                assert run.registry.settle(1e-6) is False
                assert run.registry.join(1e-6) is False
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert after - before < 2**16


@guarantee("G13")
@requires("by_reference")
@pytest.mark.parametrize("error", [LookupError, ConversationEnded])
def test_a_failed_delivery_keeps_no_payload_alive(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Fault: a local variable of the loop, or a list, keeps the exception, whose traceback keeps the event."""
    run = make_run(on_error=lambda cid, event, exception: None)

    def fail(cid: str, event: Event) -> None:
        raise error("the handler fails")

    run.recorder.on("fail", fail)
    # pytest's log handler would keep the exception alive.
    caplog.set_level(logging.CRITICAL + 1, "stube")
    payload = Payload()
    watched = weakref.ref(payload)
    run.schedule(0, ("fail", payload))
    del payload
    run.settle()
    run.recorder.clear()
    gc.collect()
    assert watched() is None


@guarantee("G13")
@costly
@pytest.mark.parametrize("how", ["ended", "one by one", "delivered", "reset"])
def test_an_emptied_index_frees_its_memory(run: Driver, how: str) -> None:
    """Fault: a dict whose keys are all deleted keeps its table: 42 MB after a million keys; or a dict of the module
    keeps a lock for each name that ever was.

    Measured with tracemalloc: 4,000 conversations take megabytes, of which 64 KiB may remain.
    """

    def mount_and_end(count: int, prefix: str) -> int:
        # Names that no other test uses, because what is kept for each name would be there already.
        names = [f"{prefix} {number}" for number in range(count)]
        handles = []
        for name in names:
            run.registry.put_pending_flow(name, 1)
            handles.append(run.schedule(HOUR, cid=name))
            run.subscribe(name, cid=name)
        run.settle()
        peak = tracemalloc.get_traced_memory()[0]
        if how == "delivered":
            # Few at once, because an event loop keeps the room for its most tasks, which differs from run to run.
            for first in range(0, count, 100):
                for name in names[first : first + 100]:
                    run.schedule(0, cid=name)
                    run.registry.publish(name, 1)
                run.settle()
            run.recorder.clear()
        if how == "reset":
            run.registry.reset_state()
        for name, handle in zip(names, handles, strict=True):
            if how == "one by one":
                assert run.registry.pending_flow(name) == 1
                assert handle.cancel()
                assert run.registry.unsubscribe(cid=name, instance_id="main", topic=name) == 1
            elif how != "reset":
                run.registry.forget_pending_flow(name)
                run.registry.cancel_timers(name, instance_id="main")
                run.registry.remove_subscriptions_for_cid(name)
        return peak

    tracemalloc.start()
    try:
        # Starts every thread that the backend uses, and fills the trace of a virtual clock, which is bounded.
        mount_and_end(10_000 if run.clock is not None else 500, "first")
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        peak = mount_and_end(4000, "second")
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert peak - before > 2**20
    assert after - before < 2**16


@guarantee("G13")
def test_cancelled_timers_do_not_outlive_the_live_ones(run: Driver) -> None:
    """Fault: a heap keeps its cancelled timers as long as there are more live ones, and nobody looks at it again when
    these have been delivered. Four thousand cancelled timers take half a megabyte, of which 64 KiB may remain.

    One live timer stays before them, so that they never come to the top of the heap.
    """
    run.schedule(HOUR / 2, cid="stays")

    def come_and_go(count: int) -> None:
        with run.held():
            handles = [run.schedule(HOUR) for _ in range(count)]
            for _ in range(2 * count):
                run.schedule(0)
            assert all(handle.cancel() for handle in handles)
        run.settle()
        run.recorder.clear()

    tracemalloc.start()
    try:
        come_and_go(5000 if run.clock is not None else 100)  # fills the trace of a virtual clock, which is bounded
        before = tracemalloc.get_traced_memory()[0]
        come_and_go(4000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 2**16


@guarantee("G13")
def test_fifty_thousand_timers_need_no_more_threads_than_one(run: Driver) -> None:
    """Case 7. Fault: a thread for each timer, or for each conversation."""
    for number in range(100):  # starts every thread that the backend uses
        run.schedule(HOUR, cid=f"c{number}")
    run.settle()
    before = len(live_threads())
    for number in range(50_000):
        run.schedule(HOUR + number, cid=f"c{number % 100}")
    run.schedule(0, "now")
    run.settle()
    assert len(live_threads()) == before
    assert run.stats() == Stats(accepted=50_101, delivered=1, timers=50_100)
