"""Rings: doubly linked lists that run through the entries themselves, so that an entry leaves in O(1).

An entry stands in one ring at a time; its links are the attributes `before` and `after`. Code that interrupts a change
on its own thread may walk a ring forward: after every line here each entry still leads forward to the ring's head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Ring:
    """The head of a ring. An empty ring is its own neighbour."""

    __slots__ = ("after", "before")

    # Links are `Any`: the neighbour of the last entry is the head, which is of another class.
    before: Any
    after: Any

    def __init__(self) -> None:
        self.before = self
        self.after = self

    def is_empty(self) -> bool:
        """Say whether no entry stands in it."""
        return self.after is self

    def __iter__(self) -> Iterator[Any]:
        """Yield the entries from the first to the last. No entry may leave the ring before the next is asked for."""
        entry = self.after
        while entry is not self:
            yield entry
            entry = entry.after

    def append(self, entry: Any) -> None:
        """Put an entry last."""
        last = self.before
        entry.before = last
        entry.after = self
        last.after = entry
        self.before = entry

    def cut(self) -> None:
        """Forget the neighbours. A head that refers to itself would be freed by the garbage collector only."""
        del self.before, self.after

    def release_all(self) -> list[Any]:
        """Take out all entries, in their order."""
        entries = list(self)
        self.before = self.after = self
        for entry in entries:
            entry.after = None
            del entry.before
        return entries

    def _check(self) -> None:
        for entry in self:
            assert entry.after.before is entry, f"the ring is broken at {entry!r}"


def move_behind(place: Any, entry: Any) -> None:
    """Move an entry from its ring behind an entry of another one, or first behind the head of that.

    All forward links change in one statement, in which no signal handler runs (CPython runs them at calls and at
    backward jumps only), so that an asynchronous exception finds the entry in one of the two rings.
    """
    before, after, following = entry.before, entry.after, place.after
    before.after, entry.after, place.after = after, following, entry
    after.before, entry.before, following.before = before, place, entry


def unlink(entry: Any) -> None:
    """Take an entry out of its ring. That its `after` is None says so."""
    before, after = entry.before, entry.after
    before.after = after
    after.before = before
    entry.after = None
    del entry.before
