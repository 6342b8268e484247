"""What a registry holds, and every change of it: plain data, without a thread, a lock or a clock.

One thread owns the data and runs each method from beginning to end (`_actor.py`), so nobody sees a change half done.
What an operation removes is not freed here but put into `removed`, and freed by the caller of the operation: a
destructor of a payload is code of the host, and may wait for another thread that waits for an operation.

Scheduling costs O(log n) and publishing O(1); every removal costs what it touches (amortised). A removed timer stays in
the heap, and an ended subscription in the list of its topic, until such remains outnumber what is live.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from stube import (
    NO_PAYLOAD,
    ConversationInfo,
    Event,
    EventSpec,
    RegistryClosed,
    RegistryFull,
    Stats,
    SubscriptionInfo,
    TimerInfo,
)

__all__ = ["Delivery", "Hooks", "OnError", "Spec", "State", "Timer"]

Spec: TypeAlias = str | tuple[Any, ...]
"""A checked event spec: a name, or a tuple whose first item is the name."""
OnError: TypeAlias = Callable[[str, Event, BaseException], object]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(eq=False, slots=True, weakref_slot=True)
class Hooks:
    """The functions of the host. The registry keeps them; the state does so only while something is pending."""

    dispatch: Callable[[str, Event], object]
    clock: Callable[[], int]
    on_error: OnError | None


class Delivery(NamedTuple):
    """One delivery that has begun."""

    cid: str
    event: Event
    hooks: Hooks


@dataclass(eq=False, slots=True)
class Timer:
    """One timer. It has a spec while it is pending."""

    cid: str
    instance_id: str
    spec: Spec | None = None
    order: tuple[int, int] = (0, 0)
    """The instant at which it is due, and the number of the step that scheduled it."""


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscription."""

    cid: str
    instance_id: str
    topic: Topic
    spec: Spec
    ended: int = 0
    """The number of the step that ended it; 0 while it is live."""


@dataclass(eq=False, slots=True)
class Topic:
    """The subscriptions to one topic in their order, ended ones among them.

    The list only grows, so that a publication can keep the list itself as its snapshot. To get rid of ended
    subscriptions, the topic takes a new list; the publications in progress keep the old one.
    """

    name: str
    subscribers: list[Subscription] = field(default_factory=list)
    live: int = 0


@dataclass(eq=False, slots=True)
class Publication:
    """One message, and the targets that it has not reached yet: those who were subscribed when it was published."""

    message: Any
    subscribers: list[Subscription]
    left: int
    order: tuple[int, int]
    """The instant at which it was accepted, and the number of the step that published it."""
    position: int = 0

    def targets(self) -> Iterator[tuple[int, Subscription]]:
        """The targets left, each with its position. Subscriptions that have ended since are among them."""
        left, position = self.left, self.position
        while left:
            subscription = self.subscribers[position]
            if not subscription.ended or subscription.ended > self.order[1]:
                left -= 1
                yield position, subscription
            position += 1

    def take_target(self) -> Subscription:
        position, subscription = next(self.targets())
        self.position = position + 1
        self.left -= 1
        return subscription


