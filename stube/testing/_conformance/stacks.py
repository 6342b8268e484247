"""The stacks that `faulthandler` writes when a test hangs or its process crashes, as lines of a finding.

The thread of the test comes first. It may only wait for another one: for a helper of the test, which called the
backend, or for the backend's own thread. So the threads that are at work in the test or the backend follow.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from stube.testing._conformance.outcomes import SUITE, place
from stube.testing._harness.watchdog import OF_PYTEST

__all__ = ["Stacks"]

_MOST_FRAMES: Final = 8  # of a stack
_MOST_THREADS: Final = 3  # besides the thread of the test
_THREAD: Final = re.compile(r"^(?:Current t|T)hread 0x(?P<ident>[0-9a-f]+)")
_FRAME: Final = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_OF_A_STARTED_THREAD: Final = (("_bootstrap", threading.__file__), ("_bootstrap_inner", threading.__file__))


class _Frame(NamedTuple):
    file: str
    line: int
    function: str

    @property
    def in_suite(self) -> bool:
        return self.file.startswith(SUITE + os.sep)

    @property
    def told(self) -> str:
        return f"{self.function}, {place(self.file, self.line)}"


class Stacks:
    """The stacks of the threads of a process.

    Args:
        text: what `faulthandler` wrote.
        test_thread: the identifier of the thread that runs the tests; 0 if it is not known.
    """

    def __init__(self, text: str, test_thread: int = 0) -> None:
        threads = _threads(text)
        mine = threads.pop(test_thread, [])
        if not mine and threads:  # a system whose identifiers differ: pytest beneath it makes the stack the longest
            mine = threads.pop(max(threads, key=lambda ident: len(threads[ident])))
        stack = list(_until_test(mine)) or mine  # pytest itself, where the test has not begun or has ended
        inside = [frame for frame in stack if frame.in_suite]
        self.where = place(inside[-1].file, inside[-1].line) if inside else ""
        """`file:line` of the suite; empty if the test was not in it."""
        self.lines: list[str] = []
        """A line for each frame, the innermost first, below a line for each further thread."""
        self._tell("it was in", stack)
        others = sorted(threads.values(), key=lambda frames: not any(frame.in_suite for frame in frames))
        for frames in others[:_MOST_THREADS]:
            self._tell("another thread was in", [frame for frame in frames if not _starts_a_thread(frame)])

    def _tell(self, beginning: str, frames: list[_Frame]) -> None:
        for number, frame in enumerate(frames[:_MOST_FRAMES]):
            self.lines.append(f"{'called by' if number else beginning} {frame.told}")


def _threads(text: str) -> dict[int, list[_Frame]]:
    """Return the frames of each thread, innermost first, by the thread's identifier."""
    threads: dict[int, list[_Frame]] = {}
    frames: list[_Frame] = []
    for line in text.splitlines():
        thread, found = _THREAD.match(line), _FRAME.match(line)
        if thread is not None:
            frames = threads.setdefault(int(thread["ident"], 16), [])
        elif found is not None:
            frames.append(_Frame(found["file"], int(found["line"]), found["function"]))
    return {ident: frames for ident, frames in threads.items() if frames}


def _until_test(frames: list[_Frame]) -> Iterator[_Frame]:
    """Yield the frames down to the test or, in a fixture, to pytest."""
    for frame in frames:
        if OF_PYTEST.search(frame.file):
            return
        yield frame
        if frame.in_suite:
            return


def _starts_a_thread(frame: _Frame) -> bool:
    return (frame.function, frame.file) in _OF_A_STARTED_THREAD
