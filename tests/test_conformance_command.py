"""`stube conformance` on a good backend and on broken ones, and the contents of its reports."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typing_extensions import override

import stube
from stube import cli
from stube._secrets import Secrets, shown
from stube.testing import GUARANTEES
from stube.testing._conformance import runner, terminal
from stube.testing._conformance.outcomes import Record, Story
from stube.testing._conformance.page import page_of
from stube.testing._conformance.report import Report, report_of, summary, write_report
from stube.testing._contract.clauses import CLAUSES
from stube.testing._harness import progress as progress_line

ROOT = Path(__file__).parents[1]

BROKEN = '''
"""Backends of an outsider, each with a fault."""

import os
import threading
import time
from pathlib import Path

import stube

FOLDER = Path(__file__).parent


def inside(test):
    """Tell whether this test of the suite runs, so that a fault leaves the other tests alone."""
    return f"::{test}" in os.environ.get("PYTEST_CURRENT_TEST", "")


class Wrapped:
    backend = "virtual"

    def __init__(self, *, on_error: object = None, max_pending: int | None = 1_000_000):
        self._registry = stube.create_registry(self.backend, on_error=on_error, max_pending=max_pending)

    def __getattr__(self, name):
        return getattr(self._registry, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self, timeout=5.0):
        return self._registry.close(timeout)


class Generous(Wrapped):
    """Hands out a baton again and again."""

    def pending_flow(self, cid, /):
        flow = self._registry.pending_flow(cid)
        if flow is not None:
            self._registry.put_pending_flow(cid, flow)
        return flow


class Wild(Wrapped):
    """Deadlocks in one test, ends the process in another, and never returns from close() in a third."""

    def pending_flow(self, cid, /):
        if inside("test_a_baton_is_taken_once"):
            self.stand_still()
        return self._registry.pending_flow(cid)

    def stand_still(self):
        lock = threading.Lock()
        with lock, lock:
            pass

    def forget_pending_flow(self, cid, /):
        if inside("test_a_baton_is_taken_or_forgotten_never_both"):
            os._exit(3)
        return self._registry.forget_pending_flow(cid)

    def close(self, timeout=5.0):
        if inside("test_no_baton_is_lost"):
            self.stand_still()
        return super().close(timeout)


class Mute(Wrapped):
    """Promises no optional capability."""

    backend = "memory"
    capabilities = frozenset()


class Interrupting(Wrapped):
    def pending_flow(self, cid, /):
        if inside("test_a_baton_is_taken_once"):
            raise KeyboardInterrupt
        return self._registry.pending_flow(cid)


class Deadly(Wrapped):
    def pending_flow(self, cid, /):
        os._exit(7)


class Waiting(Wrapped):
    """In one test it writes the number of its process and never returns."""

    def pending_flow(self, cid, /):
        if inside("test_a_baton_is_taken_once"):
            (FOLDER / "begun").write_text(str(os.getpid()))
            (FOLDER / "begun").rename(FOLDER / "waits")
            self.stand_still()
        return self._registry.pending_flow(cid)

    stand_still = Wild.stand_still


class Dying(Wrapped):
    """In one test its thread dies before it has done its work."""

    def pending_flow(self, cid, /):
        if not inside("test_a_baton_is_taken_once"):
            return self._registry.pending_flow(cid)
        thread = threading.Thread(target=self.take, args=(cid,), name="taker")
        thread.start()
        thread.join()

    def take(self, cid):
        raise KeyError(f"no index of {cid}")


class Unheard(Wrapped):
    """A thread that the test waits for never comes back."""

    def put_pending_flow(self, cid, flow_id, /):
        if inside("test_no_baton_is_lost") and threading.current_thread() is not threading.main_thread():
            self.stand_still()
        self._registry.put_pending_flow(cid, flow_id)

    stand_still = Wild.stand_still


class Loud(Wrapped):
    def pending_flow(self, cid, /):
        while inside("test_a_baton_is_taken_once"):
            print("x" * 1000)
        return self._registry.pending_flow(cid)


class Reckless(Wrapped):
    """Hands out a baton twice where threads race for it; everything else is right."""

    backend = "memory"
    last = None

    def put_pending_flow(self, cid, flow_id, /):
        self._registry.put_pending_flow(cid, flow_id)

    def pending_flow(self, cid, /):
        flow = self._registry.pending_flow(cid)
        if flow is None and inside("test_batons_in_random_histories"):
            return self.last
        self.last = flow
        return flow

    capabilities = frozenset({"fork", "by_reference"})


class Talkative(Wrapped):
    def publish(self, topic, msg, /):
        raise ConnectionError(f"<b>cannot</b> reach {self.url} as {self.token}")


def talkative(*, url: str | None = None, token: str = ""):
    registry = Talkative()
    registry.url, registry.token = url, token
    return registry


def deadly_at_once():
    os._exit(4)


def failing():
    raise RuntimeError("no luck today")
'''


class Ran(NamedTuple):
    """The results of a run of the command."""

    code: int
    out: str
    err: str
    report: Report
    page: str


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with the module `outsider` and a distribution that names a backend `talker`."""
    (tmp_path / "outsider.py").write_text(BROKEN, encoding="utf-8")
    folder = tmp_path / "talker-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: talker\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[stube.backends]\ntalker = outsider:talkative\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def conformance(outsider: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command with both reports, and returns the results."""

    def run(*arguments: str) -> Ran:
        code = cli.main(["conformance", *arguments, "--json", "report.json", "--html", "report.html"])
        out, err = capsys.readouterr()
        assert (outsider / "report.json").exists(), err
        report: Report = json.loads((outsider / "report.json").read_text())
        return Ran(code, out, err, report, (outsider / "report.html").read_text())

    return run