class Index(Generic[K, V]):
    """Items by conversation, by instance and by a key. What has become empty is removed."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict[K, V]]] = {}
        self.count = 0

    def add(self, cid: str, instance_id: str, key: K, value: V) -> None:
        self.items.setdefault(cid, {}).setdefault(instance_id, {})[key] = value
        self.count += 1

    def get(self, cid: str, instance_id: str, key: K) -> V | None:
        return self.items.get(cid, {}).get(instance_id, {}).get(key)

    def of(self, cid: str, instance_id: str | None = None) -> list[V]:
        """What one conversation has, or one instance of it."""
        instances = self.items.get(cid, {})
        chosen = instances.values() if instance_id is None else [instances.get(instance_id, {})]
        return [value for items in chosen for value in items.values()]

    def size(self) -> int:
        """The length of all its containers together."""
        return len(self.items) + sum(len(each) + sum(map(len, each.values())) for each in self.items.values())

    def remove(self, cid: str, instance_id: str, key: K) -> None:
        instances = self.items[cid]
        items = instances[instance_id]
        del items[key]
        self.count -= 1
        if not items:
            del instances[instance_id]
        if not instances:
            del self.items[cid]
        if not self.items:
            self.items.clear()  # an empty dict keeps its table, unless it is cleared


class State:
    """Timers, topics, batons and the ledger of one registry."""

    def __init__(self, max_pending: int | None = None, *, closed: bool = False) -> None:
        self.max_pending = max_pending
        self.closed = closed
        self.orphaned = False  # the registry itself has been dropped
        self.latest = 0  # the latest instant that was accepted or looked at: instants never run backwards
        self.hooks: Hooks | None = None  # while something is pending
        self.removed: list[object] = []  # by the present operation
        self.bell: SimpleQueue[None] = SimpleQueue()  # an item wakes the delivery thread
        self.waiters: dict[SimpleQueue[None], bool] = {}  # of settle (False) and join (True): who waits until idle
        self._asleep = False  # the delivery thread sleeps until ...
        self._wake_at: int | None = None  # ... this instant, or the bell
        self._numbers = count(1)
        self._running: str | None = None  # the conversation whose delivery runs
        self._freeing = False  # the delivery thread frees messages that it has passed over
        self._accepted = self._delivered = self._failed = self._cancelled = self._dropped = 0
        self._make_empty()

    def _make_empty(self) -> None:
        self._batons: dict[str, Any] = {}
        self._heap: list[tuple[tuple[int, int], Timer]] = []
        self._timers: Index[Timer, Timer] = Index()
        self._topics: dict[str, Topic] = {}
        self._subscriptions: Index[str, Subscription] = Index()
        self._publications: deque[Publication] = deque()
        self._queued = 0

    # Batons

    def put_pending_flow(self, cid: str, flow_id: Any) -> None:
        self._require_open()
        self.removed.append(self._batons.get(cid))
        self._batons[cid] = flow_id

    def pending_flow(self, cid: str) -> Any | None:
        flow_id = self._batons.pop(cid, None)
        if not self._batons:
            self._batons.clear()  # for its table, as in `Index.remove`
        return flow_id

    def forget_pending_flow(self, cid: str) -> bool:
        if cid not in self._batons:
            return False
        self.removed.append(self.pending_flow(cid))
        return True

    # Timers

    def schedule(self, timer: Timer, spec: Spec, now: int, delay: int, hooks: Hooks) -> None:
        self._require_room(1)
        timer.order = due, _ = self._instant(now) + delay, next(self._numbers)
        timer.spec = spec
        heappush(self._heap, (timer.order, timer))
        self._timers.add(timer.cid, timer.instance_id, timer, timer)
        self._accepted += 1
        self.hooks = hooks
        if self._wake_at is None or due < self._wake_at:
            self.wake_delivery_thread()

    def cancel(self, timer: Timer) -> bool:
        return bool(self._timers.get(timer.cid, timer.instance_id, timer) and self._cancel([timer]))

    def cancel_timers(self, cid: str, instance_id: str | None) -> int:
        return self._cancel(self._timers.of(cid, instance_id))

    def _cancel(self, timers: list[Timer]) -> int:
        for timer in timers:
            self._remove_timer(timer)
        self._cancelled += len(timers)
        return len(timers)

    def _remove_timer(self, timer: Timer) -> None:
        self._timers.remove(timer.cid, timer.instance_id, timer)
        self.removed.append(timer.spec)
        timer.spec = None
        if len(self._heap) > 2 * self._timers.count:
            self._heap = [entry for entry in self._heap if entry[1].spec is not None]
            heapify(self._heap)

    def _first_timer(self) -> Timer | None:
        while self._heap and self._heap[0][1].spec is None:
            heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    # Topics

    def subscribe(self, cid: str, instance_id: str, topic_name: str, spec: Spec) -> None:
        self._require_open()
        subscription = self._subscriptions.get(cid, instance_id, topic_name)
        if subscription is not None:
            self.removed.append(subscription.spec)
            subscription.spec = spec
            return
        topic = self._topics.setdefault(topic_name, Topic(topic_name))
        subscription = Subscription(cid, instance_id, topic, spec)
        self._subscriptions.add(cid, instance_id, topic_name, subscription)
        topic.subscribers.append(subscription)
        topic.live += 1

    def unsubscribe(self, cid: str, instance_id: str, topic_name: str | None) -> int:
        if topic_name is None:
            return self._end(self._subscriptions.of(cid, instance_id))
        subscription = self._subscriptions.get(cid, instance_id, topic_name)
        return 0 if subscription is None else self._end([subscription])

    def remove_subscriptions_for_cid(self, cid: str) -> int:
        return self._end(self._subscriptions.of(cid))

    def _end(self, subscriptions: list[Subscription]) -> int:
        for subscription in subscriptions:
            topic = subscription.topic
            self._subscriptions.remove(subscription.cid, subscription.instance_id, topic.name)
            self.removed.append(subscription.spec)
            subscription.spec = ""
            subscription.ended = next(self._numbers)
            topic.live -= 1
            if not topic.live:
                del self._topics[topic.name]
            elif len(topic.subscribers) > 2 * topic.live:
                topic.subscribers = [other for other in topic.subscribers if not other.ended]
        if not self._topics:
            self._topics.clear()
        return len(subscriptions)

    def publish(self, topic_name: str, message: Any, now: int, hooks: Hooks) -> int:
        topic = self._topics.get(topic_name)
        targets = topic.live if topic else 0
        self._require_room(targets)
        if topic:
            order = self._instant(now), next(self._numbers)
            self._publications.append(Publication(message, topic.subscribers, targets, order))
            self._queued += targets
            self._accepted += targets
            self.hooks = hooks
            self.wake_delivery_thread()
        return targets

    # Deliveries

    def next_delivery(self, succeeded: bool | None, now: int) -> Delivery | int | None:
        """Count how the last delivery ended (None: there was none), and begin the next one that is ready at `now`.

        When none is ready, the delivery thread is asleep from now on. Return until when: the instant at which the next
        timer is due, or None if there is no timer. If it has something to free first, that is `now`.
        """
        if succeeded is not None:
            self._running = None
            self._delivered += succeeded
            self._failed += not succeeded
        self._freeing = False
        now = self._instant(now)
        while True:
            timer = self._first_timer()
            publication = self._publications[0] if self._publications else None
            if publication is not None and (timer is None or publication.order < timer.order):
                delivery = self._begin_target(publication)
                if delivery is not None:
                    return delivery
            elif timer is not None and timer.order[0] <= now:
                return self._begin_timer(timer)
            else:
                break
        if self.removed:
            self._freeing = True
            return now
        self._asleep = True
        self._wake_at = None if timer is None else timer.order[0]
        self.wake_waiters(timers_too=False)
        return self._wake_at

    def _begin_timer(self, timer: Timer) -> Delivery:
        heappop(self._heap)
        spec = timer.spec or ""
        name, payload = (spec, ()) if isinstance(spec, str) else (spec[0], spec[1:])
        self._remove_timer(timer)
        value = payload if len(payload) > 1 else payload[0] if payload else NO_PAYLOAD
        return self._begin(timer.cid, Event(timer.instance_id, name, value, due=timer.order[0]))

    def _begin_target(self, publication: Publication) -> Delivery | None:
        """Begin the delivery to the next target; None if its subscription has ended."""
        subscription = publication.take_target()
        self._queued -= 1
        if not publication.left:
            self.removed.append(self._publications.popleft())
        if subscription.ended:
            self._cancelled += 1
            return None
        name = subscription.spec if isinstance(subscription.spec, str) else subscription.spec[0]
        event = Event(subscription.instance_id, name, publication.message, due=publication.order[0])
        return self._begin(subscription.cid, event)

    def _begin(self, cid: str, event: Event) -> Delivery:
        assert self.hooks is not None  # it is there as long as something is pending
        self._running = cid
        return Delivery(cid, event, self.hooks)

    def wake_delivery_thread(self) -> None:
        if self._asleep:
            self._asleep = False
            self.bell.put(None)

    # Everything

    @property
    def pending(self) -> bool:
        """True while a delivery runs or may still begin."""
        return bool(self._timers.count or self._queued or self._busy)

    @property
    def _busy(self) -> bool:
        return self._running is not None or self._freeing

    def reset(self) -> None:
        targets = [subscription for publication in self._publications for _, subscription in publication.targets()]
        ended = sum(bool(subscription.ended) for subscription in targets)
        self._cancelled += ended
        self._dropped += self._timers.count + len(targets) - ended
        for _, timer in self._heap:
            self.removed.append(timer.spec)
            timer.spec = None  # a handle may keep the timer, and shall not keep the payload
        containers = self._batons, self._timers.items, self._topics, self._subscriptions.items, self._publications
        self.removed += filter(None, containers)
        self._make_empty()

    def close(self) -> None:
        self.closed = True
        self.reset()

    def orphan(self) -> None:
        self.orphaned = True

    def wait_until_idle(self, now: int, waiter: SimpleQueue[None], timers_too: bool) -> bool:
        """Return whether the registry is idle. If it is not, `waiter` gets an item as soon as it is."""
        now, timer = self._instant(now), self._first_timer()
        ready = self._publications or self._busy or (timer is not None and timer.order[0] <= now)
        if not self.pending or not (timers_too or ready):
            return True
        self.waiters[waiter] = timers_too
        return False

    def stop_waiting(self, waiter: SimpleQueue[None]) -> None:
        self.waiters.pop(waiter, None)

    def wake_waiters(self, *, timers_too: bool) -> None:
        """Wake who waits in `settle`, and in `join` too if no timer is left."""
        for waiter in [waiter for waiter, in_join in self.waiters.items() if timers_too or not in_join]:
            del self.waiters[waiter]
            waiter.put(None)

    def _require_open(self) -> None:
        if self.closed:
            raise RegistryClosed("The registry has been closed, so nothing can be added to it. Create a new one.")

    def _require_room(self, more: int) -> None:
        self._require_open()
        taken = self._timers.count + self._queued
        if self.max_pending is not None and taken + more > self.max_pending:
            raise RegistryFull(
                f"{more} more would pass max_pending={self.max_pending}, of which {taken} are taken. "
                "Raise max_pending, or add less until deliveries have caught up."
            )

    def _instant(self, now: int) -> int:
        self.latest = max(self.latest, now)
        return self.latest

    # Snapshots

    def stats(self) -> Stats:
        return Stats(
            pending_flows=len(self._batons),
            subscriptions=self._subscriptions.count,
            timers=self._timers.count,
            queued=self._queued,
            running=int(self._running is not None),
            accepted=self._accepted,
            delivered=self._delivered,
            failed=self._failed,
            cancelled=self._cancelled,
            dropped=self._dropped,
        )

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        return {
            name: {(each.cid, each.instance_id): each.spec for each in topic.subscribers if not each.ended}
            for name, topic in self._topics.items()
        }

    def inspect(self, cid: str | None, now: int) -> dict[str, ConversationInfo]:
        targets = [subscription for publication in self._publications for _, subscription in publication.targets()]
        queued = Counter(subscription.cid for subscription in targets if not subscription.ended)
        running = [] if self._running is None else [self._running]
        known = {*self._timers.items, *self._subscriptions.items, *queued, *running, *self._batons}
        return {
            each: ConversationInfo(
                timers=tuple(
                    TimerInfo(timer.instance_id, timer.spec or "", _milliseconds(timer.order[0] - now))
                    for timer in sorted(self._timers.of(each), key=lambda timer: timer.order)
                ),
                subscriptions=tuple(
                    SubscriptionInfo(subscription.instance_id, subscription.topic.name, subscription.spec)
                    for subscription in self._subscriptions.of(each)
                ),
                queued=queued[each],
                running=int(each in running),
                pending_flow=each in self._batons,
            )
            for each in known
            if cid is None or each == cid
        }

    def sizes(self) -> Mapping[str, int]:
        return {
            "batons": len(self._batons),
            "heap": len(self._heap),
            "timers": self._timers.size(),
            "topics": len(self._topics),
            "subscribers": sum(len(topic.subscribers) for topic in self._topics.values()),
            "subscriptions": self._subscriptions.size(),
            "publications": len(self._publications),
            "removed": len(self.removed),
        }


def _milliseconds(nanoseconds: int) -> float:
    try:
        return max(0, nanoseconds) / 1_000_000
    except OverflowError:
        return math.inf
