"""The contract of a registry, as Protocols whose docstrings are the specification.

`Registry` has the twelve operations and nothing else: it is what a host's own code should ask for. `Backend` is
what `create_registry` returns: the twelve, and the care of a running registry. `VirtualBackend` and
`AsyncBackend` add what only those two kinds have.

Numbers such as G5 name the guarantees that `docs/guarantees.md` spells out; the conformance suite proves each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

from stube._events import Dispatch, Event, EventSpec
from stube._stats import ConversationInfo, Stats
from stube._typing import override

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = [
    "AsyncBackend",
    "Backend",
    "Delivery",
    "Registry",
    "TimerHandle",
    "VirtualBackend",
    "is_async",
    "is_virtual",
]


@runtime_checkable
class TimerHandle(Protocol):
    """One scheduled timer. Keeping it costs nothing: a handle that outlives its timer holds no payload alive."""

    def cancel(self) -> bool:
        """Prevent the delivery; True when this very call did, False when it had begun or was cancelled before.

        Final (G5): after True the delivery never begins. Any thread; amortised O(1).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     handle = registry.schedule_event(cid="c1", instance_id="main", delay_ms=50, event="tick")
        ...     handle.cancel(), handle.cancel()
        (True, False)
        """
        ...


@runtime_checkable
class Registry(Protocol):
    """The twelve operations on timers, topics and batons of live conversations.

    Every operation may be called from any thread at any time and has taken effect when it returns (G21); also
    from inside a delivery, from a finalizer and from a signal handler (G20: one that interrupts an operation of
    the same registry on the same thread takes effect at the latest when that operation returns, and may return
    0). Names (`cid`, `instance_id`, `topic`) are non-empty `str`; a subclass is taken as its plain string, and
    none of its methods is called. A wrong argument raises `TypeError` or `ValueError` at the call and nothing has
    changed (G15).

    The deliveries of one conversation run one at a time (G1), in the order of their ready instants (G2): the due
    instant of a timer, the instant at which a publication was accepted; ties in the order of acceptance.
    """

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        """Say where deliveries go from now on: `dispatch(cid, event)`.

        Args:
            dispatch: called once for every delivery, never on the caller's own stack (G3). It is looked up when
                a delivery begins. Until the first call deliveries go to a function that does nothing.

        Whatever it raises is counted, logged and handed to `on_error`; it stops no other delivery (G19).

        Raises:
            TypeError: `dispatch` is not callable, or is an `async def` that this backend cannot await.
            RegistryClosed: the registry has been closed.

        O(1).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.install_dispatch(lambda cid, event: print(cid, event))
        ...     _ = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event=("tick", 1))
        ...     registry.advance(5)
        c1 Event('main', 'tick', 1)
        """
        ...

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        """Record the baton of a conversation: the flow that its first stream must boot.

        Args:
            cid: the conversation.
            flow_id: anything but `None`. A second put replaces the first.

        Raises:
            TypeError: `cid` is not a `str`, or `flow_id` is `None`.
            ValueError: `cid` is empty.
            RegistryClosed: the registry has been closed.

        Kept until it is taken, forgotten or reset. O(1).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.put_pending_flow("c1", "checkout")
        ...     registry.pending_flow("c1"), registry.pending_flow("c1")
        ('checkout', None)
        """
        ...

    def pending_flow(self, cid: str, /) -> Any | None:
        """Take the baton: return the flow id and forget it; `None` when it was taken, forgotten or never put.

        However many callers there are, exactly one gets it (G8). Silent on a closed registry. O(1).

        Raises:
            TypeError: `cid` is not a `str`.
            ValueError: `cid` is empty.

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.pending_flow("never-put") is None
        True
        """
        ...

    def forget_pending_flow(self, cid: str, /) -> bool:
        """Drop the baton; return whether there was one. For a conversation that ends before its stream came.

        Silent on a closed registry. O(1).

        Raises:
            TypeError: `cid` is not a `str`.
            ValueError: `cid` is empty.

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.put_pending_flow("c1", 0)
        ...     registry.forget_pending_flow("c1"), registry.forget_pending_flow("c1")
        (True, False)
        """
        ...

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        """Deliver `event` to the instance once, `delay_ms` from now.

        Args:
            cid: the conversation.
            instance_id: the component of it.
            delay_ms: milliseconds, `int` or `float`; fractions count, a negative delay means 0, every finite
                delay is waited for (G11).
            event: a name, delivered without payload; `(name, x)`, delivered with payload `x`; `(name, x, y)`,
                delivered with payload `(x, y)`. A list is taken as a tuple at the call.

        Returns:
            A handle that cancels this one timer.

        Raises:
            TypeError: an argument has the wrong type; `bool` is not a number here.
            ValueError: a name is empty, or the delay is NaN or infinite.
            RegistryFull: the registry holds `max_pending` timers and messages already.
            RegistryClosed: the registry has been closed.

        It begins never early (G9), and promptly even when an earlier one makes the scheduler change its mind
        (G10). Two timers due at one instant begin in the order in which they were scheduled. Amortised O(1);
        behind others of the next 134 ms a binary search and a move. Order costs O(log n) of a slot, once, when due.

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.install_dispatch(lambda cid, event: print(registry.now_ms, event.name))
        ...     _ = registry.schedule_event(cid="c1", instance_id="main", delay_ms=20, event="late")
        ...     _ = registry.schedule_event(cid="c1", instance_id="main", delay_ms=10, event="early")
        ...     registry.advance(100)
        10.0 early
        20.0 late
        """
        ...

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        """Cancel the timers of a conversation, or of one of its instances; return how many this call cancelled.

        Final (G5): none of them begins after the return, one already due included. A delivery that has begun
        runs to its end and is not counted (G6). What they held is free on return (G13).

        Raises:
            TypeError: a name is not a `str`.
            ValueError: a name is empty.

        Silent on a closed registry. O(number of timers cancelled).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     for delay in (10, 20):
        ...         _ = registry.schedule_event(cid="c1", instance_id="main", delay_ms=delay, event="tick")
        ...     registry.cancel_timers("c1"), registry.cancel_timers("c1")
        (2, 0)
        """
        ...

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        """From now on messages on `topic` reach the instance as `event`.

        Args:
            cid: the conversation.
            instance_id: the component of it.
            topic: the channel.
            event: its *name* is what the message arrives under; the message itself is the payload.

        The same conversation, instance and topic again replaces the event and keeps its place in the order.
        Subscribing anew after an unsubscribe does not revive old messages (G5).

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: a name is empty.
            RegistryClosed: the registry has been closed.

        O(1), whatever else the registry holds (G14).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.subscribe(cid="c1", instance_id="chat", topic="lobby", event="said")
        ...     registry.subscriptions()
        {'lobby': {('c1', 'chat'): 'said'}}
        """
        ...

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        """Remove one subscription, or all of the instance when `topic` is None; return how many were removed.

        Final (G5): no message that was queued for it begins after the return.

        Raises:
            TypeError: a name is not a `str`.
            ValueError: a name is empty.

        Silent on a closed registry. Amortised O(number removed).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     for topic in ("lobby", "news"):
        ...         registry.subscribe(cid="c1", instance_id="chat", topic=topic, event="said")
        ...     registry.unsubscribe(cid="c1", instance_id="chat", topic="lobby")
        ...     registry.unsubscribe(cid="c1", instance_id="chat")
        1
        1
        """
        ...

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        """Remove every subscription of a conversation; return how many. Final (G5), as `unsubscribe` is.

        Raises:
            TypeError: `cid` is not a `str`.
            ValueError: `cid` is empty.

        Silent on a closed registry. Amortised O(number removed), however many subscribers the topics have.

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.subscribe(cid="c1", instance_id="chat", topic="lobby", event="said")
        ...     registry.remove_subscriptions_for_cid("c1")
        1
        """
        ...

    def publish(self, topic: str, msg: Any, /) -> int:
        """Deliver `msg` to every subscriber of `topic`, asynchronously, in the order in which they subscribed.

        Args:
            topic: the channel.
            msg: any object. It is passed by reference and never copied, compared, hashed or tested (G17); a
                backend that crosses processes refuses here what it cannot carry.

        Returns:
            How many subscribers were targeted: those of one instant (G16).

        Raises:
            TypeError: `topic` is not a `str`.
            ValueError: `topic` is empty.
            RegistryFull: the targets would pass `max_pending`; then no subscriber gets the message.
            RegistryClosed: the registry has been closed.

        One publisher's messages on one topic reach each subscriber in the order of publishing (G4). O(1) for
        the caller at any number of subscribers (G14).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.install_dispatch(lambda cid, event: print(cid, event))
        ...     registry.subscribe(cid="c1", instance_id="chat", topic="lobby", event="said")
        ...     registry.publish("lobby", "hello")
        ...     registry.settle()
        1
        c1 Event('chat', 'said', 'hello')
        True
        """
        ...

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        """A snapshot `{topic: {(cid, instance_id): event}}` of plain dicts, the subscribers in their order: of one
        conversation always, of all where the backend promises `common_topic_order`.

        Never raises while others change it (G16); the caller may do with it what they like. No topic in it is
        empty. Empty on a closed registry. O(number of subscriptions).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.subscriptions()
        {}
        """
        ...

    def reset_state(self) -> None:
        """Forget every baton, timer, subscription and undelivered message; the installed dispatch stays.

        After the return nothing that was accepted before it begins (G18); a delivery that has begun runs on.
        Silent on a closed registry. O(what is forgotten).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.put_pending_flow("c1", "checkout")
        ...     registry.reset_state()
        ...     registry.stats().pending_flows
        0
        """
        ...


class Backend(Registry, Protocol):
    """What `create_registry` returns: the twelve operations, and the care of a running registry.

    Used as a context manager it closes at the end and discards what has not begun. To deliver the rest, call `settle`
    or `join` before.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """The optional promises that this backend makes; what is absent is not promised."""
        ...

    def close(self, timeout: float | None = 5.0) -> bool:
        """Stop for good: discard what has not begun and wait until a running delivery has ended.

        Args:
            timeout: seconds to wait at most, any finite number; `None` for as long as it takes.

        Returns:
            True when everything has stopped; False while a delivery still runs, such as the one that calls.

        Idempotent. May be called from inside a delivery, and then does not wait. Afterwards the adding
        operations and `install_dispatch` raise `RegistryClosed`; the removing ones, the baton's pop and the
        snapshots are silent and empty, so that clean-up code never fails (G24).
        """
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def settle(self, timeout: float | None = 5.0) -> bool:
        """Wait until nothing is ready and nothing runs; whether that came about within `timeout` seconds.

        Timers that are not due yet are left alone. On return nothing is kept alive that was delivered or passed over
        (G13). `timeout` is any finite number, or None for as long as it takes.

        Raises:
            RuntimeError: called from inside a delivery, which would wait for itself.
        """
        ...

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending at all, timers included; whether that came about within `timeout` seconds.

        Raises:
            RuntimeError: called from inside a delivery, which would wait for itself.
        """
        ...

    @property
    def now_ns(self) -> int:
        """The present instant on the registry's clock, in nanoseconds; that of `Event.due`. Any thread; O(1).

        >>> from stube import create_registry
        >>> with create_registry("virtual") as registry:
        ...     registry.install_dispatch(lambda cid, event: print(event.due, registry.now_ns))
        ...     _ = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
        ...     registry.advance(6)
        ...     registry.now_ns
        5000000 5000000
        6000000
        """
        ...

    def stats(self) -> Stats:
        """The ledger at one instant (on a sharded or distributed backend: nearly one). O(1)."""
        ...

    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        """Show what the registry holds, conversation by conversation; with `cid` only that one, if it holds anything.

        For people and for debugging: O(what is pending), and other operations wait until it is done.
        """
        ...


class Delivery(NamedTuple):
    """One delivery in the trace of a virtual registry. It keeps no payload alive."""

    at_ms: float
    """The instant at which it began."""
    cid: str
    instance_id: str
    name: str
    cause: str
    """`"timer"`, or `"topic "` and the topic's name."""


