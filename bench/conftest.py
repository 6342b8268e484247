"""The options of pytest for this folder: run everything once, small and unmeasured, or measure it with `--bench`.

Measuring (`--bench=quick` or `--bench=full`) needs pytest-benchmark; running does not.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from bench.measuring import Effort, left_out
from bench.once import Benchmark, Once

EFFORTS = {
    "small": Effort(rounds=1, scale=0.001, idle_s=0.05),
    "quick": Effort(rounds=3, scale=0.1),
    "full": Effort(rounds=20),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "measure the tests in bench/ (needs pytest-benchmark); by default they run once, small and unmeasured"
    group = parser.getgroup("stube")
    group.addoption("--bench", choices=list(EFFORTS), default="small", help=help_)
    group.addoption("--bench-backend", metavar="SPEC", help="run the tests in bench/ on this backend only")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("bench") != "small" and find_spec("pytest_benchmark") is None:
        raise pytest.UsageError("--bench measures with pytest-benchmark. Install it: pip install 'stube[bench]'.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    backend = config.getoption("bench_backend")
    if backend is not None:
        items[:] = [item for item in items if _backend_of(item) == backend]


def _backend_of(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("backend")


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Effort:
    """The amount of work."""
    return EFFORTS[str(pytestconfig.getoption("bench"))]


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect(effort: Effort) -> Iterator[None]:
    """Keeps collections short: each body begins with one, which in a large test run takes longer than the body."""
    if effort is EFFORTS["small"]:
        gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def benchmark_or_once(request: pytest.FixtureRequest) -> Benchmark:
    """pytest-benchmark's fixture if something is measured, else a stand-in that runs the body once."""
    if request.config.getoption("bench") == "small":
        return Once()
    benchmark: Benchmark = request.getfixturevalue("benchmark")
    return benchmark


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat which backends and peers were left out, because pytest hides the output of the collection."""
    for sentence in left_out:
        terminalreporter.write_line(f"bench: {sentence}")
