"""Tests of the suite: an assertion of a test of its guarantee catches every registry that is broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from stube.testing import suite
from tests import broken_loops
from tests.broken_engines import BOTH, FAULTS, MOST_LINES, OWN, SHARDED_FAULTS, SHARDS, Fault, catch

ALL: Final = [*FAULTS, *SHARDED_FAULTS, *broken_loops.ASYNCIO_FAULTS]
ALL_OWN: Final = (OWN, broken_loops.OWN)


def _guarantees_of(test: str) -> set[str]:
    marks = getattr(getattr(suite, test.partition("::")[2]), "pytestmark", ())
    return {number for mark in marks if mark.name == "guarantee" for number in mark.args}


def test_every_guarantee_has_a_registry_that_breaks_it_on_each_backend() -> None:
    """Fault: no one has ever seen a test of some guarantee fail."""
    broken = {(fault.guarantee, backend) for fault in FAULTS for backend in fault.backends}
    assert {(f"G{number}", backend) for number in range(1, 27) for backend in BOTH} - broken == set()


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: f"{fault.guarantee}: {fault.summary}")
def test_a_fault_is_small_and_its_tests_are_of_its_guarantee(fault: Fault) -> None:
    """Fault: a registry is so broken that any test would fail, or a test catches the fault by accident."""
    assert 1 <= fault.changed_lines <= MOST_LINES
    for test in fault.caught_by:
        if test.startswith(ALL_OWN):
            continue
        assert fault.guarantee in _guarantees_of(test), test


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: f"{fault.guarantee}: {fault.summary}")
def test_a_broken_registry_is_caught_by_an_assertion(fault: Fault, tmp_path: Path) -> None:
    """Fault: a test of the suite cannot fail, or fails only by a time limit."""
    found = catch(fault, fault.caught_by, fault.backends, tmp_path)
    for backend in fault.backends:
        for test in fault.caught_by:
            wanted = ("" if test.startswith(ALL_OWN) else backend, test.partition("::")[2])
            ended = [each for each in found if (each.backend, each.test) == wanted]
            assert any(each.by_assertion for each in ended), f"{test} on {backend}: {ended}"


def test_the_same_tests_pass_on_a_copy_without_a_fault(tmp_path: Path) -> None:
    """Fault: the copy itself is broken, so that every test fails on it."""
    tests = sorted({test for fault in FAULTS for test in fault.caught_by})
    found = catch(None, tests, BOTH, tmp_path)
    assert [each for each in found if each.failed] == []
    assert {each.backend for each in found} == set(BOTH)


def test_the_tests_of_sharded_pass_on_a_copy_without_a_fault(tmp_path: Path) -> None:
    """Fault: the copy itself is broken, or a test of `test_sharded.py` is not run on the copy."""
    tests = sorted({test for fault in SHARDED_FAULTS for test in fault.caught_by})
    found = catch(None, tests, SHARDS, tmp_path)
    assert [each for each in found if each.failed] == []
    assert {each.backend for each in found} == {"", *SHARDS}


def test_the_tests_of_asyncio_pass_on_a_copy_without_a_fault(tmp_path: Path) -> None:
    """Fault: the copy itself is broken, so that every test fails on it."""
    tests = sorted({test for fault in broken_loops.ASYNCIO_FAULTS for test in fault.caught_by})
    found = catch(None, tests, broken_loops.LOOPS, tmp_path)
    assert [each for each in found if each.failed] == []
    assert len({each.test for each in found}) == len(tests)
