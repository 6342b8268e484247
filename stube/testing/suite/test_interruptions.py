"""Operations that begin in the midst of another operation of the same registry, on the same thread.

A destructor, a `weakref.finalize` callback and a signal handler may do that, at any line. Everything here runs in the
main thread under a watchdog: a deadlock is a failure, not a hang.
"""

from __future__ import annotations

import gc
import logging
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

from stube import Event
from stube.testing._capabilities import requires
from stube.testing._drive import PATIENCE, Driver, Injector, check_ledger, passes_through, tracing, watchdog
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, guarantee


class Step(NamedTuple):
    """One operation: what is there before it, the call, and what must hold once it has taken effect."""

    prepare: Callable[[Driver, str], object]
    call: Callable[[Driver, str], Any]
    check: Callable[[Driver, str, Any], bool]


def _timers(run: Driver, key: str) -> int:
    info = run.registry.inspect(key).get(key)
    return 0 if info is None else len(info.timers)


def _subscribed(run: Driver, key: str) -> bool:
    return (key, "main") in run.registry.subscriptions().get(key, {})


def _nothing(run: Driver, key: str) -> None:
    """There is nothing to prepare."""


def _two_timers(run: Driver, key: str) -> None:
    run.schedule(HOUR, cid=key)
    run.schedule(2 * HOUR, cid=key)


def _two_subscriptions(run: Driver, key: str) -> None:
    run.subscribe(key, cid=key)
    run.subscribe("shared", cid=key)


def _install(run: Driver, key: str) -> None:
    def dispatch(cid: str, event: Event) -> None:
        _last_dispatch[0] = key
        run.recorder(cid, event)

    run.registry.install_dispatch(dispatch)


_last_dispatch = [""]


def _installed(run: Driver, key: str, result: Any) -> bool:
    _last_dispatch[0] = ""
    run.schedule(0, "probe", cid="probe")
    run.settle()
    return _last_dispatch[0] == key


def _taken(run: Driver, key: str, result: Any) -> bool:
    # A nested call that was put off may have found nothing; then the baton must still be there, for it is never lost.
    return sorted([str(result), str(run.registry.pending_flow(key))]) == ["None", "flow"]


def _delivered(run: Driver, key: str, result: Any) -> bool:
    run.settle()
    return [seen.event.payload for seen in run.recorder.of(key)] == [key] and result in (0, 1)


STEPS: dict[str, Step] = {
    "install_dispatch": Step(_nothing, _install, _installed),
    "put_pending_flow": Step(
        _nothing,
        lambda run, key: run.registry.put_pending_flow(key, key),
        lambda run, key, result: run.registry.pending_flow(key) == key,
    ),
    "pending_flow": Step(
        lambda run, key: run.registry.put_pending_flow(key, "flow"),
        lambda run, key: run.registry.pending_flow(key),
        _taken,
    ),
    "forget_pending_flow": Step(
        lambda run, key: run.registry.put_pending_flow(key, "flow"),
        lambda run, key: run.registry.forget_pending_flow(key),
        lambda run, key, result: run.registry.pending_flow(key) is None,
    ),
    "schedule_event": Step(
        _nothing,
        lambda run, key: run.schedule(HOUR, cid=key),
        lambda run, key, result: _timers(run, key) == 1 and result.cancel() and _timers(run, key) == 0,
    ),
    "cancel_timers": Step(
        _two_timers,
        lambda run, key: run.registry.cancel_timers(key),
        lambda run, key, result: _timers(run, key) == 0 and result in (0, 2),
    ),
    "cancel": Step(
        lambda run, key: _handles.__setitem__(key, run.schedule(HOUR, cid=key)),
        lambda run, key: _handles.pop(key).cancel(),
        lambda run, key, result: _timers(run, key) == 0 and result in (False, True),
    ),
    "subscribe": Step(
        _nothing,
        lambda run, key: run.subscribe(key, cid=key),
        lambda run, key, result: _subscribed(run, key),
    ),
    "unsubscribe": Step(
        _two_subscriptions,
        lambda run, key: run.registry.unsubscribe(cid=key, instance_id="main"),
        lambda run, key, result: not _subscribed(run, key) and result in (0, 2),
    ),
    "remove_subscriptions_for_cid": Step(
        _two_subscriptions,
        lambda run, key: run.registry.remove_subscriptions_for_cid(key),
        lambda run, key, result: not _subscribed(run, key) and result in (0, 2),
    ),
    "publish": Step(
        lambda run, key: run.subscribe(key, cid=key),
        lambda run, key: run.registry.publish(key, key),
        _delivered,
    ),
    "subscriptions": Step(
        _nothing,
        lambda run, key: run.registry.subscriptions(),
        lambda run, key, result: type(result) is dict,
    ),
    "reset_state": Step(
        _two_timers,
        lambda run, key: run.registry.reset_state(),
        lambda run, key, result: _timers(run, key) == 0,
    ),
}
_handles: dict[str, Any] = {}


