"""The records of a history: the calls on a registry and its deliveries, as data and as text for people.

All values are plain, so that a history can be saved as JSON, and histories of several processes can be merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from typing_extensions import override

from stube.testing._contract.guarantees import GUARANTEES

__all__ = ["Call", "History", "Record", "Remainder", "Run", "Violation", "arguments_of", "in_time"]

_FORMAT: Final = "stube history 1"
_POSITIONAL: Final = {
    "put_pending_flow": ("cid", "flow_id"),
    "pending_flow": ("cid",),
    "forget_pending_flow": ("cid",),
    "cancel_timers": ("cid",),
    "remove_subscriptions_for_cid": ("cid",),
    "publish": ("topic", "id"),
}


def arguments_of(operation: str, positional: Iterable[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, as `Call.arguments` has them."""
    return {**dict(zip(_POSITIONAL.get(operation, ()), positional, strict=True)), **named}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation.

    Instants are nanoseconds of one clock, which the recorder reads before the call and after its return. The checker
    needs the readings of the registry's own clock for timers and publications; it finds more if all calls have them.
    """

    client: str
    """The caller: a thread, or a process and its thread. One client makes one call at a time."""
    operation: str
    """One of the twelve, or `cancel` for a timer's handle."""
    arguments: Mapping[str, Any]
    """By name. A timer's event is given as `name` and `id`, a published message as `id`, a handle as its timer's `id`.
    An id is a `str` that no other timer or message of the history has."""
    called_at: int
    returned_at: int | None
    """None if the call never returned. It may have taken effect, or not, and has no result."""
    result: Any = None
    """The returned value: a count, a `bool` or a baton; for `subscriptions` a tuple of (topic, cid, instance)."""
    error: str = ""
    """The name of the exception, if it raised one. Then it has changed nothing (G15)."""
    clock_before: int | None = None
    """The reading of the registry's clock, in nanoseconds, taken after `called_at` and before the call; None if it was
    not read."""
    clock_after: int | None = None
    """The reading after the return and before `returned_at`."""

    @override
    def __str__(self) -> str:
        given = {name: value for name, value in self.arguments.items() if value is not None}
        if self.operation == "schedule_event":
            given["event"] = (given.pop("name"), given.pop("id"))
        if self.operation == "cancel":
            call = f"cancel() of the handle of {given['id']!r}"
        else:
            positional = [repr(given.pop(name)) for name in _POSITIONAL.get(self.operation, ())]
            call = (
                f"{self.operation}({', '.join([*positional, *(f'{name}={value!r}' for name, value in given.items())])})"
            )
        if self.returned_at is None:
            return f"{call} never returned"
        if self.error:
            return f"{call} raised {self.error}"
        silent = self.result is None and self.operation != "pending_flow"
        return call if silent else f"{call} -> {self.result!r}"


@dataclass(frozen=True, slots=True)
class Run:
    """One delivery, as dispatch saw it. Its instants are on the same clock as those of calls."""

    cid: str
    instance_id: str
    name: str
    id: str
    """Of the timer or the message."""
    began_at: int
    """The entry into dispatch. The registry claimed the delivery before that."""
    ended_at: int | None
    """None if it never ended."""
    by: str = ""
    """The delivery thread, or a process and its thread."""
    error: str = ""
    """The name of the exception that left dispatch, if one did."""
    clock: int | None = None
    """The reading of the registry's clock, in nanoseconds, taken after `began_at`; None if it was not read."""
    due: int | None = None
    """The instant on the same clock for which the delivery was meant, as its event showed it."""

    @override
    def __str__(self) -> str:
        never = "" if self.ended_at is not None else ", which never ended"
        return f"dispatch({self.cid!r}, Event({self.instance_id!r}, {self.name!r}, {self.id!r})){never}"


@dataclass(frozen=True, slots=True)
class Remainder:
    """The contents of the registry in the end, when no thread called, nothing was ready and nothing ran."""

    at: int
    timers: tuple[str, ...] = ()
    """The ids of the timers that were pending."""
    flows: tuple[str, ...] = ()
    """The conversations whose baton waited."""
    subscriptions: tuple[tuple[str, str, str], ...] = ()
    """Each as topic, cid, instance."""

    @override
    def __str__(self) -> str:
        held = {"timers": self.timers, "batons": self.flows, "subscriptions": self.subscriptions}
        return "in the end: " + ", ".join(
            f"{name} {', '.join(map(str, what)) or 'none'}" for name, what in held.items()
        )


