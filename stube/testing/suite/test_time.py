"""Time on a registry's own clock: never early, prompt, any delay (G9 to G12)."""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
import time
from collections.abc import Mapping
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest

from stube import NO_PAYLOAD, Event, Stats
from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import PATIENCE, Driver, first_difference, loop_is_needed, monotonic_ns, run_script
from stube.testing.suite._fixtures import HOUR, MakeRun, guarantee, refused

_process_time = time.process_time


@guarantee("G9")
def test_no_timer_begins_early_and_none_is_lost(run: Driver) -> None:
    """Fault: a wait that returns early, a rounding down, or a slot that is delivered as a whole."""
    chance = random.Random(9)
    wanted: dict[int, float] = {}
    for number in range(400):
        delay = chance.choice([0, 1, chance.uniform(0, 40), chance.uniform(0, 1), chance.randrange(40)])
        before_ns = 0 if run.clock is not None else monotonic_ns()
        wanted[number] = float(before_ns / Fraction(10**6) + Fraction(delay))
        run.schedule(delay, ("tick", number), cid=f"c{number % 50}")
    run.pass_time(40)
    assert first_difference(sorted(run.recorder.payloads), range(400)) is None
    for seen in run.recorder.seen:
        late = seen.at_ms - wanted[seen.event.payload]
        assert late >= -1e-6  # a nanosecond, for the rounding of floats
        if run.clock is not None:
            assert late <= 1.001e-6  # due instants round up to whole nanoseconds


@guarantee("G9", "G11")
def test_fractions_of_a_millisecond_count(run: Driver) -> None:
    """Fault: delays are cut to whole milliseconds, so 0.9 is 0; or 1.5 and 1.25 are due at the same instant.

    On a real clock ten rounds are allowed, because each of the five calls must take less than 0.25 ms.
    """
    wanted = [0.0, 0.9, 1.25, 1.5, 1.75]
    for _ in range(10):
        run.recorder.clear()
        with run.held("c1"):
            for delay in reversed(wanted):
                run.schedule(delay, ("tick", delay))
        run.pass_time(2)
        if run.recorder.payloads == wanted:
            break
    assert run.recorder.payloads == wanted


@guarantee("G9")
@requires("own_clock")
def test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond(make_run: MakeRun) -> None:
    """Fault: it begins at the latest instant that the registry has seen; or an instant is compared, or a delay counted,
    in whole milliseconds."""
    instant = 10**9
    run = make_run(clock=lambda: instant)

    def deliver(name: str) -> list[str]:
        run.schedule(0, name)
        assert run.registry.settle(PATIENCE)
        return run.recorder.names

    assert deliver("before a pause") == ["before a pause"]
    instant += 10**9
    run.schedule(500.5, "timer")
    assert deliver("at once") == ["before a pause", "at once"]
    instant += 500_499_999
    assert deliver("early by 1 ns") == ["before a pause", "at once", "early by 1 ns"]
    instant += 1
    assert deliver("in time") == ["before a pause", "at once", "early by 1 ns", "timer", "in time"]


@guarantee("G10", "G21")
@requires("own_clock")
def test_settle_waits_for_a_timer_that_is_due_at_this_very_instant(make_run: MakeRun) -> None:
    """Fault: a timer counts as ready when its instant is over; the clock stands still here."""
    run = make_run(clock=lambda: 10**9)
    run.recorder.on("tick", lambda cid, event: threading.Event().wait(0.01))
    for _ in range(20):
        run.schedule(0)
        assert run.registry.settle(PATIENCE)
        assert run.registry.stats().timers == run.registry.stats().running == 0


