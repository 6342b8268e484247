"""Measure everything and write one file of results, `bench/results.json`, with the report beside it.

    python bench/run.py                       everything, about 50 minutes on two quiet cores
    python bench/run.py --quick               a first look within two minutes, into a scratch folder
    python bench/run.py --only-targets --into FOLDER        only the targets, for example for the next line
    python bench/run.py --merge-free-threaded FILE          include the figures of a run on a free-threaded Python
    python bench/run.py --merge-free-threaded FILE --merely-merge       add these figures to existing results

Every step runs in a process of its own, so that no step is affected by another. The file is written when all steps are
done; a run that is interrupted leaves the last results unchanged. The exit code is 0 even if a target is missed: the
report says which.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.results import Results, ResultsError, empty, merge_free_threaded, merged, read
from bench.steps import MODES, Mode, Step, steps_of

__all__ = ["main"]

HERE: Final = Path(__file__).parent
_FAILED, _INTERRUPTED = 1, 130


class StepFailed(Exception):  # noqa: N818 - a step's state, not a mistake in this module
    """A step did not write its results; the message contains its output."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    mode = MODES["quick" if arguments.quick else "full"]
    into: Path | None = arguments.into or (None if arguments.quick else HERE)
    try:
        free_threaded = arguments.merge_free_threaded and read(arguments.merge_free_threaded)
        if arguments.merely_merge:
            results = read((into or HERE) / "results.json")
        else:
            steps = steps_of(mode, only_targets=arguments.only_targets, only=arguments.only)
            results = _measured(steps, mode)
        if free_threaded:
            results = merge_free_threaded(results, free_threaded)
        into = (into or Path(tempfile.mkdtemp(prefix="stube-bench-"))).absolute()
        _write(results, into)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        return _INTERRUPTED
    except (StepFailed, ResultsError) as exc:
        print(f"\n{exc}", file=sys.stderr)
        return _FAILED
    print(f"Written: {into / 'results.json'}")
    return 0 if arguments.only_targets else _reported(into)  # a report needs all parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, into a scratch folder")
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="the folder for results.json and the report")
    parser.add_argument("--only-targets", action="store_true", help="measure only the targets, write no report")
    parser.add_argument("--only", action="append", metavar="NAME", help="steps whose name contains this (repeatable)")
    parser.add_argument("--merge-free-threaded", metavar="FILE", type=Path, help="results of a free-threaded Python")
    parser.add_argument("--merely-merge", action="store_true", help="measure nothing; change the existing results")
    return parser


def _measured(steps: Sequence[Step], mode: Mode) -> Results:
    """Run all steps and return their results; print a line for each, with an estimate of the time left."""
    results = empty(mode.name, mode.rounds, mode.runs)
    progress = _Progress(steps)
    with tempfile.TemporaryDirectory(prefix="stube-bench-") as scratch:
        for number, step in enumerate(steps):
            progress.begin(number)
            found = _run(step, Path(scratch) / f"{number}.json")
            results = merged(results, step.kind, found)
            progress.end(number)
    return results


class _Progress:
    """One line for each step. The time left is estimated from the durations so far and the expected ones."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._began = self._step_began = time.monotonic()

    def begin(self, number: int) -> None:
        step = self._steps[number]
        self._step_began = now = time.monotonic()
        expected = sum(one.expected_s for one in self._steps[:number])
        pace = (now - self._began) / expected if expected else 1.0
        left = pace * sum(one.expected_s for one in self._steps[number:])
        time_left = f"{left:3.0f} s" if left < 100 else f"{left / 60:3.0f} min"
        head = f"[{number + 1:{len(str(len(self._steps)))}}/{len(self._steps)}]"
        print(f"{head} about {time_left} left: {step.name} ... ", end="", flush=True)

    def end(self, number: int) -> None:
        print(f"{time.monotonic() - self._step_began:.0f} s", flush=True)


def _run(step: Step, file: Path) -> Any:
    """Run a step in a process of its own and return the JSON that it writes to `file`."""
    # The output goes to a file, because this process does not read a pipe while it waits.
    with file.with_suffix(".log").open("w+", encoding="utf-8") as log:
        child = subprocess.Popen(
            [*step.command, *step.output(file)], stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent
        )
        try:
            child.wait()
        finally:
            if child.poll() is None:  # Ctrl-C interrupts the child, too; wait a moment until it has ended by itself
                try:
                    child.wait(5)
                except (subprocess.TimeoutExpired, KeyboardInterrupt):
                    child.kill()
                    child.wait()
        if child.returncode not in step.good_codes or not file.exists():
            log.seek(0)
            output = "".join(log.readlines()[-40:])
            raise StepFailed(
                f"The step {step.name!r} ended with code {child.returncode}. Its output ends with:\n{output}\n"
                f"Nothing was written. Run it alone: {' '.join(step.command[1:])}"
            )
    return json.loads(file.read_text(encoding="utf-8"))


def _write(results: Results, into: Path) -> None:
    """Write the file atomically: afterwards it is the complete new one, or the old one."""
    into.mkdir(parents=True, exist_ok=True)
    half = into / "results.json.half"
    try:
        half.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(half, into / "results.json")
    finally:
        half.unlink(missing_ok=True)


def _reported(into: Path) -> int:
    """Run the command that writes the report; return its exit code."""
    command = [sys.executable, str(HERE / "report.py"), str(into / "results.json"), "--into", str(into)]
    return subprocess.run(command, check=False, cwd=HERE.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
