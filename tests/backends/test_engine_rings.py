"""Rings: entries are added, removed and moved in O(1).

Code that interrupts a change on the same thread, such as a finalizer, can still iterate from the head to the end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typing_extensions import override

from stube.testing._harness import Injector, tracing
from stube_backends.engine._rings import Ring, move_behind, unlink


class Entry:
    """An entry of a ring."""

    def __init__(self, name: str) -> None:
        self.name = name

    @override
    def __repr__(self) -> str:
        return self.name


def ring_of(names: str) -> tuple[Ring, list[Entry]]:
    ring, entries = Ring(), [Entry(name) for name in names]
    for entry in entries:
        ring.append(entry)
    ring._check()
    return ring, entries


def names(ring: Ring) -> str:
    ring._check()
    return "".join(map(repr, ring))


def test_entries_are_in_the_order_in_which_they_were_appended() -> None:
    """Fault: `append` puts an entry first, or does not link it to a neighbour."""
    ring, entries = ring_of("abc")
    assert names(ring) == "abc"
    assert (ring.after, ring.before) == (entries[0], entries[2])


@pytest.mark.parametrize(("index", "left"), [(0, "bc"), (1, "ac"), (2, "ab")])
def test_an_unlinked_entry_and_its_ring_do_not_refer_to_each_other(index: int, left: str) -> None:
    """Fault: the entry keeps a neighbour alive, or a neighbour still refers to the entry (G13)."""
    ring, entries = ring_of("abc")
    unlink(entries[index])
    assert names(ring) == left
    assert entries[index].after is None  # type: ignore[attr-defined]
    assert not hasattr(entries[index], "before")


def test_an_entry_moves_behind_one_of_another_ring() -> None:
    """Fault: the entry is in both rings, or the head does not know the new last entry."""
    source, entries = ring_of("abcd")
    target, others = ring_of("xy")
    for place, entry, left, right in (
        (target, entries[3], "abc", "dxy"),
        (others[0], entries[0], "bc", "dxay"),
        (others[1], entries[2], "b", "dxayc"),
        (target, entries[1], "", "bdxayc"),
    ):
        move_behind(place, entry)
        assert (names(source), names(target)) == (left, right)
        source._check()
        target._check()
    assert (target.before, source.before) == (entries[2], source)


def test_a_released_ring_is_empty_and_its_entries_are_not_linked() -> None:
    """Fault: an entry stays linked to another one (G13)."""
    ring, entries = ring_of("abc")
    assert ring.release_all() == entries
    assert names(ring) == ""
    for entry in entries:
        assert entry.after is None  # type: ignore[attr-defined]
        assert not hasattr(entry, "before")


def test_check_finds_a_wrongly_linked_ring() -> None:
    """Fault: `_check` does not compare the links in both directions."""
    ring, entries = ring_of("abc")
    entries[1].before = ring  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="broken at a"):
        ring._check()


CHANGES: dict[str, tuple[Callable[[Ring, list[Entry], Ring], None], set[str]]] = {
    "append": (lambda ring, entries, other: ring.append(Entry("d")), {"abc+xy", "abcd+xy"}),
    "unlink": (lambda ring, entries, other: unlink(entries[1]), {"abc+xy", "ac+xy"}),
    "move": (lambda ring, entries, other: move_behind(other, entries[1]), {"abc+xy", "ac+bxy"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_ring_can_be_iterated_at_every_line_of_a_change(name: str) -> None:
    """Fault: code that interrupts a change finds an entry without a next one, or one that is in no ring (G20)."""
    change, legal = CHANGES[name]
    seen: set[str] = set()
    for at in range(20):
        ring, entries = ring_of("abc")
        other, _ = ring_of("xy")

        def look(ring: Ring = ring, other: Ring = other) -> None:
            seen.add("".join(map(repr, ring)) + "+" + "".join(map(repr, other)))

        with tracing(Injector(at, look)):
            change(ring, entries, other)
        look()
    assert seen == legal