Record = Call | Run | Remainder


@dataclass(frozen=True, slots=True)
class History:
    """Everything that happened to one registry since it was made. If a call or delivery is missing, others look wrong.

    A recorder in one process stamps with one clock that all threads read alike. Recorders of several processes stamp
    with clocks that differ by at most a known bound, which is given to `check_history`. The stamps must enclose what
    the registry does: a recorder reads the clock before it calls and after the return, and in dispatch first and last.
    Calls that a signal handler or a finalizer makes inside another call do not belong into a history.
    """

    calls: tuple[Call, ...] = ()
    runs: tuple[Run, ...] = ()
    remainder: Remainder | None = None
    """None if the history was cut off. Then the checker says nothing about what has not been delivered."""

    def merged(self, *others: History) -> History:
        """Return one history of the records of several recorders; the last remainder counts."""
        histories = (self, *others)
        remainders = [one.remainder for one in histories if one.remainder is not None]
        return History(
            tuple(call for one in histories for call in one.calls),
            tuple(run for one in histories for run in one.runs),
            max(remainders, key=lambda one: one.at, default=None),
        )

    def to_json(self) -> str:
        """Return the history as JSON, on one line."""
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> History:
        """Return the history that `to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        read = json.loads(text)
        if not isinstance(read, dict) or read.get("format") != _FORMAT:
            raise ValueError(f"This is no {_FORMAT!r}. Pass what History.to_json has written.")
        calls = tuple(Call(**{**call, "result": _frozen(call["result"])}) for call in read["calls"])
        rest = read["remainder"]
        remainder = None if rest is None else Remainder(**{name: _frozen(value) for name, value in rest.items()})
        return cls(calls, tuple(Run(**run) for run in read["runs"]), remainder)

    @property
    def begins_at(self) -> int:
        """The instant of the first record; 0 if there is none."""
        return min((*(call.called_at for call in self.calls), *(run.began_at for run in self.runs)), default=0)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Violation:
    """A guarantee that a history breaks, and the few records that show it. Its `str` tells both."""

    guarantee: str
    """`G5` and the like."""
    summary: str
    """One sentence."""
    evidence: tuple[Record, ...]
    """In chronological order."""
    begins_at: int = field(default=0, repr=False)
    """The instant that the text shows as 0."""

    @override
    def __str__(self) -> str:
        title = f"{self.guarantee} ({GUARANTEES[self.guarantee].title}) is broken: {self.summary}"
        spans = [tuple(self._shown(instant) for instant in _span(record)) for record in self.evidence]
        doers = [_doer(record) for record in self.evidence]
        wide = [max(map(len, column), default=0) for column in (*zip(*spans, strict=True), doers)]
        lines = [
            f"  {start:>{wide[0]}} to {end:>{wide[1]}} ms  {doer:{wide[2]}}  {record}"
            for (start, end), doer, record in zip(spans, doers, self.evidence, strict=True)
        ]
        return "\n".join([title, *lines])

    def _shown(self, instant: int | None) -> str:
        return "never" if instant is None else f"{(instant - self.begins_at) / 1e6:.3f}"


def _span(record: Record) -> tuple[int, int | None]:
    match record:
        case Call():
            return record.called_at, record.returned_at
        case Run():
            return record.began_at, record.ended_at
        case Remainder():
            return record.at, record.at


def _doer(record: Record) -> str:
    return record.client if isinstance(record, Call) else record.by if isinstance(record, Run) else ""


def in_time(records: Iterable[Record | None]) -> tuple[Record, ...]:
    """Return the records in chronological order, each once, without the missing ones."""
    kept: list[Record] = []
    for record in sorted((one for one in records if one is not None), key=lambda one: _span(one)[0]):
        if not any(record is other for other in kept):
            kept.append(record)
    return tuple(kept)
