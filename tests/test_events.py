"""`stube.Event` as a value: what takes part in comparing, matching and copying, and what does not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import stube
from stube import NO_PAYLOAD, Event


def test_the_instant_takes_no_part_in_comparing_hashing_matching_or_showing() -> None:
    """Fault: two equal messages of one topic differ, because they were published at different instants."""
    early, late = Event("main", "said", "hi", due=1), Event("main", "said", "hi", due=2)
    assert early == late == Event("main", "said", "hi")
    assert len({early, late}) == 1
    assert repr(early) == "Event('main', 'said', 'hi')"
    assert Event.__match_args__ == ("name", "payload", "instance_id")


def test_an_event_that_a_host_builds_has_no_instant() -> None:
    assert Event("main", "click", signals={"x": 1}).due is None


def test_the_instant_cannot_be_changed() -> None:
    """Fault: one handler changes the event that the others get."""
    with pytest.raises(AttributeError):
        Event("main", "tick", due=1).due = 2  # type: ignore[misc]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event))])
@pytest.mark.parametrize(
    "event", [Event("main", "tick", due=7), Event("main", "said", [1], {"x": 2}, due=7), Event("main", "said", None)]
)
def test_a_copy_has_all_that_the_event_has(event: Event, copied: Callable[[Event], Event]) -> None:
    """Fault: a copy loses its instant or its signals, or its missing payload becomes another object."""
    other = copied(event)
    assert (other, other.due, dict(other.signals)) == (event, event.due, dict(event.signals))
    assert (other.payload is NO_PAYLOAD) == (event.payload is NO_PAYLOAD)


@pytest.mark.parametrize("backend", ["memory", "virtual", "sharded", "asyncio"])
def test_every_backend_shows_the_present_instant(backend: str) -> None:
    """Fault: a backend inherits the empty property of the Protocol."""
    with stube.create_registry(backend) as registry:
        before = registry.now_ns
        assert type(before) is int
        assert before <= registry.now_ns
