"""A clock that moves only when the caller moves it: the capability `virtual_time`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import cast

import pytest

from stube import Backend, Event, Stats, VirtualBackend, VirtualTimeError
from stube.testing._contract.capabilities import requires
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Injector,
    first_difference,
    join_or_standstill,
    run_threads,
    tracing,
)
from stube.testing.plugin import MakeRegistry
from stube.testing.suite._fixtures import HOUR, MakeRun, Payload, guarantee, refused


def clock_of(run: Driver) -> VirtualBackend:
    """Return the driver's registry as a virtual backend."""
    assert run.clock is not None
    return run.clock


@guarantee("G9", "G2")
@requires("virtual_time")
def test_the_clock_moves_from_due_instant_to_due_instant(run: Driver) -> None:
    """Case 22. Fault: the clock jumps to the end first, so every handler sees the end; or 10 x 100 ms is 999.9999."""
    clock = clock_of(run)
    start = clock.now_ms
    seen: list[float] = []
    run.recorder.on("tick", lambda cid, event: seen.append(clock.now_ms))
    for number in range(1, 11):
        run.schedule(number * 100)
    clock.advance(1000)
    assert seen == [start + number * 100 for number in range(1, 11)]
    assert clock.now_ms == start + 1000
    for _ in range(10):
        clock.advance(100)
    assert clock.now_ms == start + 2000
    clock.advance(timedelta(seconds=1))
    assert clock.now_ms == start + 3000


@guarantee("G9")
@requires("virtual_time")
def test_a_timer_scheduled_and_due_in_a_step_begins_in_that_step(run: Driver) -> None:
    """Case 21. Fault: the timers of a step are collected once: a chain of 1,000 timers of 1 ms fires once."""
    clock = clock_of(run)
    run.recorder.on("tick", lambda cid, event: run.schedule(1))
    run.schedule(1)
    clock.advance(1000)
    assert first_difference([seen.at_ms for seen in run.recorder.seen], range(1, 1001)) is None
    assert clock.next_due_ms() == 1001
    assert run.stats() == Stats(accepted=1001, delivered=1000, timers=1)


@guarantee("G3")
@requires("virtual_time")
def test_nothing_happens_until_the_clock_is_moved(run: Driver) -> None:
    """Fault: a thread, or the wall clock, delivers without a move of the clock."""
    run.subscribe("t")
    run.schedule(0)
    run.registry.publish("t", 1)
    threading.Event().wait(0.02)
    assert run.recorder.seen == []
    assert run.registry.stats() == Stats(accepted=2, timers=1, queued=1, subscriptions=1)
    clock_of(run).advance(0)
    assert run.recorder.names == ["tick", "said"]


def _publish(run: Driver, cid: str, event: Event) -> None:
    run.registry.publish("t", event.payload)


@guarantee("G2")
@requires("virtual_time")
def test_two_runs_of_one_program_are_the_same(make_run: MakeRun) -> None:
    """Fault: the order depends on hashes, addresses or threads."""
    traces = []
    for _ in range(2):
        run = make_run()
        clock = clock_of(run)
        run.recorder.on("tick", partial(_publish, run))
        for number in range(50):
            run.subscribe("t", f"said {number}", cid=f"c{number * 7 % 20}", instance_id=f"i{number}")
            run.schedule(number * 13 % 17, ("tick", number), cid=f"c{number % 20}")
        clock.advance(20)
        traces.append(list(clock.trace))
        assert len(run.recorder.seen) == 50 + 50 * 50
    assert first_difference(traces[0], traces[1]) is None


@guarantee("G13")
@requires("virtual_time")
def test_the_trace_names_the_cause_and_keeps_no_payload(run: Driver) -> None:
    """Fault: the trace keeps payloads alive, or grows without bound."""
    clock = clock_of(run)
    run.subscribe("news", "said", cid="c2", instance_id="i2")
    payload = Payload()
    watched = weakref.ref(payload)
    run.schedule(5, ("tick", payload), instance_id="i1")
    clock.advance(5)
    run.registry.publish("news", payload)
    clock.advance(1)
    assert [tuple(entry) for entry in clock.trace] == [
        (5.0, "c1", "i1", "tick", "timer"),
        (5.0, "c2", "i2", "said", "topic news"),
    ]
    del payload
    run.recorder.clear()
    assert watched() is None
    lengths = []
    for _ in range(2):
        for _ in range(200):
            for _ in range(200):
                run.schedule(0)
            clock.advance(1)
            run.recorder.clear()
        lengths.append(len(clock.trace))
    assert lengths[0] == lengths[1] < 40_000


@guarantee("G15")
@requires("virtual_time")
def test_the_clock_does_not_go_back(run: Driver) -> None:
    """Fault: the step is added before it is checked, or ready deliveries begin before the error."""
    clock = clock_of(run)
    clock.advance(10)
    run.schedule(0)
    step: float | timedelta
    for step in (-1, -0.001, timedelta(microseconds=-1)):
        with refused(step, VirtualTimeError):
            clock.advance(step)
        assert clock.now_ms == 10, step
        assert run.recorder.seen == [], step
    run.settle()
    assert run.recorder.names == ["tick"]


