"""`install_dispatch`: the function that gets every delivery."""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from unittest.mock import Mock

import pytest

from stube import Backend, Dispatch, Event, Stats
from stube.testing._harness import Driver, settle_awaiting
from stube.testing.suite._fixtures import guarantee, refused, unchanged


@guarantee("G21")
def test_deliveries_without_a_dispatch_count_as_delivered(registry: Backend) -> None:
    """Fault: deliveries wait for a later dispatch, or fail because None is called, instead of calling a no-op."""
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
    assert registry.publish("t", 1) == 1
    assert registry.settle()
    assert registry.stats() == Stats(accepted=2, delivered=2, subscriptions=1)
    late: list[Event] = []
    registry.install_dispatch(lambda cid, event: late.append(event))
    assert registry.settle()
    assert late == []


@guarantee("G21")
def test_dispatch_is_called_with_the_cid_and_the_event_by_position(registry: Backend) -> None:
    """Fault: the arguments are passed by keyword, swapped, or the event is a bare tuple."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    registry.install_dispatch(lambda *args, **kwargs: calls.append((args, kwargs)))
    registry.schedule_event(cid="c1", instance_id="i1", delay_ms=0, event=("tick", 3))
    assert registry.settle()
    assert calls == [(("c1", Event("i1", "tick", 3)), {})]


@guarantee("G21")
def test_dispatch_is_looked_up_when_a_delivery_begins(run: Driver) -> None:
    """Fault: the dispatch is bound when the timer is scheduled or the message is published."""
    later: list[str] = []
    run.subscribe(cid="c1")
    with run.held("c1"):
        run.schedule(0, "queued")
        run.registry.publish("t", "message")
        run.registry.install_dispatch(lambda cid, event: later.append(event.name))
    run.settle()
    assert later == ["queued", "said"]
    assert run.recorder.names == []


@guarantee("G21", "G19")
def test_a_dispatch_that_a_failing_handler_installed_stays(run: Driver) -> None:
    """Fault: the dispatch of the failed delivery is put back."""
    later: list[str] = []

    def replace(cid: str, event: Event) -> None:
        run.registry.install_dispatch(lambda cid, event: later.append(event.name))
        raise LookupError("the handler fails")

    run.recorder.on("replace", replace)
    run.schedule(0, "replace")
    run.settle()
    run.schedule(0, "after")
    run.settle()
    assert later == ["after"]


@guarantee("G20", "G21")
def test_a_handler_may_replace_the_dispatch(run: Driver) -> None:
    """Fault: the loop reads the dispatch once per batch, so the rest of the batch goes to the old one."""
    later: list[str] = []
    run.recorder.on("first", lambda cid, event: run.registry.install_dispatch(lambda c, e: later.append(e.name)))
    with run.held("c1"):
        run.schedule(0, "first")
        run.schedule(0, "second")
        run.schedule(0, "third")
    run.settle()
    assert run.recorder.names == ["first"]
    assert later == ["second", "third"]


@guarantee("G21")
@pytest.mark.parametrize("kind", ["method", "partial", "object"])
def test_any_callable_is_a_dispatch(registry: Backend, kind: str) -> None:
    """Fault: the check for a callable accepts plain functions only."""

    class Host:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def handle(self, cid: str, event: Event) -> None:
            self.seen.append(event.name)

        def __call__(self, cid: str, event: Event) -> None:
            self.handle(cid, event)

    host = Host()
    partial = functools.partial(Host.handle, host)
    kinds: dict[str, Dispatch] = {"method": host.handle, "partial": partial, "object": host}
    registry.install_dispatch(kinds[kind])
    registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="tick")
    assert registry.settle()
    assert host.seen == ["tick"]


@guarantee("G21")
def test_a_mock_is_a_dispatch(run: Driver) -> None:
    """Fault: the search for the function inside a partial never ends, because a mock has every attribute."""
    dispatch = Mock(return_value=None)
    run.registry.install_dispatch(dispatch)
    run.schedule(0, "tick", cid="c1")
    run.settle()
    assert [call.args for call in dispatch.call_args_list] == [("c1", Event("main", "tick"))]


@guarantee("G15")
def test_a_dispatch_that_is_not_callable_is_refused(run: Driver) -> None:
    """Case 24. Fault: the argument is stored before it is checked."""
    wrong: Any
    for number, wrong in enumerate((None, "dispatch", 7, object()), start=1):
        with refused(wrong, TypeError, registry=run.registry):
            run.registry.install_dispatch(wrong)
        run.schedule(0, "tick")
        run.settle()
        assert run.recorder.names == ["tick"] * number, wrong


@guarantee("G15", "G19")
@pytest.mark.parametrize("kind", ["function", "partial", "method"])
def test_an_async_dispatch_is_awaited_or_refused_at_the_call(run: Driver, kind: str) -> None:
    """Fault: an `async def` is accepted like any function, and every event is silently lost."""
    seen: list[str] = []

    async def dispatch(cid: str, event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.name)

    class Host:
        async def dispatch(self, cid: str, event: Event) -> None:
            await dispatch(cid, event)

    kinds: dict[str, Any] = {"function": dispatch, "partial": functools.partial(dispatch), "method": Host().dispatch}
    if "coroutine_dispatch" in run.registry.capabilities:
        run.registry.install_dispatch(kinds[kind])
    else:
        with unchanged(run.registry), pytest.raises(TypeError, match="asyncio"):
            run.registry.install_dispatch(kinds[kind])
    run.schedule(0, "tick")
    settle_awaiting(run.registry)
    assert [*seen, *run.recorder.names] == ["tick"]
    assert run.registry.stats() == Stats(accepted=1, delivered=1)
