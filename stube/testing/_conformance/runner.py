"""The runner: it runs the suite in child processes until every test has an outcome.

A backend under test may deadlock, or end its process. The test that was running is then recorded as `hung` or
`crashed`, with the line that it had reached, and the remaining tests run in the next process. Every process except the
last gives at least one test an outcome, so the run ends.

A child depends on the backend and on the installed packages, and on nothing else of its surroundings: no setting or
`conftest.py` of the current folder, no other pytest plugin, and no variable that changes how Python or pytest work.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stube import StubeError
from stube._secrets import Secrets
from stube.testing._conformance.child import STARTING_SECONDS, Config
from stube.testing._conformance.outcomes import Facts, Record, Story, without_folders
from stube.testing._conformance.stacks import Stacks
from stube.testing._conformance.terminal import Progress
from stube.testing._contract.capabilities import backend_name

__all__ = ["ConformanceError", "Runner"]

MOST_LOST: Final = 10  # tests that hung or crashed; then the run stops, because the next hundreds would take hours
_POLL_SECONDS: Final = 0.05  # seconds between two readings of the events of the child
_GRACE_SECONDS: Final = 10.0  # seconds beyond the limit, for a child whose own time limit has no effect
_EXIT_SECONDS: Final = 5.0  # seconds for a child to end after the last test
_MOST_LINES: Final = 3  # of what a process that crashed has printed
_PROGRESS: Final = re.compile(r"[.sFEx]*\s*(\[ *\d+%\])?")  # the progress that pytest prints
_OUTPUT_BYTES: Final = 20_000  # how much of what a child prints is kept, for a child that ends before the first test
_ROOT: Final = str(Path(__file__).resolve().parents[3])  # where this stube stands

# Variables that change how Python, pytest or the suite work. `CI` lets pytest print whole differences, in minutes.
_FOREIGN: Final = re.compile(
    r"(PYTEST|HYPOTHESIS)_.*|CI|BUILD_NUMBER|STUBE_TEST_PATIENCE|"
    r"PYTHON(ASYNCIODEBUG|BREAKPOINT|DEVMODE|FAULTHANDLER|INSPECT|MALLOC|OPTIMIZE|PROFILEIMPORTTIME|STARTUP|TRACEMALLOC|"
    r"VERBOSE|WARNINGS)"
)


class ConformanceError(StubeError):
    """Nothing can be said about the backend: it cannot be made, or the suite cannot be run on it."""


class Runner:
    """A run of the suite, in as many child processes as are needed.

    Args:
        spec: as `create_registry` takes it.
        guarantees: those to test; none for all.
        keyword: which tests run, as pytest's `-k` takes it; empty for all.
        first_only: stop at the first test that fails.
        limit: seconds for one test.
        progress: shows every step.
        environment: more variables for the processes.
    """

    def __init__(
        self,
        spec: str,
        *,
        guarantees: Sequence[str],
        keyword: str = "",
        first_only: bool = False,
        limit: float,
        progress: Progress,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = spec
        self._more_environment = dict(environment or {})
        self._guarantees = list(guarantees)
        self._keyword = keyword
        self._first_only = first_only
        self._limit = limit
        self._progress = progress
        self.tests: dict[str, Facts] = {}
        """By node id, in the order in which they run."""
        self.numbers: dict[str, int] = {}
        """How many tests the suite has for each guarantee, with those that were not asked for."""
        self.records: dict[str, Record] = {}
        """By node id, of the tests that are over."""
        self._quick = 0  # how many of the tests are not costly; they run first
        self._begun: list[str] = []  # the node ids that the present child has begun
        self._test_thread = 0
        self._died: list[str] = []  # what ended a thread during the test that runs
        self._ended = False  # whether the present child has come to the end of the suite

    def run(self) -> None:
        """Run until every test has a record, one has failed and that is enough, or too many have hung or crashed.

        Raises:
            ConformanceError: no test could be begun.
            KeyboardInterrupt: the run was interrupted. The child has been ended; `records` holds the known outcomes.
        """
        with tempfile.TemporaryDirectory(prefix="stube-conformance-") as folder:
            while True:
                why = self._run_child(Path(folder))
                if self._ended and not self.tests:
                    raise ConformanceError(self._nothing_to_run())
                if self._first_only and self._ended and any(map(_has_failed, self.records.values())):
                    return
                interrupted = self._ended and self._begun and self._begun[-1] in self.records
                if len(self.records) < max(1, len(self.tests)) and not interrupted:
                    self._account_for(why)
                if len(self.records) == len(self.tests) or self.lost >= (1 if self._first_only else MOST_LOST):
                    return

    @property
    def lost(self) -> int:
        """How many tests hung or crashed."""
        return sum(record["outcome"] in ("hung", "crashed") for record in self.records.values())

    def _nothing_to_run(self) -> str:
        if self._keyword:
            return f"No test of the suite fits -k {self._keyword!r}. Give a part of a test's name, such as 'cancel'."
        return "The suite holds no such test. Reinstall stube, whose files are incomplete."

    def _account_for(self, why: _Ending) -> None:
        """Make records for the tests that have no outcome because the child ended."""
        if not self.tests:
            said = f" It printed: {why.output[-1]}" if why.output else ""
            raise ConformanceError(
                f"Nothing can be tested on {backend_name(self._spec)!r}: the process {why.deed} before the first "
                f"test.{said} Make sure that the backend can be imported and made."
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
            self._keep(identity, self._lost(identity, why, when))

    def _keep(self, identity: str, record: Record) -> None:
        """Keep the record of a test that is over, and tell what it says about the backend."""
        self.records[identity] = record
        self._progress.judge(record, over=len(self.records), quick=self._quick, total=len(self.tests))

    def _lost(self, identity: str, why: _Ending, when: str) -> Record:
        facts = self.tests[identity]
        said = [f"it printed: {line}" for line in why.output] if why.outcome == "crashed" else []
        finding = "\n".join([f"The {why.subject} {why.deed}{when}.", *why.stacks.lines, *self._died, *said])
        story: Story = {
            "test": facts["name"],
            "promise": facts["promise"],
            "fault": facts["fault"],
            "finding": Secrets(self._spec).redact(without_folders(finding)),
            "where": why.stacks.where or facts["where"],
            "program": "",
        }
        known = self.records.get(identity)
        return {
            "name": facts["name"],
            "backend": backend_name(self._spec),
            "promised": known["promised"] if known else None,
            "guarantees": facts["guarantees"],
            "capabilities": facts["capabilities"],
            "outcome": why.outcome,
            "blamed": facts["guarantees"],
            "seconds": round(why.seconds, 4),
            "story": story,
        }

    # One child

    def _run_child(self, folder: Path) -> _Ending:
        """Run one child until it ends, and return how it ended."""
        files = {name: folder / name for name in ("config", "events", "stacks", "settings.ini")}
        for name in ("events", "stacks", "settings.ini"):
            files[name].write_bytes(b"[pytest]\n" if name == "settings.ini" else b"")
        config: Config = {
            "spec": self._spec,
            "path": [os.path.abspath(path) for path in (*sys.path, "")],  # last the current folder
            "guarantees": self._guarantees,
            "keyword": self._keyword,
            "first_only": self._first_only,
            "done": list(self.records),
            "limit": self._limit,
            "events": str(files["events"]),
            "stacks": str(files["stacks"]),
            "settings": str(files["settings.ini"]),
        }
        # In a file that only this user can read, because every user can read the list of processes with a password.
        files["config"].write_text(json.dumps(config), encoding="utf-8")
        self._begun, self._ended, self._died = [], False, []
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stube.testing._conformance.child", str(files["config"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**_environment(folder), **self._more_environment},
            start_new_session=True,
        )
        printed = _Printed(process)
        try:
            overdue, seconds = self._follow(process, files["events"])
        finally:
            _end(process)
        output = printed.lines()
        stacks = files["stacks"].read_text(encoding="utf-8", errors="replace")
        hung = overdue or stacks.startswith("Timeout")
        deed = f"did not end within {self._limit:g} s" if hung else f"ended with {_code(process.returncode)}"
        return _Ending("hung" if hung else "crashed", deed, seconds, Stacks(stacks, self._test_thread), output)

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
                limit = self._limit if self._begun else max(self._limit, STARTING_SECONDS)
                if silence > limit + _GRACE_SECONDS:
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
                if self.tests and not told["tests"].keys() <= self.tests.keys():
                    raise ConformanceError("The suite has other tests in each process. Make its parameters constant.")
                self.tests = self.tests or told["tests"]
                self._quick = sum(not facts["costly"] for facts in self.tests.values())
                self.numbers = told["numbers"]
            case "start":
                self._begun.append(told["id"])
                self._test_thread, self._died = told["thread"], []
            case "died":
                self._died.append(told["sentence"])
            case "done":
                self._keep(told["id"], told["record"])
            case "end":
                self._ended = True

    def _show(self) -> None:
        current = self.tests[self._begun[-1]]["name"] if self._begun else ""
        failures = sum(map(_has_failed, self.records.values()))
        self._progress.show(len(self.records), len(self.tests), failures, current)


class _Ending:
    """The early end of a child: the outcome of the test that was running, and the line that it had reached."""

    def __init__(self, outcome: str, deed: str, seconds: float, stacks: Stacks, output: list[str]) -> None:
        self.outcome = outcome
        self.subject = "test" if outcome == "hung" else "process"
        self.deed = deed
        """The verb: what the test or the process did."""
        self.seconds = seconds
        self.stacks = stacks
        self.output = output
        """The last lines that the process printed."""


class _Printed:
    """What a child prints, of which only the end is kept. It is read all the time, so that no child waits for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._end = b""
        self._stream = process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._stream is not None
        with self._stream as stream:
            while chunk := os.read(stream.fileno(), 65_536):
                self._end = (self._end + chunk)[-_OUTPUT_BYTES:]

    def lines(self) -> list[str]:
        """Return the last lines, without those that pytest prints. To be called when the child has ended."""
        self._reader.join(_EXIT_SECONDS)  # a process that escaped the child's group may still hold the pipe
        text = self._end.decode(errors="replace")
        return [line.strip() for line in text.splitlines() if not _PROGRESS.fullmatch(line)][-_MOST_LINES:]


def _has_failed(record: Record) -> bool:
    return record["outcome"] not in ("passed", "skipped")


def _code(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return f"the signal {signal.Signals(-code).name}"
    except ValueError:
        return f"the signal {-code}"


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment for a child: the one of this process without what would change the outcome."""
    environment = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    named = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if _ROOT not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        named.insert(0, _ROOT)  # a source tree, from which the child takes this stube and no installed one
    environment["PYTHONPATH"] = os.pathsep.join(named)
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
