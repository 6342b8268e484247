"""Small faults in backends that are not built on stube's engine, each with a test of the suite that names it.

An honest author makes such faults: a missing check, `<` for `<=`, a forgotten index. The suite judges the backends of
others, so it must name them. Each fault is a change of at most five lines in one file of an outsider: of `plain`, the
registry that most authors would write first (a lock, a heap, a deque and a thread), or of `globex`, an example that has
actors.
Their lists are `plain_faults.FAULTS` and `globex_faults.FAULTS`.

`python -m tests.outsiders.faults` prints all faults as a Markdown table, each with the test that names it and the
seconds that it takes. `--whole` looks for that test without knowing it: it runs all tests of the fault's guarantee, as
`--stube-guarantee` selects and orders them, until an assertion blames that guarantee.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Final

from tests.outsiders.preloaded_suite import QUICK_PATIENCE, Outcome, PreloadedSuite

FOLDER: Final = Path(__file__).resolve().parent
MOST_LINES: Final = 5
_LIMIT: Final = 120.0  # seconds for the tests of one fault
_WHOLE_LIMIT: Final = 400.0  # seconds for all tests of a guarantee
_LONGEST_MESSAGE: Final = 300


@dataclass(frozen=True)
class Fault:
    """A change of an outsider's source that breaks a guarantee."""

    guarantee: str
    clause: str
    """The part of the guarantee that is broken."""
    summary: str
    """What the registry does now."""
    old: str
    new: str
    caught_by: tuple[str, ...]
    """Tests of the suite, with or without their parameters: `test_x` or `test_x[one]`. An assertion of at least one of
    them must fail and blame the guarantee."""
    also: tuple[tuple[str, str], ...] = ()
    """Further places of the same file: what stands there and what takes its place."""
    file: str = ""
    """The file, relative to the outsider's folder; empty for the only file of an outsider that is one module."""
    quick: bool = True
    """Whether the tests repeat as rarely as with `--stube-quick`."""
    error: str = ""
    """The exception that an operation raises and must not; it may fail the test instead of an assertion."""

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """What stands in the file, and what takes its place."""
        return ((self.old, self.new), *self.also)

    @property
    def changed_lines(self) -> int:
        """The number of changed lines: removed or added ones, whichever are more."""
        return sum(_changed_lines(old, new) for old, new in self.places)


def _changed_lines(old: str, new: str) -> int:
    lines = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    return max(sum(line.startswith(sign) for line in lines) for sign in "-+")


