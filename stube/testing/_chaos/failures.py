"""The failures that handlers make on purpose, and whether each of them is told once to the log and to `on_error`.

The log handler and `on_error` raise for some of the failures, because they may fail as well (G19).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import iscoroutine
from typing import Any, Final

from typing_extensions import override

from stube import ConversationEnded, Event

__all__ = ["Failures"]

_RAISED_EVERY: Final = 8  # the log handler and `on_error` raise for one failure in so many
_FAILURE: Final = "stube_failure"  # the attribute by which an exception is recognized


@dataclass(slots=True, eq=False)
class _Failure:
    """One exception that left a handler."""

    delivery: str
    number: int
    """Decides who raises when it is told of the failure: 0 the log handler, 1 `on_error`, otherwise neither."""
    # Lists instead of counts, because several threads may append at the same time.
    logged: list[None] = field(default_factory=list)
    reported: list[None] = field(default_factory=list)
    """To `on_error`."""


class Failures:
    """Counts what leaves the handlers, and who is told of it. Any thread may call."""

    def __init__(self) -> None:
        # No lock: these are only appended to.
        self._failures: list[_Failure] = []
        self._coroutines: list[None] = []
        self._unknown_logged: list[None] = []  # errors in the log that no handler has raised
        self._unknown_reported: list[None] = []

    @property
    def coroutines(self) -> int:
        """How many deliveries failed because the handler returned a coroutine, which the registry cannot await."""
        return len(self._coroutines)

    def watched(self, handler: Callable[[str, Event], Any]) -> Callable[[str, Event], Any]:
        """`handler`, with its failures counted. Each exception that it raises must be a new one."""

        def watch(cid: str, event: Event) -> Any:
            try:
                result = handler(cid, event)
            except ConversationEnded:
                raise  # which is no failure
            except BaseException as exc:
                delivery = (
                    f"the delivery of {event.payload!r} to instance {event.instance_id!r} of conversation {cid!r}"
                )
                failure = _Failure(delivery, len(self._failures) % _RAISED_EVERY)
                self._failures.append(failure)
                setattr(exc, _FAILURE, failure)
                raise
            if iscoroutine(result):
                self._coroutines.append(None)
            return result

        return watch

    def on_error(self, cid: str, event: Event, exc: BaseException) -> None:
        """Give this to the registry."""
        self._note(exc, "reported", self._unknown_reported, raised=1)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the log of `stube` for the length of the block, and count the errors in it."""
        logger = logging.getLogger("stube")
        listener = _Listener(self._hear)
        before = logger.propagate, logger.level
        logger.addHandler(listener)
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            logger.propagate, logger.level = before
            logger.removeHandler(listener)

    def differences(self) -> Iterator[str]:
        """A sentence for each failure that was not told exactly once; complete where the block `listening` held all."""
        for failure in self._failures:
            for count, how in ((len(failure.logged), "logged"), (len(failure.reported), "handed to on_error")):
                if count != 1:
                    yield f"G19: the failure of {failure.delivery} was {how} {count} times."
        # The registry makes an error of its own when a handler returns a coroutine.
        for count, how in ((len(self._unknown_logged), "logged"), (len(self._unknown_reported), "handed to on_error")):
            if count != self.coroutines:
                yield (
                    f"G19: handlers returned {self.coroutines} coroutines, and {count} errors were {how} that no "
                    "handler had raised."
                )

    def _hear(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            exc = record.exc_info[1] if record.exc_info else None
            self._note(exc, "logged", self._unknown_logged, raised=0)

    def _note(self, exc: BaseException | None, how: str, unknown: list[None], *, raised: int) -> None:
        failure: _Failure | None = getattr(exc, _FAILURE, None)
        if failure is None:
            unknown.append(None)
            return
        getattr(failure, how).append(None)
        if failure.number == raised:
            raise SystemExit("a log handler and on_error may fail as well; this is part of the audit")


class _Listener(logging.Handler):
    """A log handler that passes every record on, and does not catch what that raises."""

    def __init__(self, hear: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._hear = hear

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record)
