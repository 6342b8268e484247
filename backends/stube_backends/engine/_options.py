"""The options that every local backend has, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stube import monotonic_ns
from stube_backends.engine._backlogs import Limits, OnFull, checked_limits
from stube_backends.engine._failures import OnError


class Options(NamedTuple):
    """What a host chose. `limits` is made of `max_queued` and `on_full`."""

    clock: Callable[[], int]
    """Monotonic nanoseconds; never called under a lock."""
    max_pending: int | None
    """The bound of timers and queued messages together; None for no bound."""
    limits: Limits | None
    """The bounds of each conversation; None for no bound."""
    on_error: OnError | None
    """Called as `on_error(cid, event, exception)` after a delivery failed, on the delivery thread; None for no call."""

    @classmethod
    def checked(
        cls,
        *,
        clock: Callable[[], int] | None = None,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
    ) -> Options:
        """Check what a host passed, and fill in what it left out.

        Args:
            clock: monotonic nanoseconds as `int`, advancing in real time; None for `time.monotonic_ns`.
            max_pending: the bound of timers and queued messages together; None for no bound.
            max_queued: how many messages may wait for one conversation, and how many timers; None for no bound. A
                timer too many raises `RegistryFull`. With a bound `publish` costs its caller O(subscribers), and
                scheduling O(timers of the conversation).
            on_error: called as `on_error(cid, event, exception)` after a delivery failed.
            on_full: what a message too many removes: the oldest message of the conversation (`"drop_oldest"`), or
                everything that the registry holds of the conversation (`"end"`). It is logged, and `on_error` is
                called with a `RegistryFull`, once for each burst: on the thread that publishes or, with `asyncio`, on
                the loop's.

        Raises:
            ValueError: an option is out of its range, or the clock's reading is not an `int`.
        """
        if clock is not None and type(clock()) is not int:
            raise ValueError("clock must return monotonic nanoseconds as an int. Pass time.monotonic_ns or its like.")
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending!r}. Leave it out, or give None.")
        return cls(clock or monotonic_ns, max_pending, checked_limits(max_queued, on_full), on_error)
