"""Operations of several threads: each has taken effect when it returns, and racing ones are atomic (G21)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from typing_extensions import override

from stube import Backend, ConversationInfo, Dispatch, Stats
from stube.testing._harness import (
    PATIENCE,
    Driver,
    Effort,
    Injector,
    RandomSteps,
    RegistryProxy,
    blaming,
    join_or_standstill,
    monotonic,
    run_threads,
    timed_out,
    tracing,
    wait_or_standstill,
)
from stube.testing.suite._fixtures import HOUR, OPERATIONS, costly, guarantee


@guarantee("G21")
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_an_operation_of_any_thread_takes_effect_before_it_returns(run: Driver, operation: str) -> None:
    """Fault: the call is passed to the delivery thread without waiting. A handler holds that thread up here."""
    registry = run.registry
    for cid in ("c1", "c2"):
        registry.put_pending_flow(cid, "flow")
        run.subscribe("t", cid=cid)
        run.schedule(HOUR, cid=cid)
    before = registry.subscriptions()
    # The adding operations use a conversation that is still unknown.
    cid = "c3" if operation in ("put_pending_flow", "schedule_event", "subscribe") else "c1"
    result: list[object] = []
    with run.held("holder"):
        accepted = registry.stats().accepted
        thread = threading.Thread(target=lambda: result.append(OPERATIONS[operation](registry, cid)))
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        info = registry.inspect(cid).get(cid, ConversationInfo())
        subscribers = run.subscribers("t")
        stats = registry.stats()
        match operation:
            case "put_pending_flow":
                assert (info.pending_flow, stats.pending_flows) == (True, 3)
            case "pending_flow" | "forget_pending_flow":
                assert result == ["flow" if operation == "pending_flow" else True]
                assert (info.pending_flow, stats.pending_flows) == (False, 1)
            case "schedule_event":
                assert [timer.event for timer in info.timers] == ["later"]
            case "cancel_timers":
                assert (result, info.timers) == ([1], ())
            case "subscribe":
                assert subscribers == [("c1", "main"), ("c2", "main"), ("c3", "main")]
            case "unsubscribe" | "remove_subscriptions_for_cid":
                assert (result, subscribers) == ([1], [("c2", "main")])
            case "publish":
                assert (result, stats.accepted - accepted) == ([2], 2)
            case "subscriptions":
                assert result == [before]
            case "reset_state":
                assert set(registry.inspect()) <= {"holder"}
    run.schedule(0, "after")
    run.settle()
    assert ("after" in run.recorder.names) == (operation != "install_dispatch")
    assert registry.stats().balanced


RACES = [
    ("pending_flow", "pending_flow"),
    ("pending_flow", "forget_pending_flow"),
    ("forget_pending_flow", "pending_flow"),
    ("put_pending_flow", "pending_flow"),
    ("pending_flow", "put_pending_flow"),
    ("forget_pending_flow", "put_pending_flow"),
    ("schedule_event", "cancel_timers"),
    ("cancel_timers", "schedule_event"),
    ("cancel_timers", "cancel_timers"),
    ("cancel_timers", "reset_state"),
    ("subscribe", "unsubscribe"),
    ("unsubscribe", "subscribe"),
    ("unsubscribe", "remove_subscriptions_for_cid"),
    ("remove_subscriptions_for_cid", "subscribe"),
    ("publish", "unsubscribe"),
    ("unsubscribe", "publish"),
    ("publish", "reset_state"),
    ("subscriptions", "remove_subscriptions_for_cid"),
]


@guarantee("G7", "G8", "G16")
@costly
@pytest.mark.parametrize(("first", "second"), RACES)
def test_racing_operations_are_atomic_at_every_line(run: Driver, first: str, second: str) -> None:
    """Fault: an operation checks and acts without a lock, and another thread acts in between.

    At each line that the first operation executes, another thread runs the second one on the same names. If that has to
    wait for a lock, the first operation continues, and the second one finishes after it.
    """
    of_topics = {"publish", "subscriptions"} & {first, second}
    with blaming("G8" if "flow" in first else "G16" if of_topics else "G7"):
        _race_at_every_line(run, first, second)


def _race_at_every_line(run: Driver, first: str, second: str) -> None:
    registry = run.registry
    for at in range(10_000):
        registry.put_pending_flow("c1", "old" if "put_pending_flow" in (first, second) else "flow")
        run.schedule(HOUR, cid="c1")
        run.subscribe("t", cid="c1")
        accepted = registry.stats().accepted
        results: dict[str, object] = {}
        second_run = threading.Thread(
            target=lambda results=results: results.update(second=OPERATIONS[second](registry, "c1")), daemon=True
        )

        def come_in(thread: threading.Thread = second_run) -> None:
            thread.start()
            join_or_standstill(thread)

        injector = Injector(at, come_in)
        with tracing(injector):
            results["first"] = OPERATIONS[first](registry, "c1")
        if not injector.fired:
            break
        second_run.join(PATIENCE)
        told = f"{second} at {injector.fired}"
        assert not second_run.is_alive(), told
        run.settle()
        info = registry.inspect("c1").get("c1")
        stats = registry.stats()
        assert stats.balanced, f"{told}: {stats.equation}"
        assert stats.timers == (0 if info is None else len(info.timers)), told
        assert stats.subscriptions == (0 if info is None else len(info.subscriptions)), told
        assert stats.subscriptions == sum(len(found) for found in registry.subscriptions().values()), told
        pair = {first, second}
        if pair <= {"pending_flow", "forget_pending_flow"}:
            assert sorted(str(result) for result in results.values()) in (
                ["None", "flow"], ["False", "flow"], ["None", "True"],
            ), told  # fmt: skip
        elif "put_pending_flow" in pair:
            # The put comes first, and its flow is taken; or it comes last, and its flow is left.
            took = results["second" if first == "put_pending_flow" else "first"]
            left = registry.pending_flow("c1")
            assert (took, left) in (("old", "flow"), ("flow", None), (True, "flow"), (True, None)), told
        elif pair == {"cancel_timers"}:
            assert sorted(results.values(), key=str) == [0, 1], told
        elif pair == {"schedule_event", "cancel_timers"}:
            assert stats.timers + int(str(results["first" if first == "cancel_timers" else "second"])) == 2, told
        elif pair == {"unsubscribe", "remove_subscriptions_for_cid"}:
            assert sorted(results.values(), key=str) == [0, 1], told
        elif "publish" in pair and "reset_state" not in pair:
            targeted = int(str(results["first" if first == "publish" else "second"]))
            assert stats.accepted - accepted == targeted <= 1, told
        registry.cancel_timers("c1")
        registry.remove_subscriptions_for_cid("c1")
        registry.forget_pending_flow("c1")
        run.recorder.clear()
        assert registry.inspect() == {}, told


@guarantee("G20", "G21")
def test_two_interrupted_threads_do_not_deadlock(run: Driver) -> None:
    """Fault: a re-entrant call that holds one shard waits for a second shard, whose thread is interrupted as well and
    waits for the first.

    Two threads subscribe, each its own conversation. At the same line a call for the other thread's conversation
    interrupts each of them, as a finalizer would. The first waits there for the second, unless a lock keeps it out.
    """

    def work(me: str, other: str, at: int, met: list[str], fired: list[str]) -> None:
        def come_in() -> None:
            met.append(me)
            wait_or_standstill(lambda: len(met) == 2)
            run.schedule(HOUR, cid=other)

        injector = Injector(at, come_in)
        with tracing(injector):
            run.subscribe("t", cid=me)
        if injector.fired:
            fired.append(injector.fired)

    for at in range(10_000):
        pair, met, fired = (f"a{at}", f"b{at}"), list[str](), list[str]()
        threads = [
            threading.Thread(target=work, args=(*cids, at, met, fired), daemon=True) for cids in (pair, pair[::-1])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        if any(thread.is_alive() for thread in threads):
            timed_out.append(PATIENCE)  # the registry may be deadlocked, so the fixture does not close it
            raise AssertionError(f"a deadlock: both were interrupted at line {at} of subscribe")
        if not fired:
            break
        told = f"at {fired[0]}"
        assert run.registry.stats().timers == len(fired), told
        assert sorted(run.subscribers("t")) == [(cid, "main") for cid in pair], told
        for cid in pair:
            run.registry.cancel_timers(cid)
            run.registry.remove_subscriptions_for_cid(cid)


class _Counting(RegistryProxy):
    """Count what the operations accept and cancel."""

    def __init__(self, registry: Backend) -> None:
        super().__init__(registry)
        # No lock, because it would synchronize the threads. Appending to a list is atomic.
        self.accepted: list[int] = []
        self.cancelled: list[int] = []

    @override
    def _operate(self, operation: str, call: Callable[..., Any], /, *positional: Any, **named: Any) -> Any:
        result = call(*positional, **named)
        if operation in ("schedule_event", "publish"):
            self.accepted.append(1 if operation == "schedule_event" else result)
        elif operation == "cancel_timers":
            self.cancelled.append(result)
        return result

    def schedule_and_cancel(self, chance: random.Random, cid: str) -> None:
        """Schedule a timer and cancel it by its handle."""
        delay_ms = chance.choice((0, 0.3, 2, HOUR))
        self.cancelled.append(self.schedule_event(cid=cid, instance_id="i1", delay_ms=delay_ms, event="tick").cancel())

    def read_and_install(self, chance: random.Random, cid: str, dispatch: Dispatch) -> None:
        """Take the snapshots, and install dispatch again."""
        self.subscriptions()
        self.inspect(cid)
        self.install_dispatch(dispatch)


@guarantee("G21", "G7", "G1")
@costly
def test_eight_threads_run_every_operation_concurrently(run: Driver, stube_effort: Effort) -> None:
    """Case 13. Fault: any state is changed outside of its lock. The threads run for a second of real time."""
    until = monotonic() + stube_effort.stress_seconds
    stop = threading.Event()
    registry = _Counting(run.registry)
    weights = {
        "put": 1.0, "take": 1, "forget": 1, "schedule": 2, "schedule and cancel": 1, "cancel timers": 1, "subscribe": 1,
        "unsubscribe": 1, "remove": 1, "publish": 1, "read and install": 1, "reset": 0.05,
    }  # fmt: skip
    steps = RandomSteps(
        registry,
        cids=[f"c{number}" for number in range(6)],
        instances=("i0", "i1", "i2"),
        topics=("t0", "t1", "t2", "t3"),
        delays=(0, 0.3, 2, HOUR),
        handles=8,
        more={
            "schedule and cancel": registry.schedule_and_cancel,
            "read and install": partial(registry.read_and_install, dispatch=run.recorder),
        },
    )

    def work(thread: int) -> None:
        chance = random.Random(thread)
        while monotonic() < until:
            steps.perform(chance, weights)

    def move() -> None:
        while not stop.is_set():
            if run.clock is not None:
                run.clock.advance(0.2)
            stop.wait(0.0005)  # how fast the virtual clock moves; there is no event to wait for

    mover = threading.Thread(target=move)
    mover.start()
    try:
        run_threads(*(partial(work, thread) for thread in range(8)))
    finally:
        stop.set()
        mover.join(PATIENCE)
    run.pass_time(2)
    stats = run.stats()
    assert stats.accepted == sum(registry.accepted)
    assert stats.delivered == len(run.recorder.seen)
    assert stats.cancelled >= sum(registry.cancelled)
    assert (stats.failed, stats.queued, stats.running) == (0, 0, 0)
    assert stats.balanced, stats.equation
    found = run.registry.inspect()
    assert stats.timers == sum(len(info.timers) for info in found.values())
    assert stats.pending_flows == sum(info.pending_flow for info in found.values())
    assert stats.subscriptions == sum(len(subscribers) for subscribers in run.registry.subscriptions().values())
    assert stats.subscriptions == sum(len(info.subscriptions) for info in found.values())
    run.registry.reset_state()
    assert run.registry.inspect() == {}
    run.recorder.clear()
    run.schedule(1, "new")
    run.pass_time(1)
    assert run.recorder.names == ["new"]


@guarantee("G21")
def test_threads_with_separate_conversations_do_not_interfere(run: Driver) -> None:
    """Fault: one thread gets a result of another thread's call: a count, a baton or a handle."""

    def work(thread: int) -> None:
        registry: Backend = run.registry
        cid = f"c{thread}"
        for number in range(150):
            registry.put_pending_flow(cid, (thread, number))
            handles = [run.schedule(HOUR, cid=cid) for _ in range(3)]
            run.subscribe(f"t{thread}", cid=cid)
            assert registry.publish(f"t{thread}", number) == 1
            assert handles[1].cancel()
            assert registry.cancel_timers(cid) == 2
            assert registry.pending_flow(cid) == (thread, number)
            assert registry.unsubscribe(cid=cid, instance_id="main") == 1
            assert not registry.forget_pending_flow(cid)

    run_threads(*(partial(work, thread) for thread in range(8)))
    stats = run.stats()
    assert stats.accepted == 8 * 150 * 4
    assert stats == Stats(accepted=stats.accepted, delivered=stats.delivered, cancelled=stats.cancelled)
    assert stats.delivered == len(run.recorder.seen)
    assert stats.cancelled >= 8 * 150 * 3
