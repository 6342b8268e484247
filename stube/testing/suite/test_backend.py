"""A backend beyond the twelve operations: capabilities, options, settle, join, stats, inspect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest

import stube
from stube import (
    Backend,
    ConfigError,
    ConversationInfo,
    Event,
    Registry,
    RegistryFull,
    Stats,
    SubscriptionInfo,
    TimerInfo,
    UnknownBackendError,
)
from stube.testing._contract.capabilities import CAPABILITIES, REAL_TIME, requires
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Effort,
    Gate,
    Injector,
    monotonic,
    monotonic_ns,
    passes_through,
    tracing,
    wait_or_standstill,
)
from stube.testing.plugin import MakeRegistry
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, costly, guarantee, refused

# Capabilities and options.


@guarantee("G21")
def test_a_backend_is_a_registry_with_known_capabilities(registry: Backend) -> None:
    """Fault: a spelling mistake in the name of a capability, which would always skip its tests."""
    assert isinstance(registry, Registry)
    assert isinstance(registry.capabilities, frozenset)
    assert registry.capabilities <= set(CAPABILITIES)
    assert not {"by_reference", "cross_process"} <= registry.capabilities


@guarantee("G13")
@requires("sizes")
def test_sizes_count_every_kind_of_state(run: Driver) -> None:
    """Fault: `sizes()` leaves a container out, so that the leak tests overlook it. Every kind of state must show."""
    before = run.sizes()
    assert all(isinstance(name, str) and isinstance(size, int) and size >= 0 for name, size in before.items())
    shown = []
    for change in (
        lambda: run.registry.put_pending_flow("c1", "flow"),
        lambda: run.schedule(HOUR),
        lambda: run.subscribe("t"),
    ):
        change()
        after = run.sizes()
        assert set(after) == set(before)
        shown.append(sum(after.values()))
    assert sum(before.values()) < shown[0] < shown[1] < shown[2]
    run.registry.reset_state()
    assert run.sizes() == before


@guarantee("G15")
def test_an_unknown_option_is_refused(make_registry: MakeRegistry) -> None:
    """Case 26. Fault: unknown options are ignored, so a spelling mistake switches a bound off."""
    with pytest.raises(ConfigError, match="max_pendng"):
        make_registry(max_pendng=5)


@guarantee("G15")
def test_an_invalid_max_pending_is_refused(make_registry: MakeRegistry) -> None:
    """Case 26. Fault: the option is checked only when the bound is reached."""
    wrong: Any
    for wrong in (0, -1, "many", 1.5, True, object()):
        with refused(wrong, ConfigError, "max_pending"):
            make_registry(max_pending=wrong)


@guarantee("G15")
def test_an_on_error_that_is_not_callable_is_refused(make_registry: MakeRegistry) -> None:
    """Case 26. Fault: the mistake shows only when a handler has failed, and then there are two failures."""
    wrong: Any
    for wrong in (7, "print", object()):
        with refused(wrong, ConfigError, "on_error"):
            make_registry(on_error=wrong)


@guarantee("G15")
def test_the_error_for_an_unknown_backend_hides_the_password() -> None:
    """Case 26. Fault: the whole URL is quoted in the error."""
    with pytest.raises(UnknownBackendError) as caught:
        stube.create_registry("nosuchbackend://user:hunter2@localhost/0")
    assert "nosuchbackend" in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(caught.value)


@guarantee("G26")
def test_two_registries_share_nothing(make_run: MakeRun) -> None:
    """Case 30. Fault: a class attribute or a module-level dict holds state; or a reset or a close reaches the other."""
    one, two = make_run(), make_run()
    other = stube.create_registry("virtual")
    for run in (one, two):
        run.registry.put_pending_flow("c1", id(run))
        run.subscribe("t", cid="c1")
        run.schedule(HOUR)
    assert one.registry.publish("t", "to one") == 1
    assert other.publish("t", "to nobody") == 0
    assert other.subscriptions() == {}
    one.settle()
    two.settle()
    assert one.recorder.payloads == ["to one"]
    assert two.recorder.seen == []
    assert one.registry.cancel_timers("c1") == 1
    assert one.registry.pending_flow("c1") == id(one)
    one.registry.reset_state()
    assert two.registry.stats() == Stats(accepted=1, timers=1, subscriptions=1, pending_flows=1)
    assert one.registry.close()
    assert other.close()
    two.schedule(0)
    assert two.registry.publish("t", "to two") == 1
    two.settle()
    assert sorted(two.recorder.names) == ["said", "tick"]
    assert two.registry.pending_flow("c1") == id(two)


# Waiting.


@guarantee("G21")
def test_settle_waits_for_ready_deliveries_but_not_for_timers(run: Driver) -> None:
    """Fault: `settle` returns while a delivery still runs, or waits for (or, virtually, jumps to) the next timer."""
    order: list[str] = []

    def slow(cid: str, event: Event) -> None:
        threading.Event().wait(0.02)
        if event.payload < 3:
            run.schedule(0, ("slow", event.payload + 1))
        order.append(f"ended {event.payload}")

    run.recorder.on("slow", slow)
    run.schedule(HOUR)
    run.schedule(0, ("slow", 1))
    assert run.registry.settle(PATIENCE)
    order.append("settled")
    assert order == ["ended 1", "ended 2", "ended 3", "settled"]
    stats = run.registry.stats()
    assert (stats.timers, stats.running, stats.queued, stats.delivered) == (1, 0, 0, 3)
    assert run.registry.settle(0)


@guarantee("G21")
def test_settle_and_join_wait_for_a_running_delivery(run: Driver) -> None:
    """Fault: a registry counts as idle when nothing is queued, although a delivery runs; or `inspect` does not show a
    conversation that has only a running delivery."""
    gate = run.recorder.gate()
    run.recorder.on("stand", lambda cid, event: gate.pass_through())
    run.schedule(0, "stand")
    with run.delivering():
        gate.wait_entered()
        assert run.registry.inspect() == run.registry.inspect("c1") == {"c1": ConversationInfo(running=1)}
        assert run.registry.stats().running == 1
        if run.clock is None:
            for timeout in (0.02, -1.0):
                for wait in (run.registry.settle, run.registry.join):
                    with suppress(ValueError):  # a backend may refuse a negative timeout
                        assert wait(timeout) is False
    assert run.registry.settle(PATIENCE)
    assert run.registry.inspect() == {}


@guarantee("G21")
@costly
def test_settle_and_join_return_false_when_the_timeout_passes(run: Driver) -> None:
    """Fault: they always return True, or wait longer than their timeout.

    Real time: the timeout is 0.25 s, and 5 s are allowed, because only an endless wait shall fail.
    """
    if run.clock is not None:
        run.schedule(HOUR)
        assert run.registry.join(0.25) is False
        assert run.clock.now_ms == 250
        assert run.registry.join() is True
        assert run.clock.now_ms == HOUR
        return
    run.schedule(HOUR)
    with run.held():
        for wait in (run.registry.settle, run.registry.join):
            start = monotonic()
            assert wait(0.25) is False
            assert 0.24 <= monotonic() - start < 5
            assert wait(0) is False
    run.settle()
    assert run.registry.settle(0) is True
    assert run.registry.join(0.01) is False


@guarantee("G21", "G24")
def test_a_timeout_may_be_enormous(run: Driver) -> None:
    """Fault: a timeout too long for a lock to wait for raises an error."""
    run.schedule(1)
    assert run.registry.join(1e12) is True
    assert run.registry.settle(1e300) is True
    assert run.registry.close(1e300) is True


@guarantee("G21")
def test_join_waits_for_timers_and_all_that_handlers_schedule(run: Driver) -> None:
    """Fault: `join` returns when the first timers have fired, or overlooks timers that a handler schedules."""

    def again(cid: str, event: Event) -> None:
        if event.payload:
            run.schedule(5, ("tick", event.payload - 1))

    run.recorder.on("tick", again)
    assert run.registry.join(0) is True
    run.schedule(20, ("tick", 3))
    run.schedule(1, ("tick", 0), cid="c2")
    assert run.registry.join(PATIENCE) is True
    assert [seen.event.payload for seen in run.recorder.of("c1")] == [3, 2, 1, 0]
    assert [seen.event.payload for seen in run.recorder.of("c2")] == [0]
    assert run.registry.inspect() == {}
    assert run.stats() == Stats(accepted=5, delivered=5)


@guarantee("G21", "G10")
@requires(REAL_TIME)  # on a virtual clock `join` moves the clock itself
@pytest.mark.parametrize("how", ["cancel_timers", "cancel", "reset_state", "close"])
def test_a_waiter_in_join_wakes_when_the_timers_are_removed(run: Driver, how: str) -> None:
    """Fault: a cancel, a reset or a close does not wake a waiter in `join`, so that it sleeps for an hour; or of three
    waiters only one."""
    handle = run.schedule(HOUR)
    result: list[bool] = []

    def wait() -> None:
        result.append(run.registry.join(PATIENCE + HOUR))

    waiters = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    threading.Event().wait(0.02)  # no event says that it waits; if it does not wait yet, the test proves less
    ways: dict[str, Callable[[], object]] = {
        "cancel_timers": lambda: run.registry.cancel_timers("c1"),
        "cancel": handle.cancel,
        "reset_state": run.registry.reset_state,
        "close": run.registry.close,
    }
    ways[how]()
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert result == [True] * 3


@guarantee("G21", "G10")
@requires(REAL_TIME)  # on a virtual clock who waits delivers
@costly
@pytest.mark.parametrize("wait", ["settle", "join"])
def test_the_last_delivery_may_end_at_any_line_of_a_wait(run: Driver, stube_effort: Effort, wait: str) -> None:
    """Fault: `settle` looks, finds a delivery, and only then says that it waits; the delivery ends in between, and
    wakes nobody. For `settle` a timer stays pending, which is not waited for."""
    if wait == "settle":
        run.schedule(HOUR)
    for at in stube_effort.lines(["settle", "join"].index(wait)):
        with run.held("c1") as gate:
            # Lets go when the wait has come to rest before this line.
            last = threading.Timer(0.01, gate.release)

            def end(gate: Gate = gate) -> None:
                gate.release()
                wait_or_standstill(lambda: run.registry.stats().running == 0)

            injector = Injector(at, end, library=False)
            last.start()
            start = monotonic()
            with tracing(injector):
                ended = getattr(run.registry, wait)(PATIENCE)
            seconds = monotonic() - start
            last.cancel()
        # Who is not woken finds at the end of its timeout that there is nothing to wait for.
        woken = ended and seconds < PATIENCE / 2
        assert woken, f"{wait}() is not woken when the delivery ends at {injector.fired}"
        if not injector.fired:
            return


@guarantee("G24")
@pytest.mark.parametrize("where", ["dispatch", "on_error"])
@pytest.mark.parametrize("which", ["settle", "join"])
def test_settle_and_join_inside_a_delivery_raise(make_run: MakeRun, which: str, where: str) -> None:
    """Fault: the call waits for its own delivery, or delivers other events in the middle of a handler. A delivery also
    runs while `on_error` does."""
    errors: list[BaseException] = []

    def wait(cid: str, event: Event) -> None:
        if where == "on_error":
            raise LookupError("for on_error")
        wait_here()

    def wait_here() -> None:
        try:
            getattr(run.registry, which)(1)
        except RuntimeError as exc:
            errors.append(exc)

    run = make_run(on_error=lambda cid, event, exception: wait_here())
    run.recorder.on("wait", wait)
    run.schedule(0, "wait")
    run.schedule(0, "after", cid="c2")
    run.settle()
    assert len(errors) == 1
    assert sorted(run.recorder.names) == ["after", "wait"]  # two conversations have no common order
    failed = int(where == "on_error")
    assert run.stats() == Stats(accepted=2, delivered=2 - failed, failed=failed)


@guarantee("G24")
@pytest.mark.parametrize("which", ["settle", "join"])
def test_settle_and_join_raise_inside_a_delivery_that_has_closed(run: Driver, which: str) -> None:
    """Fault: whether the caller is inside a delivery is no longer known after the close, and it waits for itself; or
    it is told that nothing is pending."""
    raised: list[bool] = []

    def close(cid: str, event: Event) -> None:
        run.registry.close()
        with pytest.raises(RuntimeError):
            getattr(run.registry, which)(1)
        raised.append(True)

    run.recorder.on("close", close)
    run.schedule(0, "close")
    run.settle()
    assert raised == [True]


# Stats and inspect.


@guarantee("G21")
def test_the_ledger_counts_every_fate_separately(make_run: MakeRun) -> None:
    """Fault: a fate is counted twice, counted as another fate, or computed as the remainder of the others."""
    run = make_run()

    def fail(cid: str, event: Event) -> None:
        raise LookupError(event.name)

    run.recorder.on("fail", fail)
    assert run.registry.stats() == Stats()
    run.registry.put_pending_flow("c1", 1)
    run.registry.put_pending_flow("c2", 1)
    for cid in ("c1", "c2", "c3"):
        run.subscribe("t", cid=cid)
    run.schedule(HOUR)
    run.schedule(HOUR, cid="c2")
    assert run.registry.stats() == Stats(pending_flows=2, subscriptions=3, timers=2, accepted=2)
    assert run.registry.publish("t", 1) == 3
    for _ in range(4):
        run.schedule(0, "fail")
    assert run.stats() == Stats(pending_flows=2, subscriptions=3, timers=2, accepted=9, delivered=3, failed=4)
    assert run.registry.cancel_timers("c1") == 1
    with run.held("c1", "c2", "c3"):
        run.registry.publish("t", 2)
        run.registry.remove_subscriptions_for_cid("c1")
    assert run.stats() == Stats(
        pending_flows=2, subscriptions=2, timers=1, accepted=12, delivered=5, failed=4, cancelled=2
    )
    run.registry.reset_state()
    assert run.stats() == Stats(accepted=12, delivered=5, failed=4, cancelled=2, dropped=1)


@guarantee("G21")
def test_no_count_in_stats_is_ever_negative(run: Driver) -> None:
    """Fault: a count is decreased before it is increased, by another thread or in a batch."""
    names = [field.name for field in fields(Stats)]
    bad: list[Stats] = []
    done = threading.Event()

    def look_once() -> None:
        stats = run.registry.stats()
        if any(getattr(stats, name) < 0 for name in names):
            bad.append(stats)

    def look() -> None:
        while not done.is_set():
            look_once()

    looker = threading.Thread(target=look)
    looker.start()
    try:
        run.subscribe("t")
        run.recorder.on("tick", lambda cid, event: look_once())
        for number in range(1000):
            run.schedule(0, cid=f"c{number % 7}")
            run.registry.publish("t", number)
            if number % 3 == 0:
                run.registry.cancel_timers(f"c{number % 7}")
            if number % 100 == 0:
                run.settle()
    finally:
        done.set()
        looker.join(PATIENCE)
    assert bad == []
    stats = run.stats()
    assert stats.accepted == 2000
    assert stats.delivered + stats.cancelled == 2000
    assert stats.delivered == len(run.recorder.seen)


@guarantee("G21")
def test_inspect_shows_everything_that_each_conversation_holds(run: Driver) -> None:
    """Fault: `inspect` omits something of a conversation, shows it in another one, or shows an empty conversation."""
    run.registry.put_pending_flow("baton", "flow")
    run.schedule(2 * HOUR, ("late", 1), cid="timers", instance_id="i1")
    run.schedule(HOUR, "early", cid="timers", instance_id="i2")
    run.subscribe("t", "said", cid="listens", instance_id="i1")
    found = run.registry.inspect()
    assert set(found) == {"baton", "timers", "listens"}
    assert found["baton"].pending_flow
    assert not found["timers"].pending_flow
    assert found["listens"].subscriptions == (SubscriptionInfo("i1", "t", "said"),)
    early, late = found["timers"].timers
    assert (early.instance_id, early.event, late.instance_id, late.event) == ("i2", "early", "i1", ("late", 1))
    assert isinstance(early, TimerInfo)
    assert HOUR - 60_000 < early.remaining_ms <= HOUR < late.remaining_ms <= 2 * HOUR
    assert set(run.registry.inspect("timers")) == {"timers"}
    assert run.registry.inspect("never") == {}
    run.subscribe("t", "said", cid="listens", instance_id="i2")
    with run.held("listens"):
        run.registry.publish("t", 1)
        run.registry.publish("t", 2)
        info = run.registry.inspect("listens")["listens"]
        assert (info.queued, info.running) == (4, 1)
    run.settle()
    info = run.registry.inspect("listens")["listens"]
    assert (info.queued, info.running, info.timers) == (0, 0, ())


@guarantee("G21")
@requires(REAL_TIME)  # a virtual clock stands still while it delivers, so nothing becomes overdue
def test_a_timer_that_is_overdue_has_no_time_left(run: Driver) -> None:
    """Fault: the time left until an overdue timer is negative, or the timer is not shown any more."""
    with run.held("c1"):
        for delay in (0, 1, HOUR):
            run.schedule(delay)
        threading.Event().wait(0.010)  # until both are overdue
        left = [timer.remaining_ms for timer in run.registry.inspect("c1")["c1"].timers]
    assert left[:2] == [0.0, 0.0]
    assert HOUR - 60_000 < left[2] <= HOUR


@guarantee("G26")
def test_the_ledger_of_one_registry_shows_nothing_of_another(make_run: MakeRun) -> None:
    """Case 30. Fault: counters, or the list of what runs, are an attribute of the class."""
    one, two = make_run(max_pending=5), make_run()
    two.registry.subscriptions()

    def fail(cid: str, event: Event) -> None:
        raise LookupError(event.name)

    one.recorder.on("fails", fail)
    one.subscribe("t")
    one.schedule(0, "fails")
    one.schedule(0)
    one.settle()
    one.schedule(HOUR)
    assert one.registry.cancel_timers("c1") == 1
    with one.held("c1"):
        one.registry.publish("t", 1)
        assert two.registry.inspect() == {}
        assert two.registry.stats() == Stats()
        one.registry.reset_state()
    for _ in range(5):
        one.schedule(HOUR)
    assert two.registry.stats() == Stats()
    two.schedule(HOUR)  # which has room, although the other one has none
    assert two.registry.stats() == Stats(accepted=1, timers=1)
    assert one.stats() == Stats(accepted=9, delivered=1, failed=1, cancelled=1, dropped=1, timers=5)


@guarantee("G26")
def test_each_registry_has_its_own_options(make_run: MakeRun) -> None:
    """Case 30. Fault: an option is an attribute of the class, so that the latest registry's holds for all."""
    told: dict[str, list[str]] = {"one": [], "two": []}

    def fail(cid: str, event: Event) -> None:
        raise LookupError(event.name)

    one = make_run(max_pending=2, on_error=lambda cid, event, exception: told["one"].append(cid))
    two = make_run(max_pending=3, on_error=lambda cid, event, exception: told["two"].append(cid))
    for name, run in (("of one", one), ("of two", two)):
        run.recorder.on("fail", fail)
        run.schedule(0, "fail", cid=name)
        run.settle()
    assert told == {"one": ["of one"], "two": ["of two"]}
    for bound, run in ((2, one), (3, two)):
        for _ in range(bound):
            run.schedule(HOUR)
        with pytest.raises(RegistryFull):
            run.schedule(HOUR)


