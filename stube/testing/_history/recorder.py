"""Recording what threads do to a registry, and threads that do something at random.

`RecordedRegistry` has the twelve operations and is the dispatch of the registry that it wraps. `random_history` lets
threads run random operations on it, all over a few names so that they collide, and returns the history.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final, cast

from stube import Backend, ConversationEnded, Event, VirtualBackend
from stube.testing._harness import PATIENCE, failures_unlogged, switching_often
from stube.testing._history.records import Call, History, Remainder, Run

__all__ = ["HistoryFailed", "RecordedHandle", "RecordedRegistry", "clock_option", "promised", "random_history"]

# Taken at import, because tests replace attributes of the time module.
_monotonic_ns = time.monotonic_ns
_now = time.perf_counter_ns  # finer than the monotonic clock on some systems, and no less monotonic

_HOUR: Final = 3_600_000  # milliseconds, that no history waits for
_CIDS: Final = ("c1", "c2", "c3")
_INSTANCES: Final = ("i1", "i2")
_TOPICS: Final = ("t1", "t2")
_DELAYS: Final = (0, 0, 0, 0.2, 1, 1, 2, 3, _HOUR, _HOUR)  # milliseconds
_LONGEST_WAIT: Final = 4  # milliseconds; longer than every delay but the hour's
_CLOSING: Final = "closing"  # the conversation of the timer that ends a history

# A row is written before the call and completed after it, so that a call which never returns stands there as well.
_Row = list[Any]


class _Records(threading.local):
    """The rows of one thread; nobody else appends to them, so no lock is in the way of the calls that are recorded."""

    calls: list[_Row] | None = None
    runs: list[_Row]
    name: str


class RecordedRegistry:
    """A registry whose calls and deliveries are recorded: the twelve operations, and the history of them.

    Args:
        registry: what to record; fresh, and used through this only from now on. Deliveries go to the function given to
            this object's `install_dispatch`, and until then to nobody.
        clock: what the registry's own clock shows, in nanoseconds; by default `now_ms` of a `VirtualBackend`, else
            `time.monotonic_ns`.

    A timer's event must be `(name, id)`, and a message an id, each a `str` that is used once; a baton a
    `str` or a number. Any thread may call, from inside a delivery too; not from a signal handler or a finalizer.

    >>> from stube import create_registry
    >>> from stube.testing._history.checker import check_history
    >>> with create_registry("virtual") as backend:
    ...     registry = RecordedRegistry(backend)
    ...     handle = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event=("tick", "timer 1"))
    ...     backend.advance(5)
    ...     history = registry.history(complete=True)
    >>> [str(record) for record in (*history.calls, *history.runs)]  # doctest: +NORMALIZE_WHITESPACE
    ["schedule_event(cid='c1', instance_id='main', delay_ms=5, event=('tick', 'timer 1'))",
     "dispatch('c1', Event('main', 'tick', 'timer 1'))"]
    >>> check_history(history).holds
    True
    """

    def __init__(self, registry: Backend, *, clock: Callable[[], int] | None = None) -> None:
        self._registry = registry
        if clock is None:
            virtual = cast(VirtualBackend, registry) if "virtual_time" in registry.capabilities else None
            clock = _monotonic_ns if virtual is None else lambda: round(virtual.now_ms * 1e6)
        self._clock = clock
        self._handler: Callable[[str, Event], object] = lambda cid, event: None
        self._mine = _Records()
        self._lock = threading.Lock()
        self._threads: list[tuple[str, list[_Row], list[_Row]]] = []  # guarded by the lock
        registry.install_dispatch(self._dispatch)

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Callable[[str, Event], object], /) -> None:
        self._handler = dispatch

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        self._record("put_pending_flow", {"cid": cid, "flow_id": flow_id}, cid, flow_id)

    def pending_flow(self, cid: str, /) -> Any | None:
        return self._record("pending_flow", {"cid": cid}, cid)

    def forget_pending_flow(self, cid: str, /) -> bool:
        return bool(self._record("forget_pending_flow", {"cid": cid}, cid))

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> RecordedHandle:
        name, identity = event
        shown = {"cid": cid, "instance_id": instance_id, "delay_ms": delay_ms, "name": name, "id": identity}
        given = {"cid": cid, "instance_id": instance_id, "delay_ms": delay_ms, "event": event}
        return cast(RecordedHandle, self._record("schedule_event", shown, **given))

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return int(
            self._record("cancel_timers", {"cid": cid, "instance_id": instance_id}, cid, instance_id=instance_id)
        )

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: Any) -> None:
        given = {"cid": cid, "instance_id": instance_id, "topic": topic, "event": event}
        self._record("subscribe", given, **given)

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        given = {"cid": cid, "instance_id": instance_id, "topic": topic}
        return int(self._record("unsubscribe", given, **given))

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        return int(self._record("remove_subscriptions_for_cid", {"cid": cid}, cid))

    def publish(self, topic: str, msg: Any, /) -> int:
        return int(self._record("publish", {"topic": topic, "id": msg}, topic, msg))

    def subscriptions(self) -> dict[str, dict[tuple[str, str], Any]]:
        return cast(dict[str, dict[tuple[str, str], Any]], self._record("subscriptions", {}))

    def reset_state(self) -> None:
        self._record("reset_state", {})

    # -- the history -------------------------------------------------------------------------------------------

    def history(self, *, complete: bool = False) -> History:
        """What was recorded so far.

        Args:
            complete: that nobody calls any more, nothing is ready and nothing runs (`settle` has returned True). Then
                what the registry still holds is looked at, and the checker also looks for what was lost.
        """
        remainder = self._remainder() if complete else None
        with self._lock:
            threads = list(self._threads)
        calls = tuple(Call(name, *row) for name, rows, _ in threads for row in rows.copy())
        runs = tuple(replace(Run(*row), by=name) for name, _, rows in threads for row in rows.copy())
        return History(calls, runs, remainder)

    def _remainder(self) -> Remainder:
        held = self._registry.inspect()
        subscriptions = self._registry.subscriptions()
        return Remainder(
            _now(),
            tuple(timer.event[1] for info in held.values() for timer in info.timers),
            tuple(cid for cid, info in held.items() if info.pending_flow),
            _plain(subscriptions),
        )

    def _rows(self) -> _Records:
        mine = self._mine
        if mine.calls is None:
            mine.calls, mine.runs = [], []
            name = threading.current_thread().name
            with self._lock:
                taken = {other for other, _, _ in self._threads}
                names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
                mine.name = next(one for one in names if one not in taken)
                self._threads.append((mine.name, mine.calls, mine.runs))
        return mine

    def _record(self, operation: str, shown: dict[str, Any], /, *positional: Any, **named: Any) -> Any:
        return self._recorded(getattr(self._registry, operation), operation, shown, *positional, **named)

    def _recorded(
        self, call: Callable[..., Any], operation: str, shown: dict[str, Any], /, *positional: Any, **named: Any
    ) -> Any:
        rows = self._rows().calls
        assert rows is not None
        row: _Row = [operation, shown, _now(), None, None, "", self._clock(), None]
        rows.append(row)
        try:
            result = call(*positional, **named)
        except BaseException as exc:
            row[5] = type(exc).__name__
            row[7] = self._clock()
            row[3] = _now()
            raise
        row[7] = self._clock()
        returned_at = _now()
        if operation == "schedule_event":
            result = RecordedHandle(self, result, shown["id"])
        else:
            row[4] = _plain(result) if operation == "subscriptions" else result
        row[3] = returned_at
        return result

    def _dispatch(self, cid: str, event: Event) -> None:
        row: _Row = [cid, event.instance_id, event.name, event.payload, _now(), None]
        self._rows().runs.append(row)
        try:
            self._handler(cid, event)
        finally:
            row[5] = _now()


class RecordedHandle:
    """A timer's handle whose calls are recorded."""

    __slots__ = ("_handle", "_identity", "_registry")

    def __init__(self, registry: RecordedRegistry, handle: Any, identity: str) -> None:
        self._registry = registry
        self._handle = handle
        self._identity = identity

    def cancel(self) -> bool:
        """Prevent the delivery; True when this very call did."""
        return bool(self._registry._recorded(self._handle.cancel, "cancel", {"id": self._identity}))


