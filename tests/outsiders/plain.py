"""A registry as a good author writes it first: one re-entrant lock, a heap of timers, one lazily started thread.

Every change runs under one lock, in `PlainRegistry._perform`. A signal handler or a finalizer may interrupt a change
and call an operation on the same thread; `_perform` notices and postpones that call to the end of the change.

A signal handler may also raise at any line of a change. So each change is made by one line, marked `commit`, which
stores the figures and the mark that they count (a timer's `pending`, say) in one assignment that nothing can
interrupt. The lines before and after it only add or remove what the mark already tells to ignore, and
`_State.recover` redoes them when a change did not reach its end.

No user code runs under the lock: what a change removes goes into a list, `trash`, that is freed when the lock is free.

Callers' threads run the operations; the registry's thread runs dispatch and `on_error`.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from logging import getLogger
from typing import Any, TypeAlias, TypeVar

from typing_extensions import override

from stube import (
    NO_PAYLOAD,
    Backend,
    ConversationEnded,
    ConversationInfo,
    Dispatch,
    Event,
    EventSpec,
    RegistryClosed,
    RegistryFull,
    Stats,
    SubscriptionInfo,
    TimerHandle,
    TimerInfo,
    is_coroutine_function,
    monotonic_ns,
)

__all__ = ["PlainRegistry"]

_logger = getLogger("stube")

_K = TypeVar("_K")
_T = TypeVar("_T")
_Spec: TypeAlias = str | tuple[Any, ...]
_Trash: TypeAlias = list[object]
_Change: TypeAlias = "Callable[[_State, _Trash], _T]"
_Job: TypeAlias = tuple[Dispatch, str, Event]
_OnError: TypeAlias = Callable[[str, Event, BaseException], object]

_AWAKE = -math.inf  # the thread looks again anyway
_FOREVER = -1.0  # a lock's timeout
_LOOKS = 256  # targets that the thread passes over before it lets others have the lock
_LONGEST_NS = int(threading.TIMEOUT_MAX) * 1_000_000_000  # what a lock can wait for
_NOTHING = ConversationInfo()
_AT_EXIT_NS = 500_000_000  # how long a program that ends waits for running deliveries


# Arguments


def _name(value: object, what: str) -> str:
    """Return a name as a plain string, or refuse it."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}. Give a non-empty str.")
    plain = str.__str__(value)
    if not plain:
        raise ValueError(f"{what} must not be empty. Give a non-empty str.")
    return plain


def _spec(event: object) -> _Spec:
    """Return an event spec as a name or a plain tuple, or refuse it."""
    if isinstance(event, str):
        return _name(event, "the event's name")
    if not isinstance(event, (tuple, list)):
        raise TypeError(f"event must be a str, a tuple or a list, not {type(event).__name__}. Give (name, *payload).")
    if not event:
        raise ValueError("event must not be empty. Give a name, or (name, *payload).")
    return (_name(event[0], "the event's name"), *event[1:])


def _event_name(spec: _Spec) -> str:
    return spec if isinstance(spec, str) else str(spec[0])


def _event_payload(spec: _Spec) -> Any:
    if isinstance(spec, str) or len(spec) == 1:
        return NO_PAYLOAD
    if len(spec) == 2:
        return spec[1]
    return spec[1:]


def _delay_ns(delay_ms: object) -> int:
    """Return a delay in whole nanoseconds, rounded up, or refuse it."""
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):
        raise TypeError(f"delay_ms must be an int or a float, not {type(delay_ms).__name__}. Give milliseconds.")
    if isinstance(delay_ms, int):
        return max(0, int.__index__(delay_ms) * 1_000_000)
    if not math.isfinite(delay_ms):
        raise ValueError(f"delay_ms must be finite, not {delay_ms}. Give milliseconds.")
    exact = float.__float__(delay_ms)
    nanoseconds = exact * 1e6
    if math.isinf(nanoseconds):  # the product is beyond a float; an int holds it
        return max(0, int(exact) * 1_000_000)
    return max(0, math.ceil(nanoseconds))


def _seconds(timeout: float | None) -> float:
    """Return a timeout as a lock takes it."""
    if timeout is None:
        return _FOREVER
    return float(min(max(timeout, 0), threading.TIMEOUT_MAX))


def _milliseconds(nanoseconds: int) -> float:
    try:
        return max(0, nanoseconds) / 1_000_000
    except OverflowError:
        return math.inf


# A bell is a plain lock that is locked until somebody rings. Unlike an Event or a Condition it has no lines of Python,
# so a signal handler can interrupt no half of it.


def _new_bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


def _ring(bell: threading.Lock | None, _ref: object = None) -> None:
    """Wake whoever waits at the bell, or who will wait next."""
    if bell is None:
        return
    try:
        bell.release()
    except RuntimeError:  # it rings already
        pass


