"""The books of a registry, kept from outside, and how its own compare with them.

`AuditedRegistry` has the twelve operations and is the dispatch of the registry that it makes. Each thread counts for
itself, so that the books keep no threads in step; `differences` adds up when everything is at rest. What must hold at
every moment (one delivery of a conversation at a time, none on the caller's stack, none early, none after a cancel that
succeeded) the deliveries check themselves.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import iscoroutine
from math import ceil
from typing import Any, Final, cast

from stube import Backend, ConversationEnded, Event, Stats, TimerHandle

__all__ = ["AuditedHandle", "AuditedRegistry", "Tally"]

_monotonic_ns = time.monotonic_ns  # taken at import, because tests replace attributes of the time module

_MOST_FINDINGS: Final = 20  # a registry that is wrong always would fill the memory
_OUTRAGED: Final = 8  # the log handler and `on_error` raise for one failure in so many
_FAILURE: Final = "stube_failure"  # the attribute by which an exception is known again


@dataclass(slots=True)
class Tally:
    """What one thread has counted, or all together."""

    operations: int = 0
    timers: int = 0
    """Accepted."""
    targets: int = 0
    """Of publications, accepted."""
    cancelled: int = 0
    """Timers that a cancelling call says it has cancelled."""
    resets: int = 0
    """And closes."""
    begun: int = 0
    """Entries into dispatch."""
    returned: int = 0
    raised: int = 0
    """Anything but `ConversationEnded`."""
    ended: int = 0
    """`ConversationEnded` left the handler, which is no failure."""
    coroutines: int = 0
    """The handler returned one, and nobody can await it."""
    inside: int = 0
    """How many operations deep the thread is at this moment."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in Tally.__dataclass_fields__))

    @property
    def failed(self) -> int:
        """Deliveries that must count as failed."""
        return self.raised + self.coroutines

    @property
    def delivered(self) -> int:
        """Deliveries that must count as delivered."""
        return self.returned + self.ended


@dataclass(slots=True, eq=False)
class _Timer:
    """One timer. Lists instead of counts, for several threads may append at once."""

    not_before: int
    """An instant of the monotonic clock, in nanoseconds."""
    refused: bool = False
    begun: list[None] = field(default_factory=list)
    cancelled: list[None] = field(default_factory=list)
    """By its handle."""


