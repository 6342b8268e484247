"""Small faults in `globex`, a backend of actors, each with a test of the suite that names it; see `faults.py`.

They are of the kinds that a design of two threads and their messages invites: host code on the thread that everybody
waits for, answers lost or mixed up, calls that are made in two steps. The rest any author may make.
"""

from __future__ import annotations

from typing import Final

from tests.outsiders.faults import Fault

_OPERATIONS: Final = "globex_stube/__init__.py"
_ACTOR: Final = "globex_stube/_actor.py"
_STATE: Final = "globex_stube/_state.py"

FAULTS: Final[tuple[Fault, ...]] = (
    # G1
    Fault(
        "G1",
        "Two deliveries of a conversation never run at the same time, whichever threads deliver.",
        "Two threads deliver, so that a slow handler holds up nobody else.",
        "            self._delivery_thread.start()\n",
        "            self._delivery_thread.start()\n            self._second.start()\n",
        ("test_random_operations_of_many_threads_keep_every_guarantee",),
        also=(
            (
                '        self._delivery_thread = Worker("globex delivery", self._deliver, self.state)\n',
                '        self._delivery_thread = Worker("globex delivery", self._deliver, self.state)\n'
                '        self._second = Worker("globex delivery 2", self._deliver, self.state)\n',
            ),
        ),
        file=_ACTOR,
    ),
    Fault(
        "G1",
        "A delivery that the running one causes begins after it.",
        "A timer without delay that a handler schedules is delivered at once, inside the handler.",
        "        return _Handle(self._actor, timer)\n",
        "        if not delay and self._actor.is_delivering_here():\n"
        "            self._actor._deliver_next(self._actor.state, None)\n"
        "        return _Handle(self._actor, timer)\n",
        ("test_a_handler_returns_before_a_timer_it_schedules_begins",),
        file=_OPERATIONS,
    ),
    # G2
    Fault(
        "G2",
        "Ties are in the order of acceptance: timers and messages.",
        "Of a message and a timer that tie, the message begins first.",
        "publication.order < timer.order",
        "publication.order[0] <= timer.order[0]",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Ties are in the order of acceptance: timers and messages.",
        "Of a message and a timer that tie, the timer begins first.",
        "publication.order < timer.order",
        "publication.order[0] < timer.order[0]",
        ("test_timers_and_messages_that_tie_keep_acceptance_order",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "A message begins in the order of the instant at which its publication was accepted.",
        "Messages begin before all timers.",
        "if publication is not None and (timer is None or publication.order < timer.order):",
        "if publication is not None:",
        ("test_a_publication_begins_between_an_earlier_and_a_later_timer",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "A message begins in the order of the instant at which its publication was accepted.",
        "Timers that are due begin before all messages.",
        "(timer is None or publication.order < timer.order)",
        "(timer is None or timer.order[0] > now)",
        ("test_a_publication_begins_between_an_earlier_and_a_later_timer",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Ties are in the order of acceptance: timers among themselves.",
        "Timers of one instant begin in the order of their addresses.",
        "self._instant(now) + delay, next(self._numbers)\n        timer.spec",
        "self._instant(now) + delay, id(timer)\n        timer.spec",
        ("test_a_coarse_clock_keeps_timers_of_one_instant_in_order",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "An event shows the instant for which its delivery was meant.",
        "The event of a timer shows the instant at which the delivery begins.",
        "Event(timer.instance_id, name, value, due=timer.order[0])",
        "Event(timer.instance_id, name, value, due=max(timer.order[0], self.hooks.clock() if self.hooks else 0))",
        ("test_an_event_that_begins_late_shows_the_instant_for_which_it_was_meant",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "An event shows the instant for which its delivery was meant.",
        "The event of a message shows no instant.",
        "publication.message, due=publication.order[0])",
        "publication.message)",
        ("test_an_event_shows_the_instant_for_which_it_was_meant",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Instants of acceptance never run backwards, whichever thread has read the clock earlier.",
        "The reading of a caller is used as it is, although a later one was accepted in between.",
        "        self.latest = max(self.latest, now)\n        return self.latest\n",
        "        self.latest = max(self.latest, now)\n        return now\n",
        ("test_what_is_accepted_later_begins_later_whoever_read_the_clock_first[schedule_event]",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Instants of acceptance never run backwards, whichever thread has read the clock earlier.",
        "A publication's instant is its caller's reading, although a later one was accepted in between.",
        "order = self._instant(now), next(self._numbers)\n            self",
        "order = now, next(self._numbers)\n            self",
        ("test_what_is_accepted_later_begins_later_whoever_read_the_clock_first[schedule_event]",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Timers begin in the order of their due instants.",
        "The heap is not a heap any more after the removed timers have been taken out of it.",
        "            self._heap = [entry for entry in self._heap if entry[1].spec is not None]\n"
        "            heapify(self._heap)\n",
        "            self._heap = [entry for entry in reversed(self._heap) if entry[1].spec is not None]\n",
        ("test_timers_in_random_histories_have_one_fate",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Ties are in the order of acceptance: the instances that hear one message, as they subscribed.",
        "Subscribing again moves the subscription to the end.",
        "            self.removed.append(subscription.spec)\n"
        "            subscription.spec = spec\n"
        "            return\n",
        "            self._end([subscription])\n",
        ("test_subscribing_again_replaces_the_event_and_keeps_the_place",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Ties are in the order of acceptance: the instances that hear one message, as they subscribed.",
        "A topic that drops its ended subscriptions sorts the others by name.",
        "topic.subscribers = [other for other in topic.subscribers if not other.ended]",
        "topic.subscribers = sorted((o for o in topic.subscribers if not o.ended), key=lambda o: (o.cid, "
        "o.instance_id))",
        ("test_comings_and_goings_leave_the_other_subscribers_in_order",),
        file=_STATE,
    ),
    Fault(
        "G2",
        "Ties are in the order of acceptance: the instances that hear one message, as they subscribed.",
        "A topic that drops its ended subscriptions puts the others into the order of a set.",
        "topic.subscribers = [other for other in topic.subscribers if not other.ended]",
        "topic.subscribers = list({other for other in topic.subscribers if not other.ended})",
        ("test_comings_and_goings_leave_the_other_subscribers_in_order",),
        file=_STATE,
    ),
    # G3
    Fault(
        "G3",
        "Dispatch never runs on the stack of `schedule_event`, at no delay.",
        "A timer without delay is delivered by the call itself.",
        "        delay, spec = _nanoseconds(delay_ms), _spec(event)\n",
        "        delay, spec = _nanoseconds(delay_ms), _spec(event)\n"
        "        if not delay and isinstance(spec, str):\n"
        "            self._hooks.dispatch(timer.cid, Event(timer.instance_id, spec))\n"
        "            return _Handle(self._actor, timer)\n",
        ("test_dispatch_never_runs_inside_schedule_event[0]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G3",
        "Nor on the stack of `publish`, the publisher's own subscription included.",
        "A message that a handler publishes is delivered inside the handler.",
        "        return self._actor.add(0, State.publish, topic, msg, self._hooks.clock(), self._hooks)\n",
        "        targets = self._actor.add(0, State.publish, topic, msg, self._hooks.clock(), "
        "self._hooks)\n"
        "        if targets and self._actor.is_delivering_here():\n"
        "            self._actor._deliver_next(self._actor.state, None)\n"
        "        return targets\n",
        ("test_a_message_is_never_delivered_inside_publish",),
        file=_OPERATIONS,
    ),
    # G4
    Fault(
        "G4",
        "A publisher's messages reach each subscriber in the order of publishing.",
        "The newest publication is delivered first.",
        "self._publications.append(Publication(",
        "self._publications.appendleft(Publication(",
        ("test_one_publishers_messages_reach_every_subscriber_in_order",),
        file=_STATE,
    ),
    Fault(
        "G4",
        "A publisher's messages reach each subscriber in the order of publishing.",
        "A message that a handler publishes goes before those that wait.",
        "            self._publications.append(Publication(message, topic.subscribers, targets, order))\n",
        "            add = self._publications.append if self._running is None else "
        "self._publications.appendleft\n"
        "            add(Publication(message, topic.subscribers, targets, order))\n",
        ("test_one_publishers_messages_reach_every_subscriber_in_order",),
        file=_STATE,
    ),
    Fault(
        "G4",
        "With `common_topic_order` all subscribers of a topic see one order.",
        "The publications take turns, one target each.",
        "            self.removed.append(self._publications.popleft())\n        if subscription",
        "            self.removed.append(self._publications.popleft())\n"
        "        else:\n"
        "            self._publications.rotate(-1)\n"
        "        if subscription",
        ("test_the_instances_of_a_conversation_hear_one_message_after_the_other",),
        file=_STATE,
    ),
    # G5
    Fault(
        "G5",
        "After `unsubscribe` has returned, no message that was queued for the subscription begins.",
        "A queued message is delivered although its subscription has ended.",
        "        if subscription.ended:\n            self._cancelled += 1\n            return None\n        name",
        "        name",
        ("test_no_queued_message_begins_after_unsubscribe[t]",),
        file=_STATE,
    ),
    Fault(
        "G5",
        "Subscribing again revives no old message.",
        "A queued message is passed over only if nobody has subscribed under the same names since.",
        "        if subscription.ended:\n            self._cancelled += 1",
        "        again = self._subscriptions.get(subscription.cid, subscription.instance_id, "
        "subscription.topic.name)\n"
        "        subscription = again or subscription\n"
        "        if subscription.ended:\n"
        "            self._cancelled += 1",
        ("test_subscribing_anew_does_not_revive_old_messages[unsubscribe]",),
        file=_STATE,
    ),
    Fault(
        "G5",
        "Replacing the event of a subscription keeps its messages.",
        "Replacing the event cancels the messages that are queued.",
        "            self.removed.append(subscription.spec)\n"
        "            subscription.spec = spec\n"
        "            return\n",
        "            self._end([subscription])\n",
        ("test_a_queued_message_uses_the_newest_event_of_its_subscription",),
        file=_STATE,
    ),
    Fault(
        "G5",
        "Replacing the event of a subscription keeps its messages.",
        "Replacing an event puts a new subscription in the old one's place, and so cancels its messages.",
        "            subscription.spec = spec\n            return\n",
        "            subscription.ended = next(self._numbers)\n"
        "            self._subscriptions.remove(cid, instance_id, topic_name)\n"
        "            subscription.topic.live -= 1\n",
        ("test_a_queued_message_uses_the_newest_event_of_its_subscription",),
        file=_STATE,
    ),
    Fault(
        "G5",
        "The same holds for `TimerHandle.cancel`.",
        "A handle cancels any timer of its instance, if its own has gone.",
        "return bool(self._timers.get(timer.cid, timer.instance_id, timer) and self._cancel([timer]))",
        "return bool(self._cancel(self._timers.of(timer.cid, timer.instance_id)[:1]))",
        ("test_a_handle_cancels_its_own_timer_once",),
        file=_STATE,
    ),
    Fault(
        "G5",
        "The same holds for `TimerHandle.cancel`.",
        "The handle forgets the timer when `cancel` is interrupted or called twice, and says True each time.",
        "return self._actor.remove(False, State.cancel, self._timer)",
        "self._actor.remove(False, State.cancel, self._timer)\n        return True",
        ("test_a_handle_cancels_its_own_timer_once",),
        file=_OPERATIONS,
    ),
    Fault(
        "G5",
        "It holds for timers that are already due, and for timers among many.",
        "A timer that is due is not cancelled any more.",
        "        for timer in timers:\n            self._remove_timer(timer)\n",
        "        timers = [timer for timer in timers if timer.order[0] > self.latest]\n"
        "        for timer in timers:\n"
        "            self._remove_timer(timer)\n",
        ("test_a_timer_that_is_already_due_can_be_cancelled[cancel_timers]",),
        file=_STATE,
    ),
    # G7
    Fault(
        "G7",
        "A `subscribe` that races with a removal ends as subscribed or as removed.",
        "Removing a conversation's subscriptions is one call for each instance.",
        '        return self._actor.remove(0, State.remove_subscriptions_for_cid, _name("cid", cid))\n',
        '        cid = _name("cid", cid)\n'
        "        instances = {key[1] for keys in self.subscriptions().values() for key in keys if key[0] "
        "== cid}\n"
        "        return sum(self.unsubscribe(cid=cid, instance_id=each) for each in sorted(instances))\n",
        ("test_messages_in_random_histories_reach_the_right_subscribers",),
        file=_OPERATIONS,
    ),
    # G5
    Fault(
        "G5",
        "What one operation removes is removed in one step.",
        "The timers of a conversation are cancelled one call after the other.",
        '        return self._actor.remove(0, State.cancel_timers, cid, _name_or_none("instance_id", instance_id))\n',
        '        instance_id = _name_or_none("instance_id", instance_id)\n'
        "        timers = self._actor.read(lambda state: state._timers.of(cid, instance_id))\n"
        "        return sum(self._actor.remove(False, State.cancel, timer) for timer in timers)\n",
        ("test_a_delivery_thread_sees_a_removal_in_one_step[cancel_timers]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G5",
        "After `cancel_timers` has returned, none of the cancelled timers begins.",
        "A cancel takes the timers out of the index only, and they are delivered.",
        "        self.removed.append(timer.spec)\n        timer.spec = None\n        if len",
        "        if len",
        ("test_cancel_timers_cancels_and_counts_one_conversation_only",),
        also=(
            (
                "    def _begin_timer(self, timer: Timer) -> Delivery:\n"
                "        heappop(self._heap)\n"
                '        spec = timer.spec or ""\n',
                "    def _begin_timer(self, timer: Timer) -> Delivery:\n"
                "        heappop(self._heap)\n"
                '        spec = timer.spec or ""\n'
                "        self._timers.items.setdefault(timer.cid, {}).setdefault(timer.instance_id, {})[timer] = "
                "timer\n",
            ),
        ),
        file=_STATE,
    ),
    # G6
    Fault(
        "G6",
        "A cancel neither waits for a running delivery nor counts it.",
        "A cancel counts the running delivery of its conversation.",
        "return self._cancel(self._timers.of(cid, instance_id))",
        "return self._cancel(self._timers.of(cid, instance_id)) + (self._running == cid)",
        ("test_a_cancel_ignores_a_delivery_that_has_begun",),
        file=_STATE,
    ),
    Fault(
        "G6",
        "An unsubscribe, a reset and a close do not disturb it either.",
        "A reset counts the running delivery as dropped.",
        "self._dropped += self._timers.count + len(targets) - ended\n",
        "self._dropped += self._timers.count + len(targets) - ended + (self._running is not None)\n",
        ("test_a_reset_does_not_wait_for_a_running_handler",),
        file=_STATE,
    ),
    # G7
    Fault(
        "G7",
        "The same holds for races with a reset, a close and the end of a handle.",
        "A delivery that has begun does not call dispatch when the registry is closed meanwhile.",
        "            return _run(delivery)\n",
        "            return not state.closed and _run(delivery)\n",
        ("test_a_schedule_racing_with_close_is_counted_or_raises",),
        file=_ACTOR,
    ),
    # G6
    Fault(
        "G6",
        "A handler may end its own conversation, or forget everything, and runs to its end.",
        "A reset forgets the delivery that runs.",
        "        self.removed += filter(None, containers)\n        self._make_empty()\n",
        "        self.removed += filter(None, containers)\n        self._make_empty()\n        self._running = None\n",
        ("test_a_handler_that_resets_runs_to_its_end",),
        file=_STATE,
    ),
    # G7
    Fault(
        "G7",
        "A `subscribe` that races with a removal ends as subscribed or as removed.",
        "Subscribing looks first and adds in a second call, so that two threads add the same subscription.",
        "        self._actor.add(None, State.subscribe, *names, _spec(event))\n",
        "        spec, known = _spec(event), self._actor.read(State.subscriptions).get(names[2], {})\n"
        "        if names[:2] in known:\n"
        "            self._actor.remove(0, State.unsubscribe, *names)\n"
        "        self._actor.add(None, State.subscribe, *names, spec)\n",
        ("test_a_message_finds_its_subscriber_at_any_line_of_a_replacement",),
        file=_OPERATIONS,
    ),
    Fault(
        "G7",
        "Whatever races: the operations take effect one after the other.",
        "Callers subscribe without asking the actor.",
        "        self._actor.add(None, State.subscribe, *names, _spec(event))\n",
        "        State.subscribe(self._actor.state, *names, _spec(event))\n",
        ("test_a_subscribe_racing_with_an_unsubscribe_is_atomic",),
        file=_OPERATIONS,
    ),
    Fault(
        "G7",
        "Whatever races: the operations take effect one after the other.",
        "Callers put batons without asking the actor.",
        "        self._actor.add(None, State.put_pending_flow, cid, flow_id)\n",
        "        self._actor.state.put_pending_flow(cid, flow_id)\n",
        ("test_a_close_at_any_line_of_an_adding_operation_is_atomic[put_pending_flow]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G7",
        "The same holds for races with a reset, a close and the end of a handle.",
        "Whether the registry is closed is looked up before the actor is asked, and not by the actor.",
        "    def _require_room(self, more: int) -> None:\n        self._require_open()\n",
        "    def _require_room(self, more: int) -> None:\n",
        ("test_a_schedule_racing_with_close_is_counted_or_raises",),
        file=_STATE,
    ),
    # G8
    Fault(
        "G8",
        "One caller gets the baton, and the next gets None.",
        "A taken baton stays.",
        "flow_id = self._batons.pop(cid, None)",
        "flow_id = self._batons.get(cid)",
        ("test_a_baton_is_taken_once",),
        file=_STATE,
    ),
    Fault(
        "G8",
        "Of several threads exactly one gets it.",
        "A baton is read in one call and forgotten in another.",
        '        return self._actor.take(State.pending_flow, _name("cid", cid))\n',
        '        cid = _name("cid", cid)\n'
        "        flow_id = self._actor.read(lambda state: state._batons.get(cid))\n"
        "        self._actor.remove(False, State.forget_pending_flow, cid)\n"
        "        return flow_id\n",
        ("test_exactly_one_of_many_threads_takes_a_baton",),
        file=_OPERATIONS,
    ),
    Fault(
        "G8",
        "It is taken or forgotten, never both.",
        "`forget_pending_flow` looks in one call and removes in another.",
        '        return self._actor.remove(False, State.forget_pending_flow, _name("cid", cid))\n',
        '        cid = _name("cid", cid)\n'
        "        known = self._actor.read(lambda state: cid in state._batons)\n"
        "        self._actor.remove(False, State.forget_pending_flow, cid)\n"
        "        return known\n",
        ("test_racing_operations_are_atomic_at_every_line[forget_pending_flow-pending_flow]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G8",
        "A re-entrant call that gets nothing leaves it.",
        "A deferred `pending_flow`, whose result nobody gets, takes the baton.",
        "return None if self._cannot_wait() else self._ask(operation, arguments)",
        "return self._defer(None, operation, arguments) if self._cannot_wait() else self._ask(operation, arguments)",
        ("test_a_reentrant_call_takes_or_leaves_the_baton[put_pending_flow]",),
        file=_ACTOR,
    ),
    # G9
    Fault(
        "G9",
        "A fraction of a delay is not rounded down.",
        "A fraction of a nanosecond is cut off.",
        "math.ceil(product) if math",
        "int(product) if math",
        ("test_the_smallest_delay_waits_for_the_next_nanosecond",),
        file=_OPERATIONS,
    ),
    Fault(
        "G9",
        "A fraction of a delay is not rounded down.",
        "A delay is rounded to the nearest nanosecond.",
        "math.ceil(product) if math",
        "round(product) if math",
        ("test_the_smallest_delay_waits_for_the_next_nanosecond",),
        file=_OPERATIONS,
    ),
    Fault(
        "G9",
        "No timer begins before its delay has passed.",
        "A timer may begin up to a millisecond early.",
        "elif timer is not None and timer.order[0] <= now:",
        "elif timer is not None and timer.order[0] <= now + 999_999:",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
        file=_STATE,
    ),
    Fault(
        "G9",
        "No timer begins before its delay has passed.",
        "A timer is due when the millisecond in which it is due has come.",
        "elif timer is not None and timer.order[0] <= now:",
        "elif timer is not None and timer.order[0] // 1_000_000 <= now // 1_000_000:",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
        file=_STATE,
    ),
    Fault(
        "G9",
        "No timer begins before its delay has passed.",
        "A delay begins at the latest instant that is known, not at the present one.",
        "timer.order = due, _ = self._instant(now) + delay,",
        "timer.order = due, _ = (self.latest or self._instant(now)) + delay,",
        ("test_a_delay_begins_when_it_is_asked_for_and_passes_to_the_nanosecond",),
        file=_STATE,
    ),
    Fault(
        "G9",
        "The registry's clock decides, even if a wait ends too early.",
        "When a wait has ended, the timer for which it was made is due.",
        "            state.bell.get(timeout=None if nanoseconds is None else nanoseconds / 1e9)\n        return None\n",
        "            state.bell.get(timeout=None if nanoseconds is None else nanoseconds / 1e9)\n"
        "            return None\n"
        "        state.latest = max(state.latest, now + (nanoseconds or 0))\n"
        "        return None\n",
        ("test_a_wait_that_ends_before_the_clock_says_so_begins_no_timer",),
        file=_ACTOR,
    ),
    # G10
    Fault(
        "G10",
        "A new earliest timer wakes the scheduler, from any thread.",
        "A new timer wakes the delivery thread only if there was none.",
        "if self._wake_at is None or due < self._wake_at:",
        "if self._wake_at is None:",
        ("test_a_new_earliest_timer_wakes_the_scheduler",),
        file=_STATE,
    ),
    Fault(
        "G10",
        "A new earliest timer wakes the scheduler, from any thread.",
        "The instants are compared the wrong way round, so that only later timers wake the delivery thread.",
        "if self._wake_at is None or due < self._wake_at:",
        "if self._wake_at is None or due > self._wake_at:",
        ("test_a_new_earliest_timer_wakes_the_scheduler",),
        file=_STATE,
    ),
    Fault(
        "G10",
        "It does so at any moment, just before the scheduler sleeps included.",
        "The bell is emptied just before the sleep.",
        "        nanoseconds = None if delivery is None else max(0, min(delivery - now, _LONGEST_SLEEP_NS))\n",
        "        nanoseconds = None if delivery is None else max(0, min(delivery - now, "
        "_LONGEST_SLEEP_NS))\n"
        "        while not state.bell.empty():\n"
        "            state.bell.get()\n",
        ("test_a_schedule_just_before_the_scheduler_sleeps_is_not_lost",),
        file=_ACTOR,
    ),
    Fault(
        "G10",
        "An idle registry uses no CPU: it does not poll.",
        "The delivery thread sleeps for 20 ms at most while a timer is pending.",
        "_LONGEST_SLEEP_NS: Final = 86_400 * 1_000_000_000",
        "_LONGEST_SLEEP_NS: Final = 20_000_000",
        ("test_an_idle_registry_does_not_read_its_clock",),
        file=_ACTOR,
    ),
    Fault(
        "G10",
        "An idle registry uses no CPU: it does not poll.",
        "The state thread looks every 20 ms whether its actor has ended.",
        "            self._serve_one(state, self._mailbox.get())\n",
        "            with suppress(Empty):\n                self._serve_one(state, self._mailbox.get(timeout=0.02))\n",
        ("test_an_idle_registry_wakes_no_thread",),
        file=_ACTOR,
    ),
    Fault(
        "G10",
        "Those who wait in `join` or `close` are woken, too.",
        "Nobody wakes those who wait in `join`.",
        "            state.wake_waiters(timers_too=True)\n            if",
        "            if",
        ("test_a_waiter_in_join_wakes_when_the_timers_are_removed[cancel_timers]",),
        file=_ACTOR,
    ),
    Fault(
        "G10",
        "It does so whatever the scheduler sleeps for.",
        "A wait for an enormous delay ends the delivery thread.",
        "max(0, min(delivery - now, _LONGEST_SLEEP_NS))",
        "max(0, delivery - now)",
        ("test_an_enormous_delay_lets_the_scheduler_sleep_and_wake",),
        file=_ACTOR,
    ),
    # G11
    Fault(
        "G11",
        "`bool`, `str` and `None` raise `TypeError`.",
        "True is a delay of a millisecond.",
        "if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)):",
        "if not isinstance(delay_ms, (int, float)):",
        ("test_a_delay_of_another_type_is_a_type_error",),
        file=_OPERATIONS,
    ),
    Fault(
        "G11",
        "`bool`, `str` and `None` raise `TypeError`.",
        "A string of digits is a delay.",
        "    if isinstance(delay_ms, bool) or",
        "    if isinstance(delay_ms, str):\n        delay_ms = float(delay_ms)\n    if isinstance(delay_ms, bool) or",
        ("test_a_delay_of_another_type_is_a_type_error",),
        file=_OPERATIONS,
    ),
    Fault(
        "G11",
        "NaN and infinity raise `ValueError`.",
        "Infinity raises OverflowError.",
        "if not math.isfinite(delay_ms):",
        "if math.isnan(delay_ms):",
        ("test_a_delay_that_is_not_finite_is_a_value_error",),
        file=_OPERATIONS,
    ),
    Fault(
        "G11",
        "NaN and infinity raise `ValueError`.",
        "Minus infinity is a negative delay, and so means 0.",
        "if not math.isfinite(delay_ms):",
        "if delay_ms != delay_ms or delay_ms == math.inf:",
        ("test_a_delay_that_is_not_finite_is_a_value_error",),
        file=_OPERATIONS,
    ),
    Fault(
        "G11",
        "Fractions count, and round up to whole nanoseconds.",
        "Delays are whole milliseconds.",
        "product = delay_ms * 1e6",
        "product = math.ceil(delay_ms) * 1e6",
        ("test_fractions_of_a_millisecond_count",),
        file=_OPERATIONS,
    ),
    Fault(
        "G11",
        "Fractions count, and round up to whole nanoseconds.",
        "A delay is converted to seconds and back, which costs its last digits.",
        "product = delay_ms * 1e6",
        "product = (delay_ms / 1e3) * 1e9",
        ("test_the_smallest_delay_waits_for_the_next_nanosecond",),
        file=_OPERATIONS,
    ),
    # G12
    Fault(
        "G12",
        "`clock=` may be passed in, and is used.",
        "The option `clock` is ignored.",
        "Hooks(_ignore, clock or monotonic_ns, on_error)",
        "Hooks(_ignore, monotonic_ns, on_error)",
        ("test_a_custom_clock_may_be_passed_in",),
        file=_OPERATIONS,
    ),
    Fault(
        "G12",
        "`clock=` may be passed in, and is used.",
        "The delivery thread reads its own clock.",
        "return hooks.clock() if hooks else 0",
        "return monotonic_ns() if hooks else 0",
        ("test_a_custom_clock_may_be_passed_in",),
        file=_ACTOR,
    ),
    Fault(
        "G12",
        "A change of the wall clock has no effect.",
        "The clock is the wall clock.",
        "        self._hooks = Hooks(_ignore, clock or monotonic_ns, on_error)\n",
        "        import time\n\n        self._hooks = Hooks(_ignore, clock or (lambda: time.time_ns()), on_error)\n",
        ("test_replacing_functions_of_the_time_module_changes_nothing",),
        file=_OPERATIONS,
    ),
    Fault(
        "G12",
        "Replacing attributes of the `time` module has no effect.",
        "The module takes the clock from `time` when it is imported.",
        "    is_coroutine_function,\n    monotonic_ns,\n)\n",
        "    is_coroutine_function,\n)\nfrom time import monotonic_ns\n",
        ("test_the_time_module_may_be_patched_before_the_backend_import",),
        file=_OPERATIONS,
    ),
    Fault(
        "G12",
        "Replacing attributes of the `time` module has no effect.",
        "`settle` and `join` measure their timeouts with `time.monotonic` as it is at the call.",
        "        state, started = self.state, monotonic_ns()\n",
        "        import time\n\n        state, started = self.state, time.monotonic_ns()\n",
        ("test_replacing_functions_of_the_time_module_changes_nothing",),
        also=(
            (
                "timeout - (monotonic_ns() - started) / 1e9\n                with",
                "timeout - (time.monotonic_ns() - started) / 1e9\n                with",
            ),
        ),
        file=_ACTOR,
    ),
    # G13
    Fault(
        "G13",
        "A container that becomes empty gives its memory back.",
        "The dict of batons keeps its table when it is empty.",
        "        if not self._batons:\n            self._batons.clear()  # for its table, as in `Index.remove`\n",
        "",
        ("test_an_emptied_index_frees_its_memory[ended]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A container that becomes empty gives its memory back.",
        "An index keeps its table when it is empty.",
        "        if not self.items:\n"
        "            self.items.clear()  # an empty dict keeps its table, unless it is cleared\n",
        "",
        ("test_an_emptied_index_frees_its_memory[ended]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A container that becomes empty gives its memory back.",
        "The dict of topics keeps its table when it is empty.",
        "        if not self._topics:\n            self._topics.clear()\n",
        "",
        ("test_an_emptied_index_frees_its_memory[ended]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A cancelled timer is freed immediately, with its payload and its place in every container.",
        "Cancelled timers stay in the heap until they would have been due.",
        "        if len(self._heap) > 2 * self._timers.count:\n"
        "            self._heap = [entry for entry in self._heap if entry[1].spec is not None]\n"
        "            heapify(self._heap)\n",
        "",
        ("test_cancelled_timers_leave_nothing_in_any_container[cancel_timers]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A cancelled timer is freed immediately, with its payload and its place in every container.",
        "Cancelled timers stay in the heap until there are a thousand.",
        "if len(self._heap) > 2 * self._timers.count:",
        "if len(self._heap) > 2 * self._timers.count + 1_000:",
        ("test_cancelled_timers_leave_nothing_in_any_container[cancel_timers]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "What a reset, a close or a refused operation was given is freed.",
        "A handle keeps the payload of its timer alive after a reset.",
        "            timer.spec = None  # a handle may keep the timer, and shall not keep the payload\n",
        "",
        ("test_a_reset_or_close_keeps_no_payload_alive[reset_state]",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A removed or replaced subscription is freed immediately.",
        "An ended subscription stays in the list of its topic.",
        "            elif len(topic.subscribers) > 2 * topic.live:\n"
        "                topic.subscribers = [other for other in topic.subscribers if not other.ended]\n",
        "",
        ("test_a_removed_subscription_leaves_neither_container_nor_payload",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A removed or replaced subscription is freed immediately.",
        "A topic without subscribers stays.",
        "            if not topic.live:\n                del self._topics[topic.name]\n            elif",
        "            if",
        ("test_a_removed_subscription_leaves_neither_container_nor_payload",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "Nothing grows with the conversations that ever existed, nor with waits in vain.",
        "An index keeps a key for each conversation that ever was.",
        "        if not instances:\n            del self.items[cid]\n",
        "",
        ("test_conversations_that_used_everything_leave_nothing",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "Nothing grows with the conversations that ever existed, nor with waits in vain.",
        "To look for the timers of a conversation makes an entry for it.",
        "        instances = self.items.get(cid, {})\n",
        "        instances = self.items.setdefault(cid, {})\n",
        ("test_conversations_that_used_everything_leave_nothing",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A replaced dispatch, the result of a handler and a caller's context are not kept.",
        "The functions of the host are kept while nothing is pending.",
        "            state.hooks = None\n",
        "",
        ("test_a_sleeping_registry_is_collected_once_its_timers_are_gone[cancelled]",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A replaced dispatch, the result of a handler and a caller's context are not kept.",
        "All dispatches that were ever installed are kept.",
        "        self._hooks.dispatch = dispatch\n",
        '        self._dispatches = [*getattr(self, "_dispatches", ()), dispatch]\n'
        "        self._hooks.dispatch = dispatch\n",
        ("test_a_replaced_dispatch_is_not_kept_alive",),
        file=_OPERATIONS,
    ),
    Fault(
        "G13",
        "A replaced dispatch, the result of a handler and a caller's context are not kept.",
        "What a handler has returned is kept until the next delivery.",
        "            return _run(delivery)\n",
        "            self._result = _run(delivery)\n            return self._result is not False\n",
        ("test_what_a_handler_returns_is_not_kept_alive",),
        also=(
            (
                "        _report(delivery, error)\n        return False\n    return True\n",
                "        _report(delivery, error)\n        return False\n    return result\n",
            ),
        ),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A delivered payload is freed, also when the delivery failed, and when nothing follows.",
        "The delivery thread keeps the last delivery while it sleeps.",
        "        if isinstance(delivery, Delivery):\n            return",
        "        if isinstance(delivery, Delivery):\n            self._latest = delivery\n            return",
        ("test_an_idle_registry_keeps_no_delivered_payload_alive",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A delivered payload is freed, also when the delivery failed, and when nothing follows.",
        "The last error of a delivery is kept.",
        "        _report(delivery, error)\n",
        "        _report(delivery, error)\n        sys.last_value = error\n",
        ("test_an_idle_registry_keeps_no_delivered_payload_alive",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A delivered payload is freed, also when the delivery failed, and when nothing follows.",
        "A delivered message stays until the next publication on its topic.",
        "    def take_target(self) -> Subscription:\n        position, subscription = next(self.targets())\n",
        "    def take_target(self) -> Subscription:\n"
        "        position, subscription = next(self.targets())\n"
        "        subscription.topic.last = self.message\n",
        ("test_an_idle_registry_keeps_no_delivered_message_alive",),
        also=(("    live: int = 0\n", "    live: int = 0\n    last: Any = None\n"),),
        file=_STATE,
    ),
    Fault(
        "G13",
        "What a reset, a close or a refused operation was given is freed.",
        "The error of a refused operation keeps its frame alive, and so the payload.",
        "            try:\n"
        "                raise self.error\n"
        "            finally:\n"
        "                self.error = None  # or the error would keep this frame alive, and the frame "
        "the error\n",
        "            raise self.error\n",
        ("test_a_refused_operation_keeps_no_payload_alive",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A registry that was dropped with nothing pending is collected; with something pending it delivers it.",
        "A registry that is dropped keeps its threads.",
        "            if state.closed or state.orphaned:",
        "            if state.closed:",
        ("test_an_unreferenced_registry_with_nothing_pending_is_collected",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A registry that was dropped with nothing pending is collected; with something pending it delivers it.",
        "A dropped registry drops what is pending.",
        "        self.orphaned = True\n\n",
        "        self.orphaned = True\n        self.reset()\n\n",
        ("test_an_unreferenced_registry_still_delivers_its_timers",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A registry that was dropped with nothing pending is collected; with something pending it delivers it.",
        "The list of all actors keeps every registry that ever was.",
        "        self.begin_anew()\n        _ACTORS.add(self)\n",
        "        self.begin_anew()\n        self._kept = hooks\n        _ACTORS.add(self)\n",
        ("test_a_sleeping_registry_is_collected_once_its_timers_are_gone[cancelled]",),
        also=(("_ACTORS: Final[weakref.WeakSet[Actor]] = weakref.WeakSet()", "_ACTORS: Final[set[Actor]] = set()"),),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "Threads do not grow with what is pending, and end with the registry.",
        "After a close the delivery thread sleeps on.",
        "        self.ended = True\n        self.state.bell.put(None)\n        with",
        "        self.ended = True\n        with",
        ("test_close_ends_the_threads",),
        file=_ACTOR,
    ),
    Fault(
        "G13",
        "A baton that was replaced, taken or forgotten is freed immediately; before, it never expires.",
        "A handle on the registry's memory: a baton is kept when it is forgotten.",
        "        self.removed.append(self.pending_flow(cid))\n        return True\n",
        "        self._batons[cid] = None\n        return True\n",
        ("test_conversations_that_never_connected_leave_nothing",),
        file=_STATE,
    ),
    Fault(
        "G13",
        "A cancelled timer is freed immediately, with its payload and its place in every container.",
        "A handle keeps the payload of its timer alive.",
        "        return _Handle(self._actor, timer)\n",
        "        timer.instance_id = timer.instance_id\n"
        "        handle = _Handle(self._actor, timer)\n"
        "        handle.event = spec\n"
        "        return handle\n",
        ("test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
        also=(('    __slots__ = ("_actor", "_timer")', '    __slots__ = ("_actor", "_timer", "event")'),),
        file=_OPERATIONS,
    ),
    Fault(
        "G13",
        "Nothing grows with the conversations that ever existed, nor with waits in vain.",
        "A `settle` or `join` whose timeout has passed stays in the list of those who wait.",
        "        finally:\n            self._defer(None, State.stop_waiting, (waiter,))\n",
        "        finally:\n            pass\n",
        ("test_waiting_in_vain_leaves_nothing",),
        file=_ACTOR,
    ),
    # G14
    Fault(
        "G14",
        "Scheduling and cancelling cost the same beside many other timers.",
        "A cancel of a conversation's timers looks through the whole heap.",
        "return self._cancel(self._timers.of(cid, instance_id))",
        "wanted = (cid, instance_id)\n"
        "        mine = [each for _, each in self._heap if each.spec is not None and each.cid == cid]\n"
        "        return self._cancel([each for each in mine if wanted[1] in (None, each.instance_id)])",
        ("test_schedule_and_cancel_cost_the_same_with_many_timers",),
        file=_STATE,
    ),
    Fault(
        "G14",
        "Unsubscribing costs the same for an instance or a conversation with many subscriptions.",
        "An unsubscribe from one topic looks through all subscriptions of the instance.",
        "        subscription = self._subscriptions.get(cid, instance_id, topic_name)\n"
        "        return 0 if subscription is None else self._end([subscription])\n",
        "        mine = self._subscriptions.of(cid, instance_id)\n"
        "        return self._end([each for each in mine if each.topic.name == topic_name])\n",
        ("test_unsubscribe_costs_the_same_for_an_instance_with_many_topics",),
        file=_STATE,
    ),
    Fault(
        "G14",
        "Unsubscribing costs the same for an instance or a conversation with many subscriptions.",
        "An unsubscribe of one instance looks through all subscriptions of the conversation.",
        "            return self._end(self._subscriptions.of(cid, instance_id))\n",
        "            mine = self._subscriptions.of(cid)\n"
        "            return self._end([each for each in mine if each.instance_id == instance_id])\n",
        ("test_unsubscribing_one_instance_costs_the_same_in_a_large_conversation",),
        file=_STATE,
    ),
    Fault(
        "G14",
        "Ending a conversation costs the same in a large registry.",
        "To end a conversation looks through all topics.",
        "        return self._end(self._subscriptions.of(cid))\n",
        "        topics = list(self._topics.values())\n"
        "        return self._end([each for topic in topics for each in topic.subscribers if each.cid == "
        "cid and not each.ended])\n",
        ("test_removing_a_conversation_costs_the_same_in_a_large_registry",),
        file=_STATE,
    ),
    Fault(
        "G14",
        "A publication costs its caller the same for any number of subscribers.",
        "A publication counts the subscribers of its topic.",
        "targets = topic.live if topic else 0",
        "targets = sum(not each.ended for each in topic.subscribers) if topic else 0",
        ("test_publish_costs_its_caller_the_same_for_many_subscribers",),
        file=_STATE,
    ),
    # G15
    Fault(
        "G15",
        "An operation for which there is no room, no thread or no open registry has changed nothing.",
        "The room is checked when the timer is in the heap already.",
        "        self._require_room(1)\n"
        "        timer.order = due, _ = self._instant(now) + delay, next(self._numbers)\n"
        "        timer.spec = spec\n"
        "        heappush(self._heap, (timer.order, timer))\n"
        "        self._timers.add(timer.cid, timer.instance_id, timer, timer)\n",
        "        timer.order = due, _ = self._instant(now) + delay, next(self._numbers)\n"
        "        timer.spec = spec\n"
        "        heappush(self._heap, (timer.order, timer))\n"
        "        self._timers.add(timer.cid, timer.instance_id, timer, timer)\n"
        "        self._require_room(0)\n",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
        file=_STATE,
    ),
    Fault(
        "G15",
        "An operation for which there is no room, no thread or no open registry has changed nothing.",
        "A refused publication is counted as accepted.",
        "        self._require_room(targets)\n        if topic:\n",
        "        self._accepted += targets\n        self._require_room(targets)\n        if topic:\n",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
        also=(
            (
                "            self._queued += targets\n            self._accepted += targets\n",
                "            self._queued += targets\n",
            ),
        ),
        file=_STATE,
    ),
    Fault(
        "G15",
        "A name that is none is refused, and nothing has changed.",
        "The instance of a timer is not checked.",
        'Timer(_name("cid", cid), _name("instance_id", instance_id))',
        'Timer(_name("cid", cid), instance_id)',
        ("test_schedule_event_refuses_an_invalid_name",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "A name that is none is refused, and nothing has changed.",
        "An empty instance means all instances.",
        "return None if value is None else _name(parameter, value)",
        "return _name(parameter, value) if value else None",
        ("test_cancel_timers_refuses_an_invalid_name",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "A name that is none is refused, and nothing has changed.",
        "An empty name is accepted.",
        '    if not name:\n        raise ValueError(f"{parameter} must not be empty. Give a name.")\n',
        "",
        ("test_put_pending_flow_refuses_an_invalid_name",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "A name that is none is refused, and nothing has changed.",
        "The topic of a message is not checked.",
        '        topic = _name("topic", topic)\n        return',
        "        return",
        ("test_publish_refuses_an_invalid_topic",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.",
        "None is put as a baton.",
        "        if flow_id is None:\n"
        '            raise TypeError("flow_id must not be None, which means that there is none. Give any '
        'other object.")\n',
        "",
        ("test_put_pending_flow_refuses_none",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.",
        "A dispatch is installed before it is checked.",
        "        if not callable(dispatch):\n            raise TypeError",
        "        self._hooks.dispatch = dispatch\n        if not callable(dispatch):\n            raise TypeError",
        ("test_a_dispatch_that_is_not_callable_is_refused",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.",
        "The name inside an event is not checked.",
        'return (_name("the name of event", items[0]), *items[1:])',
        "return items",
        ("test_schedule_event_refuses_an_invalid_event",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.",
        "An empty event raises IndexError.",
        '    if not items:\n        raise ValueError("event must not be empty. Give a name, or (name, payload).")\n',
        "",
        ("test_schedule_event_refuses_an_invalid_event",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "The same holds for an event, a delay, a baton of None, a dispatch and a payload.",
        "The event of a subscription is checked when its topic has been changed.",
        "        self._actor.add(None, State.subscribe, *names, _spec(event))\n",
        '        self._actor.add(None, State.subscribe, *names, "")\n'
        "        self._actor.add(None, State.subscribe, *names, _spec(event))\n",
        ("test_subscribe_refuses_an_invalid_event",),
        file=_OPERATIONS,
    ),
    Fault(
        "G15",
        "An operation that Ctrl-C interrupts leaves a consistent state.",
        "After Ctrl-C a thread takes the answer of the last call for that of the next: it has one queue for all.",
        "        self.answered: SimpleQueue[None] = SimpleQueue()\n",
        "        self.answered = _ANSWERS.setdefault(threading.get_ident(), SimpleQueue())\n",
        ("test_an_interrupt_at_any_line_leaves_the_registry_consistent[put_pending_flow-c1]",),
        also=(("class Call:\n", "_ANSWERS: dict[int, Any] = {}\n\n\nclass Call:\n"),),
        file=_ACTOR,
        quick=False,
    ),
    # G16
    Fault(
        "G16",
        "A publication targets those who are subscribed at its instant, and counts them.",
        "A message that is queued reaches who subscribes before it is delivered.",
        "        topic.live += 1\n",
        "        topic.live += 1\n"
        "        for publication in self._publications:\n"
        "            late = publication.subscribers is topic.subscribers\n"
        "            publication.left += late\n"
        "            self._queued, self._accepted = self._queued + late, self._accepted + late\n",
        ("test_publish_targets_the_subscribers_at_the_call",),
        file=_STATE,
    ),
    Fault(
        "G16",
        "A publication targets those who are subscribed at its instant, and counts them.",
        "A publication counts ended subscriptions as targets.",
        "targets = topic.live if topic else 0",
        "targets = len(topic.subscribers) if topic else 0",
        ("test_publish_targets_the_subscribers_at_the_call",),
        file=_STATE,
    ),
    Fault(
        "G16",
        "A subscriber who stays misses nothing while others come and go.",
        "A topic drops its ended subscriptions from the list that a publication in progress reads.",
        "                topic.subscribers = [other for other in topic.subscribers if not other.ended]",
        "                topic.subscribers[:] = [other for other in topic.subscribers if not other.ended]",
        ("test_a_handler_may_change_its_topic_in_the_middle_of_a_message",),
        file=_STATE,
    ),
    Fault(
        "G16",
        "A subscriber who stays misses nothing while others come and go.",
        "Who has unsubscribed since a publication is left out of its targets, and another one, too.",
        "if not subscription.ended or subscription.ended > self.order[1]:",
        "if not subscription.ended:",
        ("test_a_handler_may_change_its_topic_in_the_middle_of_a_message",),
        file=_STATE,
    ),
    Fault(
        "G16",
        "`subscriptions()` shows what there is, and returns copies.",
        "`subscriptions` shows ended subscriptions, too.",
        "for each in topic.subscribers if not each.ended}",
        "for each in topic.subscribers}",
        ("test_a_handler_can_unsubscribe_a_later_target_of_its_message",),
        file=_STATE,
    ),
    Fault(
        "G16",
        "`subscriptions()` shows what there is, and returns copies.",
        "`subscriptions` hands out the lists of events.",
        'return (_name("the name of event", items[0]), *items[1:])',
        'return event if isinstance(event, list) and _name("event", event[0]) else (_name("the name of '
        'event", items[0]), *items[1:])',
        ("test_subscriptions_shows_topics_subscribers_and_events",),
        file=_OPERATIONS,
    ),
    # G17
    Fault(
        "G17",
        "A message is passed on, and neither copied, compared, hashed, tested nor shown.",
        "A message that is not true counts as no payload.",
        "Event(subscription.instance_id, name, publication.message, due",
        "Event(subscription.instance_id, name, publication.message or NO_PAYLOAD, due",
        ("test_a_message_is_passed_by_reference_and_never_touched",),
        file=_STATE,
    ),
    Fault(
        "G17",
        "A message is passed on, and neither copied, compared, hashed, tested nor shown.",
        "The event of a delivery is shown in a log record of the level DEBUG.",
        "        result: object = delivery.hooks.dispatch(delivery.cid, delivery.event)\n",
        '        _LOG.debug(f"Delivering {delivery.event!r} to {delivery.cid!r}")\n'
        "        result: object = delivery.hooks.dispatch(delivery.cid, delivery.event)\n",
        ("test_a_message_is_passed_by_reference_and_never_touched",),
        file=_ACTOR,
    ),
    Fault(
        "G17",
        "The same holds for the payload of a timer.",
        "The payload of a timer is tested for its truth.",
        "payload[0] if payload else NO_PAYLOAD",
        "payload[0] if payload and payload[0] else NO_PAYLOAD",
        ("test_a_timers_payload_is_passed_by_reference_and_never_touched",),
        file=_STATE,
    ),
    Fault(
        "G17",
        "The same holds for a baton.",
        "A baton is looked for among those that wait.",
        "        self.removed.append(self._batons.get(cid))\n",
        "        self.removed.append(self._batons.get(cid))\n"
        "        if flow_id in self._batons.values():\n"
        "            return\n",
        ("test_a_baton_is_passed_by_reference_and_never_touched",),
        file=_STATE,
    ),
    Fault(
        "G17",
        "The same holds for a baton.",
        "A baton is compared with None by ==.",
        "if flow_id is None:",
        "if flow_id == None:",
        ("test_a_baton_is_passed_by_reference_and_never_touched",),
        file=_OPERATIONS,
    ),
    Fault(
        "G17",
        "The same holds when the delivery fails.",
        "The report of a failure shows the event.",
        '_LOG.error("The delivery of %r to %r failed", delivery.event.name,',
        '_LOG.error("The delivery of %r to %r failed", delivery.event,',
        ("test_the_report_of_a_failure_does_not_touch_the_payload",),
        file=_ACTOR,
    ),
    Fault(
        "G17",
        "No method of a name's own class is called.",
        "A name is taken as it is, an object of a subclass of str included.",
        "name = str.__str__(value)",
        "name = value",
        ("test_the_methods_of_a_str_subclass_are_never_called",),
        file=_OPERATIONS,
    ),
    Fault(
        "G17",
        "No method of a name's own class is called.",
        "A name is converted with its own method.",
        "name = str.__str__(value)",
        "name = str(value)",
        ("test_the_methods_of_a_str_subclass_are_never_called",),
        file=_OPERATIONS,
    ),
    Fault(
        "G17",
        "No method of a name's own class is called.",
        "A name's own method tells whether it is empty.",
        "    if not name:\n",
        "    if not value:\n",
        ("test_the_methods_of_a_str_subclass_are_never_called",),
        file=_OPERATIONS,
    ),
    # G18
    Fault(
        "G18",
        "After a reset nothing accepted before it begins.",
        "A reset leaves the messages that are queued.",
        "        self._make_empty()\n\n    def _make_empty",
        "        self._publications: deque[Publication] = deque()\n"
        "        self._queued = 0\n"
        "        self._make_empty()\n"
        "\n"
        "    def _make_empty",
        ("test_nothing_accepted_before_a_reset_begins_after_it",),
        also=(
            (
                "        self._publications: deque[Publication] = deque()\n        self._queued = 0\n\n    # Batons",
                "\n    # Batons",
            ),
        ),
        file=_STATE,
    ),
    Fault(
        "G18",
        "After a reset nothing accepted before it begins.",
        "A reset leaves the timers.",
        "        self._heap: list[tuple[tuple[int, int], Timer]] = []\n"
        "        self._timers: Index[Timer, Timer] = Index()\n"
        "        self._topics: dict[str, Topic] = {}\n",
        "        self._topics: dict[str, Topic] = {}\n",
        ("test_nothing_accepted_before_a_reset_begins_after_it",),
        also=(
            (
                "        self._make_empty()\n\n    def _make",
                "        self._heap: list[tuple[tuple[int, int], Timer]] = []\n"
                "        self._timers: Index[Timer, Timer] = Index()\n"
                "        self._make_empty()\n"
                "\n"
                "    def _make",
            ),
            ("            timer.spec = None  # a handle may keep the timer, and shall not keep the payload\n", ""),
        ),
        file=_STATE,
    ),
    Fault(
        "G18",
        "This holds in the middle of a fan-out, and beside a delivery that runs.",
        "A reset lets the publication that is being delivered reach its other targets.",
        "        self.removed += filter(None, containers)\n        self._make_empty()\n",
        "        begun = [each for each in self._publications if each.position]\n"
        "        self.removed += filter(None, containers)\n"
        "        self._make_empty()\n"
        "        self._publications.extend(begun)\n"
        "        self._queued = sum(each.left for each in begun)\n",
        ("test_a_reset_during_a_fan_out_drops_the_remaining_targets",),
        file=_STATE,
    ),
    # G19
    Fault(
        "G19",
        "A delivery that raises stops no other delivery, whatever it raises.",
        "SystemExit out of a handler ends the delivery thread.",
        "    except BaseException as error:  # noqa: BLE001 - whatever it is, it stops no other delivery",
        "    except Exception as error:",
        ("test_a_delivery_that_raises_stops_no_other[Unusual-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is counted as failed and logged once on `stube`, with its traceback.",
        "A failure is not logged where `on_error` is given.",
        "    with suppress(BaseException):\n"
        '        _LOG.error("The delivery of %r to %r failed", delivery.event.name, delivery.cid, '
        "exc_info=error)\n"
        "    if delivery.hooks.on_error is not None:\n",
        "    if delivery.hooks.on_error is None:\n"
        "        with suppress(BaseException):\n"
        '            _LOG.error("The delivery of %r to %r failed", delivery.event.name, delivery.cid, '
        "exc_info=error)\n"
        "    else:\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is counted as failed and logged once on `stube`, with its traceback.",
        "A failure is logged without its traceback.",
        "delivery.event.name, delivery.cid, exc_info=error)",
        "delivery.event.name, delivery.cid)",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is counted as failed and logged once on `stube`, with its traceback.",
        "A failure is logged on a logger of the backend's own.",
        'logging.getLogger("stube")',
        'logging.getLogger("globex")',
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is counted as failed and logged once on `stube`, with its traceback.",
        "A failure is logged as a warning on a logger below `stube`.",
        'logging.getLogger("stube")',
        'logging.getLogger("stube.globex")',
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is counted as failed and logged once on `stube`, with its traceback.",
        "A failure counts as delivered.",
        "        _report(delivery, error)\n        return False\n",
        "        _report(delivery, error)\n",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is passed to `on_error`, and runs until that has returned.",
        "`on_error` gets the exception before the event.",
        "delivery.hooks.on_error(delivery.cid, delivery.event, error)",
        "delivery.hooks.on_error(delivery.cid, error, delivery.event)",
        ("test_a_delivery_that_raises_stops_no_other[LookupError-message]",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is passed to `on_error`, and runs until that has returned.",
        "`on_error` runs on a thread of its own.",
        "            delivery.hooks.on_error(delivery.cid, delivery.event, error)\n",
        "            arguments = delivery.cid, delivery.event, error\n"
        "            threading.Thread(target=delivery.hooks.on_error, args=arguments, "
        "daemon=True).start()\n",
        ("test_a_failed_delivery_runs_until_on_error_has_returned",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "An `on_error` or a log handler that raises stops nothing; both may call the registry.",
        "SystemExit out of `on_error` ends the delivery thread.",
        "        except BaseException as second:  # noqa: BLE001 - it stops nothing either",
        "        except Exception as second:",
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "An `on_error` or a log handler that raises stops nothing; both may call the registry.",
        "A log handler that raises keeps the failure from `on_error`, and ends the delivery thread.",
        '    with suppress(BaseException):\n        _LOG.error("The delivery of',
        '    if True:\n        _LOG.error("The delivery of',
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "An `on_error` or a log handler that raises stops nothing; both may call the registry.",
        "A log handler that raises while an error of `on_error` is logged ends the delivery thread.",
        '            with suppress(BaseException):\n                _LOG.error("on_error',
        '            if True:\n                _LOG.error("on_error',
        ("test_an_on_error_or_log_handler_that_raises_stops_no_delivery",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "A coroutine that cannot be awaited is closed, its delivery has failed, and the error names a backend.",
        "A returned coroutine is not closed.",
        "            result.close()\n",
        "",
        ("test_a_returned_coroutine_is_awaited_or_closed_as_failed",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "A coroutine that cannot be awaited is closed, its delivery has failed, and the error names a backend.",
        "A returned coroutine is ignored, and its delivery counts as delivered.",
        "            result.close()\n            raise",
        "            result.close()\n            return True\n            raise",
        ("test_a_returned_coroutine_is_awaited_or_closed_as_failed",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "A coroutine that cannot be awaited is closed, its delivery has failed, and the error names a backend.",
        "An async function is accepted as a dispatch.",
        "        if is_coroutine_function(dispatch):\n",
        "        if False:\n",
        ("test_an_async_dispatch_is_awaited_or_refused_at_the_call[function]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G19",
        "A coroutine that cannot be awaited is closed, its delivery has failed, and the error names a backend.",
        "An object whose `__call__` is async, or a partial of an async function, is accepted as a dispatch.",
        "        if is_coroutine_function(dispatch):\n",
        '        if getattr(getattr(dispatch, "__code__", None), "co_flags", 0) & 0x80:\n',
        ("test_an_async_dispatch_is_awaited_or_refused_at_the_call[partial]",),
        file=_OPERATIONS,
        quick=False,
    ),
    Fault(
        "G19",
        "`ConversationEnded` out of a delivery is no failure.",
        "ConversationEnded is a failure.",
        "    except ConversationEnded as error:\n",
        "    except () as error:\n",
        ("test_conversation_ended_raised_by_a_handler_is_no_failure",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "`ConversationEnded` out of a delivery is no failure.",
        "A log handler that fails on the end of a conversation ends the delivery thread.",
        "        with suppress(BaseException):\n            _LOG.debug(",
        "        if True:\n            _LOG.debug(",
        ("test_conversation_ended_is_no_failure_when_logging_fails",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "`ConversationEnded` out of a delivery is no failure.",
        "The end of a conversation is logged as a warning.",
        '_LOG.debug("A delivery',
        '_LOG.warning("A delivery',
        ("test_conversation_ended_raised_by_a_handler_is_no_failure",),
        file=_ACTOR,
        quick=False,
    ),
    # G20
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "A replaced baton is freed on the state thread.",
        "        self.removed.append(self._batons.get(cid))\n",
        "",
        ("test_no_destructor_runs_under_a_lock[replace_a_baton]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "A forgotten baton is freed on the state thread.",
        "        self.removed.append(self.pending_flow(cid))\n",
        "        self.pending_flow(cid)\n",
        ("test_no_destructor_runs_under_a_lock[forget_a_baton]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "The event of a cancelled timer is freed on the state thread.",
        "        self.removed.append(timer.spec)\n        timer.spec = None\n        if",
        "        timer.spec = None\n        if",
        ("test_no_destructor_runs_under_a_lock[cancel_timers]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "The event of a timer that a reset forgets is freed on the state thread.",
        "            self.removed.append(timer.spec)\n            timer.spec = None  #",
        "            timer.spec = None  #",
        ("test_no_destructor_runs_under_a_lock[reset]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "A replaced event of a subscription is freed on the state thread.",
        "            self.removed.append(subscription.spec)\n            subscription.spec = spec\n",
        "            subscription.spec = spec\n",
        ("test_no_destructor_runs_under_a_lock[replace_a_spec]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "The event of an ended subscription is freed on the state thread.",
        '            self.removed.append(subscription.spec)\n            subscription.spec = ""\n',
        '            subscription.spec = ""\n',
        ("test_no_destructor_runs_under_a_lock[unsubscribe]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "A publication is freed on the state thread when its last target has been reached.",
        "self.removed.append(self._publications.popleft())",
        "self._publications.popleft()",
        ("test_no_destructor_runs_under_a_lock[cancel_what_is_queued]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "What a reset forgets is freed on the state thread.",
        "        self.removed += filter(None, containers)\n        self._make_empty()\n",
        "        self._make_empty()\n",
        ("test_no_destructor_runs_under_a_lock[reset]",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "What an operation has removed is freed on the state thread.",
        "            call.removed, state.removed = state.removed, []\n",
        "            call.removed, state.removed = [], []\n",
        ("test_no_destructor_runs_under_a_lock[replace_a_baton]",),
        file=_ACTOR,
    ),
    Fault(
        "G20",
        "No user code and no logging runs under a lock, or on a thread that others wait for.",
        "The state thread reads the clock when it accepts a timer.",
        "self._instant(now) + delay,",
        "self._instant(hooks.clock()) + delay,",
        ("test_a_custom_clock_is_never_read_under_a_lock",),
        file=_STATE,
    ),
    Fault(
        "G20",
        "A finalizer may call every operation, whichever operation it interrupts.",
        "A finalizer that the state thread runs waits for the state thread.",
        "        return on_state_thread or self._state_thread",
        "        return self._state_thread",
        ("test_the_collector_may_run_a_finalizer_in_any_operation",),
        file=_ACTOR,
    ),
    Fault(
        "G20",
        "A finalizer may call every operation, whichever operation it interrupts.",
        "A finalizer that the state thread runs waits for the state thread when it reads.",
        "        if threading.get_ident() == self._state_thread.ident:\n"
        "            return operation(self.state, *arguments, **named)\n"
        "        return self",
        "        return self",
        ("test_the_collector_may_run_a_finalizer_in_any_operation",),
        file=_ACTOR,
    ),
    Fault(
        "G20",
        "Every operation may interrupt any other, at any line, on the same names, and twice.",
        "Deferred calls run in reverse order.",
        "self._deferred.popleft().run(state)",
        "self._deferred.pop().run(state)",
        ("test_reentrant_calls_in_the_first_operation_keep_their_order",),
        file=_ACTOR,
        quick=False,
    ),
    Fault(
        "G20",
        "It may interrupt the first operation, and the delivery thread.",
        "An operation that interrupts the start of a thread starts it again.",
        "return on_state_thread or self._state_thread.is_starting_here() or self._delivery_thread.is_starting_here()",
        "return on_state_thread",
        ("test_the_first_operation_may_be_interrupted[schedule_event-schedule_event]",),
        file=_ACTOR,
    ),
    Fault(
        "G20",
        "Every operation may interrupt any other, at any line, on the same names, and twice.",
        "A thread has one queue for all answers, so a signal handler takes that of the call it interrupts.",
        "        self.answered: SimpleQueue[None] = SimpleQueue()\n",
        "        self.answered = _ANSWERS.setdefault(threading.get_ident(), SimpleQueue())\n",
        ("test_any_operation_may_interrupt_any_other_at_any_line[put_pending_flow]",),
        also=(("class Call:\n", "_ANSWERS: dict[int, Any] = {}\n\n\nclass Call:\n"),),
        file=_ACTOR,
        error="TypeError",
    ),
    Fault(
        "G20",
        "A signal handler may raise.",
        "An exception in the middle of a start leaves it marked as interrupted.",
        "        while frame is not None and frame is not started_by:\n"
        "            frame = frame.f_back\n"
        "        return frame is not None\n",
        "        return frame is not None\n",
        ("test_a_handler_returns_before_a_timer_it_schedules_begins",),
        also=(
            (
                "        finally:\n            self._starting.pop(threading.get_ident(), None)\n",
                "        finally:\n            pass\n",
            ),
        ),
        file=_ACTOR,
        quick=False,
    ),
    # G21
    Fault(
        "G21",
        "Deliveries go to the dispatch that is installed when they begin, with the cid and the event.",
        "The dispatch is looked up when something is accepted.",
        "        self._accepted += 1\n        self.hooks = hooks\n",
        "        self._accepted += 1\n        self.hooks = Hooks(hooks.dispatch, hooks.clock, hooks.on_error)\n",
        ("test_a_handler_may_replace_the_dispatch",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A baton is there at once, may be falsy, and is replaced by a second one.",
        "A baton that is not true cannot be forgotten.",
        "        if cid not in self._batons:\n",
        "        if not self._batons.get(cid):\n",
        ("test_forget_pending_flow_returns_whether_there_was_a_baton['']",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A baton is there at once, may be falsy, and is replaced by a second one.",
        "The first baton stays.",
        "        self._batons[cid] = flow_id\n",
        "        self._batons.setdefault(cid, flow_id)\n",
        ("test_a_second_put_replaces_the_first",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A timer delivers the name and the payload of its spec, as they were at the call.",
        "A payload of None is no payload.",
        "payload[0] if payload else NO_PAYLOAD",
        "payload[0] if payload != (None,) and payload else NO_PAYLOAD",
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[('tick', None)-'tick'-None]",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A timer delivers the name and the payload of its spec, as they were at the call.",
        "One payload is delivered as a tuple.",
        "payload if len(payload) > 1 else payload[0] if payload else NO_PAYLOAD",
        "payload or NO_PAYLOAD",
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[('tick', 1)-'tick'-1]",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A timer delivers the name and the payload of its spec, as they were at the call.",
        "Only the first of several payloads is delivered.",
        "payload if len(payload) > 1 else payload[0] if payload else NO_PAYLOAD",
        "payload[0] if payload else NO_PAYLOAD",
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[('tick', 1, 2)-'tick'-(1, 2)]",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "A timer delivers the name and the payload of its spec, as they were at the call.",
        "The list of an event is not copied.",
        "    items: tuple[Any, ...] = tuple(event)\n",
        "    items = event\n",
        ("test_a_timer_delivers_the_name_and_the_payload_of_its_spec[['tick', 1, 2]-'tick'-(1, 2)]",),
        also=(
            (
                'return (_name("the name of event", items[0]), *items[1:])',
                'return items if _name("the name of event", items[0]) else ()',
            ),
        ),
        file=_OPERATIONS,
    ),
    Fault(
        "G21",
        "A message reaches each subscriber of its topic once, under the name that each asked for.",
        "The payload of a subscription's own event is delivered with the message.",
        "        event = Event(subscription.instance_id, name, publication.message, due=publication.order[0])\n",
        "        own = () if isinstance(subscription.spec, str) else subscription.spec[1:]\n"
        "        message = (*own, publication.message) if own else publication.message\n"
        "        event = Event(subscription.instance_id, name, message, due=publication.order[0])\n",
        ("test_the_message_replaces_the_payload_of_the_spec['hello'-('said', 1)]",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Removing operations remove what they name, count it, and nothing else.",
        "`cancel_timers` ignores the instance.",
        "return self._cancel(self._timers.of(cid, instance_id))",
        "return self._cancel(self._timers.of(cid))",
        ("test_cancel_timers_with_an_instance_cancels_only_its_timers",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Removing operations remove what they name, count it, and nothing else.",
        "`unsubscribe` without a topic removes all of the conversation.",
        "            return self._end(self._subscriptions.of(cid, instance_id))\n",
        "            return self._end(self._subscriptions.of(cid))\n",
        ("test_unsubscribe_without_a_topic_removes_all_of_the_instance",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Removing operations remove what they name, count it, and nothing else.",
        "`unsubscribe` without a topic removes the first topic only.",
        "            return self._end(self._subscriptions.of(cid, instance_id))\n",
        "            return self._end(self._subscriptions.of(cid, instance_id)[:1])\n",
        ("test_unsubscribe_without_a_topic_removes_all_of_the_instance",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Removing operations remove what they name, count it, and nothing else.",
        "A reset starts the ledger anew.",
        "        self.removed += filter(None, containers)\n        self._make_empty()\n",
        "        self.removed += filter(None, containers)\n"
        "        self._accepted = self._delivered = self._failed = self._cancelled = self._dropped = 0\n"
        "        self._make_empty()\n",
        ("test_reset_state_forgets_everything_but_the_dispatch",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Removing operations remove what they name, count it, and nothing else.",
        "A reset keeps the batons.",
        "        self._batons: dict[str, Any] = {}\n        self._heap",
        "        self._heap",
        ("test_reset_state_forgets_everything_but_the_dispatch",),
        also=(
            (
                "        self._make_empty()\n\n    def _make",
                "        self._batons: dict[str, Any] = {}\n        self._make_empty()\n\n    def _make",
            ),
        ),
        file=_STATE,
    ),
    Fault(
        "G21",
        "Names are plain strings, and no two of them collide.",
        "Names are brought into a normal form.",
        "name = str.__str__(value)",
        'name = __import__("unicodedata").normalize("NFC", str.__str__(value))',
        ("test_batons_of_awkward_names_never_collide",),
        file=_OPERATIONS,
    ),
    Fault(
        "G21",
        "`stats`, `inspect` and `subscriptions` show what there is.",
        "The time left of an overdue timer is negative.",
        "return max(0, nanoseconds) / 1_000_000",
        "return nanoseconds / 1_000_000",
        ("test_a_timer_that_is_overdue_has_no_time_left",),
        file=_STATE,
    ),
    Fault(
        "G21",
        "`stats`, `inspect` and `subscriptions` show what there is.",
        "`inspect` shows the timers in the order in which they were scheduled.",
        "for timer in sorted(self._timers.of(each), key=lambda timer: timer.order)",
        "for timer in self._timers.of(each)",
        ("test_inspect_shows_everything_that_each_conversation_holds",),
        file=_STATE,
    ),
    # G22
    Fault(
        "G22",
        "`max_pending` bounds timers and queued messages together.",
        "Only timers count for the bound.",
        "taken = self._timers.count + self._queued",
        "taken = self._timers.count",
        ("test_max_pending_bounds_timers_and_messages_together",),
        file=_STATE,
    ),
    Fault(
        "G22",
        "`max_pending` bounds timers and queued messages together.",
        "There is room for as many timers and for as many messages.",
        "taken = self._timers.count + self._queued",
        "taken = max(self._timers.count, self._queued)",
        ("test_max_pending_bounds_timers_and_messages_together",),
        file=_STATE,
    ),
    Fault(
        "G22",
        "An operation that would exceed it raises `RegistryFull` and changes nothing.",
        "One less than `max_pending` has room.",
        "taken + more > self.max_pending",
        "taken + more >= self.max_pending",
        ("test_one_conversation_may_use_all_of_max_pending",),
        file=_STATE,
    ),
    Fault(
        "G22",
        "An operation that would exceed it raises `RegistryFull` and changes nothing.",
        "A publication is refused only if there is no room at all.",
        "taken + more > self.max_pending",
        "taken + min(more, 1) > self.max_pending",
        ("test_an_operation_beyond_max_pending_is_refused_as_a_whole",),
        file=_STATE,
    ),
    # G23
    Fault(
        "G23",
        "Importing and creating start no thread and open nothing.",
        "The constructor starts the threads.",
        "        self.begin_anew()\n        _ACTORS",
        "        self.begin_anew()\n        self._state_thread.start()\n        _ACTORS",
        ("test_importing_and_creating_start_nothing",),
        file=_ACTOR,
    ),
    Fault(
        "G23",
        "Importing and creating start no thread and open nothing.",
        "The constructor starts the delivery thread, too early for a server that forks.",
        "        self.begin_anew()\n        _ACTORS",
        "        self.begin_anew()\n        self._delivery_thread.start()\n        _ACTORS",
        ("test_importing_and_creating_start_nothing",),
        file=_ACTOR,
    ),
    Fault(
        "G23",
        "Importing and creating start no thread and open nothing.",
        "The import starts a thread, which reports the backend's version.",
        "atexit.register(_close_at_exit)",
        "atexit.register(_close_at_exit)\n"
        'threading.Thread(target=threading.Event().wait, name="globex janitor", daemon=True).start()',
        ("test_importing_and_creating_start_nothing",),
        file=_ACTOR,
    ),
    Fault(
        "G23",
        "If none can be started, it raises and changes nothing.",
        "A thread counts as started before it has been started.",
        "            threading.Thread(target=self._run, name=self._name, daemon=True).start()\n"
        "            self.started = True\n",
        "            self.started = True\n"
        "            threading.Thread(target=self._run, name=self._name, daemon=True).start()\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[schedule_event-0]",),
        file=_ACTOR,
    ),
    Fault(
        "G23",
        "An operation that needs a thread starts one, once.",
        "A thread takes its token before it is started, and Ctrl-C may come in between.",
        "            threading.Thread(target=self._run, name=self._name, daemon=True).start()\n"
        "            self.started = True\n",
        "            self._token.get_nowait()\n"
        "            self._token.put(None)\n"
        "            self.started = True\n"
        "            threading.Thread(target=self._run, name=self._name, daemon=True).start()\n",
        ("test_an_operation_that_cannot_start_a_thread_changes_nothing[schedule_event-0]",),
        file=_ACTOR,
    ),
    Fault(
        "G23",
        "An operation that needs a thread starts one, once.",
        "A registry that only reads starts a thread.",
        "        return self._ask(operation, arguments)\n\n    def take",
        "        self._state_thread.start()\n        return self._ask(operation, arguments)\n\n    def take",
        ("test_importing_and_creating_start_nothing",),
        file=_ACTOR,
    ),
    # G24
    Fault(
        "G24",
        "`close` discards what has not begun, and is idempotent.",
        "A second close returns False.",
        "        self.state.closed = True\n        if not self._state_thread.started:\n",
        "        if self.state.closed:\n"
        "            return False\n"
        "        self.state.closed = True\n"
        "        if not self._state_thread.started:\n",
        ("test_close_drops_what_has_not_begun_and_is_idempotent",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "It is bounded by its timeout, and returns whether everything stopped.",
        "A close returns True although a delivery runs.",
        "not self.wait_until_idle(0, timeout, timers_too=True):\n            return False\n",
        "not self.wait_until_idle(0, timeout, timers_too=True):\n            return not self.is_delivering_here()\n",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "It is bounded by its timeout, and returns whether everything stopped.",
        "A close ignores its timeout, and waits for five seconds.",
        "not self.wait_until_idle(0, timeout, timers_too=True)",
        "not self.wait_until_idle(0, 5.0, timers_too=True)",
        ("test_close_waits_for_a_running_delivery_within_its_timeout",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "It may be called inside a delivery, and then does not wait; `settle` and `join` raise there.",
        "A close inside a delivery waits for its own delivery, within its timeout.",
        "        if self.is_delivering_here() or not self.wait",
        "        if not self.wait",
        ("test_close_inside_a_delivery_does_not_wait_for_itself",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "It may be called inside a delivery, and then does not wait; `settle` and `join` raise there.",
        "`settle` inside a delivery returns False after its timeout.",
        "        if self._actor.is_delivering_here():\n"
        '            raise RuntimeError("settle and join would wait for the delivery that calls them. '
        'Call them outside.")\n',
        "",
        ("test_settle_and_join_inside_a_delivery_raise[settle-dispatch]",),
        file=_OPERATIONS,
    ),
    Fault(
        "G24",
        "It ends the threads.",
        "A close leaves the delivery thread asleep.",
        "        self.ended = True\n        self.state.bell.put(None)\n        with",
        "        self.ended = True\n        with",
        ("test_close_ends_the_threads",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "It ends the threads.",
        "After a close inside a delivery the threads stay until somebody closes again.",
        "            if state.closed or state.orphaned:\n",
        "            if (state.closed and not state._running and state.waiters) or state.orphaned:\n",
        ("test_close_ends_the_threads",),
        file=_ACTOR,
    ),
    Fault(
        "G24",
        "Afterwards the operations that add raise `RegistryClosed`; those that remove or show do nothing.",
        "A closed registry takes batons.",
        "    def put_pending_flow(self, cid: str, flow_id: Any) -> None:\n        self._require_open()\n",
        "    def put_pending_flow(self, cid: str, flow_id: Any) -> None:\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
        file=_STATE,
    ),
    Fault(
        "G24",
        "Afterwards the operations that add raise `RegistryClosed`; those that remove or show do nothing.",
        "A closed registry takes subscriptions.",
        "        self._require_open()\n        subscription =",
        "        subscription =",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
        file=_STATE,
    ),
    Fault(
        "G24",
        "Afterwards the operations that add raise `RegistryClosed`; those that remove or show do nothing.",
        "A closed registry takes a dispatch.",
        "        if self._actor.state.closed:\n"
        '            raise RegistryClosed("The registry has been closed, so nothing can be installed. '
        'Create a new one.")\n',
        "",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
        file=_OPERATIONS,
    ),
    Fault(
        "G24",
        "Afterwards the operations that add raise `RegistryClosed`; those that remove or show do nothing.",
        "A publication without subscribers is accepted by a closed registry.",
        "        self._require_room(targets)\n        if topic:\n",
        "        if topic:\n            self._require_room(targets)\n",
        ("test_a_closed_registry_refuses_adding_and_allows_removing",),
        file=_STATE,
    ),
    Fault(
        "G24",
        "A program that ends without a close exits promptly, with code 0, and silently.",
        "The end of the program waits half a second for each registry.",
        "        actor.close(max(0, _AT_EXIT - (monotonic_ns() - started) / 1e9))\n",
        "        actor.close(_AT_EXIT)\n",
        ("test_a_program_that_does_not_close_exits_promptly_and_silently[twelve registries with a running delivery]",),
        file=_ACTOR,
        quick=False,
    ),
    # G25
    Fault(
        "G25",
        "A forked child has an empty, usable registry with the same options and dispatch.",
        "A forked child keeps its parent's state.",
        "    os.register_at_fork(after_in_child=_begin_anew_in_child)\n",
        "    pass\n",
        ("test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent[timer]",),
        file=_ACTOR,
    ),
    Fault(
        "G25",
        "A forked child has an empty, usable registry with the same options and dispatch.",
        "A forked child has no bound.",
        "        self.state = State(self._max_pending)\n",
        '        self.state = State(None if hasattr(self, "state") else self._max_pending)\n',
        ("test_a_forked_child_has_an_empty_usable_registry",),
        file=_ACTOR,
    ),
    Fault(
        "G25",
        "A forked child has an empty, usable registry with the same options and dispatch.",
        "A forked child forgets the dispatch.",
        "    for actor in list(_ACTORS):\n        actor.begin_anew()\n",
        "    for actor in list(_ACTORS):\n"
        "        actor.begin_anew()\n"
        "        hooks = actor._hooks()\n"
        "        if hooks is not None:\n"
        "            hooks.dispatch = lambda cid, event: None\n",
        ("test_a_forked_child_has_an_empty_usable_registry",),
        file=_ACTOR,
    ),
    Fault(
        "G25",
        "A forked child has an empty, usable registry with the same options and dispatch.",
        "A registry that has been used is closed in a forked child.",
        "        self.state = State(self._max_pending)\n",
        '        self.state = State(self._max_pending, closed=hasattr(self, "state") and self._state_thread.started)\n',
        ("test_a_forked_child_has_an_empty_usable_registry",),
        file=_ACTOR,
    ),
    Fault(
        "G25",
        "The parent's registry is not affected.",
        "The parent's registry is emptied, too.",
        "os.register_at_fork(after_in_child=_begin_anew_in_child)",
        "os.register_at_fork(after_in_child=_begin_anew_in_child, after_in_parent=_begin_anew_in_child)",
        ("test_a_forked_child_has_an_empty_usable_registry",),
        file=_ACTOR,
    ),
    Fault(
        "G25",
        "This holds when a handler forked it: the child delivers and counts nothing of its parent.",
        "A child that a handler has forked counts its parent's delivery.",
        "        self.state = State(self._max_pending)\n",
        '        running = hasattr(self, "state") and self.state._running is not None\n'
        "        self.state = State(self._max_pending)\n"
        "        self.state._delivered += running\n",
        ("test_a_child_does_not_count_the_delivery_that_forked_it[returns]",),
        file=_ACTOR,
    ),
    # G26
    Fault(
        "G26",
        "Two registries share no state: what one accepts, cancels, forgets or closes, the other does not see.",
        "Registries made without options share their dispatch.",
        "        self._hooks = Hooks(_ignore, clock or monotonic_ns, on_error)\n",
        "        self._hooks = Hooks(_ignore, clock or monotonic_ns, on_error) if clock or on_error else _DEFAULTS\n",
        ("test_two_registries_share_nothing",),
        also=(
            (
                "def _kind(value: object)",
                "_DEFAULTS = Hooks(_ignore, monotonic_ns, None)\n\n\ndef _kind(value: object)",
            ),
        ),
        file=_OPERATIONS,
    ),
    Fault(
        "G26",
        "Two registries share no state: what one accepts, cancels, forgets or closes, the other does not see.",
        "All registries share their batons.",
        "        self._batons: dict[str, Any] = {}\n        self._heap",
        "        self._heap",
        ("test_two_registries_share_nothing",),
        also=(
            (
                '    """Timers, topics, batons and the ledger of one registry."""\n',
                '    """Timers, topics, batons and the ledger of one registry."""\n'
                "\n"
                "    _batons: dict[str, Any] = {}\n",
            ),
        ),
        file=_STATE,
    ),
    Fault(
        "G26",
        "Two registries share no state: what one accepts, cancels, forgets or closes, the other does not see.",
        "A reset forgets the topics of all registries, which share them.",
        "        self._topics: dict[str, Topic] = {}\n",
        "        self._topics = _TOPICS\n        self._topics.clear()\n",
        ("test_two_registries_share_nothing",),
        also=(("class State:\n", "_TOPICS: dict[str, Topic] = {}\n\n\nclass State:\n"),),
        file=_STATE,
    ),
    Fault(
        "G26",
        "They share no lock: one that is stopped in an operation stops no other.",
        "All registries share the queue that wakes their delivery threads.",
        "        self.bell: SimpleQueue[None] = SimpleQueue()  # an",
        "        self.bell = _BELL  # an",
        ("test_a_registry_that_is_stopped_in_an_operation_stops_no_other[schedule_event]",),
        also=(("class State:\n", "_BELL: SimpleQueue[None] = SimpleQueue()\n\n\nclass State:\n"),),
        file=_STATE,
    ),
    Fault(
        "G26",
        "They share no lock: one that is stopped in an operation stops no other.",
        "All registries share one mailbox.",
        "        self._mailbox: SimpleQueue[Call | None] = SimpleQueue()  # None",
        "        self._mailbox = _MAILBOX  # None",
        (
            "test_two_registries_share_nothing",
            "test_the_ledger_of_one_registry_shows_nothing_of_another",
            "test_a_registry_that_is_stopped_in_a_delivery_stops_no_other",
        ),
        also=(("class Actor:\n", "_MAILBOX: SimpleQueue[Any] = SimpleQueue()\n\n\nclass Actor:\n"),),
        file=_ACTOR,
    ),
    # G21
    Fault(
        "G21",
        "Names are plain strings, and no two of them collide.",
        "The instance of a timer stays an object of a subclass of str.",
        'Timer(_name("cid", cid), _name("instance_id", instance_id))',
        'Timer(_name("cid", cid), instance_id if _name("instance_id", instance_id) else "")',
        ("test_a_str_subclass_is_stored_as_its_plain_string",),
        file=_OPERATIONS,
    ),
    # G17
    Fault(
        "G17",
        "No method of a name's own class is called.",
        "The topic of a message is looked up with the methods of its own class.",
        '        topic = _name("topic", topic)\n        return',
        '        _name("topic", topic)\n        return',
        ("test_the_methods_of_a_str_subclass_are_never_called",),
        file=_OPERATIONS,
    ),
    # G10
    Fault(
        "G10",
        "A new earliest timer wakes the scheduler, from any thread.",
        "The delivery thread sleeps for 200 ms at least, whatever is due.",
        "max(0, min(delivery - now, _LONGEST_SLEEP_NS))\n",
        "max(200_000_000, min(delivery - now, _LONGEST_SLEEP_NS))\n",
        ("test_a_new_earliest_timer_wakes_the_scheduler",),
        file=_ACTOR,
    ),
    # G19
    Fault(
        "G19",
        "`ConversationEnded` out of a delivery is no failure.",
        "ConversationEnded counts as a failure, but is not logged.",
        '            _LOG.debug("A delivery to %r met the end of its conversation: %s", delivery.cid, error)\n',
        '            _LOG.debug("A delivery to %r met the end of its conversation: %s", delivery.cid, '
        "error)\n"
        "        return False\n",
        ("test_conversation_ended_raised_by_a_handler_is_no_failure",),
        file=_ACTOR,
    ),
    Fault(
        "G19",
        "It is passed to `on_error`, and runs until that has returned.",
        "`on_error` is called for exceptions only, not for SystemExit and its like.",
        "    if delivery.hooks.on_error is not None:\n",
        "    if delivery.hooks.on_error is not None and isinstance(error, Exception):\n",
        ("test_a_delivery_that_raises_stops_no_other[Unusual-message]",),
        file=_ACTOR,
    ),
    # G24
    Fault(
        "G24",
        "It is bounded by its timeout, and returns whether everything stopped.",
        "A close that has returned False leaves the threads when the delivery ends.",
        "            if state.closed or state.orphaned:\n",
        "            if (state.closed and call is not None and call.operation is not "
        "State.next_delivery) or state.orphaned:\n",
        ("test_close_inside_a_delivery_ends_the_threads",),
        file=_ACTOR,
    ),
    # G6
    Fault(
        "G6",
        "A cancel neither waits for a running delivery nor counts it.",
        "A handle whose timer is being delivered says that it has cancelled it.",
        "return bool(self._timers.get(timer.cid, timer.instance_id, timer) and self._cancel([timer]))",
        "if self._running == timer.cid and timer.spec is None:\n"
        "            return True\n"
        "        return bool(self._timers.get(timer.cid, timer.instance_id, timer) and "
        "self._cancel([timer]))",
        ("test_a_cancel_ignores_a_delivery_that_has_begun",),
        file=_STATE,
    ),
    # G16
    Fault(
        "G16",
        "`subscriptions()` shows what there is, and returns copies.",
        "`subscriptions` shows only the names of the events.",
        "{(each.cid, each.instance_id): each.spec for each in topic.subscribers if not each.ended}",
        "{(each.cid, each.instance_id): each.spec if isinstance(each.spec, str) else each.spec[0] for "
        "each in topic.subscribers if not each.ended}",
        ("test_subscriptions_shows_topics_subscribers_and_events",),
        file=_STATE,
    ),
    # G13
    Fault(
        "G13",
        "What a reset, a close or a refused operation was given is freed.",
        "After a reset the handle of the timer that was due first keeps its payload.",
        "        for _, timer in self._heap:\n            self.removed.append(timer.spec)\n",
        "        for _, timer in self._heap[1:]:\n            self.removed.append(timer.spec)\n",
        ("test_a_handle_that_outlives_its_timer_keeps_no_payload_alive",),
        file=_STATE,
    ),
)
