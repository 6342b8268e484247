"""Re-entrancy: operations called inside a delivery, and at every line of another operation (G20).

The call at a line stands for a signal handler or a finalizer, which may run between any two lines.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

from stube import Event, RegistryClosed, RegistryFull, TimerHandle
from stube.testing._harness import PATIENCE, Driver, Effort, Injector, blaming, check_ledger, tracing
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, costly, guarantee


@guarantee("G20")
@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("cid", ["c1", "c2"])
def test_a_handler_may_call_every_operation(run: Driver, operation: str, cid: str) -> None:
    """Case 11. Fault: dispatch is called under a lock that the operation takes too, or during an iteration.

    The handler calls it for its own conversation and for another one; deliveries of both are queued behind it.
    """
    ended: list[str] = []

    def call(own: str, event: Event) -> None:
        OPERATIONS[operation](run.registry, cid)
        ended.append(operation)

    run.recorder.on("call", call)
    for name in ("c1", "c2"):
        run.registry.put_pending_flow(name, "flow")
        run.subscribe("t", cid=name)
        run.schedule(HOUR, cid=name)
    with run.held("c1", "c2"):
        run.schedule(0, "call", cid="c1")
        for name in ("c1", "c2"):
            run.schedule(0, cid=name)
        run.registry.publish("t", "message")
    run.settle()
    assert ended == [operation]
    stats = run.stats()
    assert stats.balanced
    assert stats.accepted - stats.timers == stats.delivered + stats.cancelled + stats.dropped
    assert run.recorder.overlaps == []
    # The operation has taken effect: the registry shows it.
    info = run.registry.inspect(cid).get(cid)
    if operation in ("pending_flow", "forget_pending_flow"):
        assert info is not None
        assert not info.pending_flow
    elif operation == "cancel_timers":
        assert info is not None
        assert info.timers == ()
    elif operation == "schedule_event":
        assert info is not None
        assert len(info.timers) == 2
    elif operation in ("unsubscribe", "remove_subscriptions_for_cid"):
        assert info is not None
        assert info.subscriptions == ()
    elif operation == "publish":
        assert run.recorder.names.count("said") == 4
    elif operation == "reset_state":
        assert run.registry.inspect() == {}
        assert run.recorder.of("c1")[-1].event.name == "call"
    elif operation == "install_dispatch":
        before = len(run.recorder.seen)
        run.schedule(0, cid="c3")
        run.settle()
        assert len(run.recorder.seen) == before


@guarantee("G3", "G1")
@pytest.mark.parametrize("operation", [*OPERATIONS, "stats", "inspect", "close"])
def test_no_operation_delivers_on_the_stack_of_its_caller(run: Driver, operation: str) -> None:
    """Fault: an operation that a handler calls first delivers what waits, so that a handler begins inside another."""
    begun: list[int] = []

    def call(cid: str, event: Event) -> None:
        before, mine = len(run.recorder.seen), threading.get_ident()
        if operation in OPERATIONS:
            OPERATIONS[operation](run.registry, "c1")
        else:
            getattr(run.registry, operation)()
        begun.append(sum(seen.thread == mine for seen in run.recorder.seen[before:]))

    run.recorder.on("call", call)
    run.subscribe("t", cid="c2")
    with run.held("c1", "c2"):
        run.schedule(0, "call", cid="c1")
        for cid in ("c1", "c2"):
            run.schedule(0, cid=cid)
        run.registry.publish("t", "message")
    assert run.registry.settle(PATIENCE)
    assert begun == [0]


class Step(NamedTuple):
    """One operation: the preparation, the call, and the check once it has taken effect."""

    prepare: Callable[[Driver, str], object]
    call: Callable[[Driver, str], Any]
    check: Callable[[Driver, str, Any], bool]


def _timers(run: Driver, key: str) -> int:
    info = run.registry.inspect(key).get(key)
    return 0 if info is None else len(info.timers)


def _subscribed(run: Driver, key: str) -> bool:
    return (key, "main") in run.registry.subscriptions().get(key, {})


def _nothing(run: Driver, key: str) -> None:
    """Prepare nothing."""


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
    # A deferred call may have found nothing. Then the baton must still be there, because it is never lost.
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
INNER: dict[str, Step] = {
    **STEPS,
    "inspect": Step(
        _two_timers,
        lambda run, key: (run.registry.stats(), run.registry.inspect(key)),
        lambda run, key, result: len(result[1][key].timers) == 2,
    ),
}
"""What interrupts: the operations, and a look at what the registry shows of itself."""


@contextmanager
def telling(what: str, injector: Injector) -> Iterator[None]:
    """Add to an exception that leaves the block which operations ran, and at which line."""
    try:
        yield
    except Exception as exc:
        exc.add_note(f"{what} at {injector.fired}")
        raise


def _interrupted(run: Driver, outer: str, inner: str, at: int, outer_key: str, inner_key: str) -> tuple[Any, Any, str]:
    """Call `outer` and, at its line number `at`, `inner`. Return both results and the place, empty if not reached."""
    results: list[Any] = []
    injector = Injector(at, lambda: results.append(INNER[inner].call(run, inner_key)))
    with telling(f"{inner} inside {outer}", injector), tracing(injector):
        result = STEPS[outer].call(run, outer_key)
    return result, results[0] if results else None, injector.fired


@guarantee("G20")
@costly
@pytest.mark.parametrize("outer", list(STEPS))
def test_any_operation_may_interrupt_any_other_at_any_line(run: Driver, stube_effort: Effort, outer: str) -> None:
    """Case 14c. Fault: a lock is not re-entrant; or it is, and a re-entrant call sees half a change.

    Each operation is called at the lines that the other executes, including library code that it calls.
    """
    run.schedule(HOUR, cid="bystander")
    run.subscribe("bystander", cid="bystander")
    lines = 0
    for number, inner in enumerate(INNER):
        for at in stube_effort.lines(number):
            outer_key, inner_key = f"outer {inner} {at}", f"inner {inner} {at}"
            STEPS[outer].prepare(run, outer_key)
            INNER[inner].prepare(run, inner_key)
            outer_result, inner_result, place = _interrupted(run, outer, inner, at, outer_key, inner_key)
            if not place:
                STEPS[outer].check(run, outer_key, outer_result)
                break
            told = f"{inner} inside {outer} at {place}"
            if inner != "reset_state" and (inner, outer) != ("install_dispatch", "install_dispatch"):
                assert STEPS[outer].check(run, outer_key, outer_result) or inner == "install_dispatch", told
            if outer not in ("reset_state", "install_dispatch") or inner == "reset_state":
                assert INNER[inner].check(run, inner_key, inner_result), told
            for key in (outer_key, inner_key):
                run.registry.cancel_timers(key)
                run.registry.remove_subscriptions_for_cid(key)
                run.registry.forget_pending_flow(key)
            run.recorder.clear()
            run.registry.install_dispatch(run.recorder)
            stats = check_ledger(run.registry)
            assert stats.timers == sum(len(info.timers) for info in run.registry.inspect().values()), told
            lines += 1
    assert lines >= len(STEPS), "hardly a line of the backend was traced"
    run.registry.reset_state()
    run.settle()
    assert run.registry.inspect() == {}


@guarantee("G20")
@costly
@pytest.mark.parametrize("outer", list(STEPS))
def test_an_operation_may_interrupt_another_on_the_same_names(run: Driver, stube_effort: Effort, outer: str) -> None:
    """Case 14c. Fault: the interrupted operation continues with an entry that the re-entrant call has removed.

    Either operation may take effect last, so the test only checks that nothing breaks and the ledger counts every fate.
    """
    topics = ("c", "shared")
    for number, inner in enumerate(INNER):
        for at in stube_effort.lines(number):
            for step in (outer, inner):
                INNER[step].prepare(run, "c")
            injector = Injector(at, partial(INNER[inner].call, run, "c"))
            _handles["c"] = _Twice(_handles["c"]) if "c" in _handles else None
            with telling(f"{inner} inside {outer}", injector):
                with tracing(injector):
                    STEPS[outer].call(run, "c")
                _handles.clear()
                told = f"{inner} inside {outer} at {injector.fired}"
                assert run.registry.settle(5), told
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


@guarantee("G20")
@costly
@pytest.mark.parametrize("outer", ["schedule_event", "publish", "cancel_timers", "remove_subscriptions_for_cid"])
def test_an_operation_may_be_interrupted_twice(run: Driver, stube_effort: Effort, outer: str) -> None:
    """Fault: the interrupted operation makes up for the first call, and a second interruption meets it in the middle:
    a deferred call is run twice, or lost, or the list of them changes while it is walked through."""
    run.subscribe("t", cid="bystander")

    def add(key: str) -> None:
        run.schedule(HOUR, cid=key)
        run.subscribe(key, cid=key)

    for apart in (1, 2, 3, 5, 8, 13, 21, 34):
        for at in stube_effort.lines(apart):
            first, second = f"first {apart} {at}", f"second {apart} {at}"
            STEPS[outer].prepare(run, "outer")
            injector = Injector(at, partial(add, first), then=(at + apart, partial(add, second)))
            with telling(f"two calls inside {outer}", injector), tracing(injector):
                STEPS[outer].call(run, "outer")
            if not injector.fired:
                break
            told = f"two calls inside {outer} at {' and '.join(injector.places)}"
            for key in (first, second)[: len(injector.places)]:
                assert (_timers(run, key), _subscribed(run, key)) == (1, True), told
                assert run.registry.cancel_timers(key) == 1, told
                assert run.registry.remove_subscriptions_for_cid(key) == 1, told
            run.registry.cancel_timers("outer")
            run.registry.remove_subscriptions_for_cid("outer")
            run.settle()
            check_ledger(run.registry)
            assert list(run.registry.inspect()) == ["bystander"], told


@guarantee("G20", "G10")
@costly
def test_an_operation_at_any_line_of_the_delivery_thread_takes_effect(make_run: MakeRun) -> None:
    """Fault: a finalizer that runs on the delivery thread, between two lines of its loop, publishes a message, and
    the thread goes to sleep without delivering it."""
    for at in range(10_000):
        run = make_run()
        run.subscribe("t", cid="c1")

        def publish(run: Driver = run) -> None:
            with suppress(RegistryClosed):  # raised at the last lines, which close the registry
                run.registry.publish("t", "message")

        injector = Injector(at, publish, library=False)
        threading.settrace(injector)  # for a thread that the backend starts; without one, this thread delivers
        try:
            run.schedule(0)
            with tracing(injector):
                run.settle()
        finally:
            threading.settrace(None)
        if not injector.fired:
            return
        run.settle()
        run.recorder.wait_for(2)  # the delivery thread runs deferred calls before it sleeps
        assert run.recorder.payloads.count("message") == 1, injector.fired
        assert run.registry.close(PATIENCE), injector.fired
    pytest.fail("the delivery loop executes more than 10,000 lines")


@guarantee("G20", "G22")
@pytest.mark.parametrize("outer", ["put_pending_flow", "subscribe", "publish", "cancel_timers"])
def test_reentrant_schedule_on_a_full_registry_is_accounted_for(make_run: MakeRun, outer: str) -> None:
    """Fault: a deferred schedule returns a handle, finds no room when it runs, and the timer is lost."""
    for at in range(10_000):
        run = make_run(max_pending=1)
        run.schedule(HOUR, cid="full")
        handed_out: list[TimerHandle] = []

        def schedule(run: Driver = run, handed_out: list[TimerHandle] = handed_out) -> None:
            with suppress(RegistryFull):
                handed_out.append(run.schedule(HOUR, cid="c2"))

        injector = Injector(at, schedule)
        with tracing(injector):
            OPERATIONS[outer](run.registry, "c1")
        if not injector.fired:
            return
        stats = check_ledger(run.registry)
        assert stats.accepted == 1 + len(handed_out), injector.fired
        assert stats.timers == 1, injector.fired
    pytest.fail("the operation executes more than 10,000 lines")


@guarantee("G20", "G22")
def test_a_reentrant_schedule_takes_no_room_of_the_interrupted_one(make_run: MakeRun) -> None:
    """Fault: the interrupted schedule has seen that there is room, the re-entrant one takes it, and both are accepted.

    Both want the room for one more timer.
    """
    for at in range(10_000):
        run = make_run(max_pending=2)
        run.schedule(HOUR, cid="full")
        handed_out: list[TimerHandle] = []

        def schedule(cid: str, run: Driver = run, handed_out: list[TimerHandle] = handed_out) -> None:
            with suppress(RegistryFull):
                handed_out.append(run.schedule(HOUR, cid=cid))

        injector = Injector(at, partial(schedule, "inner"))
        with tracing(injector):
            schedule("outer")
        if not injector.fired:
            return
        stats = check_ledger(run.registry)
        # A deferred schedule that finds no room cannot raise any more, so its timer is dropped.
        assert (stats.timers, stats.accepted) == (2, 1 + len(handed_out)), injector.fired
    pytest.fail("the operation executes more than 10,000 lines")


@guarantee("G20", "G8")
@pytest.mark.parametrize("outer", ["put_pending_flow", "schedule_event", "publish"])
def test_a_reentrant_call_takes_or_leaves_the_baton(make_run: MakeRun, outer: str) -> None:
    """Fault: a re-entrant `pending_flow` that was deferred takes the baton when nobody gets its result any more."""
    for at in range(10_000):
        run = make_run()
        taken: list[object] = []

        def take(run: Driver = run, taken: list[object] = taken) -> None:
            run.registry.put_pending_flow("inner", "flow")
            taken.append(run.registry.pending_flow("inner"))

        injector = Injector(at, take)
        with tracing(injector):
            OPERATIONS[outer](run.registry, "outer")
        if not injector.fired:
            return
        taken.append(run.registry.pending_flow("inner"))
        with blaming("G8"):
            assert sorted(map(str, taken)) == ["None", "flow"], injector.fired
    pytest.fail("the operation executes more than 10,000 lines")


@guarantee("G20")
def test_reentrant_calls_in_the_first_operation_keep_their_order(make_run: MakeRun) -> None:
    """Fault: a re-entrant publish finds no subscriber, because the subscribe before it is a deferred call as well."""
    for at in range(10_000):
        run = make_run()

        def both(run: Driver = run) -> None:
            run.subscribe("t", cid="c1")
            run.registry.publish("t", "message")

        injector = Injector(at, both)
        with tracing(injector):
            run.subscribe("other", cid="c2")
        if not injector.fired:
            return
        run.settle()
        assert run.recorder.payloads == ["message"], injector.fired
    pytest.fail("the operation executes more than 10,000 lines")


class _Twice:
    """A handle that two operations of one test share: `pop` must find it both times."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def cancel(self) -> bool:
        _handles["c"] = self
        return bool(self._handle.cancel())


