"""Real tabs of a real browser against a real server, on each local backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

NEEDED = "needs the extra 'demo': pip install 'stube[demo]'"
for module in ("sse_starlette", "starlette", "uvicorn"):
    pytest.importorskip(module, reason=NEEDED)

from tests.browser.stage import Stage, chromium, staged  # noqa: E402

BACKENDS = ["memory", "sharded://?shards=4", "asyncio"]


# The scope is the module and not the session: while the browser is open, Playwright's loop runs in this thread, and a
# later test could not run a loop of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    with chromium() as launched:
        yield launched


@pytest.fixture
def stage(browser: Any) -> Iterator[Callable[..., Stage]]:
    """A function that serves the demo on the registry of a spec."""
    with ExitStack() as stack:
        yield lambda spec, **times: stack.enter_context(staged(browser, spec, **times))


@pytest.fixture(params=BACKENDS)
def spec(request: pytest.FixtureRequest) -> str:
    """Every local backend whose time is real."""
    name: str = request.param
    return name
