"""The engine's checks of arguments: the plain value of each accepted argument, and the message of each refusal."""

from __future__ import annotations

import enum
import inspect
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from math import inf, nan
from typing import Any

import pytest
from typing_extensions import override

import stube
from stube import VirtualBackend
from stube.arguments import (
    checked_timeout,
    delay_in_nanoseconds,
    exact_milliseconds,
    milliseconds,
    plain_event,
    plain_name,
)
from stube_backends.engine._arguments import name_of


class Name(str):
    """A string of a class that a user wrote, which the engine must neither keep nor hash."""

    __slots__ = ()

    @override
    def __hash__(self) -> int:
        raise AssertionError("hashed")

    @override
    def __str__(self) -> str:
        return "not this"


class Delay(float):
    """A float of a class that a user wrote, or of a library such as numpy."""

    @override
    def as_integer_ratio(self) -> tuple[int, int]:
        raise AssertionError("asked")


class Whole(enum.IntEnum):
    """An int of a class that a user wrote."""

    TWO = 2


@pytest.fixture
def registry() -> Iterator[VirtualBackend]:
    with stube.create_registry("virtual") as made:
        yield made


# Names and events


def test_a_name_becomes_an_exact_plain_string() -> None:
    """Fault: the engine keeps an instance of a subclass, or calls its `__str__`, which is code of the user."""
    taken = plain_name("cid", Name("c"))
    assert (type(taken), taken) == (str, "c")
    assert plain_name("cid", "c") == "c"


@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (TypeError, 7, "topic must be a str, not 7. Pass the name as a string."),
        (TypeError, None, "topic must be a str, not None. Pass the name as a string."),
        (TypeError, b"t", "topic must be a str, not b't'. Pass the name as a string."),
        (ValueError, "", "topic must not be empty. Pass a name of at least one character."),
        (ValueError, Name(""), "topic must not be empty. Pass a name of at least one character."),
    ],
)
def test_a_wrong_name_is_refused(error: type[Exception], value: object, message: str) -> None:
    """Fault: the check raises another error, or its message does not name the argument, the value and the remedy."""
    with pytest.raises(error) as caught:
        plain_name("topic", value)
    assert str(caught.value) == message


def test_an_event_becomes_a_plain_string_or_tuple() -> None:
    """Fault: the engine keeps a list, which may change later, keeps a name of a subclass, or converts a payload."""
    payload = Name("payload")
    for given in (("e", payload, 2), ["e", payload, 2], (Name("e"), payload, 2)):
        taken = plain_event(given)
        assert type(taken) is tuple
        assert (type(taken[0]), taken[0], taken[2]) == (str, "e", 2)
        assert taken[1] is payload
    assert plain_event("e") == "e"
    assert type(plain_event(Name("e"))) is str
    assert plain_event(("e",)) == ("e",)


@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (TypeError, 7, "event must be a name or (name, *payload), not 7. Pass a str, a tuple or a list."),
        (TypeError, None, "event must be a name or (name, *payload), not None. Pass a str, a tuple or a list."),
        (ValueError, (), "event must not be empty. Pass a name, or a tuple that begins with one."),
        (ValueError, [], "event must not be empty. Pass a name, or a tuple that begins with one."),
        (ValueError, "", "event must not be empty. Pass a name of at least one character."),
        (TypeError, (7, "e"), "event[0] must be a str, not 7. Pass the name as a string."),
        (ValueError, ("", 1), "event[0] must not be empty. Pass a name of at least one character."),
    ],
)
def test_a_wrong_event_is_refused(error: type[Exception], value: object, message: str) -> None:
    """Fault: the check raises another error, or its message does not name the value and the remedy."""
    with pytest.raises(error) as caught:
        plain_event(value)
    assert str(caught.value) == message


def test_the_name_of_an_event_is_its_first_part() -> None:
    """Fault: `name_of` returns the first letter of a name, or a whole tuple."""
    assert name_of("tick") == "tick"
    assert name_of(("tick", 1)) == "tick"


# Delays and instants


