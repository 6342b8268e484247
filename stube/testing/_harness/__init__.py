"""The harness: the tools for test bodies, random programs, recorded histories and chaos.

Private, like every package here whose name begins with an underscore: hosts and authors of backends use the names of
`stube.testing`. Needs no pytest, so that a scenario may also run in a process of its own (`run_script`).
"""

from __future__ import annotations

from stube.testing._harness.blame import blame, blamed_by, blaming
from stube.testing._harness.clock import PATIENCE, monotonic, monotonic_ns, perf_counter_ns
from stube.testing._harness.differences import first_difference
from stube.testing._harness.driver import Driver, settle_awaiting, settles, while_it_advances
from stube.testing._harness.effort import FULL, QUICK, Effort
from stube.testing._harness.ledger import check_ledger
from stube.testing._harness.logs import failures_unlogged
from stube.testing._harness.loops import (
    DISPATCH,
    DISPATCHES,
    LOOP,
    LOOPS,
    create,
    create_apart,
    live_threads,
    loop_is_needed,
    start,
)
from stube.testing._harness.progress import ProgressLine
from stube.testing._harness.proxy import RegistryProxy
from stube.testing._harness.recorder import Gate, Recorder, Seen
from stube.testing._harness.scripts import run_script
from stube.testing._harness.standstill import join_or_standstill, wait_or_standstill
from stube.testing._harness.steps import HOUR, RandomSteps, Step, ThreadChances, UniqueIds
from stube.testing._harness.threads import passes_through, run_threads, switching_often
from stube.testing._harness.tracing import Injector, tracing
from stube.testing._harness.watchdog import Overdue, timed_out, watchdog

__all__ = [
    "DISPATCH",
    "DISPATCHES",
    "FULL",
    "HOUR",
    "LOOP",
    "LOOPS",
    "PATIENCE",
    "QUICK",
    "Driver",
    "Effort",
    "Gate",
    "Injector",
    "Overdue",
    "ProgressLine",
    "RandomSteps",
    "Recorder",
    "RegistryProxy",
    "Seen",
    "Step",
    "ThreadChances",
    "UniqueIds",
    "blame",
    "blamed_by",
    "blaming",
    "check_ledger",
    "create",
    "create_apart",
    "failures_unlogged",
    "first_difference",
    "join_or_standstill",
    "live_threads",
    "loop_is_needed",
    "monotonic",
    "monotonic_ns",
    "passes_through",
    "perf_counter_ns",
    "run_script",
    "run_threads",
    "settle_awaiting",
    "settles",
    "start",
    "switching_often",
    "tracing",
    "timed_out",
    "wait_or_standstill",
    "watchdog",
    "while_it_advances",
]
