"""Random operations of many threads, recorded as a history, which a checker compares with the guarantees.

A failure prints the seed and the events that break a guarantee. The same seed repeats the same operations, but not the
same scheduling of the threads.
"""

from __future__ import annotations

from stube.testing._harness import Effort, blamed_by, blaming
from stube.testing._history.checker import check_history
from stube.testing._history.recorder import clock_option, promised
from stube.testing._history.workload import HistoryFailed, random_history
from stube.testing.plugin import MakeRegistry
from stube.testing.suite._fixtures import costly, guarantee


def _check_histories(make_registry: MakeRegistry, effort: Effort, mostly: str | None, first_seed: int) -> None:
    """Check as many histories as the effort sets. Each takes 50 to 100 ms; most faults show in the first three."""
    clock = clock_option(make_registry().capabilities)
    for seed in range(first_seed, first_seed + effort.histories):
        registry = make_registry(**clock)
        failed, blamed = "", tuple[str, ...]()
        try:
            history = random_history(registry, seed=seed, mostly=mostly)
        except HistoryFailed as exc:
            history, failed, blamed = exc.history, f"{exc}\n", blamed_by(exc) or ()
        verdict = check_history(history, **promised(registry.capabilities))
        broken = [violation.guarantee for violation in verdict.violations] or [*blamed]
        with blaming(*broken):
            told = f"{failed}{verdict if verdict.violations else ''}"
            assert not broken, f"the history of seed {seed} breaks a guarantee\n{told}"
        registry.close()


@guarantee("G1", "G2", "G4", "G5", "G7", "G8", "G16", "G18", "G21")
@costly
def test_random_operations_of_many_threads_keep_every_guarantee(
    make_registry: MakeRegistry, stube_effort: Effort
) -> None:
    """Fault: anything that two concurrent threads show: a missing lock, or a check and an act in two steps."""
    _check_histories(make_registry, stube_effort, None, 0)


@guarantee("G8", "G7")
@costly
def test_batons_in_random_histories_have_one_taker(make_registry: MakeRegistry, stube_effort: Effort) -> None:
    """Fault: a baton is read and removed in two steps, so that two take it; a reset or a second put leaves one."""
    _check_histories(make_registry, stube_effort, "batons", 1_000)


@guarantee("G1", "G2", "G5", "G7", "G18")
@costly
def test_timers_in_random_histories_have_one_fate(make_registry: MakeRegistry, stube_effort: Effort) -> None:
    """Fault: two cancels count a timer, or it is cancelled and delivered, or it is lost; timers begin out of order."""
    _check_histories(make_registry, stube_effort, "timers", 2_000)


@guarantee("G1", "G2", "G4", "G5", "G7", "G16", "G18")
@costly
def test_messages_in_random_histories_reach_the_right_subscribers(
    make_registry: MakeRegistry, stube_effort: Effort
) -> None:
    """Fault: the targets are read at the delivery; a removal overlooks queued messages; messages of two publishers
    change places."""
    _check_histories(make_registry, stube_effort, "topics", 3_000)
