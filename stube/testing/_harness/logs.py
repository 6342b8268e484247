"""The log of the library, silenced where failing handlers are part of a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["failures_unlogged"]


@contextmanager
def failures_unlogged() -> Iterator[None]:
    """Keep the failures of handlers, where they are part of a random program, out of the log."""
    logger = logging.getLogger("stube")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