@guarantee("G20")
@requires("virtual_time")
def test_the_clock_cannot_be_moved_from_inside_a_delivery(run: Driver) -> None:
    """Fault: an `advance` inside a delivery delivers other events, and time goes back when it returns."""
    clock = clock_of(run)
    errors: list[BaseException] = []

    def nested(cid: str, event: Event) -> None:
        for call in (lambda: clock.advance(10), lambda: clock.run_until_idle()):
            try:
                call()
            except RuntimeError as exc:
                errors.append(exc)

    run.recorder.on("nested", nested)
    run.schedule(5, "nested")
    run.schedule(7, "after")
    clock.advance(10)
    assert len(errors) == 2
    assert isinstance(errors[0], VirtualTimeError)
    assert [(seen.event.name, seen.at_ms) for seen in run.recorder.seen] == [("nested", 5), ("after", 7)]
    assert clock.now_ms == 10


@guarantee("G1")
@requires("virtual_time")
def test_the_clock_cannot_be_moved_by_two_threads(run: Driver) -> None:
    """Fault: two threads deliver at the same time."""
    clock = clock_of(run)
    errors: list[BaseException] = []

    def advance() -> None:
        try:
            clock.advance(10)
        except VirtualTimeError as exc:
            errors.append(exc)

    with run.held("c1", advance_ms=5):
        run_threads(advance)
    assert len(errors) == 1
    assert clock.now_ms == 5
    clock.advance(1)
    assert clock.now_ms == 6


@guarantee("G9")
@requires("virtual_time")
def test_an_endless_chain_of_timers_at_one_instant_is_reported(run: Driver) -> None:
    """Case 21. Fault: `advance` never returns. Pending timers must stay pending, and the registry must stay usable."""
    clock = clock_of(run)
    run.recorder.on("culprit", lambda cid, event: run.schedule(0, "culprit", cid="guilty"))
    run.schedule(5, "culprit", cid="guilty")
    run.schedule(7, "innocent")
    with pytest.raises(VirtualTimeError, match=r"culprit|guilty"):
        clock.advance(10)
    assert clock.now_ms == 5
    stats = run.registry.stats()
    assert (stats.timers, stats.running, stats.balanced) == (2, 0, True)
    assert run.registry.cancel_timers("guilty") == 1
    clock.advance(5)
    assert run.recorder.names[-1] == "innocent"
    assert clock.now_ms == 10


@guarantee("G9")
@requires("virtual_time")
def test_an_endless_publication_is_reported_and_a_wide_one_is_not(run: Driver) -> None:
    """Case 21. Fault: only timers are counted; or all deliveries of an instant are counted instead of the chain."""
    clock = clock_of(run)
    for number in range(30_000):
        run.subscribe("wide", "wide", cid=f"c{number}")
    for number in range(10):
        assert run.registry.publish("wide", number) == 30_000
    clock.advance(0)
    assert run.recorder.names.count("wide") == 300_000
    run.recorder.clear()
    run.recorder.on("echo", lambda cid, event: run.registry.publish("echo", event.payload))
    run.subscribe("echo", "echo")
    run.registry.publish("echo", 1)
    with pytest.raises(VirtualTimeError):
        clock.advance(0)
    run.registry.reset_state()


@guarantee("G19")
@requires("virtual_time")
def test_a_failing_handler_does_not_stop_a_step(run: Driver) -> None:
    """Case 21. Fault: the exception leaves `advance`: the clock stops half-way, and the rest of the batch is lost."""
    clock = clock_of(run)

    def fail(cid: str, event: Event) -> None:
        raise LookupError(cid)

    run.recorder.on("fail", fail)
    for name in ("before", "fail", "same instant"):
        run.schedule(5, name)
    run.schedule(6, "after")
    clock.advance(10)
    assert run.recorder.names == ["before", "fail", "same instant", "after"]
    assert clock.now_ms == 10
    assert run.stats() == Stats(accepted=4, delivered=3, failed=1)


@guarantee("G19")
@requires("virtual_time")
@pytest.mark.parametrize("move", ["advance", "settle", "join", "run_until_idle"])
def test_ctrl_c_in_a_handler_reaches_the_caller_and_loses_nothing(run: Driver, move: str) -> None:
    """Case 23b. Fault: KeyboardInterrupt is only counted as a failure, or leaves the registry inconsistent."""
    clock = clock_of(run)
    interrupts = 1

    def interrupt(cid: str, event: Event) -> None:
        nonlocal interrupts
        if interrupts:
            interrupts -= 1
            raise KeyboardInterrupt

    run.recorder.on("interrupt", interrupt)
    for name in ("before", "interrupt", "same instant"):
        run.schedule(0, name)
    run.schedule(0, "elsewhere", cid="c2")
    calls: dict[str, Callable[[], object]] = {
        "advance": lambda: clock.advance(1),
        "settle": clock.settle,
        "join": clock.join,
        "run_until_idle": clock.run_until_idle,
    }
    with pytest.raises(KeyboardInterrupt):
        calls[move]()
    stats = run.registry.stats()
    assert (stats.failed, stats.running, stats.balanced) == (1, 0, True)
    calls[move]()
    assert run.recorder.names == ["before", "interrupt", "same instant", "elsewhere"]
    assert run.stats() == Stats(accepted=4, delivered=3, failed=1)


