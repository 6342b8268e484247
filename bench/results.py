"""The file of results: an empty one, merging the output of each step, and the description of the machine."""

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
"""The parts of a file of results, all of them empty."""


def empty(mode: str, rounds: int, runs: int = 1) -> Results:
    """Return results of this machine and day, without a figure."""
    return {
        "format": FORMAT,
        "mode": mode,
        "made": date.today().isoformat(),
        "rounds": rounds,
        "runs": runs,
        "machine": machine(),
        **deepcopy(dict(PARTS)),
    }


def merged(results: Results, kind: str, found: Any) -> Results:
    """Return `results` with the output of a step.

    Args:
        kind: `rows`, a list of rows; `part`, some keys of the results; `operations`, the JSON of pytest-benchmark.
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
    """File each row that has a must or an aim as a target, and any other one as a comparison. Of a target that has been
    measured before, the worse of the two rows is kept, so that it is met only if it is met each time."""
    targets = {_name(row): row for row in results["targets"]}
    for row in rows:
        if row["must"] is not None or row["aim"] is not None:
            name = _name(row)
            targets[name] = _worse(targets[name], row) if name in targets else row
    known = {_name(row) for row in results["comparisons"]}
    others = [row for row in rows if row["must"] is None and row["aim"] is None and _name(row) not in known]
    return results | {"targets": [*targets.values()], "comparisons": [*results["comparisons"], *others]}


def _name(row: Results) -> tuple[str, str, str | None]:
    return row["work"], row["backend"], row.get("peer")


def _worse(one: Results, other: Results) -> Results:
    """Return the row whose judged value is the worse one, with the spread of both."""
    value = "ratio" if one["judged"] == "ratio" else "figure"
    better = max if one["sense"] == ">=" else min
    worse = other if better(one[value], other[value]) == one[value] else one
    if one["spread"] is None or other["spread"] is None:
        return worse
    spread = [min(one["spread"][0], other["spread"][0]), max(one["spread"][1], other["spread"][1])]
    return worse | {"spread": spread}


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
    """Return `results` with the targets that a run on a free-threaded Python measured.

    Raises:
        ResultsError: that run was on a Python with the GIL.
    """
    if free_threaded["machine"]["gil"]:
        raise ResultsError(
            f"The results to merge are of {free_threaded['machine']['python']}, which has the GIL. "
            "Run bench/run.py --only-targets on a free-threaded Python, and merge what that writes."
        )
    kept = {"machine": free_threaded["machine"], "targets": free_threaded["targets"]}
    return results | {"free_threaded": kept}


def read(file: Path) -> Results:
    """Read a file of results.

    Raises:
        ResultsError: there is no such file, or it has another format.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ResultsError(f"{file} cannot be read: {exc}. Name a file that bench/run.py has written.") from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResultsError(
            f"{file} is not a file of results in format {FORMAT}. Name one that bench/run.py has written."
        )
    return found


def machine() -> Results:
    """Return the properties of this machine on which the figures depend."""
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
    """Return the processor's name, from Linux or from the platform module."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
