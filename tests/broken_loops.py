"""Registries on an event loop, broken on purpose as only these can be; `broken_engines.py` prints the table.

The tests that must notice are those of `test_aio.py`, for the suite calls a registry from outside of its loop.
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
        "a conversation that is busy gets a second runner",
        ENGINE + "_mailboxes.py",
        "            box = self.boxes.get(cid)\n            if box is not None:\n",
        "            box = None\n            if box is not None:\n",
        (OWN + "test_a_slow_coroutine_of_one_conversation_delays_no_other",),
        LOOPS,
    ),
    Fault(
        "G2",
        "what is parked last is claimed first",
        ENGINE + "_mailboxes.py",
        "        while (entry := box.after) is not box:\n            unlink(entry)\n",
        "        while (entry := box.before) is not box:\n            unlink(entry)\n",
        (OWN + "test_deliveries_queued_behind_a_slow_handler_begin_in_due_order",),
        LOOPS,
    ),
    Fault(
        "G5",
        "a delivery is claimed where its runner is made, and entered a turn of the loop later",
        DRIVER,
        "        if box is not None and box is not AGAIN:\n            self._runners.start(box, self)\n",
        "        if box is not None and box is not AGAIN:\n"
        "            event = self.core.run_locked(self._engine.claim, box)\n"
        "            if event is not None:\n"
        "                box.begun = (event, self.core.dispatch(box.cid, event))\n"
        "                self._runners.start(box, self)\n",
        (OWN + "test_a_cancel_before_the_runner_begins_prevents_the_delivery",),
        LOOPS,
    ),
    Fault(
        "G9",
        "a timer of the loop that goes early is believed",
        DRIVER,
        "        began = now = self._clock()\n",
        "        began = now = self._clock() + 3_000_000\n",
        (
            OWN + "test_early_timers_of_a_loop_cause_no_early_delivery_and_no_busy_loop",
            OWN + "test_no_timer_begins_early_on_any_loop",
        ),
        LOOPS,
    ),
    Fault(
        "G10",
        "a loop whose timers go early is armed again and again until it is true",
        LINK,
        "        if self.early_wakeups:\n",
        "        if False:\n",
        (OWN + "test_early_timers_of_a_loop_cause_no_early_delivery_and_no_busy_loop",),
        LOOPS,
    ),
    Fault(
        "G13",
        "tasks are known to nobody but the loop, and collected while they wait",
        RUNNERS,
        "        runner = box.server = asyncio.current_task()\n",
        "        import weakref\n\n        runner = asyncio.current_task()\n        box.server = weakref.ref(runner)\n",
        (OWN + "test_a_thousand_coroutines_survive_the_collector",),
        LOOPS,
    ),
    Fault(
        "G13",
        "the loop's alarm keeps the context of whoever scheduled",
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
        "the loop is called from another thread as if it were its own, and sleeps on",
        LINK,
        "            self._request(loop.call_soon_threadsafe)\n",
        "            self._request(loop.call_soon)\n",
        (OWN + "test_a_thread_schedules_while_the_loop_sleeps",),
        LOOPS,
    ),
    Fault(
        "G21",
        "the registry stays with its first loop, closed or not",
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
        "a runner that was cancelled before its first step counts as serving for ever",
        RUNNERS,
        "        if box.server is not runner:\n            return\n",
        "        return\n",
        (OWN + "test_a_runner_that_is_cancelled_before_its_first_step_loses_nothing",),
        LOOPS,
    ),
    Fault(
        "G24",
        "what ran when its loop was closed runs for ever",
        RUNNERS,
        "                if isinstance(runner, Task):\n                    _close_coroutine_of(runner)\n",
        "                if isinstance(runner, Task):\n                    continue\n",
        (OWN + "test_handlers_of_a_closed_loop_are_ended_and_counted_as_failed",),
        LOOPS,
    ),
)