def _interrupted(run: Driver, outer: str, inner: str, at: int, outer_key: str, inner_key: str) -> tuple[Any, Any, str]:
    """Call `outer` and, at its line number `at`, `inner`; what the two returned, and the place (empty: none such)."""
    results: list[Any] = []
    injector = Injector(at, lambda: results.append(STEPS[inner].call(run, inner_key)))
    with tracing(injector):
        result = STEPS[outer].call(run, outer_key)
    return result, results[0] if results else None, injector.fired


@guarantee("G20")
@pytest.mark.parametrize("outer", list(STEPS))
def test_any_operation_may_begin_at_any_line_of_any_other(run: Driver, outer: str) -> None:
    """Case 14c. Fault: a lock that is not re-entrant; or one that is, and a nested call that sees half a change.

    Each of the operations begins once at every line that the other executes, library code beneath it included.
    """
    run.schedule(HOUR, cid="bystander")
    run.subscribe("bystander", cid="bystander")
    with watchdog(60):
        for inner in STEPS:
            at, place = 0, ""
            while True:
                outer_key, inner_key = f"outer {inner} {at}", f"inner {inner} {at}"
                STEPS[outer].prepare(run, outer_key)
                STEPS[inner].prepare(run, inner_key)
                outer_result, inner_result, place = _interrupted(run, outer, inner, at, outer_key, inner_key)
                if not place:
                    STEPS[outer].check(run, outer_key, outer_result)
                    break
                told = f"{inner} inside {outer} at {place}"
                if inner != "reset_state" and (inner, outer) != ("install_dispatch", "install_dispatch"):
                    assert STEPS[outer].check(run, outer_key, outer_result) or inner == "install_dispatch", told
                if outer not in ("reset_state", "install_dispatch") or inner == "reset_state":
                    assert STEPS[inner].check(run, inner_key, inner_result), told
                for key in (outer_key, inner_key):
                    run.registry.cancel_timers(key)
                    run.registry.remove_subscriptions_for_cid(key)
                    run.registry.forget_pending_flow(key)
                run.recorder.clear()
                run.registry.install_dispatch(run.recorder)
                stats = check_ledger(run.registry)
                assert stats.timers == sum(len(info.timers) for info in run.registry.inspect().values()), told
                at += 1
            assert at > 0, "no line of the backend was seen"
    run.registry.reset_state()
    run.settle()
    assert run.registry.inspect() == {}


@guarantee("G20")
@pytest.mark.parametrize("outer", list(STEPS))
def test_an_operation_may_begin_in_the_midst_of_another_on_the_same_names(run: Driver, outer: str) -> None:
    """Case 14c. Fault: the interrupted operation goes on with an entry that the nested one has removed.

    Which of the two comes last is open, so what is asked is that nothing breaks and the ledger knows every fate.
    """
    topics = ("c", "shared")
    with watchdog(60):
        for inner in STEPS:
            at = 0
            while True:
                for step in (outer, inner):
                    STEPS[step].prepare(run, "c")
                injector = Injector(at, partial(STEPS[inner].call, run, "c"))
                _handles["c"] = _Twice(_handles["c"]) if "c" in _handles else None
                with tracing(injector):
                    STEPS[outer].call(run, "c")
                _handles.clear()
                told = f"{inner} inside {outer} at {injector.fired}"
                run.settle()
                stats = check_ledger(run.registry)
                info = run.registry.inspect("c").get("c")
                subscribed = sum(("c", "main") in run.registry.subscriptions().get(topic, {}) for topic in topics)
                assert stats.timers == (0 if info is None else len(info.timers)), told
                assert stats.subscriptions == subscribed == (0 if info is None else len(info.subscriptions)), told
                assert run.registry.cancel_timers("c") == stats.timers, told
                assert run.registry.remove_subscriptions_for_cid("c") == subscribed, told
                run.registry.forget_pending_flow("c")
                assert run.registry.inspect() == {}, told
                assert run.registry.subscriptions() == {}, told
                run.recorder.clear()
                run.registry.install_dispatch(run.recorder)
                if not injector.fired:
                    break
                at += 1


