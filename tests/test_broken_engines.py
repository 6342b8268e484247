"""Tests of the suite: an assertion of a test of its guarantee catches every registry that is broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from stube.testing import suite
from tests import broken_loops
from tests.broken_engines import BOTH, FAULTS, MOST_LINES, OWN, SHARDED_FAULTS, SHARDS, Fault, Workshop
from tests.tiers import FAST_FAULTS

ALL: Final = [*FAULTS, *SHARDED_FAULTS, *broken_loops.ASYNCIO_FAULTS]
ALL_OWN: Final = (OWN, broken_loops.OWN)
DOZEN: Final = [next(fault for fault in FAULTS if fault.guarantee == number) for number in FAST_FAULTS]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One copy of the sources for all faults."""
    with Workshop(tmp_path_factory.mktemp("workshop") / "tree") as made:
        yield made


def _name(fault: Fault) -> str:
    return f"{fault.guarantee}: {fault.summary}"


def _guarantees_of(test: str) -> set[str]:
    marks = getattr(getattr(suite, test.partition("::")[2]), "pytestmark", ())
    return {number for mark in marks if mark.name == "guarantee" for number in mark.args}


def test_every_guarantee_has_a_registry_that_breaks_it_on_each_backend() -> None:
    """Fault: no one has ever seen a test of some guarantee fail."""
    broken = {(fault.guarantee, backend) for fault in FAULTS for backend in fault.backends}
    assert {(f"G{number}", backend) for number in range(1, 27) for backend in BOTH} - broken == set()


@pytest.mark.parametrize("fault", ALL, ids=_name)
def test_a_fault_is_small_and_its_tests_are_of_its_guarantee(fault: Fault) -> None:
    """Fault: a registry is so broken that any test would fail, or a test catches the fault by accident."""
    assert 1 <= fault.changed_lines <= MOST_LINES
    assert fault.broken()  # the text that it replaces stands in the file, and once
    for test in fault.caught_by:
        if test.startswith(ALL_OWN):
            continue
        assert fault.guarantee in _guarantees_of(test), test


def _assert_caught(fault: Fault, workshop: Workshop) -> None:
    found = workshop.catch(fault, fault.caught_by, fault.backends)
    for backend in fault.backends:
        for test in fault.caught_by:
            wanted = ("" if test.startswith(ALL_OWN) else backend, test.partition("::")[2])
            ended = [each for each in found if (each.backend, each.test) == wanted]
            assert any(each.by_assertion for each in ended), f"{test} on {backend}: {ended}"


@pytest.mark.parametrize("fault", DOZEN, ids=_name)
def test_a_broken_registry_is_caught_by_an_assertion(fault: Fault, workshop: Workshop) -> None:
    """Fault: a test of the suite cannot fail, or fails only by a time limit. This tries a dozen of the faults."""
    _assert_caught(fault, workshop)


@pytest.mark.parametrize("fault", [fault for fault in ALL if fault not in DOZEN], ids=_name)
def test_every_other_broken_registry_is_caught_by_an_assertion(fault: Fault, workshop: Workshop) -> None:
    """Fault: a test of the suite cannot fail, or fails only by a time limit. This tries the other faults."""
    _assert_caught(fault, workshop)


def test_the_same_tests_pass_on_a_copy_without_a_fault(workshop: Workshop) -> None:
    """Fault: the copy itself is broken, so that every test fails on it."""
    tests = sorted({test for fault in FAULTS for test in fault.caught_by})
    found = workshop.catch(None, tests, BOTH)
    assert [each for each in found if each.failed] == []
    assert {each.backend for each in found} == set(BOTH)


def test_the_tests_of_sharded_pass_on_a_copy_without_a_fault(workshop: Workshop) -> None:
    """Fault: the copy itself is broken, or a test of `test_sharded.py` is not run on the copy."""
    tests = sorted({test for fault in SHARDED_FAULTS for test in fault.caught_by})
    found = workshop.catch(None, tests, SHARDS)
    assert [each for each in found if each.failed] == []
    assert {each.backend for each in found} == {"", *SHARDS}


def test_the_tests_of_asyncio_pass_on_a_copy_without_a_fault(workshop: Workshop) -> None:
    """Fault: the copy itself is broken, so that every test fails on it."""
    tests = sorted({test for fault in broken_loops.ASYNCIO_FAULTS for test in fault.caught_by})
    found = workshop.catch(None, tests, broken_loops.LOOPS)
    assert [each for each in found if each.failed] == []
    assert len({each.test for each in found}) == len(tests)
