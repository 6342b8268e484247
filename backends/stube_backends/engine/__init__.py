"""The parts of a local registry, public for authors of backends (provisional until 1.0).

A registry in one process consists of a core and a driver. `LocalRegistry` is the twelve operations on a core; a backend
derives from it and says in `_new_driver` which driver runs the deliveries. `Core` is one `Engine` behind a lock; the
engine is all the state, without lock, thread or clock. `ThreadDriver` delivers on a thread of the registry's own; a
backend that needs another kind of driver derives it from `Driver` and delivers with a `Deliverer`. `Options` are the
options that every local backend has, `Failures` reports what handlers raise.
"""

from stube_backends.engine._backlogs import OnFull
from stube_backends.engine._core import Core
from stube_backends.engine._delivery import Deliverer
from stube_backends.engine._driver import Driver, refuse_inside
from stube_backends.engine._engine import Engine
from stube_backends.engine._failures import Failures, OnError
from stube_backends.engine._local import LocalRegistry
from stube_backends.engine._options import Options
from stube_backends.engine._order import EARLIEST
from stube_backends.engine._thread_driver import Spawn, ThreadDriver, daemon_thread
from stube_backends.engine._waiting import decide_sleep_locked, wait_until_idle

__all__ = [
    "EARLIEST",
    "Core",
    "Deliverer",
    "Driver",
    "Engine",
    "Failures",
    "LocalRegistry",
    "OnError",
    "OnFull",
    "Options",
    "Spawn",
    "ThreadDriver",
    "daemon_thread",
    "decide_sleep_locked",
    "refuse_inside",
    "wait_until_idle",
]
