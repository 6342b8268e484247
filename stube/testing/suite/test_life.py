"""A registry's life: started lazily, closed promptly, collected when unreferenced, left open at exit (G23, G24)."""

from __future__ import annotations

import _thread
import gc
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import Queue
from typing import Any

import pytest

from stube import Backend, Event, RegistryClosed, Stats
from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Effort,
    Injector,
    blaming,
    create,
    join_or_standstill,
    live_threads,
    monotonic,
    run_script,
    run_threads,
    tracing,
)
from stube.testing.plugin import MakeRegistry
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, costly, guarantee, threads_ended, unchanged

# Starting.


@guarantee("G23")
def test_importing_and_creating_start_nothing(stube_backend: Any, stube_options: Mapping[str, Any]) -> None:
    """Fault: an import or the constructor starts a thread or a loop, or opens a connection."""
    printed = run_script(
        stube_backend,
        stube_options,
        """
files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
registries = [make() for _ in range(50)]
assert len(live_threads()) == 1, live_threads()
for registry in registries:
    registry.install_dispatch(lambda cid, event: None)
    assert registry.stats() == stube.Stats() and registry.subscriptions() == {} and registry.inspect() == {}
assert len(live_threads()) == 1, live_threads()
assert files == 0 or len(os.listdir("/proc/self/fd")) == files
print("lazy")
""",
    )
    assert printed == "lazy\n"


