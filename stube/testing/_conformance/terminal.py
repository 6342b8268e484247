"""The output of the conformance command: the progress while it runs, the table at its end.

Colours are used on a terminal only, and not where `NO_COLOR` is set.
"""

from __future__ import annotations

import os
import textwrap
from typing import Final, TextIO

from stube.testing._conformance.outcomes import Record, Story
from stube.testing._conformance.report import (
    BROKEN,
    HELD,
    HELD_SO_FAR,
    NOT_PROMISED,
    UNPROVEN,
    GuaranteeReport,
    Report,
    summary,
)
from stube.testing._harness import ProgressLine, monotonic

__all__ = ["Progress", "table_of"]

_BAR: Final = 24  # characters
_WIDTH: Final = 100  # characters of a story's prose

_COLOURS: Final = {HELD: "32", HELD_SO_FAR: "32", NOT_PROMISED: "2", BROKEN: "1;31", UNPROVEN: "1;33"}


class Progress:
    """The progress of the run, on a line for all its tests.

    Args:
        stream: where it is shown: stderr, so that the table alone can be redirected.
        quiet: show nothing.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._line = ProgressLine(stream)
        self._quiet = quiet
        self._begin = monotonic()
        self._told: set[str] = set()  # the broken guarantees that have been told
        self._judged = False

    def judge(self, record: Record, *, over: int, quick: int, total: int) -> None:
        """Tell each guarantee as soon as it is found broken, and how all of them are once the quick tests are over.

        Args:
            record: of the test that has just ended.
            over, quick, total: numbers of tests: those that are over, the quick ones, which run first, and all.
        """
        if self._quiet:
            return
        fresh = [number for number in record["blamed"] if number not in self._told]
        if fresh:
            self._told.update(fresh)
            self._line.say(f"{', '.join(fresh)} broken, as {record['name']} shows.")
        if not self._judged and quick <= over < total:
            self._judged = True
            broken = f"{', '.join(sorted(self._told, key=_number))} broken" if self._told else "nothing is broken"
            seconds = monotonic() - self._begin
            self._line.say(f"First verdict after {seconds:.0f} s, from the {quick} quick tests: {broken}.")

    def show(self, done: int, total: int, failures: int, current: str) -> None:
        """Show it, if enough time has passed since the last time.

        Args:
            done, total, failures: numbers of tests.
            current: the test that runs.
        """
        if self._quiet or not total or not self._line.due():
            return
        seconds = int(monotonic() - self._begin)
        failed = f"{failures} failed"
        if self._line.live:
            full = _BAR * done // total
            clock = f"{seconds // 60}:{seconds % 60:02}"
            self._line.draw(f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total}  {failed}  {clock}  {current}")
        else:
            self._line.draw(f"{done} of {total} tests, {failed}, {seconds} s")

    def clear(self) -> None:
        """Leave the line empty for the next output."""
        self._line.clear()


def table_of(report: Report, stream: TextIO) -> str:
    """Return the report as a table, with the stories of broken guarantees, and a sentence at its end.

    Args:
        report: of one backend.
        stream: where the table will be printed; decides whether it has colours.
    """
    coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    lines = [
        f"stube {report['stube']}, backend {report['backend']}, Python {report['python']}, {report['platform']}",
        "",
        f"{'':5}{'GUARANTEE':21}{'VERDICT':14}{'TESTED':12}{'FAILED':8}".rstrip(),
    ]
    told: dict[str, str] = {}  # from a test to the guarantee with its story: a random program may break many of them
    for number, one in report["guarantees"].items():
        lines.append(_row(number, one, coloured=coloured))
        lines += [line for clause in one["untested"] for line in _untested(clause)]
        story = one["story"]
        if story is not None:
            first = told.setdefault(story["test"], number)
            under = _story_of(story) if first == number else [f"The same test as under {first}."]
            lines += [f"     {line}".rstrip() for line in under]
    text = "\n".join([*lines, "", summary(report)])
    # A character that the terminal's encoding lacks is escaped, so that it cannot end the command.
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _row(number: str, one: GuaranteeReport, *, coloured: bool) -> str:
    verdict = one["verdict"].upper() if one["verdict"] in (BROKEN, UNPROVEN) else one["verdict"]
    cell = f"{verdict:14}"
    if coloured:
        cell = f"\x1b[{_COLOURS[one['verdict']]}m{cell}\x1b[0m"
    missing = f"the rest needs {', '.join(one['missing'])}" if one["missing"] else ""
    ran = f"{one['passed'] + one['failed']} of {one['total']}"
    return f"{number:5}{one['title']:21}{cell}{ran:12}{one['failed'] or '':<8}{missing}".rstrip()


def _untested(clause: str) -> list[str]:
    return textwrap.wrap(f"not tested: {clause}", _WIDTH, initial_indent=" " * 5, subsequent_indent=" " * 7)


def _number(guarantee: str) -> int:
    return int(guarantee.removeprefix("G"))


def _story_of(story: Story) -> list[str]:
    fault = f" The fault may be: {story['fault']}" if story["fault"] else ""
    return [
        *textwrap.wrap(f"{story['promise']}.{fault}", _WIDTH),
        *(f"  {line}" for line in story["finding"].splitlines()),
        f"  at {story['where']}, {story['test']}",
    ]
