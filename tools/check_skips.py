"""Check that a test run left nothing out: `python tools/check_skips.py REPORT.xml`, a JUnit report of pytest.

A test may be skipped only because its backend does not promise a capability. Any other test that did not run, because
of a missing service or package or an expected failure, would be taken for tested. A report without a test fails, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

GOOD_REASON = re.compile(r"capability \S+ is not promised")


def bad_skips(report: ElementTree.Element) -> list[str]:
    """Return one line for each test that was skipped for another reason than a capability."""
    lines = []
    for case in report.iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = f"{skipped.get('message', '')}\n{skipped.text or ''}".strip()
            if not GOOD_REASON.search(reason):
                lines.append(f"{case.get('classname', '')}::{case.get('name', '')}: {reason.splitlines()[0]}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Check one report; return 0 if nothing was left out, 1 otherwise."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: check_skips.py REPORT.xml", file=sys.stderr)
        return 2
    report = ElementTree.parse(Path(arguments[0])).getroot()
    ran = sum(1 for _ in report.iter("testcase"))
    skipped = sum(1 for _ in report.iter("skipped"))
    bad = bad_skips(report)
    if bad:
        print("These tests were skipped for another reason than a capability that is not promised:")
        print("\n".join(f"  {line}" for line in bad))
        return 1
    if ran == skipped:
        print("No test has run.")
        return 1
    print(f"{ran - skipped} tests ran; {skipped} were skipped, each for a capability that is not promised.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