@guarantee("G23", "G15")
@pytest.mark.parametrize("started", [0, 1])
@pytest.mark.parametrize("operation", ["schedule_event", "publish", "subscribe", "put_pending_flow"])
def test_an_operation_that_cannot_start_a_thread_changes_nothing(
    registry: Backend, operation: str, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 27b. Fault: the timer is stored before the thread is started, so a failed call leaves it behind.

    The first thread cannot be started, or the second. A backend that needs none for the operation simply performs it.
    """
    seen: list[Event] = []
    registry.install_dispatch(lambda cid, event: seen.append(event))
    subscribed = 0
    if operation == "publish":
        registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
        subscribed = 1
    refused = begun = 0

    def refuse(real: Callable[..., object], *args: object, **kwargs: object) -> object:
        nonlocal refused, begun
        if begun < started:
            begun += 1
            return real(*args, **kwargs)
        refused += 1
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        for module in (threading, _thread):
            for name in ("_start_new_thread", "_start_joinable_thread", "start_new_thread", "start_joinable_thread"):
                if hasattr(module, name):
                    patch.setattr(module, name, partial(refuse, getattr(module, name)))
        raised = False
        try:
            if operation == "schedule_event":
                registry.schedule_event(cid="c1", instance_id="main", delay_ms=HOUR, event="tick")
            else:
                OPERATIONS[operation](registry, "c1")
        except RuntimeError:
            raised = True
        stats = registry.stats()
    if not refused:
        return
    assert raised
    assert stats == Stats(subscriptions=subscribed)
    assert set(registry.inspect()) == ({"c1"} if subscribed else set())
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert registry.settle(PATIENCE)
    assert [event.name for event in seen] == ["tick"]
    assert registry.stats() == Stats(accepted=1, delivered=1, subscriptions=subscribed)


# Closing.


@guarantee("G23", "G7")
@costly
@requires(REAL_TIME)  # on a virtual clock there is no thread
@pytest.mark.parametrize("operation", ["schedule_event", "publish"])
def test_the_first_operations_of_two_threads_start_one_thread(
    make_run: MakeRun, stube_effort: Effort, operation: str
) -> None:
    """Fault: whether there is a thread is asked without a lock, so that two callers at the same time start two: then
    deliveries run at the same time, or one of the threads never ends. The second caller comes at each line of the
    first one's operation."""
    before = len(live_threads())
    alone = make_run()
    alone.schedule(0)
    alone.settle()
    enough = len(live_threads())
    assert alone.registry.close(PATIENCE)
    assert threads_ended(before), live_threads()
    at = 0
    for at in stube_effort.lines(["schedule_event", "publish"].index(operation)):
        run = make_run()
        run.subscribe("t")
        others: list[threading.Thread] = []

        def come_in(run: Driver = run, others: list[threading.Thread] = others) -> None:
            others.append(threading.Thread(target=run.schedule, args=(0, "second"), daemon=True))
            others[0].start()
            join_or_standstill(others[0])

        injector = Injector(at, come_in, library=False)
        with tracing(injector):
            run.schedule(0, "first") if operation == "schedule_event" else run.registry.publish("t", "first")
        for other in others:
            other.join(PATIENCE)
        run.settle()
        assert len(run.recorder.seen) == 1 + len(others), injector.fired
        assert threads_ended(enough), f"the second at {injector.fired}: {live_threads()}"
        assert run.registry.close(PATIENCE), injector.fired
        assert threads_ended(before), f"the second at {injector.fired}: {live_threads()}"
        if not injector.fired:
            break
    assert at > 0, "no line of the backend was traced"


@guarantee("G24")
def test_close_drops_what_has_not_begun_and_is_idempotent(run: Driver) -> None:
    """Fault: `close` waits for the timers, delivers the rest, does not count it as dropped, or fails when repeated."""
    run.registry.put_pending_flow("c1", "flow")
    run.subscribe("t")
    for _ in range(3):
        run.schedule(HOUR)
    run.schedule(0, "early")
    run.settle()
    start = monotonic()
    assert run.registry.close() is True
    assert monotonic() - start < 5
    assert run.registry.close() is True
    assert run.registry.close(timeout=0) is True
    assert run.registry.close(None) is True
    assert run.recorder.names == ["early"]
    assert run.registry.stats() == Stats(accepted=4, delivered=1, dropped=3)


@guarantee("G24")
@requires(REAL_TIME)  # on a virtual clock nothing becomes due by itself
def test_close_does_not_wait_for_what_is_soon_due(make_run: MakeRun) -> None:
    """Fault: `close` waits within its timeout for timers that are nearly due, and delivers them.

    Real time: the timers are due in 0.4 s; in the best of three rounds the close must return within 0.2 s.
    """
    taken = []
    for _ in range(3):
        run = make_run()
        run.subscribe("t")
        for _ in range(3):
            run.schedule(400, "soon")
        start = monotonic()
        assert run.registry.close(PATIENCE) is True
        taken.append(monotonic() - start)
        threading.Event().wait(0.01)
        assert run.recorder.names == []
        assert run.registry.stats() == Stats(accepted=3, dropped=3)
        if taken[-1] < 0.2:
            return
    pytest.fail(f"close() took {min(taken):.2f} s, although nothing ran")


@guarantee("G24")
def test_a_closed_registry_refuses_adding_and_allows_removing(run: Driver) -> None:
    """Fault: clean-up code fails after the close, or an event is accepted that will never be delivered."""
    handle = run.schedule(HOUR)
    run.registry.put_pending_flow("c1", "flow")
    run.subscribe("t")
    run.registry.close()
    adding: list[Callable[[], object]] = [
        lambda: run.registry.install_dispatch(run.recorder),
        lambda: run.registry.put_pending_flow("c1", "flow"),
        lambda: run.schedule(0),
        lambda: run.subscribe("t"),
        lambda: run.registry.publish("t", 1),
        lambda: run.registry.publish("nobody", 1),
    ]
    for add in adding:
        with pytest.raises(RegistryClosed):
            add()
    assert handle.cancel() is False
    assert run.registry.pending_flow("c1") is None
    assert run.registry.forget_pending_flow("c1") is False
    assert run.registry.cancel_timers("c1") == 0
    assert run.registry.unsubscribe(cid="c1", instance_id="main") == 0
    assert run.registry.remove_subscriptions_for_cid("c1") == 0
    assert run.registry.subscriptions() == {}
    assert run.registry.inspect() == {}
    run.registry.reset_state()
    stats = run.registry.stats()
    assert (stats.timers, stats.queued, stats.subscriptions, stats.pending_flows) == (0, 0, 0, 0)
    assert stats.balanced
    assert run.registry.settle(0) is True
    assert run.registry.join(0) is True


@guarantee("G24")
def test_a_with_block_closes_the_registry(make_registry: MakeRegistry) -> None:
    """Fault: leaving the block waits, keeps the registry open, or swallows the block's own exception."""
    with pytest.raises(LookupError), make_registry() as registry:
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=HOUR, event="tick")
        raise LookupError
    with pytest.raises(RegistryClosed):
        registry.put_pending_flow("c1", 1)
    assert registry.stats() == Stats(accepted=1, dropped=1)


