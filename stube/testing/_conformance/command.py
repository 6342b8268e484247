"""The command: it runs the suite in child processes until every test has an outcome.

A backend under test may deadlock, or end its process. The test that was running is then recorded as `hung` or
`crashed`, with the line that it had reached, and the remaining tests run in the next process. Every process except the
last gives at least one test an outcome, so the command ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stube import StubeError
from stube.testing._conformance.child import Config
from stube.testing._conformance.outcomes import Facts, Record, Story, place
from stube.testing._conformance.page import write_page
from stube.testing._conformance.report import Report, report_of, write_report
from stube.testing._conformance.terminal import Progress, table_of
from stube.testing._contract.capabilities import backend_name
from stube.testing._harness import DISPATCH, DISPATCHES, LOOP, LOOPS

__all__ = ["ConformanceError", "Runner", "conform"]

_POLL_SECONDS: Final = 0.05  # seconds between two readings of the events of the child
_GRACE_SECONDS: Final = 10.0  # seconds beyond the limit, for a child whose own time limit has no effect
_EXIT_SECONDS: Final = 5.0  # seconds for a child to end after the last test
_MOST_FRAMES: Final = 8  # of the stack of a test that hung
_MOST_LOST: Final = 20  # tests that hung or crashed; then the run stops, because the next hundreds would take hours
_FRAME: Final = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_OF_PYTEST: Final = re.compile(r"[\\/](_pytest|pluggy)[\\/]")
_SUITE: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "suite")


class ConformanceError(StubeError):
    """Nothing can be said about the backend: it cannot be made, or the suite cannot be run on it."""


def conform(
    spec: str,
    *,
    guarantees: Sequence[str] = (),
    limit: float = 120.0,
    json_file: Path | None = None,
    html_file: Path | None = None,
    quiet: bool = False,
    loop: str = LOOPS[0],
    dispatch: str = DISPATCHES[0],
) -> int:
    """Run the suite on a backend, show the result, and write the reports.

    Args:
        spec: a name, a URL or `package.module:factory`.
        guarantees: those to test; none for all.
        limit: seconds for one test, including its fixtures.
        json_file, html_file: the files for the reports; None for no report.
        quiet: show no progress.
        loop, dispatch: of `LOOPS` and `DISPATCHES`; for a backend that is served by an event loop.

    Returns:
        0 if the backend holds everything that it promises, 1 if something is broken or unproven, 130 if the run was
        interrupted. After an interruption the results up to then are shown, and no file is written.

    Raises:
        ConformanceError: the backend cannot be made, or a report cannot be written.
        ModuleNotFoundError: a package of the extra `testing` is missing.
    """
    if importlib.util.find_spec("hypothesis") is None:  # only the suite's files import it, in the child
        raise ModuleNotFoundError("No module named 'hypothesis'", name="hypothesis")
    if importlib.util.find_spec(loop) is None:
        raise ConformanceError(f"The loop {loop!r} is not installed. Install it with: pip install {loop}")
    outputs: list[tuple[Path, Callable[[Path, Report], None]]] = []
    if json_file is not None:
        outputs.append((json_file, write_report))
    if html_file is not None:
        outputs.append((html_file, write_page))
    for file, _ in outputs:
        _check_writable(file)
    progress = Progress(sys.stderr, quiet=quiet)
    served = {LOOP: loop, DISPATCH: dispatch}
    runner = Runner(spec, guarantees=guarantees, limit=limit, progress=progress, environment=served)
    interrupted = False
    begin = time.monotonic()
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.clear()
    seconds = time.monotonic() - begin
    report = report_of(backend_name(spec), list(runner.records.values()), seconds=seconds, numbers=guarantees)
    print(table_of(report, sys.stdout))
    count = f"{len(runner.records)} of {len(runner.tests)} tests"
    if interrupted:
        print(f"Interrupted after {count}." if runner.tests else "Interrupted before the first test.")
        return 130
    if len(runner.records) < len(runner.tests):
        print(f"Stopped after {count}, because {_MOST_LOST} of them hung or crashed.")
    for file, write in outputs:
        try:
            write(file, report)
        except OSError as exc:
            raise ConformanceError(_not_writable(file, exc.strerror)) from exc
    return 0 if report["ok"] else 1


def _check_writable(file: Path) -> None:
    """Refuse a report that cannot be written, before the run."""
    if file.is_dir():
        raise ConformanceError(_not_writable(file, "Is a directory"))
    if not file.parent.is_dir():
        raise ConformanceError(_not_writable(file, "No such file or directory"))
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConformanceError(_not_writable(file, "Permission denied"))


def _not_writable(file: Path, why: str | None) -> str:
    return f"The report {str(file)!r} cannot be written: {why}. Name a file in a folder that exists."


class Runner:
    """A run of the suite, in as many child processes as are needed.

    Args:
        spec: as `create_registry` takes it.
        guarantees: those to test; none for all.
        limit: seconds for one test.
        progress: shows every step.
        environment: more variables for the processes.
    """

    def __init__(
        self,
        spec: str,
        *,
        guarantees: Sequence[str],
        limit: float,
        progress: Progress,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = spec
        self._more_environment = dict(environment or {})
        self._guarantees = list(guarantees)
        self._limit = limit
        self._progress = progress
        self.tests: dict[str, Facts] = {}
        """By node id, in the order in which they run."""
        self.records: dict[str, Record] = {}
        """By node id, of the tests that are over."""
        self._begun: list[str] = []  # the node ids that the present child has begun
        self._ended = False  # whether the present child has come to the end of the suite

    def run(self) -> None:
        """Run until every test has a record, or too many have hung or crashed.

        Raises:
            ConformanceError: no test could be begun.
            KeyboardInterrupt: the run was interrupted. The child has been ended; `records` holds the known outcomes.
        """
        with tempfile.TemporaryDirectory(prefix="stube-conformance-") as folder:
            while True:
                why = self._run_child(Path(folder))
                if self._ended and not self.tests:
                    raise ConformanceError("The suite holds no such test. Reinstall stube, whose files are incomplete.")
                interrupted = self._ended and self._begun and self._begun[-1] in self.records
                if len(self.records) < max(1, len(self.tests)) and not interrupted:
                    self._account_for(why)
                lost = sum(record["outcome"] in ("hung", "crashed") for record in self.records.values())
                if len(self.records) == len(self.tests) or lost >= _MOST_LOST:
                    return

    def _account_for(self, why: _Ending) -> None:
        """Make records for the tests that have no outcome because the child ended."""
        if not self.tests:
            raise ConformanceError(
                f"Nothing can be tested on {backend_name(self._spec)!r}: the process {why.deed} before the first "
                "test. Make sure that the backend can be imported and made."
            )
        if not self._begun:
            taken = [identity for identity in self.tests if identity not in self.records]
            when = " before this test began"
        elif self._begun[-1] in self.records:
            # The test ended, but what it left behind ended the process. So it must not count as passed.
            taken, when = self._begun[-1:], " right after this test"
        else:
            taken, when = self._begun[-1:], ""
        for identity in taken:
            self.records[identity] = self._lost(identity, why, when)

    def _lost(self, identity: str, why: _Ending, when: str) -> Record:
        facts = self.tests[identity]
        story: Story = {
            "test": facts["name"],
            "promise": facts["promise"],
            "fault": facts["fault"],
            "finding": "\n".join([f"The {why.subject} {why.deed}{when}.", *why.stack]),
            "where": why.where or facts["where"],
        }
        known = self.records.get(identity)
        return {
            "name": facts["name"],
            "backend": backend_name(self._spec),
            "promised": known["promised"] if known else None,
            "guarantees": facts["guarantees"],
            "capabilities": facts["capabilities"],
            "outcome": why.outcome,
            "seconds": round(why.seconds, 4),
            "story": story,
        }

    # One child

    def _run_child(self, folder: Path) -> _Ending:
        """Run one child until it ends, and return how it ended."""
        files = {name: folder / name for name in ("config", "events", "stacks", "settings.ini", "log")}
        for name in ("events", "stacks", "settings.ini"):
            files[name].write_bytes(b"[pytest]\n" if name == "settings.ini" else b"")
        config: Config = {
            "spec": self._spec,
            "guarantees": self._guarantees,
            "done": list(self.records),
            "limit": self._limit,
            "events": str(files["events"]),
            "stacks": str(files["stacks"]),
            "settings": str(files["settings.ini"]),
        }
        # In a file that only this user can read, because every user can read the list of processes with a password.
        files["config"].write_text(json.dumps(config), encoding="utf-8")
        self._begun, self._ended = [], False
        with files["log"].open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "stube.testing._conformance.child", str(files["config"])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_environment(folder), **self._more_environment},
                start_new_session=True,
            )
        try:
            overdue, seconds = self._follow(process, files["events"])
        finally:
            _end(process)
        stacks = files["stacks"].read_text(encoding="utf-8", errors="replace")
        if overdue or stacks.startswith("Timeout"):
            return _Ending("hung", f"did not end within {self._limit:g} s", seconds, stacks)
        return _Ending("crashed", f"ended with {_code(process.returncode)}", seconds, stacks)

    def _follow(self, process: subprocess.Popen[bytes], events: Path) -> tuple[bool, float]:
        """Read the events of a child until it ends. Return whether it is overdue, and seconds since the last event."""
        latest = time.monotonic()
        with events.open("rb") as told:
            rest = b""
            while True:
                over = process.poll() is not None
                *lines, rest = (rest + told.read()).split(b"\n")
                for line in lines:
                    self._take_in(json.loads(line))
                    latest = time.monotonic()
                self._show()
                silence = time.monotonic() - latest
                if over or (self._ended and silence > _EXIT_SECONDS):
                    return False, silence
                if silence > self._limit + _GRACE_SECONDS:
                    return True, silence
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    pass

    def _take_in(self, told: dict[str, Any]) -> None:
        match told["event"]:
            case "refused":
                raise ConformanceError(told["message"])
            case "wrong":
                last = told["message"].strip().splitlines()[-1]
                raise ConformanceError(f"The suite cannot be collected: {last} Fix that, or reinstall stube[testing].")
            case "collected":
                self.tests = self.tests or told["tests"]
            case "start":
                self._begun.append(told["id"])
            case "done":
                self.records[told["id"]] = told["record"]
            case "end":
                self._ended = True

    def _show(self) -> None:
        current = self.tests[self._begun[-1]]["name"] if self._begun else ""
        failures = sum(record["outcome"] not in ("passed", "skipped") for record in self.records.values())
        self._progress.show(len(self.records), len(self.tests), failures, current)


class _Ending:
    """The early end of a child: the outcome of the test that was running, and the line that it had reached."""

    def __init__(self, outcome: str, deed: str, seconds: float, stacks: str) -> None:
        self.outcome = outcome
        self.subject = "test" if outcome == "hung" else "process"
        self.deed = deed
        """The verb: what the test or the process did."""
        self.seconds = seconds
        frames = _frames(stacks)
        self.stack = [f"it was in {function}, {place(file, line)}" for file, line, function in frames[:1]]
        self.stack += [f"called by {function}, {place(file, line)}" for file, line, function in frames[1:]]
        inside = [(file, line) for file, line, _ in frames if file.startswith(_SUITE + os.sep)]
        self.where = place(*inside[-1]) if inside else ""


def _frames(stacks: str) -> list[tuple[str, int, str]]:
    """Return the stack of the main thread, innermost first, down to the test or, in a fixture, to pytest."""
    threads: list[list[tuple[str, int, str]]] = []
    for line in stacks.splitlines():
        found = _FRAME.match(line)
        if found is None:
            threads.append([])
        elif threads:
            threads[-1].append((found["file"], int(found["line"]), found["function"]))
    threads = [frames for frames in threads if frames]
    testing = [frames for frames in threads if any(file.startswith(_SUITE + os.sep) for file, _, _ in frames)]
    # If several threads are inside the suite, the test's own has pytest beneath it, so its stack is the longest.
    frames = max(testing or threads, key=len, default=[])
    stack: list[tuple[str, int, str]] = []
    for frame in frames[:_MOST_FRAMES]:
        if _OF_PYTEST.search(frame[0]):
            break
        stack.append(frame)
        if frame[0].startswith(_SUITE + os.sep):
            break
    return stack


def _code(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return f"the signal {signal.Signals(-code).name}"
    except ValueError:
        return f"the signal {-code}"


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment for a child that finds the same modules, but loads no other installed pytest plugin."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    return environment


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and the processes that it has started, and reap it."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # all of them have ended
            pass
    else:
        process.kill()
    process.wait()
