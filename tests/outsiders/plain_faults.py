"""Small faults in `plain.py`, each with a test of the suite that names it; see `faults.py`."""

from __future__ import annotations

from typing import Final

from tests.outsiders.faults import Fault

FAULTS: Final[tuple[Fault, ...]] = (
    Fault(
        "G1",
        "at most one delivery, also where a reset forgets what runs",
        "a reset starts a new thread beside the one that delivers",
        "        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone\n",
        "        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone\n"
        "        self.bell = None if not closed else self.bell\n",
        ("test_what_is_forgotten_while_its_delivery_runs_gets_no_second_one_beside_it[reset_state]",),
    ),
    Fault(
        "G1",
        "at most one delivery of a conversation runs",
        "two threads deliver",
        "        thread.start()\n",
        "        thread.start()\n        threading.Thread(target=_serve, args=(registry, bell), daemon=True).start()\n",
        ("test_at_most_one_delivery_of_a_conversation_runs_at_any_moment",),
    ),
    Fault(
        "G1",
        "at most one delivery of a conversation runs",
        "a thread is started for every timer",
        "if state.bell is not None:",
        "if state.bell is not None and state.serving == 0:",
        ("test_at_most_one_delivery_of_a_conversation_runs_at_any_moment",),
    ),
    Fault(
        "G2",
        "an event shows the instant for which its delivery was meant",
        "the event of a timer counts in milliseconds",
        "_event_payload(timer.spec), due=timer.due)",
        "_event_payload(timer.spec), due=timer.due // 10**6)",
        ("test_an_event_shows_the_instant_for_which_it_was_meant",),
    ),
    Fault(
        "G2",
        "an event shows the instant for which its delivery was meant",
        "the event of a message shows when the delivery begins",
        "publication.message, publication.instant\n",
        "publication.message, max(publication.instant, self.latest)\n",
        ("test_an_event_that_begins_late_shows_the_instant_for_which_it_was_meant",),
    ),
    Fault(
        "G12",
        "the present instant is that of the registry's clock",
        "now_ns shows the default clock",
        "    def now_ns(self) -> int:\n        return self._clock()\n",
        "    def now_ns(self) -> int:\n        return monotonic_ns()\n",
        ("test_the_present_instant_is_that_of_the_registrys_clock",),
    ),
    Fault(
        "G2",
        "ties in the order of acceptance",
        "timers of one instant begin in reverse order",
        "heappush(contents.heap, (timer.due, timer.number, timer))",
        "heappush(contents.heap, (timer.due, -timer.number, timer))",
        ("test_a_coarse_clock_keeps_timers_of_one_instant_in_order",),
    ),
    Fault(
        "G2",
        "the order of a topic's subscribers is that of subscribing",
        "subscribers are sorted by name when a topic is compacted",
        "        self.order = [subscription for subscription in self.order if subscription.is_live()]\n",
        "        self.order = [subscription for subscription in self.order if subscription.is_live()]\n"
        "        self.order.sort(key=lambda one: (one.cid, one.instance_id))\n",
        ("test_comings_and_goings_leave_the_other_subscribers_in_order",),
    ),
    Fault(
        "G2",
        "ties in the order of acceptance",
        "a message goes before a timer of the same instant",
        "return (timer.due, timer.number) < (publication.instant, publication.number)",
        "return timer.due < publication.instant",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
    ),
    Fault(
        "G2",
        "ties in the order of acceptance",
        "a timer goes before a message of the same instant",
        "return (timer.due, timer.number) < (publication.instant, publication.number)",
        "return timer.due <= publication.instant",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
    ),
    Fault(
        "G2",
        "in the order of their ready instants",
        "a ready timer goes before every message",
        "return (timer.due, timer.number) < (publication.instant, publication.number)",
        "return True",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
    ),
    Fault(
        "G2",
        "in the order of their ready instants",
        "a message goes before every timer",
        "if timer is not None and (publication is None or self.comes_before(timer, publication)):",
        "if timer is not None and publication is None:",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
    ),
    Fault(
        "G2",
        "acceptance instants never run backwards",
        "the clock is read outside the lock, and the reading is used unchanged",
        "return self.latest",
        "return now",
        ("test_what_is_accepted_later_begins_later_whoever_read_the_clock_first[schedule_event]",),
    ),
    Fault(
        "G2",
        "a second subscribe keeps the place",
        "a second subscribe moves the subscriber to the end",
        "            present.spec = spec  # commit\n",
        "            present.spec = spec  # commit\n"
        "            present.topic.order = [one for one in present.topic.order if one is not present] + [present]\n",
        ("test_subscribing_again_replaces_the_event_and_keeps_the_place",),
    ),
    Fault(
        "G2",
        "in the order of their due instants",
        "the heap is not made a heap again after a compaction",
        "        heapify(heap)\n        self.heap = heap\n",
        "        self.heap = heap[::-1]\n",
        (
            "test_random_operations_of_many_threads_keep_every_guarantee",
            "test_messages_in_random_histories_reach_the_right_subscribers",
            "test_timers_in_random_histories_have_one_fate",
            "test_random_programs_match_the_model_after_settling",
        ),
    ),
    Fault(
        "G2",
        "in the order of their due instants",
        "timers are sorted by whole milliseconds",
        "heappush(contents.heap, (timer.due, timer.number, timer))",
        "heappush(contents.heap, (timer.due // 1_000_000, timer.number, timer))",
        ("test_overdue_timers_behind_a_slow_handler_begin_in_due_order",),
    ),
    Fault(
        "G2",
        "in the order of their due instants",
        "timers are sorted by their delay",
        "heappush(contents.heap, (timer.due, timer.number, timer))",
        "heappush(contents.heap, (delay_ns, timer.number, timer))",
        ("test_a_timer_begins_before_a_message_of_its_due_instant",),
    ),
    Fault(
        "G2",
        "in the order of their ready instants",
        "the messages take turns, target by target",
        "            trash.append(contents.queue.popleft())\n        return self.dispatch, cid, event\n",
        "            trash.append(contents.queue.popleft())\n"
        "        else:\n"
        "            contents.queue.rotate(-1)\n"
        "        return self.dispatch, cid, event\n",
        (
            "test_random_operations_of_many_threads_keep_every_guarantee",
            "test_messages_in_random_histories_reach_the_right_subscribers",
            "test_timers_in_random_histories_have_one_fate",
            "test_random_programs_match_the_model_after_settling",
        ),
    ),
    Fault(
        "G2",
        "ties in the order of acceptance",
        "on a coarse clock the later of two messages goes first",
        "        contents.queue.append(publication)\n",
        "        ties = [one for one in contents.queue if one.instant == publication.instant and one.place == 0]\n"
        "        contents.queue.insert(len(contents.queue) - len(ties), publication)\n",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
    ),
    Fault(
        "G3",
        "dispatch never runs on the stack of the operation that caused it",
        "publish delivers before it returns",
        "        return self._change(change, 0)\n",
        "        count = self._change(change, 0)\n"
        "        if count and self._state.bell is not None:\n"
        "            self._deliver_all(self._state.bell)\n"
        "            self._state.serving = 0\n"
        "        return count\n",
        ("test_a_message_is_never_delivered_inside_publish",),
    ),
    Fault(
        "G3",
        "also for the publisher's own subscription",
        "what a handler publishes is delivered inside publish",
        "        return self._change(change, 0)\n",
        "        count = self._change(change, 0)\n"
        "        if count and self._state.bell is not None and self._state.serving == threading.get_ident():\n"
        "            self._deliver_all(self._state.bell)\n"
        "        return count\n",
        ("test_a_message_is_never_delivered_inside_publish",),
    ),
    Fault(
        "G3",
        "also at delay 0",
        "a negative delay is delivered inside schedule_event",
        "        self._perform(change, if_nested)\n",
        "        self._perform(change, if_nested)\n"
        "        if delay_ms < 0 and self._state.bell is not None:\n"
        "            self._deliver_all(self._state.bell)\n",
        ("test_dispatch_never_runs_inside_schedule_event[-1]",),
    ),
    Fault(
        "G4",
        "in the order of publishing",
        "the latest message is delivered first",
        "contents.queue.append(publication)",
        "contents.queue.appendleft(publication)",
        ("test_one_publishers_messages_reach_every_subscriber_in_order",),
    ),
    Fault(
        "G4",
        "in the order of publishing",
        "what a handler publishes goes before what waits",
        "contents.queue.append(publication)",
        "(contents.queue.appendleft if self.serving == threading.get_ident() else contents.queue.append)(publication)",
        (
            "test_what_a_handler_publishes_comes_behind_what_waits",
            "test_messages_in_random_histories_reach_the_right_subscribers",
            "test_random_operations_of_many_threads_keep_every_guarantee",
        ),
    ),
    Fault(
        "G4",
        "in the order of publishing",
        "beyond a hundred messages the latest goes first",
        "contents.queue.append(publication)",
        "(contents.queue.appendleft if len(contents.queue) > 100 else contents.queue.append)(publication)",
        ("test_one_publishers_messages_reach_every_subscriber_in_order",),
    ),
    Fault(
        "G4",
        "all subscribers of a topic see one order",
        "every second message is delivered before the first",
        "        contents.queue.append(publication)\n",
        "        contents.queue.append(publication)\n"
        "        if len(contents.queue) == 2 and contents.queue[0].place:\n"
        "            contents.queue.rotate(1)\n",
        ("test_a_message_published_in_the_middle_of_another_comes_behind_it",),
    ),
    Fault(
        "G5",
        "neither a timer already due",
        "a timer that is due cannot be cancelled any more",
        "if self.contents.is_live(timer):",
        "if self.contents.is_live(timer) and timer.due > self.latest:",
        ("test_a_timer_that_is_already_due_can_be_cancelled[cancel_timers]",),
    ),
    Fault(
        "G5",
        "each timer is counted by one cancel",
        "a second cancel of a handle returns True as well",
        "return registry._change(lambda state, trash: state.cancel([timer], trash) == 1, False)",
        "return registry._change(lambda state, trash: state.cancel([timer], trash) >= 0, False)",
        ("test_a_handle_cancels_its_own_timer_once",),
    ),
    Fault(
        "G5",
        "nor a message already queued",
        "a removed subscription still gets the messages that were queued",
        "if subscription.ended:",
        "if False:",
        ("test_a_delivery_thread_sees_a_removal_in_one_step[remove_subscriptions_for_cid]",),
    ),
    Fault(
        "G5",
        "subscribing again revives no old message",
        "a queued message goes to whoever has the place when its turn comes",
        "        if subscription.ended:\n"
        "            publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # "
        "commit\n"
        "            return None\n"
        "        name, message, due = _event_name(subscription.spec), publication.message, publication.instant\n",
        "        present = contents.subscriptions_of(subscription.cid, subscription.instance_id, "
        "subscription.topic.name)\n"
        "        if not present:\n"
        "            publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # "
        "commit\n"
        "            return None\n"
        "        name, message, due = _event_name(present[0].spec), publication.message, publication.instant\n",
        ("test_subscribing_anew_does_not_revive_old_messages[unsubscribe]",),
    ),
    Fault(
        "G5",
        "once a cancel has returned, no delivery that it covers begins",
        "a cancel does not find a timer behind ten thousand others",
        "if self.contents.is_live(timer):",
        "if self.contents.is_live(timer) and any(entry[2] is timer for entry in self.contents.heap[:10_000]):",
        ("test_a_timer_among_many_can_be_cancelled[cancel_timers]",),
    ),
    Fault(
        "G5",
        "what one operation removes is removed in one step",
        "cancel_timers cancels one timer after the other",
        "        return self._change(lambda state, trash: state.cancel_timers(cid, instance, trash), 0)\n",
        "        timers = self._read(lambda state: _find(state.contents.timers_by_cid, cid, instance))\n"
        "        return sum(self._change(partial(lambda one, state, trash: state.cancel([one], trash), one), 0) "
        "for one in timers)\n",
        ("test_a_delivery_thread_sees_a_removal_in_one_step[cancel_timers]",),
    ),
    Fault(
        "G5",
        "once a cancel has returned, no delivery that it covers begins",
        "a cancelled timer is delivered without its event",
        "timer.pending, contents.timers, self.cancelled = False, contents.timers - 1, self.cancelled + 1",
        "contents.timers, self.cancelled = contents.timers - 1, self.cancelled + 1",
        ("test_cancel_timers_cancels_and_counts_one_conversation_only",),
    ),
    Fault(
        "G5",
        "never both, never neither",
        "a timer is cancelled and counted a second time",
        "if self.contents.is_live(timer):",
        "if timer.home is self.contents and (timer.pending or timer in [one[2] for one in self.contents.heap]):",
        ("test_a_handle_cancels_its_own_timer_once",),
    ),
    Fault(
        "G5",
        "a removal covers everything of the conversation",
        "cancel_timers cancels one instance's timers only",
        "        return self.cancel(_find(self.contents.timers_by_cid, cid, instance_id), trash)\n",
        '        instance_id = instance_id or next(iter(self.contents.timers_by_cid.get(cid, {})), "")\n'
        "        return self.cancel(_find(self.contents.timers_by_cid, cid, instance_id), trash)\n",
        ("test_cancel_timers_cancels_and_counts_one_conversation_only",),
    ),
    Fault(
        "G5",
        "unsubscribe is final",
        "a message that another target has had already is delivered after unsubscribe",
        "if subscription.ended:",
        "if subscription.ended and publication.place == 0:",
        ("test_a_handler_can_unsubscribe_a_later_target_of_its_message",),
    ),
    Fault(
        "G6",
        "a delivery that has begun runs to its end",
        "cancel_timers waits for the running delivery of the conversation",
        "        return self._change(lambda state, trash: state.cancel_timers(cid, instance, trash), 0)\n",
        "        count = self._change(lambda state, trash: state.cancel_timers(cid, instance, trash), 0)\n"
        "        while self._state.running_cid == cid and self._state.serving != threading.get_ident():\n"
        "            threading.Event().wait(0.001)\n"
        "        return count\n",
        ("test_a_cancel_ignores_a_delivery_that_has_begun",),
    ),
    Fault(
        "G6",
        "no cancel counts a delivery that has begun",
        "cancel_timers counts the running delivery, too",
        "        return self._change(lambda state, trash: state.cancel_timers(cid, instance, trash), 0)\n",
        "        return self._change(\n"
        "            lambda state, trash: state.cancel_timers(cid, instance, trash) + (state.running_cid == cid), "
        "0\n"
        "        )\n",
        ("test_a_handler_that_ends_its_own_conversation_runs_to_its_end",),
    ),
    Fault(
        "G6",
        "a handler may end its own conversation",
        "cancel_timers raises in a delivery of its conversation",
        '        instance = None if instance_id is None else _name(instance_id, "instance_id")\n',
        '        instance = None if instance_id is None else _name(instance_id, "instance_id")\n'
        "        if self._state.serving == threading.get_ident() and self._state.running_cid == cid:\n"
        '            raise RuntimeError("cancel_timers would cancel the delivery that calls it.")\n',
        ("test_a_handler_that_ends_its_own_conversation_runs_to_its_end",),
    ),
    Fault(
        "G6",
        "a cancel neither waits for a delivery nor disturbs it",
        "unsubscribe waits for the running delivery",
        "        return self._change(lambda state, trash: state.end_subscriptions(cid, instance_id, name, trash), 0)\n",
        "        while self._state.running and self._state.serving != threading.get_ident():\n"
        "            threading.Event().wait(0.001)\n"
        "        return self._change(lambda state, trash: state.end_subscriptions(cid, instance_id, name, trash), "
        "0)\n",
        ("test_unsubscribe_does_not_wait_for_a_running_handler",),
    ),
    Fault(
        "G7",
        "subscribing and removing are whole",
        "unsubscribe looks for the subscriptions in one step and removes them in another",
        "        return self._change(lambda state, trash: state.end_subscriptions(cid, instance_id, name, trash), 0)\n",
        "        found = self._read(lambda state: state.contents.subscriptions_of(cid, instance_id, name))\n"
        "        self._change(lambda state, trash: [state.end_subscription(one, trash) for one in found if not "
        "one.ended], [])\n"
        "        return len(found)\n",
        ("test_racing_operations_are_atomic_at_every_line[unsubscribe-remove_subscriptions_for_cid]",),
    ),
    Fault(
        "G7",
        "a subscribe that races with a removal is whole",
        "subscribe makes its topic outside the lock",
        "        self._change(lambda state, trash: state.add_subscription(*names, spec, trash), None)\n",
        "        made = self._state.contents.topics.get(names[2]) or _Topic(names[2])\n"
        "        self._change(lambda state, trash: state.contents.topics.update({names[2]: made}), None)\n"
        "        self._change(lambda state, trash: state.add_subscription(*names, spec, trash), None)\n",
        ("test_a_close_at_any_line_of_an_adding_operation_is_atomic[subscribe]",),
    ),
    Fault(
        "G7",
        "a schedule that races with close is whole",
        "schedule_event looks whether the registry is closed before it takes the lock",
        "            state.require_open()\n            state.room = 1\n",
        "            state.room = 1\n",
        ("test_a_schedule_racing_with_close_is_counted_or_raises",),
        also=(
            (
                '        timer = _Timer(_name(cid, "cid"), _name(instance_id, "instance_id"), _spec(event))\n',
                '        timer = _Timer(_name(cid, "cid"), _name(instance_id, "instance_id"), _spec(event))\n'
                "        self._state.require_open()\n",
            ),
        ),
    ),
    Fault(
        "G7",
        "a removal that races with a subscribe is whole",
        "remove_subscriptions_for_cid removes one after the other",
        "        return self._change(lambda state, trash: state.end_subscriptions(cid, None, None, trash), 0)\n",
        "        found = self._read(lambda state: state.contents.subscriptions_of(cid, None, None))\n"
        "        return sum(self.unsubscribe(cid=cid, instance_id=one.instance_id, topic=one.topic.name) for one "
        "in found)\n",
        ("test_a_delivery_thread_sees_a_removal_in_one_step[remove_subscriptions_for_cid]",),
    ),
    Fault(
        "G8",
        "exactly one of several callers gets the baton",
        "pending_flow looks first and forgets later",
        "        return self._perform(lambda state, trash: _pop(state.contents.flows, cid), lambda state: None)\n",
        "        flow = self._read(lambda state: state.contents.flows.get(cid))\n"
        "        self.forget_pending_flow(cid)\n"
        "        return flow\n",
        ("test_racing_operations_are_atomic_at_every_line[pending_flow-pending_flow]",),
    ),
    Fault(
        "G8",
        "one-shot",
        "a baton may be taken twice",
        "return self._perform(lambda state, trash: _pop(state.contents.flows, cid), lambda state: None)",
        "return self._perform(lambda state, trash: state.contents.flows.get(cid), lambda state: None)",
        ("test_a_baton_is_taken_once",),
    ),
    Fault(
        "G8",
        "exactly one of several callers gets the baton",
        "pending_flow takes the baton without the lock",
        "        return self._perform(lambda state, trash: _pop(state.contents.flows, cid), lambda state: None)\n",
        "        flows = self._state.contents.flows\n        return flows.pop(cid) if cid in flows else None\n",
        ("test_racing_operations_are_atomic_at_every_line[forget_pending_flow-pending_flow]",),
    ),
    Fault(
        "G8",
        "a baton is taken or forgotten",
        "forget_pending_flow returns True after the baton was taken",
        "        found = cid in self.contents.flows\n"
        "        trash.append(_pop(self.contents.flows, cid))\n"
        "        return found\n",
        "        trash.append(_pop(self.contents.flows, cid))\n        return True\n",
        ("test_forget_pending_flow_returns_whether_there_was_a_baton",),
    ),
    Fault(
        "G9",
        "a timer never begins before its delay has passed",
        "a delay is rounded down to whole nanoseconds",
        "return max(0, math.ceil(nanoseconds))",
        "return max(0, math.floor(nanoseconds))",
        ("test_the_smallest_delay_waits_for_the_next_nanosecond",),
    ),
    Fault(
        "G9",
        "a timer never begins before its delay has passed",
        "a timer begins up to a millisecond early",
        "if timer is not None and timer.due > instant:",
        "if timer is not None and timer.due > instant + 1_000_000:",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
    ),
    Fault(
        "G9",
        "by the registry's clock",
        "a delay is counted from the latest accepted instant instead of the clock",
        "timer.due = self.accept_at(now) + delay_ns",
        "timer.due = (self.latest or self.accept_at(now)) + delay_ns",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
    ),
    Fault(
        "G9",
        "a timer never begins before its delay has passed",
        "the thread sleeps whole milliseconds, then begins the timer",
        "if timer is not None and timer.due > instant:",
        "if timer is not None and timer.due // 1_000_000 > instant // 1_000_000:",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
    ),
    Fault(
        "G9",
        "a timer never begins before its delay has passed",
        "delays are rounded to the nearest millisecond",
        "return max(0, math.ceil(nanoseconds))",
        "return max(0, round(exact) * 1_000_000)",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
    ),
    Fault(
        "G9",
        "even if a wait wakes up too early",
        "the thread takes the end of its sleep for the due instant",
        "        self.sleep_until = _AWAKE\n        job = self.claim(now, trash)\n",
        "        until, self.sleep_until = self.sleep_until, _AWAKE\n"
        "        job = self.claim(now if math.isinf(until) else max(now, int(until)), trash)\n",
        ("test_the_smallest_delay_waits_for_the_next_nanosecond",),
    ),
    Fault(
        "G10",
        "an idle registry uses no CPU",
        "the thread looks every 2 ms while a timer is pending",
        "return min(max(timer.due - now, 0), _LONGEST_NS) / 1e9",
        "return min(max(timer.due - now, 0), 2_000_000) / 1e9",
        ("test_an_idle_registry_does_not_read_its_clock",),
    ),
    Fault(
        "G10",
        "an idle registry uses no CPU",
        "the thread spins until the next timer",
        "return min(max(timer.due - now, 0), _LONGEST_NS) / 1e9",
        "return 0.0",
        ("test_an_idle_registry_does_not_read_its_clock",),
    ),
    Fault(
        "G10",
        "a new earliest timer wakes the scheduler",
        "a timer wakes the thread only when nothing was pending",
        "        self.wake_for(timer.due)\n",
        "        if contents.timers == 0:\n            self.wake_for(timer.due)\n",
        ("test_a_new_earliest_timer_wakes_the_scheduler",),
    ),
    Fault(
        "G10",
        "a new earliest timer wakes the scheduler",
        "an earlier timer does not wake the thread that sleeps until another one",
        "self.sleep_until = timer.due",
        "self.sleep_until = now",
        ("test_a_new_earliest_timer_wakes_the_scheduler",),
    ),
    Fault(
        "G10",
        "from any thread",
        "a ring of the bell just before the thread sleeps is lost",
        "            del registry\n        bell.acquire(timeout=seconds)\n",
        "            del registry\n        bell.acquire(blocking=False)\n        bell.acquire(timeout=seconds)\n",
        ("test_an_operation_at_any_line_of_the_delivery_thread_takes_effect",),
    ),
    Fault(
        "G10",
        "who waits in join wakes when the timers are gone",
        "only a delivery wakes those who wait in join or settle",
        "        state.ring_waiters()\n",
        "        if state.delivered + state.failed > 0 and state.serving == threading.get_ident():\n"
        "            state.ring_waiters()\n",
        ("test_a_waiter_in_join_wakes_when_the_timers_are_removed[cancel_timers]",),
    ),
    Fault(
        "G11",
        "infinity raises ValueError",
        "an infinite delay raises OverflowError",
        "if not math.isfinite(delay_ms):",
        "if math.isnan(delay_ms):",
        ("test_a_delay_that_is_not_finite_is_a_value_error",),
    ),
    Fault(
        "G11",
        "NaN raises ValueError",
        "a delay of NaN means 0",
        "    if not math.isfinite(delay_ms):\n",
        "    if math.isnan(delay_ms):\n        return 0\n    if math.isinf(delay_ms):\n",
        ("test_a_delay_that_is_not_finite_is_a_value_error",),
    ),
    Fault(
        "G11",
        "bool raises TypeError",
        "a bool is taken for a number of milliseconds",
        "if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):",
        "if not isinstance(delay_ms, (int, float)):",
        ("test_a_delay_of_another_type_is_a_type_error",),
    ),
    Fault(
        "G11",
        "str raises TypeError",
        "a delay is converted by float()",
        "    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):\n",
        "    if isinstance(delay_ms, str):\n"
        "        delay_ms = float(delay_ms)\n"
        "    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):\n",
        ("test_a_delay_of_another_type_is_a_type_error",),
    ),
    Fault(
        "G11",
        "every finite delay is waited for",
        "an enormous delay overflows the wait and kills the thread",
        "return min(max(timer.due - now, 0), _LONGEST_NS) / 1e9",
        "return max(timer.due - now, 0) / 1e9",
        ("test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",),
    ),
    Fault(
        "G11",
        "every finite delay is waited for",
        "an int beyond a float is refused",
        "return max(0, int.__index__(delay_ms) * 1_000_000)",
        "delay_ms = float(delay_ms)",
        ("test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",),
        error="OverflowError",
    ),
    Fault(
        "G11",
        "fractions count",
        "a fraction of a millisecond is cut off",
        "exact = float.__float__(delay_ms)",
        "exact = float(int(delay_ms))",
        ("test_fractions_of_a_millisecond_count",),
    ),
    Fault(
        "G11",
        "fractions count",
        "a delay is rounded up to whole milliseconds",
        "return max(0, math.ceil(nanoseconds))",
        "return max(0, math.ceil(exact) * 1_000_000)",
        ("test_fractions_of_a_millisecond_count",),
    ),
    Fault(
        "G11",
        "every finite delay is waited for",
        "the largest floats raise OverflowError",
        "    if math.isinf(nanoseconds):  # the product is beyond a float; an int holds it\n"
        "        return max(0, int(exact) * 1_000_000)\n",
        "",
        ("test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",),
        error="OverflowError",
    ),
    Fault(
        "G11",
        "every finite delay is waited for",
        "inspect raises OverflowError while an enormous delay is pending",
        "    try:\n"
        "        return max(0, nanoseconds) / 1_000_000\n"
        "    except OverflowError:\n"
        "        return math.inf\n",
        "    return max(0, nanoseconds) / 1_000_000\n",
        ("test_enormous_delays_are_kept_and_disturb_no_other_timer",),
        error="OverflowError",
    ),
    Fault(
        "G12",
        "replacing attributes of the time module has no effect",
        "the clock is looked up in the time module at each reading",
        "        self._clock = monotonic_ns if clock is None else clock\n",
        "        import time\n\n        self._clock = (lambda: time.monotonic_ns()) if clock is None else clock\n",
        ("test_replacing_functions_of_the_time_module_changes_nothing",),
    ),
    Fault(
        "G12",
        "clock= may be passed in",
        "the option clock= is ignored",
        "self._clock = monotonic_ns if clock is None else clock",
        "self._clock = monotonic_ns",
        ("test_a_custom_clock_is_never_read_under_a_lock",),
    ),
    Fault(
        "G12",
        "a change of the wall clock has no effect",
        "the default clock is the wall clock",
        "        self._clock = monotonic_ns if clock is None else clock\n",
        "        import time\n\n        self._clock = (lambda: time.time_ns()) if clock is None else clock\n",
        ("test_replacing_functions_of_the_time_module_changes_nothing",),
    ),
    Fault(
        "G12",
        "clock= may be passed in",
        "the delivery thread reads another clock than the callers",
        "    def _next_job(self, bell: threading.Lock, succeeded: bool | None) -> _Job | float | None:\n"
        "        now = self._clock()\n",
        "    def _next_job(self, bell: threading.Lock, succeeded: bool | None) -> _Job | float | None:\n"
        "        now = monotonic_ns()\n",
        ("test_a_custom_clock_may_be_passed_in",),
    ),
    Fault(
        "G12",
        "clock= may be passed in",
        "inspect reads another clock than the timers",
        '        name = None if cid is None else _name(cid, "cid")\n        now = self._clock()\n',
        '        name = None if cid is None else _name(cid, "cid")\n        now = monotonic_ns()\n',
        ("test_a_custom_clock_may_be_passed_in",),
    ),
    Fault(
        "G12",
        "replacing attributes of the time module has no effect",
        "a timeout is measured by the time module",
        "        started = monotonic_ns()\n",
        "        import time\n\n        started = time.monotonic_ns()\n",
        ("test_replacing_functions_of_the_time_module_changes_nothing",),
    ),
    Fault(
        "G13",
        "removing frees the containers",
        "the heap is never compacted",
        "        if len(self.heap) > 2 * self.timers:\n",
        "        if self.timers == 0 and self.heap:\n            self.heap.clear()\n        if False:\n",
        ("test_conversations_that_never_connected_leave_nothing",),
    ),
    Fault(
        "G13",
        "an index that becomes empty releases its memory",
        "an emptied dict keeps its table",
        "    if not table:\n        table.clear()  # gives back the memory of the keys that it had\n",
        "",
        ("test_an_emptied_index_frees_its_memory[ended]",),
    ),
    Fault(
        "G13",
        "removing frees the containers",
        "a topic without subscribers stays",
        "        if topic.live == 0:\n"
        "            _pop(self.topics, topic.name)\n"
        "        elif len(topic.order) > 2 * topic.live:\n",
        "        if len(topic.order) > 2 * topic.live:\n",
        ("test_conversations_that_used_everything_leave_nothing",),
    ),
    Fault(
        "G13",
        "removing frees the containers",
        "ended subscriptions stay in their topic",
        "        elif len(topic.order) > 2 * topic.live:\n            topic.compact()\n",
        "",
        ("test_conversations_that_never_connected_leave_nothing",),
    ),
    Fault(
        "G13",
        "removing frees the keys",
        "a conversation whose timers are gone keeps its key",
        "    if not tree[cid]:\n        _pop(tree, cid)\n",
        "",
        ("test_a_self_rearming_timer_is_one_timer_at_every_step",),
    ),
    Fault(
        "G13",
        "an idle registry keeps no last message alive",
        "the delivery thread keeps the last event while it sleeps",
        "del job  # before its fate is counted, so that an idle registry keeps no message alive",
        "self._last = job",
        ("test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
    ),
    Fault(
        "G13",
        "memory is proportional to what is pending",
        "what the latest handler returned is kept",
        "            result = call(cid, event)\n",
        "            result = call(cid, event)\n            self._result = result\n",
        ("test_what_a_handler_returns_is_not_kept_alive",),
    ),
    Fault(
        "G13",
        "memory is proportional to what is pending",
        "every dispatch that was installed is kept",
        "trash.append(self.dispatch)",
        "self.installed.append(self.dispatch)",
        ("test_a_replaced_dispatch_is_not_kept_alive",),
        also=(
            (
                "        self.dispatch = dispatch\n        self.max_pending = max_pending\n",
                "        self.dispatch = dispatch\n"
                "        self.installed: list[object] = []\n"
                "        self.max_pending = max_pending\n",
            ),
        ),
    ),
    Fault(
        "G13",
        "nothing grows with the conversations that ever existed",
        "a module keeps one lock for each conversation",
        '        timer = _Timer(_name(cid, "cid"), _name(instance_id, "instance_id"), _spec(event))\n',
        '        timer = _Timer(_name(cid, "cid"), _name(instance_id, "instance_id"), _spec(event))\n'
        "        _locks.setdefault(timer.cid, threading.Lock())\n",
        ("test_an_emptied_index_frees_its_memory[ended]",),
        also=(
            (
                "_AWAKE = -math.inf  # the thread looks again anyway\n",
                "_locks: dict[str, threading.Lock] = {}\n_AWAKE = -math.inf  # the thread looks again anyway\n",
            ),
        ),
    ),
    Fault(
        "G13",
        "a registry dropped with nothing pending is collected",
        "the sleeping thread has a reference to its registry",
        "        if seconds == _FOREVER:\n            del registry\n",
        "",
        ("test_an_unreferenced_registry_with_nothing_pending_is_collected",),
    ),
    Fault(
        "G13",
        "a registry dropped with nothing pending is collected",
        "a thread that sleeps until a cancelled timer keeps its registry",
        "if self.contents.timers == 0 and self.sleep_until < math.inf:",
        "if False:",
        ("test_a_sleeping_registry_is_collected_once_its_timers_are_gone[cancelled]",),
    ),
    Fault(
        "G13",
        "memory is proportional to what is pending",
        "the latest exception is kept",
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)\n',
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, '
        "cid)\n"
        "        self._last_error = exc\n",
        ("test_an_idle_registry_keeps_no_delivered_payload_alive",),
    ),
    Fault(
        "G13",
        "removing frees the contexts",
        "the delivery thread keeps the context of who started it",
        '        thread = threading.Thread(target=_serve, args=(registry, bell), name="stube-plain", daemon=True)\n',
        "        context = copy_context()\n"
        '        thread = threading.Thread(target=context.run, args=(_serve, registry, bell), name="stube-plain", '
        "daemon=True)\n",
        ("test_the_context_of_a_caller_is_not_kept_alive",),
        also=(
            (
                "from contextlib import suppress\n",
                "from contextvars import copy_context\nfrom contextlib import suppress\n",
            ),
        ),
    ),
    Fault(
        "G13",
        "removing frees the keys",
        "a taken baton leaves its key",
        "        return self._perform(lambda state, trash: _pop(state.contents.flows, cid), lambda state: None)\n",
        "        def take(state: _State, trash: _Trash) -> Any | None:\n"
        "            flow, state.contents.flows[cid] = state.contents.flows.get(cid), None\n"
        "            return flow\n"
        "\n"
        "        return self._perform(take, lambda state: None)\n",
        ("test_conversations_that_took_their_batons_leave_nothing",),
    ),
    Fault(
        "G13",
        "a handle that outlives its timer keeps no payload alive",
        "a handle keeps its event",
        "        self._timer = weakref.ref(timer)\n",
        "        self._timer = weakref.ref(timer)\n        self._event = timer.spec\n",
        ("test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
        also=(
            (
                '__slots__ = ("_registry", "_timer")',
                '__slots__ = ("_event", "_registry", "_timer")',
            ),
        ),
    ),
    Fault(
        "G13",
        "removing frees the payload",
        "a reset keeps the old contents until the next one",
        "        trash.append(old)\n",
        "        trash.append(old)\n        self.old = old\n",
        ("test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
    ),
    Fault(
        "G13",
        "removing frees the payload",
        "a replaced baton stays until it is taken",
        "        trash.append(self.contents.flows.get(cid))\n",
        "        trash.append(self.contents.flows.get(cid))\n        self.replaced = trash\n",
        ("test_a_replaced_baton_is_not_kept_alive",),
    ),
    Fault(
        "G13",
        "a cancelled timer leaves every container",
        "a delivery leaves the cancelled timers in the heap",
        "        contents.next_timer()  # removes this one from the heap\n        contents.compact_heap()\n",
        "        contents.next_timer()  # removes this one from the heap\n",
        ("test_cancelled_timers_do_not_outlive_the_live_ones",),
    ),
    Fault(
        "G14",
        "cancelling costs what it touches",
        "a cancel removes the timer from the heap by searching it",
        "        trash.append(timer.spec)\n",
        "        trash.append(timer.spec)\n"
        "        self.contents.heap.remove((timer.due, timer.number, timer))\n"
        "        heapify(self.contents.heap)\n",
        ("test_cancelling_one_timer_costs_the_same_in_a_large_conversation[handle]",),
    ),
    Fault(
        "G14",
        "unsubscribing costs what it touches",
        "unsubscribe looks through all subscriptions of the conversation",
        "        subscriptions = self.contents.subscriptions_of(cid, instance_id, topic)\n",
        "        found = _find(self.contents.subscriptions_by_cid, cid)\n"
        "        found = [one for one in found if instance_id in (None, one.instance_id)]\n"
        "        subscriptions = [one for one in found if topic in (None, one.topic.name)]\n",
        ("test_unsubscribe_costs_the_same_for_an_instance_with_many_topics",),
    ),
    Fault(
        "G14",
        "unsubscribing costs what it touches",
        "a topic is compacted at every removal",
        "elif len(topic.order) > 2 * topic.live:",
        "elif len(topic.order) > topic.live:",
        ("test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic",),
    ),
    Fault(
        "G14",
        "a publication costs its caller the same for any number of subscribers",
        "publish copies the list of subscribers",
        "publication.order = topic.order",
        "publication.order = list(topic.order)",
        ("test_publish_costs_its_caller_the_same_for_many_subscribers",),
    ),
    Fault(
        "G14",
        "a publication costs its caller the same for any number of subscribers",
        "publish counts the live subscribers",
        "state.room = found.live",
        "state.room = sum(one.is_live() for one in found.order)",
        ("test_publish_costs_its_caller_the_same_for_many_subscribers",),
    ),
    Fault(
        "G14",
        "cancelling costs what it touches",
        "the heap is compacted at every cancel",
        "if len(self.heap) > 2 * self.timers:",
        "if len(self.heap) > self.timers:",
        ("test_cancelling_one_timer_costs_the_same_in_a_large_conversation[handle]",),
    ),
    Fault(
        "G14",
        "ending a conversation costs what it touches",
        "a removal looks through all conversations",
        "instances = tree.get(cid, {})",
        "instances = next((each for one, each in tree.items() if one == cid), {})",
        ("test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic",),
    ),
    Fault(
        "G14",
        "cancelling costs what it touches",
        "cancelling an instance looks through all timers of the conversation",
        "    groups = instances.values() if instance_id is None else [instances.get(instance_id, {})]\n"
        "    return [value for group in groups for value in group.values()]\n",
        "    found = [(one, value) for one, group in instances.items() for value in group.values()]\n"
        "    return [value for one, value in found if instance_id in (None, one)]\n",
        ("test_cancelling_one_timer_costs_the_same_in_a_large_conversation[instance]",),
    ),
    Fault(
        "G14",
        "cancelling costs what it touches",
        "handle.cancel looks through the timers of the conversation",
        "if self.contents.is_live(timer):",
        "if timer in _find(self.contents.timers_by_cid, timer.cid) and self.contents.is_live(timer):",
        ("test_cancelling_one_timer_costs_the_same_in_a_large_conversation[handle]",),
    ),
    Fault(
        "G15",
        "an operation that raises has changed nothing",
        "the bound is checked after the timer was added",
        "            state.room = 1\n"
        "            state.require_room(1)\n"
        "            self._require_thread(state)\n"
        "            state.add_timer(timer, delay_ns, now)\n",
        "            self._require_thread(state)\n"
        "            state.add_timer(timer, delay_ns, now)\n"
        "            state.require_room(0)\n",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "put_pending_flow accepts None",
        "        if flow_id is None:\n"
        '            raise TypeError("flow_id must not be None. Give any other object.")\n',
        "",
        ("test_put_pending_flow_refuses_none",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "an empty name is accepted",
        '    if not plain:\n        raise ValueError(f"{what} must not be empty. Give a non-empty str.")\n',
        "",
        ("test_cancel_timers_refuses_an_invalid_name",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "publish does not check the topic",
        '        name = _name(topic, "topic")\n        publication = _Publication(msg)\n',
        "        name = topic\n        publication = _Publication(msg)\n",
        ("test_publish_refuses_an_invalid_topic",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "unsubscribe does not check the topic",
        'name = None if topic is None else _name(topic, "topic")',
        "name = topic",
        ("test_unsubscribe_refuses_an_invalid_name",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "the name of an event in a tuple is not checked",
        'return (_name(event[0], "the event\'s name"), *event[1:])',
        "return tuple(event)",
        ("test_schedule_event_refuses_an_invalid_event",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "an empty tuple is refused by an IndexError",
        '    if not event:\n        raise ValueError("event must not be empty. Give a name, or (name, *payload).")\n',
        "",
        ("test_schedule_event_refuses_an_invalid_event",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "a set is accepted as an event",
        "    if not isinstance(event, (tuple, list)):\n",
        "    if isinstance(event, (set, frozenset)):\n"
        "        event = tuple(event)\n"
        "    if not isinstance(event, (tuple, list)):\n",
        ("test_schedule_event_refuses_an_invalid_event",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "install_dispatch accepts what cannot be called",
        "        if not callable(dispatch):\n"
        '            raise TypeError(f"dispatch must be callable, not {type(dispatch).__name__}. Give a function '
        '(cid, event).")\n',
        "",
        ("test_a_dispatch_that_is_not_callable_is_refused",),
    ),
    Fault(
        "G15",
        "wrong arguments raise",
        "cancel_timers does not check the instance",
        'instance = None if instance_id is None else _name(instance_id, "instance_id")',
        "instance = instance_id",
        ("test_cancel_timers_refuses_an_invalid_name",),
    ),
    Fault(
        "G15",
        "the state is consistent after an interrupt",
        "nothing is repaired after an operation that Ctrl-C interrupted",
        "        if not state.whole:\n            state.recover(trash)\n",
        "",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[unsubscribe-c1]",),
        quick=False,
    ),
    Fault(
        "G15",
        "the state is consistent after an interrupt",
        "a cancel counts in one line and marks the timer in another",
        "        timer.pending, contents.timers, self.cancelled = False, contents.timers - 1, self.cancelled + 1\n",
        "        timer.pending = False\n        contents.timers -= 1\n        self.cancelled += 1\n",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[cancel_timers-c1]",),
        quick=False,
    ),
    Fault(
        "G15",
        "the state is consistent after an interrupt",
        "schedule_event counts in one line and marks in another",
        "        timer.home, contents.timers, self.accepted, self.room = contents, contents.timers + 1, "
        "self.accepted + 1, 0\n",
        "        timer.home, self.room = contents, 0\n        contents.timers += 1\n        self.accepted += 1\n",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[schedule_event-c1]",),
        quick=False,
    ),
    Fault(
        "G15",
        "the state is consistent after an interrupt",
        "a reset counts in one line and forgets in another",
        "        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone\n",
        "        self.dropped += gone\n        self.contents, self.closed = new, closed\n",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[reset_state-c1]",),
        quick=False,
    ),
    Fault(
        "G15",
        "the state is consistent after an interrupt",
        "the lock stays held when Ctrl-C interrupts an operation",
        "        with state.lock:\n",
        "        state.lock.acquire()\n        with suppress(ImportError):\n",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[install_dispatch-c1]",),
        also=(
            (
                "                self._run_postponed(state, trash)\n",
                "                self._run_postponed(state, trash)\n                state.lock.release()\n",
            ),
        ),
        quick=False,
    ),
    Fault(
        "G16",
        "a publication targets the subscribers of one instant",
        "who subscribes after publish gets the message",
        "if not 0 < self.began < publication.number:",
        "if not 0 < self.began:",
        ("test_a_handler_can_unsubscribe_a_later_target_of_its_message",),
        also=(
            (
                "if place > publication.length:",
                "if place > len(publication.order):",
            ),
            (
                "if place == publication.length:",
                "if place == len(publication.order):",
            ),
        ),
    ),
    Fault(
        "G16",
        "subscriptions() returns copies",
        "subscriptions returns the same dict until something changes",
        "        return self._read(lambda state: state.contents.snapshot())\n",
        "        key = id(self._state.contents), self._state.last_number\n"
        '        if getattr(self, "_shown", (None, {}))[0] != key:\n'
        "            self._shown = key, self._read(lambda state: state.contents.snapshot())\n"
        "        return self._shown[1]\n",
        ("test_subscriptions_returns_a_copy",),
    ),
    Fault(
        "G16",
        "subscriptions() never raises because of a concurrent change",
        "subscriptions reads without the lock",
        "return self._read(lambda state: state.contents.snapshot())",
        "return self._state.contents.snapshot()",
        ("test_racing_operations_are_atomic_at_every_line[subscriptions-remove_subscriptions_for_cid]",),
        error="RuntimeError",
    ),
    Fault(
        "G16",
        "a publication targets the subscribers of one instant",
        "a message forgets its last target when another subscriber left",
        "publication.length = len(topic.order)",
        "publication.length = topic.live",
        ("test_a_handler_may_change_its_topic_in_the_middle_of_a_message",),
    ),
    Fault(
        "G17",
        "a payload is only passed on",
        "the payload of a timer is copied",
        "return spec[1]",
        "return copy(spec[1])",
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
        also=(
            (
                "from contextlib import suppress\n",
                "from copy import copy\nfrom contextlib import suppress\n",
            ),
        ),
    ),
    Fault(
        "G17",
        "never tested for truth",
        "a message that is false is delivered as no payload",
        "publication = _Publication(msg)",
        "publication = _Publication(msg or NO_PAYLOAD)",
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
    ),
    Fault(
        "G17",
        "never tested for truth",
        "put_pending_flow refuses a flow that is false",
        "if flow_id is None:",
        "if not flow_id:",
        ("test_a_baton_is_passed_by_reference_and_never_touched",),
    ),
    Fault(
        "G17",
        "never compared",
        "a baton that equals the present one is not stored",
        "        trash.append(self.contents.flows.get(cid))\n",
        "        trash.append(self.contents.flows.get(cid))\n"
        "        if self.contents.flows.get(cid) == flow_id:\n"
        "            return\n",
        ("test_a_baton_is_passed_by_reference_and_never_touched",),
    ),
    Fault(
        "G17",
        "never hashed",
        "a cache of event names hashes the event",
        "def _event_name(spec: _Spec) -> str:\n",
        "@lru_cache(maxsize=1)\ndef _event_name(spec: _Spec) -> str:\n",
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
        also=(
            (
                "from functools import partial\n",
                "from functools import lru_cache, partial\n",
            ),
        ),
    ),
    Fault(
        "G17",
        "a payload is only passed on",
        "a failure logs the event with its payload",
        '_quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)',
        '_quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event, cid)',
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
    ),
    Fault(
        "G18",
        "a handler that resets runs to its end",
        "reset_state forgets the delivery that is running",
        "        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone\n",
        "        self.contents, self.closed, self.dropped = new, closed, self.dropped + gone\n"
        "        self.running, self.running_cid = 0, None\n",
        ("test_a_reset_during_a_fan_out_drops_the_remaining_targets",),
    ),
    Fault(
        "G18",
        "nothing accepted before a reset begins after it",
        "a reset forgets the timers but not the messages",
        "        gone = old.timers + old.queued\n",
        "        gone = old.timers\n        new.queue, new.queued = old.queue, old.queued\n",
        ("test_nothing_accepted_before_a_reset_begins_after_it",),
    ),
    Fault(
        "G18",
        "the installed dispatch stays",
        "a reset forgets the dispatch",
        "        trash.append(old)\n",
        "        trash.append(old)\n        self.dispatch = _ignore\n",
        ("test_what_is_forgotten_while_its_delivery_runs_gets_no_second_one_beside_it[reset_state]",),
    ),
    Fault(
        "G18",
        "a handle does not reach beyond a reset",
        "the handle of a forgotten timer returns True",
        "        return registry._change(lambda state, trash: state.cancel([timer], trash) == 1, False)\n",
        "        done = registry._change(lambda state, trash: state.cancel([timer], trash) == 1, False)\n"
        "        return done or timer.home is not registry._state.contents\n",
        ("test_nothing_accepted_before_a_reset_begins_after_it",),
    ),
    Fault(
        "G18",
        "every baton is forgotten",
        "a reset keeps the batons",
        "        old, new = self.contents, _Contents()\n",
        "        old, new = self.contents, _Contents()\n        new.flows = old.flows\n",
        ("test_reset_state_forgets_everything_but_the_dispatch",),
    ),
    Fault(
        "G18",
        "every subscription is forgotten",
        "a reset keeps the subscriptions",
        "        old, new = self.contents, _Contents()\n",
        "        old, new = self.contents, _Contents()\n"
        "        new.topics, new.subscriptions_by_cid = old.topics, old.subscriptions_by_cid\n"
        "        new.subscriptions = old.subscriptions\n",
        ("test_reset_state_forgets_everything_but_the_dispatch",),
    ),
    Fault(
        "G18",
        "nothing accepted before a reset begins after it",
        "a reset keeps the message that is being delivered",
        "        gone = old.timers + old.queued\n",
        "        new.queue = deque([one for one in old.queue if one.place])\n"
        "        new.queued = sum(len(one.targets_left()) for one in new.queue)\n"
        "        gone = old.timers + old.queued - new.queued\n",
        ("test_a_reset_during_a_fan_out_drops_the_remaining_targets",),
    ),
    Fault(
        "G18",
        "counters survive a reset",
        "a reset sets the counts to zero",
        "        trash.append(old)\n",
        "        trash.append(old)\n"
        "        self.accepted = self.delivered = self.failed = self.cancelled = self.dropped = 0\n",
        ("test_reset_state_forgets_everything_but_the_dispatch",),
    ),
    Fault(
        "G18",
        "nothing accepted before a reset begins after it",
        "a reset leaves the timers that are due",
        "        gone = old.timers + old.queued\n",
        "        kept = old.heap[0][2] if old.heap and old.is_live(old.heap[0][2]) and old.heap[0][0] <= "
        "self.latest else None\n"
        "        if kept is not None:\n"
        "            kept.home, new.heap, new.timers, new.timers_by_cid = new, old.heap[:1], 1, old.timers_by_cid\n"
        "        gone = old.timers + old.queued - new.timers\n",
        ("test_nothing_accepted_before_a_reset_begins_after_it",),
    ),
    Fault(
        "G19",
        "a delivery that raises any exception stops no other",
        "a handler that raises SystemExit ends the delivery thread",
        "except BaseException as exc:  # noqa: BLE001 - whatever it is, it must not stop other deliveries",
        "except Exception as exc:  # noqa: BLE001 - whatever it is, it must not stop other deliveries",
        ("test_a_delivery_that_raises_stops_no_other[Unusual-message]",),
    ),
    Fault(
        "G19",
        "an on_error that raises stops nothing",
        "an on_error that raises ends the delivery thread",
        "            failure = _quietly(self._on_error, cid, event, exc)\n",
        "            failure = self._on_error(cid, event, exc)\n            failure = None\n",
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
    ),
    Fault(
        "G19",
        "an on_error that raises stops nothing",
        "an on_error that raises SystemExit ends the delivery thread",
        "    except BaseException as exc:  # noqa: BLE001\n        return exc\n",
        "    except Exception as exc:  # noqa: BLE001\n        return exc\n",
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
    ),
    Fault(
        "G19",
        "logged once",
        "a failure is logged twice",
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)\n',
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, '
        "cid)\n"
        '        _quietly(_logger.warning, "The delivery of %r to %r failed.", event.name, cid)\n',
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
    ),
    Fault(
        "G19",
        "logged once",
        "a failure is not logged where on_error is set",
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)\n',
        "        if self._on_error is None:\n"
        '            _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", '
        "event.name, cid)\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "logged with its traceback",
        "a failure is logged without its traceback",
        '_quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)',
        '_quietly(_logger.error, "The delivery of %r to %r failed: %r", event.name, cid, exc)',
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "logged on the logger stube",
        "a failure is logged on the module's own logger",
        '_logger = getLogger("stube")\n',
        "_logger = getLogger(__name__)\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "logged once",
        "a failure is not logged",
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)\n',
        "",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "passed to on_error",
        "on_error is called twice",
        "            failure = _quietly(self._on_error, cid, event, exc)\n",
        "            failure = _quietly(self._on_error, cid, event, exc)\n"
        "            failure = _quietly(self._on_error, cid, event, exc)\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "passed to on_error",
        "on_error is not called",
        "if self._on_error is not None:",
        "if False:",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "passed to on_error",
        "on_error gets the event before the conversation",
        "failure = _quietly(self._on_error, cid, event, exc)",
        "failure = _quietly(self._on_error, event, cid, exc)",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "a returned coroutine is closed",
        "a returned coroutine is not closed",
        "                result.close()\n",
        "",
        ("test_a_returned_coroutine_is_awaited_or_closed_as_failed",),
    ),
    Fault(
        "G19",
        "a returned coroutine counts as failed",
        "a returned coroutine counts as delivered",
        "                raise TypeError(\"dispatch returned a coroutine. Use the backend 'asyncio', which awaits "
        'it.")\n',
        "",
        ("test_a_returned_coroutine_is_awaited_or_closed_as_failed",),
    ),
    Fault(
        "G19",
        "the error names the backend that can await",
        "the error of a returned coroutine does not name asyncio",
        "raise TypeError(\"dispatch returned a coroutine. Use the backend 'asyncio', which awaits it.\")",
        'raise TypeError("dispatch returned a coroutine.")',
        ("test_a_returned_coroutine_is_awaited_or_closed_as_failed",),
    ),
    Fault(
        "G19",
        "ConversationEnded is not a failure",
        "ConversationEnded in a handler counts as failed",
        "        except ConversationEnded:\n"
        '            _quietly(_logger.debug, "The conversation %r ended inside its delivery of %r.", cid, '
        "event.name)\n",
        "",
        ("test_conversation_ended_raised_by_a_handler_is_no_failure",),
    ),
    Fault(
        "G19",
        "ConversationEnded is logged at DEBUG",
        "ConversationEnded in a handler is logged as an error",
        '_quietly(_logger.debug, "The conversation %r ended inside its delivery of %r.", cid, event.name)',
        '_quietly(_logger.error, "The conversation %r ended inside its delivery of %r.", cid, event.name)',
        ("test_conversation_ended_raised_by_a_handler_is_no_failure",),
    ),
    Fault(
        "G19",
        "a log handler that raises stops nothing",
        "a log handler that raises ends the thread after ConversationEnded",
        '_quietly(_logger.debug, "The conversation %r ended inside its delivery of %r.", cid, event.name)',
        '_logger.debug("The conversation %r ended inside its delivery of %r.", cid, event.name)',
        ("test_conversation_ended_is_no_failure_when_logging_fails",),
    ),
    Fault(
        "G19",
        "a log handler that raises stops nothing",
        "a log handler that raises ends the delivery thread",
        '_quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)',
        '_logger.error("The delivery of %r to %r failed.", event.name, cid, exc_info=exc)',
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
    ),
    Fault(
        "G19",
        "the failure is counted",
        "a failed delivery counts as delivered",
        "            self._report(cid, event, exc)\n            return False\n",
        "            self._report(cid, event, exc)\n            return True\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "an async def as dispatch is a TypeError immediately",
        "install_dispatch accepts an async def",
        "        if is_coroutine_function(dispatch):\n"
        "            raise TypeError(\"dispatch must not be an async def here. Use the backend 'asyncio', which "
        'awaits it.")\n',
        "",
        ("test_an_async_dispatch_is_awaited_or_refused_at_the_call[function]",),
    ),
    Fault(
        "G19",
        "a delivery that raises any exception stops no other",
        "a handler that raises drops the rest of its message",
        "            if succeeded is not None:\n                state.finish(succeeded)\n",
        "            if succeeded is not None:\n"
        "                state.finish(succeeded)\n"
        "            if succeeded is False and state.contents.queue and state.contents.queue[0].place:\n"
        "                state.contents.queued -= len(state.contents.queue.popleft().targets_left())\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
    ),
    Fault(
        "G19",
        "a delivery that raises any exception stops no other",
        "KeyboardInterrupt in a handler ends the delivery thread",
        "        except BaseException as exc:  # noqa: BLE001 - whatever it is, it must not stop other deliveries\n",
        "        except KeyboardInterrupt:\n"
        "            raise\n"
        "        except BaseException as exc:  # noqa: BLE001 - whatever it is, it must not stop other deliveries\n",
        ("test_a_delivery_that_raises_stops_no_other[KeyboardInterrupt-message]",),
    ),
    Fault(
        "G20",
        "no deadlock",
        "the lock is not re-entrant",
        "self.lock = threading.RLock()",
        "self.lock = threading.Lock()",
        ("test_reentrant_schedule_on_a_full_registry_is_accounted_for[put_pending_flow]",),
    ),
    Fault(
        "G20",
        "no destructor runs under a lock",
        "what a change removes is freed under the lock",
        "        state.whole = True\n        state.ring_waiters()\n        return result\n",
        "        state.whole = True\n        state.ring_waiters()\n        trash.clear()\n        return result\n",
        ("test_no_destructor_runs_under_a_lock[replace_a_baton]",),
    ),
    Fault(
        "G20",
        "the clock is not read under a lock",
        "schedule_event reads the clock under the lock",
        "            state.require_open()\n            state.room = 1\n",
        "            state.require_open()\n            state.room = 1\n            now = self._clock()\n",
        ("test_a_custom_clock_is_never_read_under_a_lock",),
    ),
    Fault(
        "G20",
        "no damage",
        "a re-entrant call changes the state in the middle of another change",
        "return if_nested(state)",
        "return self._run(state, change, trash)",
        ("test_a_reentrant_schedule_takes_no_room_of_the_interrupted_one",),
    ),
    Fault(
        "G20",
        "a re-entrant call takes effect",
        "a re-entrant call is lost",
        "state.postponed.append((change, room))",
        "state.postponed.extend([(change, room)] if room else [])",
        ("test_reentrant_calls_in_the_first_operation_keep_their_order",),
    ),
    Fault(
        "G20",
        "a call may interrupt at any line",
        "an operation that is interrupted twice raises IndexError",
        "                if state.postponed:  # else a call that interrupted the line above has run them\n"
        "                    self._run_first_postponed(state, trash)\n",
        "                self._run_first_postponed(state, trash)\n",
        ("test_an_operation_may_be_interrupted_twice[remove_subscriptions_for_cid]",),
        error="IndexError",
    ),
    Fault(
        "G20",
        "no user code runs under a lock",
        "dispatch runs under the lock",
        "            result = call(cid, event)\n",
        "            with self._state.lock:\n                result = call(cid, event)\n",
        ("test_dispatch_on_error_and_logging_never_run_under_a_lock",),
    ),
    Fault(
        "G20",
        "no user code runs under a lock",
        "on_error runs under the lock",
        "            failure = _quietly(self._on_error, cid, event, exc)\n",
        "            with self._state.lock:\n                failure = _quietly(self._on_error, cid, event, exc)\n",
        ("test_dispatch_on_error_and_logging_never_run_under_a_lock",),
    ),
    Fault(
        "G20",
        "no logging runs under a lock",
        "a failure is logged under the lock",
        '        _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", event.name, cid)\n',
        "        with self._state.lock:\n"
        '            _quietly(partial(_logger.error, exc_info=exc), "The delivery of %r to %r failed.", '
        "event.name, cid)\n",
        ("test_dispatch_on_error_and_logging_never_run_under_a_lock",),
    ),
    Fault(
        "G20",
        "inspect, stats and subscriptions read the current state",
        "a re-entrant stats returns None",
        "return self._perform(lambda state, trash: look(state), look)",
        "return self._perform(lambda state, trash: look(state), lambda state: None)",
        ("test_any_operation_may_interrupt_any_other_at_any_line[put_pending_flow]",),
    ),
    Fault(
        "G20",
        "every operation may be called from inside a delivery",
        "schedule_event in a handler raises",
        "        delay_ns = _delay_ns(delay_ms)\n",
        "        delay_ns = _delay_ns(delay_ms)\n"
        "        if self._state.serving == threading.get_ident() and self._state.running_cid == timer.cid:\n"
        '            raise RuntimeError("A handler cannot schedule for its own conversation.")\n',
        ("test_on_error_and_log_handlers_may_call_the_registry",),
    ),
    Fault(
        "G20",
        "a re-entrant call takes effect",
        "a re-entrant schedule_event returns a handle that cancels nothing",
        "if timer.home is None and not state.closed:  # it has room, which was kept for it",
        "if timer.home is None and not state.closed and not state.contents.timers:",
        ("test_two_interrupted_threads_do_not_deadlock",),
    ),
    Fault(
        "G20",
        "no destructor runs under a lock",
        "a replaced event is freed under the lock",
        "            trash.append(present.spec)\n            present.spec = spec  # commit\n",
        "            present.spec = spec  # commit\n",
        ("test_no_destructor_runs_under_a_lock[replace_a_spec]",),
    ),
    Fault(
        "G20",
        "no destructor runs under a lock",
        "a replaced baton is freed under the lock",
        "        trash.append(self.contents.flows.get(cid))\n",
        "",
        ("test_no_destructor_runs_under_a_lock[replace_a_baton]",),
    ),
    Fault(
        "G20",
        "no destructor runs under a lock",
        "the event of a cancelled timer is freed under the lock",
        "        trash.append(timer.spec)\n",
        "",
        ("test_no_destructor_runs_under_a_lock[cancel_timers]",),
    ),
    Fault(
        "G20",
        "no destructor runs under a lock",
        "a delivered message is freed under the lock",
        "        if place > publication.length:\n"
        "            trash.append(contents.queue.popleft())\n"
        "            return None\n",
        "        if place > publication.length:\n            contents.queue.popleft()\n            return None\n",
        ("test_no_destructor_runs_under_a_lock[cancel_what_is_queued]",),
        also=(
            (
                "        if place == publication.length:\n            trash.append(contents.queue.popleft())\n",
                "        if place == publication.length:\n            contents.queue.popleft()\n",
            ),
        ),
    ),
    Fault(
        "G21",
        "dispatch is looked up when a delivery begins",
        "a timer is delivered to the dispatch of the time when it was scheduled",
        "        contents.compact_heap()\n        return self.dispatch, cid, event\n",
        "        contents.compact_heap()\n        return timer.dispatch, cid, event\n",
        ("test_dispatch_is_looked_up_when_a_delivery_begins",),
        also=(
            (
                "    pending: bool = True  # neither begun nor cancelled\n",
                "    pending: bool = True  # neither begun nor cancelled\n    dispatch: Any = None\n",
            ),
            (
                "        timer.number = self.next_number()\n",
                "        timer.number = self.next_number()\n        timer.dispatch = self.dispatch\n",
            ),
        ),
    ),
    Fault(
        "G21",
        "publish returns how many were targeted",
        "publish counts those that have unsubscribed",
        "return found.live",
        "return len(found.order)",
        ("test_removal_takes_all_subscriptions_of_one_conversation_only",),
    ),
    Fault(
        "G21",
        "an instance of a subclass of str is converted",
        "a subclass of str stays",
        "plain = str.__str__(value)",
        "plain = value",
        ("test_a_str_subclass_is_stored_as_its_plain_string",),
    ),
    Fault(
        "G21",
        "a list is converted to a tuple at the call",
        "a list is kept as the event",
        '    return (_name(event[0], "the event\'s name"), *event[1:])\n',
        '    _name(event[0], "the event\'s name")\n    return event\n',
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[['tick', 1, 2]-'tick'-(1, 2)]",),
    ),
    Fault(
        "G21",
        "a tuple with a name only delivers no payload",
        "an event of one name in a tuple delivers an empty tuple",
        "if isinstance(spec, str) or len(spec) == 1:",
        "if isinstance(spec, str):",
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[('tick',)-'tick'-NO_PAYLOAD]",),
    ),
    Fault(
        "G21",
        "(name, x) delivers x",
        "an event with one payload delivers a tuple of it",
        "    if len(spec) == 2:\n        return spec[1]\n",
        "",
        ("test_settle_waits_for_ready_deliveries_but_not_for_timers",),
    ),
    Fault(
        "G21",
        "a publication always delivers the message, None too",
        "a message of None is delivered as no payload",
        "publication = _Publication(msg)",
        "publication = _Publication(NO_PAYLOAD if msg is None else msg)",
        ("test_the_message_replaces_the_payload_of_the_spec[None-'said']",),
    ),
    Fault(
        "G21",
        "of a subscription's event only the name is used",
        "a message is delivered with the payload of the event",
        "        name, message, due = _event_name(subscription.spec), publication.message, publication.instant\n",
        "        payload = _event_payload(subscription.spec)\n"
        "        payload = publication.message if payload is NO_PAYLOAD else payload\n"
        "        name, message, due = _event_name(subscription.spec), payload, publication.instant\n",
        ("test_the_message_replaces_the_payload_of_the_spec['hello'-('said', 1)]",),
    ),
    Fault(
        "G21",
        "inspect shows the time left",
        "the time left of an overdue timer is negative",
        "return max(0, nanoseconds) / 1_000_000",
        "return nanoseconds / 1_000_000",
        ("test_a_timer_that_is_overdue_has_no_time_left",),
    ),
    Fault(
        "G21",
        "inspect shows what is queued",
        "inspect does not show what is queued",
        "info = ConversationInfo(timers, subscriptions, queued[cid], int(cid == running), cid in self.flows)",
        "info = ConversationInfo(timers, subscriptions, 0, int(cid == running), cid in self.flows)",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
    ),
    Fault(
        "G21",
        "inspect shows what is running",
        "inspect does not show what is running",
        "info = ConversationInfo(timers, subscriptions, queued[cid], int(cid == running), cid in self.flows)",
        "info = ConversationInfo(timers, subscriptions, queued[cid], 0, cid in self.flows)",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
    ),
    Fault(
        "G21",
        "inspect shows the baton",
        "inspect shows no baton",
        "info = ConversationInfo(timers, subscriptions, queued[cid], int(cid == running), cid in self.flows)",
        "info = ConversationInfo(timers, subscriptions, queued[cid], int(cid == running), False)",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
    ),
    Fault(
        "G21",
        "inspect shows the timers",
        "inspect does not sort the timers",
        "        live.sort(key=lambda timer: (timer.due, timer.number))\n",
        "",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
    ),
    Fault(
        "G21",
        "inspect shows one conversation",
        "inspect(cid) shows all conversations",
        "for cid in cids if only is None else cids & {only}:",
        "for cid in cids:",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
    ),
    Fault(
        "G21",
        "inspect shows one conversation",
        "inspect(cid) raises for an unknown conversation",
        "for cid in cids if only is None else cids & {only}:",
        "for cid in cids if only is None else cids - (cids ^ {only}) or {[*cids].index(only)}:",
        ("test_an_operation_of_any_thread_takes_effect_before_it_returns[reset_state]",),
        error="ValueError",
    ),
    Fault(
        "G21",
        "each fate is counted",
        "a reset counts as cancelled",
        "self.contents, self.closed, self.dropped = new, closed, self.dropped + gone",
        "self.contents, self.closed, self.cancelled = new, closed, self.cancelled + gone",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G21",
        "each fate is counted",
        "a cancel counts as dropped",
        "timer.pending, contents.timers, self.cancelled = False, contents.timers - 1, self.cancelled + 1",
        "timer.pending, contents.timers, self.dropped = False, contents.timers - 1, self.dropped + 1",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G21",
        "each fate is counted",
        "a message of a removed subscription counts as dropped",
        "publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # commit",
        "publication.place, contents.queued, self.dropped = place, queued, self.dropped + 1  # commit",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G21",
        "each fate is counted",
        "a message of a removed subscription is not counted",
        "publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # commit",
        "publication.place, contents.queued = place, queued",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G21",
        "every accepted delivery has one fate",
        "a publication counts as one delivery",
        "queued, accepted = contents.queued + topic.live, self.accepted + topic.live",
        "queued, accepted = contents.queued + topic.live, self.accepted + 1",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G21",
        "settle does not wait for timers",
        "settle waits for the timers, too",
        "return self._wait_until_idle(timeout, timers_too=False)",
        "return self._wait_until_idle(timeout, timers_too=True)",
        ("test_settle_waits_for_ready_deliveries_but_not_for_timers",),
    ),
    Fault(
        "G21",
        "settle waits for what is ready",
        "settle does not wait for timers that are due",
        "return timer is None or timer.due > now",
        "return True",
        ("test_settle_waits_for_a_timer_that_is_due_at_this_very_instant",),
    ),
    Fault(
        "G21",
        "join waits until nothing is pending",
        "join does not wait for what handlers schedule",
        "        if timers_too:\n            return self.contents.timers == 0\n",
        "",
        ("test_join_waits_for_timers_and_all_that_handlers_schedule",),
    ),
    Fault(
        "G21",
        "settle returns False when its timeout passes",
        "settle returns True when its timeout passes",
        "                if idle is None or (left is not None and left <= 0):\n                    return False\n",
        "                if idle is None or (left is not None and left <= 0):\n"
        "                    return idle is not None\n",
        ("test_settle_and_join_return_false_when_the_timeout_passes",),
    ),
    Fault(
        "G21",
        "settle returns False when its timeout passes",
        "settle waits without end",
        "bell.acquire(timeout=_seconds(left))",
        "bell.acquire()",
        ("test_settle_and_join_return_false_when_the_timeout_passes",),
    ),
    Fault(
        "G21",
        "names are compared exactly",
        "white space around a name is removed",
        "plain = str.__str__(value)",
        "plain = str.__str__(value).strip() or str.__str__(value)",
        ("test_batons_of_awkward_names_never_collide",),
    ),
    Fault(
        "G21",
        "names are compared exactly",
        "the baton of a conversation is found regardless of case",
        "self.contents.flows[cid] = flow_id",
        "self.contents.flows[cid.casefold()] = flow_id",
        ("test_batons_of_awkward_names_never_collide",),
    ),
    Fault(
        "G21",
        "cancel_timers with an instance cancels its timers only",
        "cancel_timers ignores the instance",
        "return self.cancel(_find(self.contents.timers_by_cid, cid, instance_id), trash)",
        "return self.cancel(_find(self.contents.timers_by_cid, cid), trash)",
        ("test_cancel_timers_with_an_instance_cancels_only_its_timers",),
    ),
    Fault(
        "G21",
        "unsubscribe with a topic removes one subscription",
        "unsubscribe ignores the topic",
        'name = None if topic is None else _name(topic, "topic")',
        "name = None",
        ("test_unsubscribe_removes_one_subscription_only",),
    ),
    Fault(
        "G21",
        "unsubscribe of an unknown subscription returns 0",
        "unsubscribe of an unknown subscription raises KeyError",
        "        one = self.subscriptions_by_cid.get(cid, {}).get(instance_id, {}).get(topic)\n",
        "        one = self.subscriptions_by_cid[cid].get(instance_id, {}).get(topic) if cid in "
        "self.subscriptions_by_cid else None\n"
        "        one = one or (self.subscriptions_by_cid[cid][instance_id][topic] if self.subscriptions_by_cid "
        "else None)\n",
        ("test_two_interrupted_threads_do_not_deadlock",),
    ),
    Fault(
        "G21",
        "dispatch is called with positional arguments",
        "dispatch is called with keywords",
        "result = call(cid, event)",
        "result = partial(call)(cid=cid, event=event)",
        ("test_dispatch_is_called_with_the_cid_and_the_event_by_position",),
    ),
    Fault(
        "G21",
        "any callable is a dispatch",
        "install_dispatch accepts functions only",
        "if not callable(dispatch):",
        'if not hasattr(dispatch, "__name__"):',
        ("test_any_callable_is_a_dispatch",),
        error="TypeError",
    ),
    Fault(
        "G21",
        "a second put replaces the first",
        "a second put leaves the first baton",
        "self.contents.flows[cid] = flow_id",
        "self.contents.flows.setdefault(cid, flow_id)",
        ("test_a_second_put_replaces_the_first",),
    ),
    Fault(
        "G21",
        "a delivery to the no-op dispatch counts as delivered",
        "a delivery waits until a dispatch is installed",
        "for _ in range(_LOOKS):",
        "for _ in range(_LOOKS if self.dispatch is not _ignore else 0):",
        ("test_deliveries_without_a_dispatch_count_as_delivered",),
    ),
    Fault(
        "G21",
        "has taken effect when it returns",
        "subscribe of another thread takes effect a little later",
        "        self._change(lambda state, trash: state.add_subscription(*names, spec, trash), None)\n",
        "        add = partial(self._change, lambda state, trash: state.add_subscription(*names, spec, trash), "
        "None)\n"
        "        if threading.current_thread() is threading.main_thread():\n"
        "            add()\n"
        "        else:\n"
        "            threading.Timer(0.01, add).start()\n",
        ("test_an_operation_of_any_thread_takes_effect_before_it_returns[subscribe]",),
    ),
    Fault(
        "G21",
        "running until on_error has returned",
        "a failed delivery is counted before on_error is called",
        "            self._report(cid, event, exc)\n",
        "            self._state.running = 0\n            self._report(cid, event, exc)\n",
        ("test_a_failed_delivery_runs_until_on_error_has_returned",),
    ),
    Fault(
        "G21",
        "no figure is ever negative",
        "the count of queued messages is lowered twice for a removed subscription",
        "        trash.append(subscription.spec)\n",
        "        contents.queued -= sum(subscription in one.order for one in contents.queue)\n"
        "        trash.append(subscription.spec)\n",
        ("test_the_ledger_counts_every_fate_separately",),
    ),
    Fault(
        "G22",
        "max_pending timers fit",
        "the bound is one too low",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending:",
        "if self.contents.timers + self.contents.queued + promised + count >= self.max_pending:",
        ("test_one_conversation_may_use_all_of_max_pending",),
    ),
    Fault(
        "G22",
        "an operation beyond the bound raises RegistryFull",
        "the bound is one too high",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending:",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending + 1:",
        ("test_reentrant_schedule_on_a_full_registry_is_accounted_for[put_pending_flow]",),
    ),
    Fault(
        "G22",
        "timers and queued messages together",
        "the bound holds for timers and for messages separately",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending:",
        "if max(self.contents.timers, self.contents.queued) + promised + count > self.max_pending:",
        ("test_max_pending_bounds_timers_and_messages_together",),
    ),
    Fault(
        "G22",
        "cancelled timers free their room immediately",
        "a cancelled timer keeps its room until a compaction",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending:",
        "if len(self.contents.heap) + self.contents.queued + promised + count > self.max_pending:",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
        error="RegistryFull",
    ),
    Fault(
        "G22",
        "a publication counts each of its targets",
        "a publication counts once, whatever its number of targets",
        "state.require_room(found.live)",
        "state.require_room(1)",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
    ),
    Fault(
        "G22",
        "messages of removed subscriptions free their room",
        "a message of a removed subscription never frees its room",
        "publication.place, contents.queued, self.cancelled = place, queued, self.cancelled + 1  # commit",
        "publication.place, self.cancelled = place, self.cancelled + 1",
        ("test_messages_of_a_removed_subscription_free_their_room",),
        error="RegistryFull",
    ),
    Fault(
        "G22",
        "max_pending bounds the registry",
        "the option max_pending is ignored",
        "self._state = _State(_ignore, max_pending, closed=False)",
        "self._state = _State(_ignore, 1_000_000, closed=False)",
        ("test_reentrant_schedule_on_a_full_registry_is_accounted_for[put_pending_flow]",),
    ),
    Fault(
        "G22",
        "timers and queued messages",
        "the running delivery counts for the bound",
        "if self.contents.timers + self.contents.queued + promised + count > self.max_pending:",
        "if self.contents.timers + self.contents.queued + self.running + promised + count > self.max_pending:",
        ("test_messages_of_a_removed_subscription_free_their_room",),
        error="RegistryFull",
    ),
    Fault(
        "G22",
        "timers and queued messages",
        "subscriptions count for the bound",
        "        if self.contents.timers + self.contents.queued + promised + count > self.max_pending:\n",
        "        pending = self.contents.timers + self.contents.queued + self.contents.subscriptions\n"
        "        if pending + promised + count > self.max_pending:\n",
        ("test_messages_of_a_removed_subscription_free_their_room",),
        error="RegistryFull",
    ),
    Fault(
        "G22",
        "RegistryFull changes nothing",
        "a publication beyond the bound is dropped silently",
        "            state.require_room(found.live)\n",
        "            try:\n"
        "                state.require_room(found.live)\n"
        "            except RegistryFull:\n"
        "                return 0\n",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
    ),
    Fault(
        "G23",
        "importing starts no thread",
        "importing the module starts a thread",
        "atexit.register(_at_exit)\n",
        "atexit.register(_at_exit)\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
        ("test_importing_and_creating_start_nothing",),
    ),
    Fault(
        "G23",
        "if none can be started, the operation changes nothing",
        "schedule_event adds its timer before it starts the thread",
        "            state.require_room(1)\n"
        "            self._require_thread(state)\n"
        "            state.add_timer(timer, delay_ns, now)\n",
        "            state.require_room(1)\n"
        "            state.add_timer(timer, delay_ns, now)\n"
        "            self._require_thread(state)\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[schedule_event-0]",),
    ),
    Fault(
        "G23",
        "if none can be started, the operation changes nothing",
        "the thread is noted before it has started",
        "        thread.start()\n        state.thread, state.bell = thread, bell  # commit\n",
        "        state.thread, state.bell = thread, bell\n        thread.start()\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[schedule_event-0]",),
    ),
    Fault(
        "G23",
        "if none can be started, the operation raises",
        "a thread that cannot be started is not reported",
        "        thread.start()\n",
        "        with suppress(RuntimeError):\n            thread.start()\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[schedule_event-0]",),
    ),
    Fault(
        "G23",
        "if none can be started, the operation changes nothing",
        "publish adds its message before it starts the thread",
        "            self._require_thread(state)\n            state.add_publication(publication, found, now)\n",
        "            state.add_publication(publication, found, now)\n            self._require_thread(state)\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[publish-0]",),
    ),
    Fault(
        "G23",
        "the first operation that needs one starts it",
        "put_pending_flow starts a thread",
        "        self._change(lambda state, trash: state.put_flow(cid, flow_id, trash), None)\n",
        "        self._change(lambda state, trash: state.put_flow(cid, flow_id, trash), None)\n"
        "        self._require_thread(self._state)\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[put_pending_flow-0]",),
    ),
    Fault(
        "G24",
        "close may be called inside a delivery",
        "close waits for the delivery that calls it",
        "if closed is None or state.serving == threading.get_ident():",
        "if closed is None:",
        ("test_close_inside_a_delivery_does_not_wait_for_itself",),
    ),
    Fault(
        "G24",
        "returns whether everything stopped",
        "close returns True without waiting",
        "        state.thread.join(seconds)\n        return not state.thread.is_alive()\n",
        "        return True\n",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
    ),
    Fault(
        "G24",
        "bounded by its timeout",
        "close ignores its timeout",
        "state.thread.join(seconds)",
        "state.thread.join()",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
    ),
    Fault(
        "G24",
        "returns whether everything stopped",
        "close returns True although a delivery still runs",
        "return not state.thread.is_alive()",
        "return True",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
    ),
    Fault(
        "G24",
        "close is idempotent",
        "a second close raises RegistryClosed",
        "        closed = self._change(lambda state, trash: state.forget_everything(True, trash), None)\n",
        "        state.require_open()\n"
        "        closed = self._change(lambda state, trash: state.forget_everything(True, trash), None)\n",
        ("test_a_close_at_any_line_of_an_adding_operation_is_atomic[put_pending_flow]",),
        error="RegistryClosed",
    ),
    Fault(
        "G24",
        "operations that add raise RegistryClosed",
        "a closed registry accepts a dispatch",
        "    def install(self, dispatch: Dispatch, trash: _Trash) -> None:\n        self.require_open()\n",
        "    def install(self, dispatch: Dispatch, trash: _Trash) -> None:\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G24",
        "operations that add raise RegistryClosed",
        "a closed registry accepts a subscription",
        "    def add_subscription(self, cid: str, instance_id: str, name: str, spec: _Spec, trash: _Trash) -> "
        "None:\n"
        "        self.require_open()\n",
        "    def add_subscription(self, cid: str, instance_id: str, name: str, spec: _Spec, trash: _Trash) -> None:\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G24",
        "operations that add raise RegistryClosed",
        "a closed registry accepts a baton",
        "    def put_flow(self, cid: str, flow_id: object, trash: _Trash) -> None:\n        self.require_open()\n",
        "    def put_flow(self, cid: str, flow_id: object, trash: _Trash) -> None:\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G24",
        "operations that add raise RegistryClosed",
        "publish on a closed registry returns 0",
        "        def change(state: _State, trash: _Trash) -> int:\n            state.require_open()\n",
        "        def change(state: _State, trash: _Trash) -> int:\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G24",
        "operations that remove do nothing",
        "cancel_timers on a closed registry raises",
        "    def cancel_timers(self, cid: str, instance_id: str | None, trash: _Trash) -> int:\n",
        "    def cancel_timers(self, cid: str, instance_id: str | None, trash: _Trash) -> int:\n"
        "        self.require_open()\n",
        ("test_all_of_many_conversations_are_shown_and_forgotten[close]",),
        error="RegistryClosed",
    ),
    Fault(
        "G24",
        "settle and join inside a delivery raise",
        "settle inside a delivery waits for itself",
        "        if state.serving == threading.get_ident():\n"
        '            raise RuntimeError("settle and join would wait for the delivery that calls them. Call them '
        'elsewhere.")\n',
        "",
        ("test_settle_and_join_inside_a_delivery_raise[settle-dispatch]",),
    ),
    Fault(
        "G24",
        "a program that ends without close exits promptly",
        "a program that ends waits for each registry in turn",
        "    deadline = monotonic_ns() + _AT_EXIT_NS\n"
        "    for thread in [registry._stop_at_exit() for registry in _all_registries()]:\n",
        "    for thread in [registry._stop_at_exit() for registry in _all_registries()]:\n"
        "        deadline = monotonic_ns() + _AT_EXIT_NS\n",
        ("test_a_program_that_does_not_close_exits_promptly_and_silently[twelve registries with a running delivery]",),
    ),
    Fault(
        "G24",
        "close inside a delivery ends the thread",
        "after a close inside a delivery the thread stays",
        "if self.closed or self.exiting:",
        "if self.exiting:",
        ("test_close_inside_a_delivery_ends_the_threads",),
        also=(
            (
                "        if state.thread is None:\n            return True\n",
                "        if state.thread is None:\n"
                "            return True\n"
                "        state.exiting = True\n"
                "        _ring(state.bell)\n",
            ),
        ),
    ),
    Fault(
        "G24",
        "bounded by its timeout, any finite number of seconds",
        "an enormous timeout raises OverflowError",
        "return float(min(max(timeout, 0), threading.TIMEOUT_MAX))",
        "return float(max(timeout, 0))",
        ("test_a_timeout_may_be_enormous",),
        error="OverflowError",
    ),
    Fault(
        "G24",
        "discards what has not begun",
        "close forgets what has not begun without counting it",
        "self.contents, self.closed, self.dropped = new, closed, self.dropped + gone",
        "self.contents, self.closed, self.dropped = new, closed, self.dropped + (0 if closed else gone)",
        ("test_close_drops_what_has_not_begun_and_is_idempotent",),
    ),
    Fault(
        "G24",
        "the snapshots are empty",
        "a closed registry still shows its subscriptions",
        "        old, new = self.contents, _Contents()\n",
        "        old, new = self.contents, _Contents()\n        if closed:\n            new.topics = old.topics\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
    ),
    Fault(
        "G24",
        "the baton's pop is empty",
        "a closed registry still has its batons",
        "        old, new = self.contents, _Contents()\n",
        "        old, new = self.contents, _Contents()\n        new.flows = old.flows if closed else {}\n",
        ("test_close_drops_what_has_not_begun_and_is_idempotent",),
    ),
    Fault(
        "G24",
        "discards what has not begun",
        "close delivers what is due before it returns",
        "if self.closed or self.exiting:",
        "if self.exiting or (self.closed and not self.contents.queue):",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
        also=(
            (
                "        old, new = self.contents, _Contents()\n",
                "        old, new = self.contents, _Contents()\n"
                "        new.queue, new.queued = (old.queue, old.queued) if closed else (new.queue, 0)\n",
            ),
            (
                "gone = old.timers + old.queued",
                "gone = old.timers + old.queued - new.queued",
            ),
        ),
    ),
    Fault(
        "G25",
        "with the same options",
        "a forked child has no bound",
        "self._state = _State(old.dispatch, old.max_pending, old.closed)",
        "self._state = _State(old.dispatch, None, old.closed)",
        ("test_a_forked_child_has_an_empty_usable_registry",),
    ),
    Fault(
        "G25",
        "with the same dispatch",
        "a forked child has no dispatch",
        "self._state = _State(old.dispatch, old.max_pending, old.closed)",
        "self._state = _State(_ignore, old.max_pending, old.closed)",
        ("test_a_forked_child_has_an_empty_usable_registry",),
    ),
    Fault(
        "G25",
        "a child does not count its parent's delivery",
        "a child that a handler forked counts the delivery of its parent",
        "            if state.bell is not bell:  # the start was interrupted, or a handler forked and this is the "
        "child\n"
        "                return None\n"
        "            if succeeded is not None:\n"
        "                state.finish(succeeded)\n",
        "            if succeeded is not None:\n"
        "                state.finish(succeeded)\n"
        "            if state.bell is not bell:  # the start was interrupted, or a handler forked and this is the "
        "child\n"
        "                return None\n",
        ("test_a_child_does_not_count_the_delivery_that_forked_it[returns]",),
    ),
    Fault(
        "G25",
        "a forked child has an empty registry",
        "a forked child has the batons of its parent",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n"
        "        self._state.contents.flows = dict(old.contents.flows)\n",
        ("test_a_forked_child_has_an_empty_usable_registry",),
    ),
    Fault(
        "G25",
        "even if a handler forked it",
        "a child that a handler forked has two delivery threads",
        "            if state.bell is not bell:  # the start was interrupted, or a handler forked and this is the "
        "child\n"
        "                return None\n",
        "",
        ("test_a_child_does_not_count_the_delivery_that_forked_it[returns]",),
    ),
    Fault(
        "G25",
        "the parent's registry is not affected",
        "a fork resets the registry of the parent, too",
        "os.register_at_fork(after_in_child=_after_fork_in_child)",
        "os.register_at_fork(after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_child)",
        ("test_a_forked_child_has_an_empty_usable_registry",),
    ),
    Fault(
        "G25",
        "the child's counters start at 0",
        "a forked child has the counts of its parent",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n"
        "        self._state.accepted, self._state.delivered = old.delivered, old.delivered\n",
        ("test_a_fork_under_load_leaves_no_lock_held_in_the_child",),
    ),
    Fault(
        "G25",
        "the child delivers nothing more of the parent's batch",
        "a child keeps what is queued in its parent",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n",
        "        self._state = _State(old.dispatch, old.max_pending, old.closed)\n"
        "        self._state.contents.queue, self._state.contents.queued = old.contents.queue, old.contents.queued\n",
        ("test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent[timer]",),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "all registries share one lock",
        "self.lock = threading.RLock()",
        "self.lock = _lock",
        ("test_a_registry_that_is_stopped_in_an_operation_stops_no_other[schedule_event]",),
        also=(
            (
                "_AWAKE = -math.inf  # the thread looks again anyway\n",
                "_lock = threading.RLock()\n_AWAKE = -math.inf  # the thread looks again anyway\n",
            ),
        ),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "all registries share their batons",
        "    def __init__(self) -> None:\n        self.flows: dict[str, Any] = {}\n",
        "    def __init__(self, flows: dict[str, Any] = {}) -> None:\n        self.flows = flows\n",
        ("test_two_registries_share_nothing",),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "all registries share their topics",
        "self.topics: dict[str, _Topic] = {}",
        "self.topics = _topics",
        ("test_two_registries_share_nothing",),
        also=(
            (
                "_AWAKE = -math.inf  # the thread looks again anyway\n",
                "_topics: dict[str, Any] = {}\n_AWAKE = -math.inf  # the thread looks again anyway\n",
            ),
        ),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "all registries share the dispatch",
        "        self.dispatch = dispatch\n\n",
        "        type(self).dispatch = dispatch\n\n",
        ("test_two_registries_share_nothing",),
        also=(
            (
                "        self.dispatch = dispatch\n"
                "        self.max_pending = max_pending\n"
                "        self.closed = closed\n",
                "        self.dispatch = dispatch\n"
                "        self.max_pending = max_pending\n"
                "        self.closed = closed\n",
            ),
        ),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "a close closes all registries",
        "self.contents, self.closed, self.dropped = new, closed, self.dropped + gone",
        "self.contents, type(self).closed, self.dropped = new, closed, self.dropped + gone",
        ("test_a_registry_that_is_stopped_in_an_operation_stops_no_other[schedule_event]",),
        also=(
            (
                "self.closed = closed",
                "type(self).closed = closed",
            ),
        ),
    ),
    Fault(
        "G26",
        "two registries share nothing",
        "all registries share the count of failures",
        "            self.running, self.running_cid, self.failed = 0, None, self.failed + 1  # commit\n",
        "            self.running, self.running_cid = 0, None\n            _State.failed += 1\n",
        ("test_the_ledger_of_one_registry_shows_nothing_of_another",),
        also=(
            (
                "        self.failed = 0\n",
                "",
            ),
            (
                '    """One registry\'s state in one process, and the changes of it. Every method is called under '
                'the lock."""\n',
                '    """One registry\'s state in one process, and the changes of it. Every method is called under '
                'the lock."""\n'
                "\n"
                "    failed = 0\n",
            ),
        ),
    ),
    Fault(
        "G21",
        "settle and join wait for what they promise",
        "a waiter looks first and registers then, so that what ends in between does not wake it",
        "        state.waiters[id(bell)] = bell\n        try:\n            while True:\n"
        "                idle = self._is_idle(timers_too)\n",
        "        try:\n            while True:\n                idle = self._is_idle(timers_too)\n"
        "                state.waiters[id(bell)] = bell\n",
        ("test_the_last_delivery_may_end_at_any_line_of_a_wait[settle]",),
        quick=False,
    ),
    Fault(
        "G13",
        "a delivered payload is freed",
        "the latest ConversationEnded is kept",
        "        except ConversationEnded:\n",
        "        except ConversationEnded as exc:\n            self._ended = exc\n",
        ("test_a_failed_delivery_keeps_no_payload_alive",),
    ),
    Fault(
        "G17",
        "the payload of a timer is passed on",
        "lists inside an event become tuples, so that it can be hashed",
        '    return (_name(event[0], "the event\'s name"), *event[1:])',
        '    return (_name(event[0], "the event\'s name"), *(tuple(x) if type(x) is list else x for x in event[1:]))',
        ("test_a_payload_of_any_type_is_passed_by_reference",),
    ),
    Fault(
        "G26",
        "one that is stopped stops no other",
        "settle raises inside a delivery of another registry",
        'if state.serving == threading.get_ident():\n            raise RuntimeError("settle and join',
        'if threading.current_thread().name == "stube-plain":\n            raise RuntimeError("settle and join',
        ("test_a_delivery_may_wait_for_another_registry_and_close_it",),
    ),
    Fault(
        "G21",
        "a second baton replaces the first",
        "a second baton that is not true does not replace the first",
        "        self.contents.flows[cid] = flow_id\n",
        "        self.contents.flows[cid] = flow_id or self.contents.flows.get(cid, flow_id)\n",
        ("test_a_second_put_replaces_the_first",),
    ),
    Fault(
        "G21",
        "deliveries go to the dispatch that is installed",
        "what a handler has installed is undone when it raises",
        "            self._report(cid, event, exc)\n            return False\n",
        "            self._report(cid, event, exc)\n            self._state.dispatch = dispatch\n"
        "            return False\n",
        ("test_a_dispatch_that_a_failing_handler_installed_stays",),
    ),
    Fault(
        "G21",
        "settle and join wait for what they promise",
        "a closed registry counts as idle while a delivery runs",
        "        if self.running or self.tidying or self.contents.queue:",
        "        if (self.running and not self.closed) or self.tidying or self.contents.queue:",
        ("test_a_closed_registry_is_not_idle_while_a_delivery_runs",),
    ),
    Fault(
        "G2",
        "ties in the order of acceptance",
        "timers of one instant that are due much later are in reverse order",
        "heappush(contents.heap, (timer.due, timer.number, timer))",
        "late = timer.due - now > 10**12\n        "
        "heappush(contents.heap, (timer.due, -timer.number if late else timer.number, timer))",
        ("test_a_nanosecond_makes_a_difference_late_in_the_clocks_life",),
    ),
    Fault(
        "G17",
        "a message is passed on",
        "a message that is the mark of no payload becomes None",
        "        publication = _Publication(msg)\n",
        "        publication = _Publication(None if msg is NO_PAYLOAD else msg)\n",
        ("test_a_message_is_passed_by_reference_and_never_touched",),
    ),
    Fault(
        "G14",
        "subscribing costs what it touches",
        "a subscription whose event is replaced is searched in its topic",
        "            present.spec = spec  # commit\n",
        "            present = present.topic.order[present.topic.order.index(present)]\n"
        "            present.spec = spec  # commit\n",
        ("test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic",),
    ),
    Fault(
        "G19",
        "ConversationEnded is no failure",
        "an exception that derives from ConversationEnded is a failure",
        "        except ConversationEnded:\n",
        "        except ConversationEnded as exc:\n"
        "            if type(exc) is not ConversationEnded:\n                self._report(cid, event, exc)\n"
        "                return False\n",
        ("test_an_error_that_derives_from_conversation_ended_is_no_failure",),
    ),
)
