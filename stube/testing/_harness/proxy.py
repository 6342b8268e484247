"""A registry in front of another one, for tests that watch or change what passes through it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, cast

from stube import Backend, ConversationInfo, Dispatch, Stats, TimerHandle

__all__ = ["RegistryProxy"]


class RegistryProxy:
    """A registry that passes everything on to another registry.

    Each of the twelve operations goes through `_operate`, so a subclass can watch all of them there, or override one
    operation to change it. The rest of `Backend` can be overridden as well; an attribute that `Backend` does not have,
    such as `sizes`, is that of the other registry. Timer handles are those of the other registry, too.

    >>> from stube import create_registry
    >>> class Deaf(RegistryProxy):
    ...     def publish(self, topic, msg, /):
    ...         return 0
    >>> with Deaf(create_registry("virtual")) as registry:
    ...     registry.subscribe(cid="c1", instance_id="main", topic="t", event="said")
    ...     registry.publish("t", "hello"), registry.stats().subscriptions
    (0, 1)
    """

    def __init__(self, registry: Backend) -> None:
        self.registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self.registry, name)

    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        """Perform one operation: `call(*positional, **named)`. The name of the operation is for subclasses."""
        return call(*positional, **named)

    end_conversation = None  # a handle performs its operations, so that a subclass sees each of them

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        self._operate("install_dispatch", self.registry.install_dispatch, dispatch)

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        self._operate("put_pending_flow", self.registry.put_pending_flow, cid, flow_id)

    def pending_flow(self, cid: str, /) -> Any | None:
        return self._operate("pending_flow", self.registry.pending_flow, cid)

    def forget_pending_flow(self, cid: str, /) -> bool:
        return cast(bool, self._operate("forget_pending_flow", self.registry.forget_pending_flow, cid))

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> TimerHandle:
        handle = self._operate(
            "schedule_event",
            self.registry.schedule_event,
            cid=cid,
            instance_id=instance_id,
            delay_ms=delay_ms,
            event=event,
        )
        return cast(TimerHandle, handle)

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        return cast(int, self._operate("cancel_timers", self.registry.cancel_timers, cid, instance_id=instance_id))

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: Any) -> None:
        self._operate("subscribe", self.registry.subscribe, cid=cid, instance_id=instance_id, topic=topic, event=event)

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        count = self._operate("unsubscribe", self.registry.unsubscribe, cid=cid, instance_id=instance_id, topic=topic)
        return cast(int, count)

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        call = self.registry.remove_subscriptions_for_cid
        return cast(int, self._operate("remove_subscriptions_for_cid", call, cid))

    def publish(self, topic: str, msg: Any, /) -> int:
        return cast(int, self._operate("publish", self.registry.publish, topic, msg))

    def subscriptions(self) -> dict[str, dict[tuple[str, str], Any]]:
        found = self._operate("subscriptions", self.registry.subscriptions)
        return cast("dict[str, dict[tuple[str, str], Any]]", found)

    def reset_state(self) -> None:
        self._operate("reset_state", self.registry.reset_state)

    # -- the rest of Backend -----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> frozenset[str]:
        return self.registry.capabilities

    def close(self, timeout: float | None = 5.0) -> bool:
        return self.registry.close(timeout)

    def settle(self, timeout: float | None = 5.0) -> bool:
        return self.registry.settle(timeout)

    def join(self, timeout: float | None = 5.0) -> bool:
        return self.registry.join(timeout)

    @property
    def now_ns(self) -> int:
        return self.registry.now_ns

    def stats(self) -> Stats:
        return self.registry.stats()

    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        return self.registry.inspect(cid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