def _plain(subscriptions: dict[str, dict[tuple[str, str], Any]]) -> tuple[tuple[str, str, str], ...]:
    return tuple((topic, *subscriber) for topic, subscribers in subscriptions.items() for subscriber in subscribers)


# Random threads


class HistoryFailed(AssertionError):  # noqa: N818 - a state that is met, not a mistake
    """A history could not be brought to its end; what was recorded until then may tell why."""

    def __init__(self, reason: str, history: History) -> None:
        super().__init__(reason)
        self.history = history
        """Incomplete."""


def promised(capabilities: Collection[str]) -> dict[str, Any]:
    """What `check_history` may be told of histories that were recorded here of a backend with these capabilities.

    Where the registry's clock can be neither read nor chosen, it is taken to be 5 ms near the monotonic one: enough for
    a loop that looks at its clock once in a round, and for systems whose clock moves in large steps to be let off.
    """
    return {
        "common_topic_order": "common_topic_order" in capabilities,
        "one_instant_snapshot": "one_instant_snapshot" in capabilities,
        "clock_error_ns": 0 if {"virtual_time", "own_clock"} & set(capabilities) else 5_000_000,
    }


def clock_option(capabilities: Collection[str]) -> dict[str, Callable[[], int]]:
    """The option with which a registry reads the very clock that is recorded here, if it has one."""
    return {"clock": _monotonic_ns} if "own_clock" in capabilities else {}


