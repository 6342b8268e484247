"""What local backends share, public for authors of backends (provisional until 1.0).

From the inside out: `TimerWheel`, `TimerGroups` and `TopicIndex` hold what is pending; `ReadyOrder` merges timers and
publications; `Ledger` counts; `Engine` is all of that together, one call at a time, without lock, thread or clock.
`Core` puts one engine behind a lock that is handed in; `Deliverer` delivers from a core; `LocalRegistry` is the twelve
operations on it, to which a backend adds the lock, a clock and whoever delivers; `ServedRegistry` is that with a loop
which sleeps and delivers, to which a backend adds the thread; `ThreadedRegistry` has one. `Siblings` and `together` are
for a registry on several cores.
"""

from stube_backends.engine._arguments import (
    PlainEvent,
    checked_dispatch,
    checked_timeout,
    delay_in_nanoseconds,
    is_coroutine_function,
    milliseconds,
    name_of,
    plain_event,
    plain_name,
)
from stube_backends.engine._awaiting import AwaitingDeliverer, HandlerHangs
from stube_backends.engine._backlogs import ConversationFull, Limits, OnFull, Overflow, checked_limits
from stube_backends.engine._batches import Burst, Walk
from stube_backends.engine._claims import Claims, SerialClaims
from stube_backends.engine._core import FOREVER, NESTED, Core, ReentrantLock, Siblings, Waiter, log, together
from stube_backends.engine._delivery import Deliverer, OnError
from stube_backends.engine._engine import Engine, raise_closed, registry_full
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._local import AsyncClosing, LocalRegistry, live_registries
from stube_backends.engine._mailboxes import AGAIN, Mailbox, MailboxClaims
from stube_backends.engine._order import EARLIEST, Publication, ReadyOrder
from stube_backends.engine._serving import ServedCore, ServedRegistry, close_at_exit
from stube_backends.engine._threaded import ThreadedRegistry
from stube_backends.engine._timers import Group, Timer, TimerGroups, TimerOwner
from stube_backends.engine._topics import LEAVING, Subscription, Topic, TopicIndex
from stube_backends.engine._wheel import LONG, SLOT_BITS, Slot, TimerWheel

__all__ = [
    "AGAIN",
    "EARLIEST",
    "FOREVER",
    "LEAVING",
    "LONG",
    "NESTED",
    "SLOT_BITS",
    "AsyncClosing",
    "AwaitingDeliverer",
    "Burst",
    "Claims",
    "ConversationFull",
    "Core",
    "Deliverer",
    "Engine",
    "Group",
    "HandlerHangs",
    "Ledger",
    "Limits",
    "LocalRegistry",
    "Mailbox",
    "MailboxClaims",
    "OnError",
    "OnFull",
    "Overflow",
    "PlainEvent",
    "Publication",
    "ReadyOrder",
    "ReentrantLock",
    "SerialClaims",
    "ServedCore",
    "ServedRegistry",
    "Siblings",
    "Slot",
    "Subscription",
    "ThreadedRegistry",
    "Timer",
    "TimerGroups",
    "TimerOwner",
    "TimerWheel",
    "Topic",
    "TopicIndex",
    "Waiter",
    "Walk",
    "checked_dispatch",
    "checked_limits",
    "checked_timeout",
    "close_at_exit",
    "delay_in_nanoseconds",
    "inspect",
    "is_coroutine_function",
    "live_registries",
    "log",
    "milliseconds",
    "name_of",
    "plain_event",
    "plain_name",
    "raise_closed",
    "registry_full",
    "sizes",
    "together",
]