@guarantee("G24")
def test_a_registry_that_was_never_used_can_be_closed(make_registry: MakeRegistry) -> None:
    """Fault: a thread that was never started is joined."""
    registry = make_registry()
    assert registry.close() is True
    assert registry.stats() == Stats()


@guarantee("G24", "G6")
@requires(REAL_TIME)  # on a virtual clock the caller itself delivers, and `close` cannot stop it
def test_close_waits_for_a_running_delivery_within_its_timeout(run: Driver) -> None:
    """Fault: `close` exceeds its timeout, returns True while a handler runs, or delivers what is queued behind it.

    Real time: the timeout is 0.2 s, and 5 s are allowed, because only an endless wait shall fail.
    """
    run.subscribe("t")
    with run.held("c1"):
        run.schedule(0, "victim")
        run.registry.publish("t", 1)
        start = monotonic()
        assert run.registry.close(timeout=0.2) is False
        assert 0.19 <= monotonic() - start < 5
        assert run.registry.close(timeout=0) is False
        assert run.registry.settle(0) is False, "a closed registry counts as idle while a delivery runs"
        assert run.registry.stats().running == 1
        with pytest.raises(RegistryClosed):
            run.schedule(0)
    assert run.registry.close(PATIENCE) is True
    assert run.recorder.seen == []
    stats = run.registry.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (3, 1, 2)


@guarantee("G24", "G21")
@requires(REAL_TIME)  # on a virtual clock the caller itself delivers
def test_a_closed_registry_is_not_idle_while_a_delivery_runs(run: Driver) -> None:
    """Fault: nothing is pending in a closed registry, so `settle` does not ask whether a delivery runs. It is one of a
    message that has another target."""
    gate = run.recorder.gate()
    run.recorder.on("said", lambda cid, event: gate.pass_through())
    for instance_id in ("i1", "i2"):
        run.subscribe("t", instance_id=instance_id)
    run.registry.publish("t", 1)
    with run.delivering():
        gate.wait_entered()
        assert run.registry.close(0) is False
        for wait in (run.registry.settle, run.registry.join):
            assert wait(0) is False
        assert run.registry.stats().running == 1
    assert run.registry.close(PATIENCE) is True
    assert run.registry.settle(0) is True


@guarantee("G24")
def test_a_later_thread_may_have_the_number_of_the_ended_delivery_thread(run: Driver) -> None:
    """Fault: a closed registry remembers the number of its delivery thread. The system gives it to a later thread,
    whose `settle` raises, and whose `close` does not wait."""
    numbers: list[int] = []
    found: list[bool] = []
    run.recorder.on("tick", lambda cid, event: numbers.append(threading.get_ident()))
    run.schedule(0)
    run.settle()
    assert run.registry.close(PATIENCE)

    def wait() -> None:
        if threading.get_ident() == numbers[0]:
            found.extend([run.registry.settle(1), run.registry.join(1), run.registry.close(1)])

    for _ in range(50):
        later = threading.Thread(target=wait)
        later.start()
        later.join(PATIENCE)
        if found:
            break
    assert found in ([], [True, True, True])


@guarantee("G24", "G20")
def test_close_inside_a_delivery_does_not_wait_for_itself(run: Driver) -> None:
    """Case 27. Fault: the handler that closes the registry waits for its own end."""
    log: list[str] = []

    def close(cid: str, event: Event) -> None:
        start = monotonic()
        run.registry.close(PATIENCE)
        run.registry.close(PATIENCE)
        assert monotonic() - start < PATIENCE / 2
        with pytest.raises(RegistryClosed):
            run.schedule(0)
        log.append("finished")

    run.recorder.on("close", close)
    with run.held("c1"):
        run.schedule(0, "close")
        run.schedule(0, "victim")
        run.schedule(HOUR, "victim", cid="c2")
    assert run.registry.settle(PATIENCE)
    assert run.registry.close(PATIENCE) is True
    assert log == ["finished"]
    assert run.recorder.names == ["close"]
    stats = run.registry.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (4, 2, 2)


