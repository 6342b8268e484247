"""The list of the tests that the faster tiers leave out: it names existing tests, and exactly these do not run."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from stube.testing import GUARANTEES
from tests.tiers import FAST, FAST_FAULTS, LEFT_OUT, PAIRWISE, VARIANTS, LeftOut, is_left_out, variants

ROOT = Path(__file__).parents[1]
OTHERS = "tests/test_broken_engines.py::test_every_other_broken_registry_is_caught_by_an_assertion[G1: a fault]"
ENTRIES = [(tier, entry) for tier, entries in LEFT_OUT.items() for entry in entries]


def _tests(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize(("tier", "entry"), ENTRIES, ids=lambda value: getattr(value, "tests", value))
def test_each_entry_leaves_out_a_test_that_exists(tier: str, entry: LeftOut) -> None:
    """Fault: a test was renamed, so the entry leaves out nothing, and the tier takes longer."""
    where, _, name = entry.tests.partition("::")
    files = [path for found in ROOT.glob(where) for path in ([found] if found.is_file() else found.rglob("test_*.py"))]
    left = [
        f"{path.relative_to(ROOT).as_posix()}::{test}"
        for path in files
        for test in _tests(path)
        if not name or fnmatchcase(test, name)
    ]
    assert any(is_left_out(tier, test, []) for test in left)
    assert all((ROOT / file).is_file() for file in entry.but)
    assert entry.why


def test_the_fast_tier_has_every_kind_of_backend_and_pairwise_the_rest() -> None:
    """Fault: the fast tier proves a guarantee on no event loop, or only the full tier runs a variant."""
    assert variants(FAST) == ["memory", "virtual", "sharded://?shards=2", "asyncio-coroutine"]
    assert variants(None) == list(VARIANTS)
    minor = sys.version_info[1]
    assert set(variants(PAIRWISE)) - {"memory", "virtual"} == {
        f"sharded://?shards={1 if minor % 2 else 7}",
        "asyncio-function" if minor % 2 else "uvloop-function",
    }
    assert {"memory", "virtual"} <= set(variants(PAIRWISE))


def test_a_dozen_guarantees_have_a_broken_registry_in_the_fast_tier() -> None:
    """Fault: a guarantee is listed twice, or does not exist."""
    assert len(set(FAST_FAULTS)) == 12
    assert set(FAST_FAULTS) <= set(GUARANTEES)


@pytest.mark.parametrize(
    ("test", "arguments", "left_out"),
    [
        (OTHERS, ["tests", "bench"], True),
        (OTHERS, ["."], True),
        (OTHERS, ["tests/test_broken_engines.py"], False),
        (OTHERS, ["tests/test_model.py", OTHERS], False),
        (OTHERS, ["tests/browser"], True),
        ("tests/browser/test_in_a_browser.py::test_x[memory]", ["tests"], True),
        ("tests/browser/test_in_a_browser.py::test_x[memory]", ["tests/browser"], False),
        ("tests/browser/test_in_a_browser.py::test_x[memory]", ["tests/browser/test_in_a_browser.py"], False),
        ("bench/test_run.py::test_x", ["bench/test_load.py"], True),
        ("tests/test_model.py::test_x", ["tests"], False),
    ],
)
def test_a_test_named_on_the_command_line_runs_in_every_tier(test: str, arguments: list[str], left_out: bool) -> None:
    """Fault: a developer names a file, and none of its tests runs; or naming one file makes all left-out tests run."""
    assert is_left_out(FAST, test, arguments) == left_out
    assert not is_left_out(None, test, arguments)
