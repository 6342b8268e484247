"""How what is ready is delivered to coroutine handlers, one after the other, by whoever awaits it.

The order, the claims and the fates are those of `Deliverer._deliver`; but here a delivery may take many turns of an
event loop, and the next one begins when it is over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any

from stube import Event
from stube_backends.engine._batches import Burst, Walk
from stube_backends.engine._core import Core
from stube_backends.engine._delivery import Deliverer, nothing
from stube_backends.engine._timers import Timer

Claims = Generator[tuple[str, Event], bool, None]


class HandlerHangs(Exception):  # noqa: N818 - a state that is met, not a mistake
    """A handler has not returned in time, and was cancelled."""

    def __init__(self, cid: str, event: Event) -> None:
        super().__init__(cid, event)
        self.cid = cid
        self.event = event


class AwaitingDeliverer(Deliverer):
    """What delivers from one core and awaits what dispatch returns."""

    async def _deliver_awaiting(self, core: Core, now: int, patience: float | None) -> int:
        """`_deliver`, for a task that has nothing else to do: it is cancelled with the handler that it awaits.

        Args:
            core: see there.
            now: see there.
            patience: seconds that one handler may take.

        Raises:
            HandlerHangs: one took longer.
        """
        count = 0
        while self._core is core:
            begun: tuple[Timer | Burst | Walk | None, int]
            begun = core.exclusively(self._begin_locked, core, now, not count)
            work, now = begun
            if work is None:
                break
            claims = self._claims(core, work)
            del work, begun
            try:
                claim = next(claims, None)
                while claim is not None:
                    cid, event = claim
                    del claim
                    failed, handed_on = await self._deliver_one(core, cid, event, patience)
                    count += 1
                    del event
                    if handed_on is not None:
                        try:
                            raise handed_on from None
                        finally:
                            del handed_on
                    claim = _send(claims, failed)
            finally:
                claims.close()
        return count

    def _begin_locked(self, core: Core, now: int, fresh: bool) -> tuple[Timer | Burst | Walk | None, int]:
        work = core.engine.claims.begin(now)
        while work is None:
            instant = self._nothing_ready_locked(core, now, fresh=fresh)
            if instant is None:
                break
            now = instant
            work = core.engine.claims.begin(now)
        return work, now

    async def _deliver_one(
        self, core: Core, cid: str, event: Event, patience: float | None
    ) -> tuple[bool, BaseException | None]:
        """Call dispatch in the same step as the claim; whether it failed, and what to hand on."""
        from asyncio import current_task, timeout  # heavy, and loaded already where anybody awaits this

        limit = timeout(patience)
        try:
            async with limit:
                result: Any = core.dispatch(cid, event)
                if isinstance(result, Awaitable):
                    await result
            hangs = limit.expired()  # it did not let itself be cancelled
        except BaseException as exc:
            task = current_task()
            if task is None or task.cancelling() or isinstance(exc, GeneratorExit):
                raise  # who waits for all this has given it up
            hangs = isinstance(exc, TimeoutError) and limit.expired()
            if not hangs:
                return self._judge(cid, event, exc)
        if hangs:
            failed, _ = self._judge(cid, event, HandlerHangs(cid, event))
            return failed, HandlerHangs(cid, event)
        return False, None

    def _claims(self, core: Core, work: Timer | Burst | Walk) -> Claims:
        """Claim one delivery after the other of what was begun; the fate of each is sent in: whether it failed. One
        that is not sent has failed."""
        if isinstance(work, Timer):
            return self._claims_of_timer(core, work)
        return self._claims_of_burst(core, work) if isinstance(work, Burst) else self._claims_of_walk(core, work)

    def _claims_of_timer(self, core: Core, timer: Timer) -> Claims:
        failed = True
        try:
            failed = yield timer.claim()
        finally:
            if self._core is core:
                core.exclusively(core.engine.claims.finish_timer, failed)

    def _claims_of_burst(self, core: Core, burst: Burst) -> Claims:
        """Each is claimed by the pop; `Engine.begin` counts their fates."""
        while burst.timers:
            try:
                timer = burst.timers.pop()
            except IndexError:
                return  # a cancel or a reset took the last one at this moment
            cid, event = timer.claim()
            core.engine.claims.running_cid = cid
            failed = yield cid, event
            del event  # sent in: nothing that was delivered stays alive until the next delivery
            burst.delivered += not failed

    def _claims_of_walk(self, core: Core, walk: Walk) -> Claims:
        """Each is claimed by the look at its name."""
        delivered = failed = 0
        try:
            for target, name in walk.claim_each(partial(core.exclusively, nothing)):
                failed += 1  # until it is known better
                if not (yield target.cid, Event(target.instance_id, name, walk.message)):
                    failed, delivered = failed - 1, delivered + 1
        finally:
            if self._core is core:
                core.exclusively(core.engine.claims.finish_walk, walk, delivered, failed)


def _send(claims: Claims, failed: bool) -> tuple[str, Event] | None:
    try:
        return claims.send(failed)
    except StopIteration:
        return None
