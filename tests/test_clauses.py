"""The table of clauses is complete, and its page is fresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from stube.testing import GUARANTEES, suite
from stube.testing._contract import clauses
from stube.testing._contract.clauses import CLAUSES, incomplete
from tools import clauses_page

ROOT = Path(__file__).parents[1]


def test_every_clause_has_a_test_and_every_test_a_clause(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a clause that no test would name; a test that was renamed; a page that says what is true no more."""
    assert clauses_page.main(["--check"]) == 0, capsys.readouterr().err
    assert list(CLAUSES) == list(GUARANTEES)


@pytest.mark.parametrize(
    ("table", "proved", "problem"),
    [
        ({"G1": {"A clause.": ()}}, {}, "G1: no test proves: A clause."),
        ({"G1": {"A clause.": ("test_a",)}}, {}, "G1: test_a is listed, and is no test that is marked with G1"),
        (
            {"G1": {"A clause.": ("test_a",)}},
            {"test_a": ["G2"]},
            "G1: test_a is listed, and is no test that is marked with G1",
        ),
        (
            {"G1": {"A clause.": ("test_a",)}},
            {"test_a": ["G1"], "test_b": ["G1"]},
            "G1: test_b is marked with G1, and stands under none of its clauses",
        ),
        ({"G1": {"A clause.": ("test_a",)}}, {"test_a": ["G1"]}, None),
    ],
)
def test_what_the_table_lacks_is_told(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, dict[str, tuple[str, ...]]], proved: dict[str, list[str]],
    problem: str | None,
) -> None:  # fmt: skip
    """Fault: the check of the table finds nothing, whatever is wrong."""
    monkeypatch.setattr(clauses, "CLAUSES", table)
    assert list(incomplete(proved)) == ([] if problem is None else [problem])


def test_the_check_fails_for_a_clause_without_a_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: the build passes with a clause that nothing proves."""
    monkeypatch.setattr(clauses, "CLAUSES", {**CLAUSES, "G3": {**CLAUSES["G3"], "It is polite.": ()}})
    assert clauses_page.main(["--check"]) == 1
    assert "G3: no test proves: It is polite." in capsys.readouterr().err


def test_every_guarantee_has_a_quick_test() -> None:
    """Fault: the first verdict of a run says nothing about some guarantee, because all of its tests are costly."""
    quick: set[str] = set()
    for name in suite.__all__:
        marks = getattr(getattr(suite, name), "pytestmark", [])
        if not any(mark.name == "stube_costly" for mark in marks):
            quick.update(number for mark in marks if mark.name == "guarantee" for number in mark.args)
    assert sorted(set(GUARANTEES) - quick) == []
