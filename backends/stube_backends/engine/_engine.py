"""The engine: the state of one registry and every change that an operation can make to it.

No lock, no thread, no clock: whoever calls makes sure that one call runs at a time (see `Core`) and says what time
it is. What decides the guarantees, and where:

- **Cancelling is final (G5)**: a timer is pending while it stands in a ring or in a burst's list, a target live while
  its `name` is set. The claim (`begin` takes the timer out of its ring; a burst is popped; the walk reads the name) and
  the cancel decide by that one fact: one of them wins.
- **A publication is one entry (G14)**: a list and a length, see `_topics`.
- **Order (G2)**: see `_order`. Instants of acceptance are clamped to the latest instant accepted or collected.
- **Old work dies with a reset (G18)**: everything pending is taken out and marked dead, the targets of a walk in
  progress and the timers of a burst as well. A fork (G25) starts the child on a new engine.
- **No user code (G20)**: names are exact `str`, payloads are only passed on. What might run a destructor (events,
  messages, flow ids) is returned to the caller, who drops it when nothing is held any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from stube import ConversationInfo, EventSpec, RegistryClosed, RegistryFull, Stats
from stube_backends.engine._arguments import PlainEvent
from stube_backends.engine._backlogs import Backlogs, Limits, Overflow
from stube_backends.engine._ledger import Ledger
from stube_backends.engine._looking import inspect, sizes
from stube_backends.engine._order import EARLIEST, Arrival, Burst, Publication, ReadyOrder, Walk
from stube_backends.engine._tables import free_if_empty_unlocked
from stube_backends.engine._timers import CLAIMABLE, DETACHED, Timer, TimerGroups, TimerOwner
from stube_backends.engine._topics import Epoch, Subscription, TopicIndex

_NO_BOUND: Final = 1 << 62
_MANY_FLOWS: Final = 64  # a table of batons that was larger than this is given back when it empties


class _Refusing(dict[str, Any]):
    """The batons of a closed registry: whoever puts one comes too late, however early it looked."""

    def __setitem__(self, cid: str, flow_id: Any) -> None:
        raise_closed()


def registry_full(pending: int, wanted: int, max_pending: int) -> RegistryFull:
    """What is raised when `wanted` more timers and messages would pass the bound."""
    return RegistryFull(
        f"The registry holds {pending} timers and messages, and {wanted} more "
        f"would pass max_pending={max_pending}. Raise max_pending, or schedule and publish less."
    )


def raise_closed() -> NoReturn:
    """Refuse what would add to a closed registry."""
    raise RegistryClosed("The registry is closed, so nothing can be added to it. Create a new one.")


class Engine:
    """All the state of one registry.

    Args:
        max_pending: the bound of `timers + queued`; None for none.
        epoch: shared with the engines of siblings; None for an engine without.
        limits: of each conversation; None for none.
    """

    __slots__ = (
        "backlogs",
        "burst",
        "closed",
        "flows",
        "flows_large",
        "groups",
        "latest",
        "ledger",
        "max_pending",
        "order",
        "running_cid",
        "topics",
        "walk",
    )

    def __init__(self, max_pending: int | None, epoch: Epoch | None = None, limits: Limits | None = None) -> None:
        self.max_pending = _NO_BOUND if max_pending is None else max_pending
        self.backlogs = None if limits is None else Backlogs(limits)
        self.latest = EARLIEST  # the latest instant accepted or collected
        self.closed = False
        # The batons. Not guarded: each comes and goes in one step. Only a reset replaces the table, and nobody clears
        # it, so that none is lost.
        self.flows: dict[str, Any] = {}
        self.flows_large = False  # whether its table is worth giving back
        self.groups = TimerGroups()
        self.order = ReadyOrder()
        self.topics = TopicIndex(epoch)
        self.ledger = Ledger()
        self.walk: Walk | None = None  # the publication that is being delivered
        self.burst: Burst | None = None  # the timers that are being delivered in one go
        self.running_cid: str | None = None  # whose timer is being delivered

    # -- batons ------------------------------------------------------------------------------------------------

    def put_flow(self, cid: str, flow_id: Any) -> Any:
        """Record a baton; the one that it replaces. Needs no lock."""
        flows = self.flows
        replaced = flows.get(cid)
        flows[cid] = flow_id
        if len(flows) > _MANY_FLOWS:
            self.flows_large = True
        return replaced

    def shrink_flows(self) -> None:
        """Free the memory of the batons' table if it is empty. In one step, because batons are put without the lock."""
        free_if_empty_unlocked(self.flows)
        self.flows_large = bool(self.flows)

    # -- timers ------------------------------------------------------------------------------------------------

    def schedule(self, owner: TimerOwner, cid: str, instance_id: str, delay: int, event: PlainEvent, now: int) -> Timer:
        """Accept a timer, `delay` nanoseconds from `now`; its handle cancels it through `owner`, which is kept only
        while the timer is."""
        if self.closed:
            raise_closed()
        ledger = self.ledger
        if ledger.timers + ledger.queued >= self.max_pending:
            self._require_room(1)
        if self.backlogs is not None:
            self.backlogs.require_room(self, cid)
        if now > self.latest:
            self.latest = now
        else:
            now = self.latest
        timer = Timer()
        timer.due = now + delay
        timer.event = event
        self.groups.add(timer, cid, instance_id, owner)
        if delay:
            self.order.wheel.add(timer, delay)
        else:
            self.order.arrivals.append(timer)
        ledger.accepted += 1
        ledger.timers += 1
        return timer

    def require_adoption(self, others: int) -> None:
        """Raise what `schedule` would, as far as it can be known while another operation is half-way."""
        self._require_open()
        ledger = self.ledger
        if ledger.timers + ledger.queued + others >= self.max_pending:
            self._raise_full(1)

    def require_publishable(self, topic_name: str) -> None:
        """Raise what `publish` would."""
        self._require_open()
        topic = self.topics.topics.get(topic_name)
        if topic is not None:
            self._require_room(topic.live)

    def adopt(self, timer: Timer, delay: int, now: int) -> PlainEvent | None:
        """Accept a timer whose handle was given out while another operation was half-way (see `Core.later`).

        Its handle may have cancelled it since; and where there is no room any more its fate is to be dropped,
        for nobody is left to be told. The event, when it was dropped.
        """
        ledger = self.ledger
        event = timer.event
        ledger.accepted += 1
        if event is None:
            ledger.cancelled += 1
            return None
        detached = timer.group
        assert detached is not None
        full = ledger.timers + ledger.queued >= self.max_pending
        if self.closed or full or (self.backlogs is not None and self.backlogs.is_full(self, detached.cid)):
            ledger.dropped += 1
            timer.event = timer.group = timer.after = None
            return event
        self.latest = now = max(now, self.latest)
        timer.due = now + delay
        self.groups.add(timer, detached.cid, detached.instance_id, detached.owner)
        if delay:
            self.order.wheel.add(timer, delay)
        else:
            self.order.arrivals.append(timer)
        ledger.timers += 1
        return None

    def cancel(self, timer: Timer) -> PlainEvent | None:
        """Cancel one timer; its event, or None when it had begun or was cancelled before."""
        if timer.after is None:
            return None
        if timer.after is DETACHED:  # `adopt` will find it dead
            timer.after = None
        elif timer.after is CLAIMABLE:
            if self.burst is None or not self._withdraw(timer):
                return None
        elif self.groups.holds(timer):
            self.order.remove((timer,))
            self.groups.remove((timer,))
            self.ledger.timers -= 1
            self.ledger.cancelled += 1
        else:
            return None
        event, timer.event, timer.group = timer.event, None, None
        return event

    def cancel_timers(self, cid: str, instance_id: str | None) -> list[PlainEvent | None]:
        """Cancel the timers of a conversation or of one instance; their events."""
        timers = self.groups.take(cid, instance_id)
        events = []
        if self.burst is not None:
            # First, and from the last one to begin, for these are claimed without the lock: when a handle shows,
            # without the lock as well, that one timer is over, none of them begins any more.
            withdrawn = [timer for timer in self.burst.of(cid, instance_id) if self._withdraw(timer)]
            for timer in withdrawn:
                events.append(timer.event)
                timer.event = timer.group = timer.after = None
        for timer in timers:
            events.append(timer.event)
            timer.event = timer.group = None
        self.order.remove(timers)
        self.ledger.timers -= len(timers)
        self.ledger.cancelled += len(timers)
        return events

    def _withdraw(self, timer: Timer) -> bool:
        """Cancel a timer of the burst, if it has not begun."""
        assert self.burst is not None
        if not self.burst.withdraw(timer):
            return False
        self.ledger.timers -= 1
        self.ledger.cancelled += 1
        return True

    # -- topics ------------------------------------------------------------------------------------------------

    def subscribe(self, cid: str, instance_id: str, topic: str, event: PlainEvent) -> PlainEvent | None:
        """Subscribe; the event that this one replaces."""
        self._require_open()
        return self.topics.add(cid, instance_id, topic, event)

    def unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> list[PlainEvent | None]:
        """Remove the subscriptions that fit; their events."""
        return self.topics.remove(cid, instance_id, topic)

    def publish(self, topic_name: str, message: Any, now: int, *, checked: bool = False) -> int:
        """Accept a message for every subscriber of this instant; how many there are.

        `checked` says that `require_publishable` was asked under this same lock: then nothing is refused any more, not
        by a close that came in on this thread since, so that several engines accept a message together.
        """
        if self.closed and not checked:
            raise_closed()
        topic = self.topics.topics.get(topic_name)
        if topic is None:
            return 0
        ledger = self.ledger
        targeted = topic.live
        if ledger.timers + ledger.queued + targeted > self.max_pending:
            self._require_room(targeted)
        if now > self.latest:
            self.latest = now
        publication = Publication()
        publication.due = self.latest
        publication.topic_name = topic_name
        publication.topic = topic
        publication.entries = topic.entries
        publication.length = len(topic.entries)
        publication.targeted = targeted
        publication.message = message
        if self.backlogs is not None:
            self.backlogs.publish(self, topic, publication)
            return targeted
        self.order.arrivals.append(publication)
        topic.waiting += 1
        topic.pinned = publication.length
        ledger.accepted += targeted
        ledger.queued += targeted
        return targeted

    # -- delivering --------------------------------------------------------------------------------------------

    def begin(self, now: int, failed: bool | None = None) -> Timer | Burst | Walk | None:
        """Count the fate of what ran last, and claim what must begin next.

        Args:
            now: of all that is ready at this instant.
            failed: the fate of the timer that the last call handed out; None when it handed out none.

        Returns:
            None when nothing is ready. A timer is handed out claimed: in no ring, so that no cancel finds it any
            more; its event and its group are still on it, for the caller to take. Those of a burst are still to be
            claimed, each by a pop.
        """
        ledger = self.ledger
        if failed is not None:
            self.finish_timer(failed)
        elif self.burst is not None and (not ledger.running or self.finish_burst()):
            ledger.running += 1  # what an exception broke off, that had to be raised, goes on
            return self.burst
        if self.walk is not None:  # broken off by an exception that had to be raised, and now resumed
            ledger.running += 1
            return self.walk
        if now > self.latest:
            self.latest = now
        order = self.order
        head = order.arrivals.after
        timers = order.wheel.take_burst(now if head is order.arrivals else head.due)
        if timers is not None:
            return self._begin_burst(timers)
        entry = order.take(now)
        if entry is None:
            return None
        ledger.running += 1
        if type(entry) is not Timer:
            return self._begin_walk(entry)  # type: ignore[arg-type]
        ledger.timers -= 1
        self.running_cid = entry.group.cid  # type: ignore[union-attr]  # a pending timer has one
        self.groups.remove((entry,))
        return entry

    def finish_timer(self, failed: bool) -> None:
        """Count the fate of the timer that was begun."""
        self.running_cid = None
        self.ledger.running -= 1
        if failed:
            self.ledger.failed += 1
        else:
            self.ledger.delivered += 1

    def finish_burst(self) -> bool:
        """Count the fates of the burst's timers, as far as they have begun; forget it when all have, and say whether
        some are left. One that was claimed and then broken off, out of nowhere, has failed."""
        self.account()
        burst, ledger = self.burst, self.ledger
        assert burst is not None
        begun, delivered = burst.accounted, burst.delivered
        self.running_cid = None
        fates = (ledger.running - 1, ledger.delivered + delivered, ledger.failed + begun - delivered)
        left = (burst.total - begun, 0, 0)
        # In one go, so that an exception out of nowhere finds all of them counted or none.
        (ledger.running, ledger.delivered, ledger.failed), (burst.total, burst.accounted, burst.delivered) = fates, left
        if burst.timers:
            return True
        self.burst = None
        return False

    def finish_walk(self, walk: Walk, delivered: int, cancelled: int, failed: int = 0, dropped: int = 0) -> None:
        """Count the fates of a walk's targets, as far as they are decided; forget the walk when all are."""
        self.account()
        ledger = self.ledger
        some = (ledger.running - 1, ledger.delivered + delivered, ledger.cancelled + cancelled, ledger.failed + failed)
        rest = (ledger.dropped + dropped, walk.decided + delivered + cancelled + failed + dropped)
        # In one go, as above.
        (ledger.running, ledger.delivered, ledger.cancelled, ledger.failed), (ledger.dropped, walk.decided) = some, rest
        if walk.stopped:
            self._drop_rest(walk)
        elif walk.begun == walk.total:
            self.walk = None

    def abandon(self) -> None:
        """After an exception that left the delivering: count the fate of a timer that was begun, as failed; let a walk
        go on the next time."""
        if not self.ledger.running:
            return
        walk = self.walk
        if self.burst is not None:
            self.finish_burst()
        elif walk is None:
            self.finish_timer(failed=True)
        else:
            self.finish_walk(walk, 0, 0, failed=walk.begun - walk.decided)  # what became of them is lost

    def _drop_rest(self, walk: Walk) -> None:
        """Count the fates of what has not begun of a walk that nobody walks; and forget the walk."""
        rest = walk.targets[walk.begun :]
        walk.decided += len(rest)
        self._drop_messages(len(rest), count_live(rest))
        self.walk = None

    def account(self) -> None:
        """Take out of `queued` the targets of the walk in progress that have begun since the last time, and out of
        `timers` those of the burst."""
        burst = self.burst
        if burst is not None:
            begun = burst.begun
            self.ledger.timers -= begun - burst.accounted
            burst.accounted = begun
        walk = self.walk
        if walk is not None and not walk.stopped:
            begun = walk.begun
            self.ledger.queued -= begun - walk.accounted
            walk.accounted = begun

    def pending(self) -> int:
        """What `max_pending` bounds."""
        self.account()
        return self.ledger.timers + self.ledger.queued

    def pending_as_it_stands(self) -> int:
        """`pending` for a reader without the lock: changes nothing, and may lag."""
        return self.ledger.timers + self.ledger.queued

    def is_idle(self, now: int, *, timers_too: bool) -> bool:
        """Whether nothing runs and nothing is ready at `now`; with `timers_too`, whether nothing is pending."""
        ledger = self.ledger
        if ledger.running or ledger.queued or self.order.arrivals:
            return False
        if timers_too:
            return not ledger.timers
        wheel = self.order.wheel
        instant = wheel.next_instant()
        if instant is None or instant > now:
            return True
        due = wheel.next_due()
        return due is None or due > now

    # -- the whole state ---------------------------------------------------------------------------------------

    def reset(self) -> list[Any]:
        """Forget everything; all that was held, for the caller to drop."""
        return [*self.forget_the_rest(), self.forget_flows()]

    def forget_flows(self) -> dict[str, Any]:
        """Forget the batons; they, for the caller to drop. Needs no lock."""
        flows, self.flows = self.flows, _Refusing() if self.closed else {}
        self.flows_large = False
        return flows

    def forget_the_rest(self) -> list[Any]:
        """Forget everything pending (its fate: dropped); what was held, for the caller to drop.

        What begins without the lock is stopped before anything that shows without the lock is gone.
        """
        ledger = self.ledger
        held = [*self.halt(), self.topics]
        self.groups.clear()
        entries = self.order.clear()
        ledger.dropped += ledger.timers
        ledger.timers = ledger.queued = 0
        living: dict[tuple[int, int], int] = {}  # of each list, up to each length: counted once, for many publications
        for entry in entries:
            if type(entry) is Timer:
                held.append(entry.event)
                entry.event = entry.group = entry.after = None
            else:
                assert isinstance(entry, Publication)
                key = (id(entry.entries), entry.length)
                if key not in living:
                    living[key] = count_live(entry.entries[: entry.length])
                held.append(entry)
                self._drop_messages(entry.targeted, living[key])
        self.topics = TopicIndex(self.topics.epoch)
        if self.backlogs is not None:
            self.backlogs.rebuild(())
            held.append(self.backlogs.take_overflows())
        return held

    def halt(self) -> list[Any]:
        """Drop what would still begin without the lock, the rest of a walk or of a burst; what was held."""
        self.account()
        ledger, walk, burst = self.ledger, self.walk, self.burst
        held: list[Any] = [walk]
        if walk is not None and not walk.stopped:
            ledger.queued -= walk.total - walk.accounted  # whoever walks counts their fates
            held.append(walk.stop())
            if not ledger.running:  # it was broken off
                self._drop_rest(walk)
        if burst is not None:
            rest = burst.stop()
            self.account()
            ledger.timers -= len(rest)
            ledger.dropped += len(rest)
            for timer in rest:
                held.append(timer.event)
                timer.event = timer.group = timer.after = None
            if not ledger.running:
                self.burst = None
        return held

    def _drop_messages(self, count: int, live: int) -> None:
        """Count the fates of `count` queued messages: dropped for those who still subscribe, else cancelled."""
        self.ledger.dropped += live
        self.ledger.cancelled += count - live

    def close(self) -> list[Any]:
        """Refuse from now on what adds, and forget everything."""
        return [*self.forget_the_rest(), self.refuse()]

    def refuse(self) -> dict[str, Any]:
        """Refuse from now on what adds; the batons, for the caller to drop."""
        self.closed = True
        flows, self.flows = self.flows, _Refusing()
        return flows

    # -- looking -----------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The ledger at this instant."""
        self.account()
        return self.ledger.snapshot(pending_flows=len(self.flows), subscriptions=self.topics.count)

    def stats_as_they_stand(self) -> Stats:
        """`stats` for a reader that interrupts another operation: changes nothing, and may lag."""
        return self.ledger.snapshot(pending_flows=len(self.flows), subscriptions=self.topics.count)

    def subscriptions(self) -> dict[str, dict[tuple[str, str], EventSpec]]:
        """A snapshot of the subscriptions."""
        return self.topics.snapshot()

    def inspect(self, cid: str | None, now: int) -> dict[str, ConversationInfo]:
        """What is held, conversation by conversation. O(what is pending)."""
        return inspect(self, cid, now)

    def sizes(self) -> Mapping[str, int]:
        """The length of every container in the engine."""
        return sizes(self)

    def take_overflows(self) -> list[Overflow]:
        """What has given way to a message since the last time, for the caller to tell of and to drop."""
        return [] if self.backlogs is None else self.backlogs.take_overflows()

    def parked(self) -> list[Arrival]:
        """What has left the order and waits elsewhere to begin, in the ready order; here nothing does."""
        return []

    def unpark(self) -> list[Arrival]:
        """Take out what is parked, in no ring any more."""
        return []

    def count_running(self) -> int:
        """How many deliveries have begun and are not over, by what knows of it beside the ledger, if anything does."""
        return self.ledger.running

    def running(self) -> set[str]:
        """The conversations that have a delivery running."""
        if self.ledger.running and self.walk is not None:
            current = self.walk.current
            return set() if current is None else {current.cid}
        return set() if self.running_cid is None else {self.running_cid}

    # -- helpers -----------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self.closed:
            raise_closed()

    def _require_room(self, wanted: int) -> None:
        self.account()  # what has begun since frees its room
        if self.ledger.timers + self.ledger.queued + wanted > self.max_pending:
            self._raise_full(wanted)

    def _raise_full(self, wanted: int) -> NoReturn:
        raise registry_full(self.ledger.timers + self.ledger.queued, wanted, self.max_pending)

    def _begin_burst(self, timers: list[Timer]) -> Burst:
        self.burst = Burst(timers)
        for timer in timers:
            timer.after = CLAIMABLE
        self.groups.remove(timers)
        self.ledger.running += 1
        return self.burst

    def _begin_walk(self, publication: Publication) -> Walk:
        if self.backlogs is not None:
            self.backlogs.forget(publication)
        targets = publication.topic.targets(publication.entries, publication.length)
        cancelled = publication.targeted - len(targets)
        if cancelled:  # those who left between the publishing and now
            self.ledger.cancelled += cancelled
            self.ledger.queued -= cancelled
        # Handed out even when nobody is left, so that the message is dropped where user code may run.
        self.walk = Walk(publication, targets)
        return self.walk

    def _check(self) -> None:
        for part in (self.groups, self.order, self.topics, self.ledger):
            part._check()
        pending = {id(timer) for timer in self.order.wheel}
        arrived = [*self.order.arrivals, *self.parked()]
        pending |= {id(entry) for entry in arrived if type(entry) is Timer}
        grouped = {id(timer) for groups in self.groups.by_cid.values() for group in groups.values() for timer in group}
        assert pending == grouped, f"{len(pending)} timers in the order, {len(grouped)} in the groups"
        self.account()
        waiting = len(pending) + (0 if self.burst is None else len(self.burst.timers))
        assert waiting == self.ledger.timers, f"{waiting} timers, counted {self.ledger.timers}"
        queued = sum(entry.targeted for entry in arrived if type(entry) is Publication)
        if self.walk is not None and not self.walk.stopped:
            queued += self.walk.total - self.walk.accounted
        assert queued == self.ledger.queued, f"{queued} messages queued, counted {self.ledger.queued}"
        if self.backlogs is not None:
            self.backlogs._check(entry for entry in arrived if type(entry) is Publication)


def count_live(targets: list[Subscription]) -> int:
    """How many of them still subscribe."""
    return sum(target.name is not None for target in targets)
