"""The conformance suite on asyncio: on each kind of loop, with a plain dispatch and with a coroutine function."""

from __future__ import annotations

import pytest

from stube.testing._harness import DISPATCH, DISPATCHES, LOOP, LOOPS
from stube.testing.suite import *  # noqa: F403 - the one line that a backend's author writes
from tests.tiers import variants

SERVED = [f"{loop}-{dispatch}" for loop in LOOPS for dispatch in DISPATCHES]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stube_backend" in metafunc.fixturenames and not metafunc.config.getoption("stube_backend"):
        metafunc.parametrize("stube_backend", variants(metafunc.config.getoption("tier"), SERVED), indirect=True)


@pytest.fixture
def stube_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend, and what it runs on; the scripts that the suite starts have the same environment."""
    loop, _, dispatch = request.param.partition("-")
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="needs the extra 'bench', where uvloop exists")
    monkeypatch.setenv(LOOP, loop)
    monkeypatch.setenv(DISPATCH, dispatch)
    return "asyncio"
