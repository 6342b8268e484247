"""An action at a certain line of an operation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["Injector", "tracing"]

_OWN_FOLDER: Final = os.path.dirname(os.path.dirname(__file__))


class Injector:
    """A trace function that performs an action once, when a certain line beneath an operation is reached."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self._left = at
        self._actions = [action]  # popped, for several threads may come to the line
        self.fired = ""
        """The place of the line, once it was reached."""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        # The lines of the suite itself are no part of the operation.
        if frame.f_code.co_filename.startswith(_OWN_FOLDER):
            return None
        if event == "line" and not self.fired:
            self._left -= 1
            if self._left < 0:
                try:
                    action = self._actions.pop()
                except IndexError:
                    return self  # another thread is at it
                self.fired = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                action()
        return self


@contextmanager
def tracing(injector: Injector) -> Iterator[None]:
    """Let the injector see every line of the block that this thread executes."""
    previous = sys.gettrace()
    sys.settrace(injector)
    try:
        yield
    finally:
        sys.settrace(previous)
