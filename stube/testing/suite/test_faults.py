"""Faults: a delivery that raises stops no other, is counted, logged once and passed to `on_error` (G19)."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
from typing import Any

import pytest
from typing_extensions import override

from stube import ConversationEnded, Event, RegistryClosed, RegistryFull, Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import PATIENCE, Driver, settle_awaiting
from stube.testing.plugin import MakeRegistry
from stube.testing.suite._fixtures import HOUR, MakeRun, Untouchable, guarantee, logging_to


class Unusual(BaseException):
    """An exception that does not derive from `Exception`."""


class UnshownError(Exception):
    """An exception that cannot be shown."""

    @override
    def __str__(self) -> str:
        raise LookupError("this exception has no text")

    @override
    def __repr__(self) -> str:
        raise LookupError("this exception has no text")


_ERRORS = [
    *(LookupError, AssertionError, RegistryFull, RegistryClosed, UnshownError),
    *(Unusual, SystemExit, GeneratorExit, KeyboardInterrupt),
]


@guarantee("G19")
@pytest.mark.parametrize("cause", ["message", "timer"])
@pytest.mark.parametrize("error", _ERRORS)
def test_a_delivery_that_raises_stops_no_other(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, error: type[BaseException], cause: str
) -> None:
    """Case 23. Fault: `except Exception` around dispatch, or one `try` around the whole batch; an error of stube's own
    counts as the end of the conversation; or the text of the exception is asked for outside of every `try`."""
    errors: list[tuple[str, Event, BaseException]] = []
    run = make_run(on_error=lambda cid, event, exc: errors.append((cid, event, exc)))
    if error is KeyboardInterrupt and run.registry.capabilities & {"virtual_time", "coroutine_dispatch"}:
        # Where dispatch runs on the caller's own thread KeyboardInterrupt is raised again; that has its own tests.
        error = SystemExit

    raised: list[BaseException] = []

    def fail(cid: str, event: Event) -> None:
        if cid == "a":
            raised.append(error("the handler of a fails"))
            raise raised[0] from LookupError("its cause")

    run.recorder.on("said", fail)
    for cid in "abc":
        run.subscribe("t", cid=cid)
    with caplog.at_level(logging.DEBUG, "stube"):
        with run.held("a", "b", "c"):
            if cause == "message":
                assert run.registry.publish("t", "message") == 3
            else:
                for cid in "abc":
                    run.schedule(0, ("said", "message"), cid=cid)
            run.schedule(0, "after", cid="a")
            run.schedule(1, "after", cid="b")
        run.pass_time(1)
    assert sorted(zip(run.recorder.cids, run.recorder.names, strict=True)) == [
        ("a", "after"), ("a", "said"), ("b", "after"), ("b", "said"), ("c", "said"),
    ]  # fmt: skip
    assert run.stats() == Stats(accepted=5, delivered=4, failed=1, subscriptions=3)
    assert [(cid, event) for cid, event, _ in errors] == [("a", Event("main", "said", "message"))]
    assert errors[0][2] is raised[0]
    logged = [record for record in caplog.records if record.name == "stube" and record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info is not None
    assert logged[0].exc_info[0] is error


@guarantee("G19")
def test_what_a_handler_returns_does_not_matter(run: Driver) -> None:
    """Fault: False counts as a failure; or whatever has a method `close` is taken for a coroutine and closed."""

    class Closable:
        def close(self) -> None:
            raise AssertionError("the result of a handler was closed")

    results = [False, 0, "", [], NotImplemented, LookupError("no failure"), Closable()]
    run.registry.install_dispatch(lambda cid, event: event.payload)
    for result in results:
        run.schedule(0, ("tick", result))
    run.settle()
    assert run.registry.stats() == Stats(accepted=len(results), delivered=len(results))


@guarantee("G19")
def test_a_failure_is_logged_without_an_on_error(run: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: a failure is logged only where `on_error` is set, or only where it is not; or a name is part of the
    message's format, so that a name with a percent sign cannot be logged."""

    def fail(cid: str, event: Event) -> None:
        raise LookupError("the handler fails")

    run.recorder.on("fail %d %s", fail)
    with caplog.at_level(logging.DEBUG, "stube"):
        for number in range(3):
            run.schedule(0, ("fail %d %s", number), cid="100%")
        run.settle()
    logged = [record for record in caplog.records if record.name == "stube" and record.levelno >= logging.ERROR]
    assert [record.exc_info is not None and record.exc_info[0] for record in logged] == [LookupError] * 3
    assert all(record.getMessage() for record in logged), "a record cannot be formatted, or is empty"
    assert run.stats() == Stats(accepted=3, failed=3)


