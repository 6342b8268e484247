"""The pytest plugin: the backend under test, a virtual registry for hosts, and the markers of the suite.

Loaded by pytest through the entry point `stube.testing.plugin`; it does nothing in a project that asks nothing of it.

Options:
    `--stube-backend SPEC` names the backend that the conformance suite runs against; repeatable. It goes before the
    fixture `stube_backend`.
    `--stube-guarantee G5` runs the tests that prove this guarantee and no others; repeatable.
    `--stube-quick` lets the suite inject at every fourth line and draw fewer random programs; by default it does all.
    `--stube-report PATH` writes what the run says about each guarantee: to PATH when it ends in `.json`, else into the
    folder PATH, one file for each backend. Specs that differ in their options only are one backend there.

Fixtures:
    `stube_backend`: what `create_registry` takes as its spec. Override it to name your backend.
    `stube_options`: options for every registry that the suite makes. Override it, or leave it empty.
    `stube_effort`: how often the suite repeats what it tries; `--stube-quick` lowers it.
    `make_registry`: a function that makes a fresh backend under test, with further options.
    `registry`: a fresh backend under test. Closed at teardown, and its ledger checked.
    `virtual_registry`: for hosts: a registry whose clock stands still until the test moves it. A handler that fails
    fails the test, with the handler's exception as the cause.
    `allow_failures`: call it to permit failing handlers from then on.

Markers:
    `allow_failures`: permit failing handlers under `virtual_registry` in this test.
    `guarantee("G5", ...)`: the guarantees of the contract that a test proves.
    `stube_requires("fork", ...)`: the optional capabilities without which a test is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from stube import Backend, Event, VirtualBackend, create_registry

if TYPE_CHECKING:
    from stube.testing._effort import Effort
    from stube.testing._records import Record

pytest.register_assert_rewrite("stube.testing.suite", "stube.testing._drive")

__all__ = ["HandlerFailed", "MakeRegistry", "VirtualChecks"]

_NO_BACKEND = (
    "No backend is named. Give the option --stube-backend SPEC, "
    "or define a fixture `stube_backend` that returns the spec next to the import of the suite."
)
_NOTHING_RAN = (
    "stube: the option {option} was given, but no test of the conformance suite ran. "
    "Collect a file that says `from stube.testing.suite import *`."
)
_NOTHING_CHOSEN = (
    "stube: no test of the conformance suite ran that proves {numbers}. "
    "Collect a file that says `from stube.testing.suite import *`, and a backend that promises it."
)
_checks_key: pytest.StashKey[list[VirtualChecks]] = pytest.StashKey()
_ran_key: pytest.StashKey[bool] = pytest.StashKey()
_failed_key: pytest.StashKey[bool] = pytest.StashKey()
_records_key: pytest.StashKey[list[Record]] = pytest.StashKey()


class HandlerFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A handler failed under `virtual_registry`; the handler's own exception is the cause."""


class MakeRegistry(Protocol):
    """What the fixture `make_registry` gives: a function that makes a fresh backend under test."""

    def __call__(self, **options: Any) -> Backend:
        """Make one; it is closed, and its ledger checked, at the end of the test."""
        ...


