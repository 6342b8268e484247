"""The conformance suite on asyncio: on each kind of loop, with a plain dispatch and with a coroutine function."""

from __future__ import annotations

import pytest

from stube.testing._harness import DISPATCH, DISPATCHES, LOOP, LOOPS
from stube.testing.suite import *  # noqa: F403 - the one line that a backend's author writes


@pytest.fixture(params=[f"{loop}-{dispatch}" for loop in LOOPS for dispatch in DISPATCHES])
def stube_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend, and what it runs on; the scripts that the suite starts have the same environment."""
    loop, _, dispatch = request.param.partition("-")
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="needs the extra 'bench', where uvloop exists")
    monkeypatch.setenv(LOOP, loop)
    monkeypatch.setenv(DISPATCH, dispatch)
    return "asyncio"
