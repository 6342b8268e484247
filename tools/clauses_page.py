"""Write docs/clauses.md: `python tools/clauses_page.py [--check]`.

The clauses come from `clauses.toml` in `stube/testing/_contract`, the faults from the docstrings of the tests. With
`--check` nothing is written, and the exit code is 1 if the page differs from what would be written, or if a clause has
no test.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import stube.testing.suite as suite
from stube.testing import GUARANTEES
from stube.testing._contract.clauses import CLAUSES, incomplete

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "clauses.md"
HEAD: Final = """\
# What the suite tests, clause by clause

The conformance suite goes through each [guarantee](guarantees.md) clause by clause. For each clause this page names the
faults that an honest author may make, and the test of `stube/testing/suite` that would name each of them. A report of
`python -m stube conformance SPEC` says of which clauses no test ran on a backend, because it lacks a capability.

This page is written by `tools/clauses_page.py` from `stube/testing/_contract/clauses.toml` and the docstrings of the
tests; a clause without a test fails the build."""


def tests_of_the_suite() -> dict[str, list[str]]:
    """Return the tests of the suite, each with the guarantees that its marker names."""
    found: dict[str, list[str]] = {}
    for name in suite.__all__:
        marks = getattr(getattr(suite, name), "pytestmark", [])
        if name.startswith("test_"):
            found[name] = [number for mark in marks if mark.name == "guarantee" for number in mark.args]
    return found


def fault_of(test: str) -> str:
    """Return the fault that a test looks for, out of its docstring; empty if it names none."""
    text = inspect.getdoc(inspect.unwrap(getattr(suite, test))) or ""
    fault = re.search(r"Fault: (.+?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return " ".join(fault[1].split()) if fault else ""


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_sections(), ""])


def _sections() -> Iterator[str]:
    for number, clauses in CLAUSES.items():
        guarantee = GUARANTEES[number]
        yield from ("", f"## {number}, {guarantee.title}", "", guarantee.sentence, "")
        yield from ("| clause | a fault in it | the test that names it |", "|---|---|---|")
        for clause, tests in clauses.items():
            for position, test in enumerate(tests):
                yield f"| {clause if position == 0 else ''} | {fault_of(test)} | `{test}` |"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/clauses.md from the table of clauses and the suite.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    arguments = parser.parse_args(argv)
    problems = [*incomplete(tests_of_the_suite())]
    problems += [f"{test} names no fault in its docstring" for test in tests_of_the_suite() if not fault_of(test)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    if not arguments.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is stale. Write it again, and commit it: python tools/clauses_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
