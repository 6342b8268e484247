"""What the engine makes of arguments that have been checked, and the checks of dispatch and of its results."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from stube import NO_PAYLOAD, Event, EventSpec, is_coroutine_function
from stube.arguments import PlainEvent

NO_SIGNALS: Final = Event("", "").signals
"""The signals of an event that has none. The engine passes them, because an argument by keyword costs as much as the
rest of an event: 0.4 us instead of 0.25."""


def name_of(event: PlainEvent) -> str:
    """Return the name of a plain event spec."""
    name: str = event if type(event) is str else event[0]
    return name


def event_with_payload(instance_id: str, spec: Sequence[Any], due: int) -> Event:
    """Return the event that a timer delivers whose spec is no plain name."""
    if len(spec) == 1:
        return Event(instance_id, spec[0], NO_PAYLOAD, NO_SIGNALS, due)
    return Event(instance_id, spec[0], spec[1] if len(spec) == 2 else spec[1:], NO_SIGNALS, due)


def public_event(event: PlainEvent) -> EventSpec:
    """Return a stored event spec under its public type; the type checker cannot see that a tuple begins with a name."""
    return event


def must_be_awaited(dispatch: Callable[..., Any]) -> bool:
    """Return whether dispatch is a coroutine function.

    Raises:
        TypeError: it is not callable.
    """
    if not callable(dispatch):
        raise TypeError(f"dispatch must be callable, not {dispatch!r}. Pass a function (cid, event) -> None.")
    return is_coroutine_function(dispatch)


def checked_dispatch(dispatch: Callable[..., Any]) -> None:
    """Raise when dispatch is not callable, or a coroutine function, which this backend cannot await."""
    if must_be_awaited(dispatch):
        raise TypeError(
            f"dispatch must be a plain function, not the coroutine function {dispatch!r}. "
            'Use the backend "asyncio", which awaits it, or pass a function that hands the event to your loop.'
        )


def refuse_result(result: object) -> None:
    """Close a coroutine that dispatch returned, and raise. Any other result is ignored."""
    if isinstance(result, Coroutine):
        result.close()
        raise TypeError(
            f"dispatch returned {type(result).__name__!r}, which this backend cannot await. "
            'Use the backend "asyncio", or return None.'
        )
