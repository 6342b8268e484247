"""`forget_pending_flow`: the baton of a conversation that ended before its stream came."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from stube import Stats
from stube.testing._capabilities import requires
from stube.testing._drive import Driver
from stube.testing.suite._fixtures import HOUR, NOT_A_NAME, Payload, guarantee, unchanged


@guarantee("G21")
@pytest.mark.parametrize("flow", ["checkout", "", 0, False], ids=repr)
def test_forgetting_says_whether_there_was_a_baton(run: Driver, flow: Any) -> None:
    """Fault: the truth of the flow is returned instead of its presence."""
    run.registry.put_pending_flow("c1", flow)
    run.registry.put_pending_flow("c2", flow)
    assert run.registry.forget_pending_flow("c1") is True
    assert run.registry.forget_pending_flow("c1") is False
    assert run.registry.pending_flow("c1") is None
    assert run.registry.stats() == Stats(pending_flows=1)
    assert run.registry.pending_flow("c2") == flow
    assert run.registry.forget_pending_flow("c2") is False


@guarantee("G15")
@pytest.mark.parametrize(("wrong", "error"), NOT_A_NAME, ids=repr)
def test_forget_pending_flow_refuses_what_is_no_name(run: Driver, wrong: Any, error: type[Exception]) -> None:
    """Case 24. Fault: the name is looked up unchecked."""
    run.registry.put_pending_flow("c1", "waits")
    with unchanged(run.registry), pytest.raises(error, match="cid"):
        run.registry.forget_pending_flow(wrong)


@guarantee("G13")
@requires("by_reference")
def test_a_forgotten_baton_is_not_kept_alive(run: Driver) -> None:
    """Fault: forgetting marks the baton and leaves it where it is."""
    flow = Payload()
    watched = weakref.ref(flow)
    run.registry.put_pending_flow("c1", flow)
    del flow
    run.registry.forget_pending_flow("c1")
    gc.collect()
    assert watched() is None


@guarantee("G13")
@requires("sizes")
def test_conversations_that_were_mounted_and_never_connected_leave_nothing(run: Driver) -> None:
    """Case 1. Fault: ending a conversation leaves its baton, its cancelled timer or its emptied topic behind."""
    count = 10_000
    run.schedule(HOUR, cid="other")
    run.subscribe("everybody", cid="other")
    before = run.sizes()
    for number in range(count):
        cid = f"c{number}"
        run.registry.put_pending_flow(cid, "checkout")
        run.schedule(HOUR, ("timeout", number), cid=cid)
        run.subscribe(f"topic {number}", cid=cid)
        run.subscribe("everybody", cid=cid)
    assert run.registry.stats() == Stats(
        pending_flows=count, timers=count + 1, subscriptions=2 * count + 1, accepted=count + 1
    )
    for number in range(count):
        cid = f"c{number}"
        assert run.registry.cancel_timers(cid) == 1
        assert run.registry.remove_subscriptions_for_cid(cid) == 2
        assert run.registry.forget_pending_flow(cid)
    assert run.sizes() == before
    assert run.stats() == Stats(timers=1, subscriptions=1, accepted=count + 1, cancelled=count)
