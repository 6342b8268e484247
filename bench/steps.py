"""The steps of a run: their commands, the amount of work, and their expected durations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench.extras import PARTS
from bench.rows.sharding import gil_enabled
from bench.subjects import installed
from bench.targets import TARGETS, Target

__all__ = ["MODES", "Mode", "Step", "steps_of"]

HERE: Final = Path(__file__).parent
BACKENDS: Final = ("memory", "virtual", "sharded")


@dataclass(frozen=True)
class Mode:
    """The amount of work of a run."""

    name: str
    rounds: int
    rounds_of_others: int
    """The rounds of figures without a target."""
    scale: float
    """The factor for the counts of slow steps. Quick steps are measured in full, because small counts may behave
    differently."""
    every_peer: bool
    """True to measure also the peers that no target names."""
    idle_s: float
    """The seconds for which an idle registry is watched: more than a minute in a full run, because the target allows
    one wake-up a minute."""
    every_backend: bool
    runs: int
    """How often the targets are measured: in the beginning, and again when all else has been. A target is met if it is
    met each time."""


MODES: Final = {
    "full": Mode("full", 5, 2, 1.0, True, 65.0, True, 2),
    "quick": Mode("quick", 2, 1, 0.2, False, 3.0, False, 1),
}


@dataclass(frozen=True)
class Step:
    """One process that measures something and writes JSON."""

    name: str
    kind: str
    """The kind of its JSON: `rows`, `part` or `operations`."""
    command: Sequence[str]
    expected_s: float
    """Seconds on the machine on which this was written; only the proportions matter."""
    good_codes: Sequence[int] = (0,)
    output: Callable[[Path], list[str]] = field(default=lambda file: ["--json", str(file)])


def steps_of(mode: Mode, *, only_targets: bool = False, only: Sequence[str] | None = None) -> list[Step]:
    """Return the steps of a run in their order.

    Args:
        only_targets: leave out the steps without a target.
        only: leave out the steps whose name contains none of these.
    """
    steps = [*_targets(mode, only_targets), *([] if only_targets else [*_parts(mode), *_operations(mode)])]
    for number in range(2, mode.runs + 1):
        # Only what is judged, and not how often an idle registry wakes up, which takes a minute and is not a ratio.
        judged = [step for step in _targets(replace(mode, every_peer=False), True) if not step.name.startswith("idle,")]
        steps += [replace(step, name=f"{step.name}, run {number}") for step in judged]
    return [step for step in steps if any(part in step.name for part in only or [""])]


# Seconds for one round of a target beside all its peers; one second for any other target.
_ROUND_S: Final = {
    "schedule": 10.0,
    "schedule-a-million": 12.0,
    "cancel": 6.0,
    "firing": 9.0,
    "lateness": 7.0,
    "deliveries": 9.0,
    "deliveries-few": 3.0,
    "publish": 7.0,
    "join-leave": 5.0,
    "end": 4.0,
    "fairness": 7.0,
    "life": 3.0,
    "virtual-time": 4.0,
    "blocking": 15.0,
}
_TAKES_LONG: Final = {"schedule-a-million", "publish", "join-leave", "end", "blocking"}
_ALONE: Final = 0.4  # this share of it for a backend that is measured only beside the peer that the target names
# Seconds for one round of a part.
_PART_S: Final = {"cost by size": 40.0, "deliveries by fan-out": 15.0, "lateness by load": 25.0, "bytes by size": 5.0}
# Seconds for one backend.
_FILE_S: Final = {"test_operations.py": 100.0, "test_workloads.py": 25.0}


def _targets(mode: Mode, only_targets: bool) -> Iterator[Step]:
    other_build = "eight-callers-free-threaded" if gil_enabled() else "eight-callers"
    for target in TARGETS:
        if target.name == other_build:
            continue
        if target.name == "idle" and not only_targets:
            continue  # the part "wake-ups" has these rows, and watches all backends at the same time
        others = target.also if mode.every_backend and not only_targets else ()
        for backend in installed([*target.judged, *others]):
            yield _target(target, backend, mode, every_peer=mode.every_peer and not only_targets)


def _target(target: Target, backend: str, mode: Mode, *, every_peer: bool) -> Step:
    judged = backend in target.judged
    rounds = mode.rounds if judged else mode.rounds_of_others
    scale = mode.scale if target.name in _TAKES_LONG else 1.0
    command = [sys.executable, str(HERE / "targets.py"), "--exactly", target.name, "--backend", backend]
    command += ["--rounds", str(rounds), "--scale", str(scale), "--idle-s", str(mode.idle_s)]
    if every_peer and judged:
        command.append("--every-peer")
    expected = 1 + rounds * scale * _ROUND_S.get(target.name, 1.0) * (1 if every_peer and judged else _ALONE)
    if target.name == "idle":
        expected = mode.idle_s
    # Code 1 means that a target is missed, which is a result and not a failure of the step.
    return Step(f"{target.name}, {backend}", "rows", command, expected, good_codes=(0, 1))


def _parts(mode: Mode) -> Iterator[Step]:
    for part in PARTS:
        command = [sys.executable, str(HERE / "extras.py"), part, "--rounds", str(mode.rounds_of_others)]
        command += ["--scale", str(mode.scale), "--idle-s", str(mode.idle_s)]
        expected = mode.idle_s if part == "wake-ups" else mode.rounds_of_others * mode.scale * _PART_S.get(part, 5.0)
        yield Step(part, "part", command, 1 + expected)


def _operations(mode: Mode) -> Iterator[Step]:
    for file in ("test_operations.py", "test_workloads.py"):
        for backend in installed(BACKENDS):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
            command += [f"--bench={mode.name}", f"--bench-backend={backend}"]
            yield Step(
                f"{file.removeprefix('test_').removesuffix('.py')}, {backend}",
                "operations",
                command,
                2 + _FILE_S[file] * (1 if mode.every_backend else 0.05),
                output=lambda file: [f"--benchmark-json={file}"],
            )