@guarantee("G24", "G7")
def test_a_schedule_racing_with_close_is_counted_or_raises(make_run: MakeRun) -> None:
    """Case 27. Fault: a registry that has already dropped its timers accepts another one."""
    for round_number in range(20):
        run = make_run()
        accepted = [0, 0, 0]
        refused = [False, False, False]
        going = threading.Event()

        def schedule(
            slot: int, run: Driver = run, accepted: list[int] = accepted, refused: list[bool] = refused,
            going: threading.Event = going,
        ) -> None:  # fmt: skip
            try:
                for number in range(100_000):
                    run.schedule(number % 2, cid=f"c{slot}")
                    accepted[slot] += 1
                    if number == 20:
                        going.set()
            except RegistryClosed:
                refused[slot] = True

        def close(run: Driver = run, going: threading.Event = going) -> None:
            assert going.wait(PATIENCE)
            assert run.registry.close(PATIENCE)

        run_threads(*(lambda slot=slot, s=schedule: s(slot) for slot in range(3)), close, close)
        assert refused == [True] * 3, f"round {round_number}"
        stats = run.registry.stats()
        assert stats.accepted == sum(accepted)
        assert stats.accepted == stats.delivered + stats.dropped
        assert stats.delivered == len(run.recorder.seen)


@guarantee("G24", "G7", "G15")
@costly
@pytest.mark.parametrize("operation", ["schedule_event", "publish", "subscribe", "put_pending_flow"])
def test_a_close_at_any_line_of_an_adding_operation_is_atomic(make_run: MakeRun, operation: str) -> None:
    """Case 27. Fault: the operation checks for the close only before it takes the lock, and so adds after the close.

    At each line that the operation executes, another thread closes the registry. If `close` has to wait for a lock, the
    operation continues first.
    """
    for at in range(10_000):
        run = make_run()
        run.subscribe("t", cid="c1")
        closer = threading.Thread(target=run.registry.close, daemon=True)

        def come_in(thread: threading.Thread = closer) -> None:
            thread.start()
            join_or_standstill(thread)

        injector = Injector(at, come_in)
        try:
            with tracing(injector):
                OPERATIONS[operation](run.registry, "c2")
        except RegistryClosed:
            pass
        if not injector.fired:
            break
        closer.join(PATIENCE)
        assert not closer.is_alive(), injector.fired
        stats = run.registry.stats()
        assert stats.balanced, f"{injector.fired}: {stats.equation}"
        assert (stats.timers, stats.queued, stats.subscriptions, stats.pending_flows) == (0, 0, 0, 0), injector.fired
        assert run.registry.inspect() == {}, injector.fired
        assert run.registry.subscriptions() == {}, injector.fired


@guarantee("G24", "G5", "G21")
@costly
@requires(REAL_TIME)  # on a virtual clock the caller itself delivers
@pytest.mark.parametrize("how", ["close", "reset_state", "cancel_timers"])
def test_another_thread_comes_in_at_any_line_of_the_delivery_thread(
    make_run: MakeRun, stube_effort: Effort, how: str
) -> None:
    """Fault: a close between the last delivery and the sleep ends the delivery thread, while somebody waits in `settle`
    and is woken by nobody; or a timer is cancelled between the look that finds it due and its delivery, which begins.

    A delivery thread that is only woken, such as that of an event loop, cannot be halted here.
    """
    at = 0
    for at in stube_effort.lines(["close", "reset_state", "cancel_timers"].index(how)):
        run = make_run()
        removed: list[int] = []
        came: Queue[threading.Thread] = Queue()

        def come_in(run: Driver = run, removed: list[int] = removed, came: Queue[threading.Thread] = came) -> None:
            def end() -> None:
                if how == "cancel_timers":
                    removed.append(run.registry.cancel_timers("c1"))
                else:
                    run.registry.close(0) if how == "close" else run.registry.reset_state()

            other = threading.Thread(target=end, daemon=True)
            other.start()
            join_or_standstill(other)
            came.put(other)

        injector = Injector(at, come_in, library=False)
        threading.settrace(injector)  # for a thread that the backend starts
        try:
            with suppress(RegistryClosed):  # the delivery thread starts before the timer is accepted
                run.schedule(0)
            start = monotonic()
            # Who is not woken may find at the end of its timeout that there is nothing to wait for.
            woken = run.registry.settle(PATIENCE) and monotonic() - start < PATIENCE / 2
        finally:
            threading.settrace(None)
        if not injector.fired:
            break
        with blaming("G21", "G24"):
            assert woken, f"who waits is not woken after {how} at {injector.fired}"
        came.get(timeout=PATIENCE).join(PATIENCE)
        stats = run.stats()
        assert stats.delivered == len(run.recorder.seen), f"{how} at {injector.fired}"
        assert sum(removed) == stats.cancelled, f"{how} at {injector.fired}"
        assert run.registry.close(PATIENCE), f"{how} at {injector.fired}"


