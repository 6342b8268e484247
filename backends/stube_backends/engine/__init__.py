"""The parts of a local registry, public for authors of backends (provisional until 1.0).

A registry in one process consists of a core and a driver. `LocalRegistry` is the twelve operations on a core; a backend
derives from it and says in `_new_driver` which driver runs the deliveries. `Core` is one `Engine` behind a lock; the
engine is all the state, without lock, thread or clock. `ThreadDriver` delivers on a thread of the registry's own; a
backend that needs another kind of driver derives it from `Driver` and delivers with a `Deliverer`. `Options` are the
options that every local backend has, `Failures` reports what handlers raise.
"""

from stube_backends.engine._arguments import (
    PlainEvent,
    checked_timeout,
    delay_in_nanoseconds,
    milliseconds,
    must_be_awaited,
    name_of,
    plain_name,
)
from stube_backends.engine._awaiting import AsyncClosing, AwaitingDeliverer, HandlerHangs
from stube_backends.engine._backlogs import ConversationFull, Limits, OnFull
from stube_backends.engine._core import FOREVER, REENTRANT, Core, ShardGroup, Waiter, run_all_locked
from stube_backends.engine._delivery import Deliverer
from stube_backends.engine._driver import Driver, refuse_inside, sleep_seconds
from stube_backends.engine._engine import Engine, raise_closed_to_dispatch, registry_full
from stube_backends.engine._failures import Failures, OnError, log
from stube_backends.engine._local import LocalRegistry
from stube_backends.engine._mailboxes import AGAIN, Mailbox, MailboxClaims
from stube_backends.engine._options import Options
from stube_backends.engine._order import EARLIEST, ReadyOrder, SerialClaims
from stube_backends.engine._thread_driver import Spawn, ThreadDriver, daemon_thread
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import FanOut
from stube_backends.engine._waiting import (
    decide_sleep_locked,
    delist_locked,
    enlist_locked,
    release_waiters_locked,
    wait_until_idle,
)

__all__ = [
    "AGAIN",
    "EARLIEST",
    "FOREVER",
    "REENTRANT",
    "AsyncClosing",
    "AwaitingDeliverer",
    "DueBatch",
    "ConversationFull",
    "Core",
    "Deliverer",
    "Driver",
    "Engine",
    "Failures",
    "HandlerHangs",
    "Limits",
    "LocalRegistry",
    "Mailbox",
    "MailboxClaims",
    "OnError",
    "OnFull",
    "Options",
    "PlainEvent",
    "ReadyOrder",
    "SerialClaims",
    "ShardGroup",
    "Spawn",
    "ThreadDriver",
    "Timer",
    "Waiter",
    "FanOut",
    "checked_timeout",
    "daemon_thread",
    "decide_sleep_locked",
    "delay_in_nanoseconds",
    "delist_locked",
    "enlist_locked",
    "must_be_awaited",
    "log",
    "milliseconds",
    "name_of",
    "plain_name",
    "raise_closed_to_dispatch",
    "refuse_inside",
    "registry_full",
    "release_waiters_locked",
    "run_all_locked",
    "sleep_seconds",
    "wait_until_idle",
]