class VirtualBackend(Backend, Protocol):
    """A registry on a clock that only its caller moves; deliveries run on the caller's own stack, inside
    `advance`, `run_until_idle`, `settle` and `join`. Deterministic, without a thread.

    `join` moves the clock as far as it must; its timeout is counted in virtual seconds.
    """

    @override
    def install_dispatch(self, dispatch: Dispatch | Callable[[str, Event], Awaitable[None]], /) -> None:
        """Say where deliveries go from now on: a function, or a coroutine function, which `advance_async` awaits."""
        ...

    @property
    def now_ms(self) -> float:
        """The instant that the virtual clock shows, in milliseconds."""
        ...

    def next_due_ms(self) -> float | None:
        """The instant of the earliest pending delivery, in milliseconds on the same clock; None when none is."""
        ...

    def advance(self, step: float | timedelta, /) -> None:
        """Move the clock `step` onwards (milliseconds or a `timedelta`), to each due instant in turn.

        A handler sees its own instant, and what it schedules inside the window begins inside the window.

        Raises:
            VirtualTimeError: a negative step (before anything changes); called from inside a delivery or from
                two threads; or handlers that schedule or publish without end at one instant.
        """
        ...

    async def advance_async(self, step: float | timedelta, /, *, patience: float | None = 5.0) -> None:
        """`advance` for coroutine handlers: the next delivery begins when the handler before it has returned.

        The handlers run in a task of their own, with an empty context.

        Args:
            step: milliseconds or a `timedelta`.
            patience: seconds of real time that one handler may take; None for as long as it takes.

        Raises:
            VirtualTimeError: as `advance`; or a handler took longer, and was cancelled.
        """
        ...

    async def settled(self, timeout: float | None = 5.0) -> bool:
        """`settle` for coroutine handlers; False when one took longer than `timeout` seconds of real time."""
        ...

    async def joined(self, timeout: float | None = None) -> bool:
        """`join` for coroutine handlers, of which each has five seconds of real time."""
        ...

    async def aclose(self, timeout: float | None = 5.0) -> bool:
        """`close`, which has nothing to wait for."""
        ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        await self.aclose()

    def run_until_idle(self, limit: int = 100_000) -> int:
        """Move the clock from due instant to due instant until nothing is pending; how many deliveries that took.

        Raises:
            VirtualTimeError: more than `limit` deliveries, looked at after each instant; what is pending stays pending.
        """
        ...

    @property
    def trace(self) -> Sequence[Delivery]:
        """The latest deliveries, oldest first; bounded."""
        ...


