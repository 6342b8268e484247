"""Deliveries that end together end at the same instant, also for threads that take no lock: the delivery thread in a
fan-out or a due batch, and a caller that asks whether a topic exists, a timer is over, or a registry is closed.

Each test calls a step at two lines of an operation, at every pair of lines, as if another thread ran there. The step
may deliver only what the delivery thread could have delivered before the operation; the rest must never be delivered.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import pytest

from stube import Event, Stats
from stube.testing._harness import PATIENCE
from stube_backends.engine import Engine
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import BEING_REMOVED, FanOut
from stube_backends.engine._wheel import SLOT_BITS
from stube_backends.memory import MemoryRegistry
from stube_backends.sharded import ShardedRegistry

SLOT: Final = 1 << SLOT_BITS


def with_steps(operation: Callable[[], object], step: Callable[[], object], *at: int) -> bool:
    """Run `operation`, and `step` at some of its lines, counted from 0. Return whether it had all of these lines."""
    lines = 0

    def trace(frame: FrameType, kind: str, _: object) -> Any:
        nonlocal lines
        if "stube_backends" not in frame.f_code.co_filename:
            return None
        if kind == "line":
            for _ in range(at.count(lines)):
                step()
            lines += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    finally:
        sys.settrace(before)
    return lines > max(at)


def pairs_of_lines(attempt: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Yield every pair of lines, the first before the second, until `attempt` returns that a line does not exist."""
    last = 0
    while attempt(last, last):
        yield from ((first, last) for first in range(last))
        last += 1
    assert last > 10, "the trace saw almost no lines of the operation"


class FanOutGoesOn:
    """A fan-out to `b`, then to two instances of `a`, that has begun; and another topic to which only `a` belongs."""

    def __init__(self) -> None:
        self.engine = engine = Engine(None)
        engine.subscribe("a", "2", "other", "said")
        engine.subscribe("b", "1", "t", "said")
        engine.subscribe("a", "1", "t", "said")
        engine.subscribe("a", "2", "t", "said")
        engine.publish("t", "message", 0)
        fan_out = engine.claims.begin(0)
        assert isinstance(fan_out, FanOut)
        self.fan_out = fan_out
        next(fan_out.iterator)
        self.waits = False
        self.delivered: list[str] = []
        self.passed_over: list[str] = []

    def step(self) -> None:
        """Read without the lock, and take the next target unless the delivery thread would wait there for the lock."""
        over = "other" not in self.engine.topics.topics or self.engine.closed
        target = None if self.waits else next(self.fan_out.iterator, None)
        if target is None:
            return
        if target.name is BEING_REMOVED:
            self.waits = True
        elif target.name is None:
            self.passed_over.append(target.instance_id)
        else:
            assert not over, "a target begins after another that ended with it was seen to be over"
            assert not self.passed_over, "a target begins after another that ended with it was passed over"
            self.delivered.append(target.instance_id)

    def check(self) -> None:
        engine = self.engine
        rest = self.fan_out.total - 1 - len(self.delivered)
        stopped = self.fan_out.stopped
        list(self.fan_out.iterator)
        self.fan_out.cancelled, self.fan_out.dropped = (0, rest) if stopped else (rest, 0)
        engine.claims.finish_fan_out(self.fan_out, 1 + len(self.delivered))
        engine._check()
        assert engine.ledger.queued == 0


@pytest.mark.parametrize("operation", ["end", "reset", "close", "leave"])
def test_a_fan_out_delivers_to_no_target_after_one_that_ended_with_it(operation: str) -> None:
    """Fault: `a` is passed over once and then delivered to; or it is delivered to after a caller has seen that it, or
    the instance that leaves all its topics, has left one of them (G5, G7, G18)."""

    def attempt(first: int, second: int) -> bool:
        case = FanOutGoesOn()
        engine = case.engine
        run = {
            "end": lambda: engine.unsubscribe("a", None, None),
            "reset": engine.reset,
            "close": engine.close,
            "leave": lambda: engine.unsubscribe("a", "2", None),
        }
        if operation == "leave":
            case.step()  # so that the instance is the next
        there = with_steps(run[operation], case.step, first, second)
        case.check()
        return there

    for first, second in pairs_of_lines(attempt):
        attempt(first, second)