# What the registry holds

# Timers and subscriptions are found by conversation and instance. No container stays that has become empty.
_Tree: TypeAlias = dict[str, dict[str, dict[_K, _T]]]


def _put(tree: _Tree[_K, _T], cid: str, instance_id: str, key: _K, value: _T) -> None:
    tree.setdefault(cid, {}).setdefault(instance_id, {})[key] = value


def _find(tree: _Tree[_K, _T], cid: str, instance_id: str | None = None) -> list[_T]:
    """Return what one instance has, or all instances of the conversation."""
    instances = tree.get(cid, {})
    groups = instances.values() if instance_id is None else [instances.get(instance_id, {})]
    return [value for group in groups for value in group.values()]


def _remove(tree: _Tree[_K, _T], cid: str, instance_id: str, key: _K) -> None:
    _pop(tree[cid][instance_id], key)
    if not tree[cid][instance_id]:
        _pop(tree[cid], instance_id)
    if not tree[cid]:
        _pop(tree, cid)


def _pop(table: dict[_K, _T], key: _K) -> _T | None:
    value = table.pop(key, None)
    if not table:
        table.clear()  # gives back the memory of the keys that it had
    return value


def _live_part(tree: _Tree[_K, _T], is_live: Callable[[_T], bool]) -> _Tree[_K, _T]:
    live: _Tree[_K, _T] = {}
    for cid, instances in tree.items():
        for instance_id, group in instances.items():
            for key, value in group.items():
                if is_live(value):
                    _put(live, cid, instance_id, key, value)
    return live


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Timer:
    """One timer. It lives while `home`, the contents that accepted it, are the present ones, and it is `pending`."""

    cid: str
    instance_id: str
    spec: _Spec
    home: _Contents | None = None
    pending: bool = True  # neither begun nor cancelled
    due: int = 0
    number: int = 0


@dataclass(slots=True, eq=False)
class _Subscription:
    """One subscription. It lives when it has begun and has not ended; the two are numbers of the acceptance order."""

    cid: str
    instance_id: str
    topic: _Topic
    spec: _Spec
    began: int = 0
    ended: int = 0

    def is_live(self) -> bool:
        return self.began > 0 and self.ended == 0

    def is_target_of(self, publication: _Publication) -> bool:
        """Tell whether it lived at the instant of the publication."""
        if not 0 < self.began < publication.number:
            return False
        return self.ended == 0 or self.ended > publication.number


@dataclass(slots=True, eq=False)
class _Topic:
    """The subscriptions of a topic in their order, ended ones between them until a compaction."""

    name: str
    order: list[_Subscription] = field(default_factory=list)
    live: int = 0

    def compact(self) -> None:
        # A new list, because publications in the queue have positions in the old one.
        self.order = [subscription for subscription in self.order if subscription.is_live()]


@dataclass(slots=True, eq=False)
class _Publication:
    """A message on its way: its targets are in the first `length` places of `order`; those before `place` are done."""

    message: object
    order: list[_Subscription] = field(default_factory=list)
    length: int = 0
    place: int = 0
    instant: int = 0
    number: int = 0
    accepted: bool = False

    def targets_left(self) -> list[_Subscription]:
        places = range(self.place, self.length if self.accepted else 0)
        return [self.order[place] for place in places if self.order[place].is_target_of(self)]


