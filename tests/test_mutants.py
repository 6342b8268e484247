"""The list of mutants that may survive, and the page that shows it; `make mutants` itself runs for hours."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutants = _tool()
ACCEPTED = mutants.accepted()


@functools.cache
def _functions(module: str) -> dict[str, str]:
    """Return the lines of every function and class of a module, by its name."""
    source = (ROOT / mutants.file_of(module)).read_text(encoding="utf-8")
    lines = source.splitlines()
    found = {"<module>": source}

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[inside + child.name] = "\n".join(lines[child.lineno - 1 : child.end_lineno])
                visit(child, f"{inside}{child.name}.")

    visit(ast.parse(source), "")
    return found


def test_each_module_of_the_engine_is_mutated() -> None:
    """Fault: a new module of the engine is left out, other than the protocol, which has no code."""
    assert {path.stem for path in (ROOT / mutants.ENGINE).glob("_[a-z]*.py")} == {*mutants.MODULES, "_claims"} - {
        "arguments"
    }


def test_the_tests_of_a_module_on_another_backend_are_there() -> None:
    """Fault: a module or a file of tests has another name, so that the mutants of the module no longer meet them."""
    assert mutants.ELSEWHERE.keys() <= set(mutants.MODULES)
    assert [file for files in mutants.ELSEWHERE.values() for file in files if not (ROOT / file).is_file()] == []


def test_a_mutant_meets_the_tests_of_its_own_module_only() -> None:
    """Fault: every mutant runs the slow tests of another module's backend, or its own module's mutants do not."""
    stage = mutants.Stage("elsewhere_core", [], 0.0, "digest", module="_core")
    due = mutants.Mutant(mutants.Change("_core.Core.run_locked", "a", "b"), "", "")
    other = mutants.Mutant(mutants.Change("_wheel.TimerWheel.add", "a", "b"), "", "")
    assert [mutants._is_due(mutant, stage) for mutant in (due, other)] == [True, False]
    due.survived["elsewhere_core"] = "digest"
    assert not mutants._is_due(due, stage)


@pytest.mark.parametrize("change", ACCEPTED, ids=lambda change: f"{change.function}: {change.after[:40]}")
def test_an_accepted_survivor_is_a_change_of_a_line_that_is_there(change: Any) -> None:
    """Fault: the engine was changed and the list was not, or an entry has no reason."""
    module, _, function = change.function.partition(".")
    lines = [line.strip() for line in _functions(module)[function].splitlines()]
    assert [line for line in change.before.splitlines() if line not in lines] == []
    assert change.before != change.after
    assert ACCEPTED[change].endswith(".")


def test_the_page_shows_every_accepted_survivor() -> None:
    """Fault: the list was changed and the page was not made anew."""
    shown = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")
    table = mutants.page([], ACCEPTED).partition("## ")[2]
    assert shown.partition("## ")[2] == table


def test_the_page_has_figures_of_wholly_tried_modules_only() -> None:
    """Fault: the page gives figures that were measured on a part of a module, or that are not those of the results."""
    tried = [("_rings.f", "killed"), ("_rings.f", "timed out"), ("_rings.f", "killed"), ("_rings.g", "survived")]
    tried += [("_wheel.f", "killed"), ("_wheel.g", "untried")]
    made = [
        mutants.Mutant(mutants.Change(function, "a", str(number)), "", "", status=status)
        for number, (function, status) in enumerate(tried)
    ]
    shown = mutants.page(made, ACCEPTED)
    assert "| `_rings` | 4 | 2 | 1 | 1 |" in shown
    assert "| `_wheel` |" not in shown
    others = ", ".join(f"`{name}`" for name in mutants.MODULES if name != "_rings")
    assert f"Not measured since the last change of the module: {others}." in shown


def test_unlisted_survivor_and_listed_killed_mutant_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fault: a survivor is not reported, or the list keeps an entry that is not needed."""
    listed, unlisted = (mutants.Change("_wheel.TimerWheel.add", "a = 1", f"a = {n}") for n in (2, 3))
    made = [mutants.Mutant(change, "", "") for change in (listed, unlisted)]
    for mutant in made:
        mutant.status = "survived"
    known = {listed: "Because."}
    assert mutants.report(made, known) == 1
    assert capsys.readouterr().out == (
        "\n_wheel.TimerWheel.add: survived\n  - a = 1\n  + a = 3\n"
        "\n2 mutants: 2 survived; 1 of the survivors are accepted\n"
    )
    made[1].status = "killed"
    assert mutants.report(made, known) == 0
    made[0].status, made[0].by = "timed out", "quick"
    assert mutants.report(made, known) == 1
    assert "is listed, and timed out by quick" in capsys.readouterr().out
    assert mutants.report(made[1:], known) == 1
    assert "is listed, and there is no such mutant: 'a = 1' -> 'a = 2'" in capsys.readouterr().out


def test_results_are_recalled_as_long_as_the_module_is_the_same(tmp_path: Path) -> None:
    """Fault: a run that was stopped begins anew, or a result is used for another source."""
    change = mutants.Change("_wheel.f", "a", "b")
    mutant = mutants.Mutant(change, "source", "1")
    mutant.status, mutant.by = "killed", "test_x"
    mutants.Results(tmp_path / "results").record(mutant)
    results = mutants.Results(tmp_path / "results")
    for origin, status in (("1", "killed"), ("2", "untried")):
        again = mutants.Mutant(change, "source", origin)
        results.recall(again)
        assert again.status == status
