"""`put_pending_flow`: a baton is stored, replaced, or refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from stube import Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import Driver, first_difference
from stube.testing.suite._fixtures import AWKWARD_NAMES, NOT_A_NAME, Payload, guarantee, refused, unchanged


@guarantee("G21")
@pytest.mark.parametrize("flow", ["checkout", "", 0, False, 0.0, ("a", 1)], ids=repr)
def test_a_baton_may_be_falsy_and_is_there_immediately(run: Driver, flow: Any) -> None:
    """Fault: the code says `if flow_id:` instead of `is not None`."""
    run.registry.put_pending_flow("c1", flow)
    assert run.registry.stats().pending_flows == 1
    assert run.registry.inspect("c1")["c1"].pending_flow
    taken = run.registry.pending_flow("c1")
    assert taken == flow
    assert type(taken) is type(flow)
    assert run.stats() == Stats()


@guarantee("G21")
def test_a_second_put_replaces_the_first(run: Driver) -> None:
    """Fault: batons are queued, or the first one stays, such as beside a second one that is not true."""
    flow: object
    for flow in ("new", "", 0, False):
        run.registry.put_pending_flow("c1", "old")
        run.registry.put_pending_flow("c1", flow)
        assert run.registry.stats().pending_flows == 1
        assert run.registry.pending_flow("c1") is flow
        assert run.registry.pending_flow("c1") is None


@guarantee("G15")
def test_put_pending_flow_refuses_none(run: Driver) -> None:
    """Fault: None is stored, which reads like no baton when it is taken; or None erases the waiting baton."""
    run.registry.put_pending_flow("c1", "waits")
    with unchanged(run.registry), pytest.raises(TypeError):
        run.registry.put_pending_flow("c1", None)
    with unchanged(run.registry), pytest.raises(TypeError):
        run.registry.put_pending_flow("c2", None)
    assert run.registry.pending_flow("c1") == "waits"


@guarantee("G15")
def test_put_pending_flow_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: the name is used as a key unchecked."""
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "cid", registry=run.registry):
            run.registry.put_pending_flow(wrong, "flow")


@guarantee("G21")
def test_batons_of_awkward_names_never_collide(run: Driver) -> None:
    """Case 25. Fault: keys are joined or normalised strings."""
    for index, cid in enumerate(AWKWARD_NAMES):
        run.registry.put_pending_flow(cid, index)
    assert run.registry.stats().pending_flows == len(AWKWARD_NAMES)
    taken = [run.registry.pending_flow(cid) for cid in AWKWARD_NAMES]
    assert first_difference(taken, range(len(AWKWARD_NAMES))) is None


@guarantee("G13")
@requires("by_reference")
def test_a_replaced_baton_is_not_kept_alive(run: Driver) -> None:
    """Fault: an earlier flow stays in a history or in a queue."""
    flow = Payload()
    watched = weakref.ref(flow)
    run.registry.put_pending_flow("c1", flow)
    run.registry.put_pending_flow("c1", "new")
    del flow
    gc.collect()
    assert watched() is None


@guarantee("G13")
def test_a_baton_never_expires(run: Driver) -> None:
    """Fault: batons expire. (On a real clock the test waits for 50 ms, and so finds only quick expiry.)"""
    run.registry.put_pending_flow("c1", "waits")
    run.pass_time(50 if run.clock is None else 1000 * 24 * 3_600_000)
    assert run.registry.pending_flow("c1") == "waits"
