"""Where two long sequences part, in a few words.

A test that compares more than a hundred things asserts `first_difference(found, wanted) is None`. Of `found == wanted`
pytest prints the whole difference where it runs in CI, and for ten thousand things takes minutes to work it out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

__all__ = ["first_difference"]


def first_difference(found: Sequence[object], wanted: Sequence[object]) -> str | None:
    """What is the first thing that is not as it should be, and where; None when all are equal. O(length)."""
    for index, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return f"at {index} is {reprlib.repr(one)} instead of {reprlib.repr(other)}"
    more = len(found) - len(wanted)
    if more > 0:
        return f"{more} too many, from {reprlib.repr(found[len(wanted)])} on"
    if more < 0:
        return f"{-more} missing, from {reprlib.repr(wanted[len(found)])} on"
    return None
