"""The first difference between two long sequences."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stube.testing._harness import first_difference


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        ([], [], None),
        ([1, 2], range(1, 3), None),
        ([1, 3, 2], [1, 2, 3], "at 1 is 3 instead of 2"),
        ([1, 2, 3, 4], [1, 2], "2 too many, from 3 on"),
        ([], ["a"], "1 missing, from 'a' on"),
        (["a", "x"], ["a", "b", "c"], "at 1 is 'x' instead of 'b'"),
    ],
)
def test_the_first_difference_is_told(found: Sequence[object], wanted: Sequence[object], told: str | None) -> None:
    """Fault: a sequence that ends early, or goes on, is equal to the other as far as that goes."""
    assert first_difference(found, wanted) == told


def test_description_of_the_difference_is_short() -> None:
    """Fault: a payload of a megabyte fills the report."""
    told = first_difference(["x" * 10**6], [["y" * 10**6] * 100])
    assert told is not None
    assert len(told) < 400
