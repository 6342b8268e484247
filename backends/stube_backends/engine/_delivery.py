"""How what is ready is delivered, and how one waits until nothing is, on one core.

The deliverer is one thread at a time: the scheduler thread of a real clock, the caller of a virtual one. It takes the
lock once per timer and once per publication, and runs the host's dispatch and `on_error` without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from stube import ConversationEnded, Event
from stube_backends.engine._arguments import PlainEvent, refuse_result
from stube_backends.engine._core import FOREVER, NESTED, Core
from stube_backends.engine._order import Walk
from stube_backends.engine._timers import Timer

OnError = Callable[[str, Event, BaseException], object]

_logger: Final = logging.getLogger("stube")
_get_ident: Final = threading.get_ident


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
        core.deliverer = _get_ident()
        try:
            while self._core is core:  # in a child forked by a handler it is not, and the batch is the parent's
                entered = False
                try:  # `Core.exclusively`, written out (0.15 us of 0.6); never nested, for this is no operation
                    core.acquire()
                    core.busy = entered = True
                    work = core.engine.begin(now, failed)
                    failed = None
                    if work is None:
                        self._nothing_ready_locked(core, now)
                    core.busy = False
                except BaseException:
                    core.recover(entered)
                    raise
                core.release()
                if core.deferred:
                    core.catch_up()
                if work is None:
                    break
                count += 1
                if type(work) is not Timer:
                    count += self._deliver_walk(core, work) - 1  # type: ignore[arg-type]
                    del work
                    continue
                cid = work.group.cid  # type: ignore[union-attr]  # a claimed timer has its group and its event
                event = _event_of(work)
                failed = False  # unless the next lines say otherwise
                try:
                    result = core.dispatch(cid, event)
                    if result is not None:
                        refuse_result(result)
                except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                    failed, handed_on = self._judge(cid, event, exc)
                    if handed_on is not None:
                        raise handed_on from None
                del work, event  # nothing that was delivered stays alive until the next delivery
        except BaseException:
            if failed is not None and self._core is core:
                core.exclusively(core.engine.finish_timer, failed)
            raise
        finally:
            core.deliverer = None
        return count

    def _nothing_ready_locked(self, core: Core, now: int) -> None:
        """Decide how long to sleep, under the same lock as the look that found nothing: whatever is added from now
        on finds `sleep_until` set (race: a schedule between the decision to sleep and the sleep)."""
        instant = core.engine.order.next_instant()
        core.sleep_until = FOREVER if instant is None else min(instant, FOREVER)
        if instant is None:
            core.anchor.clear()
        if core.waiters:
            self._release_waiters_locked(core, now)

    def _deliver_walk(self, core: Core, walk: Walk) -> int:
        """Deliver a publication that was begun to its targets; to how many.

        The loop that must be fast: one `try` around the whole walk, which goes on behind a target that raised, and
        one event for neighbours that want it under the same name (5 million deliveries a second, 4 with an event
        each).
        """
        message = walk.message
        iterator = walk.iterator
        delivered = cancelled = failed = 0
        instance_id = name = event = None
        while True:
            try:
                for target in iterator:
                    target_name = target.name
                    if target_name is None:
                        cancelled += 1
                        continue
                    if target_name is not name or target.instance_id is not instance_id:
                        name, instance_id = target_name, target.instance_id
                        event = Event(instance_id, name, message)
                    result = core.dispatch(target.cid, event)  # type: ignore[arg-type]
                    if result is not None:
                        refuse_result(result)
                    delivered += 1
            except BaseException as exc:  # noqa: BLE001 - as above
                has_failed, handed_on = self._judge(target.cid, event, exc)  # type: ignore[arg-type]
                failed += has_failed
                delivered += not has_failed
                if handed_on is None:
                    continue
                core.exclusively(core.engine.finish_walk, walk, delivered, cancelled, failed)
                raise handed_on from None
            break
        if self._core is core:
            core.exclusively(core.engine.finish_walk, walk, delivered, cancelled, failed)
        return delivered + failed

    def _judge(self, cid: str, event: Event, exc: BaseException) -> tuple[bool, BaseException | None]:
        """What an exception that left a delivery means: whether the delivery failed, and what to hand on."""
        if isinstance(exc, ConversationEnded):
            _logger.debug("conversation %r ended during the delivery of %r", cid, event.name)
            return False, None
        handed_on = exc if isinstance(exc, self._handed_on) else None
        try:
            _logger.error(
                "the delivery of %r to instance %r of conversation %r failed",
                event.name,
                event.instance_id,
                cid,
                exc_info=exc,
            )
        except BaseException as second:  # noqa: BLE001 - a log handler that raises stops nothing
            handed_on = handed_on or (second if isinstance(second, self._handed_on) else None)
        if self._on_error is not None:
            try:
                self._on_error(cid, event, exc)
            except BaseException as second:  # noqa: BLE001 - nor does an on_error that raises
                handed_on = handed_on or (second if isinstance(second, self._handed_on) else None)
        return True, handed_on

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait_until_idle(self, core: Core, timeout: float | None, *, timers_too: bool) -> bool:
        """Block until whoever delivers finds the registry idle, or `timeout` seconds have passed."""
        waiter = _taken_lock()
        entry = (timers_too, waiter)
        idle = core.exclusively(self._enlist_locked, core, entry, self._clock())
        if idle is NESTED:
            raise RuntimeError(
                "A registry cannot be waited for from within one of its own operations, which stands still meanwhile. "
                "Let the signal handler or the finalizer return first."
            )
        if idle:
            return True
        self._wake(core)
        try:
            return bool(waiter.acquire(timeout=-1 if timeout is None else timeout))
        finally:
            core.exclusively(self._delist_locked, core, entry)

    def _enlist_locked(self, core: Core, entry: tuple[bool, threading.Lock], now: int) -> bool:
        if core.engine.is_idle(now, timers_too=entry[0]):
            return True
        core.waiters.append(entry)
        return False

    def _delist_locked(self, core: Core, entry: tuple[bool, threading.Lock]) -> None:
        if entry in core.waiters:
            core.waiters.remove(entry)

    def _release_waiters_locked(self, core: Core, now: int) -> None:
        for entry in core.waiters.copy():
            if core.engine.is_idle(now, timers_too=entry[0]):
                core.waiters.remove(entry)
                entry[1].release()

    def _refuse_inside_delivery(self, core: Core, what: str) -> None:
        if core.deliverer == _get_ident():
            raise RuntimeError(f"{what}() was called from inside a delivery and would wait for itself. Return first.")


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _event_of(timer: Timer) -> Event:
    """The event of a claimed timer, which from now on keeps nothing alive."""
    instance_id = timer.group.instance_id  # type: ignore[union-attr]
    spec: PlainEvent = timer.event  # type: ignore[assignment]
    timer.event = timer.group = None
    if type(spec) is str:
        return Event(instance_id, spec)
    if len(spec) == 1:
        return Event(instance_id, spec[0])
    return Event(instance_id, spec[0], spec[1] if len(spec) == 2 else spec[1:])
