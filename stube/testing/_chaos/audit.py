"""The audit: a recorded history compared with the ledger and the snapshots of the registry.

`check_history` decides whether a history keeps the guarantees in whatever order the threads ran. The audit asks
something simpler of a registry at rest: has every accepted delivery exactly one fate, does the ledger count the same,
and is nothing left behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain, islice, pairwise
from math import ceil
from typing import Any, Final, cast

from stube import Backend, ConversationEnded, Stats
from stube.testing._history.records import Call, History, Run

__all__ = ["Books", "differences", "negative_figures"]

_MOST_FINDINGS: Final = 20  # of each kind; a registry that is always wrong would fill the memory


class Books:
    """The figures of a history of ids that are used once, and its records by id.

    Args:
        history: complete or not.
        coroutines: how many deliveries failed because a handler returned a coroutine.
    """

    def __init__(self, history: History, coroutines: int = 0) -> None:
        self.history = history
        self.timers: dict[str, Call] = {}
        self.messages: dict[str, Call] = {}
        self.cancels: dict[str, list[Call]] = defaultdict(list)
        """The handles' cancels that returned True, by the timer's id."""
        cancelled = resets = 0
        for call in history.calls:
            match call.operation:
                case "schedule_event":
                    self.timers[call.arguments["id"]] = call
                case "publish":
                    self.messages[call.arguments["id"]] = call
                case "cancel_timers":
                    cancelled += call.result or 0
                case "cancel" if call.result:
                    self.cancels[call.arguments["id"]].append(call)
                case "reset_state":
                    resets += 1
        self.resets = resets
        self.accepted_timers = sum(_succeeded(call) for call in self.timers.values())
        self.targets = sum(call.result or 0 for call in self.messages.values())
        self.cancelled = cancelled + sum(map(len, self.cancels.values()))
        self.begun = len(history.runs)
        self.over = sum(run.ended_at is not None for run in history.runs)
        self.failed = sum(run.error not in ("", ConversationEnded.__name__) for run in history.runs) + coroutines

    @property
    def delivered(self) -> int:
        """Deliveries that must count as delivered."""
        return self.over - self.failed


def differences(books: Books, registry: Backend, *, closed: bool = False) -> list[str]:
    """Tell what is wrong, a sentence each; the list is empty when the registry is whole.

    Args:
        books: of everything that was ever called on the registry, and delivered.
        registry: at rest: nothing is pending, no thread calls, and everything that was accepted should be over.
        closed: whether the registry was closed, which drops what is pending as a reset does.
    """
    stats = registry.stats()
    found = [
        [f"the ledger does not balance: {stats.equation}."] if not stats.balanced else [],
        negative_figures(stats),
        _wrong_counts(books, stats),
        _wrong_fates(books, stats, discarded=closed or books.resets > 0),
        _left_over(registry, stats),
        _wrong_order(books.history),
        _wrong_timers(books, own_clock="own_clock" in registry.capabilities),
        _wrong_messages(books),
        _wrong_batons(books.history),
    ]
    return [*chain.from_iterable(islice(kind, _MOST_FINDINGS) for kind in found)]


def negative_figures(stats: Stats) -> list[str]:
    """Return a sentence for each figure that is below zero, which none may ever be."""
    return [
        f"the ledger says {getattr(stats, name)} {name}."
        for name in Stats.__dataclass_fields__
        if getattr(stats, name) < 0
    ]


def _succeeded(call: Call) -> bool:
    return call.returned_at is not None and not call.error


def _delivery(run: Run) -> str:
    return f"the delivery of {run.id!r} to instance {run.instance_id!r} of conversation {run.cid!r}"


# What the ledger says


def _wrong_counts(books: Books, stats: Stats) -> Iterator[str]:
    if books.begun != books.over:
        yield f"{books.begun} calls of dispatch have begun and {books.over} are over."
    for name, counted in (
        ("accepted", books.accepted_timers + books.targets),
        ("delivered", books.delivered),
        ("failed", books.failed),
    ):
        if getattr(stats, name) != counted:
            yield f"the ledger says {getattr(stats, name)} {name}, and there were {counted}."


def _wrong_fates(books: Books, stats: Stats, *, discarded: bool) -> Iterator[str]:
    """Compare the fates of timers with those of messages, which the ledger does not tell apart.

    No call counts what a reset drops. So the dropped deliveries are those without any other fate, and the ledger must
    say the same number.
    """
    timers_begun = sum(run.id in books.timers for run in books.history.runs)
    messages_begun = sum(run.id in books.messages for run in books.history.runs)
    timers_left = books.accepted_timers - timers_begun - books.cancelled
    messages_cancelled = stats.cancelled - books.cancelled
    messages_left = books.targets - messages_begun - messages_cancelled
    if timers_left < 0 or (timers_left and not discarded):
        yield (
            f"of {books.accepted_timers} timers {timers_begun} were delivered and {books.cancelled} counted by "
            f"cancels: {abs(timers_left)} too {'few' if timers_left > 0 else 'many'}."
        )
    if messages_cancelled < 0:
        yield f"the ledger says {stats.cancelled} cancelled, and calls have counted {books.cancelled} timers alone."
    if messages_left < 0 or (messages_left and not discarded):
        yield (
            f"of {books.targets} targets of publications {messages_begun} were reached and "
            f"{messages_cancelled} cancelled: {abs(messages_left)} too {'few' if messages_left > 0 else 'many'}."
        )
    if stats.dropped != timers_left + messages_left:
        yield f"the ledger says {stats.dropped} dropped, and {timers_left + messages_left} have no other fate."


def _left_over(registry: Backend, stats: Stats) -> Iterator[str]:
    for name in ("timers", "queued", "running", "pending_flows", "subscriptions"):
        if getattr(stats, name):
            yield f"the ledger still says {getattr(stats, name)} {name}."
    held = registry.inspect()
    if held:
        yield f"inspect() still shows {held}."
    subscriptions = registry.subscriptions()
    if subscriptions:
        yield f"subscriptions() still shows {subscriptions}."
    if "sizes" in registry.capabilities:
        sizes: Mapping[str, int] = cast(Any, registry).sizes()
        full = {name: size for name, size in sizes.items() if size}
        if full:
            yield f"containers that are not empty: {full}."


# What the deliveries show


def _wrong_order(history: History) -> Iterator[str]:
    """Find deliveries of one conversation at the same time, and deliveries on the stack of an operation."""
    conversations: dict[str, list[Run]] = defaultdict(list)
    threads: dict[str, list[Call | Run]] = defaultdict(list)
    for run in history.runs:
        conversations[run.cid].append(run)
        threads[run.by].append(run)
    for call in history.calls:
        threads[call.client].append(call)
    for runs in conversations.values():
        runs.sort(key=_begins_at)
        for earlier, later in pairwise(runs):
            if earlier.ended_at is None or later.began_at < earlier.ended_at:
                yield f"G1: {_delivery(later)} runs while {_delivery(earlier)} does."
    for records in threads.values():
        latest: Call | None = None  # the call that this thread made last
        for record in sorted(records, key=_begins_at):
            if isinstance(record, Call):
                latest = record
            elif latest is not None and (latest.returned_at is None or record.began_at < latest.returned_at):
                yield f"G3: {_delivery(record)} runs on the stack of an operation."


def _begins_at(record: Call | Run) -> int:
    return record.called_at if isinstance(record, Call) else record.began_at


def _wrong_timers(books: Books, *, own_clock: bool) -> Iterator[str]:
    begun: set[str] = set()
    for run in books.history.runs:
        timer = books.timers.get(run.id)
        if timer is None:
            if run.id not in books.messages:
                yield f"G5: {_delivery(run)}: no call has sent that."
            continue
        if timer.error:
            yield f"G15: schedule_event raised, and timer {run.id!r} was delivered."
        if run.id in begun:
            yield f"G5: {_delivery(run)} is its second."
        begun.add(run.id)
        if own_clock and timer.clock_before is not None and run.clock is not None:
            due = timer.clock_before + ceil(timer.arguments["delay_ms"] * 1_000_000)
            if run.clock < due:
                yield f"G9: {_delivery(run)} is early."
        for cancel in books.cancels.get(run.id, ()):
            if cancel.returned_at is not None and cancel.returned_at < run.began_at:
                yield f"G5: {_delivery(run)} begins after its handle's cancel() has returned True."
            else:
                yield f"G5: timer {run.id!r} was cancelled, by its handle, and delivered."
    for identity, cancels in books.cancels.items():
        if len(cancels) > 1:
            yield f"G5: {len(cancels)} cancels of timer {identity!r} have returned True."


def _wrong_messages(books: Books) -> Iterator[str]:
    reached: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run in books.history.runs:
        if run.id in books.messages:
            target = (run.cid, run.instance_id)
            if target in reached[run.id]:
                yield f"G16: {_delivery(run)} is its second."
            reached[run.id].add(target)
    for identity, targets in reached.items():
        told = books.messages[identity].result or 0
        if len(targets) > told:
            yield f"G16: message {identity!r} had {told} targets and reached {len(targets)}."


def _wrong_batons(history: History) -> Iterator[str]:
    taken: set[object] = set()
    for call in history.calls:
        if call.operation == "pending_flow" and call.result is not None:
            if call.result in taken:
                yield f"G8: the baton {call.result!r} of conversation {call.arguments['cid']!r} was taken twice."
            taken.add(call.result)