def random_history(
    registry: Backend, *, threads: int = 4, operations: int = 200, seed: int = 0, mostly: str | None = None
) -> History:
    """Let threads run random operations on a fresh registry, and its handlers as well; the complete history of it.

    Args:
        registry: a backend that nobody else uses. On a virtual clock one thread more moves the clock.
        threads: how many.
        operations: of each thread; on a virtual clock a few thousand at most, for all may fall on one instant.
        seed: decides what each thread does. What comes of it is up to the scheduler of the system.
        mostly: `"batons"`, `"timers"` or `"topics"`; None for all alike.

    Raises:
        HistoryFailed: an operation raised, a thread hangs, or the registry does not come to rest.

    The interpreter switches threads as often as it can meanwhile, in the whole process; failures of handlers, which are
    part of it, stay out of the log. About 50 µs for an operation, and 10 ms until the last timers are through.
    """
    workload = _Workload(registry, seed, mostly)
    workers = [
        threading.Thread(target=workload.run, args=(number, operations), name=f"thread {number}", daemon=True)
        for number in range(threads)
    ]
    with switching_often(), failures_unlogged():
        for worker in workers:
            worker.start()
        try:
            workload.move_until_over(workers)
            workload.come_to_rest()
        except Exception as exc:
            raise HistoryFailed(f"seed {seed}: {exc}", workload.recorded.history()) from exc
    return workload.recorded.history(complete=True)