class AsyncBackend(Backend, Protocol):
    """A registry whose scheduler is the event loop; dispatch may be a coroutine function."""

    @override
    def install_dispatch(self, dispatch: Callable[[str, Event], Awaitable[None] | None], /) -> None:
        """Say where deliveries go from now on: a function or a coroutine function."""
        ...

    async def settled(self, timeout: float | None = 5.0) -> bool:
        """`settle` for the loop's own thread."""
        ...

    async def joined(self, timeout: float | None = None) -> bool:
        """`join` for the loop's own thread."""
        ...

    async def aclose(self, timeout: float | None = 5.0) -> bool:
        """`close` for the loop's own thread: waits for running deliveries."""
        ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        await self.aclose()


def is_virtual(registry: Registry) -> TypeIs[VirtualBackend]:
    """Tell whether the registry's clock is moved by its caller, so that it is a `VirtualBackend`.

    It must promise the capability `virtual_time` and have the methods. A type checker then knows them too.

    >>> from stube import create_registry, is_virtual
    >>> with create_registry("virtual") as registry:
    ...     is_virtual(registry)
    True
    """
    return "virtual_time" in _capabilities(registry) and _has(registry, "advance", "advance_async", "run_until_idle")


def is_async(registry: Registry) -> TypeIs[AsyncBackend]:
    """Tell whether the registry's scheduler is the event loop, so that it is an `AsyncBackend`.

    It must promise the capability `coroutine_dispatch`, not promise `virtual_time`, and have the methods. A virtual
    registry awaits coroutine handlers as well, but only while its caller moves the clock.

    >>> from stube import create_registry, is_async
    >>> with create_registry("asyncio") as registry, create_registry("virtual") as virtual:
    ...     is_async(registry), is_async(virtual)
    (True, False)
    """
    capabilities = _capabilities(registry)
    awaits = "coroutine_dispatch" in capabilities and "virtual_time" not in capabilities
    return awaits and _has(registry, "settled", "joined", "aclose")


def _capabilities(registry: Registry) -> frozenset[str]:
    """The promises of the registry; none, when it has the twelve operations alone."""
    return getattr(registry, "capabilities", frozenset())


def _has(registry: Registry, *methods: str) -> bool:
    return all(callable(getattr(registry, method, None)) for method in methods)
