"""For authors of backends and for hosts: the conformance suite, and a pytest plugin with a virtual clock.

A backend's whole test file is one import and one fixture (or the option `--stube-backend`):

    import pytest
    from stube.testing.suite import *

    @pytest.fixture
    def stube_backend():
        return "package.module:factory"

A host asks for the fixture `virtual_registry`: time stands still until the test moves it, and a handler that fails
fails the test. `GUARANTEES` is what every backend promises, by number. `check_history` decides whether a recorded
history of many clients keeps the guarantees, on several machines too; `RecordedRegistry` and `random_history` record
one. `chaos` lets threads and unruly handlers loose on a backend and sees whether it is whole afterwards. The extra
`testing` brings what this package needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stube.testing._chaos.rounds import ChaosFailed, ChaosFigures, chaos
    from stube.testing._contract.guarantees import GUARANTEES, Guarantee
    from stube.testing._history.checker import Verdict, check_history
    from stube.testing._history.recorder import RecordedRegistry, clock_option, promised
    from stube.testing._history.records import Call, History, Remainder, Run, Violation
    from stube.testing._history.workload import HistoryFailed, random_history

__all__ = [
    "GUARANTEES",
    "Call",
    "ChaosFailed",
    "ChaosFigures",
    "Guarantee",
    "History",
    "HistoryFailed",
    "RecordedRegistry",
    "Remainder",
    "Run",
    "Verdict",
    "Violation",
    "chaos",
    "check_history",
    "clock_option",
    "promised",
    "random_history",
]

_HOMES = (
    "_contract.guarantees",
    "_history.records",
    "_history.checker",
    "_history.recorder",
    "_history.workload",
    "_chaos.rounds",
)


def __getattr__(name: str) -> object:
    # pytest loads this package, by way of the plugin, in every project where stube is installed: 20 ms for all of it.
    if name in __all__:
        from importlib import import_module

        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
