"""The trace of a virtual registry: when each delivery began, for which handler, and what caused it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from stube import Delivery, Dispatch, Event
from stube.arguments import milliseconds
from stube_backends.engine._arguments import must_be_awaited
from stube_backends.virtual._clock import Clock

_LENGTH: Final = 10_000  # deliveries


class Tracer:
    """Records the latest deliveries of one registry, without their payloads."""

    __slots__ = ("_entries", "cause", "clock")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.cause = ""  # of the deliveries that begin now
        self._entries: deque[tuple[int, str, str, str, str]] = deque(maxlen=_LENGTH)

    def traced(self, dispatch: Callable[..., Any]) -> Dispatch:
        """Return a dispatch that records a delivery and then calls `dispatch`. Its attribute `awaited` says whether
        `dispatch` is a coroutine function."""
        clock, note = self.clock, self._entries.append

        def traced(cid: str, event: Event) -> Any:
            note((clock.now, cid, event.instance_id, event.name, self.cause))
            return dispatch(cid, event)

        traced.awaited = must_be_awaited(dispatch)  # type: ignore[attr-defined]
        return traced

    def deliveries(self) -> list[Delivery]:
        """Return a copy, the oldest first."""
        while True:
            try:
                entries = self._entries.copy()
            except RuntimeError:  # without a global interpreter lock a copy is not one step; then copy once more
                continue
            return [Delivery(milliseconds(now), *rest) for now, *rest in entries]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