@pytest.mark.parametrize(
    ("delay_ms", "nanoseconds"),
    [
        (0, 0),
        (1, 1_000_000),
        (Whole.TWO, 2_000_000),
        (10**400, 10**406),
        (-1, 0),
        (-(10**400), 0),
        (0.0, 0),
        (-0.5, 0),
        (-1e300, 0),
        (0.1, 100_000),
        (1.5, 1_500_000),
        (1e-7, 1),
        (0.5e-6, 1),
        (5e-324, 1),
        (1.0000001, 1_000_001),
        (2.0**42, 2**42 * 1_000_000),
        (2.0**42 + 2.0**-10, 2**42 * 1_000_000 + 977),
        (2.0**42 - 2.0**-10, int((2.0**42 - 2.0**-10) * 1e6)),
        (2.0**41 + 2.0**-11, int((2.0**41 + 2.0**-11) * 1e6)),
        (1.7e308, int(1.7e308) * 1_000_000),
        (Delay(1.5), 1_500_000),
        (Delay(-1.5), 0),
        (Delay(1e300), int(1e300) * 1_000_000),
    ],
)
def test_a_delay_is_converted_exactly_to_the_nanosecond(delay_ms: float, nanoseconds: int) -> None:
    """Fault: a fraction is cut off, a long delay loses its last digits, or a negative one does not become 0 (G11)."""
    taken = delay_in_nanoseconds(delay_ms)
    assert (type(taken), taken) == (int, nanoseconds)


@pytest.mark.parametrize("delay_ms", [81.74760500000001, 102.00439300000001, 372.70108700000003])
def test_a_delay_is_never_rounded_down(delay_ms: float) -> None:
    """Fault: the product with 10**6 is rounded to a whole number below the delay, so the timer fires early (G9)."""
    assert int(delay_ms * 1e6) == delay_ms * 1e6 < Fraction(delay_ms) * 1_000_000
    assert delay_in_nanoseconds(delay_ms) == int(delay_ms * 1e6) + 1


@pytest.mark.parametrize(
    ("error", "delay_ms", "message"),
    [
        (ValueError, nan, "delay_ms must be finite, not nan. Pass milliseconds as a finite number."),
        (ValueError, inf, "delay_ms must be finite, not inf. Pass milliseconds as a finite number."),
        (ValueError, -inf, "delay_ms must be finite, not -inf. Pass milliseconds as a finite number."),
        (ValueError, Delay("inf"), "delay_ms must be finite, not inf. Pass milliseconds as a finite number."),
        (TypeError, True, "delay_ms must be an int or a float, not True. Pass milliseconds as a number."),
        (TypeError, "5", "delay_ms must be an int or a float, not '5'. Pass milliseconds as a number."),
        (TypeError, None, "delay_ms must be an int or a float, not None. Pass milliseconds as a number."),
    ],
)
def test_a_wrong_delay_is_refused(error: type[Exception], delay_ms: Any, message: str) -> None:
    """Fault: the check accepts NaN, takes `True` for one millisecond, or does not say in its message what to pass."""
    with pytest.raises(error) as caught:
        delay_in_nanoseconds(delay_ms)
    assert str(caught.value) == message


def test_nanoseconds_are_converted_to_milliseconds() -> None:
    """Fault: the unit is wrong, or an instant beyond the range of a float makes `inspect` raise an OverflowError."""
    assert milliseconds(1_500_000) == 1.5
    assert milliseconds(-1_500_000) == -1.5
    assert milliseconds(0) == 0.0
    assert milliseconds(10**400) == inf
    assert milliseconds(-(10**400)) == -inf


# Timeouts


def test_milliseconds_come_back_as_the_nanoseconds_of_which_they_were_made() -> None:
    """Fault: a division rounds, so that a clock which counts in nanoseconds is late by one now and then."""
    chance = random.Random(13)
    spans = [0, 1, 1_500_001, 5_000_000, *(chance.randrange(10 ** chance.randrange(1, 15)) for _ in range(20_000))]
    assert [span for span in spans if delay_in_nanoseconds(exact_milliseconds(span)) != span] == []
    for span in (2**53 + 1, 10**16 + 1, 10**17 + 999_999):
        assert 0 <= delay_in_nanoseconds(exact_milliseconds(span)) - span <= 100_000


def test_a_timeout_is_a_number_of_seconds_or_none() -> None:
    """Fault: the check refuses 0, returns an int as an int, or returns a timeout that is too long for a lock."""
    assert checked_timeout(None) is None
    for given, expected in ((0, 0.0), (0.25, 0.25), (3, 3.0), (inf, 1e9), (10**400, 1e9), (1e9, 1e9), (2e9, 1e9)):
        taken = checked_timeout(given)
        assert (type(taken), taken) == (float, expected)


