"""An action at one chosen line of an operation, for tests of what may happen between two lines."""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["Injector", "tracing"]

_LIBRARY: Final = (sysconfig.get_path("stdlib"), "<")  # a frozen module has a file such as <frozen os>
_TESTING: Final = os.path.dirname(os.path.dirname(__file__))


class Injector:
    """A trace function that performs an action once, when it comes to a certain line beneath an operation.

    Args:
        at: the number of the line, from 0. The lines of all traced threads are counted together.
        action: what is performed there.
        within: a folder; only lines of files in it count. By default all lines count except those of `stube.testing`.
        library: whether lines of Python's own modules count. An action in the middle of one may meet a lock of Python's
            own: a thread that starts another one inside of `Thread.start` waits for itself.
        raises: whether the action raises. Then lines are left out at which Python handles no signal, and whose
            exception would leave a `with` block open: the end of such a block, and a `try:`.
        then: the number of a later line, and what is performed there. It may be a line of what makes up for the first
            action.
        keep_error: keep an exception of the action in `error`. By default it is raised in the interrupted operation.
    """

    def __init__(
        self,
        at: int,
        action: Callable[[], object],
        *,
        within: str | None = None,
        library: bool = True,
        raises: bool = False,
        then: tuple[int, Callable[[], object]] | None = None,
        keep_error: bool = False,
    ) -> None:
        self._due = [(at, action)] if then is None else [(at, action), then]
        self._within = within
        self._library = library
        self._raises = raises
        self._keep_error = keep_error
        self.lines = 0
        """How many lines were counted up to now."""
        self.places: list[str] = []
        """The lines at which something was performed."""
        self.error: BaseException | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace the frames whose lines count."""
        file = frame.f_code.co_filename
        counts = file.startswith(self._within) if self._within is not None else not file.startswith(_TESTING)
        if not self._library and file.startswith(_LIBRARY) and "site-packages" not in file:
            counts = False
        return self._line if counts else None

    @property
    def fired(self) -> str:
        """The place of the line, once it was reached; until then empty."""
        return self.places[0] if self.places else ""

    def run(self, operation: Callable[[], object]) -> object:
        """Call `operation` with this thread traced."""
        with tracing(self):
            return operation()

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not (self._raises and _takes_no_signal(frame.f_code, frame.f_lasti)):
            number, self.lines = self.lines, self.lines + 1
            if self._due and number >= self._due[0][0]:
                try:
                    _, action = self._due.pop(0)
                except IndexError:
                    return self._line  # another thread performs it
                code = frame.f_code
                self.places.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno} ({code.co_name})")
                self._perform(action)
        return self._line

    def _perform(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as exc:
            if not self._keep_error:
                raise
            self.error = exc


@cache
def _takes_no_signal(code: CodeType, offset: int) -> bool:
    """Tell whether a line begins with an instruction that no signal handler interrupts.

    Python handles a signal behind a call or a jump. At the end of a `with` block the instructions that follow the last
    call load None three times and call `__exit__`; a `try:` is an instruction that does nothing. The compiler leaves
    both out of the range whose exceptions the block catches.
    """
    ahead = [one for one in dis.get_instructions(code) if one.offset >= offset]
    loads = [(one.opname, one.argval) for one in ahead if one.opname not in ("NOP", "SWAP")][:3]
    return ahead[0].opname == "NOP" or loads == [("LOAD_CONST", None)] * 3


@contextmanager
def tracing(injector: Injector) -> Iterator[None]:
    """Let the injector see every line of the block that this thread executes."""
    previous = sys.gettrace()
    sys.settrace(injector)
    try:
        yield
    finally:
        sys.settrace(previous)