class BatchGoesOn:
    """A due batch of three timers of `a` and one of `b`, and a timer of `a` that is not due yet."""

    def __init__(self) -> None:
        self.engine = engine = Engine(None)
        names = ["a", "a", "b", "a"]
        self.timers = [engine.schedule(cid, "1", SLOT + number, "tick", 0) for number, cid in enumerate(names, 1)]
        self.later = engine.schedule("a", "1", 5 * SLOT, "tick", 0)
        engine.subscribe("a", "1", "t", "said")
        assert engine.claims.begin(SLOT) is None  # opens the slot
        batch = engine.claims.begin(SLOT + 9)
        assert isinstance(batch, DueBatch)
        self.batch = batch
        self.delivered: list[Timer] = []

    def step(self) -> None:
        over = "t" not in self.engine.topics.topics or self.engine.closed
        claimed = {*map(id, self.delivered)}
        ended = [timer for timer in (*self.timers, self.later) if timer.event is None and id(timer) not in claimed]
        if self.batch.timers:
            timer = self.batch.timers.pop()
            self.batch.delivered += 1
            assert timer.event is not None, "a timer that is over was handed out"
            if timer.cid == "a":
                assert not ended, "a timer begins after a handle has shown that another cancelled timer is over"
                assert not over, "a timer begins after the topic that was dropped with it was seen to be gone"
            self.delivered.append(timer)


@pytest.mark.parametrize("operation", ["cancel", "reset", "close"])
def test_a_due_batch_delivers_no_timer_after_one_that_ended_with_it(operation: str) -> None:
    """Fault: a timer begins although an earlier timer of its conversation was cancelled or dropped with it (G2, G5,
    G18)."""

    def attempt(first: int, second: int) -> bool:
        case = BatchGoesOn()
        engine = case.engine
        run = {"cancel": lambda: engine.cancel_timers("a", None), "reset": engine.reset, "close": engine.close}
        there = with_steps(run[operation], case.step, first, second)
        covered = [timer for timer in case.timers if operation != "cancel" or timer is not case.timers[2]]
        begun = [timer for timer in case.delivered if timer in covered]
        assert begun == covered[: len(begun)], "a timer has begun, but an earlier one never will"
        while case.batch.timers:
            case.batch.timers.pop()
            case.batch.delivered += 1
        engine.claims.finish_batch()
        engine._check()
        return there

    for first, second in pairs_of_lines(attempt):
        attempt(first, second)


@pytest.mark.parametrize("by_reset", [False, True])
def test_the_delivery_thread_waits_for_a_target_that_is_leaving(by_reset: bool) -> None:
    """Fault: the delivery thread continues with the next target, or delivers the mark as a name, before the operation
    has ended.

    The operation pauses for 50 ms while the leaving target is the next one. A wrong delivery would begin in this time.
    """
    registry = MemoryRegistry()
    engine = registry._driver.core.engine
    entered, release, seen = threading.Event(), threading.Event(), []

    def dispatch(cid: str, event: Event) -> None:
        seen.append((cid, event.name))
        if cid == "first":
            entered.set()
            release.wait(PATIENCE)

    registry.install_dispatch(dispatch)
    for cid in ("first", "leaves", "stays"):
        registry.subscribe(cid=cid, instance_id="main", topic="t", event=f"said to {cid}")
    registry.publish("t", "message")
    assert entered.wait(PATIENCE)

    def leave_slowly() -> None:
        engine.records.subscriptions("leaves")[0].name = BEING_REMOVED
        release.set()
        threading.Event().wait(0.05)
        assert seen == [("first", "said to first")]
        if by_reset:
            engine.reset()
        else:
            engine.unsubscribe("leaves", None, None)

    registry._driver.core.run_locked(leave_slowly)
    assert registry.settle(PATIENCE)
    registry._check()
    if by_reset:
        assert seen == [("first", "said to first")]
        assert registry.stats() == Stats(accepted=3, delivered=1, dropped=2)
    else:
        assert seen == [("first", "said to first"), ("stays", "said to stays")]
        assert registry.stats() == Stats(accepted=3, delivered=2, cancelled=1, subscriptions=2)
    assert registry.close(PATIENCE)


@pytest.mark.parametrize("operation", ["reset_state", "close"])
def test_no_shard_delivers_a_message_after_another_shard_was_emptied(operation: str) -> None:
    """Fault: the operation empties one shard after the other: after the first shard has been seen to be empty, an
    earlier message begins in the second (G18)."""

    def attempt(line: int) -> bool:
        registry = ShardedRegistry(shards=2)
        first, second = (shard.core.engine for shard in registry._shards)
        first.subscribe("b", "1", "other", "said")
        second.subscribe("a", "1", "t", "said")
        second.subscribe("a", "2", "t", "said")
        second.publish("t", "message", 0)
        fan_out = second.claims.begin(0)
        assert isinstance(fan_out, FanOut)
        next(fan_out.iterator)
        looked: list[bool] = []

        def step() -> None:
            seen = "other" not in first.topics.topics or first.closed
            target = next(fan_out.iterator)
            assert target.name is BEING_REMOVED or not seen, "a target begins after the first shard was empty"
            looked.append(target.name is BEING_REMOVED)

        there = with_steps(getattr(registry, operation), step, line)
        if not there:
            next(fan_out.iterator)
        dropped = looked == [True] or not there
        fan_out.dropped = int(dropped)
        second.claims.finish_fan_out(fan_out, 2 - dropped)
        registry._check()
        registry.close()
        return there

    lines = 0
    while attempt(lines):
        lines += 1
    assert lines > 20
