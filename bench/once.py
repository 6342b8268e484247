"""The part of pytest-benchmark's fixture that is used here, and its stand-in when nothing is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Benchmark", "Once"]


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that is used here."""

    group: str | None
    extra_info: dict[str, Any]

    def pedantic(
        self, target: Callable[..., object], *, setup: Callable[[], Any] | None, rounds: int, iterations: int
    ) -> object:
        """Call `target` with the arguments that `setup` returns, in each of `rounds` rounds."""
        ...


class Once:
    """The stand-in, which runs everything once and measures nothing."""

    group: str | None = None

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(
        self, target: Callable[..., object], *, setup: Callable[[], Any] | None, rounds: int, iterations: int
    ) -> object:
        arguments, keywords = (setup() if setup is not None else None) or ((), {})
        return target(*arguments, **keywords)
