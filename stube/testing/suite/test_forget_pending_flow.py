"""`forget_pending_flow`: the baton of a conversation that ended before its stream connected."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from stube import Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import Driver, blaming
from stube.testing.suite._fixtures import NOT_A_NAME, Payload, guarantee, refused


@guarantee("G21", "G8")
@pytest.mark.parametrize("flow", ["checkout", "", 0, False], ids=repr)
def test_forget_pending_flow_returns_whether_there_was_a_baton(run: Driver, flow: Any) -> None:
    """Fault: the result is the truth value of the flow instead of its presence, or True for a baton that was taken."""
    run.registry.put_pending_flow("c1", flow)
    run.registry.put_pending_flow("c2", flow)
    assert run.registry.forget_pending_flow("c1") is True
    assert run.registry.forget_pending_flow("c1") is False
    assert run.registry.pending_flow("c1") is None
    assert run.registry.stats() == Stats(pending_flows=1)
    assert run.registry.pending_flow("c2") == flow
    with blaming("G8"):
        assert run.registry.forget_pending_flow("c2") is False


@guarantee("G15")
def test_forget_pending_flow_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: the name is looked up unchecked."""
    run.registry.put_pending_flow("c1", "waits")
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "cid", registry=run.registry):
            run.registry.forget_pending_flow(wrong)


@guarantee("G13")
@requires("by_reference")
def test_a_forgotten_baton_is_not_kept_alive(run: Driver) -> None:
    """Fault: forgetting only marks the baton, which stays in its container."""
    flow = Payload()
    watched = weakref.ref(flow)
    run.registry.put_pending_flow("c1", flow)
    del flow
    run.registry.forget_pending_flow("c1")
    gc.collect()
    assert watched() is None
