"""Whole workloads by backend and size: `pytest bench/test_workloads.py --bench=full`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from bench.measuring import Effort
from bench.once import Benchmark
from bench.subjects import installed
from bench.workloads import WORKLOADS, Body, Workload

CASES = [(workload, size) for workload in WORKLOADS for size in workload.sizes]
MOST_ROUNDS = 5


def _run(body: Body) -> None:
    body()


@pytest.mark.parametrize("backend", installed(["memory", "virtual", "sharded", "sharded://?shards=8"]))
@pytest.mark.parametrize(("workload", "size"), CASES, ids=lambda value: getattr(value, "name", value))
def test_workload(benchmark_or_once: Benchmark, effort: Effort, workload: Workload, size: int, backend: str) -> None:
    """One workload; its body asserts that every delivery was made.

    Fault: a workload loses a delivery, gives a baton twice, or does not end.
    """
    size = effort.size(size)
    with ExitStack() as contexts:

        def another() -> tuple[tuple[Any, ...], dict[str, Any]]:
            contexts.close()  # the registry of the round before
            return (contexts.enter_context(workload.prepared(backend, size)),), {}

        benchmark_or_once.group = workload.name
        benchmark_or_once.extra_info.update(name=workload.name, group="workloads", backend=backend, size=size, count=1)
        rounds = min(effort.rounds, MOST_ROUNDS)
        benchmark_or_once.pedantic(_run, setup=another, rounds=rounds, iterations=1)
