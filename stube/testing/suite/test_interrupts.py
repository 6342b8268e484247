"""Ctrl-C in the middle of an operation: the operation breaks off, and the registry is consistent (G15, G20).

A signal handler that raises may do so between any two lines of an operation. Whether the operation has taken effect by
then is not promised. Promised is that everything the registry shows agrees, that no lock is held, and that every
delivery has one fate.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stube.testing._contract.capabilities import REAL_TIME, requires
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Effort,
    Injector,
    blame,
    blamed_by,
    check_ledger,
    live_threads,
    monotonic,
    passes_through,
    tracing,
)  # fmt: skip
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, costly, guarantee, threads_ended


class _Interrupt(KeyboardInterrupt):
    """Raised at one line; no other code raises it."""


def _raise() -> None:
    raise _Interrupt


@contextmanager
def _interrupted_by(injector: Injector) -> Iterator[None]:
    """Let the injector interrupt the block. The garbage collector does not run in it, because an interrupt in the
    destructor of another test's registry is not raised here."""
    gc.disable()
    try:
        with tracing(injector):
            yield
    except _Interrupt:
        pass
    finally:
        gc.enable()


@guarantee("G15", "G20")
@costly
@pytest.mark.parametrize("cid", ["c1", "new"])
@pytest.mark.parametrize("operation", [*OPERATIONS, "cancel"])
def test_an_interrupt_at_any_line_leaves_the_registry_consistent(
    make_run: MakeRun, stube_effort: Effort, operation: str, cid: str
) -> None:
    """Fault: an operation that Ctrl-C breaks off holds its lock, has changed one of two indexes, or has counted what it
    has not done. It concerns a conversation that has one of everything, or one that has nothing yet."""
    at = 0
    for at in stube_effort.lines(["c1", "new"].index(cid)):
        run = make_run()
        for other in ("c1", "c2"):
            run.registry.put_pending_flow(other, "flow")
            run.subscribe("t", cid=other)
            run.schedule(HOUR, cid=other)
        handle = run.schedule(HOUR, "by handle", cid="c1", instance_id="other")
        run.settle()
        injector = Injector(at, _raise, library=False, raises=True)
        with _interrupted_by(injector):
            handle.cancel() if operation == "cancel" else OPERATIONS[operation](run.registry, cid)
        if not injector.fired:
            break
        with _told(f"{operation} interrupted at {injector.fired}"):
            _check_consistent(run)
    assert at > 0, "no line of the backend was traced"


@guarantee("G15", "G20", "G23")
@costly
@pytest.mark.parametrize("operation", ["schedule_event", "publish", "put_pending_flow"])
def test_an_interrupt_at_any_line_of_the_first_operation_leaves_one_thread(make_run: MakeRun, operation: str) -> None:
    """Fault: Ctrl-C while the delivery thread is being started leaves none, although the registry believes in one; or
    one that nobody stops, and the next operation starts a second."""
    before = len(live_threads())
    for at in range(10_000):
        run = make_run()
        if operation == "publish":
            run.subscribe("t", cid="c1")
        injector = Injector(at, _raise, library=False, raises=True)
        with _interrupted_by(injector):
            OPERATIONS[operation](run.registry, "c1")
        if not injector.fired:
            break
        with _told(f"the first {operation} interrupted at {injector.fired}"):
            _check_consistent(run)
            assert threads_ended(before), live_threads()


@guarantee("G20", "G15")
@requires(REAL_TIME)  # on a virtual clock who waits delivers
@pytest.mark.parametrize("wait", ["settle", "join", "close"])
def test_ctrl_c_reaches_who_waits(run: Driver, wait: str) -> None:
    """Fault: a wait swallows KeyboardInterrupt, or goes on until its timeout."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signal handlers run in the main thread only")

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupt

    run.subscribe("t")
    previous = signal.signal(signal.SIGINT, interrupt)
    # To this very thread, because another one would not be woken out of its wait.
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    try:
        with run.held():
            timer.start()
            start = monotonic()
            with pytest.raises(_Interrupt):
                getattr(run.registry, wait)(PATIENCE)
            assert monotonic() - start < PATIENCE / 2
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    assert run.registry.settle(PATIENCE)
    assert check_ledger(run.registry).delivered == 1
    assert run.registry.close(PATIENCE)


@contextmanager
def _told(when: str) -> Iterator[None]:
    """Say of a failure in the block when it happened; a call that raises is one, too, whatever it raises."""
    try:
        yield
    except Exception as error:
        what = str(error) if isinstance(error, AssertionError) else f"then a call raised {error!r}"
        found, told = blamed_by(error), AssertionError(f"{when}: {what}")
        raise (told if found is None else blame(told, found)) from error


def _check_consistent(run: Driver) -> None:
    registry = run.registry
    assert passes_through(lambda: registry.put_pending_flow("c3", 1)), "a lock is held"
    registry.install_dispatch(run.recorder)
    run.settle()
    stats = check_ledger(registry)
    shown = registry.inspect()
    listed = [(cid, topic) for topic, found in registry.subscriptions().items() for cid, _ in found]
    assert stats.timers == sum(len(info.timers) for info in shown.values())
    assert stats.pending_flows == sum(info.pending_flow for info in shown.values())
    assert stats.subscriptions == len(listed) == sum(len(info.subscriptions) for info in shown.values())
    assert stats.delivered + stats.failed == len(run.recorder.seen)
    assert (stats.queued, stats.running) == (0, 0)
    assert not any(info.queued or info.running for info in shown.values())
    run.recorder.clear()
    for cid, info in shown.items():
        assert registry.cancel_timers(cid) == len(info.timers), cid
        assert registry.remove_subscriptions_for_cid(cid) == len(info.subscriptions), cid
        assert registry.forget_pending_flow(cid) == info.pending_flow, cid
    assert (registry.inspect(), registry.subscriptions()) == ({}, {})
    run.subscribe("t", cid="new")
    run.schedule(0, cid="new")
    assert registry.publish("t", "message") == 1
    run.settle()
    assert sorted(run.recorder.names) == ["said", "tick"]
    assert registry.close(PATIENCE)
