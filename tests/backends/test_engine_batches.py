"""Due batches: timers that were due together and that the delivery thread claims one by one.

The tests show that each timer of a batch is either claimed or cancelled, and that a finished batch keeps nothing.
"""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from stube import Event, create_registry
from stube_backends.engine import Engine
from stube_backends.engine._inspection import inspect, sizes
from stube_backends.engine._timers import DueBatch, Timer
from stube_backends.engine._wheel import SLOT_BITS

SLOT = 1 << SLOT_BITS


def scheduled(engine: Engine, cid: str, delay: int, instance_id: str = "i", event: object = "tick") -> Timer:
    return engine.schedule(cid, instance_id, delay, event, 0)  # type: ignore[arg-type]


def batch_of(*cids: str) -> tuple[Engine, DueBatch, list[Timer]]:
    """Return an engine, a due batch with a timer of each conversation, and these timers; none of them has begun."""
    engine = Engine(None)
    scheduled(engine, "first", 1)
    timers = [scheduled(engine, cid, 2 + number) for number, cid in enumerate(cids)]
    first = engine.claims.begin(SLOT)  # alone, because its slot was closed
    assert isinstance(first, Timer)
    first.event = first.table = None
    batch = engine.claims.begin(SLOT, False)
    assert isinstance(batch, DueBatch)
    engine._check()
    return engine, batch, timers


def claim(batch: DueBatch) -> Timer:
    timer = batch.timers.pop()
    timer.event = timer.table = None
    return timer


def test_a_batch_is_claimed_by_due_instant_and_its_fates_are_counted_once() -> None:
    """Fault: the latest timer begins first (G2), or the ledger counts a fate twice or never."""
    engine, batch, timers = batch_of("a", "b", "c")
    assert engine.stats().timers == 3
    assert claim(batch) is timers[0]
    assert (engine.stats().timers, engine.stats().running) == (2, 1)
    assert [claim(batch), claim(batch)] == timers[1:]
    batch.delivered = 2
    assert engine.claims.begin(SLOT) is None
    engine._check()
    stats = engine.stats()
    assert (stats.delivered, stats.failed, stats.running, stats.timers, engine.claims.batch) == (3, 1, 0, 0, None)


@pytest.mark.parametrize("begun", range(4))
def test_a_handle_cancels_a_timer_of_a_batch_only_before_it_begins(begun: int) -> None:
    """Fault: a cancel counts a timer that is delivered, or does not find a timer that has not begun (G5)."""
    engine, batch, timers = batch_of("a", "b", "c")
    claimed = [claim(batch) for _ in range(begun)]
    assert [engine.cancel(timer) for timer in timers] == [None] * begun + ["tick"] * (3 - begun)
    assert [engine.cancel(timer) for timer in timers] == [None] * 3, "cancelled twice"
    assert batch.timers == []
    batch.delivered = len(claimed)
    assert engine.claims.begin(SLOT) is None
    engine._check()
    assert (engine.stats().delivered, engine.stats().cancelled) == (1 + begun, 3 - begun)


def test_a_timer_that_has_just_begun_keeps_its_event_when_it_is_cancelled() -> None:
    """Fault: a cancel takes the event between the claim and the delivery, which then has none (G5)."""
    engine, batch, timers = batch_of("a", "b")
    assert batch.timers.pop() is timers[0]
    assert engine.cancel(timers[0]) is None
    assert timers[0].event == "tick"


@pytest.mark.parametrize(("instance_id", "count"), [(None, 3), ("i", 2), ("j", 1), ("k", 0)])
def test_cancel_timers_finds_timers_in_the_batch_and_outside_it(instance_id: str | None, count: int) -> None:
    """Fault: a cancel misses a timer that has left its group for the batch, or removes one of another conversation."""
    engine = Engine(None)
    for delay, (cid, instance) in enumerate([("x", "i"), ("a", "i"), ("b", "i"), ("a", "j")], 1):
        scheduled(engine, cid, delay, instance)
    scheduled(engine, "a", 5 * SLOT)
    engine.claims.begin(SLOT)
    batch = engine.claims.begin(SLOT, False)
    assert isinstance(batch, DueBatch)
    assert len(engine.cancel_timers("a", instance_id)) == count
    engine._check()
    assert engine.stats().cancelled == count
    assert engine.stats().timers == 4 - count
    assert [timer.cid for timer in batch.timers].count("b") == 1


