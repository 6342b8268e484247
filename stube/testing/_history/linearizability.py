"""Whether concurrent operations on one object can be put in an order in which each does what a single thread would see.

The search is Wing and Gong's (Testing and verifying concurrent objects, 1993) in the form that Lowe calls just-in-time
(Testing for linearizability, 2017): a return is the moment by which an operation must have had its place. What is kept
from one return to the next is the set of configurations, each a state and the open operations that have had their place
already; equal ones are one, which is Lowe's memoisation. So the search needs no more memory than the history has
concurrency, and the first return that no configuration survives is the end of the shortest prefix that no order
explains.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from stube.testing._history.records import Record

__all__ = ["Step", "Stuck", "Undecided", "linearize"]

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One operation: when it can have had its effect, and what that does to the object."""

    start: float
    end: float
    """Infinite when it never returned: then it may have had its effect, or not."""
    apply: Callable[[S], S | None]
    """The state after it; None where it cannot have gone as it is recorded."""
    record: Record
    reads: bool = False
    """Whether it never changes the state. Then its place is the first where it fits: later ones leave no more open."""


class Stuck(NamedTuple, Generic[S]):
    """The first operation that no order explains."""

    step: Step[S]
    states: frozenset[S]
    """What was possible when it began."""
    meanwhile: tuple[Step[S], ...]
    """The others that were under way between then and its return."""


class Undecided(Exception):  # noqa: N818 - a state that is met, not a mistake
    """The search was given up: the history has more configurations than it may look at."""


def linearize(steps: Sequence[Step[S]], initial: S, *, limit: int) -> Stuck[S] | None:
    """Search for an order; None when there is one.

    Args:
        steps: the operations on one object; the effect of each lies between its `start` and its `end`.
        initial: the state before them.
        limit: how many configurations may be looked at.

    Raises:
        Undecided: `limit` was passed.

    Time proportional to the steps, times 2 to the power of those that are under way at once at worst.
    """
    # At one instant what begins comes before what ends: records that touch are not ordered.
    instants = sorted(
        [(step.start, 0, number) for number, step in enumerate(steps)]
        + [(step.end, 1, number) for number, step in enumerate(steps) if step.end != float("inf")]
    )
    configurations: set[tuple[S, frozenset[int]]] = {(initial, frozenset())}
    before: dict[int, frozenset[S]] = {}
    under_way: set[int] = set()
    meanwhile: dict[int, set[int]] = {}
    reading: set[int] = set()  # those under way that only read
    looked_at = 0

    def with_reads(state: S, placed: frozenset[int]) -> tuple[S, frozenset[int]]:
        fitting = [one for one in reading if one not in placed and steps[one].apply(state) is not None]
        return (state, placed.union(fitting)) if fitting else (state, placed)

    for _, ends, number in instants:
        if not ends:
            before[number] = frozenset(state for state, _ in configurations)
            meanwhile[number] = set(under_way)
            for other in under_way:
                meanwhile[other].add(number)
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
            return Stuck(steps[number], before[number], tuple(steps[one] for one in sorted(meanwhile[number])))
        under_way.discard(number)
        reading.discard(number)
        del before[number], meanwhile[number]
    return None
