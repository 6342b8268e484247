"""How a figure is taken: one's own body and its peers' in turns, round after round, and the row that they make.

Machines are shared and noisy, so an absolute figure is a hint and a ratio is what counts. In each round every body
runs once, so that whatever slows the machine down for a second or two slows all of them; a ratio is the median of the
rounds' ratios, and its spread the least and the greatest of them.
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
    """How much is measured."""

    rounds: int = 5
    scale: float = 1.0
    """What counts are multiplied by: 1 is what a target says, less is for a first look and for tests."""
    every_peer: bool = False
    """Also the peers that no target names."""
    idle_s: float = 3.0
    """For how long an idle registry is watched, in seconds."""

    def size(self, count: int, least: int = 10) -> int:
        """`count`, scaled."""
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
        """Compare what is judged with what must be and what is aimed at; the row itself."""
        value = self.figure if self.judged == "figure" else self.ratio
        self.met = self._reaches(value, self.must)
        self.aim_met = self._reaches(value, self.aim)
        return self

    def unjudged(self) -> Row:
        """The same without a target; the row itself."""
        self.must = self.aim = None
        return self.judge()

    def _reaches(self, value: float | None, limit: float | None) -> bool | None:
        if value is None or limit is None:
            return None
        return value >= limit if self.sense == ">=" else value <= limit


def seconds(body: Callable[[], object]) -> float:
    """How long one call of `body` takes, with no garbage left over from before."""
    gc.collect()
    started = clock()
    body()
    return clock() - started


def interleaved(rounds: int, bodies: Mapping[str, Callable[[], FigureT]]) -> dict[str, list[FigureT]]:
    """What each body returns: in every round each runs once, in the order given."""
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
    """The row of one body and at most one peer.

    Args:
        own, beside: the figures of the rounds, in `unit`; `beside` is empty when there is no peer.
        judged: what the target is about; by default the ratio when there is a peer, else the figure.
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
    """One row for each peer in `figures`, whose first entry is one's own; the target is that beside `target`."""
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
"""What was not measured because it is not installed here, one sentence each, in the order in which it was missed."""


def leave_out(sentence: str) -> None:
    """Note that something is not measured, and say so on the error stream the first time."""
    if sentence not in left_out:
        left_out[sentence] = None
        print(sentence, file=sys.stderr, flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not pass; 1 for the greatest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Plan:
    """The timers of a measurement, made before it begins: whose they are and how long they take.

    The conversations take turns, as they do in a server; the delays are spread evenly, by a seed, so that every body
    gets the same ones. Strings are shared between a conversation's timers: a host holds its cid once. The delays stand
    in arrays: lists of a million pairs would be gone through by the cyclic collector again and again while something
    else is measured (0.2 us a timer).
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
        """Each timer's conversation, and its delay."""
        return zip(cycle(self._names), self._seconds, strict=False)

    @property
    def in_milliseconds(self) -> Iterable[tuple[str, float]]:
        """The same in milliseconds."""
        return zip(cycle(self._names), self._milliseconds, strict=False)

    def first(self, count: int) -> Plan:
        """A plan of the first `count` of its timers."""
        fewer = copy(self)
        fewer._take(self._seconds[:count])
        return fewer
