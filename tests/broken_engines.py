"""Registries broken on purpose: for each guarantee a small fault of the engine or a backend, and a test that fails.

A fault is a change of at most five lines, made on a copy of the packages; `Workshop.catch` runs on that copy the test
of the suite that must fail, in a process of its own. `python tests/broken_engines.py` prints the table.

`SHARDED_FAULTS` are faults that only a sharded registry can have. Besides tests of the suite they name tests of
`test_sharded.py`, which choose conversations by their shards, and so catch the fault in every run. Faults that only a
registry on an event loop can have are in `broken_loops.py`.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tools.preloaded import ROOT, Server

ENGINE: Final = "stube_backends/engine/"
SHARDED: Final = "stube_backends/sharded/_registry.py"
BOTH: Final = ("memory", "virtual")
SHARDS: Final = ("sharded://?shards=7",)
OWN: Final = "test_sharded.py::"
OWN_FILES: Final = ("test_sharded.py", "test_aio.py")
MOST_LINES: Final = 5

_LIMIT: Final = 120  # seconds; a test that hangs has not caught anything


@dataclass(frozen=True)
class Fault:
    """A change of the sources that breaks a guarantee."""

    guarantee: str
    summary: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    """Tests of the suite, as `file::test`, or of a backend (`OWN`); each must fail, by an assertion, on each of the
    backends."""
    backends: tuple[str, ...] = BOTH

    @property
    def path(self) -> Path:
        """The file, as it lies in the source tree."""
        return Path("backends", self.file) if self.file.startswith("stube_backends/") else Path(self.file)

    def broken(self) -> str:
        """The file's text with the fault in it."""
        return _replaced(self.path, self.old, self.new)

    @property
    def changed_lines(self) -> int:
        """The number of changed lines: removed or added ones, whichever are more."""
        lines = list(difflib.ndiff(self.old.splitlines(), self.new.splitlines()))
        return max(sum(line.startswith(sign) for line in lines) for sign in "-+")


@dataclass(frozen=True)
class Outcome:
    """The result of one test on one backend."""

    test: str
    backend: str
    guarantees: tuple[str, ...]
    failed: bool
    error: str
    message: str

    @property
    def by_assertion(self) -> bool:
        """Whether an assertion failed; `Failed` is what `pytest.raises` raises when nothing was raised."""
        return self.failed and self.error in ("AssertionError", "Failed")


