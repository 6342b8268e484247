"""The recorder: a registry whose calls and deliveries become a history."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import Any, cast

from typing_extensions import override

from stube import AsyncBackend, Backend, Dispatch, Event, TimerHandle, is_coroutine_function, is_virtual
from stube.testing._harness import RegistryProxy, monotonic_ns, perf_counter_ns
from stube.testing._history.records import Call, History, Remainder, Run, arguments_of

__all__ = ["RecordedHandle", "RecordedRegistry", "clock_option", "promised"]

# A row holds the fields of a Call or a Run. It is appended before the call and completed after it, so that a call
# which never returns is in the history as well.
_Row = list[Any]
_RETURNED_AT, _RESULT, _CALL_ERROR, _CLOCK_AFTER = 3, 4, 5, 7  # the fields of a Call, counted from behind the client
_ENDED_AT, _BY, _RUN_ERROR = 5, 6, 7  # the fields of a Run


class _Records(threading.local):
    """The rows of one thread. No other thread appends to them, so the recorder takes no lock during a call."""

    calls: list[_Row] | None = None
    runs: list[_Row]
    name: str


class RecordedRegistry(RegistryProxy):
    """A registry whose calls and deliveries are recorded: the twelve operations, and their history.

    Args:
        registry: what to record. It must be fresh, and from now on be used through this object only. Deliveries go to
            the function given to this object's `install_dispatch`; those before it do nothing.
        clock: what the registry's own clock shows, in nanoseconds; by default `now_ms` of a `VirtualBackend`, else
            `time.monotonic_ns`.

    `check_history` needs ids: a timer's event must then be `(name, id)`, and a message an id, each a `str` that is used
    once; a baton a `str` or a number. Whatever else is scheduled or published is recorded with the id `""`.
    Any thread may call, from inside a delivery too, but not a signal handler or a finalizer.

    >>> from stube import create_registry
    >>> from stube.testing import check_history
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
        super().__init__(registry)
        self._clock = clock or _clock_of(registry)
        self._mine = _Records()
        self._lock = threading.Lock()
        self._threads: list[tuple[str, list[_Row], list[_Row]]] = []  # guarded by the lock
        self.install_dispatch(lambda cid, event: None)

    # -- the operations that are not simply recorded -----------------------------------------------------------

    @override
    def install_dispatch(self, dispatch: Callable[[str, Event], Any], /) -> None:
        if is_coroutine_function(dispatch):

            async def record_awaiting(cid: str, event: Event) -> None:
                row = self._begin(cid, event)
                try:
                    await cast("Callable[[str, Event], Awaitable[None]]", dispatch)(cid, event)
                except BaseException as exc:
                    row[_RUN_ERROR] = type(exc).__name__
                    raise
                finally:
                    row[_ENDED_AT] = perf_counter_ns()

            cast(AsyncBackend, self.registry).install_dispatch(record_awaiting)
            return

        def record(cid: str, event: Event) -> Any:
            row = self._begin(cid, event)
            try:
                return dispatch(cid, event)
            except BaseException as exc:
                row[_RUN_ERROR] = type(exc).__name__
                raise
            finally:
                row[_ENDED_AT] = perf_counter_ns()

        self.registry.install_dispatch(cast(Dispatch, record))

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> RecordedHandle:
        handle = super().schedule_event(cid=cid, instance_id=instance_id, delay_ms=delay_ms, event=event)
        return RecordedHandle(self, handle, _name_and_id(event)["id"])

    @override
    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        shown = arguments_of(operation, positional, named)
        if operation == "schedule_event":
            shown |= _name_and_id(shown.pop("event"))
        elif operation == "publish":
            shown["id"] = _identity(shown["id"])
        return self._record(operation, shown, call, *positional, **named)

    # -- the history -------------------------------------------------------------------------------------------

    def history(self, *, complete: bool = False) -> History:
        """The history up to now.

        Args:
            complete: True promises that no thread calls any more, nothing is ready and nothing runs (`settle` has
                returned True). Then the history says what the registry still holds, and the checker also looks for
                what was lost.
        """
        remainder = self._remainder() if complete else None
        with self._lock:
            threads = list(self._threads)
        calls = tuple(Call(name, *row) for name, rows, _ in threads for row in rows.copy())
        runs = tuple(Run(*_with(row, _BY, name)) for name, _, rows in threads for row in rows.copy())
        return History(calls, runs, remainder)

    def _remainder(self) -> Remainder:
        held = self.registry.inspect()
        subscriptions = self.registry.subscriptions()
        return Remainder(
            perf_counter_ns(),
            tuple(_name_and_id(timer.event)["id"] for info in held.values() for timer in info.timers),
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

    def _record(
        self, operation: str, shown: dict[str, Any], call: Callable[..., Any], /, *positional: Any, **named: Any
    ) -> Any:
        rows = self._rows().calls
        assert rows is not None
        row: _Row = [operation, shown, perf_counter_ns(), None, None, "", self._clock(), None]
        rows.append(row)
        try:
            result = call(*positional, **named)
        except BaseException as exc:
            row[_CALL_ERROR] = type(exc).__name__
            row[_CLOCK_AFTER] = self._clock()
            row[_RETURNED_AT] = perf_counter_ns()
            raise
        row[_CLOCK_AFTER] = self._clock()
        returned_at = perf_counter_ns()
        if operation == "subscriptions":
            row[_RESULT] = _plain(result)
        elif operation != "schedule_event":
            row[_RESULT] = result
        row[_RETURNED_AT] = returned_at
        return result

    def _begin(self, cid: str, event: Event) -> _Row:
        """Record that a delivery has entered dispatch."""
        began_at = perf_counter_ns()
        row: _Row = [
            cid,
            event.instance_id,
            event.name,
            _identity(event.payload),
            began_at,
            None,
            "",
            "",
            self._clock(),
            event.due,
        ]
        self._rows().runs.append(row)
        return row


def _with(row: _Row, field: int, value: object) -> _Row:
    return [*row[:field], value, *row[field + 1 :]]


class RecordedHandle:
    """A timer's handle whose calls are recorded."""

    __slots__ = ("_handle", "_id", "_registry")

    def __init__(self, registry: RecordedRegistry, handle: TimerHandle, identity: str) -> None:
        self._registry = registry
        self._handle = handle
        self._id = identity

    def cancel(self) -> bool:
        """Prevent the delivery; True when this very call did."""
        return cast(bool, self._registry._record("cancel", {"id": self._id}, self._handle.cancel))


def _clock_of(registry: Backend) -> Callable[[], int]:
    if not is_virtual(registry):
        return monotonic_ns
    virtual = registry
    return lambda: round(virtual.now_ms * 1e6)


def _name_and_id(event: Any) -> dict[str, Any]:
    """The name of an event as `schedule_event` takes it, and the id in it."""
    name, payload = event if isinstance(event, tuple) and len(event) == 2 else (event, None)
    return {"name": name, "id": _identity(payload)}


def _identity(payload: object) -> str:
    return payload if isinstance(payload, str) else ""


def _plain(subscriptions: dict[str, dict[tuple[str, str], Any]]) -> tuple[tuple[str, str, str], ...]:
    return tuple((topic, *subscriber) for topic, subscribers in subscriptions.items() for subscriber in subscribers)


def promised(capabilities: Collection[str]) -> dict[str, Any]:
    """The arguments of `check_history` for histories that were recorded here of a backend with these capabilities.

    Where the registry's clock can be neither read nor chosen, it counts as at most 5 ms away from the monotonic clock.
    That is enough for a loop that reads its clock once in a round, and for systems whose clock moves in large steps.
    """
    return {
        "common_topic_order": "common_topic_order" in capabilities,
        "one_instant_snapshot": "one_instant_snapshot" in capabilities,
        "clock_error_ns": 0 if {"virtual_time", "own_clock"} & set(capabilities) else 5_000_000,
    }


def clock_option(capabilities: Collection[str]) -> dict[str, Callable[[], int]]:
    """The option that makes a registry read the very clock that is recorded here, if it takes a clock."""
    return {"clock": monotonic_ns} if "own_clock" in capabilities else {}