@guarantee("G2")
def test_an_event_shows_the_instant_for_which_it_was_meant(run: Driver) -> None:
    """Fault: `due` is missing from one kind of event, is the instant at which the delivery begins, counts from another
    beginning, or is in another unit; or `now_ns` shows another clock."""
    registry, shown = run.registry, dict[Any, int]()
    run.recorder.on("tick", lambda cid, event: shown.setdefault(event.payload, registry.now_ns))
    run.recorder.on("said", lambda cid, event: shown.setdefault((event.instance_id, event.payload), registry.now_ns))
    run.subscribe()
    run.subscribe(instance_id="other")
    before = registry.now_ns
    run.schedule(0, ("tick", "now"))
    run.schedule(5, ("tick", "in 5 ms"))
    run.schedule(20.5, "tick")
    registry.publish("t", "message")
    after = registry.now_ns
    run.pass_time(30)
    due = {
        (event.instance_id, event.payload) if event.name == "said" else event.payload: event.due
        for event in (seen.event for seen in run.recorder.seen)
    }
    waits = {"now": 0, ("main", "message"): 0, ("other", "message"): 0, "in 5 ms": 5_000_000, NO_PAYLOAD: 20_500_000}
    assert due.keys() == waits.keys()
    for payload, wait in waits.items():
        instant = due[payload]
        assert type(instant) is int
        assert before + wait <= instant <= after + wait, payload
        assert instant <= shown[payload] <= registry.now_ns, payload
    assert due["main", "message"] == due["other", "message"]
    dues = [seen.event.due or 0 for seen in run.recorder.seen]
    assert dues == sorted(dues)


@guarantee("G2")
@requires("own_clock")
def test_an_event_that_begins_late_shows_the_instant_for_which_it_was_meant(make_run: MakeRun) -> None:
    """Fault: an event shows the instant at which it begins, or that of the event before it."""
    instant = 10**9
    run = make_run(clock=lambda: instant)
    run.subscribe()
    run.subscribe(cid="c2")
    with run.held():
        for number in range(70):
            run.schedule(3 + number / 1000, ("tick", number), cid=f"c{number % 3}")
        instant += 1_000_000
        run.registry.publish("t", "message")
        instant += 10**9
    run.settle()
    due = {(seen.cid, seen.event.payload): seen.event.due for seen in run.recorder.seen}
    ticks = {(f"c{number % 3}", number): 1_003_000_000 + number * 1000 for number in range(70)}
    assert due == ticks | {("c1", "message"): 1_001_000_000, ("c2", "message"): 1_001_000_000}


@guarantee("G12")
@requires("own_clock")
def test_the_present_instant_is_that_of_the_registrys_clock(make_run: MakeRun) -> None:
    """Fault: `now_ns` shows another clock, or the latest instant at which something was accepted."""
    instant = 10**9
    run = make_run(clock=lambda: instant)
    for _ in range(3):
        assert run.registry.now_ns == instant
        run.schedule(0)
        instant += 10**9
    run.settle()


@guarantee("G9")
@requires(REAL_TIME)  # a virtual clock stands still while it delivers
def test_a_delay_counts_from_the_call_and_not_from_the_delivery_that_makes_it(run: Driver) -> None:
    """Fault: the clock is read once for each delivery, so that what a slow handler schedules begins early."""
    called_at: list[float] = []

    def slow(cid: str, event: Event) -> None:
        threading.Event().wait(0.030)
        called_at.append(run.now_ms())
        run.schedule(20, "later")

    run.recorder.on("slow", slow)
    run.schedule(0, "slow")
    assert run.recorder.wait_for(2)
    assert run.recorder.seen[1].at_ms - called_at[0] >= 20


@guarantee("G10")
def test_a_new_earliest_timer_wakes_the_scheduler(run: Driver) -> None:
    """Case 9. Fault: the scheduler sleeps until the timer that was the earliest when it fell asleep.

    On a real clock a timer of 20 ms must begin within 100 ms in the best of five to ten rounds. A scheduler that is not
    woken takes 60 s; in the first round it may not have fallen asleep.
    """
    run.schedule(60_000, "late", cid="c2")
    run.settle()
    best = math.inf
    for number in range(10):
        start = run.now_ms()
        helper = threading.Thread(target=run.schedule, args=(20, "early"))
        helper.start()
        helper.join(PATIENCE)
        run.pass_time(20)
        assert len(run.recorder.seen) == number + 1
        best = min(best, run.recorder.seen[-1].at_ms - start)
        if number >= 4 and best < 100:
            break
    assert best < 100
    assert run.recorder.names[-1] == "early"
    assert run.registry.inspect("c2")["c2"].timers[0].remaining_ms <= 60_000 - 20


