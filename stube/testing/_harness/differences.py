"""The first difference between two long sequences, in a few words.

A test that compares more than a hundred things asserts `first_difference(found, wanted) is None`. For `found == wanted`
pytest prints the whole difference in CI, and takes minutes to compute that of ten thousand things.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

__all__ = ["first_difference"]


def first_difference(found: Sequence[object], wanted: Sequence[object]) -> str | None:
    """Describe the first item that differs, and where it is; None when all are equal. O(length)."""
    for index, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return f"at {index} is {reprlib.repr(one)} instead of {reprlib.repr(other)}"
    more = len(found) - len(wanted)
    if more > 0:
        return f"{more} too many, from {reprlib.repr(found[len(wanted)])} on"
    if more < 0:
        return f"{-more} missing, from {reprlib.repr(wanted[len(found)])} on"
    return None
