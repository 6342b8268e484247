"""A run writes whole results or none, and the output of its steps goes where the report reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from bench import run
from bench.results import ResultsError, empty, merge_free_threaded, merged, read
from bench.steps import MODES, Step, steps_of

KEYS = [
    "format",
    "mode",
    "made",
    "rounds",
    "runs",
    "machine",
    "targets",
    "comparisons",
    "series",
    "memory",
    "start_up",
    "wakeups",
    "operations",
    "free_threaded",
]


def _row(**values: Any) -> dict[str, Any]:
    return {"work": "w", "backend": "memory", "figure": 1.0, "unit": "1/s", "must": None, "aim": None} | values


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run write no report, which has tests of its own."""
    monkeypatch.setattr(run, "_reported", lambda into: 0)


def test_rows_with_a_target_are_apart_from_comparisons() -> None:
    """Fault: a missed target is filed among the comparisons, where it is not reported."""
    rows = [_row(must=1.5), _row(aim=1.0, work="v"), _row()]
    results = merged(empty("full", 5), "rows", rows)
    assert (results["targets"], results["comparisons"]) == (rows[:2], rows[2:])


@pytest.mark.parametrize(("sense", "worse"), [(">=", 1.4), ("<=", 1.6)])
@pytest.mark.parametrize("ratios", [(1.4, 1.6), (1.6, 1.4)])
def test_of_two_runs_the_worse_one_counts(ratios: tuple[float, float], sense: str, worse: float) -> None:
    """Fault: a target that is met in one run of two is reported as met; or it is listed twice."""
    results = empty("full", 5, 2)
    for ratio in ratios:
        spread = [ratio - 0.2, ratio + 0.2]
        row = _row(ratio=ratio, spread=spread, judged="ratio", sense=sense, must=1.5, peer="p", met=ratio == worse)
        results = merged(results, "rows", [row, _row(peer="p", work="other"), _row(work="w", peer="another")])
    (target,) = results["targets"]
    assert (target["ratio"], target["spread"]) == (worse, [1.4 - 0.2, 1.6 + 0.2])
    assert [row["work"] for row in results["comparisons"]] == ["other", "w"]


def test_parts_add_up() -> None:
    """Fault: a part replaces the figures of another one under the same key."""
    results = empty("quick", 1)
    for part in ({"series": {"a": [1]}}, {"series": {"b": [2]}}, {"wakeups": [3], "targets": [_row(must=1.0)]}):
        results = merged(results, "part", part)
    assert results["series"] == {"a": [1], "b": [2]}
    assert (results["wakeups"], len(results["targets"])) == ([3], 1)


def test_the_cost_of_a_round_is_divided_by_its_operations() -> None:
    """Fault: the cost of a round is reported as that of one operation."""
    about = {"name": "n", "group": "g", "backend": "memory", "size": 10, "count": 1000}
    benchmark = {"extra_info": about, "stats": {"median": 0.002, "iqr": 0.0001, "rounds": 20}}
    (found,) = merged(empty("full", 5), "operations", {"benchmarks": [benchmark]})["operations"]
    assert (found["median_us"], found["iqr_us"]) == (pytest.approx(2.0), pytest.approx(0.1))
    assert {key: found[key] for key in ("name", "group", "backend", "size", "rounds")} == {
        "name": "n",
        "group": "g",
        "backend": "memory",
        "size": 10,
        "rounds": 20,
    }


def test_only_a_free_threaded_run_is_merged_as_one() -> None:
    """Fault: figures with the GIL are taken for figures without it."""
    results, other = empty("full", 5), empty("full", 5)
    other["targets"].append(_row(must=1.3))
    other["machine"] |= {"gil": False}
    assert merge_free_threaded(results, other)["free_threaded"]["targets"] == other["targets"]
    other["machine"] |= {"gil": True, "python": "CPython 3.11.7"}
    with pytest.raises(ResultsError) as caught:
        merge_free_threaded(results, other)
    assert str(caught.value) == (
        "The results to merge are of CPython 3.11.7, which has the GIL. "
        "Run bench/run.py --only-targets on a free-threaded Python, and merge what that writes."
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}'])
def test_a_file_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    """Fault: a file that does not hold results fails somewhere inside the report."""
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=r"Name (a file|one) that bench/run\.py has written\."):
        read(file)


