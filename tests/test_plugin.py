"""The pytest plugin, as hosts and authors of backends see it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice, takewhile

import pytest

from stube.testing import GUARANTEES
from stube.testing._harness import FULL, QUICK

pytest_plugins = ["pytester"]


def result_of(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest("-p", "no:cacheprovider", "--strict-markers", *arguments)


# The virtual registry.


def test_failing_assertion_in_a_handler_fails_the_test_and_is_shown(pytester: pytest.Pytester) -> None:
    """Case 23b."""
    result = result_of(
        pytester,
        """
        def test_host(virtual_registry):
            def dispatch(cid, event):
                count = event.payload
                assert count == 2, "the handler counts wrong"
            virtual_registry.install_dispatch(dispatch)
            virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event=("tick", 1))
            virtual_registry.advance(10)
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*assert count == 2*",
            "*AssertionError: the handler counts wrong",
            "*The above exception was the direct cause of the following exception:*",
            "*HandlerFailed: A handler failed: Event('main', 'tick', 1) of conversation 'c1' raised AssertionError.*",
        ]
    )


def test_a_handler_that_fails_after_the_test_body_fails_the_teardown(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        import pytest

        @pytest.fixture
        def host(virtual_registry):
            yield virtual_registry
            virtual_registry.advance(10)

        def test_host(host):
            def dispatch(cid, event):
                raise LookupError("too late")
            host.install_dispatch(dispatch)
            host.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="tick")
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*LookupError: too late", "*HandlerFailed: A handler failed: *"])


def test_a_test_that_fails_by_itself_also_tells_of_the_handler(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        def test_host(virtual_registry):
            def dispatch(cid, event):
                raise LookupError("the reason")
            virtual_registry.install_dispatch(dispatch)
            virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="tick")
            virtual_registry.advance(10)
            assert virtual_registry.stats().delivered == 1
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*A handler failed: *", "*LookupError('the reason')*"])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(("@pytest.mark.allow_failures", "virtual_registry", ""), id="marker"),
        pytest.param(("", "virtual_registry, allow_failures", "allow_failures()"), id="fixture"),
        pytest.param(("", "allow_failures, virtual_registry", "allow_failures()"), id="fixture first"),
    ],
)
def test_failures_may_be_permitted(pytester: pytest.Pytester, how: tuple[str, str, str]) -> None:
    marker, fixtures, call = how
    result = result_of(
        pytester,
        f"""
        import pytest

        {marker}
        def test_host({fixtures}):
            {call}
            virtual_registry.install_dispatch(lambda cid, event: 1 / 0)
            virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="tick")
            virtual_registry.advance(10)
            assert virtual_registry.stats().failed == 1
        """,
    )
    result.assert_outcomes(passed=1)


def test_failures_before_they_were_permitted_still_count(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        def test_host(virtual_registry, allow_failures):
            virtual_registry.install_dispatch(lambda cid, event: 1 / 0)
            for index in range(2):
                virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="tick")
                virtual_registry.advance(10)
                allow_failures()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*raised ZeroDivisionError. Fix it*"])


def test_base_exception_of_a_handler_fails_the_test_too(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("how", ["fail", "skip", "exit"])
        def test_host(virtual_registry, how):
            def dispatch(cid, event):
                if how == "exit":
                    raise SystemExit(3)
                getattr(pytest, how)("called in a handler")
            virtual_registry.install_dispatch(dispatch)
            virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="tick")
            virtual_registry.advance(10)
        """,
    )
    result.assert_outcomes(failed=3)


def test_working_handlers_pass_and_pending_timers_may_stay(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        def test_host(virtual_registry):
            seen = []
            virtual_registry.install_dispatch(lambda cid, event: seen.append((virtual_registry.now_ms, event.name)))
            for delay in (10, 20, 30):
                virtual_registry.schedule_event(cid="c1", instance_id="main", delay_ms=delay, event="tick")
            virtual_registry.advance(20)
            assert seen == [(10, "tick"), (20, "tick")]
        """,
    )
    result.assert_outcomes(passed=1)


# The backend under test.


def test_a_suite_without_a_backend_says_how_to_name_one(pytester: pytest.Pytester) -> None:
    result = result_of(pytester, "def test_something(registry): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*No backend is named. Give the option --stube-backend SPEC, or define a fixture*"])