def outcomes(report: Report) -> dict[str, list[Story]]:
    """Return the stories of the tests that failed, by outcome."""
    found: dict[str, list[Story]] = {}
    for test in report["tests"]:
        if test["story"] is not None:
            found.setdefault(test["outcome"], []).append(test["story"])
    return found


# Runs


def test_a_good_backend_holds_what_was_asked(conformance: Any) -> None:
    """Fault: a table that says held of everything, or a report in another form than the one that is documented."""
    ran = conformance("virtual", "--guarantee", "G12", "--guarantee", "G26")
    passed = ran.report["guarantees"]["G26"]["passed"]
    assert ran.code == 0
    assert passed >= 1
    assert re.search(rf"^G26  alone                held  +{passed} of \d+", ran.out, re.MULTILINE)
    assert re.search(r"^G12  own clock            held  +\d of \d +the rest needs own_clock$", ran.out, re.MULTILINE)
    last = r"virtual holds all 2 guarantees: \d+ tests ran in \d+ s\."
    assert re.fullmatch(last, ran.out.splitlines()[-1])
    assert "\x1b" not in ran.out + ran.err
    assert re.match(r"\d+ of \d+ tests, 0 failed, \d+ s\n", ran.err)
    wanted = [
        "format",
        "stube",
        "backend",
        "python",
        "platform",
        "date",
        "seconds",
        "capabilities",
        "not_promised",
        "ok",
    ]
    assert list(ran.report) == [*wanted, "guarantees", "tests"]
    assert (ran.report["format"], ran.report["stube"], ran.report["ok"]) == (2, stube.__version__, True)
    with stube.create_registry("virtual") as registry:
        assert ran.report["capabilities"] == sorted(registry.capabilities)
    assert "own_clock" in ran.report["not_promised"]
    assert list(ran.report["guarantees"]) == ["G12", "G26"]
    assert {test["outcome"] for test in ran.report["tests"]} == {"passed", "skipped"}
    assert not [test for test in ran.report["tests"] if "virtual" in test["name"]]


@pytest.mark.parametrize(("loop", "dispatch"), [("asyncio", "function"), ("uvloop", "coroutine")])
def test_asynchronous_backend_is_served_by_the_chosen_loop(
    conformance: Any, monkeypatch: pytest.MonkeyPatch, loop: str, dispatch: str
) -> None:
    """Fault: nobody runs a loop for it, so that every test hangs; or the choice does not reach the tests' process."""
    monkeypatch.setenv("STUBE_TEST_LOOP", "nosuchloop")  # the command's own option takes precedence
    monkeypatch.setenv("STUBE_TEST_DISPATCH", "nosuchkind")
    ran = conformance("asyncio", "--loop", loop, "--dispatch", dispatch, "--guarantee", "G3")
    assert ran.code == 0, ran.out
    assert ran.out.splitlines()[-1].startswith("asyncio holds 1 of 1 guarantee")


