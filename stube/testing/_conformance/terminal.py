"""The conformance command's face on a terminal: the progress while it runs, the table at its end.

Nothing moves and nothing is coloured where the stream is no terminal; nothing is coloured where `NO_COLOR` is set.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from typing import Final, TextIO

from stube.testing._conformance.outcomes import Story
from stube.testing._conformance.report import BROKEN, HELD, NOT_PROMISED, UNPROVEN, GuaranteeReport, Report, summary

__all__ = ["Progress", "table_of"]

_BAR: Final = 24  # characters
_REDRAW: Final = 0.1  # seconds
_LINE_EVERY: Final = 10.0  # seconds between two lines where there is no terminal
_WIDTH: Final = 100  # characters of a story's prose

_COLOURS: Final = {HELD: "32", NOT_PROMISED: "2", BROKEN: "1;31", UNPROVEN: "1;33"}


class Progress:
    """How far the run is. On a terminal one line that is drawn again and again; elsewhere a line now and then.

    Args:
        stream: where to; stderr, so that the table can be redirected alone.
        quiet: show nothing.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._live = stream.isatty()
        self._begin = time.monotonic()
        self._latest = self._begin - _LINE_EVERY
        self._drawn = False

    def show(self, done: int, total: int, failures: int, current: str) -> None:
        """Show it, if enough time has passed since the last time.

        Args:
            done, total, failures: numbers of tests.
            current: the test that runs.
        """
        now = time.monotonic()
        if self._quiet or not total or now - self._latest < (_REDRAW if self._live else _LINE_EVERY):
            return
        self._latest = now
        seconds = int(now - self._begin)
        failed = f"{failures} failed"
        if self._live:
            full = _BAR * done // total
            clock = f"{seconds // 60}:{seconds % 60:02}"
            line = f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{total}  {failed}  {clock}  {current}"
            self._stream.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            self._drawn = True
        else:
            self._stream.write(f"{done} of {total} tests, {failed}, {seconds} s\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty for what is printed next."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def table_of(report: Report, stream: TextIO) -> str:
    """The report as a table, with the stories of what is broken, and a sentence at its end.

    Args:
        report: of one backend.
        stream: where it will be printed, which decides about colours.
    """
    coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    lines = [
        f"stube {report['stube']}, backend {report['backend']}, Python {report['python']}, {report['platform']}",
        "",
        f"{'':5}{'GUARANTEE':21}{'VERDICT':14}{'PASSED':>7}{'FAILED':>8}{'SKIPPED':>9}",
    ]
    told: dict[str, str] = {}  # of which test under which number: a random program may break many at once
    for number, one in report["guarantees"].items():
        lines.append(_row(number, one, coloured=coloured))
        story = one["story"]
        if story is not None:
            first = told.setdefault(story["test"], number)
            under = _story_of(story) if first == number else [f"The same test as under {first}."]
            lines += [f"     {line}".rstrip() for line in under]
    text = "\n".join([*lines, "", summary(report)])
    # What the terminal's encoding lacks is escaped; the command shall not die of a character.
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _row(number: str, one: GuaranteeReport, *, coloured: bool) -> str:
    verdict = one["verdict"].upper() if one["verdict"] in (BROKEN, UNPROVEN) else one["verdict"]
    cell = f"{verdict:14}"
    if coloured:
        cell = f"\x1b[{_COLOURS[one['verdict']]}m{cell}\x1b[0m"
    missing = f"  needs {', '.join(one['missing'])}" if one["missing"] else ""
    counts = f"{one['passed']:7}{one['failed']:8}{one['skipped']:9}"
    return f"{number:5}{one['title']:21}{cell}{counts}{missing}"


def _story_of(story: Story) -> list[str]:
    fault = f" The fault may be: {story['fault']}" if story["fault"] else ""
    return [
        *textwrap.wrap(f"{story['promise']}.{fault}", _WIDTH),
        *(f"  {line}" for line in story["finding"].splitlines()),
        f"  at {story['where']}, {story['test']}",
    ]