@dataclass(slots=True, eq=False)
class _Message:
    """One publication."""

    targets: int = 0
    """As `publish` said; 0 when it raised."""
    reached: dict[tuple[str, str], None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Failure:
    """One exception that left a handler."""

    told: str
    outrage: int
    """0: the log handler raises when it is told; 1: `on_error` does; else nobody."""
    logged: list[None] = field(default_factory=list)
    handed_on: list[None] = field(default_factory=list)
    """To `on_error`."""


class _Mine(threading.local):
    """What a thread has to itself."""

    tally: Tally | None = None
    prefix: int
    numbers: Iterator[int]


class AuditedRegistry:
    """A registry with its books: the twelve operations, and `differences`.

    Args:
        create: makes the registry, called with `on_error`. One that delivers without its callers' help: on a virtual
            clock it would be they who deliver.
        handler: what deliveries do. It may raise whatever it likes, each exception once.

    An event is given as a name here, for payloads, messages and batons are the audit's own: ids that are used once. Any
    thread may call, from inside a delivery too; not from a signal handler or a finalizer. 3 µs an operation.

    >>> from stube import create_registry
    >>> audited = AuditedRegistry(lambda **options: create_registry("memory", **options), lambda cid, event: None)
    >>> handle = audited.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    >>> audited.registry.join(), audited.differences()
    (True, [])
    >>> audited.close()
    True
    """

    def __init__(self, create: Callable[..., Backend], handler: Callable[[str, Event], object]) -> None:
        self.findings: list[str] = []
        """What calls and deliveries have found wrong, a sentence each."""
        self.found = threading.Event()
        """Set with the first of them."""
        self._handler = handler
        self._mine = _Mine()
        self._lock = threading.Lock()
        self._tallies: list[Tally] = []  # guarded by the lock; each of them is changed by its own thread alone
        # No lock: lists are appended to; of a key one thread sets the value, or `setdefault` decides between several.
        self._timers: dict[str, _Timer] = {}
        self._messages: dict[str, _Message] = {}
        self._takers: dict[object, object] = {}  # of batons
        self._running: dict[str, object] = {}  # conversation to the delivery that runs
        self._failures: list[_Failure] = []
        self._unknown_logged: list[None] = []  # errors in the log that are no handler's
        self._unknown_handed_on: list[None] = []
        self.registry = create(on_error=self._on_error)
        self.capabilities = self.registry.capabilities
        self._own_clock = "own_clock" in self.capabilities
        self.install_dispatch()

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self) -> None:
        """Install the audit's own dispatch, each time as another object."""
        self._call(self.registry.install_dispatch, lambda cid, event: self._dispatch(cid, event))

    def put_pending_flow(self, cid: str, _flow_id: object = None, /) -> None:
        self._call(self.registry.put_pending_flow, cid, self._identity("f"))

    def pending_flow(self, cid: str, /) -> Any | None:
        flow_id = self._call(self.registry.pending_flow, cid)
        me = object()
        if flow_id is not None and self._takers.setdefault(flow_id, me) is not me:
            self.find(f"G8: the baton {flow_id!r} of conversation {cid!r} was taken twice.")
        return flow_id

    def forget_pending_flow(self, cid: str, /) -> bool:
        return bool(self._call(self.registry.forget_pending_flow, cid))

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: str) -> AuditedHandle:
        identity = self._identity("t")
        timer = self._timers[identity] = _Timer(_monotonic_ns() + ceil(delay_ms * 1_000_000))
        timer.refused = True  # until it is accepted
        handle = self._call(
            self.registry.schedule_event, cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=(event, identity)
        )
        timer.refused = False
        self._tally().timers += 1
        return AuditedHandle(self, handle, timer, f"timer {identity!r} of conversation {cid!r}")

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        count = int(self._call(self.registry.cancel_timers, cid, instance_id=instance_id))
        self._tally().cancelled += count
        return count

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: str) -> None:
        self._call(self.registry.subscribe, cid=cid, instance_id=instance_id, topic=topic, event=event)

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        return int(self._call(self.registry.unsubscribe, cid=cid, instance_id=instance_id, topic=topic))

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return int(self._call(self.registry.remove_subscriptions_for_cid, cid))

    def publish(self, topic: str, /) -> int:
        identity = self._identity("m")
        message = self._messages[identity] = _Message()
        message.targets = int(self._call(self.registry.publish, topic, identity))
        self._tally().targets += message.targets
        return message.targets

    def subscriptions(self) -> dict[str, dict[tuple[str, str], Any]]:
        return cast("dict[str, dict[tuple[str, str], Any]]", self._call(self.registry.subscriptions))

    def reset_state(self) -> None:
        self._tally().resets += 1
        self._call(self.registry.reset_state)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Close the registry, which discards as a reset does."""
        self._tally().resets += 1
        return self.registry.close(timeout)

    # -- the books ---------------------------------------------------------------------------------------------

    def find(self, sentence: str) -> None:
        """Note what is wrong."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(sentence)
        self.found.set()

    @property
    def tally(self) -> Tally:
        """What has been counted so far, by all threads."""
        with self._lock:
            return sum(self._tallies, Tally())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the log of `stube` for the length of the block, and count the errors in it."""
        logger = logging.getLogger("stube")
        listener = _Listener(self._hear)
        before = logger.propagate, logger.level
        logger.addHandler(listener)
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            logger.propagate, logger.level = before
            logger.removeHandler(listener)

    def differences(self) -> list[str]:
        """What does not agree, a sentence each; none when the registry is whole.

        At rest only: nothing is pending, nobody calls, and everything that was accepted should be over. Errors in the
        log are compared where `listening` was on from the beginning.
        """
        tally, stats = self.tally, self.registry.stats()
        found = [f"the ledger does not balance: {stats.equation}."] if not stats.balanced else []
        found += negative_figures(stats)
        found += self._wrong_counts(tally, stats)
        found += self._wrong_fates(tally, stats)
        found += self._left_over(stats)
        found += self._wrong_items()
        found += self._wrong_errors(tally)
        return [*self.findings, *found]

    def _wrong_counts(self, tally: Tally, stats: Stats) -> Iterator[str]:
        if tally.begun != tally.delivered + tally.failed:
            over = tally.delivered + tally.failed
            yield f"{tally.begun} calls of dispatch have begun and {over} are over."
        for name, counted in (
            ("accepted", tally.timers + tally.targets),
            ("delivered", tally.delivered),
            ("failed", tally.failed),
        ):
            if getattr(stats, name) != counted:
                yield f"the ledger says {getattr(stats, name)} {name}, and there were {counted}."

    def _wrong_fates(self, tally: Tally, stats: Stats) -> Iterator[str]:
        """The fates of timers and of messages, which the ledger does not tell apart.

        What a reset has dropped nobody counts; so it is what is left, and must be what the ledger says.
        """
        timers_begun = sum(len(timer.begun) for timer in self._timers.values())
        messages_begun = sum(len(message.reached) for message in self._messages.values())
        timers_left = tally.timers - timers_begun - tally.cancelled
        messages_cancelled = stats.cancelled - tally.cancelled
        messages_left = tally.targets - messages_begun - messages_cancelled
        if timers_left < 0 or (timers_left and not tally.resets):
            yield (
                f"of {tally.timers} timers {timers_begun} were delivered and {tally.cancelled} counted by cancels: "
                f"{abs(timers_left)} too {'few' if timers_left > 0 else 'many'}."
            )
        if messages_cancelled < 0:
            yield f"the ledger says {stats.cancelled} cancelled, and calls have counted {tally.cancelled} timers alone."
        if messages_left < 0 or (messages_left and not tally.resets):
            yield (
                f"of {tally.targets} targets of publications {messages_begun} were reached and "
                f"{messages_cancelled} cancelled: {abs(messages_left)} too {'few' if messages_left > 0 else 'many'}."
            )
        if stats.dropped != timers_left + messages_left:
            yield f"the ledger says {stats.dropped} dropped, and {timers_left + messages_left} have no other fate."

    def _left_over(self, stats: Stats) -> Iterator[str]:
        for name in ("timers", "queued", "running", "pending_flows", "subscriptions"):
            if getattr(stats, name):
                yield f"the ledger still says {getattr(stats, name)} {name}."
        held = self.registry.inspect()
        if held:
            yield f"inspect() still shows {held}."
        subscriptions = self.registry.subscriptions()
        if subscriptions:
            yield f"subscriptions() still shows {subscriptions}."
        if "sizes" in self.capabilities:
            sizes: Mapping[str, int] = cast(Any, self.registry).sizes()
            full = {name: size for name, size in sizes.items() if size}
            if full:
                yield f"containers that are not empty: {full}."

    def _wrong_items(self) -> Iterator[str]:
        for identity, timer in self._timers.items():
            if timer.refused and timer.begun:
                yield f"G15: schedule_event raised, and timer {identity!r} was delivered."
            if timer.cancelled and timer.begun:
                yield f"G5: timer {identity!r} was cancelled, by its handle, and delivered."
        for identity, message in self._messages.items():
            if len(message.reached) > message.targets:
                yield f"G16: message {identity!r} had {message.targets} targets and reached {len(message.reached)}."

    def _wrong_errors(self, tally: Tally) -> Iterator[str]:
        for failure in self._failures:
            for count, how in ((len(failure.logged), "logged"), (len(failure.handed_on), "handed to on_error")):
                if count != 1:
                    yield f"G19: {failure.told} was {how} {count} times."
        # The registry's own: of handlers that returned a coroutine.
        for count, how in ((len(self._unknown_logged), "logged"), (len(self._unknown_handed_on), "handed to on_error")):
            if count != tally.coroutines:
                yield (
                    f"G19: handlers returned {tally.coroutines} coroutines, and {count} errors were {how} that no "
                    "handler had raised."
                )

    # -- deliveries --------------------------------------------------------------------------------------------

    def _dispatch(self, cid: str, event: Event) -> Any:
        tally = self._tally()
        tally.begun += 1
        told = f"the delivery of {event.payload!r} to instance {event.instance_id!r} of conversation {cid!r}"
        if tally.inside:
            self.find(f"G3: {told} runs on the stack of an operation.")
        if self._running.setdefault(cid, told) is not told:
            self.find(f"G1: {told} runs while {self._running.get(cid, 'another')} does.")
        self._enter(cid, event, told)
        try:
            result = self._handler(cid, event)
        except ConversationEnded:
            tally.ended += 1
            raise
        except BaseException as exc:
            tally.raised += 1
            failure = _Failure(f"the failure of {told}", tally.raised % _OUTRAGED)
            self._failures.append(failure)
            setattr(exc, _FAILURE, failure)
            raise
        finally:
            self._running.pop(cid, None)
        if iscoroutine(result):
            tally.coroutines += 1
        else:
            tally.returned += 1
        return result

    def _enter(self, cid: str, event: Event, told: str) -> None:
        """Note that a timer or a message has come, and check that it may."""
        timer = self._timers.get(event.payload)
        if timer is not None:
            if self._own_clock and _monotonic_ns() < timer.not_before:
                self.find(f"G9: {told} is early.")
            if timer.begun:
                self.find(f"G5: {told} is its second.")
            timer.begun.append(None)
            if timer.cancelled:
                self.find(f"G5: {told} begins after its handle's cancel() has returned True.")
            return
        message = self._messages.get(event.payload)
        if message is None:
            self.find(f"G5: {told}: nobody has sent that.")
            return
        target = (cid, event.instance_id)
        if target in message.reached:
            self.find(f"G16: {told} is its second.")
        message.reached[target] = None

    def _on_error(self, cid: str, event: Event, exc: BaseException) -> None:
        self._note(exc, "handed_on", self._unknown_handed_on, outrage=1)

    def _hear(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            return
        exc = record.exc_info[1] if record.exc_info else None
        self._note(exc, "logged", self._unknown_logged, outrage=0)

    def _note(self, exc: BaseException | None, how: str, unknown: list[None], *, outrage: int) -> None:
        failure: _Failure | None = getattr(exc, _FAILURE, None)
        if failure is None:
            unknown.append(None)
            return
        getattr(failure, how).append(None)
        if failure.outrage == outrage:
            raise SystemExit("whoever is told of a failure may fail as well; this is part of the audit")

    # -- helpers -----------------------------------------------------------------------------------------------

    def _call(self, operation: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        tally = self._tally()
        tally.operations += 1
        tally.inside += 1
        try:
            return operation(*arguments, **named)
        finally:
            tally.inside -= 1

    def _tally(self) -> Tally:
        tally = self._mine.tally
        if tally is None:
            tally = self._mine.tally = Tally()
            self._mine.numbers = itertools.count(1)
            with self._lock:
                self._tallies.append(tally)
                self._mine.prefix = len(self._tallies)
        return tally

    def _identity(self, kind: str) -> str:
        """A new id; every thread counts for itself."""
        self._tally()
        return f"{kind}{self._mine.prefix}.{next(self._mine.numbers)}"


class AuditedHandle:
    """A timer's handle whose cancels are counted."""

    __slots__ = ("_audited", "_handle", "_timer", "_told")

    def __init__(self, audited: AuditedRegistry, handle: TimerHandle, timer: _Timer, told: str) -> None:
        self._audited = audited
        self._handle = handle
        self._timer = timer
        self._told = told

    def cancel(self) -> bool:
        """Prevent the delivery; True when this very call did."""
        cancelled = bool(self._audited._call(self._handle.cancel))
        if cancelled:
            self._audited._tally().cancelled += 1
            self._timer.cancelled.append(None)
            if len(self._timer.cancelled) > 1:
                self._audited.find(f"G5: two cancels of {self._told} have returned True.")
        return cancelled


def negative_figures(stats: Stats) -> list[str]:
    """A sentence for each figure that is below zero, which none may ever be."""
    return [
        f"the ledger says {getattr(stats, name)} {name}."
        for name in Stats.__dataclass_fields__
        if getattr(stats, name) < 0
    ]


class _Listener(logging.Handler):
    """A log handler that hands every record on, and lets what that raises through."""

    def __init__(self, hear: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record)
