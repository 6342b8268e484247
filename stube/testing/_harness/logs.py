"""The log of the library, silenced while failing handlers are part of a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["failures_unlogged"]


@contextmanager
def failures_unlogged() -> Iterator[None]:
    """Keep the failures of handlers out of the log during the block."""
    logger = logging.getLogger("stube")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
