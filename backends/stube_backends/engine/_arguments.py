"""The arguments of operations: refused with a clear error, or taken as the plain values that the engine stores.

Plain means exact: after these functions a name is a `str` and an event spec a `str` or a `tuple`, never of a
subclass, so that no `__hash__` or `__eq__` of a user's class can run inside the engine. What most callers pass is
decided in the first line of each function, so that an operation may simply call it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from math import ceil, isfinite
from typing import Any, Final, TypeAlias

from stube import Event, EventSpec, is_coroutine_function

PlainEvent: TypeAlias = str | tuple[Any, ...]

_NANOSECONDS: Final = 1_000_000  # in a millisecond
_EXACT_BELOW: Final = 2.0**42  # milliseconds; a product with 10**6 above it has no room left for fractions


def plain_name(role: str, value: object) -> str:
    """Return `value` as an exact, non-empty `str`, or raise; `role` is the argument's name, for the error."""
    if type(value) is str and value:
        return value
    if not isinstance(value, str):
        raise TypeError(f"{role} must be a str, not {value!r}. Pass the name as a string.")
    name = str.__str__(value)
    if not name:
        raise ValueError(f"{role} must not be empty. Pass a name of at least one character.")
    return name


def plain_event(event: object) -> PlainEvent:
    """Return an event spec as it is stored, a `str` or a `tuple` that begins with one; or raise."""
    if type(event) is str and event:
        return event
    if isinstance(event, str):
        return plain_name("event", event)
    if not isinstance(event, (tuple, list)):
        raise TypeError(f"event must be a name or (name, *payload), not {event!r}. Pass a str, a tuple or a list.")
    parts = tuple(event)
    if not parts:
        raise ValueError("event must not be empty. Pass a name, or a tuple that begins with one.")
    return (plain_name("event[0]", parts[0]), *parts[1:])


def name_of(event: PlainEvent) -> str:
    """Return the name of a plain event spec."""
    name: str = event if type(event) is str else event[0]
    return name


def event_with_payload(instance_id: str, spec: Sequence[Any], due: int) -> Event:
    """Return the event that a timer delivers whose spec is no plain name."""
    if len(spec) == 1:
        return Event(instance_id, spec[0], due=due)
    return Event(instance_id, spec[0], spec[1] if len(spec) == 2 else spec[1:], due=due)


def public_event(event: PlainEvent) -> EventSpec:
    """Return a stored event spec under its public type; the type checker cannot see that a tuple begins with a name."""
    return event


def delay_in_nanoseconds(delay_ms: object) -> int:
    """Return a delay in whole nanoseconds, rounded up; 0 for a negative one. See G11.

    This is the only place where a delay is rounded: that no timer begins early (G9) depends on it.
    """
    if type(delay_ms) is float and 0.0 < delay_ms < _EXACT_BELOW:
        # The product is rounded once, so that 0.1 ms is 100,000 ns and not one more. If that rounding came out below
        # the delay, one nanosecond is added (G9).
        nanoseconds = ceil(delay_ms * 1e6)
        return nanoseconds if nanoseconds / 1e6 >= delay_ms else nanoseconds + 1
    if isinstance(delay_ms, float):
        if not isfinite(delay_ms):
            raise ValueError(f"delay_ms must be finite, not {delay_ms!r}. Pass milliseconds as a finite number.")
        if type(delay_ms) is not float:
            return delay_in_nanoseconds(float(delay_ms))  # of a subclass, such as numpy's
        numerator, denominator = delay_ms.as_integer_ratio()
        return max(0, -(-numerator * _NANOSECONDS // denominator))
    if isinstance(delay_ms, int) and not isinstance(delay_ms, bool):
        return max(0, int(delay_ms) * _NANOSECONDS)
    raise TypeError(f"delay_ms must be an int or a float, not {delay_ms!r}. Pass milliseconds as a number.")


def milliseconds(nanoseconds: int) -> float:
    """Return an instant or a span in milliseconds; infinite beyond what a float holds."""
    try:
        return nanoseconds / _NANOSECONDS
    except OverflowError:
        return float("inf") if nanoseconds > 0 else float("-inf")


def checked_timeout(timeout: object) -> float | None:
    """Return a timeout in seconds, a number that is not negative, or None for no bound; or raise."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}. Pass seconds as a number.")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, not {timeout!r}. Pass 0 to look without waiting.")
    return float(min(timeout, 1e9))


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
