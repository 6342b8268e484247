"""Run tests of the conformance suite on changed copies of a backend, in forks of a process that has collected them.

To load pytest and to collect the suite takes two seconds; a fork takes milliseconds. What differs from one run to the
next is the folder in which a fork finds the backend's module, so that is all that a fork imports anew. `PreloadedSuite`
starts this file as a program and sends it requests over a pipe. POSIX only.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TextIO, TypedDict

import pytest

from tools.preloaded import MEMORY, ROOT, STACK, Answering, Running

# Nothing of stube.testing is imported here, because pytest rewrites the assertions only of what it loads itself.

QUICK_PATIENCE: Final = 1.5
"""Seconds that a test waits for what a fault prevents, so that an assertion says so soon."""


@dataclass(frozen=True)
class Outcome:
    """The result of one test of the suite."""

    test: str
    """The function's name, with the parameters other than the backend: `test_x[one]`."""
    guarantees: tuple[str, ...]
    blamed: tuple[str, ...]
    """The guarantees that it found broken; empty if it has not failed."""
    failed: bool
    by_assertion: bool
    """Whether an assertion failed, or `pytest.raises` saw nothing raised. A time limit is neither."""
    error: str
    """The type of the exception; empty if it has not failed."""
    message: str
    seconds: float


class Request(TypedDict):
    """What a fork does."""

    backend: str
    """The spec of the backend, `module:factory`."""
    folder: str
    """Where the fork finds that module."""
    tests: list[str] | None
    """The names of the functions to run, each with or without parameters; None for all."""
    guarantee: str | None
    """The fork stops as soon as an assertion blames this guarantee; None for any. Without `tests`, it runs the tests
    that have its mark; None for the whole suite."""
    quick: bool
    """Whether the suite repeats as rarely as with `--stube-quick`."""
    limit: float
    """Seconds after which the fork is killed."""


class PreloadedSuite(Answering):
    """A process that has collected the suite for some backends, and runs parts of it in forks.

    Args:
        backends: the specs of the backends.
        patience: seconds that a test waits for what must happen; None for the suite's own number.
    """

    def __init__(self, backends: Iterable[str], patience: float | None = QUICK_PATIENCE) -> None:
        # Other plugins would take time and play no part.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if patience is not None:
            environment["STUBE_TEST_PATIENCE"] = str(patience)
        command = [sys.executable, "-m", "tests.outsiders.preloaded_suite", *backends]
        super().__init__(command, cwd=ROOT, env=environment)

    def run(
        self,
        backend: str,
        folder: Path,
        tests: Sequence[str] | None = None,
        *,
        guarantee: str | None = None,
        quick: bool = True,
        limit: float = 120.0,
    ) -> list[Outcome]:
        """Run tests of the suite in a fork that finds the backend in the folder. See `Request`.

        Raises:
            TimeoutError: if the fork was killed. The time limit of a runner catches no fault.
        """
        request: Request = {
            "backend": backend,
            "folder": str(folder),
            "tests": None if tests is None else list(tests),
            "guarantee": guarantee,
            "quick": quick,
            "limit": limit,
        }
        answer = self.ask({**request})
        if answer["stopped"]:
            ended = [each["test"] for each in answer["outcomes"]]
            raise TimeoutError(f"{answer['stopped']} after these tests: {ended}\n{answer['printed']}")
        return [
            Outcome(**{**each, "guarantees": tuple(each["guarantees"]), "blamed": tuple(each["blamed"])})
            for each in answer["outcomes"]
        ]


# The process


