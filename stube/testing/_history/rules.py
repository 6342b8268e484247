"""The rules: one function for each kind of fault that a few records of a history show.

Each yields findings, and the checker takes the shortest. The search looks for the faults that no rule finds.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from stube.testing._history.index import Delivery, Index
from stube.testing._history.records import Call, Record, Run

__all__ = ["RULES", "Finding", "one_topic_order"]


class Finding(NamedTuple):
    """A broken guarantee, the sentence about it, and what shows it."""

    guarantee: str
    summary: str
    evidence: tuple[Record | None, ...]
    cid: str | None = None
    searched: str = ""
    """The object of the conversation that needs no further search: `baton`, `timers` or `subscriptions`."""


def serial(index: Index) -> Iterator[Finding]:
    """Check G1: the dispatch intervals of a conversation do not overlap."""
    for cid in index.overlapping:
        for first, second in index.overlaps(cid):
            yield Finding("G1", f"two deliveries of conversation {cid!r} ran at the same time.", (first, second))


def in_order(index: Index) -> Iterator[Finding]:
    """Check G2: a delivery that surely became ready first began first.

    It surely became ready first by the clock, whatever time the calls took; or because it was accepted first and its
    delay is not longer. Acceptance never runs backwards, and it decides ties of the clock.

    A timer that is accepted when the other has begun already cannot be accused, because its due instant comes later.
    """
    for cid, deliveries in index.deliveries.items():
        latest: Delivery | None = None  # of those that surely began before: the one that became ready last
        by_delay: dict[int, Delivery] = {}  # and of each delay the one that was accepted last
        began = 0
        for later in deliveries:
            while deliveries[began].run.began_at + index.skew < later.run.began_at:
                earlier = deliveries[began]
                if latest is None or earlier.item.earliest > latest.item.earliest:
                    latest = earlier
                same = by_delay.get(earlier.item.delay)
                if same is None or earlier.item.call.called_at > same.item.call.called_at:
                    by_delay[earlier.item.delay] = earlier
                began += 1
            overtook = [
                earlier
                for delay, earlier in by_delay.items()
                if index.precedes(later.item.call, earlier.item.call)
                and (later.item.delay <= delay or later.item.latest + index.clock_error <= earlier.item.earliest)
            ]
            if latest is not None and later.item.latest + index.clock_error < latest.item.earliest:
                overtook.append(latest)
            for earlier in overtook:
                yield Finding(
                    "G2",
                    f"{later.item.id!r} became ready before {earlier.item.id!r} and began after it, "
                    f"both in conversation {cid!r}.",
                    (later.item.call, earlier.item.call, earlier.run, later.run),
                )


def publishers_order(index: Index) -> Iterator[Finding]:
    """Check G4: a client's messages on a topic reach each instance in the order of the client's calls."""
    for subscriber, deliveries in _received(index).items():
        last: dict[tuple[str, str], Delivery] = {}
        for delivery in deliveries:
            call = delivery.item.call
            key = (call.client, call.arguments["topic"])
            before = last.get(key)
            if before is None or call.called_at > before.item.call.called_at:
                last[key] = delivery
            elif index.precedes(call, before.item.call) and before.run.began_at + index.skew < delivery.run.began_at:
                yield Finding(
                    "G4",
                    f"{call.client} published {delivery.item.id!r} before {before.item.id!r}, "
                    f"and they reached {_who(*subscriber)} the other way round.",
                    (call, before.item.call, before.run, delivery.run),
                )


def one_topic_order(index: Index) -> Iterator[Finding]:
    """Check G4 with `common_topic_order`: all subscribers see the messages of a topic in one order.

    Two messages that a subscriber saw one after the other are an edge of a graph. If the graph has a cycle, there is no
    common order. The finding is a shortest cycle.
    """
    edges: dict[str, dict[str, tuple[Run, Run]]] = defaultdict(dict)
    topics: dict[tuple[str, str, str], list[Delivery]] = defaultdict(list)
    for subscriber, deliveries in _received(index).items():
        for delivery in deliveries:
            topics[(delivery.item.call.arguments["topic"], *subscriber)].append(delivery)
    for deliveries in topics.values():
        for first, second in pairwise(deliveries):
            if first.run.began_at + index.skew < second.run.began_at:
                edges[first.item.id].setdefault(second.item.id, (first.run, second.run))
    cycle = _shortest_cycle({message: list(after) for message, after in edges.items()})
    if cycle:
        pairs = [edges[one][other] for one, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
        topic = index.messages[cycle[0]].call.arguments["topic"]
        yield Finding(
            "G4",
            f"no order of the messages {', '.join(map(repr, sorted(cycle)))} on topic {topic!r} is the one "
            "in which all its subscribers got them.",
            tuple(run for pair in pairs for run in pair),
        )


def timers_have_one_fate(index: Index) -> Iterator[Finding]:
    """Check G5: a timer is delivered, or cancelled, or left in the end, and only one of these."""
    delivered = {one.item.id: one for many in index.deliveries.values() for one in many if one.item.id in index.timers}
    remainder = index.history.remainder
    left = () if remainder is None else remainder.timers
    for timer, item in index.timers.items():
        cid, instance_id = item.call.arguments["cid"], item.call.arguments["instance_id"]
        claimed = [call for call in index.cancels.get(timer, ()) if call.result]
        if len(claimed) > 1:
            yield Finding(
                "G5", f"two calls say that they cancelled timer {timer!r}.", (item.call, *claimed[:2]), cid, "timers"
            )
        if claimed and timer in delivered:
            evidence = (item.call, claimed[0], delivered[timer].run)
            yield Finding(
                "G5", f"timer {timer!r} was cancelled, by its handle, and delivered.", evidence, cid, "timers"
            )
        covering = list(index.covering(item, cid, instance_id))
        if timer in left:
            gone = [call for call in covering if index.precedes(item.call, call) and call.returned_at is not None]
            gone = claimed or gone
            if gone:
                number = "G18" if gone[0].operation == "reset_state" else "G5"
                yield Finding(
                    number,
                    f"timer {timer!r} outlived {_what(gone[0])}.",
                    (item.call, gone[0], remainder),
                    cid,
                    "timers",
                )
            if timer in delivered:
                summary = f"timer {timer!r} was delivered and is still pending."
                yield Finding("G5", summary, (item.call, delivered[timer].run, remainder), cid, "timers")
        elif remainder is not None and timer not in delivered and item.call.returned_at is not None:
            near = [call for call in covering if index.end(call) >= item.call.called_at]
            if not any(call.result != 0 for call in near):  # nor False
                raced = next((call for call in near if not index.precedes(item.call, call)), None)
                yield Finding(
                    "G7" if raced else "G5",
                    f"timer {timer!r} was neither delivered nor cancelled, and it is not pending either.",
                    (item.call, raced, remainder),
                    cid,
                    "timers",
                )


def nothing_strange(index: Index) -> Iterator[Finding]:
    """Check G5 and G16: every delivery is that of one timer, or of a message to one subscriber."""
    for run in index.strange:
        item = index.timers.get(run.id) or index.messages.get(run.id)
        number = "G16" if item is not None and item.id in index.messages else "G5"
        summary = f"{run.id!r} was delivered to {_who(run.cid, run.instance_id)}, and no call had sent it there."
        yield Finding(
            number, summary, (item and item.call, run), run.cid, "timers" if number == "G5" else "subscriptions"
        )
    for first, second in index.repeated:
        if first.id in index.timers:
            evidence = (index.timers[first.id].call, first, second)
            yield Finding("G5", f"timer {first.id!r} was delivered twice.", evidence, first.cid, "timers")
        else:
            summary = f"{_who(first.cid, first.instance_id)} got message {first.id!r} twice."
            yield Finding("G16", summary, (index.messages[first.id].call, first, second), first.cid, "subscriptions")


def final(index: Index) -> Iterator[Finding]:
    """Check G5 and G18: a delivery that was cancelled, unsubscribed or reset before its claim does not begin."""
    for cid, deliveries in index.deliveries.items():
        for delivery in deliveries:
            run, item = delivery.run, delivery.item
            for call in index.covering(item, cid, run.instance_id):
                if call.called_at > delivery.claim.start:
                    break
                if not index.precedes(item.call, call):
                    continue
                # The order is known by the conversation's previous delivery, or by the clock.
                late = index.end(call) < delivery.claim.start
                not_due = call.clock_after is not None and call.clock_after + index.clock_error < item.earliest
                if late or (not_due and call.returned_at is not None):
                    earlier = delivery.previous
                    shown = (
                        earlier if late and earlier is not None and index.end(call) < (earlier.ended_at or 0) else None
                    )
                    yield Finding(
                        "G18" if call.operation == "reset_state" else "G5",
                        f"{item.id!r} of conversation {cid!r} was claimed after {_what(call)} had returned.",
                        (item.call, call, shown, run),
                        cid,
                        "timers" if item.id in index.timers else "subscriptions",
                    )
                    break


def snapshot(index: Index) -> Iterator[Finding]:
    """Check G16: a publication reaches all who stay subscribed, none who have left, and as many as it says."""
    reached: dict[str, list[Delivery]] = defaultdict(list)
    for deliveries in index.deliveries.values():
        for delivery in deliveries:
            reached[delivery.item.id].append(delivery)
    for message, item in index.messages.items():
        call, topic = item.call, item.call.arguments["topic"]
        places = {place: index.place(place) for place in index.places_of(topic)}
        got = {(one.run.cid, one.run.instance_id): one.run for one in reached[message]}
        for (cid, instance_id), run in got.items():
            place = next((one for one in places if one[:2] == (cid, instance_id)), None)
            if place is None or not places[place].possibly(call):
                calls = [] if place is None else [*places[place].subscribes, *places[place].removals]
                before = [one for one in calls if index.end(one) < call.called_at]
                yield Finding(
                    "G16",
                    f"{_who(cid, instance_id)} got message {message!r}, and did not subscribe to {topic!r} "
                    "when it was published.",
                    (*before[-1:], call, run),
                    cid,
                    "subscriptions",
                )
        surely = {place for place, membership in places.items() if membership.surely(call)}
        if index.history.remainder is not None and call.returned_at is not None:
            for place in surely:
                if place[:2] not in got and places[place].surely(call, and_stays=True):
                    since = [one for one in places[place].subscribes if index.precedes(one, call)]
                    yield Finding(
                        "G16",
                        f"{_who(*place[:2])} subscribed to {topic!r} before message {message!r} and ever after, "
                        "and did not get it.",
                        (since[-1], call, index.history.remainder),
                        place.cid,
                        "subscriptions",
                    )
        if call.returned_at is None:
            continue
        least = len({place[:2] for place in surely} | got.keys())
        most = sum(membership.possibly(call) for membership in places.values())
        if call.result < least or (call.result > most and most >= least):
            bound = f"at least {least}" if call.result < least else f"at most {most}"
            shown: list[Record] = [*got.values()] if call.result < len(got) else []
            if not shown:
                shown = [one.latest(call) for one in places.values() if one.possibly(call)]
            summary = f"publish says that message {message!r} had {call.result} targets, and it had {bound}."
            yield Finding("G16", summary, (call, *shown))


def one_taker(index: Index) -> Iterator[Finding]:
    """Check G8: a baton that was put once is taken once. (The search decides the rest.)"""
    put: dict[tuple[str, object], list[Call]] = defaultdict(list)
    taken: dict[tuple[str, object], list[Call]] = defaultdict(list)
    for call in index.calls:
        if call.operation == "put_pending_flow":
            put[(call.arguments["cid"], call.arguments["flow_id"])].append(call)
        elif call.operation == "pending_flow" and call.result is not None:
            taken[(call.arguments["cid"], call.result)].append(call)
    for (cid, flow_id), takers in taken.items():
        times = len(put[cid, flow_id])
        if len(takers) > times:
            how = f"put {times} times" if times > 1 else "put once" if times else "never put"
            summary = f"the baton {flow_id!r} of conversation {cid!r} was {how}, and taken {_times(len(takers))}."
            yield Finding("G8", summary, (*put[cid, flow_id], *takers), cid, "baton")


RULES: Final[tuple[Callable[[Index], Iterable[Finding]], ...]] = (
    serial,
    in_order,
    publishers_order,
    timers_have_one_fate,
    nothing_strange,
    final,
    snapshot,
    one_taker,
)


def _received(index: Index) -> dict[tuple[str, str], list[Delivery]]:
    """Return the messages that each instance got, in its order."""
    received: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
    for cid, deliveries in index.deliveries.items():
        for delivery in deliveries:
            if delivery.item.id in index.messages:
                received[(cid, delivery.run.instance_id)].append(delivery)
    return received


def _shortest_cycle(edges: dict[str, list[str]]) -> list[str]:
    """Return the nodes of a shortest cycle, in its order; an empty list if there is no cycle."""
    # Remove the nodes that no edge leads to, again and again; every cycle is left.
    indegree: dict[str, int] = defaultdict(int)
    for after in edges.values():
        for node in after:
            indegree[node] += 1
    free = deque(node for node in edges if not indegree[node])
    left = {*edges, *indegree}
    while free:
        node = free.popleft()
        left.discard(node)
        for after_it in edges.get(node, ()):
            indegree[after_it] -= 1
            if not indegree[after_it]:
                free.append(after_it)
    best: list[str] = []
    for start in sorted(left):
        came_from = {start: start}
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            for after_it in edges.get(node, ()):
                if after_it == start:
                    cycle = [node]
                    while cycle[-1] != start:
                        cycle.append(came_from[cycle[-1]])
                    if not best or len(cycle) < len(best):
                        best = cycle[::-1]
                    waiting.clear()
                    break
                if after_it in left and after_it not in came_from:
                    came_from[after_it] = node
                    waiting.append(after_it)
    return best


def _who(cid: str, instance_id: str) -> str:
    return f"instance {instance_id!r} of conversation {cid!r}"


def _what(call: Call) -> str:
    return "the handle's cancel()" if call.operation == "cancel" else f"{call.operation}()"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
