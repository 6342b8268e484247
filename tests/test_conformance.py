"""The conformance suite on the backends that ship: `--stube-backend` chooses others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import stube
from stube.testing import GUARANTEES, suite
from stube.testing.suite import *  # noqa: F403 - the one line that a backend's author writes
from tests.tiers import VARIANTS, variants

BACKENDS = [variant for variant in VARIANTS if not variant.endswith(("-function", "-coroutine"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stube_backend" in metafunc.fixturenames and not metafunc.config.getoption("stube_backend"):
        metafunc.parametrize("stube_backend", variants(metafunc.config.getoption("tier"), BACKENDS), indirect=True)


@pytest.fixture
def stube_backend(request: pytest.FixtureRequest) -> str:
    """The backends under test, unless the option names others."""
    name: str = request.param
    return name


def _marks(test: Any, name: str) -> Iterator[str]:
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == name:
            yield from mark.args


def _tests() -> list[Any]:
    return [getattr(suite, name) for name in suite.__all__ if name.startswith("test_")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_guarantee_has_a_test_that_runs_on_every_backend(backend: str) -> None:
    with stube.create_registry(backend) as registry:
        promised = registry.capabilities
    proved = {
        number
        for test in _tests()
        if set(_marks(test, "stube_requires")) <= promised
        for number in _marks(test, "guarantee")
    }
    assert proved == set(GUARANTEES)


def test_a_backend_that_promises_nothing_is_tested_for_every_mandatory_guarantee() -> None:
    proved = {
        number for test in _tests() if not list(_marks(test, "stube_requires")) for number in _marks(test, "guarantee")
    }
    mandatory = {number for number, guarantee in GUARANTEES.items() if guarantee.capability is None}
    assert mandatory - proved == set()


def test_every_test_says_what_it_proves_and_which_fault_it_catches() -> None:
    for test in _tests():
        assert list(_marks(test, "guarantee")), f"{test.__name__} proves no guarantee"
        assert "Fault: " in (test.__doc__ or ""), f"{test.__name__} names no fault"


def test_every_case_that_a_local_backend_can_show_is_a_test() -> None:
    found = {
        case
        for test in _tests()
        for line in re.findall(r"Case ([0-9]+[a-z]?(?:, [0-9]+[a-z]?)*)\.", test.__doc__ or "")
        for case in line.split(", ")
    }
    wanted = {str(number) for number in (*range(1, 28), 30)} | {"14b", "14c", "14d", "23b", "27b"}
    assert wanted - found == set()
