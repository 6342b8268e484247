"""What an exception that leaves a delivery means: it is counted, logged and reported, and stops nothing (G19)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stube import ConversationEnded, Event

OnError = Callable[[str, Event, BaseException], object]

_logger = logging.getLogger("stube")


def log(level: int, message: str, *arguments: object, exc_info: BaseException | None = None) -> BaseException | None:
    """Log on `stube`; never called under a lock. Return what a log handler raises, because that stops nothing (G19)."""
    try:
        _logger.log(level, message, *arguments, exc_info=exc_info)
    except BaseException as exc:  # noqa: BLE001
        return exc
    return None


class Failures:
    """Reports the exceptions of deliveries, and re-raises those that are meant for the caller.

    Args:
        on_error: called as `on_error(cid, event, exception)` after a delivery failed; None for no call.
        reraised: exceptions that a delivery passes on after they are counted, because dispatch runs on the stack of
            user code (virtual clock, event loop); empty where it runs on a thread of the registry's own.
    """

    __slots__ = ("_on_error", "_reraised", "_to_raise")

    def __init__(self, on_error: OnError | None, reraised: tuple[type[BaseException], ...] = ()) -> None:
        self._on_error = on_error
        self._reraised = reraised
        self._to_raise: list[BaseException] = []

    def report(self, cid: str, event: Event, exc: BaseException, level: int = logging.ERROR) -> bool:
        """Log and report an exception that left a delivery; return whether the delivery failed.

        A `ConversationEnded` is no failure. The caller calls `reraise` after it has counted the delivery. If it cannot
        raise, it does not, and the next report forgets what this one kept.

        Args:
            cid, event: the delivery.
            exc: what it raised.
            level: the level at which a failure is logged.
        """
        self._to_raise.clear()  # of a report that no `reraise` followed
        failed = not isinstance(exc, ConversationEnded)
        if failed:
            what = "the delivery of %r to instance %r of conversation %r failed"
            self._keep(exc)
            self._keep(log(level, what, event.name, event.instance_id, cid, exc_info=exc))
            self.notify(cid, event, exc)
        else:
            self._keep(log(logging.DEBUG, "conversation %r ended during the delivery of %r", cid, event.name))
        return failed

    def notify(self, cid: str, event: Event, exc: BaseException) -> None:
        """Call `on_error`, if there is one. What it raises stops nothing."""
        if self._on_error is not None:
            try:
                self._on_error(cid, event, exc)
            except BaseException as second:  # noqa: BLE001
                self._keep(second)

    def reraise(self) -> None:
        """Raise the first exception of the last report that must be passed on, if there is one. To be called after a
        report only.

        No local variable holds it, because its traceback refers to this frame, and that would be a cycle.
        """
        if self._to_raise:
            del self._to_raise[1:]
            raise self._to_raise.pop() from None

    def _keep(self, exc: BaseException | None) -> None:
        if isinstance(exc, self._reraised):
            self._to_raise.append(exc)
