"""The checker: it decides whether a history satisfies the guarantees about threads: G1, G2, G4, G5, G7, G8, G16, G18.

The checker is sound: it never accuses a correct registry, whatever the threads did. Two calls are in order only if the
first one returned before the second was made. The registry claims a delivery before the delivery enters dispatch, but
only the entry is recorded. A cancel that returns between the two is correctly too late. The time between claim and
entry is bounded, and only therefore G5 and G18 can be checked:

1. A claimed delivery runs, and of a conversation only one delivery runs at a time (G1). So it was claimed after the end
   of the delivery before it, and could not be claimed if it had been cancelled by then. It follows that at most one
   covered delivery of a conversation enters dispatch after a cancel has returned, that it is the first one to enter,
   and that there is none if a delivery was in dispatch when the cancel returned.
2. A timer is claimed when it is due, never before (G9). So it was claimed after every call at which the clock showed
   less.

First, rules look for faults that a few records show (`rules`). Then a search decides whether the calls and claims of
each conversation can be put in order at all (`sequential_specs`, `linearizability`), because G7 and G8 promise that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import override

from stube.testing._history.index import Index
from stube.testing._history.linearizability import Step, Stuck, Undecided, linearize
from stube.testing._history.records import Call, History, Record, Run, Violation, in_time
from stube.testing._history.rules import RULES, Finding, one_topic_order
from stube.testing._history.sequential_specs import Held, baton_steps, subscription_steps, timer_steps

__all__ = ["Verdict", "check_history"]

_MOST_SHOWN: Final = 12  # records in a finding of the search: those nearest to the record that no order explains
_MOST_STATES: Final = 3
_MOST_ORIGINS: Final = 4
_MOST_BEFORE: Final = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check. Its `str` tells every violation."""

    violations: tuple[Violation, ...] = ()
    """One of each kind, the one that the fewest records show; by the guarantee's number."""
    undecided: tuple[str, ...] = ()
    """What the search gave up, such as `the timers of conversation 'c1'`. No fault is known there."""

    @property
    def holds(self) -> bool:
        """True when no violation was found and everything was decided."""
        return not self.violations and not self.undecided

    def assert_holds(self) -> None:
        """Raise `AssertionError` with the violations, if there are any. An undecided search does not raise."""
        if self.violations:
            raise AssertionError(str(self))

    @override
    def __str__(self) -> str:
        undecided = [f"Undecided, because the search took too long: {what}." for what in self.undecided]
        return "\n".join([*map(str, self.violations), *undecided]) or "Every guarantee holds."


def check_history(
    history: History,
    *,
    common_topic_order: bool = False,
    one_instant_snapshot: bool = False,
    skew_ns: int = 0,
    clock_error_ns: int = 0,
    limit: int = 1_000,
) -> Verdict:
    """Decide whether a history satisfies G1, G2, G4, G5, G7, G8, G16 and G18.

    Args:
        history: everything that happened to one registry since it was made.
        common_topic_order: whether the backend promises this capability.
        one_instant_snapshot: whether it promises this one; otherwise each subscription in a snapshot may be of another
            instant.
        skew_ns: nanoseconds by which the clocks of two recorders may differ. Intervals are widened by it. With a larger
            value the checker overlooks more, but never accuses falsely.
        clock_error_ns: nanoseconds by which the recorded clock may differ from the registry's own clock, between any
            two readings. 0 where the registry reads the recorded clock itself.
        limit: how many configurations the search tries for each record, on average, before it gives up.

    Returns:
        The verdict. A registry may break a guarantee without a trace in this history, so no history proves that a
        guarantee holds.

    Raises:
        ValueError: two timers or messages have one id.

    May be called from any thread. Takes time about proportional to the records; in the worst case times 2 to the power
    of the number of calls that are under way at the same time.

    Sources: Wing and Gong, Testing and verifying concurrent objects (1993); Lowe, Testing for linearizability (2017).
    """
    index = Index(history, skew=skew_ns, clock_error=clock_error_ns)
    rules = (*RULES, one_topic_order) if common_topic_order else RULES
    shortest: dict[tuple[object, str], Finding] = {}
    # Where two deliveries ran at the same time, nothing is known about the claims.
    accused = {(what, cid) for cid in index.overlapping for what in ("timers", "subscriptions")}
    undecided: list[str] = []

    def found(kind: object, finding: Finding) -> None:
        if finding.cid is not None:
            accused.add((finding.searched, finding.cid))
        best = shortest.get((kind, finding.guarantee))
        if best is None or len(finding.evidence) < len(best.evidence):
            shortest[kind, finding.guarantee] = finding

    for rule in rules:
        for finding in rule(index):
            found(rule, finding)
    objects = _Objects(index, whole_snapshots=one_instant_snapshot)
    for cid in objects.cids:
        for what, steps, initial in objects.of(cid):
            if (what, cid) in accused:
                continue
            try:
                stuck = linearize(steps, initial, limit=limit * len(steps))
            except Undecided:
                undecided.append(f"the {what} of conversation {cid!r}")
                continue
            if stuck is not None:
                found(what, _finding_of(index, what, cid, steps, stuck))
    violations = [
        Violation(one.guarantee, one.summary, in_time(one.evidence), index.begins_at) for one in shortest.values()
    ]
    violations.sort(key=lambda one: (int(one.guarantee[1:]), len(one.evidence)))
    return Verdict(tuple(violations), tuple(undecided))