@guarantee("G10")
def test_a_schedule_just_before_the_scheduler_sleeps_is_not_lost(run: Driver) -> None:
    """Case 9. Fault: the scheduler looks for work, releases the lock and sleeps: it overlooks a timer added in between.

    Each round begins at the moment when the scheduler has delivered and is about to sleep again.
    """
    for number in range(2000):
        run.schedule(0, cid=f"c{number % 3}")
        if run.clock is None:
            assert run.recorder.wait_for(number + 1), f"lost in round {number}"
        else:
            run.settle()
    assert len(run.recorder.seen) == 2000
    assert run.stats() == Stats(accepted=2000, delivered=2000)


@guarantee("G10", "G24")
def test_join_and_close_do_not_wait_for_a_cancelled_timer(run: Driver) -> None:
    """Case 9. Fault: `join` or `close` waits for the instant of a timer that has been cancelled.

    Real time: both return immediately. The bound of 5 s only excludes waiting for the hour of the timer.
    """
    handle = run.schedule(HOUR)
    assert handle.cancel()
    assert run.registry.join(5.0)
    assert run.registry.close(5.0)


@guarantee("G10")
def test_an_idle_registry_uses_no_cpu(run: Driver) -> None:
    """Fault: the scheduler polls. Real time: in 0.25 s it must use less than 50 ms, in the best of five rounds."""
    run.schedule(HOUR)
    run.subscribe()
    run.settle()
    used = math.inf
    for _ in range(5):
        before = _process_time()
        threading.Event().wait(0.25)
        used = min(used, _process_time() - before)
        if used < 0.05:
            break
    assert used < 0.05


@guarantee("G10")
@pytest.mark.parametrize("by", ["a caller", "a handler"])
def test_a_message_wakes_a_scheduler_that_sleeps_until_a_timer(run: Driver, by: str) -> None:
    """Fault: a publication wakes only a scheduler that has no timer to sleep for; or one that a handler makes is
    overlooked when the scheduler decides how long to sleep."""
    run.subscribe("t")
    run.recorder.on("publish", lambda cid, event: run.registry.publish("t", "message"))
    run.schedule(HOUR, "late")
    run.settle()
    if run.clock is None:
        threading.Event().wait(0.010)  # no event says that the scheduler sleeps
    if by == "a caller":
        run.registry.publish("t", "message")
    else:
        run.schedule(0, "publish", cid="c2")
    run.settle()
    assert run.recorder.names[-1] == "said"


@guarantee("G10")
@requires("own_clock")
@pytest.mark.parametrize("pending", ["a timer", "nothing"])
def test_an_idle_registry_does_not_read_its_clock(make_run: MakeRun, pending: str) -> None:
    """Fault: the scheduler polls, every 2 or every 50 ms, which uses little CPU as long as it has little to look at.

    In the best of five rounds of 0.25 s it may read the clock three times.
    """
    readings = [0]

    def clock() -> int:
        readings[0] += 1
        return monotonic_ns()

    run = make_run(clock=clock)
    if pending == "a timer":
        run.schedule(HOUR)
    run.subscribe()
    run.schedule(0)
    run.settle()
    read = []
    for _ in range(5):
        before = readings[0]
        threading.Event().wait(0.25)
        read.append(readings[0] - before)
        if read[-1] <= 3:
            return
    pytest.fail(f"while nothing happened for 0.25 s, the clock was read {min(read)} times")