@guarantee("G26", "G12")
@requires("own_clock")
def test_each_registry_has_its_own_clock(make_run: MakeRun) -> None:
    """Case 30. Fault: the clock is an attribute of the class, so that the latest registry's holds for all."""
    stands = monotonic_ns()
    runs = [make_run(), make_run(clock=lambda: stands), make_run()]
    for run in runs:
        run.schedule(1)
        run.schedule(0, "now")
    for run in runs:
        run.settle()
    runs[0].pass_time(5)
    runs[2].pass_time(5)
    assert [sorted(run.recorder.names) for run in runs] == [["now", "tick"], ["now"], ["now", "tick"]]


@guarantee("G26")
@requires(REAL_TIME)  # a registry on a virtual clock delivers on its caller's thread
def test_a_registry_that_is_stopped_in_a_delivery_stops_no_other(make_run: MakeRun) -> None:
    """Case 30. Fault: dispatch runs under a lock of the module, or on a thread that all registries share."""
    stopped, other = make_run(), make_run()
    if "coroutine_dispatch" in other.registry.capabilities:
        pytest.skip("capability threads is not promised: one event loop serves both, and a plain handler blocks it")
    other.subscribe("t")
    gate = stopped.recorder.gate()
    stopped.recorder.on("stand", lambda cid, event: gate.pass_through())
    stopped.schedule(0, "stand")
    with stopped.delivering():
        gate.wait_entered()
        other.schedule(0)
        other.registry.publish("t", 1)
        other.schedule(5, "later")
        assert other.registry.join(PATIENCE), "the other registry delivers nothing meanwhile"
    assert other.stats() == Stats(accepted=3, delivered=3, subscriptions=1)


