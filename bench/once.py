"""What is used of pytest-benchmark's fixture, and what stands in for it where nothing is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Benchmark", "Once"]


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture."""

    group: str | None
    extra_info: dict[str, Any]

    def pedantic(
        self, target: Callable[..., object], *, setup: Callable[[], Any] | None, rounds: int, iterations: int
    ) -> object:
        """Call `target` with what `setup` returns, in each of so many rounds."""
        ...


class Once:
    """The same, unmeasured: everything runs once."""

    group: str | None = None

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(
        self, target: Callable[..., object], *, setup: Callable[[], Any] | None, rounds: int, iterations: int
    ) -> object:
        arguments, keywords = (setup() if setup is not None else None) or ((), {})
        return target(*arguments, **keywords)
