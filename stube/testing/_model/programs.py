"""Programs as data: operations that anything with the twelve can perform, and that print as Python source.

A program is a list of operations and a table of what the deliveries of an event name do, so that handlers that call
back are data too. `Stage` performs it on one registry, be it a backend or the model, and keeps what was seen; `source`
prints it as straight-line Python that can be pasted into a test.

What an operation answers is compared later, so whatever it raises is an answer too (`Raised`).
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

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
    "source",
    "touched",
]

MOST_CALLBACKS: Final = 8
"""How many deliveries of a conversation do what the table says, so that handlers which feed themselves have an end."""

_PATIENCE: Final = 1.0  # seconds, with a handle that another thread is about to put into its place

# The things that programs are made of.

touched: Final[list[str]] = []
"""What has been done to a `Touchy`: a registry passes payloads on and does nothing else with them (G17)."""


class Touchy:
    """A payload that notes whatever is done to it but passing it on."""

    __slots__ = ("_label",)

    def __init__(self, label: str) -> None:
        self._label = label

    def __repr__(self) -> str:
        return self._label

    def __eq__(self, other: object) -> bool:
        touched.append("compared")
        return self is other

    def __hash__(self) -> int:
        touched.append("hashed")
        return id(self)

    def __bool__(self) -> bool:
        touched.append("tested")
        return True

    def __reduce__(self) -> str:
        touched.append("copied or pickled")
        return self._label


FIRST: Final = Touchy("FIRST")
SECOND: Final = Touchy("SECOND")


class Alias(str):
    """A name of a subclass of `str`, which counts as its plain string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Alias({str.__repr__(self)})"


class Unusual(BaseException):
    """An exception that is no `Exception`."""


class Interrupt(KeyboardInterrupt):
    """A Ctrl-C that a handler makes; not the one of whoever runs the tests."""


class _Placeholder:
    """Stands for something that is known inside a delivery only."""

    def __init__(self, text: str, value: Callable[[str], str]) -> None:
        self._text = text
        self.value = value

    def __repr__(self) -> str:
        return self._text


OWN: Final[Any] = _Placeholder("cid", lambda cid: cid)
"""Inside a handler: the conversation of the delivery."""
OWN_TOPIC: Final[Any] = _Placeholder('f"topic of {cid}"', "topic of {}".format)
"""Inside a handler: a topic that only this conversation uses."""


def _resolved(value: Any, cid: str | None) -> Any:
    if not isinstance(value, _Placeholder):
        return value
    assert cid is not None, f"{value!r} stands outside of a handler"
    return value.value(cid)


# Answers


class Raised:
    """The answer of an operation that raised. `got == Raised(error)` when what was raised is of that class."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and issubclass(self.error, other.error)

    def __repr__(self) -> str:
        return f"Raised({self.error.__name__})"


_FAILURES: Final = (Exception, SystemExit, Unusual, Interrupt)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call answers: what it returns, or `Raised`."""
    try:
        return call()
    except _FAILURES as exc:
        return Raised(type(exc))


class Answer(NamedTuple):
    """What an operation inside a delivery answered, and in which conversation."""

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
        """Do it; what it returns."""
        positional = [_resolved(value, cid) for value in self.positional]
        named = {name: _resolved(value, cid) for name, value in self.named}
        operation = partial(getattr(stage.registry, self.name), *positional, **named)
        if self.name != "schedule_event":
            return operation()
        # Its place comes first: another thread may deliver it, and that handler schedule, before this call returns.
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
        """The call as Python source."""
        arguments = [*map(repr, self.positional), *(f"{name}={value!r}" for name, value in self.named)]
        text = f"registry.{self.name}({', '.join(arguments)})"
        return f"handles[{dict(self.named)['cid']!r}].append({text})" if self.name == "schedule_event" else text


@dataclass(frozen=True)
class CancelHandle:
    """`cancel()` of the timer that a conversation scheduled as its first, second, …; an IndexError if there is none."""

    cid: Any
    index: int

    def perform(self, stage: Stage, cid: str | None) -> Any:
        """Do it; whether this call prevented the delivery."""
        handles = stage.handles[_resolved(self.cid, cid)]
        handle = handles[self.index]
        if isinstance(handle, threading.Event):  # the call that will return it is under way in another thread
            handle.wait(_PATIENCE)
        return handles[self.index].cancel()

    def source(self) -> str:
        """The call as Python source."""
        return f"handles[{self.cid!r}][{self.index}].cancel()"


@dataclass(frozen=True)
class InstallDispatch:
    """`install_dispatch` of a dispatch that marks what it sees with a number."""

    number: int = 1

    def perform(self, stage: Stage, cid: str | None) -> Any:
        """Do it."""
        stage.registry.install_dispatch(partial(stage.dispatch, number=self.number))

    def source(self) -> str:
        """The call as Python source."""
        dispatch = "dispatch" if self.number == 1 else f"partial(dispatch, number={self.number})"
        return f"registry.install_dispatch({dispatch})"


@dataclass(frozen=True)
class Raise:
    """The end of a handler: it raises."""

    error: type[BaseException]

    def source(self) -> str:
        """The statement as Python source."""
        return f'raise {self.error.__name__}("a handler fails")'


Operation: TypeAlias = Call | CancelHandle | InstallDispatch | Raise