class _Contents:
    """Everything that a reset forgets. A reset makes a new one."""

    def __init__(self) -> None:
        self.flows: dict[str, Any] = {}
        self.timers_by_cid: _Tree[int, _Timer] = {}
        self.subscriptions_by_cid: _Tree[str, _Subscription] = {}
        self.topics: dict[str, _Topic] = {}
        self.heap: list[tuple[int, int, _Timer]] = []  # cancelled timers too, until a compaction
        self.queue: deque[_Publication] = deque()
        self.timers = 0
        self.queued = 0
        self.subscriptions = 0

    def is_live(self, timer: _Timer) -> bool:
        return timer.pending and timer.home is self

    def next_timer(self) -> _Timer | None:
        """Return the timer that is due first; remove those before it that live no longer."""
        while self.heap:
            timer = self.heap[0][2]
            if self.is_live(timer):
                return timer
            heappop(self.heap)
        return None

    def compact_heap(self) -> None:
        """Rebuild the heap when more than half of it is cancelled, so that each removal costs O(1) in the long run."""
        if len(self.heap) > 2 * self.timers:
            self.rebuild_heap()

    def rebuild_heap(self) -> None:
        heap = [entry for entry in self.heap if self.is_live(entry[2])]
        heapify(heap)
        self.heap = heap

    def remove_subscription(self, subscription: _Subscription) -> None:
        """Remove a subscription that has ended from its conversation and its topic."""
        topic = subscription.topic
        _remove(self.subscriptions_by_cid, subscription.cid, subscription.instance_id, topic.name)
        if topic.live == 0:
            _pop(self.topics, topic.name)
        elif len(topic.order) > 2 * topic.live:
            topic.compact()

    def subscriptions_of(self, cid: str, instance_id: str | None, topic: str | None) -> list[_Subscription]:
        if instance_id is None or topic is None:
            return _find(self.subscriptions_by_cid, cid, instance_id)
        one = self.subscriptions_by_cid.get(cid, {}).get(instance_id, {}).get(topic)
        return [] if one is None else [one]

    def recover(self, trash: _Trash) -> None:
        """Remove what lives no longer, or does not live yet, after a change that did not reach its end."""
        trash += [self.timers_by_cid, self.subscriptions_by_cid, self.topics, self.queue, self.heap]
        self.timers_by_cid = _live_part(self.timers_by_cid, self.is_live)
        self.subscriptions_by_cid = _live_part(self.subscriptions_by_cid, _Subscription.is_live)
        self.topics = {name: topic for name, topic in self.topics.items() if topic.live}
        for topic in self.topics.values():
            topic.compact()
        self.queue = deque([publication for publication in self.queue if publication.accepted])
        self.rebuild_heap()

    # Looking

    def sizes(self) -> dict[str, int]:
        timers = [group for instances in self.timers_by_cid.values() for group in instances.values()]
        subscriptions = [group for instances in self.subscriptions_by_cid.values() for group in instances.values()]
        sizes = {name: len(table) for name, table in vars(self).items() if not isinstance(table, int)}
        sizes["instances"] = len(timers) + len(subscriptions)
        sizes["groups"] = sum(map(len, timers)) + sum(map(len, subscriptions))
        sizes["orders"] = sum(len(topic.order) for topic in self.topics.values())
        return sizes

    def snapshot(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        topics = {name: [one for one in topic.order if one.is_live()] for name, topic in self.topics.items()}
        return {name: {(one.cid, one.instance_id): one.spec for one in live} for name, live in topics.items() if live}

    def inspect(self, only: str | None, running: str | None, now: int) -> dict[str, ConversationInfo]:
        queued = Counter(target.cid for publication in self.queue for target in publication.targets_left())
        cids = {*self.timers_by_cid, *self.subscriptions_by_cid, *self.flows, *queued}
        if running is not None:
            cids.add(running)
        infos = {}
        for cid in cids if only is None else cids & {only}:
            timers, subscriptions = self.timer_infos(cid, now), self.subscription_infos(cid)
            info = ConversationInfo(timers, subscriptions, queued[cid], int(cid == running), cid in self.flows)
            if info != _NOTHING:
                infos[cid] = info
        return infos

    def timer_infos(self, cid: str, now: int) -> tuple[TimerInfo, ...]:
        live = [timer for timer in _find(self.timers_by_cid, cid) if self.is_live(timer)]
        live.sort(key=lambda timer: (timer.due, timer.number))
        return tuple(TimerInfo(timer.instance_id, timer.spec, _milliseconds(timer.due - now)) for timer in live)

    def subscription_infos(self, cid: str) -> tuple[SubscriptionInfo, ...]:
        live = [one for one in _find(self.subscriptions_by_cid, cid) if one.is_live()]
        live.sort(key=lambda one: one.began)
        return tuple(SubscriptionInfo(one.instance_id, one.topic.name, one.spec) for one in live)


class _State:
    """One registry's state in one process, and the changes of it. Every method is called under the lock."""

    def __init__(self, dispatch: Dispatch, max_pending: int | None, closed: bool) -> None:
        self.lock = threading.RLock()
        self.busy = threading.Lock()  # locked while a change is going on, by the thread that has `lock`
        self.postponed: deque[tuple[_Change[object], int]] = deque()  # calls, and the room that each takes
        self.whole = True  # False while a change is going on, and after one that did not reach its end
        self.waiters: dict[int, threading.Lock] = {}

        self.dispatch = dispatch
        self.max_pending = max_pending
        self.closed = closed
        self.exiting = False
        self.tidying = False  # True while the thread frees what it has removed, which may be a message
        self.contents = _Contents()
        self.last_number = 0
        self.latest = 0  # the latest instant that was accepted or at which something was claimed
        self.room = 0  # what the change that is going on is about to add

        self.running = 0
        self.running_cid: str | None = None
        self.accepted = 0
        self.delivered = 0
        self.failed = 0
        self.cancelled = 0
        self.dropped = 0

        self.thread: threading.Thread | None = None
        self.bell: threading.Lock | None = None  # where the thread sleeps; it also says which thread may deliver
        self.serving = 0  # the identity of that thread
        self.sleep_until = _AWAKE

    # Before a change

    def next_number(self) -> int:
        self.last_number += 1
        return self.last_number

    def require_open(self) -> None:
        if self.closed:
            raise RegistryClosed("The registry has been closed. Create a new one.")

    def require_room(self, count: int) -> None:
        """Refuse to add `count` deliveries if they would pass the bound, together with what nested calls add."""
        if self.max_pending is None:
            return
        promised = sum([room for _, room in list(self.postponed)])
        if self.contents.timers + self.contents.queued + promised + count > self.max_pending:
            raise RegistryFull(f"The registry may hold {self.max_pending} timers and messages. Raise max_pending.")

    def accept_at(self, now: int) -> int:
        """Return the instant at which something is accepted; these instants never run backwards."""
        self.latest = max(self.latest, now)
        return self.latest

    def wake_for(self, instant: float) -> None:
        """Wake the thread if it would sleep past the instant. Before the commit: it then waits for the lock."""
        if instant < self.sleep_until:
            _ring(self.bell)
            self.sleep_until = _AWAKE

    # Changes

    def install(self, dispatch: Dispatch, trash: _Trash) -> None:
        self.require_open()
        trash.append(self.dispatch)
        self.dispatch = dispatch

    def put_flow(self, cid: str, flow_id: object, trash: _Trash) -> None:
        self.require_open()
        trash.append(self.contents.flows.get(cid))
        self.contents.flows[cid] = flow_id

    def forget_flow(self, cid: str, trash: _Trash) -> bool:
        found = cid in self.contents.flows
        trash.append(_pop(self.contents.flows, cid))
        return found

    def add_timer(self, timer: _Timer, delay_ns: int, now: int) -> None:
        contents = self.contents
        timer.number = self.next_number()
        timer.due = self.accept_at(now) + delay_ns
        _put(contents.timers_by_cid, timer.cid, timer.instance_id, timer.number, timer)
        heappush(contents.heap, (timer.due, timer.number, timer))
        self.wake_for(timer.due)
        # commit
        timer.home, contents.timers, self.accepted, self.room = contents, contents.timers + 1, self.accepted + 1, 0

    def cancel_timers(self, cid: str, instance_id: str | None, trash: _Trash) -> int:
        return self.cancel(_find(self.contents.timers_by_cid, cid, instance_id), trash)

    def cancel(self, timers: list[_Timer], trash: _Trash) -> int:
        count = 0
        for timer in timers:
            if self.contents.is_live(timer):
                self.cancel_one(timer, trash)
                count += 1
        self.contents.compact_heap()
        if self.contents.timers == 0 and self.sleep_until < math.inf:
            _ring(self.bell)  # it sleeps until a timer that is gone, and would keep the registry alive until then
        return count

    def cancel_one(self, timer: _Timer, trash: _Trash) -> None:
        contents = self.contents
        # commit
        timer.pending, contents.timers, self.cancelled = False, contents.timers - 1, self.cancelled + 1
        self.remove_timer(timer, trash)

    def remove_timer(self, timer: _Timer, trash: _Trash) -> None:
        """Remove a timer that is no longer pending. In the heap it stays until a compaction, without its payload."""
        trash.append(timer.spec)
        timer.spec = ""
        _remove(self.contents.timers_by_cid, timer.cid, timer.instance_id, timer.number)

    def add_subscription(self, cid: str, instance_id: str, name: str, spec: _Spec, trash: _Trash) -> None:
        self.require_open()
        contents = self.contents
        for present in contents.subscriptions_of(cid, instance_id, name):
            trash.append(present.spec)
            present.spec = spec  # commit
            return
        topic = contents.topics.setdefault(name, _Topic(name))
        subscription = _Subscription(cid, instance_id, topic, spec)
        topic.order.append(subscription)
        _put(contents.subscriptions_by_cid, cid, instance_id, name, subscription)
        number = self.next_number()
        # commit
        subscription.began, topic.live, contents.subscriptions = number, topic.live + 1, contents.subscriptions + 1

    def end_subscriptions(self, cid: str, instance_id: str | None, topic: str | None, trash: _Trash) -> int:
        subscriptions = self.contents.subscriptions_of(cid, instance_id, topic)
        for subscription in subscriptions:
            self.end_subscription(subscription, trash)
        return len(subscriptions)

    def end_subscription(self, subscription: _Subscription, trash: _Trash) -> None:
        contents, topic = self.contents, subscription.topic
        number = self.next_number()
        # commit
        subscription.ended, topic.live, contents.subscriptions = number, topic.live - 1, contents.subscriptions - 1
        trash.append(subscription.spec)
        subscription.spec = ""
        contents.remove_subscription(subscription)

    def add_publication(self, publication: _Publication, topic: _Topic, now: int) -> None:
        contents = self.contents
        publication.order = topic.order
        publication.length = len(topic.order)
        publication.number = self.next_number()
        publication.instant = self.accept_at(now)
        contents.queue.append(publication)
        self.wake_for(publication.instant)
        queued, accepted = contents.queued + topic.live, self.accepted + topic.live
        # commit
        publication.accepted, contents.queued, self.accepted, self.room = True, queued, accepted, 0

    def forget_everything(self, closed: bool, trash: _Trash) -> bool:
        old, new = self.contents, _Contents()
        gone = old.timers + old.queued
        _ring(self.bell)  # before the commit, as in `wake_for`
        # commit
        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone
        trash.append(old)
        return True

    def recover(self, trash: _Trash) -> None:
        """Tidy up after a change that an exception of a signal handler interrupted."""
        self.contents.recover(trash)
        _ring(self.bell)

    # Deliveries

    def next_job(self, now: int, trash: _Trash) -> _Job | float | None:
        """Begin the next delivery; or return for how many seconds the thread sleeps, or None when it must end."""
        self.tidying = False
        if self.closed or self.exiting:
            self.serving = 0
            return None
        self.serving = threading.get_ident()
        self.sleep_until = _AWAKE
        job = self.claim(now, trash)
        self.tidying = bool(trash)
        if job is not None:
            return job
        return 0.0 if self.tidying else self.decide_sleep(now)

    def claim(self, now: int, trash: _Trash) -> _Job | None:
        """Begin the delivery whose ready instant comes first, if anything is ready."""
        instant = self.accept_at(now)  # what was accepted while the thread waited for the lock may be later than `now`
        for _ in range(_LOOKS):
            timer = self.contents.next_timer()
            if timer is not None and timer.due > instant:
                timer = None
            publication = self.contents.queue[0] if self.contents.queue else None
            if timer is not None and (publication is None or self.comes_before(timer, publication)):
                return self.begin_timer(timer, trash)
            if publication is None:
                return None
            job = self.begin_next_target(publication, trash)
            if job is not None:
                return job
        return None

    def comes_before(self, timer: _Timer, publication: _Publication) -> bool:
        return (timer.due, timer.number) < (publication.instant, publication.number)

    def begin_timer(self, timer: _Timer, trash: _Trash) -> _Job:
        contents = self.contents
        event = Event(timer.instance_id, _event_name(timer.spec), _event_payload(timer.spec), due=timer.due)
        timers, cid = contents.timers - 1, timer.cid
        # commit
        timer.pending, contents.timers, self.running, self.running_cid = False, timers, 1, cid
        self.remove_timer(timer, trash)
        contents.next_timer()  # removes this one from the heap
        contents.compact_heap()
        return self.dispatch, cid, event

    def begin_next_target(self, publication: _Publication, trash: _Trash) -> _Job | None:
        """Begin the delivery to the publication's next place, or pass over it."""
        contents = self.contents
        place = publication.place + 1
        if place > publication.length:
            trash.append(contents.queue.popleft())
            return None
        subscription = publication.order[place - 1]
        queued, cid = contents.queued - 1, subscription.cid
        if not subscription.is_target_of(publication):
            publication.place = place
            return None
        if subscription.ended:
            publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # commit
            return None
        name, message, due = _event_name(subscription.spec), publication.message, publication.instant
        event = Event(subscription.instance_id, name, message, due=due)
        publication.place, contents.queued, self.running, self.running_cid = place, queued, 1, cid  # commit
        if place == publication.length:
            trash.append(contents.queue.popleft())
        return self.dispatch, cid, event

    def finish(self, succeeded: bool) -> None:
        """Count the fate of the delivery that ran."""
        if succeeded:
            self.running, self.running_cid, self.delivered = 0, None, self.delivered + 1  # commit
        else:
            self.running, self.running_cid, self.failed = 0, None, self.failed + 1  # commit

    def decide_sleep(self, now: int) -> float:
        """Return for how many seconds the thread may sleep; what is added from now on wakes it."""
        if self.contents.queue:
            return 0.0
        timer = self.contents.next_timer()
        if timer is None:
            self.sleep_until = math.inf
            return _FOREVER
        self.sleep_until = timer.due
        return min(max(timer.due - now, 0), _LONGEST_NS) / 1e9

    # Looking

    def is_idle(self, now: int, timers_too: bool) -> bool:
        if self.running or self.tidying or self.contents.queue:
            return False
        if timers_too:
            return self.contents.timers == 0
        timer = self.contents.next_timer()
        return timer is None or timer.due > now

    def ring_waiters(self) -> None:
        """Wake those who wait until the registry is idle, when it seems to be."""
        if self.waiters and self.is_idle(self.latest, timers_too=False):
            for bell in list(self.waiters.values()):
                _ring(bell)

    def stats(self) -> Stats:
        now = self.contents
        pending = (len(now.flows), now.subscriptions, now.timers, now.queued)
        return Stats(*pending, self.running, self.accepted, self.delivered, self.failed, self.cancelled, self.dropped)


class _Handle(TimerHandle):
    """The handle of one timer. It keeps neither the timer nor the registry alive."""

    __slots__ = ("_registry", "_timer")

    def __init__(self, registry: PlainRegistry, timer: _Timer) -> None:
        self._registry = weakref.ref(registry)
        self._timer = weakref.ref(timer)

    @override
    def cancel(self) -> bool:
        registry = self._registry()
        timer = self._timer()
        if registry is None or timer is None:
            return False
        return registry._change(lambda state, trash: state.cancel([timer], trash) == 1, False)


def _ignore(cid: str, event: Event) -> None:
    """Take deliveries until the first `install_dispatch`."""


class PlainRegistry(Backend):
    """One lock, one heap, one thread that sleeps until something is due and delivers it.

    Args:
        clock: returns monotonic nanoseconds and advances in real time.
        max_pending: how many timers and messages may be pending together; None for no bound.
        on_error: called on the delivery thread as `on_error(cid, event, exception)` for each delivery that failed.
    """

    capabilities: frozenset[str] = frozenset(
        {"by_reference", "common_topic_order", "fork", "one_instant_snapshot", "own_clock", "sizes"}
    )

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        max_pending: int | None = 1_000_000,
        on_error: _OnError | None = None,
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending}. Leave it out, or give None.")
        self._clock = monotonic_ns if clock is None else clock
        self._on_error = on_error
        self._state = _State(_ignore, max_pending, closed=False)
        key = id(self)
        _registries[key] = weakref.ref(self, lambda _: _registries.pop(key, None))

    # The twelve operations

    @override
    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        if not callable(dispatch):
            raise TypeError(f"dispatch must be callable, not {type(dispatch).__name__}. Give a function (cid, event).")
        if is_coroutine_function(dispatch):
            raise TypeError("dispatch must not be an async def here. Use the backend 'asyncio', which awaits it.")
        self._change(lambda state, trash: state.install(dispatch, trash), None)

    @override
    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        cid = _name(cid, "cid")
        if flow_id is None:
            raise TypeError("flow_id must not be None. Give any other object.")
        self._change(lambda state, trash: state.put_flow(cid, flow_id, trash), None)

    @override
    def pending_flow(self, cid: str, /) -> Any | None:
        cid = _name(cid, "cid")
        return self._perform(lambda state, trash: _pop(state.contents.flows, cid), lambda state: None)

    @override
    def forget_pending_flow(self, cid: str, /) -> bool:
        cid = _name(cid, "cid")
        return self._change(lambda state, trash: state.forget_flow(cid, trash), False)

    @override
    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: EventSpec) -> TimerHandle:
        timer = _Timer(_name(cid, "cid"), _name(instance_id, "instance_id"), _spec(event))
        delay_ns = _delay_ns(delay_ms)
        now = self._clock()

        def change(state: _State, trash: _Trash) -> None:
            state.require_open()
            state.room = 1
            state.require_room(1)
            self._require_thread(state)
            state.add_timer(timer, delay_ns, now)

        def later(state: _State, trash: _Trash) -> None:
            if timer.home is None and not state.closed:  # it has room, which was kept for it
                with suppress(RuntimeError):  # no thread: the next operation that needs it can say so
                    self._require_thread(state)
                state.add_timer(timer, delay_ns, now)

        def if_nested(state: _State) -> None:
            state.require_open()
            state.require_room(state.room + 1)
            self._postpone(state, later, room=1)

        self._perform(change, if_nested)
        return _Handle(self, timer)

    @override
    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        cid = _name(cid, "cid")
        instance = None if instance_id is None else _name(instance_id, "instance_id")
        return self._change(lambda state, trash: state.cancel_timers(cid, instance, trash), 0)

    @override
    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: EventSpec) -> None:
        names = _name(cid, "cid"), _name(instance_id, "instance_id"), _name(topic, "topic")
        spec = _spec(event)
        self._change(lambda state, trash: state.add_subscription(*names, spec, trash), None)

    @override
    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        cid, instance_id = _name(cid, "cid"), _name(instance_id, "instance_id")
        name = None if topic is None else _name(topic, "topic")
        return self._change(lambda state, trash: state.end_subscriptions(cid, instance_id, name, trash), 0)

    @override
    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        cid = _name(cid, "cid")
        return self._change(lambda state, trash: state.end_subscriptions(cid, None, None, trash), 0)

    @override
    def publish(self, topic: str, msg: Any, /) -> int:
        name = _name(topic, "topic")
        publication = _Publication(msg)
        now = self._clock()

        def change(state: _State, trash: _Trash) -> int:
            state.require_open()
            found = state.contents.topics.get(name)
            if found is None or publication.accepted:
                return 0
            state.room = found.live
            state.require_room(found.live)
            self._require_thread(state)
            state.add_publication(publication, found, now)
            return found.live

        return self._change(change, 0)

    @override
    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        return self._read(lambda state: state.contents.snapshot())

    @override
    def reset_state(self) -> None:
        self._change(lambda state, trash: state.forget_everything(state.closed, trash), None)

    # The care of a running registry

    @override
    def close(self, timeout: float | None = 5.0) -> bool:
        seconds = None if timeout is None else _seconds(timeout)
        state = self._state
        closed = self._change(lambda state, trash: state.forget_everything(True, trash), None)
        if closed is None or state.serving == threading.get_ident():
            return False  # to wait would be to wait for the caller itself
        if state.thread is None:
            return True
        state.thread.join(seconds)
        return not state.thread.is_alive()

    @override
    def settle(self, timeout: float | None = 5.0) -> bool:
        return self._wait_until_idle(timeout, timers_too=False)

    @override
    def join(self, timeout: float | None = None) -> bool:
        return self._wait_until_idle(timeout, timers_too=True)

    @property
    @override
    def now_ns(self) -> int:
        return self._clock()

    @override
    def stats(self) -> Stats:
        return self._read(lambda state: state.stats())

    @override
    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        name = None if cid is None else _name(cid, "cid")
        now = self._clock()
        return self._read(lambda state: state.contents.inspect(name, state.running_cid, now))

    def sizes(self) -> dict[str, int]:
        """Return the length of every internal container."""
        return self._read(lambda state: {**state.contents.sizes(), "postponed": len(state.postponed)})

    # How an operation runs

    def _read(self, look: Callable[[_State], _T]) -> _T:
        """Look at the present state, also from a call that interrupted a change."""
        return self._perform(lambda state, trash: look(state), look)

    def _change(self, change: _Change[_T], if_nested: _T) -> _T:
        """Make a change; where the call interrupted another one, make it when that ends, and return `if_nested`."""

        def postpone(state: _State) -> _T:
            self._postpone(state, change)
            return if_nested

        return self._perform(change, postpone)

    def _postpone(self, state: _State, change: _Change[object], room: int = 0) -> None:
        state.postponed.append((change, room))
        _ring(state.bell)  # if the interrupted change raises, the thread does what is left

    def _perform(self, change: _Change[_T], if_nested: Callable[[_State], _T]) -> _T:
        """Run a change under the lock; or `if_nested`, when this thread is inside a change already."""
        state = self._state
        trash: _Trash = []  # freed when this returns, and so without the lock
        with state.lock:
            if state.busy.locked():
                return if_nested(state)
            self._run_postponed(state, trash)
            try:
                with state.busy:
                    return self._run(state, change, trash)
            finally:
                self._run_postponed(state, trash)

    def _run(self, state: _State, change: _Change[_T], trash: _Trash) -> _T:
        if not state.whole:
            state.recover(trash)
        state.whole = False
        state.room = 0
        try:
            result = change(state, trash)
        except (RegistryClosed, RegistryFull):  # raised before anything was changed
            state.whole = True
            raise
        except BaseException:
            _ring(state.bell)  # the thread recovers, if no other operation does
            raise
        state.whole = True
        state.ring_waiters()
        return result

    def _run_postponed(self, state: _State, trash: _Trash) -> None:
        """Run the calls that interrupted a change; when an exception stops one of them, the next operation runs it."""
        while state.postponed:
            with state.busy:
                if state.postponed:  # else a call that interrupted the line above has run them
                    self._run_first_postponed(state, trash)

    def _run_first_postponed(self, state: _State, trash: _Trash) -> None:
        with suppress(RuntimeError):  # closed or full in the meantime, or no thread: there is nobody to tell
            self._run(state, state.postponed[0][0], trash)
        trash.append(state.postponed.popleft())

    def _wait_until_idle(self, timeout: float | None, timers_too: bool) -> bool:
        state = self._state
        if state.serving == threading.get_ident():
            raise RuntimeError("settle and join would wait for the delivery that calls them. Call them elsewhere.")
        limit = None if timeout is None else _seconds(timeout)
        started = monotonic_ns()
        bell = _new_bell()
        state.waiters[id(bell)] = bell
        try:
            while True:
                idle = self._is_idle(timers_too)
                if idle:
                    return True
                left = None if limit is None else limit - (monotonic_ns() - started) / 1e9
                if idle is None or (left is not None and left <= 0):
                    return False
                bell.acquire(timeout=_seconds(left))
        finally:
            state.waiters.pop(id(bell), None)

    def _is_idle(self, timers_too: bool) -> bool | None:
        """Tell whether nothing is left to do; None inside a change, where to wait would be to wait for the caller."""
        now = self._clock()

        def look(state: _State, trash: _Trash) -> bool | None:
            return state.is_idle(now, timers_too)

        return self._perform(look, lambda state: None)

    # The thread

    def _require_thread(self, state: _State) -> None:
        """Start the thread if there is none. A start that is interrupted leaves one that finds its bell unknown."""
        if state.bell is not None:
            return
        bell = _new_bell()
        registry = weakref.ref(self, partial(_ring, bell))
        thread = threading.Thread(target=_serve, args=(registry, bell), name="stube-plain", daemon=True)
        thread.start()
        state.thread, state.bell = thread, bell  # commit

    def _deliver_all(self, bell: threading.Lock) -> float | None:
        """Deliver what is ready; return for how many seconds to sleep then, or None to end."""
        succeeded: bool | None = None
        while True:
            job = self._next_job(bell, succeeded)
            if not isinstance(job, tuple):
                return job
            succeeded = self._deliver(*job)
            del job  # before its fate is counted, so that an idle registry keeps no message alive

    def _next_job(self, bell: threading.Lock, succeeded: bool | None) -> _Job | float | None:
        now = self._clock()

        def step(state: _State, trash: _Trash) -> _Job | float | None:
            if state.bell is not bell:  # the start was interrupted, or a handler forked and this is the child
                return None
            if succeeded is not None:
                state.finish(succeeded)
            return state.next_job(now, trash)

        return self._perform(step, lambda state: 0.0)

    def _deliver(self, dispatch: Dispatch, cid: str, event: Event) -> bool:
        """Call dispatch; return whether the delivery succeeded."""
        try:
            call: Callable[[str, Event], object] = dispatch
            result = call(cid, event)
            if isinstance(result, Coroutine):
                result.close()
                raise TypeError("dispatch returned a coroutine. Use the backend 'asyncio', which awaits it.")
        except ConversationEnded:
            _quietly(_logger.debug, "The conversation %r ended inside its delivery of %r.", cid, event.name)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it must not stop other deliveries
            self._report(cid, event, exc)
            return False
        return True

    def _report(self, cid: str, event: Event, exc: BaseException) -> None:
        """Log a failure and hand it to `on_error`."""
        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)
        if self._on_error is not None:
            failure = _quietly(self._on_error, cid, event, exc)
            if failure is not None:
                _quietly(partial(_logger.error, exc_info=failure), "on_error itself raised.")

    # The process

    def _start_anew(self) -> None:
        """Begin with nothing, in a forked child."""
        old = self._state
        self._state = _State(old.dispatch, old.max_pending, old.closed)

    def _stop_at_exit(self) -> threading.Thread | None:
        """Begin no further delivery; return the thread, which then ends."""
        state = self._state
        state.exiting = True
        _ring(state.bell)
        return state.thread


