"""Tests of the suite: it names small faults in backends that are not built on stube's engine."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Final, TypeAlias

import pytest

from stube.testing import suite
from tests.outsiders.faults import MOST_LINES, OUTSIDERS, Fault, Outsider, is_named, name_fault, preloaded
from tests.outsiders.preloaded_suite import PreloadedSuite
from tests.tiers import FAST_OUTSIDER_FAULTS

_Case: TypeAlias = tuple[Outsider, Fault]


def _first(number: str, outsider: Outsider) -> _Case:
    return outsider, next(fault for fault in outsider.faults if fault.guarantee == number)


ALL: Final[list[_Case]] = [(outsider, fault) for outsider in OUTSIDERS for fault in outsider.faults]
DOZEN: Final = [_first(each, OUTSIDERS[at % len(OUTSIDERS)]) for at, each in enumerate(FAST_OUTSIDER_FAULTS)]
OTHERS: Final = [each for each in ALL if each not in DOZEN]


def _for_each(cases: list[_Case]) -> pytest.MarkDecorator:
    names = [f"{fault.guarantee} {outsider.name}: {fault.summary}" for outsider, fault in cases]
    return pytest.mark.parametrize(("outsider", "fault"), cases, ids=names)


_for_each_outsider = pytest.mark.parametrize("outsider", OUTSIDERS, ids=[outsider.name for outsider in OUTSIDERS])


@pytest.fixture(scope="session")
def preloaded_suite() -> Iterator[PreloadedSuite]:
    """A process that has loaded the suite, for all faults that this process tries."""
    with preloaded() as started:
        yield started


@_for_each_outsider
def test_every_guarantee_has_two_faults(outsider: Outsider) -> None:
    """Fault: no one has ever seen the suite judge that a backend of another design breaks some guarantee."""
    found = Counter(fault.guarantee for fault in outsider.faults)
    assert {f"G{number}": found[f"G{number}"] for number in range(1, 27) if found[f"G{number}"] < 2} == {}
    assert len({fault.summary for fault in outsider.faults}) == len(outsider.faults)


@_for_each_outsider
def test_a_fault_is_small_and_its_tests_can_blame_its_guarantee(outsider: Outsider) -> None:
    """Fault: a registry is so broken that any test would fail, or a test names the fault by accident."""
    for fault in outsider.faults:
        assert 1 <= fault.changed_lines <= MOST_LINES, fault.summary
        outsider.broken(fault)
        assert fault.caught_by, fault.summary
        for test in fault.caught_by:
            assert fault.guarantee in _can_blame(test), f"{test} cannot name this: {fault.summary}"


@cache
def _can_blame(test: str) -> set[str]:
    function = getattr(suite, test.partition("[")[0])
    marked = {number for mark in function.pytestmark if mark.name == "guarantee" for number in mark.args}
    return marked | set(re.findall(r'"(G\d+)"', inspect.getsource(function)))


def _assert_named(preloaded_suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> None:
    found = name_fault(preloaded_suite, outsider, fault)
    assert is_named(fault, found), f"no assertion of {fault.caught_by} blames {fault.guarantee}: {found}"


@_for_each(DOZEN)
def test_the_suite_names_a_fault(preloaded_suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> None:
    """Fault: a backend breaks a guarantee, and no test says so. This tries a dozen of the faults."""
    _assert_named(preloaded_suite, outsider, fault)


@_for_each(OTHERS)
def test_the_suite_names_every_other_fault(preloaded_suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> None:
    """Fault: a backend breaks a guarantee, and no test says so. This tries the other faults."""
    _assert_named(preloaded_suite, outsider, fault)


def _assert_held(outsider: Outsider, cases: list[_Case]) -> None:
    tests = sorted({test for one, fault in cases if one == outsider for test in fault.caught_by})
    with preloaded(patience=None) as suite, outsider.copied(None) as folder:
        found = suite.run(outsider.backend, folder, tests, limit=600.0)
    assert [each for each in found if each.failed] == []
    assert {each.test.partition("[")[0] for each in found} == {test.partition("[")[0] for test in tests}


@_for_each_outsider
def test_the_same_tests_pass_without_a_fault(outsider: Outsider) -> None:
    """Fault: the outsider itself is broken, or its copy, so that a test that names a fault fails anyway."""
    _assert_held(outsider, DOZEN)


def test_all_tests_that_name_a_fault_pass_without_one() -> None:
    """Fault: a test that names a fault fails anyway. On globex `.ci/run` runs the whole suite, and much longer."""
    _assert_held(OUTSIDERS[0], ALL)
