"""The results of a measurement under load: the file, its faults, and the figures of the hosts side by side.

The file holds counts and no verdicts. The functions here decide from the counts whether anything was lost and whether
anything stayed behind; the command and the report use these functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.measuring import quantile
from bench.results import ResultsError
from bench.units import counted, shown

__all__ = [
    "BY_HAND", "FORMAT", "GRACE_SECONDS", "STUBE", "faults", "kept_up", "names", "not_gone", "percentiles", "read",
    "rows", "wrong",
]  # fmt: skip

FORMAT: Final = 1
STUBE: Final = "stube"
BY_HAND: Final = "by-hand"
GRACE_SECONDS: Final = 1.0
"""The time for which the host on stube waits for a page that was cut. The host by hand waits for none."""

Figures = Mapping[str, Any]


def percentiles(nanoseconds: Sequence[int], shares: Sequence[int] = (50, 90, 99, 100)) -> dict[str, float] | None:
    """Return the percentiles in microseconds; None if there are no values.

    >>> percentiles([1000, 2000, 3000], [50, 100])
    {'50': 2.0, '100': 3.0}
    """
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    return {str(share): quantile(ordered, share / 100) / 1000 for share in shares}


def read(file: Path) -> dict[str, Any]:
    """Read a file of figures.

    Raises:
        ResultsError: the file cannot be read, or has another format.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ResultsError(f"{file} cannot be read: {exc}. Name a file that `make load` has written.") from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResultsError(f"{file} is not a file of figures under load in format {FORMAT}. Write it again: make load.")
    return found


# Faults


def faults(host: Figures) -> list[str]:
    """Return what was lost, doubled or out of order; an empty list if nothing was.

    >>> faults({"lost": {"messages that did not arrive": 2, "streams that were cut": 0}})
    ['messages that did not arrive: 2']
    """
    return [f"{what}: {count:,}" for what, count in host["lost"].items() if count]


def not_gone(host: Figures) -> list[str]:
    """Return what is left after the last page has left; an empty list if nothing is."""
    return [f"{what}: {count:,}" for what, count in host["held"].items() if count]


def wrong(load: Figures) -> list[str]:
    """Return a sentence for each host that has lost something or kept something."""
    found = [(name, [*faults(host), *not_gone(host)]) for name, host in zip(names(load), load["hosts"], strict=True)]
    return [f"Under load the host {name} has faults: {'; '.join(whats)}." for name, whats in found if whats]


def kept_up(load: Figures, host: Figures) -> bool:
    """Return True if the host made at least 95% of the ticks that it would have made without any lateness."""
    return bool(host["ticks"] >= 0.95 * load["streams"] * load["seconds"])


# Side by side


def names(load: Figures) -> list[str]:
    """Return the names of the hosts, in the order of the columns."""
    return [f"stube, {host['backend']}" if host["host"] == STUBE else "by hand" for host in load["hosts"]]


def rows(load: Figures) -> Iterator[list[str]]:
    """Yield a row for each figure: its name, and the figure of each host."""
    for what, cell in _cells(load):
        yield [what, *map(cell, load["hosts"])]


def _cells(load: Figures) -> Iterator[tuple[str, Callable[[Figures], str]]]:
    streams, seconds = load["streams"], load["seconds"]
    for what, key, shares in (
        ("a tick's lateness when its handler begins", "handler_us", (50, 90, 99, 100)),
        ("a tick's lateness at the page", "page_us", (50, 90, 99, 100)),
        ("a message, from its acceptance to the last page", "spread_us", (50, 99, 100)),
    ):
        for share in shares:
            yield f"{what}, {'max' if share == 100 else f'p{share}'}", _quantile(key, share)
    whole = streams * seconds
    yield f"ticks, of {counted(whole)} if no clock drifted", lambda host: _ticks(load, host)
    yield (
        f"ticks of one stream in {seconds:g} s, fewest to most",
        lambda host: f"{host['fewest_ticks']} to {host['most_ticks']}",
    )
    yield "messages to all streams", lambda host: counted(host["messages"])
    yield "processor time of the host, a second", lambda host: shown(host["cpu"], "s")
    yield "processor time of the pages, a second", lambda host: shown(host["pages_cpu"], "s")
    yield "memory per conversation, when all are open", lambda host: _per_stream(host, streams, "open")
    yield f"memory per conversation, {seconds:g} s later", lambda host: _per_stream(host, streams, "later")
    yield "memory that the process keeps when all are gone, per conversation", lambda h: _per_stream(h, streams, "gone")
    yield "opening all streams", lambda host: shown(host["opening_s"], "s")
    yield "nothing lost", lambda host: _verdict(faults(host))
    yield "all gone", lambda host: _verdict(not_gone(host))
    yield "after the last page has left", lambda host: shown(host["gone_s"], "s")


def _quantile(key: str, share: int) -> Callable[[Figures], str]:
    return lambda host: shown(None if host[key] is None else host[key][str(share)], "us")


def _ticks(load: Figures, host: Figures) -> str:
    share = host["ticks"] / (load["streams"] * load["seconds"])
    return f"{counted(host['ticks'])} ({share:.1%}{'' if kept_up(load, host) else ', **it did not keep up**'})"


def _per_stream(host: Figures, streams: int, when: str) -> str:
    before, then = host["rss"]["before"], host["rss"][when]
    return shown(None if before is None or then is None else (then - before) / streams, "B")


def _verdict(wrong: Sequence[str]) -> str:
    return f"**no**: {'; '.join(wrong)}" if wrong else "yes"
