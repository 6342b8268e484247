"""The event spec, with which timers and subscriptions are registered, and the event, which dispatch receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

from stube._typing import override

__all__ = ["NO_PAYLOAD", "Dispatch", "Event", "EventSpec"]


@final
class _NoPayload:
    """The type of `NO_PAYLOAD`. One instance per process, through copying and pickling too."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return "NO_PAYLOAD"

    @override
    def __reduce__(self) -> str:
        return "NO_PAYLOAD"


NO_PAYLOAD: Final = _NoPayload()
"""The payload of an event that carries none. It is not `None`, because `None` is a payload like any other."""

_NO_SIGNALS: Final[Mapping[str, Any]] = MappingProxyType({})

EventSpec: TypeAlias = str | tuple[str, *tuple[Any, ...]] | list[Any]
"""The event with which a timer or a subscription is registered: a name, or `(name, *payload)` as a tuple or a list."""


class Event:
    """One delivery, as a handler receives it: for which instance, what happened, and with which payload.

    Args:
        instance_id: the component of the conversation that the event is for.
        name: what happened; the name of the event spec.
        payload: what came with it, by reference; `NO_PAYLOAD` when nothing did.
        signals: what a browser posted along; for a host that builds events itself. Empty otherwise.
        due: the instant that the delivery was meant for; a registry sets it.

    Immutable: one `Event` may be handed to many conversations. Equal to an event with equal fields, whatever the
    instants for which they were meant. It matches by position as name, payload, instance:

    >>> match Event("main", "tick", 3):
    ...     case Event("tick", count):
    ...         print("tick", count)
    tick 3
    >>> Event("main", "tick").payload
    NO_PAYLOAD
    """

    # Read-only properties over private slots: five plain stores are the cheapest construction that Python
    # has (a frozen dataclass costs three times as much), and an event is built for nearly every delivery.
    __slots__ = ("_due", "_instance_id", "_name", "_payload", "_signals")
    __match_args__ = ("name", "payload", "instance_id")

    def __init__(
        self,
        instance_id: str,
        name: str,
        payload: Any = NO_PAYLOAD,
        signals: Mapping[str, Any] = _NO_SIGNALS,
        due: int | None = None,
    ) -> None:
        self._instance_id = instance_id
        self._name = name
        self._payload = payload
        self._signals = signals
        self._due = due

    @property
    def instance_id(self) -> str:
        """The component of the conversation that the event is for."""
        return self._instance_id

    @property
    def name(self) -> str:
        """The name of the event: what happened."""
        return self._name

    @property
    def payload(self) -> Any:
        """The payload, or `NO_PAYLOAD`."""
        return self._payload

    @property
    def signals(self) -> Mapping[str, Any]:
        """The signals that a browser posted along; empty for timers and publications."""
        return self._signals

    @property
    def due(self) -> int | None:
        """The ready instant of the delivery, in nanoseconds on the clock of the registry (`Backend.now_ns`).

        Of a timer the instant at which it was due, however late it begins; of a message the instant at which its
        publication was accepted. None for an event that a host built.
        """
        return self._due

    def _key(self) -> tuple[Any, ...]:
        return (self._instance_id, self._name, self._payload, self._signals)

    @override
    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Event) else NotImplemented

    @override
    def __hash__(self) -> int:
        return hash((self._instance_id, self._name, self._payload))

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, so the default stays a default.
        return (_restored, (*self._key()[:3], self._signals or None, self._due))

    @override
    def __repr__(self) -> str:
        signals = f", signals={dict(self._signals)!r}" if self._signals else ""
        payload = "" if self._payload is NO_PAYLOAD else f", {self._payload!r}"
        return f"Event({self._instance_id!r}, {self._name!r}{payload}{signals})"


def _restored(instance_id: str, name: str, payload: Any, signals: Mapping[str, Any] | None, due: int | None) -> Event:
    """Build a copied or unpickled event."""
    return Event(instance_id, name, payload, signals or _NO_SIGNALS, due)


Dispatch: TypeAlias = Callable[[str, Event], None]
"""The host's function, called as `dispatch(cid, event)` for every delivery."""
