"""The report: a verdict for each guarantee, from the records of a run.

A verdict is `held` if at least one test of the guarantee ran and all that ran passed; `broken` if one did not;
`not promised` if the whole guarantee depends on a capability that the backend does not name; and `unproven` if no test
of a mandatory guarantee ran. Tests that were skipped for want of a capability do not change `held`, but the report
counts them and names the capability.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypedDict

from stube import __version__
from stube.testing._conformance.outcomes import Record, Story
from stube.testing._contract.capabilities import CAPABILITIES
from stube.testing._contract.guarantees import GUARANTEES, Guarantee

__all__ = [
    "BROKEN",
    "HELD",
    "NOT_PROMISED",
    "UNPROVEN",
    "GuaranteeReport",
    "Report",
    "Tested",
    "report_of",
    "summary",
    "write_report",
]

FORMAT: Final = 1
HELD: Final = "held"
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
    missing: list[str]
    """The capabilities for which tests were skipped."""
    story: Story | None
    """The shortest story of a broken test."""


class Tested(TypedDict):
    """One test of the run."""

    name: str
    outcome: str
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


def report_of(backend: str, records: Sequence[Record], *, seconds: float, numbers: Collection[str] = ()) -> Report:
    """Make the report on one backend.

    Args:
        backend: its name as it is shown, without a password.
        records: of the tests that ran on it or were skipped.
        seconds: the duration of the run.
        numbers: the guarantees that were asked for; none for all.
    """
    promised = {one for record in records for one in record["promised"] or ()}
    guarantees = {
        number: _verdict(guarantee, [record for record in records if number in record["guarantees"]], promised)
        for number, guarantee in GUARANTEES.items()
        if not numbers or number in numbers
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
        "ok": all(one["verdict"] in (HELD, NOT_PROMISED) for one in guarantees.values()),
        "guarantees": guarantees,
        "tests": [
            {
                "name": record["name"],
                "outcome": record["outcome"],
                "seconds": record["seconds"],
                "guarantees": record["guarantees"],
                "capabilities": record["capabilities"],
                "story": record["story"],
            }
            for record in records
        ],
    }


def _verdict(guarantee: Guarantee, records: Iterable[Record], promised: Collection[str]) -> GuaranteeReport:
    passed = failed = skipped = 0
    missing: set[str] = set()
    stories: list[Story] = []
    for record in records:
        if record["outcome"] == "skipped":
            skipped += 1
            missing.update(set(record["capabilities"]) - set(promised))
        elif record["outcome"] == "passed":
            passed += 1
        else:
            failed += 1
            if record["story"] is not None:
                stories.append(record["story"])
    if failed:
        verdict = BROKEN
    elif guarantee.capability is not None and guarantee.capability not in promised:
        verdict = NOT_PROMISED
    else:
        verdict = HELD if passed else UNPROVEN
    return {
        "title": guarantee.title,
        "verdict": verdict,
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "missing": sorted(missing),
        "story": min(stories, key=lambda story: (len(story["finding"]), story["test"]), default=None),
    }


def summary(report: Report) -> str:
    """Say in one sentence how many guarantees are held, and which are not.

    >>> from stube.testing._conformance.report import report_of, summary
    >>> summary(report_of("acme", [], seconds=0, numbers=["G8"]))
    'acme holds 0 of 1 guarantee and leaves 1 unproven (G8): 0 tests ran in 0 s.'
    """
    by_verdict: dict[str, list[str]] = {}
    for number, one in report["guarantees"].items():
        by_verdict.setdefault(one["verdict"], []).append(number)
    total, held = len(report["guarantees"]), len(by_verdict.get(HELD, ()))
    parts = [f"holds {'all' if held == total > 1 else f'{held} of'} {_count(total, 'guarantee')}"]
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