def test_the_option_names_the_backends_and_overrides_the_fixture(pytester: pytest.Pytester) -> None:
    source = """
        import pytest

        @pytest.fixture(params=["virtual"])
        def stube_backend(request):
            return request.param

        def test_something(registry, stube_backend):
            print("ran on", stube_backend)
    """
    result = result_of(pytester, source, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_something?virtual? PASSED*"])
    result = result_of(pytester, source, "-v", "--stube-backend", "memory", "--stube-backend", "virtual://?start_ms=5")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_something?memory? PASSED*", "*test_something?virtual://?start_ms=5? PASSED*"])


def test_a_missing_capability_skips_with_a_reason_that_names_it(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        from stube.testing._contract.capabilities import requires

        @requires("virtual_time")
        def test_something(registry):
            assert "virtual_time" in registry.capabilities
        """,
        "-rs",
        "--stube-backend=memory://",
        "--stube-backend=virtual",
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*capability virtual_time is not promised by memory"])


def test_an_unknown_capability_cannot_be_required() -> None:
    from stube.testing._contract.capabilities import requires

    with pytest.raises(ValueError, match=r"Unknown capability 'by_referense'\. Choose from by_reference, "):
        requires("by_referense")


def test_named_backend_on_which_no_test_ran_is_an_error(pytester: pytest.Pytester) -> None:
    result = result_of(pytester, "def test_something(): ...", "--stube-backend=memory")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["stube: the option --stube-backend was given, but no test of the *suite ran*"])


def test_an_outsiders_whole_file_is_one_line_and_a_fixture(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        import pytest
        from stube.testing.suite import *

        @pytest.fixture
        def stube_backend():
            return "stube_backends.virtual:VirtualRegistry"
        """,
        "-k",
        "unsubscribe or virtual_clock or clock_may_start",
    )
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] > 10


def test_suite_runs_by_name_from_an_empty_folder(pytester: pytest.Pytester) -> None:
    """Fault: the plugin is there twice, once by its entry point; or the suite's fixtures are not found by name."""
    # In a process of its own, because `-p` comes before everything else, and this process has loaded the plugin.
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-p", "stube.testing.plugin", "--pyargs", "stube.testing.suite"),
        *("-p", "no:benchmark"),  # which may be installed as well, and leaves a folder
        *("--stube-backend=virtual", "--stube-guarantee=G26", "--stube-report=reports"),
    )
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] >= 1
    assert result.parseoutcomes()["deselected"] > 100
    report = json.loads((pytester.path / "reports" / "virtual.json").read_text())
    assert {number: one["verdict"] for number, one in report["guarantees"].items()} == {"G26": "held"}
    left = {path.name for path in pytester.path.iterdir() if not path.name.startswith("runpytest-")}  # pytester's own
    assert left == {"reports", "stdout", "stderr"}


def test_an_outsiders_whole_file_is_one_line_and_the_option(pytester: pytest.Pytester) -> None:
    """Fault: the number of a guarantee chooses nothing, or tests beside the suite."""
    pytester.makepyfile(test_beside="def test_beside(): raise AssertionError")
    result = result_of(
        pytester,
        "from stube.testing.suite import *",
        *(
            "--stube-backend=virtual",
            "--stube-guarantee=G26",
            "--stube-guarantee=G12",
            "--stube-report=new/report.json",
        ),
    )
    assert result.ret == pytest.ExitCode.OK
    report = json.loads((pytester.path / "new" / "report.json").read_text())
    assert list(report["guarantees"]) == ["G12", "G26"]
    assert report["ok"] is True


SAMPLE = """
    import pytest

    @pytest.mark.guarantee("G8")
    @pytest.mark.parametrize("number", [1, 2])
    def test_one_baton(registry, number):
        '''Case 1. Fault: it is taken
        twice.

        More about it.'''
        registry.put_pending_flow("c1", number)
        assert registry.pending_flow("c1") == 1

    @pytest.mark.guarantee("G5")
    def test_the_ledger(registry):
        stats, registry.stats = registry.stats(), None
        raise LookupError("no such thing")

    @pytest.mark.guarantee("G25")
    @pytest.mark.stube_requires("cross_process")
    def test_elsewhere(registry): ...

    def test_without_a_number(registry): ...
    def test_without_a_backend(): ...
"""


