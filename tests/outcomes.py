"""A pytest plugin that writes down how each test ended and by which exception: `-p tests.outcomes`.

It runs on a copy of the sources with a fault in them. When a test has caught the fault on one backend, its other
parameters there are skipped. The file is the one that `OUTCOMES` names in the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

_found: Final[list[dict[str, Any]]] = []
_caught: Final[set[tuple[str, str]]] = set()


def _test_and_backend(item: pytest.Item) -> tuple[str, str]:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return getattr(item, "originalname", item.name), str(parameters.get("stube_backend", ""))


@pytest.fixture(autouse=True)
def once_is_enough(request: pytest.FixtureRequest) -> None:
    """Skip what has been caught."""
    if _test_and_backend(request.node) in _caught:
        pytest.skip("it has been caught")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how a test ended."""
    report = yield
    if report.when == "call" or report.failed:
        test, backend = _test_and_backend(item)
        error = call.excinfo if report.failed else None
        if error is not None and error.type.__name__ in ("AssertionError", "Failed"):
            _caught.add((test, backend))
        _found.append(
            {
                "test": test,
                "backend": backend,
                "guarantees": [number for mark in item.iter_markers("guarantee") for number in mark.args],
                "failed": report.failed,
                "error": "" if error is None else error.type.__name__,
                "message": "" if error is None else str(error.value),
            }
        )
    return report


def pytest_sessionfinish() -> None:
    """Write it down."""
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(_found), encoding="utf-8")
