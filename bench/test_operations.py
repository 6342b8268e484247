"""Each operation alone, by backend and size: `pytest bench/test_operations.py --bench=full`."""

from __future__ import annotations

from typing import Any

import pytest

from bench.measuring import Effort
from bench.once import Benchmark
from bench.operations import OPERATIONS, Operation
from bench.subjects import UNBOUNDED, held, installed, opened

CASES = [(operation, size) for operation in OPERATIONS for size in operation.sizes]


@pytest.mark.parametrize("backend", installed(["memory", "virtual", "sharded"]))
@pytest.mark.parametrize(("operation", "size"), CASES, ids=lambda value: getattr(value, "name", value))
def test_operation(benchmark_or_once: Benchmark, effort: Effort, operation: Operation, size: int, backend: str) -> None:
    """One operation, many times in a round.

    Fault: an operation raises when much is pending, or a body leaves the registry fuller than it was, so that later
    rounds measure something else.
    """
    size = effort.size(size)
    names = [f"guest {number}" for number in range(size if operation.whole else effort.size(operation.count, 3))]
    with opened(backend, max_pending=UNBOUNDED) as registry, held(registry):
        operation.fill(registry, size)

        def figures() -> Any:
            stats = registry.stats()
            return stats.timers, stats.subscriptions, stats.pending_flows

        operation.prepare(registry, names)
        before = figures()
        benchmark_or_once.group = f"{operation.group}: {operation.name}"
        benchmark_or_once.extra_info.update(
            name=operation.name,
            group=operation.group,
            backend=backend,
            size=size,
            count=1 if operation.whole else len(names),
        )
        benchmark_or_once.pedantic(
            operation.body,
            setup=lambda: ((registry, operation.prepare(registry, names)), {}),
            rounds=effort.rounds,
            iterations=1,
        )
        assert registry.stats().balanced
        operation.prepare(registry, names)
        assert figures() == before
        registry.reset_state()
