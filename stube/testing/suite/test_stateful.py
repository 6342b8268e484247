"""Random programs of all twelve operations, performed on the backend and on a model of plain dicts and lists.

`stube.testing._model.differential` defines what is compared, and when; `stube.testing._model.random_programs` what a
program may contain. A failure prints the smallest failing program that was found, as Python to paste into a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from stube.testing._contract.capabilities import requires
from stube.testing._harness import Effort
from stube.testing._model.random_programs import compare_programs
from stube.testing.suite._fixtures import costly, guarantee


@guarantee("G2", "G5", "G15", "G16")
@requires("virtual_time", "common_topic_order", "one_instant_snapshot")
@pytest.mark.usefixtures("make_registry")
def test_random_programs_match_the_model_exactly(
    stube_backend: Any, stube_options: Mapping[str, Any], stube_effort: Effort
) -> None:
    """Fault: any difference within a few operations: order, counts, stats, snapshots, payloads or instants."""
    compare_programs(stube_backend, stube_options, exactly=True, examples=stube_effort.exact_programs)


@guarantee("G2", "G5", "G15", "G16")
@costly
@pytest.mark.usefixtures("make_registry")
def test_random_programs_match_the_model_after_settling(
    stube_backend: Any, stube_options: Mapping[str, Any], stube_effort: Effort
) -> None:
    """Fault: any difference that does not depend on the timing, within a conversation or in the totals."""
    compare_programs(stube_backend, stube_options, exactly=False, examples=stube_effort.settled_programs)
