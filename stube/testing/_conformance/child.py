"""The process in which the conformance command runs the suite, and what it tells of it.

`python -m stube.testing._conformance.child CONFIG` reads a JSON file (see `Config`) and appends one JSON object per
line to the file that it names:

    {"event": "refused", "message"}             the backend cannot be made; there will be no tests
    {"event": "wrong", "message"}               a file of the suite cannot be collected
    {"event": "collected", "tests"}             each node id with the test's facts
    {"event": "start", "id"}
    {"event": "done", "id", "record"}
    {"event": "end"}

The backend may deadlock here or end the process, at any moment. So every line is written at once, and a watch that
needs no lock of the interpreter's writes the stacks of all threads to another file when a test exceeds its limit, and
ends the process. That holds, too, when the command that started it is no more.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import pytest

from stube import StubeError, create_registry
from stube.testing._conformance.outcomes import Record, Recording, facts_of, of_the_suite, record_of
from stube.testing._conformance.redaction import redaction
from stube.testing._contract.capabilities import backend_name

__all__ = ["Config", "main"]

_TESTING: Final = Path(__file__).resolve().parents[1]


class Config(TypedDict):
    """What the process is told."""

    spec: str
    guarantees: list[str]
    """Those whose tests run; none for all."""
    done: list[str]
    """The node ids of the tests that are left out, for they are over."""
    limit: float
    """Seconds for one test, its fixtures included."""
    events: str
    """The file for the events."""
    stacks: str
    """The file for the stacks."""
    settings: str
    """The configuration file for pytest, instead of whatever lies about."""


class _Teller:
    """A pytest plugin that writes the events, leaves out what is over, and sets the watch for each test."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._process = os.getpid()
        self._events = os.open(config["events"], os.O_WRONLY | os.O_APPEND)
        self._stacks = os.open(config["stacks"], os.O_WRONLY | os.O_APPEND)
        self._running: pytest.Item | None = None

    def watch(self) -> None:
        """Begin the time limit anew."""
        os.ftruncate(self._stacks, 0)
        faulthandler.enable(self._stacks)
        faulthandler.dump_traceback_later(self._config["limit"], file=self._stacks, exit=True)

    def tell(self, event: str, **more: Any) -> None:
        """Write one event, unless this is a forked child that has lost its way."""
        if os.getpid() == self._process:
            os.write(self._events, json.dumps({"event": event, **more}).encode() + b"\n")

    def done(self, identity: str, record: Record) -> None:
        """Tell that a test is over."""
        self._running = None
        self.tell("done", id=identity, record=record)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what is over, and what proves nothing about a backend."""
        over = set(self._config["done"])
        items[:] = [item for item in items if of_the_suite(item) and item.nodeid not in over]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of a file that cannot be collected."""
        if report.failed:
            self.tell("wrong", message=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell which tests there are."""
        self.tell("collected", tests={item.nodeid: facts_of(item) for item in session.items})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Tell that a test starts, and begin its time."""
        self._running = item
        self.watch()
        self.tell("start", id=item.nodeid)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell of the test that ended the whole run: by a KeyboardInterrupt out of the backend, say."""
        item = self._running
        if item is not None:
            self.done(item.nodeid, {**record_of(item, excinfo), "outcome": "crashed"})


def main(arguments: Sequence[str]) -> int:
    """Run the suite as the file `arguments[0]` says; pytest's exit code."""
    config: Config = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    teller = _Teller(config)
    teller.watch()
    refusal = _refusal(config["spec"])
    if refusal is not None:
        teller.tell("refused", message=refusal)
        return int(pytest.ExitCode.USAGE_ERROR)
    code = pytest.main(
        [
            *("--pyargs", "stube.testing.suite", "-q", "-c", config["settings"]),
            *(f"--rootdir={_TESTING.parents[1]}", f"--confcutdir={_TESTING}"),
            *("-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "stube.testing.plugin"),
            f"--stube-backend={config['spec']}",
            *(f"--stube-guarantee={number}" for number in config["guarantees"]),
        ],
        plugins=[teller, Recording(teller.done)],
    )
    teller.tell("end")
    return int(code)


def _refusal(spec: str) -> str | None:
    """Why the backend cannot be made, in the factory's own words; None when it can. That it closes the suite tests."""
    try:
        create_registry(spec)
    except StubeError as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 - whatever a stranger's backend raises
        said = redaction(spec)(f"{type(exc).__name__}: {exc}".partition("\n")[0])
        return f"The backend {backend_name(spec)!r} raises {said!r} when it is made. Mend it there."
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
