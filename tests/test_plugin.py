"""The pytest plugin: what hosts and authors of backends see of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]


def result_of(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest("-p", "no:cacheprovider", "--strict-markers", *arguments)


# The virtual registry.


def test_a_failing_assertion_in_a_handler_fails_the_test_and_shows_itself(pytester: pytest.Pytester) -> None:
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
    result.stdout.fnmatch_lines(["*raised ZeroDivisionError. Mend it*"])


def test_an_exception_that_is_no_exception_fails_the_test_too(pytester: pytest.Pytester) -> None:
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


def test_what_works_passes_and_what_is_pending_may_stay(pytester: pytest.Pytester) -> None:
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


def test_the_option_names_the_backends_and_goes_before_the_fixture(pytester: pytest.Pytester) -> None:
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
        from stube.testing._capabilities import requires

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
    from stube.testing._capabilities import requires

    with pytest.raises(ValueError, match=r"Unknown capability 'by_referense'\. Choose from by_reference, "):
        requires("by_referense")


def test_a_named_backend_on_which_nothing_ran_is_an_error(pytester: pytest.Pytester) -> None:
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
            return "stube_backends.virtual:create"
        """,
        "-k",
        "unsubscribe or virtual_clock or clock_may_start",
    )
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] > 10


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
        import stube.testing._drive as drive

        @pytest.fixture(autouse=True)
        def impatient(monkeypatch):
            monkeypatch.setattr(drive, "PATIENCE", 0.05)

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
    # In a process of its own, for here this file's own process has imported much.
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
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
