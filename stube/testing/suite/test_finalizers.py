"""Finalizers may call the registry, and no user code runs under one of its locks (G20)."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from stube import ConversationEnded, Event, RegistryFull
from stube.testing._contract.capabilities import requires
from stube.testing._harness import PATIENCE, Driver, check_ledger, passes_through
from stube.testing.suite._fixtures import HOUR, OPERATIONS, MakeRun, guarantee, logging_to


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


def _remove_subscriptions(run: Driver, payload: MakePayload) -> None:
    for topic in ("t", "u"):
        run.subscribe(topic, ("said", payload()), cid="victim")
    run.registry.remove_subscriptions_for_cid("victim")


def _reset(run: Driver, payload: MakePayload) -> None:
    run.registry.put_pending_flow("victim", payload())
    for _ in range(2):
        run.schedule(HOUR, ("tick", payload()), cid="victim")
    run.subscribe("t", ("said", payload()), cid="victim")
    run.registry.reset_state()


def _reset_a_baton(run: Driver, payload: MakePayload) -> None:
    run.registry.put_pending_flow("victim", payload())
    run.registry.reset_state()


class _Callable:
    """A dispatch that does nothing, and keeps a payload."""

    def __init__(self, payload: object) -> None:
        self.payload = payload

    def __call__(self, cid: str, event: Event) -> None:
        """Do nothing."""


def _replace_the_dispatch(run: Driver, payload: MakePayload) -> None:
    run.registry.install_dispatch(_Callable(payload()))
    run.registry.install_dispatch(run.recorder)


def _publish_without_subscribers(run: Driver, payload: MakePayload) -> None:
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
    _remove_subscriptions,
    _reset,
    _reset_a_baton,
    _replace_the_dispatch,
    _publish_without_subscribers,
    _deliver,
    _cancel_what_is_queued,
]
"""Every way in which the registry releases a payload."""


@guarantee("G20")
@requires("by_reference")
@pytest.mark.parametrize("how", ["__del__", "weakref.finalize"])
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.__name__.lstrip("_"))
def test_a_destructor_may_call_every_operation(
    run: Driver, release: Callable[[Driver, MakePayload], None], how: str
) -> None:
    """Case 14c. Fault: a payload is released under a lock, or while the container that held it is being changed."""
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

    for name in OPERATIONS:
        for cid in ("victim", "other"):

            def payload(name: str = name, cid: str = cid) -> object:
                if how == "__del__":
                    return Finalized(action_of(name, cid))
                carrier = _Carrier()
                weakref.finalize(carrier, action_of(name, cid))
                return carrier

            before = called
            # The last round's destructor may have installed another dispatch.
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
    """Fault: a payload is released under the lock: a destructor that waits for another thread deadlocks."""
    results: list[bool] = []
    let_go = threading.Event()

    def action() -> None:
        results.append(passes_through(lambda: (run.registry.stats(), run.registry.publish("t", 1))))
        let_go.set()

    release(run, lambda: Finalized(action))
    run.settle()
    gc.collect()
    assert let_go.wait(PATIENCE), "the payload was never released"
    assert all(results), "another thread did not get through while the destructor ran"


@guarantee("G20", "G19")
def test_dispatch_on_error_and_logging_never_run_under_a_lock(make_run: MakeRun) -> None:
    """Fault: one of them is called under the lock: a handler that waits for another thread deadlocks."""
    results: list[bool] = []

    def through() -> None:
        results.append(passes_through(lambda: (run.registry.stats(), run.schedule(HOUR, cid="c2"))))

    def emit(record: logging.LogRecord) -> None:
        through()

    def fail(cid: str, event: Event) -> None:
        through()
        raise LookupError(cid)

    run = make_run(on_error=lambda cid, event, exception: through())
    run.recorder.on("fail", fail)
    run.recorder.on("said", fail)
    run.subscribe("t", cid="c1")
    with logging_to(emit):
        run.schedule(0, "fail")
        run.registry.publish("t", 1)
        run.settle()
    assert results == [True] * 6


@guarantee("G20")
def test_whatever_is_logged_is_logged_without_a_lock(make_run: MakeRun) -> None:
    """Fault: something that happens seldom is logged under the lock: the end of a conversation in its delivery, a full
    registry, what a reset or a close drops, an `on_error` that fails."""
    results: list[tuple[str, bool]] = []

    def emit(record: logging.LogRecord) -> None:
        through = passes_through(lambda: (run.registry.stats(), run.registry.forget_pending_flow("nobody")))
        results.append((record.getMessage(), through))

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        raise LookupError("on_error fails")

    def fail(cid: str, event: Event) -> None:
        raise LookupError("the handler fails")

    def end(cid: str, event: Event) -> None:
        raise ConversationEnded("the conversation has ended")

    run = make_run(on_error=on_error, max_pending=3)
    run.recorder.on("fail", fail)
    run.recorder.on("end", end)
    with logging_to(emit, logging.DEBUG):
        for name in ("fail", "end"):
            run.schedule(0, name)
            run.settle()
        for end_of_it in (run.registry.reset_state, run.registry.close):
            run.subscribe("t")
            for _ in range(3):
                run.schedule(HOUR)
            for call in (lambda: run.schedule(HOUR), lambda: run.registry.publish("t", 1)):
                with pytest.raises(RegistryFull):
                    call()
            end_of_it()
    assert [message for message, through in results if not through] == []
    assert len(results) >= 2


@guarantee("G20", "G12")
@requires("own_clock")
def test_a_custom_clock_is_never_read_under_a_lock(make_run: MakeRun) -> None:
    """Fault: `clock` is user code. If it is called under a lock, a clock that calls the registry deadlocks."""
    asked: list[Driver] = []
    results: list[bool] = []
    nested = threading.local()

    def clock() -> int:
        if asked and not getattr(nested, "yes", False):
            nested.yes = True
            # Another thread must get through while this one is inside the clock.
            results.append(passes_through(asked[0].registry.stats))
            nested.yes = False
        return time.monotonic_ns()

    run = make_run(clock=clock)
    asked.append(run)
    for number in range(5):
        run.schedule(number)
        run.subscribe(cid=f"c{number}")
        run.registry.publish("t", number)
        run.registry.inspect()
    run.registry.join(PATIENCE)
    asked.clear()
    assert results
    assert all(results)