class _Twice:
    """Lets the two operations of one test share one handle: `pop` must find something both times."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def cancel(self) -> bool:
        _handles["c"] = self
        return bool(self._handle.cancel())


@guarantee("G20", "G23")
@pytest.mark.parametrize("outer", ["schedule_event", "subscribe", "publish", "put_pending_flow"])
@pytest.mark.parametrize("inner", ["schedule_event", "publish", "cancel_timers", "reset_state"])
def test_the_first_operation_may_be_interrupted_too(make_run: MakeRun, outer: str, inner: str) -> None:
    """Case 14c. Fault: two scheduler threads are started, or none, when the first operation is interrupted.

    A deadline of 3 s for what takes a millisecond: where the registry stands still it would stand for ever.
    """
    with watchdog(60):
        for at in range(10_000):
            run = make_run()
            _, _, place = _interrupted(run, outer, inner, at, "outer", "inner")
            run.schedule(0, "after", cid="after")
            assert run.registry.settle(3), f"does not deliver after {inner} inside {outer} at {place}"
            assert [seen.event.name for seen in run.recorder.of("after")] == ["after"], place
            check_ledger(run.registry)
            assert run.registry.close(3), f"does not close after {inner} inside {outer} at {place}"
            if not place:
                break


class Finalized:
    """A payload whose destructor calls the registry."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def __del__(self) -> None:
        self._action()


MakePayload = Callable[[], object]


def _replace_a_baton(run: Driver, payload: MakePayload) -> None:
    run.registry.put_pending_flow("victim", payload())
    run.registry.put_pending_flow("victim", "new")


def _forget_a_baton(run: Driver, payload: MakePayload) -> None:
    run.registry.put_pending_flow("victim", payload())
    run.registry.forget_pending_flow("victim")


def _cancel_timers(run: Driver, payload: MakePayload) -> None:
    for _ in range(2):
        run.schedule(HOUR, ("tick", payload()), cid="victim")
    run.registry.cancel_timers("victim")


def _cancel_a_handle(run: Driver, payload: MakePayload) -> None:
    run.schedule(HOUR, ("tick", payload()), cid="victim").cancel()


def _replace_a_spec(run: Driver, payload: MakePayload) -> None:
    run.subscribe("t", ("said", payload()), cid="victim")
    run.subscribe("t", "said", cid="victim")


def _unsubscribe(run: Driver, payload: MakePayload) -> None:
    for topic in ("t", "u"):
        run.subscribe(topic, ("said", payload()), cid="victim")
    run.registry.unsubscribe(cid="victim", instance_id="main")


def _leave(run: Driver, payload: MakePayload) -> None:
    for topic in ("t", "u"):
        run.subscribe(topic, ("said", payload()), cid="victim")
    run.registry.remove_subscriptions_for_cid("victim")


def _reset(run: Driver, payload: MakePayload) -> None:
    run.registry.put_pending_flow("victim", payload())
    for _ in range(2):
        run.schedule(HOUR, ("tick", payload()), cid="victim")
    run.subscribe("t", ("said", payload()), cid="victim")
    run.registry.reset_state()


def _tell_nobody(run: Driver, payload: MakePayload) -> None:
    run.registry.publish("nobody", payload())


def _deliver(run: Driver, payload: MakePayload) -> None:
    run.subscribe("t", cid="victim")
    run.registry.publish("t", payload())
    run.schedule(0, ("tick", payload()), cid="victim")
    run.settle()
    run.recorder.clear()
    run.registry.remove_subscriptions_for_cid("victim")


def _cancel_what_is_queued(run: Driver, payload: MakePayload) -> None:
    run.subscribe("t", cid="victim")
    with run.held("victim"):
        run.registry.publish("t", payload())
        run.registry.publish("t", payload())
        run.registry.remove_subscriptions_for_cid("victim")
    run.settle()