_INNER = ["schedule_event", "publish", "cancel_timers", "reset_state"]


@guarantee("G20", "G23")
@costly
@pytest.mark.parametrize("outer", ["schedule_event", "subscribe", "publish", "put_pending_flow"])
@pytest.mark.parametrize("inner", _INNER)
def test_the_first_operation_may_be_interrupted(
    make_run: MakeRun, stube_effort: Effort, outer: str, inner: str
) -> None:
    """Case 14c. Fault: two scheduler threads are started, or none, when the first operation is interrupted.

    The deadline is 3 s for what takes a millisecond, because a deadlocked registry would never deliver.
    """
    for at in stube_effort.lines(_INNER.index(inner)):
        run = make_run()
        STEPS[outer].prepare(run, "outer")  # a publication without a subscriber would start nothing
        _, _, place = _interrupted(run, outer, inner, at, "outer", "inner")
        run.schedule(0, "after", cid="after")
        assert run.registry.settle(3), f"does not deliver after {inner} inside {outer} at {place}"
        assert [seen.event.name for seen in run.recorder.of("after")] == ["after"], place
        check_ledger(run.registry)
        assert run.registry.close(3), f"does not close after {inner} inside {outer} at {place}"
        if not place:
            break


def _work(run: Driver, number: int) -> None:
    """Call most operations, so that a finalizer or a signal can interrupt any of them."""
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
    """Check that the registry is consistent after interrupted operations, and still delivers."""
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
def test_the_collector_may_run_a_finalizer_in_any_operation(run: Driver) -> None:
    """Case 14c. Fault: the registry allocates under a lock that is not re-entrant, where a collection may start."""
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
        for number in range(1000):
            Cycle(names[number % len(names)], f"c{number % 5}")
            _work(run, number)
            if run.clock is not None and number % 50 == 0:
                run.clock.advance(1)
    finally:
        gc.set_threshold(*threshold)
    run.settle()  # while another thread collects, the next line does nothing
    gc.collect()
    assert failures == []
    assert called == 1000
    _whole(run)


@guarantee("G20")
@costly
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_a_signal_handler_may_call_every_operation(run: Driver) -> None:
    """Case 14c. Fault: a lock is not re-entrant. Signals arrive at random moments of one second of work."""
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
