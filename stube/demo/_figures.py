"""The figures of the self-check: a recorded history, counted to compare it with the registry's ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import stube
from stube.testing import History, Run

__all__ = ["Figures"]


class Figures:
    """What the history of a registry counts.

    Args:
        history: the calls and deliveries up to now.
        tick_ms: the step of the clocks; two ticks of one conversation must be due at least this far apart.
    """

    def __init__(self, history: History, *, tick_ms: float) -> None:
        scheduled = [call for call in history.calls if call.operation == "schedule_event" and not call.error]
        published = [call for call in history.calls if call.operation == "publish"]
        cancels = [call for call in history.calls if call.operation in ("cancel", "cancel_timers")]
        self.accepted = len(scheduled) + sum(call.result or 0 for call in published)
        self.cancelled = sum(call.result or 0 for call in cancels)
        self.handled = Counter(run.name for run in history.runs)
        """Calls of dispatch, by the name of the event."""
        # The contract counts a handler that raises ConversationEnded as delivered.
        self.failed = sum(run.error not in ("", stube.ConversationEnded.__name__) for run in history.runs)
        conversations: defaultdict[str, list[Run]] = defaultdict(list)
        for run in sorted(history.runs, key=lambda run: run.began_at):
            conversations[run.cid].append(run)
        self.early = sum(_early(runs, tick_ms * 1e6) for runs in conversations.values())
        self.most_inside = max(map(_most_inside, conversations.values()), default=0)
        """The largest number of deliveries of one conversation that ran at the same time."""


def _early(runs: list[Run], tick_ns: float) -> int:
    """Return how many ticks came too early: before they were due, or due less than a step after the one before."""
    ticks = [
        (run.clock, run.due) for run in runs if run.name == "tick" and run.clock is not None and run.due is not None
    ]
    begun_early = sum(clock < due for clock, due in ticks)
    return begun_early + sum(after - before < tick_ns for (_, before), (_, after) in pairwise(ticks))


def _most_inside(runs: list[Run]) -> int:
    ends = [(run.ended_at, -1) for run in runs if run.ended_at is not None]
    inside = most = 0
    for _, change in sorted([*((run.began_at, 1) for run in runs), *ends]):  # at one instant ends come first
        inside += change
        most = max(most, inside)
    return most
