"""Every row of the table of targets, by name: `python bench/targets.py --only firing --rounds 5`.

A target names the work, the backends, the limits to reach and the peers for comparison. The functions that measure are
in `bench/rows/`; this module has their list, and the command that measures some or all of them and prints a table.

The exit code is 1 if a target that must be reached is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.measuring import Effort, Row
from bench.rows import conversations, fairness, idle, lateness, lives, memory, sharding, timers, topics, virtual_time
from bench.subjects import installed
from bench.units import ratio, shown

__all__ = ["TARGETS", "Target", "main"]


@dataclass(frozen=True)
class Target:
    """One measurement with its limits."""

    name: str
    measure: Callable[[str, Effort], Iterator[Row]]
    judged: tuple[str, ...] = ("memory",)
    """The backends that must reach it."""
    also: tuple[str, ...] = ("virtual", "sharded")
    """Backends that are measured for information, without a target."""

    def rows(self, backend: str, effort: Effort) -> Iterator[Row]:
        """Measure one backend and yield its rows."""
        for row in self.measure(backend, effort):
            yield row if backend in self.judged else row.unjudged()


_NONE: Final = ()
_VIRTUAL: Final = ("virtual",)
_THREADS: Final = ("sharded",)  # the backends with threads, besides `memory`

TARGETS: Final = (
    Target("schedule", timers.schedule),
    Target("schedule-a-million", timers.schedule_a_million),
    Target("cancel", timers.cancel),
    Target("firing", timers.fire),
    Target("lateness", lateness.lateness, also=_THREADS),
    Target("bytes", memory.bytes_per_timer),
    Target("deliveries", topics.deliver),
    Target("deliveries-bare", topics.deliver_beside_bare_callbacks),
    Target("deliveries-few", topics.deliver_to_few),
    Target("publish", topics.publish),
    Target("join-leave", topics.join_and_leave),
    Target("batons", conversations.batons),
    Target("end", conversations.end),
    Target("fairness", fairness.clocks, ("memory", "sharded", "asyncio"), _NONE),
    Target("life", lives.lives),
    Target("virtual-time", virtual_time.in_and_fired, _VIRTUAL, _NONE),
    Target("virtual-day", virtual_time.a_day, _VIRTUAL, _NONE),
    Target("one-caller", sharding.one_caller, ("sharded",), ("sharded://?shards=8",)),
    Target("eight-callers", sharding.eight_callers, ("sharded",), ("sharded://?shards=8",)),
    Target("eight-callers-free-threaded", sharding.eight_callers_free_threaded, ("sharded",), ("sharded://?shards=8",)),
    Target("blocking", sharding.blocking, ("sharded://?shards=8",), _NONE),
    Target("idle", idle.wake_ups, ("memory", "sharded"), _NONE),
)


def table(rows: Sequence[Row]) -> str:
    """Return the rows in aligned columns."""
    lines: list[Sequence[str]] = [("work", "backend", "figure", "beside", "ratio", "spread", "must", "aim", "")]
    for row in rows:
        limits = ["" if limit is None else f"{row.sense} {limit:g}" for limit in (row.must, row.aim)]
        marks = {None: "", True: "met", False: "MISSED"}
        mark = "aim reached" if row.aim_met and row.met is not False else marks[row.met]
        lines.append(
            (
                row.work,
                row.backend,
                shown(row.figure, row.unit),
                f"{row.peer}: {shown(row.peer_figure, row.unit)}" if row.peer else "",
                "" if row.ratio is None else ratio(row.ratio),
                "" if row.spread is None else f"{ratio(row.spread[0])}-{ratio(row.spread[1])}",
                *limits,
                mark,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="targets whose name contains this (repeatable)")
    parser.add_argument("--exactly", metavar="NAME", help="the one target of this name")
    parser.add_argument("--backend", action="append", metavar="SPEC", help="instead of the judged ones (repeatable)")
    parser.add_argument("--every-backend", action="store_true", help="also the backends that are not judged")
    parser.add_argument(
        "--every-peer", action="store_true", help="also the peers that no target names, beside judged backends"
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor by which counts are multiplied (default 1)")
    parser.add_argument("--idle-s", type=float, default=3.0, help="seconds to watch idle registries (default 3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to a file as well")
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    arguments = parser.parse_args(argv)
    chosen = [
        target
        for target in TARGETS
        if (arguments.exactly or target.name) == target.name
        and any(part in target.name for part in arguments.only or [""])
    ]
    if arguments.list or not chosen:
        print("\n".join(target.name for target in TARGETS))
        return 0 if arguments.list else 2
    rows: list[Row] = []
    for target in chosen:
        backends = arguments.backend or [*target.judged, *(target.also if arguments.every_backend else ())]
        for backend in installed(backends):
            print(f"{target.name}, {backend} ...", file=sys.stderr, flush=True)
            every_peer = arguments.every_peer and backend in target.judged
            effort = Effort(arguments.rounds, arguments.scale, every_peer, arguments.idle_s)
            rows += target.rows(backend, effort)
    if arguments.json is not None:
        found: list[dict[str, Any]] = [asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(rows))
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
