"""The local registries of this process: each starts anew in a forked child, and is closed when the program ends."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Final, Protocol

from stube import monotonic_ns

_EXIT_PATIENCE: Final = 0.5  # seconds that a program which just ends waits for running deliveries (G24)


class LiveRegistry(Protocol):
    """What this module needs of a registry."""

    def start_anew(self) -> None:
        """In a forked child: become an empty registry with the same options and the same dispatch (G25)."""
        ...

    def close_at_exit(self, timeout: float) -> None:
        """When the program ends: stop delivering, and wait so many seconds at most for a delivery that runs (G24)."""
        ...


# A plain set, because copying it is one step: a WeakSet cannot be iterated while another thread adds to it.
_registries: set[weakref.ref[LiveRegistry]] = set()


def register(registry: LiveRegistry) -> None:
    """Add a registry, which is removed when it is collected."""
    _registries.add(weakref.ref(registry, _registries.discard))


def live_registries() -> list[LiveRegistry]:
    """Return the registries of this process that have not been collected."""
    return [registry for reference in list(_registries) if (registry := reference()) is not None]


def _start_all_anew() -> None:
    for registry in live_registries():
        registry.start_anew()


def _close_all() -> None:
    """Close every registry, and wait a moment for deliveries that run."""
    deadline = monotonic_ns() + int(_EXIT_PATIENCE * 1e9)
    registries = live_registries()
    for registry in registries:
        registry.close_at_exit(0)
    for registry in registries:
        registry.close_at_exit(max(0.0, (deadline - monotonic_ns()) / 1e9))


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
