"""The self-check's own count of a registry's work, taken outside the registry, to compare with its ledger."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import stube


class CountingRegistry:
    """A wrapper that counts what a registry accepts, cancels and delivers, and forwards everything else.

    Args:
        registry: the registry to watch.
        tick_ms: the step of the clocks; two ticks of one conversation must be at least this far apart.
    """

    def __init__(self, registry: stube.Backend, *, tick_ms: float) -> None:
        self._registry = registry
        self._tick_ns = int(tick_ms * 1e6)
        # Guards everything below; a registry may deliver on several threads.
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._last_tick: dict[str, int] = {}
        self.accepted = 0
        self.cancelled = 0
        self.scheduled: Counter[str] = Counter()
        """Timers, by the name of the event."""
        self.handled: Counter[str] = Counter()
        """Calls of dispatch, by the name of the event."""
        self.failed = 0
        self.early = 0
        self.most_inside = 0
        """The largest number of deliveries of one conversation that ran at the same time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def install_dispatch(self, dispatch: stube.Dispatch, /) -> None:
        def counting(cid: str, event: stube.Event) -> None:
            with self._counted(cid, event):
                dispatch(cid, event)

        async def counting_awaiting(cid: str, event: stube.Event) -> None:
            with self._counted(cid, event):
                await cast("Callable[[str, stube.Event], Awaitable[None]]", dispatch)(cid, event)

        if stube.is_coroutine_function(dispatch):
            cast("stube.AsyncBackend", self._registry).install_dispatch(counting_awaiting)
        else:
            self._registry.install_dispatch(counting)

    @contextmanager
    def _counted(self, cid: str, event: stube.Event) -> Iterator[None]:
        self._enter(cid, event)
        try:
            yield
        except stube.ConversationEnded:
            raise  # the contract counts it as delivered
        except BaseException:
            with self._lock:
                self.failed += 1
            raise
        finally:
            with self._lock:
                self._inside[cid] -= 1

    def schedule_event(
        self, *, cid: str, instance_id: str, delay_ms: float, event: stube.EventSpec
    ) -> stube.TimerHandle:
        handle = self._registry.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        with self._lock:
            self.accepted += 1
            self.scheduled[event if isinstance(event, str) else event[0]] += 1
        return _CountingHandle(handle, self)

    def publish(self, topic: str, msg: Any, /) -> int:
        targets = self._registry.publish(topic, msg)
        self._add(accepted=targets)
        return targets

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        cancelled = self._registry.cancel_timers(cid, instance_id=instance_id)
        self._add(cancelled=cancelled)
        return cancelled

    def _enter(self, cid: str, event: stube.Event) -> None:
        now = time.monotonic_ns()
        with self._lock:
            self.handled[event.name] += 1
            self._inside[cid] += 1
            self.most_inside = max(self.most_inside, self._inside[cid])
            if event.name == "tick":
                # The handler of each tick schedules the next one, so the next one's delay began after this entry.
                self.early += now - self._last_tick.get(cid, now - self._tick_ns) < self._tick_ns
                self._last_tick[cid] = now

    def _add(self, *, accepted: int = 0, cancelled: int = 0) -> None:
        with self._lock:
            self.accepted += accepted
            self.cancelled += cancelled


class _CountingHandle:
    def __init__(self, handle: stube.TimerHandle, registry: CountingRegistry) -> None:
        self._handle = handle
        self._registry = registry

    def cancel(self) -> bool:
        prevented = self._handle.cancel()
        self._registry._add(cancelled=int(prevented))
        return prevented