@dataclass(frozen=True)
class Outsider:
    """A backend that is not built on stube's engine: a module or package in this folder."""

    name: str
    """The list of its faults is `FAULTS` in the module `<name>_faults`."""
    module: str
    """The name of its module or package."""
    factory: str
    folder: Path
    """Where the module or package is."""

    @property
    def backend(self) -> str:
        """The spec for `create_registry`, where the folder with the module is on the path."""
        return f"{self.module}:{self.factory}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The list of its faults."""
        found: tuple[Fault, ...] = import_module(f"tests.outsiders.{self.name}_faults").FAULTS
        return found

    def broken(self, fault: Fault) -> tuple[str, str]:
        """Return the fault's file, relative to the outsider's folder, and its text with the fault in it."""
        file = fault.file or f"{self.module}.py"
        text = (self.folder / file).read_text(encoding="utf-8")
        for old, new in fault.places:
            count = text.count(old)
            assert count == 1, f"{old!r} stands {count} times in {file}: the list of faults must follow it"
            text = text.replace(old, new)
        return file, text

    @contextmanager
    def copied(self, fault: Fault | None) -> Iterator[Path]:
        """Yield a folder that holds nothing but a copy of the outsider, with the fault in it."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            if (self.folder / self.module).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(self.folder / self.module, folder / self.module, ignore=ignored)
            else:
                shutil.copy(self.folder / f"{self.module}.py", folder)
            if fault is not None:
                file, text = self.broken(fault)
                (folder / file).write_text(text, encoding="utf-8")
            yield folder


OUTSIDERS: Final = (
    Outsider("plain", "plain", "PlainRegistry", FOLDER),
    Outsider("globex", "globex_stube", "GlobexRegistry", FOLDER.parents[1] / "examples" / "globex_stube"),
)


def preloaded(patience: float | None = QUICK_PATIENCE) -> PreloadedSuite:
    """Start a process that can run the suite on each outsider."""
    return PreloadedSuite([outsider.backend for outsider in OUTSIDERS], patience)


def name_fault(suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> list[Outcome]:
    """Run the tests that should name the fault, until one does; return how they ended."""
    with outsider.copied(fault) as folder:
        return suite.run(
            outsider.backend, folder, fault.caught_by, guarantee=fault.guarantee, quick=fault.quick, limit=_LIMIT
        )


def is_named(fault: Fault, outcomes: Sequence[Outcome]) -> bool:
    """Tell whether a test has blamed the guarantee that the fault breaks, by an assertion or the expected exception."""
    return any(fault.guarantee in each.blamed and (each.by_assertion or each.error == fault.error) for each in outcomes)


# The table


def _whole(suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> tuple[str, str]:
    """Run the tests of the guarantee until one names the fault; return the cells that tell how it went."""
    with outsider.copied(fault) as folder:
        found = suite.run(outsider.backend, folder, guarantee=fault.guarantee, quick=fault.quick, limit=_WHOLE_LIMIT)
    return _told(fault, found)


def _known(suite: PreloadedSuite, outsider: Outsider, fault: Fault) -> tuple[str, str]:
    """Run the tests that should name the fault; return the cells that tell how it went."""
    return _told(fault, name_fault(suite, outsider, fault))


def _told(fault: Fault, found: Sequence[Outcome]) -> tuple[str, str]:
    failed = [each for each in found if each.failed]
    messages = "; ".join(
        f"{each.test} blames {', '.join(each.blamed)}: {each.error}: {each.message}" for each in failed
    )
    naming = [each.test for each in failed if is_named(fault, [each])]
    return f"`{naming[0]}`" if naming else f"**none of {len(found)} tests**", messages


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


def _rows(chosen: Iterable[tuple[Outsider, Fault]], processes: int, whole: bool) -> Iterator[str]:
    with ExitStack() as stack:
        idle: SimpleQueue[PreloadedSuite] = SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(preloaded(None if whole else QUICK_PATIENCE)))

        def row(each: tuple[Outsider, Fault]) -> str:
            suite = idle.get()
            begin = time.monotonic()
            try:
                test, message = (_whole if whole else _known)(suite, *each)
                seconds = time.monotonic() - begin
            except TimeoutError as exc:
                test, message, seconds = "**none in time**", str(exc), time.monotonic() - begin
            finally:
                idle.put(suite)
            outsider, fault = each
            cells = [fault.guarantee, fault.clause, outsider.name, fault.summary, test, f"{seconds:.1f}", message]
            return f"| {' | '.join(map(_cell, cells))} |"

        with ThreadPoolExecutor(processes) as pool:
            yield from pool.map(row, chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.outsiders.faults", description=__doc__)
    parser.add_argument("guarantees", nargs="*", metavar="G5", help="only the faults of these guarantees")
    parser.add_argument("--outsider", help="only the faults of this one")
    parser.add_argument("--summary", default="", help="only the faults whose summary contains this")
    parser.add_argument("--whole", action="store_true", help="look for the test without knowing it; slow")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = [
        (outsider, fault)
        for outsider in OUTSIDERS
        for fault in outsider.faults
        if (not options.guarantees or fault.guarantee in options.guarantees)
        and options.outsider in (None, outsider.name)
        and options.summary in fault.summary
    ]
    chosen.sort(key=lambda each: int(each[1].guarantee[1:]))
    begin = time.monotonic()
    print("| guarantee | clause | outsider | fault | test | seconds | message |")
    print("|---|---|---|---|---|---|---|")
    for row in _rows(chosen, options.processes, options.whole):
        print(row, flush=True)
    print(f"\n{len(chosen)} faults in {time.monotonic() - begin:.0f} s on {options.processes} processes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
