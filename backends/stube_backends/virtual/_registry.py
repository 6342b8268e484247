"""The registry `virtual`: the operations of a local registry, and those that move its clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from math import isfinite
from typing import Final

from typing_extensions import override

from stube import Delivery, Dispatch, Event, VirtualBackend, VirtualTimeError
from stube.arguments import checked_timeout, delay_in_nanoseconds, milliseconds
from stube_backends.engine import Engine, LocalRegistry, OnError, OnFull, Options
from stube_backends.virtual._chains import WatchedClaims
from stube_backends.virtual._clock import Clock
from stube_backends.virtual._driver import MANY, VirtualDriver
from stube_backends.virtual._trace import Tracer

_MICROSECOND: Final = timedelta(microseconds=1)


class VirtualRegistry(LocalRegistry, VirtualBackend):
    """One engine on a virtual clock. The entry point `virtual`.

    Args:
        max_pending, max_queued, on_error, on_full: see `stube_backends.engine.Options`.
        start_ms: where the clock stands at first, in milliseconds.

    >>> registry = VirtualRegistry()
    >>> registry.install_dispatch(lambda cid, event: print(registry.now_ms, cid, event))
    >>> timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=1_800_000, event="idle")
    >>> registry.advance(timedelta(minutes=30))
    1800000.0 c1 Event('main', 'idle')
    """

    capabilities = LocalRegistry.capabilities | {"coroutine_dispatch", "virtual_time"}

    _driver: VirtualDriver

    def __init__(
        self,
        *,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
        start_ms: float = 0,
    ) -> None:
        if not (isfinite(start_ms) and start_ms >= 0):
            raise ValueError(f"start_ms must be finite and not negative, not {start_ms!r}. Leave it out to start at 0.")
        self._time = Clock(delay_in_nanoseconds(start_ms))
        self._tracer = Tracer(self._time)
        options = Options.checked(max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full)
        super().__init__(options._replace(clock=self._time))
        core = self._driver.core
        core.dispatch = self._driver.prepare(core.dispatch)  # the trace shows deliveries before the first installation

    @override
    def _new_driver(self, dispatch: Dispatch) -> VirtualDriver:
        self._tracer.clear()  # in a forked child it is the parent's
        claims = partial(WatchedClaims, self._tracer)
        engine = Engine(self._options.max_pending, limits=self._options.limits, claims=claims)
        return VirtualDriver(engine, dispatch, self._time, self._tracer, self._options.on_error)

    @override
    def install_dispatch(self, dispatch: Dispatch | Callable[[str, Event], Awaitable[None]], /) -> None:
        super().install_dispatch(dispatch)  # type: ignore[arg-type]

    @property
    @override
    def now_ms(self) -> float:
        return milliseconds(self._time.now)

    @override
    def next_due_ms(self) -> float | None:
        due = self._driver.next_due()
        return None if due is None else milliseconds(due)

    @override
    def advance(self, step: float | timedelta, /) -> None:
        self._driver.advance(_step_in_nanoseconds(step))

    @override
    async def advance_async(self, step: float | timedelta, /, *, patience: float | None = 5.0) -> None:
        nanoseconds = _step_in_nanoseconds(step)
        await self._driver.advance_async(nanoseconds, checked_timeout(patience))

    @override
    async def settled(self, timeout: float | None = 5.0) -> bool:
        return await self._driver.settled(checked_timeout(timeout))

    @override
    async def joined(self, timeout: float | None = None) -> bool:
        return await self._driver.joined(checked_timeout(timeout), patience=5.0)

    @override
    async def aclose(self, timeout: float | None = 5.0) -> bool:
        checked_timeout(timeout)
        return self.close(0)  # nothing runs but what another task awaits

    @override
    def close_at_exit(self, timeout: float) -> None:
        """Do nothing: no thread of the registry's own delivers, and a daemon thread of the program may still use it."""

    @override
    def run_until_idle(self, limit: int = MANY) -> int:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be an int, not {limit!r}. Pass a number of deliveries.")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}. Pass a number of deliveries.")
        return self._driver.run_until_idle(limit)

    @property
    @override
    def trace(self) -> list[Delivery]:
        return self._tracer.deliveries()


def _step_in_nanoseconds(step: float | timedelta) -> int:
    if isinstance(step, timedelta):
        nanoseconds = step // _MICROSECOND * 1000
    elif isinstance(step, (int, float)) and not isinstance(step, bool):
        if step != step or step in (float("inf"), float("-inf")):
            raise ValueError(f"The step must be finite, not {step!r}. Pass milliseconds or a timedelta.")
        nanoseconds = delay_in_nanoseconds(step) if step >= 0 else -1
    else:
        raise TypeError(f"The step must be a number or a timedelta, not {step!r}. Pass milliseconds or a timedelta.")
    if nanoseconds < 0:
        raise VirtualTimeError(f"The clock cannot go back by {step!r}. Pass a step that is not negative.")
    return nanoseconds