RELEASES: list[Callable[[Driver, MakePayload], None]] = [
    _replace_a_baton,
    _forget_a_baton,
    _cancel_timers,
    _cancel_a_handle,
    _replace_a_spec,
    _unsubscribe,
    _leave,
    _reset,
    _tell_nobody,
    _deliver,
    _cancel_what_is_queued,
]
"""Every way in which the registry lets a payload go."""


@guarantee("G20")
@requires("by_reference")
@pytest.mark.parametrize("how", ["__del__", "weakref.finalize"])
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.__name__.lstrip("_"))
def test_a_destructor_may_call_every_operation(
    run: Driver, release: Callable[[Driver, MakePayload], None], how: str
) -> None:
    """Case 14c. Fault: a payload is let go under a lock, or in the midst of a change of the container that held it."""
    failures: list[BaseException] = []
    called = 0

    def action_of(name: str, cid: str) -> Callable[[], None]:
        def action() -> None:
            nonlocal called
            called += 1
            try:
                OPERATIONS[name](run.registry, cid)
                run.registry.stats()
                run.registry.inspect()
            except BaseException as exc:  # noqa: BLE001 - a destructor's exception would only be printed
                failures.append(exc)

        return action

    with watchdog():
        for name in OPERATIONS:
            for cid in ("victim", "other"):

                def payload(name: str = name, cid: str = cid) -> object:
                    if how == "__del__":
                        return Finalized(action_of(name, cid))
                    carrier = _Carrier()
                    weakref.finalize(carrier, action_of(name, cid))
                    return carrier

                before = called
                # The last round's destructor may have put another one in.
                run.registry.install_dispatch(run.recorder)
                run.registry.put_pending_flow("other", 1)
                run.schedule(HOUR, cid="other")
                run.subscribe("t", cid="other")
                release(run, payload)
                run.registry.install_dispatch(run.recorder)
                run.settle()
                run.recorder.clear()
                if called == before:
                    gc.collect()
                run.settle()
                assert called > before, f"the payload is still alive after {release.__name__}"
                assert failures == [], f"{name} in a destructor in {release.__name__}"
                check_ledger(run.registry)
                run.registry.reset_state()
                run.recorder.clear()
                assert run.registry.inspect() == {}


class _Carrier:
    """An object that can be watched by `weakref.finalize`."""


@guarantee("G20")
@requires("by_reference")
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.__name__.lstrip("_"))
def test_no_destructor_runs_under_a_lock(run: Driver, release: Callable[[Driver, MakePayload], None]) -> None:
    """Fault: a payload is dropped inside the lock: a destructor that waits for another thread waits for ever."""
    results: list[bool] = []

    def action() -> None:
        results.append(passes_through(lambda: (run.registry.stats(), run.registry.publish("t", 1))))

    with watchdog(60):
        release(run, lambda: Finalized(action))
        run.settle()
        gc.collect()
    assert results
    assert all(results)


@guarantee("G20", "G19")
def test_neither_dispatch_nor_on_error_nor_logging_runs_under_a_lock(make_run: MakeRun) -> None:
    """Fault: one of them is called inside the lock, so that a handler that waits for another thread waits for ever."""
    results: list[bool] = []

    def through() -> None:
        results.append(passes_through(lambda: (run.registry.stats(), run.schedule(HOUR, cid="c2"))))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            through()

    def fail(cid: str, event: Event) -> None:
        through()
        raise LookupError(cid)

    run = make_run(on_error=lambda cid, event, exception: through())
    run.recorder.on("fail", fail)
    run.recorder.on("said", fail)
    run.subscribe("t", cid="c1")
    logger, handler = logging.getLogger("stube"), Handler()
    logger.addHandler(handler)
    try:
        run.schedule(0, "fail")
        run.registry.publish("t", 1)
        run.settle()
    finally:
        logger.removeHandler(handler)
    assert results == [True] * 6


def _work(run: Driver, number: int) -> None:
    """A bit of everything, for something else to interrupt."""
    registry, cid = run.registry, f"c{number % 5}"
    registry.put_pending_flow(cid, number)
    handle = run.schedule(number % 3, cid=cid)
    run.schedule(HOUR, cid=cid)
    run.subscribe("t", cid=cid)
    run.subscribe(f"t{number % 7}", cid=cid)
    registry.publish("t", number)
    if number % 2:
        handle.cancel()
    registry.pending_flow(cid)
    if number % 3 == 0:
        registry.cancel_timers(cid)
        registry.unsubscribe(cid=cid, instance_id="main", topic="t")
        registry.remove_subscriptions_for_cid(cid)
    registry.subscriptions()
    registry.stats()
    registry.inspect(cid)