@guarantee("G24", "G15")
def test_operations_do_not_change_a_closed_registry(run: Driver) -> None:
    """Fault: an operation on a closed registry starts its thread again, or counts something."""
    run.schedule(HOUR)
    run.registry.close()
    before = len(live_threads())
    with unchanged(run.registry):
        for operation in OPERATIONS.values():
            try:
                operation(run.registry, "c1")
            except RegistryClosed:
                pass
    assert len(live_threads()) == before


@guarantee("G24", "G13")
def test_close_ends_the_threads(make_run: MakeRun) -> None:
    """Fault: the delivery thread stays alive after the close, asleep or polling."""
    before = len(live_threads())
    runs = [make_run() for _ in range(5)]
    for run in runs:
        run.schedule(0)
        run.schedule(HOUR)
        run.settle()
    for run in runs:
        assert run.registry.close(PATIENCE)
    assert len(live_threads()) == before


@guarantee("G13")
@requires("by_reference")
def test_an_unreferenced_registry_with_nothing_pending_is_collected(
    stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: the delivery thread, an `atexit` hook or a fork hook keeps a reference to the registry."""
    before = len(live_threads())
    watched: list[weakref.ref[Backend]] = []
    for _ in range(3):
        registry = create(stube_backend, **stube_options)
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
        registry.publish("t", 1)
        assert registry.settle(PATIENCE)
        registry.unsubscribe(cid="c1", instance_id="main")
        registry.cancel_timers("c1")
        watched.append(weakref.ref(registry))
        del registry
    _wait_until_gone(watched, before)


@guarantee("G13")
@requires("by_reference")
@pytest.mark.parametrize("how", ["cancelled", "reset"])
def test_a_sleeping_registry_is_collected_once_its_timers_are_gone(
    stube_backend: Any, stube_options: Mapping[str, Any], how: str
) -> None:
    """Fault: the delivery thread sleeps until the removed timer's instant, and keeps the registry alive until then."""
    before = len(live_threads())
    driver = Driver(create(stube_backend, **stube_options))
    driver.schedule(HOUR)
    driver.pass_time(50)  # real time, because no event says that a thread has gone to sleep
    if how == "cancelled":
        driver.registry.cancel_timers("c1")
    else:
        driver.registry.reset_state()
    watched = [weakref.ref(driver.registry)]
    del driver
    _wait_until_gone(watched, before)


def _wait_until_gone(watched: list[weakref.ref[Backend]], before: int) -> None:
    deadline = monotonic() + PATIENCE
    pause = threading.Event()
    while True:
        gc.collect()
        if not any(reference() for reference in watched) and len(live_threads()) == before:
            break
        assert monotonic() < deadline, f"alive: {watched}, threads: {live_threads()}"
        pause.wait(0.005)  # a test has no event to wait for the end of a backend's thread


@guarantee("G13")
@requires(REAL_TIME)  # an unreferenced virtual registry has no caller that moves its clock
def test_an_unreferenced_registry_still_delivers_its_timers(
    stube_backend: Any, stube_options: Mapping[str, Any], make_registry: MakeRegistry
) -> None:
    """Fault: a registry without references is collected together with the timers that it has accepted."""
    del make_registry  # requested only to check the capabilities; it would keep a reference to a registry that it makes
    arrived = threading.Event()
    registry = create(stube_backend, **stube_options)
    registry.install_dispatch(lambda cid, event: arrived.set())
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=30, event="tick")
    del registry
    gc.collect()
    assert arrived.wait(PATIENCE)


