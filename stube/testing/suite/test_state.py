"""State: the cost of operations, snapshots, payloads by reference, resets and the bound (G14 to G18, G22)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pytest

from stube import NO_PAYLOAD, Event, RegistryClosed, RegistryFull, Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Injector,
    first_difference,
    join_or_standstill,
    monotonic_ns,
    run_threads,
    tracing,
)
from stube.testing.suite._fixtures import HOUR, MakeRun, Untouchable, costly, guarantee, unchanged


@guarantee("G14")
@costly
def test_schedule_and_cancel_cost_the_same_with_many_timers(run: Driver) -> None:
    """Fault: a sorted list with O(n) insertion, or a search through all timers at a cancel.

    The cost of the cheapest call is compared with and without 100,000 other timers. It may grow 25 times; a linear
    algorithm would be thousands of times as slow.
    """

    def lowest() -> float:
        def schedule_and_cancel(number: int) -> None:
            run.schedule(HOUR + number, cid="mine")
            run.registry.cancel_timers("mine")

        return _lowest_cost(partial(schedule_and_cancel, number) for number in range(200))

    alone = lowest()
    _grow(lambda number: run.schedule(HOUR + number % 1000, cid=f"c{number % 1000}"), 100_000, "a timer")
    many = lowest()
    assert many < 25 * max(alone, 2_000), f"{many / 1000} us beside 100,000 timers, {alone / 1000} us alone"
    assert [run.registry.cancel_timers(cid) for cid in ("c0", "c1")] == [100, 100]


@guarantee("G14")
@costly
def test_subscribe_and_unsubscribe_cost_the_same_in_a_large_topic(run: Driver) -> None:
    """Fault: the subscribers of a topic are a tuple that is copied, or a list that is searched.

    Compared with and without 100,000 other subscribers of the same topic. A factor of 25 passes, linear cost fails.
    """

    def lowest() -> float:
        def come_and_go(number: int) -> None:
            run.subscribe("crowd", cid="mine", instance_id=f"i{number}")
            run.subscribe("crowd", cid="mine", instance_id="other")
            run.subscribe("crowd", "replaced", cid="mine", instance_id="other")
            run.registry.unsubscribe(cid="mine", instance_id=f"i{number}", topic="crowd")
            run.registry.remove_subscriptions_for_cid("mine")

        return _lowest_cost(partial(come_and_go, number) for number in range(200))

    alone = lowest()
    _grow(lambda number: run.subscribe("crowd", cid=f"c{number}"), 100_000, "a subscription")
    many = lowest()
    assert many < 25 * max(alone, 4_000), f"{many / 1000} us beside 100,000 subscribers, {alone / 1000} us alone"


@guarantee("G14")
def test_unsubscribe_costs_the_same_for_an_instance_with_many_topics(run: Driver) -> None:
    """Fault: an unsubscribe walks through all subscriptions of the instance. A factor of 25 passes."""

    def lowest(cid: str, topics: int) -> float:
        _grow(lambda number: run.subscribe(f"topic {number}", cid=cid), topics, "a subscription of one instance")

        def unsubscribe(number: int) -> None:
            assert run.registry.unsubscribe(cid=cid, instance_id="main", topic=f"topic {number}") == 1

        return _lowest_cost(partial(unsubscribe, number) for number in range(41))

    few, many = lowest("few", 100), lowest("many", 50_000)
    assert many < 25 * max(few, 2_000), f"{many / 1000} us out of 50,000 topics, {few / 1000} us out of 100"


def _grow(add: Callable[[int], object], count: int, what: str) -> None:
    """Add as many, and assert that the last ones cost what the first ones did.

    It adds ten times as many in each step, so that a linear cost fails at a thousand and does not take minutes. A
    factor of 25 passes. The time of fifty additions is taken, and of all these times the lower quartile counts.
    """
    first, done = 0.0, 0
    for size in (100, 1000, 10_000, 100_000):
        figures = []
        while done < min(size, count):
            start = monotonic_ns()
            for number in range(done, done + 50):
                add(number)
            figures.append((monotonic_ns() - start) / 50)
            done += 50
        if figures:
            each = sorted(figures)[len(figures) // 4]
            first = first or max(each, 2_000)
            assert each < 25 * first, f"{what}: {each / 1000} us beside {done} others, {first / 1000} us at first"


def _lowest_cost(calls: Iterable[Callable[[], object]]) -> float:
    """Return what the cheapest of the calls costs in nanoseconds.

    A busy machine makes calls slower and none cheaper, and an algorithm of linear cost makes every call slower.
    """
    figures = []
    for call in calls:
        start = monotonic_ns()
        call()
        figures.append(monotonic_ns() - start)
    return min(figures)


@guarantee("G14")
@pytest.mark.parametrize("how", ["handle", "instance"])
def test_cancelling_one_timer_costs_the_same_in_a_large_conversation(run: Driver, how: str) -> None:
    """Fault: a cancel walks through all timers of the conversation. Beside 50,000 others a factor of 25 passes."""

    def lowest(cid: str, others: int) -> float:
        def add(number: int) -> None:
            run.schedule(HOUR + number, cid=cid, instance_id=f"other {number % 5000}")

        _grow(add, others, "a timer of one conversation")
        handles = [run.schedule(HOUR, cid=cid, instance_id=f"i{number}") for number in range(41)]
        _grow(add, others, "a timer of one conversation")
        if how == "handle":
            return _lowest_cost(handle.cancel for handle in handles)
        return _lowest_cost(partial(run.registry.cancel_timers, cid, instance_id=f"i{number}") for number in range(41))

    few, many = lowest("few", 50), lowest("many", 25_000)
    assert many < 25 * max(few, 2_000), f"{many / 1000} us beside 50,000 others, {few / 1000} us beside 100"
    assert run.registry.cancel_timers("many") == 50_000


@guarantee("G14")
def test_unsubscribing_one_instance_costs_the_same_in_a_large_conversation(run: Driver) -> None:
    """Fault: an unsubscribe walks through all subscriptions of the conversation. A factor of 25 passes."""

    def lowest(cid: str, others: int) -> float:
        def add(number: int) -> None:
            run.subscribe(f"t{number % 7}", cid=cid, instance_id=f"other {number}")

        _grow(add, others, "a subscription of one conversation")
        for number in range(41):
            run.subscribe("t", cid=cid, instance_id=f"i{number}")
        return _lowest_cost(
            partial(run.registry.unsubscribe, cid=cid, instance_id=f"i{number}") for number in range(41)
        )

    few, many = lowest("few", 50), lowest("many", 50_000)
    assert many < 25 * max(few, 2_000), f"{many / 1000} us beside 50,000 others, {few / 1000} us beside 50"
    assert run.registry.remove_subscriptions_for_cid("many") == 50_000


@guarantee("G14")
@costly
def test_removing_a_conversation_costs_the_same_in_a_large_registry(run: Driver) -> None:
    """Fault: the removal visits every subscriber of the topic, or every topic of the registry.

    Compared with and without 100,000 other subscribers and 10,000 other topics. A factor of 25 passes, linear fails.
    """

    def lowest() -> float:
        def remove() -> None:
            assert run.registry.remove_subscriptions_for_cid("mine") == 2

        def removals() -> Iterator[Callable[[], None]]:
            for _ in range(200):
                run.subscribe("crowd", cid="mine")
                run.subscribe("mine", cid="mine")
                yield remove

        return _lowest_cost(removals())

    alone = lowest()
    _grow(lambda number: run.subscribe("crowd", cid=f"c{number}"), 100_000, "a subscription")
    _grow(lambda number: run.subscribe(f"t{number}", cid=f"c{number}"), 10_000, "a subscription to a topic of its own")
    many = lowest()
    assert many < 25 * max(alone, 2_000), f"{many / 1000} us in a large registry, {alone / 1000} us alone"


@guarantee("G14")
@costly
def test_publish_costs_its_caller_the_same_for_many_subscribers(make_run: MakeRun) -> None:
    """Fault: `publish` iterates over the subscribers, or copies them, or looks through all topics.

    Deliveries are held up, so that only the cost of the caller is measured. A factor of 25 passes, a copy fails.
    """
    run = make_run(max_pending=None)

    def lowest(topic: str) -> float:
        return _lowest_cost(partial(run.registry.publish, topic, number) for number in range(41))

    run.subscribe("one", cid="c0")
    with run.held("c0"):
        alone = lowest("one")
        _grow(lambda number: run.subscribe("crowd", cid=f"c{number}"), 100_000, "a subscription")
        _grow(lambda number: run.subscribe(f"t{number}", cid="c0"), 10_000, "a subscription to a topic of its own")
        crowd, beside = lowest("crowd"), lowest("one")
        run.registry.reset_state()
    assert crowd < 25 * max(alone, 2_000), f"{crowd / 1000} us with 100,000 subscribers, {alone / 1000} us with one"
    assert beside < 25 * max(alone, 2_000), f"{beside / 1000} us beside 10,000 topics, {alone / 1000} us beside none"
    assert run.registry.join(PATIENCE)
    assert run.stats().timers == 0


@guarantee("G16")
def test_a_subscriber_misses_nothing_while_others_come_and_go(run: Driver) -> None:
    """Fault: the subscribers change while a thread iterates over them: one is skipped, or a RuntimeError is raised."""
    rounds = 600
    run.subscribe("t", cid="stays")
    done = threading.Event()
    targeted: list[int] = []

    def come_and_go(thread: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            run.subscribe("t", cid=f"g{thread}", instance_id=f"i{number % 7}")
            run.registry.unsubscribe(cid=f"g{thread}", instance_id=f"i{(number + 3) % 7}", topic="t")

    def publish() -> None:
        try:
            for number in range(rounds):
                targeted.append(run.registry.publish("t", number))
        finally:
            done.set()

    run_threads(publish, lambda: come_and_go(1), lambda: come_and_go(2))
    stats = run.stats()
    assert first_difference([seen.event.payload for seen in run.recorder.of("stays")], range(rounds)) is None
    assert sum(targeted) == stats.accepted == stats.delivered + stats.cancelled
    assert stats.delivered == len(run.recorder.seen)


@guarantee("G16")
def test_publish_targets_the_subscribers_at_the_call(run: Driver) -> None:
    """Case 12. Fault: a change between publish and delivery changes who gets the message, or the returned count."""
    for cid in ("a", "b", "c"):
        run.subscribe("t", cid=cid)
    with run.held("a", "b", "c", "d"):
        assert run.registry.publish("t", 1) == 3
        run.registry.unsubscribe(cid="b", instance_id="main", topic="t")
        run.subscribe("t", cid="d")
        assert run.registry.publish("t", 2) == 3
        run.registry.unsubscribe(cid="a", instance_id="main", topic="t")
        run.subscribe("t", cid="b")
        assert run.registry.publish("t", 3) == 3
    run.settle()
    got = {cid: [seen.event.payload for seen in run.recorder.of(cid)] for cid in "abcd"}
    assert got == {"a": [], "b": [3], "c": [1, 2, 3], "d": [2, 3]}
    assert run.stats() == Stats(accepted=9, delivered=6, cancelled=3, subscriptions=3)


@guarantee("G16", "G7")
@costly
def test_a_message_finds_its_subscriber_at_any_line_of_a_replacement(run: Driver) -> None:
    """Fault: subscribing again ends the old subscription and adds a new one in two steps, between which another thread
    publishes to nobody."""
    at = 0
    for at in range(10_000):
        topic, targeted = f"t{at}", list[int]()
        run.subscribe(topic, "old")
        publisher = threading.Thread(
            target=lambda topic=topic, targeted=targeted: targeted.append(run.registry.publish(topic, "message")),
            daemon=True,
        )

        def publish(publisher: threading.Thread = publisher) -> None:
            publisher.start()
            join_or_standstill(publisher)

        injector = Injector(at, publish, library=False)
        with tracing(injector):
            run.subscribe(topic, "new")
        if not injector.fired:
            break
        publisher.join(PATIENCE)
        assert targeted == [1], f"nobody is subscribed at {injector.fired}"
    run.settle()
    assert len(run.recorder.seen) == at > 0


@guarantee("G16")
@pytest.mark.parametrize("where", [0, 30, 59])
def test_a_handler_may_change_its_topic_in_the_middle_of_a_message(run: Driver, where: int) -> None:
    """Fault: a topic that removes its dead entries, or grows, changes the list that a delivery is walking through, so
    that it skips a subscriber who stays, or reaches one twice. Some have left before, most go now, and others come."""
    for number in range(60):
        for name in ("before", "gone", "also gone"):
            run.subscribe("t", "gone", cid=f"{name} {number}")
        run.subscribe("t", "heard", cid=f"stays {number}")
    for number in range(60):
        run.registry.remove_subscriptions_for_cid(f"before {number}")

    def change(cid: str, event: Event) -> None:
        if cid == f"stays {where}":
            for number in range(60):
                run.registry.remove_subscriptions_for_cid(f"gone {number}")
                run.registry.remove_subscriptions_for_cid(f"also gone {number}")
            for number in range(120):
                run.subscribe("t", "late", cid=f"late {number}")

    run.recorder.on("heard", change)
    assert run.registry.publish("t", "message") == 180
    run.settle()
    heard = sorted(seen.cid for seen in run.recorder.seen if seen.event.name == "heard")
    assert first_difference(heard, sorted(f"stays {number}" for number in range(60))) is None
    assert "late" not in run.recorder.names
    stats = run.stats()
    assert stats.delivered + stats.cancelled == 180
    assert run.registry.publish("t", "second") == 180


@guarantee("G16", "G21")
def test_subscriptions_never_raises_while_others_change_it(run: Driver) -> None:
    """Fault: "dictionary changed size during iteration"; or the result shows an empty topic."""
    done = threading.Event()
    run.subscribe("t", cid="stays")

    def change(thread: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            for topic in ("t", f"t{number % 50}", f"own {thread}"):
                run.subscribe(topic, cid=f"c{thread}-{number % 9}")
            run.registry.remove_subscriptions_for_cid(f"c{thread}-{(number + 4) % 9}")

    def look() -> None:
        try:
            for _ in range(500):
                found = run.registry.subscriptions()
                assert ("stays", "main") in found["t"]
                assert all(found.values())
                run.registry.inspect()
                assert run.registry.stats().subscriptions >= 1
        finally:
            done.set()

    run_threads(look, lambda: change(1), lambda: change(2))


@guarantee("G17")
@requires("by_reference")
def test_a_message_is_passed_by_reference_and_never_touched(run: Driver) -> None:
    """Fault: `if msg:`, a comparison, a hash, a copy for each subscriber, or a `repr` for a log."""

    messages = [Untouchable() for _ in range(4)]
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)
    with run.held("c1", "c2"):
        for message in (*messages, messages[0]):
            assert run.registry.publish("t", message) == 2
        run.registry.inspect()
    run.settle()
    for cid in ("c1", "c2"):
        heard = [id(seen.event.payload) for seen in run.recorder.of(cid)]
        assert heard == [id(message) for message in (*messages, messages[0])]
    run.recorder.clear()
    assert run.registry.publish("t", NO_PAYLOAD) == 2
    run.settle()
    assert [payload is NO_PAYLOAD for payload in run.recorder.payloads] == [True, True]


class _Text(str):
    """What is handed in as a payload stays what it is."""

    __slots__ = ()


@guarantee("G17")
@requires("by_reference")
@pytest.mark.parametrize(
    "payload", [[1], {"a": [1]}, {1}, bytearray(b"a"), (1, [2]), (None,), 10**30, _Text("a")], ids=repr
)
def test_a_payload_of_any_type_is_passed_by_reference(run: Driver, payload: object) -> None:
    """Fault: lists become tuples when an event is made to be hashed, or a payload that waits already is not queued
    again. Each is handed in twice."""
    run.subscribe("t", ("heard", payload))
    run.subscribe("t", "heard", instance_id="other")
    with run.held("c1"):
        for _ in range(2):
            run.schedule(0, ("tick", payload))
            run.registry.publish("t", payload)
    run.settle()
    assert len(run.recorder.payloads) == 6
    assert all(each is payload for each in run.recorder.payloads)
    assert run.registry.inspect()["c1"].subscriptions[0].event[1] is payload
    run.registry.put_pending_flow("c1", payload)
    assert run.registry.pending_flow("c1") is payload


@guarantee("G17", "G20")
@requires("by_reference")
def test_the_event_of_a_subscription_is_never_touched(run: Driver) -> None:
    """Fault: an event is compared with the one that it replaces, copied for a snapshot, hashed or tested for truth."""

    first, second = Untouchable(), Untouchable()
    for payload in (first, first, second):
        run.subscribe("t", ("said", payload))
    shown = run.registry.subscriptions()["t"]["c1", "main"]
    assert shown[1] is second
    assert run.registry.inspect()["c1"].subscriptions[0].event[1] is second
    assert run.registry.publish("t", 1) == 1
    run.settle()
    run.subscribe("t", ("said", first))
    assert run.registry.unsubscribe(cid="c1", instance_id="main", topic="t") == 1
    run.subscribe("t", ("said", first))
    run.registry.reset_state()
    assert run.recorder.payloads == [1]


@guarantee("G17")
@requires("by_reference")
def test_a_timers_payload_is_passed_by_reference_and_never_touched(run: Driver) -> None:
    """Fault: payloads take part in the order of the heap, are hashed into a set, copied or tested for truth."""

    payloads = [Untouchable() for _ in range(5)]
    for payload in payloads:
        run.schedule(HOUR, ("tick", payload))
    run.registry.cancel_timers("c1")
    for payload in payloads:
        run.schedule(1, ("tick", payload))
    run.registry.inspect()
    run.pass_time(1)
    assert [id(payload) for payload in run.recorder.payloads] == [id(payload) for payload in payloads]


@guarantee("G17")
@requires("by_reference", "own_clock")
def test_payloads_of_timers_that_tie_are_never_compared(make_run: MakeRun) -> None:
    """Fault: a heap of (due, event) compares the payloads of two timers that are due at the same instant and have the
    same event name. The clock stands still here while they are scheduled."""

    stands = [monotonic_ns()]
    run = make_run(clock=lambda: stands[0] or monotonic_ns())
    payloads = [Untouchable() for _ in range(20)]
    for payload in payloads:
        run.schedule(1, ("tick", payload))
    victim = run.schedule(1, ("tick", Untouchable()))
    assert victim.cancel()
    stands[0] = 0
    assert run.recorder.wait_for(20)
    run.settle()
    assert [id(payload) for payload in run.recorder.payloads] == [id(payload) for payload in payloads]


@guarantee("G17")
@requires("by_reference")
def test_a_baton_is_passed_by_reference_and_never_touched(run: Driver) -> None:
    """Fault: the flow is copied, compared with None by `==`, or tested for truth."""

    first, second = Untouchable(), Untouchable()
    run.registry.put_pending_flow("c1", first)
    run.registry.put_pending_flow("c1", second)
    assert run.registry.pending_flow("c1") is second


@guarantee("G17", "G15")
@requires("cross_process")
def test_a_payload_that_cannot_cross_processes_is_refused_at_the_call(run: Driver) -> None:
    """Case 38. Fault: it fails later, in a thread or at the subscriber, or the error does not name the wrong part."""
    run.subscribe("t")
    message = {"items": [1, {"culprit": threading.Lock()}]}
    for call in (
        lambda: run.registry.publish("t", message),
        lambda: run.schedule(0, ("tick", message)),
        lambda: run.registry.put_pending_flow("c1", message),
    ):
        with unchanged(run.registry), pytest.raises(TypeError, match="culprit"):
            call()


@guarantee("G18", "G7")
@costly
def test_resets_racing_with_other_operations_keep_the_ledger(run: Driver) -> None:
    """Fault: a reset counts what it will drop, and drops later arrivals without counting them."""
    done = threading.Event()

    def work(thread: int) -> None:
        try:
            for number in range(400):
                run.subscribe("t", cid=f"c{thread}", instance_id=f"i{number % 3}")
                run.schedule(number % 2, cid=f"c{thread}")
                run.schedule(HOUR, cid=f"c{thread}")
                run.registry.publish("t", number)
        finally:
            done.set()

    def reset() -> None:
        while not done.is_set():
            run.registry.reset_state()

    run_threads(lambda: work(1), lambda: work(2), reset)
    run.registry.reset_state()
    run.pass_time(1)
    stats = run.stats()
    assert (stats.timers, stats.queued, stats.subscriptions) == (0, 0, 0)
    assert stats.accepted == stats.delivered + stats.dropped
    assert stats.delivered == len(run.recorder.seen)
    assert run.registry.inspect() == {}


@guarantee("G16")
@costly
def test_a_message_racing_with_a_hand_over_reaches_a_subscriber(run: Driver) -> None:
    """Fault: `publish` reads the shards of a topic one after the other: it misses both the new and the old subscriber,
    although at every instant one of them was subscribed.

    At each line of the publication another thread subscribes a new conversation and then removes the old one. If it has
    to wait for a lock, it continues after the publication.
    """

    def hand_over(old: str, new: str) -> None:
        run.subscribe("t", cid=new)
        run.registry.remove_subscriptions_for_cid(old)

    def come_in(other: threading.Thread) -> None:
        other.start()
        join_or_standstill(other)

    at, again = 0, 4  # four times, with other names: two conversations may be on the same shard
    while again:
        old, new = f"old {again} {at}", f"new {again} {at}"
        run.subscribe("t", cid=old)
        other = threading.Thread(target=hand_over, args=(old, new), daemon=True)
        injector = Injector(at, partial(come_in, other))
        with tracing(injector):
            targeted = run.registry.publish("t", at)
        if injector.fired:
            other.join(PATIENCE)
            assert not other.is_alive(), injector.fired
            assert targeted >= 1, f"neither subscriber was found at {injector.fired}"
            at += 1
        else:
            at, again = 0, again - 1
        for cid in (old, new):
            run.registry.remove_subscriptions_for_cid(cid)
    run.settle()


@guarantee("G18", "G24")
@pytest.mark.parametrize("end", ["reset_state", "close"])
def test_all_of_many_conversations_are_shown_and_forgotten(run: Driver, end: str) -> None:
    """Fault: a shard is left out when all are counted, shown, reset or closed. With 300 conversations no shard is
    empty."""
    cids = sorted(f"c{number}" for number in range(300))
    for cid in cids:
        run.registry.put_pending_flow(cid, "flow")
        run.subscribe("t", cid=cid)
        run.schedule(HOUR, cid=cid)
    assert run.registry.stats() == Stats(pending_flows=300, subscriptions=300, timers=300, accepted=300)
    assert first_difference(sorted(run.registry.inspect()), cids) is None
    assert first_difference(sorted(run.subscribers("t")), [(cid, "main") for cid in cids]) is None
    getattr(run.registry, end)()
    assert run.registry.stats() == Stats(accepted=300, dropped=300)
    assert (run.registry.inspect(), run.registry.subscriptions()) == ({}, {})
    assert not any(run.registry.forget_pending_flow(cid) or run.registry.cancel_timers(cid) for cid in cids)
    if end == "close":
        for cid in cids:
            with pytest.raises(RegistryClosed):
                run.schedule(HOUR, cid=cid)


@guarantee("G22")
def test_one_conversation_may_use_all_of_max_pending(make_run: MakeRun) -> None:
    """Fault: each shard has its own bound: a conversation is refused while other shards have room, or every shard may
    use the whole bound."""
    run = make_run(max_pending=30)

    def fits(cid: str) -> bool:
        try:
            run.schedule(HOUR, cid=cid)
        except RegistryFull:
            return False
        return True

    for cid in [f"c{number}" for number in range(12)]:
        assert [fits(cid) for _ in range(30)] == [True] * 30
        for other in (cid, "x", "y", "z"):
            with unchanged(run.registry):
                assert not fits(other)
        assert run.registry.cancel_timers(cid) == 30
    assert [fits(f"s{number}") for number in range(31)] == [True] * 30 + [False]


@guarantee("G22")
def test_who_has_gone_takes_no_room(make_run: MakeRun) -> None:
    """Fault: a publication needs room for the places that ended subscriptions left in its topic; or a cancelled timer
    keeps its room as long as it lies in a heap."""
    run = make_run(max_pending=3)
    for number in range(5):
        run.subscribe("t", cid=f"c{number}")
    for number in (1, 3):
        run.registry.remove_subscriptions_for_cid(f"c{number}")
    run.schedule(HOUR, cid="c9").cancel()
    assert run.registry.publish("t", 1) == 3
    run.settle()
    for handle in [run.schedule(HOUR, cid="c9") for _ in range(3)]:
        assert handle.cancel()
    assert [run.schedule(HOUR, cid="c9") is not None for _ in range(3)] == [True] * 3
    with pytest.raises(RegistryFull):
        run.schedule(HOUR, cid="c9")


@guarantee("G22", "G15")
def test_an_operation_beyond_max_pending_is_refused_as_a_whole(make_run: MakeRun) -> None:
    """Fault: some targets get the message before the bound is reached, or timers and messages count separately."""
    run = make_run(max_pending=5)
    for cid in ("c1", "c2"):
        run.subscribe("t", cid=cid)
    handles = [run.schedule(HOUR, cid="c3") for _ in range(4)]
    for message in (1, None):
        with unchanged(run.registry), pytest.raises(RegistryFull, match="max_pending"):
            run.registry.publish("t", message)
    assert run.registry.publish("nobody", 1) == 0
    handles.append(run.schedule(HOUR, cid="c4"))
    with unchanged(run.registry), pytest.raises(RegistryFull, match="5"):
        run.schedule(HOUR, cid="c5")
    assert handles[0].cancel()
    handles.append(run.schedule(HOUR, cid="c5"))
    assert run.registry.cancel_timers("c3") == 3
    assert run.registry.publish("t", "room") == 2
    run.settle()
    assert run.recorder.payloads == ["room", "room"]
    assert run.stats() == Stats(accepted=8, delivered=2, cancelled=4, timers=2, subscriptions=2)


@guarantee("G22")
def test_a_queued_message_counts_for_max_pending_until_it_begins(make_run: MakeRun) -> None:
    """Fault: only timers are counted, or a delivery that has begun still counts."""
    run = make_run(max_pending=4)
    run.subscribe("t", cid="c1")
    with run.held("c1"):
        for number in range(4):
            assert run.registry.publish("t", number) == 1
        with pytest.raises(RegistryFull):
            run.registry.publish("t", "too much")
        with pytest.raises(RegistryFull):
            run.schedule(HOUR)
    run.settle()
    assert run.recorder.payloads == [0, 1, 2, 3]
    assert run.registry.publish("t", 4) == 1
    assert run.stats() == Stats(accepted=5, delivered=5, subscriptions=1)


@guarantee("G22")
def test_max_pending_bounds_timers_and_messages_together(make_run: MakeRun) -> None:
    """Fault: there is room for as many timers and for as many messages; or a cancel, a delivery, a failure or a reset
    gives back no room, or more than was taken."""
    run = make_run(max_pending=6)

    def fail(cid: str, event: Event) -> None:
        raise LookupError(event.name)

    def fill() -> None:
        """Fill the registry, half with messages and half with timers, and see that nothing more has room."""
        for number in range(3):
            assert run.registry.publish("t", number) == 1
            run.schedule(HOUR, cid="c2")
        for _ in range(2):
            with unchanged(run.registry), pytest.raises(RegistryFull, match="max_pending"):
                run.registry.publish("t", "too much")
            with unchanged(run.registry), pytest.raises(RegistryFull, match="max_pending"):
                run.schedule(0, cid="c3")

    run.recorder.on("fails", fail)
    for name in ("said", "fails"):
        run.subscribe("t", name)
        with run.held("c1"):
            fill()
        run.settle()
        assert run.registry.cancel_timers("c2") == 3
    with run.held("c1"):
        fill()
        run.registry.reset_state()
        run.subscribe("t")
        fill()
    run.settle()
    assert run.stats() == Stats(accepted=24, delivered=6, failed=3, cancelled=6, dropped=6, timers=3, subscriptions=1)


@guarantee("G22")
def test_messages_of_a_removed_subscription_free_their_room(make_run: MakeRun) -> None:
    """Fault: the room of cancelled messages is never given back."""
    run = make_run(max_pending=4)
    for _ in range(5):
        run.subscribe("t", cid="c1")
        with run.held("c1"):
            for number in range(4):
                assert run.registry.publish("t", number) == 1
            assert run.registry.remove_subscriptions_for_cid("c1") == 1
        run.settle()
    assert run.recorder.seen == []
    assert run.stats() == Stats(accepted=20, cancelled=20)


@guarantee("G22")
@pytest.mark.parametrize("bounded", [True, False], ids=["by default", "with None"])
def test_max_pending_is_a_million_by_default_and_may_be_none(make_run: MakeRun, bounded: bool) -> None:
    """Fault: None is compared with a number, or means the default; or the default is another one.

    A thousand publications to a thousand subscribers each make a million queued messages.
    """
    run = make_run() if bounded else make_run(max_pending=None)
    for number in range(1000):
        run.subscribe("t", cid=f"c{number}")
    with run.held(*(f"c{number}" for number in range(64))):  # enough to stop every thread of a backend that has several
        pending = 0
        for _ in range(3000):
            try:
                pending += run.registry.publish("t", 1)
            except RegistryFull:
                break
            if pending >= 1_000_000 and not bounded:
                break
        if bounded:
            with pytest.raises(RegistryFull, match="max_pending"):
                run.registry.publish("t", 1)
            stats = run.registry.stats()
            assert 999_000 < stats.timers + stats.queued <= 1_000_000
        else:
            run.registry.publish("t", 1)
            assert pending >= 1_000_000
        run.registry.reset_state()
    run.settle()
