"""The conformance suite on `globex`, which must be installed."""

import pytest

from stube.testing.suite import *  # noqa: F403


@pytest.fixture
def stube_backend() -> str:
    return "globex"
