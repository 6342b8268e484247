"""Timers, publish/subscribe and page-to-stream hand-off for applications that hold many live conversations.

>>> import stube
>>> registry = stube.create_registry("virtual")
>>> registry.install_dispatch(lambda cid, event: print(registry.now_ms, cid, event))
>>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=30 * 60_000, event="idle")
>>> registry.advance(30 * 60_000)
1800000.0 c1 Event('main', 'idle')
"""

from stube._callables import is_coroutine_function
from stube._clock import monotonic_ns
from stube._conversations import Conversation, Conversations
from stube._errors import (
    BackendLoadError,
    ConfigError,
    ConversationEnded,
    RegistryClosed,
    RegistryFull,
    StubeError,
    UnknownBackendError,
    VirtualTimeError,
)
from stube._events import NO_PAYLOAD, Dispatch, Event, EventSpec
from stube._factory import BackendInfo, available_backends, create_registry, registry_from_env
from stube._periodic import Missed, PeriodicTimer, event_for_dispatch
from stube._registry import (
    AsyncBackend,
    Backend,
    Delivery,
    Registry,
    TimerHandle,
    VirtualBackend,
    is_async,
    is_virtual,
)
from stube._stats import ConversationInfo, Stats, SubscriptionInfo, TimerInfo

__version__ = "0.1.0"

__all__ = [
    "NO_PAYLOAD",
    "AsyncBackend",
    "Backend",
    "BackendInfo",
    "BackendLoadError",
    "ConfigError",
    "Conversation",
    "ConversationEnded",
    "ConversationInfo",
    "Conversations",
    "Delivery",
    "Dispatch",
    "Event",
    "EventSpec",
    "Missed",
    "PeriodicTimer",
    "Registry",
    "RegistryClosed",
    "RegistryFull",
    "Stats",
    "StubeError",
    "SubscriptionInfo",
    "TimerHandle",
    "TimerInfo",
    "UnknownBackendError",
    "VirtualBackend",
    "VirtualTimeError",
    "__version__",
    "available_backends",
    "create_registry",
    "event_for_dispatch",
    "is_async",
    "is_coroutine_function",
    "is_virtual",
    "monotonic_ns",
    "registry_from_env",
]
