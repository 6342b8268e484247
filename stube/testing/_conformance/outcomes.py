"""The outcome of each test of the suite in a pytest run, and the story of a test that failed.

`Recording` is a small pytest plugin that hands a record of each test to a function as soon as its teardown is over. It
works under pytest-xdist, too: the worker puts what only it knows on the report.

Records and stories are plain dicts of strings and numbers, because they cross processes and end in a JSON file.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import pytest

from stube._secrets import Secrets, shown
from stube.testing._contract.capabilities import backend_name
from stube.testing._harness.blame import blamed_by

__all__ = [
    "DIED",
    "SUITE",
    "UNDER_TEST",
    "Facts",
    "Record",
    "Recording",
    "Story",
    "facts_of",
    "of_the_suite",
    "place",
    "record_of",
    "without_folders",
]

DIED: Final[pytest.StashKey[list[str]]] = pytest.StashKey()
"""In a test's stash: what ended a thread while the test ran, a sentence for each."""
UNDER_TEST: Final[pytest.StashKey[tuple[Any, list[str] | None]]] = pytest.StashKey()
"""In a test's stash, put there by the fixture `make_registry`: the backend's spec and, once known, what it promises."""

_TESTING: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUITE: Final = os.path.join(_TESTING, "suite")
"""The folder of the suite."""
_MOST_DEATHS: Final = 2  # told of the threads that died during a test; the others mostly died of the same cause
_MOST_LINES: Final = 40  # of a finding; a program of random steps is that long
_LONGEST_LINE: Final = 1000  # characters
_ELSEWHERE: Final = re.compile(r"(?<![\w.])/(?:[^\s/\"':]+/)+([^\s/\"':]+\.py)\b")  # a file outside of those folders


class Story(TypedDict):
    """How a test failed, in few words."""

    test: str
    promise: str
    """The test's name as a sentence."""
    fault: str
    """The fault that it looks for, from its docstring; may be empty."""
    finding: str
    """The assertion with its values, or the exception; several lines."""
    where: str
    """`file:line` of the suite."""
    program: str
    """A Python program that shows it, if the test is one of random programs; otherwise empty."""


class Facts(TypedDict):
    """The facts about a test that are known before it runs."""

    name: str
    """The function and its parameters, without the backend."""
    guarantees: list[str]
    capabilities: list[str]
    """Those without which the test is skipped."""
    promise: str
    fault: str
    where: str
    costly: bool
    """Whether it runs behind all tests that are not (the marker `stube_costly`)."""


class Record(TypedDict):
    """The outcome of a test."""

    name: str
    backend: str
    promised: list[str] | None
    """The backend's capabilities; None if it was never made."""
    guarantees: list[str]
    capabilities: list[str]
    outcome: str
    """`passed`, `failed`, `skipped`, and from the conformance command `hung` and `crashed`."""
    blamed: list[str]
    """The guarantees that it found broken: all of its own, unless the failed check knows better; empty if it passed."""
    seconds: float
    story: Story | None


class Recording:
    """The pytest plugin. Register it with a pytest's plugin manager.

    Args:
        tell: called with a test's node id and its record.
    """

    def __init__(self, tell: Callable[[str, Record], None]) -> None:
        self._tell = tell
        self._open: dict[str, Record] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put what only the item knows on the report."""
        report = yield
        if of_the_suite(item):
            vars(report)["stube"] = record_of(item, call.excinfo if report.failed else None)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase to the record of its test; hand the record on after the last phase."""
        seen: Record | None = getattr(report, "stube", None)
        if seen is None:
            return
        record = self._open.setdefault(report.nodeid, seen)
        record["promised"] = record["promised"] or seen["promised"]
        record["backend"] = seen["backend"]
        record["seconds"] += report.duration
        if report.failed and record["outcome"] != "failed":
            record["outcome"], record["story"], record["blamed"] = "failed", seen["story"], seen["blamed"]
        elif report.skipped and record["outcome"] == "passed":
            record["outcome"] = "skipped"
        if report.when == "teardown":
            del self._open[report.nodeid]
            record["seconds"] = round(record["seconds"], 4)
            self._tell(report.nodeid, record)


def of_the_suite(item: pytest.Item) -> bool:
    """Tell whether a test proves a guarantee on the backend under test."""
    return "stube_backend" in getattr(item, "fixturenames", ()) and item.get_closest_marker("guarantee") is not None


def facts_of(item: pytest.Item) -> Facts:
    """Return what is known about a test before it runs."""
    function = inspect.unwrap(getattr(item, "function", facts_of))
    words = function.__name__.removeprefix("test_").replace("_", " ")
    fault = re.search(r"Fault: (.+?)(?:\n\s*\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    return {
        "name": _name_of(item),
        "guarantees": _marks(item, "guarantee"),
        "capabilities": _marks(item, "stube_requires"),
        "promise": words[:1].upper() + words[1:],
        "fault": " ".join(fault[1].split()) if fault else "",
        "where": place(function.__code__.co_filename, function.__code__.co_firstlineno),
        "costly": item.get_closest_marker("stube_costly") is not None,
    }


