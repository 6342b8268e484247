"""Runners: the tasks that await handlers, one for each conversation with something to deliver."""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError, Task
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

from stube import Event, event_for_dispatch
from stube_backends.aio._link import LoopLink
from stube_backends.engine import Core, Failures
from stube_backends.engine._failures import log
from stube_backends.engine._mailboxes import Mailbox, MailboxClaims


class Runners:
    """Starts and ends the runners of a core.

    Args:
        core: with the mailboxes.
        claims: of the core's engine.
        failures: reports what handlers raise.
        link: to the loop.
        clock: of the registry.
    """

    __slots__ = ("_claims", "_clock", "_core", "_failures", "_link")

    def __init__(
        self, core: Core, claims: MailboxClaims, failures: Failures, link: LoopLink, clock: Callable[[], int]
    ) -> None:
        self._clock = clock
        self._core = core
        self._claims = claims
        self._failures = failures
        self._link = link

    def start(self, box: Mailbox, server: object) -> None:
        """Start a runner for a mailbox that `server` has served so far; its first delivery may have begun."""
        loop = self._link.loop
        assert loop is not None
        runner = self._run(box)
        try:
            # Not by the argument `context`, which not every task factory takes.
            task: Task[None] = Context().run(loop.create_task, runner)
        except BaseException:
            runner.close()
            self._fail_unstarted(box)
            raise
        _keep_silent(task)
        if box.server is server:  # else the runner has begun, and perhaps ended: an eager task
            box.server = task
        task.add_done_callback(partial(self._runner_is_over, box), context=Context())

    def leave_locked(self, box: Mailbox, failed: bool = True) -> None:
        """Stop serving a mailbox; a delivery of it that has begun is over. Needs the core's lock."""
        if box.running:
            self._claims.finish(box, failed)
        self._claims.leave(box)
        self._core.let_go_locked()

    def end(self, box: Mailbox, runner: object) -> None:
        """End a runner of a closed loop: what was running has failed, what waits is delivered on the next loop."""
        if isinstance(runner, Task):
            _close_coroutine_of(runner)
        self._core.run_locked(self.leave_locked, box)

    def release_garbage(self) -> None:
        """Let go of finished entries, outside the lock, because their destructors are user code."""
        if self._claims.garbage:
            self._core.run_locked(self._claims.take_garbage)

    async def _run(self, box: Mailbox) -> None:
        """Deliver to one conversation, one after the other, until nothing waits for it."""
        core = self._core
        runner = box.server = asyncio.current_task()
        # A plain dispatch was called before the runner existed; then continue with the awaitable that it returned.
        begun, box.begun = box.begun or (None, None), None
        event, result = begun
        del begun
        now: int | None = None  # the present instant, if the next delivery follows another one
        while not core.retired:
            if event is None:
                event = core.run_locked(self._claim_locked, box, now)
                self.release_garbage()
                if event is None:
                    break
            reported = False
            try:
                if result is None:
                    event = event_for_dispatch(event)
                    result = core.dispatch(box.cid, event)
                if isinstance(result, Awaitable):
                    await result
                failed = False
            except BaseException as exc:  # noqa: BLE001 - whatever it raises, it stops no other (G19)
                # A delivery cancelled because its loop is closing is not an error: log it at DEBUG.
                loop_ends = isinstance(exc, (CancelledError, GeneratorExit)) and _must_end(runner)
                level = logging.DEBUG if loop_ends else logging.ERROR
                failed, reported = self._failures.report(box.cid, event, exc, level), True
            event = result = None
            core.run_locked(self._claims.finish, box, failed)
            if reported:
                self._failures.reraise()
            if _must_end(runner):
                return
            now = None
            if box.after is not box:
                await asyncio.sleep(0)  # let others run, also where handlers never wait
                now = self._clock()
        if core.waiters or core.engine.order.has_arrived():
            self._link.wake()

    def _claim_locked(self, box: Mailbox, now: int | None) -> Event | None:
        """Begin the next delivery of a mailbox. None if nothing waits in it, or if at `now` a timer has its turn; then
        it is gone. A runner's first delivery, where `now` is None, gives way to no timer, so that clocks which are
        always due keep no message waiting for ever."""
        event = None
        if now is not None and self._claims.must_give_way(now):
            self._claims.leave(box)
        else:
            event = self._claims.claim(box)
        if event is None:
            self._core.let_go_locked()
        return event

    def _runner_is_over(self, box: Mailbox, runner: Task[None]) -> None:
        if not runner.cancelled():
            runner.exception()  # has been counted, logged and raised; the loop need not report it again
        if box.server is not runner:
            return
        # The runner ended with its mailbox unfinished.
        self._fail_unstarted(box)
        self._core.run_locked(self.leave_locked, box)
        if not ((runner.cancelled() or runner.cancelling()) and self._link.pause_if_ending()):
            self._link.wake()

    def _fail_unstarted(self, box: Mailbox) -> None:
        """Report a delivery whose awaitable is never awaited, because its runner ended before its first step."""
        begun, box.begun = box.begun, None
        if begun is not None:
            event, result = begun
            if isinstance(result, Coroutine):
                result.close()
            self._failures.report(box.cid, event, CancelledError("the task of the delivery ended before it began"))


def _must_end(runner: Task[Any] | None) -> bool:
    """Return whether a runner shall end, and not only a part of what it does: it is cancelled, or its loop closed."""
    if asyncio._get_running_loop() is None or asyncio.current_task() is not runner or runner is None:
        return True  # its coroutine is being closed from outside
    return runner.cancelling() > 0


def _keep_silent(task: Task[None]) -> None:
    """A runner that is not over when its loop has gone is ended here, so asyncio need not complain about it."""
    with suppress(AttributeError):  # of another class, made by a task factory
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def _close_coroutine_of(runner: Task[None]) -> None:
    """End a runner whose loop is closed: its handler's clean-up runs, and the loop has nothing to complain about."""
    coroutine = runner.get_coro()
    try:
        if coroutine is not None:
            coroutine.close()
    except BaseException as exc:  # noqa: BLE001 - the clean-up is user code; it has no caller to be told
        log(logging.DEBUG, "a delivery whose event loop is closed did not end well", exc_info=exc)
