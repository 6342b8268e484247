"""The command: it runs the suite on a backend, shows the verdicts, and writes the reports."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stube.testing._conformance.page import write_page
from stube.testing._conformance.report import Report, report_of, write_report
from stube.testing._conformance.reproduction import write_reproductions
from stube.testing._conformance.runner import ConformanceError, Runner
from stube.testing._conformance.terminal import Progress, table_of
from stube.testing._contract.capabilities import backend_name
from stube.testing._harness import DISPATCH, DISPATCHES, LOOP, LOOPS

__all__ = ["ConformanceError", "conform"]


def conform(
    spec: str,
    *,
    guarantees: Sequence[str] = (),
    keyword: str = "",
    first_only: bool = False,
    limit: float = 60.0,
    json_file: Path | None = None,
    html_file: Path | None = None,
    reproductions: Path | None = None,
    quiet: bool = False,
    loop: str = LOOPS[0],
    dispatch: str = DISPATCHES[0],
) -> int:
    """Run the suite on a backend, show the result, and write the reports.

    Args:
        spec: a name, a URL or `package.module:factory`.
        guarantees: those to test; none for all.
        keyword: which tests run, as pytest's `-k` takes it; empty for all.
        first_only: stop at the first test that fails.
        limit: seconds for one test, including its fixtures.
        json_file, html_file: the files for the reports; None for no report.
        reproductions: the folder for a program per broken guarantee, which shows it; None for none.
        quiet: show no progress.
        loop, dispatch: of `LOOPS` and `DISPATCHES`; for a backend that is served by an event loop.

    Returns:
        0 if the backend holds everything that it promises, 1 if something is broken or unproven, 130 if the run was
        interrupted. After an interruption the results up to then are shown, and no file is written.

    Raises:
        ConformanceError: the backend cannot be made, or a report cannot be written.
        ModuleNotFoundError: a package of the extra `testing` is missing.
    """
    if importlib.util.find_spec("hypothesis") is None:  # only the suite's files import it, in the child
        raise ModuleNotFoundError("No module named 'hypothesis'", name="hypothesis")
    if importlib.util.find_spec(loop) is None:
        raise ConformanceError(f"The loop {loop!r} is not installed. Install it with: pip install {loop}")
    outputs: list[tuple[Path, Callable[[Path, Report], None]]] = []
    if json_file is not None:
        outputs.append((json_file, write_report))
    if html_file is not None:
        outputs.append((html_file, write_page))
    for file, _ in outputs:
        _check_writable(file)
    if reproductions is not None:
        _check_folder(reproductions)
    progress = Progress(sys.stderr, quiet=quiet)
    served = {LOOP: loop, DISPATCH: dispatch}
    runner = Runner(
        spec, guarantees=guarantees, keyword=keyword, first_only=first_only, limit=limit, progress=progress,
        environment=served,
    )  # fmt: skip
    interrupted = False
    begin = time.monotonic()
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.clear()
    seconds = time.monotonic() - begin
    records = list(runner.records.values())
    # Of guarantees for which no test was asked there is nothing to say.
    asked = {number for facts in runner.tests.values() for number in facts["guarantees"]}
    numbers = guarantees or (sorted(asked) if keyword else ())
    report = report_of(backend_name(spec), records, seconds=seconds, numbers=numbers, totals=runner.numbers)
    print(table_of(report, sys.stdout))
    count = f"{len(records)} of {len(runner.tests)} tests"
    if interrupted:
        print(f"Interrupted after {count}." if runner.tests else "Interrupted before the first test.")
        return 130
    if len(records) < len(runner.tests):
        why = "one of them failed" if first_only else f"{runner.lost} of them hung or crashed"
        print(f"Stopped after {count}, because {why}.")
    if reproductions is not None:
        for number, file, fails in write_reproductions(reproductions, report, spec, served):
            print(f"{number}: python {file}{'' if fails else '   (passed when it was tried; it may need luck)'}")
    for file, write in outputs:
        try:
            write(file, report)
        except OSError as exc:
            raise ConformanceError(_not_writable(file, exc.strerror)) from exc
    return 0 if report["ok"] else 1


def _check_folder(folder: Path) -> None:
    """Make the folder for the reproductions, before the run."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as exc:
        raise ConformanceError(
            f"The folder {str(folder)!r} for reproductions cannot be made: {exc.strerror}. Name another one."
        ) from exc


def _check_writable(file: Path) -> None:
    """Refuse a report that cannot be written, before the run."""
    if file.is_dir():
        raise ConformanceError(_not_writable(file, "Is a directory"))
    if not file.parent.is_dir():
        raise ConformanceError(_not_writable(file, "No such file or directory"))
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConformanceError(_not_writable(file, "Permission denied"))


def _not_writable(file: Path, why: str | None) -> str:
    return f"The report {str(file)!r} cannot be written: {why}. Name a file in a folder that exists."
