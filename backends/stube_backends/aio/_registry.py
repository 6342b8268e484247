"""The registry `asyncio`: the operations of a local registry, and those that are awaited."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable

from typing_extensions import override

from stube import AsyncBackend, Dispatch
from stube.arguments import checked_timeout
from stube_backends.aio._driver import AnyDispatch, LoopDriver
from stube_backends.engine import LocalRegistry, OnError, OnFull, Options


class AsyncioRegistry(LocalRegistry, AsyncBackend):
    """One engine and one lock on an event loop. The entry point `asyncio`.

    Args:
        clock, max_pending, max_queued, on_error, on_full: see `stube_backends.engine.Options`; `on_error` is called on
            the loop's thread.
        loop: the event loop; by default the one that runs when the first operation is called on one.

    >>> import asyncio
    >>> async def main():
    ...     async with AsyncioRegistry() as registry:
    ...         async def dispatch(cid, event):
    ...             await asyncio.sleep(0)
    ...             print(cid, event)
    ...         registry.install_dispatch(dispatch)
    ...         timer = registry.schedule_event(cid="c1", instance_id="main", delay_ms=5, event="tick")
    ...         await registry.joined()
    >>> asyncio.run(main())
    c1 Event('main', 'tick')
    """

    capabilities = LocalRegistry.capabilities | {"coroutine_dispatch", "own_clock"}

    _driver: LoopDriver

    def __init__(
        self,
        *,
        clock: Callable[[], int] | None = None,
        loop: AbstractEventLoop | None = None,
        max_pending: int | None = 1_000_000,
        max_queued: int | None = None,
        on_error: OnError | None = None,
        on_full: OnFull = "drop_oldest",
    ) -> None:
        if loop is not None and not isinstance(loop, AbstractEventLoop):
            raise ValueError(f"loop must be an event loop, not {loop!r}. Leave it out for the one that is running.")
        if loop is not None and loop.is_closed():
            raise ValueError(f"loop {loop!r} is closed. Leave it out for the one that is running.")
        self._first_loop = loop
        super().__init__(
            Options.checked(
                clock=clock, max_pending=max_pending, max_queued=max_queued, on_error=on_error, on_full=on_full
            )
        )
        self._first_loop = None  # a forked child binds to a loop of its own

    @override
    def _new_driver(self, dispatch: Dispatch) -> LoopDriver:
        return LoopDriver(dispatch, self._options, self._first_loop)

    @override
    def install_dispatch(self, dispatch: AnyDispatch, /) -> None:
        super().install_dispatch(dispatch)  # type: ignore[arg-type]

    @override
    async def settled(self, timeout: float | None = 5.0) -> bool:
        return await self._driver.waited(timeout, timers_too=False, call="settled")

    @override
    async def joined(self, timeout: float | None = None) -> bool:
        return await self._driver.waited(timeout, timers_too=True, call="joined")

    @override
    async def aclose(self, timeout: float | None = 5.0) -> bool:
        timeout = checked_timeout(timeout)
        driver = self._driver
        driver.enter()
        if self.close(0) or driver.delivers_here():  # a delivery cannot wait for itself
            return not driver.is_serving()
        return await driver.waited(timeout, timers_too=False, call="aclose")

    @override
    def _unsubscribe(self, cid: str, instance_id: str | None, topic: str | None) -> int:
        count = super()._unsubscribe(cid, instance_id, topic)
        self._driver.release_garbage()
        return count
