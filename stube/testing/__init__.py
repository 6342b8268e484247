"""For authors of backends and for hosts: the conformance suite, and a pytest plugin with a virtual clock.

A backend's whole test file is one import and one fixture (or the option `--stube-backend`):

    import pytest
    from stube.testing.suite import *

    @pytest.fixture
    def stube_backend():
        return "package.module:factory"

A host uses the fixture `virtual_registry`: only the test moves its clock, and a handler that fails fails the test.
`GUARANTEES` holds the promises of every backend, by number. `check_history` decides whether a recorded history of many
clients, possibly on several machines, keeps the guarantees; `RecordedRegistry` and `random_history` record one. `chaos`
lets many threads and unruly handlers use a backend and checks that it is whole afterwards. The extra `testing` installs
the packages that this one needs.

The modules are in packages whose names begin with an underscore, because they are private:

- `_contract`: the guarantees and the capabilities;
- `_harness`: tools for tests, such as the driver, threads, event loops, and the proxy in front of a registry;
- `_model`: random programs, compared with a sequential model;
- `_history`: recorded histories of many threads, and their checker;
- `_chaos`: threads and unruly handlers, and the audit;
- `_conformance`: the command that runs the suite, and its reports;
- `_plugin`: the parts of the pytest plugin.
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
    # pytest loads this package with the plugin in every project where stube is installed, so names are loaded late.
    if name in __all__:
        from importlib import import_module

        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