class _Workload:
    """What the threads and the handlers of one history do."""

    def __init__(self, registry: Backend, seed: int, mostly: str | None) -> None:
        self.recorded = RecordedRegistry(registry)
        self._errors: list[BaseException] = []
        self._weights = [
            weight * (_MORE if part == mostly else 1) for part, steps in _PARTS.items() for weight in steps.values()
        ]
        self._registry = registry
        self._clock = cast(VirtualBackend, registry) if "virtual_time" in registry.capabilities else None
        self._seed = seed
        self._deliverers = itertools.count()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._prefixes = itertools.count(1)  # guarded by the lock
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._pause = threading.Event()  # never set: waiting for it is the pace of the threads against the deliveries
        self.recorded.install_dispatch(self._handle)

    def run(self, number: int, operations: int) -> None:
        """What one thread does."""
        chance = random.Random(f"{self._seed} {number}")
        handles: list[RecordedHandle] = []
        try:
            for _ in range(operations):
                self._operate(chance, handles)
                if chance.random() < 0.03:
                    self._pause.wait(chance.random() * 0.001)
        except BaseException as exc:  # noqa: BLE001 - handed to the caller
            self._errors.append(exc)

    def move_until_over(self, workers: list[threading.Thread]) -> None:
        """Wait for the threads; on a virtual clock move it meanwhile, from this one thread."""
        chance = random.Random(f"{self._seed} clock")
        if self._clock is not None:
            while any(worker.is_alive() for worker in workers):
                self._clock.advance(chance.choice((0.1, 0.3, 1)))
                self._pause.wait(0.0003)
        for worker in workers:
            worker.join(PATIENCE)
        if any(worker.is_alive() for worker in workers):
            raise TimeoutError("a thread hangs")
        if self._errors:
            raise self._errors[0]

    def come_to_rest(self) -> None:
        """Let the timers that are not an hour's become due, and everything ready be delivered; handlers do nothing
        more."""
        self._closing.set()
        if self._clock is not None:
            self._clock.advance(_LONGEST_WAIT)
            return
        self.recorded.schedule_event(
            cid=_CLOSING, instance_id=_CLOSING, delay_ms=_LONGEST_WAIT, event=(_CLOSING, _CLOSING)
        )
        if not self._closed.wait(PATIENCE):
            raise TimeoutError(f"a timer of {_LONGEST_WAIT} ms does not fire")
        if not self._registry.settle(PATIENCE):
            raise TimeoutError(f"the registry does not settle: {self._registry.stats().equation}")

    def _identity(self, kind: str) -> str:
        """A new id; every thread counts for itself, for a lock here would keep the threads in step."""
        local = self._local
        if not hasattr(local, "numbers"):
            with self._lock:
                local.prefix = next(self._prefixes)
            local.numbers = itertools.count(1)
        return f"{kind}{local.prefix}.{next(local.numbers)}"

    def _operate(self, chance: random.Random, handles: list[RecordedHandle]) -> None:
        registry, cid = self.recorded, chance.choice(_CIDS)
        instance_id, topic = chance.choice(_INSTANCES), chance.choice(_TOPICS)
        match chance.choices(_STEPS, self._weights)[0]:
            case "schedule":
                handles.append(self._schedule(cid, instance_id, chance.choice(_DELAYS)))
            case "cancel handle":
                if handles:
                    handles[-chance.randint(1, min(3, len(handles)))].cancel()
            case "cancel timers":
                registry.cancel_timers(cid, instance_id=chance.choice((None, instance_id)))
            case "publish":
                registry.publish(topic, self._identity("m"))
            case "subscribe":
                registry.subscribe(cid=cid, instance_id=instance_id, topic=topic, event="said")
            case "unsubscribe":
                registry.unsubscribe(cid=cid, instance_id=instance_id, topic=chance.choice((None, topic)))
            case "remove":
                registry.remove_subscriptions_for_cid(cid)
            case "put":
                registry.put_pending_flow(cid, self._identity("f"))
            case "take":
                registry.pending_flow(cid)
            case "forget":
                registry.forget_pending_flow(cid)
            case "look":
                registry.subscriptions()
            case "reset":
                registry.reset_state()

    def _schedule(self, cid: str, instance_id: str, delay_ms: float) -> RecordedHandle:
        event = ("due", self._identity("t"))
        return self.recorded.schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)

    def _handle(self, cid: str, event: Event) -> None:
        """What the handlers do: often nothing, at times something that concerns what is being delivered."""
        if cid == _CLOSING:
            self._closed.set()
            return
        if self._closing.is_set():
            return
        chance: random.Random | None = getattr(self._local, "chance", None)
        if chance is None:
            chance = self._local.chance = random.Random(f"{self._seed} deliverer {next(self._deliverers)}")
        registry = self.recorded
        match chance.choices(_REACTIONS, _REACTION_WEIGHTS)[0]:
            case "schedule":
                self._schedule(cid, event.instance_id, chance.choice(_DELAYS))
            case "cancel":
                registry.cancel_timers(cid)
            case "publish":
                registry.publish(chance.choice(_TOPICS), self._identity("m"))
            case "unsubscribe":
                registry.unsubscribe(cid=cid, instance_id=event.instance_id)
            case "remove":
                registry.remove_subscriptions_for_cid(cid)
            case "take":
                registry.pending_flow(cid)
            case "wait":
                self._pause.wait(chance.random() * 0.0005)
            case "raise":
                raise chance.choice((LookupError, ConversationEnded))("part of the history")


# How often each step is taken; the parts can be told to be what happens mostly.
_PARTS: Final[dict[str, dict[str, float]]] = {
    "batons": {"put": 6, "take": 7, "forget": 2},
    "timers": {"schedule": 24, "cancel handle": 8, "cancel timers": 7},
    "topics": {"publish": 16, "subscribe": 16, "unsubscribe": 6, "remove": 2, "look": 2},
    "all": {"reset": 0.6},
}
_MORE: Final = 12
_STEPS: Final = [step for steps in _PARTS.values() for step in steps]
# Few of them publish, so that what one message brings about comes to an end.
_REACTIONS, _REACTION_WEIGHTS = zip(
    ("nothing", 67), ("schedule", 8), ("cancel", 3), ("publish", 3), ("unsubscribe", 3), ("remove", 1),
    ("take", 2), ("wait", 10), ("raise", 3),
    strict=True,
)  # fmt: skip