def test_report_option_writes_the_report_of_any_run(pytester: pytest.Pytester) -> None:
    """Fault: two backends in one report, a failing teardown that is lost, or a story without its figures."""
    result = result_of(
        pytester, SAMPLE, "--stube-backend=virtual", "--stube-backend=memory://?max_pending=9", "--stube-report=out"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert sorted(path.name for path in (pytester.path / "out").iterdir()) == ["memory.json", "virtual.json"]
    report = json.loads((pytester.path / "out" / "memory.json").read_text())
    assert report["backend"] == "memory"
    assert "by_reference" in report["capabilities"]
    assert list(report["guarantees"]) == list(GUARANTEES)
    assert {test["name"]: test["outcome"] for test in report["tests"]} == {
        "test_one_baton[1]": "passed",
        "test_one_baton[2]": "failed",
        "test_the_ledger": "failed",
        "test_elsewhere": "skipped",
    }
    one = report["guarantees"]["G8"]
    assert (one["verdict"], one["passed"], one["failed"], one["skipped"]) == ("broken", 1, 1, 0)
    assert one["story"]["test"] == "test_one_baton[2]"
    assert one["story"]["promise"] == "One baton"
    assert one["story"]["fault"] == "it is taken twice."
    assert "assert 2 == 1" in one["story"]["finding"]
    assert re.fullmatch(r"test_report_option_writes_the_report_of_any_run\.py:\d+", one["story"]["where"])
    story = report["guarantees"]["G5"]["story"]
    assert story["finding"] == 'raise LookupError("no such thing")\nLookupError: no such thing'
    assert report["guarantees"]["G25"]["verdict"] == "unproven"
    assert report["guarantees"]["G25"]["missing"] == ["cross_process"]
    assert report["ok"] is False


def test_one_file_holds_one_backend(pytester: pytest.Pytester) -> None:
    """Fault: the second backend's report overwrites the first one's."""
    options = ("--stube-backend=virtual", "--stube-backend=memory", "--stube-report=out.json", "-k", "baton and 1")
    result = result_of(pytester, SAMPLE, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        ["stube: --stube-report out.json names one file, and the suite ran on virtual, memory. Name a folder."]
    )
    assert not (pytester.path / "out.json").exists()


def test_a_report_that_cannot_be_written_is_an_error(pytester: pytest.Pytester) -> None:
    """Fault: a traceback at the end of the run, or a green run without the report."""
    (pytester.path / "taken").write_text("")
    result = result_of(
        pytester, SAMPLE, "--stube-backend=virtual", "--stube-report=taken/report.json", "-k", "baton and 1"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        ["stube: --stube-report taken/report.json cannot be written: *. Name another file or folder."]
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--stube-report=out"], "stube: the option --stube-report was given, but no test of the *suite ran. *"),
        (
            ["--stube-guarantee=G8", "--stube-guarantee=G9"],
            "stube: no test of the conformance suite ran that proves G8 or G9. *",
        ),
    ],
)
def test_option_with_which_no_test_ran_is_an_error(
    pytester: pytest.Pytester, arguments: list[str], complaint: str
) -> None:
    """Fault: green, though the suite that was asked for was not even there."""
    result = result_of(pytester, "def test_something(): ...", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([complaint])
    assert not (pytester.path / "out").exists()


def test_a_quick_run_makes_no_report(pytester: pytest.Pytester) -> None:
    """Fault: a report that says "held" of what was tried at every fourth line only."""
    result = result_of(pytester, SAMPLE, "--stube-quick", "--stube-report=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --stube-report tells what the full suite found. Leave --stube-quick out."])


def test_each_line_of_a_quick_sweep_meets_every_fourth_inner_operation() -> None:
    """Fault: all inner operations come in at the same lines, so that the others are never tried."""
    inner_at = {
        line: [n for n in range(12) if line in takewhile(lambda at: at < 40, QUICK.lines(n))] for line in range(40)
    }
    assert {len(met) for met in inner_at.values()} == {3}
    assert all(list(islice(FULL.lines(number), 3)) == [0, 1, 2] for number in range(12))


