"""The sequential specifications of a conversation's baton, timers and subscriptions, each as steps on a small state.

`linearize` searches for an order of the records of many threads in which a single thread would see the same. A reset is
a step on each of the three objects, and so is what was left in the end. A delivery is a step as well: the claim, after
which no cancel finds the delivery.

It is known beforehand whether a timer or a message was delivered, or left in the end. A step that would remove it is
refused immediately; otherwise the search would find the contradiction much later and try every choice in between again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from stube.testing._history.linearizability import Step
from stube.testing._history.records import Call, Remainder, Run

__all__ = ["NEVER", "Claim", "Held", "baton_steps", "covers", "subscription_steps", "timer_steps"]

NEVER: Final = float("inf")


class Claim(NamedTuple):
    """The interval in which the registry must have claimed a delivery."""

    start: float
    end: float
    run: Run


class Held(NamedTuple):
    """One thing that the subscriptions of a conversation hold: a place in a topic, or a message queued for it."""

    instance_id: str
    topic: str
    message: str | None = None
    """None for the place. The empty string stands for all messages that were never delivered, because no record shows
    how many there were."""


def covers(call: Call, cid: str, instance_id: str, *, timer: str | None = None, topic: str | None = None) -> bool:
    """Tell whether an operation, if it finds them, removes this timer, or this subscription and its queued messages."""
    given = call.arguments
    match call.operation:
        case "reset_state":
            return True
        case "cancel":
            return timer is not None and given["id"] == timer
        case "cancel_timers":
            return timer is not None and given["cid"] == cid and given.get("instance_id") in (None, instance_id)
        case "unsubscribe":
            mine = topic is not None and (given["cid"], given["instance_id"]) == (cid, instance_id)
            return mine and given.get("topic") in (None, topic)
        case "remove_subscriptions_for_cid":
            return topic is not None and given["cid"] == cid
    return False


def _step(call: Call, skew: int, apply: Callable[[Any], Any]) -> Step[Any]:
    end = NEVER if call.returned_at is None else call.returned_at + skew
    return Step(call.called_at, end, apply, call, reads=call.returned_at is not None and _changes_nothing(call))


def _changes_nothing(call: Call) -> bool:
    """Tell whether the call only read, or says that it found nothing. A baton that is `False` or 0 is something."""
    match call.operation:
        case "put_pending_flow" | "schedule_event" | "subscribe" | "reset_state":
            return False
        case "subscriptions":
            return True
        case "pending_flow":
            return call.result is None
    return not call.result


def _last(steps: Iterable[Step[Any]], remainder: Remainder, apply: Callable[[Any], Any]) -> Step[Any]:
    """Make the step that shows what was left: it comes after every begin and every known end of the others."""
    at = max((one for step in steps for one in (step.start, step.end) if one != NEVER), default=remainder.at) + 1
    return Step(at, at, apply, remainder)


def baton_steps(calls: Iterable[Call], cid: str, remainder: Remainder | None, skew: int) -> list[Step[Any]]:
    """Return the steps on a baton. The state is a tuple of the baton that waits, or an empty tuple."""

    def effect(call: Call) -> Callable[[tuple[Any, ...]], tuple[Any, ...] | None]:
        unknown = call.returned_at is None
        match call.operation:
            case "put_pending_flow":
                return lambda state: (call.arguments["flow_id"],)
            case "pending_flow":
                taken = () if call.result is None else (call.result,)
                return lambda state: () if unknown or state == taken else None
            case "forget_pending_flow":
                return lambda state: () if unknown or bool(state) == call.result else None
        return lambda state: ()

    steps = [_step(call, skew, effect(call)) for call in calls]
    if remainder is not None:
        waits = cid in remainder.flows
        steps.append(_last(steps, remainder, lambda state: state if bool(state) == waits else None))
    return steps


def timer_steps(
    calls: Iterable[Call],
    claims: Iterable[Claim],
    instances: Mapping[str, str],
    gone: Mapping[str, Call | None],
    remainder: Remainder | None,
    skew: int,
) -> list[Step[Any]]:
    """Return the steps on the timers of a conversation. The state is the set of the ids that are pending.

    Args:
        calls: the operations that concern them.
        claims: their deliveries.
        instances: the instance of each.
        gone: those that were neither delivered nor left in the end; with the `cancel` that claims to have cancelled the
            timer, if there is one.
        remainder: what was left.
        skew: nanoseconds by which a step may have ended later than is recorded.
    """

    def may_go(timers: Iterable[str], call: Call) -> bool:
        return all(one in gone and (gone[one] is None or gone[one] is call) for one in timers)

    def effect(call: Call) -> Callable[[frozenset[str]], frozenset[str] | None]:
        unknown = call.returned_at is None
        match call.operation:
            case "schedule_event":
                return lambda state: state | {call.arguments["id"]}
            case "cancel":
                timer: str = call.arguments["id"]
                if not unknown and not call.result:
                    return lambda state: None if timer in state else state
                return lambda state: state - {timer} if timer in state and may_go((timer,), call) else None
            case "cancel_timers":
                wanted = call.arguments.get("instance_id")

                def cancel(state: frozenset[str]) -> frozenset[str] | None:
                    found = state if wanted is None else {one for one in state if instances[one] == wanted}
                    return state - found if (unknown or len(found) == call.result) and may_go(found, call) else None

                return cancel
        return lambda state: frozenset() if may_go(state, call) else None

    def claimed(timer: str) -> Callable[[frozenset[str]], frozenset[str] | None]:
        return lambda state: state - {timer} if timer in state else None

    steps = [_step(call, skew, effect(call)) for call in calls]
    steps += [Step(claim.start, claim.end, claimed(claim.run.id), claim.run) for claim in claims]
    if remainder is not None:
        left = frozenset(remainder.timers) & instances.keys()
        steps.append(_last(steps, remainder, lambda state: state if state == left else None))
    return steps


def subscription_steps(
    calls: Iterable[Call],
    claims: Iterable[Claim],
    cid: str,
    topics: Mapping[str, str],
    delivered: Mapping[str, Collection[str]],
    remainder: Remainder | None,
    skew: int,
    *,
    whole_snapshots: bool,
) -> list[Step[Any]]:
    """Return the steps on the subscriptions of a conversation and their queued messages. The state is a set of `Held`.

    Args:
        calls: the operations that concern them, including publications on their topics.
        claims: the deliveries of messages.
        cid: the conversation.
        topics: the topic of each message.
        delivered: the instances to which each message was delivered.
        remainder: what was left.
        skew: nanoseconds by which a step may have ended later than is recorded.
        whole_snapshots: whether `subscriptions()` shows one instant, or each subscription at one of its own.
    """
    calls = list(calls)
    places = {
        Held(call.arguments["instance_id"], call.arguments["topic"]) for call in calls if call.operation == "subscribe"
    }

    def effect(call: Call) -> Callable[[frozenset[Held]], frozenset[Held] | None]:
        unknown = call.returned_at is None
        given = call.arguments
        match call.operation:
            case "subscribe":
                return lambda state: state | {Held(given["instance_id"], given["topic"])}
            case "publish":
                message: str = given["id"]
                reached = delivered.get(message, ())

                def publish(state: frozenset[Held]) -> frozenset[Held] | None:
                    targets = {one.instance_id for one in state if one.topic == given["topic"] and one.message is None}
                    if not targets.issuperset(reached) or not (unknown or len(targets) <= call.result):
                        return None
                    return state | {Held(one, given["topic"], message if one in reached else "") for one in targets}

                return publish

        def remove(state: frozenset[Held]) -> frozenset[Held] | None:
            found = {one for one in state if covers(call, cid, one.instance_id, topic=one.topic)}
            counted = unknown or call.operation == "reset_state" or _places(found) == call.result
            return state - found if counted and not any(one.message for one in found) else None

        return remove

    def claimed(run: Run) -> Callable[[frozenset[Held]], frozenset[Held] | None]:
        one = Held(run.instance_id, topics[run.id], run.id)
        return lambda state: state - {one} if one in state else None

    def shows(place: Held, seen: bool) -> Callable[[frozenset[Held]], frozenset[Held] | None]:
        return lambda state: state if (place in state) == seen else None

    def shows_all(
        seen: frozenset[Held], *, nothing_queued: bool
    ) -> Callable[[frozenset[Held]], frozenset[Held] | None]:
        def look(state: frozenset[Held]) -> frozenset[Held] | None:
            same = {one for one in state if nothing_queued or one.message is None} == seen
            return state if same else None

        return look

    steps: list[Step[Any]] = []
    for call in calls:
        if call.operation != "subscriptions":
            steps.append(_step(call, skew, effect(call)))
        elif call.returned_at is not None:
            seen = frozenset(Held(instance_id, topic) for topic, owner, instance_id in call.result if owner == cid)
            if whole_snapshots or not seen <= places:
                steps.append(_step(call, skew, shows_all(seen, nothing_queued=False)))
            else:
                steps += [_step(call, skew, shows(place, place in seen)) for place in sorted(places)]
    steps += [Step(claim.start, claim.end, claimed(claim.run), claim.run) for claim in claims]
    if remainder is not None:
        seen = frozenset(
            Held(instance_id, topic) for topic, owner, instance_id in remainder.subscriptions if owner == cid
        )
        steps.append(_last(steps, remainder, shows_all(seen, nothing_queued=True)))
    return steps


def _places(held: Iterable[Held]) -> int:
    return sum(one.message is None for one in held)
