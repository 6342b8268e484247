"""The options and markers of the plugin, and the reports that the options ask for."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stube.testing._conformance.outcomes import Record

_NOTHING_RAN = (
    "stube: the option {option} was given, but no test of the conformance suite ran. "
    "Collect a file that says `from stube.testing.suite import *`."
)
_NOTHING_CHOSEN = (
    "stube: no test of the conformance suite ran that proves {numbers}. "
    "Collect a file that says `from stube.testing.suite import *`, and a backend that promises it."
)
_ran_key: pytest.StashKey[bool] = pytest.StashKey()
_records_key: pytest.StashKey[list[Record]] = pytest.StashKey()


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
    """Register the markers, check the options, and record the tests when a report is wanted."""
    for line in (
        "guarantee(*numbers): the guarantees of stube's contract that this test proves.",
        "stube_costly: this test takes long, so all tests of the suite that are not costly run before it.",
        "stube_requires(*capabilities): skip on a backend that does not promise these capabilities.",
        "allow_failures: permit handlers to fail under the fixture virtual_registry.",
    ):
        config.addinivalue_line("markers", line)
    numbers: list[str] = config.getoption("stube_guarantee") or []
    if numbers:
        from stube.testing._contract.guarantees import unknown_guarantee

        wrong = unknown_guarantee(numbers)
        if wrong is not None:
            raise pytest.UsageError(wrong)
    if config.getoption("stube_quick") and config.getoption("stube_report"):
        raise pytest.UsageError("--stube-report tells what the full suite found. Leave --stube-quick out.")
    # Under pytest-xdist the workers record, and send the records to their controller, which writes.
    if config.getoption("stube_report"):
        from stube.testing._conformance.outcomes import Recording

        records = config.stash.setdefault(_records_key, [])
        config.pluginmanager.register(Recording(lambda _, record: records.append(record)), "stube.testing.recording")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses the backend under test once for each `--stube-backend`."""
    specs: list[str] = metafunc.config.getoption("stube_backend") or []
    if specs and "stube_backend" in metafunc.fixturenames:
        from stube._secrets import shown

        # As a mark, because pytest then ignores the parameters of an overriding fixture.
        mark = pytest.mark.parametrize("stube_backend", specs, ids=map(shown, specs))
        metafunc.definition.add_marker(mark)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse a marker that names no guarantee; deselect the tests that `--stube-guarantee` does not ask for.

    The costly tests of the suite take the last places of its tests, so that most faults show within seconds.
    """
    from stube.testing._contract.guarantees import unknown_guarantee

    wanted: set[str] = set(config.getoption("stube_guarantee") or ())
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        of_the_suite = "stube_backend" in getattr(item, "fixturenames", ())
        # Tests outside the suite may use a marker of that name for their own purposes.
        numbers = [one for mark in item.iter_markers("guarantee") for one in mark.args] if of_the_suite else []
        wrong = unknown_guarantee(numbers)
        if wrong is not None:
            raise pytest.UsageError(f"The marker of {item.nodeid} is wrong. {wrong}")
        (chosen if not wanted or wanted & set(numbers) else left_out).append(item)
    items[:] = _quick_first(chosen)
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def _quick_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests, those of the suite in the order of their costs, each other one in its place."""
    of_the_suite = [item for item in items if item.get_closest_marker("guarantee") is not None]
    ordered = iter(sorted(of_the_suite, key=lambda item: item.get_closest_marker("stube_costly") is not None))
    return [next(ordered) if item.get_closest_marker("guarantee") is not None else item for item in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test of the suite ran."""
    report = yield
    if report.when == "call" and not report.skipped and "stube_backend" in getattr(item, "fixturenames", ()):
        item.config.stash[_ran_key] = True
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the reports; turn success into an error when the suite was asked for and no test of it ran."""
    config = session.config
    if config.getoption("collectonly") or hasattr(config, "workerinput"):
        return
    path: str | None = config.getoption("stube_report")
    complaints = [] if path is None else [_write_reports(config, Path(path))]
    # Under pytest-xdist the workers run the tests, so the controller cannot know. Workers have no option `dist`.
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
    """Return what to say when no test of the suite ran; None when no option asked for it."""
    numbers: list[str] = config.getoption("stube_guarantee") or []
    if numbers:
        return _NOTHING_CHOSEN.format(numbers=" or ".join(numbers))
    asked = [name for name in ("backend", "report") if config.getoption(f"stube_{name}")]
    return _NOTHING_RAN.format(option=f"--stube-{asked[0]}") if asked else None


def _write_reports(config: pytest.Config, path: Path) -> str | None:
    """Write what `--stube-report` asks for. Return why that is not possible, or None."""
    from stube.testing._conformance.report import report_of, write_report

    by_backend: dict[str, list[Record]] = {}
    for record in config.stash.get(_records_key, []):
        by_backend.setdefault(record["backend"], []).append(record)
    if not by_backend:
        return None  # _nothing_ran says so
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
