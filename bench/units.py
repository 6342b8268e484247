"""Figures for people: a few digits, in the unit in which they are short.

A figure that is compared with limits has enough digits to show on which side of each limit it is, so that a miss never
looks like a hit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final

__all__ = ["UNITS", "counted", "ratio", "short", "shown"]

_THOUSANDS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
# For each unit of the results: its size in the smallest unit of its scale, and the scale.
_SCALES: Final = {
    "1/s": (1.0, tuple((size, f"{letter}/s") for size, letter in _THOUSANDS)),
    "B": (1.0, tuple((size, f"{letter}B") for size, letter in _THOUSANDS)),
    "ns": (1.0, _TIMES),
    "us": (1e3, _TIMES),
    "ms": (1e6, _TIMES),
    "s": (1e9, _TIMES),
}
_MOST_DIGITS: Final = 8

UNITS: Final = frozenset({*_SCALES, "count"})
"""The units that `shown` knows."""


def shown(
    figure: float | None, unit: str, digits: int = 3, limits: Sequence[float] = (), like: float | None = None
) -> str:
    """Return a figure with its unit; `-` if there is none.

    Args:
        unit: one of `UNITS`; `count` for a number without a unit.
        digits: the least number of significant digits.
        limits: the limits with which the figure is compared, in the same unit.
        like: another figure, whose unit is used.

    >>> shown(1_348_112, "1/s"), shown(999.7, "us"), shown(0.00071, "s"), shown(152.6, "B"), shown(12_000, "count")
    ('1.35 M/s', '1 ms', '710 µs', '153 B', '12,000')
    >>> shown(1_499_700, "1/s", limits=[1.5e6]), shown(1000.2, "ns", limits=[1000])
    ('1.4997 M/s', '1.0002 µs')
    >>> shown(800, "ns", like=2400), shown(714, "ns", 2)
    ('0.8 µs', '710 ns')
    >>> shown(-82.37, "us")
    '-82.4 µs'
    """
    if figure is None:
        return "-"
    if unit == "count":
        return counted(figure)
    size, scale = _SCALES[unit]
    digits = _enough(digits, _rounded, figure, limits)
    value = _rounded(figure * size, digits)
    measure = abs(value if like is None else like * size)
    step, name = next((one for one in scale if measure >= one[0]), scale[-1])
    return f"{_decimal(value / step, digits)} {name}"


def counted(figure: float) -> str:
    """Return a number without a unit.

    >>> counted(100_000), counted(0.5)
    ('100,000', '0.5')
    """
    return f"{figure:,.0f}" if figure == int(figure) else _decimal(figure, 3)


def short(figure: float) -> str:
    """Return a short number without a unit, for small spaces.

    >>> short(1000), short(2_500_000), short(30)
    ('1k', '2.5M', '30')
    """
    step, letter = next((one for one in _THOUSANDS if abs(figure) >= one[0]), _THOUSANDS[-1])
    return f"{_decimal(figure / step, 3)}{letter}"


def ratio(value: float | None, limits: Sequence[float] = ()) -> str:
    """Return a ratio with two decimals, or fewer if it is large; `-` if there is none.

    >>> ratio(1.5049), ratio(63.21), ratio(123.4), ratio(None), ratio(1.4961, [1.5])
    ('1.50', '63.2', '123', '-', '1.496')
    """
    if value is None:
        return "-"
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{_enough(decimals, round, value, limits)}f}"


def _enough(digits: int, rounded: Callable[[float, int], float], figure: float, limits: Sequence[float]) -> int:
    """Return the number of digits that show on which side of each limit a figure is."""

    def side(value: float) -> list[tuple[bool, bool]]:
        return [(value < limit, value > limit) for limit in limits]

    while digits < _MOST_DIGITS and side(rounded(figure, digits)) != side(figure):
        digits += 1
    return digits


def _rounded(figure: float, digits: int) -> float:
    return float(f"{figure:.{digits - 1}e}")


def _decimal(figure: float, digits: int) -> str:
    """Return so many significant digits, never as a power, without trailing zeros."""
    text = f"{Decimal(repr(_rounded(figure, digits))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