@guarantee("G26", "G24")
def test_a_delivery_may_wait_for_another_registry_and_close_it(make_run: MakeRun) -> None:
    """Fault: what tells that the caller is inside a delivery is shared, so that `settle` of another registry raises, or
    its `close` does not wait."""
    one, other = make_run(), make_run()
    if "coroutine_dispatch" in other.registry.capabilities:
        pytest.skip("capability threads is not promised: one event loop serves both, and a plain handler blocks it")
    results: list[object] = []

    def wait(cid: str, event: Event) -> None:
        other.schedule(0)
        results.extend([other.registry.settle(PATIENCE), len(other.recorder.seen), other.registry.join(PATIENCE)])
        results.append(other.registry.close(PATIENCE))

    one.recorder.on("wait", wait)
    one.schedule(0, "wait")
    one.settle()
    assert results == [True, 1, True, True]


@guarantee("G26")
@pytest.mark.parametrize("operation", ["schedule_event", "publish", "cancel_timers", "reset_state", "close"])
def test_a_registry_that_is_stopped_in_an_operation_stops_no_other(make_run: MakeRun, operation: str) -> None:
    """Case 30. Fault: a lock is an attribute of the class or of the module, so that all registries wait for one.

    At each line of an operation of one registry, another thread uses another registry.
    """
    two = make_run()
    two.subscribe("t")
    two.schedule(0)
    two.settle()
    through: list[bool] = []

    def use_the_other() -> None:
        through.append(
            passes_through(lambda: (two.schedule(HOUR), two.registry.publish("t", 1), two.registry.cancel_timers("c1")))
        )

    for at in range(10_000):
        one = make_run()
        one.subscribe("t")
        injector = Injector(at, use_the_other, library=False)
        with tracing(injector):
            if operation == "close":
                one.registry.close()
            else:
                OPERATIONS[operation](one.registry, "c1")
        assert all(through), f"the other registry waits for this one at {injector.fired}"
        if not injector.fired:
            break
        assert one.registry.close(PATIENCE)
    two.settle()