@guarantee("G9")
@requires("virtual_time")
def test_run_until_idle_goes_to_the_last_timer_and_counts(run: Driver) -> None:
    """Fault: it stops at the first pause, counts timers instead of deliveries, or exceeds its limit."""
    clock = clock_of(run)
    assert clock.run_until_idle() == 0
    run.recorder.on("first", lambda cid, event: run.schedule(HOUR, "second"))
    run.schedule(HOUR, "first")
    run.schedule(1)
    assert clock.run_until_idle() == 3
    assert clock.now_ms == 2 * HOUR
    assert clock.next_due_ms() is None
    for number in range(10):
        run.schedule(number)
    with pytest.raises(VirtualTimeError):
        clock.run_until_idle(limit=5)
    stats = run.registry.stats()
    assert stats.balanced
    assert stats.timers >= 4
    assert clock.run_until_idle() == stats.timers
    assert run.stats() == Stats(accepted=13, delivered=13)


@guarantee("G11")
@requires("virtual_time")
def test_next_due_is_the_instant_of_the_next_delivery(run: Driver) -> None:
    """Fault: the instant is relative, belongs to a cancelled timer, or overlooks queued messages."""
    clock = clock_of(run)
    clock.advance(100)
    assert clock.next_due_ms() is None
    run.schedule(50)
    handle = run.schedule(20)
    assert clock.next_due_ms() == 120
    handle.cancel()
    assert clock.next_due_ms() == 150
    run.subscribe("t")
    run.registry.publish("t", 1)
    assert clock.next_due_ms() == 100
    run.settle()
    assert clock.next_due_ms() == 150


@guarantee("G11")
@requires("virtual_time")
def test_the_longest_delays_are_kept_to_the_millisecond(run: Driver) -> None:
    """Case 18. Fault: instants are floats, or slots of a wheel wrap around."""
    clock = clock_of(run)
    for delay in (2**53, 2**31, 2**32, 10**15):
        run.schedule(delay, ("tick", delay))
    clock.advance(2**53)
    assert [(seen.at_ms, seen.event.payload) for seen in run.recorder.seen] == [
        (float(delay), delay) for delay in (2**31, 2**32, 10**15, 2**53)
    ]


@guarantee("G9")
@requires("virtual_time")
def test_the_clock_may_start_anywhere(make_registry: MakeRegistry) -> None:
    """Fault: `start_ms` is added twice, or delays are counted from zero."""
    registry: Backend = make_registry(start_ms=1_000_000)
    run = Driver(registry)
    clock = cast(VirtualBackend, registry)
    assert clock.now_ms == 1_000_000
    run.schedule(5)
    assert clock.next_due_ms() == 1_000_005
    clock.advance(5)
    assert [seen.at_ms for seen in run.recorder.seen] == [1_000_005]


@guarantee("G2", "G10")
@requires("virtual_time")
def test_another_thread_may_add_while_the_clock_moves(run: Driver) -> None:
    """Fault: a step overlooks a timer that another thread schedules during it."""
    with run.held("c1", advance_ms=50):
        helper = threading.Thread(target=lambda: (run.schedule(10, "inside"), run.schedule(100, "outside")))
        helper.start()
        helper.join(PATIENCE)
    assert [(seen.event.name, seen.at_ms) for seen in run.recorder.seen] == [("inside", 10)]
    clock_of(run).advance(50)
    assert run.recorder.names == ["inside", "outside"]


@guarantee("G9", "G10")
@requires("virtual_time")
def test_a_step_never_skips_a_timer_that_another_thread_adds(make_run: MakeRun) -> None:
    """Fault: the step reads the next due instant, and moves the clock past a timer that was added after that."""
    for at in range(10_000):
        run = make_run()
        clock = clock_of(run)
        run.schedule(50, "late")
        adder = threading.Thread(target=run.schedule, args=(1, "added"), daemon=True)

        def come_in(adder: threading.Thread = adder) -> None:
            adder.start()
            join_or_standstill(adder)  # if it has to wait for a lock that this thread holds, it adds a little later

        injector = Injector(at, come_in)
        with tracing(injector):
            clock.advance(10)
        if not injector.fired:
            return
        adder.join(PATIENCE)
        due_ms = clock.next_due_ms()
        assert due_ms is not None
        assert due_ms >= clock.now_ms, f"{injector.fired}: skipped a timer that is due at {due_ms} ms"
        clock.advance(1)  # the timer may have been added after the step's last look
        assert run.recorder.names == ["added"], injector.fired
    pytest.fail("the step executes more than 10,000 lines")
