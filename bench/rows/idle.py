"""The wake-ups of a registry that waits for a timer far in the future; there should be none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from bench.measuring import Effort, Row, row
from bench.subjects import opened, options_of
from stube import is_virtual

__all__ = ["Watched", "row_of", "wake_ups", "watch", "watch_all"]

_AN_HOUR_MS = 3_600_000
_MINUTE_S = 60.0


@dataclass(frozen=True)
class Watched:
    """The observations of one registry; an entry of the key `wakeups` of the results."""

    backend: str
    seconds: float
    looks: int
    """The number of times it read its clock."""
    switches: int | None
    """The number of times that one of its threads went to sleep, which means that it had been awake; None where the
    system does not count this."""

    @property
    def a_minute(self) -> float:
        """The wake-ups in a minute, extrapolated if the registry was watched for less than a minute."""
        return max(self.looks, self.switches or 0) * max(1.0, _MINUTE_S / self.seconds)


def wake_ups(backend: str, effort: Effort) -> Iterator[Row]:
    """Measure the wake-ups a minute of a registry that waits for a timer that is due in an hour."""
    for watched in watch_all([backend], effort.idle_s):
        yield row_of(watched)


def row_of(watched: Watched) -> Row:
    """Return the row of the observations."""
    return row(
        "wake-ups a minute, waiting for a timer in an hour",
        watched.backend,
        [watched.a_minute],
        "count",
        sense="<=",
        must=1.0,
        detail=f"{watched.looks} looks at the clock and {watched.switches} switches in {watched.seconds:g} s",
    )


def watch_all(backends: Sequence[str], seconds: float) -> list[Watched]:
    """Watch several registries at the same time, each in its own process; virtual ones have no thread to wake up."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.rows.idle", backend, str(seconds)], stdout=subprocess.PIPE, text=True
        )
        for backend in backends
    ]
    try:
        return [_result_of(child) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _result_of(child: subprocess.Popen[str]) -> Watched:
    said, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"The child that watches an idle registry failed with code {child.returncode}. See above.")
    return Watched(**json.loads(said))


def watch(backend: str, seconds: float) -> Watched:
    """Watch one registry in this process, which must have no other thread."""
    looks = 0

    def counting() -> int:
        nonlocal looks
        looks += 1
        return time.monotonic_ns()

    counts = "clock" in (options_of(backend.partition("://")[0]) or ())
    with opened(backend, **({"clock": counting} if counts else {})) as registry:
        registry.schedule_event(cid="near", instance_id="main", delay_ms=0, event="now")
        registry.schedule_event(cid="far", instance_id="main", delay_ms=_AN_HOUR_MS, event="far")
        registry.settle()
        time.sleep(0.0 if is_virtual(registry) else 0.2)  # until its threads are asleep; there is no event to wait for
        looks_before, switches_before = looks, _switches_of_others()
        time.sleep(seconds)
        looks_after, switches_after = looks, _switches_of_others()
    switches = None if switches_after is None else switches_after - (switches_before or 0)
    return Watched(backend, seconds, looks_after - looks_before, switches)


def _switches_of_others() -> int | None:
    """Return the voluntary context switches of all threads except this one."""
    try:
        import resource

        of_all_threads = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        return of_all_threads - resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    except (ImportError, AttributeError):  # the system is not POSIX, or does not count by thread
        return None


if __name__ == "__main__":
    print(json.dumps(asdict(watch(sys.argv[1], float(sys.argv[2])))))
