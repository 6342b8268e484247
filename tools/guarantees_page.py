"""Write the tables of docs/guarantees.md: `python tools/guarantees_page.py [REPORT.json ...] [--check]`.

The texts of the guarantees come from `stube.testing.GUARANTEES`, those of the capabilities from
`stube.testing._contract`. The verdicts come from the reports that
`pytest --stube-report` and `stube conformance --json` write, one for each backend. Without a report the table of the
backends is left unchanged. Everything outside the markers is written by hand.

With `--check` nothing is written, and the exit code is 1 if the page differs from what would be written. Therefore the
page contains no date and no duration.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from stube.testing import GUARANTEES
from stube.testing._contract.capabilities import CAPABILITIES

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "guarantees.md"
# The columns of these backends come first, in this order; then those of the others by name.
FIRST: Final = ("memory", "virtual", "sharded", "asyncio")
SIGNS: Final = {"held": "held", "not promised": "not promised", "broken": "**broken**", "unproven": "**unproven**"}
STALE: Final = """\
{} is stale. Write it again, and commit it:
  pytest tests/test_conformance.py tests/test_conformance_asyncio.py --stube-report reports
  stube conformance acme --json reports/acme.json        (with examples/acme_stube installed)
  stube conformance globex --json reports/globex.json    (with examples/globex_stube installed)
  python tools/guarantees_page.py reports/*.json"""


def guarantees_table() -> str:
    """Return the guarantees, in one table for each theme."""
    lines: list[str] = []
    theme = ""
    for number, one in GUARANTEES.items():
        if one.theme != theme:
            theme = one.theme
            lines += ["", f"## {theme}", "", "| | |", "|---|---|"]
        lines.append(f"| **{number}** {one.title} | {one.sentence} |")
    return "\n".join(lines[1:])


def capabilities_table() -> str:
    """Return what each capability promises."""
    return "\n".join(["| | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in CAPABILITIES.items())])


def backends_table(reports: Iterable[dict[str, Any]]) -> str:
    """Return the verdicts, a row for each guarantee and a column for each backend, and the backends' capabilities."""
    order = sorted(reports, key=lambda one: (*(one["backend"] != name for name in FIRST), one["backend"]))
    lines = ["| | " + " | ".join(f"`{one['backend']}`" for one in order) + " |", "|---|" + "---|" * len(order)]
    for number, guarantee in GUARANTEES.items():
        cells = [SIGNS[one["guarantees"][number]["verdict"]] for one in order]
        lines.append(f"| **{number}** {guarantee.title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_capabilities(order)])


def _capabilities(reports: Iterable[dict[str, Any]]) -> Iterator[str]:
    for one in reports:
        promised = ", ".join(f"`{name}`" for name in one["capabilities"]) or "none"
        yield f"- `{one['backend']}` has the capabilities {promised}."


def with_tables(page: str, reports: Sequence[dict[str, Any]]) -> str:
    """Return the page with the text between its markers replaced."""
    page = _between(page, "guarantees", guarantees_table())
    page = _between(page, "capabilities", capabilities_table())
    return _between(page, "backends", backends_table(reports)) if reports else page


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: written by tools/guarantees_page.py -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        sys.exit(f"{PAGE.name} does not hold the markers of {name!r} once. Put `{begin}` and `{end}` where it goes.")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or check it; return 0 if it is written or fresh."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/guarantees.md.")
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT.json")
    parser.add_argument("--check", action="store_true", help="write nothing, and report whether the page is fresh")
    parser.add_argument("--page", type=Path, default=PAGE, help="another page than docs/guarantees.md")
    arguments = parser.parse_args(argv)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.reports]
    partial = [one["backend"] for one in reports if set(one["guarantees"]) != set(GUARANTEES)]
    if partial:
        print(
            f"The report on {partial[0]} covers only some of the guarantees. Run the whole suite for it.",
            file=sys.stderr,
        )
        return 2
    old = arguments.page.read_text(encoding="utf-8")
    new = with_tables(old, reports)
    if arguments.check:
        if new != old:
            print(
                *difflib.unified_diff(old.splitlines(), new.splitlines(), "is", "should be", n=0, lineterm=""), sep="\n"
            )
            print(STALE.format(arguments.page.name))
            return 1
        print(f"{arguments.page.name} is fresh")
        return 0
    arguments.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
