"""The parts of the results besides targets: curves over sizes, lateness, memory, start-up and idle registries.

`python bench/extras.py memory` measures one part and prints it as JSON, with the keys that it has in the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.measuring import Effort, Plan, interleaved, quantile
from bench.peers.emitters import BareEmitter, Blinker, Channels, Emitter, FanOutPeer, Psygnal, ThreadPool
from bench.peers.presence import present
from bench.peers.timers import Asyncio, Scheduler, TimerPeer, Uvloop
from bench.rows import idle, lateness, memory, start_up, timers, topics
from bench.subjects import installed

__all__ = ["PARTS", "main"]

BACKENDS: Final = ("memory", "virtual", "sharded")
_WITH_THREADS: Final = ("memory", "sharded")
_SIZES: Final = (1000, 10_000, 100_000, 1_000_000)
_FAN_OUTS: Final = (1, 10, 100, 1000, 10_000)
Part = dict[str, Any]


def cost_by_size(effort: Effort) -> Part:
    """Measure the cost of scheduling and of cancelling a timer, by the number of pending timers."""
    sizes = sorted({effort.size(size) for size in _SIZES})
    plans = [Plan(size, 1, 600) for size in sizes]
    kinds: Sequence[type[TimerPeer]] = (Asyncio, Uvloop, Scheduler)
    loops: Sequence[type[TimerPeer]] = (Asyncio, Uvloop)
    backends = installed(BACKENDS)
    scheduled = _curves(
        effort,
        {backend: [partial(timers.schedule_rate, backend, plan) for plan in plans] for backend in backends},
        {kind.name: [partial(timers.peer_schedule_rate, kind, plan) for plan in plans] for kind in present(kinds)},
    )
    cancelled = _curves(
        effort,
        {backend: [partial(timers.cancel_rate, backend, plan) for plan in plans] for backend in backends},
        {kind.name: [partial(timers.peer_cancel_rate, kind, plan) for plan in plans] for kind in present(loops)},
    )

    def entries(work: str, curves: dict[tuple[str, str], list[float]]) -> list[Part]:
        return [
            {
                "label": f"{work}, {name}",
                "backend": backend,
                "x": sizes,
                "y": [1e6 / rate for rate in rates],
                "x_unit": "pending timers",
                "y_unit": "us",
            }
            for (name, backend), rates in curves.items()
        ]

    return {
        "series": {
            "cost_by_size": entries("schedule_event", scheduled),
            "cancel_cost_by_size": entries("cancel_timers", cancelled),
        }
    }


def deliveries_by_fan_out(effort: Effort) -> Part:
    """Measure deliveries per second, from one subscriber to ten thousand."""
    sizes = sorted({effort.size(size, size if size < 100 else 100) for size in _FAN_OUTS})
    kinds: Sequence[type[FanOutPeer]] = (Emitter, BareEmitter, Blinker, Psygnal, ThreadPool, Channels)
    most = effort.size(200_000)

    def messages(size: int, limit: int | None = None) -> int:
        most_here = most if limit is None else min(most, limit)
        return max(2, min(most_here // size, most_here // 10))

    curves = _curves(
        effort,
        {
            backend: [partial(topics.deliveries_per_second, backend, size, messages(size)) for size in sizes]
            for backend in installed(BACKENDS)
        },
        {
            kind.name: [
                partial(topics.peer_deliveries_per_second, kind, size, messages(size, kind.most))
                for size in sizes
                if kind in topics.wide_enough([kind], size)
            ]
            for kind in present(kinds)
        },
    )
    entries = [
        {
            "label": name,
            "backend": backend,
            "x": sizes[: len(rates)],  # a peer may not be measured at the widest fan-outs
            "y": rates,
            "x_unit": "subscribers",
            "y_unit": "1/s",
        }
        for (name, backend), rates in curves.items()
    ]
    return {"series": {"deliveries_by_fan_out": entries}}


def _curves(
    effort: Effort,
    own: dict[str, list[Callable[[], float]]],
    peers: dict[str, list[Callable[[], float]]],
) -> dict[tuple[str, str], list[float]]:
    """Return the median rate at each size, by label and backend (empty for a peer)."""
    labelled = {(backend, backend): bodies for backend, bodies in own.items()}
    labelled |= {(name, ""): bodies for name, bodies in peers.items()}
    bodies = {f"{key} {number}": body for key, points in labelled.items() for number, body in enumerate(points)}
    figures = interleaved(effort.rounds, bodies)
    return {
        key: [statistics.median(figures[f"{key} {number}"]) for number in range(len(points))]
        for key, points in labelled.items()
    }


def late_timers(effort: Effort) -> Part:
    """Measure the lateness of timers, on an idle machine and beside a thread that computes."""
    plan = lateness.late_timers(effort)
    entries = []
    for loaded in (False, True):
        bodies: dict[str, Callable[[], list[float]]] = {
            backend: partial(lateness.late, backend, plan, loaded=loaded) for backend in installed(_WITH_THREADS)
        }
        bodies |= {
            kind.name: partial(lateness.peer_late, kind, plan, loaded=loaded) for kind in present(lateness.PEERS)
        }
        for name, rounds in interleaved(effort.rounds, bodies).items():
            percentiles = {
                str(share): statistics.median(quantile(late, share / 100) for late in rounds) * 1e6
                for share in (50, 90, 99, 100)
            }
            entries.append({"label": name, "load": "loaded" if loaded else "idle", "percentiles": percentiles})
    return {"series": {"lateness": entries}}


def bytes_per_timer(effort: Effort) -> Part:
    """Measure the bytes of a timer, by the number of pending timers that are close together."""
    sizes = sorted({effort.size(size) for size in _SIZES[:3]})
    plans = [memory.dense_plan(size) for size in sizes]
    curves = {backend: [memory.timer_bytes(backend, plan) for plan in plans] for backend in installed(BACKENDS)}
    loops: Sequence[type[TimerPeer]] = (Asyncio, Uvloop)
    curves |= {kind.name: [memory.peer_timer_bytes(kind, plan) for plan in plans] for kind in present(loops)}
    return {
        "series": {"bytes_per_timer": [{"label": name, "x": sizes, "y": sizes_} for name, sizes_ in curves.items()]}
    }


def bytes_of_everything(effort: Effort) -> Part:
    """Measure the bytes of a timer, a subscription and a baton."""
    return {"memory": list(memory.everything(installed(BACKENDS), effort))}


def time_to_start(effort: Effort) -> Part:
    """Measure the time from the start to the first delivery."""
    return {"start_up": start_up.everything(installed(BACKENDS), effort)}


def wake_ups(effort: Effort) -> Part:
    """Watch idle registries, and make the target's rows from the same figures, because watching takes long."""
    watched = idle.watch_all(installed(_WITH_THREADS), effort.idle_s)
    return {
        "wakeups": [asdict(one) for one in watched],
        "targets": [asdict(idle.row_of(one)) for one in watched],
    }


PARTS: Final[dict[str, Callable[[Effort], Part]]] = {
    "cost by size": cost_by_size,
    "deliveries by fan-out": deliveries_by_fan_out,
    "lateness by load": late_timers,
    "bytes by size": bytes_per_timer,
    "memory": bytes_of_everything,
    "start-up": time_to_start,
    "wake-ups": wake_ups,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor by which counts are multiplied (default 1)")
    parser.add_argument("--idle-s", type=float, default=3.0, help="seconds to watch idle registries (default 3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write to a file instead")
    arguments = parser.parse_args(argv)
    part = PARTS[arguments.part](Effort(arguments.rounds, arguments.scale, idle_s=arguments.idle_s))
    text = json.dumps(part, indent=1)
    if arguments.json is None:
        print(text)
    else:
        arguments.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