def test_free_threaded_figures_are_added_to_existing_results(tmp_path: Path, no_report: None) -> None:
    """Fault: merging measures again, or loses the existing results."""
    other = empty("full", 5)
    other["machine"] |= {"gil": False}
    for file, results in (("results.json", empty("full", 5) | {"memory": [1]}), ("other.json", other)):
        (tmp_path / file).write_text(json.dumps(results), encoding="utf-8")
    merging = ["--merge-free-threaded", str(tmp_path / "other.json"), "--merely-merge"]
    assert run.main(["--into", str(tmp_path), *merging]) == 0
    found = read(tmp_path / "results.json")
    assert found["memory"] == [1]
    assert found["free_threaded"] == {"machine": other["machine"], "targets": []}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), run.StepFailed("it failed")])
def test_an_interrupted_run_leaves_the_last_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Fault: after Ctrl-C there is half a file of results, or none."""
    results = tmp_path / "results.json"
    results.write_text("those of the last run", encoding="utf-8")

    def interrupted(step: Step, file: Path) -> Any:
        raise error

    monkeypatch.setattr(run, "_run", interrupted)
    code = run.main(["--quick", "--only", "batons", "--into", str(tmp_path)])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert results.read_text(encoding="utf-8") == "those of the last run"
    assert list(tmp_path.iterdir()) == [results]


def test_the_output_of_a_failed_step_is_reported(tmp_path: Path) -> None:
    """Fault: a run stops without telling the reason."""
    step = Step("s", "rows", [sys.executable, "-c", "import sys; sys.exit('no such luck')"], 1.0)
    with pytest.raises(run.StepFailed, match="'s' ended with code 1") as caught:
        run._run(step, tmp_path / "0.json")
    assert "no such luck" in str(caught.value)


def test_an_interrupted_step_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a child keeps measuring after Ctrl-C."""
    children: list[Any] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        @override
        def wait(self, timeout: float | None = None) -> int:
            children.append(self)
            if len(children) == 1:
                raise KeyboardInterrupt
            return super().wait(None if timeout is None else 0.01)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    step = Step("s", "rows", [sys.executable, "-c", "import time; time.sleep(600)"], 1.0)
    with pytest.raises(KeyboardInterrupt):
        run._run(step, tmp_path / "0.json")
    assert children[0].poll() is not None


def test_a_run_of_one_step_writes_results_that_have_every_key(
    tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: the steps, the driver and the file of results do not fit together."""
    assert run.main(["--quick", "--only", "batons", "--into", str(tmp_path)]) == 0
    results = read(tmp_path / "results.json")
    assert list(results) == KEYS
    assert (results["mode"], results["rounds"]) == ("quick", MODES["quick"].rounds)
    assert [row["backend"] for row in results["targets"]] == ["memory"]
    assert "[1/1] about" in capsys.readouterr().out


@pytest.mark.parametrize("mode", MODES.values(), ids=lambda mode: mode.name)
def test_every_step_has_a_name_of_its_own(mode: Any) -> None:
    """Fault: a step runs twice, or a mode omits one."""
    names = [step.name for step in steps_of(mode)]
    assert len(set(names)) == len(names)
    assert ("firing, memory, run 2" in names) == (mode.runs == 2)
    assert {"firing, memory", "virtual-day, virtual", "lateness by load", "wake-ups", "operations, memory"} <= set(
        names
    )
    alone = [step.name for step in steps_of(mode, only_targets=True)]
    assert {"firing, memory", "idle, memory"} <= set(alone)
    assert not {"wake-ups", "operations, memory", "firing, virtual"} & set(alone)
