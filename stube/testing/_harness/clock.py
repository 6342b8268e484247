"""The clocks that tests read, and the time for which they wait."""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["PATIENCE", "monotonic", "monotonic_ns", "perf_counter_ns"]

PATIENCE: Final = float(os.environ.get("STUBE_TEST_PATIENCE", "10"))
"""Seconds to wait for something that must happen. A machine under load needs less than ten; only a failing test needs
all. Who runs tests that are meant to fail may set the variable, so that they fail sooner. What takes long because it is
much, such as a hundred thousand deliveries, is waited for while less and less is pending."""

# Taken at import, because tests replace attributes of the time module.
monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
perf_counter_ns = time.perf_counter_ns  # finer than the monotonic clock on some systems, and no less monotonic
