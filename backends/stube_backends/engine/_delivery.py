"""How what is ready on one core is delivered by calling dispatch, one delivery after the other.

One thread at a time delivers: the thread of a `ThreadDriver`, or the caller of a virtual clock. It takes the lock once
per timer or batch and twice per publication, and calls the host's dispatch and `on_error` without it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from operator import length_hint

from stube import NO_PAYLOAD, Event, event_for_dispatch
from stube_backends.engine._arguments import NO_SIGNALS, event_with_payload, refuse_result
from stube_backends.engine._core import Core
from stube_backends.engine._failures import Failures
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import BEING_REMOVED, FanOut


class Deliverer:
    """Delivers from one core, for a driver."""

    __slots__ = ("_clock", "_core", "_failures")

    def __init__(self, core: Core, failures: Failures, clock: Callable[[], int]) -> None:
        self._core = core
        self._failures = failures
        self._clock = clock

    def deliver(self, now: int, nothing_ready_locked: Callable[[int, bool], int | None]) -> int:
        """Deliver what is ready at `now`, in the ready order, and what becomes ready meanwhile before it.

        Args:
            now: an instant of the registry's clock.
            nothing_ready_locked: called under the lock when nothing is ready, with the instant and whether nothing has
                been delivered since it was read; returns a later instant to look at, or None to stop. Because it is
                the same lock as that of the look, what is added later comes after its decision.

        Returns:
            How many deliveries there were.
        """
        core = self._core
        count = 0
        failed: bool | None = None  # the fate of the timer that ran last, counted with the next claim
        while not core.retired:  # in a child that a handler forked it is, and the batch is the parent's
            work, now = core.begin(now, failed, nothing_ready_locked, not count)
            failed = None
            if work is None:
                break
            if type(work) is Timer:
                failed = self._deliver_timer(work)
                count += 1
            elif type(work) is DueBatch:
                count += self._deliver_batch(work)
            else:
                count += self._deliver_fan_out(work)  # type: ignore[arg-type]
                now = self._clock()  # because a timer may have become due, whose turn it is (G27)
            del work  # nothing that was delivered stays alive until the next delivery
        return count

    def _deliver_timer(self, timer: Timer) -> bool:
        """Deliver one timer; return whether it failed."""
        cid, event = timer.claim()
        try:
            if event.payload is not NO_PAYLOAD:  # as that of a periodic timer never is
                event = event_for_dispatch(event)
            result = self._core.dispatch(cid, event)
            if result is not None:
                refuse_result(result)
            return False
        except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
            failed = self._failures.report(cid, event, exc)
        self._failures.reraise()
        return failed

    def _deliver_batch(self, batch: DueBatch) -> int:
        """Deliver the timers of a batch; return how many. Each is claimed by the pop, because taking the lock for each
        timer costs 0.8 us of 1.8."""
        core, timers, pop = self._core, batch.timers, batch.timers.pop
        claims = core.engine.claims
        delivered = failed = 0
        try:
            while timers:
                try:
                    timer = pop()
                except IndexError:
                    break  # a cancel or a reset took the last one at this moment
                # `Timer.claim`, written out: 0.04 us of 0.72, which the target of firing (twice uvloop's rate) needs.
                spec = timer.event
                timer.table = timer.event = None
                assert spec is not None
                claims.running_cid = cid = timer.cid
                if type(spec) is str:
                    event = Event(timer.instance_id, spec, NO_PAYLOAD, NO_SIGNALS, timer.due)
                else:
                    event = event_for_dispatch(event_with_payload(timer.instance_id, spec, timer.due))
                try:
                    result = core.dispatch(cid, event)
                    if result is not None:
                        refuse_result(result)
                    delivered += 1
                except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                    has_failed = self._failures.report(cid, event, exc)
                    failed += has_failed
                    delivered += not has_failed
                    self._failures.reraise()
        finally:
            batch.delivered += delivered
        return delivered + failed

    def _deliver_fan_out(self, fan_out: FanOut) -> int:
        """Deliver to the targets of a slice, until a timer is due and has its turn; return to how many.

        This loop must be fast: there is one `try` around the whole walk, which continues behind a target that raised,
        and one event for neighbours that want it under the same name (5 million deliveries a second; 4 with an event
        for each).
        """
        core = self._core
        message, due = fan_out.message, fan_out.due
        iterator = fan_out.iterator
        turns = core.engine.claims.turns
        most = turns.most
        row = -turns.in_a_row  # how many deliveries of this slice precede the present row
        delivered = failed = 0
        instance_id = name = event = target = None
        try:
            while True:
                try:
                    for target in islice(iterator, max(1, most - delivered - failed + row)):
                        target_name = target.name
                        if target_name is not name or target.instance_id is not instance_id:
                            if target_name is None or target_name is BEING_REMOVED:
                                fan_out.cancelled += 1
                                if fan_out.pass_over(target, core.wait_for_lock):
                                    continue
                                return delivered + failed
                            name, instance_id = target_name, target.instance_id
                            event = Event(instance_id, name, message, NO_SIGNALS, due)
                        result = core.dispatch(target.cid, event)  # type: ignore[arg-type]
                        if result is not None:
                            refuse_result(result)
                        delivered += 1
                except BaseException as exc:
                    if delivered + failed + fan_out.cancelled + fan_out.dropped == fan_out.begun:
                        # Every target that was taken has its fate: a signal handler raised between two deliveries.
                        raise
                    failed += 1  # counted first, in case a signal handler raises in the next lines
                    if event is None or target is None:
                        raise  # raised by a signal handler before the first delivery
                    if not self._failures.report(target.cid, event, exc):
                        failed, delivered = failed - 1, delivered + 1
                    self._failures.reraise()
                if not length_hint(iterator):
                    return delivered + failed
                if delivered + failed - row >= most:
                    if turns.limit is not None or core.interrupt_at <= self._clock():
                        return delivered + failed
                    row = delivered + failed
        finally:
            turns.in_a_row = delivered + failed - row
            if not core.retired:
                core.run_locked(core.engine.claims.finish_fan_out, fan_out, delivered, failed)
