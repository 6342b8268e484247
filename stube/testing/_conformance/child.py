"""The process in which the conformance command runs the suite, and the events that it writes.

`python -m stube.testing._conformance.child CONFIG` reads a JSON file (see `Config`) and appends one JSON object per
line to the file that it names:

    {"event": "refused", "message"}             the backend cannot be made; there will be no tests
    {"event": "wrong", "message"}               a file of the suite cannot be collected
    {"event": "collected", "tests", "numbers"}  each node id with the test's facts; the tests of each guarantee,
                                                counted before any is left out
    {"event": "start", "id", "thread"}          the thread is the one that runs the test
    {"event": "died", "sentence"}               what ended a thread while the test runs
    {"event": "done", "id", "record"}
    {"event": "end"}

The backend may deadlock here or end the process, at any moment. So every line is written immediately. When a test
exceeds its limit, `faulthandler`, which needs no lock of the interpreter, writes the stacks of all threads to another
file and ends the process. It does so even if the command that started this process has ended.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import pytest

from stube import StubeError, create_registry
from stube._secrets import Secrets
from stube.testing._conformance.outcomes import SUITE, Record, Recording, facts_of, of_the_suite, record_of
from stube.testing._contract.capabilities import backend_name
from stube.testing._plugin.dead_threads import listeners

__all__ = ["STARTING_SECONDS", "Config", "main"]

STARTING_SECONDS: Final = 60.0
"""The least time for a process to come to its first test; on a busy machine the imports take long."""

_TESTING: Final = Path(__file__).resolve().parents[1]


class Config(TypedDict):
    """The configuration of the process."""

    spec: str
    path: list[str]
    """The folders in which the parent process finds modules. Those that this process lacks come last here, so that no
    file of the current folder takes the place of a module of Python or of pytest."""
    guarantees: list[str]
    """The guarantees whose tests run; none for all."""
    keyword: str
    """An expression as pytest's `-k` takes it; empty for all tests."""
    first_only: bool
    """Whether the first test that fails ends the run."""
    done: list[str]
    """The node ids of the tests that are left out because they have an outcome."""
    limit: float
    """Seconds for one test, including its fixtures."""
    events: str
    """The file for the events."""
    stacks: str
    """The file for the stacks."""
    settings: str
    """The configuration file for pytest, so that it uses none of the current folder."""


class _EventWriter:
    """A pytest plugin that writes the events, leaves out the finished tests, and limits the time of each test."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._process = os.getpid()
        self._events = os.open(config["events"], os.O_WRONLY | os.O_APPEND)
        self._stacks = os.open(config["stacks"], os.O_WRONLY | os.O_APPEND)
        self._running: pytest.Item | None = None
        self._numbers: Counter[str] = Counter()

    def watch(self, seconds: float) -> None:
        """Start the time limit again."""
        os.ftruncate(self._stacks, 0)
        faulthandler.enable(self._stacks)
        faulthandler.dump_traceback_later(seconds, file=self._stacks, exit=True)

    def tell(self, event: str, **more: Any) -> None:
        """Write one event, except in a child that a test has forked."""
        if os.getpid() == self._process:
            os.write(self._events, json.dumps({"event": event, **more}).encode() + b"\n")

    def done(self, identity: str, record: Record) -> None:
        """Write that a test has ended."""
        self._running = None
        self.tell("done", id=identity, record=record)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Leave out the finished tests, and those that prove nothing about a backend."""
        for item in filter(of_the_suite, items):
            self._numbers.update(facts_of(item)["guarantees"])
        yield
        over = set(self._config["done"])
        items[:] = [item for item in items if of_the_suite(item) and item.nodeid not in over]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write that a file cannot be collected."""
        if report.failed:
            self.tell("wrong", message=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write which tests were collected."""
        tests = {item.nodeid: facts_of(item) for item in session.items}
        self.tell("collected", tests=tests, numbers=self._numbers)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Write that a test starts, and start its time limit."""
        self._running = item
        self.watch(self._config["limit"])
        self.tell("start", id=item.nodeid, thread=threading.get_ident())

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Write the outcome of a test that ended the whole run, for example by a KeyboardInterrupt from the backend."""
        item = self._running
        if item is not None:
            self.done(item.nodeid, {**record_of(item, excinfo), "outcome": "crashed"})


def main(arguments: Sequence[str]) -> int:
    """Run the suite as the file `arguments[0]` says. Return pytest's exit code."""
    config: Config = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    sys.path += [folder for folder in config["path"] if folder not in sys.path]
    writer = _EventWriter(config)
    writer.watch(max(config["limit"], STARTING_SECONDS))
    listeners.append(lambda sentence: writer.tell("died", sentence=sentence))
    refusal = _refusal(config["spec"])
    if refusal is not None:
        writer.tell("refused", message=refusal)
        return int(pytest.ExitCode.USAGE_ERROR)
    code = pytest.main(
        [
            # A path, because for the name of a package pytest would load the `conftest.py` of the current folder.
            *(SUITE, "-q", "-c", config["settings"]),
            *(f"--rootdir={_TESTING.parents[1]}", f"--confcutdir={_TESTING}"),
            # Nothing is captured, because a backend that prints without end would fill the disk.
            *("--capture=no", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "stube.testing.plugin"),
            *(["-k", config["keyword"]] if config["keyword"] else []),
            *["--exitfirst"] * config["first_only"],
            f"--stube-backend={config['spec']}",
            *(f"--stube-guarantee={number}" for number in config["guarantees"]),
        ],
        plugins=[writer, Recording(writer.done)],
    )
    writer.tell("end")
    return int(code)


def _refusal(spec: str) -> str | None:
    """Return why the backend cannot be made, in the factory's own words; None if it can."""
    try:
        create_registry(spec)
    except StubeError as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 - a backend may raise anything
        said = Secrets(spec).redact(f"{type(exc).__name__}: {exc}".partition("\n")[0])
        return f"The backend {backend_name(spec)!r} raises {said!r} when it is made. Fix it there."
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
