"""The numbers of repetitions in the suite: in full, or quick with the option `--stube-quick`.

The quick suite leaves out no test. It injects at fewer lines and draws fewer programs and histories at random. It is
for the change at hand; only the full suite proves a backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final, NamedTuple

__all__ = ["FULL", "QUICK", "Effort"]


class Effort(NamedTuple):
    """The numbers that differ between the full and the quick suite."""

    stride: int
    """A sweep with several inner operations injects each of them at every `stride`-th line."""
    exact_programs: int
    """Random programs that are compared with the model at every instant."""
    settled_programs: int
    """Random programs that are compared with the model when they have settled."""
    histories: int
    """Recorded histories of random threads, for each kind."""
    stress_seconds: float
    """How long eight threads call every operation."""

    def lines(self, inner: int) -> Iterator[int]:
        """Number the lines at which a sweep injects the inner operation of this number.

        The first line differs from one inner operation to the next. So of `stride` inner operations in a row each line
        meets exactly one.
        """
        return count(inner % self.stride, self.stride)


FULL: Final = Effort(stride=1, exact_programs=250, settled_programs=100, histories=12, stress_seconds=1.2)
QUICK: Final = Effort(stride=4, exact_programs=100, settled_programs=50, histories=5, stress_seconds=0.5)