FAULTS: Final[tuple[Fault, ...]] = (
    Fault(
        "G1",
        "each delivery runs on a thread of its own",
        ENGINE + "_local.py",
        "        core.dispatch = prepared\n",
        "        import threading\n\n"
        "        core.dispatch = lambda *each: threading.Thread(target=prepared, args=each, daemon=True).start()\n",
        ("test_order.py::test_at_most_one_delivery_of_a_conversation_runs_at_any_moment",),
    ),
    Fault(
        "G2",
        "the timers of the opened slot are in reverse order",
        ENGINE + "_wheel.py",
        "        order.reverse()\n",
        "",
        ("test_order.py::test_timers_begin_in_the_order_of_their_due_instants",),
    ),
    Fault(
        "G2",
        "a message goes before the timers that were due earlier",
        ENGINE + "_engine.py",
        "        publication.due = order.last_accepted_ns\n",
        "        publication.due = -(1 << 100)\n",
        ("test_order.py::test_a_publication_begins_between_an_earlier_and_a_later_timer",),
        ("memory",),
    ),
    Fault(
        "G2",
        "a timer that is scheduled late goes before the timers of its instant",
        ENGINE + "_wheel.py",
        "from bisect import insort_left\n",
        "from bisect import insort_right as insort_left\n",
        ("test_order.py::test_a_coarse_clock_keeps_timers_of_one_instant_in_order",),
        ("memory",),
    ),
    Fault(
        "G2",
        "a timer that is scheduled late goes before the timers of its instant",
        ENGINE + "_wheel.py",
        "from bisect import insort_left\n",
        "from bisect import insort_right as insort_left\n",
        ("test_order.py::test_late_timers_are_sorted_among_timers_that_are_nearly_due",),
        ("virtual",),
    ),
    Fault(
        "G3",
        "publish delivers on its caller's stack",
        ENGINE + "_local.py",
        "        if targeted and core.sleep_until > EARLIEST:\n",
        "        driver._deliverer.deliver(self._clock(), lambda now, fresh: None)\n"
        "        if targeted and core.sleep_until > EARLIEST:\n",
        ("test_order.py::test_a_message_is_never_delivered_inside_publish",),
    ),
    Fault(
        "G4",
        "the latest message is delivered first",
        ENGINE + "_engine.py",
        "        order.arrivals.append(publication)\n",
        "        from stube_backends.engine._rings import move_behind\n\n"
        "        order.arrivals.append(publication)\n"
        "        move_behind(order.early, publication)\n",
        ("test_order.py::test_one_publishers_messages_reach_every_subscriber_in_order",),
    ),
    Fault(
        "G5",
        "a subscriber that leaves a topic still gets its queued messages",
        ENGINE + "_topics.py",
        "            entry.event = entry.name = None\n",
        "            entry.event = None\n",
        ("test_cancelling.py::test_no_queued_message_begins_after_unsubscribe",),
    ),
    Fault(
        "G5",
        "a handle cannot cancel a timer that is already due",
        ENGINE + "_engine.py",
        "        elif timer.table is self.records:\n",
        "        elif timer.table is self.records and timer.due > self.order.last_accepted_ns:\n",
        ("test_cancelling.py::test_a_timer_that_is_already_due_can_be_cancelled",),
    ),
    Fault(
        "G5",
        "a handle returns True without cancelling its timer",
        ENGINE + "_timers.py",
        "        return owner is not None and owner.cancel_timer(self)\n",
        "        return owner is not None\n",
        ("test_cancel_timers.py::test_a_handle_cancels_its_own_timer_once",),
    ),
    Fault(
        "G6",
        "a cancel counts the delivery that is running",
        ENGINE + "_engine.py",
        "        return events + withdrawn if withdrawn else events\n",
        "        return events + (withdrawn or []) + [None] * (self.claims.running_cid == cid)\n",
        ("test_cancelling.py::test_a_cancel_ignores_a_delivery_that_has_begun",),
    ),
    Fault(
        "G7",
        "a call that races with the end of its conversation is not undone",
        "stube/_conversations.py",
        "        if self._ended:\n            handle.cancel()\n            raise self._error()\n",
        "",
        ("test_handles.py::test_an_add_racing_with_the_end_is_undone_before_it_raises",),
    ),
    Fault(
        "G7",
        "cancelling does not take the lock",
        ENGINE + "_local.py",
        "core.cancel_timers(cid, instance_id)",
        "self._cancel_locked(core, core.engine.cancel_timers, cid, instance_id)",
        ("test_threads.py::test_racing_operations_are_atomic_at_every_line",),
    ),
    Fault(
        "G8",
        "taking a baton reads it and forgets it in two steps",
        ENGINE + "_local.py",
        "        flow_id = engine.flows.pop(cid, None)  #",
        "        flow_id = engine.flows.get(cid)\n        __import__('os').sched_yield()\n"
        "        engine.flows.pop(cid, None)  #",
        ("test_threads.py::test_racing_operations_are_atomic_at_every_line",),
    ),
    Fault(
        "G9",
        "a timer counts as due three milliseconds early",
        ENGINE + "_core.py",
        "            work = self.engine.claims.begin(now, failed)\n",
        "            work = self.engine.claims.begin(now + 3_000_000, failed)\n",
        ("test_time.py::test_no_timer_begins_early_and_none_is_lost",),
    ),
    Fault(
        "G9",
        "fractions of a millisecond are cut off",
        ENGINE + "_local.py",
        "        delay = delay_in_nanoseconds(delay_ms)\n",
        "        delay = delay_in_nanoseconds(delay_ms) // 1_000_000 * 1_000_000\n",
        ("test_time.py::test_fractions_of_a_millisecond_count",),
    ),
    Fault(
        "G10",
        "a new earliest timer does not wake the scheduler",
        ENGINE + "_thread_driver.py",
        "            core.sleep_until = EARLIEST\n            self._wakeup.release()\n",
        "            core.sleep_until = EARLIEST\n",
        ("test_time.py::test_a_new_earliest_timer_wakes_the_scheduler",),
        ("memory",),
    ),
    Fault(
        "G10",
        "the moving clock passes over a timer that another thread adds",
        "stube_backends/virtual/_driver.py",
        "            self._clock.now = engine.order.last_accepted_ns = end\n",
        "            self._clock.now = end\n",
        ("test_virtual_time.py::test_a_step_never_skips_a_timer_that_another_thread_adds",),
        ("virtual",),
    ),
    Fault(
        "G2",
        "the event of a message shows no instant",
        ENGINE + "_delivery.py",
        "event = Event(instance_id, name, message, NO_SIGNALS, due)",
        "event = Event(instance_id, name, message)",
        ("test_time.py::test_an_event_shows_the_instant_for_which_it_was_meant",),
    ),
    Fault(
        "G2",
        "the timers of a batch show the instant of the one that begins last",
        ENGINE + "_delivery.py",
        "event = Event(timer.instance_id, spec, NO_PAYLOAD, NO_SIGNALS, timer.due)",
        "event = Event(timer.instance_id, spec, NO_PAYLOAD, NO_SIGNALS, timers[0].due if timers else timer.due)",
        ("test_handles.py::test_ticks_that_are_late_together_count_each_from_its_own_instant",),
        ("memory",),
    ),
    Fault(
        "G21",
        "ticks that were missed are made up in a burst",
        "stube/_conversations.py",
        "    number = max(1, -(-elapsed // delay)) if delay else 1\n",
        "    number = 1\n",
        ("test_handles.py::test_a_tick_counts_from_the_instant_for_which_the_one_before_was_meant",),
        ("memory",),
    ),
    Fault(
        "G15",
        "a time-out is cancelled before the one that replaces it is checked",
        "stube/_conversations.py",
        "        delay_in_nanoseconds(delay_ms)\n        # For",
        "        # For",
        ("test_handles.py::test_a_replacement_that_is_refused_changes_nothing",),
    ),
    Fault(
        "G11",
        "infinity and NaN count as no delay",
        "stube/arguments.py",
        "        if not isfinite(delay_ms):\n",
        "        if not isfinite(delay_ms):\n            return 0\n        if False:\n",
        ("test_time.py::test_a_delay_that_is_not_finite_is_a_value_error",),
    ),
    Fault(
        "G11",
        "True counts as one millisecond",
        "stube/arguments.py",
        "    if isinstance(delay_ms, int) and not isinstance(delay_ms, bool):\n",
        "    if isinstance(delay_ms, int):\n",
        ("test_time.py::test_a_delay_of_another_type_is_a_type_error",),
    ),
    Fault(
        "G12",
        "the clock is looked up in the time module at every reading",
        "stube/_clock.py",
        "from time import monotonic_ns\n",
        "monotonic_ns = lambda: __import__('time').monotonic_ns()\n",
        ("test_time.py::test_replacing_functions_of_the_time_module_changes_nothing",),
        ("memory",),
    ),
    Fault(
        "G12",
        "the virtual clock shows the wall clock",
        "stube_backends/virtual/_clock.py",
        "    def __call__(self) -> int:\n        return self.now\n",
        "    def __call__(self) -> int:\n        return __import__('time').time_ns()\n",
        ("test_time.py::test_replacing_functions_of_the_time_module_changes_nothing",),
        ("virtual",),
    ),
    Fault(
        "G27",
        "timers have no turns",
        ENGINE + "_turns.py",
        "        if self.in_a_row >= self.most:\n",
        "        if False:\n",
        (
            "test_fair.py::test_a_timer_without_delay_does_not_wait_for_a_publication_to_others",
            "test_fair.py::test_a_timer_waits_for_the_earlier_messages_of_its_own_conversation",
            "test_fair.py::test_a_timer_does_not_wait_for_the_messages_that_precede_other_timers",
            "test_fair.py::test_a_timer_that_begins_again_at_once_and_a_publication_take_turns",
        ),
        (*BOTH, *SHARDS, "asyncio"),
    ),
    Fault(
        "G27",
        "a publication that is being delivered stops for no timer",
        ENGINE + "_delivery.py",
        "                if delivered + failed - row >= most:\n",
        "                if False:\n",
        ("test_fair.py::test_a_timer_without_delay_does_not_wait_for_a_publication_to_others",),
        (*BOTH, *SHARDS),
    ),
    Fault(
        "G27",
        "what is due is looked for when a publication begins, and not while it is being delivered",
        ENGINE + "_delivery.py",
        "or core.interrupt_at <= self._clock():\n",
        "or core.interrupt_at <= 0:\n",
        ("test_fair.py::test_a_timer_that_becomes_due_does_not_wait_for_a_publication_to_others",),
        ("memory", *SHARDS),
    ),
    Fault(
        "G27",
        "a handler that fails does not count as one of those after which timers have a turn",
        ENGINE + "_delivery.py",
        "                    self._failures.reraise()\n                if not length_hint(iterator):\n",
        "                    self._failures.reraise()\n"
        "                    row += 1\n"
        "                if not length_hint(iterator):\n",
        ("test_fair.py::test_a_timer_without_delay_does_not_wait_for_a_publication_to_others",),
        (*BOTH, *SHARDS),
    ),
    Fault(
        "G27",
        "a turn includes what arrives while it lasts",
        ENGINE + "_turns.py",
        "            timer = order.first_timer(self.limit) if self.left else None\n",
        "            timer = order.first_timer(self.limit)\n",
        ("test_fair.py::test_a_timer_that_begins_again_at_once_and_a_publication_take_turns",),
        ("virtual",),
    ),
    Fault(
        "G27",
        "a timer that messages of its conversation precede keeps the later ones waiting for these",
        ENGINE + "_turns.py",
        "            order.move_first_timer(timer)\n",
        "            order.move_first_timer(timer)\n            return None\n",
        ("test_fair.py::test_a_timer_does_not_wait_for_the_messages_that_precede_other_timers",),
        (*BOTH, "asyncio"),
    ),
    Fault(
        "G27",
        "any number of timers goes ahead of a publication with the messages that precede them",
        ENGINE + "_turns.py",
        "            if self.moved >= self.room:\n",
        "            if False:\n",
        ("test_fair.py::test_conversations_that_always_have_more_and_a_publication_take_turns",),
    ),
    Fault(
        "G27",
        "timers with the messages that precede them go ahead of a publication before it has had its row",
        ENGINE + "_turns.py",
        "            room = 0 if is_first else 2 * self.left\n",
        "            room = 2 * self.left\n",
        ("test_fair.py::test_conversations_that_always_have_more_and_a_publication_take_turns",),
    ),
    Fault(
        "G2",
        "a timer that has its turn overtakes the messages of its own conversation",
        ENGINE + "_turns.py",
        "        if not isinstance(record, Record) or",
        "        if True or not isinstance(record, Record) or",
        ("test_fair.py::test_a_timer_waits_for_the_earlier_messages_of_its_own_conversation",),
        (*BOTH, *SHARDS, "asyncio"),
    ),
    Fault(
        "G13",
        "a handle keeps the payload of its timer",
        ENGINE + "_timers.py",
        "        self.table = self.event = None  # from now",
        "        self.table = None  # from now",
        ("test_leaks.py::test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
    ),
    Fault(
        "G13",
        "the record of a conversation stays when it holds nothing",
        ENGINE + "_records.py",
        "        record.timers = None\n        self.drop_if_empty(cid, record)\n",
        "        record.timers = None\n",
        ("test_leaks.py::test_cancelled_timers_leave_nothing_in_any_container",),
    ),
    Fault(
        "G14",
        "a conversation of many timers is searched for those of one instance",
        ENGINE + "_records.py",
        "                if not _has_few(newest):\n",
        "                if False:\n",
        ("test_state.py::test_cancelling_one_timer_costs_the_same_in_a_large_conversation",),
    ),
    Fault(
        "G14",
        "leaving a topic looks at all of its subscribers",
        ENGINE + "_topics.py",
        "        self.live -= 1\n",
        "        self.live = sum(1 for entry in self.entries if entry.name is not None)\n",
        ("test_state.py::test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic",),
    ),
    Fault(
        "G14",
        "a publication copies the list of its targets",
        ENGINE + "_topics.py",
        "        publication.entries = entries = self.entries\n",
        "        publication.entries = entries = list(self.entries)\n",
        ("test_state.py::test_publish_costs_its_caller_the_same_for_many_subscribers",),
    ),
    Fault(
        "G15",
        "a publication that is refused is counted as dropped",
        ENGINE + "_engine.py",
        "            self._require_room(targeted)\n",
        "            ledger.dropped += targeted\n            self._require_room(targeted)\n",
        ("test_state.py::test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
    ),
    Fault(
        "G16",
        "a publication targets the subscribers of the instant at which it begins",
        ENGINE + "_topics.py",
        "        end = min(self.position + most, self.length)\n",
        "        end = min(self.position + most, len(self.entries))\n",
        ("test_state.py::test_publish_targets_the_subscribers_at_the_call",),
    ),
    Fault(
        "G17",
        "a message that is false arrives as None",
        ENGINE + "_engine.py",
        "        publication.message = message\n",
        "        publication.message = message or None\n",
        ("test_state.py::test_a_message_is_passed_by_reference_and_never_touched",),
    ),
    Fault(
        "G18",
        "a reset does not stop the fan-out that has begun",
        ENGINE + "_serial.py",
        "            held.append(fan_out.stop())\n",
        "            held.append(fan_out.rest())\n",
        ("test_reset_state.py::test_a_reset_during_a_fan_out_drops_the_remaining_targets",),
    ),
    Fault(
        "G19",
        "a target that raises makes the fan-out skip the remaining targets",
        ENGINE + "_delivery.py",
        "                    failed += 1  # counted first, in case a signal handler raises in the next lines\n",
        "                    failed += 1\n                    list(iterator)\n",
        ("test_faults.py::test_a_delivery_that_raises_stops_no_other",),
    ),
    Fault(
        "G20",
        "deferred calls never run",
        ENGINE + "_core.py",
        "            raise\n        if self.deferred:\n            self.run_deferred()\n"
        "        return result\n\n    def schedule",
        "            raise\n        return result\n\n    def schedule",
        ("test_reentrancy.py::test_any_operation_may_interrupt_any_other_at_any_line",),
    ),
    Fault(
        "G20",
        "the payloads of cancelled timers are freed under the lock",
        ENGINE + "_order.py",
        "        for timer in timers:\n            events.append(timer.event)\n",
        "        for timer in timers:\n            events.append(None)\n",
        ("test_finalizers.py::test_no_destructor_runs_under_a_lock",),
        ("virtual",),
    ),
    Fault(
        "G21",
        "a subscription takes effect a moment after the call",
        ENGINE + "_local.py",
        "        replaced = core.run_locked(core.engine.subscribe, cid, instance_id, topic, plain)\n",
        "        import threading\n\n        subscribe = core.engine.subscribe\n"
        "        threading.Timer(0.01, core.run_locked, (subscribe, cid, instance_id, topic, plain)).start()\n"
        "        replaced = None\n",
        ("test_subscribe.py::test_a_subscription_takes_effect_when_the_call_returns",),
    ),
    Fault(
        "G21",
        "subscriptions from threads other than the main thread are lost",
        ENGINE + "_local.py",
        "        replaced = core.run_locked(core.engine.subscribe, cid, instance_id, topic, plain)\n",
        "        import threading\n\n        replaced = None\n"
        "        if threading.current_thread() is threading.main_thread():\n"
        "            replaced = core.run_locked(core.engine.subscribe, cid, instance_id, topic, plain)\n",
        ("test_threads.py::test_an_operation_of_any_thread_takes_effect_before_it_returns",),
    ),
    Fault(
        "G21",
        "a close after the last delivery ends the delivery thread before it has woken who waits in settle",
        ENGINE + "_thread_driver.py",
        "if core.retired or (core.engine.closed and not core.waiters):",
        "if core.retired or core.engine.closed:",
        ("test_life.py::test_another_thread_comes_in_at_any_line_of_the_delivery_thread",),
        ("memory",),
    ),
    Fault(
        "G22",
        "one timer more than max_pending is accepted",
        ENGINE + "_engine.py",
        "        if ledger.timers + ledger.queued >= self.max_pending:\n            self._require_room(1)\n",
        "        if ledger.timers + ledger.queued > self.max_pending:\n            self._require_room(1)\n",
        ("test_state.py::test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
    ),
    Fault(
        "G23",
        "creating a registry starts a thread",
        ENGINE + "_local.py",
        "        register(self)\n",
        "        register(self)\n        import threading\n\n"
        "        threading.Thread(target=threading.Event().wait, daemon=True).start()\n",
        ("test_life.py::test_importing_and_creating_start_nothing",),
    ),
    Fault(
        "G24",
        "a closed registry still accepts work",
        ENGINE + "_engine.py",
        "        if self.closed:\n            raise_closed()\n        entry, is_new",
        "        entry, is_new",
        ("test_life.py::test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G25",
        "a registry does not start anew in a forked child",
        ENGINE + "_process.py",
        "    os.register_at_fork(after_in_child=_start_all_anew)\n",
        "    pass\n",
        ("test_fork.py::test_a_forked_child_has_an_empty_usable_registry",),
    ),
    Fault(
        "G26",
        "all registries share one index of topics",
        ENGINE + "_engine.py",
        "        self.topics = TopicIndex(generation)\n        self.backlogs",
        "        self.topics = TopicIndex.__init__.__annotations__.setdefault('shared', TopicIndex())\n"
        "        self.backlogs",
        ("test_backend.py::test_two_registries_share_nothing",),
    ),
)


SHARDED_FAULTS: Final[tuple[Fault, ...]] = (
    Fault(
        "G7",
        "a reset replaces the lock of every shard, even while threads hold it or wait for it",
        SHARDED,
        "    def reset_state(self) -> None:\n",
        "    def reset_state(self) -> None:\n        for shard in self._shards:\n"
        "            shard.core._make_lock(alone=True)\n",
        (OWN + "test_no_lock_is_ever_replaced",),
        SHARDS,
    ),
    Fault(
        "G18",
        "a reset replaces the core of every shard, even in the middle of an operation",
        SHARDED,
        "    def reset_state(self) -> None:\n",
        "    def reset_state(self) -> None:\n        for shard in self._shards:\n"
        "            shard._driver = shard._new_driver(shard.core.dispatch)\n",
        (
            OWN + "test_no_lock_is_ever_replaced",
            "test_reset_state.py::test_reset_state_forgets_everything_but_the_dispatch",
        ),
        SHARDS,
    ),
    Fault(
        "G20",
        "a publication takes the locks of its shards in reverse order, a reset in order",
        SHARDED,
        "        cores = [shard.core for shard in holders]\n",
        "        cores = [shard.core for shard in reversed(holders)]\n",
        (OWN + "test_several_locks_are_taken_in_the_order_of_the_shards",),
        SHARDS,
    ),
    Fault(
        "G18",
        "the figures leave out the last shard",
        SHARDED,
        "        return _sum([shard.stats() for shard in self._shards])\n",
        "        return _sum([shard.stats() for shard in self._shards[:-1]])\n",
        ("test_state.py::test_all_of_many_conversations_are_shown_and_forgotten",),
        SHARDS,
    ),
    Fault(
        "G18",
        "a reset and a close leave out the last shard",
        ENGINE + "_local.py",
        "        held = reset()\n",
        "        held = [] if getattr(self, '_index', 0) == 6 else reset()\n",
        ("test_state.py::test_all_of_many_conversations_are_shown_and_forgotten",),
        SHARDS,
    ),
    Fault(
        "G22",
        "each shard is limited to its share, and no share ever moves",
        "stube_backends/sharded/_room.py",
        "        each, over = divmod(self._left(",
        "        raise registry_full(sum(pending), 1, sum(pending))\n        each, over = divmod(self._left(",
        (
            "test_state.py::test_one_conversation_may_use_all_of_max_pending",
            OWN + "test_shares_add_up_to_max_pending_and_one_shard_may_use_all",
        ),
        SHARDS,
    ),
    Fault(
        "G22",
        "each shard alone may use the whole max_pending",
        SHARDED,
        "share_of(max_pending, number, index)",
        "max_pending",
        (
            "test_state.py::test_one_conversation_may_use_all_of_max_pending",
            OWN + "test_shares_add_up_to_max_pending_and_one_shard_may_use_all",
        ),
        SHARDS,
    ),
    Fault(
        "G20",
        "a re-entrant call waits for the lock of another shard",
        ENGINE + "_core.py",
        "        return not self.is_reentrant() and self.acquire_blocking()\n",
        "        return self.acquire_blocking()\n",
        (
            "test_threads.py::test_two_interrupted_threads_do_not_deadlock",
            OWN + "test_crossing_reentrant_calls_of_two_shards_do_not_deadlock",
        ),
        SHARDS,
    ),
)


class Workshop:
    """A copy of the sources in which one fault after the other is tried."""

    def __init__(self, folder: Path) -> None:
        self._server = Server(folder)
        self._outcomes = folder / "outcomes.json"
        # Other plugins take half of the time of a short run, and play no part in it.
        self._environment = {"OUTCOMES": str(self._outcomes), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        # A test that hangs tells where, before it is killed. The project's settings are for sources without faults.
        (folder / "pytest.ini").write_text(f"[pytest]\nfaulthandler_timeout = {_LIMIT / 2}\n", encoding="utf-8")

    def __enter__(self) -> Workshop:
        self._server.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.__exit__(*error)

    def catch(self, fault: Fault | None, tests: Iterable[str], backends: Sequence[str]) -> list[Outcome]:
        """Return how `tests` end on a copy of the packages with that fault; None for a copy without any."""
        changes: dict[Path, str] = {}
        environment = dict(self._environment)
        if fault is not None:
            changes[fault.path] = fault.broken()
            # What must happen at once and does not is waited for in vain; in this way an assertion says so sooner.
            environment["STUBE_TEST_PATIENCE"] = "3"
        arguments = [
            "-p",
            "stube.testing.plugin",
            "-p",
            "tests.outcomes",
            *(f"--stube-backend={name}" for name in backends),
        ]
        arguments += [f"{_folder_of(test)}/{test}" for test in tests]
        self._outcomes.unlink(missing_ok=True)
        ended = self._server.run(changes, arguments, environment, limit=_LIMIT)
        printed = self._server.tree.output.read_text(encoding="utf-8", errors="replace")
        assert not ended.timed_out, f"it did not end within {_LIMIT} s:\n{printed}"
        assert self._outcomes.exists(), f"nothing ran:\n{printed}"
        return [_outcome(record) for record in json.loads(self._outcomes.read_text(encoding="utf-8"))]


def _folder_of(test: str) -> str:
    return "tests/backends" if test.partition("::")[0] in OWN_FILES else "stube/testing/suite"


def _outcome(record: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**record, "guarantees": tuple(record["guarantees"])})


def _replaced(path: Path, old: str, new: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    count = text.count(old)
    assert count == 1, f"{old!r} stands {count} times in {path.name}: the list of broken registries must follow it"
    return text.replace(old, new)


def main(numbers: Sequence[str]) -> int:
    """Print the table: which fault, and on each backend the test and the assertion that caught it."""
    from tests.broken_loops import ASYNCIO_FAULTS

    with TemporaryDirectory() as folder, Workshop(Path(folder)) as workshop:
        for fault in (*FAULTS, *SHARDED_FAULTS, *ASYNCIO_FAULTS):
            if numbers and fault.guarantee not in numbers:
                continue
            found = workshop.catch(fault, fault.caught_by, fault.backends)
            print(f"{fault.guarantee} {fault.summary} ({Path(fault.file).name}, {fault.changed_lines} lines)")
            for backend in fault.backends:
                caught = [each for each in found if each.backend in (backend, "") and each.by_assertion]
                line = f"{caught[0].test}: {caught[0].message.splitlines()[0][:140]}" if caught else "NOT CAUGHT"
                print(f"    {backend}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