@guarantee("G10")
@requires(REAL_TIME)
@pytest.mark.parametrize("pending", ["a timer", "nothing"])
def test_an_idle_registry_wakes_no_thread(run: Driver, pending: str) -> None:
    """Fault: the scheduler polls without a look at its clock.

    The system counts how often the threads of the process fell asleep: four times in the best of five rounds of 0.3 s
    is allowed, because the thread of the test does so, too.
    """
    resource = pytest.importorskip("resource", reason="capability getrusage is not promised by this system")
    if pending == "a timer":
        run.schedule(HOUR)
    run.subscribe()
    run.schedule(0)
    run.settle()
    slept = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        threading.Event().wait(0.3)
        slept.append(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
        if slept[-1] <= 4:
            return
    pytest.fail(f"while nothing happened for 0.3 s, threads woke and slept again {min(slept)} times")


@guarantee("G11")
def test_a_delay_that_is_not_finite_is_a_value_error(run: Driver) -> None:
    """Case 19. Fault: NaN or infinity enters the order of the timers and breaks it for all of them."""
    for delay in (math.nan, math.inf, -math.inf):
        with refused(delay, ValueError, "delay_ms", registry=run.registry):
            run.schedule(delay)


@guarantee("G11")
def test_a_delay_may_be_of_a_subclass_of_int_or_float(run: Driver) -> None:
    """Fault: the type of a delay is compared instead of asked for, so that a constant of an `IntEnum` is refused, or a
    number of another library that derives from float."""

    class Milliseconds(float):
        __slots__ = ()

    class Delay(IntEnum):
        SHORT = 1

    run.schedule(Milliseconds(1))
    run.schedule(Delay.SHORT)
    run.pass_time(1)
    assert run.stats() == Stats(accepted=2, delivered=2)


@guarantee("G11", "G15")
def test_a_delay_of_another_type_is_a_type_error(run: Driver) -> None:
    """Case 19. Fault: `True` counts as one millisecond, or a string is converted."""
    delay: Any
    for delay in (None, True, False, "10", "", b"1", [1], 1j, object()):
        with refused(delay, TypeError, "delay_ms", registry=run.registry):
            run.schedule(delay)


@guarantee("G11")
def test_enormous_delays_are_kept_and_disturb_no_other_timer(run: Driver) -> None:
    """Case 18. Fault: a delay too large for a C long, a float or a `wait()` raises, fires now, or ends the loop."""
    delays = [2**31, 2**32, 2**53, 10**18, 10**30, 10**400, 1.7e308, 2**63 / 10**6, 2**64]
    for delay in delays:
        run.schedule(delay, "never")
    run.schedule(10, "soon")
    run.pass_time(10)
    run.pass_time(1)
    assert run.recorder.names == ["soon"]
    remaining = [timer.remaining_ms for timer in run.registry.inspect("c1")["c1"].timers]
    assert len(remaining) == 9
    assert remaining == sorted(remaining)
    for delay, left in zip(sorted(delays), remaining, strict=True):
        assert left == (math.inf if delay > sys.float_info.max else pytest.approx(float(delay), rel=1e-5))
    assert run.registry.cancel_timers("c1") == 9
    assert run.stats() == Stats(accepted=10, delivered=1, cancelled=9)


@guarantee("G11", "G10")
def test_an_enormous_delay_lets_the_scheduler_sleep_and_wake(make_run: MakeRun) -> None:
    """Case 18. Fault: the time until an enormous delay is too large for a wait, and ends the thread that waits.

    The enormous delay is the only timer until the scheduler sleeps; then a short one must begin.
    """
    for delay in (2**31, 2**53, 10**18, 10**30, 10**400, 1.7e308, 2**63 / 10**6, 2**64, 2**64 / 10**6, 9.3e15):
        run = make_run()
        run.schedule(delay, "never")
        run.settle()
        if run.clock is None:
            threading.Event().wait(0.010)  # no event says that the scheduler sleeps
        run.schedule(1, "soon")
        run.pass_time(1)
        assert run.recorder.names == ["soon"], f"after a delay of {str(delay)[:20]} ms"
        assert run.registry.close(PATIENCE)


@guarantee("G11", "G9")
@requires("own_clock")
def test_the_smallest_delay_waits_for_the_next_nanosecond(make_run: MakeRun) -> None:
    """Fault: a delay is rounded down, so that a tenth of a nanosecond is no delay. The clock stands still here."""
    frozen = [monotonic_ns()]
    run = make_run(clock=lambda: frozen[0] or monotonic_ns())
    run.schedule(1e-7, "next nanosecond")
    run.schedule(0, "now")
    run.schedule(5e-324, "next nanosecond")
    assert run.recorder.wait_for(1)
    assert run.registry.settle(PATIENCE)
    if run.clock is None:
        threading.Event().wait(0.010)  # in which it would begin
    assert run.recorder.names == ["now"]
    frozen[0] = 0
    assert run.recorder.wait_for(3)
    run.settle()


@guarantee("G10", "G9")
@requires("own_clock")
def test_a_timer_begins_as_soon_as_the_clock_shows_its_instant(make_run: MakeRun) -> None:
    """Fault: a timer begins only when the clock shows more than its due instant. The clock stands still here."""
    now = [monotonic_ns()]
    run = make_run(clock=lambda: now[0])
    run.schedule(0, "at once")
    run.settle()
    assert run.recorder.names == ["at once"]
    run.schedule(5, "exactly")
    now[0] += 5_000_000
    run.schedule(0, "wakes", cid="c2")
    run.settle()
    assert sorted(run.recorder.names) == ["at once", "exactly", "wakes"]


@guarantee("G9")
@requires("own_clock")
def test_a_wait_that_ends_before_the_clock_says_so_begins_no_timer(make_run: MakeRun) -> None:
    """Fault: after the wait for a timer the timer is due, whatever the clock shows. The clock stands still here."""
    frozen = [monotonic_ns()]
    run = make_run(clock=lambda: frozen[0] or monotonic_ns())
    run.schedule(2, "early")
    threading.Event().wait(0.030)  # in which it would begin
    assert run.registry.settle(PATIENCE)
    assert run.recorder.names == []
    frozen[0] = 0
    assert run.recorder.wait_for(1)
    run.settle()


@guarantee("G11", "G9")
@requires("own_clock")
def test_a_delay_is_rounded_up_to_the_next_nanosecond_and_no_further(make_run: MakeRun) -> None:
    """Fault: a nanosecond is added, or digits are lost on the way through seconds. The clock stands still here.

    The product with a million may be that of floats, or exact: 0.1 ms are 100,000 or 100,001 ns.
    """
    now = monotonic_ns()
    run = make_run(clock=lambda: now)
    for delay in (0.1, 0.5, 1.1, 1.5, 2.675, 1e-7, 0.000001, 3.0, 7, 123456.789, 1e9 + 0.3):
        handle = run.schedule(delay)
        (timer,) = run.registry.inspect()["c1"].timers
        rounded = {math.ceil(delay * 1e6), math.ceil(Fraction(delay) * 10**6)}
        assert round(timer.remaining_ms * 1e6) in rounded, f"{delay} ms"
        assert handle.cancel()


@guarantee("G11")
@pytest.mark.parametrize("whole", [1000, 10**6])
def test_a_fraction_of_a_long_delay_counts(run: Driver, whole: int) -> None:
    """Fault: a delay is rounded to milliseconds, or as a float that has lost the fraction."""
    delays = [whole + step * 1e-3 for step in range(1, 6)]
    before = run.now_ms()
    for delay in delays:
        run.schedule(delay)
    shown_from = run.now_ms()
    left = [timer.remaining_ms for timer in run.registry.inspect("c1")["c1"].timers]
    shown_until = run.now_ms()
    assert len(left) == len(delays)
    for delay, remaining in zip(delays, left, strict=True):
        # It was scheduled between `before` and `shown_from`, and shown between that and `shown_until`.
        assert delay - (shown_until - before) - 1e-5 <= remaining <= delay + 1e-5
    for earlier, later in itertools.pairwise(left):
        assert 0.001 - 1e-5 <= later - earlier <= 0.001 + (shown_from - before) + 1e-5


@guarantee("G12")
def test_replacing_functions_of_the_time_module_changes_nothing(
    make_run: MakeRun, stube_backend: Any, stube_options: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 20. Fault: the wall clock is used (it jumps a day here), or `time.monotonic` is looked up at each call.

    The guarantee does not cover the clock of an event loop that is the scheduler; asyncio's is `time.monotonic`.
    """
    early = make_run()
    early.schedule(1)
    early.pass_time(1)

    def broken(*args: object) -> float:
        raise AssertionError("a registry read a replaced clock")

    of_loops = {"monotonic"} if loop_is_needed(stube_backend, stube_options) else set()
    for name in {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"} - of_loops:
        monkeypatch.setattr(time, name, broken)
    for jump in (-86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
        monkeypatch.setattr(time, "time_ns", lambda jump=jump: (1_700_000_000 + jump) * 10**9)
        for run in (early, make_run()):
            run.recorder.clear()
            run.schedule(10, "soon")
            run.schedule(HOUR, "late")
            run.pass_time(10)
            assert run.recorder.names == ["soon"]
            assert run.registry.cancel_timers("c1") == 1


@guarantee("G12")
def test_the_time_module_may_be_patched_before_the_backend_import(
    stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: the backend reads its clock from the time module at its own import, after `import stube`."""
    of_loops = ["monotonic"] if loop_is_needed(stube_backend, stube_options) else []
    printed = run_script(
        stube_backend,
        stube_options,
        f"of_loops = {of_loops}"
        """
for name in ("time", "monotonic", "perf_counter"):
    if name not in of_loops:
        setattr(time, name, lambda: 0.0)
    setattr(time, name + "_ns", lambda: 0)
run = Driver(make())
run.schedule(20, "tick")
run.pass_time(20)
print(run.recorder.names)
if run.clock is None:
    # The timeouts of those who wait are measured by the same clock.
    gate = run.recorder.gate()
    run.recorder.on("stand", lambda cid, event: gate.pass_through())
    run.schedule(0, "stand")
    gate.wait_entered()
    waits = [run.registry.settle, run.registry.join, run.registry.close]
    threads = [threading.Thread(target=wait, args=(0.05,), daemon=True) for wait in waits]
    for thread in threads:
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "a timeout does not pass"
    gate.release()
run.registry.close()
""",
    )
    assert printed == "['tick']\n"


@guarantee("G12", "G9")
@requires("own_clock")
@pytest.mark.parametrize("begins_at", [10**9, 5 * 10**18])
def test_a_custom_clock_may_be_passed_in(make_run: MakeRun, begins_at: int) -> None:
    """Fault: the option is accepted and not used, or not everywhere, such as in `settle`; or instants are assumed to be
    near those of `time.monotonic_ns`."""
    calls, offset_ns = 0, begins_at - monotonic_ns()

    def clock() -> int:
        nonlocal calls
        calls += 1
        return offset_ns + monotonic_ns()

    run = make_run(clock=clock)
    before = run.now_ms()
    run.schedule(10, "soon")
    run.schedule(HOUR, "late")
    run.pass_time(10)
    assert run.recorder.names == ["soon"]
    assert run.recorder.seen[0].at_ms >= before + 10 - 1e-6
    assert run.registry.settle(PATIENCE), "settle() waits for a timer that is not due by this clock"
    assert run.registry.join(0.01) is False
    assert 0 < run.registry.inspect("c1")["c1"].timers[0].remaining_ms <= HOUR
    assert calls > 0
