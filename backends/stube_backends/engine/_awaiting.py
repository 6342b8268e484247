"""How what is ready on one core is delivered to coroutine handlers, one after the other, by a task that awaits each.

The order, the claims and the fates are those of `Deliverer`; but here a delivery may take many steps of an event loop,
and the next one begins when it is over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

from stube import Event, event_for_dispatch
from stube_backends.engine._core import Core
from stube_backends.engine._failures import Failures
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import FanOut

Claims = Generator[tuple[str, Event], bool, None]


class HandlerHangs(Exception):  # noqa: N818 - a state that is met, not a mistake
    """A handler has not returned in time, and was cancelled."""

    def __init__(self, cid: str, event: Event) -> None:
        super().__init__(cid, event)
        self.cid = cid
        self.event = event


class AwaitingDeliverer:
    """Delivers from one core, for a driver, and awaits what dispatch returns."""

    __slots__ = ("_core", "_failures")

    def __init__(self, core: Core, failures: Failures) -> None:
        self._core = core
        self._failures = failures

    async def deliver(
        self, now: int, nothing_ready_locked: Callable[[int, bool], int | None], patience: float | None
    ) -> int:
        """Deliver as `Deliverer.deliver` does, in a task of its own: it is cancelled with the handler that it awaits.

        Args:
            now, nothing_ready_locked: see there.
            patience: seconds that one handler may take; None for no bound.

        Raises:
            HandlerHangs: a handler took longer.
        """
        core = self._core
        count = 0
        while not core.retired:
            work, now = core.begin(now, None, nothing_ready_locked, not count)
            if work is None:
                break
            claims = self._claims(work)
            del work
            try:
                claim = next(claims, None)
                while claim is not None:
                    cid, event = claim
                    del claim
                    failed, reported = await self._deliver_one(cid, event, patience)
                    count += 1
                    del event
                    if reported:
                        self._failures.reraise()
                    claim = _send(claims, failed)
            finally:
                claims.close()
        return count

    async def _deliver_one(self, cid: str, event: Event, patience: float | None) -> tuple[bool, bool]:
        """Call dispatch in the same step as the claim; return whether it failed, and whether it was reported.

        Raises:
            HandlerHangs: the handler took longer than `patience`; it has been reported.
        """
        from asyncio import current_task, timeout  # heavy, and loaded already where a task awaits this

        limit = timeout(patience)
        try:
            async with limit:
                event = event_for_dispatch(event)
                result: Any = self._core.dispatch(cid, event)
                if isinstance(result, Awaitable):
                    await result
            hangs = limit.expired()  # the handler ignored that it was cancelled
        except BaseException as exc:
            task = current_task()
            if task is None or task.cancelling() or isinstance(exc, GeneratorExit):
                raise  # the task that awaits all of this was cancelled
            hangs = isinstance(exc, TimeoutError) and limit.expired()
            if not hangs:
                return self._failures.report(cid, event, exc), True
        if hangs:
            self._failures.report(cid, event, HandlerHangs(cid, event))
            raise HandlerHangs(cid, event)
        return False, False

    def _claims(self, work: Timer | DueBatch | FanOut) -> Claims:
        """Claim one delivery after the other of what was begun. The fate of each is sent in: whether it failed; one
        whose fate is not sent has failed."""
        if isinstance(work, Timer):
            return self._claims_of_timer(work)
        return self._claims_of_batch(work) if isinstance(work, DueBatch) else self._claims_of_fan_out(work)

    def _claims_of_timer(self, timer: Timer) -> Claims:
        failed = True
        try:
            failed = yield timer.claim()
        finally:
            if not self._core.retired:
                self._core.run_locked(self._core.engine.claims.finish_timer, failed)

    def _claims_of_batch(self, batch: DueBatch) -> Claims:
        """Each is claimed by the pop; `SerialClaims.begin` counts their fates."""
        while batch.timers:
            try:
                timer = batch.timers.pop()
            except IndexError:
                return  # a cancel or a reset took the last one at this moment
            cid, event = timer.claim()
            self._core.engine.claims.running_cid = cid
            failed = yield cid, event
            del event  # nothing that was delivered stays alive until the next delivery
            batch.delivered += not failed

    def _claims_of_fan_out(self, fan_out: FanOut) -> Claims:
        """Each is claimed by reading its name."""
        core, turns = self._core, self._core.engine.claims.turns
        delivered = failed = 0
        try:
            for target, name in fan_out.claim_each(core.wait_for_lock):
                failed += 1  # until its fate is sent
                turns.in_a_row += 1
                if not (yield target.cid, Event(target.instance_id, name, fan_out.message, due=fan_out.due)):
                    failed, delivered = failed - 1, delivered + 1
                if turns.in_a_row >= turns.most:
                    break  # a timer may have its turn
        finally:
            if not core.retired:
                core.run_locked(core.engine.claims.finish_fan_out, fan_out, delivered, failed)


def _send(claims: Claims, failed: bool) -> tuple[str, Event] | None:
    try:
        return claims.send(failed)
    except StopIteration:
        return None