@guarantee("G24", "G13")
def test_close_inside_a_delivery_ends_the_threads(make_run: MakeRun) -> None:
    """Fault: the delivery thread lives on after a delivery has closed the registry, until somebody closes it again."""
    before = len(live_threads())
    runs = [make_run() for _ in range(5)]
    for run in runs:
        run.recorder.on("close", partial(_close, run.registry))
        run.schedule(HOUR)
        run.schedule(0, "close")
        assert run.registry.settle(PATIENCE)
    assert threads_ended(before), f"still alive: {live_threads()}"
    assert all(run.registry.stats().timers == 0 for run in runs)


def _close(registry: Backend, cid: str, event: Event) -> None:
    registry.close(PATIENCE)


# The end of the program.

_EXITS = {
    "an idle registry": "registry.schedule_event(cid='c', instance_id='i', delay_ms=0, event='e')",
    "a pending timer": "registry.schedule_event(cid='c', instance_id='i', delay_ms=3_600_000, event='e')",
    "many due timers": """
for number in range(2000):
    registry.schedule_event(cid=f'c{number}', instance_id='i', delay_ms=number % 3, event='e')
""",
    "a baton and a subscription": """
registry.put_pending_flow('c', 1)
registry.subscribe(cid='c', instance_id='i', topic='t', event='e')
registry.publish('t', 1)
""",
    "a running delivery": """
entered = threading.Event()
registry.install_dispatch(lambda cid, event: (entered.set(), threading.Event().wait()))
registry.schedule_event(cid='c', instance_id='i', delay_ms=0, event='e')
if 'virtual_time' in registry.capabilities:
    threading.Thread(target=registry.settle, daemon=True).start()
assert entered.wait(PATIENCE)
""",
    "twelve registries with a running delivery": """
entered = [threading.Event() for _ in range(12)]
registries = [make_apart() for _ in entered]
for registry, event in zip(registries, entered):
    registry.install_dispatch(lambda cid, _, event=event: (event.set(), threading.Event().wait()))
    registry.schedule_event(cid='c', instance_id='i', delay_ms=0, event='e')
    if 'virtual_time' in registry.capabilities:
        threading.Thread(target=registry.settle, daemon=True).start()
assert all(event.wait(PATIENCE) for event in entered)
""",
    "a handler that keeps scheduling": """
def dispatch(cid, event):
    try:
        registry.schedule_event(cid=cid, instance_id='i', delay_ms=0.01, event='e')
    except RuntimeError:
        pass
registry.install_dispatch(dispatch)
registry.schedule_event(cid='c', instance_id='i', delay_ms=0, event='e')
""",
    "an exception at the end": """
import atexit
atexit.register(lambda: (registry.cancel_timers('c'), registry.close()))
registry.schedule_event(cid='c', instance_id='i', delay_ms=3_600_000, event='e')
""",
    "a finalizer behind everything": """
entered = threading.Event()
registry.install_dispatch(lambda cid, event: (entered.set(), threading.Event().wait()))
for delay in (0, 3_600_000):
    registry.schedule_event(cid='c', instance_id='i', delay_ms=delay, event='e')
if 'virtual_time' in registry.capabilities:
    threading.Thread(target=registry.settle, daemon=True).start()
assert entered.wait(PATIENCE)
import atexit
atexit.register(lambda: (registry.cancel_timers('nobody'), registry.stats()))
class Last:
    def __del__(self, registry=registry):
        registry.cancel_timers('c')
        registry.forget_pending_flow('c')
        registry.stats()
sys.last_object = Last()
""",
    "an operation at exit": """
import atexit
registry.schedule_event(cid='c', instance_id='i', delay_ms=3_600_000, event='e')
class Last:
    def __del__(self):
        registry.cancel_timers('c')
        registry.forget_pending_flow('c')
sys.last_object = Last()
""",
}


@guarantee("G24")
@costly
@pytest.mark.parametrize("state", list(_EXITS))
def test_a_program_that_does_not_close_exits_promptly_and_silently(
    stube_backend: Any, stube_options: Mapping[str, Any], state: str
) -> None:
    """Fault: a thread that is not a daemon waits for its timers, or a daemon thread prints errors at shutdown.

    Real time: half a second is promised and five are allowed, because the machine may be busy.
    """
    printed = run_script(stube_backend, stube_options, "registry = make()\n" + _EXITS[state] + "\nfinish()\n")
    assert time.time() - float(printed) < 5
