"""A search for an order of concurrent operations in which each one does what a single thread would see.

The search is Wing and Gong's (Testing and verifying concurrent objects, 1993) in the form that Lowe calls just-in-time
(Testing for linearizability, 2017): an operation must have its place in the order before its return. From one return
to the next the search keeps the set of configurations. A configuration is a state and the open operations that already
have their place; equal configurations are merged, which is Lowe's memoisation. So the search needs memory only for the
operations that run at the same time. If no configuration survives a return, no order explains the history up to there,
and that is the shortest such prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from stube.testing._history.records import Record

__all__ = ["Step", "Stuck", "Undecided", "linearize"]

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One operation: when it can have had its effect, and the effect on the object."""

    start: float
    end: float
    """Infinite if it never returned: then it may have had its effect, or not."""
    apply: Callable[[S], S | None]
    """Returns the state after it; None if the recorded operation is impossible in the state."""
    record: Record
    reads: bool = False
    """True if it never changes the state. Then its place is the first that fits, because a later one gains nothing."""


class Stuck(NamedTuple, Generic[S]):
    """The first operation that no order explains."""

    step: Step[S]
    states: frozenset[S]
    """The states that were possible when it began."""
    concurrent: tuple[Step[S], ...]
    """The other operations that were under way between its begin and its return."""


class Undecided(Exception):  # noqa: N818 - a state that is met, not a mistake
    """The search gave up, because the history has more configurations than it may try."""


def linearize(steps: Sequence[Step[S]], initial: S, *, limit: int) -> Stuck[S] | None:
    """Search for an order. Return None if there is one, otherwise the first operation that no order explains.

    Args:
        steps: the operations on one object; the effect of each lies between its `start` and its `end`.
        initial: the state before them.
        limit: how many configurations may be tried.

    Raises:
        Undecided: `limit` was passed.

    Takes time proportional to the steps; in the worst case times 2 to the power of those under way at the same time.
    """
    # At one instant, begins come before ends, because records that touch are not ordered.
    instants = sorted(
        [(step.start, 0, number) for number, step in enumerate(steps)]
        + [(step.end, 1, number) for number, step in enumerate(steps) if step.end != float("inf")]
    )
    configurations: set[tuple[S, frozenset[int]]] = {(initial, frozenset())}
    before: dict[int, frozenset[S]] = {}
    under_way: set[int] = set()
    concurrent: dict[int, set[int]] = {}
    reading: set[int] = set()  # those under way that only read
    looked_at = 0

    def with_reads(state: S, placed: frozenset[int]) -> tuple[S, frozenset[int]]:
        fitting = [one for one in reading if one not in placed and steps[one].apply(state) is not None]
        return (state, placed.union(fitting)) if fitting else (state, placed)

    for _, ends, number in instants:
        if not ends:
            before[number] = frozenset(state for state, _ in configurations)
            concurrent[number] = set(under_way)
            for other in under_way:
                concurrent[other].add(number)
            under_way.add(number)
            if steps[number].reads:
                reading.add(number)
                configurations = {with_reads(*one) for one in configurations}
            continue
        seen = set(configurations)
        waiting = list(configurations)
        configurations = set()
        while waiting:
            state, placed = waiting.pop()
            if number in placed:
                configurations.add((state, placed - {number}))
                continue
            for candidate in under_way - reading - placed:
                following = steps[candidate].apply(state)
                if following is not None:
                    configuration = with_reads(following, placed | {candidate})
                    if configuration not in seen:
                        seen.add(configuration)
                        waiting.append(configuration)
        looked_at += len(seen)
        if looked_at > limit:
            raise Undecided
        if not configurations:
            return Stuck(steps[number], before[number], tuple(steps[one] for one in sorted(concurrent[number])))
        under_way.discard(number)
        reading.discard(number)
        del before[number], concurrent[number]
    return None