def test_a_broken_backend_is_told_with_its_shortest_story(conformance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: exit code 0 in spite of a failure, or a story without its values or its place. Or a test that has found
    something and hangs, for in CI pytest works out the whole difference of two thousand batons."""
    monkeypatch.setenv("CI", "true")
    ran = conformance("outsider:Generous", "--guarantee", "G8", "-q")
    assert (ran.code, ran.err, ran.report["ok"]) == (1, "", False)
    one = ran.report["guarantees"]["G8"]
    assert set(outcomes(ran.report)) == {"failed"}
    stories = [story for stories in outcomes(ran.report).values() for story in stories]
    assert one["verdict"] == "broken"
    assert one["failed"] == len(stories) > 1
    assert len(one["story"]["finding"]) == min(len(story["finding"]) for story in stories)
    (taken,) = [story for story in stories if story["test"] == "test_a_baton_is_taken_once"]
    assert taken["promise"] == "A baton is taken once"
    assert taken["fault"] == "the flow is read and not removed."
    assert taken["finding"].startswith("AssertionError: assert 'checkout' is None") or taken["finding"].startswith(
        "assert 'checkout' is None"
    )
    assert re.fullmatch(r"stube/testing/suite/test_pending_flow\.py:\d+", taken["where"])
    assert re.search(r"^G8   one taker            BROKEN ", ran.out, re.MULTILINE)
    assert f"at {one['story']['where']}, {one['story']['test']}" in ran.out
    assert ran.out.splitlines()[-1].startswith("outsider:Generous holds 0 of 1 guarantee and breaks 1 (G8): ")


def test_hang_or_crash_costs_the_outcome_of_one_test(conformance: Any) -> None:
    """Fault: the command hangs or dies with the backend, or loses the tests that were left."""
    # Only a failing test takes the whole limit. The others take a second, or several on a busy machine.
    chosen = "baton_is_taken or no_baton_is_lost"
    ran = conformance("outsider:Wild", "--guarantee", "G8", "-k", chosen, "--limit", "6")
    assert ran.code == 1
    found = outcomes(ran.report)
    assert {outcome: len(stories) for outcome, stories in found.items()} == {"hung": 2, "crashed": 1}
    in_test, in_teardown = found["hung"]
    first, *others = in_test["finding"].splitlines()
    assert first == "The test did not end within 6 s."
    assert re.fullmatch(r"it was in stand_still, outsider\.py:\d+", others[0])
    assert re.fullmatch(r"called by pending_flow, outsider\.py:\d+", others[1])
    assert others[-1].endswith(in_test["where"])
    assert in_test["where"].startswith("stube/testing/suite/test_pending_flow.py:")
    assert re.search(r"called by close, outsider\.py:\d+\ncalled by make_registry, ", in_teardown["finding"])
    assert "_pytest" not in in_teardown["finding"]
    assert found["crashed"][0]["finding"] == "The process ended with code 3."
    one = ran.report["guarantees"]["G8"]
    assert (one["verdict"], one["failed"]) == ("broken", 3)
    assert one["passed"] + one["failed"] == len(ran.report["tests"]) == len({t["name"] for t in ran.report["tests"]})


def test_backend_without_capabilities_is_tested_for_mandatory_guarantees(conformance: Any) -> None:
    """Fault: a flag for what is mandatory, or a verdict of `held` where nothing ran."""
    ran = conformance("outsider:Mute", *("--guarantee", "G8", "--guarantee", "G25"))
    assert ran.code == 0, ran.out
    verdicts = {number: one["verdict"] for number, one in ran.report["guarantees"].items()}
    assert verdicts == {"G8": "held", "G25": "not promised"}
    assert ran.report["guarantees"]["G25"]["missing"] == ["fork", "own_clock"]
    assert ran.report["capabilities"] == []
    last = ran.out.splitlines()[-1]
    assert last.startswith("outsider:Mute holds 1 of 2 guarantees and does not promise 1 (G25): ")
    row = r"^G25  fork                 not promised  0 of \d+ +the rest needs fork, own_clock$"
    assert re.search(row, ran.out, re.MULTILINE)
    assert "     not tested: The parent's registry is not affected.\n" in ran.out
    assert list(CLAUSES["G25"]) == ran.report["guarantees"]["G25"]["untested"]
    assert '<p class="dim">Not tested: The parent&#x27;s registry is not affected.</p>' in ran.page
    assert ran.report["guarantees"]["G8"]["untested"] == []


def test_too_many_lost_tests_end_the_run(conformance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a backend that ends the process in every test is given hundreds of processes, one after the other."""
    monkeypatch.setattr(runner, "MOST_LOST", 2)
    ran = conformance("outsider:Deadly", "--guarantee", "G8", "-q")
    assert ran.code == 1
    assert [story["finding"] for story in outcomes(ran.report)["crashed"]] == ["The process ended with code 7."] * 2
    assert re.search(r"^Stopped after \d+ of \d+ tests, because 2 of them hung or crashed\.$", ran.out, re.MULTILINE)


def test_an_interruption_out_of_the_backend_is_a_failure_of_its_test(
    conformance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a KeyboardInterrupt ends pytest's run, and the tests behind it count as held or are lost."""
    monkeypatch.setattr(runner, "MOST_LOST", 1)
    ran = conformance("outsider:Interrupting", "--guarantee", "G8", "-q")
    assert ran.code == 1
    (story,) = outcomes(ran.report)["crashed"]
    assert story["test"] == "test_a_baton_is_taken_once"
    assert re.search(r"\nKeyboardInterrupt\nraised by pending_flow in outsider\.py:\d+$", story["finding"])


def test_no_password_is_shown_anywhere(conformance: Any) -> None:
    """Fault: a URL's password, or a token, in a test's name, a story, a message or a page; or a page not escaped."""
    ran = conformance("talker://me:hunter%32@host?token=sesame", "--guarantee", "G26")
    assert ran.code == 1
    everything = ran.out + ran.err + json.dumps(ran.report) + ran.page
    for secret in ("hunter", "sesame", "%32"):
        assert secret not in everything
    assert ran.report["backend"] == "talker"
    assert "<b>cannot</b> reach talker://***@host?token=*** as ***" in ran.out
    assert "<b>" not in ran.page
    assert "&lt;b&gt;cannot&lt;/b&gt; reach talker://***@host" in ran.page


@pytest.mark.skipif(sys.platform == "win32", reason="capability POSIX signals is not promised there")
def test_an_interrupted_run_says_what_is_known_and_leaves_no_process(outsider: Path) -> None:
    """Fault: Ctrl-C leaves the child with the deadlocked backend behind, or prints a traceback."""
    paths = [str(ROOT), str(ROOT / "backends"), str(outsider)]
    with subprocess.Popen(
        [sys.executable, "-m", "stube", "conformance", "outsider:Waiting", "--guarantee", "G8", "--json", "r.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        assert process.stderr is not None
        progress = process.stderr.readline()  # from here on the command knows its tests
        # Between two processes there is no event except the file. Only a failure reaches the bound.
        deadline = time.monotonic() + 60
        while not (outsider / "waits").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    child = int((outsider / "waits").read_text())
    assert process.returncode == 130
    assert re.match(r"\d+ of \d+ tests, ", progress)
    assert re.fullmatch(r"Interrupted after \d+ of \d+ tests\.", out.splitlines()[-1])
    assert re.search(r"^G8   one taker ", out, re.MULTILINE)
    assert "Traceback" not in err
    assert not (outsider / "r.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_thread_that_dies_during_a_test_is_part_of_its_finding(conformance: Any) -> None:
    """Fault: the report says that a result is missing, and the exception that explains it is printed nowhere."""
    ran = conformance("outsider:Dying", "-k", "baton_is_taken_once", "-q")
    (story,) = outcomes(ran.report)["failed"]
    assert re.search(
        r"\nmeanwhile the thread 'taker' died of KeyError: 'no index of \w+'\n  in take, outsider\.py:\d+\n",
        story["finding"],
    )


def test_a_thread_that_hangs_is_shown_besides_the_one_that_waits_for_it(conformance: Any) -> None:
    """Fault: the stack of the test says `join`, and not where the other thread stands; or a parked thread's stack."""
    ran = conformance("outsider:Unheard", "-k", "no_baton_is_lost", "--limit", "4", "-q")
    (story,) = outcomes(ran.report)["hung"]
    assert re.search(r"\ncalled by run_threads, stube/testing/_harness/threads\.py:\d+\n", story["finding"])
    assert re.search(
        r"\nanother thread was in stand_still, outsider\.py:\d+\ncalled by put_pending_flow, outsider\.py:\d+\n",
        story["finding"],
    )


def test_a_backend_that_prints_without_end_loses_one_test(conformance: Any) -> None:
    """Fault: what it prints is kept, and fills the memory or the disk; or the pipe is full, and every test hangs."""
    ran = conformance("outsider:Loud", "-k", "baton_is_taken", "--limit", "3", "-q")
    found = outcomes(ran.report)
    assert [story["test"] for story in found["hung"]] == ["test_a_baton_is_taken_once"]
    assert set(found) == {"hung"}
    assert ran.report["guarantees"]["G8"]["passed"] > 0


def test_a_history_condemns_only_what_its_checker_found_broken(conformance: Any) -> None:
    """Fault: a baton that was taken twice in a random history counts against the races of timers (G7), too."""
    ran = conformance("outsider:Reckless", "-k", "batons_in_random_histories", "-q")
    verdicts = {number: one["verdict"] for number, one in ran.report["guarantees"].items()}
    assert verdicts == {"G7": "unproven", "G8": "broken"}
    assert [test["blamed"] for test in ran.report["tests"]] == [["G8"]]


HOSTILE = {
    "conftest.py": """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome = "passed"
    return report
""",
    "pytest.ini": "[pytest]\naddopts = --nosuchoption\n",
    "tox.ini": "[pytest]\naddopts = -k nothing\n",
    "sitecustomize.py": "import os\nos._exit(9)\n",
    "hypothesis.py": "raise SystemExit\n",
    "queue.py": "raise SystemExit\n",
}
"""Files of a folder in which somebody starts the command."""


def test_nothing_around_the_command_changes_the_verdict(conformance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 43. Fault: a `conftest.py` of the current folder turns broken into held; a setting or a module there, or a
    variable, keeps the suite from running."""
    for name, text in HOSTILE.items():
        Path(name).write_text(text, encoding="utf-8")
    variables = {
        "PYTEST_ADDOPTS": "--collect-only",
        "PYTEST_PLUGINS": "nosuchplugin",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "HYPOTHESIS_PROFILE": "nosuchprofile",
        "STUBE_TEST_PATIENCE": "none",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    # The second test starts a process of its own.
    ran = conformance("outsider:Generous", "-k", "baton_is_taken_once or importing_and_creating", "-q")
    assert ran.code == 1, ran.err
    found = {test["name"]: test["outcome"] for test in ran.report["tests"]}
    assert found == {"test_a_baton_is_taken_once": "failed", "test_importing_and_creating_start_nothing": "passed"}


# Parts of the suite


def test_a_keyword_chooses_tests_and_the_verdict_says_so(conformance: Any) -> None:
    """Fault: `held` for a guarantee of which one test ran, or exit code 1 for the others of which none was asked."""
    ran = conformance("virtual", "-k", "baton_is_taken_once")
    assert ran.code == 0
    assert re.search(r"^G8   one taker            held so far   1 of \d+$", ran.out, re.MULTILINE)
    assert ran.out.splitlines()[-1].startswith("virtual holds 1 of 1 guarantee as far as they were tested: 1 test ran")


def test_a_keyword_that_fits_nothing_is_a_mistake(outsider: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: no test ran, and so everything is fine."""
    assert cli.main(["conformance", "virtual", "-k", "nosuchtest"]) == 2
    assert "stube: No test of the suite fits -k 'nosuchtest'. Give a part of" in capsys.readouterr().err


def test_the_first_failure_ends_the_run_if_asked(conformance: Any) -> None:
    """Fault: the run goes on; or what did not run counts as held."""
    ran = conformance("outsider:Generous", "--guarantee", "G8", "--guarantee", "G5", "-x")
    assert ran.code == 1
    assert [test["outcome"] for test in ran.report["tests"]].count("failed") == 1
    assert ran.report["guarantees"]["G5"]["verdict"] in ("held so far", "unproven")
    assert re.fullmatch(
        r"Stopped after \d+ of \d+ tests, because one of them failed\.", ran.out.strip().splitlines()[-1]
    )


def test_a_first_verdict_comes_before_the_costly_tests(conformance: Any) -> None:
    """Fault: a minute of silence, in which the cheapest test could have told that a guarantee is broken."""
    ran = conformance("outsider:Generous", "--guarantee", "G8")
    broken, first, *_ = [line for line in ran.err.splitlines() if "broken" in line]
    assert re.fullmatch(r"G8 broken, as test_\w+(\[.*\])? shows\.", broken)
    assert re.fullmatch(r"First verdict after \d+ s, from the \d+ quick tests: G8 broken\.", first)


def test_a_broken_guarantee_gets_a_program_that_shows_it(conformance: Any, outsider: Path) -> None:
    """Fault: the file does not run alone, or passes on the broken backend, or fails on a good one."""
    _assert_reproduced(conformance, outsider, "baton_is_taken_once")


def test_the_shortest_random_program_is_a_program_that_shows_it(conformance: Any, outsider: Path) -> None:
    """Fault: what a random program found is shown by a file that draws other programs, or that fails anyway."""
    _assert_reproduced(conformance, outsider, "random_programs_match_the_model_exactly")


def _assert_reproduced(conformance: Any, outsider: Path, keyword: str) -> None:
    ran = conformance("outsider:Generous", "-k", keyword, "--reproduce", "found", "-q")
    assert re.search(r"^G8: python found/reproduce_G8\.py$", ran.out, re.MULTILINE)
    file = outsider / "found" / "reproduce_G8.py"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# G8, one taker, is broken by the backend outsider:Generous.\n")
    good = file.with_name("good.py")
    good.write_text(text.replace("outsider:Generous", "virtual"), encoding="utf-8")
    # The module of the backend is found in the current folder, as the command finds it.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    for program, code in ((file, 1), (good, 0)):
        done = subprocess.run(
            [sys.executable, str(program)],
            cwd=outsider, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "No module named" not in done.stdout + done.stderr


def test_the_suite_has_the_same_tests_in_every_process() -> None:
    """Fault: an id holds an address or the order of a set. A second process of the command, or a worker of
    pytest-xdist, then knows other tests."""

    def collected(seed: str) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "stube.testing.plugin", "--pyargs", "stube.testing.suite"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
        done = subprocess.run(
            [*command, "--stube-backend=virtual", "--collect-only", "-q"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.rpartition("\n\n")[0]

    first = collected("1")
    assert first.count("\n") > 400
    assert collected("2") == first


# Mistakes that are found before the first test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense://me:hunter2@host"], "No backend is named 'nonsense'. Use one of "),
        (["virtual://?start_ms=soon"], "The option 'start_ms' of the backend 'virtual' must be "),
        (
            ["outsider:failing"],
            "The backend 'outsider:failing' raises 'RuntimeError: no luck today' when it is made. Fix it there.\n",
        ),
        (
            ["outsider:deadly_at_once"],
            "Nothing can be tested on 'outsider:deadly_at_once': the process ended with code 4 before the first test. "
            "Make sure that the backend can be imported and made.\n",
        ),
        (
            ["virtual", "--json", "none/report.json"],
            "The report 'none/report.json' cannot be written: No such file or directory. "
            "Name a file in a folder that exists.\n",
        ),
        (
            ["virtual", "--html", "."],
            "The report '.' cannot be written: Is a directory. Name a file in a folder that exists.\n",
        ),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) else "",
)
def test_mistakes_are_reported_before_any_test_runs(
    outsider: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Fault: a traceback, a password, or a minute of tests before the mistake is told."""
    assert cli.main(["conformance", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"stube: {message}")
    assert "hunter2" not in err


def test_a_missing_extra_is_named(outsider: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Fault: a traceback about a package that the extra would bring; hypothesis is imported by the child only."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hypothesis" else real(name))
    assert cli.main(["conformance", "virtual"]) == 2
    assert capsys.readouterr().err == (
        "stube: The conformance suite needs the package 'hypothesis', which is not installed: "
        "pip install 'stube[testing]'\n"
    )


# Verdicts


def record(name: str, outcome: str, *numbers: str, needs: str = "", finding: str = "", **more: Any) -> Record:
    story: Story | None = None
    if outcome not in ("passed", "skipped"):
        story = {
            "test": name,
            "promise": name,
            "fault": "",
            "finding": finding or "assert 0",
            "where": "x.py:1",
            "program": "",
        }
    found: Record = {
        "name": name,
        "backend": "acme",
        "promised": more.get("promised", ["fair", "fork"]),
        "guarantees": list(numbers),
        "capabilities": [needs] if needs else [],
        "outcome": outcome,
        "blamed": more.get("blamed", [] if story is None else list(numbers)),
        "seconds": 0.5,
        "story": story,
    }
    return found


def test_verdicts_follow_from_the_outcomes() -> None:
    """Fault: a skip counts as held, a hang as passed, or something mandatory is excused."""
    report = report_of(
        "acme",
        [
            record("a", "passed", "G1", "G2"),
            record("b", "skipped", "G1", needs="virtual_time"),
            record("c", "hung", "G2", "G3", finding="longer than the other"),
            record("d", "crashed", "G3", finding="short"),
            record("e", "skipped", "G4", needs="common_topic_order"),
            record("f", "skipped", "G17", needs="by_reference"),
            record("g", "skipped", "G25", needs="fork"),
            record("h", "failed", "G26"),
        ],
        seconds=1.234,
    )
    verdicts = {number: one["verdict"] for number, one in report["guarantees"].items()}
    wanted = dict.fromkeys(GUARANTEES, "unproven") | {"G1": "held", "G2": "broken", "G3": "broken", "G26": "broken"}
    # A backend that promises `fork` has proved nothing if every test of it was skipped for another reason.
    assert verdicts == {**wanted, "G17": "not promised", "G25": "unproven"}
    assert report["guarantees"]["G1"]["missing"] == ["virtual_time"]
    story = report["guarantees"]["G3"]["story"]
    assert story is not None
    assert story["finding"] == "short"
    assert report["ok"] is False
    assert summary(report).startswith(
        "acme holds 1 of 27 guarantees, does not promise 1 (G17), breaks 3 (G2, G3, G26) and"
    )
    assert summary(report).endswith("): 4 tests ran in 1 s.")


def test_failure_counts_even_if_the_capability_is_not_promised() -> None:
    """Fault: a backend dodges a failing test by not naming the capability on which the guarantee depends."""
    report = report_of("acme", [record("a", "failed", "G25", promised=[])], seconds=0, numbers=["G25"])
    assert report["guarantees"]["G25"]["verdict"] == "broken"


def test_summary_says_in_one_word_that_all_guarantees_are_held() -> None:
    """Fault: a summary that nobody can take in at a glance."""
    records = [record("a", "passed", *GUARANTEES, promised=["fork", "by_reference", "fair"])]
    assert summary(report_of("acme", records, seconds=2)) == "acme holds all 27 guarantees: 1 test ran in 2 s."


# The table, the progress, the page


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "ascii"

    @override
    def isatty(self) -> bool:
        return True


def sample() -> Report:
    return report_of(
        "acme",
        [
            record("test_a", "failed", "G1", "G2", finding="assert '\ud800 \u2026' == 1"),
            record("test_b", "passed", "G3"),
            record("test_c", "skipped", "G17", needs="by_reference"),
        ],
        seconds=1,
    )


def test_the_table_is_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: escape sequences in a file, or in spite of NO_COLOR; a character that the terminal cannot show."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = terminal.table_of(sample(), Terminal())
    assert "\x1b[1;31mBROKEN" in coloured
    assert coloured.isascii()
    assert "\x1b" not in terminal.table_of(sample(), io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = terminal.table_of(sample(), Terminal())
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert "       assert '\\ud800 \\u2026' == 1" in plain
    assert "     The same test as under G1." in plain


def test_the_progress_is_one_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a line for each test, a line that wraps, or a rest of it before the table."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(progress_line, "_REDRAW", 0.0)
    stream = Terminal()
    progress = terminal.Progress(stream)
    progress.show(0, 0, 0, "")
    progress.show(1, 4, 0, "test_first")
    progress.show(3, 4, 1, "test_with_a_name_that_is_too_long_for_this_terminal")
    progress.clear()
    first, second, cleared = stream.getvalue().split("\r\x1b[K")[1:]
    assert first == "[######..................] 1/4  0 failed  0:00  test_first"[:59]
    assert second.startswith("[##################......] 3/4  1 failed  0:00  test_")
    assert len(second) == 59
    assert cleared == ""


def test_the_progress_is_a_line_every_ten_seconds_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a log full of carriage returns, or of a line for each test."""
    stream = io.StringIO()
    progress = terminal.Progress(stream)
    for done in range(100):
        progress.show(done, 100, 0, "test_something")
    progress.clear()
    assert stream.getvalue() == "0 of 100 tests, 0 failed, 0 s\n"
    quiet = io.StringIO()
    terminal.Progress(quiet, quiet=True).show(1, 2, 0, "test_something")
    assert quiet.getvalue() == ""


class Outline(HTMLParser):
    """Checks that the elements of a page are closed in order, and collects their references."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_can_be_read_by_everybody() -> None:
    """Fault: a page that loads something, that tells a verdict by colour alone, or whose tables have no headers."""
    page = page_of(sample())
    outline = Outline(page)
    assert outline.open == []
    found = {tag for tag, _ in outline.tags}
    assert not found & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import|javascript:", page)
    assert {"title", "caption", "thead", "details", "summary", "main", "h1"} <= found
    assert ("html", {"lang": "en"}) in outline.tags
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in outline.tags if tag == "th")
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    identities = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert identities == list(GUARANTEES)
    for sign, verdict in (("\u2717", "broken"), ("\u2713", "held"), ("\u2013", "not promised"), ("?", "unproven")):
        assert f'<span aria-hidden="true">{sign}</span> {verdict}</td>' in page
    assert 'The same test as under <a href="#G1">G1</a>.' in page
    assert "<code>pending_flow(cid)</code>" in page


# Passwords


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("memory", "memory"),
        ("virtual://?start_ms=5", "virtual://?start_ms=5"),
        ("redis://:p%40ss@host/0", "redis://***@host/0"),
        ("redis://me:secret@host?api_key=abc", "redis://***@host?api_key=***"),
        ({"backend": "redis://me:pw123@host", "token": "abc"}, "redis://***@host"),
        ({"shards": 8}, "unnamed"),
    ],
)
def test_a_spec_is_shown_without_its_passwords(spec: object, text: str) -> None:
    """Fault: the password in the name of every test."""
    assert shown(spec) == text


def test_a_text_loses_every_form_of_a_password() -> None:
    """Fault: the decoded password in the error of a driver."""
    hide = Secrets({"backend": "redis://me:p%40ss@host", "password": "open"}).redact
    assert hide("me:p%40ss, p@ss and open") == "***, *** and ***"
    assert Secrets("memory").redact("memory") == "memory"


# The page of guarantees


PAGE = """# Page

<!-- guarantees: written by tools/guarantees_page.py -->
<!-- end of guarantees -->

By hand.

<!-- capabilities: written by tools/guarantees_page.py -->
<!-- end of capabilities -->

<!-- backends: written by tools/guarantees_page.py -->
old
<!-- end of backends -->
"""


def page_tool(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "tools" / "guarantees_page.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_page_is_written_from_the_reports_and_its_age_is_found(tmp_path: Path) -> None:
    """Fault: a stale page passes, a fresh one depends on the day, or what was written by hand is lost."""
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    files: list[Path] = []
    for backend in ("acme", "virtual", "memory"):
        one = report_of(backend, [record("a", "passed", *(set(GUARANTEES) - {"G17", "G8"}))], seconds=1)
        if backend == "acme":
            one["guarantees"]["G8"]["verdict"] = "broken"
        files.append(tmp_path / f"{backend}.json")
        write_report(files[-1], one)
    code, said = page_tool("--check", "--page", page, *files)
    assert code == 1
    assert "page.md is stale. Write it again, and commit it:\n" in said
    assert page_tool("--page", page, *files) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert "| | `memory` | `virtual` | `acme` |\n|---|---|---|---|\n| **G1** serial | held | held | held |\n" in text
    assert "| **G8** one taker | **unproven** | **unproven** | **broken** |\n" in text
    assert "| **G17** by reference | not promised | not promised | not promised |\n" in text
    assert "\nBy hand.\n" in text
    assert "\nold\n" not in text
    for number, one_guarantee in GUARANTEES.items():
        assert f"| **{number}** {one_guarantee.title} | {one_guarantee.sentence} |\n" in text
    first = json.loads(files[0].read_text())
    files[0].write_text(json.dumps({**first, "date": "2001-01-01T00:00:00+00:00", "seconds": 99}))
    assert page_tool("--check", "--page", page, *reversed(files)) == (0, "page.md is fresh\n")
    # Without a report the table of the backends is kept.
    assert page_tool("--page", page) == (0, "")
    assert page.read_text(encoding="utf-8") == text


def test_a_report_of_some_guarantees_makes_no_page(tmp_path: Path) -> None:
    """Fault: a partial run fills the table with holes."""
    file = tmp_path / "acme.json"
    write_report(file, report_of("acme", [], seconds=0, numbers=["G8"]))
    said = "The report on acme covers only some of the guarantees. Run the whole suite for it.\n"
    assert page_tool("--check", file) == (2, said)


def test_the_guarantees_of_the_page_are_those_of_the_package() -> None:
    """Fault: a promise that was changed in one of the two places."""
    assert page_tool("--check") == (0, "guarantees.md is fresh\n")
