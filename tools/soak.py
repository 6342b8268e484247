"""A long search for faults: random programs against the model, recorded histories of many threads, then chaos.

    python tools/soak.py                                    every local backend, ten minutes of histories and of chaos
    python tools/soak.py --backend sharded://?shards=4      another backend; may be given several times
    python tools/soak.py --nightly                          as in CI: a minute of chaos for each backend
    python tools/soak.py --minutes 1 --steps 20000          shorter, or 0 to leave a part out
    python tools/soak.py --check soak-memory-17.json        check a history again that an earlier run saved

Programs are performed step by step on a backend and on a model of plain dicts (`stube.testing`). Histories are recorded
while threads perform random operations; a checker decides whether they keep G1, G2, G4, G5, G7, G8, G16 and G18. Chaos
is many more threads, with handlers that block, raise and perform every operation themselves; afterwards the recorded
history must agree with the registry's own ledger. A backend with a virtual clock has no chaos, because it delivers on
its callers' threads. An asyncio backend is served by an event loop in a thread of its own.

The exit code is 1 upon the first finding. The finding is printed with its seed, and a history is saved: the scheduling
of threads cannot be repeated, but a record can be checked again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from typing_extensions import override

from stube import available_backends, is_virtual
from stube._secrets import shown
from stube.testing._chaos.rounds import ChaosFailed, ChaosFigures, chaos
from stube.testing._harness import ProgressLine, create
from stube.testing._history.checker import Verdict, check_history
from stube.testing._history.recorder import clock_option, promised
from stube.testing._history.records import History
from stube.testing._history.workload import HistoryFailed, random_history

_LOCAL: Final = ("memory", "virtual", "sharded", "asyncio")  # the default backends, as far as they are installed
_SUBJECTS: Final = (None, "timers", "topics", "batons")
_SILENT: Final = 10.0  # seconds until the first line of progress, where there is no terminal
_FAILED, _INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Lengths:
    """The default lengths of the parts."""

    steps: int
    """Operations of random programs, for each backend."""
    minutes: float
    """Of histories, shared among the backends."""
    chaos_minutes: float
    """For each backend."""


_BY_HAND: Final = Lengths(steps=200_000, minutes=10, chaos_minutes=10)
_NIGHTLY: Final = Lengths(steps=50_000, minutes=2, chaos_minutes=1)


class Finding(Exception):  # noqa: N818 - a state that is met, not a mistake
    """A backend does not keep its promises; the text says which and how."""


class Progress(ProgressLine):
    """The progress of one part on one backend, whose name is the label."""

    label = ""

    def show(self, text: str) -> None:
        """Show the state, if enough time has passed since the last time."""
        if self.due():
            self.draw(f"{self.label}: {text}")


@dataclass
class Figures:
    """The figures of the histories of one backend."""

    histories: int = 0
    operations: int = 0
    deliveries: int = 0
    undecided: int = 0

    def add(self, history: History, verdict: Verdict) -> None:
        """Count one history."""
        self.histories += 1
        self.operations += len(history.calls)
        self.deliveries += len(history.runs)
        self.undecided += bool(verdict.undecided)

    @override
    def __str__(self) -> str:
        undecided = f", {self.undecided} undecided" if self.undecided else ""
        return (
            f"{self.histories:,} histories, {self.operations:,} operations, {self.deliveries:,} deliveries{undecided}"
        )


def soak_the_programs(spec: str, steps: int, seed: int, progress: Progress) -> None:
    """Perform random programs of so many steps; raises `Finding`."""
    # Only this part needs hypothesis.
    from stube.testing._model.random_programs import soak_programs

    started = time.monotonic()
    progress.label = f"{shown(spec)}, programs"

    def tell(done: int) -> None:
        progress.show(f"{done:,} of {steps:,} operations, {_clock(time.monotonic() - started)} elapsed")

    try:
        done = soak_programs(spec, {}, steps=steps, seed=seed, progress=tell)
    except AssertionError as exc:
        raise Finding(f"{shown(spec)} differs from the model in programs of seed {seed}.\n{exc}") from None
    progress.say(f"{progress.label}: {done:,} operations in {_clock(time.monotonic() - started)}, no difference.")


def soak_histories(spec: str, minutes: float, seed: int, folder: Path, progress: Progress) -> Figures:
    """Record and check histories for so many minutes; saves the history and raises `Finding` when one is wrong."""
    figures = Figures()
    started = time.monotonic()
    progress.label = f"{shown(spec)}, histories"
    with create(spec) as probe:
        clock = clock_option(probe.capabilities)
    for number in range(seed, sys.maxsize):
        elapsed = time.monotonic() - started
        if elapsed >= minutes * 60 and figures.histories:
            break
        left = max(0.0, minutes * 60 - elapsed)
        progress.show(f"{figures}, no violation; {_clock(elapsed)} elapsed, {_clock(left)} left")
        with create(spec, **clock) as registry:
            arguments = promised(registry.capabilities)
            failed = ""
            try:
                history = random_history(
                    registry,
                    threads=2 + number % 7,
                    operations=200 if number % 10 else 1_000,
                    seed=number,
                    mostly=_SUBJECTS[number % len(_SUBJECTS)],
                )
            except HistoryFailed as exc:
                history, failed = exc.history, f"{exc}\n"
        verdict = check_history(history, **arguments)
        if failed or verdict.violations:
            path = folder / f"soak-{''.join(one if one.isalnum() else '-' for one in shown(spec))}-{number}.json"
            path.write_text(history.to_json(), encoding="utf-8")
            raise Finding(
                f"{shown(spec)} breaks a guarantee in the history of seed {number}, which is saved as {path}.\n"
                f"{failed}{verdict}"
            )
        figures.add(history, verdict)
    progress.say(f"{progress.label}: {figures} in {_clock(time.monotonic() - started)}, no violation.")
    return figures


def soak_chaos(spec: str, minutes: float, seed: int, progress: Progress) -> ChaosFigures:
    """Perform rounds of chaos for so many minutes; raises `Finding`. Does nothing on a virtual clock."""
    figures = ChaosFigures()
    started = time.monotonic()
    progress.label = f"{shown(spec)}, chaos"
    with create(spec) as probe:
        if is_virtual(probe):
            progress.say(f"{progress.label}: left out, because a virtual clock delivers on its callers' threads.")
            return figures
    for number in range(seed, sys.maxsize):
        elapsed = time.monotonic() - started
        if elapsed >= minutes * 60 and figures.rounds:
            break
        left = max(0.0, minutes * 60 - elapsed)
        progress.show(f"{figures}; nothing wrong; {_clock(elapsed)} elapsed, {_clock(left)} left")
        try:
            figures += chaos(spec, seed=number)
        except ChaosFailed as exc:
            raise Finding(
                f"{shown(spec)}: {exc}\nTo try it again: --backend {shown(spec)} --steps 0 --minutes 0 --seed {number}"
            ) from None
    progress.say(f"{progress.label}: {figures} in {_clock(time.monotonic() - started)}, nothing wrong.")
    return figures


def check_saved(path: Path, capabilities: Sequence[str], out: TextIO) -> int:
    """Check a saved history and write the verdict; return the exit code."""
    verdict = check_history(History.from_json(path.read_text(encoding="utf-8")), **promised(capabilities))
    out.write(f"{verdict}\n")
    return 0 if not verdict.violations else _FAILED


def main(argv: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Soak. Return 0 when nothing was found, 1 upon a finding, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    if arguments.check:
        with create((arguments.backend or _LOCAL)[0]) as registry:
            return check_saved(arguments.check, sorted(registry.capabilities), out)
    lengths = _NIGHTLY if arguments.nightly else _BY_HAND
    steps, minutes, chaos_minutes = (
        getattr(lengths, name) if getattr(arguments, name) is None else getattr(arguments, name)
        for name in ("steps", "minutes", "chaos_minutes")
    )
    there = {backend.name for backend in available_backends()}
    specs = arguments.backend or [name for name in _LOCAL if name in there]
    progress = Progress(out, silent=_SILENT)
    try:
        for spec in specs:
            if steps:
                soak_the_programs(spec, steps, arguments.seed, progress)
        for spec in specs:
            if minutes:
                soak_histories(spec, minutes / len(specs), arguments.seed, arguments.folder, progress)
        for spec in specs:
            if chaos_minutes:
                soak_chaos(spec, chaos_minutes, arguments.seed, progress)
    except Finding as exc:
        progress.say(f"\nA finding. {exc}")
        return _FAILED
    except KeyboardInterrupt:
        progress.say("Interrupted; no finding so far.")
        return _INTERRUPTED
    progress.say("No finding.")
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="soak.py", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backend",
        action="append",
        metavar="SPEC",
        help="a name, a URL or package.module:factory (repeatable; by default every local one)",
    )
    parser.add_argument(
        "--steps",
        type=_positive(int),
        help=f"operations of random programs, for each backend {_defaults('steps')}",
    )
    parser.add_argument(
        "--minutes",
        type=_positive(float),
        help=f"of recorded histories, shared among the backends {_defaults('minutes')}",
    )
    parser.add_argument(
        "--chaos-minutes", type=_positive(float), help=f"of chaos, for each backend {_defaults('chaos_minutes')}"
    )
    parser.add_argument("--nightly", action="store_true", help="the shorter lengths, unless others are given")
    parser.add_argument("--seed", type=int, default=0, help="where to begin (%(default)d)")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where to save the history of a finding (the current one)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="check this saved history instead, as one of the (first) --backend"
    )
    return parser


def _defaults(name: str) -> str:
    return f"({getattr(_BY_HAND, name)}, nightly {getattr(_NIGHTLY, name)}; 0 for none)"


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not value >= 0:
            raise argparse.ArgumentTypeError(f"{text} is less than 0. Give 0 or more.")
        return value

    read.__name__ = "number"  # argparse writes it in its own messages
    return read


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
