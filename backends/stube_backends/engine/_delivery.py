"""How what is ready is delivered, and how one waits until nothing is, on one core.

The deliverer is one thread at a time: the scheduler thread of a real clock, the caller of a virtual one. It takes the
lock once per timer and once per publication, and runs the host's dispatch and `on_error` without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from stube import ConversationEnded, Event
from stube_backends.engine._arguments import event_of, refuse_result
from stube_backends.engine._batches import Burst, Walk
from stube_backends.engine._core import FOREVER, Core, Waiter, log
from stube_backends.engine._order import EARLIEST
from stube_backends.engine._timers import Timer
from stube_backends.engine._topics import LEAVING

OnError = Callable[[str, Event, BaseException], object]


class Deliverer:
    """What delivers for a registry on one core. A subclass says who is woken, and sets the three fields."""

    # Exceptions that a delivery hands on to whoever called, after they are counted: where that is user code.
    _handed_on: tuple[type[BaseException], ...] = ()

    _clock: Callable[[], int]
    _core: Core  # replaced in a forked child only
    _on_error: OnError | None

    def _wake(self, core: Core) -> None:
        """Make whoever delivers look again."""
        raise NotImplementedError

    def _deliver(self, core: Core, now: int) -> int:
        """Deliver what is ready at `now`, in the ready order, and what becomes ready meanwhile before it; how many.

        Runs without the lock, but for one turn of it per timer and per publication. One thread at a time.
        """
        count = 0
        failed: bool | None = None  # the fate of the timer that ran last, counted in the next turn
        while self._core is core:  # in a child forked by a handler it is not, and the batch is the parent's
            try:  # `Core.exclusively`, written out (0.15 us of 0.6); never nested, for this is no operation
                core.acquire()
                core.busy = True
                work = core.engine.claims.begin(now, failed)
                failed = None
                while work is None:
                    instant = self._nothing_ready_locked(core, now, fresh=not count)
                    if instant is None:
                        break
                    now = instant
                    work = core.engine.claims.begin(now)
                core.busy = False
                core.release()
            except BaseException as exc:
                core.recover(exc)
                raise
            if core.deferred:
                core.catch_up()
            if work is None:
                break
            count += 1
            if type(work) is not Timer:
                deliver: Any = self._deliver_burst if type(work) is Burst else self._deliver_walk
                count += deliver(core, work) - 1
                del work
                continue
            group, spec = work.group, work.event
            work.event = work.group = None  # from now on it keeps nothing alive
            cid = group.cid  # type: ignore[union-attr]  # a claimed timer has its group and its event
            event = event_of(group.instance_id, spec)  # type: ignore[union-attr, arg-type]
            try:
                result = core.dispatch(cid, event)
                if result is not None:
                    refuse_result(result)
                failed = False
            except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                failed, handed_on = self._judge(cid, event, exc)
                if handed_on is not None:
                    try:
                        raise handed_on from None
                    finally:
                        del handed_on  # it holds this frame, by its traceback
            del work, group, spec, event  # nothing that was delivered stays alive until the next delivery
        return count

    def _nothing_ready_locked(self, core: Core, now: int, *, fresh: bool) -> int | None:
        """The instant at which to go on at once, where a clock can be moved there; None to stop.

        Here: decide how long to sleep, under the same lock as the look that found nothing: whatever is added from now
        on finds `sleep_until` set (race: a schedule between the decision to sleep and the sleep).

        Who waits is released only where `now` is fresh: behind a slow handler something may have become due since.
        """
        instant = core.engine.order.next_instant()
        core.sleep_until = FOREVER if instant is None else min(instant, FOREVER)
        if instant is None:
            core.anchor.clear()
        if core.waiters and (fresh or core.engine.closed):
            self._release_waiters_locked(core, now)
        elif core.waiters:
            core.sleep_until = EARLIEST  # look again at once
        return None

    def _deliver_burst(self, core: Core, burst: Burst) -> int:
        """Deliver the timers of a burst; how many. Each is claimed by the pop (1.0 us a timer, 1.8 with a turn of the
        lock for each)."""
        timers, claims, pop = burst.timers, core.engine.claims, burst.timers.pop
        delivered = failed = 0
        try:
            while timers:
                try:
                    timer = pop()
                except IndexError:
                    break  # a cancel or a reset took the last one at this moment
                group, spec = timer.group, timer.event
                timer.event = timer.group = None  # from now on it keeps nothing alive; as above
                claims.running_cid = cid = group.cid  # type: ignore[union-attr]
                if type(spec) is str:
                    event = Event(group.instance_id, spec)  # type: ignore[union-attr]
                else:
                    event = event_of(group.instance_id, spec)  # type: ignore[union-attr, arg-type]
                try:
                    result = core.dispatch(cid, event)
                    if result is not None:
                        refuse_result(result)
                    delivered += 1
                except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                    has_failed, handed_on = self._judge(cid, event, exc)
                    failed += has_failed
                    delivered += not has_failed
                    if handed_on is not None:
                        try:
                            raise handed_on from None
                        finally:
                            del handed_on
        finally:
            burst.delivered += delivered
        return delivered + failed

    def _deliver_walk(self, core: Core, walk: Walk) -> int:
        """Deliver a publication that was begun to its targets; to how many.

        The loop that must be fast: one `try` around the whole walk, which goes on behind a target that raised, and
        one event for neighbours that want it under the same name (5 million deliveries a second, 4 with an event
        each).
        """
        message = walk.message
        iterator = walk.iterator
        begun = walk.begun  # by an earlier call, which was broken off
        delivered = failed = 0
        instance_id = name = event = target = None
        try:
            while True:
                try:
                    for target in iterator:
                        target_name = target.name
                        if target_name is not name or target.instance_id is not instance_id:
                            if target_name is None or target_name is LEAVING:
                                if walk.pass_over(target, partial(core.exclusively, nothing)):
                                    continue
                                return delivered + failed
                            name, instance_id = target_name, target.instance_id
                            event = Event(instance_id, name, message)
                        result = core.dispatch(target.cid, event)  # type: ignore[arg-type]
                        if result is not None:
                            refuse_result(result)
                        delivered += 1
                    return delivered + failed
                except BaseException as exc:
                    if delivered + failed + walk.cancelled + walk.dropped == walk.begun - begun:
                        raise  # out of nowhere, by a signal between two deliveries
                    failed += 1  # should the next lines be broken off
                    if event is None or target is None:
                        raise  # out of nowhere as well, before the first
                    has_failed, handed_on = self._judge(target.cid, event, exc)
                    if not has_failed:
                        failed, delivered = failed - 1, delivered + 1
                    if handed_on is not None:
                        try:
                            raise handed_on from None
                        finally:
                            del handed_on
        finally:
            if self._core is core:
                core.exclusively(core.engine.claims.finish_walk, walk, delivered, failed)

    def _judge(
        self, cid: str, event: Event, exc: BaseException, level: int = logging.ERROR
    ) -> tuple[bool, BaseException | None]:
        """What an exception that left a delivery means: whether the delivery failed, and what to hand on. `level` is
        how loud the log tells of a failure."""
        if isinstance(exc, ConversationEnded):
            raised = [log(logging.DEBUG, "conversation %r ended during the delivery of %r", cid, event.name)]
        else:
            what = "the delivery of %r to instance %r of conversation %r failed"
            raised = [exc, log(level, what, event.name, event.instance_id, cid, exc_info=exc)]
            if self._on_error is not None:
                try:
                    self._on_error(cid, event, exc)
                except BaseException as second:  # noqa: BLE001 - it stops nothing either
                    raised.append(second)
        failed = not isinstance(exc, ConversationEnded)
        return failed, next((each for each in raised if isinstance(each, self._handed_on)), None)

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait_until_idle(self, core: Core, timeout: float | None, *, timers_too: bool) -> bool:
        """Block until whoever delivers finds the registry idle, or `timeout` seconds have passed."""
        if core.nested():
            raise RuntimeError(
                "A registry cannot be waited for from within one of its own operations, which stands still meanwhile. "
                "Let the signal handler or the finalizer return first."
            )
        lock = threading.Lock()
        lock.acquire()
        waiter = Waiter(timers_too, self._clock(), lock)
        if core.exclusively(self._enlist_locked, core, waiter):
            return True
        self._wake(core)
        try:
            return lock.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            core.exclusively(self._delist_locked, core, waiter)

    def _enlist_locked(self, core: Core, waiter: Waiter) -> bool:
        if core.engine.is_idle(waiter.since, timers_too=waiter.timers_too):
            return True
        core.waiters.append(waiter)
        return False

    def _delist_locked(self, core: Core, waiter: Waiter) -> None:
        if waiter in core.waiters:
            core.waiters.remove(waiter)

    def _release_waiters_locked(self, core: Core, now: int) -> None:
        # The round may have begun before a waiter came, so `now` alone would be too early.
        for waiter in core.waiters.copy():
            if core.engine.is_idle(max(now, waiter.since), timers_too=waiter.timers_too):
                core.waiters.remove(waiter)
                waiter.lock.release()


def nothing() -> None:
    """What is done under a lock that is only waited for."""