@pytest.mark.parametrize(
    ("error", "timeout", "message"),
    [
        (ValueError, -1, "timeout must not be negative, not -1. Pass 0 to look without waiting."),
        (ValueError, -0.5, "timeout must not be negative, not -0.5. Pass 0 to look without waiting."),
        (ValueError, nan, "timeout must not be negative, not nan. Pass 0 to look without waiting."),
        (TypeError, False, "timeout must be a number of seconds or None, not False. Pass seconds as a number."),
        (TypeError, "5", "timeout must be a number of seconds or None, not '5'. Pass seconds as a number."),
    ],
)
def test_a_wrong_timeout_is_refused(error: type[Exception], timeout: Any, message: str) -> None:
    """Fault: a wait with the timeout NaN never returns, or the message does not say what to pass."""
    with pytest.raises(error) as caught:
        checked_timeout(timeout)
    assert str(caught.value) == message


# Dispatch


async def _coroutine(*_: object) -> None:
    """A coroutine function, whose coroutines these backends cannot await."""


class Handler:
    """An object of a host that is used as dispatch."""

    async def __call__(self, *_: object) -> None:
        pass

    async def method(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "dispatch",
    [
        _coroutine,
        partial(_coroutine, 1),
        partial(partial(_coroutine, 1), 2),
        Handler(),
        partial(Handler(), 1),
        Handler().method,
    ],
    ids=["function", "partial", "partial-partial", "object", "partial-object", "method"],
)
def test_a_coroutine_function_is_refused(dispatch: Callable[..., Any]) -> None:
    """Fault: the registry accepts a coroutine function in one of these forms, and every delivery fails later (G19)."""
    with stube.create_registry("memory") as registry, pytest.raises(TypeError) as caught:
        registry.install_dispatch(dispatch)
    assert str(caught.value) == (
        f"dispatch must be a plain function, not the coroutine function {dispatch!r}. "
        'Use the backend "asyncio", which awaits it, or pass a function that hands the event to your loop.'
    )


def test_a_dispatch_that_is_not_callable_is_refused(registry: VirtualBackend) -> None:
    """Fault: the registry accepts it, and every delivery fails later."""
    with pytest.raises(TypeError) as caught:
        registry.install_dispatch(7)  # type: ignore[arg-type]
    assert str(caught.value) == "dispatch must be callable, not 7. Pass a function (cid, event) -> None."


@pytest.mark.parametrize("dispatch", [partial(print, sep=""), len, Name], ids=["partial", "builtin", "class"])
def test_partials_builtins_and_classes_are_accepted_as_dispatch(registry: VirtualBackend, dispatch: Any) -> None:
    """Fault: the registry refuses a callable that is not a function, such as a partial or a class."""
    registry.install_dispatch(dispatch)


@pytest.mark.parametrize("kind", ["timer", "publication"])
def test_a_returned_coroutine_is_closed_and_its_delivery_has_failed(kind: str) -> None:
    """Fault: the registry does not close the coroutine, counts the delivery as delivered, or names no remedy."""
    errors: list[BaseException] = []
    with stube.create_registry("virtual", on_error=lambda _cid, _event, exc: errors.append(exc)) as registry:
        made = _coroutine()
        registry.install_dispatch(lambda _cid, _event: made)
        if kind == "timer":
            registry.schedule_event(cid="c", instance_id="i", delay_ms=0, event="e")
        else:
            registry.subscribe(cid="c", instance_id="i", topic="t", event="e")
            registry.publish("t", "m")
        registry.settle()
        assert inspect.getcoroutinestate(made) == inspect.CORO_CLOSED
        assert registry.stats().failed == 1
    assert [str(error) for error in errors] == [
        "dispatch returned 'coroutine', which this backend cannot await. Use the backend \"asyncio\", or return None."
    ]


def test_other_return_values_of_dispatch_are_ignored(registry: VirtualBackend) -> None:
    """Fault: the delivery counts as failed because the handler happens to return a value."""
    registry.install_dispatch(lambda _cid, _event: 7)  # type: ignore[arg-type]
    registry.subscribe(cid="c", instance_id="i", topic="t", event="e")
    registry.schedule_event(cid="c", instance_id="i", delay_ms=0, event="e")
    registry.publish("t", "m")
    registry.settle()
    assert (registry.stats().delivered, registry.stats().failed) == (2, 0)
