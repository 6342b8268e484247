"""Faults, made on purpose, that only a registry on an event loop can have. `broken_engines.py` prints the table.

The tests that must fail are in `test_aio.py`, because the suite calls a registry from outside its loop.
"""

from __future__ import annotations

from typing import Final

from tests.broken_engines import ENGINE, Fault

DRIVER: Final = "stube_backends/aio/_driver.py"
LINK: Final = "stube_backends/aio/_link.py"
RUNNERS: Final = "stube_backends/aio/_runners.py"
LOOPS: Final = ("asyncio",)
OWN: Final = "test_aio.py::"

ASYNCIO_FAULTS: Final[tuple[Fault, ...]] = (
    Fault(
        "G1",
        "a busy conversation gets a second runner",
        ENGINE + "_mailboxes.py",
        "            box = self.boxes.get(cid)\n            if box is not None:\n",
        "            box = None\n            if box is not None:\n",
        (OWN + "test_a_slow_coroutine_of_one_conversation_delays_no_other",),
        LOOPS,
    ),
    Fault(
        "G2",
        "the latest delivery of a mailbox is claimed first",
        ENGINE + "_mailboxes.py",
        "        while (entry := box.after) is not box:\n            unlink(entry)\n",
        "        while (entry := box.before) is not box:\n            unlink(entry)\n",
        (OWN + "test_deliveries_queued_behind_a_slow_handler_begin_in_due_order",),
        LOOPS,
    ),
    Fault(
        "G5",
        "a delivery is claimed when its runner is created, and begins one turn of the loop later",
        DRIVER,
        "        if box is not None and box is not AGAIN:\n            self._runners.start(box, self)\n",
        "        if box is not None and box is not AGAIN:\n"
        "            event = self.core.run_locked(self._claims.claim, box)\n"
        "            if event is not None:\n"
        "                box.begun = (event, self.core.dispatch(box.cid, event))\n"
        "                self._runners.start(box, self)\n",
        (OWN + "test_a_cancel_before_the_runner_begins_prevents_the_delivery",),
        LOOPS,
    ),
    Fault(
        "G9",
        "the driver trusts a timer of the loop that fires early",
        DRIVER,
        "        began = now = self._clock()\n",
        "        began = now = self._clock() + 40_000_000\n",
        (
            OWN + "test_early_timers_of_a_loop_cause_no_early_delivery_and_no_busy_loop",
            OWN + "test_no_timer_begins_early_on_any_loop",
        ),
        LOOPS,
    ),
    Fault(
        "G10",
        "the driver sets timers of the loop again and again until the instant has come",
        LINK,
        "        if self.early_wakeups:\n",
        "        if False:\n",
        (OWN + "test_early_timers_of_a_loop_cause_no_early_delivery_and_no_busy_loop",),
        LOOPS,
    ),
    Fault(
        "G13",
        "only the loop refers to the tasks, and the collector frees them while they wait",
        RUNNERS,
        "        runner = box.server = asyncio.current_task()\n",
        "        import weakref\n\n        runner = asyncio.current_task()\n        box.server = weakref.ref(runner)\n",
        (OWN + "test_a_thousand_coroutines_survive_the_collector",),
        LOOPS,
    ),
    Fault(
        "G13",
        "the timer of the loop keeps the context of the caller that scheduled",
        LINK,
        "self.core.keepalive, rang_for, context=Context())\n",
        "self.core.keepalive, rang_for)\n",
        (OWN + "test_no_context_of_a_caller_is_kept_or_seen",),
        LOOPS,
    ),
    Fault(
        "G19",
        "the coroutine of a handler never runs",
        RUNNERS,
        "                if isinstance(result, Awaitable):\n                    await result\n",
        "                if isinstance(result, Awaitable):\n                    getattr(result, 'close', id)()\n",
        (OWN + "test_an_awaitable_that_a_plain_function_returns_is_awaited",),
        LOOPS,
    ),
    Fault(
        "G19",
        "Ctrl-C in a handler is swallowed",
        DRIVER,
        "Failures(options.on_error, reraised=(KeyboardInterrupt,))",
        "Failures(options.on_error)",
        (OWN + "test_ctrl_c_is_counted_and_raised_with_the_state_whole",),
        LOOPS,
    ),
    Fault(
        "G21",
        "another thread calls the loop without waking it",
        LINK,
        "            self._request(loop.call_soon_threadsafe)\n",
        "            self._request(loop.call_soon)\n",
        (OWN + "test_a_thread_schedules_while_the_loop_sleeps",),
        LOOPS,
    ),
    Fault(
        "G21",
        "the registry stays bound to its first loop after that loop has closed",
        DRIVER,
        "        if loop is None or loop.is_closed():\n            self._bind()\n",
        "        if loop is None:\n            self._bind()\n",
        (
            OWN + "test_one_registry_serves_two_runs",
            OWN + "test_handlers_of_a_closed_loop_are_ended_and_counted_as_failed",
        ),
        LOOPS,
    ),
    Fault(
        "G18",
        "a runner that was cancelled before its first step still counts as serving",
        RUNNERS,
        "        if box.server is not runner:\n            return\n",
        "        return\n",
        (OWN + "test_a_runner_that_is_cancelled_before_its_first_step_loses_nothing",),
        LOOPS,
    ),
    Fault(
        "G24",
        "the handlers of a closed loop count as running without end",
        RUNNERS,
        "        if isinstance(runner, Task):\n            _close_coroutine_of(runner)\n",
        "        if isinstance(runner, Task):\n            return\n",
        (OWN + "test_handlers_of_a_closed_loop_are_ended_and_counted_as_failed",),
        LOOPS,
    ),
)
