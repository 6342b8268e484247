"""Rings: entries come, go and move in O(1), and whoever interrupts that on its own thread can still walk forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typing_extensions import override

from stube.testing._harness import Injector, tracing
from stube_backends.engine._rings import Ring, insert_after, move_last_to_front, unlink


class Entry:
    """What stands in a ring."""

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


def test_entries_stand_in_the_order_in_which_they_were_appended() -> None:
    """Fault: an entry is put first, or a neighbour is not linked."""
    ring, entries = ring_of("abc")
    assert names(ring) == "abc"
    assert (ring.after, ring.before) == (entries[0], entries[2])


def test_an_entry_is_inserted_behind_a_place() -> None:
    """Fault: it stands before the place, or the last entry is not known to the head."""
    ring, entries = ring_of("abc")
    for place, name in ((ring, "x"), (entries[1], "y"), (entries[2], "z")):
        insert_after(place, Entry(name))
    assert names(ring) == "xabycz"
    assert ring.before.name == "z"


@pytest.mark.parametrize(("index", "left"), [(0, "bc"), (1, "ac"), (2, "ab")])
def test_an_unlinked_entry_is_in_no_ring(index: int, left: str) -> None:
    """Fault: it keeps a neighbour alive, or a neighbour still knows it (G13)."""
    ring, entries = ring_of("abc")
    unlink(entries[index])
    assert names(ring) == left
    assert entries[index].after is None  # type: ignore[attr-defined]
    assert not hasattr(entries[index], "before")


def test_the_last_entry_moves_to_the_front_of_another_ring() -> None:
    """Fault: it stands in both rings, or behind those that are there."""
    source, _ = ring_of("abc")
    target, _ = ring_of("xy")
    move_last_to_front(source, target)
    assert (names(source), names(target)) == ("ab", "cxy")
    empty = Ring()
    move_last_to_front(source, empty)
    move_last_to_front(source, empty)
    assert (names(source), names(empty)) == ("", "ab")


def test_a_released_ring_is_empty_and_its_entries_are_not_linked() -> None:
    """Fault: an entry stays linked to another one (G13)."""
    ring, entries = ring_of("abc")
    assert ring.release_all() == entries
    assert names(ring) == ""
    for entry in entries:
        assert entry.after is None  # type: ignore[attr-defined]
        assert not hasattr(entry, "before")


def test_a_broken_ring_is_noticed() -> None:
    """Fault: `_check` looks at nothing."""
    ring, entries = ring_of("abc")
    entries[1].before = ring  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="broken at a"):
        ring._check()


CHANGES: dict[str, tuple[Callable[[Ring, list[Entry], Ring], None], set[str]]] = {
    "append": (lambda ring, entries, other: ring.append(Entry("d")), {"abc+xy", "abcd+xy"}),
    "insert": (lambda ring, entries, other: insert_after(entries[0], Entry("d")), {"abc+xy", "adbc+xy"}),
    "unlink": (lambda ring, entries, other: unlink(entries[1]), {"abc+xy", "ac+xy"}),
    "move": (lambda ring, entries, other: move_last_to_front(ring, other), {"abc+xy", "ab+cxy"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_ring_can_be_walked_forward_at_every_line_of_a_change(name: str) -> None:
    """Fault: code that interrupts a change meets an entry without a next one, or one that is in no ring (G20)."""
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
