"""The measurement of figures: stube's own body and its peers' run in turns, in several rounds, and make a row.

Machines are shared and noisy, so an absolute figure is only a hint; the ratio to a peer is what counts. In each round
every body runs once, so that an event that slows the machine down for a second or two slows down all of them. A ratio
is the median of the rounds' ratios, and its spread is the least and the greatest of them.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import cycle
from typing import Final, Literal, TypeVar

__all__ = [
    "Effort",
    "Plan",
    "Row",
    "clock",
    "interleaved",
    "leave_out",
    "left_out",
    "quantile",
    "row",
    "rows_beside",
    "seconds",
]

clock: Final = time.perf_counter
Sense = Literal[">=", "<="]
FigureT = TypeVar("FigureT")


@dataclass(frozen=True)
class Effort:
    """The amount of work that is measured."""

    rounds: int = 5
    scale: float = 1.0
    """The factor by which counts are multiplied: 1 for a target, less for a first look and for tests."""
    every_peer: bool = False
    """True to measure also the peers that no target names."""
    idle_s: float = 3.0
    """The seconds for which an idle registry is watched."""

    def size(self, count: int, least: int = 10) -> int:
        """Return `count`, scaled."""
        return count if self.scale == 1 else max(min(count, least), int(count * self.scale))


@dataclass
class Row:
    """One line of the results; `bench/report.py` reads these names."""

    work: str
    backend: str
    figure: float
    unit: str
    peer: str | None = None
    peer_figure: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    judged: Literal["ratio", "figure"] = "figure"
    sense: Sense = ">="
    must: float | None = None
    aim: float | None = None
    met: bool | None = None
    aim_met: bool | None = None
    detail: str = ""

    def judge(self) -> Row:
        """Compare the judged value with `must` and `aim`; return the row itself."""
        value = self.figure if self.judged == "figure" else self.ratio
        self.met = self._reaches(value, self.must)
        self.aim_met = self._reaches(value, self.aim)
        return self

    def unjudged(self) -> Row:
        """Remove the target; return the row itself."""
        self.must = self.aim = None
        return self.judge()

    def _reaches(self, value: float | None, limit: float | None) -> bool | None:
        if value is None or limit is None:
            return None
        return value >= limit if self.sense == ">=" else value <= limit


def seconds(body: Callable[[], object]) -> float:
    """Return the duration of one call of `body`, after a garbage collection."""
    gc.collect()
    started = clock()
    body()
    return clock() - started


def interleaved(rounds: int, bodies: Mapping[str, Callable[[], FigureT]]) -> dict[str, list[FigureT]]:
    """Run each body once in every round, in the order given; return their results."""
    figures: dict[str, list[FigureT]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, body in bodies.items():
            figures[name].append(body())
    return figures


def row(
    work: str,
    backend: str,
    own: Sequence[float],
    unit: str,
    *,
    peer: str | None = None,
    beside: Sequence[float] = (),
    judged: Literal["ratio", "figure"] | None = None,
    sense: Sense = ">=",
    must: float | None = None,
    aim: float | None = None,
    detail: str = "",
) -> Row:
    """Return the row of one body and at most one peer.

    Args:
        own, beside: the figures of the rounds, in `unit`; `beside` is empty if there is no peer.
        judged: the value that the target limits; by default the ratio if there is a peer, else the figure.
    """
    ratios = [mine / other for mine, other in zip(own, beside, strict=True)] if beside else []
    return Row(
        work,
        backend,
        statistics.median(own),
        unit,
        peer if ratios else None,
        statistics.median(beside) if ratios else None,
        statistics.median(ratios) if ratios else None,
        (min(ratios), max(ratios)) if ratios else None,
        judged or ("ratio" if ratios else "figure"),
        sense,
        must,
        aim,
        detail=detail,
    ).judge()


def rows_beside(
    work: str,
    backend: str,
    figures: Mapping[str, Sequence[float]],
    unit: str,
    *,
    target: str,
    sense: Sense = ">=",
    must: float | None = None,
    aim: float | None = None,
    details: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Yield a row for each peer in `figures`, whose first entry is stube's own; only that of `target` is judged."""
    (own, *others) = figures
    for peer in others:
        judged = peer == target
        yield row(
            work,
            backend,
            figures[own],
            unit,
            peer=peer,
            beside=figures[peer],
            sense=sense,
            must=must if judged else None,
            aim=aim if judged else None,
            detail=(details or {}).get(peer, ""),
        )


left_out: Final[dict[str, None]] = {}
"""A sentence for each backend and peer that was not measured because it is not installed, in the order of discovery."""


def leave_out(sentence: str) -> None:
    """Record that something is not measured, and print the sentence on the error stream the first time."""
    if sentence not in left_out:
        left_out[sentence] = None
        print(sentence, file=sys.stderr, flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values do not exceed; the greatest value for the share 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Plan:
    """The timers of a measurement, made before it begins: their conversations and their delays.

    The conversations take turns, as they do in a server. The delays are spread evenly, with a fixed seed, so that every
    body gets the same ones. The timers of a conversation share one string, because a host holds each cid once. The
    delays are in arrays, because the cyclic collector would visit lists of a million pairs again and again while
    something else is measured (0.2 us a timer).
    """

    def __init__(self, count: int, low_s: float, high_s: float, conversations: int = 1000, prefix: str = "c") -> None:
        self.low_s, self.high_s = low_s, high_s
        generator = random.Random(1)
        self._names = [f"{prefix}{number}" for number in range(conversations)]
        self._take(array("d", (generator.uniform(low_s, high_s) for _ in range(count))))

    def _take(self, delays: array[float]) -> None:
        self._seconds = delays
        self._milliseconds = array("d", (delay * 1000 for delay in delays))
        self.count = len(delays)
        self.names = self._names[: self.count]

    @property
    def in_seconds(self) -> Iterable[tuple[str, float]]:
        """The conversation of each timer, and its delay."""
        return zip(cycle(self._names), self._seconds, strict=False)

    @property
    def in_milliseconds(self) -> Iterable[tuple[str, float]]:
        """The same in milliseconds."""
        return zip(cycle(self._names), self._milliseconds, strict=False)

    def first(self, count: int) -> Plan:
        """Return a plan with the first `count` timers."""
        fewer = copy(self)
        fewer._take(self._seconds[:count])
        return fewer
