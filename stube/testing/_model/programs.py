"""Programs as data: operations that every registry and the model can perform.

A program is a list of operations, and a table of the operations that the deliveries of an event name perform, so that
handlers are data, too. `Stage` performs a program on one registry, a backend or the model, and records what happens.

The answers of operations are compared later, so an exception is an answer, too (`Raised`).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from typing_extensions import override

from stube import Event

__all__ = [
    "FIRST",
    "MOST_CALLBACKS",
    "OWN",
    "OWN_TOPIC",
    "SECOND",
    "Alias",
    "Answer",
    "Call",
    "CancelHandle",
    "InstallDispatch",
    "Interrupt",
    "Operation",
    "Program",
    "Raise",
    "Raised",
    "Stage",
    "Touchy",
    "Unusual",
    "outcome",
    "touched",
]

MOST_CALLBACKS: Final = 8
"""How many deliveries of a conversation perform operations, so that handlers which re-arm themselves come to an end."""

_PATIENCE: Final = 1.0  # seconds to wait for a handle that another thread is about to put into its place

# The values that programs use.

touched: Final[list[str]] = []
"""What was done to a `Touchy`. A registry passes payloads on and does nothing else with them (G17)."""


class Touchy:
    """A payload that records everything that is done to it, except passing it on."""

    __slots__ = ("_label",)

    def __init__(self, label: str) -> None:
        self._label = label

    @override
    def __repr__(self) -> str:
        return self._label

    @override
    def __eq__(self, other: object) -> bool:
        touched.append("compared")
        return self is other

    @override
    def __hash__(self) -> int:
        touched.append("hashed")
        return id(self)

    def __bool__(self) -> bool:
        touched.append("tested")
        return True

    @override
    def __reduce__(self) -> str:
        touched.append("copied or pickled")
        return self._label


FIRST: Final = Touchy("FIRST")
SECOND: Final = Touchy("SECOND")


class Alias(str):
    """A name of a subclass of `str`, which a registry treats as the plain string."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return f"Alias({str.__repr__(self)})"


class Unusual(BaseException):
    """An exception that is no `Exception`."""


class Interrupt(KeyboardInterrupt):
    """A KeyboardInterrupt that a handler raises, unlike that of the person who runs the tests."""


class _Placeholder:
    """A value that is known only inside a delivery."""

    def __init__(self, text: str, value: Callable[[str], str]) -> None:
        self._text = text
        self.value = value

    @override
    def __repr__(self) -> str:
        return self._text


OWN: Final[Any] = _Placeholder("cid", lambda cid: cid)
"""Inside a handler: the conversation of the delivery."""
OWN_TOPIC: Final[Any] = _Placeholder('f"topic of {cid}"', "topic of {}".format)
"""Inside a handler: a topic that only this conversation uses."""


def _resolved(value: Any, cid: str | None) -> Any:
    if not isinstance(value, _Placeholder):
        return value
    assert cid is not None, f"{value!r} is used outside a handler"
    return value.value(cid)


# Answers


class Raised:
    """The answer of an operation that raised. `got == Raised(error)` if it raised an exception of that class."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and issubclass(self.error, other.error)

    @override
    def __repr__(self) -> str:
        return f"Raised({self.error.__name__})"


_FAILURES: Final = (Exception, SystemExit, Unusual, Interrupt)


def outcome(call: Callable[[], Any]) -> Any:
    """Return the answer of a call: its result, or `Raised`."""
    try:
        return call()
    except _FAILURES as exc:
        return Raised(type(exc))


class Answer(NamedTuple):
    """The answer of an operation inside a delivery of a conversation."""

    cid: str
    operation: Operation
    value: Any


# Operations


@dataclass(frozen=True)
class Call:
    """A call of one of the registry's methods. A timer's handle goes to the conversation's list of handles."""

    name: str
    positional: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()

    def perform(self, stage: Stage, cid: str | None) -> Any:
        """Call the method and return its result."""
        positional = [_resolved(value, cid) for value in self.positional]
        named = {name: _resolved(value, cid) for name, value in self.named}
        operation = partial(getattr(stage.registry, self.name), *positional, **named)
        if self.name != "schedule_event":
            return operation()
        # Reserve the place first: before this call returns, another thread may deliver the timer and schedule the next.
        handles = stage.handles[named["cid"]] if isinstance(named["cid"], str) else []
        place = len(handles)
        coming = threading.Event()
        handles.append(coming)
        try:
            handles[place] = operation()
        except BaseException:
            del handles[place]
            raise
        finally:
            coming.set()
        return None

    def source(self) -> str:
        """Return the call as Python source."""
        arguments = [*map(repr, self.positional), *(f"{name}={value!r}" for name, value in self.named)]
        text = f"registry.{self.name}({', '.join(arguments)})"
        return f"handles[{dict(self.named)['cid']!r}].append({text})" if self.name == "schedule_event" else text