class _Objects:
    """The baton, the timers and the subscriptions of each conversation, as steps for the search."""

    def __init__(self, index: Index, *, whole_snapshots: bool) -> None:
        self._index = index
        self._whole_snapshots = whole_snapshots
        self._by_cid: dict[str, list[Call]] = {
            call.arguments["cid"]: [] for call in index.calls if "cid" in call.arguments
        }
        everywhere: list[Call] = []
        for call in index.calls:
            cid = call.arguments.get("cid")
            if call.operation == "cancel":
                timer = index.timers.get(call.arguments["id"])
                cid = timer and timer.call.arguments["cid"]
            if cid is not None:
                self._by_cid[cid].append(call)
            elif call.operation in ("publish", "reset_state", "subscriptions"):
                everywhere.append(call)
        self._everywhere = everywhere
        self.cids = list(self._by_cid)

    def of(self, cid: str) -> Iterator[tuple[str, list[Step[Any]], Any]]:
        """Yield the objects of the conversation: the name of each, the steps on it, and the state before them."""
        calls = [*self._by_cid[cid], *self._everywhere]
        baton = _calls_of(calls, "put_pending_flow", "pending_flow", "forget_pending_flow", "reset_state")
        yield "baton", baton_steps(baton, cid, self._index.history.remainder, self._index.skew), ()
        yield "timers", self._timers(cid, calls), frozenset()
        yield "subscriptions", self._subscriptions(cid, calls), frozenset()

    def _timers(self, cid: str, calls: list[Call]) -> list[Step[Any]]:
        index, remainder = self._index, self._index.history.remainder
        mine = _calls_of(calls, "schedule_event", "cancel", "cancel_timers", "reset_state")
        instances = {
            call.arguments["id"]: call.arguments["instance_id"] for call in mine if call.operation == "schedule_event"
        }
        claims = [one.claim for one in index.deliveries.get(cid, ()) if one.item.id in index.timers]
        kept = {claim.run.id for claim in claims}.union(() if remainder is None else remainder.timers)
        gone = {
            timer: next((call for call in index.cancels.get(timer, ()) if call.result), None)
            for timer in instances
            if timer not in kept
        }
        return timer_steps(mine, claims, instances, gone, remainder, index.skew)

    def _subscriptions(self, cid: str, calls: list[Call]) -> list[Step[Any]]:
        index = self._index
        topics = {call.arguments["topic"] for call in calls if call.operation == "subscribe"}
        claims = [one.claim for one in index.deliveries.get(cid, ()) if one.item.id in index.messages]
        delivered: dict[str, set[str]] = {}
        for claim in claims:
            delivered.setdefault(claim.run.id, set()).add(claim.run.instance_id)
        names = ("subscribe", "unsubscribe", "remove_subscriptions_for_cid", "publish", "subscriptions", "reset_state")
        return subscription_steps(
            [
                call
                for call in _calls_of(calls, *names)
                if call.operation != "publish" or call.arguments["topic"] in topics
            ],
            claims,
            cid,
            {message: item.call.arguments["topic"] for message, item in index.messages.items()},
            delivered,
            index.history.remainder,
            index.skew,
            whole_snapshots=self._whole_snapshots,
        )


