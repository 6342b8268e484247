"""The clocks that tests read, and the time for which they wait."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["PATIENCE", "monotonic", "monotonic_ns", "perf_counter_ns"]

PATIENCE: Final = 10.0
"""Seconds to wait for something that must happen. A machine under load needs less; only a failing test needs all.
What takes long because it is much, such as a hundred thousand deliveries, is waited for while less and less is
pending."""

# Taken at import, because tests replace attributes of the time module.
monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
perf_counter_ns = time.perf_counter_ns  # finer than the monotonic clock on some systems, and no less monotonic
