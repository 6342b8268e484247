"""The engine's own invariants: random programs, replayable by seed, with `_check()` after every step."""

from __future__ import annotations

import random

import pytest

from stube import RegistryFull
from stube_backends.engine import Engine
from stube_backends.engine._inspection import sizes
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._topics import BEING_REMOVED, FanOut
from stube_backends.engine._wheel import SLOT_BITS
from tests.backends.helpers import begun_fan_out


class Program:
    """Random operations on an engine, and a simple model that says which delivery must come next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = Engine(None)
        self.now = 0
        self.sequence = 0
        # (ready instant, order of acceptance, cid, instance)
        self.timers: dict[int, tuple[int, int, str, str]] = {}
        self.handles: dict[int, Timer] = {}
        self.messages: list[tuple[int, int, int, list[tuple[str, str]]]] = []
        self.topics: dict[str, dict[tuple[str, str], int]] = {}
        self.begun: list[object] = []
        self.expected: list[object] = []

    def names(self) -> tuple[str, str]:
        return f"c{self.random.randrange(4)}", f"i{self.random.randrange(2)}"

    def schedule(self) -> None:
        cid, instance_id = self.names()
        delay = self.random.choice((0, 0, 1, 5, 1 << SLOT_BITS, (1 << SLOT_BITS) + 3, 1 << (SLOT_BITS + 3)))
        self.sequence += 1
        number = self.sequence
        self.handles[number] = self.engine.schedule(cid, instance_id, delay, ("e", number), self.now)
        self.timers[number] = (self.now + delay, number, cid, instance_id)

    def cancel(self) -> None:
        if self.timers:
            number = self.random.choice(list(self.timers))
            del self.timers[number]
            assert self.engine.cancel(self.handles.pop(number)) == ("e", number)

    def cancel_many(self) -> None:
        cid, instance_id = self.names()
        chosen = None if self.random.random() < 0.5 else instance_id
        gone = [n for n, (_, _, c, i) in self.timers.items() if c == cid and chosen in (None, i)]
        assert len(self.engine.cancel_timers(cid, chosen)) == len(gone)
        for number in gone:
            del self.timers[number], self.handles[number]

    def subscribe(self) -> None:
        cid, instance_id = self.names()
        topic = f"t{self.random.randrange(2)}"
        self.sequence += 1
        self.engine.subscribe(cid, instance_id, topic, "said")
        self.topics.setdefault(topic, {}).setdefault((cid, instance_id), self.sequence)

    def unsubscribe(self) -> None:
        cid, instance_id = self.names()
        topic = self.random.choice((None, "t0", "t1"))
        gone = [
            (t, self.topics[t].pop((cid, instance_id)))
            for t in list(self.topics)
            if topic in (None, t) and (cid, instance_id) in self.topics[t]
        ]
        assert len(self.engine.unsubscribe(cid, instance_id, topic)) == len(gone)
        for name in [t for t in self.topics if not self.topics[t]]:
            del self.topics[name]

    def publish(self) -> None:
        topic = f"t{self.random.randrange(2)}"
        targets = dict(self.topics.get(topic, {}))
        self.sequence += 1
        assert self.engine.publish(topic, self.sequence, self.now) == len(targets)
        if targets:
            self.messages.append((self.now, self.sequence, topic, targets))  # type: ignore[arg-type]

    def advance(self) -> None:
        self.now += self.random.choice((0, 1, 7, 1 << SLOT_BITS, 1 << (SLOT_BITS + 2)))

    def deliver_one(self) -> None:
        """Claim one entry and compare it with the one that the model expects."""
        ready = [(due, n, "timer", n) for n, (due, *_) in self.timers.items() if due <= self.now]
        ready += [(at, n, "message", index) for index, (at, n, *_) in enumerate(self.messages)]
        if ready:
            _, number, kind, index = min(ready)
            if kind == "timer":
                work = self.engine.claims.begin(self.now)
                assert isinstance(work, Timer | DueBatch)
                timer = work.timers.pop() if isinstance(work, DueBatch) else work
                assert timer.event == ("e", number)
                timer.event = timer.table = None
                if isinstance(work, DueBatch):
                    work.delivered += 1  # the next call of `begin` returns this batch again, while it has timers
                else:
                    self.engine.claims.finish_timer(failed=False)
                del self.timers[number], self.handles[number]
                return
            _, _, topic, targets = self.messages[index]
            live = [key for key, since in targets.items() if self.topics.get(topic, {}).get(key) == since]  # type: ignore[attr-defined,call-overload]
            del self.messages[index]
            fan_out = self.engine.claims.begin(self.now)
            assert isinstance(fan_out, FanOut)
            assert fan_out.message == number
            assert [(s.cid, s.instance_id) for s, _ in fan_out.claim_each(lambda: None)] == live
            self.engine.claims.finish_fan_out(fan_out, len(live))
            return
        assert self.engine.claims.begin(self.now) is None


STEPS = ("schedule", "schedule", "cancel", "cancel_many", "subscribe", "subscribe", "unsubscribe", "publish", "advance")


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_keep_every_invariant_and_the_order(seed: int) -> None:
    """Fault: after some sequence of operations an order, a count or a container differs from the model."""
    program = Program(seed)
    for _ in range(250):
        getattr(program, program.random.choice((*STEPS, "deliver_one", "deliver_one")))()
        program.engine._check()
    program.now += 1 << (SLOT_BITS + 5)
    while program.timers or program.messages:
        program.deliver_one()
        program.engine._check()
    assert program.engine.claims.begin(program.now) is None
    assert program.engine.stats().balanced
    assert program.engine.reset()
    program.engine._check()
    assert set(sizes(program.engine).values()) == {0}


def test_tombstones_never_outnumber_the_live_timers_of_the_open_slot() -> None:
    """Fault: the wheel never compacts the open slot, so the tombstones of cancelled timers accumulate (G13)."""
    engine = Engine(None)
    timers = [engine.schedule("c", "i", 1000 + n, "e", 0) for n in range(1000)]
    assert engine.claims.begin(10) is None  # opens the slot
    for kept, timer in enumerate(timers[:-1]):
        engine.cancel(timer)
        assert sizes(engine)["open slot"] <= 2 * (999 - kept)
        engine._check()
    engine.cancel(timers[-1])
    assert set(sizes(engine).values()) == {0}


def test_a_reset_during_a_fan_out_drops_the_remaining_targets() -> None:
    """Fault: the fan-out continues after the reset, or the reset also drops the target that has begun (G18)."""
    engine, fan_out = begun_fan_out(5)
    next(fan_out.iterator)
    engine.reset()
    assert next(fan_out.iterator).name is BEING_REMOVED, "the delivery thread would deliver to this target"
    fan_out.dropped = 1
    engine.claims.finish_fan_out(fan_out, 1)
    engine._check()
    assert (engine.ledger.delivered, engine.ledger.dropped) == (1, 4)
    assert engine.claims.fan_out is None


def test_a_reset_counts_messages_to_removed_subscriptions_as_cancelled() -> None:
    """Fault: the reset counts a message to a removed subscription as dropped."""
    engine = Engine(None)
    for n in range(3):
        engine.subscribe(f"c{n}", "i", "t", "said")
    engine.publish("t", "m", 0)
    engine.unsubscribe("c1", None, None)
    engine.reset()
    engine._check()
    assert (engine.ledger.cancelled, engine.ledger.dropped) == (1, 2)


def test_a_target_that_has_begun_frees_its_room_immediately() -> None:
    """Fault: targets that have begun count towards `max_pending` until the whole fan-out has ended (G22)."""
    engine = Engine(3)
    for n in range(3):
        engine.subscribe(f"c{n}", "i", "t", "said")
    engine.publish("t", "m", 0)
    with pytest.raises(RegistryFull):
        engine.schedule("c", "i", 0, "e", 0)
    fan_out = engine.claims.begin(0)
    assert isinstance(fan_out, FanOut)
    next(fan_out.iterator)
    engine.schedule("c", "i", 0, "e", 0)
    with pytest.raises(RegistryFull):
        engine.schedule("c", "i", 0, "e", 0)
