"""The file of results: an empty one, what each step adds to it, and the machine that it is about."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from copy import deepcopy
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bench.rows.sharding import gil_enabled

__all__ = ["FORMAT", "PARTS", "Results", "ResultsError", "empty", "machine", "merge_free_threaded", "merged", "read"]

FORMAT: Final = 1
Results = dict[str, Any]
_PACKAGES: Final = (
    "stube",
    "sortedcontainers",
    "uvloop",
    "APScheduler",
    "pyee",
    "blinker",
    "psygnal",
    "channels",
    "reactivex",
    "Twisted",
    "pytest-benchmark",
)


class ResultsError(Exception):
    """A file of results cannot be used; the message says why and what to do."""


PARTS: Final[Mapping[str, Any]] = {
    "targets": [],
    "comparisons": [],
    "series": {},
    "memory": [],
    "start_up": [],
    "wakeups": [],
    "operations": [],
    "free_threaded": None,
}
"""What there can be in a file of results, without a figure."""


def empty(mode: str, rounds: int) -> Results:
    """Results of this machine, today, without a figure."""
    return {
        "format": FORMAT,
        "mode": mode,
        "made": date.today().isoformat(),
        "rounds": rounds,
        "machine": machine(),
        **deepcopy(dict(PARTS)),
    }


def merged(results: Results, kind: str, found: Any) -> Results:
    """`results` with what a step found.

    Args:
        kind: `rows`, a list of rows; `part`, some keys of the results; `operations`, what pytest-benchmark writes.
    """
    if kind == "rows":
        return _with_rows(results, found)
    if kind == "operations":
        return results | {"operations": [*results["operations"], *map(_operation, found["benchmarks"])]}
    part = dict(found)
    results = _with_rows(results, part.pop("targets", []))
    results = results | {"series": {**results["series"], **part.pop("series", {})}}
    return results | {key: [*results[key], *entries] for key, entries in part.items()}


def _with_rows(results: Results, rows: list[Results]) -> Results:
    """A row that must reach something, or aims at it, is a target; any other a comparison."""
    has_target = [row for row in rows if row["must"] is not None or row["aim"] is not None]
    others = [row for row in rows if row["must"] is None and row["aim"] is None]
    return results | {
        "targets": [*results["targets"], *has_target],
        "comparisons": [*results["comparisons"], *others],
    }


def _operation(benchmark: Mapping[str, Any]) -> Results:
    about, stats = benchmark["extra_info"], benchmark["stats"]
    microseconds = 1e6 / about["count"]
    return {
        "name": about["name"],
        "group": about["group"],
        "backend": about["backend"],
        "size": about["size"],
        "median_us": stats["median"] * microseconds,
        "iqr_us": stats["iqr"] * microseconds,
        "rounds": stats["rounds"],
    }


def merge_free_threaded(results: Results, free_threaded: Results) -> Results:
    """`results` with the targets that a run on a free-threaded Python measured.

    Raises:
        ResultsError: that run was on no such Python.
    """
    if free_threaded["machine"]["gil"]:
        raise ResultsError(
            f"The results to merge are of {free_threaded['machine']['python']}, which has the GIL. "
            "Run bench/run.py --only-targets on a free-threaded Python, and merge what that writes."
        )
    kept = {"machine": free_threaded["machine"], "targets": free_threaded["targets"]}
    return results | {"free_threaded": kept}


def read(file: Path) -> Results:
    """A file of results.

    Raises:
        ResultsError: there is none, or it has another format.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ResultsError(f"{file} cannot be read: {exc}. Name a file that bench/run.py has written.") from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResultsError(f"{file} is no file of results of format {FORMAT}. Name one that bench/run.py has written.")
    return found


def machine() -> Results:
    """What the figures depend on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": gil_enabled(),
        "versions": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            pass
    return found


def _cpu() -> str:
    """The processor's name: that of Linux, or what the platform module knows."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
