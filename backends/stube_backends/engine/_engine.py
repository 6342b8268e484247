"""The engine: what one registry holds, and every change that an operation can make to it.

No lock, no thread, no clock: the caller makes sure that one call runs at a time (see `Core`) and says what time it is.
Which delivery begins, and what became of it, is the task of `Claims`, which the engine owns. What decides the
guarantees, and where:

- **Cancelling is final (G5)**: a timer is pending while it stands in a ring or in a batch's list, a target is live
  while its `name` is set. The claim (`begin` takes the timer out of its ring; a batch is popped; the fan-out reads the
  name) and the cancel decide by that one fact: one of them wins.
- **A publication is one entry (G14)**: a list and a length, see `_topics`.
- **Order (G2)**: see `_order`, and `_turns` for who may overtake whom. Instants of acceptance never run backwards.
- **Old work dies with a reset (G18)**: everything pending is taken out and marked dead, the targets of a fan-out in
  progress and the timers of a batch as well. A fork (G25) starts the child on a new engine.
- **No user code (G20)**: names are exact `str`, payloads are only passed on. Everything whose release might run a
  destructor (events, messages, flow ids) is returned to the caller, who releases it when it holds no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeAlias

from typing_extensions import TypeVar, override

from stube import EventSpec, RegistryClosed, RegistryFull, Stats
from stube.arguments import PlainEvent
from stube_backends.engine._arguments import name_of
from stube_backends.engine._backlogs import Backlogs, Limits, Overflow
from stube_backends.engine._claims import Claims
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._order import ReadyOrder
from stube_backends.engine._records import Records
from stube_backends.engine._serial import SerialClaims
from stube_backends.engine._tables import free_if_empty_unlocked
from stube_backends.engine._timers import CLAIMABLE, PENDING_ADMISSION, Timer
from stube_backends.engine._topics import NONE_SERVED, Generation, Publication, Topic, TopicIndex

ClaimsT = TypeVar("ClaimsT", bound=Claims, default=SerialClaims)
NewClaims: TypeAlias = Callable[[Ledger, ReadyOrder, Records, TopicIndex, Backlogs | None], ClaimsT]

_SERIAL: Final[Any] = SerialClaims  # the default of `ClaimsT`, which a type checker cannot see
_NO_BOUND: Final = 1 << 62
_MANY_FLOWS: Final = 64  # a table of batons that was larger than this is freed when it empties


class _Refusing(dict[str, Any]):
    """The batons of a closed registry, which refuse a baton although its caller saw the registry open."""

    @override
    def __setitem__(self, cid: str, flow_id: Any) -> None:
        raise_closed()


def registry_full(pending: int, wanted: int, max_pending: int) -> RegistryFull:
    """Return the error to raise when `wanted` more timers and messages would pass the bound."""
    return RegistryFull(
        f"The registry holds {pending} timers and messages, and {wanted} more "
        f"would pass max_pending={max_pending}. Raise max_pending, or schedule and publish less."
    )


def raise_closed_to_dispatch() -> NoReturn:
    """Refuse a dispatch for a closed registry."""
    raise RegistryClosed("The registry is closed, so it delivers nothing any more. Create a new one.")


def raise_closed() -> NoReturn:
    """Refuse an operation that would add to a closed registry."""
    raise RegistryClosed("The registry is closed, so nothing can be added to it. Create a new one.")


class Engine(Generic[ClaimsT]):
    """All that one registry holds.

    Args:
        max_pending: the bound of `timers + queued`; None for none.
        generation: shared with the engines of siblings; None for an engine without.
        limits: of each conversation; None for none.
        claims: makes the part that begins deliveries; `SerialClaims` unless deliveries overlap.
    """

    __slots__ = (
        "backlogs",
        "claims",
        "closed",
        "flows",
        "flows_large",
        "ledger",
        "max_pending",
        "order",
        "records",
        "topics",
    )

    def __init__(
        self,
        max_pending: int | None,
        generation: Generation | None = None,
        limits: Limits | None = None,
        claims: NewClaims[ClaimsT] = _SERIAL,
    ) -> None:
        self.max_pending = _NO_BOUND if max_pending is None else max_pending
        self.closed = False
        # The batons. No lock guards them: each is put and taken in one step. Only a reset replaces the table, and
        # nothing clears it, so that none is lost.
        self.flows: dict[str, Any] = {}
        self.flows_large = False  # whether the table's memory is worth freeing
        self.ledger = Ledger()
        self.records = Records()
        self.order = ReadyOrder()
        self.topics = TopicIndex(generation)
        self.backlogs = None if limits is None else Backlogs(limits, self.order.arrive, self.ledger, self.records)
        self.claims = claims(self.ledger, self.order, self.records, self.topics, self.backlogs)

    # -- batons ------------------------------------------------------------------------------------------------

    def put_flow(self, cid: str, flow_id: Any) -> Any:
        """Record a baton; return the one that it replaces. Needs no lock."""
        flows = self.flows
        replaced = flows.get(cid)
        flows[cid] = flow_id
        if len(flows) > _MANY_FLOWS:
            self.flows_large = True
        return replaced

    def shrink_flows(self) -> None:
        """Free the memory of the table of batons if it is empty, although batons are put without the lock."""
        free_if_empty_unlocked(self.flows)
        self.flows_large = bool(self.flows)

    # -- timers ------------------------------------------------------------------------------------------------

    def schedule(self, cid: str, instance_id: str, delay: int, event: PlainEvent, now: int) -> Timer:
        """Accept a timer, `delay` nanoseconds from `now`."""
        if self.closed:
            raise_closed()
        ledger = self.ledger
        if ledger.timers + ledger.queued >= self.max_pending:
            self._require_room(1)
        if self.backlogs is not None:
            self.backlogs.require_room(cid)
        order = self.order
        if now > order.last_accepted_ns:
            order.last_accepted_ns = now
        else:
            now = order.last_accepted_ns
        timer = Timer()
        timer.due = now + delay
        timer.cid = cid
        timer.instance_id = instance_id
        timer.event = event
        # `Records.add_timer`, written out.
        records = timer.table = self.records
        timer.newer = timer.older = None
        if cid in records.by_cid:
            records.add_another(timer)
        else:
            records.by_cid[cid] = timer
        if delay:
            order.wheel.add(timer, delay)
        else:
            order.arrivals.append_timer(timer)
        ledger.accepted += 1
        ledger.timers += 1
        return timer

    def require_admission(self, others: int) -> None:
        """Raise what `schedule` would, as far as it can be known while another operation is incomplete.

        Args:
            others: how many timers have been promised and not admitted yet.
        """
        self.require_open()
        ledger = self.ledger
        if ledger.timers + ledger.queued + others >= self.max_pending:
            self._raise_full(1)

    def admit(self, timer: Timer, delay: int, now: int) -> PlainEvent | None:
        """Accept a timer whose handle was given out while another operation was incomplete.

        Its handle may have cancelled it since. Where there is no room any more its fate is to be dropped, because its
        caller has returned and cannot be told.

        Returns:
            The event of a timer that was dropped.
        """
        ledger = self.ledger
        event = timer.event
        ledger.accepted += 1
        if event is None:
            ledger.cancelled += 1
            return None
        full = ledger.timers + ledger.queued >= self.max_pending
        if self.closed or full or (self.backlogs is not None and self.backlogs.is_full(timer.cid)):
            ledger.dropped += 1
            timer.event = timer.table = timer.after = None
            return event
        order = self.order
        order.last_accepted_ns = now = max(now, order.last_accepted_ns)
        timer.due = now + delay
        self.records.add_timer(timer)
        if delay:
            order.wheel.add(timer, delay)
        else:
            order.arrivals.append_timer(timer)
        ledger.timers += 1
        return None

    def cancel(self, timer: Timer) -> PlainEvent | None:
        """Cancel one timer; return its event, or None when it had begun or was cancelled before."""
        if timer.after is None:
            return None
        if timer.after is PENDING_ADMISSION:  # `admit` will find it dead
            timer.after = None
        elif timer.after is CLAIMABLE:
            if not self.claims.withdraw(timer):
                return None
        elif timer.table is self.records:
            self.records.remove_timers((timer,))
            (event,) = self.order.discard((timer,))
            self.ledger.timers -= 1
            self.ledger.cancelled += 1
            return event
        else:  # of the parent process, before a fork
            return None
        event, timer.event, timer.table = timer.event, None, None
        return event

    def cancel_timers(self, cid: str, instance_id: str | None) -> list[PlainEvent | None]:
        """Cancel the timers of a conversation or of one instance; return their events."""
        by_cid = self.records.by_cid
        timer = by_cid.get(cid)
        if type(timer) is not Timer or self.claims.batch is not None or instance_id not in (None, timer.instance_id):
            return self._cancel_all(self.records.take_timers(cid, instance_id), cid, instance_id)
        # The usual case, a conversation of one timer: `take_timers`, written out (a tenth of the cost).
        del by_cid[cid]
        if not by_cid:
            by_cid.clear()
        ledger = self.ledger
        ledger.timers -= 1
        ledger.cancelled += 1
        return self.order.discard((timer,))

    def end_conversation(self, cid: str) -> list[Any]:
        """Cancel the timers of a conversation, remove its subscriptions and its baton; return what was held."""
        timers, subscriptions = self.records.take(cid)
        events = self._cancel_all(timers, cid, None)
        events += self.topics.remove(subscriptions, self.order.last_number)
        self.claims.cancel_messages(cid)
        flow_id = self.flows.pop(cid, None)
        if self.flows_large and not self.flows:
            self.shrink_flows()
        return [events, flow_id]

    def _cancel_all(self, timers: list[Timer], cid: str, instance_id: str | None) -> list[PlainEvent | None]:
        # First those that are claimed without the lock: when a handle shows, without the lock as well, that one timer
        # is over, none of the others may begin any more.
        withdrawn = None if self.claims.batch is None else self._withdraw_all(cid, instance_id)
        events = self.order.discard(timers)
        ledger, count = self.ledger, len(timers)
        ledger.timers -= count
        ledger.cancelled += count
        return events + withdrawn if withdrawn else events

    # -- topics ------------------------------------------------------------------------------------------------

    def subscribe(self, cid: str, instance_id: str, topic: str, event: PlainEvent) -> PlainEvent | None:
        """Subscribe; return the event that this one replaces."""
        if self.closed:
            raise_closed()
        entry, is_new = self.records.find_or_add(cid, instance_id, topic, event)
        if is_new:
            self.topics.add(entry)
            return None
        replaced, entry.event = entry.event, event
        entry.name = name_of(event)
        return replaced

    def unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> list[PlainEvent | None]:
        """Remove the subscriptions that fit; return their events."""
        removed = self.records.take_subscriptions(cid, instance_id, topic)
        events = self.topics.remove(removed, self.order.last_number)
        if instance_id is None:
            self.claims.cancel_messages(cid)
        return events

    def require_publishable(self, topic_name: str) -> None:
        """Raise what `publish` would."""
        self.require_open()
        self._require_room(self.topics.live(topic_name))

    def publish(self, topic_name: str, message: Any, now: int, *, checked: bool = False) -> int:
        """Accept a message for every subscriber of this instant; return how many there are.

        `checked` says that `require_publishable` was asked under this same lock: then nothing is refused any more, not
        even after a close that interrupted this thread since, so that several engines accept a message together.
        """
        if self.closed and not checked:
            raise_closed()
        topic = self.topics.topics.get(topic_name)
        if type(topic) is not Topic:  # tested here, because the call costs 4 % of a publication
            topic = self.topics.publishable(topic_name)
            if topic is None:
                return 0
        ledger, targeted = self.ledger, topic.live
        if ledger.timers + ledger.queued + targeted > self.max_pending:
            self._require_room(targeted)
        order = self.order
        if now > order.last_accepted_ns:
            order.last_accepted_ns = now
        publication = Publication()
        publication.due = order.last_accepted_ns
        publication.topic_name = topic_name
        publication.targeted = targeted
        publication.position = 0
        publication.served = NONE_SERVED
        publication.number = order.last_number = order.last_number + 1
        publication.message = message
        publication.topic = topic
        if self.backlogs is not None:
            self.backlogs.publish(topic, publication, self._end_conversation)
            return targeted
        topic.add(publication)  # first, so that what interrupts these lines finds no publication without its targets
        order.arrivals.append(publication)
        ledger.accepted += targeted
        ledger.queued += targeted
        return targeted

    def take_overflows(self) -> list[Overflow]:
        """Return the overflows since the last call, for the caller to report and to release."""
        return [] if self.backlogs is None else self.backlogs.take_overflows()

    # -- how much is pending -----------------------------------------------------------------------------------

    def pending(self) -> int:
        """Return what `max_pending` bounds."""
        self.claims.sync_counts()
        return self.ledger.timers + self.ledger.queued

    def pending_as_it_stands(self) -> int:
        """`pending` for a reader without the lock: changes nothing, and may lag."""
        return self.ledger.timers + self.ledger.queued

    def is_idle(self, now: int, *, timers_too: bool) -> bool:
        """Say whether nothing runs and nothing is ready at `now`; with `timers_too`, whether nothing is pending."""
        ledger = self.ledger
        if ledger.queued or self.order.has_arrived() or not self.claims.is_idle():
            return False
        return not ledger.timers if timers_too else not self.order.is_ready(now)

    def stats(self) -> Stats:
        """Return the ledger at this instant."""
        self.claims.sync_counts()
        return self.ledger.snapshot(pending_flows=len(self.flows), subscriptions=self.topics.count)

    def stats_as_they_stand(self) -> Stats:
        """`stats` for a reader that interrupts another operation: changes nothing, and may lag."""
        return self.ledger.snapshot(pending_flows=len(self.flows), subscriptions=self.topics.count)

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        """Return a snapshot of the subscriptions."""
        return self.topics.snapshot()

    # -- the whole state ---------------------------------------------------------------------------------------

    def reset(self) -> list[Any]:
        """Forget everything; return all that was held, for the caller to release."""
        return [*self.forget_the_rest(), self.forget_flows()]

    def close(self) -> list[Any]:
        """Refuse from now on what adds, and forget everything; return all that was held."""
        return [*self.forget_the_rest(), self.refuse()]

    def refuse(self) -> dict[str, Any]:
        """Refuse from now on what adds; return the batons, for the caller to release."""
        self.closed = True
        return self.forget_flows()

    def forget_flows(self) -> dict[str, Any]:
        """Forget the batons; return them, for the caller to release. Needs no lock."""
        flows, self.flows = self.flows, _Refusing() if self.closed else {}
        self.flows_large = False
        return flows

    def forget_the_rest(self) -> list[Any]:
        """Forget everything pending (its fate: dropped); return what was held, for the caller to release.

        What begins without the lock is stopped before anything that shows without the lock is gone.
        """
        ledger = self.ledger
        held = [*self.claims.drop_in_progress(), self.topics.forget(), self.records.forget()]
        entries = self.order.clear()
        ledger.dropped += ledger.timers
        ledger.timers = ledger.queued = 0
        living: dict[tuple[object, ...], int] = {}  # of each stretch of a list: counted once, for many publications
        for entry in entries:
            if type(entry) is Timer:
                held.append(entry.event)
                entry.event = entry.table = entry.after = entry.older = entry.newer = None
            else:
                assert isinstance(entry, Publication)
                key = (id(entry.entries), entry.position, entry.length, id(entry.served))
                if key not in living:
                    living[key] = len(entry.waiting())
                held.append(entry)
                ledger.drop_messages(entry.targeted, living[key])
                entry.topic = entry.later = None  # a topic refers to what waits for it
        if self.backlogs is not None:
            held.append(self.backlogs.take_overflows())
        return held

    # -- helpers -----------------------------------------------------------------------------------------------

    def _withdraw_all(self, cid: str, instance_id: str | None) -> list[PlainEvent | None]:
        """Cancel the timers of a conversation, or of one instance, that wait in a batch; return their events."""
        claims = self.claims
        withdrawn = [timer for timer in claims.waiting_timers(cid, instance_id) if claims.withdraw(timer)]
        events = []
        for timer in withdrawn:
            events.append(timer.event)
            timer.event = timer.table = timer.after = None
        return events

    def require_open(self) -> None:
        """Raise `RegistryClosed` if the engine is closed."""
        if self.closed:
            raise_closed()

    def _require_room(self, wanted: int) -> None:
        if self.pending() + wanted > self.max_pending:  # which counts the room that has become free without the lock
            self._raise_full(wanted)

    def _raise_full(self, wanted: int) -> NoReturn:
        raise registry_full(self.pending_as_it_stands(), wanted, self.max_pending)

    def _end_conversation(self, cid: str) -> list[Any]:
        """Drop everything of a conversation that overflows: its fate is not a canceller's. Return what was held."""
        ledger, before = self.ledger, self.ledger.cancelled
        held = self.end_conversation(cid)
        ledger.dropped += ledger.cancelled - before
        ledger.cancelled = before
        return held

    def _check(self) -> None:
        for part in (self.records, self.order, self.topics, self.ledger, self.claims):
            part._check()
        claims, arrivals = self.claims, [*self.order.waiting(), *self.claims.parked()]
        messages = [entry for entry in arrivals if type(entry) is Publication]
        pending = {id(timer) for timer in self.order.wheel}
        pending |= {id(entry) for entry in arrivals if type(entry) is Timer}
        records, cids = self.records, list(self.records.by_cid)
        recorded = {id(timer) for cid in cids for timer in records.timers(cid)}
        assert pending == recorded, f"{len(pending)} timers in the order, {len(recorded)} in the records"
        topics = {
            (name, entry.cid, entry.instance_id): entry
            for name, entries in self.topics.entries().items()
            for entry in entries
            if entry.name is not None
        }
        inverse = {
            (entry.topic, entry.cid, entry.instance_id): entry for cid in cids for entry in records.subscriptions(cid)
        }
        assert topics == inverse, f"the records and the topics differ: {topics.keys() ^ inverse.keys()}"
        timers = len(pending) + len(claims.waiting_timers())
        assert timers == self.ledger.timers, f"{timers} timers, counted {self.ledger.timers}"
        queued = sum(entry.targeted for entry in messages) + claims.queued()
        assert queued == self.ledger.queued, f"{queued} messages queued, counted {self.ledger.queued}"
        if self.backlogs is not None:
            self.backlogs._check(messages)