class _Server:
    """A pytest plugin that answers requests instead of running the collected tests."""

    def __init__(self, requests: TextIO, answers: TextIO, folder: Path) -> None:
        self._requests = requests
        self._answers = answers
        self._report = folder / "report.json"
        self._output = folder / "output.txt"
        self._outcomes: list[Outcome] = []
        self._found: Outcome | None = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork for each request, until the pipe is closed."""
        gc.collect()
        gc.freeze()
        for line in self._requests:
            request: Request = json.loads(line)
            self._report.write_text("[]")
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                self._run_in_fork(session, request)
            ended = Running(pid, self._report, time.monotonic()).wait(request["limit"])
            outcomes = json.loads(self._report.read_text())
            stopped = f"killed after {request['limit']} s" if ended.timed_out else ""
            if not stopped and (not outcomes or outcomes.pop() != "end"):
                stopped = "the process ended"
            printed = self._output.read_text(encoding="utf-8", errors="replace")[-10_000:]
            print(
                json.dumps({"stopped": stopped, "outcomes": outcomes, "printed": printed}),
                file=self._answers,
                flush=True,
            )
        return True

    def _run_in_fork(self, session: pytest.Session, request: Request) -> None:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            threading.stack_size(STACK)
            output = os.open(self._output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.path.insert(0, request["folder"])
            session.config.option.stube_quick = request["quick"]
            for item in _chosen(session.items, request):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                last = self._outcomes[-1]
                if last.by_assertion and (request["guarantee"] is None or request["guarantee"] in last.blamed):
                    break
            self._write("end")
        except BaseException:  # noqa: BLE001 - this process is a copy, which must end here whatever happens
            traceback.print_exc()
        finally:
            os._exit(0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how a phase of a test ended; the first that failed counts."""
        report = yield
        before = 0.0 if self._found is None else self._found.seconds
        if self._found is None or not self._found.failed:
            self._found = _outcome(item, call.excinfo if report.failed else None)
        self._found = replace(self._found, seconds=round(before + report.duration, 3))
        if report.when == "teardown":
            self._outcomes.append(self._found)
            self._found = None
            self._write()
        return report

    def _write(self, *more: str) -> None:
        fresh = self._report.with_suffix(".new")
        fresh.write_text(json.dumps([*map(asdict, self._outcomes), *more]))
        fresh.replace(self._report)


def _chosen(items: Iterable[pytest.Item], request: Request) -> list[pytest.Item]:
    """Return the tests that a request asks for, in the order in which it names them, else in the suite's."""
    own = [item for item in items if _backend_of(item) == request["backend"]]
    if request["tests"] is not None:
        return [item for name in request["tests"] for item in own if _is_called(item, name)]
    if request["guarantee"] is not None:
        own = [item for item in own if request["guarantee"] in _marks(item)]
    return sorted(own, key=lambda item: item.get_closest_marker("stube_costly") is not None)


def _backend_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else str(callspec.params.get("stube_backend"))


def _is_called(item: pytest.Item, name: str) -> bool:
    return name in (getattr(item, "originalname", item.name), _name_of(item))


def _name_of(item: pytest.Item) -> str:
    from stube.testing._conformance.outcomes import facts_of

    return facts_of(item)["name"]


def _marks(item: pytest.Item) -> tuple[str, ...]:
    return tuple(str(number) for mark in item.iter_markers("guarantee") for number in mark.args)


def _outcome(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException] | None) -> Outcome:
    from stube.testing._harness.blame import blamed_by

    error = None if failure is None else failure.value
    return Outcome(
        test=_name_of(item),
        guarantees=_marks(item),
        blamed=() if error is None else blamed_by(error) or _marks(item),
        failed=error is not None,
        by_assertion=isinstance(error, (AssertionError, pytest.fail.Exception)),
        error="" if error is None else type(error).__name__,
        message="" if error is None else str(error),
        seconds=0.0,
    )


def main(backends: Sequence[str]) -> int:
    """Collect the suite as the conformance command does, and answer requests until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with TemporaryDirectory() as folder:
        settings = Path(folder, "settings.ini")
        settings.write_text("[pytest]\n", encoding="utf-8")
        return int(
            pytest.main(
                [
                    *(str(ROOT / "stube/testing/suite"), "-q", "-c", str(settings)),
                    *(f"--rootdir={ROOT}", f"--confcutdir={ROOT / 'stube/testing'}"),
                    *("--capture=no", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "stube.testing.plugin"),
                    *(f"--stube-backend={backend}" for backend in backends),
                ],
                plugins=[_Server(sys.stdin, answers, Path(folder))],
            )
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
