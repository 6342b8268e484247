"""How many deliveries begin in a second and how late the clocks' ticks are: a minute of it, for the charts.

The deliveries that come to the application: the host keeps its own to itself, a sweep or a grace timer now and then.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

SECONDS = 60
"""How many seconds back a meter remembers."""


class Meter:
    """Counts second by second. Any thread may call anything.

    Args:
        clock: gives milliseconds on the clock of the registry's timers.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by the lock: by second, how many deliveries began and how late the latest tick was. Second n is what
        # came after n - 1 and up to n, so that on a clock which stands on whole seconds the last one is complete.
        self._deliveries: dict[int, int] = {}
        self._lateness: dict[int, float] = {}

    def note(self, due: float | None) -> None:
        """A delivery begins.

        Args:
            due: when it was due, in milliseconds on the clock; None when nobody knows.
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
        """How many deliveries began in each complete second, the latest last."""
        with self._lock:
            return [self._deliveries.get(second, 0) for second in self._complete()]

    def lateness(self) -> list[float | None]:
        """By how many milliseconds the latest tick of each complete second was late; None when there was none."""
        with self._lock:
            values = [self._lateness.get(second) for second in self._complete()]
        return [None if value is None else round(value, 3) for value in values]

    def _complete(self) -> range:
        last = math.floor(self._clock() / 1000)
        return range(last - SECONDS + 1, last + 1)