# The options, the markers, and the care that something ran.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--stube-backend`, `--stube-guarantee`, `--stube-quick` and `--stube-report`."""
    group = parser.getgroup("stube")
    group.addoption(
        "--stube-backend",
        action="append",
        default=[],
        metavar="SPEC",
        help="run stube's conformance suite against this backend: a name, a URL or package.module:factory (repeatable)",
    )
    group.addoption(
        "--stube-guarantee",
        action="append",
        default=[],
        metavar="NUMBER",
        help="run only the tests that prove this guarantee, such as G5 (repeatable)",
    )
    group.addoption(
        "--stube-quick",
        action="store_true",
        help="inject at every fourth line and draw fewer random programs; only the full suite proves a backend",
    )
    group.addoption(
        "--stube-report",
        metavar="PATH",
        help="write what the run says about each guarantee: a .json file, or a folder for one of each backend",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, check the options, and watch the tests when a report is wanted."""
    for line in (
        "guarantee(*numbers): the guarantees of stube's contract that this test proves.",
        "stube_requires(*capabilities): skip on a backend that does not promise these capabilities.",
        "allow_failures: permit handlers to fail under the fixture virtual_registry.",
    ):
        config.addinivalue_line("markers", line)
    numbers: list[str] = config.getoption("stube_guarantee") or []
    if numbers:
        from stube.testing._guarantees import unknown_guarantee

        wrong = unknown_guarantee(numbers)
        if wrong is not None:
            raise pytest.UsageError(wrong)
    if config.getoption("stube_quick") and config.getoption("stube_report"):
        raise pytest.UsageError("--stube-report tells what the full suite found. Leave --stube-quick out.")
    # Under pytest-xdist the workers watch, and their controller is told and writes.
    if config.getoption("stube_report"):
        from stube.testing._records import Recording

        records = config.stash.setdefault(_records_key, [])
        config.pluginmanager.register(Recording(lambda _, record: records.append(record)), "stube.testing.recording")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses the backend under test once for each `--stube-backend`."""
    specs: list[str] = metafunc.config.getoption("stube_backend") or []
    if specs and "stube_backend" in metafunc.fixturenames:
        from stube.testing._redaction import shown

        # As a mark, for then pytest leaves the parameters of an overriding fixture aside.
        mark = pytest.mark.parametrize("stube_backend", specs, ids=map(shown, specs))
        metafunc.definition.add_marker(mark)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse a marker that names no guarantee; leave out what `--stube-guarantee` does not ask for."""
    from stube.testing._guarantees import unknown_guarantee

    wanted: set[str] = set(config.getoption("stube_guarantee") or ())
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        of_the_suite = "stube_backend" in getattr(item, "fixturenames", ())
        # Other tests may have a marker of that name which is their own.
        numbers = [one for mark in item.iter_markers("guarantee") for one in mark.args] if of_the_suite else []
        wrong = unknown_guarantee(numbers)
        if wrong is not None:
            raise pytest.UsageError(f"The marker of {item.nodeid} is wrong. {wrong}")
        (chosen if not wanted or wanted & set(numbers) else left_out).append(item)
    if left_out:
        items[:] = chosen
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test of the suite ran."""
    report = yield
    if report.when == "call" and not report.skipped and "stube_backend" in getattr(item, "fixturenames", ()):
        item.config.stash[_ran_key] = True
        item.stash[_failed_key] = report.failed
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the reports; turn green into an error when the suite was asked for and nothing of it ran."""
    config = session.config
    if config.getoption("collectonly") or hasattr(config, "workerinput"):
        return
    path: str | None = config.getoption("stube_report")
    complaints = [] if path is None else [_write_reports(config, Path(path))]
    # Under pytest-xdist the workers run the tests, so the controller cannot know; they have no option `dist`.
    if config.getoption("dist", "no") == "no" and not config.stash.get(_ran_key, False):
        complaints.append(_nothing_ran(config))
    green = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    for complaint in filter(None, complaints):
        if green:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and (green or complaint is complaints[0]):
            reporter.write_line(complaint, red=True)


def _nothing_ran(config: pytest.Config) -> str | None:
    """What to say when nothing of the suite ran; None when nobody asked for it."""
    numbers: list[str] = config.getoption("stube_guarantee") or []
    if numbers:
        return _NOTHING_CHOSEN.format(numbers=" or ".join(numbers))
    asked = [name for name in ("backend", "report") if config.getoption(f"stube_{name}")]
    return _NOTHING_RAN.format(option=f"--stube-{asked[0]}") if asked else None


def _write_reports(config: pytest.Config, path: Path) -> str | None:
    """Write what `--stube-report` asks for, and return why that is not possible, if it is not."""
    import re

    from stube.testing._report import report_of, write_report

    by_backend: dict[str, list[Record]] = {}
    for record in config.stash.get(_records_key, []):
        by_backend.setdefault(record["backend"], []).append(record)
    if not by_backend:
        return None  # which _nothing_ran tells
    numbers: list[str] = config.getoption("stube_guarantee") or []
    one_file = path.suffix == ".json"
    if one_file and len(by_backend) > 1:
        return (
            f"stube: --stube-report {path} names one file, and the suite ran on {', '.join(by_backend)}. Name a folder."
        )
    try:
        (path.parent if one_file else path).mkdir(parents=True, exist_ok=True)
        for backend, records in by_backend.items():
            seconds = sum(record["seconds"] for record in records)
            report = report_of(backend, records, seconds=seconds, numbers=numbers)
            write_report(path if one_file else path / f"{re.sub(r'[^-.+0-9A-Z_a-z]', '_', backend)}.json", report)
    except OSError as exc:
        return f"stube: --stube-report {path} cannot be written: {exc.strerror}. Name another file or folder."
    return None


# The backend under test.


@pytest.fixture
def stube_backend() -> Any:
    """The spec of the backend under test. Override it, or give `--stube-backend`."""
    pytest.fail(_NO_BACKEND, pytrace=False)


@pytest.fixture
def stube_options() -> Mapping[str, Any]:
    """Options that every registry of the suite is made with. Override it where a backend cannot do without."""
    return {}


@pytest.fixture(scope="session")
def stube_effort(pytestconfig: pytest.Config) -> Effort:
    """How often the suite repeats what it tries."""
    from stube.testing._effort import FULL, QUICK

    return QUICK if pytestconfig.getoption("stube_quick") else FULL


@pytest.fixture
def make_registry(
    request: pytest.FixtureRequest, stube_backend: Any, stube_options: Mapping[str, Any]
) -> Iterator[MakeRegistry]:
    """A function that makes a fresh backend under test, with further options.

    A test that requires a capability which the backend does not promise is skipped. At the end each registry is closed:
    its ledger must balance, before and after, and nothing may be left.
    """
    from stube.testing._capabilities import backend_name, missing_reason
    from stube.testing._drive import check_ledger, tripped
    from stube.testing._loops import create
    from stube.testing._records import UNDER_TEST

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
    tripped.clear()
    yield make
    if request.node.stash.get(_failed_key, False):  # one finding is enough; what it left behind is none
        for registry in [] if tripped else made:
            registry.close(1.0)
        return
    for registry in [] if tripped else made:
        check_ledger(registry)
        assert registry.close(30.0), f"close() did not stop everything: {registry.stats()}"
        stats = check_ledger(registry)
        assert (stats.timers, stats.queued, stats.subscriptions, stats.pending_flows) == (0, 0, 0, 0), stats


@pytest.fixture
def registry(make_registry: MakeRegistry) -> Backend:
    """A fresh backend under test, closed at teardown; there its ledger must balance with no figure negative."""
    return make_registry()


# The virtual registry of hosts.


class VirtualChecks:
    """What the fixture `virtual_registry` watches: the handlers that failed, and whether they may."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.registry: VirtualBackend | None = None
        # Every failure is counted; kept, until it is reported, is only one that was not allowed.
        self._collected = 0
        self._fresh: list[tuple[str, Event, BaseException]] = []

    def on_error(self, cid: str, event: Event, exception: BaseException) -> None:
        """Collect a failure of a handler, unless failures are allowed by now."""
        self._collected += 1
        if not self.allowed:
            self._fresh.append((cid, event, exception))

    def allow(self) -> None:
        """Permit failures from now on."""
        self.allowed = True

    def describe(self) -> tuple[str, BaseException] | None:
        """The failures that have not been reported yet, as a sentence, and the first of them."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return None
        cid, event, exception = fresh[0]
        more = f" {len(fresh) - 1} more failed after it." if len(fresh) > 1 else ""
        sentence = (
            f"A handler failed: {event!r} of conversation {cid!r} raised {type(exception).__name__}.{more} "
            "Mend it, or permit it with @pytest.mark.allow_failures or the fixture allow_failures."
        )
        return sentence, exception

    def check(self) -> None:
        """Raise when a handler failed that was not allowed to, or when the ledger does not balance."""
        found = self.describe()
        if found is not None:
            raise HandlerFailed(found[0]) from found[1]
        if self.registry is not None:
            stats = self.registry.stats()
            assert stats.balanced, f"The ledger does not balance: {stats.equation}"
            uncollected = stats.failed - self._collected
            assert uncollected <= 0, f"{uncollected} deliveries failed without reaching on_error: {stats}"


def _checks_of(request: pytest.FixtureRequest) -> VirtualChecks:
    checks = request.node.stash.setdefault(_checks_key, [])
    if not checks:
        checks.append(VirtualChecks(allowed=request.node.get_closest_marker("allow_failures") is not None))
    found: VirtualChecks = checks[0]
    return found


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail the test itself, rather than its teardown, when a handler failed in the course of it."""
    checks = pyfuncitem.stash.get(_checks_key, [])
    try:
        result = yield
    except Exception as exc:
        for check in checks:
            found = check.describe()
            if found is not None:
                exc.add_note(f"{found[0]}\nIt was: {found[1]!r}")
        raise
    for check in checks:
        check.check()
    return result


@pytest.fixture
def virtual_registry(request: pytest.FixtureRequest) -> Iterator[VirtualBackend]:
    """A registry whose clock stands still until the test moves it: `virtual_registry.advance(1000)`.

    The test fails when a handler failed, showing the handler's own exception as the cause, or when the ledger does not
    balance. Permit failures with the marker or the fixture `allow_failures`.
    """
    checks = _checks_of(request)
    with create_registry("virtual", on_error=checks.on_error) as registry:
        checks.registry = registry
        yield registry
        checks.check()


@pytest.fixture
def allow_failures(request: pytest.FixtureRequest) -> Callable[[], None]:
    """A function that permits handlers to fail under `virtual_registry`, from the call on."""
    return _checks_of(request).allow
