"""The report: a verdict for each guarantee, from the records of a run.

A verdict is `held` if every test of the guarantee that the backend's capabilities ask for has passed, `held so far` if
only a part of these tests ran and passed, `broken` if one failed, `not promised` if the whole guarantee depends on a
capability that the backend does not name, and `unproven` if no test of a mandatory guarantee ran.

Each verdict comes with the number of tests that ran, the number that the suite has, and the clauses of which none ran.
Tests that were skipped for want of a capability do not change `held`, but the report counts them and names the
capability.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypedDict

from stube import __version__
from stube.testing._conformance.outcomes import Record, Story
from stube.testing._contract.capabilities import CAPABILITIES, with_real_time
from stube.testing._contract.clauses import CLAUSES
from stube.testing._contract.guarantees import GUARANTEES, Guarantee

__all__ = [
    "BROKEN",
    "HELD",
    "HELD_SO_FAR",
    "NOT_PROMISED",
    "UNPROVEN",
    "GuaranteeReport",
    "Report",
    "Tested",
    "report_of",
    "summary",
    "write_report",
]

FORMAT: Final = 2
HELD: Final = "held"
HELD_SO_FAR: Final = "held so far"
NOT_PROMISED: Final = "not promised"
BROKEN: Final = "broken"
UNPROVEN: Final = "unproven"
_RAN: Final = {"passed", "failed", "hung", "crashed"}


class GuaranteeReport(TypedDict):
    """The result of a run for one guarantee."""

    title: str
    verdict: str
    passed: int
    failed: int
    skipped: int
    total: int
    """How many tests the suite has for it, whether they ran or not."""
    missing: list[str]
    """The capabilities for which tests were skipped."""
    untested: list[str]
    """The clauses of which no test ran, if all tests were asked to run."""
    story: Story | None
    """The shortest story of a broken test."""


class Tested(TypedDict):
    """One test of the run."""

    name: str
    outcome: str
    blamed: list[str]
    """The guarantees that it found broken."""
    seconds: float
    guarantees: list[str]
    capabilities: list[str]
    story: Story | None


class Report(TypedDict):
    """The result of a run for one backend, as the JSON file holds it."""

    format: int
    stube: str
    backend: str
    python: str
    platform: str
    date: str
    seconds: float
    capabilities: list[str]
    not_promised: list[str]
    ok: bool
    guarantees: dict[str, GuaranteeReport]
    tests: list[Tested]


def report_of(
    backend: str,
    records: Sequence[Record],
    *,
    seconds: float,
    numbers: Collection[str] = (),
    totals: Mapping[str, int] | None = None,
) -> Report:
    """Make the report on one backend.

    Args:
        backend: its name as it is shown, without a password.
        records: of the tests that ran on it or were skipped.
        seconds: the duration of the run.
        numbers: the guarantees that were asked for; none for all. Others are reported where a test failed because of
            them alone.
        totals: how many tests the suite has for each guarantee; None if all of them have a record.
    """
    if totals is None:
        totals = Counter(number for record in records for number in record["guarantees"])
    # A test that was asked for one guarantee and found another one broken must not go unnoticed.
    found = {number for record in records if not {*numbers} & {*record["blamed"]} for number in record["blamed"]}
    promised = {one for record in records for one in record["promised"] or ()}
    guarantees = {
        number: _verdict(
            guarantee,
            [record for record in records if number in _concerned(record)],
            promised,
            total=totals.get(number, 0),
        )
        for number, guarantee in GUARANTEES.items()
        if not numbers or number in numbers or number in found
    }
    return {
        "format": FORMAT,
        "stube": __version__,
        "backend": backend,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "capabilities": sorted(promised),
        "not_promised": sorted(set(CAPABILITIES) - promised),
        "ok": all(one["verdict"] in (HELD, HELD_SO_FAR, NOT_PROMISED) for one in guarantees.values()),
        "guarantees": guarantees,
        "tests": [
            {
                "name": record["name"],
                "outcome": record["outcome"],
                "blamed": record["blamed"],
                "seconds": record["seconds"],
                "guarantees": record["guarantees"],
                "capabilities": record["capabilities"],
                "story": record["story"],
            }
            for record in records
        ],
    }


def _concerned(record: Record) -> set[str]:
    """Return the guarantees on which a record bears: what a test blames or, when it blames nothing, all its own."""
    return set(record["blamed"] or record["guarantees"])


def _verdict(
    guarantee: Guarantee, records: Iterable[Record], promised: Collection[str], *, total: int
) -> GuaranteeReport:
    passed = failed = skipped = 0
    missing: set[str] = set()
    ran: set[str] = set()
    stories: list[Story] = []
    for record in records:
        if record["outcome"] == "skipped":
            skipped += 1
            missing.update(set(record["capabilities"]) - with_real_time(promised))
            continue
        ran.add(record["name"].partition("[")[0])
        if record["outcome"] == "passed":
            passed += 1
        else:
            failed += 1
            if record["story"] is not None:
                stories.append(record["story"])
    if failed:
        verdict = BROKEN
    elif guarantee.capability is not None and guarantee.capability not in promised:
        verdict = NOT_PROMISED
    elif not passed:
        verdict = UNPROVEN
    else:
        verdict = HELD if passed + skipped >= total else HELD_SO_FAR
    return {
        "title": guarantee.title,
        "verdict": verdict,
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "total": total,
        "missing": sorted(missing),
        "untested": _untested(guarantee.number, ran) if passed + failed + skipped >= total else [],
        "story": min(stories, key=lambda story: (len(story["finding"]), story["test"]), default=None),
    }


def _untested(number: str, ran: Collection[str]) -> list[str]:
    """Return the clauses of a guarantee of which none of these tests is."""
    return [clause for clause, tests in CLAUSES[number].items() if not {*tests} & {*ran}]


def summary(report: Report) -> str:
    """Say in one sentence how many guarantees are held, and which are not.

    >>> from stube.testing._conformance.report import report_of, summary
    >>> summary(report_of("acme", [], seconds=0, numbers=["G8"]))
    'acme holds 0 of 1 guarantee and leaves 1 unproven (G8): 0 tests ran in 0 s.'
    """
    by_verdict: dict[str, list[str]] = {}
    for number, one in report["guarantees"].items():
        by_verdict.setdefault(one["verdict"], []).append(number)
    so_far = " as far as they were tested" if HELD_SO_FAR in by_verdict else ""
    total, held = len(report["guarantees"]), sum(len(by_verdict.get(verdict, ())) for verdict in (HELD, HELD_SO_FAR))
    parts = [f"holds {'all' if held == total > 1 else f'{held} of'} {_count(total, 'guarantee')}{so_far}"]
    other = {NOT_PROMISED: "does not promise {}", BROKEN: "breaks {}", UNPROVEN: "leaves {} unproven"}
    for verdict, said in other.items():
        if numbers := by_verdict.get(verdict):
            parts.append(f"{said.format(len(numbers))} ({', '.join(numbers)})")
    sentence = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    ran = sum(test["outcome"] in _RAN for test in report["tests"])
    return f"{report['backend']} {sentence}: {_count(ran, 'test')} ran in {report['seconds']:.0f} s."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def write_report(path: Path, report: Report) -> None:
    """Write the report as JSON, with an end of line at its end.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