def record_of(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException] | None) -> Record:
    """Return the record of a test after one of its phases.

    Args:
        item: the test.
        excinfo: the exception of the phase, if it failed.
    """
    spec, promised = _under_test(item)
    hide = Secrets(spec).redact
    facts = facts_of(item)
    story: Story | None = None
    blamed: list[str] = []
    if excinfo is not None:
        blamed = list(blamed_by(excinfo.value) or facts["guarantees"])
        where, finding = _finding(item, excinfo)
        story = {
            "test": facts["name"],
            "promise": facts["promise"],
            "fault": facts["fault"],
            "finding": hide(finding),
            "where": where,
            "program": hide(str(getattr(excinfo.value, "source", ""))),
        }
    return {
        "name": hide(facts["name"]),
        "backend": backend_name(spec),
        "promised": promised,
        "guarantees": facts["guarantees"],
        "capabilities": facts["capabilities"],
        "outcome": "passed",
        "blamed": blamed,
        "seconds": 0.0,
        "story": story,
    }


def place(file: str, line: int) -> str:
    """Return `file:line`, the file relative to the folder in which Python finds it: no path of this machine."""
    file = os.path.abspath(file)
    for root in _roots():
        if file.startswith(root):
            return f"{Path(file).relative_to(root).as_posix()}:{line}"
    return f"{os.path.basename(file)}:{line}"


def without_folders(text: str) -> str:
    """Return a text whose Python files are relative to the folders in which Python finds them, as `place` shows them.

    A finding may quote a traceback, and a report on it may be published.
    """
    for root in _roots():
        text = text.replace(root, "")
    return _ELSEWHERE.sub(r"\1", text)


def _roots() -> list[str]:
    """Return the folders in which Python finds modules, each with its separator; those inside others come first."""
    roots = {os.path.dirname(os.path.dirname(_TESTING)), *map(os.path.abspath, sys.path)}
    return sorted((root + os.sep for root in roots if root != os.sep), key=len, reverse=True)


def _marks(item: pytest.Item, name: str) -> list[str]:
    return list(dict.fromkeys(str(one) for mark in item.iter_markers(name) for one in mark.args))


def _under_test(item: pytest.Item) -> tuple[Any, list[str] | None]:
    """Return the spec and, as soon as they are known, the capabilities."""
    if UNDER_TEST in item.stash:
        return item.stash[UNDER_TEST]
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    # The fixture's value takes precedence over its parameter, because a file may make its spec from the parameter.
    spec = getattr(item, "funcargs", {}).get("stube_backend", parameters.get("stube_backend", "unnamed"))
    return spec, None


def _name_of(item: pytest.Item) -> str:
    """Return the test's name with its parameters, except the backend."""
    callspec = getattr(item, "callspec", None)
    function = getattr(item, "originalname", item.name)
    if callspec is None:
        return str(item.name)
    backend = shown(callspec.params["stube_backend"]) if "stube_backend" in callspec.params else ""
    # The id joins the ids of the parameters by hyphens, so the backend's part is recognized by its text.
    inner = re.sub(rf"(^|-){re.escape(backend)}(-|$)", lambda found: found[1] and found[2], callspec.id, count=1)
    return f"{function}[{inner}]" if inner else str(function)


# The story


def _finding(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> tuple[str, str]:
    """Return where a test failed and what was found there."""
    frames = list(excinfo.traceback)
    own = inspect.unwrap(getattr(item, "function", facts_of)).__code__.co_filename
    frame = _last_in(frames, own, SUITE) or _last_in(frames, _TESTING) or frames[-1]
    exc = excinfo.value
    message = "\n".join([_text(exc), *getattr(exc, "__notes__", ())]).strip()
    if isinstance(exc, AssertionError) and message:
        finding = message
    else:
        finding = f"{_statement(frame)}\n{type(exc).__name__}: {message}".strip().removesuffix(":")
    innermost = frames[-1]
    if _within(innermost, _TESTING, own):
        inner = ""
    else:
        inner = f"\nraised by {innermost.name} in {place(str(innermost.path), innermost.lineno + 1)}"
    died = "".join(f"\n{sentence}" for sentence in item.stash.get(DIED, [])[:_MOST_DEATHS])
    return place(str(frame.path), frame.lineno + 1), without_folders(_trimmed(finding) + inner + died)


def _last_in(frames: Sequence[Any], *places: str) -> Any:
    return next((frame for frame in reversed(frames) if _within(frame, *places)), None)


def _within(frame: Any, *places: str) -> bool:
    path = str(frame.path)
    return any(path == one or path.startswith(one + os.sep) for one in places)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - the text of a backend's exception may fail
        return "(its text cannot be shown)"


def _statement(frame: Any) -> str:
    try:
        return " ".join(str(frame.statement).split())
    except Exception:  # noqa: BLE001 - without the source the story is still worth telling
        return ""


def _trimmed(text: str) -> str:
    lines = [_printable(line.rstrip()) for line in text.splitlines() if "Use -v to get" not in line]
    lines = [line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..." for line in lines if line]
    left_out = len(lines) - _MOST_LINES
    return "\n".join(lines if left_out <= 0 else [*lines[:_MOST_LINES], f"... and {left_out} lines more"])


def _printable(line: str) -> str:
    """Return the line with escapes for characters that cannot be written or would move a terminal's cursor."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
