"""Calls that the tests of several backends share."""

from __future__ import annotations

from typing import Any

from stube import Backend, TimerHandle


def tick(registry: Backend, delay_ms: float = 0, event: Any = "tick", cid: str = "c1") -> TimerHandle:
    """Schedule a timer of the instance `main`."""
    return registry.schedule_event(cid=cid, instance_id="main", delay_ms=delay_ms, event=event)
