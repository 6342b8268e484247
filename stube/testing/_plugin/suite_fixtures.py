"""The fixtures of the suite: the backend under test, fresh registries, and the check of each at the end of a test."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from stube import Backend

if TYPE_CHECKING:
    from stube.testing._harness import Effort

__all__ = ["MakeRegistry"]

_NO_BACKEND = (
    "No backend is named. Give the option --stube-backend SPEC, "
    "or define a fixture `stube_backend` that returns the spec next to the import of the suite."
)
_failed_key: pytest.StashKey[bool] = pytest.StashKey()


class MakeRegistry(Protocol):
    """The function that the fixture `make_registry` returns. It makes a fresh backend under test."""

    def __call__(self, **options: Any) -> Backend:
        """Make one; it is closed, and its ledger checked, at the end of the test."""
        ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed, for `make_registry`."""
    report = yield
    if report.when == "call":
        item.stash[_failed_key] = report.failed
    return report


@pytest.fixture(scope="session")
def stube_effort(pytestconfig: pytest.Config) -> Effort:
    """How often the suite repeats what it tries."""
    from stube.testing._harness import FULL, QUICK

    return QUICK if pytestconfig.getoption("stube_quick") else FULL


@pytest.fixture
def stube_backend() -> Any:
    """The spec of the backend under test. Override it, or give `--stube-backend`."""
    pytest.fail(_NO_BACKEND, pytrace=False)


@pytest.fixture
def stube_options() -> Mapping[str, Any]:
    """Options for every registry that the suite makes. Override it if the backend needs some."""
    return {}


@pytest.fixture
def make_registry(
    request: pytest.FixtureRequest, stube_backend: Any, stube_options: Mapping[str, Any]
) -> Iterator[MakeRegistry]:
    """Return a function that makes a fresh backend under test, with further options.

    A test that requires a capability which the backend does not promise is skipped. At the end of the test each
    registry is closed. Its ledger must balance before and after, and nothing may be left.
    """
    from stube.testing._conformance.outcomes import UNDER_TEST
    from stube.testing._contract.capabilities import backend_name, missing_reason
    from stube.testing._harness import PATIENCE, blaming, check_ledger, create, timed_out

    made: list[Backend] = []

    def make(**options: Any) -> Backend:
        registry = create(stube_backend, **{**stube_options, **options})
        made.append(registry)
        request.node.stash[UNDER_TEST] = (stube_backend, sorted(registry.capabilities))
        return registry

    request.node.stash[UNDER_TEST] = (stube_backend, None)
    wanted = [name for mark in request.node.iter_markers("stube_requires") for name in mark.args]
    if wanted:
        with create(stube_backend, **stube_options) as probe:
            request.node.stash[UNDER_TEST] = (stube_backend, sorted(probe.capabilities))
            reason = missing_reason(backend_name(stube_backend), probe.capabilities, wanted)
        if reason is not None:
            pytest.skip(reason)
    timed_out.clear()
    yield make
    if request.node.stash.get(_failed_key, False):  # one finding is enough; what the test left behind is not another
        for registry in [] if timed_out else made:
            registry.close(1.0)
        return
    for registry in [] if timed_out else made:
        with blaming("G21"):
            check_ledger(registry)
        with blaming("G24"):
            assert registry.close(PATIENCE), f"close() did not stop everything: {registry.stats()}"
        with blaming("G21"):
            stats = check_ledger(registry)
        with blaming("G24"):
            assert (stats.timers, stats.queued, stats.subscriptions, stats.pending_flows) == (0, 0, 0, 0), stats


@pytest.fixture
def registry(make_registry: MakeRegistry) -> Backend:
    """A fresh backend under test, closed at teardown; there its ledger must balance with no figure negative."""
    return make_registry()
