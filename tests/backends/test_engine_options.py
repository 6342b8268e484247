"""The options that every local backend has."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stube import Event, monotonic_ns
from stube_backends.engine._backlogs import Limits
from stube_backends.engine._options import Options


def report(cid: str, event: Event, exc: BaseException) -> None:
    """Do nothing."""


def test_options_left_out_have_their_documented_defaults() -> None:
    """Fault: the bound of a registry, or its clock, is another one than the documentation says."""
    assert Options.checked() == Options(clock=monotonic_ns, max_pending=1_000_000, limits=None, on_error=None)


def test_options_given_are_kept() -> None:
    """Fault: an option is ignored, or one takes the place of another."""
    options = Options.checked(clock=time.perf_counter_ns, max_pending=1, on_error=report)
    assert options == Options(clock=time.perf_counter_ns, max_pending=1, limits=None, on_error=report)
    assert Options.checked(max_pending=None).max_pending is None


def test_a_bound_of_each_conversation_removes_the_oldest_by_default() -> None:
    """Fault: `max_queued` or `on_full` is ignored, or the default ends conversations."""
    assert Options.checked(max_queued=2).limits == Limits(2, "drop_oldest")
    assert Options.checked(max_queued=3, on_full="end").limits == Limits(3, "end")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"clock": time.monotonic},
            "clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.",
        ),
        ({"max_pending": 0}, "max_pending must be at least 1, not 0. Leave it out, or give None."),
    ],
)
def test_an_option_out_of_its_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Fault: the registry is made, and fails later or never delivers."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        Options.checked(**arguments)
    assert str(caught.value) == message
