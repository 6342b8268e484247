"""Every test of the suite runs under the watchdog, so that a deadlock fails it and no time limit has to."""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the test and its fixtures."""
    if "stube_backend" not in getattr(item, "fixturenames", ()):
        return (yield)
    from stube.testing._harness import watchdog

    with watchdog(None):
        return (yield)
