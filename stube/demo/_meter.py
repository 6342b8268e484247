"""Figures of the last minute for the charts: deliveries per second, and the lateness of the clocks' ticks.

Only deliveries to the application are counted. The host handles its own, an occasional sweep or grace timer, itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

SECONDS = 60
"""Number of past seconds that a meter remembers."""


class Meter:
    """Counts second by second. Every method is thread-safe.

    Args:
        clock: gives milliseconds on the clock of the registry's timers.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by the lock: for each second the number of deliveries that began, and the greatest lateness of a tick.
        # Second n lasts from n - 1 (exclusive) to n (inclusive), so that on a virtual clock, which often stops at a
        # whole second, the last second is complete.
        self._deliveries: dict[int, int] = {}
        self._lateness: dict[int, float] = {}

    def note(self, due: float | None) -> None:
        """Count a delivery that begins.

        Args:
            due: when it was due, in milliseconds on the clock; None if that is unknown.
        """
        now = self._clock()
        second = math.ceil(now / 1000)
        with self._lock:
            if second not in self._deliveries:
                for old in [known for known in self._deliveries if known < second - SECONDS]:
                    del self._deliveries[old]
                    self._lateness.pop(old, None)
            self._deliveries[second] = self._deliveries.get(second, 0) + 1
            if due is not None:
                self._lateness[second] = max(self._lateness.get(second, 0.0), now - due)

    def deliveries(self) -> list[int]:
        """Return the number of deliveries that began in each complete second, the latest second last."""
        with self._lock:
            return [self._deliveries.get(second, 0) for second in self._complete()]

    def lateness(self) -> list[float | None]:
        """Return the greatest lateness of a tick in each complete second, in milliseconds; None without a tick."""
        with self._lock:
            values = [self._lateness.get(second) for second in self._complete()]
        return [None if value is None else round(value, 3) for value in values]

    def _complete(self) -> range:
        last = math.floor(self._clock() / 1000)
        return range(last - SECONDS + 1, last + 1)