@dataclass(frozen=True)
class Program:
    """Operations for the top level, and for the deliveries of each event name. `Raise` stands in a handler only."""

    operations: tuple[Operation, ...]
    handlers: Mapping[str, tuple[Operation, ...]] = field(default_factory=dict)
    max_pending: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the registry is made with, besides what the backend itself needs."""
        return {} if self.max_pending is None else {"max_pending": self.max_pending}


class Stage:
    """A registry on which a program is performed, and what is seen there. Conversations may be served concurrently.

    `registry` is set by whoever makes it, because the registry needs `on_error` from here.
    """

    def __init__(self, handlers: Mapping[str, tuple[Operation, ...]]) -> None:
        self.registry: Any = None
        self.handles: defaultdict[str, list[Any]] = defaultdict(list)
        self.seen: list[tuple[int, str, Event]] = []
        """Deliveries: the number of the dispatch, the conversation and the event."""
        self.answers: list[Answer] = []
        self.errors: list[tuple[str, Event, str]] = []
        """What `on_error` was told: the conversation, the event and the name of the exception's class."""
        self.overlaps: list[str] = []
        """Conversations that had two deliveries at once."""
        self.callbacks: Counter[str] = Counter()
        self._handlers = handlers
        self._running: set[str] = set()

    def perform(self, operation: Operation, cid: str | None = None) -> Any:
        """Perform an operation of the top level, or with `cid` of a handler; its answer."""
        assert not isinstance(operation, Raise)
        return outcome(lambda: operation.perform(self, cid))

    def dispatch(self, cid: str, event: Event, number: int = 1) -> None:
        """What is installed as dispatch: note the delivery and do what the table says."""
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
        """What the registry is made with as `on_error`."""
        self.errors.append((cid, event, type(exc).__name__))


# A program as Python source


def source(
    program: Program,
    performed: Sequence[tuple[Operation, Any]],
    assertion: str,
    *,
    spec: object,
    options: Mapping[str, Any],
    settles: bool,
    raised: Collection[Operation] = (),
    exhausted: bool = False,
) -> str:
    """What was performed of a program, as Python that ends with `assertion`.

    Args:
        program: for its handlers and options.
        performed: operations of the top level, each with its answer.
        assertion: the last statement. One that is about `answers` or `errors` has them kept.
        spec: what `create_registry` takes.
        options: what the backend itself needs.
        settles: whether `settle` follows every operation.
        raised: operations in handlers that raised.
        exhausted: whether a conversation had more than `MOST_CALLBACKS` deliveries that do something.
    """
    body: list[str] = []
    for operation, answer in performed:
        call = operation.source()
        body += [f"with suppress({answer.error.__name__}):", f"    {call}"] if isinstance(answer, Raised) else [call]
        body += ["registry.settle()"] * settles
    body += assertion.splitlines()
    kept = [name for name in ("answers", "errors", "touched") if _mentions(name, [assertion])]
    arguments = [repr(spec), *(f"{name}={value!r}" for name, value in {**options, **program.options}.items())]
    if "errors" in kept:
        arguments.append("on_error=lambda cid, event, exc: errors.append((cid, event, type(exc).__name__))")
    setting = [
        "seen, handles = [], defaultdict(list)",
        *("touched.clear()" if name == "touched" else f"{name} = []" for name in kept),
        *["calls = Counter()"] * exhausted,
        f"registry = create_registry({', '.join(arguments)})",
        "",
        "def dispatch(cid, event, number=1):",
        "    seen.append((number, cid, event))",
        *_handlers(program.handlers, "answers" in kept, raised, exhausted),
        "",
    ]
    return "\n".join([*_imports([*setting, *body]), *setting, *body]) + "\n"


def _handlers(
    handlers: Mapping[str, tuple[Operation, ...]], keeps_answers: bool, raised: Collection[Operation], exhausted: bool
) -> list[str]:
    lines = []
    if exhausted:
        lines += [f"    calls[cid] += event.name in {sorted(handlers)}"]
        lines += [f"    if calls[cid] > {MOST_CALLBACKS}:", "        return"]
    for name, operations in handlers.items():
        lines.append(f"    if event.name == {name!r}:")
        for operation in operations:
            text = operation.source()
            if keeps_answers and not isinstance(operation, Raise):
                text = f"answers.append((cid, outcome(lambda: {text})))"
            elif any(operation is each for each in raised):
                lines.append("        with suppress(Exception):")
                text = f"    {text}"
            lines.append(f"        {text}")
    return lines


def _mentions(name: str, lines: list[str]) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)


def _imports(lines: list[str]) -> list[str]:
    """The imports that these lines need."""
    import stube

    ours = ("FIRST", "SECOND", "Alias", "Interrupt", "Raised", "Unusual", "outcome", "touched")
    homes: dict[str, tuple[str, ...]] = {
        "collections": ("Counter", "defaultdict"),
        "contextlib": ("suppress",),
        "functools": ("partial",),
        "math": ("inf", "nan"),
        "stube": tuple(stube.__all__),
        "stube.testing._model.model": ("ANY_FIGURE", "Latitude"),
        "stube.testing._model.programs": ours,
    }
    modules = [f"import {name}" for name in ("datetime", "pytest") if _mentions(name, lines)]
    found = {home: [name for name in names if _mentions(name, lines)] for home, names in homes.items()}
    return [*modules, *(f"from {home} import {', '.join(names)}" for home, names in found.items() if names), ""]
