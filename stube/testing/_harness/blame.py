"""The guarantee that a failed check has found broken, where a test proves more than one.

A test carries the numbers of all guarantees that it proves. When it fails, all of them count as broken, unless the
check knows better: a recorded history whose checker found a lost baton says nothing against the order of timers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["blame", "blamed_by", "blaming"]

_ATTRIBUTE: Final = "__stube_guarantees__"


def blame(error: BaseException, guarantees: Iterable[str]) -> BaseException:
    """Let an error say which guarantees it has found broken, and return it. What it said before stays."""
    if not hasattr(error, _ATTRIBUTE):
        setattr(error, _ATTRIBUTE, tuple(dict.fromkeys(guarantees)))
    return error


@contextmanager
def blaming(*guarantees: str) -> Iterator[None]:
    """Let whatever fails in the block blame these guarantees instead of all those of its test."""
    try:
        yield
    except Exception as exc:
        blame(exc, guarantees)
        raise


def blamed_by(error: BaseException) -> tuple[str, ...] | None:
    """Return what an error says to be broken; None if it leaves that to the test."""
    found: tuple[str, ...] | None = getattr(error, _ATTRIBUTE, None)
    return found