@guarantee("G19", "G21")
def test_a_failed_delivery_runs_until_on_error_has_returned(make_run: MakeRun) -> None:
    """Fault: the delivery is counted before `on_error` returns, so `settle` returns and the next delivery begins."""
    entered, go_on = threading.Event(), threading.Event()

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    def fail(cid: str, event: Event) -> None:
        raise LookupError

    run = make_run(on_error=on_error)
    run.recorder.on("fail", fail)
    run.schedule(0, "fail")
    run.schedule(0, "next")
    try:
        with run.delivering():
            assert entered.wait(PATIENCE)
            assert not run.recorder.wait_for(2, timeout=0.05), "the next delivery begins while on_error runs"
            stats, info = run.registry.stats(), run.registry.inspect("c1")["c1"]
            assert (stats.running, info.running, stats.failed) == (1, 1, 0)
            assert run.recorder.names == ["fail"]
            go_on.set()
    finally:
        go_on.set()
    run.settle()
    assert run.recorder.names == ["fail", "next"]
    assert run.stats() == Stats(accepted=2, delivered=1, failed=1)


@guarantee("G19", "G17")
@requires("by_reference")
def test_the_report_of_a_failure_does_not_touch_the_payload(make_run: MakeRun) -> None:
    """Fault: the event of a failed delivery is written into the log with its payload, whose `repr` may fail."""

    given: list[object] = []
    logged: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        logged.append(record.getMessage())

    def fail(cid: str, event: Event) -> None:
        raise LookupError("the handler fails")

    run = make_run(on_error=lambda cid, event, exception: given.append(event.payload))
    run.recorder.on("fail", fail)
    run.recorder.on("said", fail)
    run.subscribe("t")
    payload = Untouchable()
    with logging_to(emit):
        run.schedule(0, ("fail", payload))
        run.registry.publish("t", payload)
        run.settle()
    assert [each is payload for each in given] == [True, True]
    assert len(logged) == 2


@guarantee("G19")
def test_an_on_error_or_log_handler_that_raises_stops_no_delivery(make_run: MakeRun) -> None:
    """Fault: `on_error` or the logger is called outside of every `try`."""
    called: list[str] = []

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        called.append(cid)
        raise Unusual("on_error fails too")

    def emit(record: logging.LogRecord) -> None:
        raise Unusual("logging fails too")

    def fail(cid: str, event: Event) -> None:
        raise LookupError(cid)

    run = make_run(on_error=on_error)
    run.recorder.on("fail", fail)
    with logging_to(emit):
        with run.held("c1", "c2"):
            for cid in ("c1", "c2", "c1"):
                run.schedule(0, "fail", cid=cid)
            run.schedule(0, "fine", cid="c1")
        run.settle()
        run.schedule(0, "fine", cid="c2")
        run.settle()
    assert sorted(called) == ["c1", "c1", "c2"]
    assert run.recorder.names.count("fine") == 2
    assert run.stats() == Stats(accepted=5, delivered=2, failed=3)


@guarantee("G19")
def test_a_failure_is_logged_once_even_if_on_error_raises(make_run: MakeRun) -> None:
    """Fault: the `try` that catches what `on_error` raises logs the handler's exception again."""
    failure = LookupError("the handler fails")
    logged: list[object] = []

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        raise Unusual("on_error fails too")

    def fail(cid: str, event: Event) -> None:
        raise failure

    run = make_run(on_error=on_error)
    run.recorder.on("fail", fail)
    with logging_to(lambda record: logged.append(record.exc_info and record.exc_info[1])):
        run.schedule(0, "fail")
        run.settle()
    assert [error is failure for error in logged].count(True) == 1


class _Left(ConversationEnded):
    """How a host may call the end of its conversations."""


@guarantee("G19")
def test_an_error_that_derives_from_conversation_ended_is_no_failure(make_run: MakeRun) -> None:
    """Fault: the type of the exception is compared."""
    errors: list[BaseException] = []
    run = make_run(on_error=lambda cid, event, exception: errors.append(exception))

    def leave(cid: str, event: Event) -> None:
        raise _Left(cid)

    run.recorder.on("leave", leave)
    run.schedule(0, "leave")
    run.settle()
    assert errors == []
    assert run.stats() == Stats(accepted=1, delivered=1)