def _calls_of(calls: list[Call], *operations: str) -> list[Call]:
    return [call for call in calls if call.operation in operations]


def _finding_of(index: Index, what: str, cid: str, steps: list[Step[Any]], stuck: Stuck[Any]) -> Finding:
    """Describe what the search found: the record, the states before it, and the calls that were under way."""
    record = stuck.step.record
    shown, more = list(stuck.states)[:_MOST_STATES], max(0, len(stuck.states) - _MOST_STATES)
    states = " or ".join(sorted(map(_DESCRIPTIONS[what], shown))) + (f" or {more} more" if more else "")
    concurrent = sorted(stuck.concurrent, key=lambda step: abs(step.end - stuck.step.end))[: _MOST_SHOWN - 2]
    raced = any(step.record is not record for step in concurrent)
    if what == "baton":
        number = "G8"
    elif what == "timers" and not raced:
        number = "G5"
    elif what == "subscriptions" and isinstance(record, Call) and record.operation == "publish" and not raced:
        number = "G16"
    else:
        number = "G7"
    summary = (
        f"no order of the calls explains this record of the {what} of conversation {cid!r}: {record}. Before: {states}."
    )
    before = sorted(
        (step for step in steps if step.end < stuck.step.start and _removes(step.record)), key=lambda one: one.end
    )
    steps_shown = [*before[-_MOST_BEFORE:], *concurrent, stuck.step]
    origins = _origins(index, what, cid, record, shown)
    return Finding(number, summary, (*origins, *(step.record for step in steps_shown)), cid, what)


def _removes(record: Record) -> bool:
    """Tell whether the record removed something."""
    if not isinstance(record, Call):
        return isinstance(record, Run)
    adds = record.operation in ("schedule_event", "subscribe", "publish", "put_pending_flow", "subscriptions")
    return not adds and (record.operation == "reset_state" or bool(record.result))


def _origins(index: Index, what: str, cid: str, record: Record, states: list[Any]) -> list[Record]:
    """Find the calls that made what the record is about and what the states hold; the latest few."""
    wanted: set[object] = {one for state in states for one in state}
    if isinstance(record, Run):
        wanted.add(record.id)
    elif isinstance(record, Call):
        wanted.update((record.arguments.get("id"), record.result if what == "baton" else None))
    made: list[Record] = []
    for call in index.calls:
        given = call.arguments
        match call.operation:
            case "put_pending_flow":
                found = what == "baton" and given["cid"] == cid and given["flow_id"] in wanted
            case "schedule_event":
                found = what == "timers" and given["cid"] == cid and given["id"] in wanted
            case "publish":
                found = what == "subscriptions" and given["id"] in wanted
            case "subscribe":
                place = Held(given["instance_id"], given["topic"])
                found = what == "subscriptions" and given["cid"] == cid and place in wanted
            case _:
                found = False
        if found and call.called_at <= _began(record):
            made.append(call)
    return made[-_MOST_ORIGINS:]


def _began(record: Record) -> int:
    return record.called_at if isinstance(record, Call) else record.began_at if isinstance(record, Run) else record.at


def _timers_told(state: frozenset[str]) -> str:
    return f"pending {', '.join(sorted(state))}" if state else "no timer"


def _subscriptions_told(state: frozenset[Held]) -> str:
    places = sorted(f"{one.instance_id} to {one.topic}" for one in state if one.message is None)
    queued = sorted(f"{one.message} for {one.instance_id}" for one in state if one.message)
    lost = sorted(f"something for {one.instance_id} that it never gets" for one in state if one.message == "")
    told = f"subscribed {', '.join(places)}" if places else "no subscription"
    return told + "".join(f", queued {one}" for one in (*queued, *lost))


def _baton_told(state: tuple[Any, ...]) -> str:
    return f"baton {state[0]!r}" if state else "no baton"


_DESCRIPTIONS: Final[dict[str, Callable[[Any], str]]] = {
    "baton": _baton_told,
    "timers": _timers_told,
    "subscriptions": _subscriptions_told,
}
