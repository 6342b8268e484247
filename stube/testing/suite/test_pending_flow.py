"""`pending_flow`: exactly one caller takes the baton."""

from __future__ import annotations

import gc
import threading
import weakref
from itertools import pairwise

from stube import Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import Driver, first_difference, run_threads
from stube.testing.suite._fixtures import NOT_A_NAME, Payload, guarantee, refused


@guarantee("G8")
def test_a_baton_is_taken_once(run: Driver) -> None:
    """Fault: the flow is read and not removed."""
    run.registry.put_pending_flow("c1", "checkout")
    run.registry.put_pending_flow("c2", "other")
    assert run.registry.pending_flow("c1") == "checkout"
    assert run.registry.pending_flow("c1") is None
    assert run.registry.inspect("c1") == {}
    assert run.registry.pending_flow("c2") == "other"


@guarantee("G21")
def test_pending_flow_returns_none_without_a_baton(run: Driver) -> None:
    """Fault: an unknown conversation raises KeyError, or a forgotten baton comes back."""
    assert run.registry.pending_flow("never") is None
    run.registry.put_pending_flow("c1", "checkout")
    run.registry.forget_pending_flow("c1")
    assert run.registry.pending_flow("c1") is None
    assert run.stats() == Stats()


@guarantee("G8")
def test_exactly_one_of_many_threads_takes_a_baton(run: Driver) -> None:
    """Fault: the baton is read and then deleted without a lock, and another thread reads it in between."""
    rounds, takers = 2000, 8
    cids = [f"c{index}" for index in range(rounds)]
    for cid in cids:
        run.registry.put_pending_flow(cid, cid)
    taken: list[list[str]] = [[] for _ in range(takers)]

    def take(mine: list[str]) -> None:
        for cid in cids:
            flow = run.registry.pending_flow(cid)
            if flow is not None:
                mine.append(flow)

    run_threads(*(lambda mine=mine: take(mine) for mine in taken))
    assert first_difference(sorted(flow for mine in taken for flow in mine), sorted(cids)) is None
    assert run.stats() == Stats()


@guarantee("G8")
def test_a_baton_is_taken_or_forgotten_never_both(run: Driver) -> None:
    """Fault: `forget_pending_flow` returns True for a baton that another thread has taken."""
    cids = [f"c{index}" for index in range(2000)]
    for cid in cids:
        run.registry.put_pending_flow(cid, cid)
    taken: list[str] = []
    forgotten: list[str] = []
    run_threads(
        lambda: taken.extend(cid for cid in cids if run.registry.pending_flow(cid) is not None),
        lambda: forgotten.extend(cid for cid in cids if run.registry.forget_pending_flow(cid)),
    )
    assert first_difference(sorted(taken + forgotten), sorted(cids)) is None


@guarantee("G8")
def test_no_baton_is_lost_between_a_putting_and_a_taking_thread(run: Driver) -> None:
    """Fault: the delete of a taking thread removes a baton that was put in the same moment."""
    last = 3000
    taken: list[int] = []
    done = threading.Event()

    def put() -> None:
        for number in range(1, last + 1):
            run.registry.put_pending_flow("c1", number)
        done.set()

    def take() -> None:
        while not done.is_set():
            flow = run.registry.pending_flow("c1")
            if flow is not None:
                taken.append(flow)

    run_threads(put, take)
    flow = run.registry.pending_flow("c1")
    if flow is not None:
        taken.append(flow)
    # Not compared as lists: a backend that hands out one baton repeatedly would fill them with many thousand entries.
    once = all(earlier < later for earlier, later in pairwise(taken))
    assert once, "a baton was taken twice, or after the one that replaced it"
    assert taken[-1] == last


@guarantee("G15")
def test_pending_flow_refuses_an_invalid_name(run: Driver) -> None:
    """Case 24. Fault: the name is looked up unchecked, so a mistake of the caller looks like "no baton"."""
    run.registry.put_pending_flow("c1", "waits")
    for wrong, error in NOT_A_NAME:
        with refused(wrong, error, "cid", registry=run.registry):
            run.registry.pending_flow(wrong)


@guarantee("G13")
@requires("by_reference")
def test_a_taken_baton_is_not_kept_alive(run: Driver) -> None:
    """Fault: the registry keeps the flow after it was taken."""
    flow = Payload()
    watched = weakref.ref(flow)
    run.registry.put_pending_flow("c1", flow)
    assert run.registry.pending_flow("c1") is flow
    del flow
    gc.collect()
    assert watched() is None