def _whole(run: Driver) -> None:
    """What must hold after any amount of interrupted work."""
    run.registry.install_dispatch(run.recorder)
    run.pass_time(3)
    stats = check_ledger(run.registry)
    found = run.registry.inspect()
    assert stats.timers == sum(len(info.timers) for info in found.values())
    assert stats.subscriptions == sum(len(info.subscriptions) for info in found.values())
    assert stats.subscriptions == sum(len(subscribers) for subscribers in run.registry.subscriptions().values())
    for cid in found:
        assert run.registry.cancel_timers(cid) == len(found[cid].timers)
        assert run.registry.remove_subscriptions_for_cid(cid) == len(found[cid].subscriptions)
        run.registry.forget_pending_flow(cid)
    assert run.registry.inspect() == {}
    run.recorder.clear()
    run.schedule(0, "new", cid="new")
    run.settle()
    assert run.recorder.names == ["new"]


@guarantee("G20")
def test_the_collector_may_run_a_finalizer_in_the_midst_of_any_operation(run: Driver) -> None:
    """Case 14c. Fault: the registry allocates under a lock that is not re-entrant, and the collector runs there."""
    names = list(OPERATIONS)
    failures: list[BaseException] = []
    called = 0

    class Cycle:
        def __init__(self, name: str, cid: str) -> None:
            self.me, self.name, self.cid = self, name, cid

        def __del__(self) -> None:
            nonlocal called
            called += 1
            try:
                OPERATIONS[self.name](run.registry, self.cid)
            except BaseException as exc:  # noqa: BLE001 - a destructor's exception would only be printed
                failures.append(exc)

    threshold = gc.get_threshold()
    gc.set_threshold(20, 1, 1)
    try:
        with watchdog():
            for number in range(1000):
                Cycle(names[number % len(names)], f"c{number % 5}")
                _work(run, number)
                if run.clock is not None and number % 50 == 0:
                    run.clock.advance(1)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert failures == []
    assert called == 1000
    _whole(run)


@guarantee("G20")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_a_signal_handler_may_call_every_operation(run: Driver) -> None:
    """Case 14c. Fault: a lock that is not re-entrant. Signals arrive at random moments of one second of work."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signal handlers run in the main thread only")
    names = list(OPERATIONS)
    chance = random.Random(14)
    called = 0
    done = threading.Event()
    nested = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal called, nested
        if nested:
            return
        nested = True
        called += 1
        OPERATIONS[chance.choice(names)](run.registry, f"c{chance.randrange(5)}")
        nested = False

    def disturb() -> None:
        while not done.wait(0.0002):  # the pace of the signals; there is nothing to wait for
            signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    previous = signal.signal(signal.SIGUSR1, handler)
    disturber = threading.Thread(target=disturb)
    disturber.start()
    number = 0
    try:
        with watchdog():
            while number < 300 or called < 300:
                _work(run, number)
                number += 1
                if run.clock is not None and number % 50 == 0:
                    run.clock.advance(1)
    finally:
        done.set()
        disturber.join(PATIENCE)
        signal.signal(signal.SIGUSR1, previous)
    _whole(run)


@guarantee("G20", "G12")
@requires("own_clock")
def test_a_clock_of_ones_own_is_never_read_under_a_lock(make_run: MakeRun) -> None:
    """Fault: `clock` is user code; called under a lock, one that asks the registry itself waits for ever."""
    asked: list[Driver] = []
    results: list[bool] = []
    nested = threading.local()

    def clock() -> int:
        if asked and not getattr(nested, "yes", False):
            nested.yes = True
            # Another thread must get through while this one stands inside the clock.
            results.append(passes_through(asked[0].registry.stats))
            nested.yes = False
        return time.monotonic_ns()

    run = make_run(clock=clock)
    asked.append(run)
    with watchdog():
        for number in range(5):
            run.schedule(number)
            run.subscribe(cid=f"c{number}")
            run.registry.publish("t", number)
            run.registry.inspect()
        run.registry.join(PATIENCE)
        asked.clear()
    assert results
    assert all(results)
