"""The time from the import to the first delivery, in a new process each time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

from bench.measuring import Effort, interleaved
from bench.peers.presence import present
from bench.peers.timers import Asyncio, BackgroundScheduler, TimerPeer, Uvloop

__all__ = ["everything"]

_OWN: Final = """
import json, sys, threading
from time import perf_counter
began = perf_counter()
import stube
imported = perf_counter()
registry = stube.create_registry(sys.argv[1])
created = perf_counter()
delivered = threading.Event()
registry.install_dispatch(lambda cid, event: delivered.set())
registry.schedule_event(cid="c", instance_id="main", delay_ms=0, event="first")
if stube.is_virtual(registry):
    registry.settle()
delivered.wait()
ended = perf_counter()
print(json.dumps([imported - began, created - imported, ended - created]))
"""
_PEER: Final = """
import importlib, json, sys
from time import perf_counter
began = perf_counter()
importlib.import_module(sys.argv[1])
print(json.dumps([perf_counter() - began]))
"""
_PEERS: Final[Sequence[tuple[type[TimerPeer], str]]] = (
    (Asyncio, "asyncio"),
    (Uvloop, "uvloop"),
    (BackgroundScheduler, "apscheduler.schedulers.background"),
)


def everything(backends: Sequence[str], effort: Effort) -> list[dict[str, object]]:
    """Return every entry of the key `start_up` of the results: milliseconds, without the interpreter's own start."""
    peers = [module for kind, module in _PEERS if present([kind])]
    bodies = {backend: partial(_times, _OWN, backend) for backend in backends}
    bodies |= {module: partial(_times, _PEER, module) for module in peers}
    figures = interleaved(max(1, round(20 * effort.scale)), bodies)
    found: list[dict[str, object]] = []
    for number, backend in enumerate(backends):
        imported, created, delivered = (statistics.median(times) * 1e3 for times in zip(*figures[backend], strict=True))
        if not number:
            found.append({"what": "import stube", "ms": imported})
        found.append({"what": f'create_registry("{backend}")', "ms": created})
        found.append({"what": f"its first delivery, {backend}", "ms": delivered})
    for module in peers:
        (imported,) = (statistics.median(times) * 1e3 for times in zip(*figures[module], strict=True))
        found.append({"what": f"import {module}", "ms": imported})
    return found


def _times(program: str, argument: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=True)
    times: list[float] = json.loads(done.stdout)
    return times
