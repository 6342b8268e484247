"""The clauses of each guarantee with their tests, out of `clauses.toml`, and what that table lacks."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["CLAUSES", "incomplete"]

_FILE: Final = Path(__file__).with_suffix(".toml")
_READ: Final[dict[str, dict[str, list[str]]]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))

CLAUSES: Final[Mapping[str, Mapping[str, Sequence[str]]]] = MappingProxyType(_READ)
"""By guarantee: each clause, with the names of the tests that prove it."""


def incomplete(proved: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Tell what the table lacks.

    Args:
        proved: the tests of the suite, each with the guarantees that its marker names.

    Yields:
        A sentence for each clause without a test, for each test that does not exist or does not prove the guarantee
        under which it stands, and for each guarantee of a test under which it does not stand.
    """
    for number, clauses in CLAUSES.items():
        listed = {test for tests in clauses.values() for test in tests}
        for clause, tests in clauses.items():
            if not tests:
                yield f"{number}: no test proves: {clause}"
        for test in sorted(listed):
            if number not in proved.get(test, ()):
                yield f"{number}: {test} is listed, and is no test that is marked with {number}"
        for test, numbers in proved.items():
            if number in numbers and test not in listed:
                yield f"{number}: {test} is marked with {number}, and stands under none of its clauses"
