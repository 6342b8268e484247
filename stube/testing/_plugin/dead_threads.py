"""The exceptions that end a thread while a test of the suite runs, for the report on that test.

When the delivery thread of a backend dies, the test only sees that something was not delivered. The cause is the
exception of the thread, which Python prints elsewhere and pytest turns into a warning.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Final

import pytest

__all__ = ["listeners"]

_MOST_FRAMES: Final = 4

listeners: Final[list[Callable[[str], None]]] = []
"""Called with a sentence for each thread that dies, on that thread, while a test runs."""


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Note what ends a thread during the test; pytest's own hooks get it as well."""
    if "stube_backend" not in getattr(item, "fixturenames", ()):
        return (yield)
    from stube.testing._conformance.outcomes import DIED

    died = item.stash.setdefault(DIED, [])
    of_threads, unraisable = threading.excepthook, sys.unraisablehook

    def note(name: str, exc: BaseException | None, trace: TracebackType | None) -> None:
        sentence = _told(name, exc, trace)
        died.append(sentence)
        for listener in listeners:
            listener(sentence)

    def in_thread(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_type is not SystemExit:  # which ends a thread silently
            note("a thread" if args.thread is None else f"the thread {args.thread.name!r}", *args[1:3])
        of_threads(args)

    def unraised(args: sys.UnraisableHookArgs, /) -> None:
        if "thread" in (args.err_msg or ""):  # a thread that was started by `_thread`, without a `Thread`
            note("a thread", args.exc_value, args.exc_traceback)
        unraisable(args)

    threading.excepthook, sys.unraisablehook = in_thread, unraised
    try:
        return (yield)
    finally:
        threading.excepthook, sys.unraisablehook = of_threads, unraisable


def _told(name: str, exc: BaseException | None, trace: TracebackType | None) -> str:
    from stube.testing._conformance.outcomes import place

    what = traceback.format_exception_only(exc)[-1].strip() if exc is not None else "an exception"
    frames = [f"{frame.name}, {place(frame.filename, frame.lineno or 0)}" for frame in traceback.extract_tb(trace)]
    return "\n".join(
        [f"meanwhile {name} died of {what}", *(f"  in {frame}" for frame in frames[: -_MOST_FRAMES - 1 : -1])]
    )