def test_a_reset_drops_the_timers_of_a_batch_that_have_not_begun() -> None:
    """Fault: the batch continues after the reset (G18), or the reset also drops the timer that has begun."""
    engine, batch, timers = batch_of("a", "b", "c")
    claim(batch)
    held = engine.reset()
    assert (batch.timers, timers[1].event, timers[2].table) == ([], None, None)
    assert held.count("tick") == 2
    batch.delivered = 1
    assert engine.claims.begin(SLOT) is None
    engine._check()
    assert (engine.stats().delivered, engine.stats().dropped, engine.claims.batch) == (2, 2, None)


def test_a_reset_forgets_an_interrupted_batch() -> None:
    """Fault: the interrupted batch continues after the reset (G18), or the drops of an earlier reset are lost."""
    engine, batch, _ = batch_of("a", "b", "c")
    scheduled(engine, "late", 2 * SLOT)
    engine.claims.abandon()
    assert sizes(engine)["timers of the batch"] == len(batch.timers) == 3
    engine.ledger.accepted += 1
    engine.ledger.dropped += 1
    engine.reset()
    engine._check()
    assert (engine.claims.batch, engine.stats().dropped, engine.stats().running) == (None, 5, 0)


def test_a_publication_between_two_timers_ends_the_batch() -> None:
    """Fault: a publication begins after timers that were due after it (G2)."""
    engine = Engine(None)
    for delay in (1, 2, 3, 9, 10, 11):
        scheduled(engine, "a", delay)
    engine.subscribe("a", "i", "t", "said")
    engine.publish("t", "m", 5)
    engine.claims.begin(SLOT)
    batch = engine.claims.begin(SLOT, False)
    assert isinstance(batch, DueBatch)
    assert [timer.due for timer in batch.timers] == [3, 2]


def test_a_batch_holds_at_most_64_timers() -> None:
    """Fault: the cancelling of a conversation searches a batch of all overdue timers (G14)."""
    engine = Engine(None)
    for number in range(1000):
        scheduled(engine, f"c{number}", 1 + number)
    engine.claims.begin(SLOT)
    batch = engine.claims.begin(SLOT, False)
    assert isinstance(batch, DueBatch)
    assert len(batch.timers) == 64
    engine._check()


def test_a_timer_that_waits_in_a_batch_has_left_its_conversation_and_its_slot() -> None:
    """Fault: a conversation stays in the table until the batch is over, which a slow handler can delay (G13)."""
    engine, batch, _ = batch_of("a", "b")
    found = sizes(engine)
    assert (found["conversations"], found["timers in slots"], found["timers of the batch"]) == (0, 0, 2)
    claim(batch)
    assert sizes(engine)["timers of the batch"] == 1


def test_inspect_shows_a_timer_that_waits_in_a_batch_as_pending() -> None:
    """Fault: `inspect` shows no timer for a conversation whose only timer waits behind a slow handler."""
    engine, batch, _ = batch_of("a", "b")
    claim(batch)
    assert {cid: len(info.timers) for cid, info in inspect(engine, None, SLOT).items()} == {"b": 1}


def test_the_timers_of_an_interrupted_batch_are_pending_after_recovery() -> None:
    """Fault: after an asynchronous exception a timer that waited in a batch is lost, or begins twice."""
    from stube_backends.engine._recovery import rebuild

    engine, batch, timers = batch_of("a", "b", "c")
    claim(batch)
    rebuild(engine)
    engine._check()
    assert (batch.timers, engine.stats().timers, engine.claims.batch) == ([], 2, batch)
    batch.delivered = 1
    begun = []
    work = engine.claims.begin(SLOT)
    while work is not None:
        fate = None
        if isinstance(work, DueBatch):
            begun += [claim(work) for _ in range(len(work.timers))]
            work.delivered = len(begun)
        else:
            assert isinstance(work, Timer)
            work.event = work.table = None
            begun.append(work)
            fate = False
        work = engine.claims.begin(SLOT, fate)
    assert begun == timers[1:]
    assert engine.stats().balanced


