"""The check of a registry's ledger that any test can make."""

from __future__ import annotations

import threading

from stube import Backend, Stats
from stube.testing._harness.clock import PATIENCE, monotonic

__all__ = ["check_ledger"]


def check_ledger(registry: Backend) -> Stats:
    """Assert that no figure is negative and that the equation holds as soon as nothing runs; return the ledger."""
    deadline = monotonic() + PATIENCE
    pause = threading.Event()
    latest, changed_at = None, 0.0
    while True:
        stats = registry.stats()
        negative = [name for name in Stats.__dataclass_fields__ if getattr(stats, name) < 0]
        assert not negative, f"{negative[0]} is negative: {stats}"
        if stats != latest:
            latest, changed_at = stats, monotonic()
        # Figures that are wrong and unchanged for a second while nothing runs will stay wrong.
        at_rest = stats.running == 0 and (stats.balanced or monotonic() > changed_at + 1)
        if at_rest or monotonic() > deadline:
            break
        pause.wait(0.001)  # there is no event for "the due batch is counted"; bounded by PATIENCE
    assert stats.running == 0, f"a delivery still runs: {stats}"
    assert stats.balanced, f"the ledger does not balance: {stats.equation}"
    return stats
