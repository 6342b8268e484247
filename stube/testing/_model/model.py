"""The model: a registry of plain dicts and lists, with which random programs compare a backend.

It is written from the contract alone, for one thread and without indexes. Every question is answered by a search
through everything, which is slow but obviously correct. Deliveries run inside `advance`, `settle`, `join` and
`run_until_idle`, one at a time, in the order of their ready instants over all conversations, ties in the order of
acceptance. After every 32 messages the timers have a turn (G27): those that are ready begin, at most as many as were
pending at that moment. One that earlier messages of its own conversation precede stands aside with them, and so do the
later ones of that conversation; all of these begin before everything else when the turn is over. Until all of them have
begun, at most twice as many timers stand aside as were pending when any turn in that time began, and in the first turn
after that none does; a turn ends at the first one that is too many.

Where the contract leaves a backend a choice, the model answers with a value that equals every permitted answer
(`OneOf`), so that a comparison is exactly as tolerant as the contract:

- A message whose subscription was removed is waste: it may stay in `queued`, and take room, until the delivery thread
  reaches it. If only the waste decides whether there is room, the model asks `full` what the backend did.
- While a delivery runs, the ledger's figures of fates may lag.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from math import ceil, isfinite
from typing import Any, Final, TypeAlias

from typing_extensions import override

from stube import (
    NO_PAYLOAD,
    ConversationEnded,
    ConversationInfo,
    Delivery,
    Dispatch,
    Event,
    RegistryClosed,
    RegistryFull,
    Stats,
    SubscriptionInfo,
    TimerInfo,
    VirtualTimeError,
)

__all__ = ["ANY_FIGURE", "OneOf", "Model"]

OnError: TypeAlias = Callable[[str, Event, BaseException], object]

IN_A_ROW: Final = 32
"""How many messages are delivered before timers have a turn."""

_NANOSECONDS: Final = 1_000_000  # in a millisecond
_MAY_LAG: Final = ("timers", "queued", "running", "delivered", "failed", "cancelled", "dropped")


class OneOf:
    """One of several answers that the contract permits; equal to each of them."""

    def __init__(self, *permitted: Any) -> None:
        self._permitted = permitted

    @override
    def __eq__(self, other: object) -> bool:
        return other in self._permitted

    __hash__ = None  # type: ignore[assignment]  # equal to several values, so it has no hash

    @override
    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(repr, self._permitted))})"


class _AnyFigure:
    """Equal to every count that is not negative."""

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other >= 0

    __hash__ = None  # type: ignore[assignment]

    @override
    def __repr__(self) -> str:
        return "ANY_FIGURE"


ANY_FIGURE: Final[Any] = _AnyFigure()


class _Subscription:
    def __init__(self, cid: str, instance_id: str, topic: str, event: Any) -> None:
        self.cid = cid
        self.instance_id = instance_id
        self.topic = topic
        self.event = event


class _Pending:
    """An accepted delivery that has not begun: of a timer with its event, or of a message to a subscription."""

    def __init__(self, cid: str, instance_id: str, ready: int, number: int) -> None:
        self.cid = cid
        self.instance_id = instance_id
        self.ready = ready  # nanoseconds
        self.number = number  # in the order of acceptance
        self.event: Any = None  # a timer's
        self.subscription: _Subscription | None = None  # a message's
        self.message: Any = None

    @property
    def is_timer(self) -> bool:
        return self.subscription is None

    @property
    def order(self) -> tuple[int, int]:
        return self.ready, self.number


class _Handle:
    def __init__(self, model: Model, timer: _Pending) -> None:
        self._model = model
        self._timer = timer

    def cancel(self) -> bool:
        return self._model.cancel([self._timer]) == 1


class Model:
    """The twelve operations, the rest of `Backend`, and a virtual clock.

    Args:
        max_pending: the bound of timers and queued messages together; None for none.
        on_error: called as `on_error(cid, event, exception)` after a delivery failed.
        fair: whether timers have turns; False for a backend that does not promise G27.
    """

    def __init__(
        self, *, max_pending: int | None = 1_000_000, on_error: OnError | None = None, fair: bool = True
    ) -> None:
        self.full: Callable[[], bool] = lambda: True
        """Tells whether the backend had no room for what is being added, where the contract leaves that open."""
        self.closed = False
        self.trace: list[Delivery] = []
        self._max_pending = max_pending
        self._on_error = on_error
        self._dispatch: Dispatch = lambda cid, event: None
        self._now = 0  # nanoseconds
        self._flows: dict[str, Any] = {}
        self._subscriptions: list[_Subscription] = []  # in the order of joining
        self._pending: list[_Pending] = []
        self._fair = fair
        self._in_a_row = 0  # how many messages have been delivered since timers had a turn
        self._turn: int | None = None  # how many more timers may begin in the present turn; None without one
        self._aside: list[_Pending] = []  # what stands aside, or has begun since something did
        self._stood_aside = self._may_stand_aside = 0  # how many timers have since then, and how many may
        self._none_may = False  # whether that is the first turn after
        self._running: str | None = None  # the conversation whose delivery runs
        self._accepted = self._delivered = self._failed = self._cancelled = self._dropped = 0

    # -- the twelve operations ---------------------------------------------------------------------------------

    def install_dispatch(self, dispatch: Dispatch, /) -> None:
        if not callable(dispatch):
            raise TypeError("dispatch must be callable")
        self._require_open()
        self._dispatch = dispatch

    def put_pending_flow(self, cid: str, flow_id: Any, /) -> None:
        cid = _name(cid)
        if flow_id is None:
            raise TypeError("flow_id must not be None")
        self._require_open()
        self._flows[cid] = flow_id

    def pending_flow(self, cid: str, /) -> Any | None:
        return self._flows.pop(_name(cid), None)

    def forget_pending_flow(self, cid: str, /) -> bool:
        return self._flows.pop(_name(cid), None) is not None

    def schedule_event(self, *, cid: str, instance_id: str, delay_ms: float, event: Any) -> _Handle:
        cid, instance_id, event, delay = _name(cid), _name(instance_id), _spec(event), _delay(delay_ms)
        self._require_open()
        self._require_room(1)
        timer = _Pending(cid, instance_id, self._now + delay, self._accepted)
        timer.event = event
        self._pending.append(timer)
        self._accepted += 1
        return _Handle(self, timer)

    def cancel_timers(self, cid: str, /, *, instance_id: str | None = None) -> int:
        cid = _name(cid)
        instance_id = None if instance_id is None else _name(instance_id)
        return self.cancel(
            [
                entry
                for entry in self._pending
                if entry.is_timer and entry.cid == cid and instance_id in (None, entry.instance_id)
            ]
        )

    def cancel(self, timers: list[_Pending]) -> int:
        """Cancel those of these timers that are pending; return how many."""
        cancelled = [timer for timer in timers if timer in self._pending]
        for timer in cancelled:
            self._pending.remove(timer)
        self._cancelled += len(cancelled)
        return len(cancelled)

    def subscribe(self, *, cid: str, instance_id: str, topic: str, event: Any) -> None:
        cid, instance_id, topic, event = _name(cid), _name(instance_id), _name(topic), _spec(event)
        self._require_open()
        for found in self._subscriptions:
            if (found.cid, found.instance_id, found.topic) == (cid, instance_id, topic):
                found.event = event
                return
        self._subscriptions.append(_Subscription(cid, instance_id, topic, event))

    def unsubscribe(self, *, cid: str, instance_id: str, topic: str | None = None) -> int:
        cid, instance_id = _name(cid), _name(instance_id)
        topic = None if topic is None else _name(topic)
        return self._remove(
            [
                found
                for found in self._subscriptions
                if (found.cid, found.instance_id) == (cid, instance_id) and topic in (None, found.topic)
            ]
        )

    def remove_subscriptions_for_cid(self, cid: str, /) -> int:
        cid = _name(cid)
        return self._remove([found for found in self._subscriptions if found.cid == cid])

    def publish(self, topic: str, msg: Any, /) -> int:
        topic = _name(topic)
        self._require_open()
        targets = [found for found in self._subscriptions if found.topic == topic]
        self._require_room(len(targets))
        for target in targets:
            entry = _Pending(target.cid, target.instance_id, self._now, self._accepted)
            entry.subscription, entry.message = target, msg
            self._pending.append(entry)
            self._accepted += 1
        return len(targets)

    def subscriptions(self) -> dict[str, dict[tuple[str, str], Any]]:
        snapshot: dict[str, dict[tuple[str, str], Any]] = {}
        for found in self._subscriptions:
            snapshot.setdefault(found.topic, {})[found.cid, found.instance_id] = found.event
        return snapshot

    def reset_state(self) -> None:
        self._cancelled += len(self._waste())  # the unsubscribe has decided their fate
        self._dropped += len(self._pending) - len(self._waste())
        self._flows.clear()
        self._subscriptions.clear()
        self._pending.clear()
        self._turn = None

    # -- the rest of Backend --------------------------------------------------------------------------------

    def close(self) -> bool:
        self.reset_state()
        self.closed = True
        return self._running is None

    def settle(self) -> bool:
        self._refuse_inside(RuntimeError)
        self._deliver_ready()
        return True

    def join(self, timeout: float | None = None) -> bool:
        self._refuse_inside(RuntimeError)
        end = None if timeout is None else self._now + int(timeout * 1e9)
        self._deliver_until(end)
        if self._pending and end is not None:
            self._now = end
        return not self._pending

    def stats(self) -> Stats:
        timers = sum(entry.is_timer for entry in self._pending)
        waste = len(self._waste())
        queued = len(self._pending) - timers - waste
        if self._running is not None:
            figures: dict[str, Any] = dict.fromkeys(_MAY_LAG, ANY_FIGURE)
        else:
            figures = {
                "timers": timers,
                "queued": _between(queued, queued + waste),
                "delivered": self._delivered,
                "failed": self._failed,
                "cancelled": _between(self._cancelled, self._cancelled + waste),
                "dropped": self._dropped,
            }
        return Stats(
            pending_flows=len(self._flows), subscriptions=len(self._subscriptions), accepted=self._accepted, **figures
        )

    def inspect(self, cid: str | None = None) -> dict[str, ConversationInfo]:
        cid = None if cid is None else _name(cid)
        cids = {*self._flows, *(found.cid for found in self._subscriptions), *(entry.cid for entry in self._pending)}
        if self._running is not None:
            cids.add(self._running)
        return {each: self._info(each) for each in cids if cid in (None, each)}

    # -- the virtual clock -------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        return _milliseconds(self._now)

    def next_due_ms(self) -> float | OneOf | None:
        waste = self._waste()
        due = min((max(entry.ready, self._now) for entry in self._pending if entry not in waste), default=None)
        answer = None if due is None else _milliseconds(due)
        return OneOf(answer, self.now_ms) if waste else answer

    def advance(self, step: float | timedelta, /) -> None:
        if isinstance(step, timedelta):
            step = step / timedelta(milliseconds=1)
        if isinstance(step, bool) or not isinstance(step, (int, float)):
            raise TypeError("the step must be a number or a timedelta")
        if step < 0:
            raise VirtualTimeError("the clock cannot go back")
        self._refuse_inside(VirtualTimeError)
        end = self._now + _delay(step)
        self._deliver_until(end)
        self._now = end

    def run_until_idle(self) -> int:
        self._refuse_inside(VirtualTimeError)
        return self._deliver_until(None)

    # -- for the comparison ----------------------------------------------------------------------------------

    @property
    def delivering(self) -> bool:
        """True if the caller is inside a delivery."""
        return self._running is not None

    @property
    def empty(self) -> bool:
        """True if the model holds nothing."""
        return not (self._flows or self._subscriptions or self._pending)

    @property
    def failures(self) -> int:
        """How many deliveries have failed."""
        return self._failed

    # -- helpers -----------------------------------------------------------------------------------------------

    def _deliver_until(self, end: int | None) -> int:
        """Deliver at this instant and at each due instant up to `end`; return how many."""
        count = self._deliver_ready()
        while self._pending:
            due = min(entry.ready for entry in self._pending)
            if end is not None and due > end:
                break
            self._now = due
            count += self._deliver_ready()
        return count

    def _deliver_ready(self) -> int:
        count = 0
        while (entry := self._next()) is not None:
            is_waste = entry in self._waste()
            self._pending.remove(entry)
            if is_waste:
                self._cancelled += 1
            else:
                count += 1
                self._in_a_row += not entry.is_timer
                self._deliver(entry)
        self._in_a_row, self._turn, self._none_may = 0, None, False
        return count

    def _next(self) -> _Pending | None:
        """Return what begins next, of all that is ready."""
        ready = sorted((entry for entry in self._pending if entry.ready <= self._now), key=lambda each: each.order)
        if not any(entry in ready for entry in self._aside):
            self._none_may = self._none_may or (self._stood_aside > 0 and self._turn is None)
            self._aside.clear()
            self._stood_aside = 0
        timer = self._next_in_turn(ready) if self._fair and self._in_a_row >= IN_A_ROW else None
        if timer is not None:
            return timer
        aside = [entry for entry in self._aside if entry in ready]
        return next(iter(aside or ready), None)

    def _next_in_turn(self, ready: list[_Pending]) -> _Pending | None:
        """Return the timer that begins next because timers have a turn; None when the turn is over."""
        if self._turn is None:
            self._turn = sum(entry.is_timer for entry in self._pending)
            bound = 0 if self._none_may else 2 * self._turn
            self._none_may = False
            self._may_stand_aside = max(bound, self._may_stand_aside) if self._stood_aside else bound
        waste = self._waste()
        for timer in ready:
            if not timer.is_timer or timer in self._aside:
                continue
            before = [
                entry
                for entry in ready[: ready.index(timer)]
                if entry.cid == timer.cid and not entry.is_timer and entry not in waste and entry not in self._aside
            ]
            must_stand_aside = before or any(entry.cid == timer.cid for entry in self._aside)
            if not self._turn or (must_stand_aside and self._stood_aside >= self._may_stand_aside):
                break
            self._turn -= 1
            if not must_stand_aside:
                return timer
            self._stood_aside += 1
            self._aside += [*before, timer]
        self._in_a_row, self._turn = 0, None
        return None

    def _deliver(self, entry: _Pending) -> None:
        subscription = entry.subscription
        if subscription is None:
            event = _event_of(entry.instance_id, entry.event)
        else:
            event = Event(entry.instance_id, _name_of(subscription.event), entry.message)
        cause = "timer" if subscription is None else f"topic {subscription.topic}"
        self.trace.append(Delivery(self.now_ms, entry.cid, entry.instance_id, event.name, cause))
        self._running = entry.cid
        try:
            self._dispatch(entry.cid, event)
            self._delivered += 1
        except ConversationEnded:
            self._delivered += 1
        except BaseException as exc:
            self._failed += 1
            if self._on_error is not None:
                self._on_error(entry.cid, event, exc)
            if isinstance(exc, KeyboardInterrupt):
                raise
        finally:
            self._running = None

    def _remove(self, removed: list[_Subscription]) -> int:
        self._subscriptions = [found for found in self._subscriptions if found not in removed]
        return len(removed)

    def _waste(self) -> list[_Pending]:
        """Return the messages whose subscription has been removed since."""
        return [
            entry for entry in self._pending if not entry.is_timer and entry.subscription not in self._subscriptions
        ]

    def _info(self, cid: str) -> ConversationInfo:
        pending = sorted((entry for entry in self._pending if entry.cid == cid), key=lambda each: each.order)
        waste = sum(entry in pending for entry in self._waste())
        queued = sum(not entry.is_timer for entry in pending) - waste
        return ConversationInfo(
            timers=tuple(
                TimerInfo(entry.instance_id, entry.event, max(0.0, _milliseconds(entry.ready - self._now)))
                for entry in pending
                if entry.is_timer
            ),
            subscriptions=tuple(
                SubscriptionInfo(found.instance_id, found.topic, found.event)
                for found in self._subscriptions
                if found.cid == cid
            ),
            queued=_between(queued, queued + waste),
            running=int(cid == self._running),
            pending_flow=cid in self._flows,
        )

    def _require_open(self) -> None:
        if self.closed:
            raise RegistryClosed("the registry is closed")

    def _require_room(self, wanted: int) -> None:
        if self._max_pending is None:
            return
        room = self._max_pending - wanted - len(self._pending)
        if room + len(self._waste()) < 0 or (room < 0 and self.full()):
            raise RegistryFull("the registry is full")

    def _refuse_inside(self, error: type[Exception]) -> None:
        if self._running is not None:
            raise error("called from inside a delivery")


def _between(low: int, high: int) -> Any:
    return low if low == high else OneOf(*range(low, high + 1))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name must be a str")
    if not value:
        raise ValueError("a name must not be empty")
    return str.__str__(value)


def _spec(event: Any) -> Any:
    if isinstance(event, str):
        return _name(event)
    if not isinstance(event, (tuple, list)):
        raise TypeError("an event must be a str, a tuple or a list")
    if not event:
        raise ValueError("an event must not be empty")
    return (_name(event[0]), *event[1:])


def _name_of(event: Any) -> str:
    name: str = event if isinstance(event, str) else event[0]
    return name


def _event_of(instance_id: str, spec: Any) -> Event:
    payload = () if isinstance(spec, str) else spec[1:]
    if not payload:
        return Event(instance_id, _name_of(spec), NO_PAYLOAD)
    return Event(instance_id, _name_of(spec), payload[0] if len(payload) == 1 else payload)


def _delay(delay_ms: object) -> int:
    """Return whole nanoseconds, rounded up; 0 for a negative delay."""
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):
        raise TypeError("a delay must be a number")
    if isinstance(delay_ms, float) and not isfinite(delay_ms):
        raise ValueError("a delay must be finite")
    return max(0, ceil(Fraction(delay_ms) * _NANOSECONDS))


def _milliseconds(nanoseconds: int) -> float:
    try:
        return nanoseconds / _NANOSECONDS
    except OverflowError:
        return float("inf")