def _quietly(function: Callable[..., object], *arguments: object) -> BaseException | None:
    """Call what must not stop other deliveries; return what it raised."""
    try:
        function(*arguments)
    except BaseException as exc:  # noqa: BLE001
        return exc
    return None


def _serve(reference: weakref.ref[PlainRegistry], bell: threading.Lock) -> None:
    """Deliver until the registry is closed or gone. Runs on the registry's thread.

    While nothing is pending this has only a weak reference, so that a registry that was dropped is collected.
    """
    while True:
        registry = reference()
        if registry is None:
            return
        seconds = registry._deliver_all(bell)
        if seconds is None:
            return
        if seconds == _FOREVER:
            del registry
        bell.acquire(timeout=seconds)


# All registries, for a fork and for the program's end. A dict, because its single operations need no lock.
_registries: dict[int, weakref.ref[PlainRegistry]] = {}


def _all_registries() -> list[PlainRegistry]:
    registries = [reference() for reference in list(_registries.values())]
    return [registry for registry in registries if registry is not None]


def _after_fork_in_child() -> None:
    for registry in _all_registries():
        registry._start_anew()


def _at_exit() -> None:
    """Wait a little for running deliveries, so that they do not die while they write."""
    deadline = monotonic_ns() + _AT_EXIT_NS
    for thread in [registry._stop_at_exit() for registry in _all_registries()]:
        if thread is not None:
            thread.join(max(0, deadline - monotonic_ns()) / 1e9)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