@guarantee("G19")
@pytest.mark.parametrize("how", ["while handling it", "caused by it"])
def test_an_error_that_follows_the_end_of_a_conversation_is_a_failure(make_run: MakeRun, how: str) -> None:
    """Fault: whether the delivery has failed is asked of the exception's context or cause."""
    errors: list[BaseException] = []
    run = make_run(on_error=lambda cid, event, exception: errors.append(exception))

    def fail(cid: str, event: Event) -> None:
        try:
            raise ConversationEnded(cid)
        except ConversationEnded as ended:
            raise LookupError("the handler fails") from (ended if how == "caused by it" else None)

    run.recorder.on("fail", fail)
    run.schedule(0, "fail")
    run.settle()
    assert [type(error) for error in errors] == [LookupError]
    assert run.stats() == Stats(accepted=1, failed=1)


@guarantee("G19", "G24")
def test_a_delivery_that_closes_the_registry_and_fails_is_reported(make_run: MakeRun) -> None:
    """Fault: nobody hears of a failure once the registry is closed, or it is not counted."""
    errors: list[BaseException] = []
    logged: list[logging.LogRecord] = []
    run = make_run(on_error=lambda cid, event, exception: errors.append(exception))

    def fail(cid: str, event: Event) -> None:
        run.registry.close()
        raise LookupError("the handler fails")

    run.recorder.on("fail", fail)
    with logging_to(logged.append):
        run.schedule(0, "fail")
        run.settle()
    assert [type(error) for error in errors] == [LookupError]
    assert len(logged) == 1
    assert run.registry.stats() == Stats(accepted=1, failed=1)


@guarantee("G19")
def test_on_error_is_called_once_for_each_failure(make_run: MakeRun) -> None:
    """Fault: an `on_error` that raises is called again for the same failure, or never again for a later one; or a
    dispatch that has failed often is given up."""
    called: list[Any] = []

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        called.append(event.payload)
        if called == [0]:
            raise LookupError("on_error fails the first time")

    def fail(cid: str, event: Event) -> None:
        raise LookupError(cid)

    run = make_run(on_error=on_error)
    run.recorder.on("fail", fail)
    for number in range(300):
        run.schedule(0, ("fail", number))
    run.schedule(0, "fine")
    run.settle()
    assert called == list(range(300))
    assert run.recorder.names[-1] == "fine"
    assert run.stats() == Stats(accepted=301, failed=300, delivered=1)


@guarantee("G19", "G20")
def test_on_error_and_log_handlers_may_call_the_registry(make_run: MakeRun) -> None:
    """Fault: one of them is called under a lock, which deadlocks, or before the delivery's fate is fully counted."""

    def on_error(cid: str, event: Event, exception: BaseException) -> None:
        run.schedule(0, "from on_error")
        run.registry.stats()
        run.registry.cancel_timers("c2")

    def emit(record: logging.LogRecord) -> None:
        run.schedule(0, "from logging")
        run.registry.inspect()

    def fail(cid: str, event: Event) -> None:
        raise LookupError(cid)

    run = make_run(on_error=on_error)
    run.recorder.on("fail", fail)
    with logging_to(emit):
        run.schedule(HOUR, cid="c2")
        run.schedule(0, "fail")
        run.settle()
    assert sorted(run.recorder.names) == ["fail", "from logging", "from on_error"]
    assert run.stats() == Stats(accepted=4, delivered=2, failed=1, cancelled=1)


@guarantee("G19")
def test_a_returned_coroutine_is_awaited_or_closed_as_failed(
    make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault: the coroutine is ignored: Python warns when it is collected, and the delivery counts as delivered."""
    errors: list[BaseException] = []
    registry = make_registry(on_error=lambda cid, event, exc: errors.append(exc))
    made: list[Any] = []
    seen: list[str] = []

    async def handle(cid: str, event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.name)

    def dispatch(cid: str, event: Event) -> Any:
        made.append(handle(cid, event))
        return made[-1]

    registry.install_dispatch(dispatch)
    with caplog.at_level(logging.ERROR, "stube"):
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
        settle_awaiting(registry)
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED
    logged = [record for record in caplog.records if record.name == "stube"]
    if "coroutine_dispatch" in registry.capabilities:
        assert (seen, errors, logged) == (["tick"], [], [])
        assert registry.stats() == Stats(accepted=1, delivered=1)
    else:
        assert (seen, len(errors), len(logged)) == ([], 1, 1)
        assert "asyncio" in str(errors[0])
        assert registry.stats() == Stats(accepted=1, failed=1)
    made.clear()
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors
