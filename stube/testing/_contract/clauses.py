"""The clauses of each guarantee, and the tests of the suite that would name a fault in each.

A guarantee is a sentence or several; a clause is the least part of it that a backend can break on its own. `incomplete`
tells what the table lacks: each clause needs a test, and each test stands under a clause of every guarantee that it
proves. The fault that a test looks for stands in its docstring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["CLAUSES", "incomplete"]

_MODEL: Final = ("test_random_programs_match_the_model_exactly", "test_random_programs_match_the_model_after_settling")
_ANY_HISTORY: Final = "test_random_operations_of_many_threads_keep_every_guarantee"
_OF_BATONS: Final = "test_batons_in_random_histories_have_one_taker"
_OF_TIMERS: Final = "test_timers_in_random_histories_have_one_fate"
_OF_TOPICS: Final = "test_messages_in_random_histories_reach_the_right_subscribers"

_ALL: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "G1": {
        "Two deliveries of a conversation never run at the same time, whichever threads deliver.": (
            "test_at_most_one_delivery_of_a_conversation_runs_at_any_moment",
            "test_eight_threads_run_every_operation_concurrently",
            _ANY_HISTORY,
            _OF_TIMERS,
            _OF_TOPICS,
        ),
        "A delivery that the running one causes begins after it.": (
            "test_a_handler_returns_before_a_timer_it_schedules_begins",
            "test_a_message_is_never_delivered_inside_publish",
        ),
        "What became ready behind a slow handler begins after it.": (
            "test_overdue_timers_behind_a_slow_handler_begin_in_due_order",
        ),
        "A conversation that is forgotten while one of its deliveries runs gets no second one beside it.": (
            "test_what_is_forgotten_while_its_delivery_runs_gets_no_second_one_beside_it",
        ),
        "A clock that is moved by hand delivers on one thread.": ("test_the_clock_cannot_be_moved_by_two_threads",),
    },
    "G2": {
        "Timers begin in the order of their due instants.": (
            "test_timers_begin_in_the_order_of_their_due_instants",
            "test_late_timers_are_sorted_among_timers_that_are_nearly_due",
            "test_the_clock_moves_from_due_instant_to_due_instant",
            "test_another_thread_may_add_while_the_clock_moves",
            _OF_TIMERS,
        ),
        "A message begins in the order of the instant at which its publication was accepted.": (
            "test_a_publication_begins_between_an_earlier_and_a_later_timer",
            "test_one_publishers_messages_reach_every_subscriber_in_order",
            _OF_TOPICS,
        ),
        "Ties are in the order of acceptance: timers among themselves.": (
            "test_timers_of_one_instant_begin_in_the_order_of_scheduling",
            "test_a_coarse_clock_keeps_timers_of_one_instant_in_order",
            "test_cancelling_some_timers_of_one_instant_keeps_the_rest_in_order",
        ),
        "Ties are in the order of acceptance: timers and messages.": (
            "test_timers_and_messages_of_one_instant_keep_acceptance_order",
            "test_timers_and_messages_that_tie_keep_acceptance_order",
            "test_a_timer_begins_before_a_message_of_its_due_instant",
        ),
        "Ties are in the order of acceptance: the instances that hear one message, as they subscribed.": (
            "test_instances_of_a_conversation_hear_in_subscription_order",
            "test_subscribing_again_replaces_the_event_and_keeps_the_place",
            "test_comings_and_goings_leave_the_other_subscribers_in_order",
        ),
        "The order also holds for what became overdue behind a slow handler.": (
            "test_overdue_timers_behind_a_slow_handler_begin_in_due_order",
        ),
        "Instants of acceptance never run backwards, whichever thread has read the clock earlier.": (
            "test_what_is_accepted_later_begins_later_whoever_read_the_clock_first",
            "test_a_stale_reading_of_the_delivery_thread_overtakes_no_timer",
            _ANY_HISTORY,
        ),
        "The order depends on nothing else.": ("test_two_runs_of_one_program_are_the_same", *_MODEL),
    },
    "G3": {
        "Dispatch never runs on the stack of `schedule_event`, at no delay.": (
            "test_dispatch_never_runs_inside_schedule_event",
            "test_nothing_happens_until_the_clock_is_moved",
        ),
        "Nor on the stack of `publish`, the publisher's own subscription included.": (
            "test_a_message_is_never_delivered_inside_publish",
        ),
        "Nor inside the delivery that called either of them.": (
            "test_a_handler_returns_before_a_timer_it_schedules_begins",
        ),
    },
    "G4": {
        "A publisher's messages reach each subscriber in the order of publishing.": (
            "test_one_publishers_messages_reach_every_subscriber_in_order",
            "test_comings_and_goings_leave_the_other_subscribers_in_order",
        ),
        "This holds while others publish, subscribe and unsubscribe.": (
            "test_each_of_many_publishers_is_heard_in_its_own_order",
            _ANY_HISTORY,
            _OF_TOPICS,
        ),
        "With `common_topic_order` all subscribers of a topic see one order.": (
            "test_all_subscribers_of_a_topic_hear_one_common_order",
        ),
    },
    "G5": {
        "After `cancel_timers` has returned, none of the cancelled timers begins.": (
            "test_cancel_timers_cancels_and_counts_one_conversation_only",
            "test_a_self_rearming_timer_stops_when_its_conversation_ends",
            "test_an_ended_conversation_leaves_nothing_and_accepts_nothing",
        ),
        "The same holds for `TimerHandle.cancel`.": ("test_a_handle_cancels_its_own_timer_once",),
        "It holds for timers that are already due, and for timers among many.": (
            "test_a_timer_that_is_already_due_can_be_cancelled",
            "test_a_timer_among_many_can_be_cancelled",
            "test_a_handler_can_cancel_due_timers_of_another_conversation",
            "test_a_handler_can_cancel_due_timers_of_its_own_conversation",
            "test_cancelling_some_timers_of_one_instant_keeps_the_rest_in_order",
        ),
        "After `unsubscribe` has returned, no message that was queued for the subscription begins.": (
            "test_no_queued_message_begins_after_unsubscribe",
            "test_a_handler_can_unsubscribe_a_later_target_of_its_message",
        ),
        "The same holds for `remove_subscriptions_for_cid`.": (
            "test_no_queued_message_begins_after_removing_its_conversation",
            "test_a_handler_that_ends_its_own_conversation_runs_to_its_end",
            "test_messages_queued_for_ended_conversations_are_released",
        ),
        "Each timer is counted by one cancel or delivered, never both, never neither.": (
            "test_each_timer_is_either_cancelled_or_delivered",
            "test_exactly_one_of_many_threads_cancels_a_timer",
            *_MODEL,
            _ANY_HISTORY,
            _OF_TIMERS,
            _OF_TOPICS,
        ),
        "What one operation removes is removed in one step.": ("test_a_delivery_thread_sees_a_removal_in_one_step",),
        "Subscribing again revives no old message.": ("test_subscribing_anew_does_not_revive_old_messages",),
        "Replacing the event of a subscription keeps its messages.": (
            "test_a_queued_message_uses_the_newest_event_of_its_subscription",
        ),
    },
    "G6": {
        "A cancel neither waits for a running delivery nor counts it.": (
            "test_a_cancel_ignores_a_delivery_that_has_begun",
            "test_each_timer_is_either_cancelled_or_delivered",
        ),
        "An unsubscribe, a reset and a close do not disturb it either.": (
            "test_unsubscribe_does_not_wait_for_a_running_handler",
            "test_a_reset_does_not_wait_for_a_running_handler",
            "test_close_waits_for_a_running_delivery_within_its_timeout",
        ),
        "A handler may end its own conversation, or forget everything, and runs to its end.": (
            "test_a_handler_that_ends_its_own_conversation_runs_to_its_end",
            "test_a_handler_that_resets_runs_to_its_end",
        ),
    },
    "G7": {
        "A `schedule_event` that races with a cancel ends as scheduled or as cancelled.": (
            "test_a_schedule_racing_with_a_cancel_is_atomic",
            "test_exactly_one_of_many_threads_cancels_a_timer",
            "test_racing_operations_are_atomic_at_every_line",
            "test_a_self_rearming_timer_stops_when_its_conversation_ends",
            _OF_TIMERS,
        ),
        "A `subscribe` that races with a removal ends as subscribed or as removed.": (
            "test_a_subscribe_racing_with_an_unsubscribe_is_atomic",
            "test_a_subscribe_racing_with_the_removal_is_atomic",
            "test_a_subscription_takes_effect_when_the_call_returns",
            "test_a_delivery_thread_sees_a_removal_in_one_step",
            _OF_TOPICS,
        ),
        "The same holds for races with a reset, a close and the end of a handle.": (
            "test_resets_racing_with_other_operations_keep_the_ledger",
            "test_a_schedule_racing_with_close_is_counted_or_raises",
            "test_a_close_at_any_line_of_an_adding_operation_is_atomic",
            "test_an_add_racing_with_the_end_is_undone_before_it_raises",
            "test_a_conversation_ended_during_adds_leaves_nothing",
        ),
        "Whatever races: the operations take effect one after the other.": (
            "test_eight_threads_run_every_operation_concurrently",
            _ANY_HISTORY,
            _OF_BATONS,
        ),
    },
    "G8": {
        "One caller gets the baton, and the next gets None.": ("test_a_baton_is_taken_once",),
        "Of several threads exactly one gets it.": (
            "test_exactly_one_of_many_threads_takes_a_baton",
            "test_racing_operations_are_atomic_at_every_line",
            _ANY_HISTORY,
            _OF_BATONS,
        ),
        "It is taken or forgotten, never both.": ("test_a_baton_is_taken_or_forgotten_never_both",),
        "None is lost beside a put.": ("test_no_baton_is_lost_between_a_putting_and_a_taking_thread",),
        "A re-entrant call that gets nothing leaves it.": ("test_a_reentrant_call_takes_or_leaves_the_baton",),
    },
    "G9": {
        "No timer begins before its delay has passed.": (
            "test_no_timer_begins_early_and_none_is_lost",
            "test_a_custom_clock_may_be_passed_in",
        ),
        "A fraction of a delay is not rounded down.": (
            "test_fractions_of_a_millisecond_count",
            "test_the_smallest_delay_waits_for_the_next_nanosecond",
        ),
        "The registry's clock decides, even if a wait ends too early.": (
            "test_a_wait_that_ends_before_the_clock_says_so_begins_no_timer",
        ),
        "On a virtual clock each timer begins exactly when it is due.": (
            "test_the_clock_moves_from_due_instant_to_due_instant",
            "test_a_timer_scheduled_and_due_in_a_step_begins_in_that_step",
            "test_a_step_never_skips_a_timer_that_another_thread_adds",
            "test_run_until_idle_goes_to_the_last_timer_and_counts",
            "test_the_clock_may_start_anywhere",
            "test_an_endless_chain_of_timers_at_one_instant_is_reported",
            "test_an_endless_publication_is_reported_and_a_wide_one_is_not",
        ),
    },
    "G10": {
        "A new earliest timer wakes the scheduler, from any thread.": (
            "test_a_new_earliest_timer_wakes_the_scheduler",
            "test_another_thread_may_add_while_the_clock_moves",
            "test_a_step_never_skips_a_timer_that_another_thread_adds",
        ),
        "It does so at any moment, just before the scheduler sleeps included.": (
            "test_a_schedule_just_before_the_scheduler_sleeps_is_not_lost",
            "test_an_operation_at_any_line_of_the_delivery_thread_takes_effect",
        ),
        "It does so whatever the scheduler sleeps for.": ("test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",),
        "Those who wait in `join` or `close` are woken, too.": (
            "test_a_waiter_in_join_wakes_when_the_timers_are_removed",
            "test_join_and_close_do_not_wait_for_a_cancelled_timer",
        ),
        "An idle registry uses no CPU: it does not poll.": (
            "test_an_idle_registry_uses_no_cpu",
            "test_an_idle_registry_does_not_read_its_clock",
            "test_an_idle_registry_wakes_no_thread",
        ),
    },
    "G11": {
        "Every finite delay is accepted and waited for.": (
            "test_enormous_delays_are_kept_and_disturb_no_other_timer",
            "test_next_due_is_the_instant_of_the_next_delivery",
            "test_the_longest_delays_are_kept_to_the_millisecond",
        ),
        "It disturbs no other timer.": (
            "test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",
            "test_enormous_delays_are_kept_and_disturb_no_other_timer",
        ),
        "Fractions count, and round up to whole nanoseconds.": (
            "test_fractions_of_a_millisecond_count",
            "test_the_smallest_delay_waits_for_the_next_nanosecond",
            "test_a_fraction_of_a_long_delay_counts",
        ),
        "A negative delay means 0.": ("test_dispatch_never_runs_inside_schedule_event",),
        "NaN and infinity raise `ValueError`.": ("test_a_delay_that_is_not_finite_is_a_value_error",),
        "`bool`, `str` and `None` raise `TypeError`.": ("test_a_delay_of_another_type_is_a_type_error",),
    },
    "G12": {
        "A change of the wall clock has no effect.": ("test_replacing_functions_of_the_time_module_changes_nothing",),
        "Replacing attributes of the `time` module has no effect.": (
            "test_replacing_functions_of_the_time_module_changes_nothing",
            "test_the_time_module_may_be_patched_before_the_backend_import",
        ),
        "`clock=` may be passed in, and is used.": (
            "test_a_custom_clock_may_be_passed_in",
            "test_a_custom_clock_is_never_read_under_a_lock",
        ),
    },
    "G13": {
        "A baton that was replaced, taken or forgotten is freed immediately; before, it never expires.": (
            "test_a_replaced_baton_is_not_kept_alive",
            "test_a_taken_baton_is_not_kept_alive",
            "test_a_forgotten_baton_is_not_kept_alive",
            "test_a_baton_never_expires",
        ),
        "A cancelled timer is freed immediately, with its payload and its place in every container.": (
            "test_payloads_of_cancelled_timers_are_released_immediately",
            "test_cancelled_timers_leave_nothing_in_any_container",
            "test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",
        ),
        "A removed or replaced subscription is freed immediately.": (
            "test_a_removed_subscription_leaves_neither_container_nor_payload",
            "test_a_replaced_spec_is_not_kept_alive",
            "test_subscribing_a_thousand_times_makes_one_subscription",
            "test_repeated_subscribe_unsubscribe_does_not_grow_a_topic",
        ),
        "A delivered payload is freed, also when the delivery failed, and when nothing follows.": (
            "test_an_idle_registry_keeps_no_delivered_payload_alive",
            "test_an_idle_registry_keeps_no_delivered_message_alive",
            "test_a_failed_delivery_keeps_no_payload_alive",
            "test_the_trace_names_the_cause_and_keeps_no_payload",
        ),
        "Messages of a subscription that was removed are freed when the delivery thread has reached them.": (
            "test_messages_queued_for_ended_conversations_are_released",
        ),
        "What a reset, a close or a refused operation was given is freed.": (
            "test_a_reset_or_close_keeps_no_payload_alive",
            "test_a_refused_operation_keeps_no_payload_alive",
        ),
        "A replaced dispatch, the result of a handler and a caller's context are not kept.": (
            "test_a_replaced_dispatch_is_not_kept_alive",
            "test_what_a_handler_returns_is_not_kept_alive",
            "test_the_context_of_a_caller_is_not_kept_alive",
        ),
        "Nothing grows with the conversations that ever existed, nor with waits in vain.": (
            "test_conversations_that_used_everything_leave_nothing",
            "test_conversations_that_never_connected_leave_nothing",
            "test_conversations_that_took_their_batons_leave_nothing",
            "test_conversations_that_left_their_topics_leave_nothing",
            "test_an_ended_conversation_leaves_nothing_and_accepts_nothing",
            "test_a_conversation_ended_during_adds_leaves_nothing",
            "test_a_self_rearming_timer_is_one_timer_at_every_step",
            "test_waiting_in_vain_leaves_nothing",
            "test_sizes_count_every_kind_of_state",
        ),
        "A container that becomes empty gives its memory back.": ("test_an_emptied_index_frees_its_memory",),
        "Threads do not grow with what is pending, and end with the registry.": (
            "test_fifty_thousand_timers_need_no_more_threads_than_one",
            "test_close_ends_the_threads",
            "test_close_inside_a_delivery_ends_the_threads",
        ),
        "A registry that was dropped with nothing pending is collected; with something pending it delivers it.": (
            "test_an_unreferenced_registry_with_nothing_pending_is_collected",
            "test_a_sleeping_registry_is_collected_once_its_timers_are_gone",
            "test_an_unreferenced_registry_still_delivers_its_timers",
        ),
    },
    "G14": {
        "Scheduling and cancelling cost the same beside many other timers.": (
            "test_schedule_and_cancel_cost_the_same_with_many_timers",
        ),
        "Cancelling one timer costs the same in a conversation with many.": (
            "test_cancelling_one_timer_costs_the_same_in_a_large_conversation",
        ),
        "Subscribing and unsubscribing cost the same in a topic with many subscribers.": (
            "test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic",
        ),
        "Unsubscribing costs the same for an instance or a conversation with many subscriptions.": (
            "test_unsubscribe_costs_the_same_for_an_instance_with_many_topics",
            "test_unsubscribing_one_instance_costs_the_same_in_a_large_conversation",
        ),
        "Ending a conversation costs the same in a large registry.": (
            "test_removing_a_conversation_costs_the_same_in_a_large_registry",
        ),
        "A publication costs its caller the same for any number of subscribers.": (
            "test_publish_costs_its_caller_the_same_for_many_subscribers",
        ),
    },
    "G15": {
        "A name that is none is refused, and nothing has changed.": (
            "test_put_pending_flow_refuses_an_invalid_name",
            "test_pending_flow_refuses_an_invalid_name",
            "test_forget_pending_flow_refuses_an_invalid_name",
            "test_schedule_event_refuses_an_invalid_name",
            "test_cancel_timers_refuses_an_invalid_name",
            "test_subscribe_refuses_an_invalid_name",
            "test_unsubscribe_refuses_an_invalid_name",
            "test_remove_subscriptions_refuses_an_invalid_name",
            "test_publish_refuses_an_invalid_topic",
            "test_operations_take_names_only_by_keyword",
        ),
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.": (
            "test_schedule_event_refuses_an_invalid_event",
            "test_subscribe_refuses_an_invalid_event",
            "test_a_delay_of_another_type_is_a_type_error",
            "test_put_pending_flow_refuses_none",
            "test_a_dispatch_that_is_not_callable_is_refused",
            "test_an_async_dispatch_is_awaited_or_refused_at_the_call",
            "test_a_payload_that_cannot_cross_processes_is_refused_at_the_call",
            "test_a_refused_operation_keeps_no_payload_alive",
        ),
        "The same holds for an option, when the registry is made.": (
            "test_an_unknown_option_is_refused",
            "test_an_invalid_max_pending_is_refused",
            "test_an_on_error_that_is_not_callable_is_refused",
            "test_the_error_for_an_unknown_backend_hides_the_password",
        ),
        "An operation for which there is no room, no thread or no open registry has changed nothing.": (
            "test_an_operation_beyond_max_pending_is_refused_as_a_whole",
            "test_an_operation_that_cannot_start_a_thread_changes_nothing",
            "test_a_close_at_any_line_of_an_adding_operation_is_atomic",
            "test_operations_do_not_change_a_closed_registry",
            "test_the_clock_does_not_go_back",
            *_MODEL,
        ),
        "An operation that Ctrl-C interrupts leaves a consistent state.": (
            "test_an_interrupt_at_any_line_leaves_the_registry_consistent",
            "test_an_interrupt_at_any_line_of_the_first_operation_leaves_one_thread",
        ),
    },
    "G16": {
        "A publication targets those who are subscribed at its instant, and counts them.": (
            "test_publish_targets_the_subscribers_at_the_call",
            "test_a_handler_can_unsubscribe_a_later_target_of_its_message",
            *_MODEL,
            _ANY_HISTORY,
            _OF_TOPICS,
        ),
        "A subscriber who stays misses nothing while others come and go.": (
            "test_a_subscriber_misses_nothing_while_others_come_and_go",
            "test_a_message_racing_with_a_hand_over_reaches_a_subscriber",
            "test_racing_operations_are_atomic_at_every_line",
        ),
        "`subscriptions()` shows what there is, and returns copies.": (
            "test_subscriptions_shows_topics_subscribers_and_events",
            "test_subscriptions_returns_a_copy",
        ),
        "It never raises because of a concurrent change.": ("test_subscriptions_never_raises_while_others_change_it",),
    },
    "G17": {
        "A message is passed on, and neither copied, compared, hashed, tested nor shown.": (
            "test_a_message_is_passed_by_reference_and_never_touched",
        ),
        "The same holds for the payload of a timer.": (
            "test_a_timers_payload_is_passed_by_reference_and_never_touched",
        ),
        "The same holds for a baton.": ("test_a_baton_is_passed_by_reference_and_never_touched",),
        "The same holds when the delivery fails.": ("test_the_report_of_a_failure_does_not_touch_the_payload",),
        "No method of a name's own class is called.": ("test_the_methods_of_a_str_subclass_are_never_called",),
        "A backend that crosses processes refuses at the call what it cannot carry.": (
            "test_a_payload_that_cannot_cross_processes_is_refused_at_the_call",
        ),
    },
    "G18": {
        "After a reset nothing accepted before it begins.": (
            "test_nothing_accepted_before_a_reset_begins_after_it",
            "test_reset_state_forgets_everything_but_the_dispatch",
            "test_all_of_many_conversations_are_shown_and_forgotten",
        ),
        "This holds in the middle of a fan-out, and beside a delivery that runs.": (
            "test_a_reset_during_a_fan_out_drops_the_remaining_targets",
            "test_a_handler_that_resets_runs_to_its_end",
            "test_a_reset_does_not_wait_for_a_running_handler",
            "test_what_is_forgotten_while_its_delivery_runs_gets_no_second_one_beside_it",
        ),
        "It holds beside operations of other threads.": (
            "test_resets_racing_with_other_operations_keep_the_ledger",
            _ANY_HISTORY,
            _OF_TIMERS,
            _OF_TOPICS,
        ),
    },
    "G19": {
        "A delivery that raises stops no other delivery, whatever it raises.": (
            "test_a_delivery_that_raises_stops_no_other",
            "test_a_failing_handler_does_not_stop_a_step",
        ),
        "It is counted as failed and logged once on `stube`, with its traceback.": (
            "test_a_delivery_that_raises_stops_no_other",
            "test_a_failure_is_logged_without_an_on_error",
            "test_the_report_of_a_failure_does_not_touch_the_payload",
        ),
        "It is passed to `on_error`, and runs until that has returned.": (
            "test_a_delivery_that_raises_stops_no_other",
            "test_a_failed_delivery_runs_until_on_error_has_returned",
        ),
        "An `on_error` or a log handler that raises stops nothing; both may call the registry.": (
            "test_an_on_error_or_log_handler_that_raises_stops_no_delivery",
            "test_on_error_and_log_handlers_may_call_the_registry",
            "test_dispatch_on_error_and_logging_never_run_under_a_lock",
        ),
        "Where dispatch runs on the caller's own thread, Ctrl-C is counted and then raised.": (
            "test_ctrl_c_in_a_handler_reaches_the_caller_and_loses_nothing",
        ),
        "A coroutine that cannot be awaited is closed, its delivery has failed, and the error names a backend.": (
            "test_a_returned_coroutine_is_awaited_or_closed_as_failed",
            "test_an_async_dispatch_is_awaited_or_refused_at_the_call",
        ),
        "`ConversationEnded` out of a delivery is no failure.": (
            "test_conversation_ended_raised_by_a_handler_is_no_failure",
            "test_conversation_ended_is_no_failure_when_logging_fails",
        ),
    },
    "G20": {
        "Every operation may be called from inside a delivery, and takes effect.": (
            "test_a_handler_may_call_every_operation",
            "test_a_handler_may_replace_the_dispatch",
            "test_a_handler_returns_before_a_timer_it_schedules_begins",
            "test_a_handler_can_cancel_due_timers_of_its_own_conversation",
            "test_a_handler_that_ends_its_own_conversation_runs_to_its_end",
            "test_a_handler_can_unsubscribe_a_later_target_of_its_message",
            "test_a_handler_that_resets_runs_to_its_end",
            "test_a_reset_during_a_fan_out_drops_the_remaining_targets",
            "test_close_inside_a_delivery_does_not_wait_for_itself",
            "test_the_clock_cannot_be_moved_from_inside_a_delivery",
        ),
        "Every operation may interrupt any other, at any line, on the same names, and twice.": (
            "test_any_operation_may_interrupt_any_other_at_any_line",
            "test_an_operation_may_interrupt_another_on_the_same_names",
            "test_an_operation_may_be_interrupted_twice",
            "test_a_signal_handler_may_call_every_operation",
            "test_a_reentrant_call_takes_or_leaves_the_baton",
        ),
        "It may interrupt the first operation, and the delivery thread.": (
            "test_the_first_operation_may_be_interrupted",
            "test_reentrant_calls_in_the_first_operation_keep_their_order",
            "test_an_operation_at_any_line_of_the_delivery_thread_takes_effect",
        ),
        "It stays within the bound, and is accounted for.": (
            "test_reentrant_schedule_on_a_full_registry_is_accounted_for",
            "test_a_reentrant_schedule_takes_no_room_of_the_interrupted_one",
        ),
        "A finalizer may call every operation, whichever operation it interrupts.": (
            "test_the_collector_may_run_a_finalizer_in_any_operation",
            "test_a_destructor_may_call_every_operation",
        ),
        "An interrupted thread keeps no other from its operations.": ("test_two_interrupted_threads_do_not_deadlock",),
        "No user code and no logging runs under a lock, or on a thread that others wait for.": (
            "test_no_destructor_runs_under_a_lock",
            "test_dispatch_on_error_and_logging_never_run_under_a_lock",
            "test_on_error_and_log_handlers_may_call_the_registry",
            "test_a_custom_clock_is_never_read_under_a_lock",
            "test_the_methods_of_a_str_subclass_are_never_called",
        ),
        "A signal handler may raise.": (
            "test_an_interrupt_at_any_line_leaves_the_registry_consistent",
            "test_an_interrupt_at_any_line_of_the_first_operation_leaves_one_thread",
        ),
    },
    "G21": {
        "An operation of any thread has taken effect when it returns.": (
            "test_an_operation_of_any_thread_takes_effect_before_it_returns",
            "test_a_subscription_takes_effect_when_the_call_returns",
            "test_a_subscriber_receives_no_earlier_message",
        ),
        "Operations of several threads do not disturb each other.": (
            "test_threads_with_separate_conversations_do_not_interfere",
            "test_subscriptions_made_by_many_threads_are_all_kept",
            "test_subscriptions_never_raises_while_others_change_it",
            "test_eight_threads_run_every_operation_concurrently",
            "test_two_interrupted_threads_do_not_deadlock",
            _ANY_HISTORY,
        ),
        "Deliveries go to the dispatch that is installed when they begin, with the cid and the event.": (
            "test_deliveries_without_a_dispatch_count_as_delivered",
            "test_dispatch_is_called_with_the_cid_and_the_event_by_position",
            "test_dispatch_is_looked_up_when_a_delivery_begins",
            "test_a_handler_may_replace_the_dispatch",
            "test_any_callable_is_a_dispatch",
            "test_a_mock_is_a_dispatch",
        ),
        "A baton is there at once, may be falsy, and is replaced by a second one.": (
            "test_a_baton_may_be_falsy_and_is_there_immediately",
            "test_a_second_put_replaces_the_first",
            "test_pending_flow_returns_none_without_a_baton",
            "test_forget_pending_flow_returns_whether_there_was_a_baton",
        ),
        "A timer delivers the name and the payload of its spec, as they were at the call.": (
            "test_a_timer_delivers_the_name_and_the_payload_of_its_spec",
            "test_an_event_list_is_copied_at_the_call",
        ),
        "A message reaches each subscriber of its topic once, under the name that each asked for.": (
            "test_publish_reaches_each_subscriber_of_the_topic_once",
            "test_the_message_replaces_the_payload_of_the_spec",
        ),
        "Removing operations remove what they name, count it, and nothing else.": (
            "test_cancel_timers_cancels_and_counts_one_conversation_only",
            "test_cancel_timers_with_an_instance_cancels_only_its_timers",
            "test_unsubscribe_removes_one_subscription_only",
            "test_unsubscribe_without_a_topic_removes_all_of_the_instance",
            "test_unsubscribe_of_an_unknown_subscription_is_no_error",
            "test_removal_takes_all_subscriptions_of_one_conversation_only",
            "test_reset_state_forgets_everything_but_the_dispatch",
        ),
        "Names are plain strings, and no two of them collide.": (
            "test_a_str_subclass_is_stored_as_its_plain_string",
            "test_batons_of_awkward_names_never_collide",
            "test_timers_of_awkward_names_never_collide",
            "test_subscriptions_of_awkward_names_never_collide",
        ),
        "`stats`, `inspect` and `subscriptions` show what there is.": (
            "test_the_ledger_counts_every_fate_separately",
            "test_no_count_in_stats_is_ever_negative",
            "test_inspect_shows_everything_that_each_conversation_holds",
            "test_a_timer_that_is_overdue_has_no_time_left",
            "test_subscriptions_shows_topics_subscribers_and_events",
            "test_a_backend_is_a_registry_with_known_capabilities",
        ),
        "`settle` and `join` wait for what they promise, within their timeout.": (
            "test_settle_waits_for_ready_deliveries_but_not_for_timers",
            "test_settle_and_join_return_false_when_the_timeout_passes",
            "test_a_timeout_may_be_enormous",
            "test_join_waits_for_timers_and_all_that_handlers_schedule",
            "test_a_waiter_in_join_wakes_when_the_timers_are_removed",
            "test_a_failed_delivery_runs_until_on_error_has_returned",
            "test_waiting_in_vain_leaves_nothing",
        ),
        "The host's handles work on it.": (
            "test_a_conversation_handle_does_what_the_operations_do",
            "test_conversations_finds_every_open_conversation",
            "test_a_conversation_ended_during_adds_leaves_nothing",
        ),
    },
    "G22": {
        "`max_pending` bounds timers and queued messages together.": (
            "test_max_pending_bounds_timers_and_messages_together",
            "test_a_queued_message_counts_for_max_pending_until_it_begins",
        ),
        "An operation that would exceed it raises `RegistryFull` and changes nothing.": (
            "test_an_operation_beyond_max_pending_is_refused_as_a_whole",
        ),
        "What is cancelled, delivered or reached behind a removed subscription frees its room.": (
            "test_messages_of_a_removed_subscription_free_their_room",
            "test_max_pending_bounds_timers_and_messages_together",
        ),
        "The whole registry has one bound, which any conversation may use.": (
            "test_one_conversation_may_use_all_of_max_pending",
        ),
        "None means no bound.": ("test_max_pending_may_be_none",),
        "A re-entrant call does not exceed it.": (
            "test_reentrant_schedule_on_a_full_registry_is_accounted_for",
            "test_a_reentrant_schedule_takes_no_room_of_the_interrupted_one",
        ),
    },
    "G23": {
        "Importing and creating start no thread and open nothing.": ("test_importing_and_creating_start_nothing",),
        "An operation that needs a thread starts one, once.": (
            "test_the_first_operation_may_be_interrupted",
            "test_an_interrupt_at_any_line_of_the_first_operation_leaves_one_thread",
            "test_registries_made_before_a_server_forks_work_in_its_workers",
        ),
        "If none can be started, it raises and changes nothing.": (
            "test_an_operation_that_cannot_start_a_thread_changes_nothing",
        ),
    },
    "G24": {
        "`close` discards what has not begun, and is idempotent.": (
            "test_close_drops_what_has_not_begun_and_is_idempotent",
            "test_a_registry_that_was_never_used_can_be_closed",
            "test_a_with_block_closes_the_registry",
            "test_all_of_many_conversations_are_shown_and_forgotten",
        ),
        "It is bounded by its timeout, and returns whether everything stopped.": (
            "test_close_waits_for_a_running_delivery_within_its_timeout",
            "test_a_timeout_may_be_enormous",
            "test_join_and_close_do_not_wait_for_a_cancelled_timer",
        ),
        "It may be called inside a delivery, and then does not wait; `settle` and `join` raise there.": (
            "test_close_inside_a_delivery_does_not_wait_for_itself",
            "test_settle_and_join_inside_a_delivery_raise",
        ),
        "It ends the threads.": ("test_close_ends_the_threads", "test_close_inside_a_delivery_ends_the_threads"),
        "Afterwards the operations that add raise `RegistryClosed`; those that remove or show do nothing.": (
            "test_a_closed_registry_refuses_adding_and_allows_removing",
            "test_handles_are_silent_on_a_closed_registry",
            "test_operations_do_not_change_a_closed_registry",
            "test_a_schedule_racing_with_close_is_counted_or_raises",
            "test_a_close_at_any_line_of_an_adding_operation_is_atomic",
        ),
        "A program that ends without a close exits promptly, with code 0, and silently.": (
            "test_a_program_that_does_not_close_exits_promptly_and_silently",
        ),
    },
    "G25": {
        "A forked child has an empty, usable registry with the same options and dispatch.": (
            "test_a_forked_child_has_an_empty_usable_registry",
            "test_registries_made_before_a_server_forks_work_in_its_workers",
        ),
        "This holds when a handler forked it: the child delivers and counts nothing of its parent.": (
            "test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent",
            "test_a_child_does_not_count_the_delivery_that_forked_it",
        ),
        "It holds whatever the parent's threads were doing.": (
            "test_a_fork_under_load_leaves_no_lock_held_in_the_child",
        ),
        "The parent's registry is not affected.": (
            "test_a_forked_child_has_an_empty_usable_registry",
            "test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent",
        ),
    },
    "G26": {
        "Two registries share no state: what one accepts, cancels, forgets or closes, the other does not see.": (
            "test_two_registries_share_nothing",
        ),
        "They share no ledger and no bound.": ("test_the_ledger_of_one_registry_shows_nothing_of_another",),
        "They share no lock: one that is stopped in an operation stops no other.": (
            "test_a_registry_that_is_stopped_in_an_operation_stops_no_other",
        ),
    },
}

CLAUSES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(_ALL)
"""By guarantee: each clause, with the names of the tests that prove it."""


def incomplete(proved: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Tell what the table lacks.

    Args:
        proved: the tests of the suite, each with the guarantees that its marker names.

    Yields:
        A sentence for each clause without a test, for each test that does not exist or does not prove the guarantee
        under which it stands, and for each guarantee of a test under which it does not stand.
    """
    for number, clauses in CLAUSES.items():
        listed = {test for tests in clauses.values() for test in tests}
        for clause, tests in clauses.items():
            if not tests:
                yield f"{number}: no test proves: {clause}"
        for test in sorted(listed):
            if number not in proved.get(test, ()):
                yield f"{number}: {test} is listed, and is no test that is marked with {number}"
        for test, numbers in proved.items():
            if number in numbers and test not in listed:
                yield f"{number}: {test} is marked with {number}, and stands under none of its clauses"