def test_a_guarantee_that_does_not_exist_is_refused(pytester: pytest.Pytester) -> None:
    """Fault: a slip of the pen in an option or a marker leaves tests out for ever."""
    numbers = ", ".join(GUARANTEES)
    result = result_of(pytester, SAMPLE, "--stube-guarantee=G99")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: There is no guarantee 'G99'. Choose from {numbers}."])
    source = 'import pytest\n@pytest.mark.guarantee("g8")\ndef test_x({}): ...'
    result = result_of(pytester, source.format("registry"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: The marker of *::test_x is wrong. There is no guarantee 'g8'. Choose from {numbers}."]
    )
    # In a project that uses the name for another purpose, the marker is not that of stube.
    assert result_of(pytester, source.format("")).ret == pytest.ExitCode.OK


def test_the_name_of_a_test_shows_no_password(pytester: pytest.Pytester) -> None:
    """Fault: the URL of the backend under test in every line of a log."""
    result = result_of(pytester, SAMPLE, "--collect-only", "-q", "--stube-backend=redis://me:hunter2@host")
    result.stdout.fnmatch_lines(["*::test_the_ledger?redis://?*??host?"])
    result.stdout.no_fnmatch_line("*hunter2*")


def test_an_assertion_of_the_suite_shows_its_figures(pytester: pytest.Pytester) -> None:
    result = result_of(
        pytester,
        """
        from stube.testing.suite._fixtures import make_run, run, unchanged

        def test_something(run):
            with unchanged(run.registry):
                run.registry.put_pending_flow("c1", 1)
        """,
        "--stube-backend=virtual",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Stats(pending_flows=1, *"])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        pytest.param("raise_balance", "*the ledger does not balance: 1 accepted != 0 delivered*", id="unbalanced"),
        pytest.param("raise_negative", "*cancelled is negative*", id="negative"),
        pytest.param("raise_running", "*a delivery still runs*", id="running"),
        pytest.param("raise_left", "*Stats(*timers=1*", id="left after the close"),
    ],
)
def test_the_fixture_registry_checks_the_ledger(pytester: pytest.Pytester, source: str, complaint: str) -> None:
    """A backend that lies about its ledger is found by every test that uses it."""
    pytester.makepyfile(
        lying="""
        import stube
        from stube import Stats

        LIES = {
            "raise_balance": Stats(accepted=1),
            "raise_negative": Stats(accepted=0, cancelled=-1, dropped=1),
            "raise_running": Stats(accepted=1, running=1),
            "raise_left": Stats(accepted=1, timers=1),
        }

        def create(*, lie: str = ""):
            registry = stube.create_registry("virtual")
            return Liar(registry, LIES[lie])

        class Liar:
            def __init__(self, registry, stats):
                self._registry, self._stats = registry, stats

            def __getattr__(self, name):
                return getattr(self._registry, name)

            def stats(self):
                return self._stats
        """
    )
    pytester.syspathinsert()
    result = result_of(
        pytester,
        f"""
        import pytest
        from stube.testing._harness import ledger

        @pytest.fixture(autouse=True)
        def impatient(monkeypatch):
            monkeypatch.setattr(ledger, "PATIENCE", 0.05)

        @pytest.fixture
        def stube_backend():
            return {{"backend": "lying:create", "lie": "{source}"}}

        def test_something(registry):
            assert registry.publish("t", 1) == 0
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([complaint])


# A project that does not use it.


def test_the_plugin_leaves_a_project_alone_that_does_not_use_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        import threading
        import pytest

        @pytest.fixture
        def registry():
            return "the project's own"

        def test_something(registry):
            assert registry == "the project's own"
            assert threading.active_count() == 1
            assert not [name for name in sys.modules if name.startswith("stube_backends")]
            assert not [name for name in sys.modules if name.startswith("stube.testing.suite")]
        """
    )
    # In a process of its own, because the process of this file has imported much.
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    done.assert_outcomes(passed=1)


@pytest.mark.parametrize("conftest", ["", 'pytest_plugins = ["stube.testing.plugin"]'])
def test_the_plugin_loads_without_a_warning_where_plugins_are_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, conftest: str
) -> None:
    """Fault: pytest warns that a part of the plugin was imported before its assertions could be rewritten."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(conftest)
    pytester.makepyfile("def test_time(virtual_registry): virtual_registry.advance(5)")
    options = [] if conftest else ["-p", "stube.testing.plugin"]
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *options)
    done.assert_outcomes(passed=1)


def test_importing_the_plugin_is_cheap() -> None:
    source = """
import sys
import pytest
before = set(sys.modules)
import stube.testing.plugin
new = sorted(name for name in set(sys.modules) - before if not name.startswith(("stube.", "stube")))
print(len(new), [name for name in ("asyncio", "subprocess", "multiprocessing", "sortedcontainers") if name in new])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    count, heavy = done.stdout.split(" ", 1)
    assert heavy.strip() == "[]"
    assert int(count) < 60, done.stdout
