"""The suite's fixtures, for a run that collects its files: `pytest --pyargs stube.testing.suite`."""

from __future__ import annotations

from stube.testing.suite._fixtures import make_run, run

__all__ = ["make_run", "run"]