@dataclass(frozen=True)
class CancelHandle:
    """`cancel()` of the first, second ... timer that a conversation scheduled; an IndexError if there is none."""

    cid: Any
    index: int

    def perform(self, stage: Stage, cid: str | None) -> Any:
        """Cancel, and return whether this call prevented the delivery."""
        handles = stage.handles[_resolved(self.cid, cid)]
        handle = handles[self.index]
        if isinstance(handle, threading.Event):  # the call that will return it is under way in another thread
            handle.wait(_PATIENCE)
        return handles[self.index].cancel()

    def source(self) -> str:
        """Return the call as Python source."""
        return f"handles[{self.cid!r}][{self.index}].cancel()"


@dataclass(frozen=True)
class InstallDispatch:
    """`install_dispatch` of a dispatch that marks each delivery with a number."""

    number: int = 1

    def perform(self, stage: Stage, cid: str | None) -> Any:
        """Install it."""
        stage.registry.install_dispatch(partial(stage.dispatch, number=self.number))

    def source(self) -> str:
        """Return the call as Python source."""
        dispatch = "dispatch" if self.number == 1 else f"partial(dispatch, number={self.number})"
        return f"registry.install_dispatch({dispatch})"


@dataclass(frozen=True)
class Raise:
    """The end of a handler that raises."""

    error: type[BaseException]

    def source(self) -> str:
        """Return the statement as Python source."""
        return f'raise {self.error.__name__}("a handler fails")'


Operation: TypeAlias = Call | CancelHandle | InstallDispatch | Raise


@dataclass(frozen=True)
class Program:
    """Operations for the top level and for the deliveries of each event name. `Raise` may be used in a handler only."""

    operations: tuple[Operation, ...]
    handlers: Mapping[str, tuple[Operation, ...]] = field(default_factory=dict)
    max_pending: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the registry, besides those that the backend itself needs."""
        return {} if self.max_pending is None else {"max_pending": self.max_pending}


class Stage:
    """A registry on which a program is performed, and the record of it. Conversations may be served concurrently.

    The caller sets `registry` afterwards, because the registry needs `on_error` of this object.
    """

    def __init__(self, handlers: Mapping[str, tuple[Operation, ...]]) -> None:
        self.registry: Any = None
        self.handles: defaultdict[str, list[Any]] = defaultdict(list)
        self.seen: list[tuple[int, str, Event]] = []
        """Deliveries: the number of the dispatch, the conversation and the event."""
        self.answers: list[Answer] = []
        self.errors: list[tuple[str, Event, str]] = []
        """The calls of `on_error`: the conversation, the event and the name of the exception's class."""
        self.overlaps: list[str] = []
        """Conversations that had two deliveries at the same time."""
        self.callbacks: Counter[str] = Counter()
        self._handlers = handlers
        self._running: set[str] = set()

    def perform(self, operation: Operation, cid: str | None = None) -> Any:
        """Perform an operation of the top level, or with `cid` of a handler, and return its answer."""
        assert not isinstance(operation, Raise)
        return outcome(lambda: operation.perform(self, cid))

    def dispatch(self, cid: str, event: Event, number: int = 1) -> None:
        """The dispatch: record the delivery and perform the operations of the table."""
        self.seen.append((number, cid, event))
        if cid in self._running:
            self.overlaps.append(cid)
        self._running.add(cid)
        try:
            self.callbacks[cid] += event.name in self._handlers
            if self.callbacks[cid] > MOST_CALLBACKS:
                return
            for operation in self._handlers.get(event.name, ()):
                if isinstance(operation, Raise):
                    raise operation.error("a handler fails")
                self.answers.append(Answer(cid, operation, self.perform(operation, cid)))
        finally:
            self._running.discard(cid)

    def on_error(self, cid: str, event: Event, exc: BaseException) -> None:
        """The registry's `on_error`."""
        self.errors.append((cid, event, type(exc).__name__))
