"""The arguments of operations: refused with a clear error, or taken as plain values.

Public for authors of backends (provisional until 1.0), so that every backend refuses the same, in the same words.

Plain means exact: after these functions a name is a `str` and an event spec a `str` or a `tuple`, never of a
subclass, so that no `__hash__` or `__eq__` of a user's class can run inside a backend. What most callers pass is
decided in the first line of each function, so that an operation may simply call it.
"""

from __future__ import annotations

from math import ceil, inf, isfinite, nextafter
from typing import Any, Final, TypeAlias

__all__ = [
    "PlainEvent",
    "checked_timeout",
    "delay_in_nanoseconds",
    "exact_milliseconds",
    "milliseconds",
    "plain_event",
    "plain_name",
]

PlainEvent: TypeAlias = str | tuple[Any, ...]
"""An event spec as a backend stores it."""

_NANOSECONDS: Final = 1_000_000  # in a millisecond
_EXACT_BELOW: Final = 2.0**42  # milliseconds; a product with 10**6 above it has no room left for fractions


def plain_name(role: str, value: object) -> str:
    """Return the name of a conversation, an instance or a topic as an exact `str`. O(its length) for a subclass.

    Args:
        role: the argument's name, for the error.
        value: what the caller passed.

    Raises:
        TypeError: it is no `str`.
        ValueError: it is empty.
    """
    if type(value) is str and value:
        return value
    if not isinstance(value, str):
        raise TypeError(f"{role} must be a str, not {value!r}. Pass the name as a string.")
    name = str.__str__(value)
    if not name:
        raise ValueError(f"{role} must not be empty. Pass a name of at least one character.")
    return name


def plain_event(event: object) -> PlainEvent:
    """Return an event spec as it is stored, a `str` or a `tuple` that begins with one. O(its length).

    Raises:
        TypeError: it is no `str`, `tuple` or `list`, or its first part is no `str`.
        ValueError: it is empty, or its first part is.
    """
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


def delay_in_nanoseconds(delay_ms: object, role: str = "delay_ms") -> int:
    """Return a delay in whole nanoseconds, rounded up; 0 for a negative one. See G11.

    This is the only place where a delay is rounded: that no timer begins early (G9) depends on it.

    Args:
        delay_ms: milliseconds.
        role: the argument's name, for the error.

    Raises:
        TypeError: it is no `int` or `float`.
        ValueError: it is infinite or no number.
    """
    if type(delay_ms) is float and 0.0 < delay_ms < _EXACT_BELOW:
        # The product is rounded once, so that 0.1 ms is 100,000 ns and not one more. If that rounding came out below
        # the delay, one nanosecond is added (G9).
        nanoseconds = ceil(delay_ms * 1e6)
        return nanoseconds if nanoseconds / 1e6 >= delay_ms else nanoseconds + 1
    if isinstance(delay_ms, float):
        if not isfinite(delay_ms):
            raise ValueError(f"{role} must be finite, not {delay_ms!r}. Pass milliseconds as a finite number.")
        if type(delay_ms) is not float:
            return delay_in_nanoseconds(float(delay_ms), role)  # of a subclass, such as numpy's
        numerator, denominator = delay_ms.as_integer_ratio()
        return max(0, -(-numerator * _NANOSECONDS // denominator))
    if isinstance(delay_ms, int) and not isinstance(delay_ms, bool):
        return max(0, int(delay_ms) * _NANOSECONDS)
    raise TypeError(f"{role} must be an int or a float, not {delay_ms!r}. Pass milliseconds as a number.")


def milliseconds(nanoseconds: int) -> float:
    """Return an instant or a span in milliseconds; infinite beyond what a float holds."""
    try:
        return nanoseconds / _NANOSECONDS
    except OverflowError:
        return float("inf") if nanoseconds > 0 else float("-inf")


def exact_milliseconds(nanoseconds: int) -> float:
    """Return the delay in milliseconds that `delay_in_nanoseconds` turns into so many nanoseconds. O(1).

    It is an `int` where that is whole. Above 2**53 ns (104 days) a fraction may come out up to a microsecond longer,
    and beyond what a float holds up to a millisecond.

    >>> exact_milliseconds(5_000_000), exact_milliseconds(1_500_001)
    (5, 1.500001)
    """
    whole, rest = divmod(nanoseconds, _NANOSECONDS)
    if not rest:
        return whole
    try:
        found = nanoseconds / _NANOSECONDS
    except OverflowError:
        return whole + 1
    if delay_in_nanoseconds(found) > nanoseconds:  # the float above the exact value was nearer
        shorter = nextafter(found, 0)
        return shorter if delay_in_nanoseconds(shorter) >= nanoseconds else found
    return found if delay_in_nanoseconds(found) == nanoseconds else nextafter(found, inf)


def checked_timeout(timeout: object) -> float | None:
    """Return a timeout in seconds, a number that is not negative, or None for no bound.

    Raises:
        TypeError: it is no `int`, `float` or None.
        ValueError: it is negative or no number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}. Pass seconds as a number.")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, not {timeout!r}. Pass 0 to look without waiting.")
    return float(min(timeout, 1e9))
