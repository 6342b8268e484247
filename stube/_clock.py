"""The default clock of every registry, imported before a test can replace the function in the `time` module."""

from time import monotonic_ns

__all__ = ["monotonic_ns"]