def test_a_claim_or_a_concurrent_cancel_gets_each_timer_but_never_both() -> None:
    """Fault: of a claim and a cancel on two threads both get the same timer, or neither gets it (G5).

    This holds without the global interpreter lock, too.
    """
    for _ in range(50):
        timers = [Timer() for _ in range(64)]
        batch = DueBatch(timers.copy())
        start = threading.Barrier(2)
        withdrawn: list[Timer] = []

        def cancel(
            batch: DueBatch = batch,
            timers: list[Timer] = timers,
            start: threading.Barrier = start,
            withdrawn: list[Timer] = withdrawn,
        ) -> None:
            start.wait()
            withdrawn.extend(timer for timer in timers if batch.withdraw(timer))

        canceller = threading.Thread(target=cancel)
        canceller.start()
        start.wait()
        claimed = []
        while batch.timers:
            try:
                claimed.append(batch.timers.pop())
            except IndexError:
                break
        canceller.join()
        assert sorted(map(id, claimed + withdrawn)) == sorted(map(id, timers))
        assert batch.begun == len(claimed)


def test_a_keyboard_interrupt_leaves_later_timers_for_the_next_advance() -> None:
    """Fault: Ctrl-C in a handler loses the other timers of the batch, or delivers one twice (G19)."""
    heard: list[str] = []

    def dispatch(cid: str, event: Event) -> None:
        heard.append(cid)
        if cid == "b":
            raise KeyboardInterrupt

    with create_registry("virtual") as registry:
        registry.install_dispatch(dispatch)
        for cid in "xabcd":
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=5, event="tick")
        with pytest.raises(KeyboardInterrupt):
            registry.advance(5)
        assert heard == ["x", "a", "b"]
        stats = registry.stats()
        assert (stats.delivered, stats.failed, stats.timers, stats.running) == (2, 1, 2, 0)
        assert registry.next_due_ms() == 5
        assert registry.cancel_timers("c") == 1
        registry.advance(0)
        assert heard == ["x", "a", "b", "d"]
        assert registry.stats().balanced


def test_a_handler_cancels_later_timers_of_its_own_batch() -> None:
    """Fault: a timer is delivered although a handler has cancelled it, because it is in the same batch (G5)."""
    heard: list[str] = []

    def dispatch(cid: str, event: Event) -> None:
        heard.append(cid)
        if cid == "a":
            assert registry.cancel_timers("c") == 1
            assert handles["d"].cancel() is True
            assert handles["a"].cancel() is False
            assert list(registry.inspect()) == ["a", "b"]

    with create_registry("virtual") as registry:
        registry.install_dispatch(dispatch)
        handles = {
            cid: registry.schedule_event(cid=cid, instance_id="main", delay_ms=5, event="tick") for cid in "xabcd"
        }
        registry.advance(5)
        assert heard == ["x", "a", "b"]
        assert registry.stats().cancelled == 2


def test_a_delivered_timer_releases_its_payload_before_its_batch_ends() -> None:
    """Fault: a payload lives until its batch is over (G13)."""

    class Payload:
        pass

    alive: list[object] = []
    watched: list[weakref.ref[Payload]] = []

    def dispatch(cid: str, event: Event) -> None:
        if cid == "last":
            gc.collect()
            alive.extend(reference() for reference in watched)

    with create_registry("virtual") as registry:
        registry.install_dispatch(dispatch)
        for cid in ("x", "a", "b", "last"):
            payload = Payload()
            watched.append(weakref.ref(payload))
            event = ("tick", payload) if cid != "last" else "tick"
            registry.schedule_event(cid=cid, instance_id="main", delay_ms=5, event=event)
        del payload, event
        registry.advance(5)
    assert alive == [None] * 4


def test_stopping_a_batch_returns_its_remaining_timers_in_ready_order() -> None:
    """Fault: after a recovery, timers that are due at the same instant begin in reverse order (G2)."""
    _, batch, timers = batch_of("a", "b", "c", "d")
    claim(batch)
    assert batch.stop() == timers[1:]
    assert batch.stop() == []
