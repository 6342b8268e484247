"""The pytest plugin: the backend under test, a virtual registry for hosts, and the markers of the suite.

pytest loads it through the entry point `stube.testing.plugin`. It has no effect in a project that does not use it.

Options:
    `--stube-backend SPEC` names the backend that the conformance suite runs against; repeatable. It takes
    precedence over the fixture `stube_backend`.
    `--stube-guarantee G5` runs the tests that prove this guarantee and no others; repeatable.
    `--stube-quick` lets the suite inject at every fourth line and draw fewer random programs; by default it does all.
    `--stube-report PATH` writes what the run says about each guarantee: to PATH when it ends in `.json`, else into the
    folder PATH, one file for each backend. Specs that differ in their options only are one backend there.

Fixtures:
    `stube_backend`: the spec for `create_registry`. Override it to name your backend.
    `stube_options`: options for every registry that the suite makes. Override it, or leave it empty.
    `stube_effort`: how often the suite repeats what it tries; `--stube-quick` lowers it.
    `make_registry`: a function that makes a fresh backend under test, with further options.
    `registry`: a fresh backend under test. Closed at teardown, and its ledger checked.
    `virtual_registry`: for hosts: a registry whose clock only the test moves. A handler that fails fails the test, with
    the handler's exception as the cause.
    `allow_failures`: call it to permit failing handlers from then on.

Markers:
    `allow_failures`: permit failing handlers under `virtual_registry` in this test.
    `guarantee("G5", ...)`: the guarantees of the contract that a test proves.
    `stube_requires("fork", ...)`: the optional capabilities without which a test is skipped.
"""

from __future__ import annotations

from stube.testing._plugin.suite_fixtures import MakeRegistry
from stube.testing._plugin.virtual_registry import HandlerFailed, VirtualChecks

__all__ = ["HandlerFailed", "MakeRegistry", "VirtualChecks"]

pytest_plugins = (
    "stube.testing._plugin.dead_threads",
    "stube.testing._plugin.deadlocks",
    "stube.testing._plugin.options",
    "stube.testing._plugin.suite_fixtures",
    "stube.testing._plugin.virtual_registry",
)
